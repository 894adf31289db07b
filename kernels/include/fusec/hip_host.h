// The names of hip.h for the host: the source of a kernel runs on the CPU, one group after another,
// each lane on a stack of its own. What exchanges values hands over to the next lane until all have
// come; lanes that never meet, and lanes that wait at different places, stop the process.
//
// Only for tests: it is as slow as it is simple.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#ifndef FUSEC_FP8_FNUZ
#define FUSEC_FP8_FNUZ 0
#endif

#define FUSEC_DEVICE inline

namespace fusec {

using i8 = int8_t;
using u8 = uint8_t;
using i16 = int16_t;
using u16 = uint16_t;
using i32 = int32_t;
using u32 = uint32_t;
using i64 = int64_t;
using u64 = uint64_t;
using f32 = float;
using f16 = _Float16;

inline i32 bits_of(f32 value) {
  i32 bits;
  memcpy(&bits, &value, 4);
  return bits;
}

inline f32 f32_of(i32 bits) {
  f32 value;
  memcpy(&value, &bits, 4);
  return value;
}

struct bf16 {
  u16 bits;

  bf16() = default;
  explicit bf16(f32 value) {
    u32 wide = static_cast<u32>(bits_of(value));
    u32 rounded = wide + 0x7FFF + (wide >> 16 & 1);
    bits = static_cast<u16>(value != value ? 0x7FC0 : rounded >> 16);
  }
  explicit operator f32() const { return f32_of(static_cast<i32>(static_cast<u32>(bits) << 16)); }
};

// --- lanes -----------------------------------------------------------------------------------

namespace host {

enum Waiting { READY, AT_WAVE, AT_GROUP, ENDED };

constexpr i32 WAVE = 64;
constexpr i32 MOST_LANES = 1024;
constexpr size_t STACK = 128 << 10;

struct Lane {
  ucontext_t context;
  Waiting waiting;
  i32 parity;
  f32 slots[2];
};

struct Group {
  ucontext_t scheduler;
  Lane lanes[MOST_LANES];
  i32 threads;
  i32 running;
  i64 x, y, z;
  i64 serial;
  void (*body)(void* const*);
  void* const* arguments;
};

inline Group& group() {
  static Group the_group;
  return the_group;
}

[[noreturn]] inline void stop(const char* why) {
  fprintf(stderr, "fusec host shim: %s, group (%ld, %ld, %ld)\n", why, static_cast<long>(group().x),
          static_cast<long>(group().y), static_cast<long>(group().z));
  abort();
}

inline void wait(Waiting where) {
  Lane& lane = group().lanes[group().running];
  lane.waiting = where;
  swapcontext(&lane.context, &group().scheduler);
}

inline void enter() {
  group().body(group().arguments);
  group().lanes[group().running].waiting = ENDED;
}

// Lets the lanes of each wave go on whose lanes have all come to an exchange, or all lanes if every
// one has come to the barrier; says whether any lane has not ended.
inline bool release() {
  Group& all = group();
  i32 ended = 0, at_group = 0;
  bool released = false;
  for (i32 wave = 0; wave < all.threads; wave += WAVE) {
    i32 at_wave = 0;
    for (i32 i = wave; i < wave + WAVE; ++i) {
      at_wave += all.lanes[i].waiting == AT_WAVE;
      at_group += all.lanes[i].waiting == AT_GROUP;
      ended += all.lanes[i].waiting == ENDED;
    }
    if (at_wave != 0 && at_wave != WAVE) stop("lanes of a wave do not meet at an exchange");
    for (i32 i = wave; at_wave == WAVE && i < wave + WAVE; ++i) all.lanes[i].waiting = READY;
    released |= at_wave != 0;
  }
  if (ended == all.threads) return false;
  if (!released) {
    if (at_group != all.threads) stop("lanes do not meet at a barrier");
    for (i32 i = 0; i < all.threads; ++i) all.lanes[i].waiting = READY;
  }
  return true;
}

inline void run_group(char* stacks) {
  Group& all = group();
  ++all.serial;
  for (i32 i = 0; i < all.threads; ++i) {
    Lane& lane = all.lanes[i];
    lane.waiting = READY;
    lane.parity = 0;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = stacks + static_cast<size_t>(i) * STACK;
    lane.context.uc_stack.ss_size = STACK;
    lane.context.uc_link = &all.scheduler;
    makecontext(&lane.context, enter, 0);
  }
  do {
    for (i32 i = 0; i < all.threads; ++i) {
      if (all.lanes[i].waiting != READY) continue;
      all.running = i;
      swapcontext(&all.scheduler, &all.lanes[i].context);
    }
  } while (release());
}

inline void run(void (*body)(void* const*), void* const* arguments, const i64* grid, i32 threads) {
  Group& all = group();
  if (threads % WAVE != 0 || threads > MOST_LANES) stop("a group is made of 1 to 16 whole waves");
  all.threads = threads;
  all.body = body;
  all.arguments = arguments;
  char* stacks = static_cast<char*>(malloc(static_cast<size_t>(threads) * STACK));
  for (all.z = 0; all.z < grid[2]; ++all.z) {
    for (all.y = 0; all.y < grid[1]; ++all.y) {
      for (all.x = 0; all.x < grid[0]; ++all.x) run_group(stacks);
    }
  }
  free(stacks);
}

template <size_t... AT>
struct Indices {};
template <size_t N, size_t... AT>
struct IndicesTo : IndicesTo<N - 1, N - 1, AT...> {};
template <size_t... AT>
struct IndicesTo<0, AT...> {
  using type = Indices<AT...>;
};

template <auto KERNEL>
struct Entry;
template <class... Arguments, void (*KERNEL)(Arguments...)>
struct Entry<KERNEL> {
  static void lane(void* const* arguments) {
    call(arguments, typename IndicesTo<sizeof...(Arguments)>::type());
  }
  template <size_t... AT>
  static void call(void* const* arguments, Indices<AT...>) {
    KERNEL(*static_cast<Arguments*>(arguments[AT])...);
  }
};

}  // namespace host

// Exports NAME(addresses of the arguments, groups along each axis).
#define FUSEC_KERNEL(name, ...)                                                              \
  static void name##_lane(__VA_ARGS__);                                                      \
  extern "C" __attribute__((visibility("default"))) void name(void* const* arguments,        \
                                                              const fusec::i64* grid) {      \
    fusec::host::run(fusec::host::Entry<name##_lane>::lane, arguments, grid, FUSEC_THREADS); \
  }                                                                                          \
  static void name##_lane(__VA_ARGS__)

// Full of NaN when a group begins: nothing may be read that the group did not write.
#define FUSEC_SHARED(type, name, count)                      \
  static type name[count];                                   \
  static fusec::i64 name##_serial = 0;                       \
  if (name##_serial != fusec::host::group().serial) {        \
    name##_serial = fusec::host::group().serial;             \
    memset(static_cast<void*>(name), 0xFF, sizeof(name));    \
  }

inline i32 lane() { return host::group().running; }
inline i64 group_x() { return host::group().x; }
inline i64 group_y() { return host::group().y; }
inline i64 group_z() { return host::group().z; }
inline void barrier() { host::wait(host::AT_GROUP); }

// The value that the lane `source` of this wave gives; two slots in turn need one meeting.
inline f32 lane_exchange(f32 value, i32 source) {
  host::Lane* wave = host::group().lanes + lane() / host::WAVE * host::WAVE;
  host::Lane& own = host::group().lanes[lane()];
  i32 parity = own.parity ^= 1;
  own.slots[parity] = value;
  host::wait(host::AT_WAVE);
  return wave[source].slots[parity];
}

template <i32 MASK>
inline f32 lane_xor(f32 value) {
  return lane_exchange(value, lane() % host::WAVE ^ MASK);
}

inline f32 lane_broadcast(f32 value, i32 source) { return lane_exchange(value, source); }

// --- mathematics -----------------------------------------------------------------------------

inline f32 minimum(f32 a, f32 b) { return fminf(a, b); }
inline f32 maximum(f32 a, f32 b) { return fmaxf(a, b); }
inline f32 absolute(f32 a) { return fabsf(a); }
inline f32 fma(f32 a, f32 b, f32 c) { return fmaf(a, b, c); }
inline f32 exp(f32 a) { return expf(a); }
inline f32 exp2(f32 a) { return exp2f(a); }
inline f32 erf(f32 a) { return erff(a); }
inline f32 tanh(f32 a) { return tanhf(a); }
inline f32 ceil(f32 a) { return ceilf(a); }
inline f32 rsqrt(f32 a) { return 1.0f / sqrtf(a); }
inline f32 reciprocal(f32 a) { return 1.0f / a; }
inline f32 scaled(f32 a, i32 e) { return ldexpf(a, e); }
inline f32 clamp(f32 a, f32 low, f32 high) { return a != a ? a : fminf(fmaxf(a, low), high); }

inline f32 mantissa_of(f32 a) {
  i32 exponent;
  return frexpf(a, &exponent);
}

inline i32 exponent_of(f32 a) {
  i32 exponent;
  frexpf(a, &exponent);
  return exponent;
}

// --- fp8 -------------------------------------------------------------------------------------

constexpr i32 FP8_BIAS = FUSEC_FP8_FNUZ ? 8 : 7;

// One value within range, or NaN, as e4m3, rounded to even.
inline u32 to_fp8(f32 value) {
  if (value != value) return FUSEC_FP8_FNUZ ? 0x80 : 0x7F;
  u32 sign = signbit(value) ? 0x80 : 0;
  if (value == 0.0f) return FUSEC_FP8_FNUZ ? 0 : sign;
  i32 exponent;
  frexpf(value, &exponent);
  exponent = exponent - 1 < 1 - FP8_BIAS ? 1 - FP8_BIAS : exponent - 1;
  u32 steps = static_cast<u32>(nearbyintf(ldexpf(fabsf(value), 3 - exponent)));
  u32 code = steps + (static_cast<u32>(exponent + FP8_BIAS - 1) << 3);
  if (FUSEC_FP8_FNUZ && code == 0) return 0;
  return sign | code;
}

inline u32 to_fp8x4(f32 a, f32 b, f32 c, f32 d, f32 limit) {
  return to_fp8(clamp(a, -limit, limit)) | to_fp8(clamp(b, -limit, limit)) << 8 |
         to_fp8(clamp(c, -limit, limit)) << 16 | to_fp8(clamp(d, -limit, limit)) << 24;
}

template <i32 AT>
inline f32 from_fp8(u32 four) {
  u32 code = four >> (8 * AT) & 0xFF;
  if (FUSEC_FP8_FNUZ ? code == 0x80 : (code & 0x7F) == 0x7F) return NAN;
  i32 exponent = static_cast<i32>(code >> 3 & 0xF);
  f32 steps = static_cast<f32>((code & 7) + (exponent == 0 ? 0 : 8));
  f32 value = ldexpf(steps, (exponent == 0 ? 1 : exponent) - FP8_BIAS - 3);
  return code & 0x80 ? -value : value;
}

}  // namespace fusec
