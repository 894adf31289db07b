// The register-tiled product of a block of rows with one panel of packed weights (see gemm.h).
#include <fusec/gemm.h>

namespace fusec {
namespace {

// Rows of the register tile. With two vectors of columns a row: 24 of 32 registers accumulate on
// AVX-512, 12 of 16 on AVX2.
#if FUSEC_AVX512
constexpr int TILE = 12;
#else
constexpr int TILE = 6;
#endif
constexpr int VECTORS = 2;
constexpr int PASSES = PANEL / (VECTORS * LANES);

// Partial sums along k are at most this long before they are added up, which bounds the rounding
// error like a pairwise sum and keeps a block of the panel in the L1 cache.
constexpr int64_t DEPTH = 256;

// Few rows leave registers free: independent chains hide the latency of fma.
constexpr int chains_for(int rows) { return rows <= 2 ? 4 : rows <= 4 ? 2 : 1; }

template <class T, int ROWS>
struct Tile;

// f32 and f16: one row of the panel at a time.
template <class T, int ROWS>
struct Tile {
  static constexpr int STEP = 1;
  static constexpr int ROW = PANEL;  // elements of the panel per step
  static constexpr int VECTOR = LANES;
  static FUSEC_INLINE void step(const float* a, int64_t pitch, const T* b, Vec (&sum)[ROWS][VECTORS]) {
    Vec b0 = load(b), b1 = load(b + LANES);
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      Vec x = set(a[r * pitch]);
      sum[r][0] = fma(x, b0, sum[r][0]);
      sum[r][1] = fma(x, b1, sum[r][1]);
    }
  }
};

// bf16: two rows of the panel at a time, interleaved.
template <int ROWS>
struct Tile<bf16, ROWS> {
  static constexpr int STEP = 2;
  static constexpr int ROW = 2 * PANEL;
  static constexpr int VECTOR = 2 * LANES;
#ifdef __AVX512BF16__
  static FUSEC_INLINE void step(const bf16* a, int64_t pitch, const bf16* b, Vec (&sum)[ROWS][VECTORS]) {
    __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + VECTOR);
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      int pair;
      memcpy(&pair, a + r * pitch, sizeof pair);
      __m512i x = _mm512_set1_epi32(pair);
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)x, (__m512bh)b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)x, (__m512bh)b1);
    }
  }
#else
  static FUSEC_INLINE Vec even(const bf16* pairs) { return widen(pairs, false); }
  static FUSEC_INLINE Vec odd(const bf16* pairs) { return widen(pairs, true); }
  static FUSEC_INLINE Vec widen(const bf16* pairs, bool odd) {
#if FUSEC_AVX512
    __m512i bits = _mm512_loadu_si512(pairs);
    return _mm512_castsi512_ps(odd ? _mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000))
                                   : _mm512_slli_epi32(bits, 16));
#else
    __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
    return _mm256_castsi256_ps(odd ? _mm256_and_si256(bits, _mm256_set1_epi32(0xffff0000))
                                   : _mm256_slli_epi32(bits, 16));
#endif
  }
  static FUSEC_INLINE void step(const float* a, int64_t pitch, const bf16* b, Vec (&sum)[ROWS][VECTORS]) {
    Vec b0 = even(b), b1 = even(b + VECTOR);
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      Vec x = set(a[r * pitch]);
      sum[r][0] = fma(x, b0, sum[r][0]);
      sum[r][1] = fma(x, b1, sum[r][1]);
    }
    b0 = odd(b), b1 = odd(b + VECTOR);
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      Vec x = set(a[r * pitch + 1]);
      sum[r][0] = fma(x, b0, sum[r][0]);
      sum[r][1] = fma(x, b1, sum[r][1]);
    }
  }
#endif
};

// c[ROWS][PANEL] (+)= a[ROWS][k] * panel rows [0, k).
template <class T, int ROWS>
void multiply_tile(const Activations<T>* a, int64_t pitch, const T* panel, int64_t k, float* c,
                   bool accumulate) {
  using Step = Tile<T, ROWS>;
  constexpr int CHAINS = chains_for(ROWS);
  FUSEC_UNROLL
  for (int pass = 0; pass < PASSES; ++pass) {
    const T* b = panel + pass * VECTORS * Step::VECTOR;
    Vec sum[CHAINS][ROWS][VECTORS];
    FUSEC_UNROLL
    for (int chain = 0; chain < CHAINS; ++chain) {
      FUSEC_UNROLL
      for (int r = 0; r < ROWS; ++r) sum[chain][r][0] = sum[chain][r][1] = zero();
    }
    int64_t i = 0;
    for (; i + CHAINS * Step::STEP <= k; i += CHAINS * Step::STEP) {
      FUSEC_UNROLL
      for (int chain = 0; chain < CHAINS; ++chain) {
        // With few rows the panel streams from memory; the hardware stops at page ends.
        if (CHAINS > 1) __builtin_prefetch(reinterpret_cast<const char*>(b) + 4096);
        Step::step(a + i + chain * Step::STEP, pitch, b, sum[chain]);
        b += Step::ROW;
      }
    }
    for (; i < k; i += Step::STEP, b += Step::ROW) Step::step(a + i, pitch, b, sum[0]);
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      FUSEC_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        Vec total = sum[0][r][v];
        if (CHAINS > 1) total = total + sum[1 % CHAINS][r][v];
        if (CHAINS > 2) total = total + (sum[2 % CHAINS][r][v] + sum[3 % CHAINS][r][v]);
        float* target = c + r * PANEL + (pass * VECTORS + v) * LANES;
        store(target, accumulate ? load(target) + total : total);
      }
    }
  }
}

template <class T>
void multiply_rows(const Activations<T>* a, int64_t pitch, int64_t rows, const T* panel, int64_t k,
                   float* c, bool accumulate) {
  switch (rows) {
#define FUSEC_ROWS(n) \
  case n:             \
    return multiply_tile<T, n>(a, pitch, panel, k, c, accumulate);
    FUSEC_ROWS(1)
    FUSEC_ROWS(2)
    FUSEC_ROWS(3)
    FUSEC_ROWS(4)
    FUSEC_ROWS(5)
    FUSEC_ROWS(6)
#if FUSEC_AVX512
    FUSEC_ROWS(7)
    FUSEC_ROWS(8)
    FUSEC_ROWS(9)
    FUSEC_ROWS(10)
    FUSEC_ROWS(11)
    FUSEC_ROWS(12)
#endif
#undef FUSEC_ROWS
  }
}

template <class T>
void product(const Activations<T>* a, int64_t pitch, int64_t rows, const T* panel, int64_t k,
             float* c) {
  if (k == 0) memset(c, 0, static_cast<size_t>(rows) * PANEL * sizeof(float));
  int64_t tiles = ceil_div(rows, TILE);
  for (int64_t depth = 0; depth < k; depth += DEPTH) {
    int64_t count = min_of(DEPTH, k - depth);
    // Rows are dealt out evenly: 13 rows are 7 and 6, not 12 and a slow 1.
    for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
      int64_t next = rows * (tile + 1) / tiles;
      multiply_rows<T>(a + row * pitch + depth, pitch, next - row, panel + depth * PANEL, count,
                       c + row * PANEL, depth > 0);
      row = next;
    }
  }
}

}  // namespace

void panel_product(const Activations<float>* a, int64_t pitch, int64_t rows, const float* panel,
                   int64_t k, float* c) {
  product<float>(a, pitch, rows, panel, k, c);
}
void panel_product(const Activations<bf16>* a, int64_t pitch, int64_t rows, const bf16* panel,
                   int64_t k, float* c) {
  product<bf16>(a, pitch, rows, panel, k, c);
}
void panel_product(const Activations<f16>* a, int64_t pitch, int64_t rows, const f16* panel,
                   int64_t k, float* c) {
  product<f16>(a, pitch, rows, panel, k, c);
}

}  // namespace fusec
