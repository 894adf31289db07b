// gather: out[i, j, k] = x[i, index[i, j, k], k] (torch.gather), for elements of 1, 2, 4 or 8 bytes.
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

template <class Item, class Index>
void gather(void* const* buffers, const int64_t* p) {
  const Item* x = static_cast<const Item*>(buffers[0]);
  const Index* indices = static_cast<const Index*>(buffers[1]);
  Item* out = static_cast<Item*>(buffers[2]);
  int64_t n = p[SIZES + RANK - 1], size = p[AXIS_SIZE], step = p[AXIS_STRIDE];
  int64_t x_step = p[X + RANK - 1], index_step = p[INDEX + RANK - 1], out_step = p[OUT + RANK - 1];
  Dims<RANK - 1> rows{p + SIZES};
  if (!index_fits(p + SIZES, p + X_SIZES, RANK)) return;
  parallel_for(rows.count(), grain_for(2 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const Item* from = x + rows.offset(row, p + X);
      const Index* at = indices + rows.offset(row, p + INDEX);
      Item* to = out + rows.offset(row, p + OUT);
      for (int64_t i = 0; i < n; ++i) {
        int64_t index = checked_index(at[i * index_step], size);
        if (index >= 0) to[i * out_step] = from[i * x_step + index * step];
      }
    }
  });
}

template <class Item>
void gather_items(void* const* buffers, const int64_t* p) {
  switch (p[INDEX_BYTES]) {
    case 8:
      return gather<Item, int64_t>(buffers, p);
    case 4:
      return gather<Item, int32_t>(buffers, p);
    case 2:
      return gather<Item, int16_t>(buffers, p);
    default:
      return gather<Item, int8_t>(buffers, p);
  }
}

}  // namespace
}  // namespace fusec

// buffers: x, index, out
// params:  bytes of an element, bytes of an index, size and stride of x along the axis, sizes[8] of
//          the index, x strides[8] with 0 for the axis, index strides[8], out strides[8], sizes[8]
//          of x with that of the index for the axis
FUSEC_KERNEL void fusec_gather(void* const* buffers, const int64_t* params) {
  switch (params[fusec::ITEM_BYTES]) {
    case 8:
      return fusec::gather_items<uint64_t>(buffers, params);
    case 4:
      return fusec::gather_items<uint32_t>(buffers, params);
    case 2:
      return fusec::gather_items<uint16_t>(buffers, params);
    default:
      return fusec::gather_items<uint8_t>(buffers, params);
  }
}
