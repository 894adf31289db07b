// scatter and index_put: a copy of x with elements replaced by, or combined with, others.
//
// Where several elements meet, they do so in the order of the source, so that threads may only
// share the work along dims in which they cannot meet.
#include <fusec/elements.h>

namespace fusec {
namespace {

constexpr int RANK = 8;

// A dense copy, in pieces of a page or more.
void copy_all(const void* source, void* target, int64_t bytes) {
  if (source == target) return;
  parallel_for(ceil_div(bytes, 65536), 1, [&](int64_t begin, int64_t end, int) {
    int64_t from = begin * 65536, to = min_of(bytes, end * 65536);
    memcpy(static_cast<char*>(target) + from, static_cast<const char*>(source) + from,
           static_cast<size_t>(to - from));
  });
}

enum ScatterParam {
  COUNT,
  HOW,
  INDEX_BYTES,
  AXIS_IS_LAST,
  AXIS_SIZE,
  AXIS_STRIDE,
  SIZES,
  OUT = SIZES + RANK,
  INDEX = OUT + RANK,
  SOURCE = INDEX + RANK,
  OUT_SIZES = SOURCE + RANK,
};

template <class T>
void scatter(void* const* buffers, const int64_t* p) {
  const void* indices = buffers[1];
  const T* source = static_cast<const T*>(buffers[2]);
  T* out = static_cast<T*>(buffers[3]);
  copy_all(buffers[0], out, p[COUNT] * static_cast<int64_t>(sizeof(T)));
  int64_t n = p[SIZES + RANK - 1];
  Dims<RANK - 1> rows{p + SIZES};
  if (!index_fits(p + SIZES, p + OUT_SIZES, RANK)) return;
  auto run = [&](int64_t row, int64_t begin, int64_t end) {
    int64_t to = rows.offset(row, p + OUT), at = rows.offset(row, p + INDEX);
    int64_t from = rows.offset(row, p + SOURCE);
    for (int64_t i = begin; i < end; ++i) {
      int64_t index = checked_index(
          read_index(indices, p[INDEX_BYTES], at + i * p[INDEX + RANK - 1]), p[AXIS_SIZE]);
      if (index < 0) continue;
      combine(out + to + i * p[OUT + RANK - 1] + index * p[AXIS_STRIDE],
              source[from + i * p[SOURCE + RANK - 1]], p[HOW]);
    }
  };
  int64_t count = rows.count();
  if (p[AXIS_IS_LAST]) {
    parallel_for(count, grain_for(4 * n), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) run(row, 0, n);
    });
  } else {
    parallel_for(n, grain_for(4 * count), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = 0; row < count; ++row) run(row, begin, end);
    });
  }
}

constexpr int INDEX_RANK = 6;

enum PutParam {
  PUT_OUTER,
  PUT_INNER,
  PUT_ADD,
  PUT_VALUE_OUTER,
  PUT_VALUE_INNER,
  PUT_AXES,
  PUT_SIZES,
  PUT_VALUES = PUT_SIZES + INDEX_RANK,
  PUT_OPERANDS = PUT_VALUES + INDEX_RANK,
};
constexpr int OPERAND_PARAMS = 2 + INDEX_RANK;

template <class T>
void index_put(void* const* buffers, const int64_t* p) {
  const T* values = static_cast<const T*>(buffers[1]);
  int64_t axes = p[PUT_AXES], inner = p[PUT_INNER], outer = p[PUT_OUTER];
  T* out = static_cast<T*>(buffers[2 + axes]);
  int64_t rows = 1;
  for (int64_t axis = 0; axis < axes; ++axis) rows *= p[PUT_OPERANDS + axis * OPERAND_PARAMS];
  copy_all(buffers[0], out, outer * rows * inner * static_cast<int64_t>(sizeof(T)));
  Dims<INDEX_RANK> positions{p + PUT_SIZES};
  int64_t count = positions.count(), how = p[PUT_ADD] ? COMBINE_ADD : COMBINE_REPLACE;
  // A task owns part of every inner row of one outer row, and goes through all positions in order.
  constexpr int64_t PIECE = 256;
  int64_t pieces = ceil_div(inner, PIECE);
  parallel_for(outer * pieces, grain_for(count * min_of(inner, PIECE)),
               [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t o = task / pieces, first = task % pieces * PIECE;
      int64_t last = min_of(inner, first + PIECE);
      for (int64_t position = 0; position < count; ++position) {
        int64_t row = 0;
        for (int64_t axis = 0; axis < axes && row >= 0; ++axis) {
          const int64_t* operand = p + PUT_OPERANDS + axis * OPERAND_PARAMS;
          int64_t at = positions.offset(position, operand + 2);
          int64_t index = checked_index(read_index(buffers[2 + axis], operand[1], at), operand[0]);
          row = index < 0 ? -1 : row * operand[0] + index;
        }
        if (row < 0) continue;
        T* target = out + (o * rows + row) * inner;
        const T* value = values + o * p[PUT_VALUE_OUTER] + positions.offset(position, p + PUT_VALUES);
        for (int64_t i = first; i < last; ++i) {
          combine(target + i, value[i * p[PUT_VALUE_INNER]], how);
        }
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// out = x, then for every element of the index out[.., index, ..] = combine(that, source)
// buffers: x (dense), index, source, out (dense; may be x)
// params:  elements of x, combine (0 replace, 1 add, 2 multiply, 3 max, 4 min), bytes of an index,
//          whether the axis is the last, size and stride of out along the axis, sizes[8] of the
//          index, out strides[8] with 0 for the axis, index strides[8], source strides[8], sizes[8]
//          of out with that of the index for the axis
FUSEC_FOR_ALL(scatter, fusec::scatter)

// out = x, then out[o, i0[p], i1[p], ..., :] = or += values[o, p, :] for every position p
// buffers: x (dense), values, index operands, out (dense; may be x)
// params:  outer rows, inner elements, accumulate, strides of the values along outer rows and inner
//          elements (0 broadcasts), number of index operands, sizes[6] of the positions, strides[6]
//          of the values along the positions, then per operand: size of its axis, bytes of an index,
//          strides[6]
FUSEC_FOR_ALL(index_put, fusec::index_put)
