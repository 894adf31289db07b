// What the forms of attention on the CPU share: parameters, rows of queries, and the softmax.
#pragma once

#include <fusec/amx.h>
#include <fusec/panels.h>

namespace fusec {

constexpr float MINUS_INFINITY = -__builtin_inff();

enum MaskKind : int64_t { MASK_NONE = 0, MASK_BOOL = 1, MASK_SAME = 2, MASK_F32 = 3 };

// Reads params in the order of the comment above the entry points.
struct AttentionShape {
  int64_t batch, heads, kv_heads, queries, keys, depth, value_depth;
  const int64_t *q_strides, *k_strides, *v_strides, *out_strides;
  float scale, softcap;
  bool causal;
  int64_t window, chunk, mask_kind;
  const int64_t* mask_strides;
  int64_t sinks_kind, has_padding;
  const int64_t* padding_strides;
  int64_t precision;

  explicit AttentionShape(const int64_t* p)
      : batch(p[0]), heads(p[1]), kv_heads(p[2]), queries(p[3]), keys(p[4]), depth(p[5]),
        value_depth(p[6]), q_strides(p + 7), k_strides(p + 10), v_strides(p + 13),
        out_strides(p + 16), scale(f32_param(p[19])), softcap(f32_param(p[20])),
        causal(p[21] != 0), window(p[22]), chunk(p[23]), mask_kind(p[24]), mask_strides(p + 25),
        sinks_kind(p[29]), has_padding(p[30]), padding_strides(p + 31),
        precision(p[33]) {}

  int64_t group() const { return heads / kv_heads; }

  // The keys that query `s` may see are [first, last).
  FUSEC_INLINE void visible(int64_t s, int64_t* first, int64_t* last) const {
    int64_t position = s + keys - queries;
    *first = 0;
    *last = keys;
    if (window >= 0) {
      *first = max_of<int64_t>(0, position - window + 1);
      *last = position + window;
    } else if (chunk > 0 && position >= 0) {
      *first = position / chunk * chunk;
      *last = *first + chunk;
    } else if (chunk > 0) {  // in a chunk before the first key
      *last = 0;
    }
    if (causal) *last = position + 1;
    *last = max_of<int64_t>(0, min_of(*last, keys));
  }

  // The keys that queries [from, to) may see together are [first, last).
  FUSEC_INLINE void visible_to(int64_t from, int64_t to, int64_t* first, int64_t* last) const {
    int64_t ignored;
    visible(from, first, &ignored);
    visible(to - 1, &ignored, last);
    *first = min_of(*first, *last);
  }
};

struct AttentionOperands {
  const void *q, *k, *v, *mask, *sinks, *padding;
  void* out;

  AttentionOperands(void* const* buffers, const AttentionShape& shape) {
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

// Queries [query, query + queries) of heads [head, head + heads), which share a key head. Rows of
// one query are neighbours: what a block of keys may be seen by are neighbours, too.
struct QueryRows {
  int64_t batch, kv_head, head, heads, query, queries;

  int64_t count() const { return heads * queries; }
  FUSEC_INLINE int64_t head_of(int64_t row) const { return head + row % heads; }
  FUSEC_INLINE int64_t query_of(int64_t row) const { return query + row / heads; }

  // Calls body(row, head, query) for every row.
  template <class Body>
  FUSEC_INLINE void each(const Body& body) const {
    int64_t row = 0;
    for (int64_t i = 0; i < queries; ++i) {
      for (int64_t j = 0; j < heads; ++j) body(row++, head + j, query + i);
    }
  }
};

// The address of row (batch, head, step) of an operand with such strides.
template <class T>
FUSEC_INLINE T* row_of(T* base, const int64_t* strides, int64_t batch, int64_t head,
                       int64_t step) {
  return base + batch * strides[0] + head * strides[1] + step * strides[2];
}

// 2^x for x <= 0: a polynomial in the fraction, of least relative error with 1 as its constant (2e-9,
// or 3e-6 where the result is rounded to 11 bits or fewer). What is below 2^-100 is 0, and is not
// computed: subnormal results, here or in products with it, take a processor 100 cycles each.
template <class T>
FUSEC_INLINE Vec exp2_of_negative(Vec x) {
  Vec n = round(x), r = x - n, p;
  if (sizeof(T) == sizeof(float)) {
    p = set(0.00015353361959569156f);
    p = fma(p, r, set(0.0013398873852565885f));
    p = fma(p, r, set(0.00961843691766262f));
    p = fma(p, r, set(0.055503323674201965f));
    p = fma(p, r, set(0.24022647738456726f));
    p = fma(p, r, set(0.6931471824645996f));
  } else {
    p = set(0.009582852944731712f);
    p = fma(p, r, set(0.055906426161527634f));
    p = fma(p, r, set(0.24024099111557007f));
    p = fma(p, r, set(0.6931241750717163f));
  }
  p = fma(p, r, set(1.0f));
#if FUSEC_AVX512
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, set(-100.0f), _CMP_NLT_UQ), p, n);
#else
  __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  return select(less(x, set(-100.0f)), zero(), p);
#endif
}

FUSEC_INLINE void store_weight(float* p, Vec value) { store(p, value); }
#if FUSEC_BF16_PAIRS
FUSEC_INLINE void store_weight(bf16* p, Vec value) {
#if FUSEC_EMULATED_AVX512BF16
  store(p, value);
#else
  // Weights are never subnormal, which the instruction would flush.
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(value));
#endif
}
#endif

// The online softmax of FlashAttention (Dao et al., 2022) over blocks of up to KEYS keys: turns
// scores into weights, and keeps the maximum and the sum of each of up to ROWS rows.
//
// Where nothing is added to scores and the scale is positive, they stay as the product gives them,
// and the scale joins the factor of the exponent.
template <class T, int64_t ROWS, int64_t KEYS>
class Softmax {
 public:
  Softmax(const AttentionShape& shape, const AttentionOperands& operands)
      : shape_(shape), operands_(operands) {
    plain_ = shape.softcap <= 0.0f && shape.mask_kind <= MASK_BOOL && shape.scale > 0.0f;
    unit_ = plain_ ? shape.scale : 1.0f;
    factor_ = unit_ * 1.44269504088896341f;
  }

  void start(const QueryRows& rows) {
    rows_ = rows;
    rows.each([&](int64_t row, int64_t head, int64_t query) {
      // A sink is a key without a value: it starts the running maximum and the sum.
      float sink = MINUS_INFINITY;
      if (shape_.sinks_kind == MASK_F32) {
        sink = static_cast<const float*>(operands_.sinks)[head];
      } else if (shape_.sinks_kind) {
        sink = to_float(static_cast<const T*>(operands_.sinks)[head]);
      }
      maximum_[row] = sink / unit_;
      sum_[row] = sink == MINUS_INFINITY ? 0.0f : 1.0f;
      shape_.visible(query, &first_[row], &last_[row]);
    });
  }

  // Sinks count once where several tasks share the keys of a row.
  void forget_sinks() {
    for (int64_t row = 0; row < rows_.count(); ++row) {
      maximum_[row] = MINUS_INFINITY;
      sum_[row] = 0.0f;
    }
  }

  // Has to be called before the rows of a block of keys; `keys` may go past the last one.
  void start_block(int64_t key, int64_t keys) {
    const uint8_t* padding = static_cast<const uint8_t*>(operands_.padding);
    if (!padding) return;
    padding += rows_.batch * shape_.padding_strides[0];
    for (int64_t i = 0; i < keys; ++i) {
      bool keep = key + i < shape_.keys && padding[(key + i) * shape_.padding_strides[1]];
      padding_bias_[i] = keep ? 0.0f : MINUS_INFINITY;
    }
    block_ = key;
  }

  // Scores of rows [row, row + rows) for keys [key, key + panels * PANEL) of the block become weights,
  // which may lie upon them. Scores of a panel are neighbours.
  template <class Weight>
  void weigh(int64_t row, int64_t rows, int64_t key, int64_t panels, float* scores,
             int64_t row_step, int64_t panel_step, Weight* weights, int64_t weights_pitch) {
    // One loop after the other: rows do not wait for each other within a loop.
    for (int64_t i = 0; i < rows; ++i) {
      float* line = scores + i * row_step;
      if (!plain_) transform(row + i, key, panels, line, panel_step);
      bool edges = first_[row + i] > key || last_[row + i] < key + panels * PANEL ||
                   operands_.padding || shape_.mask_kind == MASK_BOOL;
      if (edges) hide(row + i, key, panels, line, panel_step);
      Vec top = set(maximum_[row + i]);
      for (int64_t panel = 0; panel < panels; ++panel) {
        FUSEC_UNROLL
        for (int j = 0; j < PANEL; j += LANES) top = max(load(line + panel * panel_step + j), top);
      }
      next_maximum_[row + i] = reduce_max(top);
    }
    for_vectors(rows, [&](int64_t i, int count) {
      Vec next = load_some(next_maximum_ + row + i, count);
      Vec rescale = worth(load_some(maximum_ + row + i, count), next);
      store_some(maximum_ + row + i, next, count);
      store_some(rescale_ + row + i, rescale, count);
      store_some(sum_ + row + i, load_some(sum_ + row + i, count) * rescale, count);
    });
    for (int64_t i = 0; i < rows; ++i) {
      const float* line = scores + i * row_step;
      float maximum = maximum_[row + i];
      // All hidden so far: any finite shift gives 2^-inf = 0.
      Vec shift = set(maximum == MINUS_INFINITY ? 0.0f : maximum), factor = set(factor_);
      Vec total[2] = {zero(), zero()};
      for (int64_t panel = 0; panel < panels; ++panel) {
        FUSEC_UNROLL
        for (int j = 0; j < PANEL; j += LANES) {
          Vec score = load(line + panel * panel_step + j);
          Vec weight = exp2_of_negative<T>((score - shift) * factor);
          total[j / LANES % 2] = total[j / LANES % 2] + weight;
          store_weight(weights + i * weights_pitch + panel * PANEL + j, weight);
        }
      }
      sum_[row + i] += reduce_add(total[0] + total[1]);
    }
  }

  // What weights that were found when the maximum was `previous` are worth at `maximum`.
  FUSEC_INLINE Vec worth(Vec previous, Vec maximum) const {
    Vec less_now = exp2_of_negative<float>((previous - maximum) * set(factor_));
    Vec value = select(less(previous, maximum), less_now, set(1.0f));
    return select(less(set(MINUS_INFINITY), previous), value, zero());
  }

  float maximum(int64_t row) const { return maximum_[row]; }
  float sum(int64_t row) const { return sum_[row]; }
  float rescale(int64_t row) const { return rescale_[row]; }

 private:
  // scale, softcap and what the mask adds.
  void transform(int64_t row, int64_t key, int64_t panels, float* scores, int64_t panel_step) {
    alignas(64) float added[KEYS];
    bool adds = shape_.mask_kind > MASK_BOOL;
    if (adds) {
      memset(added, 0, sizeof added);
      int64_t offset = mask_offset(row, key), step = shape_.mask_strides[3];
      int64_t keys = min_of(panels * PANEL, shape_.keys - key);
      if (shape_.mask_kind == MASK_F32) {
        const float* mask = static_cast<const float*>(operands_.mask) + offset;
        for (int64_t i = 0; i < keys; ++i) added[i] = mask[i * step];
      } else {
        const T* mask = static_cast<const T*>(operands_.mask) + offset;
        for (int64_t i = 0; i < keys; ++i) added[i] = to_float(mask[i * step]);
      }
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int i = 0; i < PANEL; i += LANES) {
        float* place = scores + panel * panel_step + i;
        Vec score = load(place) * set(shape_.scale);
        if (shape_.softcap > 0.0f) {
          score = set(shape_.softcap) * tanh(score / set(shape_.softcap));
        }
        if (adds) score = score + load(added + panel * PANEL + i);
        store(place, score);
      }
    }
  }

  // Scores of keys that the row may not see, of padding, and of what a bool mask hides become -inf.
  // Selected, not added: what is hidden must not leak even if its score is NaN.
  void hide(int64_t row, int64_t key, int64_t panels, float* scores, int64_t panel_step) {
    alignas(64) float steps[LANES], masked[KEYS];
    for (int i = 0; i < LANES; ++i) steps[i] = static_cast<float>(i);
    bool has_mask = shape_.mask_kind == MASK_BOOL;
    if (has_mask) {
      const uint8_t* mask = static_cast<const uint8_t*>(operands_.mask) + mask_offset(row, key);
      int64_t keys = min_of(panels * PANEL, shape_.keys - key), step = shape_.mask_strides[3];
      memset(masked, 0, sizeof masked);
      for (int64_t i = 0; i < keys; ++i) masked[i] = mask[i * step] ? 0.0f : MINUS_INFINITY;
    }
    Vec begin = set(static_cast<float>(max_of<int64_t>(first_[row] - key, -1)));
    Vec end = set(static_cast<float>(min_of(last_[row] - key, KEYS)));
    Vec hidden = set(MINUS_INFINITY);
    for (int64_t panel = 0; panel < panels; ++panel) {
      for (int i = 0; i < PANEL; i += LANES) {
        float* place = scores + panel * panel_step + i;
        int64_t column = panel * PANEL + i;
        Vec position = load(steps) + set(static_cast<float>(column));
        Vec score = select(less(position, end), load(place), hidden);
        score = select(less(position, begin), hidden, score);
        if (has_mask) score = select(less(load(masked + column), zero()), hidden, score);
        if (operands_.padding) {
          Vec bias = load(padding_bias_ + (key - block_) + column);
          score = select(less(bias, zero()), hidden, score);
        }
        store(place, score);
      }
    }
  }

  FUSEC_INLINE int64_t mask_offset(int64_t row, int64_t key) const {
    const int64_t* strides = shape_.mask_strides;
    return rows_.batch * strides[0] + rows_.head_of(row) * strides[1] +
           rows_.query_of(row) * strides[2] + key * strides[3];
  }

  const AttentionShape& shape_;
  const AttentionOperands& operands_;
  bool plain_;
  float unit_, factor_;  // what a score counts; what turns a difference of scores into powers of 2
  QueryRows rows_ = {};
  int64_t block_ = 0;
  float maximum_[ROWS], next_maximum_[ROWS], sum_[ROWS], rescale_[ROWS];
  int64_t first_[ROWS], last_[ROWS];  // keys that a row may see
  alignas(64) float padding_bias_[KEYS];
};

// out = sums / total; a row without a key is zero.
template <class T>
FUSEC_INLINE void write_row(const float* sums, float total, int64_t n, T* out) {
  Vec scale = set(total == 0.0f ? 0.0f : 1.0f / total);
  for_vectors(n, [=](int64_t i, int count) {
    store_some(out + i, load(sums + i) * scale, count);
  });
}

}  // namespace fusec
