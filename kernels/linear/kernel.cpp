// linear: out = residual + activation(x * weight^T + bias), with the weight packed ahead of time, and
// linear_glu: out = activation(gate) * up for the gate and up halves of such a product.
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
  PRECISION,
};

enum GluParam {
  GLU_N = 12,
  GLU_K,
  GLU_ACTIVATION,
  GLU_ALPHA,
  GLU_LIMIT,
  GLU_HAS_BIAS,
  GLU_PRECISION,
};

// Rows of x for packed_gemm.
template <class T>
auto rows_of(const T* x, const Outer& outer, const int64_t* strides) {
  return [=](int64_t row, Stretch stretch, Activations<T>* target) {
    fill_block_row(x + outer.offset(row, strides) + stretch.begin, 1, stretch.count, target);
  };
}

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
  packed_gemm<T>(outer.rows(), params[N], params[K], packed,
                 rows_of(x, outer, params + X_STRIDES), epilogue, params[PRECISION]);
}

template <class T, class Out = T>
void linear_glu(void* const* buffers, const int64_t* params) {
  const T* x = static_cast<const T*>(buffers[0]);
  const T* packed = static_cast<const T*>(buffers[1]);
  int next = 2;
  const T* bias = params[GLU_HAS_BIAS] ? static_cast<const T*>(buffers[next++]) : nullptr;
  Outer outer{params + SIZES};
  GatedEpilogue<T, Out> epilogue{outer,
                                 static_cast<Out*>(buffers[next]),
                                 params + OUT_STRIDES,
                                 params[GLU_N],
                                 bias,
                                 params[GLU_ACTIVATION],
                                 f32_param(params[GLU_ALPHA]),
                                 f32_param(params[GLU_LIMIT])};
  packed_gemm<T>(outer.rows(), params[GLU_N], params[GLU_K], packed,
                 rows_of(x, outer, params + X_STRIDES), epilogue, params[GLU_PRECISION]);
}

}  // namespace
}  // namespace fusec

// buffers: x, packed weight (see panels.h), [bias [N]], [residual], out (may be the residual itself);
//          x, residual and out have up to four strided outer dims and stride 1 inside
// params:  sizes[4], x strides[4], out strides[4], residual strides[4] (0 without one), N, K,
//          activation (simd.h Activation, 0 none), has_bias, has_residual, precision (gemm.h
//          Precision, for f32)
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

// buffers: x, weight [2N, K] packed as [panel][gate, up] (see gemm.h), [bias [2][N], gates first],
//          out [.., N]; x and out as above
// params:  sizes[4], x strides[4], out strides[4], N, K, activation, alpha and limit (doubles, of
//          swiglu_oai), has_bias, precision
FUSEC_KERNEL void fusec_linear_glu_f32(void* const* buffers, const int64_t* params) {
  fusec::linear_glu<float>(buffers, params);
}
FUSEC_KERNEL void fusec_linear_glu_bf16(void* const* buffers, const int64_t* params) {
  fusec::linear_glu<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_linear_glu_f16(void* const* buffers, const int64_t* params) {
  fusec::linear_glu<fusec::f16>(buffers, params);
}
// out is f32, the other operands as named
FUSEC_KERNEL void fusec_linear_glu_bf16_f32(void* const* buffers, const int64_t* params) {
  fusec::linear_glu<fusec::bf16, float>(buffers, params);
}
FUSEC_KERNEL void fusec_linear_glu_f16_f32(void* const* buffers, const int64_t* params) {
  fusec::linear_glu<fusec::f16, float>(buffers, params);
}
