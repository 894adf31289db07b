// grouped_mm: consecutive stretches of rows, each with its own packed weight.
#include <fusec/gemm.h>

namespace fusec {
namespace {

enum GroupedParam { T_ROWS, K, N, GROUPS, X_STRIDE, OUT_STRIDE, OFFSET_BYTES, PRECISION };

template <class T>
void grouped_mm(void* const* buffers, const int64_t* p) {
  const T* x = static_cast<const T*>(buffers[0]);
  const T* packed = static_cast<const T*>(buffers[1]);
  const void* offsets = buffers[2];
  T* out = static_cast<T*>(buffers[3]);
  int64_t rows = p[T_ROWS], k = p[K], n = p[N], stride = p[X_STRIDE];
  int64_t size = ceil_div(n, PANEL) * panel_size<T>(k);
  const int64_t out_strides[OUTER_DIMS] = {0, 0, 0, p[OUT_STRIDE]};
  int64_t begin = 0;
  for (int64_t group = 0; group < p[GROUPS]; ++group) {
    int64_t end = p[OFFSET_BYTES] == 8 ? static_cast<const int64_t*>(offsets)[group]
                                       : static_cast<const int32_t*>(offsets)[group];
    if (end < begin || end > rows) {
      fusec_raise(FUSEC_INDEX_OUT_OF_RANGE, end, rows);
      return;
    }
    const int64_t sizes[OUTER_DIMS] = {1, 1, 1, max_of<int64_t>(1, end - begin)};
    const T* source = x + begin * stride;
    packed_gemm<T>(
        end - begin, n, k, packed + group * size,
        [=](int64_t row, Stretch stretch, Activations<T>* target) {
          fill_block_row(source + row * stride + stretch.begin, 1, stretch.count, target);
        },
        Epilogue<T>{Outer{sizes}, out + begin * p[OUT_STRIDE], out_strides}, p[PRECISION]);
    begin = end;
  }
  // Rows that belong to no group.
  for (int64_t row = begin; row < rows; ++row) {
    memset(out + row * p[OUT_STRIDE], 0, static_cast<size_t>(n) * sizeof(T));
  }
}

}  // namespace
}  // namespace fusec

// Rows [offsets[e-1], offsets[e]) of x are multiplied with weight e; rows after the last are zero.
// buffers: x [T, K], weights [E] packed one after the other (each as for linear), end offsets [E],
//          out [T, N]
// params:  T, K, N, E, row strides of x and out, offset_bytes (4 or 8), precision (gemm.h
//          Precision, for f32)
FUSEC_KERNEL void fusec_grouped_mm_f32(void* const* buffers, const int64_t* params) {
  fusec::grouped_mm<float>(buffers, params);
}
FUSEC_KERNEL void fusec_grouped_mm_bf16(void* const* buffers, const int64_t* params) {
  fusec::grouped_mm<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_grouped_mm_f16(void* const* buffers, const int64_t* params) {
  fusec::grouped_mm<fusec::f16>(buffers, params);
}
