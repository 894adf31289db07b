// Attention of few rows of queries: keys and values are read once, where they lie.
//
// A task owns a piece of the keys of one key head and all rows that share it. What pieces find is
// added up in their order, and where they begin follows from the sizes alone, so that the result
// does not depend on the number of threads.
#pragma once

#include <fusec/attention.h>

namespace fusec {

// Adds up the lanes of each of LANES vectors: lane i of the result is the sum of vector i.
FUSEC_INLINE Vec sum_of_each(const Vec (&x)[LANES]) {
#if FUSEC_AVX512
  Vec pairs[8], quads[4], halves[2];
  FUSEC_UNROLL
  for (int i = 0; i < 8; ++i) {
    pairs[i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]) +
               _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  FUSEC_UNROLL
  for (int i = 0; i < 4; ++i) {
    __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) +
               _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  FUSEC_UNROLL
  for (int i = 0; i < 2; ++i) {
    halves[i] = _mm512_shuffle_f32x4(quads[2 * i], quads[2 * i + 1], 0x88) +
                _mm512_shuffle_f32x4(quads[2 * i], quads[2 * i + 1], 0xdd);
  }
  return _mm512_shuffle_f32x4(halves[0], halves[1], 0x88) +
         _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd);
#else
  Vec pairs[4], quads[2];
  FUSEC_UNROLL
  for (int i = 0; i < 4; ++i) {
    pairs[i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]) +
               _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  FUSEC_UNROLL
  for (int i = 0; i < 2; ++i) {
    __m256d a = _mm256_castps_pd(pairs[2 * i]), b = _mm256_castps_pd(pairs[2 * i + 1]);
    quads[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b)) +
               _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
  }
  return _mm256_permute2f128_ps(quads[0], quads[1], 0x20) +
         _mm256_permute2f128_ps(quads[0], quads[1], 0x31);
#endif
}

FUSEC_INLINE float first_lane(Vec x) {
  alignas(64) float lanes[LANES];
  store(lanes, x);
  return lanes[0];
}

// Calls body(first row, constant with the number of rows) for rows four, two and one at a time.
template <int ROWS>
struct RowCount {
  static constexpr int value = ROWS;
};
template <class Body>
FUSEC_INLINE void for_rows(int64_t rows, const Body& body) {
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) body(row, RowCount<4>{});
  if (rows - row >= 2) {
    body(row, RowCount<2>{});
    row += 2;
  }
  if (row < rows) body(row, RowCount<1>{});
}

// Asks for a row of `bytes` before it is read: rows of one head are too far apart for the processor
// to see that they will be.
FUSEC_INLINE void prefetch(const void* row, int64_t bytes) {
  const char* line = static_cast<const char*>(row);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i);
}

template <class T>
class FewRows {
 public:
  static constexpr int64_t ROWS = 16;  // at most
  static constexpr int64_t KEYS = 128;  // of a block

  FewRows(const AttentionShape& shape, const AttentionOperands& operands)
      : shape_(shape),
        operands_(operands),
        pairs_(shape.batch * shape.kv_heads),
        rows_(shape.group() * shape.queries),
        q_pitch_(round_up(shape.depth, LANES)),
        out_pitch_(round_up(shape.value_depth, LANES)) {
    shape.visible_to(0, shape.queries, &first_, &last_);
    // Enough tasks for many threads, unless pieces become so short that adding them up shows.
    int64_t keys = last_ - first_;
    int64_t pieces = min_of(ceil_div(keys, SHORTEST_PIECE), ceil_div(TASKS, pairs_));
    piece_ = max_of(KEYS, round_up(ceil_div(keys, max_of<int64_t>(1, pieces)), KEYS));
    pieces_ = max_of<int64_t>(1, ceil_div(keys, piece_));
  }

  static bool takes(const AttentionShape& shape) { return shape.group() * shape.queries <= ROWS; }

  void run() {
    int64_t tasks = pairs_ * pieces_, task_rows = tasks * rows_;
    Scratch<float> outs(task_rows * out_pitch_), maxima(task_rows), sums(task_rows);
    int64_t work = rows_ * piece_ * (shape_.depth + shape_.value_depth) / LANES;
    parallel_for(tasks, grain_for(work), [&](int64_t begin, int64_t end, int) {
      Scratch<float> q(rows_ * q_pitch_), scores(ROWS * KEYS);
      Softmax<T, ROWS, KEYS> softmax(shape_, operands_);
      for (int64_t task = begin; task < end; ++task) {
        int64_t row = task * rows_;
        attend(task / pieces_, task % pieces_, softmax, q, scores, outs + row * out_pitch_);
        for (int64_t i = 0; i < rows_; ++i) {
          maxima[row + i] = softmax.maximum(i);
          sums[row + i] = softmax.sum(i);
        }
      }
    });
    work = pieces_ * out_pitch_ / LANES;
    parallel_for(pairs_ * rows_, grain_for(work), [&](int64_t begin, int64_t end, int) {
      Softmax<T, ROWS, KEYS> softmax(shape_, operands_);
      for (int64_t i = begin; i < end; ++i) combine(i, softmax, outs, maxima, sums);
    });
  }

 private:
  static constexpr int64_t SHORTEST_PIECE = 256;
  static constexpr int64_t AHEAD = 16;  // rows that are asked for before they are read
  static constexpr int64_t TASKS = 64;

  QueryRows rows_sharing(int64_t pair) const {
    int64_t kv_head = pair % shape_.kv_heads, group = shape_.group();
    return {pair / shape_.kv_heads, kv_head, kv_head * group, group, 0, shape_.queries};
  }

  void attend(int64_t pair, int64_t piece, Softmax<T, ROWS, KEYS>& softmax, float* q,
              float* scores, float* out) {
    QueryRows rows = rows_sharing(pair);
    const T* source = static_cast<const T*>(operands_.q);
    rows.each([&](int64_t row, int64_t head, int64_t query) {
      copy_row(row_of(source, shape_.q_strides, rows.batch, head, query), shape_.depth,
               q + row * q_pitch_);
    });
    softmax.start(rows);
    if (piece > 0) softmax.forget_sinks();
    memset(out, 0, static_cast<size_t>(rows_ * out_pitch_) * sizeof(float));
    int64_t end = min_of(last_, first_ + (piece + 1) * piece_);
    for (int64_t key = first_ + piece * piece_; key < end; key += KEYS) {
      int64_t keys = min_of(KEYS, end - key), panels = ceil_div(keys, PANEL);
      const T* k = row_of(static_cast<const T*>(operands_.k), shape_.k_strides, rows.batch,
                                 rows.kv_head, key);
      const T* v = row_of(static_cast<const T*>(operands_.v), shape_.v_strides, rows.batch,
                                 rows.kv_head, key);
      for_rows(rows_, [&](int64_t row, auto count) {
        score<decltype(count)::value>(k, keys, q + row * q_pitch_, scores + row * KEYS, row == 0);
      });
      softmax.start_block(key, panels * PANEL);
      softmax.weigh(0, rows_, key, panels, scores, KEYS, PANEL, scores, KEYS);
      for_rows(rows_, [&](int64_t row, auto count) {
        add_values<decltype(count)::value>(v, keys, scores + row * KEYS, softmax, row,
                                           out + row * out_pitch_);
      });
    }
  }

  // scores[r][t] = q[r] . k[t]: as many keys at a time as there are sums for. Rows past `keys` of the
  // last ones are the last key again.
  template <int COUNT>
  void score(const T* k, int64_t keys, const float* q, float* scores, bool asks) const {
    constexpr int TOGETHER = LANES / COUNT;
    for (int64_t key = 0; key < keys; key += TOGETHER) {
      const T* row[TOGETHER];
      for (int j = 0; j < TOGETHER; ++j) {
        row[j] = k + min_of(key + j, keys - 1) * shape_.k_strides[2];
        if (asks) prefetch(k + (key + j + AHEAD) * shape_.k_strides[2], shape_.depth * sizeof(T));
      }
      Vec sum[LANES];
      FUSEC_UNROLL
      for (int i = 0; i < LANES; ++i) sum[i] = zero();
      auto step = [&](int64_t i, int count) {
        Vec x[TOGETHER];
        FUSEC_UNROLL
        for (int j = 0; j < TOGETHER; ++j) x[j] = load_some(row[j] + i, count);
        FUSEC_UNROLL
        for (int r = 0; r < COUNT; ++r) {
          Vec asked = load_some(q + r * q_pitch_ + i, count);
          FUSEC_UNROLL
          for (int j = 0; j < TOGETHER; ++j) {
            sum[r * TOGETHER + j] = fma(asked, x[j], sum[r * TOGETHER + j]);
          }
        }
      };
      for_vectors(shape_.depth, step);
      alignas(64) float totals[LANES];
      store(totals, sum_of_each(sum));
      FUSEC_UNROLL
      for (int r = 0; r < COUNT; ++r) {
        memcpy(scores + r * KEYS + key, totals + r * TOGETHER, TOGETHER * sizeof(float));
      }
    }
  }

  // out[r] = rescale[r] * out[r] + sum_t weights[r][t] * v[t], some columns at a time.
  template <int COUNT>
  void add_values(const T* v, int64_t keys, const float* weights,
                  const Softmax<T, ROWS, KEYS>& softmax, int64_t first_row, float* out) const {
    constexpr int VECTORS = LANES == 16 ? 4 : 2;
    int64_t column = 0;
    for (; column + VECTORS * LANES <= shape_.value_depth; column += VECTORS * LANES) {
      add_columns<COUNT, VECTORS>(v + column, keys, LANES, weights, softmax, first_row,
                                  out + column, first_row == 0 && column == 0);
    }
    for (; column < shape_.value_depth; column += LANES) {
      int count = static_cast<int>(min_of<int64_t>(LANES, shape_.value_depth - column));
      add_columns<COUNT, 1>(v + column, keys, count, weights, softmax, first_row, out + column,
                            first_row == 0 && column == 0);
    }
  }

  template <int COUNT, int VECTORS>
  FUSEC_INLINE void add_columns(const T* v, int64_t keys, int count, const float* weights,
                                const Softmax<T, ROWS, KEYS>& softmax, int64_t first_row,
                                float* out, bool asks) const {
    Vec sum[COUNT][VECTORS];
    FUSEC_UNROLL
    for (int r = 0; r < COUNT; ++r) {
      FUSEC_UNROLL
      for (int j = 0; j < VECTORS; ++j) sum[r][j] = zero();
    }
    for (int64_t key = 0; key < keys; ++key, v += shape_.v_strides[2]) {
      if (asks) prefetch(v + AHEAD * shape_.v_strides[2], shape_.value_depth * sizeof(T));
      Vec x[VECTORS];
      FUSEC_UNROLL
      for (int j = 0; j < VECTORS; ++j) x[j] = load_some(v + j * LANES, count);
      FUSEC_UNROLL
      for (int r = 0; r < COUNT; ++r) {
        Vec weight = set(weights[r * KEYS + key]);
        FUSEC_UNROLL
        for (int j = 0; j < VECTORS; ++j) sum[r][j] = fma(weight, x[j], sum[r][j]);
      }
    }
    FUSEC_UNROLL
    for (int r = 0; r < COUNT; ++r) {
      Vec rescale = set(softmax.rescale(first_row + r));
      FUSEC_UNROLL
      for (int j = 0; j < VECTORS; ++j) {
        float* place = out + r * out_pitch_ + j * LANES;
        store(place, fma(load(place), rescale, sum[r][j]));
      }
    }
  }

  // Adds up the pieces of row i % rows of pair i / rows, and writes the result.
  void combine(int64_t i, const Softmax<T, ROWS, KEYS>& softmax, float* outs, const float* maxima,
               const float* sums) const {
    QueryRows rows = rows_sharing(i / rows_);
    int64_t row = i % rows_, first = i / rows_ * pieces_ * rows_ + row;
    float maximum = MINUS_INFINITY;
    Vec sum = zero();
    for (int64_t piece = 0; piece < pieces_; ++piece) {
      maximum = max_of(maximum, maxima[first + piece * rows_]);
    }
    float* total = outs + first * out_pitch_;
    for (int64_t piece = 0; piece < pieces_; ++piece) {
      int64_t at = first + piece * rows_;
      Vec worth = softmax.worth(set(maxima[at]), set(maximum));
      sum = sum + set(sums[at]) * worth;
      const float* found = outs + at * out_pitch_;
      for_vectors(out_pitch_, [=](int64_t column, int) {
        Vec before = piece > 0 ? load(total + column) : zero();
        store(total + column, fma(load(found + column), worth, before));
      });
    }
    T* out = static_cast<T*>(operands_.out);
    write_row(total, first_lane(sum), shape_.value_depth,
              row_of(out, shape_.out_strides, rows.batch, rows.head_of(row),
                            rows.query_of(row)));
  }

  const AttentionShape& shape_;
  const AttentionOperands& operands_;
  int64_t pairs_, rows_;  // of batch and key head; of queries in each
  int64_t q_pitch_, out_pitch_;
  int64_t first_, last_;  // keys that any row may see
  int64_t piece_, pieces_;
};

}  // namespace fusec
