// The bf16 matrix instructions: dot products of pairs (AVX-512 BF16) and of tiles (AMX).
//
// Each has two implementations: the instruction, and C++ that computes the same for tests on
// processors without it, chosen by -DFUSEC_EMULATED_AVX512BF16 and -DFUSEC_EMULATED_AMX (which
// implies the other, as every processor with AMX has both). Code that uses them asks for
// FUSEC_BF16_PAIRS and FUSEC_AMX.
//
// Both instructions multiply and add with fma in f32, round to nearest even, read subnormal numbers
// as zeros and flush subnormal sums to zero (Intel 64 and IA-32 Architectures Software Developer's
// Manual, volume 2: VDPBF16PS, TDPBF16PS).
#pragma once

#include <fusec/simd.h>

#if defined(FUSEC_EMULATED_AMX) && !defined(FUSEC_EMULATED_AVX512BF16)
#define FUSEC_EMULATED_AVX512BF16 1
#endif

#if FUSEC_AVX512 && (defined(__AVX512BF16__) || defined(FUSEC_EMULATED_AVX512BF16))
#define FUSEC_BF16_PAIRS 1
#endif
#if FUSEC_BF16_PAIRS && (defined(__AMX_BF16__) || defined(FUSEC_EMULATED_AMX))
#define FUSEC_AMX 1
#endif

#if FUSEC_EMULATED_AMX
#include <stdlib.h>
#endif

namespace fusec {

#if FUSEC_BF16_PAIRS

#if FUSEC_EMULATED_AVX512BF16
FUSEC_INLINE Vec flush_subnormal(Vec value) {
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  __mmask16 subnormal = _mm512_testn_epi32_mask(_mm512_castps_si512(value), exponent);
  return _mm512_mask_and_ps(value, subnormal, value, _mm512_set1_ps(-0.0f));
}
FUSEC_INLINE Vec fma_flushed(Vec a, Vec b, Vec sum) {
  return flush_subnormal(fma(flush_subnormal(a), flush_subnormal(b), sum));
}
FUSEC_INLINE Vec even_of_pairs(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}
FUSEC_INLINE Vec odd_of_pairs(__m512i pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}
#endif

// sum[i] + a[2i+1] * b[2i+1] + a[2i] * b[2i] over 16 pairs of bf16, added from the left.
FUSEC_INLINE Vec dot_bf16_pairs(Vec sum, __m512i a, __m512i b) {
#if FUSEC_EMULATED_AVX512BF16
  sum = fma_flushed(odd_of_pairs(a), odd_of_pairs(b), flush_subnormal(sum));
  return fma_flushed(even_of_pairs(a), even_of_pairs(b), sum);
#else
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#endif
}

#endif  // FUSEC_BF16_PAIRS

#if FUSEC_AMX

// The eight tile registers of a thread. A tile has up to 16 rows of 64 bytes, and its number is a
// template argument because it is a part of the instruction. They hold nothing until `configure`;
// `release` gives them back, after which a thread switch is cheaper. Pitches count bytes.
struct Tiles {
  static constexpr int COUNT = 8;
  static constexpr int ROWS = 16;
  static constexpr int ROW_BYTES = 64;
  static constexpr int BYTES = ROWS * ROW_BYTES;
  static constexpr int DEPTH = 32;    // bf16 numbers in a row of A; rows of B are half as many pairs
  static constexpr int COLUMNS = 16;  // f32 numbers in a row of a sum, pairs in a row of B

  // As LDTILECFG reads it.
  struct alignas(64) Shapes {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

#if FUSEC_EMULATED_AMX
  struct State {
    Shapes shapes;
    alignas(64) uint8_t bytes[COUNT][ROWS][ROW_BYTES];
  };
  static inline thread_local State state = {};

  // What the instruction faults on.
  static void require(bool condition) {
    if (!condition) abort();
  }
  template <int TILE>
  static int rows_of() {
    require(state.shapes.palette == 1 && state.shapes.rows[TILE] > 0);
    return state.shapes.rows[TILE];
  }
#endif

  // Gives tile i rows[i] rows of 64 bytes, 1 to 16, and clears all tiles.
  static FUSEC_INLINE void configure(const uint8_t (&rows)[COUNT]) {
    Shapes shapes = {};
    shapes.palette = 1;
    for (int tile = 0; tile < COUNT; ++tile) {
      shapes.rows[tile] = rows[tile];
      shapes.row_bytes[tile] = ROW_BYTES;
    }
#if FUSEC_EMULATED_AMX
    for (int tile = 0; tile < COUNT; ++tile) require(rows[tile] >= 1 && rows[tile] <= ROWS);
    state = State{shapes, {}};
#else
    asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
#endif
  }

  static FUSEC_INLINE void release() {
#if FUSEC_EMULATED_AMX
    state = State{};
#else
    asm volatile("tilerelease" : : : "memory");
#endif
  }

  template <int TILE>
  static FUSEC_INLINE void zero() {
#if FUSEC_EMULATED_AMX
    memset(state.bytes[TILE], 0, static_cast<size_t>(rows_of<TILE>()) * ROW_BYTES);
#else
    asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
#endif
  }

  template <int TILE>
  static FUSEC_INLINE void load(const void* from, int64_t pitch) {
#if FUSEC_EMULATED_AMX
    const uint8_t* row = static_cast<const uint8_t*>(from);
    int rows = rows_of<TILE>();
    for (int i = 0; i < rows; ++i, row += pitch) memcpy(state.bytes[TILE][i], row, ROW_BYTES);
#else
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(pitch), "i"(TILE) : "memory");
#endif
  }

  template <int TILE>
  static FUSEC_INLINE void store(void* to, int64_t pitch) {
#if FUSEC_EMULATED_AMX
    uint8_t* row = static_cast<uint8_t*>(to);
    int rows = rows_of<TILE>();
    for (int i = 0; i < rows; ++i, row += pitch) memcpy(row, state.bytes[TILE][i], ROW_BYTES);
#else
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(pitch), "i"(TILE) : "memory");
#endif
  }

  // SUM[m][n] += sum over 16 pairs of A[m][pair] . B[pair][n]. The even and the odd products of the
  // pairs are summed apart, and then both are added to SUM.
  template <int SUM, int A, int B>
  static FUSEC_INLINE void dot_bf16() {
#if FUSEC_EMULATED_AMX
    int rows = rows_of<SUM>(), pairs = rows_of<B>();
    require(rows_of<A>() == rows && pairs == ROWS);
    for (int m = 0; m < rows; ++m) {
      Vec even = fusec::zero(), odd = fusec::zero();
      for (int pair = 0; pair < pairs; ++pair) {
        int both;
        memcpy(&both, state.bytes[A][m] + 4 * pair, sizeof both);
        __m512i a = _mm512_set1_epi32(both), b = _mm512_loadu_si512(state.bytes[B][pair]);
        even = fma_flushed(even_of_pairs(a), even_of_pairs(b), even);
        odd = fma_flushed(odd_of_pairs(a), odd_of_pairs(b), odd);
      }
      float* sum = reinterpret_cast<float*>(state.bytes[SUM][m]);
      Vec total = flush_subnormal(fusec::load(sum)) + flush_subnormal(even + odd);
      fusec::store(sum, flush_subnormal(total));
    }
#else
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
#endif
  }
};

#endif  // FUSEC_AMX

}  // namespace fusec
