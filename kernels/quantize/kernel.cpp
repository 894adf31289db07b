// quantize and dequantize: rows brought into narrow formats, and back.
#include <fusec/quantise_rows.h>

namespace fusec {
namespace {

// A maker of rows that are there: see quantise_rows.h.
template <class T>
class GivenRows : public ParamRows<4, 8, 2> {
 public:
  enum { X = 4, COUNT = N + 1 };

  GivenRows(Operands& operands, const int64_t* params) : ParamRows(params), x_(operands.take<T>()) {}

  template <class Take>
  FUSEC_INLINE void make(int64_t row, float*, const Take& take) const {
    const T* x = x_ + outer().offset(row, p_ + X);
    take([=](int64_t i, int count) { return load_some(x + i, count); });
  }

 private:
  const T* x_;
};

struct DequantizeParams {
  enum { SIZES = 0, CODES = 4, OUT = 8, N = 12, FORMAT, GROUP, E8M0, SCALE_ROW, SCALE_GROUP };
};

template <class T, class F>
void dequantize_rows(const uint8_t* codes, const uint8_t* scales, T* out, const int64_t* p) {
  using P = DequantizeParams;
  Outer outer{p + P::SIZES};
  int64_t n = p[P::N], group = max_of<int64_t>(1, p[P::GROUP] ? p[P::GROUP] : n);
  parallel_for(outer.rows(), grain_for(2 * n), [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row) {
      const uint8_t* from = codes + outer.offset(row, p + P::CODES);
      T* to = out + outer.offset(row, p + P::OUT);
      int64_t place = p[P::GROUP] ? row * p[P::SCALE_ROW] : 0;
      for (int64_t begin = 0; begin < n; begin += group, place += p[P::SCALE_GROUP]) {
        Vec scale = set(p[P::E8M0] ? decode_e8m0(scales[place])
                                   : reinterpret_cast<const float*>(scales)[place]);
        for_vectors(min_of(group, n - begin), [&](int64_t i, int count) {
          Vec value = decode<F>(load_codes<F>(from, begin + i, count));
          store_some(to + begin + i, value * scale, count);
        });
      }
    }
  });
}

template <class T>
void dequantize(void* const* buffers, const int64_t* params) {
  Operands operands(buffers);
  const uint8_t* codes = operands.take<uint8_t>();
  const uint8_t* scales = operands.take<uint8_t>();
  T* out = operands.take<T>();
  with_format(params[DequantizeParams::FORMAT], [&](auto format) {
    dequantize_rows<T, decltype(format)>(codes, scales, out, params);
  });
}

}  // namespace
}  // namespace fusec

// Codes and scales of rows, as `Scaling` of fusec/formats.py says.
// buffers: x, [scale f32 [1] if it is given], codes, [scales f32 or e8m0, unless they are given]
// params:  sizes[4], x strides[4], N, then those of `QuantiseParams` in quantise_rows.h
FUSEC_KERNEL void fusec_quantize_f32(void* const* buffers, const int64_t* params) {
  fusec::write_quantised<float, fusec::GivenRows<float>>(buffers, params);
}
FUSEC_KERNEL void fusec_quantize_bf16(void* const* buffers, const int64_t* params) {
  fusec::write_quantised<fusec::bf16, fusec::GivenRows<fusec::bf16>>(buffers, params);
}
FUSEC_KERNEL void fusec_quantize_f16(void* const* buffers, const int64_t* params) {
  fusec::write_quantised<fusec::f16, fusec::GivenRows<fusec::f16>>(buffers, params);
}

// out = the numbers that codes stand for, times the scales of their groups
// buffers: codes, scales f32 or e8m0, out
// params:  sizes[4], codes strides[4] (in bytes), out strides[4], N, format (fp8.h), group (0: one
//          scale for all), whether scales are e8m0, scales from a row to the next and from a group
//          to the next
FUSEC_KERNEL void fusec_dequantize_f32(void* const* buffers, const int64_t* params) {
  fusec::dequantize<float>(buffers, params);
}
FUSEC_KERNEL void fusec_dequantize_bf16(void* const* buffers, const int64_t* params) {
  fusec::dequantize<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_dequantize_f16(void* const* buffers, const int64_t* params) {
  fusec::dequantize<fusec::f16>(buffers, params);
}
