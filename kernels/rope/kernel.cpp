// rope: rotary position embedding of the first `rotary` elements of every row.
#include <fusec/double.h>

namespace fusec {
namespace {

enum RopeParam {
  SIZES = 0,
  X = 4,
  COS = 8,
  SIN = 12,
  OUT = 16,
  D = 20,
  ROTARY,
  INTERLEAVED,
  DEINTERLEAVE,
  TABLE_STEP,
  TABLE_KIND,
};

// Entries `step` apart of a cos or sin row.
template <class T>
FUSEC_INLINE void read_table(const void* table, int64_t kind, int64_t offset, int64_t step,
                             int64_t count, float* out) {
  if (kind == WEIGHT_F32) {
    const float* entries = static_cast<const float*>(table) + offset;
    for (int64_t i = 0; i < count; ++i) out[i] = entries[i * step];
  } else {
    const T* entries = static_cast<const T*>(table) + offset;
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(entries[i * step]);
  }
}

template <class T>
void rope(void* const* buffers, const int64_t* p) {
  const T* x = static_cast<const T*>(buffers[0]);
  const void *cos_table = buffers[1], *sin_table = buffers[2];
  T* out = static_cast<T*>(buffers[3]);
  Outer outer{p + SIZES};
  int64_t depth = p[D], rotary = p[ROTARY], half = rotary / 2;
  bool interleaved = p[INTERLEAVED] != 0, pairs_out = interleaved && !p[DEINTERLEAVE];
  parallel_for(outer.rows(), grain_for(2 * depth), [&](int64_t begin, int64_t end, int) {
    int64_t room = round_up(half, LANES);
    Scratch<float> buffer(4 * room);
    float *first = buffer, *second = first + room, *cosine = second + room, *sine = cosine + room;
    int64_t last_cos = -1, last_sin = -1;
    for (int64_t row = begin; row < end; ++row) {
      const T* a = x + outer.offset(row, p + X);
      T* o = out + outer.offset(row, p + OUT);
      // Heads of one position share a row of the tables.
      int64_t at = outer.offset(row, p + COS);
      if (at != last_cos) {
        read_table<T>(cos_table, p[TABLE_KIND], at, p[TABLE_STEP], half, cosine);
        last_cos = at;
      }
      at = outer.offset(row, p + SIN);
      if (at != last_sin) {
        read_table<T>(sin_table, p[TABLE_KIND], at, p[TABLE_STEP], half, sine);
        last_sin = at;
      }
      if (interleaved) {
        for (int64_t i = 0; i < half; ++i) {
          first[i] = to_float(a[2 * i]);
          second[i] = to_float(a[2 * i + 1]);
        }
      } else {
        for_vectors(half, [=](int64_t i, int count) {
          store_some(first + i, load_some(a + i, count), count);
          store_some(second + i, load_some(a + half + i, count), count);
        });
      }
      for_vectors(half, [=](int64_t i, int count) {
        Vec u = load_some(first + i, count), v = load_some(second + i, count);
        Vec c = load_some(cosine + i, count), s = load_some(sine + i, count);
        Vec turned_u = u * c - v * s, turned_v = v * c + u * s;
        if (pairs_out) {
          store_some(first + i, turned_u, count);
          store_some(second + i, turned_v, count);
        } else {
          store_some(o + i, turned_u, count);
          store_some(o + half + i, turned_v, count);
        }
      });
      if (pairs_out) {
        for (int64_t i = 0; i < half; ++i) {
          o[2 * i] = from_float<T>(first[i]);
          o[2 * i + 1] = from_float<T>(second[i]);
        }
      }
      if (o != a && depth > rotary) {
        memmove(o + rotary, a + rotary, static_cast<size_t>(depth - rotary) * sizeof(T));
      }
    }
  });
}

void rope_f64(void* const* buffers, const int64_t* p) {
  const double* x = static_cast<const double*>(buffers[0]);
  double* out = static_cast<double*>(buffers[3]);
  Outer outer{p + SIZES};
  int64_t depth = p[D], rotary = p[ROTARY], half = rotary / 2;
  bool interleaved = p[INTERLEAVED] != 0, pairs_out = interleaved && !p[DEINTERLEAVE];
  parallel_for(outer.rows(), grain_for(4 * depth), [&](int64_t begin, int64_t end, int) {
    Scratch<double> turned(depth);
    for (int64_t row = begin; row < end; ++row) {
      const double* a = x + outer.offset(row, p + X);
      int64_t cos_at = outer.offset(row, p + COS), sin_at = outer.offset(row, p + SIN);
      for (int64_t i = 0; i < half; ++i) {
        double c = weight_f64(buffers[1], p[TABLE_KIND], cos_at + i * p[TABLE_STEP]);
        double s = weight_f64(buffers[2], p[TABLE_KIND], sin_at + i * p[TABLE_STEP]);
        double u = interleaved ? a[2 * i] : a[i], v = interleaved ? a[2 * i + 1] : a[half + i];
        turned[pairs_out ? 2 * i : i] = u * c - v * s;
        turned[pairs_out ? 2 * i + 1 : half + i] = v * c + u * s;
      }
      for (int64_t i = rotary; i < depth; ++i) turned[i] = a[i];
      memcpy(out + outer.offset(row, p + OUT), turned, static_cast<size_t>(depth) * sizeof(double));
    }
  });
}

}  // namespace
}  // namespace fusec

// Pairs (i, i + rotary/2), or (2i, 2i + 1) if interleaved, are turned by the angles of the tables;
// elements from `rotary` on are copied. With deinterleave, interleaved pairs are written in halves.
// buffers: x, cos, sin, out (may be x); stride 1 inside
// params:  sizes[4], x strides[4], cos strides[4], sin strides[4] (0 broadcasts), out strides[4], D,
//          rotary, interleaved, deinterleave, table_step (2 if a table holds each angle twice in a
//          row, else 1), table_kind (1 dtype of x, 2 f32)
FUSEC_KERNEL void fusec_rope_f32(void* const* buffers, const int64_t* params) {
  fusec::rope<float>(buffers, params);
}
FUSEC_KERNEL void fusec_rope_bf16(void* const* buffers, const int64_t* params) {
  fusec::rope<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_rope_f16(void* const* buffers, const int64_t* params) {
  fusec::rope<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_rope_f64(void* const* buffers, const int64_t* params) {
  fusec::rope_f64(buffers, params);
}
