// Stands for libamdhip64 or, with -DCUDA, for libcuda: the functions that fusec calls, over memory
// of the host.  Whatever a driver would refuse gives an error: an address, stream, event, graph or
// module that is not known, a call of a thread that has not chosen a device, a broken list of
// arguments.  Kernels are those of `gpu_samples`.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#ifdef CUDA
#define NAME(hip, cuda) cuda
#define EXTRA_END 0
#else
#define NAME(hip, cuda) hip
#define EXTRA_END 3
#endif
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidContext = 201;
constexpr int kInvalidImage = 200, kNotFound = 500, kLaunchFailed = 719;

struct Launch {
  std::string name;
  std::uint32_t grid[3], block[3], shared;
  std::vector<char> kernargs;
};

int device_count = 2;
std::string arch = "gfx950:sramecc+:xnack-";
std::size_t total_memory = std::size_t(1) << 30;
std::string failing;       // a kernel that cannot be launched
int shared_limit = 0;      // what cuFuncSetAttribute allowed
int contexts = 0;          // retained and not released
std::map<char*, std::size_t> allocations, pinned;
std::set<void*> streams, events, modules, graphs, executables;
std::map<std::string, char*> functions;
std::vector<Launch> log;
std::map<void*, std::vector<Launch>> captured;
std::vector<Launch>* capture = nullptr;
thread_local int current = -1;
char handles[1 << 16];
int next_handle = 0;

void* new_handle(std::set<void*>& kind) {
  void* handle = &handles[next_handle++];
  kind.insert(handle);
  return handle;
}

bool holds(std::map<char*, std::size_t>& memory, const void* address, std::size_t size) {
  const char* begin = static_cast<const char*>(address);
  auto found = memory.upper_bound(const_cast<char*>(begin));
  if (found == memory.begin()) return false;
  --found;
  return begin + size <= found->first + found->second;
}

bool on_device(const void* address, std::size_t size) { return holds(allocations, address, size); }

std::size_t in_use() {
  std::size_t sum = 0;
  for (auto& each : allocations) sum += each.second;
  return sum;
}

template <class T>
T* pointer(const Launch& launch, int offset) {
  T* value;
  std::memcpy(&value, launch.kernargs.data() + offset, 8);
  return value;
}

template <class T>
T number(const Launch& launch, int offset) {
  T value;
  std::memcpy(&value, launch.kernargs.data() + offset, sizeof value);
  return value;
}

void execute(const Launch& launch) {
  log.push_back(launch);
  if (launch.name == "sample_take") {
    auto table = pointer<float>(launch, 0);
    auto ids = pointer<std::int64_t>(launch, 8);
    auto out = pointer<float>(launch, 16);
    auto error = pointer<std::int64_t>(launch, 24);
    auto count = number<std::int64_t>(launch, 32), width = number<std::int64_t>(launch, 40);
    auto rows = number<std::int64_t>(launch, 48);
    for (std::int64_t i = 0; i < count; ++i) {
      auto id = ids[i];
      if (id < 0 || id >= rows) {
        *error = rows << 32 | (id & 0xFFFFFFFF);
        id = 0;
      }
      for (std::int64_t j = 0; j < width; ++j) out[i * width + j] = table[id * width + j];
    }
  } else if (launch.name == "sample_scale") {
    auto a = pointer<float>(launch, 0), out = pointer<float>(launch, 8);
    auto n = number<std::int64_t>(launch, 16);
    for (std::int64_t i = 0; i < n; ++i) out[i] = a[i] * number<float>(launch, 24);
  } else if (launch.name == "sample_add") {
    auto a = pointer<float>(launch, 0), b = pointer<float>(launch, 8);
    auto out = pointer<float>(launch, 16);
    auto n = number<std::int32_t>(launch, 24);
    for (std::int32_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
  }
}

}  // namespace

#define NEED(condition, code) \
  if (!(condition)) return code
#define NEED_DEVICE NEED(current >= 0, kInvalidContext)

// --- what tests set and look at ---

EXPORT void shim_reset(int devices, const char* new_arch, std::size_t memory) {
  device_count = devices, arch = new_arch, total_memory = memory;
  failing.clear(), log.clear(), shared_limit = 0;
}
EXPORT void shim_fail(const char* kernel) { failing = kernel; }
EXPORT int shim_launches() { return static_cast<int>(log.size()); }
EXPORT const char* shim_launch(int index, std::uint32_t* sizes, const char** kernargs, int* bytes) {
  const Launch& launch = log[index];
  std::memcpy(sizes, launch.grid, 12);
  std::memcpy(sizes + 3, launch.block, 12);
  sizes[6] = launch.shared;
  *kernargs = launch.kernargs.data(), *bytes = static_cast<int>(launch.kernargs.size());
  return launch.name.c_str();
}
EXPORT int shim_live() {
  return static_cast<int>(allocations.size() + pinned.size() + streams.size() + events.size() +
                          modules.size() + graphs.size() + executables.size() + contexts);
}
EXPORT int shim_shared_limit() { return shared_limit; }

// --- devices ---

EXPORT int NAME(hipInit, cuInit)(unsigned flags) {
  NEED(flags == 0, kInvalidValue);
  return device_count ? 0 : kNoDevice;
}
EXPORT int NAME(hipGetDeviceCount, cuDeviceGetCount)(int* count) {
  *count = device_count;
  return device_count ? 0 : kNoDevice;
}
EXPORT int NAME(hipDeviceGet, cuDeviceGet)(int* device, int index) {
  NEED(index >= 0 && index < device_count, kInvalidValue);
  *device = index;
  return 0;
}
EXPORT int NAME(hipDeviceGetName, cuDeviceGetName)(char* name, int size, int device) {
  NEED(size > 20 && device < device_count, kInvalidValue);
  std::strcpy(name, "Shim gfx950 GPU");
  return 0;
}
EXPORT int NAME(hipDeviceTotalMem, cuDeviceTotalMem_v2)(std::size_t* bytes, int device) {
  NEED(device < device_count, kInvalidValue);
  *bytes = total_memory;
  return 0;
}
EXPORT int NAME(hipMemGetInfo, cuMemGetInfo_v2)(std::size_t* free, std::size_t* total) {
  NEED_DEVICE;
  *free = total_memory - in_use(), *total = total_memory;
  return 0;
}

#ifdef CUDA
EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
  NEED(device < device_count, kInvalidValue);
  *context = reinterpret_cast<void*>(static_cast<std::intptr_t>(0x7000 + device));
  ++contexts;
  return 0;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) {
  --contexts;
  return 0;
}
EXPORT int cuCtxSetCurrent(void* context) {
  current = static_cast<int>(reinterpret_cast<std::intptr_t>(context) - 0x7000);
  return current >= 0 && current < device_count ? 0 : kInvalidContext;
}
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
  NEED(device < device_count, kInvalidValue);
  std::map<int, int> known = {{75, arch[3] - '0'}, {76, arch[4] - '0'}, {97, 227 << 10}};
  NEED(known.count(attribute), kInvalidValue);
  *value = known[attribute];
  return 0;
}
EXPORT int cuFuncSetAttribute(void* function, int attribute, int value) {
  NEED(function && attribute == 8, kInvalidValue);
  shared_limit = value;
  return 0;
}
EXPORT int cuGetErrorName(int code, const char** name) {
  *name = code == kOutOfMemory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_SHIM";
  return code < 1000 ? 0 : kInvalidValue;
}
#else
EXPORT int hipSetDevice(int device) {
  NEED(device < device_count, kInvalidValue);
  current = device;
  return 0;
}
#ifdef OLD_PROPERTIES
EXPORT int hipGetDeviceProperties(char* properties, int device) {
  const int size = 792, offset = 640;
#else
EXPORT int hipGetDevicePropertiesR0600(char* properties, int device) {
  const int size = 1472, offset = 1160;
#endif
  NEED(device < device_count, kInvalidValue);
  std::memset(properties, 0, size);
  std::strcpy(properties, "Shim gfx950 GPU");
  std::strcpy(properties + offset, arch.c_str());
  return 0;
}
EXPORT const char* hipGetErrorName(int code) {
  return code == kOutOfMemory ? "hipErrorOutOfMemory" : "hipErrorShim";
}
#endif

// --- memory ---

EXPORT int NAME(hipMalloc, cuMemAlloc_v2)(char** address, std::size_t size) {
  NEED_DEVICE;
  NEED(size > 0, kInvalidValue);
  NEED(in_use() + size <= total_memory, kOutOfMemory);
  *address = static_cast<char*>(std::aligned_alloc(256, (size + 255) / 256 * 256));
  std::memset(*address, 0xFF, size);
  allocations[*address] = size;
  return 0;
}
EXPORT int NAME(hipFree, cuMemFree_v2)(char* address) {
  NEED_DEVICE;
  NEED(allocations.erase(address), kInvalidValue);
  std::free(address);
  return 0;
}
EXPORT int NAME(hipHostMalloc, cuMemHostAlloc)(char** address, std::size_t size, unsigned flags) {
  NEED_DEVICE;
  NEED(size > 0 && flags == 0, kInvalidValue);
  *address = static_cast<char*>(std::malloc(size));
  pinned[*address] = size;
  return 0;
}
EXPORT int NAME(hipHostFree, cuMemFreeHost)(char* address) {
  NEED(pinned.erase(address), kInvalidValue);
  std::free(address);
  return 0;
}
EXPORT int NAME(hipMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2)(void* to, const void* from,
                                                          std::size_t size, void* stream) {
  NEED_DEVICE;
  NEED(on_device(to, size) && streams.count(stream) && !capture, kInvalidValue);
  std::memcpy(to, from, size);
  return 0;
}
EXPORT int NAME(hipMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2)(void* to, const void* from,
                                                          std::size_t size, void* stream) {
  NEED_DEVICE;
  NEED(on_device(from, size) && streams.count(stream) && !capture, kInvalidValue);
  std::memcpy(to, from, size);
  return 0;
}
EXPORT int NAME(hipMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2)(void* to, const void* from,
                                                          std::size_t size, void* stream) {
  NEED_DEVICE;
  NEED(on_device(to, size) && on_device(from, size) && streams.count(stream), kInvalidValue);
  std::memmove(to, from, size);
  return 0;
}
EXPORT int NAME(hipMemsetD8Async, cuMemsetD8Async)(void* to, unsigned char byte, std::size_t size,
                                                   void* stream) {
  NEED_DEVICE;
  NEED(on_device(to, size) && streams.count(stream), kInvalidValue);
  std::memset(to, byte, size);
  return 0;
}

// --- code ---

EXPORT int NAME(hipModuleLoadData, cuModuleLoadData)(void** module, const char* image) {
  NEED_DEVICE;
  NEED(std::memcmp(image, "\x7f" "ELF", 4) == 0, kInvalidImage);
  *module = new_handle(modules);
  return 0;
}
EXPORT int NAME(hipModuleUnload, cuModuleUnload)(void* module) {
  NEED(modules.erase(module), kInvalidValue);
  return 0;
}
EXPORT int NAME(hipModuleGetFunction, cuModuleGetFunction)(void** function, void* module,
                                                           const char* name) {
  NEED(modules.count(module), kInvalidValue);
  NEED(std::strncmp(name, "sample_", 7) == 0, kNotFound);
  auto& found = functions[name];
  if (!found) found = &handles[next_handle++];
  *function = found;
  return 0;
}
EXPORT int NAME(hipModuleLaunchKernel, cuLaunchKernel)(void* function, unsigned gx, unsigned gy,
                                                       unsigned gz, unsigned bx, unsigned by,
                                                       unsigned bz, unsigned shared, void* stream,
                                                       void** params, void** extra) {
  NEED_DEVICE;
  NEED(streams.count(stream) && !params && extra, kInvalidValue);
  NEED(gx && gy && gz && bx && by && bz && bx * by * bz <= 1024, kInvalidValue);
  auto tag = [&](int index) { return reinterpret_cast<std::intptr_t>(extra[index]); };
  NEED(tag(0) == 1 && tag(2) == 2 && tag(4) == EXTRA_END, kInvalidValue);
  auto begin = static_cast<const char*>(extra[1]);
  Launch launch{"", {gx, gy, gz}, {bx, by, bz}, shared, {}};
  launch.kernargs.assign(begin, begin + *static_cast<std::size_t*>(extra[3]));
  for (auto& each : functions)
    if (each.second == function) launch.name = each.first;
  NEED(!launch.name.empty(), kInvalidValue);
  NEED(launch.name != failing, kLaunchFailed);
  if (capture)
    capture->push_back(launch);
  else
    execute(launch);
  return 0;
}

// --- streams, graphs and events ---

EXPORT int NAME(hipStreamCreateWithFlags, cuStreamCreate)(void** stream, unsigned flags) {
  NEED_DEVICE;
  NEED(flags == 1, kInvalidValue);
  *stream = new_handle(streams);
  return 0;
}
EXPORT int NAME(hipStreamDestroy, cuStreamDestroy_v2)(void* stream) {
  NEED(streams.erase(stream), kInvalidValue);
  return 0;
}
EXPORT int NAME(hipStreamSynchronize, cuStreamSynchronize)(void* stream) {
  NEED(streams.count(stream) && !capture, kInvalidValue);
  return 0;
}
EXPORT int NAME(hipStreamBeginCapture, cuStreamBeginCapture_v2)(void* stream, int mode) {
  NEED(streams.count(stream) && !capture && mode == 1, kInvalidValue);
  capture = new std::vector<Launch>;
  return 0;
}
EXPORT int NAME(hipStreamEndCapture, cuStreamEndCapture)(void* stream, void** graph) {
  NEED(streams.count(stream) && capture, kInvalidValue);
  *graph = new_handle(graphs);
  captured[*graph] = *capture;
  delete capture;
  capture = nullptr;
  return 0;
}
EXPORT int NAME(hipGraphInstantiateWithFlags, cuGraphInstantiateWithFlags)(
    void** executable, void* graph, unsigned long long flags) {
  NEED(graphs.count(graph) && flags == 0, kInvalidValue);
  *executable = new_handle(executables);
  captured[*executable] = captured[graph];
  return 0;
}
EXPORT int NAME(hipGraphDestroy, cuGraphDestroy)(void* graph) {
  NEED(graphs.erase(graph), kInvalidValue);
  return 0;
}
EXPORT int NAME(hipGraphExecDestroy, cuGraphExecDestroy)(void* executable) {
  NEED(executables.erase(executable), kInvalidValue);
  return 0;
}
EXPORT int NAME(hipGraphLaunch, cuGraphLaunch)(void* executable, void* stream) {
  NEED_DEVICE;
  NEED(executables.count(executable) && streams.count(stream), kInvalidValue);
  for (auto& launch : captured[executable]) execute(launch);
  return 0;
}
EXPORT int NAME(hipEventCreateWithFlags, cuEventCreate)(void** event, unsigned flags) {
  NEED_DEVICE;
  NEED(flags == 0, kInvalidValue);
  *event = new_handle(events);
  return 0;
}
EXPORT int NAME(hipEventDestroy, cuEventDestroy_v2)(void* event) {
  NEED(events.erase(event), kInvalidValue);
  return 0;
}
EXPORT int NAME(hipEventRecord, cuEventRecord)(void* event, void* stream) {
  NEED(events.count(event) && streams.count(stream), kInvalidValue);
  return 0;
}
EXPORT int NAME(hipEventSynchronize, cuEventSynchronize)(void* event) {
  NEED(events.count(event), kInvalidValue);
  return 0;
}
EXPORT int NAME(hipEventElapsedTime, cuEventElapsedTime)(float* milliseconds, void* begin,
                                                         void* end) {
  NEED(events.count(begin) && events.count(end), kInvalidValue);
  *milliseconds = 0.25f;
  return 0;
}
