// driver.cpp - a CUDA driver for machines without a GPU: device memory is host memory, kernels are
// the sources of engines/kernels compiled by g++ beside this file. It answers what
// condinst_infer.cuda.driver asks, and tests see what a real driver hides: writes outside an
// allocation, barriers that not all threads reach, reads of memory nobody wrote (poison), objects
// that are never freed, calls without a current context. It fails where tests want (faults.h).

#include <link.h>
#include <pthread.h>
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
#include <utility>
#include <vector>

#include "cuda_on_cpu.h"
#include "faults.h"

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
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kInvalidPtx = 218,
  kNotFound = 500,
  kLaunchFailed = 719,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901
};
const std::map<int, const char*> kNames = {{0, "CUDA_SUCCESS"},
                                           {1, "CUDA_ERROR_INVALID_VALUE"},
                                           {2, "CUDA_ERROR_OUT_OF_MEMORY"},
                                           {100, "CUDA_ERROR_NO_DEVICE"},
                                           {101, "CUDA_ERROR_INVALID_DEVICE"},
                                           {201, "CUDA_ERROR_INVALID_CONTEXT"},
                                           {218, "CUDA_ERROR_INVALID_PTX"},
                                           {500, "CUDA_ERROR_NOT_FOUND"},
                                           {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                                           {719, "CUDA_ERROR_LAUNCH_FAILED"},
                                           {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
                                           {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};

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

constexpr int kMostDevices = 4;
int devices = 1;
int primary_contexts[kMostDevices];           // their addresses are the contexts
std::map<pthread_t, void*> current_contexts;  // of each thread
std::map<std::string, int> live;              // objects that were made and not freed, by kind

int device_of(void* context) {
  return static_cast<int>(static_cast<int*>(context) - primary_contexts);
}

struct Memory {
  size_t size;
  int device;
};
std::map<uintptr_t, Memory> allocations;
std::map<uintptr_t, Memory> pinned;  // memory of the host

// The piece of `from` that holds `address`; null if there is none.
const Memory* piece_at(const std::map<uintptr_t, Memory>& from, uintptr_t address) {
  auto after = from.upper_bound(address);
  if (after == from.begin()) return nullptr;
  auto [start, memory] = *std::prev(after);
  return address < start + memory.size ? &std::prev(after)->second : nullptr;
}

bool intact(uintptr_t address, size_t size) {
  const unsigned char* data = reinterpret_cast<unsigned char*>(address);
  for (size_t i = 0; i < kGuard; i++)
    if (data[-1 - static_cast<long>(i)] != kPoison || data[size + i] != kPoison) return false;
  return true;
}

struct Stream {
  bool capturing = false, invalidated = false;
  pthread_t by = 0;  // the thread that captures
  std::vector<std::function<Status()>> captured;
};
using Graph = std::vector<std::function<Status()>>;
struct Event {
  std::chrono::steady_clock::time_point at;
};
struct Module {
  std::string ptx;
};

std::vector<Stream*> captures;  // going on

template <class T, class... A>
T* create(const char* kind, A&&... values) {
  std::lock_guard guard(driver_lock);
  live[kind]++;
  return new T{std::forward<A>(values)...};
}

template <class T>
Status destroy(const char* kind, void* object) {
  std::lock_guard guard(driver_lock);
  live[kind]--;
  return delete static_cast<T*>(object), kSuccess;
}

// What a thread may not do while it captures; the capture is lost then.
Status refuse_in_capture() {
  Status status = kSuccess;
  for (Stream* stream : captures)
    if (pthread_equal(stream->by, pthread_self()))
      stream->invalidated = true, status = kCaptureUnsupported;
  return status;
}

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
  for (auto& [address, memory] : allocations)
    if (!intact(address, memory.size) && failure.empty()) failure = "a write outside an allocation";
  text = failure;
  failure.clear();
  return text.c_str();
}
API emulator_allocations() { return static_cast<int>(allocations.size()); }
API emulator_devices(int number) { return devices = std::min(number, kMostDevices); }
static Faults faults(getenv("EMULATED_CUDA_FAULT"));
API emulator_fault(const char* rules) { return faults.set(rules), kSuccess; }
API emulator_fired() { return faults.fired; }
extern "C" const char* emulator_live() {
  static std::string text;
  std::lock_guard guard(driver_lock);
  text.clear();
  for (auto& [kind, number] : live)
    if (number) text += kind + "=" + std::to_string(number) + ";";
  return text.c_str();
}

API cuInit(unsigned) { return kSuccess; }
API cuDriverGetVersion(int* version) { return *version = 12020, kSuccess; }
API cuDeviceGet(int* device, int index) {
  return *device = index, index < devices ? kSuccess : kInvalidDevice;
}
API cuDeviceGetCount(int* count) { return *count = devices, kSuccess; }
API cuDeviceGetName(char* name, int length, int) {
  snprintf(name, length, "no GPU: kernels run on the CPU");
  return kSuccess;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 7 : attribute == 76 ? 5 : 0;  // compute capability, major and minor
  return kSuccess;
}
API cuDevicePrimaryCtxRetain(void** context, int device) {
  return *context = &primary_contexts[device], kSuccess;
}
API cuDevicePrimaryCtxRelease(int) { return kSuccess; }
API cuCtxSetCurrent(void* context) {
  std::lock_guard guard(driver_lock);
  return current_contexts[pthread_self()] = context, kSuccess;
}
API cuCtxGetCurrent(void** context) {
  std::lock_guard guard(driver_lock);
  return *context = current_contexts[pthread_self()], kSuccess;
}
API cuPointerGetAttribute(void* value, int attribute, uintptr_t address) {
  std::lock_guard guard(driver_lock);
  const Memory* on_device = piece_at(allocations, address);
  const Memory* memory = on_device ? on_device : piece_at(pinned, address);
  if (!memory) return kInvalidValue;
  constexpr int kMemoryType = 2, kHost = 1, kDevice = 2, kDeviceOrdinal = 9;
  if (attribute == kMemoryType)
    return *static_cast<unsigned*>(value) = on_device ? kDevice : kHost, kSuccess;
  if (attribute == kDeviceOrdinal) return *static_cast<int*>(value) = memory->device, kSuccess;
  return kInvalidValue;
}
API cuGetErrorName(int status, const char** name) {
  auto known = kNames.find(status);
  *name = known == kNames.end() ? "CUDA_ERROR_UNKNOWN" : known->second;
  return kSuccess;
}
API cuGetErrorString(int, const char** text) { return *text = "of the CPU emulator", kSuccess; }

API cuModuleLoadDataEx(void** module, const void* image, unsigned number, int* options,
                       void** values) {
  auto* text = static_cast<const char*>(image);
  if (strstr(text, ".version")) return *module = create<Module>("module", text), kSuccess;
  constexpr int kErrorLog = 5;  // its size is the option after it
  for (unsigned i = 0; i + 1 < number; i++)
    if (options[i] == kErrorLog)
      snprintf(static_cast<char*>(values[i]), reinterpret_cast<uintptr_t>(values[i + 1]),
               "ptxas fatal : Missing .version directive\nat the start of the file");
  return kInvalidPtx;
}
API cuModuleUnload(void* module) { return destroy<Module>("module", module); }
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
  if (Status status = refuse_in_capture()) return status;
  if (!size) return kInvalidValue;
  auto* data = static_cast<char*>(aligned_alloc(256, (size + 2 * kGuard + 255) / 256 * 256));
  if (!data) return kOutOfMemory;
  memset(data, kPoison, size + 2 * kGuard);
  *address = reinterpret_cast<uintptr_t>(data + kGuard);
  allocations[*address] = {size, device_of(current_contexts[pthread_self()])};
  return kSuccess;
}
API cuMemFree(uintptr_t address) {
  std::lock_guard guard(driver_lock);
  if (Status status = refuse_in_capture()) return status;
  auto found = allocations.find(address);
  if (found == allocations.end()) return kInvalidValue;
  if (!intact(address, found->second.size) && failure.empty())
    failure = "a write outside an allocation";
  memset(reinterpret_cast<char*>(address), kPoison, found->second.size);  // later reads show
  allocations.erase(found);
  free(reinterpret_cast<char*>(address) - kGuard);
  return kSuccess;
}
API cuMemAllocHost(void** address, size_t size) {
  std::lock_guard guard(driver_lock);
  if (Status status = refuse_in_capture()) return status;
  *address = aligned_alloc(256, (size + 255) / 256 * 256);
  if (!*address) return kOutOfMemory;
  pinned[reinterpret_cast<uintptr_t>(*address)] = {size,
                                                   device_of(current_contexts[pthread_self()])};
  live["pinned memory"]++;
  return kSuccess;
}
API cuMemFreeHost(void* address) {
  std::lock_guard guard(driver_lock);
  if (Status status = refuse_in_capture()) return status;
  if (!pinned.erase(reinterpret_cast<uintptr_t>(address))) return kInvalidValue;
  live["pinned memory"]--;
  return free(address), kSuccess;
}
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

API cuStreamCreate(void** stream, unsigned) { return *stream = create<Stream>("stream"), kSuccess; }
API cuStreamDestroy(void* stream) {
  std::erase(captures, static_cast<Stream*>(stream));
  return destroy<Stream>("stream", stream);
}
API cuStreamSynchronize(void* stream) {
  if (!static_cast<Stream*>(stream)->capturing) return kSuccess;
  return static_cast<Stream*>(stream)->invalidated = true, kCaptureUnsupported;
}
API cuStreamBeginCapture(void* handle, int) {
  std::lock_guard guard(driver_lock);
  auto* stream = static_cast<Stream*>(handle);
  if (stream->capturing) return kInvalidValue;
  stream->capturing = true;
  stream->invalidated = false;
  stream->by = pthread_self();
  stream->captured.clear();
  captures.push_back(stream);
  return kSuccess;
}
API cuStreamEndCapture(void* handle, void** graph) {
  std::lock_guard guard(driver_lock);
  auto* stream = static_cast<Stream*>(handle);
  *graph = nullptr;
  if (!stream->capturing) return kInvalidValue;
  stream->capturing = false;
  std::erase(captures, stream);
  if (stream->invalidated) return kCaptureInvalidated;
  *graph = create<Graph>("graph", std::move(stream->captured));
  return kSuccess;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
  return *executable = create<Graph>("executable graph", *static_cast<Graph*>(graph)), kSuccess;
}
API cuGraphLaunch(void* executable, void*) {
  for (auto& operation : *static_cast<Graph*>(executable))
    if (Status status = operation()) return status;
  return kSuccess;
}
API cuGraphExecDestroy(void* executable) { return destroy<Graph>("executable graph", executable); }
API cuGraphDestroy(void* graph) { return destroy<Graph>("graph", graph); }

API cuEventCreate(void** event, unsigned) { return *event = create<Event>("event"), kSuccess; }
API cuEventDestroy(void* event) { return destroy<Event>("event", event); }
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

// Every function as the bindings get it: it may fail on demand, and those that need a GPU want a
// current context.
static const char* const kWithoutContext[] = {
    "cuInit",          "cuDriverGetVersion",        "cuDeviceGet",
    "cuDeviceGetName", "cuDeviceGetCount",          "cuDeviceGetAttribute",
    "cuCtxSetCurrent", "cuDevicePrimaryCtxRetain",  "cuCtxGetCurrent",
    "cuGetErrorName",  "cuDevicePrimaryCtxRelease", "cuGetErrorString"};

static bool gives_back(const std::string& call) {
  for (const char* word : {"Free", "Destroy", "Unload", "EndCapture"})
    if (call.find(word) != std::string::npos) return true;
  return false;
}

template <Text name, auto function>
struct Entry;
template <Text name, class... Args, int (*function)(Args...)>
struct Entry<name, function> {
  static int call(Args... args) {
    const std::string called = name.text;
    bool anywhere = std::find(std::begin(kWithoutContext), std::end(kWithoutContext), called) !=
                    std::end(kWithoutContext);
    if (!anywhere) {
      std::lock_guard guard(driver_lock);
      if (int status = faults.status_of(called, detail(args...))) {
        for (Stream* stream : captures)
          if (pthread_equal(stream->by, pthread_self())) stream->invalidated = true;
        // what gives something back has done so, whatever went wrong before
        if (gives_back(called)) function(args...);
        return status;
      }
      if (!current_contexts[pthread_self()]) return kInvalidContext;
    }
    return function(args...);
  }
  static std::string detail(auto first, auto...) {
    if constexpr (std::string_view(name.text) == "cuLaunchKernel")
      return static_cast<Kernel*>(first)->name;
    return "";
  }
};

// how the bindings look functions up
API cuGetProcAddress_v2(const char* name, void** address, int, uint64_t, int* found) {
  // clang-format off
#define ENTRY(f) {#f, reinterpret_cast<void*>(&Entry<#f, &f>::call)}
  static const std::map<std::string, void*> functions = {
      ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetCount),
      ENTRY(cuDeviceGetName), ENTRY(cuDeviceGetAttribute), ENTRY(cuDevicePrimaryCtxRetain),
      ENTRY(cuDevicePrimaryCtxRelease), ENTRY(cuCtxSetCurrent), ENTRY(cuCtxGetCurrent),
      ENTRY(cuPointerGetAttribute), ENTRY(cuGetErrorName),
      ENTRY(cuGetErrorString), ENTRY(cuModuleLoadDataEx), ENTRY(cuModuleUnload),
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
