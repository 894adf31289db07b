// linear: out = residual + activation(x * weight^T + bias), with the weight packed ahead of time.
#include <fusec/gemm.h>

namespace fusec {
namespace {

enum LinearParam {
  SIZES = 0,
  X_STRIDES = 4,
  OUT_STRIDES = 8,
  RESIDUAL_STRIDES = 12,
  N = 16,
  K,
  ACTIVATION,
  HAS_BIAS,
  HAS_RESIDUAL,
};

template <class T, class Out = T>
void linear(void* const* buffers, const int64_t* params) {
  const T* x = static_cast<const T*>(buffers[0]);
  const T* packed = static_cast<const T*>(buffers[1]);
  int next = 2;
  const T* bias = params[HAS_BIAS] ? static_cast<const T*>(buffers[next++]) : nullptr;
  const Out* residual = params[HAS_RESIDUAL] ? static_cast<const Out*>(buffers[next++]) : nullptr;
  Outer outer{params + SIZES};
  Epilogue<T, Out> epilogue{outer, static_cast<Out*>(buffers[next]), params + OUT_STRIDES, bias,
                            params[ACTIVATION], residual, params + RESIDUAL_STRIDES};
  int64_t k = params[K];
  packed_gemm<T>(
      outer.rows(), params[N], k, packed,
      [=](int64_t row, Activations<T>* target) {
        fill_block_row(x + outer.offset(row, params + X_STRIDES), 1, k, target);
      },
      epilogue);
}

}  // namespace
}  // namespace fusec

// buffers: x, packed weight (see gemm.h), [bias [N]], [residual], out (may be the residual itself);
//          x, residual and out have up to four strided outer dims and stride 1 inside
// params:  sizes[4], x strides[4], out strides[4], residual strides[4] (0 without one), N, K,
//          activation (simd.h Activation, 0 none), has_bias, has_residual
FUSEC_KERNEL void fusec_linear_f32(void* const* buffers, const int64_t* params) {
  fusec::linear<float>(buffers, params);
}
FUSEC_KERNEL void fusec_linear_bf16(void* const* buffers, const int64_t* params) {
  fusec::linear<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_linear_f16(void* const* buffers, const int64_t* params) {
  fusec::linear<fusec::f16>(buffers, params);
}
// residual and out are f32, the other operands as named
FUSEC_KERNEL void fusec_linear_bf16_f32(void* const* buffers, const int64_t* params) {
  fusec::linear<fusec::bf16, float>(buffers, params);
}
FUSEC_KERNEL void fusec_linear_f16_f32(void* const* buffers, const int64_t* params) {
  fusec::linear<fusec::f16, float>(buffers, params);
}
