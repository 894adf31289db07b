// One float vector type over AVX2 and AVX-512, and the elementary functions on it.
//
// `Vec` holds LANES floats. Storage in bf16 or f16 is widened by `load` and rounded to nearest even
// by `store`. Comparisons with NaN are false. The functions propagate NaN and are accurate to a few
// units in the last place of f32; they are written with explicit fma so that compilers agree.
#pragma once

#include <fusec/kernel.h>
#include <immintrin.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define FUSEC_AVX512 1
#elif !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "fusec CPU kernels need at least x86-64-v3 (AVX2, FMA, F16C)"
#endif

namespace fusec {

// ---- scalar conversions ----

FUSEC_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

FUSEC_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FUSEC_INLINE float to_float(float value) { return value; }
FUSEC_INLINE float to_float(bf16 value) {
  return float_of(static_cast<uint32_t>(value.bits) << 16);
}
FUSEC_INLINE float to_float(f16 value) { return _cvtsh_ss(value.bits); }

template <class T>
FUSEC_INLINE T from_float(float value);

template <>
FUSEC_INLINE float from_float<float>(float value) {
  return value;
}

template <>
FUSEC_INLINE bf16 from_float<bf16>(float value) {
  uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <>
FUSEC_INLINE f16 from_float<f16>(float value) {
  return {static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
}

#if FUSEC_AVX512

constexpr int LANES = 16;
using Vec = __m512;
using IntVec = __m512i;
using Mask = __mmask16;

FUSEC_INLINE Vec set(float value) { return _mm512_set1_ps(value); }
FUSEC_INLINE Vec zero() { return _mm512_setzero_ps(); }
FUSEC_INLINE Mask first_lanes(int count) { return static_cast<Mask>((1u << count) - 1u); }

FUSEC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
FUSEC_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
FUSEC_INLINE Vec fnms(Vec a, Vec b, Vec c) { return _mm512_fnmsub_ps(a, b, c); }
// The second operand is returned when either is NaN.
FUSEC_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
FUSEC_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
FUSEC_INLINE Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
FUSEC_INLINE Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
FUSEC_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
FUSEC_INLINE Vec copy_sign(Vec magnitude, Vec sign) {
  const __m512 bit = _mm512_set1_ps(-0.0f);
  return _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign));
}
FUSEC_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
FUSEC_INLINE Mask is_nan(Vec a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
FUSEC_INLINE Vec select(Mask mask, Vec yes, Vec no) { return _mm512_mask_blend_ps(mask, no, yes); }
// Also true where either is NaN.
FUSEC_INLINE Mask differs(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
FUSEC_INLINE bool any(Mask mask) { return mask != 0; }

// The bits of LANES floats.
FUSEC_INLINE IntVec bits_of(Vec a) { return _mm512_castps_si512(a); }
FUSEC_INLINE Vec float_of(IntVec a) { return _mm512_castsi512_ps(a); }
FUSEC_INLINE IntVec set_bits(uint32_t a) { return _mm512_set1_epi32(static_cast<int>(a)); }
FUSEC_INLINE IntVec add_bits(IntVec a, IntVec b) { return _mm512_add_epi32(a, b); }
FUSEC_INLINE IntVec subtract_bits(IntVec a, IntVec b) { return _mm512_sub_epi32(a, b); }
FUSEC_INLINE IntVec and_bits(IntVec a, IntVec b) { return _mm512_and_si512(a, b); }
FUSEC_INLINE IntVec or_bits(IntVec a, IntVec b) { return _mm512_or_si512(a, b); }
FUSEC_INLINE IntVec max_bits(IntVec a, IntVec b) { return _mm512_max_epu32(a, b); }
FUSEC_INLINE IntVec select(Mask mask, IntVec yes, IntVec no) {
  return _mm512_mask_blend_epi32(mask, no, yes);
}
FUSEC_INLINE Mask equal_bits(IntVec a, IntVec b) { return _mm512_cmpeq_epi32_mask(a, b); }
template <int COUNT>
FUSEC_INLINE IntVec shift_left(IntVec a) {
  return _mm512_slli_epi32(a, COUNT);
}
template <int COUNT>
FUSEC_INLINE IntVec shift_right(IntVec a) {
  return _mm512_srli_epi32(a, COUNT);
}
FUSEC_INLINE Vec from_integers(IntVec a) { return _mm512_cvtepi32_ps(a); }

// Bytes as lanes, and the low bytes of lanes.
FUSEC_INLINE IntVec load_bytes(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FUSEC_INLINE void store_bytes(uint8_t* p, IntVec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}
// Two 4-bit lanes a byte, the even one in the low bits; lanes are below 16.
FUSEC_INLINE void store_pairs(uint8_t* p, IntVec a) {
  IntVec both = _mm512_or_si512(a, _mm512_srli_epi64(a, 28));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm512_cvtepi64_epi8(both));
}

// x * 2^n for integral n, correct for subnormal and infinite results.
FUSEC_INLINE Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }

FUSEC_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
FUSEC_INLINE Vec load(const bf16* p) {
  __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
FUSEC_INLINE Vec load(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

FUSEC_INLINE Vec load_partial(const float* p, int count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), p);
}
FUSEC_INLINE Vec load_partial(const bf16* p, int count) {
  __m256i half = _mm256_maskz_loadu_epi16(first_lanes(count), p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
FUSEC_INLINE Vec load_partial(const f16* p, int count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), p));
}

FUSEC_INLINE __m256i round_to_bf16(Vec value) {
#if defined(__AVX512BF16__)
  // The instruction flushes subnormals: where there are any, integers round.
  constexpr int SUBNORMAL = 0x20;
  if (__builtin_expect(_mm512_fpclass_ps_mask(value, SUBNORMAL) == 0, 1)) {
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
  }
#endif
  __m512i bits = _mm512_castps_si512(value);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  rounded = _mm512_mask_mov_epi32(rounded, is_nan(value), quiet);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
FUSEC_INLINE void store(float* p, Vec value) { _mm512_storeu_ps(p, value); }
FUSEC_INLINE void store(bf16* p, Vec value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_to_bf16(value));
}
FUSEC_INLINE void store(f16* p, Vec value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
FUSEC_INLINE void store_partial(float* p, Vec value, int count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), value);
}
FUSEC_INLINE void store_partial(bf16* p, Vec value, int count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), round_to_bf16(value));
}
FUSEC_INLINE void store_partial(f16* p, Vec value, int count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count),
                           _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

// The sums and maxima below fold halves, so that the order is the same on every target with the
// same number of lanes.
FUSEC_INLINE __m256 lower_half(Vec a) { return _mm512_castps512_ps256(a); }
FUSEC_INLINE __m256 upper_half(Vec a) { return _mm512_extractf32x8_ps(a, 1); }

#else  // AVX2

constexpr int LANES = 8;
using Vec = __m256;
using IntVec = __m256i;
using Mask = __m256;

FUSEC_INLINE Vec set(float value) { return _mm256_set1_ps(value); }
FUSEC_INLINE Vec zero() { return _mm256_setzero_ps(); }
FUSEC_INLINE Mask first_lanes(int count) {
  __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane));
}

FUSEC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
FUSEC_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
FUSEC_INLINE Vec fnms(Vec a, Vec b, Vec c) { return _mm256_fnmsub_ps(a, b, c); }
// The second operand is returned when either is NaN.
FUSEC_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
FUSEC_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
FUSEC_INLINE Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
FUSEC_INLINE Vec round(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
FUSEC_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
FUSEC_INLINE Vec copy_sign(Vec magnitude, Vec sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, magnitude), _mm256_and_ps(bit, sign));
}
FUSEC_INLINE Mask less(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
FUSEC_INLINE Mask is_nan(Vec a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
FUSEC_INLINE Vec select(Mask mask, Vec yes, Vec no) { return _mm256_blendv_ps(no, yes, mask); }
// Also true where either is NaN.
FUSEC_INLINE Mask differs(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
FUSEC_INLINE bool any(Mask mask) { return _mm256_movemask_ps(mask) != 0; }

// The bits of LANES floats.
FUSEC_INLINE IntVec bits_of(Vec a) { return _mm256_castps_si256(a); }
FUSEC_INLINE Vec float_of(IntVec a) { return _mm256_castsi256_ps(a); }
FUSEC_INLINE IntVec set_bits(uint32_t a) { return _mm256_set1_epi32(static_cast<int>(a)); }
FUSEC_INLINE IntVec add_bits(IntVec a, IntVec b) { return _mm256_add_epi32(a, b); }
FUSEC_INLINE IntVec subtract_bits(IntVec a, IntVec b) { return _mm256_sub_epi32(a, b); }
FUSEC_INLINE IntVec and_bits(IntVec a, IntVec b) { return _mm256_and_si256(a, b); }
FUSEC_INLINE IntVec or_bits(IntVec a, IntVec b) { return _mm256_or_si256(a, b); }
FUSEC_INLINE IntVec max_bits(IntVec a, IntVec b) { return _mm256_max_epu32(a, b); }
FUSEC_INLINE IntVec select(Mask mask, IntVec yes, IntVec no) {
  return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(mask));
}
FUSEC_INLINE Mask equal_bits(IntVec a, IntVec b) {
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b));
}
template <int COUNT>
FUSEC_INLINE IntVec shift_left(IntVec a) {
  return _mm256_slli_epi32(a, COUNT);
}
template <int COUNT>
FUSEC_INLINE IntVec shift_right(IntVec a) {
  return _mm256_srli_epi32(a, COUNT);
}
FUSEC_INLINE Vec from_integers(IntVec a) { return _mm256_cvtepi32_ps(a); }

// Bytes as lanes, and the low bytes of lanes.
FUSEC_INLINE IntVec load_bytes(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
FUSEC_INLINE __m128i low_bytes(IntVec a) {
  const __m256i first = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
  __m256i placed = _mm256_shuffle_epi8(a, first);
  return _mm_or_si128(_mm256_castsi256_si128(placed), _mm256_extracti128_si256(placed, 1));
}
FUSEC_INLINE void store_bytes(uint8_t* p, IntVec a) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), low_bytes(a));
}
// Two 4-bit lanes a byte, the even one in the low bits; lanes are below 16.
FUSEC_INLINE void store_pairs(uint8_t* p, IntVec a) {
  __m256i both = _mm256_or_si256(a, _mm256_srli_epi64(a, 28));
  // Bytes 0 and 8 of both halves are wanted.
  const __m256i first = _mm256_setr_epi8(0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         -1, -1, 0, 8, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  __m256i placed = _mm256_shuffle_epi8(both, first);
  __m128i bytes = _mm_or_si128(_mm256_castsi256_si128(placed), _mm256_extracti128_si256(placed, 1));
  int word = _mm_cvtsi128_si32(bytes);
  memcpy(p, &word, sizeof word);
}

// x * 2^n for integral n, correct for subnormal and infinite results: in two steps, because 2^n
// itself may not be a float.
FUSEC_INLINE Vec scale_by_power(Vec x, Vec n) {
  __m256i exponent = _mm256_cvtps_epi32(n);
  __m256i first = _mm256_srai_epi32(exponent, 1);
  __m256i second = _mm256_sub_epi32(exponent, first);
  const __m256i one = _mm256_set1_epi32(127);
  Vec a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, one), 23));
  Vec b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, one), 23));
  return _mm256_mul_ps(_mm256_mul_ps(x, a), b);
}

FUSEC_INLINE Vec widen_bf16(__m128i half) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
FUSEC_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
FUSEC_INLINE Vec load(const bf16* p) {
  return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FUSEC_INLINE Vec load(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

FUSEC_INLINE Vec load_partial(const float* p, int count) {
  return _mm256_maskload_ps(p, _mm256_castps_si256(first_lanes(count)));
}
// AVX2 has no masked 16-bit access: the lanes go through a small buffer.
FUSEC_INLINE Vec load_partial(const bf16* p, int count) {
  bf16 lanes[LANES] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
FUSEC_INLINE Vec load_partial(const f16* p, int count) {
  f16 lanes[LANES] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

FUSEC_INLINE __m128i round_to_bf16(Vec value) {
  __m256i bits = _mm256_castps_si256(value);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  rounded = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(is_nan(value)));
  rounded = _mm256_srli_epi32(rounded, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
FUSEC_INLINE void store(float* p, Vec value) { _mm256_storeu_ps(p, value); }
FUSEC_INLINE void store(bf16* p, Vec value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_to_bf16(value));
}
FUSEC_INLINE void store(f16* p, Vec value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
FUSEC_INLINE void store_partial(float* p, Vec value, int count) {
  _mm256_maskstore_ps(p, _mm256_castps_si256(first_lanes(count)), value);
}
FUSEC_INLINE void store_partial(bf16* p, Vec value, int count) {
  bf16 lanes[LANES];
  store(lanes, value);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}
FUSEC_INLINE void store_partial(f16* p, Vec value, int count) {
  f16 lanes[LANES];
  store(lanes, value);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

#endif

// Some bytes only; as lanes, the others are 0.
FUSEC_INLINE IntVec load_bytes_partial(const uint8_t* p, int count) {
  uint8_t bytes[LANES] = {};
  for (int i = 0; i < count; ++i) bytes[i] = p[i];
  return load_bytes(bytes);
}
FUSEC_INLINE void store_bytes_partial(uint8_t* p, IntVec a, int count) {
  uint8_t bytes[LANES];
  store_bytes(bytes, a);
  for (int i = 0; i < count; ++i) p[i] = bytes[i];
}
FUSEC_INLINE void store_pairs_partial(uint8_t* p, IntVec a, int count) {
  uint8_t bytes[LANES / 2];
  store_pairs(bytes, a);
  for (int i = 0; i < count / 2; ++i) p[i] = bytes[i];
}

// ---- reductions over lanes ----

FUSEC_INLINE float reduce_add(__m128 a) {
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_shuffle_ps(a, a, 1)));
}
FUSEC_INLINE float reduce_max(__m128 a) {
  a = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
}
FUSEC_INLINE float reduce_add_8(__m256 a) {
  return reduce_add(_mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
}
FUSEC_INLINE float reduce_max_8(__m256 a) {
  return reduce_max(_mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1)));
}
FUSEC_INLINE uint32_t reduce_max_bits(__m128i a) {
  a = _mm_max_epu32(a, _mm_shuffle_epi32(a, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(a, _mm_shuffle_epi32(a, 0xb1))));
}
FUSEC_INLINE uint32_t reduce_max_bits(__m256i a) {
  return reduce_max_bits(_mm_max_epu32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}
#if FUSEC_AVX512
FUSEC_INLINE float reduce_add(Vec a) {
  return reduce_add_8(_mm256_add_ps(lower_half(a), upper_half(a)));
}
// NaN lanes may be lost: callers that must keep NaN add it back (see softmax).
FUSEC_INLINE float reduce_max(Vec a) {
  return reduce_max_8(_mm256_max_ps(lower_half(a), upper_half(a)));
}
FUSEC_INLINE uint32_t reduce_max_bits(IntVec a) {
  return reduce_max_bits(
      _mm256_max_epu32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1)));
}
#else
FUSEC_INLINE float reduce_add(Vec a) { return reduce_add_8(a); }
FUSEC_INLINE float reduce_max(Vec a) { return reduce_max_8(a); }
#endif

// ---- elementary functions ----

// e^x or e^-x = 2^n e^r, where |r| <= ln(2)/2. The polynomial is within 4e-9 of e^r there, found by a
// weighted least squares fit that was repeated until its errors were level (Lawson, 1961); its halves
// are evaluated side by side (Estrin, 1960), as each step waits for the one before.
struct Exponential {
  Vec rest;     // e^r - 1
  Vec n;
  Vec shifted;  // its last bits are n, for |n| < 2^22

  static FUSEC_INLINE Exponential of(Vec x) {
    Exponential e;
    e.set_n(fma(x, set(LOG2_E), set(SHIFT)));
    e.set_rest(fnma(e.n, set(LN2_HIGH), x));
    return e;
  }
  static FUSEC_INLINE Exponential of_negative(Vec x) {
    Exponential e;
    e.set_n(fnma(x, set(LOG2_E), set(SHIFT)));
    e.set_rest(fnms(e.n, set(LN2_HIGH), x));
    return e;
  }

  // 2^n for n from -126 to 127, and 0 for -127.
  FUSEC_INLINE Vec scale() const {
    return float_of(add_bits(shift_left<23>(bits_of(shifted)), set_bits(0x3f800000)));
  }

 private:
  static constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: its last bit is 1
  static constexpr float LOG2_E = 1.44269504088896341f;
  static constexpr float LN2_HIGH = 0.693145751953125f, LN2_LOW = 1.428606765330187045e-06f;

  FUSEC_INLINE void set_n(Vec sum) {
    shifted = sum;
    n = sum - set(SHIFT);
  }
  FUSEC_INLINE void set_rest(Vec without_high) {
    Vec r = fnma(n, set(LN2_LOW), without_high), square = r * r;
    Vec low = fma(set(1.666652113199234e-1f), r, set(4.999999403953552e-1f));
    Vec high = fma(set(8.368724025785923e-3f), r, set(4.166838899254799e-2f));
    high = fma(set(1.3814583653584123e-3f), square, high);
    rest = fma(fma(high, square, low), square, r);
  }
};

FUSEC_INLINE Vec exp(Vec x) {
  // Clamping keeps n in the exponent range of scale_by_power; the constants come first so that NaN
  // passes through.
  Exponential e = Exponential::of(min(set(89.0f), max(set(-104.0f), x)));
  return scale_by_power(set(1.0f) + e.rest, e.n);
}

// e^x for x <= 0, or NaN: 0 where it is below the least normal number.
FUSEC_INLINE Vec exp_below(Vec x) {
  Exponential e = Exponential::of(max(set(-88.0f), x));
  Vec scale = e.scale();
  return fma(e.rest, scale, scale);
}

// 1 / x for normal x whose reciprocal is normal, to a unit in the last place.
FUSEC_INLINE Vec reciprocal(Vec x) {
#if FUSEC_AVX512
  Vec y = _mm512_rcp14_ps(x);
  return fma(fnma(x, y, set(1.0f)), y, y);
#else
  return set(1.0f) / x;
#endif
}

// 1 + e^-x. Beyond 87 e^-x is lost beside 1, or its reciprocal is nearly the least normal number.
FUSEC_INLINE Vec one_plus_exp_of_negative(Vec x) {
  Exponential e = Exponential::of_negative(min(set(87.0f), max(set(-87.0f), x)));
  Vec scale = e.scale();
  return fma(e.rest, scale, scale + set(1.0f));
}

FUSEC_INLINE Vec sigmoid(Vec x) { return reciprocal(one_plus_exp_of_negative(x)); }

// x / divisor where `kept`, and x * 0 elsewhere, for divisors from 1 to 2^126. Rounded once, as x times
// a reciprocal is not.
FUSEC_INLINE Vec divide_some(Mask kept, Vec x, Vec divisor) {
#if FUSEC_AVX512
  Vec y = _mm512_maskz_rcp14_ps(kept, divisor), quotient = x * y;
  Mask finite = less(x, set(__builtin_inff()));
  Vec excess = _mm512_maskz_fmsub_ps(finite, quotient, divisor, x);
  return fnma(excess, y, quotient);
#else
  return x / select(kept, divisor, set(__builtin_inff()));
#endif
}

// x * sigmoid(scaled). What is left of sigmoid beyond -87 counts beside a large x, and is 0 here: minus
// infinity becomes NaN, as it does by IEEE 754.
FUSEC_INLINE Vec times_sigmoid(Vec x, Vec scaled) {
  return divide_some(less(set(-87.0f), scaled), x, one_plus_exp_of_negative(scaled));
}
FUSEC_INLINE Vec silu(Vec x) { return times_sigmoid(x, x); }

FUSEC_INLINE Vec tanh(Vec x) {
  Vec magnitude = abs(x);
  Vec e = exp(magnitude + magnitude);
  Vec large = set(1.0f) - set(2.0f) / (e + set(1.0f));
  // Near zero 1 - 2/(e+1) cancels: an odd polynomial there (Cephes tanhf).
  Vec square = x * x;
  Vec p = set(-5.70498872745e-3f);
  p = fma(p, square, set(2.06390887954e-2f));
  p = fma(p, square, set(-5.37397155531e-2f));
  p = fma(p, square, set(1.33314422036e-1f));
  p = fma(p, square, set(-3.33332819422e-1f));
  Vec small = fma(p * square, x, x);
  return select(less(magnitude, set(0.625f)), small, copy_sign(large, x));
}

FUSEC_INLINE Vec erf(Vec x) {
  // Rational approximation (the one of Eigen and XLA). From 3.92 on erf rounds to 1, which must be
  // exact: gelu multiplies 1 + erf(x) by x.
  Mask large = less(set(3.92f), abs(x));
  Vec one = copy_sign(set(1.0f), x);
  x = min(set(4.0f), max(set(-4.0f), x));
  Vec square = x * x;
  Vec p = set(-2.72614225801306e-10f);
  p = fma(p, square, set(2.77068142495902e-08f));
  p = fma(p, square, set(-2.10102402082508e-06f));
  p = fma(p, square, set(-5.69250639462346e-05f));
  p = fma(p, square, set(-7.34990630326855e-04f));
  p = fma(p, square, set(-2.95459980854025e-03f));
  p = fma(p, square, set(-1.60960333262415e-02f));
  Vec q = set(-1.45660718464996e-05f);
  q = fma(q, square, set(-2.13374055278905e-04f));
  q = fma(q, square, set(-1.68282697438203e-03f));
  q = fma(q, square, set(-7.37332916720468e-03f));
  q = fma(q, square, set(-1.42647390514189e-02f));
  return select(large, one, x * p / q);
}

FUSEC_INLINE Vec gelu(Vec x) {
  return set(0.5f) * x * (set(1.0f) + erf(x * set(0.70710678118654752f)));
}
FUSEC_INLINE Vec gelu_tanh(Vec x) {
  Vec inner = set(0.79788456080286536f) * fma(set(0.044715f) * x * x, x, x);
  return set(0.5f) * x * (set(1.0f) + tanh(inner));
}

// Activations that a kernel takes as a parameter.
enum Activation : int64_t {
  ACTIVATION_NONE = 0,
  ACTIVATION_SILU = 1,
  ACTIVATION_GELU = 2,
  ACTIVATION_GELU_TANH = 3,
  ACTIVATION_RELU = 4,
  ACTIVATION_RELU_SQUARED = 5,
  ACTIVATION_SIGMOID = 6,
  ACTIVATION_QUICK_GELU = 7,
  ACTIVATION_SWIGLU_OAI = 8,  // of gate and up together, see silu_mul
  ACTIVATION_SWIGLU_LIMIT = 9,  // the same, see moe
  ACTIVATION_RELU6 = 10,
  ACTIVATION_HARDSWISH = 11,
};

FUSEC_INLINE Vec activate(int64_t activation, Vec x) {
  switch (activation) {
    case ACTIVATION_SILU:
      return silu(x);
    case ACTIVATION_GELU:
      return gelu(x);
    case ACTIVATION_GELU_TANH:
      return gelu_tanh(x);
    case ACTIVATION_RELU:
      return max(zero(), x);
    case ACTIVATION_RELU_SQUARED: {
      Vec positive = max(zero(), x);
      return positive * positive;
    }
    case ACTIVATION_SIGMOID:
      return sigmoid(x);
    case ACTIVATION_QUICK_GELU:
      return times_sigmoid(x, set(1.702f) * x);
    case ACTIVATION_RELU6:
      return min(set(6.0f), max(zero(), x));
    case ACTIVATION_HARDSWISH:
      return x * min(set(6.0f), max(zero(), x + set(3.0f))) * set(1.0f / 6.0f);
    default:
      return x;
  }
}

// An activation that is known when the kernel runs: the one of most models inline, the others behind
// a call, which keeps loops small.
__attribute__((noinline, unused)) static Vec activate_seldom(int64_t activation, Vec x) {
  return activate(activation, x);
}

struct AnyActivation {
  int64_t number;

  FUSEC_INLINE Vec operator()(Vec x) const {
    return number == ACTIVATION_SILU ? silu(x) : activate_seldom(number, x);
  }
};

}  // namespace fusec
