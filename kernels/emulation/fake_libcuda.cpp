// libcuda.so.1 for machines without a GPU: the driver calls that kernels/src/cuda makes, over host memory and the
// emulated kernels. What it does not have, the probe of kernels/src/cuda reports as a missing function.
//
// Device memory is filled with 0xff when it is allocated and lies between pages that fault. Copies and fills must lie in
// one allocation, addresses given to kernels in some allocation. Streams are queues: by EMU_SEED they run at once, as
// late as they may, or interleaved at random, so that a missing event or wait shows. A violation aborts and says why.
//
// EMU_SEED: schedule of threads (seed % 8) and of streams (seed % 4: 0 at once, 1 late, 2 and 3 random).
// EMU_LOST: the launch of a graph, counted from 1, that touches an address that is not there: the device is lost to the
// process, as it is to the driver's. EMU_LOST_CODE: with this error (700).
// EMU_MEMORY_BYTES: the device's memory (1 GiB). EMU_CAPABILITY: as 90. EMU_DRIVER: as 13000. EMU_DEVICES: 0 or 1.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "scheduler.h"

#if defined(SHIM_ASAN)
extern "C" void __asan_poison_memory_region(void const volatile*, size_t);
extern "C" void __asan_unpoison_memory_region(void const volatile*, size_t);
#endif

namespace {
typedef int Result;
typedef uint64_t Address;
enum {
  OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
  INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
  CAPTURE_ISOLATION = 905,
};
typedef std::function<void()> Work;
constexpr size_t PAGE = 4096;
constexpr int SHARED_BYTES_MAX = 227 * 1024;

struct Stream;
// A point of a stream: reached once as many items of it have run.
struct Point { std::shared_ptr<Stream> stream; uint64_t after; };
struct Event { Point last; };
struct Item { Work work; Point wait; };
struct Stream {
  std::deque<Item> queue;
  uint64_t given = 0, run = 0;
  bool captures = false, is_running = false;
  std::vector<Work> captured;
};
struct Function { const shim::Kernel* kernel; int shared_bytes_max = 48 * 1024; };
struct Graph { std::vector<Work> work; };
struct Area { size_t bytes, mapped; unsigned char* start; };

std::recursive_mutex lock;
std::map<void*, std::shared_ptr<Stream>> streams;
std::set<Event*> events;
std::map<Address, Area> memory, host_memory;
size_t used_bytes;
// What every call answers once the device is lost.
int lost;
long graph_launches;
thread_local void* context;
thread_local int captures_of_thread;
int the_context;

long setting(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text ? atol(text) : otherwise;
}
size_t total_bytes() { return (size_t)setting("EMU_MEMORY_BYTES", 1l << 30); }
unsigned seed() { return (unsigned)setting("EMU_SEED", 0); }

[[noreturn]] void violation(const char* what) {
  fprintf(stderr, "EMULATION: %s\n", what);
  abort();
}

// ---- memory ----

const Area* area_of(const std::map<Address, Area>& areas, Address p, size_t bytes) {
  auto found = areas.upper_bound(p);
  if (found == areas.begin()) return nullptr;
  --found;
  return p + bytes <= found->first + found->second.bytes ? &found->second : nullptr;
}
void need(Address p, size_t bytes, const char* what) {
  if (!area_of(memory, p, bytes)) {
    fprintf(stderr, "EMULATION: %s: %zu bytes at %llx are not inside one device allocation\n", what, bytes, (unsigned long long)p);
    abort();
  }
}
// Its end is the end of a page (but for what alignment to 256 bytes takes), and the next page faults.
Area map_area(size_t bytes) {
  const size_t aligned = (bytes + 255) / 256 * 256, pages = (aligned + PAGE - 1) / PAGE * PAGE, mapped = pages + 2 * PAGE;
  auto* p = (unsigned char*)mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p + PAGE, pages, PROT_READ | PROT_WRITE)) violation("no host memory left");
  unsigned char* const start = p + PAGE + pages - aligned;
  memset(start, 0xff, aligned);
#if defined(SHIM_ASAN)
  __asan_poison_memory_region(start + bytes, aligned - bytes);
#endif
  return {bytes, mapped, p};
}
Address start_of(const Area& area) {
  const size_t aligned = (area.bytes + 255) / 256 * 256;
  return (Address)(area.start + area.mapped - PAGE - aligned);
}
Result release(std::map<Address, Area>& areas, Address p) {
  auto found = areas.find(p);
  if (found == areas.end()) return INVALID_VALUE;
#if defined(SHIM_ASAN)
  __asan_unpoison_memory_region(found->second.start, found->second.mapped);
#endif
  munmap(found->second.start, found->second.mapped);
  areas.erase(found);
  return OK;
}

struct sigaction rust_action;
void on_fault(int signal, siginfo_t* info, void* machine) {
  if (shim::is_running()) {
    fprintf(stderr, "EMULATION: a kernel touched memory that is not there: %p", info->si_addr);
    shim::say_where();
    abort();
  }
  if (rust_action.sa_flags & SA_SIGINFO) rust_action.sa_sigaction(signal, info, machine);
  else ::signal(signal, SIG_DFL);
}
void watch_faults() {
  static bool is_done;
  if (is_done) return;
  is_done = true;
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &rust_action);
  sigaction(SIGBUS, &action, nullptr);
}
// The handler cannot run on a fiber's stack if that is what overflowed.
void have_signal_stack() {
  static thread_local bool is_done;
  if (is_done) return;
  is_done = true;
  constexpr size_t BYTES = 64 * 1024;
  stack_t stack{};
  stack.ss_sp = mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  stack.ss_size = BYTES;
  sigaltstack(&stack, nullptr);
}

// ---- streams ----

std::shared_ptr<Stream> stream_of(void* handle) {
  auto found = streams.find(handle);
  if (found == streams.end()) violation("a stream that was not made, or is the default stream");
  return found->second;
}
void run_until(const std::shared_ptr<Stream>& stream, uint64_t count);
void run_one(const std::shared_ptr<Stream>& stream) {
  Item item = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (item.wait.stream) run_until(item.wait.stream, item.wait.after);
  if (item.work && !lost) item.work();
  stream->run++;
}
void run_until(const std::shared_ptr<Stream>& stream, uint64_t count) {
  // A stream that waits for itself is in order already.
  if (stream->is_running) return;
  stream->is_running = true;
  while (stream->run < count) run_one(stream);
  stream->is_running = false;
}
void run_all() {
  for (auto& [_, stream] : streams) run_until(stream, stream->given);
}
unsigned chance = 12345;
void run_some() {
  switch (seed() % 4) {
    case 0: run_all(); break;
    case 1: break;
    default:
      for (auto& [_, stream] : streams) {
        chance = chance * 1664525u + 1013904223u + seed();
        run_until(stream, std::min<uint64_t>(stream->given, stream->run + (chance >> 20) % 3));
      }
  }
}
Result give(void* handle, Work work, Point wait = {}) {
  const std::lock_guard<std::recursive_mutex> guard(lock);
  if (lost) return lost;
  auto stream = stream_of(handle);
  if (stream->captures) {
    if (wait.stream) return CAPTURE_ISOLATION;
    stream->captured.push_back(std::move(work));
    return OK;
  }
  stream->queue.push_back({std::move(work), wait});
  stream->given++;
  run_some();
  return OK;
}
void reach(const Point& point) {
  if (point.stream) run_until(point.stream, point.after);
}
bool is_reached(const Point& point) { return !point.stream || point.stream->run >= point.after; }

// Host memory that is not pinned is copied before the call returns, as the driver does.
std::shared_ptr<std::vector<char>> staged(const void* p, size_t bytes) {
  return std::make_shared<std::vector<char>>((const char*)p, (const char*)p + bytes);
}
}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
#define GUARD const std::lock_guard<std::recursive_mutex> guard(lock)
#define NEEDS_CONTEXT if (!context) return INVALID_CONTEXT

// For libraries above the driver (fake_cublaslt.cpp): work in the order of a stream, and whether memory is there.
#define INTERNAL extern "C" __attribute__((visibility("default")))
INTERNAL Result emulation_give(void* stream, void (*work)(void*), void* what) { return give(stream, [=] { work(what); }); }
INTERNAL void emulation_need(Address p, size_t bytes, const char* what) { GUARD; need(p, bytes, what); }

API cuInit(unsigned) {
  GUARD;
  watch_faults();
  return setting("EMU_DEVICES", 1) ? OK : NO_DEVICE;
}
API cuDriverGetVersion(int* version) { *version = (int)setting("EMU_DRIVER", 13000); return OK; }
API cuDeviceGetCount(int* count) { *count = (int)setting("EMU_DEVICES", 1); return OK; }
API cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal ? INVALID_DEVICE : OK; }
API cuDeviceGetName(char* name, int bytes, int) { snprintf(name, (size_t)bytes, "emulation on the CPU"); return OK; }
API cuDeviceGetAttribute(int* value, int attribute, int) {
  const int capability = (int)setting("EMU_CAPABILITY", 90);
  switch (attribute) {
    case 10: *value = 32; break;                // warp
    case 16: *value = 8; break;                 // multiprocessors
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 97: *value = SHARED_BYTES_MAX; break;  // shared memory of a block that asks for it
    default: *value = 1;
  }
  return OK;
}
API cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = total_bytes(); return OK; }
API cuDevicePrimaryCtxRetain(void** out, int) { *out = &the_context; return OK; }
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxGetCurrent(void** out) { *out = context; return OK; }
API cuCtxSetCurrent(void* to) { context = to; have_signal_stack(); return OK; }
API cuCtxSynchronize() {
  GUARD;
  NEEDS_CONTEXT;
  if (captures_of_thread) return CAPTURE_UNSUPPORTED;
  run_all();
  return lost;
}

API cuStreamCreate(void** out, unsigned) {
  GUARD;
  NEEDS_CONTEXT;
  auto stream = std::make_shared<Stream>();
  streams[stream.get()] = stream;
  *out = stream.get();
  return OK;
}
API cuStreamDestroy_v2(void* handle) {
  GUARD;
  auto stream = stream_of(handle);
  run_until(stream, stream->given);
  streams.erase(handle);
  return OK;
}
API cuStreamSynchronize(void* handle) {
  GUARD;
  auto stream = stream_of(handle);
  if (stream->captures) return CAPTURE_UNSUPPORTED;
  run_until(stream, stream->given);
  return lost;
}
API cuStreamWaitEvent(void* handle, void* event, unsigned) {
  GUARD;
  const Point last = ((Event*)event)->last;
  return last.stream ? give(handle, nullptr, last) : lost;
}
API cuEventCreate(void** out, unsigned) {
  GUARD;
  auto* event = new Event;
  events.insert(event);
  *out = event;
  return OK;
}
API cuEventDestroy_v2(void* event) {
  GUARD;
  if (!events.erase((Event*)event)) return INVALID_HANDLE;
  delete (Event*)event;
  return OK;
}
API cuEventRecord(void* event, void* handle) {
  GUARD;
  auto stream = stream_of(handle);
  if (stream->captures) return CAPTURE_UNSUPPORTED;
  ((Event*)event)->last = {stream, stream->given};
  return lost;
}
API cuEventQuery(void* event) {
  GUARD;
  if (!is_reached(((Event*)event)->last)) run_some();
  if (lost) return lost;
  return is_reached(((Event*)event)->last) ? OK : NOT_READY;
}
API cuEventSynchronize(void* event) {
  GUARD;
  reach(((Event*)event)->last);
  return lost;
}
API cuEventElapsedTime_v2(float* ms, void* a, void* b) {
  GUARD;
  if (!is_reached(((Event*)a)->last) || !is_reached(((Event*)b)->last)) return NOT_READY;
  *ms = 0;
  return OK;
}

API cuMemAlloc_v2(Address* out, size_t bytes) {
  GUARD;
  NEEDS_CONTEXT;
  if (captures_of_thread) return CAPTURE_UNSUPPORTED;
  if (!bytes) return INVALID_VALUE;
  if (used_bytes + bytes > total_bytes()) return OUT_OF_MEMORY;
  const Area area = map_area(bytes);
  *out = start_of(area);
  memory[*out] = area;
  used_bytes += bytes;
  return OK;
}
API cuMemFree_v2(Address p) {
  GUARD;
  if (captures_of_thread) return CAPTURE_UNSUPPORTED;
  // As the driver: it waits for what still uses the memory.
  run_all();
  const Area* area = area_of(memory, p, 0);
  const size_t bytes = area ? area->bytes : 0;
  const Result result = release(memory, p);
  if (result == OK) used_bytes -= bytes;
  return result;
}
API cuMemHostAlloc(void** out, size_t bytes, unsigned) {
  GUARD;
  NEEDS_CONTEXT;
  if (lost) return lost;
  const Area area = map_area(bytes);
  *out = (void*)start_of(area);
  host_memory[(Address)*out] = area;
  return OK;
}
API cuMemFreeHost(void* p) { GUARD; return release(host_memory, (Address)p); }
API cuMemGetInfo_v2(size_t* free, size_t* total) {
  GUARD;
  *total = total_bytes();
  *free = *total - used_bytes;
  return OK;
}
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
  GUARD;
  if (area_of(host_memory, (Address)from, bytes))
    return give(stream, [=] { need(to, bytes, "a copy to the device"); memcpy((void*)to, from, bytes); });
  auto staging = staged(from, bytes);
  return give(stream, [=] { need(to, bytes, "a copy to the device"); memcpy((void*)to, staging->data(), bytes); });
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
  GUARD;
  const Result result = give(stream, [=] { need(from, bytes, "a copy from the device"); memcpy(to, (void*)from, bytes); });
  // Into pageable memory the driver's copy has ended when the call returns.
  if (result == OK && !stream_of(stream)->captures && !area_of(host_memory, (Address)to, bytes)) run_until(stream_of(stream), stream_of(stream)->given);
  return result;
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
  return give(stream, [=] {
    need(to, bytes, "a copy on the device");
    need(from, bytes, "a copy on the device");
    memmove((void*)to, (void*)from, bytes);
  });
}
API cuMemsetD8Async(Address to, unsigned char byte, size_t bytes, void* stream) {
  return give(stream, [=] { need(to, bytes, "a fill"); memset((void*)to, byte, bytes); });
}

API cuModuleLoadData(void** out, const void* image) {
  GUARD;
  NEEDS_CONTEXT;
  // A fatbin's magic number: what is loaded must be what the driver would take.
  unsigned magic;
  memcpy(&magic, image, 4);
  if (magic != 0xba55ed50) return 200;
  *out = new int;
  return OK;
}
API cuModuleUnload(void* module) { delete (int*)module; return OK; }
API cuModuleGetFunction(void** out, void*, const char* name) {
  GUARD;
  const shim::Kernel* kernel = shim::find(name);
  if (!kernel) return NOT_FOUND;
  // Handles live as long as the process: nothing counts their users.
  static std::map<const shim::Kernel*, Function> functions;
  *out = &functions.emplace(kernel, Function{kernel}).first->second;
  return OK;
}
API cuFuncLoad(void*) { return OK; }
API cuFuncSetAttribute(void* function, int attribute, int value) {
  GUARD;
  constexpr int MAX_DYNAMIC_SHARED_BYTES = 8;
  if (attribute != MAX_DYNAMIC_SHARED_BYTES) return OK;
  auto* f = (Function*)function;
  if (value < 0 || value + (f->kernel->last - f->kernel->first) > SHARED_BYTES_MAX) return INVALID_VALUE;
  f->shared_bytes_max = value;
  return OK;
}
API cuFuncGetParamInfo(void* function, size_t index, size_t* offset, size_t* bytes) {
  const auto& parameters = ((Function*)function)->kernel->parameters;
  if (index >= parameters.count) return INVALID_VALUE;
  size_t at = 0;
  for (size_t i = 0; i <= index; i++) {
    const auto& parameter = parameters.all[i];
    at = (at + parameter.alignment - 1) / parameter.alignment * parameter.alignment;
    *offset = at, *bytes = parameter.bytes;
    at += parameter.bytes;
  }
  return OK;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes, void* stream, void** arguments, void**) {
  GUARD;
  NEEDS_CONTEXT;
  const auto* f = (Function*)function;
  const shim::Kernel* kernel = f->kernel;
  if (!gx || !gy || !gz || gx > 0x7fffffffu || gy > 65535 || gz > 65535) return INVALID_VALUE;
  if (!bx || !by || !bz || bz > 64 || (uint64_t)bx * by * bz > 1024 || (int)shared_bytes > f->shared_bytes_max) return INVALID_VALUE;
  // By value, as the driver takes them.
  auto values = std::make_shared<std::vector<std::vector<char>>>();
  for (size_t i = 0; i < kernel->parameters.count; i++)
    values->emplace_back((char*)arguments[i], (char*)arguments[i] + kernel->parameters.all[i].bytes);
  return give(stream, [=] {
    std::vector<void*> pointers;
    for (size_t i = 0; i < values->size(); i++) {
      pointers.push_back((*values)[i].data());
      if (!kernel->parameters.all[i].is_pointer) continue;
      Address p;
      memcpy(&p, (*values)[i].data(), 8);
      if (p && !area_of(memory, p, 0)) {
        fprintf(stderr, "EMULATION: kernel %s: argument %zu, %llx, is not device memory\n", kernel->name.c_str(), i, (unsigned long long)p);
        abort();
      }
    }
    shim::choose(seed());
    shim::run(*kernel, dim3(gx, gy, gz), dim3(bx, by, bz), shared_bytes, pointers.data());
  });
}

API cuStreamBeginCapture_v2(void* handle, int) {
  GUARD;
  auto stream = stream_of(handle);
  if (stream->captures) return CAPTURE_UNSUPPORTED;
  stream->captures = true;
  stream->captured.clear();
  captures_of_thread++;
  return OK;
}
API cuStreamEndCapture(void* handle, void** out) {
  GUARD;
  auto stream = stream_of(handle);
  if (!stream->captures) return INVALID_VALUE;
  stream->captures = false;
  captures_of_thread--;
  *out = new Graph{std::move(stream->captured)};
  return OK;
}
API cuStreamIsCapturing(void* handle, int* status) { GUARD; *status = stream_of(handle)->captures; return OK; }
API cuGraphInstantiateWithFlags(void** out, void* graph, unsigned long long) { *out = new Graph(*(Graph*)graph); return OK; }
API cuGraphUpload(void*, void*) { return OK; }
API cuGraphLaunch(void* exec, void* stream) {
  GUARD;
  auto work = std::make_shared<std::vector<Work>>(((Graph*)exec)->work);
  const bool is_last = ++graph_launches == setting("EMU_LOST", 0);
  return give(stream, [=] {
    if (is_last) lost = (int)setting("EMU_LOST_CODE", 700);
    else for (const Work& one : *work) one();
  });
}
API cuGraphExecDestroy(void* exec) { delete (Graph*)exec; return OK; }
API cuGraphDestroy(void* graph) { delete (Graph*)graph; return OK; }

API cuGetErrorName(int code, const char** name) {
  switch (code) {
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
    case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case 214: *name = "CUDA_ERROR_ECC_UNCORRECTABLE"; break;
    case 700: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    case 702: *name = "CUDA_ERROR_LAUNCH_TIMEOUT"; break;
    case NOT_READY: *name = "CUDA_ERROR_NOT_READY"; break;
    case CAPTURE_UNSUPPORTED: *name = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"; break;
    case CAPTURE_ISOLATION: *name = "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"; break;
    default: *name = "CUDA_ERROR_OF_THE_EMULATION";
  }
  return OK;
}
API cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }
