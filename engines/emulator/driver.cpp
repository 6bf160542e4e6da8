// driver.cpp - a CUDA driver for machines without a GPU: device memory is host memory, kernels are
// the sources of engines/kernels compiled by g++ beside this file. It answers what
// condinst_infer.cuda.driver asks, and tests see what a real driver hides: writes outside an
// allocation, barriers that not all threads reach, reads of memory nobody wrote (poison).

#include <link.h>
#include <ucontext.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "cuda_on_cpu.h"

Index3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr size_t kGuard = 4096;  // bytes on both sides of every allocation
constexpr int kPoison = 0xCD;
constexpr int kSharedPoison[] = {0xCD, 0x7F, 0x5A};  // by schedule: negative, huge, positive
enum Status {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotFound = 500,
  kLaunchFailed = 719
};

enum State { kReady, kAtBlockBarrier, kAtWarp, kDone };
struct Fibre {
  ucontext_t context;
  State state;
  uint32_t value;        // given to warp_exchange
  const uint32_t* seen;  // what all lanes gave
  std::unique_ptr<char[]> stack;
};

std::vector<Fibre> fibres;
std::vector<uint32_t> warp_values;  // of all lanes, as they were when the last one arrived
ucontext_t scheduler;
int current;
const Work* work;
int schedule;         // 0 ascending, 1 descending, 2 shuffled
std::string failure;  // why a launch failed; the first one
std::mt19937 shuffler;
std::recursive_mutex driver_lock;

void run_fibre() {
  (*work)();
  fibres[current].state = kDone;
  swapcontext(&fibres[current].context, &scheduler);
}

void pause(State state) {
  Fibre& fibre = fibres[current];
  fibre.state = state;
  swapcontext(&fibre.context, &scheduler);
}

std::vector<int> order_of(int count) {
  std::vector<int> order(count);
  for (int i = 0; i < count; i++) order[i] = schedule == 1 ? count - 1 - i : i;
  if (schedule == 2) std::shuffle(order.begin(), order.end(), shuffler);
  return order;
}

void run_ready(int first, int count) {
  for (int i : order_of(count)) {
    Fibre& fibre = fibres[first + i];
    if (fibre.state != kReady) continue;
    current = first + i;
    threadIdx = {static_cast<unsigned>(current), 0, 0};
    swapcontext(&scheduler, &fibre.context);
  }
}

// Runs a warp as far as it comes without the others: to a barrier of the block or to the end.
void run_warp(int first, int count) {
  for (;;) {
    run_ready(first, count);
    for (int i = first; i < first + count; i++)
      if (fibres[i].state != kAtWarp) return;  // if others wait for this lane, nobody comes further
    for (int i = first; i < first + count; i++) warp_values[i] = fibres[i].value;
    for (int i = first; i < first + count; i++) {
      fibres[i].seen = &warp_values[first];
      fibres[i].state = kReady;
    }
  }
}

// Shared memory is all that is thread_local in this library.
void poison_shared_memory() {
  auto visit = [](dl_phdr_info* library, size_t, void*) {
    if (!strstr(library->dlpi_name, "libcuda.so.1") || !library->dlpi_tls_data) return 0;
    for (int i = 0; i < library->dlpi_phnum; i++)
      if (library->dlpi_phdr[i].p_type == PT_TLS)
        memset(library->dlpi_tls_data, kSharedPoison[schedule], library->dlpi_phdr[i].p_memsz);
    return 1;
  };
  dl_iterate_phdr(visit, nullptr);
}

bool run_block(int threads) {
  poison_shared_memory();
  for (int i = 0; i < threads; i++) {
    Fibre& fibre = fibres[i];
    if (!fibre.stack) fibre.stack.reset(new char[kStack]);
    getcontext(&fibre.context);
    fibre.context.uc_stack = {fibre.stack.get(), 0, kStack};
    fibre.context.uc_link = nullptr;
    fibre.state = kReady;
    makecontext(&fibre.context, run_fibre, 0);
  }
  for (;;) {
    for (int warp : order_of((threads + 31) / 32))
      run_warp(32 * warp, std::min(32, threads - 32 * warp));
    int waiting = 0, done = 0;
    for (int i = 0; i < threads; i++) {
      waiting += fibres[i].state == kAtBlockBarrier;
      done += fibres[i].state == kDone;
    }
    if (done == threads) return true;
    if (waiting != threads) return false;
    for (int i = 0; i < threads; i++) fibres[i].state = kReady;
  }
}

struct Kernel {
  std::string name;
  Work (*bind)(void**);
};
std::vector<Kernel>& kernels() {
  static std::vector<Kernel> all;
  return all;
}

Status launch(const std::string& name, const Work& bound, Index3 grid, int threads) {
  std::lock_guard guard(driver_lock);
  work = &bound;
  gridDim = grid;
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  if (fibres.size() < static_cast<size_t>(threads)) fibres.resize(threads);
  warp_values.assign(threads + 32, 0);
  shuffler.seed(7);
  long blocks = static_cast<long>(grid.x) * grid.y * grid.z;
  for (long n = 0; n < blocks; n++) {
    long block = schedule == 1 ? blocks - 1 - n : n;
    blockIdx.x = block % grid.x;
    blockIdx.y = block / grid.x % grid.y;
    blockIdx.z = block / grid.x / grid.y;
    if (!run_block(threads)) {
      if (failure.empty()) failure = name + ": some threads wait for others that never come";
      return kLaunchFailed;
    }
  }
  return kSuccess;
}

std::map<uintptr_t, size_t> allocations;

bool intact(uintptr_t address, size_t size) {
  const unsigned char* data = reinterpret_cast<unsigned char*>(address);
  for (size_t i = 0; i < kGuard; i++)
    if (data[-1 - static_cast<long>(i)] != kPoison || data[size + i] != kPoison) return false;
  return true;
}

struct Stream {
  bool capturing = false;
  std::vector<std::function<Status()>> captured;
};
using Graph = std::vector<std::function<Status()>>;
struct Event {
  std::chrono::steady_clock::time_point at;
};
struct Module {
  std::string ptx;
};

Status enqueue(void* handle, std::function<Status()> operation) {
  auto* stream = static_cast<Stream*>(handle);
  bool is_default = reinterpret_cast<uintptr_t>(handle) <= 2;
  if (!is_default && stream->capturing) {
    stream->captured.push_back(std::move(operation));
    return kSuccess;
  }
  return operation();
}

}  // namespace

Register::Register(const char* name, Work (*bind)(void**)) { kernels().push_back({name, bind}); }

int lane() { return current % 32; }

void block_barrier() { pause(kAtBlockBarrier); }

const uint32_t* warp_exchange(unsigned mask, uint32_t value) {
  if (mask != 0xffffffffu && failure.empty()) failure = "a warp primitive without the full mask";
  fibres[current].value = value;
  pause(kAtWarp);
  return fibres[current].seen;
}

}  // namespace emulator

using namespace emulator;
#define API extern "C" __attribute__((visibility("default"))) int

// what tests ask
API emulator_schedule(int order) { return schedule = order; }
extern "C" const char* emulator_failure() {
  static std::string text;
  std::lock_guard guard(driver_lock);
  for (auto [address, size] : allocations)
    if (!intact(address, size) && failure.empty()) failure = "a write outside an allocation";
  text = failure;
  failure.clear();
  return text.c_str();
}
API emulator_allocations() { return static_cast<int>(allocations.size()); }

API cuInit(unsigned) { return kSuccess; }
API cuDriverGetVersion(int* version) { return *version = 12020, kSuccess; }
API cuDeviceGet(int* device, int index) {
  return *device = index, index ? kInvalidValue : kSuccess;
}
API cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
API cuDeviceGetName(char* name, int length, int) {
  snprintf(name, length, "no GPU: kernels run on the CPU");
  return kSuccess;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 7 : attribute == 76 ? 5 : 0;  // compute capability, major and minor
  return kSuccess;
}
API cuDevicePrimaryCtxRetain(void** context, int) { return *context = &schedule, kSuccess; }
API cuDevicePrimaryCtxRelease(int) { return kSuccess; }
API cuCtxSetCurrent(void*) { return kSuccess; }
API cuGetErrorName(int status, const char** name) {
  *name = status == kSuccess    ? "CUDA_SUCCESS"
          : status == kNotFound ? "CUDA_ERROR_NOT_FOUND"
                                : "CUDA_ERROR";
  return kSuccess;
}
API cuGetErrorString(int, const char** text) { return *text = "of the CPU emulator", kSuccess; }

API cuModuleLoadData(void** module, const void* image) {
  *module = new Module{static_cast<const char*>(image)};
  return kSuccess;
}
API cuModuleUnload(void* module) { return delete static_cast<Module*>(module), kSuccess; }
API cuModuleGetFunction(void** function, void* module, const char* name) {
  if (static_cast<Module*>(module)->ptx.find(std::string(".entry ") + name + "(") ==
      std::string::npos)
    return kNotFound;
  for (Kernel& kernel : kernels())
    if (kernel.name == name) return *function = &kernel, kSuccess;
  return kNotFound;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** args, void**) {
  if (!gx || !gy || !gz || !bx || by != 1 || bz != 1 || bx > 1024 || gy > 65535 || gz > 65535 ||
      shared)
    return kInvalidValue;
  auto* kernel = static_cast<Kernel*>(function);
  Work bound = kernel->bind(args);
  Index3 grid{gx, gy, gz};
  int threads = static_cast<int>(bx);
  return enqueue(stream, [=] { return launch(kernel->name, bound, grid, threads); });
}

API cuMemAlloc(uintptr_t* address, size_t size) {
  std::lock_guard guard(driver_lock);
  if (!size) return kInvalidValue;
  auto* data = static_cast<char*>(aligned_alloc(256, (size + 2 * kGuard + 255) / 256 * 256));
  if (!data) return kOutOfMemory;
  memset(data, kPoison, size + 2 * kGuard);
  *address = reinterpret_cast<uintptr_t>(data + kGuard);
  allocations[*address] = size;
  return kSuccess;
}
API cuMemFree(uintptr_t address) {
  std::lock_guard guard(driver_lock);
  auto found = allocations.find(address);
  if (found == allocations.end()) return kInvalidValue;
  if (!intact(address, found->second) && failure.empty()) failure = "a write outside an allocation";
  memset(reinterpret_cast<char*>(address), kPoison, found->second);  // later reads show
  allocations.erase(found);
  free(reinterpret_cast<char*>(address) - kGuard);
  return kSuccess;
}
API cuMemAllocHost(void** address, size_t size) {
  return *address = aligned_alloc(256, (size + 255) / 256 * 256),
         *address ? kSuccess : kOutOfMemory;
}
API cuMemFreeHost(void* address) { return free(address), kSuccess; }
static int copied(void* target, const void* source, size_t size, void* stream) {
  return enqueue(stream, [=] { return memcpy(target, source, size), kSuccess; });
}
API cuMemcpyHtoDAsync(uintptr_t target, const void* source, size_t size, void* stream) {
  return copied(reinterpret_cast<void*>(target), source, size, stream);
}
API cuMemcpyDtoHAsync(void* target, uintptr_t source, size_t size, void* stream) {
  return copied(target, reinterpret_cast<void*>(source), size, stream);
}
API cuMemcpyDtoDAsync(uintptr_t target, uintptr_t source, size_t size, void* stream) {
  return copied(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), size, stream);
}
API cuMemsetD8Async(uintptr_t target, unsigned char value, size_t size, void* stream) {
  return enqueue(stream,
                 [=] { return memset(reinterpret_cast<void*>(target), value, size), kSuccess; });
}

API cuStreamCreate(void** stream, unsigned) { return *stream = new Stream, kSuccess; }
API cuStreamDestroy(void* stream) { return delete static_cast<Stream*>(stream), kSuccess; }
API cuStreamSynchronize(void* stream) {
  return static_cast<Stream*>(stream)->capturing ? kInvalidValue : kSuccess;
}
API cuStreamBeginCapture(void* handle, int) {
  auto* stream = static_cast<Stream*>(handle);
  stream->capturing = true;
  stream->captured.clear();
  return kSuccess;
}
API cuStreamEndCapture(void* handle, void** graph) {
  auto* stream = static_cast<Stream*>(handle);
  stream->capturing = false;
  *graph = new Graph(std::move(stream->captured));
  return kSuccess;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  return *executable = new Graph(*static_cast<Graph*>(graph)), kSuccess;
}
API cuGraphLaunch(void* executable, void*) {
  for (auto& operation : *static_cast<Graph*>(executable))
    if (Status status = operation()) return status;
  return kSuccess;
}
API cuGraphExecDestroy(void* executable) {
  return delete static_cast<Graph*>(executable), kSuccess;
}
API cuGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), kSuccess; }

API cuEventCreate(void** event, unsigned) { return *event = new Event, kSuccess; }
API cuEventDestroy(void* event) { return delete static_cast<Event*>(event), kSuccess; }
API cuEventRecord(void* event, void* stream) {
  return enqueue(stream, [=] {
    return static_cast<Event*>(event)->at = std::chrono::steady_clock::now(), kSuccess;
  });
}
API cuStreamWaitEvent(void*, void*, unsigned) { return kSuccess; }
API cuEventSynchronize(void*) { return kSuccess; }
API cuEventElapsedTime(float* ms, void* start, void* end) {
  auto elapsed = static_cast<Event*>(end)->at - static_cast<Event*>(start)->at;
  *ms = std::chrono::duration<float, std::milli>(elapsed).count();
  return kSuccess;
}

// how the bindings look functions up
API cuGetProcAddress_v2(const char* name, void** address, int, uint64_t, int* found) {
  // clang-format off
#define ENTRY(f) {#f, reinterpret_cast<void*>(&f)}
  static const std::map<std::string, void*> functions = {
      ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetCount),
      ENTRY(cuDeviceGetName), ENTRY(cuDeviceGetAttribute), ENTRY(cuDevicePrimaryCtxRetain),
      ENTRY(cuDevicePrimaryCtxRelease), ENTRY(cuCtxSetCurrent), ENTRY(cuGetErrorName),
      ENTRY(cuGetErrorString), ENTRY(cuModuleLoadData), ENTRY(cuModuleUnload),
      ENTRY(cuModuleGetFunction), ENTRY(cuLaunchKernel), ENTRY(cuMemAlloc), ENTRY(cuMemFree),
      ENTRY(cuMemAllocHost), ENTRY(cuMemFreeHost), ENTRY(cuMemcpyHtoDAsync),
      ENTRY(cuMemcpyDtoHAsync), ENTRY(cuMemcpyDtoDAsync), ENTRY(cuMemsetD8Async),
      ENTRY(cuStreamCreate), ENTRY(cuStreamDestroy), ENTRY(cuStreamSynchronize),
      ENTRY(cuStreamBeginCapture), ENTRY(cuStreamEndCapture), ENTRY(cuGraphInstantiateWithFlags),
      ENTRY(cuGraphLaunch), ENTRY(cuGraphExecDestroy), ENTRY(cuGraphDestroy), ENTRY(cuEventCreate),
      ENTRY(cuEventDestroy), ENTRY(cuEventRecord), ENTRY(cuEventSynchronize),
      ENTRY(cuEventElapsedTime), ENTRY(cuStreamWaitEvent)};
  // clang-format on
  auto function = functions.find(name);
  *address = function == functions.end() ? nullptr : function->second;
  if (found) *found = *address ? 0 : 1;
  return *address ? kSuccess : kNotFound;
}
