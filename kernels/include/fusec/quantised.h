// Products with weights in few bits: what mxfp4_linear, fp8_linear and the experts share.
//
// A weight [N, K] is stored in panels of PANEL columns of the product, K padded to DEPTH_MULTIPLE
// with zero codes. A panel of codes is the bf16 panel [K/2][32][2] of gemm.h with the codes of
// several pair rows in one 16-bit word:
//   e2m1   [ceil(N/32)][K/8][32][2] words: bits 4j..4j+3 of word (z, n, t) are code (8z + 2j + t, n)
//   e4m3fn [ceil(N/32)][K/4][32][2] words: bits 8j..8j+7 of word (z, n, t) are code (4z + 2j + t, n)
// and its scales are [ceil(N/32)][groups along K][32]: e8m0 bytes for e2m1, a group for each 32;
// f32 for e4m3fn, a group for each `group`, a multiple of 32, or one for all of K.
// A padded column has codes 0, and the scale 1 in e8m0, else 0.
//
// `quantised_product` takes the place of `panel_product`: it widens a piece of a panel into memory
// that stays in the cache and multiplies all rows by it. Codes of e2m1 times their scale are exact in
// bf16; those of e4m3fn are multiplied by their scales after the product, so no rounding is added.
#pragma once

#include <fusec/gemm.h>

namespace fusec {

constexpr int64_t DEPTH_MULTIPLE = 32;
constexpr int64_t MX_GROUP = 32;

FUSEC_INLINE int64_t quantised_depth(int64_t k) { return round_up(k, DEPTH_MULTIPLE); }

struct Mxfp4Weight {
  static constexpr int CODE_BITS = 4;
  const uint16_t* codes;
  const uint8_t* scales;
  int64_t k;
};

struct Fp8Weight {
  static constexpr int CODE_BITS = 8;
  const uint16_t* codes;
  const float* scales;
  int64_t k;
  int64_t group;  // 0: one scale for all of K
};

// Words of one panel of codes from row `begin`, a multiple of DEPTH_MULTIPLE.
template <class Weight>
FUSEC_INLINE const uint16_t* codes_at(const Weight& weight, int64_t panel, int64_t begin) {
  return weight.codes + (panel * quantised_depth(weight.k) + begin) * PANEL * Weight::CODE_BITS / 16;
}

// ---- vectors of 2*LANES words ----

#if FUSEC_AVX512
FUSEC_INLINE IntVec load_codes(const uint16_t* p) { return _mm512_loadu_si512(p); }
FUSEC_INLINE void store_codes(void* p, IntVec words) { _mm512_storeu_si512(p, words); }
FUSEC_INLINE IntVec set_words(int value) {
  return _mm512_set1_epi16(static_cast<short>(value));
}
FUSEC_INLINE Vec even_words(IntVec words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }
FUSEC_INLINE Vec odd_words(IntVec words) {
  return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
#else
FUSEC_INLINE IntVec load_codes(const uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
FUSEC_INLINE void store_codes(void* p, IntVec words) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), words);
}
FUSEC_INLINE IntVec set_words(int value) {
  return _mm256_set1_epi16(static_cast<short>(value));
}
FUSEC_INLINE Vec even_words(IntVec words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
FUSEC_INLINE Vec odd_words(IntVec words) {
  return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}
#endif

// ---- e2m1 ----

// The values 0, 0.5, 1, 1.5, 2, 3, 4, 6 as bf16 times 2^BIAS, and the same with a sign; both zeros
// are the word 0, so that lowering the exponent with saturation keeps them.
template <int BIAS>
struct E2m1Words {
  static constexpr int raised(int bits) { return bits ? bits + BIAS * 0x80 : 0; }
  static constexpr int word(int code) {
    constexpr int magnitude[8] = {0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
    int bits = raised(magnitude[code & 7]);
    return bits && code >= 8 ? bits + 0x8000 : bits;
  }

#if FUSEC_AVX512
  IntVec table;
  FUSEC_INLINE E2m1Words() {
    alignas(64) uint16_t words[32];
    for (int i = 0; i < 32; ++i) words[i] = static_cast<uint16_t>(word(i & 15));
    table = _mm512_load_si512(words);
  }
  // The values of nibble `place` of every word.
  FUSEC_INLINE IntVec operator()(IntVec codes, int place) const {
    IntVec index = _mm512_srli_epi16(codes, static_cast<unsigned>(4 * place));
    // The permutation takes five bits: the table holds the values twice.
    return _mm512_permutexvar_epi16(index, table);
  }
#else
  IntVec low, high;
  FUSEC_INLINE E2m1Words() {
    alignas(32) uint8_t lows[32], highs[32];
    for (int i = 0; i < 32; ++i) {
      lows[i] = static_cast<uint8_t>(word(i & 15) & 0xff);
      highs[i] = static_cast<uint8_t>(word(i & 15) >> 8);
    }
    low = _mm256_load_si256(reinterpret_cast<const __m256i*>(lows));
    high = _mm256_load_si256(reinterpret_cast<const __m256i*>(highs));
  }
  FUSEC_INLINE IntVec operator()(IntVec codes, int place) const {
    IntVec index = _mm256_and_si256(_mm256_srli_epi16(codes, 4 * place), _mm256_set1_epi16(15));
    // The upper byte of the index is 0, and so is what the tables have there.
    return _mm256_or_si256(_mm256_shuffle_epi8(low, index),
                           _mm256_slli_epi16(_mm256_shuffle_epi8(high, index), 8));
  }
#endif
};

// The scales 2^(byte - 127) of LANES columns, exactly; byte 255 is NaN.
FUSEC_INLINE Vec e8m0_scales(const uint8_t* bytes) {
#if FUSEC_AVX512
  __m512i exponent = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  __m512i bits = _mm512_max_epi32(_mm512_slli_epi32(exponent, 23), _mm512_set1_epi32(0x00400000));
  __mmask16 nan = _mm512_cmpeq_epi32_mask(exponent, _mm512_set1_epi32(255));
  return _mm512_castsi512_ps(_mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(0x7fc00000)));
#else
  __m256i exponent = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  __m256i bits = _mm256_max_epi32(_mm256_slli_epi32(exponent, 23), _mm256_set1_epi32(0x00400000));
  __m256i nan = _mm256_cmpeq_epi32(exponent, _mm256_set1_epi32(255));
  return _mm256_castsi256_ps(_mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc00000), nan));
#endif
}

// How a code times its scale is made in bf16 by arithmetic on the exponent alone: values are
// raised by 2^RAISED first, so that the exponent only ever goes down.
constexpr int RAISED = 64;
constexpr int LEAST_SCALE = 2, LARGEST_SCALE = 127 + RAISED - 1;

// Whether that holds for the scales of all 32 columns.
FUSEC_INLINE bool scales_move_exponents(const uint8_t* bytes) {
  __m256i scales = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  __m256i above = _mm256_sub_epi8(scales, _mm256_set1_epi8(LEAST_SCALE));
  const __m256i most = _mm256_set1_epi8(static_cast<char>(LARGEST_SCALE - LEAST_SCALE));
  return _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(above, most), above)) == -1;
}

// What is taken from the words of LANES columns, raised by 2^RAISED, to multiply them by 2^(byte - 127).
FUSEC_INLINE IntVec exponent_steps(const uint8_t* bytes) {
#if FUSEC_AVX512
  __m512i exponent = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  __m512i step = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(127 + RAISED), exponent), 7);
  return _mm512_or_si512(step, _mm512_slli_epi32(step, 16));
#else
  __m256i exponent = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  __m256i step = _mm256_slli_epi32(_mm256_sub_epi32(_mm256_set1_epi32(127 + RAISED), exponent), 7);
  return _mm256_or_si256(step, _mm256_slli_epi32(step, 16));
#endif
}
FUSEC_INLINE IntVec subtract_saturated(IntVec words, IntVec steps) {
#if FUSEC_AVX512
  return _mm512_subs_epu16(words, steps);
#else
  return _mm256_subs_epu16(words, steps);
#endif
}

// Rows [begin, begin + 32) of a panel for scales of any size, one element at a time.
inline void decode_extreme_group(const uint16_t* codes, const uint8_t* scales, bf16* target) {
  for (int64_t pair = 0; pair < MX_GROUP / 2; ++pair) {
    for (int column = 0; column < PANEL; ++column) {
      int byte = scales[column];
      float scale = byte == 255 ? __builtin_nanf("") : __builtin_scalbnf(1.0f, byte - 127);
      for (int t = 0; t < 2; ++t) {
        int code = codes[(pair / 4 * PANEL + column) * 2 + t] >> (4 * (pair % 4)) & 15;
        float value = to_float(bf16{static_cast<uint16_t>(E2m1Words<0>::word(code))});
        target[(pair * PANEL + column) * 2 + t] = from_float<bf16>(value * scale);
      }
    }
  }
}

// Rows [begin, begin + count) of a panel as panel_product takes them; both are multiples of 32.
inline void decode_panel(const Mxfp4Weight& weight, int64_t panel, int64_t begin, int64_t count,
                         bf16* target) {
  const E2m1Words<RAISED> values;
  const uint16_t* codes = codes_at(weight, panel, begin);
  const uint8_t* scales = weight.scales + panel * quantised_depth(weight.k) + begin;
  for (int64_t k = 0; k < count; k += MX_GROUP, codes += MX_GROUP * PANEL / 4, scales += PANEL) {
    bf16* group = target + k * PANEL;
    if (!scales_move_exponents(scales)) {
      decode_extreme_group(codes, scales, group);
      continue;
    }
    FUSEC_UNROLL
    for (int column = 0; column < PANEL; column += LANES) {
      const IntVec steps = exponent_steps(scales + column);
      FUSEC_UNROLL
      for (int z = 0; z < MX_GROUP / 8; ++z) {
        const IntVec words = load_codes(codes + (z * PANEL + column) * 2);
        FUSEC_UNROLL
        for (int j = 0; j < 4; ++j) {
          store_codes(group + ((4 * z + j) * PANEL + column) * 2,
                      subtract_saturated(values(words, j), steps));
        }
      }
    }
  }
}

inline void decode_panel(const Mxfp4Weight& weight, int64_t panel, int64_t begin, int64_t count,
                         float* target) {
  const E2m1Words<0> values;
  const uint16_t* codes = codes_at(weight, panel, begin);
  const uint8_t* scales = weight.scales + panel * quantised_depth(weight.k) + begin;
  for (int64_t k = 0; k < count; k += MX_GROUP, codes += MX_GROUP * PANEL / 4, scales += PANEL) {
    float* group = target + k * PANEL;
    FUSEC_UNROLL
    for (int column = 0; column < PANEL; column += LANES) {
      const Vec scale = e8m0_scales(scales + column);
      FUSEC_UNROLL
      for (int z = 0; z < MX_GROUP / 8; ++z) {
        const IntVec words = load_codes(codes + (z * PANEL + column) * 2);
        FUSEC_UNROLL
        for (int j = 0; j < 4; ++j) {
          const IntVec pair = values(words, j);
          float* row = group + (8 * z + 2 * j) * PANEL + column;
          store(row, even_words(pair) * scale);
          store(row + PANEL, odd_words(pair) * scale);
        }
      }
    }
  }
}

// ---- e4m3fn ----

// The values of byte `place` of every word as bf16. A normal number moves its exponent's bias; the
// eight below 2^-6 come from a table, and 0x7f is NaN.
struct E4m3Words {
  static constexpr int below(int mantissa) {
    constexpr int word[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
    return word[mantissa];
  }
  static constexpr int BIAS = (127 - 7) << 7, QUIET = 0x7fc0;

#if FUSEC_AVX512
  IntVec table;
  FUSEC_INLINE E4m3Words() {
    alignas(64) uint16_t words[32];
    for (int i = 0; i < 32; ++i) words[i] = static_cast<uint16_t>(below(i & 7));
    table = _mm512_load_si512(words);
  }
  FUSEC_INLINE IntVec operator()(IntVec codes, int place) const {
    const IntVec code = place ? _mm512_srli_epi16(codes, 8) : codes;
    const IntVec magnitude = _mm512_and_si512(code, set_words(0x7f));
    IntVec value = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), set_words(BIAS));
    const __mmask32 small = _mm512_testn_epi16_mask(magnitude, set_words(0x78));
    value = _mm512_mask_permutexvar_epi16(value, small, magnitude, table);
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, set_words(0x7f));
    value = _mm512_mask_mov_epi16(value, nan, set_words(QUIET));
    const IntVec sign = _mm512_and_si512(_mm512_slli_epi16(code, 8), set_words(0x8000));
    return _mm512_or_si512(value, sign);
  }
#else
  IntVec low, high;
  FUSEC_INLINE E4m3Words() {
    alignas(32) uint8_t lows[32], highs[32];
    for (int i = 0; i < 32; ++i) {
      lows[i] = static_cast<uint8_t>(below(i & 7) & 0xff);
      highs[i] = static_cast<uint8_t>(below(i & 7) >> 8);
    }
    low = _mm256_load_si256(reinterpret_cast<const __m256i*>(lows));
    high = _mm256_load_si256(reinterpret_cast<const __m256i*>(highs));
  }
  FUSEC_INLINE IntVec operator()(IntVec codes, int place) const {
    const IntVec code = place ? _mm256_srli_epi16(codes, 8) : codes;
    const IntVec magnitude = _mm256_and_si256(code, set_words(0x7f));
    const IntVec normal = _mm256_add_epi16(_mm256_slli_epi16(magnitude, 4), set_words(BIAS));
    const IntVec small = _mm256_or_si256(
        _mm256_shuffle_epi8(low, magnitude),
        _mm256_slli_epi16(_mm256_shuffle_epi8(high, magnitude), 8));
    IntVec value = _mm256_blendv_epi8(small, normal, _mm256_cmpgt_epi16(magnitude, set_words(7)));
    const IntVec nan = _mm256_cmpeq_epi16(magnitude, set_words(0x7f));
    value = _mm256_blendv_epi8(value, set_words(QUIET), nan);
    const IntVec sign = _mm256_and_si256(_mm256_slli_epi16(code, 8), set_words(0x8000));
    return _mm256_or_si256(value, sign);
  }
#endif
};

// Rows [begin, begin + count) of a panel, without their scales; both are multiples of 32.
inline void decode_panel(const Fp8Weight& weight, int64_t panel, int64_t begin, int64_t count,
                         bf16* target) {
  const E4m3Words values;
  const uint16_t* codes = codes_at(weight, panel, begin);
  for (int64_t i = 0; i < count * PANEL / 2; i += 2 * LANES) {
    const IntVec words = load_codes(codes + i);
    const int64_t row = i / (2 * PANEL), column = i % (2 * PANEL);
    bf16* pairs = target + row * 4 * PANEL + column;
    store_codes(pairs, values(words, 0));
    store_codes(pairs + 2 * PANEL, values(words, 1));
  }
}

inline void decode_panel(const Fp8Weight& weight, int64_t panel, int64_t begin, int64_t count,
                         float* target) {
  const E4m3Words values;
  const uint16_t* codes = codes_at(weight, panel, begin);
  for (int64_t i = 0; i < count * PANEL / 2; i += 2 * LANES) {
    const IntVec words = load_codes(codes + i);
    const int64_t row = i / (2 * PANEL), column = i % (2 * PANEL) / 2;
    float* rows = target + row * 4 * PANEL + column;
    FUSEC_UNROLL
    for (int j = 0; j < 2; ++j) {
      const IntVec pair = values(words, j);
      store(rows + 2 * j * PANEL, even_words(pair));
      store(rows + (2 * j + 1) * PANEL, odd_words(pair));
    }
  }
}

// ---- the product ----

// The panel that a type of rows is multiplied with, and the rows as panel_product takes them.
template <class T>
struct WidePanel {
  using Element = float;
};
template <>
struct WidePanel<bf16> {
  using Element = bf16;
};
template <class T>
using Wide = typename WidePanel<T>::Element;

// Row pitch of a block of rows, as block_pitch has it.
template <class T>
FUSEC_INLINE int64_t quantised_pitch(int64_t k) {
  return block_pitch<Wide<T>>(quantised_depth(k));
}

// One row of a block: source[0..k) and zeros up to the padded depth.
template <class T>
FUSEC_INLINE void fill_quantised_row(const T* source, int64_t k, Activations<Wide<T>>* target) {
  copy_row(source, k, target);
  memset(target + k, 0, static_cast<size_t>(quantised_depth(k) - k) * sizeof(*target));
}

// Rows of a panel that are widened at once: few enough for the L1 cache where few rows are
// multiplied, as many as the L2 cache takes where adding up pieces of the product would cost time.
constexpr int64_t FEW_ROWS = 32, SHORT_PIECE = 256, LONG_PIECE = 4096;

FUSEC_INLINE int64_t piece_of(const Mxfp4Weight&, int64_t rows) {
  return rows <= FEW_ROWS ? SHORT_PIECE : LONG_PIECE;
}
// Where a scale holds for part of K only, the piece is what it holds for.
FUSEC_INLINE int64_t piece_of(const Fp8Weight& weight, int64_t rows) {
  if (weight.group) return weight.group;
  return rows <= FEW_ROWS ? SHORT_PIECE : LONG_PIECE;
}

FUSEC_INLINE void add_piece(const Mxfp4Weight&, int64_t, int64_t begin, int64_t rows,
                            const float* piece, float* c) {
  for (int64_t i = 0; i < rows * PANEL; i += LANES) {
    store(c + i, begin ? load(c + i) + load(piece + i) : load(piece + i));
  }
}
FUSEC_INLINE void add_piece(const Fp8Weight& weight, int64_t panel, int64_t begin, int64_t rows,
                            const float* piece, float* c) {
  const int64_t groups = weight.group ? ceil_div(weight.k, weight.group) : 1;
  const int64_t group = weight.group ? begin / weight.group : 0;
  const float* scales = weight.scales + (panel * groups + group) * PANEL;
  for (int64_t i = 0; i < rows * PANEL; i += LANES) {
    const Vec scaled = load(piece + i) * load(scales + i % PANEL);
    store(c + i, begin ? load(c + i) + scaled : scaled);
  }
}

// c[rows][PANEL] = a[rows][K] * panel `panel` of the weight, in f32. `a` is a block of rows of
// fill_quantised_row with row pitch `pitch`. T is float, or bf16 for rows of bf16.
template <class T, class Weight>
inline void quantised_product(const Activations<T>* a, int64_t pitch, int64_t rows,
                              const Weight& weight, int64_t panel, float* c) {
  const int64_t depth = quantised_depth(weight.k);
  const int64_t longest = min_of(piece_of(weight, rows), depth);
  if (depth == 0) memset(c, 0, static_cast<size_t>(rows) * PANEL * sizeof(float));
  Scratch<T> wide(longest * PANEL);
  Scratch<float> piece(rows * PANEL);
  for (int64_t begin = 0; begin < depth; begin += longest) {
    const int64_t count = min_of(longest, depth - begin);
    decode_panel(weight, panel, begin, count, wide);
    panel_product(a + begin, pitch, rows, static_cast<const T*>(wide), count, piece);
    add_piece(weight, panel, begin, rows, piece, c);
  }
}

// Rows that are multiplied by a panel once it is widened: their block stays in the L2 cache.
constexpr int64_t QUANTISED_ROWS = 256;

// out[m][n] = epilogue(sum_k x[m][k] * weight[n][k]). `fill_row(m, target)` writes row m of x with
// fill_quantised_row.
template <class T, class Weight, class FillRow, class Out>
inline void quantised_gemm(int64_t m, int64_t n, const Weight& weight, const FillRow& fill_row,
                           const Epilogue<T, Out>& epilogue) {
  using Element = Wide<T>;
  if (m == 0 || n == 0) return;
  const int64_t pitch = quantised_pitch<T>(weight.k), panels = ceil_div(n, PANEL);
  const int64_t row_blocks = ceil_div(m, QUANTISED_ROWS), block_rows = ceil_div(m, row_blocks);
  const int64_t task_panels = panels_per_task(panels, row_blocks);
  const int64_t groups = ceil_div(panels, task_panels);

  auto multiply = [&](const Activations<Element>* block, int64_t row, int64_t rows, int64_t panel,
                      float* c) {
    quantised_product<Element>(block, pitch, rows, weight, panel, c);
    epilogue.write(c, row, rows, panel * PANEL, min_of<int64_t>(PANEL, n - panel * PANEL));
  };
  if (row_blocks == 1) {
    Scratch<Activations<Element>> block(m * pitch);
    parallel_for(m, grain_for(weight.k), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) fill_row(i, block + i * pitch);
    });
    parallel_for(panels, grain_for(m * weight.k * 2), [&](int64_t begin, int64_t end, int) {
      Scratch<float> c(m * PANEL);
      for (int64_t panel = begin; panel < end; ++panel) multiply(block, 0, m, panel, c);
    });
    return;
  }
  parallel_for(row_blocks * groups, 1, [&](int64_t begin, int64_t end, int) {
    Scratch<Activations<Element>> block(block_rows * pitch);
    Scratch<float> c(block_rows * PANEL);
    int64_t filled = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row_block = task / groups, group = task % groups;
      const int64_t row = row_block * block_rows, rows = min_of(block_rows, m - row);
      if (row_block != filled) {
        for (int64_t i = 0; i < rows; ++i) fill_row(row + i, block + i * pitch);
        filled = row_block;
      }
      const int64_t last = min_of(panels, (group + 1) * task_panels);
      for (int64_t panel = group * task_panels; panel < last; ++panel) {
        multiply(block, row, rows, panel, c);
      }
    }
  });
}

}  // namespace fusec
