// gather: out[i, j, k] = x[i, index[i, j, k], k] (torch.gather), for elements of any size.
#include <fusec/elements.h>

namespace fusec {
namespace {

constexpr int RANK = 8;

enum GatherParam {
  ITEM_BYTES,
  INDEX_BYTES,
  AXIS_SIZE,
  AXIS_STRIDE,
  SIZES,
  X = SIZES + RANK,
  INDEX = X + RANK,
  OUT = INDEX + RANK,
  X_SIZES = OUT + RANK,
};

void gather(void* const* buffers, const int64_t* p) {
  const char* x = static_cast<const char*>(buffers[0]);
  const void* indices = buffers[1];
  char* out = static_cast<char*>(buffers[2]);
  int64_t bytes = p[ITEM_BYTES], n = p[SIZES + RANK - 1];
  Dims<RANK - 1> rows{p + SIZES};
  if (!index_fits(p + SIZES, p + X_SIZES, RANK)) return;
  parallel_for(rows.count(), grain_for(4 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t from = rows.offset(row, p + X), at = rows.offset(row, p + INDEX);
      int64_t to = rows.offset(row, p + OUT);
      for (int64_t i = 0; i < n; ++i) {
        int64_t index = checked_index(
            read_index(indices, p[INDEX_BYTES], at + i * p[INDEX + RANK - 1]), p[AXIS_SIZE]);
        if (index < 0) continue;
        int64_t source = from + i * p[X + RANK - 1] + index * p[AXIS_STRIDE];
        copy_bytes(out + (to + i * p[OUT + RANK - 1]) * bytes, x + source * bytes, bytes);
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// buffers: x, index, out
// params:  bytes of an element, bytes of an index, size and stride of x along the axis, sizes[8] of
//          the index, x strides[8] with 0 for the axis, index strides[8], out strides[8], sizes[8]
//          of x with that of the index for the axis
FUSEC_KERNEL void fusec_gather(void* const* buffers, const int64_t* params) {
  fusec::gather(buffers, params);
}
