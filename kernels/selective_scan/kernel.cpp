// selective_scan: the recurrences of Mamba and Mamba-2.
//
// Where each state of a channel has a decay, a vector of channels goes along the sequence at a time,
// and most of the time goes into exponentials. Where the channels of a head share one, all that a
// step does to a state is three operations: some states of a head stay in registers for a few steps,
// then others follow.
#include <fusec/rows.h>

namespace fusec {
namespace {

struct ScanParams {
  int64_t batch, steps, channels, states, heads, groups;
  const int64_t *u, *dt, *b, *c, *out;  // strides (b, s), those of heads in dt, of groups in b and c

  explicit ScanParams(const int64_t* p)
      : batch(p[0]), steps(p[1]), channels(p[2]), states(p[3]), heads(p[4]), groups(p[5]), u(p + 6),
        dt(p + 8), b(p + 11), c(p + 14), out(p + 17) {}
};

template <class T>
struct ScanBuffers {
  const T* u;
  const float *dt, *a;
  const T *b, *c;
  float* out;

  explicit ScanBuffers(void* const* buffers) {
    Operands operands(buffers);
    u = operands.take<T>();
    dt = operands.take<float>();
    a = operands.take<float>();
    b = operands.take<T>();
    c = operands.take<T>();
    out = operands.take<float>();
  }
};

// ---- a decay for each state of each channel ----

template <class T>
void selective_scan(void* const* buffers, const int64_t* params) {
  ScanParams p(params);
  const ScanBuffers<T> at(buffers);
  int64_t states = p.states, groups = ceil_div(p.channels, LANES);
  parallel_for(p.batch * groups, grain_for(p.steps * states * LANES * 8),
               [&](int64_t begin, int64_t end, int) {
    Scratch<float> decay(states * LANES), state(states * LANES);
    for (int64_t task = begin; task < end; ++task) {
      int64_t batch = task / groups, first = task % groups * LANES;
      int count = static_cast<int>(min_of<int64_t>(LANES, p.channels - first));
      for (int64_t n = 0; n < states; ++n) {
        for (int64_t i = 0; i < LANES; ++i) {
          decay[n * LANES + i] = i < count ? at.a[(first + i) * states + n] : 0.0f;
          state[n * LANES + i] = 0.0f;
        }
      }
      float times[LANES] = {};
      for (int64_t step = 0; step < p.steps; ++step) {
        const float* rate = at.dt + batch * p.dt[0] + step * p.dt[1] + first * p.dt[2];
        const T* in = at.b + batch * p.b[0] + step * p.b[1];
        const T* read = at.c + batch * p.c[0] + step * p.c[1];
        for (int64_t i = 0; i < count; ++i) times[i] = rate[i * p.dt[2]];
        Vec time = load(times), sum = zero();
        Vec taken = time * load_some(at.u + batch * p.u[0] + step * p.u[1] + first, count);
        for (int64_t n = 0; n < states; ++n) {
          Vec enters = taken * set(to_float(in[n]));
          Vec held = fma(exp(time * load(decay + n * LANES)), load(state + n * LANES), enters);
          store(state + n * LANES, held);
          sum = fma(held, set(to_float(read[n])), sum);
        }
        store_some(at.out + batch * p.out[0] + step * p.out[1] + first, sum, count);
      }
    }
  });
}

// ---- one decay a head ----

constexpr int64_t STEPS = 16;  // of a chunk: its rows stay in the nearest cache
constexpr int ROWS = 4;        // states in registers at a time
constexpr int MOST_VECTORS = LANES == 16 ? 4 : 2;

// target = source * factor in f32, with zeros behind it.
template <class T>
FUSEC_INLINE void widen(const T* source, int64_t count, float factor, int64_t padded,
                        float* target) {
  for_vectors(count, [=](int64_t i, int some) {
    store_some(target + i, load_some(source + i, some) * set(factor), some);
  });
  for (int64_t i = count; i < padded; ++i) target[i] = 0.0f;
}

// ROWS states of some channels over the steps of a chunk; what they give is added to `sums`.
// state [ROWS][WIDTH], taken and sums [steps][WIDTH], b and c [steps][pitch]
template <int VECTORS>
FUSEC_INLINE void advance(int64_t steps, const float* decay, const float* taken, const float* b,
                          const float* c, int64_t pitch, float* state, float* sums) {
  constexpr int64_t WIDTH = VECTORS * LANES;
  Vec held[ROWS][VECTORS];
  for (int row = 0; row < ROWS; ++row) {
    for (int v = 0; v < VECTORS; ++v) held[row][v] = load(state + row * WIDTH + v * LANES);
  }
  for (int64_t step = 0; step < steps; ++step) {
    Vec kept = set(decay[step]), enters[VECTORS], sum[VECTORS];
    FUSEC_UNROLL
    for (int v = 0; v < VECTORS; ++v) {
      enters[v] = load(taken + step * WIDTH + v * LANES);
      sum[v] = load(sums + step * WIDTH + v * LANES);
    }
    FUSEC_UNROLL
    for (int row = 0; row < ROWS; ++row) {
      Vec in = set(b[step * pitch + row]), read = set(c[step * pitch + row]);
      FUSEC_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        held[row][v] = fma(in, enters[v], held[row][v] * kept);
        sum[v] = fma(read, held[row][v], sum[v]);
      }
    }
    FUSEC_UNROLL
    for (int v = 0; v < VECTORS; ++v) store(sums + step * WIDTH + v * LANES, sum[v]);
  }
  for (int row = 0; row < ROWS; ++row) {
    for (int v = 0; v < VECTORS; ++v) store(state + row * WIDTH + v * LANES, held[row][v]);
  }
}

template <class T, int VECTORS>
void scan_heads(void* const* buffers, const ScanParams& p) {
  constexpr int64_t WIDTH = VECTORS * LANES;
  const ScanBuffers<T> at(buffers);
  int64_t width = p.channels / p.heads, parts = ceil_div(width, WIDTH);
  int64_t pitch = round_up(p.states, ROWS);
  parallel_for(p.batch * p.heads * parts, grain_for(p.steps * pitch * WIDTH),
               [&](int64_t begin, int64_t end, int) {
    Scratch<float> state(pitch * WIDTH), wide_b(STEPS * pitch), wide_c(STEPS * pitch);
    alignas(64) float taken[STEPS * WIDTH], sums[STEPS * WIDTH], decay[STEPS];
    for (int64_t task = begin; task < end; ++task) {
      int64_t head = task / parts % p.heads, batch = task / parts / p.heads;
      int64_t group = head / (p.heads / p.groups), channel = task % parts * WIDTH;
      int64_t count = min_of(WIDTH, width - channel);
      channel += head * width;
      memset(state, 0, static_cast<size_t>(pitch * WIDTH) * sizeof(float));
      for (int64_t first = 0; first < p.steps; first += STEPS) {
        int64_t steps = min_of(STEPS, p.steps - first);
        for (int64_t i = 0; i < steps; ++i) {
          int64_t step = first + i;
          float time = at.dt[batch * p.dt[0] + step * p.dt[1] + head * p.dt[2]];
          decay[i] = time * at.a[head];
          widen(at.u + batch * p.u[0] + step * p.u[1] + channel, count, time, WIDTH,
                taken + i * WIDTH);
          widen(at.b + batch * p.b[0] + step * p.b[1] + group * p.b[2], p.states, 1.0f, pitch,
                wide_b + i * pitch);
          widen(at.c + batch * p.c[0] + step * p.c[1] + group * p.c[2], p.states, 1.0f, pitch,
                wide_c + i * pitch);
        }
        for_vectors(steps, [&](int64_t i, int some) {
          store_some(decay + i, exp(load_some(decay + i, some)), some);
        });
        memset(sums, 0, sizeof(sums));
        for (int64_t n = 0; n < pitch; n += ROWS) {
          advance<VECTORS>(steps, decay, taken, wide_b + n, wide_c + n, pitch, state + n * WIDTH,
                           sums);
        }
        for (int64_t i = 0; i < steps; ++i) {
          float* target = at.out + batch * p.out[0] + (first + i) * p.out[1] + channel;
          memcpy(target, sums + i * WIDTH, static_cast<size_t>(count) * sizeof(float));
        }
      }
    }
  });
}

template <class T>
void selective_scan_heads(void* const* buffers, const int64_t* params) {
  ScanParams p(params);
  int64_t vectors = ceil_div(p.channels / p.heads, LANES);
  if (vectors == 1) {
    scan_heads<T, 1>(buffers, p);
  } else if (vectors == 2) {
    scan_heads<T, 2>(buffers, p);
  } else {
    scan_heads<T, MOST_VECTORS>(buffers, p);
  }
}

}  // namespace
}  // namespace fusec

// h[n] = exp(dt a[n]) h[n] + dt u b[n]; out = sum over n of c[n] h[n], for each channel from h = 0
// buffers: u [B, S, D], dt [B, S, H] f32, a f32, b and c [B, S, G, N], out [B, S, D] f32; stride 1
//          along D and N
// params:  B, S, D, N, H, G, strides (b, s) of u, (b, s, h) of dt, (b, s, g) of b and c, (b, s) of out
// A decay for each state: a [D, N], H = D, G = 1.
FUSEC_KERNEL void fusec_selective_scan_f32(void* const* buffers, const int64_t* params) {
  fusec::selective_scan<float>(buffers, params);
}
FUSEC_KERNEL void fusec_selective_scan_bf16(void* const* buffers, const int64_t* params) {
  fusec::selective_scan<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_selective_scan_f16(void* const* buffers, const int64_t* params) {
  fusec::selective_scan<fusec::f16>(buffers, params);
}
// One a head: a [H, 1].
FUSEC_KERNEL void fusec_selective_scan_heads_f32(void* const* buffers, const int64_t* params) {
  fusec::selective_scan_heads<float>(buffers, params);
}
FUSEC_KERNEL void fusec_selective_scan_heads_bf16(void* const* buffers, const int64_t* params) {
  fusec::selective_scan_heads<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_selective_scan_heads_f16(void* const* buffers, const int64_t* params) {
  fusec::selective_scan_heads<fusec::f16>(buffers, params);
}
