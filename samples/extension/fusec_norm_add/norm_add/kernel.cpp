// norm_add: out = residual + x * rsqrt(mean(x^2) + eps) * (weight + offset), for every row.
// buffers: x, weight, residual, out
// params:  sizes[4], strides[4] of x, residual and out, N, eps (f64), weight kind, weight offset
#include <fusec/rows.h>

using namespace fusec;

template <class T>
void norm_add(void* const* buffers, const int64_t* p) {
  Operands operands(buffers);
  const int64_t n = p[16];
  const T* x = operands.take<T>();
  const WideWeight<T> wide(operands, p[18], p[19], n);
  const T* residual = operands.take<T>();
  T* out = operands.take<T>();
  const float* weight = wide;
  Outer outer{p};
  parallel_for(outer.rows(), grain_for(n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, p + 4);
      const T* b = residual + outer.offset(row, p + 8);
      T* o = out + outer.offset(row, p + 12);
      float squares = sum_squares(n, [=](int64_t i, int count) { return load_some(a + i, count); });
      Vec scale = set(1.0f / __builtin_sqrtf(squares / n + f32_param(p[17])));
      for_vectors(n, [=](int64_t i, int count) {
        Vec normed = load_some(a + i, count) * scale * load_some(weight + i, count);
        store_some(o + i, load_some(b + i, count) + normed, count);
      });
    }
  });
}

FUSEC_KERNEL void norm_add_f32(void* const* b, const int64_t* p) { norm_add<float>(b, p); }
FUSEC_KERNEL void norm_add_bf16(void* const* b, const int64_t* p) { norm_add<bf16>(b, p); }
FUSEC_KERNEL void norm_add_f16(void* const* b, const int64_t* p) { norm_add<f16>(b, p); }
