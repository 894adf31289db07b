// solve_triangular: X with A X = B for a triangular A, by substitution over whole rows of X.
#include <fusec/elements.h>

namespace fusec {
namespace {

enum SolveParam {
  BATCH = 0,
  A_BATCH = 4,
  B_BATCH = 8,
  OUT_BATCH = 12,
  SIZE = 16,
  COLUMNS,
  A_ROW,
  A_COLUMN,
  B_ROW,
  B_COLUMN,
  OUT_ROW,
  UPPER,
  UNIT,
};

template <class T>
void solve(void* const* buffers, const int64_t* p) {
  const T* a = static_cast<const T*>(buffers[0]);
  const T* b = static_cast<const T*>(buffers[1]);
  T* out = static_cast<T*>(buffers[2]);
  Outer batches{p + BATCH};
  int64_t n = p[SIZE], columns = p[COLUMNS];
  // Columns of X never meet: pieces of them are tasks.
  constexpr int64_t PIECE = 64;
  int64_t pieces = ceil_div(columns, PIECE);
  parallel_for(batches.rows() * pieces, grain_for(n * n * PIECE / 8),
               [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t batch = task / pieces, column = task % pieces * PIECE;
      int64_t count = min_of(PIECE, columns - column);
      const T* matrix = a + batches.offset(batch, p + A_BATCH);
      const T* right = b + batches.offset(batch, p + B_BATCH) + column * p[B_COLUMN];
      T* x = out + batches.offset(batch, p + OUT_BATCH) + column;
      for (int64_t step = 0; step < n; ++step) {
        int64_t row = p[UPPER] ? n - 1 - step : step;
        double sums[PIECE];
        for (int64_t j = 0; j < count; ++j) {
          sums[j] = static_cast<double>(right[row * p[B_ROW] + j * p[B_COLUMN]]);
        }
        int64_t first = p[UPPER] ? row + 1 : 0, last = p[UPPER] ? n : row;
        for (int64_t i = first; i < last; ++i) {
          double factor = static_cast<double>(matrix[row * p[A_ROW] + i * p[A_COLUMN]]);
          const T* solved = x + i * p[OUT_ROW];
          for (int64_t j = 0; j < count; ++j) sums[j] -= factor * static_cast<double>(solved[j]);
        }
        double pivot =
            p[UNIT] ? 1.0 : static_cast<double>(matrix[row * p[A_ROW] + row * p[A_COLUMN]]);
        for (int64_t j = 0; j < count; ++j) {
          x[row * p[OUT_ROW] + j] = static_cast<T>(sums[j] / pivot);
        }
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// buffers: a [.., n, n], b [.., n, columns], out [.., n, columns] (not b)
// params:  batch sizes[4], a batch strides[4], b batch strides[4] (0 broadcasts), out batch
//          strides[4], n, columns, a strides (row, column), b strides (row, column), out stride of a
//          row, upper, unit_diagonal
FUSEC_FOR_DTYPE(solve_triangular, f32, float, fusec::solve)
FUSEC_FOR_DTYPE(solve_triangular, f64, double, fusec::solve)
