// matmul: batches of matrices, both operands with any strides.
#include <fusec/gemm.h>

namespace fusec {
namespace {

enum MatmulParam {
  BATCH = 0,
  A_BATCH = 4,
  B_BATCH = 8,
  OUT_BATCH = 12,
  M = 16,
  N,
  K,
  A_ROW,
  A_COLUMN,
  B_ROW,
  B_COLUMN,
  OUT_ROW,
  HAS_BIAS,
};

template <class T, class Out = T>
void matmul(void* const* buffers, const int64_t* p) {
  const T* a = static_cast<const T*>(buffers[0]);
  const T* b = static_cast<const T*>(buffers[1]);
  const T* bias = p[HAS_BIAS] ? static_cast<const T*>(buffers[2]) : nullptr;
  Out* out = static_cast<Out*>(buffers[p[HAS_BIAS] ? 3 : 2]);
  Outer batches{p + BATCH};
  int64_t m = p[M], n = p[N], k = p[K];
  if (m == 0 || n == 0) return;
  // Panels of b are packed by the task that multiplies with them.
  int64_t panels = ceil_div(n, PANEL), task_panels = panels_per_task(panels, batches.count());
  int64_t groups = ceil_div(panels, task_panels);
  int64_t pitch = block_pitch<T>(k), block_rows = min_of(m, TILE_ROWS);
  const int64_t row_sizes[OUTER_DIMS] = {1, 1, 1, m};
  const int64_t out_strides[OUTER_DIMS] = {0, 0, 0, p[OUT_ROW]};
  parallel_for(
      batches.rows() * groups, grain_for(m * k * task_panels * 2), [&](int64_t begin, int64_t end, int) {
        Scratch<T> packed(task_panels * panel_size<T>(k));
        Scratch<Activations<T>> block(block_rows * pitch);
        alignas(64) float c[TILE_ROWS * PANEL];
        for (int64_t task = begin; task < end; ++task) {
          int64_t batch = task / groups, first = task % groups * task_panels;
          int64_t last = min_of(panels, first + task_panels);
          const T* a_matrix = a + batches.offset(batch, p + A_BATCH);
          const T* b_matrix = b + batches.offset(batch, p + B_BATCH);
          Epilogue<T, Out> epilogue{Outer{row_sizes}, out + batches.offset(batch, p + OUT_BATCH),
                                    out_strides, bias};
          for (int64_t panel = first; panel < last; ++panel) {
            pack_panel(b_matrix + panel * PANEL * p[B_COLUMN], p[B_ROW], p[B_COLUMN], k,
                       min_of<int64_t>(PANEL, n - panel * PANEL),
                       packed + (panel - first) * panel_size<T>(k));
          }
          for (int64_t row = 0; row < m; row += block_rows) {
            int64_t rows = min_of(block_rows, m - row);
            for (int64_t i = 0; i < rows; ++i) {
              fill_block_row(a_matrix + (row + i) * p[A_ROW], p[A_COLUMN], k, block + i * pitch);
            }
            for (int64_t panel = first; panel < last; ++panel) {
              panel_product(block, pitch, rows, packed + (panel - first) * panel_size<T>(k),
                            padded_depth<T>(k), c);
              epilogue.write(c, row, rows, panel * PANEL,
                             min_of<int64_t>(PANEL, n - panel * PANEL));
            }
          }
        }
      });
}

// f64 and integers: one row of the result at a time, in the dtype itself. Integers wrap around.
template <class T>
void simple_matmul(void* const* buffers, const int64_t* p) {
  const T* a = static_cast<const T*>(buffers[0]);
  const T* b = static_cast<const T*>(buffers[1]);
  const T* bias = p[HAS_BIAS] ? static_cast<const T*>(buffers[2]) : nullptr;
  T* out = static_cast<T*>(buffers[p[HAS_BIAS] ? 3 : 2]);
  Outer batches{p + BATCH};
  int64_t m = p[M], n = p[N], k = p[K];
  parallel_for(batches.rows() * m, grain_for(n * k), [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t batch = task / m, row = task % m;
      const T* x = a + batches.offset(batch, p + A_BATCH) + row * p[A_ROW];
      const T* y = b + batches.offset(batch, p + B_BATCH);
      T* target = out + batches.offset(batch, p + OUT_BATCH) + row * p[OUT_ROW];
      if (p[B_COLUMN] == 1) {
        for (int64_t j = 0; j < n; ++j) target[j] = bias ? bias[j] : T(0);
        for (int64_t i = 0; i < k; ++i) {
          T factor = x[i * p[A_COLUMN]];
          const T* line = y + i * p[B_ROW];
          for (int64_t j = 0; j < n; ++j) target[j] += factor * line[j];
        }
        continue;
      }
      for (int64_t j = 0; j < n; ++j) {
        T sum = bias ? bias[j] : T(0);
        const T* column = y + j * p[B_COLUMN];
        for (int64_t i = 0; i < k; ++i) sum += x[i * p[A_COLUMN]] * column[i * p[B_ROW]];
        target[j] = sum;
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// out[batch] = a[batch] @ b[batch] (+ bias along columns)
// buffers: a, b, [bias [N]], out
// params:  batch sizes[4], a batch strides[4], b batch strides[4] (0 broadcasts), out batch
//          strides[4], M, N, K, a strides (m, k), b strides (k, n), out stride of a row (columns
//          have stride 1), has_bias
FUSEC_KERNEL void fusec_matmul_f32(void* const* buffers, const int64_t* params) {
  fusec::matmul<float>(buffers, params);
}
FUSEC_KERNEL void fusec_matmul_bf16(void* const* buffers, const int64_t* params) {
  fusec::matmul<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_matmul_f16(void* const* buffers, const int64_t* params) {
  fusec::matmul<fusec::f16>(buffers, params);
}
// out is f32, the other operands as named
FUSEC_KERNEL void fusec_matmul_bf16_f32(void* const* buffers, const int64_t* params) {
  fusec::matmul<fusec::bf16, float>(buffers, params);
}
FUSEC_KERNEL void fusec_matmul_f16_f32(void* const* buffers, const int64_t* params) {
  fusec::matmul<fusec::f16, float>(buffers, params);
}
FUSEC_KERNEL void fusec_matmul_f64(void* const* buffers, const int64_t* params) {
  fusec::simple_matmul<double>(buffers, params);
}
FUSEC_KERNEL void fusec_matmul_i64(void* const* buffers, const int64_t* params) {
  fusec::simple_matmul<uint64_t>(buffers, params);
}
FUSEC_KERNEL void fusec_matmul_i32(void* const* buffers, const int64_t* params) {
  fusec::simple_matmul<uint32_t>(buffers, params);
}
