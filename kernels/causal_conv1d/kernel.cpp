// causal_conv1d: a short filter per channel over the past, as in state-space and delta-rule models.
#include <fusec/rows.h>

namespace fusec {
namespace {

enum ConvParam { B, C, S, TAPS, X = 4, OUT = 7, HAS_BIAS = 10, SILU };

// Channels of a task when they are neighbours in memory: some rows of them, and what they are
// multiplied by, stay in the L1 cache, and each row is long enough to be fetched ahead.
constexpr int64_t CHANNELS = 512;
constexpr int64_t PIECE = 128;  // steps of a task, which also reads the taps - 1 rows before them

// Channels last: vectors along channels, one output row at a time. COUNT taps, or any number if 0.
template <class T, int COUNT>
void channels_last(const T* x, const T* weight, const T* bias, T* out, const int64_t* p) {
  int64_t channels = p[C], steps = p[S], taps = COUNT > 0 ? COUNT : p[TAPS];
  int64_t groups = ceil_div(channels, CHANNELS), pieces = ceil_div(steps, PIECE);
  bool silu_after = p[SILU] != 0;
  parallel_for(p[B] * groups * pieces, 1, [&](int64_t begin, int64_t end, int) {
    Scratch<float> filter((taps + 1) * CHANNELS);
    Scratch<T> nothing(CHANNELS);
    Scratch<const T*> rows(taps);
    memset(nothing, 0, CHANNELS * sizeof(T));
    for (int64_t task = begin; task < end; ++task) {
      int64_t piece = task % pieces, group = task / pieces % groups;
      int64_t batch = task / pieces / groups;
      int64_t channel = group * CHANNELS, count = min_of(CHANNELS, channels - channel);
      float* offset = filter + taps * CHANNELS;
      for (int64_t i = 0; i < count; ++i) {
        const T* source = weight + (channel + i) * taps;
        for (int64_t tap = 0; tap < taps; ++tap) filter[tap * CHANNELS + i] = to_float(source[tap]);
        offset[i] = bias ? to_float(bias[channel + i]) : 0.0f;
      }
      const T* input = x + batch * p[X] + channel * p[X + 1];
      T* target = out + batch * p[OUT] + channel * p[OUT + 1];
      int64_t last = min_of(steps, (piece + 1) * PIECE);
      for (int64_t step = piece * PIECE; step < last; ++step) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          int64_t from = step - (taps - 1) + tap;
          rows[tap] = from < 0 ? static_cast<const T*>(nothing) : input + from * p[X + 2];
        }
        for_vectors(count, [&](int64_t i, int lanes) {
          Vec sum = zero();
          for (int64_t tap = 0; tap < taps; ++tap) {
            sum = fma(load_some(filter + tap * CHANNELS + i, lanes),
                      load_some(rows[tap] + i, lanes), sum);
          }
          sum = sum + load_some(offset + i, lanes);
          if (silu_after) sum = silu(sum);
          store_some(target + step * p[OUT + 2] + i, sum, lanes);
        });
      }
    }
  });
}

// Any other layout: one channel at a time, through f32 rows with taps - 1 zeros in front.
template <class T>
void any_layout(const T* x, const T* weight, const T* bias, T* out, const int64_t* p) {
  int64_t channels = p[C], steps = p[S], taps = p[TAPS];
  bool silu_after = p[SILU] != 0;
  parallel_for(p[B] * channels, grain_for(steps * taps), [&](int64_t begin, int64_t end, int) {
    Scratch<float> line(steps + taps);
    Scratch<float> sums(steps + LANES);
    for (int64_t task = begin; task < end; ++task) {
      int64_t batch = task / channels, channel = task % channels;
      const T* input = x + batch * p[X] + channel * p[X + 1];
      T* target = out + batch * p[OUT] + channel * p[OUT + 1];
      for (int64_t i = 0; i + 1 < taps; ++i) line[i] = 0.0f;
      for (int64_t i = 0; i < steps; ++i) line[taps - 1 + i] = to_float(input[i * p[X + 2]]);
      float offset = bias ? to_float(bias[channel]) : 0.0f;
      const T* filter = weight + channel * taps;
      for_vectors(steps, [&](int64_t i, int lanes) {
        Vec sum = zero();
        for (int64_t tap = 0; tap < taps; ++tap) {
          sum = fma(set(to_float(filter[tap])), load_some(line + i + tap, lanes), sum);
        }
        sum = sum + set(offset);
        if (silu_after) sum = silu(sum);
        store(sums + i, sum);
      });
      for (int64_t i = 0; i < steps; ++i) target[i * p[OUT + 2]] = from_float<T>(sums[i]);
    }
  });
}

template <class T>
void causal_conv1d(void* const* buffers, const int64_t* p) {
  const T* x = static_cast<const T*>(buffers[0]);
  const T* weight = static_cast<const T*>(buffers[1]);
  const T* bias = p[HAS_BIAS] ? static_cast<const T*>(buffers[2]) : nullptr;
  T* out = static_cast<T*>(buffers[p[HAS_BIAS] ? 3 : 2]);
  if (p[X + 1] == 1 && p[OUT + 1] == 1) {
    if (p[TAPS] == 4) {
      channels_last<T, 4>(x, weight, bias, out, p);
    } else {
      channels_last<T, 0>(x, weight, bias, out, p);
    }
  } else {
    any_layout(x, weight, bias, out, p);
  }
}

}  // namespace
}  // namespace fusec

// out[b, c, s] = activation(bias[c] + sum_t weight[c, t] * x[b, c, s - taps + 1 + t]), x = 0 before 0
// buffers: x, weight [C, taps], [bias [C]], out (not x)
// params:  B, C, S, taps, x strides (b, c, s), out strides (b, c, s), has_bias, silu
FUSEC_KERNEL void fusec_causal_conv1d_f32(void* const* buffers, const int64_t* params) {
  fusec::causal_conv1d<float>(buffers, params);
}
FUSEC_KERNEL void fusec_causal_conv1d_bf16(void* const* buffers, const int64_t* params) {
  fusec::causal_conv1d<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_causal_conv1d_f16(void* const* buffers, const int64_t* params) {
  fusec::causal_conv1d<fusec::f16>(buffers, params);
}
