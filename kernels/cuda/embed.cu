// The embedding of each token into the residual stream.
//
// Floor: 2 bytes read and 4 written for each value.
#include "common.cuh"

constexpr int EMBED_THREADS = 128;

// table [vocabulary, hidden] bf16, stream [rows, hidden]; hidden a multiple of 8. grid rows_max, block EMBED_THREADS
extern "C" __global__ void __launch_bounds__(EMBED_THREADS)
    embed_bf16(float* __restrict__ stream, const bf16* __restrict__ table, const unsigned* __restrict__ tokens, unsigned hidden,
               const unsigned* __restrict__ rows_count) {
  const unsigned row = blockIdx.x;
  if (row >= *rows_count) return;
  const bf16* in = table + (unsigned long long)tokens[row] * hidden;
  float* out = stream + (unsigned long long)row * hidden;
  for (unsigned at = threadIdx.x * 8; at < hidden; at += EMBED_THREADS * 8) {
    const bf16x8 values = load8(in + at);
    const float2 a = __bfloat1622float2(values.v[0]), b = __bfloat1622float2(values.v[1]);
    const float2 c = __bfloat1622float2(values.v[2]), d = __bfloat1622float2(values.v[3]);
    *reinterpret_cast<float4*>(out + at) = make_float4(a.x, a.y, b.x, b.y);
    *reinterpret_cast<float4*>(out + at + 4) = make_float4(c.x, c.y, d.x, d.y);
  }
}
EXPORT_KERNEL(embed_bf16)
