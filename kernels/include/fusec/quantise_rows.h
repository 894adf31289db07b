// Rows as they are made, one after the other, and where they go: as they are, or as codes and scales.
//
// A maker has `count()` rows of `length()` elements, `work()` operations for each of them, `outer()`
// dims with `out_strides()` of its result, `finish(operands)` to take the results that come last, and
// `make(row, scratch, take)`, which calls take(value) once: value(i, count) gives the elements of
// the row from i on, and is asked once for each vector, in order. A maker may keep what value(i)
// needs in `scratch[i]`, where the taker leaves element i when it was asked for it.
//
// What makes rows is compiled for each maker, how they are quantised for each format.
#pragma once

#include <fusec/fp8.h>
#include <fusec/rows.h>

namespace fusec {

// ---- makers ----

// What makers have in common that read the params of their kernel: sizes[4] first, the strides[4] of
// the result at OUT_AT, the length of a row at N_AT; an element takes about WORK operations.
template <int OUT_AT, int N_AT, int WORK>
class ParamRows {
 public:
  static constexpr int SIZES = 0, OUT = OUT_AT, N = N_AT;

  FUSEC_INLINE Outer outer() const { return {p_ + SIZES}; }
  FUSEC_INLINE const int64_t* out_strides() const { return p_ + OUT; }
  FUSEC_INLINE int64_t count() const { return outer().rows(); }
  FUSEC_INLINE int64_t length() const { return p_[N]; }
  FUSEC_INLINE int64_t work() const { return WORK * p_[N]; }
  FUSEC_INLINE void finish(Operands&) {}

 protected:
  explicit FUSEC_INLINE ParamRows(const int64_t* params)
      : p_(params), ahead_(rows_ahead(params[N])) {}

  // Where an operand has the row to be asked for while row `row` is written.
  template <class T>
  FUSEC_INLINE const T* later(const T* operand, int64_t row, int strides) const {
    return operand + outer().offset(row + ahead_, p_ + strides);
  }

  const int64_t* p_;

 private:
  int64_t ahead_;
};

// ---- rows as they are ----

template <class T>
class PlainRows {
 public:
  PlainRows(Operands& operands, Outer outer, const int64_t* strides)
      : out_(operands.take<T>()), outer_(outer), strides_(strides) {}

  // Rows of the maker that are one row of the result.
  FUSEC_INLINE int64_t together() const { return 1; }

  template <class Value>
  FUSEC_INLINE void take(int64_t row, int64_t n, float*, const Value& value) const {
    T* out = out_ + outer_.offset(row, strides_);
    for_vectors(n, [&](int64_t i, int count) { store_some(out + i, value(i, count), count); });
  }

 private:
  T* out_;
  Outer outer_;
  const int64_t* strides_;
};

// ---- scales: `Scaling.scale` of fusec/formats.py ----

enum ScaleRounding : int64_t {
  SCALE_EXACT = 0,
  SCALE_UP = 1,
  SCALE_EVEN = 2,
  SCALE_DOWN = 3,
};

// How rows are quantised; after the params of the maker.
struct QuantiseParams {
  enum {
    CODES = 0,    // strides[4] of the codes along the maker's outer dims
    FORMAT = 4,   // FormatNumber
    TOGETHER,     // rows of the maker that are one row, side by side
    GROUP,        // elements that share a scale, maybe more than there are; 0: one is given for all
    E8M0,         // whether scales are bytes
    ROUNDING,     // ScaleRounding
    MAXIMUM,      // f64: what the largest element of a group is scaled to
    FLOOR,        // f64: the least f32 scale
    BOUND,        // f64: the largest f32 scale, 0 if there is none
    SCALE_ROW,    // scales from a row to the next
    SCALE_GROUP,  // scales from a group to the next
    WITH_PLAIN,   // whether the rows are written as they are, too
    COUNT
  };
};

// The least power of two that is not below `scale`; NaN and infinity stay.
inline float power_above(float scale) {
  uint32_t bits = bits_of(scale);
  if (!(scale < __builtin_inff()) || scale == 0.0f) return scale;
  if (bits >= 0x800000) return float_of((bits + 0x7fffff) & 0x7f800000);
  uint32_t power = 1;
  while (power < bits) power *= 2;
  return float_of(power);
}

// How groups of one format are quantised.
struct Quantiser {
  float maximum, floor, bound;
  int64_t rounding;
  bool powers;  // whether scales are e8m0 bytes

  explicit Quantiser(const int64_t* p)
      : maximum(f32_param(p[QuantiseParams::MAXIMUM])),
        floor(f32_param(p[QuantiseParams::FLOOR])),
        bound(f32_param(p[QuantiseParams::BOUND])),
        rounding(p[QuantiseParams::ROUNDING]),
        powers(p[QuantiseParams::E8M0] != 0) {}

  // The f32 scale of a group whose largest magnitude is `top`.
  FUSEC_INLINE float scale(float top) const {
    float scale = top / maximum;
    if (bound > 0.0f && scale > bound) scale = bound;
    if (scale < floor) scale = floor;
    return rounding == SCALE_UP ? power_above(scale) : scale;
  }

  // The e8m0 byte for the same.
  template <class F>
  FUSEC_INLINE uint8_t power(float top) const {
    constexpr int HIGHEST = static_cast<int>(F::LARGEST >> F::MANTISSA) - F::BIAS;
    if (rounding == SCALE_UP) {
      if (top != top) return 0xff;
      double quotient = static_cast<double>(top) / static_cast<double>(maximum);
      int64_t bits;
      memcpy(&bits, &quotient, sizeof bits);
      int64_t exponent = ((bits + ((int64_t{1} << 52) - 1)) >> 52) - 1023;
      return static_cast<uint8_t>(min_of<int64_t>(max_of<int64_t>(exponent + 127, 0), 254));
    }
    uint32_t bits = bits_of(top);
    if (rounding == SCALE_EVEN) bits += 1u << (22 - F::MANTISSA);
    return static_cast<uint8_t>(max_of(static_cast<int>((bits >> 23) & 0xff) - HIGHEST, 0));
  }

  // Writes the scale, as a float or a byte, and gives it.
  template <class F>
  FUSEC_INLINE float write_scale(float top, uint8_t* scales, int64_t place) const {
    if (powers) {
      scales[place] = power<F>(top);
      return decode_e8m0(scales[place]);
    }
    float found = scale(top);
    reinterpret_cast<float*>(scales)[place] = found;
    return found;
  }
};

// The largest magnitude of numbers, as bits: that of a NaN is beyond all others.
class Largest {
 public:
  FUSEC_INLINE void note(Vec value, int count) {
    if (count != LANES) value = select(first_lanes(count), value, zero());
    top_ = max_bits(top_, bits_of(abs(value)));
  }
  FUSEC_INLINE float found() const { return float_of(reduce_max_bits(top_)); }

 private:
  IntVec top_ = set_bits(0);
};

// For scales and numbers that leave the range of f32 on the way.
template <class F>
__attribute__((noinline)) void encode_seldom(const float* row, int64_t n, float scale,
                                             float maximum, uint8_t* codes, int64_t begin) {
  for_vectors(n, [&](int64_t i, int count) {
    uint8_t lanes[LANES] = {};
    for (int lane = 0; lane < count; ++lane) {
      double quotient = static_cast<double>(row[i + lane]) / static_cast<double>(scale);
      lanes[lane] = static_cast<uint8_t>(encode_one<F>(quotient, static_cast<double>(maximum)));
    }
    store_codes<F>(codes, begin + i, load_bytes(lanes), count);
  });
}

// A part of a row: n elements from `begin` on, whose codes and scales begin where the row's do.
struct RowPart {
  const float* wide;  // of the part
  int64_t begin, n, group;
  float top;  // its largest magnitude, if it is one group; else unused
  uint8_t* codes;
  uint8_t* scales;
  int64_t scale_place, scale_step;  // of the part's first group, and to the next
};

// Codes and scales of whole groups.
template <class F>
void quantise_part(const Quantiser& how, const RowPart& part) {
  int64_t done = 0, place = part.scale_place;
  do {
    int64_t n = min_of(part.group, part.n - done);
    const float* wide = part.wide + done;
    float top = part.top;
    if (part.group < part.n) {
      Largest largest;
      for_vectors(n, [&](int64_t i, int count) { largest.note(load_some(wide + i, count), count); });
      top = largest.found();
    }
    float scale = how.write_scale<F>(top, part.scales, place);
    Divisor by(scale, how.maximum);
    if (__builtin_expect(by.takes(top), 1)) {
      for_vectors(n, [&](int64_t i, int count) {
        IntVec codes = encode<F>(load_some(wide + i, count), by);
        store_codes<F>(part.codes, part.begin + done + i, codes, count);
      });
    } else {
      encode_seldom<F>(wide, n, scale, how.maximum, part.codes, part.begin + done);
    }
    place += part.scale_step;
    done += n;
  } while (done < part.n);
}

// Codes by a scale that is given.
template <class F>
void quantise_by(float scale, float maximum, const RowPart& part) {
  Divisor by(scale, maximum);
  if (!by.takes_all()) {
    return encode_seldom<F>(part.wide, part.n, scale, maximum, part.codes, part.begin);
  }
  for_vectors(part.n, [&](int64_t i, int count) {
    IntVec codes = encode<F>(load_some(part.wide + i, count), by);
    store_codes<F>(part.codes, part.begin + i, codes, count);
  });
}

// ---- rows as codes and scales ----

// Operands: [the scale f32 [1] that is given], codes, [scales], [the rows as they are].
template <class T>
class QuantisedRows {
 public:
  QuantisedRows(Operands& operands, Outer outer, const int64_t* plain_strides,
                const int64_t* params)
      : outer_(outer), plain_strides_(plain_strides), p_(params), how_(params) {
    group_ = params[QuantiseParams::GROUP];
    if (group_ == 0) given_ = operands.take<float>();
    codes_ = operands.take<uint8_t>();
    if (group_ != 0) scales_ = operands.take<uint8_t>();
    if (params[QuantiseParams::WITH_PLAIN]) plain_ = operands.take<T>();
    with_format(params[QuantiseParams::FORMAT], [&](auto format) {
      part_ = quantise_part<decltype(format)>;
      by_ = quantise_by<decltype(format)>;
    });
  }

  FUSEC_INLINE int64_t together() const { return p_[QuantiseParams::TOGETHER]; }

  // `row` is a row of the maker; with the last of those that are together, codes are written.
  template <class Value>
  FUSEC_INLINE void take(int64_t row, int64_t n, float* scratch, const Value& value) const {
    int64_t parts = together(), index = row % parts;
    T* plain = plain_ ? plain_ + outer_.offset(row, plain_strides_) : nullptr;
    // Few groups at a time: they are quantised while they are near.
    int64_t step = parts > 1 || group_ == 0 || group_ >= NEAR ? n : NEAR / group_ * group_;
    int64_t begin = 0;
    do {
      int64_t size = min_of(step, n - begin);
      Largest largest;
      for_vectors(size, [&](int64_t i, int count) {
        Vec wide = value(begin + i, count);
        store_some(scratch + begin + i, wide, count);
        largest.note(wide, count);
        if (plain) store_some(plain + begin + i, wide, count);
      });
      if (parts == 1) quantise(row, scratch + begin, begin, size, n, largest.found());
      begin += size;
    } while (begin < n);
    if (parts > 1 && index == parts - 1) {
      float* whole = scratch - index * n;
      quantise(row - index, whole, 0, parts * n, parts * n, largest_of(whole, parts * n));
    }
  }

 private:
  static constexpr int64_t NEAR = 1024;

  static float largest_of(const float* wide, int64_t n) {
    Largest largest;
    for_vectors(n, [&](int64_t i, int count) { largest.note(load_some(wide + i, count), count); });
    return largest.found();
  }

  // `n` of the `length` elements of a row, from `begin` on.
  void quantise(int64_t row, const float* wide, int64_t begin, int64_t n, int64_t length,
                float top) const {
    RowPart part;
    part.wide = wide;
    part.begin = begin;
    part.n = n;
    part.group = min_of(group_, length);
    part.top = top;
    part.codes = codes_ + outer_.offset(row, p_ + QuantiseParams::CODES);
    if (group_ == 0) return by_(*given_, how_.maximum, part);
    part.scales = scales_;
    part.scale_step = p_[QuantiseParams::SCALE_GROUP];
    part.scale_place = row / together() * p_[QuantiseParams::SCALE_ROW] +
                       begin / group_ * part.scale_step;
    part_(how_, part);
  }

  Outer outer_;
  const int64_t* plain_strides_;
  const int64_t* p_;
  Quantiser how_;
  int64_t group_;
  const float* given_ = nullptr;
  uint8_t* codes_;
  uint8_t* scales_ = nullptr;
  T* plain_ = nullptr;
  void (*part_)(const Quantiser& how, const RowPart& part);
  void (*by_)(float scale, float maximum, const RowPart& part);
};

// ---- makers meet takers ----

template <class Maker, class Rows>
FUSEC_INLINE void make_rows(const Maker& maker, const Rows& rows) {
  int64_t n = maker.length(), together = rows.together();
  parallel_for(maker.count() / together, grain_for(maker.work() * together),
               [&](int64_t begin, int64_t end, int) {
    Scratch<float> scratch(n * together);
    for (int64_t row = begin * together; row < end * together; ++row) {
      float* wide = scratch + row % together * n;
      maker.make(row, wide, [&](const auto& value) { rows.take(row, n, wide, value); });
    }
  });
}

// Rows of a maker as they are; operands: of the maker, the rows, further results of the maker. A
// kernel's params begin with those of the maker.
template <class T, class Maker>
void write_plain(Operands& operands, const int64_t* params) {
  Maker maker(operands, params);
  PlainRows<T> rows(operands, maker.outer(), maker.out_strides());
  maker.finish(operands);
  make_rows(maker, rows);
}

template <class T, class Maker>
void write_plain(void* const* buffers, const int64_t* params) {
  Operands operands(buffers);
  write_plain<T, Maker>(operands, params);
}

// Rows of a maker as codes and scales; params: of the maker, then `QuantiseParams`.
template <class T, class Maker>
void write_quantised(void* const* buffers, const int64_t* params) {
  Operands operands(buffers);
  Maker maker(operands, params);
  const int64_t* how = params + Maker::COUNT;
  QuantisedRows<T> rows(operands, maker.outer(), maker.out_strides(), how);
  maker.finish(operands);
  make_rows(maker, rows);
}

}  // namespace fusec
