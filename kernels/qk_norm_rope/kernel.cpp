// qk_norm_rope: queries and keys of a token are normed, if asked, and rotated by the same angles.
#include <fusec/rotation.h>

#include <math.h>

namespace fusec {
namespace {

constexpr int SIDES = 2;  // queries, keys

enum QkParam {
  TOKENS = 0,
  COS = 4,
  SIN = 8,
  ROWS = 12,    // strides[4] of q, k and of both results
  HEADS = 28,   // of q, of k
  HEAD_STEPS = 30,
  ROTATION = 34,
  HAS_NORM = 40,
  WEIGHT_KINDS = 41,
  EPS = 43,
  WEIGHT_OFFSET = 44,
};

// Reads params and buffers in the order of the comment above the entry points.
struct QkOperands {
  const void* x[SIDES];
  const void* weight[SIDES];
  const void *cos, *sin;
  void* out[SIDES];

  QkOperands(void* const* buffers, const int64_t* p) {
    int next = 0;
    for (int side = 0; side < SIDES; ++side) x[side] = buffers[next++];
    for (int side = 0; side < SIDES; ++side) {
      weight[side] = p[WEIGHT_KINDS + side] == WEIGHT_NONE ? nullptr : buffers[next++];
    }
    cos = buffers[next++];
    sin = buffers[next++];
    for (int side = 0; side < SIDES; ++side) out[side] = buffers[next++];
  }
};

template <class T>
void qk_norm_rope(void* const* buffers, const int64_t* p) {
  QkOperands operands(buffers, p);
  Outer tokens{p + TOKENS};
  Rotation rotation(p + ROTATION);
  int64_t depth = rotation.depth, room = round_up(depth, LANES);
  float eps = f32_param(p[EPS]);
  Scratch<float> weights(SIDES * room);
  for (int side = 0; side < SIDES; ++side) {
    widen_weight<T>(operands.weight[side], p[WEIGHT_KINDS + side],
                    static_cast<float>(p[WEIGHT_OFFSET]), depth, weights + side * room);
  }
  int64_t work = (p[HEADS] + p[HEADS + 1]) * depth;
  parallel_for(tokens.rows(), grain_for(work), [&](int64_t begin, int64_t end, int) {
    AngleRow<T> cosines(rotation, operands.cos), sines(rotation, operands.sin);
    Scratch<T> spare(depth);
    for (int64_t token = begin; token < end; ++token) {
      const float* cosine = cosines.at(tokens.offset(token, p + COS));
      const float* sine = sines.at(tokens.offset(token, p + SIN));
      for (int side = 0; side < SIDES; ++side) {
        const T* x = static_cast<const T*>(operands.x[side]) +
                     tokens.offset(token, p + ROWS + 4 * side);
        T* out = static_cast<T*>(operands.out[side]) +
                 tokens.offset(token, p + ROWS + 4 * (SIDES + side));
        const float* weight = weights + side * room;
        for (int64_t head = 0; head < p[HEADS + side]; ++head) {
          if (!p[HAS_NORM]) {
            rotate_row<T>(rotation, x, cosine, sine, spare, out);
          } else {
            float squares =
                sum_squares(depth, [=](int64_t i, int count) { return load_some(x + i, count); });
            Vec scale = set(1.0f / __builtin_sqrtf(squares / static_cast<float>(depth) + eps));
            auto scaled = [=](Vec value, int64_t i, int count) {
              return value * scale * load_some(weight + i, count);
            };
            auto pairs_scaled = [=](Vec* u, Vec* v, int64_t i, int count) {
              Vec even, odd;
              load_pairs(weight + i, count, &even, &odd);
              *u = *u * scale * even;
              *v = *v * scale * odd;
            };
            rotate_row(rotation, x, cosine, sine, scaled, pairs_scaled,
                       static_cast<T*>(spare), out);
          }
          x += p[HEAD_STEPS + side];
          out += p[HEAD_STEPS + SIDES + side];
        }
      }
    }
  });
}

void qk_norm_rope_f64(void* const* buffers, const int64_t* p) {
  QkOperands operands(buffers, p);
  Outer tokens{p + TOKENS};
  Rotation rotation(p + ROTATION);
  int64_t depth = rotation.depth;
  double eps = f64_param(p[EPS]), offset = static_cast<double>(p[WEIGHT_OFFSET]);
  int64_t work = 4 * (p[HEADS] + p[HEADS + 1]) * depth;
  parallel_for(tokens.rows(), grain_for(work), [&](int64_t begin, int64_t end, int) {
    Scratch<double> spare(depth);
    for (int64_t token = begin; token < end; ++token) {
      int64_t cos_at = tokens.offset(token, p + COS), sin_at = tokens.offset(token, p + SIN);
      for (int side = 0; side < SIDES; ++side) {
        const double* x = static_cast<const double*>(operands.x[side]) +
                          tokens.offset(token, p + ROWS + 4 * side);
        double* out = static_cast<double*>(operands.out[side]) +
                      tokens.offset(token, p + ROWS + 4 * (SIDES + side));
        const void* weight = operands.weight[side];
        int64_t kind = p[WEIGHT_KINDS + side];
        for (int64_t head = 0; head < p[HEADS + side]; ++head) {
          double scale = 1.0;
          if (p[HAS_NORM]) {
            double squares = 0.0;
            for (int64_t i = 0; i < depth; ++i) squares += x[i] * x[i];
            scale = 1.0 / ::sqrt(squares / static_cast<double>(depth) + eps);
          }
          auto scaled = [=](double value, int64_t i) {
            double factor = kind == WEIGHT_NONE ? 1.0 : weight_f64(weight, kind, i) + offset;
            return value * scale * factor;
          };
          rotate_row_f64(rotation, x, operands.cos, cos_at, operands.sin, sin_at, scaled, spare,
                         out);
          x += p[HEAD_STEPS + side];
          out += p[HEAD_STEPS + SIDES + side];
        }
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// Rows of all heads of q and of k at every token: x / sqrt(mean(x^2) + eps) * (weight + offset) if
// has_norm, then the rotation of rope.
// buffers: q, k, [weight of q], [weight of k], cos, sin, out of q (may be q), out of k (may be k);
//          stride 1 inside
// params:  token sizes[4], cos strides[4], sin strides[4] (0 broadcasts), strides[4] of q, k, out of
//          q, out of k, heads of q, heads of k, strides from head to head of q, k and both outs,
//          D, rotary, interleaved, deinterleave, table_step (2 if a table holds each angle twice in
//          a row, else 1), table_kind (1 dtype of q, 2 f32), has_norm, weight_kind of q and of k (0
//          none, 1 dtype of q, 2 f32, 3 bf16, 4 f16), eps (f64), weight_offset
FUSEC_KERNEL void fusec_qk_norm_rope_f32(void* const* buffers, const int64_t* params) {
  fusec::qk_norm_rope<float>(buffers, params);
}
FUSEC_KERNEL void fusec_qk_norm_rope_bf16(void* const* buffers, const int64_t* params) {
  fusec::qk_norm_rope<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_qk_norm_rope_f16(void* const* buffers, const int64_t* params) {
  fusec::qk_norm_rope<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_qk_norm_rope_f64(void* const* buffers, const int64_t* params) {
  fusec::qk_norm_rope_f64(buffers, params);
}
