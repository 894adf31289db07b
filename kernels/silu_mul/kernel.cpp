// silu_mul, gelu_mul and swiglu_oai: activation(gate) * up, for gate and up anywhere in memory.
#include <fusec/double.h>

namespace fusec {
namespace {

enum GatedParam {
  SIZES = 0,
  GATE = 4,
  UP = 8,
  OUT = 12,
  N = 16,
  GATE_STEP,
  UP_STEP,
  ACTIVATION,
  ALPHA,
  LIMIT,
};

FUSEC_INLINE Vec combine(int64_t activation, Vec gate, Vec up, float alpha, float limit) {
  if (activation == ACTIVATION_SWIGLU_OAI) {
    gate = min(set(limit), gate);
    up = max(set(-limit), min(set(limit), up));
    return gate * sigmoid(set(alpha) * gate) * (up + set(1.0f));
  }
  return activate(activation, gate) * up;
}

// Elements `step` apart, as f32.
template <class T>
FUSEC_INLINE Vec load_steps(const T* p, int64_t step, int count) {
  if (step == 1) return load_some(p, count);
  alignas(64) float lanes[LANES] = {};
  for (int i = 0; i < count; ++i) lanes[i] = to_float(p[i * step]);
  return load(lanes);
}

template <class T>
void gated_activation(void* const* buffers, const int64_t* p) {
  const T* gate = static_cast<const T*>(buffers[0]);
  const T* up = static_cast<const T*>(buffers[1]);
  T* out = static_cast<T*>(buffers[2]);
  Outer outer{p + SIZES};
  int64_t n = p[N], gate_step = p[GATE_STEP], up_step = p[UP_STEP], activation = p[ACTIVATION];
  float alpha = f32_param(p[ALPHA]), limit = f32_param(p[LIMIT]);
  parallel_for(outer.rows(), grain_for(8 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const T* g = gate + outer.offset(row, p + GATE);
      const T* u = up + outer.offset(row, p + UP);
      T* o = out + outer.offset(row, p + OUT);
      for_vectors(n, [=](int64_t i, int count) {
        Vec value = combine(activation, load_steps(g + i * gate_step, gate_step, count),
                            load_steps(u + i * up_step, up_step, count), alpha, limit);
        store_some(o + i, value, count);
      });
    }
  });
}

void gated_activation_f64(void* const* buffers, const int64_t* p) {
  const double* gate = static_cast<const double*>(buffers[0]);
  const double* up = static_cast<const double*>(buffers[1]);
  double* out = static_cast<double*>(buffers[2]);
  Outer outer{p + SIZES};
  int64_t n = p[N];
  double alpha = f64_param(p[ALPHA]), limit = f64_param(p[LIMIT]);
  parallel_for(outer.rows(), grain_for(40 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double* gates = gate + outer.offset(row, p + GATE);
      const double* ups = up + outer.offset(row, p + UP);
      double* o = out + outer.offset(row, p + OUT);
      for (int64_t i = 0; i < n; ++i) {
        double g = gates[i * p[GATE_STEP]], u = ups[i * p[UP_STEP]];
        if (p[ACTIVATION] != ACTIVATION_SWIGLU_OAI) {
          o[i] = activate_f64(p[ACTIVATION], g) * u;
          continue;
        }
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
        o[i] = g * sigmoid_f64(alpha * g) * (u + 1.0);
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// out = activation(gate) * up; swiglu_oai: g = min(gate, limit), u = clamp(up, -limit, limit),
// out = g * sigmoid(alpha * g) * (u + 1)
// buffers: gate, up (any strides, such as the halves or the alternate columns of one buffer), out
//          (stride 1 inside)
// params:  sizes[4], gate strides[4], up strides[4], out strides[4], N, inner strides of gate and
//          up, activation (simd.h), alpha (f64), limit (f64)
FUSEC_KERNEL void fusec_gated_activation_f32(void* const* buffers, const int64_t* params) {
  fusec::gated_activation<float>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_activation_bf16(void* const* buffers, const int64_t* params) {
  fusec::gated_activation<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_activation_f16(void* const* buffers, const int64_t* params) {
  fusec::gated_activation<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_activation_f64(void* const* buffers, const int64_t* params) {
  fusec::gated_activation_f64(buffers, params);
}
