// rms_norm and its relatives: with a residual added before, with a gate after, two at once; as they
// are, or quantised.
#include <fusec/double.h>
#include <fusec/quantise_rows.h>

namespace fusec {
namespace {

FUSEC_INLINE float inverse_rms(float sum_of_squares, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

// The makers below read the params of their kernels: sizes[4], strides[4] of each operand and result,
// and what else the comments above the symbols name.

// Row a is multiplied by 1 over its root mean square and by the weight.
template <class T>
class NormRows : public ParamRows<8, 12, 1> {
 public:
  enum { X = 4, EPS = N + 1, WEIGHT, WEIGHT_OFFSET, COUNT };

  NormRows(Operands& operands, const int64_t* params)
      : ParamRows(params),
        x_(operands.take<T>()),
        weight_(operands, params[WEIGHT], params[WEIGHT_OFFSET], params[N]) {}

  template <class Take>
  FUSEC_INLINE void make(int64_t row, float*, const Take& take) const {
    const T* a = x_ + outer().offset(row, p_ + X);
    const float* weight = weight_;
    float squares = sum_squares(p_[N], [=](int64_t i, int count) { return load_some(a + i, count); });
    Vec scale = set(inverse_rms(squares, p_[N], f32_param(p_[EPS])));
    const T* later_a = later(x_, row, X);
    take([=](int64_t i, int count) {
      __builtin_prefetch(later_a + i);
      return load_some(a + i, count) * scale * load_some(weight + i, count);
    });
  }

 private:
  const T* x_;
  WideWeight<T> weight_;
};

// The same for the sum of two rows, which is a result, too.
template <class T>
class SumNormRows : public ParamRows<12, 20, 2> {
 public:
  enum { X = 4, RESIDUAL = 8, SUM = 16, EPS = N + 1, WEIGHT, WEIGHT_OFFSET, COUNT };

  SumNormRows(Operands& operands, const int64_t* params)
      : ParamRows(params),
        x_(operands.take<T>()),
        residual_(operands.take<T>()),
        weight_(operands, params[WEIGHT], params[WEIGHT_OFFSET], params[N]) {}

  FUSEC_INLINE void finish(Operands& operands) { sum_ = operands.take<T>(); }

  template <class Take>
  FUSEC_INLINE void make(int64_t row, float* scratch, const Take& take) const {
    const T* a = x_ + outer().offset(row, p_ + X);
    const T* b = residual_ + outer().offset(row, p_ + RESIDUAL);
    T* sum = sum_ + outer().offset(row, p_ + SUM);
    const float* weight = weight_;
    // The variance and the result use the sum before it is rounded.
    float squares = sum_squares(p_[N], [=](int64_t i, int count) {
      Vec value = load_some(a + i, count) + load_some(b + i, count);
      store_some(scratch + i, value, count);
      store_some(sum + i, value, count);
      return value;
    });
    Vec scale = set(inverse_rms(squares, p_[N], f32_param(p_[EPS])));
    const T *later_a = later(x_, row, X), *later_b = later(residual_, row, RESIDUAL);
    take([=](int64_t i, int count) {
      __builtin_prefetch(later_a + i);
      __builtin_prefetch(later_b + i);
      return load_some(scratch + i, count) * scale * load_some(weight + i, count);
    });
  }

 private:
  const T* x_;
  const T* residual_;
  T* sum_ = nullptr;
  WideWeight<T> weight_;
};

// A norm, and a gate before or after it.
template <class T>
class GatedNormRows : public ParamRows<12, 16, 8> {
 public:
  enum { X = 4, GATE = 8, EPS = N + 1, WEIGHT, WEIGHT_OFFSET, ACTIVATION, NORM_BEFORE_GATE, COUNT };

  GatedNormRows(Operands& operands, const int64_t* params)
      : ParamRows(params),
        x_(operands.take<T>()),
        weight_(operands, params[WEIGHT], params[WEIGHT_OFFSET], params[N]),
        gate_(operands.take<T>()),
        activated_{params[ACTIVATION]} {}

  template <class Take>
  FUSEC_INLINE void make(int64_t row, float* scratch, const Take& take) const {
    const T* a = x_ + outer().offset(row, p_ + X);
    const T* g = gate_ + outer().offset(row, p_ + GATE);
    const float* weight = weight_;
    AnyActivation activated = activated_;
    float eps = f32_param(p_[EPS]);
    int64_t n = p_[N];
    if (p_[NORM_BEFORE_GATE]) {
      float squares = sum_squares(n, [=](int64_t i, int count) { return load_some(a + i, count); });
      Vec scale = set(inverse_rms(squares, n, eps));
      const T *later_a = later(x_, row, X), *later_g = later(gate_, row, GATE);
      auto normed = [=](int64_t i, int count) {
        __builtin_prefetch(later_a + i);
        __builtin_prefetch(later_g + i);
        return load_some(a + i, count) * scale * load_some(weight + i, count);
      };
      // What most models compute has a loop of its own.
      if (p_[ACTIVATION] == ACTIVATION_SILU) {
        return take([=](int64_t i, int count) {
          return normed(i, count) * silu(load_some(g + i, count));
        });
      }
      return take([=](int64_t i, int count) {
        return normed(i, count) * activated(load_some(g + i, count));
      });
    }
    float squares = sum_squares(n, [=](int64_t i, int count) {
      Vec gated = load_some(a + i, count) * activated(load_some(g + i, count));
      store_some(scratch + i, gated, count);
      return gated;
    });
    Vec scale = set(inverse_rms(squares, n, eps));
    take([=](int64_t i, int count) {
      return load_some(scratch + i, count) * scale * load_some(weight + i, count);
    });
  }

 private:
  const T* x_;
  WideWeight<T> weight_;
  const T* gate_;
  AnyActivation activated_;
};

template <class T>
void dual_rms_norm(void* const* buffers, const int64_t* params) {
  Operands operands(buffers);
  write_plain<T, NormRows<T>>(operands, params);
  write_plain<T, NormRows<T>>(operands, params + NormRows<T>::COUNT);
}

// ---- f64 ----

using Norm = NormRows<float>;
using Add = SumNormRows<float>;
using Gated = GatedNormRows<float>;

template <class Value>
FUSEC_INLINE double inverse_rms_f64(int64_t n, double eps, const Value& value) {
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += value(i) * value(i);
  return 1.0 / ::sqrt(squares / static_cast<double>(n) + eps);
}

int rms_norm_f64(void* const* buffers, const int64_t* params) {
  int next = 0;
  const double* x = static_cast<const double*>(buffers[next++]);
  int64_t kind = params[Norm::WEIGHT], n = params[Norm::N];
  const void* weight = kind ? buffers[next++] : nullptr;
  double* out = static_cast<double*>(buffers[next++]);
  Outer outer{params + Norm::SIZES};
  double eps = f64_param(params[Norm::EPS]);
  double offset = kind ? static_cast<double>(params[Norm::WEIGHT_OFFSET]) : 0.0;
  parallel_for(outer.rows(), grain_for(8 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, params + Norm::X);
      double* o = out + outer.offset(row, params + Norm::OUT);
      double scale = inverse_rms_f64(n, eps, [=](int64_t i) { return a[i]; });
      for (int64_t i = 0; i < n; ++i) {
        o[i] = a[i] * scale * (weight_f64(weight, kind, i) + offset);
      }
    }
  });
  return next;
}

void dual_rms_norm_f64(void* const* buffers, const int64_t* params) {
  int used = rms_norm_f64(buffers, params);
  rms_norm_f64(buffers + used, params + Norm::COUNT);
}

void add_rms_norm_f64(void* const* buffers, const int64_t* params) {
  int next = 0;
  const double* x = static_cast<const double*>(buffers[next++]);
  const double* residual = static_cast<const double*>(buffers[next++]);
  int64_t kind = params[Add::WEIGHT], n = params[Add::N];
  const void* weight = kind ? buffers[next++] : nullptr;
  double* out = static_cast<double*>(buffers[next++]);
  double* sum = static_cast<double*>(buffers[next]);
  Outer outer{params + Add::SIZES};
  double eps = f64_param(params[Add::EPS]);
  double offset = kind ? static_cast<double>(params[Add::WEIGHT_OFFSET]) : 0.0;
  parallel_for(outer.rows(), grain_for(8 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, params + Add::X);
      const double* b = residual + outer.offset(row, params + Add::RESIDUAL);
      double* o = out + outer.offset(row, params + Add::OUT);
      double* s = sum + outer.offset(row, params + Add::SUM);
      for (int64_t i = 0; i < n; ++i) s[i] = a[i] + b[i];
      double scale = inverse_rms_f64(n, eps, [=](int64_t i) { return s[i]; });
      for (int64_t i = 0; i < n; ++i) {
        o[i] = s[i] * scale * (weight_f64(weight, kind, i) + offset);
      }
    }
  });
}

void gated_rms_norm_f64(void* const* buffers, const int64_t* params) {
  int next = 0;
  const double* x = static_cast<const double*>(buffers[next++]);
  int64_t kind = params[Gated::WEIGHT], n = params[Gated::N];
  const void* weight = kind ? buffers[next++] : nullptr;
  const double* gate = static_cast<const double*>(buffers[next++]);
  double* out = static_cast<double*>(buffers[next]);
  Outer outer{params + Gated::SIZES};
  double eps = f64_param(params[Gated::EPS]);
  double offset = kind ? static_cast<double>(params[Gated::WEIGHT_OFFSET]) : 0.0;
  int64_t activation = params[Gated::ACTIVATION];
  bool norm_first = params[Gated::NORM_BEFORE_GATE] != 0;
  parallel_for(outer.rows(), grain_for(40 * n), [&](int64_t begin, int64_t end, int) {
    Scratch<double> factors(n);
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, params + Gated::X);
      const double* g = gate + outer.offset(row, params + Gated::GATE);
      double* o = out + outer.offset(row, params + Gated::OUT);
      for (int64_t i = 0; i < n; ++i) factors[i] = activate_f64(activation, g[i]);
      double scale = inverse_rms_f64(
          n, eps, [&](int64_t i) { return norm_first ? a[i] : a[i] * factors[i]; });
      for (int64_t i = 0; i < n; ++i) {
        o[i] = a[i] * factors[i] * scale * (weight_f64(weight, kind, i) + offset);
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// Every operand has up to four strided outer dims and stride 1 along N. `weight_kind` is 0 (none,
// the buffer is left out), 1 (dtype of x), 2 (f32), 3 (bf16) or 4 (f16); `weight_offset` (0 or 1) is added
// to the weight.

// out = x * rsqrt(mean(x^2) + eps) * (weight + weight_offset)
// buffers: x, [weight [N]], out (may be x)
// params:  sizes[4], x strides[4], out strides[4], N, eps (f64), weight_kind, weight_offset
FUSEC_KERNEL void fusec_rms_norm_f32(void* const* buffers, const int64_t* params) {
  fusec::write_plain<float, fusec::NormRows<float>>(buffers, params);
}
FUSEC_KERNEL void fusec_rms_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::write_plain<fusec::bf16, fusec::NormRows<fusec::bf16>>(buffers, params);
}
FUSEC_KERNEL void fusec_rms_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::write_plain<fusec::f16, fusec::NormRows<fusec::f16>>(buffers, params);
}
FUSEC_KERNEL void fusec_rms_norm_f64(void* const* buffers, const int64_t* params) {
  fusec::rms_norm_f64(buffers, params);
}

// Two independent rms_norms in one step.
// buffers: x1, [weight1], out1, x2, [weight2], out2
// params:  those of rms_norm for 1, then those for 2
FUSEC_KERNEL void fusec_dual_rms_norm_f32(void* const* buffers, const int64_t* params) {
  fusec::dual_rms_norm<float>(buffers, params);
}
FUSEC_KERNEL void fusec_dual_rms_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::dual_rms_norm<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_dual_rms_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::dual_rms_norm<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_dual_rms_norm_f64(void* const* buffers, const int64_t* params) {
  fusec::dual_rms_norm_f64(buffers, params);
}

// sum = x + residual (rounded to the dtype), out = rms_norm of the unrounded sum
// buffers: x, residual, [weight [N]], out, sum (may be x or residual)
// params:  sizes[4], x strides[4], residual strides[4], out strides[4], sum strides[4], N,
//          eps (f64), weight_kind, weight_offset
FUSEC_KERNEL void fusec_add_rms_norm_f32(void* const* buffers, const int64_t* params) {
  fusec::write_plain<float, fusec::SumNormRows<float>>(buffers, params);
}
FUSEC_KERNEL void fusec_add_rms_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::write_plain<fusec::bf16, fusec::SumNormRows<fusec::bf16>>(buffers, params);
}
FUSEC_KERNEL void fusec_add_rms_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::write_plain<fusec::f16, fusec::SumNormRows<fusec::f16>>(buffers, params);
}
FUSEC_KERNEL void fusec_add_rms_norm_f64(void* const* buffers, const int64_t* params) {
  fusec::add_rms_norm_f64(buffers, params);
}

// norm_before_gate: out = rms_norm(x) * activation(gate), else out = rms_norm(x * activation(gate))
// buffers: x, [weight [N]], gate, out
// params:  sizes[4], x strides[4], gate strides[4], out strides[4], N, eps (f64), weight_kind,
//          weight_offset, activation (simd.h), norm_before_gate
FUSEC_KERNEL void fusec_gated_rms_norm_f32(void* const* buffers, const int64_t* params) {
  fusec::write_plain<float, fusec::GatedNormRows<float>>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_rms_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::write_plain<fusec::bf16, fusec::GatedNormRows<fusec::bf16>>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_rms_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::write_plain<fusec::f16, fusec::GatedNormRows<fusec::f16>>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_rms_norm_f64(void* const* buffers, const int64_t* params) {
  fusec::gated_rms_norm_f64(buffers, params);
}

// The same quantised, as `Scaling` of fusec/formats.py says. The result goes nowhere else unless
// with_plain; its strides are those of the codes otherwise.
// buffers: those of the plain kernel with, for out: [scale f32 [1] if it is given], codes, [scales
//          f32 or e8m0, unless they are given], [out if with_plain]
// params:  those of the plain kernel, then those of `QuantiseParams` in quantise_rows.h
#define FUSEC_QUANT(name, rows)                                                              \
  FUSEC_KERNEL void fusec_##name##_quant_f32(void* const* buffers, const int64_t* params) {  \
    fusec::write_quantised<float, fusec::rows<float>>(buffers, params);                      \
  }                                                                                          \
  FUSEC_KERNEL void fusec_##name##_quant_bf16(void* const* buffers, const int64_t* params) { \
    fusec::write_quantised<fusec::bf16, fusec::rows<fusec::bf16>>(buffers, params);          \
  }                                                                                          \
  FUSEC_KERNEL void fusec_##name##_quant_f16(void* const* buffers, const int64_t* params) {  \
    fusec::write_quantised<fusec::f16, fusec::rows<fusec::f16>>(buffers, params);            \
  }
FUSEC_QUANT(rms_norm, NormRows)
FUSEC_QUANT(add_rms_norm, SumNormRows)
FUSEC_QUANT(gated_rms_norm, GatedNormRows)
