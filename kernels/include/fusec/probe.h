// What a machine gives at most, measured by the threads that kernels run on: how fast memory is
// read, and how many products a second the widest instructions of this module make.
#pragma once

#include <fusec/amx.h>
#include <fusec/kernel.h>
#include <fusec/simd.h>

namespace fusec {

// Independent sums: enough that none waits for its own last addition.
constexpr int PROBE_SUMS = 16;
constexpr int64_t PROBE_PARTS = 4;  // of the work of a thread, so that early ones take from others

inline volatile float probe_result;  // so that nothing is left out

FUSEC_INLINE void probe_keep(const Vec (&sums)[PROBE_SUMS]) {
  Vec total = sums[0];
  for (int i = 1; i < PROBE_SUMS; ++i) total = total + sums[i];
  float lanes[LANES];
  store(lanes, total);
  probe_result = lanes[0];
}

// Reads `count` floats, a multiple of PROBE_SUMS * LANES.
inline void probe_read(const float* data, int64_t count) {
  Vec sums[PROBE_SUMS];
  for (Vec& sum : sums) sum = zero();
  for (int64_t i = 0; i < count; i += PROBE_SUMS * LANES) {
    for (int j = 0; j < PROBE_SUMS; ++j) sums[j] = sums[j] + load(data + i + j * LANES);
  }
  probe_keep(sums);
}

// Multiplies and adds `rounds` times in each of the sums; gives the operations done.
inline int64_t probe_f32(int64_t rounds) {
  Vec sums[PROBE_SUMS];
  for (Vec& sum : sums) sum = zero();
  Vec factor = set(probe_result * 0.0f + 0.5f);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int j = 0; j < PROBE_SUMS; ++j) sums[j] = fma(sums[j], factor, factor);
  }
  probe_keep(sums);
  return rounds * PROBE_SUMS * LANES * 2;
}

#if FUSEC_AMX
inline int64_t probe_bf16(int64_t rounds) {
  alignas(64) uint8_t zeros[Tiles::BYTES] = {};
  const uint8_t rows[Tiles::COUNT] = {16, 16, 16, 16, 16, 16, 16, 16};
  Tiles::configure(rows);
  Tiles::load<6>(zeros, Tiles::ROW_BYTES);
  Tiles::load<7>(zeros, Tiles::ROW_BYTES);
  for (int64_t round = 0; round < rounds; ++round) {
    Tiles::dot_bf16<0, 6, 7>();
    Tiles::dot_bf16<1, 6, 7>();
    Tiles::dot_bf16<2, 6, 7>();
    Tiles::dot_bf16<3, 6, 7>();
  }
  Tiles::release();
  return rounds * 4 * Tiles::ROWS * Tiles::COLUMNS * Tiles::DEPTH * 2;
}
#elif FUSEC_BF16_PAIRS
inline int64_t probe_bf16(int64_t rounds) {
  Vec sums[PROBE_SUMS];
  for (Vec& sum : sums) sum = zero();
  __m512i pairs = _mm512_set1_epi32(static_cast<int>(probe_result * 0.0f) + 0x3f003f00);
  for (int64_t round = 0; round < rounds; ++round) {
    for (int j = 0; j < PROBE_SUMS; ++j) sums[j] = dot_bf16_pairs(sums[j], pairs, pairs);
  }
  probe_keep(sums);
  return rounds * PROBE_SUMS * LANES * 4;
}
#else
inline int64_t probe_bf16(int64_t) { return 0; }
#endif

}  // namespace fusec
