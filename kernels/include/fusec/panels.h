// Weights packed into panels, and the product of a block of rows with one panel.
//
// A weight [N, K] is stored in panels of PANEL columns of the product, padded with zeros:
//   f32, f16:  [ceil(N/32)][K][32]
//   bf16:      [ceil(N/32)][Kp/2][32][2],  Kp = K rounded up to 32
// so that one step along K is one or two cache lines that every target can use: AVX2 reads half a
// panel at a time, AVX-512 a whole one, vdpbf16ps takes the pairs, and 16 pair rows of 16 columns
// are one AMX tile of B (row pitch 128 bytes).
//
// The rows of the left operand are copied into a block of `Activation` elements first: it widens
// them where the dot product is done in f32, pads K, and breaks power-of-two row pitches, which
// would map a tile's rows to one cache set.
#pragma once

#include <fusec/amx.h>
#include <fusec/rows.h>

namespace fusec {

constexpr int PANEL = 32;

template <class T>
struct Packing {
  using Activation = float;
  static constexpr int K_MULTIPLE = 1;
};

template <>
struct Packing<bf16> {
#if FUSEC_BF16_PAIRS
  using Activation = bf16;
#else
  using Activation = float;
#endif
  static constexpr int K_MULTIPLE = 32;
};

template <class T>
using Activations = typename Packing<T>::Activation;

template <class T>
FUSEC_INLINE int64_t padded_depth(int64_t k) {
  return round_up(k, Packing<T>::K_MULTIPLE);
}

// Elements from one panel to the next.
template <class T>
FUSEC_INLINE int64_t panel_size(int64_t k) {
  return padded_depth<T>(k) * PANEL;
}

// Row pitch of a block of activations: 64-byte aligned and never a multiple of 256 bytes.
template <class T>
FUSEC_INLINE int64_t block_pitch(int64_t k) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(Activations<T>));
  return round_up(padded_depth<T>(k), 4 * line) + line;
}

// Called with rows of a product as they are finished, while others are still multiplied: what is done
// with them overlaps the rest. Every row comes once, and rows that are neighbours come together.
using RowsDone = Callback<int64_t, int64_t>;  // row, rows

// c[rows][PANEL] = a[rows][k] * panel, in f32, summed in blocks along k. `a` is a block of
// activations with row pitch `pitch`, zero from the true depth up to padded_depth. With `accumulate`
// the product is added to c.
// Defined in cpu_gemm/kernel.cpp, hidden inside the module.
void panel_product(const Activations<float>* a, int64_t pitch, int64_t rows, const float* panel,
                   int64_t k, float* c, const RowsDone& done = {}, bool accumulate = false);
void panel_product(const Activations<bf16>* a, int64_t pitch, int64_t rows, const bf16* panel,
                   int64_t k, float* c, const RowsDone& done = {}, bool accumulate = false);
void panel_product(const Activations<f16>* a, int64_t pitch, int64_t rows, const f16* panel,
                   int64_t k, float* c, const RowsDone& done = {}, bool accumulate = false);

// While it lives, products on this thread leave the tile registers configured for the next one, and
// nothing else may configure them; a task of many products saves time with one.
#if FUSEC_AMX
class TileScope {
 public:
  TileScope();
  ~TileScope();
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

 private:
  bool outer_;
};
#else
struct TileScope {
  TileScope() {}
};
#endif

// ---- copying operands ----

template <class T>
FUSEC_INLINE void copy_row(const T* source, int64_t count, float* target) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(target + i, load(source + i));
  if (i < count) {
    int rest = static_cast<int>(count - i);
    store_partial(target + i, load_partial(source + i, rest), rest);
  }
}
FUSEC_INLINE void copy_row(const float* source, int64_t count, float* target) {
  memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
}
FUSEC_INLINE void copy_row(const bf16* source, int64_t count, bf16* target) {
  memcpy(target, source, static_cast<size_t>(count) * sizeof(bf16));
}

// One row of a block: source[0..k) with the given stride, then zeros up to the padded depth.
template <class T>
FUSEC_INLINE void fill_block_row(const T* source, int64_t stride, int64_t k,
                                 Activations<T>* target) {
  if (stride == 1) {
    copy_row(source, k, target);
  } else {
    for (int64_t i = 0; i < k; ++i) copy_row(source + i * stride, 1, target + i);
  }
  int64_t padded = padded_depth<T>(k);
  if (padded > k) memset(target + k, 0, static_cast<size_t>(padded - k) * sizeof(*target));
}

// out[j][i] = in[i][j] for an 8x8 block of 32-bit words; the pitches count words.
FUSEC_INLINE void transpose_words(const void* in, int64_t in_pitch, __m256i (&column)[8]) {
  const int32_t* words = static_cast<const int32_t*>(in);
  __m256i row[8], pair[8];
  for (int i = 0; i < 8; ++i) {
    row[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i * in_pitch));
  }
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    row[i] = _mm256_unpacklo_epi64(pair[i], pair[i + 2]);
    row[i + 1] = _mm256_unpackhi_epi64(pair[i], pair[i + 2]);
    row[i + 2] = _mm256_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    row[i + 3] = _mm256_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    column[i] = _mm256_permute2x128_si256(row[i], row[i + 4], 0x20);
    column[i + 4] = _mm256_permute2x128_si256(row[i], row[i + 4], 0x31);
  }
}

FUSEC_INLINE void store_words(void* target, __m256i words) {
  _mm256_storeu_si256(static_cast<__m256i*>(target), words);
}

// Where element (k, n) of a panel is.
template <class T>
FUSEC_INLINE int64_t panel_index(int64_t k, int64_t n) {
  return k * PANEL + n;
}
template <>
FUSEC_INLINE int64_t panel_index<bf16>(int64_t k, int64_t n) {
  return (k / 2 * PANEL + n) * 2 + k % 2;
}

// The eight columns n0.. of a panel whose source has stride 1 along k: how many k could be done in
// 8x8 blocks of 32-bit words.
FUSEC_INLINE int64_t pack_columns(const float* b, int64_t stride_n, int64_t k, float* panel,
                                  int64_t n0) {
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    __m256i column[8];
    transpose_words(b + n0 * stride_n + i, stride_n, column);
    for (int j = 0; j < 8; ++j) store_words(panel + (i + j) * PANEL + n0, column[j]);
  }
  return i;
}
FUSEC_INLINE int64_t pack_columns(const bf16* b, int64_t stride_n, int64_t k, bf16* panel,
                                  int64_t n0) {
  if (stride_n % 2 != 0) return 0;  // rows are not a whole number of pairs apart
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    __m256i column[8];
    transpose_words(b + n0 * stride_n + i, stride_n / 2, column);
    for (int j = 0; j < 8; ++j) store_words(panel + (i / 2 + j) * 2 * PANEL + 2 * n0, column[j]);
  }
  return i;
}
FUSEC_INLINE int64_t pack_columns(const f16* b, int64_t stride_n, int64_t k, f16* panel,
                                  int64_t n0) {
  if (stride_n % 2 != 0) return 0;
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) {
    __m256i column[8];
    transpose_words(b + n0 * stride_n + i, stride_n / 2, column);
    for (int j = 0; j < 8; ++j) {
      // Each word is a pair along k: the low halves are one row of the panel, the high the next.
      __m256i low = _mm256_and_si256(column[j], _mm256_set1_epi32(0xffff));
      __m256i halves = _mm256_packus_epi32(low, _mm256_srli_epi32(column[j], 16));
      halves = _mm256_permute4x64_epi64(halves, 0xd8);
      f16* row = panel + (i + 2 * j) * PANEL + n0;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row), _mm256_castsi256_si128(halves));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + PANEL), _mm256_extracti128_si256(halves, 1));
    }
  }
  return i;
}

// Rows of a panel whose source has stride 1 along n, all 32 columns present.
template <class T>
FUSEC_INLINE int64_t pack_rows(const T* b, int64_t stride_k, int64_t k, T* panel) {
  for (int64_t i = 0; i < k; ++i) {
    memcpy(panel + i * PANEL, b + i * stride_k, PANEL * sizeof(T));
  }
  return k;
}
FUSEC_INLINE int64_t pack_rows(const bf16* b, int64_t stride_k, int64_t k, bf16* panel) {
  int64_t i = 0;
  for (; i + 2 <= k; i += 2) {
    const bf16* source = b + i * stride_k;
    for (int n = 0; n < PANEL; n += 16) {
      __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + n));
      __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + stride_k + n));
      __m256i low = _mm256_unpacklo_epi16(even, odd), high = _mm256_unpackhi_epi16(even, odd);
      bf16* target = panel + i * PANEL + 2 * n;
      store_words(target, _mm256_permute2x128_si256(low, high, 0x20));
      store_words(target + 16, _mm256_permute2x128_si256(low, high, 0x31));
    }
  }
  return i;
}

// Packs columns [0, columns) of one panel from b, whose element (k, n) is at k*stride_k + n*stride_n;
// the rest of the panel is zero.
template <class T>
inline void pack_panel(const T* b, int64_t stride_k, int64_t stride_n, int64_t k, int64_t columns,
                       T* panel) {
  int64_t depth = padded_depth<T>(k);
  auto pack_rest = [=](int64_t from_k, int64_t from_n, int64_t to_n) {
    for (int64_t i = from_k; i < depth; ++i) {
      for (int64_t n = from_n; n < to_n; ++n) {
        bool inside = i < k && n < columns;
        panel[panel_index<T>(i, n)] = inside ? b[i * stride_k + n * stride_n] : T{};
      }
    }
  };
  if (stride_n == 1 && columns == PANEL) {
    pack_rest(pack_rows(b, stride_k, k, panel), 0, PANEL);
    return;
  }
  for (int64_t n = 0; n < PANEL; n += 8) {
    bool whole = stride_k == 1 && n + 8 <= columns;
    pack_rest(whole ? pack_columns(b, stride_n, k, panel, n) : 0, n, n + 8);
  }
}

}  // namespace fusec
