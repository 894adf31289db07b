// Rows of a strided operand: up to four outer dims, stride 1 inside.
#pragma once

#include <fusec/simd.h>

namespace fusec {

constexpr int OUTER_DIMS = 4;

// `params` hold the sizes (leading 1s if there are fewer dims) and, per operand, as many strides.
// offset() maps the number of an element in row-major order to where an operand has it.
template <int RANK>
struct Dims {
  const int64_t* sizes;

  FUSEC_INLINE int64_t count() const {
    int64_t product = 1;
    for (int dim = 0; dim < RANK; ++dim) product *= sizes[dim];
    return product;
  }
  FUSEC_INLINE int64_t rows() const { return count(); }

  FUSEC_INLINE int64_t offset(int64_t number, const int64_t* strides) const {
    int64_t offset = 0;
    for (int dim = RANK - 1; dim > 0; --dim) {
      // Usual: the dims were merged into the innermost one, and nothing is left to divide.
      if (number < sizes[dim]) return offset + number * strides[dim];
      offset += number % sizes[dim] * strides[dim];
      number /= sizes[dim];
    }
    return offset + number * strides[0];
  }
};

using Outer = Dims<OUTER_DIMS>;

// The addresses a kernel is given, taken in order.
class Operands {
 public:
  explicit Operands(void* const* buffers) : next_(buffers) {}

  template <class T>
  FUSEC_INLINE T* take() {
    return static_cast<T*>(*next_++);
  }

 private:
  void* const* next_;
};

// How many rows before its turn a row of `n` elements is asked for, while another one is written: the
// processor's own prefetching starts anew with every row, and short ones need more time than one.
FUSEC_INLINE int64_t rows_ahead(int64_t n) { return 1 + 512 / max_of<int64_t>(1, n); }

// Calls body(column, count) for the vectors of a row; count is LANES except for the last one.
template <class Body>
FUSEC_INLINE void for_vectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) body(i, LANES);
  if (i < n) body(i, static_cast<int>(n - i));
}

template <class T>
FUSEC_INLINE Vec load_some(const T* p, int count) {
  return count == LANES ? load(p) : load_partial(p, count);
}

template <class T>
FUSEC_INLINE void store_some(T* p, Vec value, int count) {
  if (count == LANES) {
    store(p, value);
  } else {
    store_partial(p, value, count);
  }
}

// Largest of value(column, count) over a row, NaN passed over; four chains, as in sum_row.
template <class Value>
FUSEC_INLINE float max_row(int64_t n, const Value& value) {
  constexpr float LEAST = -__builtin_inff();
  Vec top[4] = {set(LEAST), set(LEAST), set(LEAST), set(LEAST)};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    FUSEC_UNROLL
    for (int chain = 0; chain < 4; ++chain) {
      top[chain] = max(value(i + chain * LANES, LANES), top[chain]);
    }
  }
  for (; i + LANES <= n; i += LANES) top[0] = max(value(i, LANES), top[0]);
  if (i < n) {
    int count = static_cast<int>(n - i);
    Vec some = select(first_lanes(count), value(i, count), set(LEAST));
    top[1] = max(some, top[1]);
  }
  return reduce_max(max(max(top[0], top[1]), max(top[2], top[3])));
}

// Sum of value(column, count) over a row; lanes past the end must be 0. Four chains in a fixed order.
template <class Value>
FUSEC_INLINE float sum_row(int64_t n, const Value& value) {
  Vec sum[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    FUSEC_UNROLL
    for (int chain = 0; chain < 4; ++chain) {
      sum[chain] = sum[chain] + value(i + chain * LANES, LANES);
    }
  }
  for (; i + LANES <= n; i += LANES) sum[0] = sum[0] + value(i, LANES);
  if (i < n) sum[1] = sum[1] + value(i, static_cast<int>(n - i));
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// Sum of squares of what load_value gives, with fma.
template <class Value>
FUSEC_INLINE float sum_squares(int64_t n, const Value& value) {
  Vec sum[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    FUSEC_UNROLL
    for (int chain = 0; chain < 4; ++chain) {
      Vec x = value(i + chain * LANES, LANES);
      sum[chain] = fma(x, x, sum[chain]);
    }
  }
  for (; i + LANES <= n; i += LANES) {
    Vec x = value(i, LANES);
    sum[0] = fma(x, x, sum[0]);
  }
  if (i < n) {
    Vec x = value(i, static_cast<int>(n - i));
    sum[1] = fma(x, x, sum[1]);
  }
  return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// The multiplier of a norm; without one it is all ones.
enum WeightKind : int64_t {
  WEIGHT_NONE = 0,
  WEIGHT_SAME = 1,
  WEIGHT_F32 = 2,
  WEIGHT_BF16 = 3,
  WEIGHT_F16 = 4,
};

template <class T>
constexpr bool IS_F32 = false;
template <>
constexpr bool IS_F32<float> = true;

// A weight row widened to f32 once per call, with the offset (0 or 1) added.
template <class T>
FUSEC_INLINE void widen_weight(const void* weight, int64_t kind, float offset, int64_t n,
                               float* out) {
  for_vectors(n, [&](int64_t i, int count) {
    Vec value = set(1.0f);
    if (kind == WEIGHT_SAME) value = load_some(static_cast<const T*>(weight) + i, count);
    if (kind == WEIGHT_F32) value = load_some(static_cast<const float*>(weight) + i, count);
    if (kind == WEIGHT_BF16) value = load_some(static_cast<const bf16*>(weight) + i, count);
    if (kind == WEIGHT_F16) value = load_some(static_cast<const f16*>(weight) + i, count);
    if (kind != WEIGHT_NONE) value = value + set(offset);
    store_some(out + i, value, count);
  });
}

// The same, made if there is need to: a weight of f32 without an offset is read where it is.
template <class T>
class WideWeight {
 public:
  WideWeight(Operands& operands, int64_t kind, int64_t offset, int64_t n) : wide_(n) {
    const void* weight = kind == WEIGHT_NONE ? nullptr : operands.take<void>();
    bool is_f32 = kind == WEIGHT_F32 || (kind == WEIGHT_SAME && IS_F32<T>);
    if (is_f32 && offset == 0) {
      data_ = static_cast<const float*>(weight);
      return;
    }
    widen_weight<T>(weight, kind, static_cast<float>(offset), n, wide_);
    data_ = wide_;
  }
  operator const float*() const { return data_; }

 private:
  Scratch<float> wide_;
  const float* data_;
};

}  // namespace fusec
