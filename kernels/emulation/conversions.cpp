// Prints what conversions between f32 and f16, bf16 and e4m3 give: compiled with NVIDIA's headers, whose host code is the
// same arithmetic as the device's, and with the shim. conversions.sh compares the two.
#ifdef NVIDIA
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdio>
#include <cstring>
static unsigned char to_e4m3(float value) { return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3); }
static float from_e4m3(unsigned char code) { return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3))); }
#else
#define SHIM_SECTION "shared_none"
#define SHIM_FIRST __start_shared_none
#define SHIM_LAST __stop_shared_none
#include "cuda_shim.h"
static unsigned char to_e4m3(float value) { return float_to_e4m3(value); }
static float from_e4m3(unsigned char code) { return e4m3_to_float(code); }
#endif

static unsigned bits(float value) {
  unsigned b;
  memcpy(&b, &value, 4);
  return value != value ? 0x7fc00000u : b;  // any NaN is as good as another
}
static void one(unsigned pattern) {
  float value;
  memcpy(&value, &pattern, 4);
  const __nv_bfloat16 b = __float2bfloat16(value);
  const __half h = __float2half_rn(value);
  const unsigned code = to_e4m3(value);
  printf("%08x: %08x %08x %02x\n", pattern, bits(__bfloat162float(b)), bits(__half2float(h)), value != value ? code & 0x7f : code);
}
int main() {
  // Each upper half with lower halves around a tie, and patterns that have nothing to do with each other.
  for (unsigned high = 0; high < 0x10000; high++)
    for (unsigned low : {0u, 1u, 0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) one(high << 16 | low);
  for (unsigned long pattern = 0; pattern < 0x100000000ul; pattern += 99'991) one((unsigned)pattern);
  for (unsigned code = 0; code < 256; code++) printf("%02x: %08x\n", code, bits(from_e4m3((unsigned char)code)));
}
