// A kernel for tests: divides every row by the sum of its magnitudes, and quantises it.
#include <fusec/hip.h>

namespace fusec {

using X = Element<FUSEC_DTYPE>;

FUSEC_KERNEL(scale_rows, const X* __restrict x, X* __restrict y, u8* __restrict quantised,
             f32* __restrict scales, i64 x_stride, i64 length, f32 limit) {
  const X* row = x + group_x() * x_stride;
  f32 total = 0.0f;
  f32 largest = 0.0f;
  for (i64 at = lane() * 8; at < length; at += FUSEC_THREADS * 8) {
    f32 part[8];
    if (at + 8 <= length) {
      load(part, row + at);
    } else {
      load_some(part, row + at, length - at);
    }
#pragma unroll
    for (i32 i = 0; i < 8; ++i) {
      total += absolute(part[i]);
      largest = maximum(largest, absolute(part[i]));
    }
  }
  total = group_sum(total);
  largest = group_maximum(largest);
  for (i64 at = lane() * 8; at < length; at += FUSEC_THREADS * 8) {
    f32 part[8], stretched[8];
    load_some(part, row + at, length - at);
#pragma unroll
    for (i32 i = 0; i < 8; ++i) {
      stretched[i] = part[i] * (limit / largest);
      part[i] /= total;
    }
    store_some(y + group_x() * length + at, part, length - at);
    store_fp8_some(quantised + group_x() * length + at, stretched, length - at, limit);
  }
  if (lane() == 0) scales[group_x()] = largest / limit;
}

// Writes what each exchange gives: lane by lane, then reduced over 1 to 64 neighbours.
FUSEC_KERNEL(exchanges, const f32* __restrict x, f32* __restrict y) {
  f32 value = x[lane()];
  f32 results[] = {
      lane_xor<1>(value),  lane_xor<2>(value),          lane_xor<7>(value),
      lane_xor<15>(value), lane_xor<16>(value),         lane_xor<32>(value),
      lanes_sum<1>(value), lanes_sum<4>(value),         lanes_sum<8>(value),
      lanes_sum<16>(value), lanes_maximum<32>(value),   wave_sum(value),
      group_sum(value),     lane_broadcast(value, 5),
  };
#pragma unroll
  for (i32 i = 0; i < 14; ++i) y[i * FUSEC_THREADS + lane()] = results[i];
}

// Every e4m3 value as f32, and f32 values as e4m3.
FUSEC_KERNEL(conversions, const u32* __restrict codes, f32* __restrict values,
             const f32* __restrict numbers, u32* __restrict converted, f32 limit) {
  u32 four = codes[lane()];
  values[lane() * 4] = from_fp8<0>(four);
  values[lane() * 4 + 1] = from_fp8<1>(four);
  values[lane() * 4 + 2] = from_fp8<2>(four);
  values[lane() * 4 + 3] = from_fp8<3>(four);
  const f32* in = numbers + lane() * 4;
  converted[lane()] = to_fp8x4(in[0], in[1], in[2], in[3], limit);
}

FUSEC_KERNEL(mathematics, const f32* __restrict x, f32* __restrict y) {
  f32 value = x[lane()];
  f32 results[] = {
      exp(value),   erf(value),        tanh(value),        rsqrt(absolute(value)),
      ceil(value),  reciprocal(value), mantissa_of(value), static_cast<f32>(exponent_of(value)),
      scaled(value, 3), clamp(value, -1.0f, 1.0f), exp2(value),
  };
#pragma unroll
  for (i32 i = 0; i < 11; ++i) y[i * FUSEC_THREADS + lane()] = results[i];
}

// Needs memory beside its registers: an array that is indexed by a value.
FUSEC_KERNEL(keeps_an_array, const f32* __restrict x, f32* __restrict y) {
  f32 kept[256];
  for (i32 i = 0; i < 256; ++i) kept[i] = x[i * FUSEC_THREADS + lane()];
  for (i32 i = 0; i < 256; ++i) y[i] = kept[bits_of(x[i]) & 255] * kept[i];
}

// Wrong on purpose: half of a wave leaves before an exchange.
FUSEC_KERNEL(diverges, const f32* __restrict x, f32* __restrict y) {
  if (lane() % 64 < 32) return;
  y[lane()] = lane_xor<1>(x[lane()]);
}

}  // namespace fusec
