// Rotary position embedding of one row: what rope and qk_norm_rope share.
#pragma once

#include <fusec/double.h>

namespace fusec {

// Even and odd elements of the 2 * LANES in (low, high), and the way back.
FUSEC_INLINE void split_pairs(Vec low, Vec high, Vec* even, Vec* odd) {
#if FUSEC_AVX512
  const __m512i first =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  *even = _mm512_permutex2var_ps(low, first, high);
  *odd = _mm512_permutex2var_ps(low, _mm512_add_epi32(first, _mm512_set1_epi32(1)), high);
#else
  __m256d a = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0x88));
  __m256d b = _mm256_castps_pd(_mm256_shuffle_ps(low, high, 0xdd));
  *even = _mm256_castpd_ps(_mm256_permute4x64_pd(a, 0xd8));
  *odd = _mm256_castpd_ps(_mm256_permute4x64_pd(b, 0xd8));
#endif
}
FUSEC_INLINE void join_pairs(Vec even, Vec odd, Vec* low, Vec* high) {
#if FUSEC_AVX512
  const __m512i first =
      _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  *low = _mm512_permutex2var_ps(even, first, odd);
  *high = _mm512_permutex2var_ps(even, _mm512_add_epi32(first, _mm512_set1_epi32(8)), odd);
#else
  Vec a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);
  *low = _mm256_permute2f128_ps(a, b, 0x20);
  *high = _mm256_permute2f128_ps(a, b, 0x31);
#endif
}

// 2 * count elements, count <= LANES.
template <class T>
FUSEC_INLINE void load_pairs(const T* p, int count, Vec* even, Vec* odd) {
  int first = min_of(2 * count, LANES), second = 2 * count - first;
  Vec low = load_some(p, first), high = second > 0 ? load_some(p + LANES, second) : zero();
  split_pairs(low, high, even, odd);
}
template <class T>
FUSEC_INLINE void store_pairs(T* p, Vec even, Vec odd, int count) {
  Vec low, high;
  join_pairs(even, odd, &low, &high);
  int first = min_of(2 * count, LANES), second = 2 * count - first;
  store_some(p, low, first);
  if (second > 0) store_some(p + LANES, high, second);
}

// How rows are rotated: pairs (i, i + rotary/2), or (2i, 2i + 1) if interleaved, are turned by the
// angles of the tables; elements from `rotary` on are copied. With deinterleave, interleaved pairs
// are written in halves.
struct Rotation {
  int64_t depth, rotary;
  bool interleaved, deinterleave;
  int64_t table_step;  // 2 if a table holds each angle twice in a row, else 1
  int64_t table_kind;  // 1 dtype of the rows, 2 f32

  explicit Rotation(const int64_t* p)
      : depth(p[0]), rotary(p[1]), interleaved(p[2] != 0), deinterleave(p[3] != 0),
        table_step(p[4]), table_kind(p[5]) {}

  int64_t half() const { return rotary / 2; }
  bool pairs_out() const { return interleaved && !deinterleave; }
};

// A row of a table in f32. Rows of the table are read again only where they change.
template <class T>
class AngleRow {
 public:
  AngleRow(const Rotation& rotation, const void* table)
      : rotation_(rotation), table_(table), widened_(rotation.half()) {}

  FUSEC_INLINE const float* at(int64_t offset) {
    if (offset == last_) return row_;
    last_ = offset;
    int64_t half = rotation_.half(), step = rotation_.table_step;
    if (rotation_.table_kind == WEIGHT_F32) {
      const float* entries = static_cast<const float*>(table_) + offset;
      if (step == 1) return row_ = entries;
      for (int64_t i = 0; i < half; ++i) widened_[i] = entries[i * step];
    } else {
      const T* entries = static_cast<const T*>(table_) + offset;
      for (int64_t i = 0; i < half; ++i) widened_[i] = to_float(entries[i * step]);
    }
    return row_ = widened_;
  }

 private:
  const Rotation& rotation_;
  const void* table_;
  Scratch<float> widened_;
  const float* row_ = nullptr;
  int64_t last_ = -1;
};

// Rotates x, of which each element is first given to scaled(value, column, count); `pairs_scaled`
// does the same for elements column, column + 2, ... `spare` holds a row.
template <class T, class Scaled, class PairsScaled>
FUSEC_INLINE void rotate_row(const Rotation& r, const T* x, const float* cosine, const float* sine,
                             const Scaled& scaled, const PairsScaled& pairs_scaled, T* spare,
                             T* out) {
  int64_t half = r.half();
  if (out == x && r.interleaved && r.deinterleave) {
    // The halves that are written lie upon pairs that are yet to be read.
    memcpy(spare, x, static_cast<size_t>(r.depth) * sizeof(T));
    x = spare;
  }
  for_vectors(half, [&](int64_t i, int count) {
    Vec u, v;
    if (r.interleaved) {
      load_pairs(x + 2 * i, count, &u, &v);
      pairs_scaled(&u, &v, 2 * i, count);
    } else {
      u = scaled(load_some(x + i, count), i, count);
      v = scaled(load_some(x + half + i, count), half + i, count);
    }
    Vec c = load_some(cosine + i, count), s = load_some(sine + i, count);
    Vec turned_u = u * c - v * s, turned_v = v * c + u * s;
    if (r.pairs_out()) {
      store_pairs(out + 2 * i, turned_u, turned_v, count);
    } else {
      store_some(out + i, turned_u, count);
      store_some(out + half + i, turned_v, count);
    }
  });
  for_vectors(r.depth - r.rotary, [&](int64_t i, int count) {
    i += r.rotary;
    store_some(out + i, scaled(load_some(x + i, count), i, count), count);
  });
}

template <class T>
FUSEC_INLINE void rotate_row(const Rotation& r, const T* x, const float* cosine, const float* sine,
                             T* spare, T* out) {
  rotate_row(r, x, cosine, sine, [](Vec value, int64_t, int) { return value; },
             [](Vec*, Vec*, int64_t, int) {}, spare, out);
}

// The same in f64; each element is first given to scaled(value, column).
template <class Scaled>
inline void rotate_row_f64(const Rotation& r, const double* x, const void* cos_table,
                           int64_t cos_at, const void* sin_table, int64_t sin_at,
                           const Scaled& scaled, double* spare, double* out) {
  int64_t half = r.half();
  for (int64_t i = 0; i < r.depth; ++i) spare[i] = scaled(x[i], i);
  for (int64_t i = 0; i < half; ++i) {
    double c = weight_f64(cos_table, r.table_kind, cos_at + i * r.table_step);
    double s = weight_f64(sin_table, r.table_kind, sin_at + i * r.table_step);
    double u = spare[r.interleaved ? 2 * i : i], v = spare[r.interleaved ? 2 * i + 1 : half + i];
    out[r.pairs_out() ? 2 * i : i] = u * c - v * s;
    out[r.pairs_out() ? 2 * i + 1 : half + i] = v * c + u * s;
  }
  for (int64_t i = r.rotary; i < r.depth; ++i) out[i] = spare[i];
}

}  // namespace fusec
