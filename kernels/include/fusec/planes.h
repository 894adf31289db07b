// Products of f32 and f16 in tiles of bf16: each factor as a sum of bf16 planes.
//
// Plane 0 of x is x rounded to 8 bits, plane 1 the rest rounded to 8 bits, plane 2 what is left. Three
// planes hold an f32 exactly and two an f16, but for parts below 2^-126, which the instructions read
// as zeros. Of the products of planes those are added whose size is at least that of the rounding of
// the last plane, the small ones first: six of three planes, three of two, but for f16 all four
// (Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations", 2019).
//
// An infinity or a NaN in a factor makes every sum it is in infinite or NaN, though not always the one
// that f32 gives (infinity times the plane 0 is NaN): the caller multiplies rows with such a sum again.
#pragma once

#include <fusec/panels.h>

namespace fusec {

#if FUSEC_AMX

// Fewer rows of bf16 than these are quicker in vectors.
#ifndef FUSEC_TILE_LEAST_ROWS
#define FUSEC_TILE_LEAST_ROWS 4
#endif

// Numbers along k that one tile of A holds, and bf16 numbers of a tile.
constexpr int64_t TILE_DEPTH = Tiles::DEPTH;
constexpr int64_t TILE_SIZE = Tiles::ROWS * TILE_DEPTH;

// Rows of A as tiles: [rows / 16] groups of [k / 32][PLANES][16][32], k padded to 32.
struct TiledRows {
  const bf16* tiles;
  int64_t group_size;  // bf16 numbers from one group to the next
};

// The bits of x rounded to bf16, in the upper halves; x becomes what is left of it.
FUSEC_INLINE __m512i take_plane(Vec& x, bool may_be_nan) {
  __m512i bits = _mm512_castps_si512(x);
  const __m512i half = _mm512_set1_epi32(0x8000);
  // The sum could turn a NaN into a zero.
  __m512i rounded = may_be_nan ? _mm512_mask_add_epi32(bits, _knot_mask16(is_nan(x)), bits, half)
                               : _mm512_add_epi32(bits, half);
  rounded = _mm512_and_si512(rounded, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  x = _mm512_sub_ps(x, _mm512_castsi512_ps(rounded));
  return rounded;
}

// Writes k numbers into row `row` % 16 of a group.
template <int PLANES, class T>
FUSEC_INLINE void tile_row(const T* source, int64_t k, int64_t row, bf16* group) {
  bf16* target = group + row % Tiles::ROWS * TILE_DEPTH;
  for (int64_t i = 0; i < k; i += TILE_DEPTH, target += PLANES * TILE_SIZE) {
    for (int64_t half = 0; half < TILE_DEPTH; half += LANES) {
      int64_t count = min_of<int64_t>(LANES, k - i - half);
      Vec x = count > 0 ? load_some(source + i + half, static_cast<int>(count)) : zero();
      FUSEC_UNROLL
      for (int plane = 0; plane < PLANES; ++plane) {
        __m512i bits = take_plane(x, plane == 0);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + plane * TILE_SIZE + half),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
      }
    }
  }
}
// A row that is bf16 already, padded to a multiple of 32, is one plane.
FUSEC_INLINE void tile_bf16_row(const bf16* source, int64_t k, int64_t row, bf16* group) {
  bf16* target = group + row % Tiles::ROWS * TILE_DEPTH;
  for (int64_t i = 0; i < k; i += TILE_DEPTH, target += TILE_SIZE) {
    memcpy(target, source + i, TILE_DEPTH * sizeof(bf16));
  }
}

// c[rows][PANEL] = a * panel, rows a multiple of 16; with `accumulate` it is added to c.
void tiled_product(const TiledRows& a, int64_t rows, const bf16* panel, int64_t k, float* c,
                   const RowsDone& done, bool accumulate);

// Makes TILE_DEPTH rows of a panel of bf16, from row `begin` on, as a product comes to need them.
using PanelMaker = Callback<int64_t, bf16*>;  // begin, target

// c[rows][PANEL] = a * the panel that `make` makes. k is a multiple of TILE_DEPTH; of tiles the rows
// are a multiple of 16.
void made_product(const bf16* a, int64_t pitch, int64_t rows, const PanelMaker& make, int64_t k,
                  float* c);
void made_product(const TiledRows& a, int64_t rows, const PanelMaker& make, int64_t k, float* c,
                  const RowsDone& done);

// What plane_product keeps: plane_workspace<PLANES>() numbers of bf16, and as many sums as c has.
struct PlaneWorkspace {
  bf16* planes;
  float* partial;
};

// The same for a panel of T, and tiles of planes.
template <int PLANES, class T>
void plane_product(const TiledRows& a, int64_t rows, const T* panel, int64_t k,
                   const PlaneWorkspace& workspace, float* c, const RowsDone& done,
                   bool accumulate);

// bf16 numbers of the planes of a panel, [k / 32][PLANES] pieces of a bf16 panel, k padded to 32.
template <int PLANES>
FUSEC_INLINE int64_t planes_size(int64_t k) {
  return round_up(k, TILE_DEPTH) * PANEL * PLANES;
}

// Splits a panel once for all blocks of rows that it is multiplied with.
template <int PLANES, class T>
void split_panel(const T* panel, int64_t k, bf16* planes);

// plane_product with the planes of a panel of T.
template <int PLANES, class T>
void split_product(const TiledRows& a, int64_t rows, const bf16* planes, int64_t k, float* c,
                   const RowsDone& done);

#ifndef FUSEC_PLANE_DEPTH
#define FUSEC_PLANE_DEPTH 256
#endif
// Rows of a panel that are split at a time: with the rows of A they stay in the L1 cache.
template <int PLANES>
constexpr int64_t plane_depth() {
  return FUSEC_PLANE_DEPTH / PLANES / TILE_DEPTH * TILE_DEPTH;
}
// bf16 numbers: two stretches of a panel, one in use while the other is split.
template <int PLANES>
constexpr int64_t plane_workspace() {
  return 2 * plane_depth<PLANES>() * PANEL * PLANES;
}

// Whether all of `count` sums, a multiple of LANES, are finite.
FUSEC_INLINE bool all_finite(const float* sums, int64_t count) {
  __m512i most = _mm512_setzero_si512();
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t i = 0; i < count; i += LANES) {
    most = _mm512_max_epu32(most, _mm512_and_si512(_mm512_loadu_si512(sums + i), magnitude));
  }
  return _mm512_cmpge_epu32_mask(most, _mm512_set1_epi32(0x7f800000)) == 0;
}

#endif  // FUSEC_AMX

}  // namespace fusec
