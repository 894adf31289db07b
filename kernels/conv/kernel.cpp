// conv: cross-correlation over one to three axes.
//
// The weight is the left operand and 32 output positions at a time are a panel, so that results come
// out in the order in which they are stored. With one or two filters per group, as in depthwise
// convolutions, packing would cost more than the product: those add up shifted planes.
//
// Sums become results in f32: activation(sum * scale + bias + residual), rounded once.
#include <fusec/gemm.h>

namespace fusec {
namespace {

// Three axes always; the leading ones have size 1 if there are fewer.
struct ConvParams {
  int64_t batch, channels, filters, groups;
  const int64_t *in, *out, *kernel, *stride, *padding, *dilation;  // per axis
  const int64_t* x_strides;                                        // b, c, then the axes
  int64_t bias_kind, has_scale, has_residual, activation;

  explicit ConvParams(const int64_t* p)
      : batch(p[0]), channels(p[1]), filters(p[2]), groups(p[3]), in(p + 4), out(p + 7),
        kernel(p + 10), stride(p + 13), padding(p + 16), dilation(p + 19), x_strides(p + 22),
        bias_kind(p[27]), has_scale(p[28]), has_residual(p[29]), activation(p[30]) {}

  int64_t positions() const { return out[0] * out[1] * out[2]; }
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

enum BiasKind : int64_t { BIAS_NONE = 0, BIAS_SAME = 1, BIAS_F32 = 2 };

// The indices [first, last) of those `count` whose place shift + index * stride is in [0, size).
FUSEC_INLINE void inside(int64_t shift, int64_t stride, int64_t size, int64_t count, int64_t* first,
                         int64_t* last) {
  *first = shift >= 0 ? 0 : min_of(count, ceil_div(-shift, stride));
  int64_t room = size - 1 - shift;
  *last = room < 0 ? *first : max_of(*first, min_of(count, room / stride + 1));
}

// Copies `count` elements with blocks of a fixed size, of which the last may lie over others.
template <int BLOCK, class T>
FUSEC_INLINE bool copy_blocks(const T* source, int64_t count, T* target) {
  if (count < BLOCK) return false;
  for (int64_t i = 0; i + BLOCK <= count; i += BLOCK) {
    memcpy(target + i, source + i, BLOCK * sizeof(T));
  }
  memcpy(target + count - BLOCK, source + count - BLOCK, BLOCK * sizeof(T));
  return true;
}

// Copies `count` elements that lie `step` apart.
template <class T>
FUSEC_INLINE void copy_run(const T* source, int64_t step, int64_t count, T* target) {
  if (step == 1) {
    if (copy_blocks<16>(source, count, target) || copy_blocks<4>(source, count, target)) return;
    for (int64_t i = 0; i < count; ++i) target[i] = source[i];
  } else if (step == 2) {
    for (int64_t i = 0; i < count; ++i) target[i] = source[2 * i];
  } else {
    for (int64_t i = 0; i < count; ++i) target[i] = source[i * step];
  }
}

// The same, as f32.
template <class T>
FUSEC_INLINE void widen_run(const T* source, int64_t step, int64_t count, float* target) {
  if (step == 1) {
    copy_row(source, count, target);
  } else if (step == 2) {
    for (int64_t i = 0; i < count; ++i) target[i] = to_float(source[2 * i]);
  } else {
    for (int64_t i = 0; i < count; ++i) target[i] = to_float(source[i * step]);
  }
}

template <class T>
class Conv {
 public:
  Conv(const ConvParams& params, void* const* buffers)
      : p_(params), x_(static_cast<const T*>(buffers[0])),
        weight_(static_cast<const T*>(buffers[1])),
        group_channels_(params.channels / params.groups),
        group_filters_(params.filters / params.groups) {
    int next = 2;
    scale_ = params.has_scale ? static_cast<const float*>(buffers[next++]) : nullptr;
    bias_ = params.bias_kind ? buffers[next++] : nullptr;
    residual_ = params.has_residual ? static_cast<const T*>(buffers[next++]) : nullptr;
    out_ = static_cast<T*>(buffers[next]);
  }

  void run() const {
    if (p_.batch == 0 || p_.filters == 0 || p_.positions() == 0) return;
    if (p_.positions() == 1 && p_.taps() == 1) {
      at_one_position();
    } else if (group_filters_ <= 2) {
      by_planes();
    } else {
      through_panels();
    }
  }

 private:
  float bias_of(int64_t filter) const {
    if (p_.bias_kind == BIAS_F32) return static_cast<const float*>(bias_)[filter];
    return bias_ ? to_float(static_cast<const T*>(bias_)[filter]) : 0.0f;
  }

  // Results [at, at + count), all of one filter, from their sums.
  FUSEC_INLINE void write(const float* sums, int64_t filter, int64_t at, int64_t count) const {
    if (p_.activation == ACTIVATION_NONE) {
      write(sums, filter, at, count, [](Vec x) { return x; });
    } else if (p_.activation == ACTIVATION_RELU) {
      write(sums, filter, at, count, [](Vec x) { return max(zero(), x); });
    } else {
      write(sums, filter, at, count, AnyActivation{p_.activation});
    }
  }

  template <class Activated>
  FUSEC_INLINE void write(const float* sums, int64_t filter, int64_t at, int64_t count,
                          const Activated& activated) const {
    Vec scale = set(scale_ ? scale_[filter] : 1.0f), bias = set(bias_of(filter));
    for_vectors(count, [&](int64_t i, int lanes) {
      Vec result = fma(load_some(sums + i, lanes), scale, bias);
      if (residual_) result = result + load_some(residual_ + at + i, lanes);
      store_some(out_ + at + i, activated(result), lanes);
    });
  }

  // As after a mean of all positions: a panel would have one column.
  void at_one_position() const {
    Scratch<float> x(p_.batch * p_.channels);
    for (int64_t i = 0; i < p_.batch; ++i) {
      widen_run(x_ + i * p_.x_strides[0], p_.x_strides[1], p_.channels, x + i * p_.channels);
    }
    parallel_for(p_.batch * p_.filters, grain_for(group_channels_ / LANES + 8),
                 [&](int64_t begin, int64_t end, int) {
      for (int64_t task = begin; task < end; ++task) {
        int64_t filter = task % p_.filters, batch = task / p_.filters;
        const T* weight = weight_ + filter * group_channels_;
        const float* given = x + batch * p_.channels + filter / group_filters_ * group_channels_;
        float sum = sum_row(group_channels_, [&](int64_t i, int count) {
          return load_some(weight + i, count) * load_some(given + i, count);
        });
        write(&sum, filter, task, 1);
      }
    });
  }

  // ---- panels ----

  // Filters that are multiplied with a panel at once; they stay in the L2 cache beside the panels.
  static constexpr int64_t BLOCK_FILTERS = 96;
  static constexpr int64_t PANELS_BYTES = 512 * 1024;

  // A stretch of (channel, tap), channel first, is the depth of panels, `size` elements each; their
  // columns are `columns` positions in storage order from `position` on.
  void pack_positions(const T* x, int64_t position, int64_t columns, Stretch stretch, T* packed,
                      int64_t size) const {
    constexpr bool is_plain = Packing<T>::K_MULTIPLE == 1;
    int64_t panels = ceil_div(columns, PANEL), rows_size = stretch.count * PANEL;
    Scratch<T> scratch(is_plain ? 0 : panels * rows_size);
    Lines lines{is_plain ? packed : static_cast<T*>(scratch), is_plain ? size : rows_size};
    bool is_padded = p_.padding[0] || p_.padding[1] || p_.padding[2];
    for (int64_t i = is_padded ? 0 : columns / PANEL; i < panels; ++i) {
      memset(lines.at + i * lines.size, 0, static_cast<size_t>(rows_size) * sizeof(T));
    }
    // The columns fall into runs that lie in one output row.
    for (int64_t column = 0; column < columns;) {
      int64_t at = position + column, row = at / p_.out[2];
      const int64_t start[3] = {row / p_.out[1], row % p_.out[1], at % p_.out[2]};
      int64_t run = min_of(columns - column, p_.out[2] - start[2]);
      pack_run(x, start, run, stretch, lines, column);
      column += run;
    }
    if constexpr (!is_plain) {
      for (int64_t i = 0; i < panels; ++i) {
        pack_panel(lines.at + i * lines.size, PANEL, 1, stretch.count, PANEL, packed + i * size);
      }
    }
  }

  // Panels before pairs are made of their rows.
  struct Lines {
    T* at;
    int64_t size;

    FUSEC_INLINE void copy(const T* source, int64_t step, int64_t count, int64_t k,
                           int64_t column) const {
      while (count > 0) {
        int64_t inner = column % PANEL, some = min_of(count, PANEL - inner);
        copy_run(source, step, some, at + column / PANEL * size + k * PANEL + inner);
        source += some * step, column += some, count -= some;
      }
    }
  };

  // `run` columns from `column` on: the outputs from that at `start` on.
  void pack_run(const T* x, const int64_t (&start)[3], int64_t run, Stretch stretch,
                const Lines& lines, int64_t column) const {
    int64_t taps = p_.taps(), tap = 0, step = p_.stride[2] * p_.x_strides[4];
    for (int64_t tap_z = 0; tap_z < p_.kernel[0]; ++tap_z) {
      int64_t z = start[0] * p_.stride[0] + tap_z * p_.dilation[0] - p_.padding[0];
      for (int64_t tap_y = 0; tap_y < p_.kernel[1]; ++tap_y) {
        int64_t y = start[1] * p_.stride[1] + tap_y * p_.dilation[1] - p_.padding[1];
        bool row_inside = z >= 0 && z < p_.in[0] && y >= 0 && y < p_.in[1];
        const T* row = x + z * p_.x_strides[2] + y * p_.x_strides[3];
        for (int64_t tap_x = 0; tap_x < p_.kernel[2]; ++tap_x, ++tap) {
          if (!row_inside) continue;
          int64_t shift = start[2] * p_.stride[2] + tap_x * p_.dilation[2] - p_.padding[2];
          int64_t first, last;
          inside(shift, p_.stride[2], p_.in[2], run, &first, &last);
          int64_t channel = ceil_div(max_of<int64_t>(0, stretch.begin - tap), taps);
          int64_t k = channel * taps + tap - stretch.begin;
          const T* source = row + channel * p_.x_strides[1] + shift * p_.x_strides[4] + first * step;
          for (; k < stretch.count; k += taps, source += p_.x_strides[1]) {
            lines.copy(source, step, last - first, k, column + first);
          }
        }
      }
    }
  }

  // A task is some panels of one group, of one image or several, with some blocks of filters.
  void through_panels() const {
    int64_t depth = group_channels_ * p_.taps(), threads = fusec_threads();
    int64_t panels = p_.batch * image_panels();
    int64_t blocks = ceil_div(group_filters_, BLOCK_FILTERS);
    int64_t bytes = panel_size<T>(stretch_of(depth)) * static_cast<int64_t>(sizeof(T));
    int64_t fit = max_of<int64_t>(1, PANELS_BYTES / max_of<int64_t>(1, bytes));
    int64_t together = min_of(min_of(fit, panels), ceil_div(p_.groups * panels, threads));
    int64_t ranges = ceil_div(panels, together);
    // Few positions: threads share the filters, too.
    int64_t parts = threads == 1 ? 1 : min_of(blocks, ceil_div(2 * threads, p_.groups * ranges));
    int64_t part_blocks = ceil_div(blocks, parts);
    int64_t work = depth * PANEL * together * (group_filters_ / 8 + 2) / parts;
    parallel_for(p_.groups * ranges * parts, grain_for(work), [&](int64_t begin, int64_t end, int) {
      for (int64_t task = begin; task < end; ++task) {
        int64_t range = task / parts % ranges, part = task % parts;
        int64_t first = panels * range / ranges, last = panels * (range + 1) / ranges;
        int64_t filter = min_of(group_filters_, part * part_blocks * BLOCK_FILTERS);
        int64_t filters = min_of(group_filters_ - filter, part_blocks * BLOCK_FILTERS);
        if (filters > 0) multiply(task / parts / ranges, first, last - first, filter, filters);
      }
    });
  }

  static constexpr int64_t STRETCH_DEPTH = 512;
  static int64_t stretch_of(int64_t depth) { return min_of(depth, STRETCH_DEPTH); }

  int64_t image_panels() const { return ceil_div(p_.positions(), PANEL); }

  // Columns of panel `panel` of all images, and where they begin in theirs.
  FUSEC_INLINE int64_t columns_of(int64_t panel, int64_t* position) const {
    *position = panel % image_panels() * PANEL;
    return min_of<int64_t>(PANEL, p_.positions() - *position);
  }

  // Packs panels [panel, panel + panels) of all images: those of an image at once.
  void pack_panels(int64_t group, int64_t panel, int64_t panels, Stretch stretch, T* packed,
                   int64_t size) const {
    const T* x = x_ + group * group_channels_ * p_.x_strides[1];
    for (int64_t done = 0; done < panels;) {
      int64_t image = (panel + done) / image_panels(), first = (panel + done) % image_panels();
      int64_t count = min_of(panels - done, image_panels() - first), position = first * PANEL;
      pack_positions(x + image * p_.x_strides[0], position,
                     min_of(count * PANEL, p_.positions() - position), stretch,
                     packed + done * size, size);
      done += count;
    }
  }

  // Panels [panel, panel + panels) of all images with filters [filter, filter + filters) of `group`.
  void multiply(int64_t group, int64_t panel, int64_t panels, int64_t filter,
                int64_t filters) const {
    int64_t depth = group_channels_ * p_.taps(), positions = p_.positions();
    int64_t of_group = group * group_filters_;
    int64_t size = panel_size<T>(stretch_of(depth)), pitch = block_pitch<T>(stretch_of(depth));
    Scratch<T> packed(panels * size);
    Scratch<Activations<T>> block(BLOCK_FILTERS * pitch);
    // Sums are kept from one stretch to the next.
    bool is_one = depth <= STRETCH_DEPTH;
    Scratch<float> sums((is_one ? min_of(BLOCK_FILTERS, filters) : panels * filters) * PANEL);
    TileScope scope;
    int64_t begin = 0;
    do {
      Stretch stretch{begin, min_of(STRETCH_DEPTH, depth - begin)};
      pack_panels(group, panel, panels, stretch, packed, size);
      for (int64_t row = 0; row < filters; row += BLOCK_FILTERS) {
        int64_t rows = min_of(BLOCK_FILTERS, filters - row);
        for (int64_t i = 0; i < rows; ++i) {
          const T* weight = weight_ + (of_group + filter + row + i) * depth + begin;
          fill_block_row(weight, 1, stretch.count, block + i * pitch);
        }
        for (int64_t i = 0; i < panels; ++i) {
          float* c = sums + (is_one ? 0 : (i * filters + row) * PANEL);
          int64_t position, columns = columns_of(panel + i, &position);
          int64_t image = (panel + i) / image_panels();
          auto write = [&](int64_t first, int64_t count) {
            for (int64_t j = first; j < first + count; ++j) {
              int64_t to = of_group + filter + row + j;
              int64_t at = (image * p_.filters + to) * positions + position;
              this->write(c + j * PANEL, to, at, columns);
            }
          };
          bool is_last = begin + stretch.count == depth;
          panel_product(block, pitch, rows, static_cast<const T*>(packed + i * size),
                        padded_depth<T>(stretch.count), c, is_last ? RowsDone(write) : RowsDone(),
                        begin > 0);
        }
      }
      begin += stretch.count;
    } while (begin < depth);
  }

  // ---- planes ----
  //
  // A channel is copied into one plane for each remainder of the padded places by the strides. There
  // the outputs lie as far apart as what they read, and a tap is a shift of the whole plane: all
  // outputs are added up in one go, with some between the rows that nobody wants.

  struct Planes {
    int64_t size[3];  // of a plane
    int64_t count[3];

    explicit Planes(const ConvParams& p) {
      for (int axis = 0; axis < 3; ++axis) {
        int64_t last = (p.kernel[axis] - 1) * p.dilation[axis];
        size[axis] = p.out[axis] + last / p.stride[axis];
        count[axis] = min_of(p.stride[axis], last + 1);
      }
    }
    int64_t elements() const { return size[0] * size[1] * size[2]; }
    int64_t planes() const { return count[0] * count[1] * count[2]; }
    // Where element `at` of plane `plane` is.
    int64_t offset(const int64_t (&plane)[3], const int64_t (&at)[3]) const {
      int64_t number = (plane[0] * count[1] + plane[1]) * count[2] + plane[2];
      return ((number * size[0] + at[0]) * size[1] + at[1]) * size[2] + at[2];
    }
  };

  // Outputs that are added up in registers at once.
  static constexpr int TOGETHER = 64;

  void by_planes() const {
    Planes planes(p_);
    int64_t taps = p_.taps(), places = planes.elements();
    Scratch<int64_t> shifts(taps);
    for (int64_t tap = 0; tap < taps; ++tap) {
      int64_t plane[3], at[3], rest = tap;
      for (int axis = 2; axis >= 0; --axis) {
        int64_t place = rest % p_.kernel[axis] * p_.dilation[axis];
        plane[axis] = place % p_.stride[axis], at[axis] = place / p_.stride[axis];
        rest /= p_.kernel[axis];
      }
      shifts[tap] = planes.offset(plane, at);
    }
    // From the first wanted output to the last.
    int64_t outputs = ((p_.out[0] - 1) * planes.size[1] + p_.out[1] - 1) * planes.size[2] + p_.out[2];
    int64_t total = planes.planes() * places + TOGETHER;
    parallel_for(p_.batch * p_.filters, grain_for(outputs * taps * group_channels_ / LANES + total),
                 [&](int64_t begin, int64_t end, int) {
      Scratch<float> held(total), sums(round_up(outputs, TOGETHER));
      memset(held, 0, static_cast<size_t>(total) * sizeof(float));
      for (int64_t task = begin; task < end; ++task) {
        int64_t filter = task % p_.filters, batch = task / p_.filters;
        int64_t channel = filter / group_filters_ * group_channels_;
        for (int64_t i = 0; i < group_channels_; ++i) {
          fill(planes, x_ + batch * p_.x_strides[0] + (channel + i) * p_.x_strides[1], held);
          const T* weight = weight_ + (filter * group_channels_ + i) * taps;
          for (int64_t at = 0; at < outputs; at += TOGETHER) {
            add_taps(held + at, weight, shifts, i > 0, sums + at);
          }
        }
        for (int64_t z = 0, to = task * p_.positions(); z < p_.out[0]; ++z) {
          for (int64_t y = 0; y < p_.out[1]; ++y, to += p_.out[2]) {
            write(sums + (z * planes.size[1] + y) * planes.size[2], filter, to, p_.out[2]);
          }
        }
      }
    });
  }

  // Copies what a channel has inside of the planes; what is outside of it stays zero.
  void fill(const Planes& planes, const T* x, float* held) const {
    int64_t step = p_.stride[2] * p_.x_strides[4];
    int64_t plane[3], at[3], last;
    for (plane[2] = 0; plane[2] < planes.count[2]; ++plane[2]) {
      int64_t shift = plane[2] - p_.padding[2];
      inside(shift, p_.stride[2], p_.in[2], planes.size[2], &at[2], &last);
      const T* source = x + (at[2] * p_.stride[2] + shift) * p_.x_strides[4];
      for_rows(planes, 0, plane, at, [&](int64_t z) {
        for_rows(planes, 1, plane, at, [&](int64_t y) {
          widen_run(source + z * p_.x_strides[2] + y * p_.x_strides[3], step, last - at[2],
                    held + planes.offset(plane, at));
        });
      });
    }
  }

  // Calls `body` with each place in the input along an axis that the planes hold; `plane` and `at`
  // say where they hold it.
  template <class Body>
  void for_rows(const Planes& planes, int axis, int64_t* plane, int64_t* at,
                const Body& body) const {
    for (plane[axis] = 0; plane[axis] < planes.count[axis]; ++plane[axis]) {
      int64_t place = plane[axis] - p_.padding[axis];
      for (at[axis] = 0; at[axis] < planes.size[axis]; ++at[axis], place += p_.stride[axis]) {
        if (place >= 0 && place < p_.in[axis]) body(place);
      }
    }
  }

  void add_taps(const float* held, const T* weight, const int64_t* shifts, bool accumulate,
                float* sums) const {
    constexpr int VECTORS = TOGETHER / LANES;
    Vec sum[VECTORS];
    FUSEC_UNROLL
    for (int i = 0; i < VECTORS; ++i) sum[i] = accumulate ? load(sums + i * LANES) : zero();
    for (int64_t tap = 0, taps = p_.taps(); tap < taps; ++tap) {
      Vec factor = set(to_float(weight[tap]));
      const float* source = held + shifts[tap];
      FUSEC_UNROLL
      for (int i = 0; i < VECTORS; ++i) sum[i] = fma(factor, load(source + i * LANES), sum[i]);
    }
    FUSEC_UNROLL
    for (int i = 0; i < VECTORS; ++i) store(sums + i * LANES, sum[i]);
  }

  const ConvParams& p_;
  const T *x_, *weight_;
  int64_t group_channels_, group_filters_;
  const float* scale_;
  const void* bias_;
  const T* residual_;
  T* out_;
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
  const double* bias = p.bias_kind ? static_cast<const double*>(buffers[2]) : nullptr;
  double* out = static_cast<double*>(buffers[p.bias_kind ? 3 : 2]);
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

// buffers: x [B, C, axes...], weight [O, C/groups, kernel...], [scale [O], f32], [bias [O]],
//          [residual like out], out [B, O, axes...]; all but x are dense
// params:  B, C, O, groups, then three numbers each, for the axes from the outermost (1, and stride
//          and dilation 1, padding 0, for axes that are not there): input sizes, output sizes,
//          kernel, stride, padding, dilation; x strides (b, c, three axes), bias_kind (0 none, 1
//          dtype of x, 2 f32), has_scale, has_residual, activation (simd.h). In f64 only the bias.
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
