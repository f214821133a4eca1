// Linear layers of prompts in bf16: what linear.cu computes, to the bit, in larger blocks. In a file of its own since its shared
// memory is nearly all that a block can have.
//
// y[row][column + o] = sum over k of W[o][k] * x[row][k]; order of sums, layouts and slices: linear.cu.
#include "weights.cuh"

namespace linear {
using namespace weights;

constexpr int THREADS = 256;

// Where the slice after `slice` begins, as in linear.cu.
__device__ __forceinline__ int slice_end(int slice, int slices, int tiles) {
  return (int)((long long)(slice + 1) * tiles / slices);
}

// 128 rows (blockIdx.x) by 256 outputs (blockIdx.y), a warp has 64 of either, so that each fragment of x is
// read for four panels and each of W for eight tiles of rows. Both come through a ring of four stages of 32 inputs, which runs
// on from slice to slice; what earlier slices summed waits in shared memory. A stage is 24 KiB for 2.1 million operations: L2
// gives half of what `wide` asks of it.
struct __align__(16) TallShared {
  static constexpr int STAGES = 4, ROWS = 128, PANELS = 16;
  uint4 w[STAGES][PANELS][2][32];
  uint2 x[STAGES][ROWS / 8][2][32];
  float4 totals[32][THREADS];
};

static __device__ __forceinline__ void tall(const unsigned char* __restrict__ w, const bf16* __restrict__ x,
                                            float* __restrict__ y, const unsigned* __restrict__ rows_at, int outputs, int inputs,
                                            int y_stride, int y_column, int slices, TallShared& shared) {
  constexpr int STAGES = TallShared::STAGES, ROWS = TallShared::ROWS, PANELS = TallShared::PANELS;
  const int rows = *rows_at, first_row = blockIdx.x * ROWS;
  if (first_row >= rows) return;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, row_in_8 = lane / 4, place = lane % 4;
  const int panels = (outputs + PANEL - 1) / PANEL, first_panel = blockIdx.y * PANELS, tiles = inputs / TILE;
  const int n_of_warp = warp % 2 * 8, panel_of_warp = warp / 2 * 4;

  // A thread stages 16 bytes of each fourth panel, as they lie, and 8 inputs of two rows: the 8 bytes of two neighbouring lanes.
  // Panels and rows that are not there read the last ones, and are not stored.
  const int part = tid % 4, my_row = tid / 4;
  const unsigned char* from_w[4];
  const bf16* from_x[2];
#pragma unroll
  for (int i = 0; i < 4; i++)
    from_w[i] = w + (size_t)min(first_panel + tid / 64 + i * 4, panels - 1) * panel_bytes<BF16>(tiles) + tid % 64 * 16;
#pragma unroll
  for (int i = 0; i < 2; i++) from_x[i] = x + (size_t)min(first_row + my_row + i * 64, rows - 1) * inputs + part * 8;
  uint4* const to_w = &shared.w[0][0][0][0] + tid;
  uint2* const to_x = &shared.x[0][my_row / 8][part / 2][my_row % 8 * 4 + part % 2 * 2];
  constexpr int W_STAGE = sizeof(shared.w[0]) / sizeof(uint4), X_STAGE = sizeof(shared.x[0]) / sizeof(uint2);
  auto stage = [&](int tile) {
    const int into = tile % STAGES;
    if (tile < tiles) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        cp_async16(to_w + into * W_STAGE + i * THREADS, from_w[i], true);
        from_w[i] += Layout<BF16>::codes;
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        cp_async16(to_x + into * X_STAGE + i * (X_STAGE / 2), from_x[i], true);
        from_x[i] += TILE;
      }
    }
    cp_async_commit();
  };

  float acc[4][8][4];
#pragma unroll
  for (int p = 0; p < 4; p++)
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[p][n][i] = 0.f;
#pragma unroll
  for (int tile = 0; tile < STAGES - 1; tile++) stage(tile);
  int slice = 0, end = slice_end(0, slices, tiles);
#pragma unroll 1
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this tile is there, and the one before it has been read
    stage(tile + STAGES - 1);
    const int slot = tile % STAGES;
#pragma unroll
    for (int step = 0; step < 2; step++) {
      unsigned a[4][4];
#pragma unroll
      for (int p = 0; p < 4; p++) {
        const uint4 v = shared.w[slot][panel_of_warp + p][step][lane];
        a[p][0] = v.x, a[p][1] = v.y, a[p][2] = v.z, a[p][3] = v.w;
      }
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const uint2 v = shared.x[slot][n_of_warp + n][step][lane];
        const unsigned b[2] = {v.x, v.y};
#pragma unroll
        for (int p = 0; p < 4; p++) mma_m16n8k16_bf16(acc[p][n], a[p], b);
      }
    }
    if (tile + 1 == end) {
      const bool is_last = slice + 1 == slices;
#pragma unroll
      for (int p = 0; p < 4; p++)
#pragma unroll
        for (int n = 0; n < 8; n++) {
          float4& kept = shared.totals[p * 8 + n][tid];
          float(&sum)[4] = acc[p][n];
          if (slice > 0) {
            const float4 total = kept;
            sum[0] = total.x + sum[0], sum[1] = total.y + sum[1], sum[2] = total.z + sum[2], sum[3] = total.w + sum[3];
          }
          if (!is_last) {
            kept = make_float4(sum[0], sum[1], sum[2], sum[3]);
            sum[0] = sum[1] = sum[2] = sum[3] = 0.f;
          }
        }
      if (!is_last) end = slice_end(++slice, slices, tiles);
    }
  }
  cp_async_wait<0>();
#pragma unroll
  for (int p = 0; p < 4; p++)
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = first_row + (n_of_warp + n) * 8 + place * 2 + i % 2;
        const int output = (first_panel + panel_of_warp + p) * PANEL + row_in_8 + i / 2 * 8;
        if (row < rows && output < outputs) y[(size_t)row * y_stride + y_column + output] = acc[p][n][i];
      }
}
}  // namespace linear

extern "C" __global__ void __launch_bounds__(256, 1)
    linear_128_bf16(const unsigned char* w, const bf16* x, float* y, const unsigned* rows_at, int outputs, int inputs,
                    int y_stride, int y_column, int slices) {
  DYN_SHARED(linear::TallShared, shared);
  linear::tall(w, x, y, rows_at, outputs, inputs, y_stride, y_column, slices, *shared);
}
EXPORT_KERNEL(linear_128_bf16)
