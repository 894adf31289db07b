// layer_norm: out = (x - mean) * rsqrt(variance + eps) * weight + bias over the last dim.
#include <fusec/double.h>

namespace fusec {
namespace {

enum LayerNormParam { SIZES = 0, X = 4, OUT = 8, N = 12, EPS, WEIGHT, BIAS };

template <class T>
void layer_norm(void* const* buffers, const int64_t* params) {
  int next = 0;
  const T* x = static_cast<const T*>(buffers[next++]);
  const void* weight = params[WEIGHT] ? buffers[next++] : nullptr;
  const void* bias = params[BIAS] ? buffers[next++] : nullptr;
  T* out = static_cast<T*>(buffers[next]);
  Outer outer{params + SIZES};
  int64_t n = params[N];
  float eps = f32_param(params[EPS]);
  Scratch<float> wide_weight(n), wide_bias(n);
  widen_weight<T>(weight, params[WEIGHT], 0.0f, n, wide_weight);
  if (bias) {
    widen_weight<T>(bias, params[BIAS], 0.0f, n, wide_bias);
  } else {
    memset(wide_bias, 0, static_cast<size_t>(n) * sizeof(float));
  }
  int64_t ahead = rows_ahead(n);
  parallel_for(outer.rows(), grain_for(2 * n), [&](int64_t begin, int64_t end, int) {
    Scratch<float> centred(n);
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, params + X);
      T* o = out + outer.offset(row, params + OUT);
      float mean =
          sum_row(n, [=](int64_t i, int count) { return load_some(a + i, count); }) /
          static_cast<float>(n);
      // The variance of the centred values: no cancellation when the mean is large.
      float squares = sum_squares(n, [&](int64_t i, int count) {
        Vec value = load_some(a + i, count) - set(mean);
        store_some(centred + i, value, count);
        return count == LANES ? value : select(first_lanes(count), value, zero());
      });
      float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
      const T* later = x + outer.offset(row + ahead, params + X);
      for_vectors(n, [&](int64_t i, int count) {
        __builtin_prefetch(later + i);
        Vec value = load_some(centred + i, count) * set(scale);
        value = fma(value, load_some(wide_weight + i, count), load_some(wide_bias + i, count));
        store_some(o + i, value, count);
      });
    }
  });
}

void layer_norm_f64(void* const* buffers, const int64_t* params) {
  int next = 0;
  const double* x = static_cast<const double*>(buffers[next++]);
  const void* weight = params[WEIGHT] ? buffers[next++] : nullptr;
  const void* bias = params[BIAS] ? buffers[next++] : nullptr;
  double* out = static_cast<double*>(buffers[next]);
  Outer outer{params + SIZES};
  int64_t n = params[N];
  double eps = f64_param(params[EPS]);
  parallel_for(outer.rows(), grain_for(8 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, params + X);
      double* o = out + outer.offset(row, params + OUT);
      double sum = 0.0, squares = 0.0;
      for (int64_t i = 0; i < n; ++i) sum += a[i];
      double mean = sum / static_cast<double>(n);
      for (int64_t i = 0; i < n; ++i) squares += (a[i] - mean) * (a[i] - mean);
      double scale = 1.0 / ::sqrt(squares / static_cast<double>(n) + eps);
      for (int64_t i = 0; i < n; ++i) {
        double shift = bias ? weight_f64(bias, params[BIAS], i) : 0.0;
        o[i] = (a[i] - mean) * scale * weight_f64(weight, params[WEIGHT], i) + shift;
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// buffers: x, [weight [N]], [bias [N]], out; up to four strided outer dims, stride 1 along N
// params:  sizes[4], x strides[4], out strides[4], N, eps (f64), weight_kind, bias_kind
//          (0 none, 1 dtype of x, 2 f32, 3 bf16, 4 f16)
FUSEC_KERNEL void fusec_layer_norm_f32(void* const* buffers, const int64_t* params) {
  fusec::layer_norm<float>(buffers, params);
}
FUSEC_KERNEL void fusec_layer_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::layer_norm<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_layer_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::layer_norm<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_layer_norm_f64(void* const* buffers, const int64_t* params) {
  fusec::layer_norm_f64(buffers, params);
}
