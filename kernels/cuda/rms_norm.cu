// RMSNorm over rows, with an optional residual add before it (Zhang and Sennrich, 2019).
//
//   stream[r, :] += added[r, :]                          where `added` is given
//   out[r, c] = bf16(stream[r, c] / sqrt(mean(stream[r, :]^2) + epsilon) * weight[c])
//
// stream, added f32 [rows, width], weight f32 [width], out bf16 [rows, width]; width a multiple of 4. One block a row; the
// order of the sum, in f64, is fixed by the width alone: thread t adds columns 4t + {0..3}, then 4 THREADS on, and so forth;
// then the lanes as a butterfly, then the warps in order.
//
// rms_norm_gather is the same of chosen rows, stream[ids[r], :] + added[ids[r], :], and leaves the stream as it is: what the
// output layer reads of the rows that are sampled.
//
// Floor: 4 (read) + 4 + 4 (add) + 2 bytes a value: memory.
#include "common.cuh"

constexpr int THREADS = 256;

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
#pragma unroll
  for (int warp = 1; warp < THREADS / (int)WARP; warp++) sum += scratch[warp];
  const double mean = sum * inverse_width + (double)epsilon;
  const bool is_huge = mean > 1e38;
  return 1.f / sqrtf((float)(is_huge ? mean * 0x1p-240 : mean)) * (is_huge ? 0x1p-120f : 1.f);
}

__device__ __forceinline__ void store_normed(bf16* out, float4 v, float4 w, float factor) {
  *reinterpret_cast<uint2*>(out) =
      make_uint2(pack_bf16(v.x * factor * w.x, v.y * factor * w.y), pack_bf16(v.z * factor * w.z, v.w * factor * w.w));
}

__device__ __forceinline__ float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// grid rows_max, block THREADS
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(float* __restrict__ stream, const float* __restrict__ added, const float* __restrict__ weight,
             bf16* __restrict__ out, const unsigned* __restrict__ rows, unsigned width, double inverse_width,
             float epsilon) {
  SHARED double scratch[THREADS / WARP];
  const unsigned row = blockIdx.x;
  // The grid is that of the largest batch; how many rows there are is known to the device alone.
  if (row >= *rows) return;
  float4* const values = reinterpret_cast<float4*>(stream + (size_t)row * width);
  const unsigned quads = width / 4;
  double squares = 0.0;
  for (unsigned i = threadIdx.x; i < quads; i += THREADS) {
    float4 v = values[i];
    if (added) values[i] = v = plus(v, reinterpret_cast<const float4*>(added + (size_t)row * width)[i]);
    squares = square_sum(v, squares);
  }
  const float factor = norm_factor(squares, scratch, inverse_width, epsilon);
  for (unsigned i = threadIdx.x; i < quads; i += THREADS)
    store_normed(out + (size_t)row * width + i * 4, values[i], reinterpret_cast<const float4*>(weight)[i], factor);
}
EXPORT_KERNEL(rms_norm)

// ids [rows]: which rows of stream and added. grid rows_max, block THREADS
extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm_gather(const float* __restrict__ stream, const float* __restrict__ added, const float* __restrict__ weight,
                    bf16* __restrict__ out, const unsigned* __restrict__ ids, const unsigned* __restrict__ rows, unsigned width,
                    double inverse_width, float epsilon) {
  SHARED double scratch[THREADS / WARP];
  const unsigned row = blockIdx.x;
  if (row >= *rows) return;
  const size_t from = (size_t)ids[row] * width;
  const unsigned quads = width / 4;
  const auto value = [&](unsigned i) {
    const float4 v = reinterpret_cast<const float4*>(stream + from)[i];
    return added ? plus(v, reinterpret_cast<const float4*>(added + from)[i]) : v;
  };
  double squares = 0.0;
  for (unsigned i = threadIdx.x; i < quads; i += THREADS) squares = square_sum(value(i), squares);
  const float factor = norm_factor(squares, scratch, inverse_width, epsilon);
  for (unsigned i = threadIdx.x; i < quads; i += THREADS)
    store_normed(out + (size_t)row * width + i * 4, value(i), reinterpret_cast<const float4*>(weight)[i], factor);
}
EXPORT_KERNEL(rms_norm_gather)
