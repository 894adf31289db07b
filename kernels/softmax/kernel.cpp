// softmax, log_softmax and logsumexp along one axis.
#include <fusec/rows.h>

#include <math.h>

namespace fusec {
namespace {

enum SoftmaxParam { SIZES = 0, X = 4, OUT = 8, N = 12, X_STEP, OUT_STEP };

enum class Kind { SOFTMAX, LOG_SOFTMAX, LOGSUMEXP };

constexpr float MINUS_INFINITY = -__builtin_inff();

template <class T, Kind KIND>
void softmax(void* const* buffers, const int64_t* p) {
  const T* x = static_cast<const T*>(buffers[0]);
  T* out = static_cast<T*>(buffers[1]);
  Outer outer{p + SIZES};
  int64_t n = p[N], x_step = p[X_STEP], out_step = p[OUT_STEP], ahead = rows_ahead(n);
  parallel_for(outer.rows(), grain_for(8 * n), [&](int64_t begin, int64_t end, int) {
    Scratch<float> row_buffer(n);
    float* row = row_buffer;
    for (int64_t r = begin; r < end; ++r) {
      const T* a = x + outer.offset(r, p + X);
      T* o = out + outer.offset(r, p + OUT);
      if (x_step != 1) {
        for (int64_t i = 0; i < n; ++i) row[i] = to_float(a[i * x_step]);
      }
      // Powers are kept where the result goes, if that is in f32.
      bool in_place = IS_F32<T> && out_step == 1;
      float* powers = in_place ? reinterpret_cast<float*>(o) : row;
      auto value = [=](int64_t i, int count) {
        return x_step == 1 ? load_some(a + i, count) : load_some(row + i, count);
      };
      float top = max_row(n, value);
      // A row of -inf: softmax is NaN as in torch, logsumexp is -inf.
      float shift = KIND == Kind::LOGSUMEXP && (top == MINUS_INFINITY || top == -MINUS_INFINITY)
                        ? 0.0f
                        : top;
      float total = sum_row(n, [=](int64_t i, int count) {
        // NaN makes the sum NaN, and with that the whole row.
        // With no shift for a row that has +inf, logsumexp sees any number.
        Vec less_top = value(i, count) - set(shift);
        Vec power = KIND == Kind::LOGSUMEXP ? exp(less_top) : exp_below(less_top);
        if (KIND == Kind::SOFTMAX) store_some(powers + i, power, count);
        return count == LANES ? power : select(first_lanes(count), power, zero());
      });
      if (KIND == Kind::LOGSUMEXP) {
        *o = from_float<T>(logf(total) + shift);
        continue;
      }
      Vec scale = set(1.0f / total), offset = set(logf(total));
      auto result = [=](int64_t i, int count) {
        if (KIND == Kind::SOFTMAX) return load_some(powers + i, count) * scale;
        return (value(i, count) - set(shift)) - offset;
      };
      if (out_step == 1) {
        const T* later = x + outer.offset(r + ahead, p + X);
        for_vectors(n, [=](int64_t i, int count) {
          __builtin_prefetch(later + i);
          store_some(o + i, result(i, count), count);
        });
        continue;
      }
      for_vectors(n, [=](int64_t i, int count) {
        T lanes[LANES];
        store(lanes, result(i, count));
        for (int lane = 0; lane < count; ++lane) o[(i + lane) * out_step] = lanes[lane];
      });
    }
  });
}

template <Kind KIND>
void softmax_f64(void* const* buffers, const int64_t* p) {
  const double* x = static_cast<const double*>(buffers[0]);
  double* out = static_cast<double*>(buffers[1]);
  Outer outer{p + SIZES};
  int64_t n = p[N], x_step = p[X_STEP], out_step = p[OUT_STEP];
  parallel_for(outer.rows(), grain_for(40 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const double* a = x + outer.offset(r, p + X);
      double* o = out + outer.offset(r, p + OUT);
      double top = -__builtin_inf();
      for (int64_t i = 0; i < n; ++i) {
        double value = a[i * x_step];
        if (!(value <= top)) top = value;  // NaN wins, and stays
        if (top != top) break;
      }
      double shift = KIND == Kind::LOGSUMEXP && (top == __builtin_inf() || top == -__builtin_inf())
                         ? 0.0
                         : top;
      double total = 0.0;
      for (int64_t i = 0; i < n; ++i) total += ::exp(a[i * x_step] - shift);
      if (KIND == Kind::LOGSUMEXP) {
        *o = ::log(total) + shift;
        continue;
      }
      double offset = ::log(total);
      for (int64_t i = 0; i < n; ++i) {
        double value = a[i * x_step] - shift;
        o[i * out_step] = KIND == Kind::SOFTMAX ? ::exp(value) / total : value - offset;
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// buffers: x, out (may be x, except for logsumexp); any strides
// params:  sizes[4] of the other axes, x strides[4], out strides[4], N along the axis, strides of x
//          and out along the axis (logsumexp has one result per row: the last is not used)
#define FUSEC_SOFTMAX(name, kind)                                                              \
  FUSEC_KERNEL void fusec_##name##_f32(void* const* buffers, const int64_t* params) {          \
    fusec::softmax<float, fusec::Kind::kind>(buffers, params);                                 \
  }                                                                                            \
  FUSEC_KERNEL void fusec_##name##_bf16(void* const* buffers, const int64_t* params) {         \
    fusec::softmax<fusec::bf16, fusec::Kind::kind>(buffers, params);                           \
  }                                                                                            \
  FUSEC_KERNEL void fusec_##name##_f16(void* const* buffers, const int64_t* params) {          \
    fusec::softmax<fusec::f16, fusec::Kind::kind>(buffers, params);                            \
  }                                                                                            \
  FUSEC_KERNEL void fusec_##name##_f64(void* const* buffers, const int64_t* params) {          \
    fusec::softmax_f64<fusec::Kind::kind>(buffers, params);                                    \
  }
FUSEC_SOFTMAX(softmax, SOFTMAX)
FUSEC_SOFTMAX(log_softmax, LOG_SOFTMAX)
FUSEC_SOFTMAX(logsumexp, LOGSUMEXP)
