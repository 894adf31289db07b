// What the f64 forms of the kernels share. They are plain loops: a model in f64 is run to check
// another one, not to be fast.
#pragma once

#include <fusec/rows.h>

#include <math.h>

namespace fusec {

// Element i of a weight: ones, f64, f32, bf16 or f16 by WeightKind.
FUSEC_INLINE double weight_f64(const void* weight, int64_t kind, int64_t i) {
  switch (kind) {
    case WEIGHT_SAME:
      return static_cast<const double*>(weight)[i];
    case WEIGHT_F32:
      return static_cast<const float*>(weight)[i];
    case WEIGHT_BF16:
      return to_float(static_cast<const bf16*>(weight)[i]);
    case WEIGHT_F16:
      return to_float(static_cast<const f16*>(weight)[i]);
    default:
      return 1.0;
  }
}

FUSEC_INLINE double sigmoid_f64(double x) { return 1.0 / (1.0 + ::exp(-x)); }

inline double activate_f64(int64_t activation, double x) {
  switch (activation) {
    case ACTIVATION_SILU:
      return x * sigmoid_f64(x);
    case ACTIVATION_GELU:
      return 0.5 * x * (1.0 + ::erf(x * 0.70710678118654752440));
    case ACTIVATION_GELU_TANH:
      return 0.5 * x * (1.0 + ::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case ACTIVATION_RELU:
      return x < 0.0 ? 0.0 : x;
    case ACTIVATION_RELU_SQUARED:
      return x < 0.0 ? 0.0 : x * x;
    case ACTIVATION_SIGMOID:
      return sigmoid_f64(x);
    case ACTIVATION_QUICK_GELU:
      return x * sigmoid_f64(1.702 * x);
    case ACTIVATION_RELU6:
      return x < 0.0 ? 0.0 : x > 6.0 ? 6.0 : x;
    case ACTIVATION_HARDSWISH:
      return x * (x < -3.0 ? 0.0 : x > 3.0 ? 6.0 : x + 3.0) / 6.0;
    default:
      return x;
  }
}

}  // namespace fusec
