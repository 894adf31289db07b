// attention: softmax(mask(softcap(q k^T * scale))) v, one block of keys at a time.
//
// A task owns a block of query rows of the heads that share one key head, so that keys and values
// are packed once for all of them. Running maximum, sum and output live in f32 (the online softmax
// of FlashAttention); blocks of keys that no row of the task may see are never touched.
#include <fusec/double.h>
#include <fusec/gemm.h>

namespace fusec {
namespace {

constexpr int64_t ROWS = 96;   // query rows of a task: a multiple of both register tiles
constexpr int64_t KEYS = 128;  // keys of a block: four panels
constexpr float MINUS_INFINITY = -__builtin_inff();

enum MaskKind : int64_t { MASK_NONE = 0, MASK_BOOL = 1, MASK_SAME = 2, MASK_F32 = 3 };

// Reads params in the order of the comment above the entry points.
struct Shape {
  int64_t batch, heads, kv_heads, queries, keys, depth, value_depth;
  const int64_t *q_strides, *k_strides, *v_strides, *out_strides;
  float scale, softcap;
  bool causal;
  int64_t window, mask_kind;
  const int64_t* mask_strides;
  int64_t sinks_kind, has_padding;
  const int64_t* padding_strides;

  explicit Shape(const int64_t* p)
      : batch(p[0]), heads(p[1]), kv_heads(p[2]), queries(p[3]), keys(p[4]), depth(p[5]),
        value_depth(p[6]), q_strides(p + 7), k_strides(p + 10), v_strides(p + 13),
        out_strides(p + 16), scale(f32_param(p[19])), softcap(f32_param(p[20])),
        causal(p[21] != 0), window(p[22]), mask_kind(p[23]), mask_strides(p + 24),
        sinks_kind(p[28]), has_padding(p[29]), padding_strides(p + 30) {}

  // The keys that query `s` may see are [first, last).
  FUSEC_INLINE void visible(int64_t s, int64_t* first, int64_t* last) const {
    int64_t position = s + keys - queries;
    *first = window >= 0 ? max_of<int64_t>(0, position - window + 1) : 0;
    *last = causal ? position + 1 : window >= 0 ? position + window : keys;
    *last = max_of<int64_t>(0, min_of(*last, keys));
  }
};

struct Operands {
  const void *q, *k, *v, *mask, *sinks, *padding;
  void* out;

  Operands(void* const* buffers, const Shape& shape) {
    int next = 0;
    q = buffers[next++];
    k = buffers[next++];
    v = buffers[next++];
    mask = shape.mask_kind ? buffers[next++] : nullptr;
    sinks = shape.sinks_kind ? buffers[next++] : nullptr;
    padding = shape.has_padding ? buffers[next++] : nullptr;
    out = buffers[next];
  }
};

FUSEC_INLINE void store_activation(float* p, Vec value) { store(p, value); }
FUSEC_INLINE void store_activation(bf16* p, Vec value) { store(p, value); }

template <class T>
class Task {
 public:
  Task(const Shape& shape, const Operands& operands, int64_t head_rows, int64_t query_rows)
      : shape_(shape),
        operands_(operands),
        q_pitch_(block_pitch<T>(shape.depth)),
        p_pitch_(block_pitch<T>(KEYS)),
        out_pitch_(round_up(shape.value_depth, PANEL)),
        q_block_(head_rows * query_rows * q_pitch_),
        p_block_(head_rows * query_rows * p_pitch_),
        k_panels_(KEYS / PANEL * panel_size<T>(shape.depth)),
        v_panel_(panel_size<T>(KEYS)),
        scores_(head_rows * query_rows * KEYS),
        out_block_(head_rows * query_rows * out_pitch_) {}

  // Heads [head, head + heads) share key head `kv_head`; queries [query, query + queries).
  void run(int64_t batch, int64_t kv_head, int64_t head, int64_t heads, int64_t query,
           int64_t queries) {
    batch_ = batch;
    head_ = head;
    query_ = query;
    queries_ = queries;
    rows_ = heads * queries;
    start();
    int64_t first, last, ignored;
    shape_.visible(query, &first, &ignored);
    shape_.visible(query + queries - 1, &ignored, &last);
    for (int64_t key = first; key < last; key += KEYS) {
      block(kv_head, key, min_of(KEYS, last - key));
    }
    finish();
  }

 private:
  FUSEC_INLINE int64_t head_of(int64_t row) const { return head_ + row / queries_; }
  FUSEC_INLINE int64_t query_of(int64_t row) const { return query_ + row % queries_; }

  void start() {
    const T* q = static_cast<const T*>(operands_.q) + batch_ * shape_.q_strides[0];
    for (int64_t row = 0; row < rows_; ++row) {
      const T* source =
          q + head_of(row) * shape_.q_strides[1] + query_of(row) * shape_.q_strides[2];
      fill_block_row(source, 1, shape_.depth, q_block_ + row * q_pitch_);
      // A sink is a key without a value: it starts the running maximum and the sum.
      float sink = MINUS_INFINITY;
      if (shape_.sinks_kind == MASK_F32) {
        sink = static_cast<const float*>(operands_.sinks)[head_of(row)];
      } else if (shape_.sinks_kind) {
        sink = to_float(static_cast<const T*>(operands_.sinks)[head_of(row)]);
      }
      maximum_[row] = sink;
      sum_[row] = sink == MINUS_INFINITY ? 0.0f : 1.0f;
    }
    memset(out_block_, 0, static_cast<size_t>(rows_ * out_pitch_) * sizeof(float));
  }

  void block(int64_t kv_head, int64_t key, int64_t keys) {
    int64_t panels = ceil_div(keys, PANEL);
    const T* k = static_cast<const T*>(operands_.k) + batch_ * shape_.k_strides[0] +
                 kv_head * shape_.k_strides[1] + key * shape_.k_strides[2];
    for (int64_t panel = 0; panel < panels; ++panel) {
      T* packed = k_panels_ + panel * panel_size<T>(shape_.depth);
      pack_panel(k + panel * PANEL * shape_.k_strides[2], 1, shape_.k_strides[2], shape_.depth,
                 min_of<int64_t>(PANEL, keys - panel * PANEL), packed);
      panel_product(q_block_, q_pitch_, rows_, packed, padded_depth<T>(shape_.depth),
                    scores_ + panel * rows_ * PANEL);
    }
    fill_padding(key, keys, panels * PANEL);
    for (int64_t row = 0; row < rows_; ++row) softmax_row(row, key, keys, panels);

    const T* v = static_cast<const T*>(operands_.v) + batch_ * shape_.v_strides[0] +
                 kv_head * shape_.v_strides[1] + key * shape_.v_strides[2];
    alignas(64) float product[ROWS * PANEL];
    for (int64_t column = 0; column < shape_.value_depth; column += PANEL) {
      pack_panel(v + column, shape_.v_strides[2], 1, keys,
                 min_of<int64_t>(PANEL, shape_.value_depth - column), static_cast<T*>(v_panel_));
      panel_product(p_block_, p_pitch_, rows_, v_panel_, padded_depth<T>(keys), product);
      for (int64_t row = 0; row < rows_; ++row) {
        float* target = out_block_ + row * out_pitch_ + column;
        Vec rescale = set(rescale_[row]);
        for (int i = 0; i < PANEL; i += LANES) {
          store(target + i, fma(load(target + i), rescale, load(product + row * PANEL + i)));
        }
      }
    }
  }

  // key_bias_: 0 for a key inside the block that is not padding, else -inf.
  void fill_padding(int64_t key, int64_t keys, int64_t padded_keys) {
    const uint8_t* padding = static_cast<const uint8_t*>(operands_.padding);
    for (int64_t i = 0; i < padded_keys; ++i) {
      bool keep = i < keys;
      if (keep && padding) {
        keep = padding[batch_ * shape_.padding_strides[0] + (key + i) * shape_.padding_strides[1]];
      }
      key_bias_[i] = keep ? 0.0f : MINUS_INFINITY;
    }
  }

  // What the row's mask adds to the scores of keys [key, key + keys).
  void fill_mask(int64_t row, int64_t key, int64_t keys, float* bias) const {
    const int64_t* strides = shape_.mask_strides;
    int64_t offset = batch_ * strides[0] + head_of(row) * strides[1] +
                     query_of(row) * strides[2] + key * strides[3];
    int64_t step = strides[3];
    if (shape_.mask_kind == MASK_BOOL) {
      const uint8_t* mask = static_cast<const uint8_t*>(operands_.mask) + offset;
      for (int64_t i = 0; i < keys; ++i) bias[i] = mask[i * step] ? 0.0f : MINUS_INFINITY;
    } else if (shape_.mask_kind == MASK_F32) {
      const float* mask = static_cast<const float*>(operands_.mask) + offset;
      for (int64_t i = 0; i < keys; ++i) bias[i] = mask[i * step];
    } else {
      const T* mask = static_cast<const T*>(operands_.mask) + offset;
      for (int64_t i = 0; i < keys; ++i) bias[i] = to_float(mask[i * step]);
    }
  }

  // Turns the row's scores into weights in p_block_, and updates maximum, sum and rescale.
  void softmax_row(int64_t row, int64_t key, int64_t keys, int64_t panels) {
    int64_t first, last;
    shape_.visible(query_of(row), &first, &last);
    bool edges = first > key || last < key + keys || keys < panels * PANEL || operands_.padding;
    alignas(64) float bias[KEYS];
    if (edges) {
      for (int64_t i = 0; i < panels * PANEL; ++i) {
        bool seen = key + i >= first && key + i < last;
        bias[i] = seen ? key_bias_[i] : MINUS_INFINITY;
      }
    }
    alignas(64) float mask[KEYS];
    if (shape_.mask_kind) {
      memset(mask, 0, sizeof mask);
      fill_mask(row, key, keys, mask);
    }

    Vec scale = set(shape_.scale), top = set(MINUS_INFINITY);
    for (int64_t panel = 0; panel < panels; ++panel) {
      float* scores = scores_ + (panel * rows_ + row) * PANEL;
      for (int i = 0; i < PANEL; i += LANES) {
        int64_t column = panel * PANEL + i;
        Vec score = load(scores + i) * scale;
        if (shape_.softcap > 0.0f) {
          score = set(shape_.softcap) * tanh(score / set(shape_.softcap));
        }
        if (shape_.mask_kind) score = score + load(mask + column);
        if (edges) {
          // Selected, not added: what is hidden must not leak even if its score is NaN.
          Vec hidden = load(bias + column);
          score = select(less(hidden, zero()), hidden, score);
        }
        store(scores + i, score);
        top = max(top, score);
      }
    }
    float previous = maximum_[row];
    float maximum = max_of(previous, reduce_max(top));
    // All hidden so far: any finite shift gives exp(-inf) = 0.
    float shift = maximum == MINUS_INFINITY ? 0.0f : maximum;
    Vec total = zero();
    Activations<T>* weights = p_block_ + row * p_pitch_;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const float* scores = scores_ + (panel * rows_ + row) * PANEL;
      for (int i = 0; i < PANEL; i += LANES) {
        Vec weight = exp(load(scores + i) - set(shift));
        total = total + weight;
        store_activation(weights + panel * PANEL + i, weight);
      }
    }
    float rescale = previous == MINUS_INFINITY ? 0.0f : exp_of(previous - shift);
    maximum_[row] = maximum;
    rescale_[row] = rescale;
    sum_[row] = sum_[row] * rescale + reduce_add(total);
  }

  static FUSEC_INLINE float exp_of(float x) {
    alignas(64) float lanes[LANES];
    store(lanes, exp(set(x)));
    return lanes[0];
  }

  void finish() {
    T* out = static_cast<T*>(operands_.out) + batch_ * shape_.out_strides[0];
    for (int64_t row = 0; row < rows_; ++row) {
      T* target =
          out + head_of(row) * shape_.out_strides[1] + query_of(row) * shape_.out_strides[2];
      const float* source = out_block_ + row * out_pitch_;
      // A row without a key is zero.
      Vec scale = set(sum_[row] == 0.0f ? 0.0f : 1.0f / sum_[row]);
      int64_t i = 0;
      for (; i + LANES <= shape_.value_depth; i += LANES) store(target + i, load(source + i) * scale);
      if (i < shape_.value_depth) {
        store_partial(target + i, load(source + i) * scale,
                      static_cast<int>(shape_.value_depth - i));
      }
    }
  }

  const Shape& shape_;
  const Operands& operands_;
  int64_t q_pitch_, p_pitch_, out_pitch_;
  Scratch<Activations<T>> q_block_, p_block_;
  Scratch<T> k_panels_, v_panel_;
  Scratch<float> scores_, out_block_;  // scores: [panel][row][PANEL]
  float maximum_[ROWS], sum_[ROWS], rescale_[ROWS], key_bias_[KEYS];
  int64_t batch_ = 0, head_ = 0, query_ = 0, queries_ = 0, rows_ = 0;
};

template <class T>
void attention(void* const* buffers, const int64_t* params) {
  Shape shape(params);
  if (shape.batch == 0 || shape.heads == 0 || shape.queries == 0) return;
  Operands operands(buffers, shape);
  int64_t group = shape.heads / shape.kv_heads;
  int64_t head_rows = min_of(group, ROWS);
  int64_t query_rows = min_of(shape.queries, ROWS / head_rows);
  int64_t head_blocks = ceil_div(group, head_rows);
  int64_t query_blocks = ceil_div(shape.queries, query_rows);
  int64_t tasks = shape.batch * shape.kv_heads * head_blocks * query_blocks;
  int64_t task_work = head_rows * query_rows * shape.keys * (shape.depth + shape.value_depth) / 16;
  parallel_for(tasks, grain_for(task_work), [&](int64_t begin, int64_t end, int) {
    Task<T> task(shape, operands, head_rows, query_rows);
    for (int64_t i = begin; i < end; ++i) {
      int64_t query = i % query_blocks * query_rows, rest = i / query_blocks;
      int64_t head = rest % head_blocks * head_rows;
      rest /= head_blocks;
      int64_t kv_head = rest % shape.kv_heads, batch = rest / shape.kv_heads;
      task.run(batch, kv_head, kv_head * group + head, min_of(head_rows, group - head), query,
               min_of(query_rows, shape.queries - query));
    }
  });
}

// One query row at a time, with all its scores at once.
void attention_f64(void* const* buffers, const int64_t* params) {
  Shape shape(params);
  if (shape.batch == 0 || shape.heads == 0 || shape.queries == 0) return;
  Operands operands(buffers, shape);
  double scale = f64_param(params[19]), softcap = f64_param(params[20]);
  int64_t group = shape.heads / shape.kv_heads;
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
//          mask_kind (0 none, 1 bool, 2 additive in the dtype of q, 3 additive f32),
//          mask strides (b, h, s, t; 0 broadcasts), sinks_kind (0 none, 2 dtype of q, 3 f32),
//          has_key_padding, key_padding strides (b, t). The last dim of q, k, v, out has stride 1.
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
