// attention: softmax(mask(softcap(q k^T * scale))) v, one block of keys at a time.
//
// Few rows of queries read keys and values where they lie (attention_few.h). Where there are more,
// the keys and values of a key head are packed into panels once for all of them, and a task owns a
// block of query rows of the heads that share it. Running maximum, sum and output live in f32 (the
// online softmax of FlashAttention); what no row of a strip may see is never touched.
#include <fusec/attention_few.h>
#include <fusec/double.h>
#include <fusec/gemm.h>

namespace fusec {
namespace {

constexpr int64_t ROWS = 96;   // query rows of a task
constexpr int64_t KEYS = 128;  // keys of a block: four panels
// Rows that skip panels of keys together: whole tiles of the product.
#if FUSEC_AMX
constexpr int64_t STRIP = 32;
#else
constexpr int64_t STRIP = 24;
#endif
constexpr int64_t STRIPS = ROWS / STRIP;

// The keys [first, last) and values of one key head: panels of 32 keys, and panels of 32 columns of
// the values of all keys, padded with zeros. Every panel has its planes beside it where T has them.
template <class T, int PLANES>
class Panels {
  using Tiled = PlaneBlock<T, PLANES>;

 public:
  struct Packed {
    T* panels;
    bf16* planes;
  };

  Panels(const AttentionShape& shape, int64_t first, int64_t last)
      : shape_(shape),
        first_(first),
        last_(last),
        key_panel_(panel_size<T>(shape.depth)),
        value_panel_(round_up(last - first, PANEL) * PANEL),
        key_planes_(Tiled::split_size(shape.depth)),
        value_planes_(Tiled::split_size(PANEL)) {}

  int64_t blocks() const { return ceil_div(last_ - first_, KEYS); }
  // Numbers in panels, and in planes.
  int64_t size() const { return key_panels() * key_panel_ + columns() * value_panel_; }
  int64_t planes_size() const { return key_panels() * (key_planes_ + columns() * value_planes_); }

  // Key `key` begins a panel.
  Packed keys(const Packed& packed, int64_t key) const {
    int64_t panel = (key - first_) / PANEL;
    return {packed.panels + panel * key_panel_, packed.planes + panel * key_planes_};
  }
  Packed values(const Packed& packed, int64_t key, int64_t column) const {
    int64_t panel = column / PANEL, row = (key - first_) / PANEL;
    return {packed.panels + key_panels() * key_panel_ + panel * value_panel_ + row * PANEL * PANEL,
            packed.planes + key_panels() * key_planes_ +
                (panel * key_panels() + row) * value_planes_};
  }

  void pack(const AttentionOperands& operands, int64_t batch, int64_t kv_head, int64_t block,
            const Packed& packed) const {
    int64_t key = first_ + block * KEYS, keys = min_of(KEYS, last_ - key);
    const T* k =
        row_of(static_cast<const T*>(operands.k), shape_.k_strides, batch, kv_head, key);
    for (int64_t i = 0; i < keys; i += PANEL) {
      Packed target = this->keys(packed, key + i);
      pack_panel(k + i * shape_.k_strides[2], 1, shape_.k_strides[2], shape_.depth,
                 min_of<int64_t>(PANEL, keys - i), target.panels);
      Tiled::split(target.panels, shape_.depth, target.planes);
    }
    const T* v =
        row_of(static_cast<const T*>(operands.v), shape_.v_strides, batch, kv_head, key);
    int64_t written = padded_depth<T>(keys), padded = round_up(keys, PANEL);
    for (int64_t column = 0; column < shape_.value_depth; column += PANEL) {
      Packed target = values(packed, key, column);
      pack_panel(v + column, shape_.v_strides[2], 1, keys,
                 min_of<int64_t>(PANEL, shape_.value_depth - column), target.panels);
      memset(target.panels + written * PANEL, 0,
             static_cast<size_t>((padded - written) * PANEL) * sizeof(T));
      Tiled::split(target.panels, padded, target.planes);
    }
  }

 private:
  int64_t key_panels() const { return ceil_div(last_ - first_, PANEL); }
  int64_t columns() const { return ceil_div(shape_.value_depth, PANEL); }

  const AttentionShape& shape_;
  int64_t first_, last_, key_panel_, value_panel_;  // numbers of T
  int64_t key_planes_, value_planes_;               // numbers of bf16, of 32 keys
};

// Copies rows of a block, as what fills another.
template <class Row>
struct CopiedRows {
  const Row* rows;
  int64_t pitch;

  void operator()(int64_t row, Stretch stretch, Row* target) const {
    memcpy(target, rows + row * pitch + stretch.begin,
           static_cast<size_t>(stretch.count) * sizeof(Row));
  }
};

// Attends up to ROWS rows to the packed keys of their key head. Many rows are tiles of planes where
// numbers of T have them.
template <class T, int PLANES>
class Task {
  using Tiled = PlaneBlock<T, PLANES>;
  using Packed = typename Panels<T, PLANES>::Packed;
  using Copied = CopiedRows<Activations<T>>;

 public:
  Task(const AttentionShape& shape, const AttentionOperands& operands,
       const Panels<T, PLANES>& panels)
      : shape_(shape),
        operands_(operands),
        panels_(panels),
        q_pitch_(block_pitch<T>(shape.depth)),
        weights_pitch_(block_pitch<T>(KEYS)),
        q_(ROWS * q_pitch_),
        weights_(ROWS * weights_pitch_),
        scores_(ROWS * KEYS),
        out_(ROWS * round_up(shape.value_depth, PANEL)),
        products_(STRIP * PANEL),
        q_tiles_(ROWS, shape.depth),
        weight_tiles_(STRIP, KEYS),
        softmax_(shape, operands) {}

  void run(const QueryRows& rows, const Packed& packed) {
    rows_ = rows;
    const T* q = static_cast<const T*>(operands_.q);
    rows.each([&](int64_t row, int64_t head, int64_t query) {
      fill_block_row(row_of(q, shape_.q_strides, rows.batch, head, query), 1, shape_.depth,
                     q_ + row * q_pitch_);
    });
    is_tiled_ = rows.count() >= Tiled::LEAST_ROWS && shape_.depth > 0;
    for (int64_t row = 0; is_tiled_ && row < rows.count(); ++row) {
      q_tiles_.fill(queries(), row, {0, shape_.depth}, row);
    }
    softmax_.start(rows);
    memset(out_, 0,
           static_cast<size_t>(ROWS * round_up(shape_.value_depth, PANEL)) * sizeof(float));
    int64_t first, last;
    shape_.visible_to(rows.query, rows.query + rows.queries, &first, &last);
    for (int64_t key = first / PANEL * PANEL; key < last; key += KEYS) {
      attend(packed, key, ceil_div(min_of(KEYS, last - key), PANEL));
    }
    T* out = static_cast<T*>(operands_.out);
    rows.each([&](int64_t row, int64_t head, int64_t query) {
      T* target = row_of(out, shape_.out_strides, rows.batch, head, query);
      for (int64_t column = 0; column < shape_.value_depth; column += PANEL) {
        write_row(sums(row, column), softmax_.sum(row),
                  min_of<int64_t>(PANEL, shape_.value_depth - column), target + column);
      }
    });
  }

 private:
  // Rows [row, row + rows) and the panels of the block, [first, last), that any of them sees.
  struct Strip {
    int64_t row, rows, first, last;
  };

  void attend(const Packed& packed, int64_t key, int64_t panels) {
    Strip strips[STRIPS];
    int64_t count = 0;
    for (int64_t row = 0; row < rows_.count(); row += STRIP) {
      int64_t rows = min_of(STRIP, rows_.count() - row), first, last;
      shape_.visible_to(rows_.query_of(row), rows_.query_of(row + rows - 1) + 1, &first, &last);
      first = max_of<int64_t>(0, first - key) / PANEL;
      last = min_of(panels, ceil_div(max_of<int64_t>(0, last - key), PANEL));
      if (first < last) strips[count++] = {row, rows, first, last};
    }
    score(packed, key, panels, strips, count);
    softmax_.start_block(key, panels * PANEL);
    for (int64_t i = 0; i < count; ++i) {
      const Strip& strip = strips[i];
      softmax_.weigh(strip.row, strip.rows, key + strip.first * PANEL, strip.last - strip.first,
                     scores_ + (strip.first * ROWS + strip.row) * PANEL, PANEL, ROWS * PANEL,
                     weights_ + strip.row * weights_pitch_ + strip.first * PANEL, weights_pitch_);
    }
    for (int64_t i = 0; i < count; ++i) add_values(packed, key, strips[i]);
  }

  // scores_[panel][row][column]: strips that see a panel are neighbours.
  void score(const Packed& packed, int64_t key, int64_t panels, const Strip* strips,
             int64_t count) {
    for (int64_t panel = 0; panel < panels; ++panel) {
      int64_t row = ROWS, end = 0;
      for (int64_t i = 0; i < count; ++i) {
        if (panel < strips[i].first || panel >= strips[i].last) continue;
        row = min_of(row, strips[i].row);
        end = max_of(end, strips[i].row + strips[i].rows);
      }
      if (row >= end) continue;
      Packed keys = panels_.keys(packed, key + panel * PANEL);
      float* scores = scores_ + (panel * ROWS + row) * PANEL;
      if (is_tiled_) {
        q_tiles_.multiply_split(queries(), {row, row, end - row}, keys.planes, keys.panels,
                                shape_.depth, scores);
      } else {
        panel_product(q_ + row * q_pitch_, q_pitch_, end - row, keys.panels,
                      padded_depth<T>(shape_.depth), scores);
      }
    }
  }

  // Adds weights times values to sums that are brought to the new maximum first.
  void add_values(const Packed& packed, int64_t key, const Strip& strip) {
    for (int64_t row = strip.row; row < strip.row + strip.rows; ++row) {
      if (softmax_.rescale(row) == 1.0f) continue;
      Vec rescale = set(softmax_.rescale(row));
      for (int64_t column = 0; column < shape_.value_depth; column += PANEL) {
        float* line = sums(row, column);
        FUSEC_UNROLL
        for (int i = 0; i < PANEL; i += LANES) store(line + i, load(line + i) * rescale);
      }
    }
    const Activations<T>* rows = weights_ + strip.row * weights_pitch_ + strip.first * PANEL;
    Copied weights{rows, weights_pitch_};
    int64_t keys = (strip.last - strip.first) * PANEL;
    for (int64_t row = 0; is_tiled_ && row < strip.rows; ++row) {
      weight_tiles_.fill(weights, row, {0, keys}, row);
    }
    for (int64_t column = 0; column < shape_.value_depth; column += PANEL) {
      Packed values = panels_.values(packed, key + strip.first * PANEL, column);
      float* target = sums(strip.row, column);
      if (is_tiled_) {
        weight_tiles_.multiply_split(weights, {0, 0, strip.rows}, values.planes, values.panels,
                                     keys, products_);
        for (int64_t i = 0; i < strip.rows * PANEL; i += LANES) {
          store(target + i, load(target + i) + load(products_ + i));
        }
      } else {
        panel_product(rows, weights_pitch_, strip.rows, values.panels, keys, target, {}, true);
      }
    }
  }

  Copied queries() const { return {q_, q_pitch_}; }

  // Where a row has its sums for the panel of columns that begins at `column`.
  FUSEC_INLINE float* sums(int64_t row, int64_t column) const {
    return out_ + column * ROWS + row * PANEL;
  }

  const AttentionShape& shape_;
  const AttentionOperands& operands_;
  const Panels<T, PLANES>& panels_;
  int64_t q_pitch_, weights_pitch_;
  Scratch<Activations<T>> q_, weights_;
  Scratch<float> scores_, out_, products_;
  Tiled q_tiles_, weight_tiles_;
  bool is_tiled_ = false;
  Softmax<T, ROWS, KEYS> softmax_;
  TileScope scope_;
  QueryRows rows_ = {};
};

// Blocks of rows for each pair of batch and key head.
struct Blocks {
  int64_t group, queries, head_rows, query_rows, head_blocks, query_blocks;

  explicit Blocks(const AttentionShape& shape)
      : group(shape.group()),
        queries(shape.queries),
        head_rows(min_of(group, ROWS)),
        query_rows(min_of(queries, ROWS / head_rows)),
        head_blocks(ceil_div(group, head_rows)),
        query_blocks(ceil_div(queries, query_rows)) {}

  int64_t count() const { return head_blocks * query_blocks; }
  int64_t most_rows() const { return head_rows * query_rows; }

  // Late queries, which may see most keys, come first.
  QueryRows rows(int64_t batch, int64_t kv_head, int64_t block) const {
    int64_t head = block % head_blocks * head_rows;
    int64_t query = (query_blocks - 1 - block / head_blocks) * query_rows;
    return {batch, kv_head, kv_head * group + head, min_of(head_rows, group - head),
            query, min_of(query_rows, queries - query)};
  }
};

template <class T, int PLANES>
void attend_packed(const AttentionShape& shape, const AttentionOperands& operands) {
  constexpr int64_t PACKED_BYTES = 64 << 20;  // of the heads that are packed at a time
  int64_t first, last;
  shape.visible_to(0, shape.queries, &first, &last);
  Panels<T, PLANES> panels(shape, first / PANEL * PANEL, last);
  using Packed = typename Panels<T, PLANES>::Packed;
  Blocks blocks(shape);
  int64_t pairs = shape.batch * shape.kv_heads;
  int64_t size = panels.size(), planes_size = panels.planes_size();
  auto pack = [&](int64_t pair, int64_t block, const Packed& packed) {
    panels.pack(operands, pair / shape.kv_heads, pair % shape.kv_heads, block, packed);
  };
  auto rows = [&](int64_t pair, int64_t block) {
    return blocks.rows(pair / shape.kv_heads, pair % shape.kv_heads, block);
  };

  if (pairs >= 4 * int64_t{fusec_threads()}) {
    // Each thread packs for itself, and finds what it packed in its cache.
    parallel_for(pairs, 1, [&](int64_t begin, int64_t end, int) {
      Scratch<T> kept(size);
      Scratch<bf16> planes(planes_size);
      Packed packed{kept, planes};
      Task<T, PLANES> task(shape, operands, panels);
      for (int64_t pair = begin; pair < end; ++pair) {
        for (int64_t block = 0; block < panels.blocks(); ++block) pack(pair, block, packed);
        for (int64_t block = 0; block < blocks.count(); ++block) {
          task.run(rows(pair, block), packed);
        }
      }
    });
    return;
  }
  int64_t bytes = size * static_cast<int64_t>(sizeof(T)) + planes_size * 2;
  int64_t most = max_of<int64_t>(1, PACKED_BYTES / max_of<int64_t>(1, bytes));
  int64_t together = min_of(pairs, most);
  Scratch<T> kept(together * size);
  Scratch<bf16> planes(together * planes_size);
  auto packed = [&](int64_t at) { return Packed{kept + at * size, planes + at * planes_size}; };
  for (int64_t pair = 0; pair < pairs; pair += together) {
    int64_t count = min_of(together, pairs - pair);
    parallel_for(count * panels.blocks(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t at = i / panels.blocks();
        pack(pair + at, i % panels.blocks(), packed(at));
      }
    });
    parallel_for(count * blocks.count(), 1, [&](int64_t begin, int64_t end, int) {
      Task<T, PLANES> task(shape, operands, panels);
      for (int64_t i = begin; i < end; ++i) {
        int64_t at = i / blocks.count();
        task.run(rows(pair + at, i % blocks.count()), packed(at));
      }
    });
  }
}

template <class T>
void attention(void* const* buffers, const int64_t* params) {
  AttentionShape shape(params);
  if (shape.batch == 0 || shape.heads == 0 || shape.queries == 0) return;
  AttentionOperands operands(buffers, shape);
  if (FewRows<T>::takes(shape)) {
    FewRows<T>(shape, operands).run();
  } else {
    with_planes(static_cast<const T*>(operands.k), shape.precision, [&](auto planes) {
      constexpr int PLANES = decltype(planes)::VALUE;
      if (Blocks(shape).most_rows() >= PlaneBlock<T, PLANES>::LEAST_ROWS) {
        attend_packed<T, PLANES>(shape, operands);
      } else {
        attend_packed<T, 0>(shape, operands);
      }
    });
  }
}

// One query row at a time, with all its scores at once.
void attention_f64(void* const* buffers, const int64_t* params) {
  AttentionShape shape(params);
  if (shape.batch == 0 || shape.heads == 0 || shape.queries == 0) return;
  AttentionOperands operands(buffers, shape);
  double scale = f64_param(params[19]), softcap = f64_param(params[20]);
  int64_t group = shape.group();
  auto masked = [&](int64_t b, int64_t h, int64_t s, int64_t t, double score) {
    const int64_t* strides = shape.mask_strides;
    int64_t at = b * strides[0] + h * strides[1] + s * strides[2] + t * strides[3];
    if (shape.mask_kind == MASK_BOOL) {
      return static_cast<const uint8_t*>(operands.mask)[at] ? score : -__builtin_inf();
    }
    return score + (shape.mask_kind == MASK_F32 ? static_cast<const float*>(operands.mask)[at]
                                                : static_cast<const double*>(operands.mask)[at]);
  };
  int64_t work = shape.keys * (shape.depth + shape.value_depth + 40);
  parallel_for(shape.batch * shape.heads * shape.queries, grain_for(work),
               [&](int64_t begin, int64_t end, int) {
    Scratch<double> scores(shape.keys), sums(shape.value_depth);
    for (int64_t row = begin; row < end; ++row) {
      int64_t s = row % shape.queries, h = row / shape.queries % shape.heads;
      int64_t b = row / shape.queries / shape.heads, kv_head = h / group;
      const double* q = static_cast<const double*>(operands.q) + b * shape.q_strides[0] +
                        h * shape.q_strides[1] + s * shape.q_strides[2];
      const double* k = static_cast<const double*>(operands.k) + b * shape.k_strides[0] +
                        kv_head * shape.k_strides[1];
      const double* v = static_cast<const double*>(operands.v) + b * shape.v_strides[0] +
                        kv_head * shape.v_strides[1];
      const uint8_t* padding = static_cast<const uint8_t*>(operands.padding);
      double top = -__builtin_inf(), total = 0.0;
      if (shape.sinks_kind) {
        top = shape.sinks_kind == MASK_F32 ? static_cast<const float*>(operands.sinks)[h]
                                           : static_cast<const double*>(operands.sinks)[h];
      }
      double sink = top;
      int64_t first, last;
      shape.visible(s, &first, &last);
      for (int64_t t = first; t < last; ++t) {
        double score = 0.0;
        for (int64_t i = 0; i < shape.depth; ++i) score += q[i] * k[t * shape.k_strides[2] + i];
        score *= scale;
        if (softcap > 0.0) score = softcap * ::tanh(score / softcap);
        if (shape.mask_kind) score = masked(b, h, s, t, score);
        if (padding && !padding[b * shape.padding_strides[0] + t * shape.padding_strides[1]]) {
          score = -__builtin_inf();
        }
        scores[t] = score;
        if (score > top) top = score;
      }
      double shift = top == -__builtin_inf() ? 0.0 : top;
      if (shape.sinks_kind) total = ::exp(sink - shift);
      for (int64_t i = 0; i < shape.value_depth; ++i) sums[i] = 0.0;
      for (int64_t t = first; t < last; ++t) {
        double weight = ::exp(scores[t] - shift);
        total += weight;
        for (int64_t i = 0; i < shape.value_depth; ++i) {
          sums[i] += weight * v[t * shape.v_strides[2] + i];
        }
      }
      double* out = static_cast<double*>(operands.out) + b * shape.out_strides[0] +
                    h * shape.out_strides[1] + s * shape.out_strides[2];
      for (int64_t i = 0; i < shape.value_depth; ++i) {
        out[i] = total == 0.0 ? 0.0 : sums[i] / total;
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// q [B, H, S, D], k [B, Hkv, T, D], v [B, Hkv, T, Dv] -> out [B, H, S, Dv]; H is a multiple of Hkv.
// Query s stands at key position s + T - S. Rows that see no key are zero.
// buffers: q, k, v, [mask], [sinks [H]], [key_padding bool [B, T], true = keep], out
// params:  B, H, Hkv, S, T, D, Dv, q strides (b, h, s), k strides (b, h, t), v strides (b, h, t),
//          out strides (b, h, s), scale (f64), softcap (f64, 0 none), causal, window (-1 none),
//          chunk (-1 none), mask_kind (0 none, 1 bool, 2 additive in the dtype of q, 3 additive f32),
//          mask strides (b, h, s, t; 0 broadcasts), sinks_kind (0 none, 2 dtype of q, 3 f32),
//          has_key_padding, key_padding strides (b, t), precision (gemm.h Precision, for f32). The
//          last dim of q, k, v, out has stride 1. There is no window where there are chunks.
FUSEC_KERNEL void fusec_attention_f32(void* const* buffers, const int64_t* params) {
  fusec::attention<float>(buffers, params);
}
FUSEC_KERNEL void fusec_attention_bf16(void* const* buffers, const int64_t* params) {
  fusec::attention<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_attention_f16(void* const* buffers, const int64_t* params) {
  fusec::attention<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_attention_f64(void* const* buffers, const int64_t* params) {
  fusec::attention_f64(buffers, params);
}
