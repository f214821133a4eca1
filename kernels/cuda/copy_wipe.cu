// Copies of blocks of the pool, in order, and their zeroing.
//
// A copy may read what an earlier one wrote. No thread needs another for that: each has its own 16 bytes of every block and
// does all copies of those, in order. Floor: a block's bytes read and written for each copy, written for each wipe.
#include "common.cuh"

constexpr int COPY_THREADS = 256;

// copies [count]: (from, to). grid ceil(block_bytes / (16 * COPY_THREADS)), block COPY_THREADS
extern "C" __global__ void __launch_bounds__(COPY_THREADS)
    copy_blocks(unsigned char* pool, unsigned long long block_bytes, const uint2* __restrict__ copies,
                const unsigned* __restrict__ copies_count) {
  const unsigned long long at = ((unsigned long long)blockIdx.x * COPY_THREADS + threadIdx.x) * 16;
  if (at >= block_bytes) return;
  const unsigned count = *copies_count;
  for (unsigned i = 0; i < count; i++) {
    const uint2 copy = copies[i];
    *reinterpret_cast<uint4*>(pool + copy.y * block_bytes + at) = *reinterpret_cast<const uint4*>(pool + copy.x * block_bytes + at);
  }
}

// grid (ceil(block_bytes / (16 * COPY_THREADS)), min(wipes_max, 65535)), block COPY_THREADS
extern "C" __global__ void __launch_bounds__(COPY_THREADS)
    wipe_blocks(unsigned char* pool, unsigned long long block_bytes, const unsigned* __restrict__ blocks,
                const unsigned* __restrict__ wipes_count) {
  const unsigned long long at = ((unsigned long long)blockIdx.x * COPY_THREADS + threadIdx.x) * 16;
  if (at >= block_bytes) return;
  const unsigned count = *wipes_count;
  for (unsigned i = blockIdx.y; i < count; i += gridDim.y) {
    *reinterpret_cast<uint4*>(pool + blocks[i] * block_bytes + at) = make_uint4(0, 0, 0, 0);
  }
}
EXPORT_KERNEL(copy_blocks)
EXPORT_KERNEL(wipe_blocks)
