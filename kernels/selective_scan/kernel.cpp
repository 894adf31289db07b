// selective_scan: the recurrence of Mamba, a vector of channels at a time.
#include <fusec/rows.h>

namespace fusec {
namespace {

enum ScanParam { BATCH, CHANNELS, STEPS, STATES, U, DT = 7, B = 10, C = 13, OUT = 16 };

template <class T>
void selective_scan(void* const* buffers, const int64_t* p) {
  const T* u = static_cast<const T*>(buffers[0]);
  const float* dt = static_cast<const float*>(buffers[1]);
  const float* a = static_cast<const float*>(buffers[2]);
  const T* b = static_cast<const T*>(buffers[3]);
  const T* c = static_cast<const T*>(buffers[4]);
  T* out = static_cast<T*>(buffers[5]);
  int64_t channels = p[CHANNELS], steps = p[STEPS], states = p[STATES];
  int64_t groups = ceil_div(channels, LANES);
  parallel_for(p[BATCH] * groups, grain_for(steps * states * LANES * 8),
               [&](int64_t begin, int64_t end, int) {
    Scratch<float> decay(states * LANES), state(states * LANES);
    for (int64_t task = begin; task < end; ++task) {
      int64_t batch = task / groups, first = task % groups * LANES;
      int64_t count = min_of<int64_t>(LANES, channels - first);
      for (int64_t n = 0; n < states; ++n) {
        for (int64_t i = 0; i < LANES; ++i) {
          decay[n * LANES + i] = i < count ? a[(first + i) * states + n] : 0.0f;
          state[n * LANES + i] = 0.0f;
        }
      }
      const T* input = u + batch * p[U] + first * p[U + 1];
      const float* rate = dt + batch * p[DT] + first * p[DT + 1];
      const T* in = b + batch * p[B];
      const T* read = c + batch * p[C];
      T* target = out + batch * p[OUT] + first * p[OUT + 1];
      float line[LANES] = {}, times[LANES] = {};
      for (int64_t step = 0; step < steps; ++step) {
        for (int64_t i = 0; i < count; ++i) {
          line[i] = to_float(input[i * p[U + 1] + step * p[U + 2]]);
          times[i] = rate[i * p[DT + 1] + step * p[DT + 2]];
        }
        Vec time = load(times), taken = time * load(line), sum = zero();
        for (int64_t n = 0; n < states; ++n) {
          Vec enters = taken * set(to_float(in[n * p[B + 1] + step * p[B + 2]]));
          Vec held = fma(exp(time * load(decay + n * LANES)), load(state + n * LANES), enters);
          store(state + n * LANES, held);
          sum = fma(held, set(to_float(read[n * p[C + 1] + step * p[C + 2]])), sum);
        }
        store(line, sum);
        for (int64_t i = 0; i < count; ++i) {
          target[i * p[OUT + 1] + step * p[OUT + 2]] = from_float<T>(line[i]);
        }
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// h[n] = exp(dt a[n]) h[n] + dt u b[n]; out = sum over n of c[n] h[n], for each channel from h = 0
// buffers: u [B, D, S], dt [B, D, S] f32, a [D, N] f32, b and c [B, N, S], out [B, D, S] (not u)
// params:  B, D, S, N, strides of u, dt, b, c and out, three each
FUSEC_KERNEL void fusec_selective_scan_f32(void* const* buffers, const int64_t* params) {
  fusec::selective_scan<float>(buffers, params);
}
FUSEC_KERNEL void fusec_selective_scan_bf16(void* const* buffers, const int64_t* params) {
  fusec::selective_scan<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_selective_scan_f16(void* const* buffers, const int64_t* params) {
  fusec::selective_scan<fusec::f16>(buffers, params);
}
