// l2_norm: every row divided by its length.
#include <fusec/double.h>

namespace fusec {
namespace {

enum L2Param { SIZES = 0, X = 4, OUT = 8, N = 12, EPS, USE_MAX };

template <class T>
void l2_norm(void* const* buffers, const int64_t* params) {
  const T* x = static_cast<const T*>(buffers[0]);
  T* out = static_cast<T*>(buffers[1]);
  Outer outer{params + SIZES};
  int64_t n = params[N];
  float eps = f32_param(params[EPS]);
  bool use_max = params[USE_MAX] != 0;
  parallel_for(outer.rows(), grain_for(n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, params + X);
      T* o = out + outer.offset(row, params + OUT);
      float squares =
          sum_squares(n, [=](int64_t i, int count) { return load_some(a + i, count); });
      float length = __builtin_sqrtf(use_max ? squares : squares + eps);
      // Not fmaxf: a NaN length stays NaN.
      if (use_max && length < eps) length = eps;
      float scale = 1.0f / length;
      for_vectors(n, [=](int64_t i, int count) {
        store_some(o + i, load_some(a + i, count) * set(scale), count);
      });
    }
  });
}

void l2_norm_f64(void* const* buffers, const int64_t* params) {
  const double* x = static_cast<const double*>(buffers[0]);
  double* out = static_cast<double*>(buffers[1]);
  Outer outer{params + SIZES};
  int64_t n = params[N];
  double eps = f64_param(params[EPS]);
  bool use_max = params[USE_MAX] != 0;
  parallel_for(outer.rows(), grain_for(4 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, params + X);
      double* o = out + outer.offset(row, params + OUT);
      double squares = 0.0;
      for (int64_t i = 0; i < n; ++i) squares += a[i] * a[i];
      double length = ::sqrt(use_max ? squares : squares + eps);
      if (use_max && length < eps) length = eps;
      for (int64_t i = 0; i < n; ++i) o[i] = a[i] / length;
    }
  });
}

}  // namespace
}  // namespace fusec

// out = x * rsqrt(sum(x^2) + eps), or with use_max x / max(sqrt(sum(x^2)), eps)
// buffers: x, out (may be x); up to four strided outer dims, stride 1 along N
// params:  sizes[4], x strides[4], out strides[4], N, eps (f64), use_max
FUSEC_KERNEL void fusec_l2_norm_f32(void* const* buffers, const int64_t* params) {
  fusec::l2_norm<float>(buffers, params);
}
FUSEC_KERNEL void fusec_l2_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::l2_norm<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_l2_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::l2_norm<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_l2_norm_f64(void* const* buffers, const int64_t* params) {
  fusec::l2_norm_f64(buffers, params);
}
