// RMSNorm over rows, with an optional residual add before it (Zhang and Sennrich, 2019).
//
//   stream[r, :] += added[r, :]                          where `added` is given
//   out[r, c] = bf16(stream[r, c] / sqrt(mean(stream[r, :]^2) + epsilon) * weight[c])
//
// stream, added f32 [rows, width], weight f32 [width], out bf16 [rows, width]; width a multiple of 4. One block a row, of a
// warp for each 128 columns and at most 16; the order of the sum, in f64, is fixed by the width alone: thread t adds columns
// 4t + {0..3}, then 4 threads on, and so forth; then the lanes as a butterfly, then the warps in order.
//
// rms_norm_gather is the same of chosen rows, stream[ids[r], :] + added[ids[r], :], and leaves the stream as it is: what the
// output layer reads of the rows that are sampled.
//
// Floor: 4 (read) + 4 + 4 (add) + 2 bytes a value: memory. A row of up to 8,192 columns is read once, all of it at the same
// time: with few rows the latency of one load is most of what there is.
#include "common.cuh"

constexpr int THREADS_MAX = 512;
constexpr int KEPT = 4;  // groups of four columns that a thread keeps in registers

__device__ __forceinline__ double square_sum(float4 v, double sum) {
  sum = fma((double)v.w, (double)v.w, sum);
  sum = fma((double)v.z, (double)v.z, sum);
  sum = fma((double)v.y, (double)v.y, sum);
  return fma((double)v.x, (double)v.x, sum);
}

// 1 / sqrt(mean of squares + epsilon), the same in every thread. `inverse_width` is 1 / width: a division in f64 would be a
// call. A mean beyond the range of f32 is brought into it, so that no row of finite numbers overflows.
__device__ __forceinline__ float norm_factor(double squares, double* scratch, double inverse_width, float epsilon) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) squares += __shfl_xor_sync(ALL_LANES, squares, offset);
  if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = squares;
  __syncthreads();
  double sum = scratch[0];
  for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) sum += scratch[warp];
  const double mean = sum * inverse_width + (double)epsilon;
  const bool is_huge = mean > 1e38;
  return 1.f / sqrtf((float)(is_huge ? mean * 0x1p-240 : mean)) * (is_huge ? 0x1p-120f : 1.f);
}

__device__ __forceinline__ float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

__device__ __forceinline__ void store_normed(uint2* out, float4 v, float4 w, float factor) {
  *out = make_uint2(pack_bf16(v.x * factor * w.x, v.y * factor * w.y), pack_bf16(v.z * factor * w.z, v.w * factor * w.w));
}

// Norms stream + added into `out`; the sum is kept in the stream if `keeps`.
template <bool keeps>
__device__ __forceinline__ void norm_row(float4* stream, const float4* added, const float4* weight, uint2* out, double* scratch,
                                         unsigned quads, double inverse_width, float epsilon) {
  const unsigned first = threadIdx.x, threads = blockDim.x;
  float4 kept[KEPT];
#pragma unroll
  for (int j = 0; j < KEPT; j++) kept[j] = first + j * threads < quads ? stream[first + j * threads] : make_float4(0.f, 0.f, 0.f, 0.f);
  if (added) {
#pragma unroll
    for (int j = 0; j < KEPT; j++) {
      const unsigned i = first + j * threads;
      if (i < quads) kept[j] = plus(kept[j], added[i]);
      if (keeps && i < quads) stream[i] = kept[j];
    }
  }
  double squares = 0.0;
#pragma unroll
  for (int j = 0; j < KEPT; j++) squares = square_sum(kept[j], squares);
  for (unsigned i = first + KEPT * threads; i < quads; i += threads) {
    float4 v = stream[i];
    if (added) v = plus(v, added[i]);
    if (added && keeps) stream[i] = v;
    squares = square_sum(v, squares);
  }
  const float factor = norm_factor(squares, scratch, inverse_width, epsilon);
#pragma unroll
  for (int j = 0; j < KEPT; j++)
    if (first + j * threads < quads) store_normed(out + first + j * threads, kept[j], weight[first + j * threads], factor);
  for (unsigned i = first + KEPT * threads; i < quads; i += threads) {
    const float4 v = added && !keeps ? plus(stream[i], added[i]) : stream[i];
    store_normed(out + i, v, weight[i], factor);
  }
}

// grid rows_max, block: 32 * min(16, ceil(width / 128))
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    rms_norm(float* __restrict__ stream, const float* __restrict__ added, const float* __restrict__ weight,
             bf16* __restrict__ out, const unsigned* __restrict__ rows, unsigned width, double inverse_width, float epsilon) {
  SHARED double scratch[THREADS_MAX / WARP];
  // The grid is that of the largest batch; how many rows there are is known to the device alone.
  if (blockIdx.x >= *rows) return;
  const size_t at = (size_t)blockIdx.x * width;
  norm_row<true>(reinterpret_cast<float4*>(stream + at), reinterpret_cast<const float4*>(added ? added + at : nullptr),
                 reinterpret_cast<const float4*>(weight), reinterpret_cast<uint2*>(out + at), scratch, width / 4, inverse_width,
                 epsilon);
}
EXPORT_KERNEL(rms_norm)

// ids [rows]: which rows of stream and added. The same grid and block.
extern "C" __global__ void __launch_bounds__(THREADS_MAX)
    rms_norm_gather(float* __restrict__ stream, const float* __restrict__ added, const float* __restrict__ weight,
                    bf16* __restrict__ out, const unsigned* __restrict__ ids, const unsigned* __restrict__ rows, unsigned width,
                    double inverse_width, float epsilon) {
  SHARED double scratch[THREADS_MAX / WARP];
  if (blockIdx.x >= *rows) return;
  const size_t from = (size_t)ids[blockIdx.x] * width;
  norm_row<false>(reinterpret_cast<float4*>(stream + from), reinterpret_cast<const float4*>(added ? added + from : nullptr),
                  reinterpret_cast<const float4*>(weight), reinterpret_cast<uint2*>(out + (size_t)blockIdx.x * width), scratch,
                  width / 4, inverse_width, epsilon);
}
EXPORT_KERNEL(rms_norm_gather)
