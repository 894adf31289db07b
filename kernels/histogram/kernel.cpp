// histogram: how many elements fall into each of equally wide bins (torch.histc).
#include <fusec/elements.h>

namespace fusec {
namespace {

enum HistogramParam { COUNT, BINS, LOW, HIGH };

template <class T>
void histogram(void* const* buffers, const int64_t* p) {
  const T* x = static_cast<const T*>(buffers[0]);
  T* out = static_cast<T*>(buffers[1]);
  int64_t bins = p[BINS];
  double low = f64_param(p[LOW]), high = f64_param(p[HIGH]);
  Scratch<int64_t> counts(bins);
  memset(counts, 0, static_cast<size_t>(bins) * sizeof(int64_t));
  for (int64_t i = 0; i < p[COUNT]; ++i) {
    double value = static_cast<double>(Arithmetic<T>::widen(x[i]));
    if (!(value >= low && value <= high)) continue;  // NaN belongs to no bin
    double bin = (value - low) / (high - low) * static_cast<double>(bins);
    ++counts[bin < static_cast<double>(bins) ? static_cast<int64_t>(bin) : bins - 1];
  }
  using Wide = typename Arithmetic<T>::Wide;
  for (int64_t bin = 0; bin < bins; ++bin) {
    out[bin] = Arithmetic<T>::narrow(static_cast<Wide>(counts[bin]));
  }
}

}  // namespace
}  // namespace fusec

// The last bin holds `high` itself; elements outside [low, high] and NaN are not counted.
// buffers: x (dense), out [bins] of the dtype of x
// params:  elements, bins, low (f64), high (f64)
FUSEC_FOR_FLOATS(histogram, fusec::histogram)
FUSEC_FOR_INTEGERS(histogram, fusec::histogram)
