// rope: rotary position embedding of the first `rotary` elements of every row.
#include <fusec/rotation.h>

namespace fusec {
namespace {

enum RopeParam { SIZES = 0, X = 4, COS = 8, SIN = 12, OUT = 16, ROTATION = 20 };

template <class T>
void rope(void* const* buffers, const int64_t* p) {
  const T* x = static_cast<const T*>(buffers[0]);
  T* out = static_cast<T*>(buffers[3]);
  Outer outer{p + SIZES};
  Rotation rotation(p + ROTATION);
  parallel_for(outer.rows(), grain_for(2 * rotation.depth), [&](int64_t begin, int64_t end, int) {
    AngleRow<T> cosines(rotation, buffers[1]), sines(rotation, buffers[2]);
    Scratch<T> spare(rotation.depth);
    for (int64_t row = begin; row < end; ++row) {
      const float* cosine = cosines.at(outer.offset(row, p + COS));
      const float* sine = sines.at(outer.offset(row, p + SIN));
      rotate_row<T>(rotation, x + outer.offset(row, p + X), cosine, sine, spare,
                    out + outer.offset(row, p + OUT));
    }
  });
}

void rope_f64(void* const* buffers, const int64_t* p) {
  const double* x = static_cast<const double*>(buffers[0]);
  double* out = static_cast<double*>(buffers[3]);
  Outer outer{p + SIZES};
  Rotation rotation(p + ROTATION);
  parallel_for(outer.rows(), grain_for(4 * rotation.depth), [&](int64_t begin, int64_t end, int) {
    Scratch<double> spare(rotation.depth);
    for (int64_t row = begin; row < end; ++row) {
      rotate_row_f64(rotation, x + outer.offset(row, p + X), buffers[1],
                     outer.offset(row, p + COS), buffers[2], outer.offset(row, p + SIN),
                     [](double value, int64_t) { return value; }, spare,
                     out + outer.offset(row, p + OUT));
    }
  });
}

}  // namespace
}  // namespace fusec

// Pairs (i, i + rotary/2), or (2i, 2i + 1) if interleaved, are turned by the angles of the tables;
// elements from `rotary` on are copied. With deinterleave, interleaved pairs are written in halves.
// buffers: x, cos, sin, out (may be x); stride 1 inside
// params:  sizes[4], x strides[4], cos strides[4], sin strides[4] (0 broadcasts), out strides[4], D,
//          rotary, interleaved, deinterleave, table_step (2 if a table holds each angle twice in a
//          row, else 1), table_kind (1 dtype of x, 2 f32)
FUSEC_KERNEL void fusec_rope_f32(void* const* buffers, const int64_t* params) {
  fusec::rope<float>(buffers, params);
}
FUSEC_KERNEL void fusec_rope_bf16(void* const* buffers, const int64_t* params) {
  fusec::rope<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_rope_f16(void* const* buffers, const int64_t* params) {
  fusec::rope<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_rope_f64(void* const* buffers, const int64_t* params) {
  fusec::rope_f64(buffers, params);
}
