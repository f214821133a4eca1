// What the fake driver asks of the scheduler. The kernels' side is cuda_shim.h.
#pragma once
#define SHIM_SECTION "shared_none"
#define SHIM_FIRST __start_shared_none
#define SHIM_LAST __stop_shared_none
#include "cuda_shim.h"

#include <string>

namespace shim {
struct Kernel {
  std::string name;
  Entry entry;
  Parameters parameters;
  unsigned char *first, *last;  // its unit's static shared memory
};
const Kernel* find(const char* name);
// The schedule of the launches that follow: seed % 8.
void choose(unsigned seed);
void run(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes, void** arguments);
// Whether a kernel runs now, and where it is: for what to say when memory is touched that is not there.
bool is_running();
void say_where();
}  // namespace shim
