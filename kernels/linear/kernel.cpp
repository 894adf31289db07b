// linear: out = residual + activation(x * weight^T + bias), with the weight packed ahead of time.
#include <fusec/gemm.h>

namespace fusec {
namespace {

enum LinearParam { M, N, K, X_STRIDE, OUT_STRIDE, HAS_BIAS, ACTIVATION, HAS_RESIDUAL, RES_STRIDE };

template <class T>
void linear(void* const* buffers, const int64_t* params) {
  const T* x = static_cast<const T*>(buffers[0]);
  const T* packed = static_cast<const T*>(buffers[1]);
  int next = 2;
  Epilogue<T> epilogue;
  if (params[HAS_BIAS]) epilogue.bias = static_cast<const T*>(buffers[next++]);
  if (params[HAS_RESIDUAL]) epilogue.residual = static_cast<const T*>(buffers[next++]);
  epilogue.residual_stride = params[RES_STRIDE];
  epilogue.activation = params[ACTIVATION];
  epilogue.out = static_cast<T*>(buffers[next]);
  epilogue.out_stride = params[OUT_STRIDE];
  int64_t k = params[K], stride = params[X_STRIDE];
  packed_gemm<T>(
      params[M], params[N], k, packed,
      [=](int64_t row, Activations<T>* target) { fill_block_row(x + row * stride, 1, k, target); },
      epilogue);
}

}  // namespace
}  // namespace fusec

// buffers: x [M, K] rows `x_stride` apart, packed weight (see gemm.h), [bias [N]],
//          [residual [M, N] rows `residual_stride` apart], out [M, N] rows `out_stride` apart;
//          out may be the residual itself
// params:  M, N, K, x_stride, out_stride, has_bias, activation (simd.h Activation, 0 none),
//          has_residual, residual_stride
FUSEC_KERNEL void fusec_linear_f32(void* const* buffers, const int64_t* params) {
  fusec::linear<float>(buffers, params);
}
FUSEC_KERNEL void fusec_linear_bf16(void* const* buffers, const int64_t* params) {
  fusec::linear<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_linear_f16(void* const* buffers, const int64_t* params) {
  fusec::linear<fusec::f16>(buffers, params);
}
