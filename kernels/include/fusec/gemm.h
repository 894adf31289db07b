// Matrix products with packed weights: what linear, grouped_mm, moe, matmul, conv and attention share.
//
// panels.h has the layout of weights and the product of a few rows with a panel; here are the rows
// and columns of whole products dealt out to threads and caches, and what happens to the sums.
#pragma once

#include <fusec/planes.h>

namespace fusec {

// ---- what happens to a finished tile ----

// out = residual + activation(c + bias), rounded once, to Out, which may be wider than the operands.
// Rows go where `outer` and the strides say.
template <class T, class Out = T>
struct Epilogue {
  Outer outer;
  Out* out;
  const int64_t* out_strides;
  const T* bias = nullptr;
  int64_t activation = ACTIVATION_NONE;
  const Out* residual = nullptr;
  const int64_t* residual_strides = nullptr;

  FUSEC_INLINE Vec apply(Vec value, const Out* residual_row, int64_t column, int count) const {
    if (bias) value = value + load_some(bias + column, count);
    if (activation != ACTIVATION_NONE) value = activate(activation, value);
    if (residual) value = value + load_some(residual_row + column, count);
    return value;
  }

  // How many panels of the weight make one of the result.
  static constexpr int PARTS = 1;

  // c holds rows [row, row + rows) and columns [column, column + columns) of the product.
  FUSEC_INLINE void write(const float* c, int64_t row, int64_t rows, int64_t column,
                          int64_t columns) const {
    for (int64_t i = 0; i < rows; ++i, c += PANEL) {
      Out* target = out + outer.offset(row + i, out_strides) + column;
      const Out* added = residual ? residual + outer.offset(row + i, residual_strides) : nullptr;
      for_vectors(columns, [&](int64_t j, int count) {
        store_some(target + j, apply(load(c + j), added, column + j, count), count);
      });
    }
  }
};

// out = activation(gate) * up, where gate and up are the sums of a pair of panels plus their bias. The
// bias is [2][N]: first that of the gates.
template <class T, class Out = T>
struct GatedEpilogue {
  Outer outer;
  Out* out;
  const int64_t* out_strides;
  int64_t n;
  const T* bias = nullptr;
  int64_t activation = ACTIVATION_SILU;
  float alpha = 0.0f, limit = 0.0f;

  static constexpr int PARTS = 2;

  FUSEC_INLINE Vec apply(Vec gate, Vec up) const {
    if (activation == ACTIVATION_SWIGLU_OAI) {
      gate = min(set(limit), gate);
      up = max(set(-limit), min(set(limit), up));
      return times_sigmoid(gate, set(alpha) * gate) * (up + set(1.0f));
    }
    return activate(activation, gate) * up;
  }

  FUSEC_INLINE void write(const float* gates, const float* ups, int64_t row, int64_t rows,
                          int64_t column, int64_t columns) const {
    for (int64_t i = 0; i < rows; ++i, gates += PANEL, ups += PANEL) {
      Out* target = out + outer.offset(row + i, out_strides) + column;
      for_vectors(columns, [&](int64_t j, int count) {
        Vec gate = load(gates + j), up = load(ups + j);
        if (bias) {
          gate = gate + load_some(bias + column + j, count);
          up = up + load_some(bias + n + column + j, count);
        }
        store_some(target + j, apply(gate, up), count);
      });
    }
  }
};

// ---- blocks of rows ----
//
// A block holds rows of the left operand, or a stretch of them along k, as the product wants them;
// `most_rows` of them stay in the L2 cache. Threads share it; each multiplies with a `Worker` of its
// own. `multiply` adds up the products of some rows with the rows of one panel that go with the
// stretch, row i at c + i * PANEL, where `sum_rows` rows have room, and calls `done` with rows that
// are finished, counted from 0. With a stretch that is not the first it adds to c.

// Rows [at, at + rows) of a block, the rows from `row` on of the whole product; `at` is a multiple of
// the block's UNIT.
struct BlockRows {
  int64_t at, row, rows;
};

// [begin, begin + count) along k.
struct Stretch {
  int64_t begin, count;
};

// The longest stretch, and the length of stretches where one is not enough: a multiple of all the
// depths at which sums are added up, which are the same with and without stretches.
#ifndef FUSEC_LONGEST_STRETCH
#define FUSEC_LONGEST_STRETCH 1536
#endif
constexpr int64_t STRETCH = 1024;

FUSEC_INLINE int64_t stretch_depth(int64_t k) { return k > FUSEC_LONGEST_STRETCH ? STRETCH : k; }

#ifndef FUSEC_VECTOR_BLOCK_ROWS
#define FUSEC_VECTOR_BLOCK_ROWS 144
#endif
#ifndef FUSEC_VECTOR_BLOCK_BYTES
#define FUSEC_VECTOR_BLOCK_BYTES (600 * 1024)
#endif

// For callers of panel_product: rows that fit the L2 cache with the part of a panel that is in use.
constexpr int64_t TILE_ROWS = 144;

// The rows of `row_bytes` that fit into `bytes`, a multiple of `unit` and between `least` and `most`.
FUSEC_INLINE int64_t rows_that_fit(int64_t row_bytes, int64_t bytes, int64_t unit, int64_t least,
                                   int64_t most) {
  int64_t fit = bytes / max_of<int64_t>(1, row_bytes) / unit * unit;
  return max_of(least, min_of(most, fit));
}

template <class T>
class VectorBlock {
 public:
  // Where rows are dealt out to threads, each has more than two of these: sums of few rows have
  // another order.
  static constexpr int64_t UNIT = 12;
  static int64_t most_rows(int64_t depth) {
    return rows_that_fit(padded_depth<T>(depth) * static_cast<int64_t>(sizeof(Activations<T>)),
                         FUSEC_VECTOR_BLOCK_BYTES, UNIT, 6 * UNIT, FUSEC_VECTOR_BLOCK_ROWS);
  }
  static int64_t sum_rows(int64_t rows) { return rows; }

  VectorBlock(int64_t rows, int64_t depth) : pitch_(block_pitch<T>(depth)), rows_(rows * pitch_) {}

  template <class FillRow>
  void fill(const FillRow& fill_row, int64_t row, Stretch stretch, int64_t at) {
    fill_row(row, stretch, rows_ + at * pitch_);
  }

  class Worker {
   public:
    explicit Worker(int64_t) {}
    template <class FillRow>
    void multiply(const VectorBlock& block, const FillRow&, BlockRows rows, Stretch stretch,
                  const T* panel, int64_t, float* c, const RowsDone& done) {
      panel_product(block.rows_ + rows.at * block.pitch_, block.pitch_, rows.rows,
                    panel + stretch.begin * PANEL, padded_depth<T>(stretch.count), c, done,
                    stretch.begin > 0);
    }

   private:
    TileScope scope_;
  };

 private:
  int64_t pitch_;
  Scratch<Activations<T>> rows_;
};

// Rows of f32 or f16 as tiles of bf16 planes; with no planes there are none that are many enough.
template <class T, int PLANES>
class PlaneBlock;

template <class T>
class PlaneBlock<T, 0> {
 public:
  static constexpr int64_t LEAST_ROWS = INT64_MAX;
  static int64_t most_rows(int64_t) { return TILE_ROWS; }
  static int64_t sum_rows(int64_t rows) { return rows; }

  PlaneBlock(int64_t, int64_t) {}

  template <class FillRow>
  void fill(const FillRow&, int64_t, Stretch, int64_t) {}

  static int64_t split_size(int64_t) { return 0; }
  static void split(const T*, int64_t, bf16*) {}
  template <class FillRow>
  void multiply_split(const FillRow&, BlockRows, const bf16*, const T*, int64_t, float*) const {}

  class Worker {
   public:
    explicit Worker(int64_t) {}
    template <class FillRow>
    void multiply(const PlaneBlock&, const FillRow&, BlockRows, Stretch, const T*, int64_t, float*,
                  const RowsDone&) {}
  };
};

#if FUSEC_AMX

#ifndef FUSEC_TILE_BLOCK_ROWS
#define FUSEC_TILE_BLOCK_ROWS 512
#endif
#ifndef FUSEC_TILE_BLOCK_BYTES
#define FUSEC_TILE_BLOCK_BYTES (1152 * 1024)
#endif
#ifndef FUSEC_PLANE_BLOCK_ROWS
#define FUSEC_PLANE_BLOCK_ROWS 256
#endif
#ifndef FUSEC_PLANE_BLOCK_BYTES
#define FUSEC_PLANE_BLOCK_BYTES (1024 * 1024)
#endif
// From how many rows on it pays to put them into tiles.
#ifndef FUSEC_TILED_LEAST_ROWS
#define FUSEC_TILED_LEAST_ROWS 48
#endif
#ifndef FUSEC_PLANES_LEAST_ROWS
#define FUSEC_PLANES_LEAST_ROWS 32
#endif

// Rows of bf16 as tiles.
class TiledBlock {
 public:
  static constexpr int64_t UNIT = 2 * Tiles::ROWS;
  static int64_t most_rows(int64_t depth) {
    return rows_that_fit(padded_depth<bf16>(depth) * 2, FUSEC_TILE_BLOCK_BYTES, UNIT, 2 * UNIT,
                         FUSEC_TILE_BLOCK_ROWS);
  }
  static int64_t sum_rows(int64_t rows) { return round_up(rows, Tiles::ROWS); }

  TiledBlock(int64_t rows, int64_t depth)
      : depth_(depth), tiles_(sum_rows(rows) * padded_depth<bf16>(depth)) {}

  template <class FillRow>
  void fill(const FillRow& fill_row, int64_t row, Stretch stretch, int64_t at) {
    Scratch<bf16> line(padded_depth<bf16>(stretch.count));
    fill_row(row, stretch, static_cast<bf16*>(line));
    tile_bf16_row(line, stretch.count, at, tiles_ + at / Tiles::ROWS * group_size());
  }

  class Worker {
   public:
    explicit Worker(int64_t) {}
    template <class FillRow>
    void multiply(const TiledBlock& block, const FillRow&, BlockRows rows, Stretch stretch,
                  const bf16* panel, int64_t, float* c, const RowsDone& done) {
      const bf16* tiles = block.tiles_ + rows.at / Tiles::ROWS * block.group_size();
      auto done_inside = [&](int64_t first, int64_t count) {
        done(first, min_of(count, rows.rows - first));
      };
      tiled_product({tiles, block.group_size()}, sum_rows(rows.rows), panel + stretch.begin * PANEL,
                    padded_depth<bf16>(stretch.count), c, RowsDone(done_inside), stretch.begin > 0);
    }

   private:
    TileScope scope_;
  };

 private:
  int64_t group_size() const { return padded_depth<bf16>(depth_) * Tiles::ROWS; }

  int64_t depth_;
  Scratch<bf16> tiles_;
};

template <class T, int PLANES>
class PlaneBlock {
 public:
  static constexpr int64_t UNIT = 2 * Tiles::ROWS, LEAST_ROWS = FUSEC_PLANES_LEAST_ROWS;
  static int64_t most_rows(int64_t depth) {
    return rows_that_fit(round_up(depth, TILE_DEPTH) * 2 * PLANES, FUSEC_PLANE_BLOCK_BYTES, UNIT,
                         2 * UNIT, FUSEC_PLANE_BLOCK_ROWS);
  }
  static int64_t sum_rows(int64_t rows) { return round_up(rows, Tiles::ROWS); }

  PlaneBlock(int64_t rows, int64_t depth)
      : depth_(depth), tiles_(sum_rows(rows) / Tiles::ROWS * group_size()) {}

  template <class FillRow>
  void fill(const FillRow& fill_row, int64_t row, Stretch stretch, int64_t at) {
    Scratch<float> line(stretch.count);
    fill_row(row, stretch, static_cast<float*>(line));
    tile_row<PLANES>(static_cast<const float*>(line), stretch.count, at,
                     tiles_ + at / Tiles::ROWS * group_size());
  }

  // bf16 numbers of the planes of a panel, for panels that are split once for many blocks.
  static int64_t split_size(int64_t k) { return planes_size<PLANES>(k); }
  static void split(const T* panel, int64_t k, bf16* planes) {
    split_panel<PLANES>(panel, k, planes);
  }
  // c = all k of some rows * a panel that is given with its planes.
  template <class FillRow>
  void multiply_split(const FillRow& fill_row, BlockRows rows, const bf16* planes, const T* panel,
                      int64_t k, float* c) const {
    auto check = [&](int64_t first, int64_t count) {
      mend(fill_row, k, rows, first, min_of(count, rows.rows - first), panel, c);
    };
    split_product<PLANES, T>(tiled(rows), sum_rows(rows.rows), planes, k, c, RowsDone(check));
  }

  class Worker {
   public:
    explicit Worker(int64_t rows)
        : workspace_(plane_workspace<PLANES>()), partial_(sum_rows(rows) * PANEL) {}
    template <class FillRow>
    void multiply(const PlaneBlock& block, const FillRow& fill_row, BlockRows rows, Stretch stretch,
                  const T* panel, int64_t k, float* c, const RowsDone& done) {
      auto done_inside = [&](int64_t first, int64_t count) {
        count = min_of(count, rows.rows - first);
        bool last = stretch.begin + stretch.count == k;
        if (last) mend(fill_row, k, rows, first, count, panel, c);
        done(first, count);
      };
      plane_product<PLANES>(block.tiled(rows), sum_rows(rows.rows), panel + stretch.begin * PANEL,
                            stretch.count, {workspace_, partial_}, c, RowsDone(done_inside),
                            stretch.begin > 0);
    }

   private:
    Scratch<bf16> workspace_;
    Scratch<float> partial_;
    TileScope scope_;
  };

 private:
  int64_t group_size() const { return round_up(depth_, TILE_DEPTH) * Tiles::ROWS * PLANES; }
  TiledRows tiled(const BlockRows& rows) const {
    return {tiles_ + rows.at / Tiles::ROWS * group_size(), group_size()};
  }

  // Planes do not always give the infinity or NaN that f32 does: rows [first, first + count) of the
  // sums are made anew if there is one.
  template <class FillRow>
  static void mend(const FillRow& fill_row, int64_t k, const BlockRows& rows, int64_t first,
                   int64_t count, const T* panel, float* c) {
    float* sums = c + first * PANEL;
    if (all_finite(sums, count * PANEL)) return;
    int64_t pitch = block_pitch<T>(k), row = rows.row + first;
    Scratch<float> lines(count * pitch);
    for (int64_t i = 0; i < count; ++i) fill_row(row + i, Stretch{0, k}, lines + i * pitch);
    panel_product(lines, pitch, count, panel, k, sums);
  }

  int64_t depth_;
  Scratch<bf16> tiles_;
};

#endif  // FUSEC_AMX

// ---- the whole product ----

// How precisely f32 is multiplied where the matrix units take bf16: the bf16 planes of a factor.
enum Precision : int64_t {
  PRECISION_HIGHEST = 0,
  PRECISION_HIGH = 1,
  PRECISION_MEDIUM = 2,
};

template <int PLANES>
struct PlaneCount {
  static constexpr int VALUE = PLANES;
};

// Calls `body` with the PlaneCount of a product of many rows with such panels, 0 without planes.
template <class T, class Body>
FUSEC_INLINE void with_planes(const T*, int64_t, const Body& body) {
  body(PlaneCount<0>{});
}
#if FUSEC_AMX
template <class Body>
FUSEC_INLINE void with_planes(const f16*, int64_t, const Body& body) {
  body(PlaneCount<2>{});
}
template <class Body>
FUSEC_INLINE void with_planes(const float*, int64_t precision, const Body& body) {
  if (precision == PRECISION_HIGHEST) {
    body(PlaneCount<3>{});
  } else if (precision == PRECISION_HIGH) {
    body(PlaneCount<2>{});
  } else {
    body(PlaneCount<1>{});
  }
}
#endif

// How many panels a task multiplies with one block of rows: enough to make copying the rows cheap,
// but no more than leaves a few tasks for every thread. The results do not depend on it.
FUSEC_INLINE int64_t panels_per_task(int64_t panels, int64_t row_blocks) {
  constexpr int64_t MOST = 16;
  int64_t fair = ceil_div(panels * row_blocks, 4 * int64_t{fusec_threads()});
  return max_of<int64_t>(1, min_of(fair, MOST));
}

// Rows dealt out to blocks evenly, in units. How many blocks there are may depend on the number of
// threads, because a row's sums depend neither on the block it is in nor on its place.
struct RowBlocks {
  int64_t rows, unit, count;

  FUSEC_INLINE int64_t begin(int64_t block) const {
    return min_of(rows, ceil_div(rows, unit) * block / count * unit);
  }
  FUSEC_INLINE int64_t size(int64_t block) const { return begin(block + 1) - begin(block); }
  FUSEC_INLINE int64_t largest() const {
    return min_of(rows, ceil_div(ceil_div(rows, unit), count) * unit);
  }
};

template <class Block, class T, class FillRow, class Epilogue>
class PackedProduct {
 public:
  PackedProduct(int64_t m, int64_t n, int64_t k, const T* packed, const FillRow& fill_row,
                const Epilogue& epilogue)
      : m_(m), n_(n), k_(k), packed_(packed), fill_row_(fill_row), epilogue_(epilogue) {}

  void run() const {
    int64_t threads = fusec_threads(), most = Block::most_rows(stretch_depth(k_));
    int64_t row_blocks = ceil_div(m_, most);
    // With enough rows for every thread, each goes over all the panels with rows of its own.
    if (m_ >= threads * (most / 2)) {
      by_rows({m_, Block::UNIT, round_up(row_blocks, threads)});
    } else {
      by_panels({m_, Block::UNIT, row_blocks});
    }
  }

 private:
  using Worker = typename Block::Worker;
  static constexpr int PARTS = Epilogue::PARTS;
  // Panels whose sums are kept while the next stretch of rows is put in place.
  static constexpr int64_t KEPT_PANELS = 64 / PARTS;

  int64_t panels() const { return ceil_div(n_, PANEL); }
  static int64_t sums_size(int64_t rows) { return PARTS * Block::sum_rows(rows) * PANEL; }

  void by_rows(const RowBlocks& blocks) const {
    int64_t depth = stretch_depth(k_), stretches = k_ > depth ? ceil_div(k_, depth) : 1;
    int64_t kept = stretches == 1 ? panels() : min_of(panels(), KEPT_PANELS);
    parallel_for(blocks.count, 1, [&](int64_t begin, int64_t end, int) {
      int64_t largest = blocks.largest(), step = stretches == 1 ? 0 : sums_size(largest);
      Block block(largest, depth);
      Worker worker(largest);
      Scratch<float> c(sums_size(largest) + step * kept);
      for (int64_t i = begin; i < end; ++i) {
        BlockRows rows{0, blocks.begin(i), blocks.size(i)};
        for (int64_t first = 0; first < panels(); first += kept) {
          int64_t last = min_of(panels(), first + kept);
          for (int64_t at = 0; at < stretches; ++at) {
            Stretch stretch{at * depth, min_of(depth, k_ - at * depth)};
            fill(block, rows, stretch);
            for (int64_t panel = first; panel < last; ++panel) {
              multiply(worker, block, rows, stretch, panel, c + (panel - first) * step);
            }
          }
        }
      }
    });
  }

  void fill(Block& block, const BlockRows& rows, Stretch stretch) const {
    for (int64_t i = 0; i < rows.rows; ++i) block.fill(fill_row_, rows.row + i, stretch, rows.at + i);
  }

  // All rows are put in place first; a task is some panels with one block of them.
  void by_panels(const RowBlocks& blocks) const {
    Stretch whole{0, k_};
    Block block(m_, k_);
    parallel_for(m_, grain_for(k_), [&](int64_t begin, int64_t end, int) {
      fill(block, {begin, begin, end - begin}, whole);
    });
    int64_t task_panels = blocks.count == 1 ? 1 : panels_per_task(panels(), blocks.count);
    int64_t groups = ceil_div(panels(), task_panels), largest = blocks.largest();
    int64_t grain = grain_for(largest * k_ * 2 * PARTS * task_panels);
    parallel_for(blocks.count * groups, grain, [&](int64_t begin, int64_t end, int) {
      Worker worker(largest);
      Scratch<float> c(sums_size(largest));
      for (int64_t task = begin; task < end; ++task) {
        int64_t i = task / groups, panel = task % groups * task_panels;
        int64_t last = min_of(panels(), panel + task_panels), first = blocks.begin(i);
        for (; panel < last; ++panel) {
          multiply(worker, block, {first, first, blocks.size(i)}, whole, panel, c);
        }
      }
    });
  }

  void multiply(Worker& worker, const Block& block, const BlockRows& rows, Stretch stretch,
                int64_t panel, float* c) const {
    const T* weights = packed_ + panel * PARTS * panel_size<T>(k_);
    const T* last_weights = weights + (PARTS - 1) * panel_size<T>(k_);
    float* last = c + (PARTS - 1) * Block::sum_rows(rows.rows) * PANEL;
    int64_t column = panel * PANEL, columns = min_of<int64_t>(PANEL, n_ - column);
    auto write = [&](int64_t first, int64_t count) {
      const float *sums = c + first * PANEL, *last_sums = last + first * PANEL;
      if constexpr (PARTS > 1) {
        epilogue_.write(sums, last_sums, rows.row + first, count, column, columns);
      } else {
        epilogue_.write(sums, rows.row + first, count, column, columns);
      }
    };
    bool complete = stretch.begin + stretch.count == k_;
    if (PARTS > 1) worker.multiply(block, fill_row_, rows, stretch, weights, k_, c, {});
    worker.multiply(block, fill_row_, rows, stretch, last_weights, k_, last,
                    complete ? RowsDone(write) : RowsDone());
  }

  int64_t m_, n_, k_;
  const T* packed_;
  const FillRow& fill_row_;
  const Epilogue& epilogue_;
};

template <class Block, class T, class FillRow, class Epilogue>
inline void multiply_packed(int64_t m, int64_t n, int64_t k, const T* packed,
                            const FillRow& fill_row, const Epilogue& epilogue) {
  PackedProduct<Block, T, FillRow, Epilogue>(m, n, k, packed, fill_row, epilogue).run();
}

#if FUSEC_AMX
// Whether the product was done in tiles.
template <class FillRow, class Epilogue>
inline bool multiply_in_tiles(int64_t m, int64_t n, int64_t k, const bf16* packed,
                              const FillRow& fill_row, const Epilogue& epilogue, int64_t) {
  if (m < FUSEC_TILED_LEAST_ROWS) return false;
  multiply_packed<TiledBlock>(m, n, k, packed, fill_row, epilogue);
  return true;
}
template <class T, class FillRow, class Epilogue>
inline bool multiply_in_tiles(int64_t m, int64_t n, int64_t k, const T* packed,
                              const FillRow& fill_row, const Epilogue& epilogue,
                              int64_t precision) {
  if (m < FUSEC_PLANES_LEAST_ROWS) return false;
  with_planes(packed, precision, [&](auto planes) {
    using Block = PlaneBlock<T, decltype(planes)::VALUE>;
    multiply_packed<Block>(m, n, k, packed, fill_row, epilogue);
  });
  return true;
}
#endif

// out[m][n] = epilogue(sum_k x[m][k] * weight[n][k]). `fill_row(m, stretch, target)` writes a stretch
// of row m of the left operand with fill_block_row, so that rows may be gathered or strided; it may be
// called more than once for a row. A gated epilogue has two panels for each 32 columns, the gates
// first.
template <class T, class FillRow, class Epilogue>
inline void packed_gemm(int64_t m, int64_t n, int64_t k, const T* packed, const FillRow& fill_row,
                        const Epilogue& epilogue, int64_t precision = PRECISION_HIGHEST) {
  if (m == 0 || n == 0) return;
#if FUSEC_AMX
  if (k > 0 && multiply_in_tiles(m, n, k, packed, fill_row, epilogue, precision)) return;
#endif
  multiply_packed<VectorBlock<T>>(m, n, k, packed, fill_row, epilogue);
}

}  // namespace fusec
