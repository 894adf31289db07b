// index: rows picked by index operands, along adjacent axes. take (embedding, ONNX Gather) is the
// case of one axis.
#include <fusec/elements.h>

namespace fusec {
namespace {

constexpr int RANK = 6;  // of the index operands after broadcasting

enum IndexParam { OUTER, INNER_BYTES, AXES, INDEX_SIZES, OPERANDS = INDEX_SIZES + RANK };
// Per index operand: size of its axis of x, bytes of an index, strides[RANK].
constexpr int OPERAND_PARAMS = 2 + RANK;

void index(void* const* buffers, const int64_t* p) {
  const char* x = static_cast<const char*>(buffers[0]);
  int64_t axes = p[AXES], inner = p[INNER_BYTES];
  char* out = static_cast<char*>(buffers[1 + axes]);
  Dims<RANK> positions{p + INDEX_SIZES};
  int64_t count = positions.count(), rows = 1;
  for (int64_t axis = 0; axis < axes; ++axis) rows *= p[OPERANDS + axis * OPERAND_PARAMS];
  parallel_for(p[OUTER] * count, grain_for(inner / 16 + 8), [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t position = task % count, row = 0;
      for (int64_t axis = 0; axis < axes && row >= 0; ++axis) {
        const int64_t* operand = p + OPERANDS + axis * OPERAND_PARAMS;
        int64_t at = positions.offset(position, operand + 2);
        int64_t index = checked_index(read_index(buffers[1 + axis], operand[1], at), operand[0]);
        row = index < 0 ? -1 : row * operand[0] + index;
      }
      if (row >= 0) copy_bytes(out + task * inner, x + (task / count * rows + row) * inner, inner);
    }
  });
}

}  // namespace
}  // namespace fusec

// out[o, positions..., :] = x[o, i0[positions], i1[positions], ..., :]
// buffers: x (dense), index operands, out (dense)
// params:  outer rows, bytes of an inner row, number of index operands, sizes[6] of the positions,
//          then per operand: size of its axis, bytes of an index (1, 2, 4, 8), strides[6]
FUSEC_KERNEL void fusec_index(void* const* buffers, const int64_t* params) {
  fusec::index(buffers, params);
}
