// The register-tiled product of a block of rows with one panel of packed weights (see panels.h), and
// on tiles of bf16 (see planes.h).
#include <fusec/planes.h>

namespace fusec {
namespace {

// ---- vectors ----

// Rows of the register tile. With two vectors of columns a row: 24 of 32 registers accumulate on
// AVX-512, 12 of 16 on AVX2.
#if FUSEC_AVX512
constexpr int TILE = 12;
#else
constexpr int TILE = 6;
#endif
constexpr int VECTORS = 2;
constexpr int PASSES = PANEL / (VECTORS * LANES);

// Partial sums along k are at most this long before they are added up, which bounds the rounding
// error like a pairwise sum and keeps a stretch of the panel in the L1 cache. Few rows have time for
// shorter ones: they wait for the panel.
constexpr int64_t FEW_ROWS = 16;
#ifndef FUSEC_VECTOR_DEPTH
#define FUSEC_VECTOR_DEPTH 256
#endif
#ifndef FUSEC_FEW_ROWS_DEPTH
#define FUSEC_FEW_ROWS_DEPTH 64
#endif
// How far ahead few rows fetch the panel, in bytes.
#ifndef FUSEC_STREAM_AHEAD
#define FUSEC_STREAM_AHEAD 8192
#endif

// Steps between two looks at what to prefetch.
constexpr int UNROLL = 4;

// Few rows leave registers free: independent chains hide the latency of fma.
// Where several tiles share the rows, each has so many that it has one.
constexpr int chains_for(int rows) { return rows <= 2 ? 4 : rows <= TILE / 3 ? 2 : 1; }

// What a tile prefetches: `share` bytes with every UNROLL steps; into the L1 cache what is used next,
// into the L2 cache what is used after all the rows.
struct Ahead {
  const char* at;
  int64_t share;
  bool is_near;

  FUSEC_INLINE void fetch() {
    if (is_near) {
      fetch_lines<3>();
    } else {
      fetch_lines<2>();
    }
    at += share;
  }

 private:
  template <int LOCALITY>
  FUSEC_INLINE void fetch_lines() const {
#if defined(__clang__)
    FUSEC_PRAGMA(clang loop unroll(disable))
#endif
    for (int64_t line = 0; line < share; line += 64) __builtin_prefetch(at + line, 0, LOCALITY);
  }
};

// Rows of the block, three to a base register: with one base and a distance for every row there
// would not be enough registers.
template <class A, int ROWS>
struct Rows {
  static constexpr int BASES = (ROWS + 2) / 3;
  const char* base[BASES];
  int64_t pitch;  // bytes

  FUSEC_INLINE Rows(const A* a, int64_t row_pitch)
      : pitch(row_pitch * static_cast<int64_t>(sizeof(A))) {
    FUSEC_UNROLL
    for (int i = 0; i < BASES; ++i) {
      base[i] = reinterpret_cast<const char*>(a) + 3 * i * pitch;
      asm("" : "+r"(base[i]));  // hides that one follows from another
    }
  }
  template <class Item>
  FUSEC_INLINE Item get(int row, int column) const {
    Item item;
    memcpy(&item, base[row / 3] + row % 3 * pitch + column * static_cast<int>(sizeof(A)),
           sizeof item);
    return item;
  }
  FUSEC_INLINE void advance(int columns) {
    FUSEC_UNROLL
    for (int i = 0; i < BASES; ++i) base[i] += columns * static_cast<int>(sizeof(A));
  }
};

// sum += a * b. Left to themselves, compilers write some sums to other registers, of which there are
// none to spare.
FUSEC_INLINE void add_product(Vec& sum, Vec a, Vec b) {
  asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

template <int ROWS>
FUSEC_INLINE void add_products(const Rows<float, ROWS>& a, int column, Vec b0, Vec b1,
                               Vec (&sum)[ROWS][VECTORS]) {
  FUSEC_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    Vec x = set(a.template get<float>(r, column));
    add_product(sum[r][0], x, b0);
    add_product(sum[r][1], x, b1);
  }
}

// f32 and f16: one row of the panel at a time.
template <class T>
struct Step {
  static constexpr int DEPTH = 1;
  static constexpr int SIZE = PANEL;  // elements of the panel per step
  static constexpr int VECTOR = LANES;
  template <int ROWS>
  static FUSEC_INLINE void add(const Rows<float, ROWS>& a, int column, const T* b,
                               Vec (&sum)[ROWS][VECTORS]) {
    add_products(a, column, load(b), load(b + VECTOR), sum);
  }
};

// bf16: two rows of the panel at a time, interleaved.
template <>
struct Step<bf16> {
  static constexpr int DEPTH = 2;
  static constexpr int SIZE = 2 * PANEL;
  static constexpr int VECTOR = 2 * LANES;
#if FUSEC_BF16_PAIRS
  template <int ROWS>
  static FUSEC_INLINE void add(const Rows<bf16, ROWS>& a, int column, const bf16* b,
                               Vec (&sum)[ROWS][VECTORS]) {
    __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + VECTOR);
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      __m512i x = _mm512_set1_epi32(a.template get<int>(r, column));
      sum[r][0] = dot_bf16_pairs(sum[r][0], x, b0);
      sum[r][1] = dot_bf16_pairs(sum[r][1], x, b1);
    }
  }
#else
  static FUSEC_INLINE Vec even(const bf16* pairs) { return widen(pairs, false); }
  static FUSEC_INLINE Vec odd(const bf16* pairs) { return widen(pairs, true); }
  static FUSEC_INLINE Vec widen(const bf16* pairs, bool odd) {
#if FUSEC_AVX512
    __m512i bits = _mm512_loadu_si512(pairs);
    return _mm512_castsi512_ps(odd ? _mm512_and_si512(bits, _mm512_set1_epi32(-65536))
                                   : _mm512_slli_epi32(bits, 16));
#else
    __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs));
    return _mm256_castsi256_ps(odd ? _mm256_and_si256(bits, _mm256_set1_epi32(-65536))
                                   : _mm256_slli_epi32(bits, 16));
#endif
  }
  template <int ROWS>
  static FUSEC_INLINE void add(const Rows<float, ROWS>& a, int column, const bf16* b,
                               Vec (&sum)[ROWS][VECTORS]) {
    add_products(a, column, even(b), even(b + VECTOR), sum);
    add_products(a, column + 1, odd(b), odd(b + VECTOR), sum);
  }
#endif
};

// c[ROWS][PANEL] (+)= a[ROWS][k] * panel rows [0, k).
template <class T, int ROWS>
void multiply_tile(const Activations<T>* a, int64_t pitch, const T* panel, int64_t k, float* c,
                   bool accumulate, Ahead ahead) {
  using Step = Step<T>;
  constexpr int CHAINS = chains_for(ROWS);
  FUSEC_UNROLL
  for (int pass = 0; pass < PASSES; ++pass) {
    const T* b = panel + pass * VECTORS * Step::VECTOR;
    Rows<Activations<T>, ROWS> rows(a, pitch);
    Vec sum[CHAINS][ROWS][VECTORS];
    FUSEC_UNROLL
    for (int chain = 0; chain < CHAINS; ++chain) {
      FUSEC_UNROLL
      for (int r = 0; r < ROWS; ++r) sum[chain][r][0] = sum[chain][r][1] = zero();
    }
    int64_t i = 0;
    for (; i + UNROLL * Step::DEPTH <= k; i += UNROLL * Step::DEPTH) {
      if (pass == 0) ahead.fetch();
      FUSEC_UNROLL
      for (int step = 0; step < UNROLL; ++step) {
        Step::add(rows, step * Step::DEPTH, b + step * Step::SIZE, sum[step % CHAINS]);
      }
      b += UNROLL * Step::SIZE;
      rows.advance(UNROLL * Step::DEPTH);
    }
    for (; i < k; i += Step::DEPTH, b += Step::SIZE) {
      Step::add(rows, 0, b, sum[0]);
      rows.advance(Step::DEPTH);
    }
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      FUSEC_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        Vec total = sum[0][r][v];
        if (CHAINS > 1) total = total + sum[1 % CHAINS][r][v];
        if (CHAINS > 2) total = total + (sum[2 % CHAINS][r][v] + sum[3 % CHAINS][r][v]);
        float* target = c + r * PANEL + (pass * VECTORS + v) * LANES;
        store(target, accumulate ? load(target) + total : total);
      }
    }
  }
}

template <class T>
void multiply_rows(const Activations<T>* a, int64_t pitch, int64_t rows, const T* panel, int64_t k,
                   float* c, bool accumulate, Ahead ahead) {
  switch (rows) {
#define FUSEC_ROWS(n) \
  case n:             \
    return multiply_tile<T, n>(a, pitch, panel, k, c, accumulate, ahead);
    FUSEC_ROWS(1)
    FUSEC_ROWS(2)
    FUSEC_ROWS(3)
    FUSEC_ROWS(4)
    FUSEC_ROWS(5)
    FUSEC_ROWS(6)
#if FUSEC_AVX512
    FUSEC_ROWS(7)
    FUSEC_ROWS(8)
    FUSEC_ROWS(9)
    FUSEC_ROWS(10)
    FUSEC_ROWS(11)
    FUSEC_ROWS(12)
#endif
#undef FUSEC_ROWS
  }
}

// One or two rows wait for memory, which gives more when a panel is read in several places at once:
// each chain goes over a part of k of its own, `part` long, of which this is the stretch [0, count).
constexpr int STREAMS = 4;

template <class T, int ROWS>
void multiply_streams(const Activations<T>* a, int64_t pitch, const T* panel, int64_t part,
                      int64_t count, float* c, bool accumulate) {
  using Step = Step<T>;
  FUSEC_UNROLL
  for (int pass = 0; pass < PASSES; ++pass) {
    const T* b = panel + pass * VECTORS * Step::VECTOR;
    Vec sum[STREAMS][ROWS][VECTORS];
    FUSEC_UNROLL
    for (int stream = 0; stream < STREAMS; ++stream) {
      FUSEC_UNROLL
      for (int r = 0; r < ROWS; ++r) sum[stream][r][0] = sum[stream][r][1] = zero();
    }
    for (int64_t i = 0; i < count; i += Step::DEPTH, b += Step::SIZE) {
      FUSEC_UNROLL
      for (int stream = 0; stream < STREAMS; ++stream) {
        const T* at = b + stream * part * PANEL;
        __builtin_prefetch(reinterpret_cast<const char*>(at) + FUSEC_STREAM_AHEAD / STREAMS);
        if (VECTORS * Step::VECTOR * sizeof(T) > 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(at) + FUSEC_STREAM_AHEAD / STREAMS + 64);
        }
        Step::add(Rows<Activations<T>, ROWS>(a + stream * part + i, pitch), 0, at, sum[stream]);
      }
    }
    FUSEC_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      FUSEC_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        Vec total = (sum[0][r][v] + sum[1][r][v]) + (sum[2][r][v] + sum[3][r][v]);
        float* target = c + r * PANEL + (pass * VECTORS + v) * LANES;
        store(target, accumulate ? load(target) + total : total);
      }
    }
  }
}

// The product of one or two rows with a panel, but for what is left where k is not a multiple of
// parts. Returns how much of k was done.
template <class T>
int64_t multiply_in_streams(const Activations<T>* a, int64_t pitch, int64_t rows, const T* panel,
                            int64_t k, float* c, bool accumulate) {
  int64_t part = k / STREAMS / 32 * 32;
  for (int64_t begin = 0; begin < part; begin += FUSEC_FEW_ROWS_DEPTH) {
    int64_t count = min_of<int64_t>(FUSEC_FEW_ROWS_DEPTH, part - begin);
    auto multiply = rows == 1 ? multiply_streams<T, 1> : multiply_streams<T, 2>;
    multiply(a + begin, pitch, panel + begin * PANEL, part, count, c, accumulate || begin > 0);
  }
  return part * STREAMS;
}

template <class T>
void vector_product(const Activations<T>* a, int64_t pitch, int64_t rows, const T* panel, int64_t k,
                    float* c, const RowsDone& done, bool accumulate) {
  if (rows == 0) return;
  if (k == 0) {
    if (!accumulate) memset(c, 0, static_cast<size_t>(rows) * PANEL * sizeof(float));
    return done(0, rows);
  }
  using Step = Step<T>;
  constexpr int64_t STEPS_BYTES = UNROLL * Step::SIZE * static_cast<int64_t>(sizeof(T));
  bool is_few = rows <= FEW_ROWS;
  // Rows are dealt out evenly: 13 rows are 7 and 6, not 12 and a slow 1.
  int64_t tiles = ceil_div(rows, TILE), least = rows / tiles, larger = rows % tiles;
  int64_t depth = is_few ? FUSEC_FEW_ROWS_DEPTH : FUSEC_VECTOR_DEPTH;
  int64_t streamed = rows <= 2 ? multiply_in_streams(a, pitch, rows, panel, k, c, accumulate) : 0;
  if (streamed == k) return done(0, rows);
  for (int64_t begin = streamed; begin < k; begin += depth) {
    int64_t count = min_of(depth, k - begin);
    const T* stretch = panel + begin * PANEL;
    // Few rows fetch the panel shortly before they need it; many the next stretch, a bit with every
    // tile, while this one is in the L1 cache.
    const T* next = stretch + count * PANEL;
    Ahead ahead{is_few ? reinterpret_cast<const char*>(stretch) + FUSEC_STREAM_AHEAD
                       : reinterpret_cast<const char*>(next),
                ceil_div(STEPS_BYTES, tiles), is_few};
    for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
      int64_t end = row + least + (tile < larger ? 1 : 0);
      multiply_rows<T>(a + row * pitch + begin, pitch, end - row, stretch, count, c + row * PANEL,
                       begin > 0 || accumulate, ahead);
      if (begin + count == k) done(row, end - row);
      ahead.at += count / (UNROLL * Step::DEPTH) * ahead.share;
      row = end;
    }
  }
}

#if FUSEC_AMX

// ---- tiles ----

// Depth of the stretch of a bf16 panel that stays in the L1 cache while all rows pass by, whether rows
// are fetched before they are loaded, and with how many products other ways are tried.
#ifndef FUSEC_TILE_STRETCH
#define FUSEC_TILE_STRETCH 256
#endif
#ifndef FUSEC_TILE_FETCH
#define FUSEC_TILE_FETCH 0
#endif
#ifndef FUSEC_TILE_TRIALS
#define FUSEC_TILE_TRIALS 24
#endif

constexpr int64_t PAIR_ROW_BYTES = 2 * PANEL * sizeof(bf16);
constexpr int64_t B_STEP = TILE_DEPTH * PANEL;  // bf16 numbers of a panel that one step takes

// What the tile registers of this thread are configured for.
struct Configuration {
  bool held;  // by a TileScope
  int first, second;
};
thread_local Configuration configuration = {};

// Tiles 0 and 1 hold the sums of the first group of rows, 2 and 3 those of the second, each for half
// a panel; 4 and 5 hold the rows, 6 and 7 the halves of the panel.
void configure(int64_t first, int64_t second) {
  if (configuration.first == first && configuration.second == second) return;
  configuration.first = static_cast<int>(first), configuration.second = static_cast<int>(second);
  const uint8_t f = static_cast<uint8_t>(first), s = static_cast<uint8_t>(second);
  constexpr uint8_t whole = Tiles::ROWS;
  Tiles::configure({f, f, s, s, f, s, whole, whole});
}

// For one or two groups of at most 16 rows.
void configure_rows(int64_t rows) {
  constexpr int64_t WHOLE = Tiles::ROWS;
  configure(min_of(rows, WHOLE), rows > WHOLE ? rows - WHOLE : WHOLE);
}

void release() {
  if (configuration.held || configuration.first == 0) return;
  configuration.first = configuration.second = 0;
  Tiles::release();
}

// Where rows of A are, in bytes.
struct TileRows {
  const char* data;
  int64_t pitch;  // to the next row of a group of 16
  int64_t step;   // to the next 32 numbers along k
  int64_t group;  // to the next 16 rows

  TileRows(const bf16* a, int64_t row_pitch)
      : data(reinterpret_cast<const char*>(a)), pitch(row_pitch * 2), step(Tiles::ROW_BYTES),
        group(Tiles::ROWS * pitch) {}
  TileRows(const TiledRows& rows, int planes)
      : data(reinterpret_cast<const char*>(rows.tiles)), pitch(Tiles::ROW_BYTES),
        step(planes * Tiles::BYTES), group(rows.group_size * 2) {}

  FUSEC_INLINE TileRows from(int64_t row, int64_t depth) const {
    TileRows moved = *this;
    moved.data += row / Tiles::ROWS * group + depth / TILE_DEPTH * step;
    return moved;
  }
};

// The planes of A and of B that are multiplied, the small products first. From one to the next only
// one operand changes.
struct OnePlane {
  static constexpr int PLANES = 1, COUNT = 1, A[] = {0}, B[] = {0};
};
struct TwoPlanes {
  static constexpr int PLANES = 2, COUNT = 3, A[] = {1, 0, 0}, B[] = {0, 0, 1};
};
struct AllOfTwoPlanes {
  static constexpr int PLANES = 2, COUNT = 4, A[] = {1, 1, 0, 0}, B[] = {1, 0, 0, 1};
};
struct ThreePlanes {
  static constexpr int PLANES = 3, COUNT = 6, A[] = {2, 1, 1, 0, 0, 0}, B[] = {0, 0, 1, 1, 2, 0};
};

template <int PLANES, class T>
struct Products;
template <>
struct Products<1, float> : OnePlane {};
template <>
struct Products<2, float> : TwoPlanes {};
template <>
struct Products<3, float> : ThreePlanes {};
// Two planes are an f16 exactly, and with all products so is that of two numbers.
template <>
struct Products<2, f16> : AllOfTwoPlanes {};

// [steps][planes] pieces of a bf16 panel, or a ring of them: a step has the one whose number is that
// of the step under the mask.
struct Pieces {
  const bf16* data;
  int64_t mask = -1;

  template <class Pairs>
  FUSEC_INLINE const bf16* at(int64_t step) const {
    return data + (step & mask) * Pairs::PLANES * B_STEP;
  }
};

// c[GROUPS * 16][PANEL] (+)= a * b over `steps` times 32 numbers along k. `between(step)` is what else
// is done meanwhile.
template <class Pairs, int GROUPS, class Between>
FUSEC_INLINE void multiply_tiles(const TileRows& a, const Pieces& b, int64_t steps, float* c,
                                 bool accumulate, const Between& between) {
  constexpr int64_t C_PITCH = PANEL * sizeof(float);
  float* c_second = c + Tiles::ROWS * PANEL;
  if (accumulate) {
    Tiles::load<0>(c, C_PITCH);
    Tiles::load<1>(c + Tiles::COLUMNS, C_PITCH);
    if (GROUPS > 1) Tiles::load<2>(c_second, C_PITCH);
    if (GROUPS > 1) Tiles::load<3>(c_second + Tiles::COLUMNS, C_PITCH);
  } else {
    Tiles::zero<0>();
    Tiles::zero<1>();
    if (GROUPS > 1) Tiles::zero<2>();
    if (GROUPS > 1) Tiles::zero<3>();
  }
  const char* first = a.data;
  for (int64_t step = 0; step < steps; ++step, first += a.step) {
    between(step);
    const bf16* pieces = b.at<Pairs>(step);
    FUSEC_UNROLL
    for (int i = 0; i < Pairs::COUNT; ++i) {
      bool new_a = i == 0 || Pairs::A[i] != Pairs::A[i - 1];
      bool new_b = i == 0 || Pairs::B[i] != Pairs::B[i - 1];
      const char* rows = first + Pairs::A[i] * Tiles::BYTES;
      const bf16* columns = pieces + Pairs::B[i] * B_STEP;
      if (new_b) Tiles::load<6>(columns, PAIR_ROW_BYTES);
      if (new_a) Tiles::load<4>(rows, a.pitch);
      Tiles::dot_bf16<0, 4, 6>();
      if (GROUPS > 1 && new_a) Tiles::load<5>(rows + a.group, a.pitch);
      if (GROUPS > 1) Tiles::dot_bf16<2, 5, 6>();
      if (new_b) Tiles::load<7>(columns + 2 * Tiles::COLUMNS, PAIR_ROW_BYTES);
      Tiles::dot_bf16<1, 4, 7>();
      if (GROUPS > 1) Tiles::dot_bf16<3, 5, 7>();
    }
  }
  Tiles::store<0>(c, C_PITCH);
  Tiles::store<1>(c + Tiles::COLUMNS, C_PITCH);
  if (GROUPS > 1) Tiles::store<2>(c_second, C_PITCH);
  if (GROUPS > 1) Tiles::store<3>(c_second + Tiles::COLUMNS, C_PITCH);
}

template <class Pairs, class Between>
FUSEC_INLINE void multiply_groups(int64_t groups, const TileRows& a, const Pieces& b, int64_t steps,
                                  float* c, bool accumulate, const Between& between) {
  if (groups == 1) {
    multiply_tiles<Pairs, 1>(a, b, steps, c, accumulate, between);
  } else {
    multiply_tiles<Pairs, 2>(a, b, steps, c, accumulate, between);
  }
}

// Fetches what two groups of rows need in two steps, which may be of the next two groups.
template <class Pairs>
FUSEC_INLINE void fetch_rows(const TileRows& these, const TileRows& next, int64_t step,
                             int64_t steps) {
  int64_t coming = step + 2;
  const char* first = coming < steps ? these.data + coming * these.step
                                     : next.data + (coming - steps) * next.step;
  for (int64_t line = 0; line < Pairs::PLANES * Tiles::ROWS; ++line) {
    __builtin_prefetch(first + line * these.pitch, 0, 3);
    __builtin_prefetch(first + these.group + line * these.pitch, 0, 3);
  }
}

// How rows pass by a panel. A short stretch of it stays in the L1 cache; with a long one sums go to
// memory and back less often.
struct TileWay {
  int64_t stretch;  // numbers along k that all rows are multiplied with before the next ones
  bool fetches_rows = false;
};
constexpr TileWay PLANES_WAY = {FUSEC_TILE_STRETCH / 2};

// Which way is fastest differs between processors, and the sums are the same: a thread tries all of
// them with its first products of many rows, and keeps the one that took the fewest cycles.
class FastestWay {
 public:
  template <class Multiply>
  void multiply(int64_t rows, int64_t k, const Multiply& multiply_by) {
    bool differ = rows >= LEAST_ROWS && k > WAYS[COUNT - 2].stretch;
    if (trial_ == TRIALS || !differ) return multiply_by(WAYS[fastest_]);
    // Two products in a row, because gates have no epilogue and what they are multiplied with has.
    int way = trial_ / 2 % COUNT;
    uint64_t begin = __rdtsc();
    multiply_by(WAYS[way]);
    double cycles = static_cast<double>(__rdtsc() - begin) / static_cast<double>(rows * k);
    if (trial_ == 2 * way || cycles < least_[way]) least_[way] = cycles;
    if (++trial_ < TRIALS) return;
    for (int i = 1; i < COUNT; ++i) {
      if (least_[i] < GAIN * least_[fastest_]) fastest_ = i;
    }
  }

 private:
  static constexpr int COUNT = 4, TRIALS = FUSEC_TILE_TRIALS;
  static constexpr int64_t LEAST_ROWS = 128;
  static constexpr double GAIN = 0.98;  // less than this may be chance
  static constexpr TileWay WAYS[COUNT] = {{FUSEC_TILE_STRETCH, FUSEC_TILE_FETCH != 0},
                                          {FUSEC_TILE_STRETCH, true},
                                          {2 * FUSEC_TILE_STRETCH},
                                          {INT64_MAX}};

  static_assert(TRIALS % (2 * COUNT) == 0, "every way is tried as often");

  int trial_ = 0, fastest_ = 0;
  double least_[COUNT] = {};
};
thread_local FastestWay fastest_way;

// Rows [from, to) of the product with a bf16 panel, or the planes of a panel, two groups of 16 at a
// time; the tiles are configured for all of them. Sums do not depend on the way.
template <class Pairs>
void multiply_panel(const TileRows& a, int64_t from, int64_t to, const bf16* panel, int64_t k,
                    float* c, const RowsDone& done, bool accumulate, const TileWay& way) {
  constexpr int64_t ROWS = 2 * Tiles::ROWS, STEP = Pairs::PLANES * B_STEP;
  int64_t pairs = ceil_div(to - from, ROWS);
  // Two groups alone read the panel once: their sums stay in the tiles.
  int64_t longest = pairs == 1 ? k : way.stretch;
  for (int64_t depth = 0; depth < k; depth += longest) {
    int64_t count = min_of(longest, k - depth), steps = count / TILE_DEPTH;
    const bf16* stretch = panel + depth / TILE_DEPTH * STEP;
    // The next stretch, or that of the next panel, is fetched bit by bit meanwhile.
    int64_t distance = min_of(count, way.stretch) / TILE_DEPTH * STEP;
    Ahead ahead{reinterpret_cast<const char*>(stretch + distance),
                ceil_div(STEP * int64_t{sizeof(bf16)}, pairs), pairs == 1};
    for (int64_t row = from; row < to; row += ROWS) {
      int64_t rows = min_of(ROWS, to - row);
      TileRows these = a.from(row, depth), next = a.from(row + ROWS, depth);
      multiply_groups<Pairs>(ceil_div(rows, Tiles::ROWS), these, {stretch}, steps,
                             c + row * PANEL, depth > 0 || accumulate, [&](int64_t step) {
                               ahead.fetch();
                               if (way.fetches_rows) fetch_rows<Pairs>(these, next, step, steps);
                             });
      if (depth + count == k) done(row, rows);
    }
  }
}

void tile_product(const bf16* a, int64_t pitch, int64_t rows, const bf16* panel, int64_t k,
                  float* c, const RowsDone& done, bool accumulate) {
  constexpr TileWay way = {FUSEC_TILE_STRETCH};
  TileRows source(a, pitch);
  int64_t whole = rows / (2 * Tiles::ROWS) * (2 * Tiles::ROWS), rest = rows - whole;
  if (whole > 0) {
    configure(Tiles::ROWS, Tiles::ROWS);
    multiply_panel<OnePlane>(source, 0, whole, panel, k, c, done, accumulate, way);
  }
  if (rest > 0) {
    configure_rows(rest);
    multiply_panel<OnePlane>(source, whole, rows, panel, k, c, done, accumulate, way);
  }
  release();
}

// ---- panels that are made on the way ----

// Depth of the stretch of a panel that is made while another one is multiplied.
#ifndef FUSEC_MADE_STRETCH
#define FUSEC_MADE_STRETCH 256
#endif

// At most two groups of rows, whose sums stay in the tiles. The vector units make a piece that is used
// after the next while the tile unit multiplies.
void made_product_of_few(const TileRows& a, int64_t rows, const PanelMaker& make, int64_t k,
                         float* c) {
  constexpr int64_t RING = 4, LEAD = 2;
  Scratch<bf16> ring(RING * B_STEP);
  int64_t steps = k / TILE_DEPTH, made = 0;
  auto make_next = [&] {
    if (made == steps) return;
    make(made * TILE_DEPTH, ring + made % RING * B_STEP);
    ++made;
  };
  for (int64_t i = 0; i < LEAD; ++i) make_next();
  configure_rows(rows);
  multiply_groups<OnePlane>(ceil_div(rows, Tiles::ROWS), a, {ring, RING - 1}, steps, c, false,
                            [&](int64_t) { make_next(); });
}

// A stretch of the panel stays in the L1 cache while all rows pass by; the next one is made meanwhile.
void made_product_of_many(const TileRows& a, int64_t rows, const PanelMaker& make, int64_t k,
                          float* c, const RowsDone& done) {
  constexpr int64_t ROWS = 2 * Tiles::ROWS, STRETCH = FUSEC_MADE_STRETCH;
  Scratch<bf16> stretches(2 * STRETCH * PANEL);
  bf16 *current = stretches, *other = current + STRETCH * PANEL;
  auto pieces_from = [=](int64_t begin) { return min_of(STRETCH, k - begin) / TILE_DEPTH; };
  for (int64_t i = 0; i < pieces_from(0); ++i) make(i * TILE_DEPTH, current + i * B_STEP);
  for (int64_t begin = 0; begin < k; begin += STRETCH) {
    int64_t steps = pieces_from(begin), next = begin + steps * TILE_DEPTH;
    int64_t pieces = pieces_from(next), made = 0, passed = 0;
    int64_t all_steps = steps * ceil_div(rows, ROWS);
    auto make_share = [&](int64_t) {
      for (++passed; made * all_steps < passed * pieces; ++made) {
        make(next + made * TILE_DEPTH, other + made * B_STEP);
      }
    };
    for (int64_t row = 0; row < rows; row += ROWS) {
      int64_t some = min_of(ROWS, rows - row);
      configure_rows(some);
      multiply_groups<OnePlane>(ceil_div(some, Tiles::ROWS), a.from(row, begin), {current}, steps,
                                c + row * PANEL, begin > 0, make_share);
      if (next == k) done(row, some);
    }
    bf16* used = current;
    current = other, other = used;
  }
}

void made_product(const TileRows& a, int64_t rows, const PanelMaker& make, int64_t k, float* c,
                  const RowsDone& done) {
  if (rows <= 2 * Tiles::ROWS) {
    made_product_of_few(a, rows, make, k, c);
    done(0, rows);
  } else {
    made_product_of_many(a, rows, make, k, c, done);
  }
  release();
}

// ---- planes ----

// Splits two rows of a panel into a pair row of each plane.
template <int PLANES, class T>
FUSEC_INLINE void split_pair(const T* even, const T* odd, bf16* target) {
  FUSEC_UNROLL
  for (int half = 0; half < PANEL; half += LANES) {
    Vec x = even ? load(even + half) : zero(), y = odd ? load(odd + half) : zero();
    FUSEC_UNROLL
    for (int plane = 0; plane < PLANES; ++plane) {
      __m512i low = take_plane(x, plane == 0), high = take_plane(y, plane == 0);
      _mm512_storeu_si512(target + plane * B_STEP + 2 * half,
                          _mm512_or_si512(_mm512_srli_epi32(low, 16), high));
    }
  }
}

// Splits a panel in the order of k, as much at a time as there is time for.
template <int PLANES, class T>
class Splitter {
 public:
  Splitter(const T* panel, int64_t k) : panel_(panel), k_(k) {}

  // From row `begin` on, `count` rows, a multiple of TILE_DEPTH, to `target`.
  void start(int64_t begin, int64_t count, bf16* target) {
    row_ = begin, end_ = begin + count, begin_ = begin, target_ = target;
  }
  FUSEC_INLINE void advance(int64_t pairs) {
    constexpr int64_t AHEAD = 2 * plane_depth<PLANES>();
    for (int64_t end = min_of(end_, row_ + 2 * pairs); row_ < end; row_ += 2) {
      const T* even = panel_ + row_ * PANEL;
      for (int64_t i = 0; i < 2 * PANEL; i += 64 / static_cast<int64_t>(sizeof(T))) {
        __builtin_prefetch(even + AHEAD * PANEL + i, 0, 2);
      }
      int64_t from_begin = row_ - begin_;
      bf16* target = target_ + from_begin / TILE_DEPTH * PLANES * B_STEP +
                     from_begin % TILE_DEPTH * PANEL;
      split_pair<PLANES>(row_ < k_ ? even : nullptr, row_ + 1 < k_ ? even + PANEL : nullptr, target);
    }
  }

 private:
  const T* panel_;
  int64_t k_, row_ = 0, end_ = 0, begin_ = 0;
  bf16* target_ = nullptr;
};

// Sums along k are at most about this long before they are added up.
constexpr int64_t LONGEST_PLANE_SUM = 1024;

FUSEC_INLINE void add_rows(const float* source, int64_t rows, float* target) {
  for (int64_t i = 0; i < rows * PANEL; i += LANES) {
    store(target + i, load(target + i) + load(source + i));
  }
}

#endif  // FUSEC_AMX

}  // namespace

void panel_product(const Activations<float>* a, int64_t pitch, int64_t rows, const float* panel,
                   int64_t k, float* c, const RowsDone& done, bool accumulate) {
  vector_product<float>(a, pitch, rows, panel, k, c, done, accumulate);
}
void panel_product(const Activations<bf16>* a, int64_t pitch, int64_t rows, const bf16* panel,
                   int64_t k, float* c, const RowsDone& done, bool accumulate) {
#if FUSEC_AMX
  if (rows >= FUSEC_TILE_LEAST_ROWS && k > 0) {
    return tile_product(a, pitch, rows, panel, k, c, done, accumulate);
  }
#endif
  vector_product<bf16>(a, pitch, rows, panel, k, c, done, accumulate);
}
void panel_product(const Activations<f16>* a, int64_t pitch, int64_t rows, const f16* panel,
                   int64_t k, float* c, const RowsDone& done, bool accumulate) {
  vector_product<f16>(a, pitch, rows, panel, k, c, done, accumulate);
}

#if FUSEC_AMX

TileScope::TileScope() : outer_(configuration.held) { configuration.held = true; }
TileScope::~TileScope() {
  configuration.held = outer_;
  release();
}

void tiled_product(const TiledRows& a, int64_t rows, const bf16* panel, int64_t k, float* c,
                   const RowsDone& done, bool accumulate) {
  configure(Tiles::ROWS, Tiles::ROWS);
  fastest_way.multiply(rows, k, [&](const TileWay& way) {
    multiply_panel<OnePlane>(TileRows(a, 1), 0, rows, panel, k, c, done, accumulate, way);
  });
  release();
}

void made_product(const bf16* a, int64_t pitch, int64_t rows, const PanelMaker& make, int64_t k,
                  float* c) {
  made_product(TileRows(a, pitch), rows, make, k, c, RowsDone());
}
void made_product(const TiledRows& a, int64_t rows, const PanelMaker& make, int64_t k, float* c,
                  const RowsDone& done) {
  made_product(TileRows(a, 1), rows, make, k, c, done);
}

template <int PLANES, class T>
void plane_product(const TiledRows& a, int64_t rows, const T* panel, int64_t k,
                   const PlaneWorkspace& workspace, float* c, const RowsDone& done,
                   bool accumulate) {
  constexpr int64_t ROWS = 2 * Tiles::ROWS, STRETCH = plane_depth<PLANES>();
  constexpr int64_t SPAN = LONGEST_PLANE_SUM / STRETCH * STRETCH;
  TileRows source(a, PLANES);
  Splitter<PLANES, T> splitter(panel, k);
  int64_t depth = round_up(k, TILE_DEPTH), row_pairs = ceil_div(rows, ROWS);
  auto stretch_from = [=](int64_t begin) { return min_of(STRETCH, depth - begin); };
  bf16 *current = workspace.planes, *other = current + plane_workspace<PLANES>() / 2;
  configure(Tiles::ROWS, Tiles::ROWS);
  splitter.start(0, stretch_from(0), current);
  splitter.advance(STRETCH / 2);
  for (int64_t begin = 0; begin < depth; begin += STRETCH) {
    int64_t count = stretch_from(begin), next = begin + count;
    // The next stretch is split by the vector units while the tile unit multiplies this one.
    int64_t share = ceil_div(STRETCH / 2, row_pairs * (count / TILE_DEPTH));
    splitter.start(next, stretch_from(next), other);
    float* sums = begin < SPAN && !accumulate ? c : workspace.partial;
    for (int64_t row = 0; row < rows; row += ROWS) {
      int64_t some = min_of(ROWS, rows - row);
      multiply_groups<Products<PLANES, T>>(
          ceil_div(some, Tiles::ROWS), source.from(row, begin), {current}, count / TILE_DEPTH,
          sums + row * PANEL, begin % SPAN > 0, [&](int64_t) { splitter.advance(share); });
      if (sums != c && (next == depth || next % SPAN == 0)) {
        add_rows(sums + row * PANEL, some, c + row * PANEL);
      }
      if (next == depth) done(row, some);
    }
    bf16* used = current;
    current = other, other = used;
  }
  release();
}

template <int PLANES, class T>
void split_panel(const T* panel, int64_t k, bf16* planes) {
  int64_t depth = round_up(k, TILE_DEPTH);
  Splitter<PLANES, T> splitter(panel, k);
  splitter.start(0, depth, planes);
  splitter.advance(depth / 2);
}

template <int PLANES, class T>
void split_product(const TiledRows& a, int64_t rows, const bf16* planes, int64_t k, float* c,
                   const RowsDone& done) {
  configure(Tiles::ROWS, Tiles::ROWS);
  multiply_panel<Products<PLANES, T>>(TileRows(a, PLANES), 0, rows, planes,
                                      round_up(k, TILE_DEPTH), c, done, false, PLANES_WAY);
  release();
}

#define FUSEC_PLANES(PLANES, T)                                                                 \
  template void plane_product<PLANES, T>(const TiledRows& a, int64_t rows, const T* panel,     \
                                         int64_t k, const PlaneWorkspace& workspace, float* c, \
                                         const RowsDone& done, bool accumulate);               \
  template void split_panel<PLANES, T>(const T* panel, int64_t k, bf16* planes);               \
  template void split_product<PLANES, T>(const TiledRows& a, int64_t rows, const bf16* planes, \
                                         int64_t k, float* c, const RowsDone& done);
FUSEC_PLANES(1, float)
FUSEC_PLANES(2, float)
FUSEC_PLANES(3, float)
FUSEC_PLANES(2, f16)
#undef FUSEC_PLANES

#endif  // FUSEC_AMX

}  // namespace fusec
