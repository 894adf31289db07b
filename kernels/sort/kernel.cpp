// sort, topk, argmax and argmin along one axis. NaN is above every number; equal elements keep their
// order, so that the lowest index comes first.
#include <fusec/elements.h>

namespace fusec {
namespace {

struct Entry {
  uint64_t key;
  int64_t index;
};

// Stable merge sort of `entries`; the result is in `entries`.
void sort_entries(Entry* entries, Entry* other, int64_t n) {
  constexpr int64_t RUN = 16;
  for (int64_t begin = 0; begin < n; begin += RUN) {
    int64_t end = min_of(n, begin + RUN);
    for (int64_t i = begin + 1; i < end; ++i) {
      Entry entry = entries[i];
      int64_t j = i;
      for (; j > begin && entries[j - 1].key > entry.key; --j) entries[j] = entries[j - 1];
      entries[j] = entry;
    }
  }
  Entry *from = entries, *to = other;
  for (int64_t width = RUN; width < n; width *= 2) {
    for (int64_t begin = 0; begin < n; begin += 2 * width) {
      int64_t middle = min_of(n, begin + width), end = min_of(n, begin + 2 * width);
      int64_t a = begin, b = middle;
      for (int64_t i = begin; i < end; ++i) {
        bool left = a < middle && (b >= end || from[a].key <= from[b].key);
        to[i] = left ? from[a++] : from[b++];
      }
    }
    Entry* swapped = from;
    from = to;
    to = swapped;
  }
  if (from != entries) memcpy(entries, from, static_cast<size_t>(n) * sizeof(Entry));
}

// Keeps the k smallest of a stream in order; much cheaper than a sort when k is small.
class Smallest {
 public:
  Smallest(Entry* kept, int64_t k) : kept_(kept), k_(k) {}

  FUSEC_INLINE void add(uint64_t key, int64_t index) {
    if (count_ == k_ && (k_ == 0 || key >= kept_[k_ - 1].key)) return;
    int64_t i = count_ < k_ ? count_++ : k_ - 1;
    for (; i > 0 && kept_[i - 1].key > key; --i) kept_[i] = kept_[i - 1];
    kept_[i] = {key, index};
  }

 private:
  Entry* kept_;
  int64_t k_, count_ = 0;
};

constexpr int64_t INSERTION_LIMIT = 64;

enum OrderParam {
  SIZES = 0,
  X = 4,
  VALUES = 8,
  INDICES = 12,
  N = 16,
  K,
  DESCENDING,
  X_STEP,
  VALUES_STEP,
  INDICES_STEP,
};

template <class T>
void topk(void* const* buffers, const int64_t* p) {
  const T* x = static_cast<const T*>(buffers[0]);
  T* values = static_cast<T*>(buffers[1]);
  int64_t* indices = static_cast<int64_t*>(buffers[2]);
  Outer outer{p + SIZES};
  int64_t n = p[N], k = p[K];
  uint64_t flip = p[DESCENDING] ? ~uint64_t{0} : 0;
  if (k < 0 || k > n) {
    fusec_raise(FUSEC_INVALID_ARGUMENT, k, n);
    return;
  }
  bool select = k <= INSERTION_LIMIT && k < n;
  parallel_for(outer.rows(), grain_for(n * 16), [&](int64_t begin, int64_t end, int) {
    Scratch<Entry> entries(select ? k : n), other(select ? 0 : n);
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, p + X);
      if (select) {
        Smallest smallest(entries, k);
        for (int64_t i = 0; i < n; ++i) smallest.add(order_key(a[i * p[X_STEP]]) ^ flip, i);
      } else {
        for (int64_t i = 0; i < n; ++i) entries[i] = {order_key(a[i * p[X_STEP]]) ^ flip, i};
        sort_entries(entries, other, n);
      }
      T* v = values + outer.offset(row, p + VALUES);
      int64_t* at = indices + outer.offset(row, p + INDICES);
      for (int64_t i = 0; i < k; ++i) {
        v[i * p[VALUES_STEP]] = a[entries[i].index * p[X_STEP]];
        at[i * p[INDICES_STEP]] = entries[i].index;
      }
    }
  });
}

enum ArgParam { ARG_SIZES = 0, ARG_X = 4, ARG_OUT = 8, ARG_N = 12, ARG_STEP, ARG_SMALLEST };

template <class T>
void arg_extreme(void* const* buffers, const int64_t* p) {
  const T* x = static_cast<const T*>(buffers[0]);
  int64_t* out = static_cast<int64_t*>(buffers[1]);
  Outer outer{p + ARG_SIZES};
  int64_t n = p[ARG_N], step = p[ARG_STEP];
  bool smallest = p[ARG_SMALLEST] != 0;
  if (n == 0 && outer.rows() > 0) {
    fusec_raise(FUSEC_INVALID_ARGUMENT, 0, 1);
    return;
  }
  parallel_for(outer.rows(), grain_for(4 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, p + ARG_X);
      auto best = Arithmetic<T>::widen(a[0]);
      int64_t at = 0;
      // The first NaN is the answer of both.
      for (int64_t i = 1; i < n && best == best; ++i) {
        auto value = Arithmetic<T>::widen(a[i * step]);
        if ((smallest ? value < best : value > best) || value != value) {
          best = value;
          at = i;
        }
      }
      out[outer.offset(row, p + ARG_OUT)] = at;
    }
  });
}

}  // namespace
}  // namespace fusec

// The first k of every row in order; k = N sorts.
// buffers: x, values, indices (i64); any strides
// params:  sizes[4] of the other axes, x strides[4], values strides[4], indices strides[4], N, k,
//          descending, strides of x, values and indices along the axis
FUSEC_FOR_ALL(topk, fusec::topk)

// Index of the first largest (or smallest) element; the first NaN if there is one.
// buffers: x (any strides), out (i64)
// params:  sizes[4] of the other axes, x strides[4], out strides[4], N, stride of x along the axis,
//          smallest
FUSEC_FOR_ALL(arg, fusec::arg_extreme)
