// What every kernel shares: types, loads, reductions, and all of the inline PTX. Under CUDA_SHIM the same kernels are
// compiled by g++ and run on the CPU (kernels/emulation), which has a twin of everything in the last part.
//
// What is written is what is computed: nvcc is run with --fmad=false, the shim with -ffp-contract=off, so a fused
// multiply-add is one that a kernel writes as fmaf. Every sum has one order, fixed by the shapes of the model.
#pragma once

#ifdef CUDA_SHIM
#include "cuda_shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>
#define SHARED __shared__
#define DYN_SHARED(type, name)                                     \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(dynamic_shared)
// Makes a kernel known to the emulation.
#define EXPORT_KERNEL(name)
#endif

typedef __nv_bfloat16 bf16;
typedef __half f16;
constexpr unsigned WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

// Eight 16-bit values, one load.
struct __align__(16) bf16x8 { __nv_bfloat162 v[4]; };
struct __align__(16) f16x8 { __half2 v[4]; };

__device__ __forceinline__ bf16x8 load8(const bf16* p) { return *reinterpret_cast<const bf16x8*>(p); }
__device__ __forceinline__ f16x8 load8(const f16* p) { return *reinterpret_cast<const f16x8*>(p); }

// Two values as the 32-bit register of an mma fragment: `low` is the one with the lower k.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ __forceinline__ unsigned pack_f16(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

// The same bits in every lane: the butterfly adds pairs, and addition commutes.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(ALL_LANES, value, offset);
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, offset));
  return value;
}

// The sum over a block of WARPS warps, the same bits in every thread: warps are added in ascending order. `scratch` has
// WARPS floats; it may be used again after the next barrier.
template <int WARPS>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
  __syncthreads();
  float sum = scratch[0];
#pragma unroll
  for (int warp = 1; warp < WARPS; warp++) sum += scratch[warp];
  return sum;
}

// e4m3 with saturation to 448 (NaN stays NaN), as bytes.
#ifndef CUDA_SHIM
__device__ __forceinline__ unsigned char float_to_e4m3(float value) {
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}
__device__ __forceinline__ float e4m3_to_float(unsigned char value) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(value, __NV_E4M3)));
}

// ---- inline PTX: twins in kernels/emulation/cuda_shim.h ----

// a & MASK | BITS in one instruction. Of two constants the compiler makes two instructions, since one has room for one of
// them: the mask goes into a register, which it does not see through.
template <unsigned MASK, unsigned BITS> __device__ __forceinline__ unsigned and_or(unsigned a) {
  unsigned mask, out;
  asm("mov.b32 %0, %1;" : "=r"(mask) : "n"(MASK));
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(a), "r"(mask), "n"(BITS));
  return out;
}
// 16 bytes that are read once: past L1, so that what is reused stays there.
__device__ __forceinline__ uint4 load_stream(const void* p) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
// 16 bytes from global to shared memory, or zeroes (then `global` is not read). Both must be multiples of 16.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool in) {
  const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
  const int bytes = in ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `LEFT` of this thread's groups are under way. A barrier must follow before other threads' parts are read.
template <int LEFT> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}
// X (1, 2, 4) 8x8 matrices of 16-bit values; lane l gives the address of row l % 8 of matrix l / 8. Lane l gets the
// values 2 (l % 4) and the next of row l / 4 of each.
template <int X> __device__ __forceinline__ void ldmatrix(unsigned (&r)[X], const void* row) {
  static_assert(X == 1 || X == 2 || X == 4, "ldmatrix loads 1, 2 or 4 matrices");
  const unsigned p = (unsigned)__cvta_generic_to_shared(row);
  if constexpr (X == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(p)
                 : "memory");
  else if constexpr (X == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(p) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(p) : "memory");
}
// The same, each matrix transposed.
template <int X> __device__ __forceinline__ void ldmatrix_trans(unsigned (&r)[X], const void* row) {
  static_assert(X == 1 || X == 2 || X == 4, "ldmatrix loads 1, 2 or 4 matrices");
  const unsigned p = (unsigned)__cvta_generic_to_shared(row);
  if constexpr (X == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(p)
                 : "memory");
  else if constexpr (X == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(p)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(p) : "memory");
}
// c[16x8] += a[16x16] b[16x8], b by columns. With g = lane / 4 and t = lane % 4, registers hold: c[i] row g + 8 (i / 2),
// column 2t + i % 2; a[i] row g + 8 (i % 2), k 2t + 8 (i / 2) and the next; b[i] k 2t + 8i and the next, column g.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
