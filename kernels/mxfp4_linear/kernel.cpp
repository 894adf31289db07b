// mxfp4_linear: out = x * weight^T + bias, the weight in 4-bit floats that are widened on the way.
#include <fusec/quantised.h>

namespace fusec {
namespace {

enum Mxfp4LinearParam {
  SIZES = 0,
  X_STRIDES = 4,
  OUT_STRIDES = 8,
  N = 12,
  K,
  HAS_BIAS,
};

template <class T, class Out = T>
void mxfp4_linear(void* const* buffers, const int64_t* params) {
  const T* x = static_cast<const T*>(buffers[0]);
  const int64_t k = params[K];
  const Mxfp4Weight weight{static_cast<const uint16_t*>(buffers[1]),
                           static_cast<const uint8_t*>(buffers[2]), k};
  const T* bias = params[HAS_BIAS] ? static_cast<const T*>(buffers[3]) : nullptr;
  const Outer outer{params + SIZES};
  const Epilogue<T, Out> epilogue{outer, static_cast<Out*>(buffers[bias ? 4 : 3]),
                                  params + OUT_STRIDES, bias};
  quantised_gemm<T>(
      outer.rows(), params[N], weight,
      [=](int64_t row, auto* target) {
        fill_quantised_row(x + outer.offset(row, params + X_STRIDES), k, target);
      },
      epilogue);
}

}  // namespace
}  // namespace fusec

// buffers: x, packed codes and packed scales (see quantised.h), [bias [N]], out; x and out have up
//          to four strided outer dims and stride 1 inside
// params:  sizes[4], x strides[4], out strides[4], N, K, has_bias
FUSEC_KERNEL void fusec_mxfp4_linear_f32(void* const* buffers, const int64_t* params) {
  fusec::mxfp4_linear<float>(buffers, params);
}
FUSEC_KERNEL void fusec_mxfp4_linear_bf16(void* const* buffers, const int64_t* params) {
  fusec::mxfp4_linear<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_mxfp4_linear_f16(void* const* buffers, const int64_t* params) {
  fusec::mxfp4_linear<fusec::f16>(buffers, params);
}
// out is f32, x and bias as named
FUSEC_KERNEL void fusec_mxfp4_linear_bf16_f32(void* const* buffers, const int64_t* params) {
  fusec::mxfp4_linear<fusec::bf16, float>(buffers, params);
}
FUSEC_KERNEL void fusec_mxfp4_linear_f16_f32(void* const* buffers, const int64_t* params) {
  fusec::mxfp4_linear<fusec::f16, float>(buffers, params);
}
