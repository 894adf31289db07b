// router: scores of experts, the k largest of them, and their weights, for every token.
#include <fusec/elements.h>

namespace fusec {
namespace {

constexpr float MINUS_INFINITY = -__builtin_inff();

enum Scores : int64_t {
  SCORES_SOFTMAX = 0,
  SCORES_SIGMOID = 1,
  SCORES_SOFTMAX_TOPK = 2,
  SCORES_SIGMOID_TOPK = 3,
};

struct RouterParams {
  int64_t tokens, experts, top_k;
  int64_t logits_stride, weights_stride, indices_stride;
  int64_t scores, groups, groups_kept, group_best;
  float fill, eps, least, scale;
  bool fill_weighs, renormalise;
  int64_t bias_kind;

  explicit RouterParams(const int64_t* p)
      : tokens(p[0]), experts(p[1]), top_k(p[2]), logits_stride(p[3]), weights_stride(p[4]),
        indices_stride(p[5]), scores(p[6]), groups(p[7]), groups_kept(p[8]), group_best(p[9]),
        fill(f32_param(p[10])), eps(f32_param(p[11])), least(f32_param(p[12])),
        scale(f32_param(p[13])), fill_weighs(p[14] != 0), renormalise(p[15] != 0),
        bias_kind(p[16]) {}
};

// row = exp(row - its largest) / the sum of those.
void softmax_row(float* row, int64_t n) {
  float top = MINUS_INFINITY;
  for (int64_t i = 0; i < n; ++i) top = row[i] != row[i] || row[i] > top ? row[i] : top;
  float total = sum_row(n, [=](int64_t i, int count) {
    Vec power = exp(load_some(row + i, count) - set(top));
    store_some(row + i, power, count);
    return count == LANES ? power : select(first_lanes(count), power, zero());
  });
  for (int64_t i = 0; i < n; ++i) row[i] /= total;
}

// row = 1 / (1 + exp(-row)).
void sigmoid_row(float* row, int64_t n) {
  for_vectors(n, [=](int64_t i, int count) {
    store_some(row + i, sigmoid(load_some(row + i, count)), count);
  });
}

// Puts the indices of the `count` largest of row into `chosen`, in order; overwrites their keys.
void largest(uint64_t* keys, int64_t n, int64_t count, int64_t* chosen) {
  for (int64_t slot = 0; slot < count; ++slot) {
    // The largest key is found in vectors, and then where it is first.
    uint64_t key = 0;
    for (int64_t i = 0; i < n; ++i) key = max_of(key, keys[i]);
    int64_t best = 0;
    while (keys[best] != key) ++best;
    chosen[slot] = best;
    keys[best] = 0;  // below every key
  }
}

class Router {
 public:
  Router(const RouterParams& params, const float* bias)
      : p_(params), bias_(bias), scores_(params.experts), choice_(params.experts),
        keys_(params.experts), group_keys_(params.groups), chosen_(params.experts) {}

  float* logits() const { return scores_; }
  const int64_t* chosen() const { return chosen_; }

  // Reads logits(), gives the weights and leaves their experts in chosen().
  const float* run() {
    if (p_.scores == SCORES_SOFTMAX) softmax_row(scores_, p_.experts);
    if (p_.scores == SCORES_SIGMOID) sigmoid_row(scores_, p_.experts);
    for (int64_t i = 0; i < p_.experts; ++i) {
      choice_[i] = p_.bias_kind == WEIGHT_NONE ? scores_[i] : scores_[i] + bias_[i];
    }
    if (p_.groups > 1) drop_groups();
    for (int64_t i = 0; i < p_.experts; ++i) keys_[i] = order_key(choice_[i]);
    largest(keys_, p_.experts, p_.top_k, chosen_);
    float* weights = choice_;
    for (int64_t slot = 0; slot < p_.top_k; ++slot) weights[slot] = scores_[chosen_[slot]];
    if (p_.scores == SCORES_SOFTMAX_TOPK) softmax_row(weights, p_.top_k);
    if (p_.scores == SCORES_SIGMOID_TOPK) sigmoid_row(weights, p_.top_k);
    float total = 1.0f;
    if (p_.renormalise) {
      total = p_.eps;
      for (int64_t slot = 0; slot < p_.top_k; ++slot) total += weights[slot];
      total = total < p_.least ? p_.least : total;
    }
    for (int64_t slot = 0; slot < p_.top_k; ++slot) weights[slot] = weights[slot] / total * p_.scale;
    return weights;
  }

 private:
  // Gives `fill` to the scores of all but the best groups.
  void drop_groups() {
    int64_t size = p_.experts / p_.groups;
    for (int64_t group = 0; group < p_.groups; ++group) {
      const float* choice = choice_ + group * size;
      for (int64_t i = 0; i < size; ++i) keys_[i] = order_key(choice[i]);
      largest(keys_, size, p_.group_best, chosen_);
      float sum = 0.0f;
      for (int64_t i = 0; i < p_.group_best; ++i) sum += choice[chosen_[i]];
      group_keys_[group] = order_key(sum);
    }
    largest(group_keys_, p_.groups, p_.groups_kept, chosen_);
    for (int64_t group = 0; group < p_.groups; ++group) {
      bool stays = false;
      for (int64_t i = 0; i < p_.groups_kept; ++i) stays |= chosen_[i] == group;
      for (int64_t i = group * size; !stays && i < (group + 1) * size; ++i) {
        choice_[i] = p_.fill;
        if (p_.fill_weighs) scores_[i] = p_.fill;
      }
    }
  }

  const RouterParams& p_;
  const float* bias_;
  Scratch<float> scores_, choice_;
  Scratch<uint64_t> keys_, group_keys_;
  Scratch<int64_t> chosen_;
};

template <class T, class W>
void route(void* const* buffers, const RouterParams& p) {
  const T* logits = static_cast<const T*>(buffers[0]);
  bool biased = p.bias_kind != WEIGHT_NONE;
  W* weights = static_cast<W*>(buffers[biased ? 2 : 1]);
  int64_t* indices = static_cast<int64_t*>(buffers[biased ? 3 : 2]);
  Scratch<float> bias(p.experts);
  if (biased) widen_weight<T>(buffers[1], p.bias_kind, 0.0f, p.experts, bias);
  parallel_for(p.tokens, grain_for((8 + p.top_k) * p.experts), [&](int64_t begin, int64_t end, int) {
    Router router(p, bias);
    for (int64_t token = begin; token < end; ++token) {
      const T* row = logits + token * p.logits_stride;
      for_vectors(p.experts, [&](int64_t i, int count) {
        store_some(router.logits() + i, load_some(row + i, count), count);
      });
      const float* found = router.run();
      for (int64_t slot = 0; slot < p.top_k; ++slot) {
        weights[token * p.weights_stride + slot] = Arithmetic<W>::narrow(found[slot]);
        indices[token * p.indices_stride + slot] = router.chosen()[slot];
      }
    }
  });
}

template <class T>
void router(void* const* buffers, const int64_t* params) {
  RouterParams parsed(params);
  switch (params[17]) {
    case WEIGHT_F32:
      return route<T, float>(buffers, parsed);
    case WEIGHT_BF16:
      return route<T, bf16>(buffers, parsed);
    case WEIGHT_F16:
      return route<T, f16>(buffers, parsed);
    default:
      return route<T, T>(buffers, parsed);
  }
}

}  // namespace
}  // namespace fusec

// buffers: logits [T, E], [bias [E]], weights [T, k], experts [T, k] (i64)
// params:  T, E, k, row strides of logits, weights and experts, scores (0 softmax, 1 sigmoid,
//          2 softmax and 3 sigmoid of the chosen, 4 given), groups, groups_kept, group_best, fill,
//          eps, least, scale (f64), fill_weighs, renormalise, bias_kind and weights_kind
//          (WeightKind in rows.h)
// Equal scores: the lower index. NaN is above every number.
FUSEC_FOR_DTYPE(router, f32, float, fusec::router)
FUSEC_FOR_DTYPE(router, bf16, fusec::bf16, fusec::router)
FUSEC_FOR_DTYPE(router, f16, fusec::f16, fusec::router)
