// out = silu(gate) * up, f32 in, bf16 out.
//
// Floor: 8 bytes read and 2 written for each output. Four outputs a thread, 16-byte loads.
#include "common.cuh"

constexpr int SWIGLU_THREADS = 256;

// gate_up [rows, 2 * width], gates first; out [rows, width]; width a multiple of 4.
// grid (ceil(width / (4 * SWIGLU_THREADS)), min(rows_max, 65535)), block SWIGLU_THREADS
extern "C" __global__ void __launch_bounds__(SWIGLU_THREADS)
    swiglu(bf16* __restrict__ out, const float* __restrict__ gate_up, unsigned width, const unsigned* __restrict__ rows_count) {
  const unsigned at = (blockIdx.x * SWIGLU_THREADS + threadIdx.x) * 4, rows = *rows_count;
  if (at >= width) return;
  for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
    const float* in = gate_up + (unsigned long long)row * 2 * width + at;
    const float4 gate = *reinterpret_cast<const float4*>(in), up = *reinterpret_cast<const float4*>(in + width);
    const float g[4] = {gate.x, gate.y, gate.z, gate.w}, u[4] = {up.x, up.y, up.z, up.w};
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = g[i] / (1.f + __expf(-g[i])) * u[i];
    const uint2 packed = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
    *reinterpret_cast<uint2*>(out + (unsigned long long)row * width + at) = packed;
  }
}
EXPORT_KERNEL(swiglu)
