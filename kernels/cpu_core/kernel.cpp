// The runtime inside every CPU module: thread pool, scratch memory, errors, and the step loop.
#include <fusec/checksum.h>
#include <fusec/kernel.h>
#include <fusec/probe.h>

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

namespace {

// How long an idle thread polls before it sleeps: about 20 microseconds, a little more than the gap
// between two steps, so that the pool stays awake inside a model and sleeps between calls.
constexpr int SPIN_ROUNDS = 1000;
constexpr int MAX_THREADS = 1024;
constexpr int64_t CONVERTED = 32768;  // elements worth waking a thread for
constexpr pid_t NO_PROCESS = 0, CHANGING = -1;

FUSEC_INLINE void relax() { __builtin_ia32_pause(); }

// ---- errors ----

__thread FusecError* error_slot = nullptr;  // of the execution this thread works for
__thread FusecError last_error;

// ---- the pool ----

// A job is closed when its caller has run out of ranges; `running` counts the workers inside it.
// Both live in one word with the job's number, so that a worker enters only an open job, and the
// caller never waits for one that was asleep.
constexpr uint64_t RUNNING_MASK = 0x7fffffff;
constexpr uint64_t CLOSED = 0x80000000;
constexpr int GENERATION_SHIFT = 32;

struct Job {
  void (*body)(void*, int64_t, int64_t, int);
  void* context;
  int64_t chunk;
  int threads;
  FusecError* error;
};

// What one thread does first, in every loop of the same size: its caches know that part of the
// operands.  A thread that has no more takes from the others.
struct alignas(64) Share {
  int64_t next;  // first item not yet handed out
  int64_t end;
};

struct Pool {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t work = PTHREAD_COND_INITIALIZER;
  pthread_cond_t finished = PTHREAD_COND_INITIALIZER;
  uint64_t state = CLOSED;
  int busy = 0;      // a caller owns the pool
  int sleepers = 0;  // workers in pthread_cond_wait
  int waiting = 0;   // the caller sleeps until `running` is 0
  int stop = 0;
  int threads = 0;  // 0: not decided yet
  int workers = 0;
  pid_t owner = NO_PROCESS;  // whose threads the workers are
  Job job = {};
  Share shares[MAX_THREADS] = {};
  pthread_t handles[MAX_THREADS];
};

Pool pool;
__thread bool inside_loop = false;

void run_share(const Job& job, Share& share, int thread) {
  // Looking first keeps a share that is used up in the caches of all threads.
  while (__atomic_load_n(&share.next, __ATOMIC_RELAXED) < share.end) {
    int64_t begin = __atomic_fetch_add(&share.next, job.chunk, __ATOMIC_RELAXED);
    if (begin >= share.end) break;
    job.body(job.context, begin, fusec::min_of(share.end, begin + job.chunk), thread);
  }
}

void run_ranges(const Job& job, int thread) {
  FusecError* outer_error = error_slot;
  error_slot = job.error;
  inside_loop = true;
  for (int i = 0; i < job.threads; ++i) {
    int owner = thread + i < job.threads ? thread + i : thread + i - job.threads;
    run_share(job, pool.shares[owner], thread);
  }
  inside_loop = false;
  error_slot = outer_error;
}

bool enter(uint64_t* generation) {
  uint64_t state = __atomic_load_n(&pool.state, __ATOMIC_SEQ_CST);
  while ((state >> GENERATION_SHIFT) != *generation && !(state & CLOSED)) {
    if (__atomic_compare_exchange_n(&pool.state, &state, state + 1, true, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST)) {
      *generation = state >> GENERATION_SHIFT;
      return true;
    }
  }
  return false;
}

void leave() {
  uint64_t state = __atomic_sub_fetch(&pool.state, 1, __ATOMIC_SEQ_CST);
  if ((state & RUNNING_MASK) == 0 && __atomic_load_n(&pool.waiting, __ATOMIC_SEQ_CST)) {
    pthread_mutex_lock(&pool.mutex);
    pthread_cond_signal(&pool.finished);
    pthread_mutex_unlock(&pool.mutex);
  }
}

void* worker_main(void* argument) {
  int thread = static_cast<int>(reinterpret_cast<intptr_t>(argument));
  uint64_t generation = 0;
  for (;;) {
    bool entered = false;
    for (int spin = 0; spin < SPIN_ROUNDS && !entered; ++spin) {
      if (__atomic_load_n(&pool.stop, __ATOMIC_RELAXED)) return nullptr;
      entered = enter(&generation);
      if (!entered) relax();
    }
    if (!entered) {
      pthread_mutex_lock(&pool.mutex);
      __atomic_add_fetch(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
      // The caller publishes a job before it looks at `sleepers`, and a worker counts itself before
      // it looks for a job: one of the two sees the other.
      while (!pool.stop && !(entered = enter(&generation))) {
        pthread_cond_wait(&pool.work, &pool.mutex);
      }
      __atomic_sub_fetch(&pool.sleepers, 1, __ATOMIC_SEQ_CST);
      pthread_mutex_unlock(&pool.mutex);
      if (!entered) return nullptr;
    }
    run_ranges(pool.job, thread);
    leave();
  }
}

void stop_workers() {
  if (pool.workers == 0) return;
  pthread_mutex_lock(&pool.mutex);
  __atomic_store_n(&pool.stop, 1, __ATOMIC_SEQ_CST);
  pthread_cond_broadcast(&pool.work);
  pthread_mutex_unlock(&pool.mutex);
  for (int i = 0; i < pool.workers; ++i) pthread_join(pool.handles[i], nullptr);
  pool.workers = 0;
  pool.stop = 0;
}

void start_workers() {
  __atomic_store_n(&pool.owner, getpid(), __ATOMIC_RELEASE);
  while (pool.workers < pool.threads - 1) {
    void* thread = reinterpret_cast<void*>(static_cast<intptr_t>(pool.workers + 1));
    // Fewer workers than wanted is slower, not wrong.
    if (pthread_create(&pool.handles[pool.workers], nullptr, worker_main, thread) != 0) break;
    ++pool.workers;
  }
}

// A child after fork has the memory of the pool, but none of its threads, and locks that a thread may
// have held.  The first one to notice begins anew: whatever is called from outside looks first.
void leave_parent() {
  const pid_t self = getpid();
  pid_t owner = __atomic_load_n(&pool.owner, __ATOMIC_ACQUIRE);
  while (owner != NO_PROCESS && owner != self) {
    if (owner == CHANGING) {
      sched_yield();
      owner = __atomic_load_n(&pool.owner, __ATOMIC_ACQUIRE);
    } else if (__atomic_compare_exchange_n(&pool.owner, &owner, CHANGING, false, __ATOMIC_ACQUIRE,
                                           __ATOMIC_ACQUIRE)) {
      pool.mutex = PTHREAD_MUTEX_INITIALIZER;
      pool.work = PTHREAD_COND_INITIALIZER;
      pool.finished = PTHREAD_COND_INITIALIZER;
      pool.state |= CLOSED;
      pool.state &= ~RUNNING_MASK;
      pool.sleepers = pool.waiting = pool.stop = pool.workers = pool.busy = 0;
      __atomic_store_n(&pool.owner, self, __ATOMIC_RELEASE);
      return;
    }
  }
}

bool acquire_pool() { return __atomic_exchange_n(&pool.busy, 1, __ATOMIC_ACQUIRE) == 0; }
void release_pool() { __atomic_store_n(&pool.busy, 0, __ATOMIC_RELEASE); }

int available_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? static_cast<int>(online) : 1;
}

__attribute__((destructor)) void unload() {
  // The module goes away: no worker may be left inside it. A forked child has no workers to join.
  if (pool.owner == getpid() && acquire_pool()) stop_workers();
}

// ---- scratch ----

struct Block {
  int64_t bytes;
  int64_t padding[7];  // keeps what follows 64-byte aligned
};
constexpr int KEPT_BLOCKS = 8;

struct BlockCache {
  Block* blocks[KEPT_BLOCKS];
};
__thread BlockCache* block_cache = nullptr;
pthread_key_t block_cache_key;
pthread_once_t block_cache_once = PTHREAD_ONCE_INIT;

void free_block_cache(void* pointer) {
  BlockCache* cache = static_cast<BlockCache*>(pointer);
  for (Block* block : cache->blocks) free(block);
  free(cache);
}

void create_block_cache_key() { pthread_key_create(&block_cache_key, free_block_cache); }

void out_of_memory(int64_t bytes) {
  fprintf(stderr, "fusec: out of memory: a kernel needs %lld bytes of scratch\n",
          static_cast<long long>(bytes));
  abort();
}

BlockCache* cache_of_this_thread() {
  if (block_cache == nullptr) {
    pthread_once(&block_cache_once, create_block_cache_key);
    block_cache = static_cast<BlockCache*>(calloc(1, sizeof(BlockCache)));
    if (block_cache == nullptr) out_of_memory(sizeof(BlockCache));
    pthread_setspecific(block_cache_key, block_cache);
  }
  return block_cache;
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)

// Every block is new, full of NaN and just as long as it was asked to be.
FUSEC_KERNEL void* fusec_scratch_acquire(int64_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 64, static_cast<size_t>(bytes)) != 0) out_of_memory(bytes);
  return memset(block, 0xff, static_cast<size_t>(bytes));
}

FUSEC_KERNEL void fusec_scratch_release(void* block) { free(block); }

#else

FUSEC_KERNEL void* fusec_scratch_acquire(int64_t bytes) {
  BlockCache* cache = cache_of_this_thread();
  int best = -1;
  for (int i = 0; i < KEPT_BLOCKS; ++i) {
    Block* block = cache->blocks[i];
    if (block == nullptr || block->bytes < bytes) continue;
    if (best < 0 || block->bytes < cache->blocks[best]->bytes) best = i;
  }
  // A block much larger than asked for is left for whoever needs that much.
  if (best >= 0 && cache->blocks[best]->bytes <= 4 * bytes + 65536) {
    Block* block = cache->blocks[best];
    cache->blocks[best] = nullptr;
    return block + 1;
  }
  bytes = fusec::round_up(fusec::max_of<int64_t>(bytes, 64), 4096);
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, static_cast<size_t>(bytes) + sizeof(Block)) != 0) {
    out_of_memory(bytes);
  }
  Block* block = static_cast<Block*>(memory);
  block->bytes = bytes;
  return block + 1;
}

FUSEC_KERNEL void fusec_scratch_release(void* pointer) {
  Block* block = static_cast<Block*>(pointer) - 1;
  BlockCache* cache = cache_of_this_thread();
  int smallest = 0;
  for (int i = 0; i < KEPT_BLOCKS; ++i) {
    if (cache->blocks[i] == nullptr) {
      cache->blocks[i] = block;
      return;
    }
    if (cache->blocks[i]->bytes < cache->blocks[smallest]->bytes) smallest = i;
  }
  if (cache->blocks[smallest]->bytes < block->bytes) {
    Block* kept = block;
    block = cache->blocks[smallest];
    cache->blocks[smallest] = kept;
  }
  free(block);
}

#endif

FUSEC_KERNEL int fusec_threads(void) {
  int threads = __atomic_load_n(&pool.threads, __ATOMIC_RELAXED);
  return threads > 0 ? threads : fusec::min_of(available_cpus(), MAX_THREADS);
}

FUSEC_KERNEL void fusec_set_threads(int threads) {
  if (inside_loop) return;  // a loop body cannot resize the pool that runs it
  leave_parent();
  threads = fusec::min_of(fusec::max_of(threads, 1), MAX_THREADS);
  while (!acquire_pool()) sched_yield();
  if (threads != pool.threads) stop_workers();
  __atomic_store_n(&pool.threads, threads, __ATOMIC_RELAXED);
  release_pool();
}

FUSEC_KERNEL void fusec_parallel_for(int64_t n, int64_t grain,
                                     void (*body)(void*, int64_t, int64_t, int), void* context) {
  if (n <= 0) return;
  grain = fusec::max_of<int64_t>(grain, 1);
  int threads = fusec_threads();
  if (threads == 1 || n <= grain || inside_loop || !acquire_pool()) {
    bool outer = inside_loop;
    inside_loop = true;
    body(context, 0, n, 0);
    inside_loop = outer;
    return;
  }
  if (pool.threads == 0) __atomic_store_n(&pool.threads, threads, __ATOMIC_RELAXED);
  if (pool.workers < threads - 1) start_workers();

  // A few ranges per thread even out their speeds without making the counters hot.
  int64_t chunk = fusec::max_of(grain, fusec::round_up(fusec::ceil_div(n, 4 * threads), grain));
  int64_t share = fusec::round_up(fusec::ceil_div(n, threads), chunk);
  for (int i = 0; i < threads; ++i) {
    pool.shares[i] = {fusec::min_of(n, i * share), fusec::min_of(n, (i + 1) * share)};
  }
  pool.job = {body, context, chunk, threads, error_slot};
  uint64_t generation = (__atomic_load_n(&pool.state, __ATOMIC_RELAXED) >> GENERATION_SHIFT) + 1;
  generation &= 0xffffffff;
  __atomic_store_n(&pool.state, generation << GENERATION_SHIFT, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&pool.sleepers, __ATOMIC_SEQ_CST) > 0) {
    int64_t wanted = fusec::ceil_div(n, chunk) - 1;
    pthread_mutex_lock(&pool.mutex);
    if (wanted >= pool.workers) {
      pthread_cond_broadcast(&pool.work);
    } else {
      for (int64_t i = 0; i < wanted; ++i) pthread_cond_signal(&pool.work);
    }
    pthread_mutex_unlock(&pool.mutex);
  }
  run_ranges(pool.job, 0);

  uint64_t state = __atomic_or_fetch(&pool.state, CLOSED, __ATOMIC_SEQ_CST);
  for (int spin = 0; (state & RUNNING_MASK) != 0 && spin < 4 * SPIN_ROUNDS; ++spin) {
    relax();
    state = __atomic_load_n(&pool.state, __ATOMIC_SEQ_CST);
  }
  if ((state & RUNNING_MASK) != 0) {
    pthread_mutex_lock(&pool.mutex);
    __atomic_store_n(&pool.waiting, 1, __ATOMIC_SEQ_CST);
    while ((__atomic_load_n(&pool.state, __ATOMIC_SEQ_CST) & RUNNING_MASK) != 0) {
      pthread_cond_wait(&pool.finished, &pool.mutex);
    }
    __atomic_store_n(&pool.waiting, 0, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool.mutex);
  }
  release_pool();
}

// What callers see of bf16 is f32: `count` elements from `source` to `target`, exactly.
FUSEC_KERNEL void fusec_widen_bf16(const uint16_t* source, uint32_t* target, int64_t count) {
  leave_parent();
  fusec::parallel_for(count, CONVERTED, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) target[i] = static_cast<uint32_t>(source[i]) << 16;
  });
}

// And back, to nearest even; a NaN becomes a quiet one.
FUSEC_KERNEL void fusec_narrow_bf16(const uint32_t* source, uint16_t* target, int64_t count) {
  leave_parent();
  fusec::parallel_for(count, CONVERTED, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      uint32_t bits = source[i];
      uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
      uint32_t quiet = (bits >> 16) | 0x40;
      bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
      target[i] = static_cast<uint16_t>(is_nan ? quiet : rounded);
    }
  });
}

// The CRC-32 of `count` bytes, as zlib computes it.  The processor must have `pclmulqdq`.
FUSEC_KERNEL uint32_t fusec_crc32(const void* data, int64_t count) {
  return fusec::crc32(static_cast<const uint8_t*>(data), count);
}

// Reads `bytes`, a multiple of 64 KiB, once with all threads; gives the seconds that it takes.
FUSEC_KERNEL double fusec_probe_read(const float* data, int64_t bytes) {
  leave_parent();
  const int64_t block = 65536;
  double begin = now();
  fusec::parallel_for(bytes / block, 1, [&](int64_t first, int64_t end, int) {
    fusec::probe_read(data + first * (block / 4), (end - first) * (block / 4));
  });
  return now() - begin;
}

// Multiplies and adds with all threads, in f32 or, if `narrow`, with instructions on bf16; gives the
// operations a second, 0 where the module has no such instructions.
FUSEC_KERNEL double fusec_probe_flops(int64_t narrow, int64_t rounds) {
  leave_parent();
  int64_t parts = fusec::PROBE_PARTS * fusec_threads(), done = 0;
  double begin = now();
  fusec::parallel_for(parts, 1, [&](int64_t first, int64_t end, int) {
    for (int64_t part = first; part < end; ++part) {
      int64_t flops = narrow ? fusec::probe_bf16(rounds) : fusec::probe_f32(rounds);
      __atomic_fetch_add(&done, flops, __ATOMIC_RELAXED);
    }
  });
  return static_cast<double>(done) / (now() - begin);
}

FUSEC_KERNEL void fusec_raise(int64_t code, int64_t value, int64_t bound) {
  FusecError* error = error_slot;
  if (error == nullptr) error = &last_error;
  int64_t expected = FUSEC_OK;
  // Two threads may race; the one that claims the code also writes the details, and they are read
  // only after the loop has ended.
  if (__atomic_compare_exchange_n(&error->code, &expected, code, false, __ATOMIC_RELAXED,
                                  __ATOMIC_RELAXED)) {
    error->value = value;
    error->bound = bound;
  }
}

FUSEC_KERNEL void fusec_last_error(FusecError* error) { *error = last_error; }

FUSEC_KERNEL int64_t fusec_execute(const FusecStep* steps, int64_t count, double* seconds) {
  if (!inside_loop) leave_parent();
  last_error = FusecError{};
  FusecError* outer = error_slot;
  error_slot = &last_error;
  int64_t failed = 0;
  double begin = seconds ? now() : 0.0;
  for (int64_t i = 0; i < count && failed == 0; ++i) {
    steps[i].kernel(steps[i].buffers, steps[i].params);
    if (seconds) {
      double end = now();
      seconds[i] = end - begin;
      begin = end;
    }
    if (__atomic_load_n(&last_error.code, __ATOMIC_RELAXED) != FUSEC_OK) {
      last_error.step = i;
      failed = i + 1;
    }
  }
  error_slot = outer;
  return failed;
}
