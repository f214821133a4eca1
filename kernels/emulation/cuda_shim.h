// Enough of CUDA C++ for kernels/cuda/*.cu to be compiled by g++ unchanged and run on the CPU: a thread is a fiber, and
// gives way only at barriers and warp collectives (scheduler.cpp). One translation unit holds one .cu file.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#ifndef SHIM_SECTION
#error "say -DSHIM_SECTION=\"shared_<op>\" (kernels/emulation/build.sh does)"
#endif

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section(SHIM_SECTION)))
#define __constant__ static const
#define SHARED __shared__
#define DYN_SHARED(type, name) type* const name = reinterpret_cast<type*>(shim::dynamic_shared())
#define EXPORT_KERNEL(name)                                                                                      \
  static const shim::Registration registration_##name(                                                          \
      #name, [](void** arguments) { shim::call(name, arguments); }, shim::parameters(name), SHIM_FIRST, SHIM_LAST);
// Uninstrumented by the sanitizers: it reads other lanes' stacks, which hardware has no such thing as.
#define SHIM_PLAIN __attribute__((noinline, no_sanitize("thread"), no_sanitize("address")))

// ---- vectors ----

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
#define SHIM_VECTOR2(name, type, bytes)                 \
  struct alignas(bytes) name { type x, y; };            \
  inline name make_##name(type x, type y) { return {x, y}; }
#define SHIM_VECTOR4(name, type, bytes)                 \
  struct alignas(bytes) name { type x, y, z, w; };      \
  inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
SHIM_VECTOR2(uchar2, unsigned char, 2)
SHIM_VECTOR2(ushort2, unsigned short, 4)
SHIM_VECTOR2(int2, int, 8)
SHIM_VECTOR2(uint2, unsigned, 8)
SHIM_VECTOR2(float2, float, 8)
SHIM_VECTOR2(double2, double, 16)
SHIM_VECTOR2(ulonglong2, unsigned long long, 16)
SHIM_VECTOR4(uchar4, unsigned char, 4)
SHIM_VECTOR4(char4, signed char, 4)
SHIM_VECTOR4(ushort4, unsigned short, 8)
SHIM_VECTOR4(int4, int, 16)
SHIM_VECTOR4(uint4, unsigned, 16)
SHIM_VECTOR4(float4, float, 16)

// ---- 16-bit and 8-bit floats ----

inline float __uint_as_float(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned v; memcpy(&v, &f, 4); return v; }
inline float __int_as_float(int v) { return __uint_as_float((unsigned)v); }
inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
inline double __longlong_as_double(long long v) { double f; memcpy(&f, &v, 8); return f; }
inline long long __double_as_longlong(double f) { long long v; memcpy(&v, &f, 8); return v; }

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) {
    const unsigned b = __float_as_uint(f);
    bits = (b & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (uint16_t)((b + 0x7fff + ((b >> 16) & 1)) >> 16);
  }
  operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
inline float __bfloat162float(__nv_bfloat16 v) { return (float)v; }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {(float)v.x, (float)v.y}; }
inline float __low2float(__nv_bfloat162 v) { return (float)v.x; }
inline float __high2float(__nv_bfloat162 v) { return (float)v.y; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__nv_bfloat16((float)a.x + (float)b.x), __nv_bfloat16((float)a.y + (float)b.y)}; }
inline __nv_bfloat162 __hsub2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__nv_bfloat16((float)a.x - (float)b.x), __nv_bfloat16((float)a.y - (float)b.y)}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {__nv_bfloat16((float)a.x * (float)b.x), __nv_bfloat16((float)a.y * (float)b.y)}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) { __nv_bfloat16 b; b.bits = v; return b; }

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float f) { const _Float16 h = (_Float16)f; memcpy(&bits, &h, 2); }
  operator float() const { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
};
struct alignas(4) __half2 { __half x, y; };
inline float __half2float(__half v) { return (float)v; }
inline __half __float2half(float f) { return __half(f); }
inline __half __float2half_rn(float f) { return __half(f); }
inline float2 __half22float2(__half2 v) { return {(float)v.x, (float)v.y}; }
inline float __low2float(__half2 v) { return (float)v.x; }
inline float __high2float(__half2 v) { return (float)v.y; }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
inline __half __ushort_as_half(unsigned short v) { __half h; h.bits = v; return h; }

// e4m3: 4 bits of exponent with bias 7, 3 of mantissa, largest 448, no infinity, NaN 0x7f. Rounds to nearest even.
inline unsigned char float_to_e4m3(float value) {
  const unsigned sign = __float_as_uint(value) >> 31 << 7;
  float size = fabsf(value);
  if (!(size == size)) return 0x7f;
  if (size >= 448.f) return (unsigned char)(sign | 0x7e);
  if (size < 0x1p-6f) return (unsigned char)(sign | (unsigned)nearbyintf(size * 0x1p9f));  // subnormal: multiples of 2^-9
  int exponent;
  const float mantissa = frexpf(size, &exponent);  // size = mantissa 2^exponent, mantissa in [0.5, 1)
  const unsigned eighths = (unsigned)nearbyintf(mantissa * 16.f);  // 8..16, 16 carries into the exponent
  const unsigned code = (unsigned)(exponent - 1 + 7) * 8 + (eighths - 8);
  return (unsigned char)(sign | (code > 0x7e ? 0x7e : code));
}
inline float e4m3_to_float(unsigned char code) {
  const unsigned exponent = code >> 3 & 15, mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return NAN;
  const float size = exponent ? ldexpf((float)(8 + mantissa), (int)exponent - 10) : ldexpf((float)mantissa, -9);
  return code & 0x80 ? -size : size;
}

// ---- the scheduler ----

namespace shim {
typedef void (*Entry)(void** arguments);
// What all lanes of `mask` do together, once all have come; lanes[l] is what lane l brought.
typedef void (*Together)(void** lanes, unsigned mask);
struct Parameter { size_t bytes, alignment; bool is_pointer; };
struct Parameters { Parameter all[32]; size_t count; };
struct Registration {
  Registration(const char* name, Entry entry, Parameters parameters, unsigned char* first, unsigned char* last);
};
extern dim3 thread_index, block_index, block_size, grid_size;
void* dynamic_shared();
extern unsigned current;  // the thread that runs, in its block
inline unsigned lane() { return current % 32; }
void barrier(const char* file, int line);
// All lanes of `mask` meet; `together` runs once. Only a meeting that `orders` makes memory of one lane seen by another.
void meet(unsigned mask, void* mine, Together together, bool orders, const char* what, const char* file, int line);
void cp_async(void* shared, const void* global, size_t bytes, bool in);
void cp_async_commit();
void cp_async_wait(int left);
// Aborts unless the bytes are shared memory of this block, at a multiple of `bytes`; tells the sanitizers of a read.
void reads_shared(const void* p, size_t bytes, const char* what);
[[noreturn]] void fault(const char* message, const char* what, const char* file, int line);

template <class... A, size_t... I> void call_each(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}
template <class... A> void call(void (*kernel)(A...), void** arguments) {
  call_each(kernel, arguments, std::index_sequence_for<A...>{});
}
template <class... A> Parameters parameters(void (*)(A...)) {
  static_assert(sizeof...(A) <= 32, "a kernel takes at most 32 parameters");
  return {{{sizeof(A), alignof(A), std::is_pointer<A>::value}...}, sizeof...(A)};
}
}  // namespace shim
// The bounds of this unit's static shared memory; both null if it has none.
extern unsigned char SHIM_FIRST[] __attribute__((weak, visibility("hidden")));
extern unsigned char SHIM_LAST[] __attribute__((weak, visibility("hidden")));

#define threadIdx shim::thread_index
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define gridDim shim::grid_size
#define __syncthreads() shim::barrier(__FILE__, __LINE__)

// ---- warp collectives ----

inline void shim_nothing(void**, unsigned) {}
#define SHIM_SYNCWARP(mask, ...) shim::meet(mask, nullptr, shim_nothing, true, "__syncwarp", __FILE__, __LINE__)
#define __syncwarp(...) SHIM_SYNCWARP(__VA_ARGS__ __VA_OPT__(,) 0xffffffffu)

template <class T> struct ShimShuffle { T value, result; int source; };
template <class T> SHIM_PLAIN void shim_shuffle_together(void** lanes, unsigned mask) {
  for (int l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    auto* mine = static_cast<ShimShuffle<T>*>(lanes[l]);
    if (!(mask >> (mine->source & 31) & 1)) shim::fault("a shuffle reads a lane outside its mask", "__shfl", nullptr, 0);
    mine->result = static_cast<ShimShuffle<T>*>(lanes[mine->source & 31])->value;
  }
}
template <class T> SHIM_PLAIN T shim_shuffle(unsigned mask, T value, int source, const char* file, int line) {
  ShimShuffle<T> mine{value, value, source};
  shim::meet(mask, &mine, shim_shuffle_together<T>, false, "__shfl", file, line);
  return mine.result;
}
inline int shim_lane() { return (int)shim::lane(); }
#define __shfl_sync(m, v, s) shim_shuffle(m, v, (int)(s), __FILE__, __LINE__)
#define __shfl_xor_sync(m, v, x) shim_shuffle(m, v, shim_lane() ^ (int)(x), __FILE__, __LINE__)
#define __shfl_down_sync(m, v, d) \
  shim_shuffle(m, v, shim_lane() + (int)(d) < 32 ? shim_lane() + (int)(d) : shim_lane(), __FILE__, __LINE__)
#define __shfl_up_sync(m, v, d) \
  shim_shuffle(m, v, shim_lane() >= (int)(d) ? shim_lane() - (int)(d) : shim_lane(), __FILE__, __LINE__)

struct ShimVote { bool vote; unsigned result; };
SHIM_PLAIN inline void shim_ballot_together(void** lanes, unsigned mask) {
  unsigned votes = 0;
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) votes |= (unsigned)static_cast<ShimVote*>(lanes[l])->vote << l;
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) static_cast<ShimVote*>(lanes[l])->result = votes;
}
SHIM_PLAIN inline unsigned shim_ballot(unsigned mask, bool vote, const char* file, int line) {
  ShimVote mine{vote, 0};
  shim::meet(mask, &mine, shim_ballot_together, false, "__ballot", file, line);
  return mine.result;
}
#define __ballot_sync(m, p) shim_ballot(m, (p) != 0, __FILE__, __LINE__)
#define __any_sync(m, p) (__ballot_sync(m, p) != 0)
#define __all_sync(m, p) (__ballot_sync(m, p) == (m))

// ---- atomics, fences, loads ----

template <class T> T atomicAdd(T* p, T v) {
  static_assert(std::is_integral<T>::value, "a float atomic has no fixed order");
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T> T atomicOr(T* p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }
template <class T> T atomicAnd(T* p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }
template <class T> T atomicExch(T* p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }
template <class T> T atomicCAS(T* p, T expected, T v) {
  __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
template <class T> T atomicMax(T* p, T v) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (v > old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
template <class T> T atomicMin(T* p, T v) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (v < old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { shim::fault("trap", "__trap", nullptr, 0); }
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> void __stcs(T* p, T v) { *p = v; }

// ---- arithmetic ----

inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline unsigned __float2uint_rn(float x) { return (unsigned)nearbyintf(x); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned pick = selector >> 4 * i & 15;
    unsigned byte = (unsigned)(both >> 8 * (pick & 7)) & 255;
    if (pick & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << 8 * i;
  }
  return r;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += (int)(signed char)(a >> 8 * i) * (int)(signed char)(b >> 8 * i);
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; i++) c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
  return c;
}
#define SHIM_MIN_MAX(type)                                          \
  inline type min(type a, type b) { return b < a ? b : a; }         \
  inline type max(type a, type b) { return a < b ? b : a; }
SHIM_MIN_MAX(int)
SHIM_MIN_MAX(unsigned)
SHIM_MIN_MAX(long)
SHIM_MIN_MAX(unsigned long)
SHIM_MIN_MAX(long long)
SHIM_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
using std::isfinite;
using std::isinf;
using std::isnan;

// ---- the twins of common.cuh's inline PTX ----

template <unsigned MASK, unsigned BITS> inline unsigned and_or(unsigned a) { return (a & MASK) | BITS; }
inline uint4 load_stream(const void* p) { return *static_cast<const uint4*>(p); }
inline void cp_async16(void* shared, const void* global, bool in) { shim::cp_async(shared, global, 16, in); }
inline void cp_async_commit() { shim::cp_async_commit(); }
template <int LEFT> inline void cp_async_wait() { shim::cp_async_wait(LEFT); }

template <int X> struct ShimMatrices { const void* row; unsigned result[X]; };
template <int X, bool TRANSPOSED> SHIM_PLAIN void shim_ldmatrix_together(void** lanes, unsigned) {
  for (int m = 0; m < X; m++) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; r++) memcpy(matrix[r], static_cast<ShimMatrices<X>*>(lanes[m * 8 + r])->row, 16);
    for (int l = 0; l < 32; l++) {
      const int r = l / 4, c = l % 4 * 2;
      const unsigned low = TRANSPOSED ? matrix[c][r] : matrix[r][c];
      const unsigned high = TRANSPOSED ? matrix[c + 1][r] : matrix[r][c + 1];
      static_cast<ShimMatrices<X>*>(lanes[l])->result[m] = low | high << 16;
    }
  }
}
template <int X, bool TRANSPOSED> SHIM_PLAIN void shim_ldmatrix(unsigned (&r)[X], const void* row) {
  if (shim_lane() < 8 * X) shim::reads_shared(row, 16, "ldmatrix");
  ShimMatrices<X> mine{row, {}};
  shim::meet(0xffffffffu, &mine, shim_ldmatrix_together<X, TRANSPOSED>, true, "ldmatrix", "common.cuh", X);
  for (int i = 0; i < X; i++) r[i] = mine.result[i];
}
template <int X> inline void ldmatrix(unsigned (&r)[X], const void* row) { shim_ldmatrix<X, false>(r, row); }
template <int X> inline void ldmatrix_trans(unsigned (&r)[X], const void* row) { shim_ldmatrix<X, true>(r, row); }

struct ShimMma { float* c; unsigned a[4], b[2]; };
inline float shim_half_of(__nv_bfloat16, unsigned v) { return __uint_as_float(v << 16); }
inline float shim_half_of(__half, unsigned v) { return (float)__ushort_as_half((unsigned short)v); }
// Products are exact and added to c in ascending k. Hardware adds a block of k in another order and with other roundings.
template <class T> SHIM_PLAIN void shim_mma_together(void** lanes, unsigned) {
  alignas(32) float a[16][16], b[16][8], c[16][8];
  for (int l = 0; l < 32; l++) {
    const ShimMma& mine = *static_cast<const ShimMma*>(lanes[l]);
    const int g = l / 4, t = l % 4 * 2;
    for (int i = 0; i < 4; i++)
      for (int h = 0; h < 2; h++) a[g + 8 * (i % 2)][t + 8 * (i / 2) + h] = shim_half_of(T(), mine.a[i] >> 16 * h & 0xffff);
    for (int i = 0; i < 2; i++)
      for (int h = 0; h < 2; h++) b[t + 8 * i + h][g] = shim_half_of(T(), mine.b[i] >> 16 * h & 0xffff);
    for (int i = 0; i < 4; i++) c[g + 8 * (i / 2)][t + i % 2] = mine.c[i];
  }
  for (int r = 0; r < 16; r++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 8; n++) c[r][n] = __builtin_fmaf(a[r][k], b[k][n], c[r][n]);
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) static_cast<ShimMma*>(lanes[l])->c[i] = c[l / 4 + 8 * (i / 2)][l % 4 * 2 + i % 2];
}
template <class T> SHIM_PLAIN void shim_mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  ShimMma mine{c, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  shim::meet(0xffffffffu, &mine, shim_mma_together<T>, false, "mma.sync", "common.cuh", 0);
}
inline void mma_m16n8k16_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { shim_mma<__nv_bfloat16>(c, a, b); }
inline void mma_m16n8k16_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { shim_mma<__half>(c, a, b); }
