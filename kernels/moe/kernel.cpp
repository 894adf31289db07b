// moe: every token through its top-k experts, in two grouped products.
//
// Tokens are sorted by expert, so that each expert's weights are read once; experts without tokens
// are not read at all. The first product ends in the activation, the second adds into an f32 row per
// token. A task of the second product owns some columns of all the tokens and goes through the
// experts in order, so that the sum has one order for any number of threads.
#include <fusec/gemm.h>

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

  explicit MoeParams(const int64_t* p)
      : tokens(p[0]), hidden(p[1]), inner(p[2]), experts(p[3]), top_k(p[4]), x_stride(p[5]),
        out_stride(p[6]), weights_stride(p[7]), indices_stride(p[8]), weights_kind(p[9]),
        index_bytes(p[10]), activation(p[11]), alpha(f32_param(p[12])), limit(f32_param(p[13])),
        gated(p[14] != 0), has_bias(p[15] != 0), interleaved_bias(p[16] != 0) {}
};

// A stretch of sorted rows with one expert, at most TILE_ROWS long.
struct Block {
  int64_t expert, row, rows;
};

template <class T>
class Moe {
 public:
  Moe(const MoeParams& params, void* const* buffers)
      : p_(params), x_(static_cast<const T*>(buffers[0])), weights_(buffers[1]),
        indices_(buffers[2]), gate_up_(static_cast<const T*>(buffers[3])),
        down_(static_cast<const T*>(buffers[4])) {
    int next = 5;
    if (p_.has_bias) {
      gate_up_bias_ = static_cast<const T*>(buffers[next++]);
      down_bias_ = static_cast<const T*>(buffers[next++]);
    }
    out_ = static_cast<T*>(buffers[next]);
  }

  void run() {
    int64_t row_bytes = block_pitch<T>(p_.inner) * static_cast<int64_t>(sizeof(Activations<T>));
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
    int64_t pairs = tokens * p_.top_k;
    Scratch<int64_t> begin(p_.experts + 1);
    Scratch<int64_t> row_token(pairs);
    Scratch<float> row_weight(pairs);
    Scratch<Block> blocks(ceil_div(pairs, TILE_ROWS) + p_.experts);
    int64_t block_count = sort_rows(first_token, tokens, begin, row_token, row_weight, blocks);

    int64_t pitch = block_pitch<T>(p_.inner);
    Scratch<Activations<T>> held(pairs * pitch);
    expand(row_token, blocks, block_count, held, pitch);
    contract(first_token, tokens, row_token, row_weight, blocks, block_count, held, pitch);
  }

  // Counting sort by expert; within one, rows keep the order of tokens. Returns the blocks.
  int64_t sort_rows(int64_t first_token, int64_t tokens, int64_t* begin, int64_t* row_token,
                    float* row_weight, Block* blocks) const {
    memset(begin, 0, static_cast<size_t>(p_.experts + 1) * sizeof(int64_t));
    for (int64_t token = first_token; token < first_token + tokens; ++token) {
      for (int64_t slot = 0; slot < p_.top_k; ++slot) {
        int64_t expert = expert_of(token, slot);
        if (expert >= 0 && expert < p_.experts) ++begin[expert + 1];
      }
    }
    int64_t block_count = 0;
    for (int64_t expert = 0; expert < p_.experts; ++expert) {
      int64_t rows = begin[expert + 1];
      begin[expert + 1] += begin[expert];
      int64_t parts = ceil_div(rows, TILE_ROWS);
      for (int64_t part = 0; part < parts; ++part) {
        int64_t from = rows * part / parts, to = rows * (part + 1) / parts;
        blocks[block_count++] = {expert, begin[expert] + from, to - from};
      }
    }
    Scratch<int64_t> next(p_.experts);
    memcpy(next, begin, static_cast<size_t>(p_.experts) * sizeof(int64_t));
    for (int64_t token = first_token; token < first_token + tokens; ++token) {
      for (int64_t slot = 0; slot < p_.top_k; ++slot) {
        int64_t expert = expert_of(token, slot);
        if (expert < 0 || expert >= p_.experts) continue;
        int64_t row = next[expert]++;
        row_token[row] = token;
        row_weight[row] = weight_of(token, slot);
      }
    }
    return block_count;
  }

  float gate_up_bias(int64_t expert, int64_t column, bool up) const {
    if (!p_.has_bias || column >= p_.inner) return 0.0f;
    if (!p_.gated) return to_float(gate_up_bias_[expert * p_.inner + column]);
    int64_t at = p_.interleaved_bias ? 2 * column + up : column + (up ? p_.inner : 0);
    return to_float(gate_up_bias_[expert * 2 * p_.inner + at]);
  }

  FUSEC_INLINE Vec combine(Vec gate, Vec up) const {
    if (p_.activation == ACTIVATION_SWIGLU_OAI) {
      gate = min(set(p_.limit), gate);
      up = max(set(-p_.limit), min(set(p_.limit), up));
      return gate * sigmoid(set(p_.alpha) * gate) * (up + set(1.0f));
    }
    return activate(p_.activation, gate) * up;
  }

  // held[row] = activation of the gate and up products, as activations for the second product.
  void expand(const int64_t* row_token, const Block* blocks, int64_t block_count,
              Activations<T>* held, int64_t held_pitch) const {
    int64_t panels = ceil_div(p_.inner, PANEL);
    int64_t task_panels = panels_per_task(panels, block_count);
    int64_t groups = ceil_div(panels, task_panels);
    int64_t pitch = block_pitch<T>(p_.hidden), parts = p_.gated ? 2 : 1;
    int64_t size = panel_size<T>(p_.hidden), depth = padded_depth<T>(p_.hidden);
    parallel_for(block_count * groups, 1, [&](int64_t begin, int64_t end, int) {
      Scratch<Activations<T>> rows(TILE_ROWS * pitch);
      alignas(64) float gate[TILE_ROWS * PANEL], up[TILE_ROWS * PANEL];
      int64_t filled = -1;
      for (int64_t task = begin; task < end; ++task) {
        const Block& block = blocks[task / groups];
        if (filled != task / groups) {
          filled = task / groups;
          for (int64_t i = 0; i < block.rows; ++i) {
            fill_block_row(x_ + row_token[block.row + i] * p_.x_stride, 1, p_.hidden,
                           rows + i * pitch);
          }
        }
        int64_t first = task % groups * task_panels;
        int64_t last = min_of(panels, first + task_panels);
        for (int64_t panel = first; panel < last; ++panel) {
          const T* packed = gate_up_ + (block.expert * panels + panel) * parts * size;
          panel_product(rows, pitch, block.rows, packed, depth, gate);
          if (p_.gated) panel_product(rows, pitch, block.rows, packed + size, depth, up);
          alignas(64) float gate_bias[PANEL], up_bias[PANEL];
          for (int64_t i = 0; i < PANEL; ++i) {
            gate_bias[i] = gate_up_bias(block.expert, panel * PANEL + i, false);
            up_bias[i] = p_.gated ? gate_up_bias(block.expert, panel * PANEL + i, true) : 0.0f;
          }
          for (int64_t i = 0; i < block.rows; ++i) {
            Activations<T>* target = held + (block.row + i) * held_pitch + panel * PANEL;
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
  void contract(int64_t first_token, int64_t tokens, const int64_t* row_token,
                const float* row_weight, const Block* blocks, int64_t block_count,
                const Activations<T>* held, int64_t held_pitch) const {
    int64_t panels = ceil_div(p_.hidden, PANEL);
    int64_t size = panel_size<T>(p_.inner), depth = padded_depth<T>(p_.inner);
    parallel_for(panels, 1, [&](int64_t begin, int64_t end, int) {
      Scratch<float> sums(tokens * PANEL);
      alignas(64) float c[TILE_ROWS * PANEL];
      for (int64_t panel = begin; panel < end; ++panel) {
        int64_t column = panel * PANEL, columns = min_of<int64_t>(PANEL, p_.hidden - column);
        memset(sums, 0, static_cast<size_t>(tokens * PANEL) * sizeof(float));
        for (int64_t b = 0; b < block_count; ++b) {
          const Block& block = blocks[b];
          panel_product(held + block.row * held_pitch, held_pitch, block.rows,
                        down_ + (block.expert * panels + panel) * size, depth, c);
          alignas(64) float bias[PANEL] = {};
          if (p_.has_bias) {
            for (int64_t i = 0; i < columns; ++i) {
              bias[i] = to_float(down_bias_[block.expert * p_.hidden + column + i]);
            }
          }
          for (int64_t i = 0; i < block.rows; ++i) {
            float* target = sums + (row_token[block.row + i] - first_token) * PANEL;
            Vec weight = set(row_weight[block.row + i]);
            for (int j = 0; j < PANEL; j += LANES) {
              Vec value = load(c + i * PANEL + j) + load(bias + j);
              store(target + j, fma(value, weight, load(target + j)));
            }
          }
        }
        for (int64_t token = 0; token < tokens; ++token) {
          T* target = out_ + (first_token + token) * p_.out_stride + column;
          const float* source = sums + token * PANEL;
          for_vectors(columns, [=](int64_t j, int count) {
            store_some(target + j, load(source + j), count);
          });
        }
      }
    });
  }

  const MoeParams& p_;
  const T* x_;
  const void* weights_;
  const void* indices_;
  const T *gate_up_, *down_;
  const T *gate_up_bias_ = nullptr, *down_bias_ = nullptr;
  T* out_;
};

template <class T>
void moe(void* const* buffers, const int64_t* params) {
  MoeParams parsed(params);
  Moe<T>(parsed, buffers).run();
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
//          has_bias, interleaved_bias (gate and up alternate in the bias)
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
