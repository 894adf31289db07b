// mxfp4_linear: out = x * weight^T + bias, the weight in 4-bit floats that are widened on the way.
#include <fusec/quantised.h>

namespace fusec {
namespace {

template <class T, class Out = T>
void mxfp4_linear(void* const* buffers, const int64_t* params) {
  const Mxfp4Weight weight{static_cast<const uint16_t*>(buffers[1]),
                           static_cast<const uint8_t*>(buffers[2]), params[QUANTISED_K]};
  quantised_linear<T, Out>(buffers, params, weight, params[QUANTISED_OWN] != 0);
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
