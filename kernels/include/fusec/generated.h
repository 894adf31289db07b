// What generated kernels are made of: conversions and scalar functions that compilers vectorise.
//
// Everything is branch-free where it can be, so that a loop over it becomes vector code. Floats of
// 16 and 8 bits are widened to `float`. The functions of float are accurate to a few units in the
// last place; those of double, and the rare ones, are the C library's. Compiled with -fwrapv (integer
// arithmetic wraps) and -ffp-contract=off (every fma is written).
#pragma once

#include <fusec/kernel.h>

#define FUSEC_SIMD FUSEC_PRAGMA(omp simd)
#define FUSEC_SIMD_REDUCE(clause) FUSEC_PRAGMA(omp simd reduction(clause))

namespace fusec {
namespace generated {

FUSEC_INLINE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
FUSEC_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// ---- storage ----

struct f8e4m3fn {
  uint8_t bits;
};
struct f8e4m3fnuz {
  uint8_t bits;
};
struct f8e5m2 {
  uint8_t bits;
};
struct flag {  // a bool, in a type that compilers have vectors of
  uint8_t bits;
};

FUSEC_INLINE float read(float value) { return value; }
FUSEC_INLINE double read(double value) { return value; }
FUSEC_INLINE int64_t read(int64_t value) { return value; }
FUSEC_INLINE int32_t read(int32_t value) { return value; }
FUSEC_INLINE int16_t read(int16_t value) { return value; }
FUSEC_INLINE int8_t read(int8_t value) { return value; }
FUSEC_INLINE uint8_t read(uint8_t value) { return value; }
FUSEC_INLINE bool read(flag value) { return value.bits != 0; }
FUSEC_INLINE float read(bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }
FUSEC_INLINE float read(f16 value) {
  // As f32 bits the number is 2^112 times too small, subnormals included; the product is exact.
  uint32_t magnitude = (value.bits & 0x7fffu) << 13, sign = (value.bits & 0x8000u) << 16;
  uint32_t bits = bits_of(float_of(magnitude) * 5.192296858534828e33f);
  bits |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return float_of(bits | sign);
}

// An 8-bit float with `mantissa` bits below the exponent; subnormals are scaled, not branched on.
FUSEC_INLINE float widen_f8(uint8_t bits, int mantissa, int bias) {
  uint32_t magnitude = bits & 0x7fu, sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  // The exponent of 2^112 makes f32 subnormals of f8 subnormals first; the product is exact.
  float scaled = float_of(magnitude << (23 - mantissa));
  float value = scaled * float_of(static_cast<uint32_t>(127 + 127 - bias) << 23);
  return float_of(bits_of(value) | sign);
}
FUSEC_INLINE float read(f8e4m3fn value) {
  float nan = float_of(0x7fc00000u);
  return (value.bits & 0x7fu) == 0x7fu ? nan : widen_f8(value.bits, 3, 7);
}
FUSEC_INLINE float read(f8e4m3fnuz value) {
  float nan = float_of(0x7fc00000u);
  return value.bits == 0x80u ? nan : widen_f8(value.bits, 3, 8);
}
FUSEC_INLINE float read(f8e5m2 value) {
  float special = (value.bits & 3u) != 0 ? float_of(0x7fc00000u) : float_of(0x7f800000u);
  special = (value.bits & 0x80u) != 0 ? -special : special;
  return (value.bits & 0x7cu) == 0x7cu ? special : widen_f8(value.bits, 2, 15);
}

template <class T>
struct Narrow {
  static FUSEC_INLINE T from(T value) { return value; }
};
template <>
struct Narrow<flag> {
  static FUSEC_INLINE flag from(bool value) { return {static_cast<uint8_t>(value)}; }
};
template <>
struct Narrow<bf16> {
  static FUSEC_INLINE bf16 from(float value) {
    uint32_t bits = bits_of(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u;
    return {static_cast<uint16_t>(value != value ? quiet : rounded)};
  }
};
template <>
struct Narrow<f16> {
  // The FP16 library's way (M. Dukhan): an addition rounds at the right place, overflow to infinity
  // comes from the first product.
  static FUSEC_INLINE f16 from(float value) {
    float base = __builtin_fabsf(value) * 5.192296858534828e33f * 7.703719777548943e-34f;
    uint32_t doubled = bits_of(value) << 1;
    uint32_t bias = doubled & 0xff000000u;
    bias = bias < 0x71000000u ? 0x71000000u : bias;
    uint32_t bits = bits_of(float_of((bias >> 1) + 0x07800000u) + base);
    uint32_t magnitude = ((bits >> 13) & 0x7c00u) + (bits & 0x0fffu);
    uint32_t result = doubled > 0xff000000u ? 0x7e00u : magnitude;
    return {static_cast<uint16_t>(result | ((bits_of(value) >> 16) & 0x8000u))};
  }
};
// Rounds to nearest even at `mantissa` bits. The result of `round_f8` is in units of the bit pattern
// and may exceed the largest finite one.
FUSEC_INLINE uint32_t round_f8(float value, int mantissa, int bias) {
  uint32_t magnitude = bits_of(value) & 0x7fffffffu;
  int shift = 23 - mantissa;
  uint32_t rebias = static_cast<uint32_t>(127 - bias) << 23;
  uint32_t normal = magnitude - rebias;
  normal = (normal + ((1u << (shift - 1)) - 1u) + ((normal >> shift) & 1u)) >> shift;
  // Below the smallest normal number the unit is fixed: adding 1.5 * 2^23 units rounds to it.
  float unit = float_of(static_cast<uint32_t>(127 + 1 - bias - mantissa) << 23);
  float anchor = 12582912.0f * unit;
  uint32_t subnormal = bits_of(float_of(magnitude) + anchor) - bits_of(anchor);
  return magnitude < rebias + (1u << 23) ? subnormal : normal;
}
template <>
struct Narrow<f8e4m3fn> {
  static FUSEC_INLINE f8e4m3fn from(float value) {
    uint32_t sign = (bits_of(value) >> 24) & 0x80u, bits = round_f8(value, 3, 7);
    bits = value != value || bits > 0x7eu || (bits_of(value) & 0x7f800000u) == 0x7f800000u ? 0x7fu
                                                                                          : bits;
    return {static_cast<uint8_t>(bits | sign)};
  }
};
template <>
struct Narrow<f8e4m3fnuz> {
  static FUSEC_INLINE f8e4m3fnuz from(float value) {
    uint32_t sign = (bits_of(value) >> 24) & 0x80u, bits = round_f8(value, 3, 8);
    bool special = value != value || bits > 0x7fu ||
                   (bits_of(value) & 0x7f800000u) == 0x7f800000u;
    uint32_t signed_bits = bits == 0 ? 0u : bits | sign;  // there is no negative zero
    return {static_cast<uint8_t>(special ? 0x80u : signed_bits)};
  }
};
template <>
struct Narrow<f8e5m2> {
  static FUSEC_INLINE f8e5m2 from(float value) {
    uint32_t sign = (bits_of(value) >> 24) & 0x80u, bits = round_f8(value, 2, 15);
    bits = bits > 0x7cu || (bits_of(value) & 0x7f800000u) == 0x7f800000u ? 0x7cu : bits;
    bits = value != value ? 0x7fu : bits;
    return {static_cast<uint8_t>(bits | sign)};
  }
};

template <class T>
FUSEC_INLINE void copy_run(T* target, const T* source, int64_t count) {
  __builtin_memmove(target, source, static_cast<size_t>(count) * sizeof(T));
}

// The value that storing as T and loading again gives.
template <class T>
FUSEC_INLINE auto rounded(decltype(read(T{})) value) {
  return read(Narrow<T>::from(value));
}

// ---- conversions ----

// Truncates; NaN becomes 0, what does not fit the nearest that does.
template <class To, class From>
FUSEC_INLINE To to_integer(From value) {
  constexpr int64_t bits = 8 * static_cast<int64_t>(sizeof(To));
  constexpr bool has_sign = static_cast<To>(-1) < To{0};
  constexpr To least = has_sign ? static_cast<To>(static_cast<uint64_t>(1) << (bits - 1)) : To{0};
  constexpr To most = static_cast<To>(~least);
  // 2^(bits-1) or 2^bits: the first number that is too large, exact in any float.
  constexpr From limit = static_cast<From>(
      static_cast<double>(static_cast<uint64_t>(1) << (has_sign ? bits - 2 : bits - 1)) * 2.0);
  bool high = value >= limit, low = has_sign ? value < -limit : value <= From(-1);
  From inside = high || low || value != value ? From(0) : value;
  To result = static_cast<To>(inside);
  return high ? most : low ? least : result;
}

// ---- integers ----

template <class T>
FUSEC_INLINE T checked_divisor(T divisor) {
  if (__builtin_expect(divisor == 0, 0)) {
    fusec_raise(FUSEC_DIVISION_BY_ZERO, 0, 1);
    return 1;
  }
  return divisor;
}
template <class T>
FUSEC_INLINE T int_floordiv(T a, T b) {
  b = checked_divisor(b);
  if (b == static_cast<T>(-1) && static_cast<T>(-1) < 0) return static_cast<T>(0 - a);
  T quotient = static_cast<T>(a / b);
  return static_cast<T>(quotient - ((a % b != 0) & ((a < 0) != (b < 0))));
}
template <class T>
FUSEC_INLINE T int_fmod(T a, T b) {
  b = checked_divisor(b);
  if (b == static_cast<T>(-1) && static_cast<T>(-1) < 0) return 0;
  return static_cast<T>(a % b);
}
template <class T>
FUSEC_INLINE T int_mod(T a, T b) {
  T rest = int_fmod(a, b);
  return static_cast<T>(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
}
template <class T>
FUSEC_INLINE T int_pow(T base, T exponent) {
  if (exponent < 0) {  // only 1 and -1 have an inverse
    return base == 1 ? T{1} : base == static_cast<T>(-1) ? (exponent & 1 ? base : T{1}) : T{0};
  }
  T result = 1;
  for (; exponent > 0; exponent = static_cast<T>(exponent >> 1)) {
    if (exponent & 1) result = static_cast<T>(result * base);
    base = static_cast<T>(base * base);
  }
  return result;
}
template <class T>
FUSEC_INLINE T int_shl(T a, T count) {
  constexpr int bits = 8 * sizeof(T);
  bool fits = count >= 0 && count < bits;
  return static_cast<T>(fits ? static_cast<uint64_t>(a) << (fits ? count : 0) : 0u);
}
template <class T>
FUSEC_INLINE T int_shr(T a, T count) {
  constexpr int bits = 8 * sizeof(T);
  bool fits = count >= 0 && count < bits;
  return static_cast<T>(a >> (fits ? count : bits - 1) >> (fits || a < 0 ? 0 : 1));
}

// ---- order, NaN included ----

template <class T>
FUSEC_INLINE T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}
template <class T>
FUSEC_INLINE T minimum(T a, T b) {
  return a < b || a != a ? a : b;
}
template <class T>
FUSEC_INLINE T sign(T a) {
  return static_cast<T>(a != a ? a : static_cast<T>((a > 0) - (a < 0)));
}

// Integers in the order of the floats they stand for, so that the largest of many is found in
// vectors, whatever is NaN: `max_order` has that above all others, `min_order` below.
template <class T>
struct OrderOf {
  using Type = int32_t;
};
template <>
struct OrderOf<double> {
  using Type = int64_t;
};
template <class T>
using Order = typename OrderOf<T>::Type;

template <class T>
constexpr Order<T> MOST = static_cast<Order<T>>(~uint64_t{0} >> (65 - 8 * sizeof(T)));

template <class T>
FUSEC_INLINE Order<T> turned(Order<T> bits) {
  return bits ^ ((bits >> (8 * sizeof(T) - 1)) & MOST<T>);
}
template <class T>
FUSEC_INLINE Order<T> order(T value, Order<T> nan) {
  Order<T> bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  Order<T> is_nan = -static_cast<Order<T>>(value != value);
  return (turned<T>(bits) & ~is_nan) | (nan & is_nan);
}
template <class T>
FUSEC_INLINE Order<T> max_order(T value) {
  return order(value, MOST<T>);
}
template <class T>
FUSEC_INLINE Order<T> min_order(T value) {
  return order(value, ~MOST<T>);
}
FUSEC_INLINE float from_order(int32_t order) {
  return float_of(static_cast<uint32_t>(turned<float>(order)));
}
FUSEC_INLINE double from_order(int64_t order) {
  int64_t bits = turned<double>(order);
  double value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// ---- float ----

FUSEC_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

// 2^n * e^r with |r| <= ln(2)/2; the power of two is applied in two steps, because it may not be a
// float itself. NaN passes through the comparisons and comes out of the sum.
FUSEC_INLINE float exp_parts(float r, float n) {
  float p = 1.0f / 5040.0f;
  p = fma(p, r, 1.0f / 720.0f);
  p = fma(p, r, 1.0f / 120.0f);
  p = fma(p, r, 1.0f / 24.0f);
  p = fma(p, r, 1.0f / 6.0f);
  p = fma(p, r, 0.5f);
  p = fma(p, r, 1.0f);
  p = fma(p, r, 1.0f);
  int32_t whole = static_cast<int32_t>(bits_of(n + 12582912.0f) - 0x4b400000u);
  int32_t half = whole >> 1;
  float first = float_of(static_cast<uint32_t>(half + 127) << 23);
  float second = float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  return p * first * second;
}
FUSEC_INLINE float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

FUSEC_INLINE float exp(float x) {
  float clamped = x > 89.0f ? 89.0f : x;
  clamped = clamped < -104.0f ? -104.0f : clamped;
  float n = nearest(clamped * 1.44269504088896341f);
  float r = fma(n, -0.693145751953125f, clamped);
  r = fma(n, -1.428606765330187045e-06f, r);
  float result = exp_parts(r, n);
  return x != x ? x : result;
}
FUSEC_INLINE float exp2(float x) {
  float clamped = x > 129.0f ? 129.0f : x;
  clamped = clamped < -151.0f ? -151.0f : clamped;
  float n = nearest(clamped);
  float result = exp_parts((clamped - n) * 0.69314718055994530942f, n);
  return x != x ? x : result;
}

// x = m * 2^e with m in [sqrt(1/2), sqrt(2)), for positive x. log(m) = f + rest, where f = m - 1: the
// polynomial of Cephes logf, whose term -square / 2 is not in `rest`.
struct LogParts {
  float e, f, square, rest;
};
FUSEC_INLINE LogParts log_parts(float x) {
  bool tiny = x < 1.17549435e-38f;
  float scaled = tiny ? x * 8388608.0f : x;
  uint32_t bits = bits_of(scaled) - 0x3f3504f3u;
  int32_t exponent = static_cast<int32_t>(bits) >> 23;
  float f = float_of((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 7.0376836292e-2f;
  p = fma(p, f, -1.1514610310e-1f);
  p = fma(p, f, 1.1676998740e-1f);
  p = fma(p, f, -1.2420140846e-1f);
  p = fma(p, f, 1.4249322787e-1f);
  p = fma(p, f, -1.6668057665e-1f);
  p = fma(p, f, 2.0000714765e-1f);
  p = fma(p, f, -2.4999993993e-1f);
  p = fma(p, f, 3.3333331174e-1f);
  float square = f * f;
  return {static_cast<float>(exponent) - (tiny ? 23.0f : 0.0f), f, square, p * f * square};
}
// `result` but for what has no finite logarithm.
FUSEC_INLINE float log_of(float x, float result) {
  float infinity = float_of(0x7f800000u);
  result = x == infinity ? x : result;
  result = x == 0.0f ? -infinity : result;
  return x >= 0.0f ? result : float_of(0x7fc00000u);
}
FUSEC_INLINE float log(float x) {
  LogParts parts = log_parts(x);
  float y = fma(parts.e, -2.12194440e-4f, parts.rest);
  y = fma(parts.square, -0.5f, y);
  return log_of(x, fma(parts.e, 0.693359375f, parts.f + y));
}
// e is added last, so that powers of two, of which the floor and the ceiling matter, are exact.
FUSEC_INLINE float log2(float x) {
  LogParts parts = log_parts(x);
  float y = parts.f + fma(parts.square, -0.5f, parts.rest);
  return log_of(x, fma(y, 1.44269504088896341f, parts.e));
}
// Kahan: the rounding of 1 + x is made good by the quotient.
FUSEC_INLINE float log1p(float x) {
  float w = 1.0f + x;
  float difference = w - 1.0f;
  float result = log(w) * (x / difference);
  result = difference == 0.0f ? x : result;
  return w == float_of(0x7f800000u) ? w : result;
}
FUSEC_INLINE float expm1(float x) {
  float u = exp(x);
  float difference = u - 1.0f;
  float result = difference * (x / log(u));
  result = u == 1.0f ? x : result;
  result = difference == -1.0f ? -1.0f : result;
  return u == float_of(0x7f800000u) || u != u ? u : result;
}

FUSEC_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
FUSEC_INLINE float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
FUSEC_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }
FUSEC_INLINE float silu(float x) { return x / (1.0f + exp(-x)); }

FUSEC_INLINE float tanh(float x) {
  float magnitude = __builtin_fabsf(x);
  float large = 1.0f - 2.0f / (exp(magnitude + magnitude) + 1.0f);
  // Near zero 1 - 2/(e+1) cancels: an odd polynomial there (Cephes tanhf).
  float square = x * x;
  float p = -5.70498872745e-3f;
  p = fma(p, square, 2.06390887954e-2f);
  p = fma(p, square, -5.37397155531e-2f);
  p = fma(p, square, 1.33314422036e-1f);
  p = fma(p, square, -3.33332819422e-1f);
  float small = fma(p * square, x, x);
  return magnitude < 0.625f ? small : __builtin_copysignf(large, x);
}

FUSEC_INLINE float erf(float x) {
  // Rational approximation on [-4, 4] (the one of Eigen and XLA); beyond it erf is 1 in f32.
  float c = x > 4.0f ? 4.0f : x;
  c = c < -4.0f ? -4.0f : c;
  float square = c * c;
  float p = -2.72614225801306e-10f;
  p = fma(p, square, 2.77068142495902e-08f);
  p = fma(p, square, -2.10102402082508e-06f);
  p = fma(p, square, -5.69250639462346e-05f);
  p = fma(p, square, -7.34990630326855e-04f);
  p = fma(p, square, -2.95459980854025e-03f);
  p = fma(p, square, -1.60960333262415e-02f);
  float q = -1.45660718464996e-05f;
  q = fma(q, square, -2.13374055278905e-04f);
  q = fma(q, square, -1.68282697438203e-03f);
  q = fma(q, square, -7.37332916720468e-03f);
  q = fma(q, square, -1.42647390514189e-02f);
  return c * p / q;
}

// sin and cos: reduced in double by pi/2 in two parts, then polynomials on [-pi/4, pi/4]. From 2^50
// on, where neighbouring floats are many turns apart, the result is NaN.
struct Quadrant {
  float r;
  uint32_t n;
};
FUSEC_INLINE Quadrant quadrant(float x) {
  double wide = static_cast<double>(x);
  double shifted = wide * 0.63661977236758134308 + 6755399441055744.0;
  double n = shifted - 6755399441055744.0;
  double r = __builtin_fma(n, -1.57079632679489655800, wide);
  r = __builtin_fma(n, -6.12323399573676603587e-17, r);
  uint64_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bool fits = wide < 1125899906842624.0 && wide > -1125899906842624.0;
  return {fits ? static_cast<float>(r) : float_of(0x7fc00000u), static_cast<uint32_t>(bits)};
}
FUSEC_INLINE float sin_polynomial(float r) {
  float square = r * r;
  float p = 2.718121664e-6f;
  p = fma(p, square, -1.98393348e-4f);
  p = fma(p, square, 8.33332959e-3f);
  p = fma(p, square, -1.66666666e-1f);
  return fma(p * square, r, r);
}
FUSEC_INLINE float cos_polynomial(float r) {
  float square = r * r;
  float p = 2.44331571e-5f;
  p = fma(p, square, -1.38873162e-3f);
  p = fma(p, square, 4.16666456e-2f);
  p = fma(p, square, -0.5f);
  return fma(p, square, 1.0f);
}
FUSEC_INLINE float turned(Quadrant q, uint32_t n) {
  float value = (n & 1u) != 0 ? cos_polynomial(q.r) : sin_polynomial(q.r);
  return float_of(bits_of(value) ^ ((n & 2u) << 30));
}
FUSEC_INLINE float sin(float x) {
  Quadrant q = quadrant(x);
  return turned(q, q.n);
}
FUSEC_INLINE float cos(float x) {
  Quadrant q = quadrant(x);
  return turned(q, q.n + 1u);
}

FUSEC_INLINE float erfc(float x) { return __builtin_erfcf(x); }
FUSEC_INLINE float tan(float x) { return __builtin_tanf(x); }
FUSEC_INLINE float asin(float x) { return __builtin_asinf(x); }
FUSEC_INLINE float acos(float x) { return __builtin_acosf(x); }
FUSEC_INLINE float atan(float x) { return __builtin_atanf(x); }
FUSEC_INLINE float sinh(float x) { return __builtin_sinhf(x); }
FUSEC_INLINE float cosh(float x) { return __builtin_coshf(x); }
FUSEC_INLINE float asinh(float x) { return __builtin_asinhf(x); }
FUSEC_INLINE float acosh(float x) { return __builtin_acoshf(x); }
FUSEC_INLINE float atanh(float x) { return __builtin_atanhf(x); }
FUSEC_INLINE float atan2(float y, float x) { return __builtin_atan2f(y, x); }
FUSEC_INLINE float pow(float x, float y) { return __builtin_powf(x, y); }
FUSEC_INLINE float float_fmod(float x, float y) { return __builtin_fmodf(x, y); }
FUSEC_INLINE float abs(float x) { return __builtin_fabsf(x); }
FUSEC_INLINE float floor(float x) { return __builtin_floorf(x); }
FUSEC_INLINE float ceil(float x) { return __builtin_ceilf(x); }
FUSEC_INLINE float round(float x) { return __builtin_rintf(x); }
FUSEC_INLINE float trunc(float x) { return __builtin_truncf(x); }
FUSEC_INLINE float copy_sign(float x, float y) { return __builtin_copysignf(x, y); }

// ---- double ----

FUSEC_INLINE double exp(double x) { return __builtin_exp(x); }
FUSEC_INLINE double exp2(double x) { return __builtin_exp2(x); }
FUSEC_INLINE double expm1(double x) { return __builtin_expm1(x); }
FUSEC_INLINE double log(double x) { return __builtin_log(x); }
FUSEC_INLINE double log2(double x) { return __builtin_log2(x); }
FUSEC_INLINE double log1p(double x) { return __builtin_log1p(x); }
FUSEC_INLINE double sqrt(double x) { return __builtin_sqrt(x); }
FUSEC_INLINE double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
FUSEC_INLINE double sin(double x) { return __builtin_sin(x); }
FUSEC_INLINE double cos(double x) { return __builtin_cos(x); }
FUSEC_INLINE double tan(double x) { return __builtin_tan(x); }
FUSEC_INLINE double asin(double x) { return __builtin_asin(x); }
FUSEC_INLINE double acos(double x) { return __builtin_acos(x); }
FUSEC_INLINE double atan(double x) { return __builtin_atan(x); }
FUSEC_INLINE double sinh(double x) { return __builtin_sinh(x); }
FUSEC_INLINE double cosh(double x) { return __builtin_cosh(x); }
FUSEC_INLINE double tanh(double x) { return __builtin_tanh(x); }
FUSEC_INLINE double asinh(double x) { return __builtin_asinh(x); }
FUSEC_INLINE double acosh(double x) { return __builtin_acosh(x); }
FUSEC_INLINE double atanh(double x) { return __builtin_atanh(x); }
FUSEC_INLINE double erf(double x) { return __builtin_erf(x); }
FUSEC_INLINE double erfc(double x) { return __builtin_erfc(x); }
FUSEC_INLINE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
FUSEC_INLINE double silu(double x) { return x / (1.0 + exp(-x)); }
FUSEC_INLINE double atan2(double y, double x) { return __builtin_atan2(y, x); }
FUSEC_INLINE double pow(double x, double y) { return __builtin_pow(x, y); }
FUSEC_INLINE double float_fmod(double x, double y) { return __builtin_fmod(x, y); }
FUSEC_INLINE double abs(double x) { return __builtin_fabs(x); }
FUSEC_INLINE double floor(double x) { return __builtin_floor(x); }
FUSEC_INLINE double ceil(double x) { return __builtin_ceil(x); }
FUSEC_INLINE double round(double x) { return __builtin_rint(x); }
FUSEC_INLINE double trunc(double x) { return __builtin_trunc(x); }
FUSEC_INLINE double copy_sign(double x, double y) { return __builtin_copysign(x, y); }

// ---- either ----

template <class T>
FUSEC_INLINE T int_abs(T x) {
  return static_cast<T>(x < 0 ? 0 - x : x);
}
// The remainder with the sign of the divisor, and the quotient that belongs to it (as in Python).
template <class T>
FUSEC_INLINE T float_mod(T a, T b) {
  T rest = float_fmod(a, b);
  T fixed = (rest < 0) != (b < 0) ? rest + b : rest;
  return rest == 0 ? copy_sign(T(0), b) : fixed;
}
template <class T>
FUSEC_INLINE T float_floordiv(T a, T b) {
  // Not by `float_mod`, which is infinite where b is.
  T rest = float_fmod(a, b), quotient = (a - rest) / b;
  quotient = rest != 0 && (rest < 0) != (b < 0) ? quotient - T(1) : quotient;
  T whole = floor(quotient);
  whole = quotient - whole > T(0.5) ? whole + T(1) : whole;
  whole = quotient == 0 ? copy_sign(T(0), a / b) : whole;
  return b == 0 ? a / b : whole;
}
// log(1 + exp(x)) without overflow.
template <class T>
FUSEC_INLINE T softplus(T x) {
  T positive = x > 0 ? x : T(0);
  T result = positive + log1p(exp(-abs(x)));
  return x != x ? x : result;
}
template <class T>
FUSEC_INLINE T softplus(T x, T beta, T threshold) {
  T scaled = x * beta;
  return scaled > threshold ? x : softplus(scaled) / beta;
}
template <class T>
FUSEC_INLINE T log_sigmoid(T x) {
  return -softplus(-x);
}
template <class T>
FUSEC_INLINE T gelu(T x) {
  return T(0.5) * x * (T(1) + erf(x * T(0.70710678118654752440)));
}
template <class T>
FUSEC_INLINE T gelu_tanh(T x) {
  T inner = T(0.79788456080286535588) * (x + T(0.044715) * x * x * x);
  return T(0.5) * x * (T(1) + tanh(inner));
}
template <class T>
FUSEC_INLINE T quick_gelu(T x) {
  return x * sigmoid(T(1.702) * x);
}
template <class T>
FUSEC_INLINE T hardsigmoid(T x) {
  return minimum(maximum(x + T(3), T(0)), T(6)) / T(6);
}
template <class T>
FUSEC_INLINE T hardswish(T x) {
  return x * minimum(maximum(x + T(3), T(0)), T(6)) / T(6);
}
template <class T>
FUSEC_INLINE T mish(T x) {
  return x * tanh(softplus(x));
}
template <class T>
FUSEC_INLINE T leaky_relu(T x, T slope) {
  return x > 0 ? x : slope * x;
}
template <class T>
FUSEC_INLINE T elu(T x, T alpha) {
  T negative = x < 0 ? x : T(0);
  T result = x > 0 ? x : alpha * expm1(negative);
  return x != x ? x : result;
}
template <class T>
FUSEC_INLINE bool is_infinite(T x) {
  return abs(x) == T(__builtin_inf());
}

}  // namespace generated
}  // namespace fusec
