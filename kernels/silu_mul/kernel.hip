// Gated activations, act(gate) * up, brought into fp8 if FUSEC_QUANT says so. FUSEC_N elements are
// one group's: a whole row where a scale is the row's, else a part of one, and FUSEC_ROW is the
// length of a row.
//
// Gate and up may be halves of one row: each has a stride between rows. Everything is in f32 until
// it is stored; nothing is rounded before it is quantised.
#include <fusec/hip_rows.h>

#if FUSEC_QUANT == 0
#define RESULTS X* __restrict y
#define RESULT_STRIDES i64 y_stride
#define LIMITS
#else
#define RESULTS u8 *__restrict codes, f32 *__restrict scales
#define RESULT_STRIDES i64 codes_stride, i64 scale_row, i64 scale_step
#define LIMITS , f32 limit, f32 upper_bound, f32 lower_bound
#endif

namespace fusec {

using X = Element<FUSEC_X>;

enum Activation : i32 { SILU = 0, GELU = 1, GELU_TANH = 2, SWIGLU_OAI = 3 };

FUSEC_DEVICE f32 sigmoid(f32 x) { return reciprocal(1.0f + exp2(x * -1.4426950408889634f)); }

// `alpha` and `bound` are those of gpt-oss's SwiGLU.
FUSEC_DEVICE f32 gated(f32 gate, f32 up, f32 alpha, f32 bound) {
  constexpr Activation activation = static_cast<Activation>(FUSEC_ACTIVATION);
  if constexpr (activation == SILU) return gate * sigmoid(gate) * up;
  if constexpr (activation == GELU) {
    return 0.5f * gate * (1.0f + erf(gate * 0.7071067811865476f)) * up;
  }
  if constexpr (activation == GELU_TANH) {
    f32 inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
    return gate * sigmoid(2.0f * inner) * up;
  }
  gate = gate > bound ? bound : gate;  // NaN stays NaN
  return gate * sigmoid(alpha * gate) * (clamp(up, -bound, bound) + 1.0f);
}

template <i32 LENGTH>
FUSEC_DEVICE void activate(Row<LENGTH, WIDTH<X>>& row, const X* gate, const X* up, f32 alpha,
                           f32 bound) {
  row.read(gate);
#pragma unroll
  for (i32 piece = 0; piece < row.PIECES; ++piece) {
    f32 other[WIDTH<X>];
    row.read_piece(other, up, piece);
#pragma unroll
    for (i32 i = 0; i < WIDTH<X>; ++i) {
      // Beyond the row both are zero, and so is the result of every activation.
      row.values[piece][i] = gated(row.values[piece][i], other[i], alpha, bound);
    }
  }
}

FUSEC_KERNEL(gated_activation_rows, const X* __restrict gate, const X* __restrict up, RESULTS,
             i64 gate_stride, i64 up_stride, RESULT_STRIDES, f32 alpha, f32 bound LIMITS) {
  i64 index = group_x();
  i64 begin = group_y() * FUSEC_N;
  gate += index * gate_stride + begin;
  up += index * up_stride + begin;
  auto finish = [&](auto& row) {
    activate(row, gate, up, alpha, bound);
#if FUSEC_QUANT == 0
    row.write(y + index * y_stride + begin);
#else
    f32* first = scales + index * scale_row;
    if constexpr (FUSEC_QUANT == GROUP) first += begin / FUSEC_GROUP * scale_step;
    Fp8Row to{codes + index * codes_stride + begin, first, scale_step, limit, upper_bound,
              lower_bound};
    row.template write_fp8<static_cast<Quant>(FUSEC_QUANT), FUSEC_GROUP>(to);
#endif
  };
  constexpr i32 rest = FUSEC_ROW % FUSEC_N;
  if (rest == 0 || begin + FUSEC_N <= FUSEC_ROW) {
    Row<FUSEC_N, WIDTH<X>> row;
    finish(row);
  } else {
    Row<rest == 0 ? FUSEC_N : rest, WIDTH<X>> row;  // the last part of a row is shorter
    finish(row);
  }
}

}  // namespace fusec
