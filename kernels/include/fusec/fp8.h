// Codes of the narrow formats of fusec/formats.py: 8-bit floats and 4-bit floats, a code a lane.
//
// `encode` rounds quotients y / scale to the nearest code, ties to even, as if they were computed
// without rounding: bit for bit what `Scaling.quantise` gives.
#pragma once

#include <fusec/simd.h>

namespace fusec {

// Numbers of formats in params.
enum FormatNumber : int64_t {
  FORMAT_E4M3FN = 0,
  FORMAT_E4M3FNUZ = 1,
  FORMAT_E5M2 = 2,
  FORMAT_E2M1 = 3,
};

// A sign, an exponent with a bias and a mantissa. LARGEST is the code of the largest number; what is
// larger becomes it. NOT_A_NUMBER is what NaN becomes.
struct E4M3fn {
  static constexpr int MANTISSA = 3, BIAS = 7;
  static constexpr uint32_t SIGN = 0x80, LARGEST = 0x7e, NOT_A_NUMBER = 0x7f;
  static constexpr bool MINUS_ZERO = true, INFINITE = false;
};
struct E4M3fnuz {
  static constexpr int MANTISSA = 3, BIAS = 8;
  static constexpr uint32_t SIGN = 0x80, LARGEST = 0x7f, NOT_A_NUMBER = 0x80;
  static constexpr bool MINUS_ZERO = false, INFINITE = false;
};
struct E5M2 {
  static constexpr int MANTISSA = 2, BIAS = 15;
  static constexpr uint32_t SIGN = 0x80, LARGEST = 0x7b, NOT_A_NUMBER = 0x7f;
  static constexpr bool MINUS_ZERO = true, INFINITE = true;
};
struct E2M1 {
  static constexpr int MANTISSA = 1, BIAS = 1;
  static constexpr uint32_t SIGN = 0x8, LARGEST = 0x7, NOT_A_NUMBER = 0;
  static constexpr bool MINUS_ZERO = true, INFINITE = false;
};

// Whether a byte holds two codes, the even element in the low bits.
template <class F>
constexpr bool IS_PACKED = F::SIGN == 0x8;

// Calls body(F()) for the format of a number.
template <class Body>
FUSEC_INLINE void with_format(int64_t number, const Body& body) {
  switch (number) {
    case FORMAT_E4M3FN:
      return body(E4M3fn());
    case FORMAT_E4M3FNUZ:
      return body(E4M3fnuz());
    case FORMAT_E5M2:
      return body(E5M2());
    default:
      return body(E2M1());
  }
}

// The numbers of codes; lanes hold nothing else.
template <class F>
FUSEC_INLINE Vec decode(IntVec codes) {
  constexpr int SHIFT = 23 - F::MANTISSA;
  IntVec size = and_bits(codes, set_bits(F::SIGN - 1));
  IntVec normal = add_bits(shift_left<SHIFT>(size), set_bits((127 - F::BIAS) << 23));
  // Without a leading one: multiples of the least number.
  Vec least = set(float_of(static_cast<uint32_t>(128 - F::BIAS - F::MANTISSA) << 23));
  Vec small = from_integers(size) * least;
  Vec limit = set(static_cast<float>(1 << F::MANTISSA));
  Vec value = select(less(from_integers(size), limit), small, float_of(normal));
  constexpr uint32_t NOT_A_NUMBER = 0x7fc00000;
  if (F::INFINITE) {
    // 0x7c is infinite, and what is above it is NaN.
    IntVec above = add_bits(shift_left<SHIFT>(size), set_bits((255 - 31) << 23));
    Mask finite = less(from_integers(size), set(static_cast<float>(F::LARGEST + 1)));
    value = select(finite, value, float_of(above));
  } else if (F::NOT_A_NUMBER == F::SIGN) {
    value = select(equal_bits(codes, set_bits(F::SIGN)), float_of(set_bits(NOT_A_NUMBER)), value);
  } else if (F::NOT_A_NUMBER != 0) {
    Mask nan = equal_bits(size, set_bits(F::NOT_A_NUMBER));
    value = select(nan, float_of(set_bits(NOT_A_NUMBER)), value);
  }
  constexpr int TO_SIGN = F::SIGN == 0x8 ? 28 : 24;
  IntVec sign = and_bits(shift_left<TO_SIGN>(codes), set_bits(0x80000000));
  return float_of(or_bits(bits_of(value), sign));
}

// The value of an e8m0 byte.
FUSEC_INLINE float decode_e8m0(uint8_t byte) {
  if (byte == 0xff) return __builtin_nanf("");
  return float_of(byte == 0 ? 0x400000u : static_cast<uint32_t>(byte) << 23);
}

// What rows are divided by. Products with `low` and `high` enclose the quotient; both are 1/scale
// where that is a float. What is larger than `limit` has the code of what the scale takes it to.
struct Divisor {
  float scale, low, high, limit;

  // `maximum` is a number of the format.
  FUSEC_INLINE Divisor(float divisor, float maximum) : scale(divisor), limit(divisor * maximum) {
    float inverse = 1.0f / divisor;
    low = is_power_of_two() ? inverse : float_of(bits_of(inverse) - 1);
    high = is_power_of_two() ? inverse : float_of(bits_of(inverse) + 1);
  }

  FUSEC_INLINE bool is_power_of_two() const {
    return (bits_of(scale) & 0x7fffff) == 0 || bits_of(scale) == 0x400000;
  }

  // Whether nothing on the way to the codes of numbers up to a finite `top` over- or underflows.
  FUSEC_INLINE bool takes(float top) const {
    constexpr float FAR = 1.2676506e30f;  // 2^100
    if (!(top < __builtin_inff())) return false;
    if (is_power_of_two() && scale > 0.0f && scale < __builtin_inff()) return true;
    return scale > 1.0f / FAR && scale < FAR;
  }

  // The same where even infinite numbers may come.
  FUSEC_INLINE bool takes_all() const { return limit < __builtin_inff() && takes(limit); }
};

// For quotients beside a tie: the codes `low` and `high` are neighbours, and `shift` as in `encode`.
FUSEC_INLINE IntVec nearer(Vec size, float scale, Vec low, Vec high, Vec shift) {
  IntVec exponent = and_bits(bits_of(shift), set_bits(0x7f800000));
  Vec half = float_of(subtract_bits(exponent, set_bits(24u << 23)));
  // Few bits times 24 bits, from nearly as much: the fma does not round.
  Vec beyond = fnma((low - shift) + half, set(scale), size);
  IntVec odd = and_bits(bits_of(low), set_bits(1));
  Mask is_odd = equal_bits(odd, set_bits(1));
  IntVec tied = select(is_odd, bits_of(high), bits_of(low));
  IntVec found = select(less(zero(), beyond), bits_of(high), tied);
  return select(less(beyond, zero()), bits_of(low), found);
}

// Codes of y / by.scale.
template <class F>
FUSEC_INLINE IntVec encode(Vec y, const Divisor& by) {
  constexpr int SHIFT = 23 - F::MANTISSA;
  // A code is 2^MANTISSA * (exponent + BIAS - 1) + steps. `shift` is so large that its last bit is
  // one step: added, it rounds to steps. The other terms are in its last bits, and in its exponent,
  // which is added once more.
  constexpr uint32_t REST = ((F::BIAS - 1) << F::MANTISSA) - ((127 + SHIFT) << F::MANTISSA);
  constexpr uint32_t LEAST_EXPONENT = static_cast<uint32_t>(128 - F::BIAS) << 23;
  Vec size = min(set(by.limit), abs(y));
  IntVec exponent = and_bits(bits_of(size * set(by.low)), set_bits(0x7f800000));
  exponent = max_bits(exponent, set_bits(LEAST_EXPONENT));
  Vec shift = float_of(add_bits(exponent, set_bits((SHIFT << 23) | (REST & 0xff))));
  Vec low = fma(size, set(by.low), shift);
  Vec high = fma(size, set(by.high), shift);
  IntVec total = bits_of(low);
  Mask unsure = differs(low, high);
  if (__builtin_expect(any(unsure), 0)) {
    total = select(unsure, nearer(size, by.scale, low, high, shift), total);
    total = select(is_nan(y), set_bits(F::NOT_A_NUMBER), total);
    y = select(is_nan(y), zero(), y);
  }
  IntVec code = add_bits(total, shift_right<SHIFT>(total));
  constexpr int TO_SIGN = IS_PACKED<F> ? 28 : 24;
  IntVec sign = and_bits(shift_right<TO_SIGN>(bits_of(y)), set_bits(F::SIGN));
  if (IS_PACKED<F>) code = and_bits(code, set_bits(F::LARGEST));
  if (!F::MINUS_ZERO) {
    Mask is_zero = equal_bits(and_bits(code, set_bits(F::SIGN - 1)), set_bits(0));
    sign = select(is_zero, set_bits(0), sign);
  }
  return or_bits(code, sign);
}

// 2^exponent, for exponents of normal numbers.
FUSEC_INLINE double power_of_two(int exponent) {
  int64_t bits = static_cast<int64_t>(exponent + 1023) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The code of a quotient, for scales that `encode` does not take.
template <class F>
inline uint32_t encode_one(double quotient, double maximum) {
  if (quotient != quotient && F::NOT_A_NUMBER != 0) return F::NOT_A_NUMBER;
  bool negative = __builtin_signbit(quotient);
  double size = quotient != quotient ? 0.0 : min_of(__builtin_fabs(quotient), maximum);
  int64_t bits;
  memcpy(&bits, &size, sizeof bits);
  int exponent = max_of(static_cast<int>(bits >> 52) - 1023, 1 - F::BIAS);
  int steps = static_cast<int>(__builtin_rint(size * power_of_two(F::MANTISSA - exponent)));
  uint32_t code = static_cast<uint32_t>(((exponent + F::BIAS - 1) << F::MANTISSA) + steps);
  return negative && (F::MINUS_ZERO || code != 0) ? code | F::SIGN : code;
}

// Writes codes where element i of a row begins; with two codes a byte, i is even.
template <class F>
FUSEC_INLINE void store_codes(uint8_t* row, int64_t i, IntVec codes, int count) {
  if (IS_PACKED<F>) {
    if (count == LANES) return store_pairs(row + i / 2, codes);
    return store_pairs_partial(row + i / 2, codes, count);
  }
  if (count == LANES) return store_bytes(row + i, codes);
  store_bytes_partial(row + i, codes, count);
}

// Codes of LANES elements from element i of a row on; lanes beyond `count` are 0.
template <class F>
FUSEC_INLINE IntVec load_codes(const uint8_t* row, int64_t i, int count) {
  if (!IS_PACKED<F>) {
    return count == LANES ? load_bytes(row + i) : load_bytes_partial(row + i, count);
  }
  uint8_t codes[LANES] = {};
  for (int lane = 0; lane < count; ++lane) {
    codes[lane] = static_cast<uint8_t>(row[(i + lane) / 2] >> (lane % 2 * 4)) & 15;
  }
  return load_bytes(codes);
}

}  // namespace fusec
