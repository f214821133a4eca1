// Runs the blocks of a launch, one after another, on one OS thread: every CUDA thread is a fiber that gives way only at
// barriers and warp collectives. Who goes next is decided by a schedule (seed % 8), so that a result that depends on it
// shows. Never instrumented by the sanitizers: it tells them what they must know.
#include "scheduler.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#if defined(SHIM_ASAN)
extern "C" void* __asan_region_is_poisoned(void*, size_t);
#endif
#if defined(SHIM_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
}
#define TSAN(...) __VA_ARGS__
#else
#define TSAN(...)
#endif

// x86-64 System V: keeps the callee-saved registers on the old stack, goes on from the new one.
extern "C" void shim_switch(void** from, void* to);
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch,@function
shim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size shim_switch,.-shim_switch
)");

namespace shim {

constexpr size_t PAGE = 4096, STACK_BYTES = 128 * 1024, SHARED_BYTES_MAX = 227 * 1024;
constexpr unsigned THREADS_MAX = 1024, WARPS_MAX = 32;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool in;
};
struct Fiber {
  void* sp;
  void* tsan;
};
enum State : unsigned char { RUNS, AT_BARRIER, DONE };  // one that RUNS may wait for others of its warp
struct Thread {
  State state;
  const char *what, *file;
  int line;
  // cp.async: copies in order, where each committed group ends, and (where copies land at once) only their numbers.
  std::vector<Copy> copies;
  std::vector<size_t> groups;
  unsigned open;
};
struct Warp {
  unsigned ready;  // lanes that may run
  unsigned arrived, mask;
  Together together;
  const char *what, *file;
  int line;
  void* lanes[32];
  char order;  // an address for the race detector
};

dim3 thread_index, block_index, block_size, grid_size;

static Thread threads[THREADS_MAX];
static Fiber* fibers[THREADS_MAX];  // null until the thread starts
static dim3 indexes[THREADS_MAX];
static Warp warps[WARPS_MAX];
static unsigned thread_count, warp_count, live, at_barrier;
unsigned current;
static const char* barrier_file;
static int barrier_line;
static std::vector<Fiber*> idle;
static Fiber main_fiber, *running;
static const Kernel* kernel;
static void** kernel_arguments;
static unsigned char *dynamic_first, *dynamic_end;
static bool copies_land_at_once;
[[maybe_unused]] static char block_start, block_order, block_end;

// ---- schedules ----

static unsigned random_state;
static struct { bool backward, in_step, random; } schedule;

static unsigned random_below(unsigned n) {
  random_state = random_state * 1664525u + 1013904223u;
  return (unsigned)((unsigned long long)(random_state >> 8) * n >> 24);
}

void choose(unsigned seed) {
  const unsigned s = seed % 8;
  schedule = {s == 1 || s == 3, s == 2 || s == 3, s >= 4};
  random_state = seed;
  // Copies land at once, or as late as their wait allows.
  copies_land_at_once = ((s ^ s >> 2) & 1) == 0;
}

static inline unsigned lane_of(unsigned ready) {
  if (schedule.random) {
    const unsigned turn = random_below(32), turned = ready >> turn | ready << (32 - turn) % 32;
    return ((unsigned)__builtin_ctz(turned) + turn) % 32;
  } else if (schedule.backward) {
    return 31 - (unsigned)__builtin_clz(ready);
  }
  return (unsigned)__builtin_ctz(ready);
}

// The next thread to run, or thread_count if none can. `stay`: the current warp may go on as far as it gets.
static unsigned next(unsigned warp, bool stay) {
  if (stay && !schedule.random && !schedule.in_step && warps[warp].ready) return warp * 32 + lane_of(warps[warp].ready);
  // Lanes of one warp first, so that meetings fill; between meetings the schedule may change warps.
  if (stay && warps[warp].arrived && warps[warp].ready) return warp * 32 + lane_of(warps[warp].ready);
  const unsigned start = schedule.random ? random_below(warp_count) : schedule.in_step ? warp + (schedule.backward ? warp_count - 1 : 1) : schedule.backward ? warp_count - 1 : 0;
  for (unsigned i = 0; i < warp_count; i++) {
    const unsigned w = (schedule.backward ? start + warp_count - i : start + i) % warp_count;
    if (warps[w].ready) return w * 32 + lane_of(warps[w].ready);
  }
  return thread_count;
}

// ---- faults ----

static void print_place(const char* what, const char* file, int line) {
  fprintf(stderr, " (%s at %s:%d, kernel %s, block %u,%u,%u, thread %u,%u,%u)\n", what ? what : "-", file ? file : "-", line,
          kernel ? kernel->name.c_str() : "-", block_index.x, block_index.y, block_index.z, thread_index.x, thread_index.y, thread_index.z);
}
void fault(const char* message, const char* what, const char* file, int line) {
  fprintf(stderr, "EMULATION: %s", message);
  print_place(what, file, line);
  abort();
}
[[noreturn]] static void fault_besides(const char* message, const char* other, const char* other_file, int other_line, const char* what, const char* file, int line) {
  fprintf(stderr, "EMULATION: %s %s at %s:%d", message, other, other_file, other_line);
  print_place(what, file, line);
  abort();
}
bool is_running() { return kernel != nullptr; }
void say_where() { print_place("memory", nullptr, 0); }

// ---- fibers ----

static void fiber_main();
static void* map_guarded(size_t bytes) {
  auto* p = (unsigned char*)mmap(nullptr, bytes + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED || mprotect(p + PAGE, bytes, PROT_READ | PROT_WRITE)) { perror("EMULATION: mmap"); abort(); }
  return p + PAGE;
}
static Fiber* new_fiber() {
  auto* fiber = new Fiber{};
  // Each begins at another offset in its page: 32 lanes at the same one would share a few sets of the cache.
  static unsigned count;
  const size_t offset = count++ % 64 * 832;
  void** sp = (void**)((unsigned char*)map_guarded(STACK_BYTES) + STACK_BYTES - offset);
  *--sp = nullptr;  // rsp % 16 is 8 at fiber_main's entry, as after a call
  *--sp = (void*)fiber_main;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  fiber->sp = sp;
  TSAN(fiber->tsan = __tsan_create_fiber(0);)
  return fiber;
}
static void switch_to(Fiber* to) {
  Fiber* const from = running;
  running = to;
  TSAN(__tsan_switch_to_fiber(to->tsan, 1);)
  shim_switch(&from->sp, to->sp);
}
static void give_back(Fiber* fiber) {
  (void)fiber;
#if !defined(SHIM_TSAN)
  idle.push_back(fiber);
#endif
}
// Leaves `running` (whose thread waits, or is done: then `is_free`) for thread `t`. True: it is `running` that shall run it.
static inline bool go_to(unsigned t, bool is_free) {
  current = t;
  thread_index = indexes[t];
  Fiber* to = fibers[t];
  if (!to) {
    if (is_free) return true;
    if (idle.empty()) idle.push_back(new_fiber());
    to = idle.back();
    idle.pop_back();
  }
  if (is_free) give_back(running);
  if (to != running) switch_to(to);
  return is_free;
}
static void leave();

static void fiber_main() {
  for (;;) {
    fibers[current] = running;
    TSAN(__tsan_acquire(&block_start);)
    kernel->entry(kernel_arguments);
    TSAN(__tsan_release(&block_end);)
    leave();
  }
}

static void release_barrier() {
  at_barrier = 0;
  for (unsigned t = 0; t < thread_count; t++)
    if (threads[t].state == AT_BARRIER) threads[t].state = RUNS, warps[t / 32].ready |= 1u << t % 32;
}

[[noreturn]] static void fault_deadlock() {
  for (unsigned t = 0; t < thread_count; t++) {
    const Thread& waits = threads[t];
    const Warp& warp = warps[t / 32];
    if (waits.state == DONE) continue;
    current = t, thread_index = indexes[t];
    const bool meets = waits.state == RUNS;
    fault("deadlock: waits for threads that have left or never come", meets ? warp.what : "__syncthreads",
          meets ? warp.file : barrier_file, meets ? warp.line : barrier_line);
  }
  abort();
}
// The current thread cannot go on, or need not: gives way to the next.
static void give_way(bool is_done) {
  const unsigned me = current;
  // Threads that have left count as arrived, as on hardware.
  if (at_barrier == live) release_barrier();
  const unsigned t = next(me / 32, true);
  if (t == thread_count) fault_deadlock();
  if (t != me || is_done) go_to(t, is_done);
}
static void leave() {
  const unsigned me = current;
  Thread& mine = threads[me];
  if (mine.open || !mine.groups.empty() || !mine.copies.empty()) fault("a thread ends with cp.async in flight", "exit", nullptr, 0);
  mine.state = DONE;
  warps[me / 32].ready &= ~(1u << me % 32);
  if (--live) return give_way(true);
  give_back(running);
  switch_to(&main_fiber);
}

// ---- what kernels call ----

void* dynamic_shared() { return dynamic_first; }

void barrier(const char* file, int line) {
  if (at_barrier++ == 0) barrier_file = file, barrier_line = line;
  else if (line != barrier_line || (file != barrier_file && strcmp(file, barrier_file)))
    fault_besides("threads of one block at different barriers: another is at", "__syncthreads", barrier_file, barrier_line, "__syncthreads", file, line);
  TSAN(__tsan_release(&block_order);)
  threads[current].state = AT_BARRIER;
  warps[current / 32].ready &= ~(1u << current % 32);
  give_way(false);
  TSAN(__tsan_acquire(&block_order);)
}

void meet(unsigned mask, void* mine, Together together, bool orders, const char* what, const char* file, int line) {
  (void)orders;
  Warp& warp = warps[current / 32];
  const unsigned l = lane();
  if (!(mask >> l & 1)) fault("a lane is not in its own mask", what, file, line);
  if (!warp.arrived) warp.mask = mask, warp.together = together, warp.what = what, warp.file = file, warp.line = line;
  else if (warp.mask != mask || warp.together != together || warp.line != line || (warp.file != file && strcmp(warp.file, file)))
    fault_besides("lanes of one warp at different collectives: another is in", warp.what, warp.file, warp.line, what, file, line);
  warp.lanes[l] = mine;
  warp.arrived |= 1u << l;
  TSAN(if (orders) __tsan_release(&warp.order);)
  if (warp.arrived == mask) {
    together(warp.lanes, mask);
    warp.arrived = 0;
    warp.ready |= mask;
    if (schedule.random || schedule.in_step) give_way(false);
  } else {
    warp.ready &= ~(1u << l);
    if (warp.ready) go_to(current - l + lane_of(warp.ready), false);
    else give_way(false);
  }
  TSAN(if (orders) __tsan_acquire(&warp.order);)
}

static bool is_shared(const void* p, size_t bytes) {
  auto* b = (const unsigned char*)p;
  return (b >= dynamic_first && b + bytes <= dynamic_end) || (b >= kernel->first && b + bytes <= kernel->last);
}
void reads_shared(const void* p, size_t bytes, const char* what) {
  if ((uintptr_t)p % bytes) fault("a misaligned address", what, nullptr, 0);
  if (!is_shared(p, bytes)) fault("an address outside shared memory", what, nullptr, 0);
  TSAN(__tsan_read_range((void*)p, bytes);)
#if defined(SHIM_ASAN)
  if (__asan_region_is_poisoned((void*)p, bytes)) fault("reads outside its array", what, nullptr, 0);
#endif
}
static void land(const Copy& copy) {
  TSAN(if (copy.in) __tsan_read_range((void*)copy.from, copy.bytes); __tsan_write_range(copy.to, copy.bytes);)
  if (copy.in) memcpy(copy.to, copy.from, copy.bytes);
  else memset(copy.to, 0, copy.bytes);
}
void cp_async(void* to, const void* from, size_t bytes, bool in) {
  if ((uintptr_t)to % bytes || (in && (uintptr_t)from % bytes)) fault("a misaligned address", "cp.async", nullptr, 0);
  if (!is_shared(to, bytes)) fault("an address outside shared memory", "cp.async", nullptr, 0);
#if defined(SHIM_ASAN)
  if (in && __asan_region_is_poisoned((void*)from, bytes)) fault("reads outside an allocation", "cp.async", nullptr, 0);
  if (__asan_region_is_poisoned(to, bytes)) fault("writes outside its array", "cp.async", nullptr, 0);
#endif
  Thread& mine = threads[current];
  const Copy copy{to, from, bytes, in};
  mine.open++;
  if (copies_land_at_once) land(copy);
  else mine.copies.push_back(copy);
}
void cp_async_commit() {
  Thread& mine = threads[current];
  mine.open = 0;
  mine.groups.push_back(mine.copies.size());
}
void cp_async_wait(int left) {
  Thread& mine = threads[current];
  if ((int)mine.groups.size() <= left) return;
  const size_t waited = mine.groups.size() - (size_t)left, end = mine.groups[waited - 1];
  for (size_t i = 0; i < end; i++) land(mine.copies[i]);
  mine.copies.erase(mine.copies.begin(), mine.copies.begin() + (long)end);
  mine.groups.erase(mine.groups.begin(), mine.groups.begin() + (long)waited);
  for (size_t& group : mine.groups) group -= end;
}

// ---- launches ----

static std::map<std::string, Kernel>& registry() {
  static std::map<std::string, Kernel> kernels;
  return kernels;
}
Registration::Registration(const char* name, Entry entry, Parameters parameters, unsigned char* first, unsigned char* last) {
  if (!registry().emplace(name, Kernel{name, entry, parameters, first, last}).second) {
    fprintf(stderr, "EMULATION: two kernels are called %s\n", name);
    abort();
  }
}
const Kernel* find(const char* name) {
  const auto found = registry().find(name);
  return found == registry().end() ? nullptr : &found->second;
}

// Shared memory holds nothing at first: NaN as a float of any width, -1 as an integer. Not memset, which the address
// sanitizer would take to overrun the arrays that lie there.
static void poison(unsigned char* first, unsigned char* last) {
  size_t bytes = (size_t)(last - first);
  asm volatile("rep stosb" : "+D"(first), "+c"(bytes) : "a"(0xff) : "memory");
}

static void run_block() {
  poison(kernel->first, kernel->last);
  poison(dynamic_first, dynamic_end);
  live = thread_count, at_barrier = 0;
  for (unsigned w = 0; w < warp_count; w++) {
    const unsigned lanes = thread_count - w * 32;
    warps[w].ready = lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1;
    warps[w].arrived = 0;
  }
  for (unsigned t = 0; t < thread_count; t++) {
    threads[t].state = RUNS, threads[t].open = 0, fibers[t] = nullptr;
    // The race detector must not see one thread as the sequel of another.
    TSAN(static Fiber* own[THREADS_MAX]; if (!own[t]) own[t] = new_fiber(); fibers[t] = own[t];)
  }
  running = &main_fiber;
  TSAN(main_fiber.tsan = __tsan_get_current_fiber(); __tsan_release(&block_start);)
  go_to(next(schedule.backward ? warp_count - 1 : 0, true), false);
  TSAN(__tsan_acquire(&block_end);)
}

void run(const Kernel& what, dim3 grid, dim3 block, size_t shared_bytes, void** arguments) {
  static auto* const dynamic_area = (unsigned char*)map_guarded((SHARED_BYTES_MAX + PAGE - 1) / PAGE * PAGE);
  // Its end is the end of the page, so that an overrun faults.
  dynamic_end = dynamic_area + (SHARED_BYTES_MAX + PAGE - 1) / PAGE * PAGE;
  dynamic_first = dynamic_end - (shared_bytes + 15) / 16 * 16;
  kernel = &what, kernel_arguments = arguments, block_size = block, grid_size = grid;
  thread_count = block.x * block.y * block.z;
  warp_count = (thread_count + 31) / 32;
  for (unsigned t = 0; t < thread_count; t++) indexes[t] = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
  const unsigned long blocks = (unsigned long)grid.x * grid.y * grid.z;
  for (unsigned long i = 0; i < blocks; i++) {
    const unsigned long b = schedule.backward ? blocks - 1 - i : i;
    block_index = dim3((unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y), (unsigned)(b / grid.x / grid.y));
    run_block();
  }
  kernel = nullptr;
}
}  // namespace shim
