// Elements of any dtype, one at a time: moving, comparing, accumulating.
#pragma once

#include <fusec/rows.h>

namespace fusec {

// An index as the model gives it: negative counts from the end. Out of range raises an error and
// gives -1; the caller then skips the element.
FUSEC_INLINE int64_t checked_index(int64_t index, int64_t size) {
  int64_t wrapped = index < 0 ? index + size : index;
  if (wrapped >= 0 && wrapped < size) return wrapped;
  fusec_raise(FUSEC_INDEX_OUT_OF_RANGE, index, size);
  return -1;
}

// Element `at` of an index operand whose elements have 1, 2, 4 or 8 bytes.
FUSEC_INLINE int64_t read_index(const void* indices, int64_t bytes, int64_t at) {
  switch (bytes) {
    case 8:
      return static_cast<const int64_t*>(indices)[at];
    case 4:
      return static_cast<const int32_t*>(indices)[at];
    case 2:
      return static_cast<const int16_t*>(indices)[at];
    default:
      return static_cast<const int8_t*>(indices)[at];
  }
}

// Whether an index operand is nowhere longer than what it picks from, which `sizes` holds; along the
// axis that it replaces they are its own. If it is, an error is raised.
FUSEC_INLINE bool index_fits(const int64_t* index_sizes, const int64_t* sizes, int rank) {
  for (int dim = 0; dim < rank; ++dim) {
    if (index_sizes[dim] <= sizes[dim]) continue;
    fusec_raise(FUSEC_INDEX_OUT_OF_RANGE, index_sizes[dim] - 1, sizes[dim]);
    return false;
  }
  return true;
}

// Copies one element or row; the sizes of single elements need no call.
FUSEC_INLINE void copy_bytes(char* target, const char* source, int64_t bytes) {
  switch (bytes) {
    case 1:
      memcpy(target, source, 1);
      break;
    case 2:
      memcpy(target, source, 2);
      break;
    case 4:
      memcpy(target, source, 4);
      break;
    case 8:
      memcpy(target, source, 8);
      break;
    default:
      memcpy(target, source, static_cast<size_t>(bytes));
  }
}

// How arithmetic on an element is done: in f32 for bf16 and f16, modulo 2^n for integers, logical
// or for bool.
struct boolean {
  uint8_t value;
};

template <class T>
struct Arithmetic {
  using Wide = T;
  static FUSEC_INLINE T widen(T value) { return value; }
  static FUSEC_INLINE T narrow(T value) { return value; }
};
template <>
struct Arithmetic<bf16> {
  using Wide = float;
  static FUSEC_INLINE float widen(bf16 value) { return to_float(value); }
  static FUSEC_INLINE bf16 narrow(float value) { return from_float<bf16>(value); }
};
template <>
struct Arithmetic<f16> {
  using Wide = float;
  static FUSEC_INLINE float widen(f16 value) { return to_float(value); }
  static FUSEC_INLINE f16 narrow(float value) { return from_float<f16>(value); }
};
template <>
struct Arithmetic<boolean> {
  using Wide = int;
  static FUSEC_INLINE int widen(boolean value) { return value.value != 0; }
  static FUSEC_INLINE boolean narrow(int value) { return {static_cast<uint8_t>(value != 0)}; }
};

// Signed overflow is undefined in C++ and wraps in the model: sums and products are unsigned.
template <class T>
FUSEC_INLINE T wrapping_add(T a, T b) {
  return a + b;
}
template <class T>
FUSEC_INLINE T wrapping_multiply(T a, T b) {
  return a * b;
}
template <>
FUSEC_INLINE int64_t wrapping_add<int64_t>(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
template <>
FUSEC_INLINE int64_t wrapping_multiply<int64_t>(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <>
FUSEC_INLINE int32_t wrapping_add<int32_t>(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
template <>
FUSEC_INLINE int32_t wrapping_multiply<int32_t>(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

enum Combine : int64_t {
  COMBINE_REPLACE = 0,
  COMBINE_ADD = 1,
  COMBINE_MULTIPLY = 2,
  COMBINE_MAX = 3,
  COMBINE_MIN = 4,
};

// target = combine(target, value); a NaN on either side of max and min wins.
template <class T>
FUSEC_INLINE void combine(T* target, T value, int64_t how) {
  using A = Arithmetic<T>;
  using Wide = typename A::Wide;
  if (how == COMBINE_REPLACE) {
    *target = value;
    return;
  }
  Wide old = A::widen(*target), given = A::widen(value), result = old;
  switch (how) {
    case COMBINE_ADD:
      result = wrapping_add<Wide>(old, given);
      break;
    case COMBINE_MULTIPLY:
      result = wrapping_multiply<Wide>(old, given);
      break;
    case COMBINE_MAX:
      if (given > old || given != given) result = given;
      break;
    case COMBINE_MIN:
      if (given < old || given != given) result = given;
      break;
  }
  *target = A::narrow(result);
}

// ---- order ----

// An unsigned number that orders as the element does: -0 equals 0, every NaN is the same and above
// all other values, as in torch.
FUSEC_INLINE uint64_t order_key(double value) {
  if (value != value) return ~uint64_t{0};
  if (value == 0.0) value = 0.0;  // -0
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}
FUSEC_INLINE uint64_t order_key(float value) { return order_key(static_cast<double>(value)); }
FUSEC_INLINE uint64_t order_key(bf16 value) { return order_key(to_float(value)); }
FUSEC_INLINE uint64_t order_key(f16 value) { return order_key(to_float(value)); }
FUSEC_INLINE uint64_t order_key(boolean value) { return value.value != 0; }
FUSEC_INLINE uint64_t order_key(uint8_t value) { return value; }
FUSEC_INLINE uint64_t order_key(int64_t value) {
  return static_cast<uint64_t>(value) ^ uint64_t{1} << 63;
}
FUSEC_INLINE uint64_t order_key(int32_t value) { return order_key(int64_t{value}); }
FUSEC_INLINE uint64_t order_key(int16_t value) { return order_key(int64_t{value}); }
FUSEC_INLINE uint64_t order_key(int8_t value) { return order_key(int64_t{value}); }

}  // namespace fusec

// Defines fusec_<name>_<dtype> for every dtype, each calling `function<element type>`.
#define FUSEC_FOR_DTYPE(name, dtype, type, function)                                       \
  FUSEC_KERNEL void fusec_##name##_##dtype(void* const* buffers, const int64_t* params) {  \
    function<type>(buffers, params);                                                       \
  }
#define FUSEC_FOR_FLOATS(name, function)                  \
  FUSEC_FOR_DTYPE(name, f32, float, function)             \
  FUSEC_FOR_DTYPE(name, bf16, fusec::bf16, function)      \
  FUSEC_FOR_DTYPE(name, f16, fusec::f16, function)        \
  FUSEC_FOR_DTYPE(name, f64, double, function)
#define FUSEC_FOR_INTEGERS(name, function)                \
  FUSEC_FOR_DTYPE(name, i64, int64_t, function)           \
  FUSEC_FOR_DTYPE(name, i32, int32_t, function)           \
  FUSEC_FOR_DTYPE(name, i16, int16_t, function)           \
  FUSEC_FOR_DTYPE(name, i8, int8_t, function)             \
  FUSEC_FOR_DTYPE(name, u8, uint8_t, function)
#define FUSEC_FOR_ALL(name, function)                     \
  FUSEC_FOR_FLOATS(name, function)                        \
  FUSEC_FOR_INTEGERS(name, function)                      \
  FUSEC_FOR_DTYPE(name, bool, fusec::boolean, function)
