// Two independent root-mean-square norms of one row, as MLA needs them: groups whose second index
// is 0 norm x1, the others x2. The first, or both, are brought into fp8 (FUSEC_QUANT, FUSEC_BOTH).
//
// The operands are slices of the rows of one projection: nothing is copied, and what lies beside
// them, such as the rotary part of the keys, is left where it is.
#include <fusec/hip_rows.h>

#if FUSEC_QUANT == 0
#define RESULTS X *__restrict y1, X *__restrict y2
#define RESULT_STRIDES i64 y1_stride, i64 y2_stride
#define LIMITS
#elif FUSEC_BOTH
#define RESULTS \
  u8 *__restrict codes1, f32 *__restrict scales1, u8 *__restrict codes2, f32 *__restrict scales2
#define RESULT_STRIDES                                                                    \
  i64 codes1_stride, i64 scale1_row, i64 scale1_step, i64 codes2_stride, i64 scale2_row, \
      i64 scale2_step
#define LIMITS , f32 limit, f32 upper_bound, f32 lower_bound
#else
#define RESULTS u8 *__restrict codes1, f32 *__restrict scales1, X *__restrict y2
#define RESULT_STRIDES i64 codes1_stride, i64 scale1_row, i64 scale1_step, i64 y2_stride
#define LIMITS , f32 limit, f32 upper_bound, f32 lower_bound
#endif

namespace fusec {

using X = Element<FUSEC_X>;
using W = Element<FUSEC_W>;

template <i32 LENGTH>
FUSEC_DEVICE void norm(Row<LENGTH, WIDTH<X>>& row, const X* x, const W* w, f32 eps) {
  row.read(x);
  Row<LENGTH, WIDTH<X>> weights;
  weights.read(w);
  row.scale_by(rsqrt(row.square_sum() / LENGTH + eps), weights, FUSEC_WEIGHT_OFFSET);
}

FUSEC_KERNEL(dual_rms_norm_rows, const X* __restrict x1, const W* __restrict w1,
             const X* __restrict x2, const W* __restrict w2, RESULTS, i64 x1_stride, i64 x2_stride,
             RESULT_STRIDES, f32 eps1, f32 eps2 LIMITS) {
  i64 index = group_x();
  if (group_y() == 0) {
    Row<FUSEC_N, WIDTH<X>> row;
    norm(row, x1 + index * x1_stride, w1, eps1);
#if FUSEC_QUANT == 0
    row.write(y1 + index * y1_stride);
#else
    Fp8Row to{codes1 + index * codes1_stride, scales1 + index * scale1_row, scale1_step, limit,
              upper_bound, lower_bound};
    row.write_fp8<static_cast<Quant>(FUSEC_QUANT), FUSEC_GROUP>(to);
#endif
  } else {
    Row<FUSEC_N2, WIDTH<X>> row;
    norm(row, x2 + index * x2_stride, w2, eps2);
#if FUSEC_QUANT == 0 || !FUSEC_BOTH
    row.write(y2 + index * y2_stride);
#else
    Fp8Row to{codes2 + index * codes2_stride, scales2 + index * scale2_row, scale2_step, limit,
              upper_bound, lower_bound};
    row.write_fp8<static_cast<Quant>(FUSEC_QUANT), FUSEC_GROUP>(to);
#endif
  }
}

}  // namespace fusec
