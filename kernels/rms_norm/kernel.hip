// Root-mean-square norm of a row, after the sum with a residual (FUSEC_ADD), and brought into fp8
// (FUSEC_QUANT), with the norm itself beside it (FUSEC_WITH_PLAIN): one group a row, which is read
// once and stays in registers.
//
// Everything is in f32 until it is stored. The variance is that of the sum before it is rounded, as
// vLLM's `fused_add_rms_norm`.
#include <fusec/hip_rows.h>

#if FUSEC_ADD
#define RESIDUAL const X *__restrict residual,
#define RESIDUAL_STRIDES , i64 residual_stride, i64 sum_stride
#define SUM X *__restrict sum,
#else
#define RESIDUAL
#define RESIDUAL_STRIDES
#define SUM
#endif

#if FUSEC_QUANT == 0
#define RESULTS X* __restrict y
#define RESULT_STRIDES , i64 y_stride
#define LIMITS
#else
#if FUSEC_WITH_PLAIN
#define RESULTS u8 *__restrict codes, f32 *__restrict scales, X *__restrict y
#define RESULT_STRIDES , i64 codes_stride, i64 scale_row, i64 scale_step, i64 y_stride
#else
#define RESULTS u8 *__restrict codes, f32 *__restrict scales
#define RESULT_STRIDES , i64 codes_stride, i64 scale_row, i64 scale_step
#endif
#define LIMITS , f32 limit, f32 upper_bound, f32 lower_bound
#endif

namespace fusec {

using X = Element<FUSEC_X>;
using W = Element<FUSEC_W>;

FUSEC_KERNEL(rms_norm_rows, const X* __restrict x, RESIDUAL const W* __restrict w, SUM RESULTS,
             i64 x_stride RESIDUAL_STRIDES RESULT_STRIDES, f32 eps LIMITS) {
  i64 index = group_x();
  Row<FUSEC_N, WIDTH<X>> row;
  row.read(x + index * x_stride);
  Row<FUSEC_N, WIDTH<X>> weights;
  weights.read(w);
#if FUSEC_ADD
  Row<FUSEC_N, WIDTH<X>> other;
  other.read(residual + index * residual_stride);
#pragma unroll
  for (i32 piece = 0; piece < row.PIECES; ++piece) {
#pragma unroll
    for (i32 i = 0; i < WIDTH<X>; ++i) row.values[piece][i] += other.values[piece][i];
  }
  row.write(sum + index * sum_stride);
#endif
  f32 scale = rsqrt(row.square_sum() / FUSEC_N + eps);
  row.scale_by(scale, weights, FUSEC_WEIGHT_OFFSET);
#if FUSEC_QUANT == 0 || FUSEC_WITH_PLAIN
  row.write(y + index * y_stride);
#endif
#if FUSEC_QUANT != 0
  Fp8Row to{codes + index * codes_stride, scales + index * scale_row, scale_step, limit,
            upper_bound, lower_bound};
  row.write_fp8<static_cast<Quant>(FUSEC_QUANT), FUSEC_GROUP>(to);
#endif
}

}  // namespace fusec
