// rms_norm and its relatives: with a residual added before, with a gate after, two at once.
#include <fusec/double.h>

namespace fusec {
namespace {

FUSEC_INLINE float inverse_rms(float sum_of_squares, int64_t n, float eps) {
  return 1.0f / __builtin_sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

template <class T>
FUSEC_INLINE void normalise_row(const T* x, const float* weight, int64_t n, float eps, T* out) {
  float scale = inverse_rms(
      sum_squares(n, [=](int64_t i, int count) { return load_some(x + i, count); }), n, eps);
  for_vectors(n, [=](int64_t i, int count) {
    Vec value = load_some(x + i, count) * set(scale) * load_some(weight + i, count);
    store_some(out + i, value, count);
  });
}

// One normalisation of a strided operand: sizes[4], x strides[4], out strides[4], N, eps,
// weight kind, weight offset.
struct NormParams {
  enum { SIZES = 0, X = 4, OUT = 8, N = 12, EPS, WEIGHT, WEIGHT_OFFSET, COUNT };
};

template <class T>
int rms_norm(void* const* buffers, const int64_t* params) {
  int next = 0;
  const T* x = static_cast<const T*>(buffers[next++]);
  const void* weight = params[NormParams::WEIGHT] ? buffers[next++] : nullptr;
  T* out = static_cast<T*>(buffers[next++]);
  Outer outer{params + NormParams::SIZES};
  int64_t n = params[NormParams::N];
  float eps = f32_param(params[NormParams::EPS]);
  Scratch<float> wide(n);
  widen_weight<T>(weight, params[NormParams::WEIGHT],
                  static_cast<float>(params[NormParams::WEIGHT_OFFSET]), n, wide);
  parallel_for(outer.rows(), grain_for(n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      normalise_row(x + outer.offset(row, params + NormParams::X), wide, n, eps,
                    out + outer.offset(row, params + NormParams::OUT));
    }
  });
  return next;
}

template <class T>
void dual_rms_norm(void* const* buffers, const int64_t* params) {
  int used = rms_norm<T>(buffers, params);
  rms_norm<T>(buffers + used, params + NormParams::COUNT);
}

struct AddParams {
  enum { SIZES = 0, X = 4, RESIDUAL = 8, OUT = 12, SUM = 16, N = 20, EPS, WEIGHT, WEIGHT_OFFSET };
};

template <class T>
void add_rms_norm(void* const* buffers, const int64_t* params) {
  int next = 0;
  const T* x = static_cast<const T*>(buffers[next++]);
  const T* residual = static_cast<const T*>(buffers[next++]);
  const void* weight = params[AddParams::WEIGHT] ? buffers[next++] : nullptr;
  T* out = static_cast<T*>(buffers[next++]);
  T* sum = static_cast<T*>(buffers[next]);
  Outer outer{params + AddParams::SIZES};
  int64_t n = params[AddParams::N];
  float eps = f32_param(params[AddParams::EPS]);
  Scratch<float> wide(n);
  widen_weight<T>(weight, params[AddParams::WEIGHT],
                  static_cast<float>(params[AddParams::WEIGHT_OFFSET]), n, wide);
  parallel_for(outer.rows(), grain_for(2 * n), [&](int64_t begin, int64_t end, int) {
    Scratch<float> row_sum(n);
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, params + AddParams::X);
      const T* b = residual + outer.offset(row, params + AddParams::RESIDUAL);
      T* o = out + outer.offset(row, params + AddParams::OUT);
      T* s = sum + outer.offset(row, params + AddParams::SUM);
      // The variance and the result use the sum before it is rounded.
      float scale = inverse_rms(sum_squares(n,
                                            [&](int64_t i, int count) {
                                              Vec value =
                                                  load_some(a + i, count) + load_some(b + i, count);
                                              store_some(row_sum + i, value, count);
                                              store_some(s + i, value, count);
                                              return value;
                                            }),
                                n, eps);
      for_vectors(n, [&](int64_t i, int count) {
        Vec value = load_some(row_sum + i, count) * set(scale) * load_some(wide + i, count);
        store_some(o + i, value, count);
      });
    }
  });
}

struct GatedParams {
  enum { SIZES = 0, X = 4, GATE = 8, OUT = 12, N = 16, EPS, WEIGHT, WEIGHT_OFFSET, ACTIVATION,
         NORM_BEFORE_GATE };
};

template <class T>
void gated_rms_norm(void* const* buffers, const int64_t* params) {
  int next = 0;
  const T* x = static_cast<const T*>(buffers[next++]);
  const void* weight = params[GatedParams::WEIGHT] ? buffers[next++] : nullptr;
  const T* gate = static_cast<const T*>(buffers[next++]);
  T* out = static_cast<T*>(buffers[next]);
  Outer outer{params + GatedParams::SIZES};
  int64_t n = params[GatedParams::N], activation = params[GatedParams::ACTIVATION];
  float eps = f32_param(params[GatedParams::EPS]);
  bool norm_first = params[GatedParams::NORM_BEFORE_GATE] != 0;
  Scratch<float> wide(n);
  widen_weight<T>(weight, params[GatedParams::WEIGHT],
                  static_cast<float>(params[GatedParams::WEIGHT_OFFSET]), n, wide);
  parallel_for(outer.rows(), grain_for(8 * n), [&](int64_t begin, int64_t end, int) {
    Scratch<float> gated(n);
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, params + GatedParams::X);
      const T* g = gate + outer.offset(row, params + GatedParams::GATE);
      T* o = out + outer.offset(row, params + GatedParams::OUT);
      if (norm_first) {
        float scale = inverse_rms(
            sum_squares(n, [=](int64_t i, int count) { return load_some(a + i, count); }), n, eps);
        for_vectors(n, [&](int64_t i, int count) {
          Vec value = load_some(a + i, count) * set(scale) * load_some(wide + i, count);
          store_some(o + i, value * activate(activation, load_some(g + i, count)), count);
        });
        continue;
      }
      for_vectors(n, [&](int64_t i, int count) {
        Vec value = load_some(a + i, count) * activate(activation, load_some(g + i, count));
        store_some(gated + i, value, count);
      });
      const float* values = gated;
      float scale = inverse_rms(
          sum_squares(n, [=](int64_t i, int count) { return load_some(values + i, count); }), n,
          eps);
      for_vectors(n, [&](int64_t i, int count) {
        store_some(o + i, load_some(values + i, count) * set(scale) * load_some(wide + i, count),
                   count);
      });
    }
  });
}

// ---- f64 ----

template <class Value>
FUSEC_INLINE double inverse_rms_f64(int64_t n, double eps, const Value& value) {
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += value(i) * value(i);
  return 1.0 / ::sqrt(squares / static_cast<double>(n) + eps);
}

int rms_norm_f64(void* const* buffers, const int64_t* params) {
  int next = 0;
  const double* x = static_cast<const double*>(buffers[next++]);
  int64_t kind = params[NormParams::WEIGHT], n = params[NormParams::N];
  const void* weight = kind ? buffers[next++] : nullptr;
  double* out = static_cast<double*>(buffers[next++]);
  Outer outer{params + NormParams::SIZES};
  double eps = f64_param(params[NormParams::EPS]);
  double offset = kind ? static_cast<double>(params[NormParams::WEIGHT_OFFSET]) : 0.0;
  parallel_for(outer.rows(), grain_for(8 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, params + NormParams::X);
      double* o = out + outer.offset(row, params + NormParams::OUT);
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
  rms_norm_f64(buffers + used, params + NormParams::COUNT);
}

void add_rms_norm_f64(void* const* buffers, const int64_t* params) {
  int next = 0;
  const double* x = static_cast<const double*>(buffers[next++]);
  const double* residual = static_cast<const double*>(buffers[next++]);
  int64_t kind = params[AddParams::WEIGHT], n = params[AddParams::N];
  const void* weight = kind ? buffers[next++] : nullptr;
  double* out = static_cast<double*>(buffers[next++]);
  double* sum = static_cast<double*>(buffers[next]);
  Outer outer{params + AddParams::SIZES};
  double eps = f64_param(params[AddParams::EPS]);
  double offset = kind ? static_cast<double>(params[AddParams::WEIGHT_OFFSET]) : 0.0;
  parallel_for(outer.rows(), grain_for(8 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, params + AddParams::X);
      const double* b = residual + outer.offset(row, params + AddParams::RESIDUAL);
      double* o = out + outer.offset(row, params + AddParams::OUT);
      double* s = sum + outer.offset(row, params + AddParams::SUM);
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
  int64_t kind = params[GatedParams::WEIGHT], n = params[GatedParams::N];
  const void* weight = kind ? buffers[next++] : nullptr;
  const double* gate = static_cast<const double*>(buffers[next++]);
  double* out = static_cast<double*>(buffers[next]);
  Outer outer{params + GatedParams::SIZES};
  double eps = f64_param(params[GatedParams::EPS]);
  double offset = kind ? static_cast<double>(params[GatedParams::WEIGHT_OFFSET]) : 0.0;
  int64_t activation = params[GatedParams::ACTIVATION];
  bool norm_first = params[GatedParams::NORM_BEFORE_GATE] != 0;
  parallel_for(outer.rows(), grain_for(40 * n), [&](int64_t begin, int64_t end, int) {
    Scratch<double> factors(n);
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, params + GatedParams::X);
      const double* g = gate + outer.offset(row, params + GatedParams::GATE);
      double* o = out + outer.offset(row, params + GatedParams::OUT);
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
  fusec::rms_norm<float>(buffers, params);
}
FUSEC_KERNEL void fusec_rms_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::rms_norm<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_rms_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::rms_norm<fusec::f16>(buffers, params);
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
  fusec::add_rms_norm<float>(buffers, params);
}
FUSEC_KERNEL void fusec_add_rms_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::add_rms_norm<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_add_rms_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::add_rms_norm<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_add_rms_norm_f64(void* const* buffers, const int64_t* params) {
  fusec::add_rms_norm_f64(buffers, params);
}

// norm_before_gate: out = rms_norm(x) * activation(gate), else out = rms_norm(x * activation(gate))
// buffers: x, [weight [N]], gate, out
// params:  sizes[4], x strides[4], gate strides[4], out strides[4], N, eps (f64), weight_kind,
//          weight_offset, activation (simd.h), norm_before_gate
FUSEC_KERNEL void fusec_gated_rms_norm_f32(void* const* buffers, const int64_t* params) {
  fusec::gated_rms_norm<float>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_rms_norm_bf16(void* const* buffers, const int64_t* params) {
  fusec::gated_rms_norm<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_rms_norm_f16(void* const* buffers, const int64_t* params) {
  fusec::gated_rms_norm<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_rms_norm_f64(void* const* buffers, const int64_t* params) {
  fusec::gated_rms_norm_f64(buffers, params);
}
