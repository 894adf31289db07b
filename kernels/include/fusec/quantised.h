// Products with weights in few bits: what mxfp4_linear, fp8_linear and the experts share.
//
// A weight [N, K] is stored in panels of PANEL columns of the product, K padded to DEPTH_MULTIPLE
// with zero codes. A panel of codes is the bf16 panel [K/2][32][2] of panels.h with the codes of
// several pair rows in one 16-bit word:
//   e2m1   [ceil(N/32)][K/8][32][2] words: bits 4j..4j+3 of word (z, n, t) are code (8z + 2j + t, n)
//   e4m3fn [ceil(N/32)][K/4][32][2] words: bits 8j..8j+7 of word (z, n, t) are code (4z + 2j + t, n)
// and its scales are [ceil(N/32)][groups along K][32]: e8m0 bytes for e2m1, a group for each 32;
// f32 for e4m3fn, a group for each `group`, a multiple of 32, or one for all of K.
// A padded column has codes 0, and the scale 1 in e8m0, else 0.
//
// `quantised_product` takes the place of `panel_product`: it widens a piece of a panel into memory
// that stays in the cache and multiplies all rows by it, or few rows in registers as it is widened; for
// tiles the next piece is widened while one is multiplied.
// Codes of e2m1 times their scale are exact in bf16; those of e4m3fn are multiplied by their scales
// after the product, so no rounding is added. `quantised_gemm` is packed_gemm with such weights; it
// takes up to INTEGER_ROWS rows of bf16 by e2m1 as 16-bit integers.
#pragma once

#include <fusec/amx.h>
#include <fusec/gemm.h>

namespace fusec {

constexpr int64_t DEPTH_MULTIPLE = 32;
constexpr int64_t MX_GROUP = 32;

FUSEC_INLINE int64_t quantised_depth(int64_t k) { return round_up(k, DEPTH_MULTIPLE); }

template <int RAISED_BY>
struct E2m1Words;
struct E4m3Words;

struct Mxfp4Weight {
  static constexpr int CODE_BITS = 4;
  using Words = E2m1Words<0>;
  const uint16_t* codes;
  const uint8_t* scales;
  int64_t k;
};

struct Fp8Weight {
  static constexpr int CODE_BITS = 8;
  using Words = E4m3Words;
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

// Sixteen words that are looked up, twice; the first is 0, which the upper bytes of an index read on
// AVX2.
struct LookedUp {
  alignas(64) uint16_t words[32];
  alignas(32) uint8_t low[32], high[32];
};
template <class Word>
constexpr LookedUp looked_up(const Word& word) {
  LookedUp made = {};
  for (int i = 0; i < 32; ++i) {
    made.words[i] = static_cast<uint16_t>(word(i & 15));
    made.low[i] = static_cast<uint8_t>(made.words[i] & 0xff);
    made.high[i] = static_cast<uint8_t>(made.words[i] >> 8);
  }
  return made;
}

struct WordTable {
#if FUSEC_AVX512
  IntVec table;

  explicit FUSEC_INLINE WordTable(const LookedUp& from) : table(_mm512_load_si512(from.words)) {}
  // By the lowest four bits of every word.
  FUSEC_INLINE IntVec operator()(IntVec index) const {
    return _mm512_permutexvar_epi16(index, table);
  }
#else
  IntVec low, high;

  explicit FUSEC_INLINE WordTable(const LookedUp& from)
      : low(_mm256_load_si256(reinterpret_cast<const __m256i*>(from.low))),
        high(_mm256_load_si256(reinterpret_cast<const __m256i*>(from.high))) {}
  // By the lowest four bits of every word, where those from the eighth on are 0.
  FUSEC_INLINE IntVec operator()(IntVec index) const {
    return _mm256_or_si256(_mm256_shuffle_epi8(low, index),
                           _mm256_slli_epi16(_mm256_shuffle_epi8(high, index), 8));
  }
#endif
};

// ---- e2m1 ----

// The values 0, 0.5, 1, 1.5, 2, 3, 4, 6 as bf16 times 2^raised_by, and the same with a sign; both zeros
// are the word 0, so that lowering the exponent with saturation keeps them.
constexpr int e2m1_word(int code, int raised_by) {
  constexpr int magnitude[8] = {0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0};
  int bits = magnitude[code & 7];
  if (bits == 0) return 0;
  return bits + raised_by * 0x80 + (code >= 8 ? 0x8000 : 0);
}
template <int RAISED_BY>
constexpr LookedUp E2M1 = looked_up([](int code) { return e2m1_word(code, RAISED_BY); });

template <int RAISED_BY>
struct E2m1Words {
  WordTable table{E2M1<RAISED_BY>};

  // The values of nibble `place` of every word.
  FUSEC_INLINE IntVec operator()(IntVec codes, int place) const {
#if FUSEC_AVX512
    // The table takes five bits, and repeats: what is above the nibble need not go.
    return table(_mm512_srli_epi16(codes, static_cast<unsigned>(4 * place)));
#else
    return table(_mm256_and_si256(_mm256_srli_epi16(codes, 4 * place), _mm256_set1_epi16(15)));
#endif
  }
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
      float scale = byte == 255 ? __builtin_nanf("") : __builtin_ldexpf(1.0f, byte - 127);
      for (int t = 0; t < 2; ++t) {
        int code = codes[(pair / 4 * PANEL + column) * 2 + t] >> (4 * (pair % 4)) & 15;
        float value = to_float(bf16{static_cast<uint16_t>(e2m1_word(code, 0))});
        target[(pair * PANEL + column) * 2 + t] = from_float<bf16>(value * scale);
      }
    }
  }
}

// Calls put(row, pair) for the pair rows of a group: LANES columns of rows 2 * row and 2 * row + 1.
// What is `ahead` rows further is fetched meanwhile.
template <class Values, class Put>
FUSEC_INLINE void for_pairs_of_group(const Values& values, const uint16_t* codes, int64_t ahead,
                                     const Put& put) {
  FUSEC_UNROLL
  for (int z = 0; z < MX_GROUP / 8; ++z) {
    const uint16_t* at = codes + z * PANEL * 2;
    __builtin_prefetch(at + ahead * PANEL / 4);
    const IntVec words = load_codes(at);
    FUSEC_UNROLL
    for (int j = 0; j < 4; ++j) put(4 * z + j, values(words, j));
  }
}

// Rows [begin, begin + count) of a panel as panel_product takes them; both are multiples of 32. Codes
// are fetched `ahead` rows before they are decoded.
inline void decode_panel(const Mxfp4Weight& weight, int64_t panel, int64_t begin, int64_t count,
                         int64_t ahead, bf16* target) {
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
      for_pairs_of_group(values, codes + 2 * column, ahead, [=](int row, IntVec pair) {
        store_codes(group + (row * PANEL + column) * 2, subtract_saturated(pair, steps));
      });
    }
  }
}

inline void decode_panel(const Mxfp4Weight& weight, int64_t panel, int64_t begin, int64_t count,
                         int64_t ahead, float* target) {
  const E2m1Words<0> values;
  const uint16_t* codes = codes_at(weight, panel, begin);
  const uint8_t* scales = weight.scales + panel * quantised_depth(weight.k) + begin;
  for (int64_t k = 0; k < count; k += MX_GROUP, codes += MX_GROUP * PANEL / 4, scales += PANEL) {
    float* group = target + k * PANEL;
    FUSEC_UNROLL
    for (int column = 0; column < PANEL; column += LANES) {
      const Vec scale = e8m0_scales(scales + column);
      for_pairs_of_group(values, codes + 2 * column, ahead, [=](int row, IntVec pair) {
        float* at = group + 2 * row * PANEL + column;
        store(at, even_words(pair) * scale);
        store(at + PANEL, odd_words(pair) * scale);
      });
    }
  }
}

// ---- e4m3fn ----

// The eight values below 2^-6 as bf16, by their mantissa.
constexpr int e4m3_subnormal_word(int mantissa) {
  constexpr int word[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};
  return word[mantissa & 7];
}
constexpr LookedUp E4M3_SUBNORMAL = looked_up(e4m3_subnormal_word);

// The values of byte `place` of every word as bf16. A normal number moves its exponent's bias, and 0x7f
// is NaN.
struct E4m3Words {
  static constexpr int BIAS = (127 - 7) << 7, QUIET = 0x7fc0;

  WordTable table{E4M3_SUBNORMAL};

  FUSEC_INLINE IntVec operator()(IntVec codes, int place) const {
#if FUSEC_AVX512
    const IntVec code = place ? _mm512_srli_epi16(codes, 8) : codes;
    const IntVec magnitude = _mm512_and_si512(code, set_words(0x7f));
    IntVec value = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), set_words(BIAS));
    const __mmask32 small = _mm512_testn_epi16_mask(magnitude, set_words(0x78));
    value = _mm512_mask_mov_epi16(value, small, table(magnitude));
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, set_words(0x7f));
    value = _mm512_mask_mov_epi16(value, nan, set_words(QUIET));
    const IntVec sign = _mm512_and_si512(_mm512_slli_epi16(code, 8), set_words(0x8000));
    return _mm512_or_si512(value, sign);
#else
    const IntVec code = place ? _mm256_srli_epi16(codes, 8) : codes;
    const IntVec magnitude = _mm256_and_si256(code, set_words(0x7f));
    const IntVec normal = _mm256_add_epi16(_mm256_slli_epi16(magnitude, 4), set_words(BIAS));
    const IntVec is_normal = _mm256_cmpgt_epi16(magnitude, set_words(7));
    IntVec value = _mm256_blendv_epi8(table(magnitude), normal, is_normal);
    const IntVec nan = _mm256_cmpeq_epi16(magnitude, set_words(0x7f));
    value = _mm256_blendv_epi8(value, set_words(QUIET), nan);
    const IntVec sign = _mm256_and_si256(_mm256_slli_epi16(code, 8), set_words(0x8000));
    return _mm256_or_si256(value, sign);
#endif
  }
};

// Rows [begin, begin + count) of a panel, without their scales; both are multiples of 32.
inline void decode_panel(const Fp8Weight& weight, int64_t panel, int64_t begin, int64_t count,
                         int64_t ahead, bf16* target) {
  const E4m3Words values;
  const uint16_t* codes = codes_at(weight, panel, begin);
  for (int64_t i = 0; i < count * PANEL / 2; i += 2 * LANES) {
    __builtin_prefetch(codes + i + ahead * PANEL / 2);
    const IntVec words = load_codes(codes + i);
    const int64_t row = i / (2 * PANEL), column = i % (2 * PANEL);
    bf16* pairs = target + row * 4 * PANEL + column;
    store_codes(pairs, values(words, 0));
    store_codes(pairs + 2 * PANEL, values(words, 1));
  }
}

inline void decode_panel(const Fp8Weight& weight, int64_t panel, int64_t begin, int64_t count,
                         int64_t ahead, float* target) {
  const E4m3Words values;
  const uint16_t* codes = codes_at(weight, panel, begin);
  for (int64_t i = 0; i < count * PANEL / 2; i += 2 * LANES) {
    __builtin_prefetch(codes + i + ahead * PANEL / 2);
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

// ---- scales ----

// Elements along K whose products are added up before they are scaled: no more than one scale holds
// for, and few enough for sums in one chain.
FUSEC_INLINE int64_t sum_depth(const Mxfp4Weight&) { return MX_GROUP; }
FUSEC_INLINE int64_t sum_depth(const Fp8Weight& weight) {
  constexpr int64_t LONGEST_SUM = 256;
  return weight.group ? weight.group : LONGEST_SUM;
}

// The scales of row `k` of a panel, for LANES columns from `column`.
FUSEC_INLINE Vec scales_at(const Mxfp4Weight& weight, int64_t panel, int64_t k, int column) {
  return e8m0_scales(weight.scales + panel * quantised_depth(weight.k) +
                     k / MX_GROUP * MX_GROUP + column);
}
FUSEC_INLINE Vec scales_at(const Fp8Weight& weight, int64_t panel, int64_t k, int column) {
  const int64_t groups = weight.group ? ceil_div(weight.k, weight.group) : 1;
  const int64_t group = weight.group ? k / weight.group : 0;
  return load(weight.scales + (panel * groups + group) * PANEL + column);
}

// ---- blocks of rows ----

// The type of the panel that rows of T are multiplied with. Codes are exact in bf16, so rows that are
// widened to f32 lose nothing by a panel of bf16.
template <class T>
struct WidePanel {
#if FUSEC_BF16_PAIRS
  using Element = float;
#else
  using Element = bf16;
#endif
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

// ---- few rows of floats ----

// Rows that are multiplied by codes as they are widened, in registers, at most.
#ifndef FUSEC_FEW_FLOAT_ROWS
#define FUSEC_FEW_FLOAT_ROWS (LANES == 16 ? 4 : 2)
#endif
constexpr int FEW_FLOAT_ROWS = FUSEC_FEW_FLOAT_ROWS;
static_assert(FEW_FLOAT_ROWS <= 4, "few_rows_product has no more");

// c[ROWS][PANEL] = a[ROWS][K] * panel `panel`; `a` is a block of fill_quantised_row.
template <int ROWS, class Weight>
inline void few_rows_product(const float* a, int64_t pitch, const Weight& weight, int64_t panel,
                             float* c) {
  constexpr int VECTORS = 2, PLACES = 16 / Weight::CODE_BITS, STEP = 2 * PLACES;
  const typename Weight::Words values;
  const int64_t depth = quantised_depth(weight.k);
  const int64_t longest = sum_depth(weight);
  for (int column = 0; column < PANEL; column += VECTORS * LANES) {
    const uint16_t* codes = codes_at(weight, panel, 0) + column * 2;
    Vec total[ROWS][VECTORS];
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) total[r][0] = total[r][1] = zero();
    for (int64_t begin = 0; begin < depth; begin += longest) {
      const int64_t end = min_of(depth, begin + longest);
      Vec even[ROWS][VECTORS], odd[ROWS][VECTORS];
      FUSEC_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        even[r][0] = even[r][1] = odd[r][0] = odd[r][1] = zero();
      }
      for (int64_t k = begin; k < end; k += STEP, codes += 2 * PANEL) {
        __builtin_prefetch(reinterpret_cast<const char*>(codes) + 4096);
        if (VECTORS * LANES == PANEL) {
          __builtin_prefetch(reinterpret_cast<const char*>(codes) + 4160);
        }
        FUSEC_UNROLL
        for (int v = 0; v < VECTORS; ++v) {
          const IntVec words = load_codes(codes + 2 * v * LANES);
          FUSEC_UNROLL
          for (int j = 0; j < PLACES; ++j) {
            const IntVec pair = values(words, j);
            const Vec first = even_words(pair), second = odd_words(pair);
            FUSEC_UNROLL
            for (int r = 0; r < ROWS; ++r) {
              const float* x = a + r * pitch + k + 2 * j;
              even[r][v] = fma(set(x[0]), first, even[r][v]);
              odd[r][v] = fma(set(x[1]), second, odd[r][v]);
            }
          }
        }
      }
      FUSEC_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        const Vec scale = scales_at(weight, panel, begin, column + v * LANES);
        FUSEC_UNROLL
        for (int r = 0; r < ROWS; ++r) {
          total[r][v] = fma(even[r][v] + odd[r][v], scale, total[r][v]);
        }
      }
    }
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      FUSEC_UNROLL
      for (int v = 0; v < VECTORS; ++v) store(c + r * PANEL + column + v * LANES, total[r][v]);
    }
  }
}

template <class Weight>
inline void few_rows_product(const float* a, int64_t pitch, int64_t rows, const Weight& weight,
                             int64_t panel, float* c) {
  switch (rows) {
    case 1:
      return few_rows_product<1>(a, pitch, weight, panel, c);
    case 2:
      return few_rows_product<2>(a, pitch, weight, panel, c);
    case 3:
      return few_rows_product<3>(a, pitch, weight, panel, c);
    case 4:
      return few_rows_product<4>(a, pitch, weight, panel, c);
  }
}

// ---- many rows ----

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

// Multiplies sums of one scale.
FUSEC_INLINE void scale_sums(const Mxfp4Weight&, int64_t, int64_t, int64_t, float*) {}
FUSEC_INLINE void scale_sums(const Fp8Weight& weight, int64_t panel, int64_t k, int64_t rows,
                             float* c) {
  FUSEC_UNROLL
  for (int column = 0; column < PANEL; column += LANES) {
    const Vec scale = scales_at(weight, panel, k, column);
    for (int64_t i = column; i < rows * PANEL; i += PANEL) store(c + i, load(c + i) * scale);
  }
}

FUSEC_INLINE void add_sums(const float* sums, int64_t rows, float* c) {
  for (int64_t i = 0; i < rows * PANEL; i += LANES) store(c + i, load(c + i) + load(sums + i));
}

// Whether one scale holds for all of K: sums may run over all of it, and are scaled at the end.
FUSEC_INLINE bool scales_at_end(const Mxfp4Weight&) { return true; }
FUSEC_INLINE bool scales_at_end(const Fp8Weight& weight) { return weight.group == 0; }

// c = the products of some rows with a panel, `piece` of K at a time: `multiply(begin, count, sums,
// accumulate)` makes those of [begin, begin + count), or adds them.
template <class Weight, class Multiply>
inline void sum_pieces(const Weight& weight, int64_t panel, int64_t rows, int64_t piece, float* c,
                       const Multiply& multiply) {
  const int64_t depth = quantised_depth(weight.k);
  if (scales_at_end(weight)) {
    for (int64_t begin = 0; begin < depth; begin += piece) {
      multiply(begin, min_of(piece, depth - begin), c, begin > 0);
    }
    return scale_sums(weight, panel, 0, rows, c);
  }
  Scratch<float> sums(rows * PANEL);
  for (int64_t begin = 0; begin < depth; begin += piece) {
    multiply(begin, min_of(piece, depth - begin), begin ? sums : c, false);
    scale_sums(weight, panel, begin, rows, begin ? sums : c);
    if (begin) add_sums(sums, rows, c);
  }
}

#if FUSEC_AMX
// How far ahead of their use codes are fetched while tiles are multiplied, in rows of a panel.
#ifndef FUSEC_CODES_AHEAD
#define FUSEC_CODES_AHEAD 256
#endif

// What widens a panel from row `begin` on, for a PanelMaker.
template <class Weight>
FUSEC_INLINE auto widening(const Weight& weight, int64_t panel, int64_t begin) {
  return [=, &weight](int64_t row, bf16* target) {
    decode_panel(weight, panel, begin + row, TILE_DEPTH, FUSEC_CODES_AHEAD, target);
  };
}
#endif

// c[rows][PANEL] = a[rows][K] * panel `panel` of the weight, in f32. `a` is a block of rows of
// fill_quantised_row with row pitch `pitch`. T is float, or bf16 for rows of bf16.
template <class T, class Weight>
inline void quantised_product(const Activations<T>* a, int64_t pitch, int64_t rows,
                              const Weight& weight, int64_t panel, float* c) {
  constexpr bool IN_F32 = sizeof(Activations<T>) == sizeof(float);
  if constexpr (IN_F32) {
    if (rows <= FEW_FLOAT_ROWS) return few_rows_product(a, pitch, rows, weight, panel, c);
  }
  const int64_t depth = quantised_depth(weight.k);
  if (depth == 0) memset(c, 0, static_cast<size_t>(rows) * PANEL * sizeof(float));
#if FUSEC_AMX
  if constexpr (!IN_F32) {
    if (rows >= FUSEC_TILE_LEAST_ROWS) {
      const int64_t piece = scales_at_end(weight) ? depth : sum_depth(weight);
      return sum_pieces(weight, panel, rows, piece, c,
                        [&](int64_t begin, int64_t count, float* sums, bool) {
        const auto widen = widening(weight, panel, begin);
        made_product(a + begin, pitch, rows, PanelMaker(widen), count, sums);
      });
    }
  }
#endif
  const int64_t piece = min_of(piece_of(weight, rows), depth);
  Scratch<T> wide(piece * PANEL);
  sum_pieces(weight, panel, rows, piece, c,
             [&](int64_t begin, int64_t count, float* sums, bool accumulate) {
    decode_panel(weight, panel, begin, count, count, wide);
    const T* widened = wide;
    panel_product(a + begin, pitch, rows, widened, count, sums, {}, accumulate);
  });
}

// ---- few rows as 16-bit integers ----

// Rows that are multiplied by a panel together: their block stays in the L2 cache.
constexpr int64_t QUANTISED_ROWS = 256;

// Rows that are taken as integers at most: more are faster as floats, but for processors that add up
// products of bytes in one instruction and have none for bf16.
#ifndef FUSEC_INTEGER_ROWS
#if FUSEC_AMX
#define FUSEC_INTEGER_ROWS 1
#elif FUSEC_BF16_PAIRS
#define FUSEC_INTEGER_ROWS 4
#elif defined(__AVX512VNNI__)
#define FUSEC_INTEGER_ROWS QUANTISED_ROWS
#else
#define FUSEC_INTEGER_ROWS 8
#endif
#endif
constexpr int64_t INTEGER_ROWS = FUSEC_INTEGER_ROWS;
static_assert(INTEGER_ROWS <= QUANTISED_ROWS, "a block of rows has no more");

// 32 elements of a row as 16-bit integers times a scale, off by at most 2^-16 of the largest: less
// than bf16 rounds. An integer is 256 * high + low, so that its products with codes, which are bytes
// too, are sums of products of bytes. The bytes of every 8 elements are in the order of the nibbles
// of two words of codes: low ones, then high ones.
struct IntegerGroup {
  static constexpr int ORDER[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  static constexpr int LARGEST = 127 * 256;
  static constexpr int OFFSET = 12;  // a code's byte is 2 * value + OFFSET, in [0, 24]

  int8_t high[MX_GROUP];
  int8_t low[MX_GROUP];
  float scale;  // of an integer times a byte
  int32_t correction;  // what OFFSET adds to the sum of products, negated
};

// One row of a block of fill_quantised_row. False if a group cannot be taken as integers: it has an
// element that is not finite, or its largest is too small to divide by.
template <class Element>
inline bool fill_integer_row(const Element* row, int64_t depth, IntegerGroup* groups) {
  constexpr float SMALLEST = 1e-30f;
  for (int64_t begin = 0; begin < depth; begin += MX_GROUP, ++groups) {
    Vec largest = zero(), not_finite = zero();
    for (int64_t i = 0; i < MX_GROUP; i += LANES) {
      const Vec x = load(row + begin + i);
      largest = max(abs(x), largest);
      not_finite = not_finite + (x - x);
    }
    const float most = reduce_max(largest);
    if (reduce_add(not_finite) != 0 || !(most == 0 || most >= SMALLEST)) return false;
    const float inverse = most == 0 ? 0 : IntegerGroup::LARGEST / most;
    alignas(64) float rounded[MX_GROUP];
    for (int64_t i = 0; i < MX_GROUP; i += LANES) {
      store(rounded + i, round(load(row + begin + i) * set(inverse)));
    }
    int32_t sum = 0;
    for (int i = 0; i < MX_GROUP; ++i) {
      const int32_t value = static_cast<int32_t>(rounded[i / 8 * 8 + IntegerGroup::ORDER[i % 8]]);
      const int32_t high = (value + 128) >> 8;
      groups->high[i] = static_cast<int8_t>(high);
      groups->low[i] = static_cast<int8_t>(value - high * 256);
      sum += value;
    }
    groups->scale = most / (2 * IntegerGroup::LARGEST);
    groups->correction = -IntegerGroup::OFFSET * sum;
  }
  return true;
}

#if FUSEC_AVX512
FUSEC_INLINE IntVec broadcast_bytes(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}
// sum[i] + the products of bytes 4i..4i+3: codes are unsigned and at most 24, x is signed.
FUSEC_INLINE IntVec add_products(IntVec sum, IntVec low_codes, IntVec low_x, IntVec high_codes,
                                 IntVec high_x) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, low_codes, low_x), high_codes, high_x);
#else
  const IntVec pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low_codes, low_x),
                                        _mm512_maddubs_epi16(high_codes, high_x));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}
FUSEC_INLINE IntVec set_integers(int32_t value) { return _mm512_set1_epi32(value); }
FUSEC_INLINE Vec as_floats(IntVec high, IntVec low) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
}
#else
FUSEC_INLINE IntVec broadcast_bytes(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
FUSEC_INLINE IntVec add_products(IntVec sum, IntVec low_codes, IntVec low_x, IntVec high_codes,
                                 IntVec high_x) {
  const IntVec pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low_codes, low_x),
                                        _mm256_maddubs_epi16(high_codes, high_x));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
FUSEC_INLINE IntVec set_integers(int32_t value) { return _mm256_set1_epi32(value); }
FUSEC_INLINE Vec as_floats(IntVec high, IntVec low) {
  return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(high, 8), low));
}
#endif

// 2 * value + OFFSET for the lower or the higher nibble of every byte.
struct E2m1Bytes {
  IntVec table;
  FUSEC_INLINE E2m1Bytes() {
    const __m128i bytes = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
#if FUSEC_AVX512
    table = _mm512_broadcast_i32x4(bytes);
#else
    table = _mm256_broadcastsi128_si256(bytes);
#endif
  }
  FUSEC_INLINE IntVec operator()(IntVec codes, bool higher) const {
#if FUSEC_AVX512
    const IntVec index = higher ? _mm512_srli_epi16(codes, 4) : codes;
    return _mm512_shuffle_epi8(table, _mm512_and_si512(index, _mm512_set1_epi8(15)));
#else
    const IntVec index = higher ? _mm256_srli_epi16(codes, 4) : codes;
    return _mm256_shuffle_epi8(table, _mm256_and_si256(index, _mm256_set1_epi8(15)));
#endif
  }
};

// c[ROWS][PANEL] = rows * panel `panel`; row r is at rows + r * pitch.
template <int ROWS>
inline void integer_product(const IntegerGroup* rows, int64_t pitch, const Mxfp4Weight& weight,
                            int64_t panel, float* c) {
  constexpr int VECTORS = 2;
  const E2m1Bytes values;
  const int64_t depth = quantised_depth(weight.k);
  for (int column = 0; column < PANEL; column += VECTORS * LANES) {
    const uint16_t* codes = codes_at(weight, panel, 0) + column * 2;
    const uint8_t* scales = weight.scales + panel * depth + column;
    Vec total[ROWS][VECTORS];
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) total[r][0] = total[r][1] = zero();
    for (int64_t group = 0; group < depth / MX_GROUP; ++group) {
      IntVec high[ROWS][VECTORS], low[ROWS][VECTORS];
      FUSEC_UNROLL
      for (int r = 0; r < ROWS; ++r) {
        high[r][0] = high[r][1] = set_integers(0);
        low[r][0] = low[r][1] = set_integers(rows[r * pitch + group].correction);
      }
      FUSEC_UNROLL
      for (int z = 0; z < MX_GROUP / 8; ++z, codes += 2 * PANEL) {
        __builtin_prefetch(reinterpret_cast<const char*>(codes) + 4096);
        if (VECTORS * LANES == PANEL) {
          __builtin_prefetch(reinterpret_cast<const char*>(codes) + 4160);
        }
        IntVec low_codes[VECTORS], high_codes[VECTORS];
        FUSEC_UNROLL
        for (int v = 0; v < VECTORS; ++v) {
          const IntVec words = load_codes(codes + 2 * v * LANES);
          low_codes[v] = values(words, false);
          high_codes[v] = values(words, true);
        }
        FUSEC_UNROLL
        for (int r = 0; r < ROWS; ++r) {
          const IntegerGroup& x = rows[r * pitch + group];
          const IntVec high_first = broadcast_bytes(x.high + 8 * z);
          const IntVec high_last = broadcast_bytes(x.high + 8 * z + 4);
          const IntVec low_first = broadcast_bytes(x.low + 8 * z);
          const IntVec low_last = broadcast_bytes(x.low + 8 * z + 4);
          FUSEC_UNROLL
          for (int v = 0; v < VECTORS; ++v) {
            high[r][v] = add_products(high[r][v], low_codes[v], high_first, high_codes[v], high_last);
            low[r][v] = add_products(low[r][v], low_codes[v], low_first, high_codes[v], low_last);
          }
        }
      }
      FUSEC_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        const Vec scale = e8m0_scales(scales + group * PANEL + v * LANES);
        FUSEC_UNROLL
        for (int r = 0; r < ROWS; ++r) {
          const Vec product = as_floats(high[r][v], low[r][v]) * set(rows[r * pitch + group].scale);
          total[r][v] = fma(product, scale, total[r][v]);
        }
      }
    }
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      FUSEC_UNROLL
      for (int v = 0; v < VECTORS; ++v) store(c + r * PANEL + column + v * LANES, total[r][v]);
    }
  }
}

// At most INTEGER_ROWS rows, as many at a time as there are registers for.
inline void integer_product(const IntegerGroup* rows, int64_t pitch, int64_t count,
                            const Mxfp4Weight& weight, int64_t panel, float* c) {
  constexpr int64_t MOST = LANES == 16 ? 4 : 2;
  for (; count > 0; count -= MOST, rows += MOST * pitch, c += MOST * PANEL) {
    switch (min_of(count, MOST)) {
      case 1:
        integer_product<1>(rows, pitch, weight, panel, c);
        break;
      case 2:
        integer_product<2>(rows, pitch, weight, panel, c);
        break;
      case 3:
        integer_product<3>(rows, pitch, weight, panel, c);
        break;
      case 4:
        integer_product<4>(rows, pitch, weight, panel, c);
        break;
    }
  }
}

// The rows that are taken as integers, where that is as accurate as their type.
template <class T, class Weight>
constexpr int64_t ROWS_AS_INTEGERS = 0;
template <>
constexpr int64_t ROWS_AS_INTEGERS<bf16, Mxfp4Weight> = INTEGER_ROWS;

// The product of a block of at most INTEGER_ROWS rows, which are those from `row` on of the whole; false
// if they cannot be taken as integers.
template <class T, class Out>
inline bool integer_gemm(const Activations<T>* block, int64_t pitch, int64_t row, int64_t rows,
                         int64_t n, const Mxfp4Weight& weight, const Epilogue<T, Out>& epilogue) {
  const int64_t depth = quantised_depth(weight.k), groups = depth / MX_GROUP;
  Scratch<IntegerGroup> integers(rows * groups);
  Scratch<bool> usable(rows);
  parallel_for(rows, grain_for(weight.k * 4), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      usable[i] = fill_integer_row(block + i * pitch, depth, integers + i * groups);
    }
  });
  for (int64_t i = 0; i < rows; ++i) {
    if (!usable[i]) return false;
  }
  parallel_for(ceil_div(n, PANEL), grain_for(rows * weight.k * 2),
               [&](int64_t begin, int64_t end, int) {
    Scratch<float> c(rows * PANEL);
    for (int64_t panel = begin; panel < end; ++panel) {
      integer_product(integers, groups, rows, weight, panel, c);
      epilogue.write(c, row, rows, panel * PANEL, min_of<int64_t>(PANEL, n - panel * PANEL));
    }
  });
  return true;
}

#if FUSEC_AMX

// Bytes of rows in tiles that stay in the L2 cache.
#ifndef FUSEC_WIDENED_BLOCK_BYTES
#define FUSEC_WIDENED_BLOCK_BYTES (1536 * 1024)
#endif

// Rows of bf16 in tiles, filled by rows.
class RowTiles {
 public:
  static constexpr int64_t UNIT = 2 * Tiles::ROWS;

  RowTiles(int64_t rows, int64_t depth)
      : depth_(depth), tiles_(round_up(rows, Tiles::ROWS) * depth) {}

  template <class FillRow>
  void fill(const FillRow& fill_row, int64_t row, int64_t at) {
    Scratch<bf16> line(depth_);
    fill_row(row, static_cast<bf16*>(line));
    tile_bf16_row(line, depth_, at, tiles_ + at / Tiles::ROWS * group_size());
  }
  TiledRows from(int64_t at) const {
    return {tiles_ + at / Tiles::ROWS * group_size(), group_size()};
  }

 private:
  int64_t group_size() const { return depth_ * Tiles::ROWS; }

  int64_t depth_;
  Scratch<bf16> tiles_;
};

// The whole product of many rows of bf16 in tiles, where one scale holds for all of K: a panel is
// widened once for each block of rows.
template <class Weight, class FillRow, class Out>
inline void tiled_gemm(int64_t m, int64_t n, const Weight& weight, const FillRow& fill_row,
                       const Epilogue<bf16, Out>& epilogue) {
  constexpr int64_t UNIT = RowTiles::UNIT, MOST_ROWS = 512;
  const int64_t depth = quantised_depth(weight.k), panels = ceil_div(n, PANEL);
  const int64_t most = rows_that_fit(depth * 2, FUSEC_WIDENED_BLOCK_BYTES, UNIT, 2 * UNIT, MOST_ROWS);
  const int64_t threads = fusec_threads(), count = ceil_div(m, most);
  // With enough rows for every thread, each goes over all the panels with rows of its own.
  const bool by_rows = m >= threads * (most / 2);
  const RowBlocks blocks{m, UNIT, by_rows ? round_up(count, threads) : count};

  auto multiply = [&](const RowTiles& tiles, int64_t at, int64_t row, int64_t rows,
                      int64_t first_panel, int64_t last_panel) {
    TileScope scope;
    Scratch<float> c(round_up(rows, Tiles::ROWS) * PANEL);
    for (int64_t panel = first_panel; panel < last_panel; ++panel) {
      const int64_t column = panel * PANEL, columns = min_of<int64_t>(PANEL, n - column);
      auto finish = [&](int64_t first, int64_t some) {
        some = min_of(some, rows - first);
        scale_sums(weight, panel, 0, some, c + first * PANEL);
        epilogue.write(c + first * PANEL, row + first, some, column, columns);
      };
      const auto widen = widening(weight, panel, 0);
      made_product(tiles.from(at), round_up(rows, Tiles::ROWS), PanelMaker(widen), depth, c,
                   RowsDone(finish));
    }
  };
  if (by_rows) {
    parallel_for(blocks.count, 1, [&](int64_t begin, int64_t end, int) {
      RowTiles tiles(blocks.largest(), depth);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = blocks.begin(i), rows = blocks.size(i);
        for (int64_t at = 0; at < rows; ++at) tiles.fill(fill_row, row + at, at);
        multiply(tiles, 0, row, rows, 0, panels);
      }
    });
    return;
  }
  RowTiles tiles(m, depth);
  parallel_for(m, grain_for(weight.k), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) tiles.fill(fill_row, row, row);
  });
  const int64_t task_panels = panels_per_task(panels, blocks.count);
  const int64_t groups = ceil_div(panels, task_panels);
  parallel_for(blocks.count * groups, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i = task / groups, panel = task % groups * task_panels;
      multiply(tiles, blocks.begin(i), blocks.begin(i), blocks.size(i), panel,
               min_of(panels, panel + task_panels));
    }
  });
}

#endif  // FUSEC_AMX

// out[m][n] = epilogue(sum_k x[m][k] * weight[n][k]). `fill_row(m, target)` writes row m of x with
// fill_quantised_row.
template <class T, class Weight, class FillRow, class Out>
inline void quantised_gemm(int64_t m, int64_t n, const Weight& weight, const FillRow& fill_row,
                           const Epilogue<T, Out>& epilogue) {
  using Element = Wide<T>;
  constexpr int64_t INTEGERS = ROWS_AS_INTEGERS<T, Weight>;
  if (m == 0 || n == 0) return;
#if FUSEC_AMX
  if constexpr (sizeof(Activations<Element>) == sizeof(bf16)) {
    if (weight.k > 0 && m >= FUSEC_TILED_LEAST_ROWS && scales_at_end(weight)) {
      return tiled_gemm(m, n, weight, fill_row, epilogue);
    }
  }
#endif
  const int64_t pitch = quantised_pitch<T>(weight.k), panels = ceil_div(n, PANEL);
  const int64_t row_blocks = ceil_div(m, QUANTISED_ROWS), block_rows = ceil_div(m, row_blocks);
  const int64_t task_panels = panels_per_task(panels, row_blocks);
  const int64_t groups = ceil_div(panels, task_panels);

  auto multiply = [&](const Activations<Element>* block, int64_t row, int64_t rows, int64_t panel,
                      float* c) {
    quantised_product<Element>(block, pitch, rows, weight, panel, c);
    epilogue.write(c, row, rows, panel * PANEL, min_of<int64_t>(PANEL, n - panel * PANEL));
  };
  auto multiply_block = [&](int64_t row, int64_t rows) {
    Scratch<Activations<Element>> block(rows * pitch);
    parallel_for(rows, grain_for(weight.k), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) fill_row(row + i, block + i * pitch);
    });
    if constexpr (INTEGERS > 0) {
      const bool few = rows <= INTEGERS;
      if (few && integer_gemm<Element>(block, pitch, row, rows, n, weight, epilogue)) return;
    }
    parallel_for(panels, grain_for(rows * weight.k * 2), [&](int64_t begin, int64_t end, int) {
      TileScope tiles;
      Scratch<float> c(rows * PANEL);
      for (int64_t panel = begin; panel < end; ++panel) multiply(block, row, rows, panel, c);
    });
  };
  if (row_blocks == 1 || INTEGERS >= QUANTISED_ROWS) {
    for (int64_t row = 0; row < m; row += block_rows) multiply_block(row, min_of(block_rows, m - row));
    return;
  }
  parallel_for(row_blocks * groups, 1, [&](int64_t begin, int64_t end, int) {
    TileScope tiles;
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

// ---- the linears ----

// params of mxfp4_linear and fp8_linear; each has more behind these.
enum QuantisedLinearParam {
  QUANTISED_SIZES = 0,
  QUANTISED_X_STRIDES = 4,
  QUANTISED_OUT_STRIDES = 8,
  QUANTISED_N = 12,
  QUANTISED_K,
  QUANTISED_OWN,
};

// out = x * weight^T + bias; buffers: x, codes, scales, [bias], out.
template <class T, class Out, class Weight>
inline void quantised_linear(void* const* buffers, const int64_t* params, const Weight& weight,
                             bool has_bias) {
  const T* x = static_cast<const T*>(buffers[0]);
  const T* bias = has_bias ? static_cast<const T*>(buffers[3]) : nullptr;
  const int64_t k = params[QUANTISED_K];
  const Outer outer{params + QUANTISED_SIZES};
  const Epilogue<T, Out> epilogue{outer, static_cast<Out*>(buffers[has_bias ? 4 : 3]),
                                  params + QUANTISED_OUT_STRIDES, bias};
  quantised_gemm<T>(
      outer.rows(), params[QUANTISED_N], weight,
      [=](int64_t row, auto* target) {
        fill_quantised_row(x + outer.offset(row, params + QUANTISED_X_STRIDES), k, target);
      },
      epilogue);
}

}  // namespace fusec
