// Rows in registers, and how they are brought into fp8: what the HIP kernels over rows share.
//
// Macros of their records: FUSEC_N, elements of a row; FUSEC_ALIGNED, whether every row of every
// operand begins at 16 bytes and is whole vectors long; FUSEC_QUANT, one of `Quant`; FUSEC_GROUP,
// elements that share a scale; FUSEC_POWER_OF_TWO, whether scales are rounded up to one.
#pragma once

#include <fusec/hip.h>

namespace fusec {

enum Quant : i32 { NOT_QUANTISED = 0, STATIC = 1, TOKEN = 2, GROUP = 3 };

// Where results go that are quantised.
struct Fp8Row {
  u8* codes;        // of this row
  f32* scales;      // of this row; the scale that was given, if STATIC
  i64 scale_step;   // from the scale of one group to that of the next
  f32 limit;        // what the largest element of a group is scaled to
  f32 upper_bound;  // the largest scale
  f32 lower_bound;  // the least
};

// `Scaling.scale` of fusec/formats.py, for f32.
FUSEC_DEVICE f32 scale_of(f32 largest, const Fp8Row& to) {
  f32 scale = maximum(minimum(largest / to.limit, to.upper_bound), to.lower_bound);
#if FUSEC_POWER_OF_TWO
  i32 exponent = exponent_of(scale);
  scale = scaled(1.0f, mantissa_of(scale) > 0.5f ? exponent : exponent - 1);
#endif
  return scale;
}

// A row of LENGTH elements in the registers of a group: a lane holds PIECES pieces of VECTOR
// neighbours. Beyond the end of the row there are zeros.
template <i32 LENGTH, i32 VECTOR>
struct Row {
  static constexpr i32 STEP = FUSEC_THREADS * VECTOR;
  static constexpr i32 PIECES = (LENGTH + STEP - 1) / STEP;

  f32 values[PIECES][VECTOR];

  // The column of the first element of a piece.
  static FUSEC_DEVICE i32 column(i32 piece) { return piece * STEP + lane() * VECTOR; }

  // Whether a piece holds elements of the row; known without a comparison where all lanes' do.
  static FUSEC_DEVICE bool inside(i32 piece) {
    return (piece + 1) * STEP <= LENGTH || column(piece) < LENGTH;
  }

  template <class T>
  static FUSEC_DEVICE void read_piece(f32 (&to)[VECTOR], const T* row, i32 piece) {
#if FUSEC_ALIGNED
    // Every lane loads: in a branch, which a choice would become, it waits for what it loads.
    i32 at = column(piece), last = LENGTH - VECTOR, kept = inside(piece) ? -1 : 0;
    load(to, row + (at < last ? at : last));
#pragma unroll
    for (i32 i = 0; i < VECTOR; ++i) to[i] = f32_of(bits_of(to[i]) & kept);
#else
    load_some(to, row + column(piece), LENGTH - column(piece));
#endif
  }

  template <class T>
  FUSEC_DEVICE void read(const T* row) {
#pragma unroll
    for (i32 piece = 0; piece < PIECES; ++piece) read_piece(values[piece], row, piece);
  }

  template <class T>
  FUSEC_DEVICE void write(T* row) const {
#pragma unroll
    for (i32 piece = 0; piece < PIECES; ++piece) {
#if FUSEC_ALIGNED
      if (inside(piece)) store(row + column(piece), values[piece]);
#else
      store_some(row + column(piece), values[piece], LENGTH - column(piece));
#endif
    }
  }

  // A kernel asks for it once, as for `write_fp8`: what they share is not waited for again.
  FUSEC_DEVICE f32 square_sum() const {
    f32 sum = 0.0f;
#pragma unroll
    for (i32 piece = 0; piece < PIECES; ++piece) {
#pragma unroll
      for (i32 i = 0; i < VECTOR; ++i) sum = fma(values[piece][i], values[piece][i], sum);
    }
    FUSEC_SHARED(f32, sums, FUSEC_THREADS / 64);
    return reduce_group<Sum>(sum, sums);
  }

  // Every element times `scale` and its column's weight plus `offset`.
  FUSEC_DEVICE void scale_by(f32 scale, const Row& weights, f32 offset) {
#pragma unroll
    for (i32 piece = 0; piece < PIECES; ++piece) {
#pragma unroll
      for (i32 i = 0; i < VECTOR; ++i) {
        values[piece][i] *= scale * (weights.values[piece][i] + offset);
      }
    }
  }

  FUSEC_DEVICE f32 largest_of(i32 piece) const {
    f32 largest = 0.0f;
#pragma unroll
    for (i32 i = 0; i < VECTOR; ++i) largest = maximum(largest, absolute(values[piece][i]));
    return largest;
  }

  FUSEC_DEVICE void write_fp8_piece(const Fp8Row& to, i32 piece, f32 scale) const {
    f32 inverse = 1.0f / scale;
    f32 scaled_values[VECTOR];
#pragma unroll
    for (i32 i = 0; i < VECTOR; ++i) scaled_values[i] = values[piece][i] * inverse;
#if FUSEC_ALIGNED
    if (inside(piece)) store_fp8(to.codes + column(piece), scaled_values, to.limit);
#else
    store_fp8_some(to.codes + column(piece), scaled_values, LENGTH - column(piece), to.limit);
#endif
  }

  // Brings the row into fp8, by one scale, or by one for each GROUP_SIZE elements.
  template <Quant QUANT, i32 GROUP_SIZE>
  FUSEC_DEVICE void write_fp8(const Fp8Row& to) const {
    if constexpr (QUANT == GROUP) {
      static_assert(GROUP_SIZE % VECTOR == 0 && STEP % GROUP_SIZE == 0, "lanes share a group");
#pragma unroll
      for (i32 piece = 0; piece < PIECES; ++piece) {
        f32 scale = scale_of(lanes_maximum<GROUP_SIZE / VECTOR>(largest_of(piece)), to);
        write_fp8_piece(to, piece, scale);
        i32 at = column(piece);
        if (at < LENGTH && at % GROUP_SIZE == 0) to.scales[at / GROUP_SIZE * to.scale_step] = scale;
      }
    } else {
      f32 scale = to.scales[0];
      if constexpr (QUANT == TOKEN) {
        f32 largest = 0.0f;
#pragma unroll
        for (i32 piece = 0; piece < PIECES; ++piece) largest = maximum(largest, largest_of(piece));
        FUSEC_SHARED(f32, maxima, FUSEC_THREADS / 64);
        scale = scale_of(reduce_group<Maximum>(largest, maxima), to);
        if (lane() == 0) to.scales[0] = scale;
      }
#pragma unroll
      for (i32 piece = 0; piece < PIECES; ++piece) write_fp8_piece(to, piece, scale);
    }
  }
};

}  // namespace fusec
