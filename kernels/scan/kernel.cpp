// cumsum and cumprod along one axis. Floats are accumulated in f64, as in torch; integers wrap.
#include <fusec/elements.h>

namespace fusec {
namespace {

enum ScanParam { SIZES = 0, X = 4, OUT = 8, N = 12, X_STEP, OUT_STEP, MULTIPLY };

template <class T>
struct Running {
  using Type = int64_t;
  static FUSEC_INLINE int64_t read(T value) { return value; }
  static FUSEC_INLINE T write(int64_t value) { return static_cast<T>(value); }
};
template <>
struct Running<float> {
  using Type = double;
  static FUSEC_INLINE double read(float value) { return value; }
  static FUSEC_INLINE float write(double value) { return static_cast<float>(value); }
};
template <>
struct Running<double> {
  using Type = double;
  static FUSEC_INLINE double read(double value) { return value; }
  static FUSEC_INLINE double write(double value) { return value; }
};
template <class T>
struct RunningHalf {
  using Type = double;
  static FUSEC_INLINE double read(T value) { return to_float(value); }
  static FUSEC_INLINE T write(double value) { return from_float<T>(static_cast<float>(value)); }
};
template <>
struct Running<bf16> : RunningHalf<bf16> {};
template <>
struct Running<f16> : RunningHalf<f16> {};

template <class T>
void scan(void* const* buffers, const int64_t* p) {
  using R = Running<T>;
  using Type = typename R::Type;
  const T* x = static_cast<const T*>(buffers[0]);
  T* out = static_cast<T*>(buffers[1]);
  Outer outer{p + SIZES};
  int64_t n = p[N];
  bool multiply = p[MULTIPLY] != 0;
  parallel_for(outer.rows(), grain_for(4 * n), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, p + X);
      T* o = out + outer.offset(row, p + OUT);
      Type running = multiply ? Type(1) : Type(0);
      for (int64_t i = 0; i < n; ++i) {
        Type value = R::read(a[i * p[X_STEP]]);
        running = multiply ? wrapping_multiply<Type>(running, value)
                           : wrapping_add<Type>(running, value);
        o[i * p[OUT_STEP]] = R::write(running);
      }
    }
  });
}

}  // namespace
}  // namespace fusec

// buffers: x, out (may be x); any strides
// params:  sizes[4] of the other axes, x strides[4], out strides[4], N, strides of x and out along
//          the axis, multiply (cumprod)
FUSEC_FOR_FLOATS(scan, fusec::scan)
FUSEC_FOR_INTEGERS(scan, fusec::scan)
