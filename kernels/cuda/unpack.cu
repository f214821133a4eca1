// bf16 weights out of their panels (weights.cuh) into rows, as libraries want them: out[o, k] = w[o, k], the same bits.
//
// out bf16 [outputs, inputs]; inputs a multiple of 32. Floor: 2 bytes read and 2 written a weight. A lane moves the 16 bytes
// that it holds of one step: four inputs of two rows, so that a warp reads 512 neighbouring bytes and writes whole sectors.
#include "weights.cuh"

constexpr int UNPACK_THREADS = 256;

// grid (ceil(inputs / 128), panels), block UNPACK_THREADS: a warp for each 16 inputs
extern "C" __global__ void __launch_bounds__(UNPACK_THREADS)
    unpack_bf16(bf16* __restrict__ out, const unsigned char* __restrict__ packed, unsigned outputs, unsigned inputs) {
  const unsigned step = blockIdx.x * (UNPACK_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (step * 16 >= inputs) return;
  const unsigned char* const panel =
      packed + blockIdx.y * weights::panel_bytes<weights::BF16>(inputs / weights::TILE);
  const uint4 words = load_stream(panel + (size_t)step * 512 + lane * 16);
  const unsigned row = blockIdx.y * weights::PANEL + lane / 4;
  bf16* const to = out + (size_t)row * inputs + step * 16 + lane % 4 * 4;
  if (row < outputs) *reinterpret_cast<uint2*>(to) = make_uint2(words.x, words.z);
  if (row + 8 < outputs) *reinterpret_cast<uint2*>(to + (size_t)8 * inputs) = make_uint2(words.y, words.w);
}
EXPORT_KERNEL(unpack_bf16)
