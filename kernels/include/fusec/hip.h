// What every HIP kernel is written with: no ROCm headers, so that any clang with an amdgcn back
// end compiles it, and, with FUSEC_HOST_SHIM, any C++ compiler for the host, which runs the same
// source on the CPU, lane by lane.
//
// A kernel is a `kernel.hip` in the folder of its operation:
//
//   #include <fusec/hip.h>
//   namespace fusec {
//
//   using X = Element<FUSEC_DTYPE>;            // macros of the record's `HipSource.defines`
//
//   FUSEC_KERNEL(scale_rows, const X* __restrict x, X* __restrict y, i64 x_stride, f32 factor) {
//     const X* row = x + group_x() * x_stride;
//     f32 part[8];
//     load(part, row + lane() * 8);            // one 16-byte load of 8 bf16, widened to f32
//     ...
//     f32 total = group_sum(sum_of_part);      // every lane of the group must get here
//     store(y + ..., part);
//   }
//
//   }  // namespace fusec
//
// * Arguments are pointers, `i32`, `i64` and `f32`, in the order of `HipSource.signature`.
// * `FUSEC_THREADS`, the lanes of a group, comes from `HipSource.threads`: a multiple of 64, at
//   most 1024. A wave has 64 lanes. `FUSEC_DTYPE`-like macros hold the codes of `Element`.
// * Arrays between lanes: `FUSEC_SHARED(f32, name, count)` at the top of the kernel or function.
// * What exchanges values between lanes is reached by every lane of the wave (`lane_xor`,
//   `lanes_*`, `wave_*`) or of the group (`barrier`, `group_*`): a tail is masked by value, never
//   by leaving early. The host shim stops where lanes do not meet.
// * Loads and stores of N elements take 16 bytes at a time where N elements are that many, and
//   need pointers aligned to it (`HipSource` kernels are chosen by a record that knows).
// * No `double`, no `printf`, no library: `exp`, `erf`, `tanh`, `rsqrt`, ... are below.
#pragma once

#ifdef FUSEC_HOST_SHIM
#include <fusec/hip_host.h>
#else

namespace fusec {

using i8 = signed char;
using u8 = unsigned char;
using i16 = short;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long;
using u64 = unsigned long;
using f32 = float;
using f16 = _Float16;
using bf16 = __bf16;

#define FUSEC_DEVICE __attribute__((device, always_inline)) inline

#define FUSEC_KERNEL(name, ...)                                                        \
  extern "C" __attribute__((                                                           \
      global, amdgpu_flat_work_group_size(FUSEC_THREADS, FUSEC_THREADS))) void name(   \
      __VA_ARGS__)

#define FUSEC_SHARED(type, name, count) __attribute__((shared)) static type name[count]

#if defined(__gfx942__)
#define FUSEC_FP8_FNUZ 1
#else
#define FUSEC_FP8_FNUZ 0
#endif

// --- where a lane is -------------------------------------------------------------------------

// The lane within its group: 0 to FUSEC_THREADS - 1.
FUSEC_DEVICE i32 lane() { return static_cast<i32>(__builtin_amdgcn_workitem_id_x()); }
FUSEC_DEVICE i64 group_x() { return static_cast<i64>(__builtin_amdgcn_workgroup_id_x()); }
FUSEC_DEVICE i64 group_y() { return static_cast<i64>(__builtin_amdgcn_workgroup_id_y()); }
FUSEC_DEVICE i64 group_z() { return static_cast<i64>(__builtin_amdgcn_workgroup_id_z()); }

// Every lane of the group gets here, and sees what the others wrote to shared arrays.
FUSEC_DEVICE void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// --- exchange within a wave ------------------------------------------------------------------

FUSEC_DEVICE i32 bits_of(f32 value) { return __builtin_bit_cast(i32, value); }
FUSEC_DEVICE f32 f32_of(i32 bits) { return __builtin_bit_cast(f32, bits); }

// The value of lane `i ^ MASK` of the wave. Up to 8 by data-parallel primitives, 16 by a swizzle,
// which only ever sees 32 lanes, and 32 through the permutation network.
template <i32 MASK>
FUSEC_DEVICE f32 lane_xor(f32 value) {
  static_assert(MASK > 0 && MASK < 64, "a wave has 64 lanes");
  i32 bits = bits_of(value);
  if constexpr (MASK < 4) {
    constexpr i32 quad = (0 ^ MASK) | (1 ^ MASK) << 2 | (2 ^ MASK) << 4 | (3 ^ MASK) << 6;
    return f32_of(__builtin_amdgcn_update_dpp(0, bits, quad, 0xF, 0xF, true));
  } else if constexpr (MASK == 7) {
    return f32_of(__builtin_amdgcn_update_dpp(0, bits, 0x141, 0xF, 0xF, true));
  } else if constexpr (MASK == 15) {
    return f32_of(__builtin_amdgcn_update_dpp(0, bits, 0x140, 0xF, 0xF, true));
  } else if constexpr (MASK < 32) {
    return f32_of(__builtin_amdgcn_ds_swizzle(bits, MASK << 10 | 0x1F));
  } else {
    return f32_of(__builtin_amdgcn_ds_bpermute((lane() ^ MASK) << 2, bits));
  }
}

// The value of the lane `source` of the wave, the same `source` in every lane.
FUSEC_DEVICE f32 lane_broadcast(f32 value, i32 source) {
  return f32_of(__builtin_amdgcn_readlane(bits_of(value), source));
}

// --- mathematics -----------------------------------------------------------------------------

extern "C" {
__attribute__((device)) f32 __ocml_erf_f32(f32);
__attribute__((device)) f32 __ocml_tanh_f32(f32);
}

FUSEC_DEVICE f32 minimum(f32 a, f32 b) { return __builtin_fminf(a, b); }
FUSEC_DEVICE f32 maximum(f32 a, f32 b) { return __builtin_fmaxf(a, b); }
FUSEC_DEVICE f32 absolute(f32 a) { return __builtin_fabsf(a); }
FUSEC_DEVICE f32 fma(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
FUSEC_DEVICE f32 exp(f32 a) { return __builtin_expf(a); }
// 2^a in one instruction; powers that are no normal numbers may be lost.
FUSEC_DEVICE f32 exp2(f32 a) { return __builtin_amdgcn_exp2f(a); }
FUSEC_DEVICE f32 erf(f32 a) { return __ocml_erf_f32(a); }
FUSEC_DEVICE f32 tanh(f32 a) { return __ocml_tanh_f32(a); }
FUSEC_DEVICE f32 ceil(f32 a) { return __builtin_ceilf(a); }
// Within one unit in the last place.
FUSEC_DEVICE f32 rsqrt(f32 a) { return __builtin_amdgcn_rsqf(a); }
FUSEC_DEVICE f32 reciprocal(f32 a) { return __builtin_amdgcn_rcpf(a); }
// The exponent e and the mantissa m of a = m * 2^e, with m in [0.5, 1).
FUSEC_DEVICE i32 exponent_of(f32 a) { return __builtin_amdgcn_frexp_expf(a); }
FUSEC_DEVICE f32 mantissa_of(f32 a) { return __builtin_amdgcn_frexp_mantf(a); }
// a * 2^e.
FUSEC_DEVICE f32 scaled(f32 a, i32 e) { return __builtin_ldexpf(a, e); }

// The median of three is one instruction; a NaN stays one.
FUSEC_DEVICE f32 clamp(f32 a, f32 low, f32 high) {
  return a != a ? a : __builtin_amdgcn_fmed3f(a, low, high);
}

// --- fp8 -------------------------------------------------------------------------------------

// Four values as e4m3 (fnuz on gfx942, fn elsewhere), rounded to even and clamped to +-limit; the
// first is in the low byte.
FUSEC_DEVICE u32 to_fp8x4(f32 a, f32 b, f32 c, f32 d, f32 limit) {
  i32 low = __builtin_amdgcn_cvt_pk_fp8_f32(
      clamp(a, -limit, limit), clamp(b, -limit, limit), 0, false);
  return static_cast<u32>(__builtin_amdgcn_cvt_pk_fp8_f32(
      clamp(c, -limit, limit), clamp(d, -limit, limit), low, true));
}

// The value of byte AT of four e4m3 values.
template <i32 AT>
FUSEC_DEVICE f32 from_fp8(u32 four) {
  return __builtin_amdgcn_cvt_f32_fp8(static_cast<i32>(four), AT);
}

// What the mathematical library of the device, ocml, asks of the program it is linked to.
#define FUSEC_OCLC(name, value)                                                                \
  extern "C" __attribute__((device, constant, visibility("hidden"))) const u8 __oclc_##name = \
      value;
FUSEC_OCLC(finite_only_opt, 0)
FUSEC_OCLC(unsafe_math_opt, 0)
FUSEC_OCLC(correctly_rounded_sqrt32, 1)
FUSEC_OCLC(wavefrontsize64, 1)
FUSEC_OCLC(daz_opt, 0)
#undef FUSEC_OCLC

}  // namespace fusec

#endif  // FUSEC_HOST_SHIM

namespace fusec {

// --- elements --------------------------------------------------------------------------------

template <i32 CODE>
struct ElementOf;
template <>
struct ElementOf<0> {
  using type = f32;
};
template <>
struct ElementOf<1> {
  using type = bf16;
};
template <>
struct ElementOf<2> {
  using type = f16;
};

// The element type of a macro of a record: 0 is f32, 1 is bf16, 2 is f16.
template <i32 CODE>
using Element = typename ElementOf<CODE>::type;

// N neighbours that are moved by one instruction.
template <class T, i32 N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

// Elements of T that one 16-byte access moves.
template <class T>
constexpr i32 WIDTH = 16 / sizeof(T);

// Reads N neighbours, widened to f32; `from` is aligned to them all, or to 16 bytes.
template <i32 N, class T>
FUSEC_DEVICE void load(f32 (&to)[N], const T* from) {
  constexpr i32 width = N < WIDTH<T> ? N : WIDTH<T>;
  static_assert(N % width == 0, "whole accesses only");
#pragma unroll
  for (i32 i = 0; i < N; i += width) {
    Pack<T, width> pack = *reinterpret_cast<const Pack<T, width>*>(from + i);
#pragma unroll
    for (i32 j = 0; j < width; ++j) to[i + j] = static_cast<f32>(pack.values[j]);
  }
}

// Reads the first `count` of N neighbours one by one; the others are 0.
template <i32 N, class T>
FUSEC_DEVICE void load_some(f32 (&to)[N], const T* from, i64 count) {
#pragma unroll
  for (i32 i = 0; i < N; ++i) to[i] = i < count ? static_cast<f32>(from[i]) : 0.0f;
}

// Writes N neighbours, each rounded once to T; `to` is aligned as for `load`.
template <i32 N, class T>
FUSEC_DEVICE void store(T* to, const f32 (&from)[N]) {
  constexpr i32 width = N < WIDTH<T> ? N : WIDTH<T>;
  static_assert(N % width == 0, "whole accesses only");
#pragma unroll
  for (i32 i = 0; i < N; i += width) {
    Pack<T, width> pack;
#pragma unroll
    for (i32 j = 0; j < width; ++j) pack.values[j] = static_cast<T>(from[i + j]);
    *reinterpret_cast<Pack<T, width>*>(to + i) = pack;
  }
}

// Writes the first `count` of N neighbours one by one.
template <i32 N, class T>
FUSEC_DEVICE void store_some(T* to, const f32 (&from)[N], i64 count) {
#pragma unroll
  for (i32 i = 0; i < N; ++i) {
    if (i < count) to[i] = static_cast<T>(from[i]);
  }
}

// Writes N values as e4m3 bytes, clamped to +-limit; `to` is aligned to N bytes, or to 16.
template <i32 N>
FUSEC_DEVICE void store_fp8(u8* to, const f32 (&from)[N], f32 limit) {
  static_assert(N % 4 == 0, "four values at a time");
  constexpr i32 words = N / 4 < 4 ? N / 4 : 4;
#pragma unroll
  for (i32 i = 0; i < N; i += words * 4) {
    Pack<u32, words> pack;
#pragma unroll
    for (i32 j = 0; j < words; ++j) {
      const f32* four = from + i + j * 4;
      pack.values[j] = to_fp8x4(four[0], four[1], four[2], four[3], limit);
    }
    *reinterpret_cast<Pack<u32, words>*>(to + i) = pack;
  }
}

// Writes the first `count` of N values as e4m3 bytes, one by one.
template <i32 N>
FUSEC_DEVICE void store_fp8_some(u8* to, const f32 (&from)[N], i64 count, f32 limit) {
#pragma unroll
  for (i32 i = 0; i < N; ++i) {
    if (i < count) to[i] = static_cast<u8>(to_fp8x4(from[i], 0.0f, 0.0f, 0.0f, limit));
  }
}

// --- reductions ------------------------------------------------------------------------------

struct Sum {
  static constexpr f32 neutral = 0.0f;
  static FUSEC_DEVICE f32 of(f32 a, f32 b) { return a + b; }
};

struct Maximum {
  static constexpr f32 neutral = -__builtin_huge_valf();
  static FUSEC_DEVICE f32 of(f32 a, f32 b) { return maximum(a, b); }
};

// Combines the values of COUNT neighbouring lanes, a power of two up to 64; all of them get the
// result. The order of operations depends on COUNT alone.
template <class Reduction, i32 COUNT>
FUSEC_DEVICE f32 reduce_lanes(f32 value) {
  static_assert(COUNT > 0 && COUNT <= 64 && (COUNT & (COUNT - 1)) == 0, "a power of two");
  if constexpr (COUNT >= 2) value = Reduction::of(value, lane_xor<1>(value));
  if constexpr (COUNT >= 4) value = Reduction::of(value, lane_xor<2>(value));
  if constexpr (COUNT >= 8) value = Reduction::of(value, lane_xor<7>(value));
  if constexpr (COUNT >= 16) value = Reduction::of(value, lane_xor<15>(value));
  if constexpr (COUNT == 32) value = Reduction::of(value, lane_xor<16>(value));
  if constexpr (COUNT == 64) {
    f32 low = Reduction::of(lane_broadcast(value, 0), lane_broadcast(value, 16));
    f32 high = Reduction::of(lane_broadcast(value, 32), lane_broadcast(value, 48));
    value = Reduction::of(low, high);
  }
  return value;
}

template <i32 COUNT>
FUSEC_DEVICE f32 lanes_sum(f32 value) {
  return reduce_lanes<Sum, COUNT>(value);
}

template <i32 COUNT>
FUSEC_DEVICE f32 lanes_maximum(f32 value) {
  return reduce_lanes<Maximum, COUNT>(value);
}

FUSEC_DEVICE f32 wave_sum(f32 value) { return lanes_sum<64>(value); }

// Combines the values of all lanes of the group. `parts`, a shared array of FUSEC_THREADS / 64, is
// free again at the next barrier.
template <class Reduction>
FUSEC_DEVICE f32 reduce_group(f32 value, f32* parts) {
  constexpr i32 waves = FUSEC_THREADS / 64;
  static_assert(FUSEC_THREADS % 64 == 0, "whole waves only");
  value = reduce_lanes<Reduction, 64>(value);
  if constexpr (waves > 1) {
    if (lane() % 64 == 0) parts[lane() / 64] = value;
    barrier();
    value = parts[0];
#pragma unroll
    for (i32 i = 1; i < waves; ++i) value = Reduction::of(value, parts[i]);
  }
  return value;
}

// As `reduce_group`, with an array of its own; it may be called again and again.
template <class Reduction>
FUSEC_DEVICE f32 reduce_group_once_more(f32 value) {
  FUSEC_SHARED(f32, parts, FUSEC_THREADS / 64);
  if constexpr (FUSEC_THREADS > 64) barrier();  // the last result may still be read
  return reduce_group<Reduction>(value, parts);
}

FUSEC_DEVICE f32 group_sum(f32 value) { return reduce_group_once_more<Sum>(value); }
FUSEC_DEVICE f32 group_maximum(f32 value) { return reduce_group_once_more<Maximum>(value); }

}  // namespace fusec
