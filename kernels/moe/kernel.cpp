// moe: every token through its top-k experts, in two grouped products.
//
// Tokens are sorted by expert, so that each expert's weights are read once; experts without tokens
// are not read at all. The first product ends in the activation, the second adds into an f32 row a
// token. A task of the second product owns some columns of all the tokens and goes through the
// experts in order, so that the sum has one order for any number of threads.
#include <fusec/gemm.h>
#include <fusec/quantised.h>

namespace fusec {
namespace {

// Rows of the first product that are held at once, between the two.
constexpr int64_t HELD_BYTES = int64_t{64} << 20;

struct MoeParams {
  int64_t tokens, hidden, inner, experts, top_k;
  int64_t x_stride, out_stride, weights_stride, indices_stride;
  int64_t weights_kind, index_bytes;
  int64_t activation;
  float alpha, limit;
  bool gated, has_bias, interleaved_bias;

  static constexpr int COUNT = 17;

  explicit MoeParams(const int64_t* p)
      : tokens(p[0]), hidden(p[1]), inner(p[2]), experts(p[3]), top_k(p[4]), x_stride(p[5]),
        out_stride(p[6]), weights_stride(p[7]), indices_stride(p[8]), weights_kind(p[9]),
        index_bytes(p[10]), activation(p[11]), alpha(f32_param(p[12])), limit(f32_param(p[13])),
        gated(p[14] != 0), has_bias(p[15] != 0), interleaved_bias(p[16] != 0) {}
};

// ---- the weights of one product: panels of all experts, numbered through ----
//
// Each says what the rows that it is multiplied with are, and multiplies them. Up to FEW_ROWS are
// multiplied as integers; many are in tiles of planes where their dtype has them (planes.h).

template <class T, int PLANES>
struct PlainWeight {
  using Row = Activations<T>;
  using Tiled = PlaneBlock<T, PLANES>;
  static constexpr int64_t FEW_ROWS = 0, PLANE_BYTES = PLANES * sizeof(bf16);
  const T* panels;
  int64_t k;

  int64_t depth() const { return k; }
  int64_t pitch() const { return block_pitch<T>(k); }
  void fill(const T* source, Row* target) const { fill_block_row(source, 1, k, target); }
  void multiply(const Row* rows, int64_t row_pitch, int64_t count, int64_t panel, float* c) const {
    panel_product(rows, row_pitch, count, panel_at(panel), padded_depth<T>(k), c);
  }
  template <class FillRow>
  void multiply_tiles(typename Tiled::Worker& worker, const Tiled& tiles, const FillRow& fill_row,
                      BlockRows rows, int64_t panel, float* c) const {
    worker.multiply(tiles, fill_row, rows, {0, k}, panel_at(panel), k, c, {});
  }

  int64_t groups() const { return 0; }
  bool fill_integers(const Row*, IntegerGroup*) const { return false; }
  void multiply_integers(const IntegerGroup*, int64_t, int64_t, float*) const {}

 private:
  const T* panel_at(int64_t panel) const { return panels + panel * panel_size<T>(k); }
};

template <class T, class Codes>
struct QuantisedWeight {
  using Row = Activations<Wide<T>>;
  using Tiled = PlaneBlock<T, 0>;
  static constexpr int64_t FEW_ROWS = ROWS_AS_INTEGERS<T, Codes>, PLANE_BYTES = 0;
  Codes codes;

  int64_t depth() const { return codes.k; }
  int64_t pitch() const { return quantised_pitch<T>(codes.k); }
  void fill(const T* source, Row* target) const { fill_quantised_row(source, codes.k, target); }
  void multiply(const Row* rows, int64_t row_pitch, int64_t count, int64_t panel, float* c) const {
    quantised_product<Wide<T>>(rows, row_pitch, count, codes, panel, c);
  }
  template <class FillRow>
  void multiply_tiles(typename Tiled::Worker&, const Tiled&, const FillRow&, BlockRows, int64_t,
                      float*) const {}

  int64_t groups() const { return quantised_depth(codes.k) / MX_GROUP; }
  bool fill_integers(const Row* row, IntegerGroup* target) const {
    return fill_integer_row(row, quantised_depth(codes.k), target);
  }
  void multiply_integers(const IntegerGroup* rows, int64_t count, int64_t panel, float* c) const {
    if constexpr (FEW_ROWS > 0) integer_product(rows, groups(), count, codes, panel, c);
  }
};

// A stretch of sorted rows with one expert. Those of few rows begin at row `few` of all that are few,
// those of many at row `tile` of all that are many.
struct Block {
  int64_t expert, row, rows, few, tile;
};

// The rows of some tokens in the order of their experts; within one they keep that of the tokens.
struct SortedRows {
  // `most_rows` are those of a block.
  SortedRows(const MoeParams& p, int64_t tokens, int64_t most_rows)
      : most_rows(most_rows), begin(p.experts + 1), next(p.experts), token(tokens * p.top_k),
        weight(tokens * p.top_k), blocks(ceil_div(tokens * p.top_k, most_rows) + p.experts) {}

  // Room for the rows of any block of many.
  int64_t largest_tiled() const { return min_of(most_rows, tiled_rows); }

  int64_t most_rows;
  Scratch<int64_t> begin, next;  // of the rows of each expert
  Scratch<int64_t> token;        // of each row
  Scratch<float> weight;         // of each row
  Scratch<Block> blocks;
  int64_t block_count = 0, few_rows = 0, tiled_rows = 0;
};

// The rows of blocks of few, as integers.
template <class Weight>
class FewRows {
 public:
  // `row_at(row, scratch)` gives a row as the weight takes it, perhaps in the scratch memory.
  template <class RowAt>
  FewRows(const Weight& weight, const SortedRows& sorted, const RowAt& row_at)
      : weight_(weight), groups_(weight.groups()),
        rows_(sorted.few_rows * groups_), usable_(sorted.few_rows) {
    if (sorted.few_rows == 0) return;
    parallel_for(sorted.block_count, 1, [&](int64_t begin, int64_t end, int) {
      Scratch<typename Weight::Row> scratch(weight.pitch());
      for (int64_t b = begin; b < end; ++b) {
        const Block& block = sorted.blocks[b];
        if (!is_few(block)) continue;
        usable_[block.few] = true;
        for (int64_t i = 0; i < block.rows; ++i) {
          usable_[block.few] &= weight.fill_integers(row_at(block.row + i, scratch), row(block, i));
        }
      }
    });
  }

  // c = the block's rows * panel; false if they cannot be taken as integers.
  bool multiply(const Block& block, int64_t panel, float* c) const {
    if (!is_few(block) || !usable_[block.few]) return false;
    weight_.multiply_integers(row(block, 0), block.rows, panel, c);
    return true;
  }

 private:
  static bool is_few(const Block& block) { return block.rows <= Weight::FEW_ROWS; }
  IntegerGroup* row(const Block& block, int64_t i) const {
    return rows_ + (block.few + i) * groups_;
  }

  const Weight& weight_;
  int64_t groups_;
  Scratch<IntegerGroup> rows_;
  Scratch<bool> usable_;  // by the first row of a block
};

// The rows of blocks of many, as tiles of planes. `row_at` is as for FewRows.
template <class Weight, class RowAt>
class ManyRows {
  using Row = typename Weight::Row;
  using Tiled = typename Weight::Tiled;

 public:
  using Worker = typename Tiled::Worker;

  ManyRows(const Weight& weight, int64_t rows, const RowAt& row_at)
      : weight_(weight), fill_row_{row_at}, tiles_(rows, weight.depth()) {}

  // Puts the rows of a block of many at row `at`; false if it is none.
  bool fill(const Block& block, int64_t at) {
    if (!is_many(block)) return false;
    for (int64_t i = 0; i < block.rows; ++i) {
      tiles_.fill(fill_row_, block.row + i, {0, weight_.depth()}, at + i);
    }
    return true;
  }

  // c = the block's rows, which were put at row `at`, * panel; false if they are not many.
  bool multiply(Worker& worker, const Block& block, int64_t at, int64_t panel, float* c) const {
    if (!is_many(block)) return false;
    weight_.multiply_tiles(worker, tiles_, fill_row_, {at, block.row, block.rows}, panel, c);
    return true;
  }

 private:
  struct FillRow {
    const RowAt& row_at;
    void operator()(int64_t row, Stretch stretch, Row* target) const {
      const Row* source = row_at(row, target);
      if (source == target) return;
      memcpy(target, source, static_cast<size_t>(stretch.count) * sizeof(Row));
    }
  };

  bool is_many(const Block& block) const {
    return block.rows >= Tiled::LEAST_ROWS && weight_.depth() > 0;
  }

  const Weight& weight_;
  FillRow fill_row_;
  Tiled tiles_;
};

template <class T, class Weight>
class Moe {
  using Tiled = typename Weight::Tiled;
  using Row = typename Weight::Row;

 public:
  // `rest` are the buffers after the weights.
  Moe(const MoeParams& params, void* const* buffers, const Weight& gate_up, const Weight& down,
      void* const* rest)
      : p_(params), x_(static_cast<const T*>(buffers[0])), weights_(buffers[1]),
        indices_(buffers[2]), gate_up_(gate_up), down_(down) {
    if (p_.has_bias) {
      gate_up_bias_ = static_cast<const T*>(*rest++);
      down_bias_ = static_cast<const T*>(*rest++);
    }
    out_ = static_cast<T*>(*rest);
  }

  void run() {
    int64_t number_bytes = static_cast<int64_t>(sizeof(Row)) + Weight::PLANE_BYTES;
    int64_t row_bytes = down_.pitch() * number_bytes;
    int64_t chunk = max_of<int64_t>(1, HELD_BYTES / max_of<int64_t>(1, row_bytes * p_.top_k));
    for (int64_t token = 0; token < p_.tokens; token += chunk) {
      run_tokens(token, min_of(chunk, p_.tokens - token));
    }
  }

 private:
  int64_t expert_of(int64_t token, int64_t slot) const {
    int64_t at = token * p_.indices_stride + slot;
    return p_.index_bytes == 8 ? static_cast<const int64_t*>(indices_)[at]
                               : static_cast<const int32_t*>(indices_)[at];
  }

  float weight_of(int64_t token, int64_t slot) const {
    int64_t at = token * p_.weights_stride + slot;
    return p_.weights_kind == WEIGHT_F32 ? static_cast<const float*>(weights_)[at]
                                         : to_float(static_cast<const T*>(weights_)[at]);
  }

  void run_tokens(int64_t first_token, int64_t tokens) {
    int64_t fitting = Tiled::most_rows(max_of(p_.hidden, p_.inner));
    SortedRows sorted(p_, tokens, min_of(TILE_ROWS, fitting));
    sort_rows(first_token, tokens, sorted);
    Scratch<Row> held(tokens * p_.top_k * down_.pitch());
    expand(sorted, held);
    contract(first_token, tokens, sorted, held);
  }

  // Counting sort by expert.
  void sort_rows(int64_t first_token, int64_t tokens, SortedRows& sorted) const {
    int64_t* begin = sorted.begin;
    memset(begin, 0, static_cast<size_t>(p_.experts + 1) * sizeof(int64_t));
    for (int64_t token = first_token; token < first_token + tokens; ++token) {
      for (int64_t slot = 0; slot < p_.top_k; ++slot) {
        int64_t expert = expert_of(token, slot);
        if (expert >= 0 && expert < p_.experts) ++begin[expert + 1];
      }
    }
    for (int64_t expert = 0; expert < p_.experts; ++expert) {
      int64_t rows = begin[expert + 1];
      begin[expert + 1] += begin[expert];
      RowBlocks parts{rows, Tiled::sum_rows(1), ceil_div(rows, sorted.most_rows)};
      for (int64_t part = 0; part < parts.count; ++part) {
        int64_t from = parts.begin(part), size = parts.size(part);
        int64_t few = sorted.few_rows, tile = sorted.tiled_rows;
        if (size <= Weight::FEW_ROWS) sorted.few_rows += size;
        if (size >= Tiled::LEAST_ROWS) sorted.tiled_rows += Tiled::sum_rows(size);
        sorted.blocks[sorted.block_count++] = {expert, begin[expert] + from, size, few, tile};
      }
    }
    memcpy(sorted.next, begin, static_cast<size_t>(p_.experts) * sizeof(int64_t));
    for (int64_t token = first_token; token < first_token + tokens; ++token) {
      for (int64_t slot = 0; slot < p_.top_k; ++slot) {
        int64_t expert = expert_of(token, slot);
        if (expert < 0 || expert >= p_.experts) continue;
        int64_t row = sorted.next[expert]++;
        sorted.token[row] = token;
        sorted.weight[row] = weight_of(token, slot);
      }
    }
  }

  // Columns [column, column + PANEL) of the gate's and the up product's bias, zeros past their end.
  void gate_up_bias(int64_t expert, int64_t column, float* gate, float* up) const {
    memset(gate, 0, PANEL * sizeof(float));
    memset(up, 0, PANEL * sizeof(float));
    if (!p_.has_bias) return;
    int64_t step = p_.gated && p_.interleaved_bias ? 2 : 1;
    int64_t distance = p_.interleaved_bias ? 1 : p_.inner;  // from a gate to its up
    const T* bias = gate_up_bias_ + expert * p_.inner * (p_.gated ? 2 : 1) + column * step;
    int64_t columns = min_of<int64_t>(PANEL, p_.inner - column);
    for (int64_t i = 0; i < columns; ++i) {
      gate[i] = to_float(bias[i * step]);
      if (p_.gated) up[i] = to_float(bias[i * step + distance]);
    }
  }

  // Columns [column, column + PANEL) of the second bias, zeros past its end.
  void down_bias(int64_t expert, int64_t column, float* bias) const {
    memset(bias, 0, PANEL * sizeof(float));
    if (!p_.has_bias) return;
    const T* source = down_bias_ + expert * p_.hidden + column;
    int64_t columns = min_of<int64_t>(PANEL, p_.hidden - column);
    for (int64_t i = 0; i < columns; ++i) bias[i] = to_float(source[i]);
  }

  FUSEC_INLINE Vec combine(Vec gate, Vec up) const {
    bool oai = p_.activation == ACTIVATION_SWIGLU_OAI;
    if (!oai && p_.activation != ACTIVATION_SWIGLU_LIMIT) {
      return activate(p_.activation, gate) * up;
    }
    gate = min(set(p_.limit), gate);
    up = max(set(-p_.limit), min(set(p_.limit), up));
    if (!oai) return silu(gate) * up;
    return times_sigmoid(gate, set(p_.alpha) * gate) * (up + set(1.0f));
  }

  // held[row] = activation of the gate and up products, as rows of the second product.
  void expand(const SortedRows& sorted, Row* held) const {
    int64_t panels = ceil_div(p_.inner, PANEL), parts = p_.gated ? 2 : 1;
    int64_t task_panels = panels_per_task(panels, sorted.block_count);
    int64_t groups = ceil_div(panels, task_panels);
    int64_t pitch = gate_up_.pitch(), held_pitch = down_.pitch();
    auto fill = [&](int64_t row, Row* target) {
      gate_up_.fill(x_ + sorted.token[row] * p_.x_stride, target);
      return target;
    };
    FewRows<Weight> few(gate_up_, sorted, fill);
    using Many = ManyRows<Weight, decltype(fill)>;
    parallel_for(sorted.block_count * groups, 1, [&](int64_t begin, int64_t end, int) {
      Scratch<Row> rows(sorted.most_rows * pitch);
      Many many(gate_up_, sorted.largest_tiled(), fill);
      typename Many::Worker worker(sorted.largest_tiled());
      auto multiply = [&](const Block& block, int64_t panel, float* c) {
        if (few.multiply(block, panel, c) || many.multiply(worker, block, 0, panel, c)) return;
        gate_up_.multiply(rows, pitch, block.rows, panel, c);
      };
      TileScope scope;
      alignas(64) float gate[TILE_ROWS * PANEL], up[TILE_ROWS * PANEL];
      alignas(64) float gate_bias[PANEL], up_bias[PANEL];
      int64_t filled = -1;
      for (int64_t task = begin; task < end; ++task) {
        const Block& block = sorted.blocks[task / groups];
        if (filled != task / groups) {
          filled = task / groups;
          if (!many.fill(block, 0)) {
            for (int64_t i = 0; i < block.rows; ++i) fill(block.row + i, rows + i * pitch);
          }
        }
        int64_t first = task % groups * task_panels;
        int64_t last = min_of(panels, first + task_panels);
        for (int64_t panel = first; panel < last; ++panel) {
          int64_t number = (block.expert * panels + panel) * parts;
          multiply(block, number, gate);
          if (p_.gated) multiply(block, number + 1, up);
          gate_up_bias(block.expert, panel * PANEL, gate_bias, up_bias);
          for (int64_t i = 0; i < block.rows; ++i) {
            Row* target = held + (block.row + i) * held_pitch + panel * PANEL;
            for (int j = 0; j < PANEL; j += LANES) {
              Vec value = load(gate + i * PANEL + j) + load(gate_bias + j);
              if (p_.gated) {
                value = combine(value, load(up + i * PANEL + j) + load(up_bias + j));
              } else {
                value = activate(p_.activation, value);
              }
              store(target + j, value);
            }
          }
        }
      }
    });
  }

  // out[token] = sum over its rows of weight * (held[row] * down + bias).
  //
  // A task has a few panels of columns: rows of an expert are read once for all of them. Its sums
  // are [tokens][columns of the task].
  void contract(int64_t first_token, int64_t tokens, const SortedRows& sorted,
                const Row* held) const {
    int64_t panels = ceil_div(p_.hidden, PANEL), held_pitch = down_.pitch();
    int64_t task_panels = panels_per_task(panels, 1), pitch = task_panels * PANEL;
    auto row_at = [&](int64_t row, Row*) { return held + row * held_pitch; };
    FewRows<Weight> few(down_, sorted, row_at);
    using Many = ManyRows<Weight, decltype(row_at)>;
    Many many(down_, sorted.tiled_rows, row_at);
    if (sorted.tiled_rows > 0) {
      parallel_for(sorted.block_count, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t b = begin; b < end; ++b) many.fill(sorted.blocks[b], sorted.blocks[b].tile);
      });
    }
    parallel_for(ceil_div(panels, task_panels), 1, [&](int64_t begin, int64_t end, int) {
      Scratch<float> sums(tokens * pitch);
      typename Many::Worker worker(sorted.largest_tiled());
      TileScope scope;
      alignas(64) float c[TILE_ROWS * PANEL], bias[PANEL];
      for (int64_t task = begin; task < end; ++task) {
        int64_t first = task * task_panels, last = min_of(panels, first + task_panels);
        memset(sums, 0, static_cast<size_t>(tokens * pitch) * sizeof(float));
        for (int64_t b = 0; b < sorted.block_count; ++b) {
          const Block& block = sorted.blocks[b];
          for (int64_t panel = first; panel < last; ++panel) {
            int64_t number = block.expert * panels + panel;
            if (!few.multiply(block, number, c) &&
                !many.multiply(worker, block, block.tile, number, c)) {
              down_.multiply(row_at(block.row, nullptr), held_pitch, block.rows, number, c);
            }
            down_bias(block.expert, panel * PANEL, bias);
            float* column = sums + (panel - first) * PANEL;
            for (int64_t i = 0; i < block.rows; ++i) {
              float* target = column + (sorted.token[block.row + i] - first_token) * pitch;
              Vec weight = set(sorted.weight[block.row + i]);
              for (int j = 0; j < PANEL; j += LANES) {
                Vec value = load(c + i * PANEL + j) + load(bias + j);
                store(target + j, fma(value, weight, load(target + j)));
              }
            }
          }
        }
        int64_t column = first * PANEL, columns = min_of(last * PANEL, p_.hidden) - column;
        for (int64_t token = 0; token < tokens; ++token) {
          T* target = out_ + (first_token + token) * p_.out_stride + column;
          const float* source = sums + token * pitch;
          for_vectors(columns, [=](int64_t j, int count) {
            store_some(target + j, load_some(source + j, count), count);
          });
        }
      }
    });
  }

  const MoeParams& p_;
  const T* x_;
  const void* weights_;
  const void* indices_;
  Weight gate_up_, down_;
  const T *gate_up_bias_ = nullptr, *down_bias_ = nullptr;
  T* out_;
};

template <class T>
void moe(void* const* buffers, const int64_t* params) {
  MoeParams p(params);
  const T *gate_up = static_cast<const T*>(buffers[3]), *down = static_cast<const T*>(buffers[4]);
  with_planes(gate_up, params[MoeParams::COUNT], [&](auto planes) {
    using Weight = PlainWeight<T, decltype(planes)::VALUE>;
    Moe<T, Weight>(p, buffers, {gate_up, p.hidden}, {down, p.inner}, buffers + 5).run();
  });
}

template <class T>
void moe_mxfp4(void* const* buffers, const int64_t* params) {
  using Weight = QuantisedWeight<T, Mxfp4Weight>;
  MoeParams p(params);
  auto weight_at = [=](int at, int64_t k) {
    return Weight{{static_cast<const uint16_t*>(buffers[at]),
                   static_cast<const uint8_t*>(buffers[at + 1]), k}};
  };
  Moe<T, Weight>(p, buffers, weight_at(3, p.hidden), weight_at(5, p.inner), buffers + 7).run();
}

template <class T>
void moe_fp8(void* const* buffers, const int64_t* params) {
  using Weight = QuantisedWeight<T, Fp8Weight>;
  MoeParams p(params);
  auto weight_at = [=](int at, int64_t k, int64_t group) {
    return Weight{{static_cast<const uint16_t*>(buffers[at]),
                   static_cast<const float*>(buffers[at + 1]), k, group}};
  };
  const int64_t* groups = params + MoeParams::COUNT;
  Moe<T, Weight>(p, buffers, weight_at(3, p.hidden, groups[0]), weight_at(5, p.inner, groups[1]),
                 buffers + 7)
      .run();
}

}  // namespace
}  // namespace fusec

// buffers: x [T, H], routing weights [T, k], expert indices [T, k], packed gate_up, packed down,
//          [gate_up bias [E, 2I] (or [E, I]), down bias [E, H]], out [T, H]
//          gate_up is packed [E][panels of I][gate, up][panel over H]: the gate and the up columns
//          of a panel next to each other, whatever the model's layout; one part if not gated.
//          down is packed [E][panels of H][panel over I].
// params:  T, H, I, E, k, row strides of x, out, weights and indices, weights_kind (1 dtype of x,
//          2 f32), index_bytes (4 or 8), activation (simd.h), alpha (f64), limit (f64), gated,
//          has_bias, interleaved_bias (gate and up alternate in the bias), precision (gemm.h
//          Precision, for f32)
// An index outside [0, E) adds nothing.
FUSEC_KERNEL void fusec_moe_f32(void* const* buffers, const int64_t* params) {
  fusec::moe<float>(buffers, params);
}
FUSEC_KERNEL void fusec_moe_bf16(void* const* buffers, const int64_t* params) {
  fusec::moe<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_moe_f16(void* const* buffers, const int64_t* params) {
  fusec::moe<fusec::f16>(buffers, params);
}

// As fusec_moe without precision; panels of codes and then panels of scales (quantised.h) in the place
// of packed gate_up and of packed down.
FUSEC_KERNEL void fusec_moe_mxfp4_f32(void* const* buffers, const int64_t* params) {
  fusec::moe_mxfp4<float>(buffers, params);
}
FUSEC_KERNEL void fusec_moe_mxfp4_bf16(void* const* buffers, const int64_t* params) {
  fusec::moe_mxfp4<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_moe_mxfp4_f16(void* const* buffers, const int64_t* params) {
  fusec::moe_mxfp4<fusec::f16>(buffers, params);
}

// As fusec_moe_mxfp4; two more params: elements along H and along I that share a scale of gate_up
// and of down, 0 where all do.
FUSEC_KERNEL void fusec_moe_fp8_f32(void* const* buffers, const int64_t* params) {
  fusec::moe_fp8<float>(buffers, params);
}
FUSEC_KERNEL void fusec_moe_fp8_bf16(void* const* buffers, const int64_t* params) {
  fusec::moe_fp8<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_moe_fp8_f16(void* const* buffers, const int64_t* params) {
  fusec::moe_fp8<fusec::f16>(buffers, params);
}
