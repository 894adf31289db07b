// gated_delta_rule: the recurrence of Gated DeltaNet and Kimi Delta Attention, one step at a time.
//
// The state S [Dk, Dv] of a head stays in the cache in f32. A task owns some columns of one head:
// columns of S never meet, so that they split between threads without changing the result.
#include <fusec/rows.h>

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

constexpr int64_t COLUMNS = 32;  // of the state, per task

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

template <class T>
void gated_delta_rule(void* const* buffers, const int64_t* params) {
  DeltaParams p(params);
  const T* q = static_cast<const T*>(buffers[0]);
  const T* k = static_cast<const T*>(buffers[1]);
  const T* v = static_cast<const T*>(buffers[2]);
  const void *gate = buffers[3], *beta = buffers[4];
  T* out = static_cast<T*>(buffers[5]);
  constexpr int VECTORS = COLUMNS / LANES;
  int64_t parts = ceil_div(p.value_depth, COLUMNS);
  int64_t depth = p.key_depth, padded = round_up(depth, LANES);
  bool channel_gate = p.gate_step != 0;
  parallel_for(p.batch * p.heads * parts, 1, [&](int64_t begin, int64_t end, int) {
    Scratch<float> state(depth * COLUMNS), rows(3 * padded);
    float *key = rows, *query = key + padded, *decay = query + padded;
    for (int64_t task = begin; task < end; ++task) {
      int64_t part = task % parts, head = task / parts % p.heads, batch = task / parts / p.heads;
      int64_t key_head = head / (p.heads / p.key_heads);
      int64_t column = part * COLUMNS, columns = min_of(COLUMNS, p.value_depth - column);
      memset(state, 0, static_cast<size_t>(depth * COLUMNS) * sizeof(float));
      for (int64_t step = 0; step < p.steps; ++step) {
        read_row(k + at(p.k, batch, step, key_head), depth, p.normalise, p.eps, 1.0f, key);
        read_row(q + at(p.q, batch, step, key_head), depth, p.normalise, p.eps, p.scale, query);
        int64_t gate_at = at(p.gate, batch, step, head);
        if (channel_gate) {
          for (int64_t i = 0; i < depth; ++i) {
            decay[i] = read_one<T>(gate, p.gate_kind, gate_at + i * p.gate_step);
          }
          for_vectors(depth, [=](int64_t i, int count) {
            store_some(decay + i, exp(load_some(decay + i, count)), count);
          });
        } else {
          Vec one = exp(set(read_one<T>(gate, p.gate_kind, gate_at)));
          for_vectors(depth, [=](int64_t i, int count) { store_some(decay + i, one, count); });
        }

        // S = diag(decay) S, and what S holds for the key: two chains along the rows.
        Vec held[2][VECTORS];
        for (int j = 0; j < VECTORS; ++j) held[0][j] = held[1][j] = zero();
        for (int64_t i = 0; i < depth; ++i) {
          float* line = state + i * COLUMNS;
          Vec factor = set(decay[i]), weight = set(key[i]);
          FUSEC_UNROLL
          for (int j = 0; j < VECTORS; ++j) {
            Vec value = load(line + j * LANES) * factor;
            store(line + j * LANES, value);
            held[i & 1][j] = fma(weight, value, held[i & 1][j]);
          }
        }
        float strength = read_one<T>(beta, p.beta_kind, at(p.beta, batch, step, head));
        const T* value_row = v + at(p.v, batch, step, head) + column;
        Vec change[VECTORS], result[2][VECTORS];
        for (int j = 0; j < VECTORS; ++j) {
          int count = static_cast<int>(
              min_of<int64_t>(LANES, max_of<int64_t>(0, columns - j * LANES)));
          Vec value = count > 0 ? load_some(value_row + j * LANES, count) : zero();
          change[j] = (value - (held[0][j] + held[1][j])) * set(strength);
          result[0][j] = result[1][j] = zero();
        }
        for (int64_t i = 0; i < depth; ++i) {
          float* line = state + i * COLUMNS;
          Vec weight = set(key[i]), asked = set(query[i]);
          FUSEC_UNROLL
          for (int j = 0; j < VECTORS; ++j) {
            Vec value = fma(weight, change[j], load(line + j * LANES));
            store(line + j * LANES, value);
            result[i & 1][j] = fma(asked, value, result[i & 1][j]);
          }
        }
        T* target = out + at(p.out, batch, step, head) + column;
        for (int j = 0; j < VECTORS; ++j) {
          int count = static_cast<int>(
              min_of<int64_t>(LANES, max_of<int64_t>(0, columns - j * LANES)));
          if (count > 0) store_some(target + j * LANES, result[0][j] + result[1][j], count);
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
