// What every CPU kernel of fusec includes: the calling convention, threads, scratch memory, errors.
//
// A kernel is `extern "C" void SYMBOL(void* const* buffers, const int64_t* params)`. `buffers` holds
// the addresses of its operands in the order the comment above the kernel gives; operands that a
// flag in `params` declares absent are left out, they are not null. `params` are 64-bit integers;
// a double travels as its bits. Strides count elements, never bytes. A kernel never reads or writes
// outside its operands, takes any size including 0, and gives the same bits for any thread count.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FUSEC_KERNEL extern "C" __attribute__((visibility("default")))
#define FUSEC_INLINE inline __attribute__((always_inline))
#define FUSEC_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FUSEC_UNROLL FUSEC_PRAGMA(clang loop unroll(full))
#else
#define FUSEC_UNROLL FUSEC_PRAGMA(GCC unroll 32)
#endif

extern "C" {

// ---- the core (kernels/cpu_core/kernel.cpp), linked into every module ----

typedef void (*FusecKernel)(void* const* buffers, const int64_t* params);

struct FusecStep {
  FusecKernel kernel;
  void* const* buffers;
  const int64_t* params;
};

enum FusecErrorCode {
  FUSEC_OK = 0,
  FUSEC_INDEX_OUT_OF_RANGE = 1,  // value: the index, bound: the size it must stay below
  FUSEC_DIVISION_BY_ZERO = 2,    // integer division or remainder
  FUSEC_INVALID_ARGUMENT = 3,    // value: the offending number, bound: what it had to be
};

struct FusecError {
  int64_t code;
  int64_t value;
  int64_t bound;
  int64_t step;  // index of the step in fusec_execute
};

// Runs the steps in order. Returns 0, or 1 + the index of the first step that raised an error; the
// steps after it do not run. `seconds`, if not null, receives the wall time of every step.
FUSEC_KERNEL int64_t fusec_execute(const FusecStep* steps, int64_t count, double* seconds);

// The error of the last fusec_execute on this thread (code FUSEC_OK if it succeeded).
FUSEC_KERNEL void fusec_last_error(FusecError* error);

// Records an error for the running fusec_execute; the first one wins. The kernel goes on, keeps
// inside its buffers, and its output is meaningless.
FUSEC_KERNEL void fusec_raise(int64_t code, int64_t value, int64_t bound);

// Threads that take part in a parallel loop, the caller included. 1 ends all the workers; before the
// first call the number is that of the CPUs this process may run on.
FUSEC_KERNEL void fusec_set_threads(int threads);
FUSEC_KERNEL int fusec_threads(void);

// Calls body(context, begin, end, thread) on ranges that cover [0, n), each a multiple of `grain`
// long except the last. `thread` is in [0, fusec_threads()) and differs between ranges that run at
// the same time. A nested call, or one made while another thread uses the pool, runs inline.
FUSEC_KERNEL void fusec_parallel_for(int64_t n, int64_t grain,
                                     void (*body)(void* context, int64_t begin, int64_t end,
                                                  int thread),
                                     void* context);

// 64-byte aligned memory that belongs to the calling thread until it is released there. Blocks are
// kept for reuse, so a warm kernel allocates nothing.
FUSEC_KERNEL void* fusec_scratch_acquire(int64_t bytes);
FUSEC_KERNEL void fusec_scratch_release(void* block);

}  // extern "C"

namespace fusec {

// Storage types. Arithmetic happens in float (or double, or integers); see simd.h for the vectors.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

FUSEC_INLINE double f64_param(int64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

FUSEC_INLINE float f32_param(int64_t bits) { return static_cast<float>(f64_param(bits)); }

template <class T>
FUSEC_INLINE T min_of(T a, T b) {
  return b < a ? b : a;
}

template <class T>
FUSEC_INLINE T max_of(T a, T b) {
  return a < b ? b : a;
}

FUSEC_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FUSEC_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// What is called back, or nothing: a callable that outlives the call it is given to.
template <class... Arguments>
class Callback {
 public:
  Callback() = default;
  template <class Body>
  explicit Callback(const Body& body)
      : context_(&body), call_([](const void* context, Arguments... arguments) {
          (*static_cast<const Body*>(context))(arguments...);
        }) {}
  template <class Body>
  explicit Callback(const Body&& body) = delete;  // would be gone when it is called
  void operator()(Arguments... arguments) const {
    if (call_) call_(context_, arguments...);
  }

 private:
  const void* context_ = nullptr;
  void (*call_)(const void* context, Arguments... arguments) = nullptr;
};

// parallel_for(n, grain, [&](int64_t begin, int64_t end, int thread) { ... });
template <class Body>
FUSEC_INLINE void parallel_for(int64_t n, int64_t grain, const Body& body) {
  fusec_parallel_for(
      n, grain,
      [](void* context, int64_t begin, int64_t end, int thread) {
        (*static_cast<const Body*>(context))(begin, end, thread);
      },
      const_cast<Body*>(&body));
}

// The grain that makes one range worth waking a thread for, given the work of one item in
// elementary operations (about one per cycle and lane).
FUSEC_INLINE int64_t grain_for(int64_t operations_per_item) {
  return max_of<int64_t>(1, 32768 / max_of<int64_t>(1, operations_per_item));
}

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(fusec_scratch_acquire(count * static_cast<int64_t>(sizeof(T))))) {}
  ~Scratch() { fusec_scratch_release(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace fusec
