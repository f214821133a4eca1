// RMSNorm over rows, with an optional residual add before it (Zhang and Sennrich, 2019).
//
//   stream[r, :] += added[r, :]                          where `added` is given
//   out[r, c] = bf16(stream[r, c] / sqrt(mean(stream[r, :]^2) + epsilon) * weight[c])
//
// stream, added f32 [rows, width], weight f32 [width], out bf16 [rows, width]; width a multiple of 4. One block a row; the
// order of the sum is fixed by the width alone: thread t adds columns 4t + {0..3}, then 4 THREADS on, and so forth; then
// the lanes as a butterfly, then the warps in order.
//
// Floor: 4 (read) + 4 + 4 (add) + 2 bytes a value: memory.
#include "common.cuh"

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(float* __restrict__ stream, const float* __restrict__ added, const float* __restrict__ weight,
             bf16* __restrict__ out, const unsigned* __restrict__ rows, unsigned width, float epsilon) {
  SHARED float scratch[THREADS / WARP];
  const unsigned row = blockIdx.x;
  // The grid is that of the largest batch; how many rows there are is known to the device alone.
  if (row >= *rows) return;
  float4* const values = reinterpret_cast<float4*>(stream + (size_t)row * width);
  const unsigned quads = width / 4;
  float squares = 0.f;
  for (unsigned i = threadIdx.x; i < quads; i += THREADS) {
    float4 v = values[i];
    if (added) {
      const float4 a = reinterpret_cast<const float4*>(added + (size_t)row * width)[i];
      v.x += a.x, v.y += a.y, v.z += a.z, v.w += a.w;
      values[i] = v;
    }
    squares = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, squares))));
  }
  const float sum = block_sum<THREADS / WARP>(squares, scratch);
  const float factor = 1.f / sqrtf(sum / (float)width + epsilon);
  const float4* const weights = reinterpret_cast<const float4*>(weight);
  uint2* const outs = reinterpret_cast<uint2*>(out + (size_t)row * width);
  for (unsigned i = threadIdx.x; i < quads; i += THREADS) {
    const float4 v = values[i], w = weights[i];
    outs[i] = make_uint2(pack_bf16(v.x * factor * w.x, v.y * factor * w.y), pack_bf16(v.z * factor * w.z, v.w * factor * w.w));
  }
}
EXPORT_KERNEL(rms_norm)
