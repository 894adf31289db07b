// conv: cross-correlation over one to three axes.
//
// The weight is the left operand and 32 output positions at a time are the panel, so that results
// come out in the order in which they are stored. With one or two filters per group, as in depthwise
// convolutions, packing would cost more than the product: those go straight over the rows.
#include <fusec/gemm.h>

namespace fusec {
namespace {

// Three axes always; the leading ones have size 1 if there are fewer.
struct ConvParams {
  int64_t batch, channels, filters, groups;
  const int64_t *in, *out, *kernel, *stride, *padding, *dilation;  // per axis
  const int64_t* x_strides;                                        // b, c, then the axes
  bool has_bias;

  explicit ConvParams(const int64_t* p)
      : batch(p[0]), channels(p[1]), filters(p[2]), groups(p[3]), in(p + 4), out(p + 7),
        kernel(p + 10), stride(p + 13), padding(p + 16), dilation(p + 19), x_strides(p + 22),
        has_bias(p[27] != 0) {}

  int64_t positions() const { return out[0] * out[1] * out[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// The outputs [first, last) along an axis whose tap `tap` is inside the input.
FUSEC_INLINE void inside(const ConvParams& p, int axis, int64_t tap, int64_t* first,
                         int64_t* last) {
  int64_t shift = tap * p.dilation[axis] - p.padding[axis], stride = p.stride[axis];
  *first = shift >= 0 ? 0 : min_of(p.out[axis], ceil_div(-shift, stride));
  int64_t room = p.in[axis] - 1 - shift;
  *last = room < 0 ? *first : max_of(*first, min_of(p.out[axis], room / stride + 1));
}

template <class T>
class Conv {
 public:
  Conv(const ConvParams& params, void* const* buffers)
      : p_(params), x_(static_cast<const T*>(buffers[0])),
        weight_(static_cast<const T*>(buffers[1])),
        bias_(params.has_bias ? static_cast<const T*>(buffers[2]) : nullptr),
        out_(static_cast<T*>(buffers[params.has_bias ? 3 : 2])),
        group_channels_(params.channels / params.groups),
        group_filters_(params.filters / params.groups) {}

  void run() const {
    if (group_filters_ <= 2) {
      direct();
    } else {
      through_panels();
    }
  }

 private:
  float bias_of(int64_t filter) const { return bias_ ? to_float(bias_[filter]) : 0.0f; }

  // Panel rows are (channel, tap), columns are 32 positions in storage order.
  void pack_positions(const T* x, int64_t position, int64_t columns, T* panel) const {
    int64_t depth = group_channels_ * p_.taps();
    memset(panel, 0, static_cast<size_t>(panel_size<T>(depth)) * sizeof(T));
    // The columns fall into runs that lie in one output row.
    for (int64_t column = 0; column < columns;) {
      int64_t at = position + column;
      int64_t x0 = at % p_.out[2], rest = at / p_.out[2];
      int64_t y = rest % p_.out[1], z = rest / p_.out[1];
      int64_t run = min_of(columns - column, p_.out[2] - x0);
      int64_t k = 0;
      for (int64_t channel = 0; channel < group_channels_; ++channel) {
        for (int64_t tap_z = 0; tap_z < p_.kernel[0]; ++tap_z) {
          int64_t in_z = z * p_.stride[0] + tap_z * p_.dilation[0] - p_.padding[0];
          for (int64_t tap_y = 0; tap_y < p_.kernel[1]; ++tap_y) {
            int64_t in_y = y * p_.stride[1] + tap_y * p_.dilation[1] - p_.padding[1];
            bool row_inside = in_z >= 0 && in_z < p_.in[0] && in_y >= 0 && in_y < p_.in[1];
            const T* row = x + channel * p_.x_strides[1] + in_z * p_.x_strides[2] +
                           in_y * p_.x_strides[3];
            for (int64_t tap = 0; tap < p_.kernel[2]; ++tap, ++k) {
              if (!row_inside) continue;
              int64_t first, last;
              inside(p_, 2, tap, &first, &last);
              first = max_of(first, x0), last = min_of(last, x0 + run);
              int64_t shift = tap * p_.dilation[2] - p_.padding[2];
              for (int64_t i = first; i < last; ++i) {
                panel[panel_index<T>(k, column + i - x0)] =
                    row[(i * p_.stride[2] + shift) * p_.x_strides[4]];
              }
            }
          }
        }
      }
      column += run;
    }
  }

  void through_panels() const {
    int64_t depth = group_channels_ * p_.taps(), positions = p_.positions();
    int64_t pitch = block_pitch<T>(depth), panels = ceil_div(positions, PANEL);
    Scratch<Activations<T>> filters(p_.filters * pitch);
    parallel_for(p_.filters, grain_for(depth), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        fill_block_row(weight_ + i * depth, 1, depth, filters + i * pitch);
      }
    });
    int64_t work = depth * PANEL * (group_filters_ / 8 + 2);
    parallel_for(p_.batch * p_.groups * panels, grain_for(work),
                 [&](int64_t begin, int64_t end, int) {
      Scratch<T> panel(panel_size<T>(depth));
      alignas(64) float c[TILE_ROWS * PANEL];
      for (int64_t task = begin; task < end; ++task) {
        int64_t position = task % panels * PANEL, group = task / panels % p_.groups;
        int64_t batch = task / panels / p_.groups;
        int64_t columns = min_of<int64_t>(PANEL, positions - position);
        pack_positions(x_ + batch * p_.x_strides[0] + group * group_channels_ * p_.x_strides[1],
                       position, columns, panel);
        for (int64_t row = 0; row < group_filters_; row += TILE_ROWS) {
          int64_t rows = min_of(TILE_ROWS, group_filters_ - row);
          int64_t filter = group * group_filters_ + row;
          panel_product(filters + filter * pitch, pitch, rows, static_cast<const T*>(panel),
                        padded_depth<T>(depth), c);
          for (int64_t i = 0; i < rows; ++i) {
            T* target = out_ + (batch * p_.filters + filter + i) * positions + position;
            Vec bias = set(bias_of(filter + i));
            for_vectors(columns, [&](int64_t j, int count) {
              store_some(target + j, load(c + i * PANEL + j) + bias, count);
            });
          }
        }
      }
    });
  }

  // One filter of one image: sums in f32 over a row of outputs.
  void direct() const {
    int64_t taps = p_.taps(), positions = p_.positions(), width = p_.out[2];
    parallel_for(p_.batch * p_.filters, grain_for(positions * taps * group_channels_),
                 [&](int64_t begin, int64_t end, int) {
      Scratch<float> sums(width);
      for (int64_t task = begin; task < end; ++task) {
        int64_t filter = task % p_.filters, batch = task / p_.filters;
        int64_t channel = filter / group_filters_ * group_channels_;
        const T* x = x_ + batch * p_.x_strides[0] + channel * p_.x_strides[1];
        const T* weight = weight_ + filter * group_channels_ * taps;
        T* target = out_ + task * positions;
        for (int64_t z = 0; z < p_.out[0]; ++z) {
          for (int64_t y = 0; y < p_.out[1]; ++y, target += width) {
            for (int64_t i = 0; i < width; ++i) sums[i] = bias_of(filter);
            for (int64_t c = 0; c < group_channels_; ++c) {
              add_row(x + c * p_.x_strides[1], weight + c * taps, z, y, sums);
            }
            for_vectors(width, [&](int64_t i, int count) {
              store_some(target + i, load_some(sums + i, count), count);
            });
          }
        }
      }
    });
  }

  void add_row(const T* x, const T* weight, int64_t z, int64_t y, float* sums) const {
    for (int64_t tap_z = 0; tap_z < p_.kernel[0]; ++tap_z) {
      int64_t in_z = z * p_.stride[0] + tap_z * p_.dilation[0] - p_.padding[0];
      if (in_z < 0 || in_z >= p_.in[0]) continue;
      for (int64_t tap_y = 0; tap_y < p_.kernel[1]; ++tap_y) {
        int64_t in_y = y * p_.stride[1] + tap_y * p_.dilation[1] - p_.padding[1];
        if (in_y < 0 || in_y >= p_.in[1]) continue;
        const T* row = x + in_z * p_.x_strides[2] + in_y * p_.x_strides[3];
        for (int64_t tap = 0; tap < p_.kernel[2]; ++tap) {
          int64_t first, last;
          inside(p_, 2, tap, &first, &last);
          float factor = to_float(weight[(tap_z * p_.kernel[1] + tap_y) * p_.kernel[2] + tap]);
          int64_t step = p_.stride[2] * p_.x_strides[4];
          const T* source = row + (tap * p_.dilation[2] - p_.padding[2]) * p_.x_strides[4];
          if (step == 1) {
            for_vectors(last - first, [=](int64_t i, int count) {
              float* sum = sums + first + i;
              Vec value = load_some(source + first + i, count);
              store_some(sum, fma(set(factor), value, load_some(sum, count)), count);
            });
          } else {
            for (int64_t i = first; i < last; ++i) {
              sums[i] = __builtin_fmaf(factor, to_float(source[i * step]), sums[i]);
            }
          }
        }
      }
    }
  }

  const ConvParams& p_;
  const T *x_, *weight_, *bias_;
  T* out_;
  int64_t group_channels_, group_filters_;
};

template <class T>
void conv(void* const* buffers, const int64_t* params) {
  ConvParams parsed(params);
  Conv<T>(parsed, buffers).run();
}

void conv_f64(void* const* buffers, const int64_t* params) {
  ConvParams p(params);
  const double* x = static_cast<const double*>(buffers[0]);
  const double* weight = static_cast<const double*>(buffers[1]);
  const double* bias = p.has_bias ? static_cast<const double*>(buffers[2]) : nullptr;
  double* out = static_cast<double*>(buffers[p.has_bias ? 3 : 2]);
  int64_t group_channels = p.channels / p.groups, group_filters = p.filters / p.groups;
  int64_t positions = p.positions(), taps = p.taps();
  parallel_for(p.batch * p.filters * positions, grain_for(group_channels * taps * 4),
               [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t filter = i / positions % p.filters, batch = i / positions / p.filters;
      const int64_t at[3] = {i % positions / p.out[2] / p.out[1], i / p.out[2] % p.out[1],
                             i % p.out[2]};
      int64_t channel = filter / group_filters * group_channels;
      double sum = bias ? bias[filter] : 0.0;
      for (int64_t c = 0; c < group_channels; ++c) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t tap_at[3] = {tap / p.kernel[2] / p.kernel[1], tap / p.kernel[2] % p.kernel[1],
                                     tap % p.kernel[2]};
          int64_t offset = batch * p.x_strides[0] + (channel + c) * p.x_strides[1];
          bool inside_all = true;
          for (int axis = 0; axis < 3; ++axis) {
            int64_t in = at[axis] * p.stride[axis] + tap_at[axis] * p.dilation[axis] -
                         p.padding[axis];
            inside_all = inside_all && in >= 0 && in < p.in[axis];
            offset += in * p.x_strides[2 + axis];
          }
          if (inside_all) sum += weight[(filter * group_channels + c) * taps + tap] * x[offset];
        }
      }
      out[i] = sum;
    }
  });
}

}  // namespace
}  // namespace fusec

// buffers: x [B, C, axes...], weight [O, C/groups, kernel...], [bias [O]], out [B, O, axes...];
//          weight and out are dense
// params:  B, C, O, groups, then three numbers each, for the axes from the outermost (1, and stride
//          and dilation 1, padding 0, for axes that are not there): input sizes, output sizes,
//          kernel, stride, padding, dilation; x strides (b, c, three axes), has_bias
FUSEC_KERNEL void fusec_conv_f32(void* const* buffers, const int64_t* params) {
  fusec::conv<float>(buffers, params);
}
FUSEC_KERNEL void fusec_conv_bf16(void* const* buffers, const int64_t* params) {
  fusec::conv<fusec::bf16>(buffers, params);
}
FUSEC_KERNEL void fusec_conv_f16(void* const* buffers, const int64_t* params) {
  fusec::conv<fusec::f16>(buffers, params);
}
FUSEC_KERNEL void fusec_conv_f64(void* const* buffers, const int64_t* params) {
  fusec::conv_f64(buffers, params);
}
