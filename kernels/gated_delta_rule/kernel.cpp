// gated_delta_rule: the recurrence of Gated DeltaNet and Kimi Delta Attention, in chunks of steps.
//
// Within a chunk the recurrence is a triangular system (Yang et al., "Gated Delta Networks", 2024):
// with S the state before it, K and Q the keys and queries of its steps, and D(i, j) the decay from
// step j to step i,
//   X = beta (V - (K D(i, 0)) S) - tril(beta K K^T D, -1) X,    by substitution
//   out = (Q D(i, 0)) S + tril(Q K^T D) X
//   S = D(last, 0) S + (K D(last, i))^T X
// All products are those of packed panels: a state of 32 columns is a panel, and so is X. Decays are
// products of those of single steps, never quotients: nothing overflows. Columns of the state never
// meet, so that they split between threads without changing the result.
#include <fusec/panels.h>

namespace fusec {
namespace {

struct DeltaParams {
  int64_t batch, steps, key_heads, heads, key_depth, value_depth;
  const int64_t *q, *k, *v, *gate, *beta, *out;  // strides (b, s, h)
  int64_t gate_kind, beta_kind, gate_step;
  float scale, eps;
  bool normalise;

  explicit DeltaParams(const int64_t* p)
      : batch(p[0]), steps(p[1]), key_heads(p[2]), heads(p[3]), key_depth(p[4]), value_depth(p[5]),
        q(p + 6), k(p + 9), v(p + 12), gate(p + 15), beta(p + 18), out(p + 21), gate_kind(p[24]),
        beta_kind(p[25]), gate_step(p[26]), scale(f32_param(p[27])), eps(f32_param(p[28])),
        normalise(p[29] != 0) {}
};

constexpr int64_t STEPS = PANEL;  // of a chunk: its keys are one panel

FUSEC_INLINE int64_t at(const int64_t* strides, int64_t batch, int64_t step, int64_t head) {
  return batch * strides[0] + step * strides[1] + head * strides[2];
}

// Reads a row as f32, divided by its length if asked, times `scale`.
template <class T>
FUSEC_INLINE void read_row(const T* x, int64_t n, bool normalise, float eps, float scale,
                           float* row) {
  if (normalise) {
    float squares = sum_squares(n, [=](int64_t i, int count) { return load_some(x + i, count); });
    scale = scale / __builtin_sqrtf(squares + eps);
  }
  for_vectors(n, [=](int64_t i, int count) {
    store_some(row + i, load_some(x + i, count) * set(scale), count);
  });
}

template <class T>
FUSEC_INLINE float read_one(const void* values, int64_t kind, int64_t offset) {
  return kind == WEIGHT_F32 ? static_cast<const float*>(values)[offset]
                            : to_float(static_cast<const T*>(values)[offset]);
}

// What a chunk of steps of one head is to every column of the state.
template <class T>
class Chunk {
 public:
  Chunk(const DeltaParams& params, void* const* buffers)
      : p_(params),
        q_(static_cast<const T*>(buffers[0])),
        k_(static_cast<const T*>(buffers[1])),
        gate_(buffers[3]),
        beta_(buffers[4]),
        depth_(params.key_depth),
        pitch_(block_pitch<float>(params.key_depth)),
        rows_(2 * STEPS * pitch_),
        panel_(panel_size<float>(params.key_depth)),
        products_(2 * STEPS * PANEL),
        decays_(STEPS * pitch_),
        spent_(2 * pitch_),
        kept_(depth_ * STEP_PITCH) {}

  int64_t steps() const { return steps_; }
  int64_t pitch() const { return pitch_; }
  const float* reads() const { return rows_; }             // [2 * steps][pitch]: of keys, queries
  const float* kept() const { return kept_; }              // [depth][STEP_PITCH]
  const float* inner() const { return inner_; }            // [steps][STEP_PITCH]
  const float* lower(int64_t i) const { return lower_ + i * STEPS; }
  const float* decay() const { return spent_; }            // [depth], over all of the chunk
  float strength(int64_t i) const { return strengths_[i]; }

  static constexpr int64_t STEP_PITCH = STEPS + 16;  // rows begin in different sets of the cache

  void read(int64_t batch, int64_t head, int64_t step, int64_t steps) {
    steps_ = steps;
    int64_t key_head = head / (p_.heads / p_.key_heads);
    float *keys = rows_, *queries = rows_ + steps * pitch_;
    for (int64_t i = 0; i < steps; ++i) {
      read_row(k_ + at(p_.k, batch, step + i, key_head), depth_, p_.normalise, p_.eps, 1.0f,
               keys + i * pitch_);
      read_row(q_ + at(p_.q, batch, step + i, key_head), depth_, p_.normalise, p_.eps, p_.scale,
               queries + i * pitch_);
      strengths_[i] = read_one<T>(beta_, p_.beta_kind, at(p_.beta, batch, step + i, head));
      read_decay(at(p_.gate, batch, step + i, head), decays_ + i * pitch_);
    }
    if (p_.gate_step == 0) {
      multiply_pairs(keys);
    } else {
      multiply_pairs_by_channel(keys, queries);
    }
    keep(keys);
    spend();
  }

 private:
  void read_decay(int64_t gate_at, float* decay) const {
    if (p_.gate_step == 0) {
      Vec one = exp(set(read_one<T>(gate_, p_.gate_kind, gate_at)));
      for_vectors(depth_, [=](int64_t i, int count) { store_some(decay + i, one, count); });
      return;
    }
    for (int64_t i = 0; i < depth_; ++i) {
      decay[i] = read_one<T>(gate_, p_.gate_kind, gate_at + i * p_.gate_step);
    }
    for_vectors(depth_, [=](int64_t i, int count) {
      store_some(decay + i, exp(load_some(decay + i, count)), count);
    });
  }

  // lower_ and inner_ where a step has one decay: a product, and factors upon it.
  void multiply_pairs(const float* keys) {
    pack_panel<float>(keys, 1, pitch_, depth_, steps_, panel_);
    panel_product(rows_, pitch_, 2 * steps_, panel_, depth_, products_);
    for (int64_t i = 0; i < steps_; ++i) {
      const float *of_key = products_ + i * PANEL, *of_query = products_ + (steps_ + i) * PANEL;
      float decay = 1.0f;
      for (int64_t j = i; j >= 0; --j) {
        set_pair(i, j, of_key[j] * decay, of_query[j] * decay);
        decay *= decays_[j * pitch_];
      }
      clear_future(i);
    }
  }

  // The same where each channel has its own: the decay from j to i grows as j goes back.
  void multiply_pairs_by_channel(const float* keys, const float* queries) {
    float* decay = spent_;
    for (int64_t i = 0; i < steps_; ++i) {
      for_vectors(depth_, [=](int64_t d, int count) { store_some(decay + d, set(1.0f), count); });
      const float *key = keys + i * pitch_, *query = queries + i * pitch_;
      for (int64_t j = i; j >= 0; --j) {
        const float *other = keys + j * pitch_, *step = decays_ + j * pitch_;
        Vec of_key = zero(), of_query = zero();
        for_vectors(depth_, [&](int64_t d, int count) {
          Vec factor = load_some(decay + d, count);
          Vec decayed = load_some(other + d, count) * factor;
          of_key = fma(load_some(key + d, count), decayed, of_key);
          of_query = fma(load_some(query + d, count), decayed, of_query);
          store_some(decay + d, factor * load_some(step + d, count), count);
        });
        set_pair(i, j, reduce_add(of_key), reduce_add(of_query));
      }
      clear_future(i);
    }
  }

  FUSEC_INLINE void set_pair(int64_t i, int64_t j, float of_key, float of_query) {
    lower_[i * STEPS + j] = strengths_[i] * of_key;
    inner_[i * STEP_PITCH + j] = of_query;
  }
  FUSEC_INLINE void clear_future(int64_t i) {
    for (int64_t j = i + 1; j < steps_; ++j) inner_[i * STEP_PITCH + j] = 0.0f;
  }

  // kept_: what is left of each key at the end of the chunk, transposed.
  void keep(const float* keys) {
    float* left = spent_;
    for_vectors(depth_, [=](int64_t d, int count) { store_some(left + d, set(1.0f), count); });
    for (int64_t i = steps_ - 1; i >= 0; --i) {
      const float *key = keys + i * pitch_, *step = decays_ + i * pitch_;
      for (int64_t d = 0; d < depth_; ++d) {
        kept_[d * STEP_PITCH + i] = key[d] * left[d];
        left[d] *= step[d];
      }
    }
  }

  // Keys and queries become what they read of the state before the chunk.
  void spend() {
    float* spent = spent_;
    for_vectors(depth_, [=](int64_t d, int count) { store_some(spent + d, set(1.0f), count); });
    for (int64_t i = 0; i < steps_; ++i) {
      float *key = rows_ + i * pitch_, *query = rows_ + (steps_ + i) * pitch_;
      const float* step = decays_ + i * pitch_;
      for_vectors(depth_, [=](int64_t d, int count) {
        Vec factor = load_some(spent + d, count) * load_some(step + d, count);
        store_some(spent + d, factor, count);
        store_some(key + d, load_some(key + d, count) * factor, count);
        store_some(query + d, load_some(query + d, count) * factor, count);
      });
    }
  }

  const DeltaParams& p_;
  const T *q_, *k_;
  const void *gate_, *beta_;
  int64_t depth_, pitch_, steps_ = 0;
  Scratch<float> rows_, panel_, products_, decays_, spent_, kept_;
  alignas(64) float lower_[STEPS * STEPS], inner_[STEPS * STEP_PITCH];
  float strengths_[STEPS];
};

// A panel of the state, of columns [column, column + columns), over a chunk.
template <class T>
class Columns {
 public:
  explicit Columns(const DeltaParams& params) : p_(params) {}

  // v and out are at the first step of the chunk.
  void advance(const Chunk<T>& chunk, const T* v, int64_t columns, bool first, bool last,
               float* state, T* out) {
    int64_t steps = chunk.steps(), depth = p_.key_depth;
    if (first) {
      memset(held_, 0, static_cast<size_t>(2 * steps) * PANEL * sizeof(float));
    } else {
      panel_product(chunk.reads(), chunk.pitch(), 2 * steps, state, depth, held_);
    }
    for (int64_t i = 0; i < steps; ++i) solve(chunk, i, v + i * p_.v[1], columns);
    float* read = held_ + steps * PANEL;
    panel_product(chunk.inner(), Chunk<T>::STEP_PITCH, steps, change_, steps, read, {}, true);
    for (int64_t i = 0; i < steps; ++i) {
      T* target = out + i * p_.out[1];
      for_vectors(columns, [=](int64_t j, int count) {
        store_some(target + j, load(read + i * PANEL + j), count);
      });
    }
    if (last) return;
    if (!first) {
      for (int64_t d = 0; d < depth; ++d) {
        Vec decay = set(chunk.decay()[d]);
        FUSEC_UNROLL
        for (int j = 0; j < PANEL; j += LANES) {
          store(state + d * PANEL + j, load(state + d * PANEL + j) * decay);
        }
      }
    }
    panel_product(chunk.kept(), Chunk<T>::STEP_PITCH, depth, change_, steps, state, {}, !first);
  }

 private:
  // Row i of X, from those before it: two chains.
  FUSEC_INLINE void solve(const Chunk<T>& chunk, int64_t i, const T* value, int64_t columns) {
    const float* lower = chunk.lower(i);
    Vec strength = set(chunk.strength(i));
    for (int64_t j = 0; j < PANEL; j += LANES) {
      int count = static_cast<int>(min_of<int64_t>(LANES, max_of<int64_t>(0, columns - j)));
      Vec wanted = count > 0 ? load_some(value + j, count) : zero();
      Vec sum[2] = {(wanted - load(held_ + i * PANEL + j)) * strength, zero()};
      int64_t before = 0;
      for (; before + 2 <= i; before += 2) {
        sum[0] = fnma(set(lower[before]), load(change_ + before * PANEL + j), sum[0]);
        sum[1] = fnma(set(lower[before + 1]), load(change_ + (before + 1) * PANEL + j), sum[1]);
      }
      if (before < i) sum[0] = fnma(set(lower[before]), load(change_ + before * PANEL + j), sum[0]);
      store(change_ + i * PANEL + j, sum[0] + sum[1]);
    }
  }

  const DeltaParams& p_;
  alignas(64) float held_[2 * STEPS * PANEL], change_[STEPS * PANEL];
};

template <class T>
void gated_delta_rule(void* const* buffers, const int64_t* params) {
  DeltaParams p(params);
  const T* v = static_cast<const T*>(buffers[2]);
  T* out = static_cast<T*>(buffers[5]);
  int64_t panels = ceil_div(p.value_depth, PANEL), states = p.batch * p.heads;
  // All columns of a head share its chunks, unless there are too few heads for the threads.
  int64_t parts = min_of(panels, ceil_div(2 * int64_t{fusec_threads()}, max_of<int64_t>(1, states)));
  int64_t together = ceil_div(panels, max_of<int64_t>(1, parts));
  parts = ceil_div(panels, max_of<int64_t>(1, together));
  parallel_for(states * parts, grain_for(p.steps * p.key_depth * together), [&](int64_t begin,
                                                                               int64_t end, int) {
    Chunk<T> chunk(p, buffers);
    Columns<T> columns(p);
    int64_t size = p.key_depth * PANEL;
    Scratch<float> state(together * size);
    for (int64_t task = begin; task < end; ++task) {
      int64_t head = task / parts % p.heads, batch = task / parts / p.heads;
      int64_t first = task % parts * together, last = min_of(panels, first + together);
      for (int64_t step = 0; step < p.steps; step += STEPS) {
        chunk.read(batch, head, step, min_of(STEPS, p.steps - step));
        for (int64_t panel = first; panel < last; ++panel) {
          int64_t column = panel * PANEL;
          columns.advance(chunk, v + at(p.v, batch, step, head) + column,
                          min_of<int64_t>(PANEL, p.value_depth - column), step == 0,
                          step + STEPS >= p.steps, state + (panel - first) * size,
                          out + at(p.out, batch, step, head) + column);
        }
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// q, k [B, S, Hk, Dk], v [B, S, H, Dv], gate [B, S, H] or [B, S, H, Dk], beta [B, S, H] -> out
// [B, S, H, Dv]; per head, from S = 0:
//   S = diag(exp(gate)) S;  S += k (beta (v - k^T S))^T;  out = scale q^T S
// buffers: q, k, v, gate, beta, out; stride 1 along Dk and Dv
// params:  B, S, Hk, H, Dk, Dv, strides (b, s, h) of q, k, v, gate, beta and out, gate_kind,
//          beta_kind (1 dtype of v, 2 f32), gate_step (stride along Dk; 0 for one gate a head),
//          scale (f64), eps (f64), qk_l2_norm
FUSEC_KERNEL void fusec_gated_delta_rule_f32(void* const* buffers, const int64_t* params) {
  fusec::gated_delta_rule<float>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_delta_rule_bf16(void* const* buffers, const int64_t* params) {
  fusec::gated_delta_rule<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_gated_delta_rule_f16(void* const* buffers, const int64_t* params) {
  fusec::gated_delta_rule<fusec::f16>(buffers, params);
}
