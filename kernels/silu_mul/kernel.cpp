// silu_mul, gelu_mul and swiglu_oai: activation(gate) * up, for gate and up anywhere in memory; as it
// is, or quantised.
#include <fusec/double.h>
#include <fusec/quantise_rows.h>

namespace fusec {
namespace {

// Elements `step` apart, as f32.
template <class T>
__attribute__((noinline)) Vec load_steps(const T* p, int64_t step, int count) {
  alignas(64) float lanes[LANES] = {};
  for (int i = 0; i < count; ++i) lanes[i] = to_float(p[i * step]);
  return load(lanes);
}

// A maker of rows: see quantise_rows.h.
template <class T>
class GatedRows : public ParamRows<12, 16, 8> {
 public:
  enum { GATE = 4, UP = 8, GATE_STEP = N + 1, UP_STEP, ACTIVATION, ALPHA, LIMIT, COUNT };

  GatedRows(Operands& operands, const int64_t* params)
      : ParamRows(params),
        gate_(operands.take<T>()),
        up_(operands.take<T>()),
        activated_{params[ACTIVATION]} {}

  template <class Take>
  FUSEC_INLINE void make(int64_t row, float*, const Take& take) const {
    const T* gate = gate_ + outer().offset(row, p_ + GATE);
    const T* up = up_ + outer().offset(row, p_ + UP);
    int64_t gate_step = p_[GATE_STEP], up_step = p_[UP_STEP];
    bool dense = gate_step == 1 && up_step == 1;
    // What most models compute has a loop of its own.
    if (dense && p_[ACTIVATION] == ACTIVATION_SILU) {
      return take([=](int64_t i, int count) {
        return silu(load_some(gate + i, count)) * load_some(up + i, count);
      });
    }
    AnyActivation activated = activated_;
    Vec alpha = set(f32_param(p_[ALPHA])), limit = set(f32_param(p_[LIMIT]));
    take([=](int64_t i, int count) {
      Vec g, u;
      if (dense) {
        g = load_some(gate + i, count);
        u = load_some(up + i, count);
      } else {
        g = load_steps(gate + i * gate_step, gate_step, count);
        u = load_steps(up + i * up_step, up_step, count);
      }
      if (activated.number != ACTIVATION_SWIGLU_OAI) return activated(g) * u;
      g = min(limit, g);
      u = max(zero() - limit, min(limit, u));
      return times_sigmoid(g, alpha * g) * (u + set(1.0f));
    });
  }

 private:
  const T* gate_;
  const T* up_;
  AnyActivation activated_;
};

using Gated = GatedRows<float>;

void gated_activation_f64(void* const* buffers, const int64_t* p) {
  const double* gate = static_cast<const double*>(buffers[0]);
  const double* up = static_cast<const double*>(buffers[1]);
  double* out = static_cast<double*>(buffers[2]);
  Outer outer{p + Gated::SIZES};
  int64_t n = p[Gated::N];
  double alpha = f64_param(p[Gated::ALPHA]), limit = f64_param(p[Gated::LIMIT]);
  parallel_for(outer.rows(), grain_for(40 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double* gates = gate + outer.offset(row, p + Gated::GATE);
      const double* ups = up + outer.offset(row, p + Gated::UP);
      double* o = out + outer.offset(row, p + Gated::OUT);
      for (int64_t i = 0; i < n; ++i) {
        double g = gates[i * p[Gated::GATE_STEP]], u = ups[i * p[Gated::UP_STEP]];
        if (p[Gated::ACTIVATION] != ACTIVATION_SWIGLU_OAI) {
          o[i] = activate_f64(p[Gated::ACTIVATION], g) * u;
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
  fusec::write_plain<float, fusec::GatedRows<float>>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_activation_bf16(void* const* buffers, const int64_t* params) {
  fusec::write_plain<fusec::bf16, fusec::GatedRows<fusec::bf16>>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_activation_f16(void* const* buffers, const int64_t* params) {
  fusec::write_plain<fusec::f16, fusec::GatedRows<fusec::f16>>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_activation_f64(void* const* buffers, const int64_t* params) {
  fusec::gated_activation_f64(buffers, params);
}

// The same quantised, as `Scaling` of fusec/formats.py says.
// buffers: gate, up, [scale f32 [1] if it is given], codes, [scales f32 or e8m0, unless they are
//          given], [out if with_plain; its strides are those of the codes otherwise]
// params:  those of fusec_gated_activation, then those of `QuantiseParams` in quantise_rows.h
FUSEC_KERNEL void fusec_gated_activation_quant_f32(void* const* buffers, const int64_t* params) {
  fusec::write_quantised<float, fusec::GatedRows<float>>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_activation_quant_bf16(void* const* buffers, const int64_t* params) {
  fusec::write_quantised<fusec::bf16, fusec::GatedRows<fusec::bf16>>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_activation_quant_f16(void* const* buffers, const int64_t* params) {
  fusec::write_quantised<fusec::f16, fusec::GatedRows<fusec::f16>>(buffers, params);
}
