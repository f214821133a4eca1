// Linear layers: y[row][column + o] = sum over k of W[o][k] * x[row][k].
//
// W [outputs, inputs] as weights.cuh has it, in bf16 or in one of six block formats; x bf16 [rows, inputs]; y f32. The weights
// are the 16-row operand of mma.m16n8k16 and 8 rows of x the other one, so that one row costs what it has to: the weights.
//
// A row's bits depend on the shape of W alone. The inputs are cut into `slices` (1, 2, 4 or 8, chosen from the shape): slice s
// has the tiles [s * tiles / slices, (s + 1) * tiles / slices). An element is its slices' sums, added in ascending order; a slice's
// sum starts at zero and takes its tiles in ascending order. `narrow` gives each slice to a warp and adds in shared memory.
// `wide` takes the slices one after the other in a block, or one per block and adds them in `combine`.
//
// Floor: the bytes of W once (decode), or 2 * rows * outputs * inputs operations of the tensor cores (prefill). In decode a warp
// has one or two groups of tiles in flight while it multiplies another: 2 to 4 KiB in bf16 with 24 warps on an SM, 1 to 2 KiB in
// 4 bits with 16. There a tile costs about 60 instructions of a warp (bf16: 25), 15 cycles of an SM, for the 290 bytes that
// 4.3 TB/s bring in 15 to 16 cycles to each of 132: so each instruction saved counts. With many rows x is read again for each
// 128 outputs and W for each 64 rows, both out of L2, which is what limits prefill.
#include "weights.cuh"

namespace linear {
using namespace weights;

constexpr int WARPS = 8, THREADS = WARPS * 32;

struct Range { int begin, end; };
__device__ __forceinline__ Range slice_tiles(int slice, int slices, int tiles) {
  return {(int)((long long)slice * tiles / slices), (int)((long long)(slice + 1) * tiles / slices)};
}

// Shared memory is declared by the kernels and not here: a template's own would not be seen as such by the emulation.
typedef float NarrowShared[WARPS][4][32];
template <int N> struct __align__(16) WideShared {
  static constexpr int STAGES = 3, STAGE_TILES = N == 8 ? 1 : 2;
  uint2 staged[STAGES][STAGE_TILES][N][2][32];
  float2 tile_sum[STAGE_TILES][N][4];
  float totals[N * 4][THREADS];
};

// What a warp of `narrow` holds of some neighbouring tiles. The lanes that share a row each know one tile's scales.
template <int F> struct Group {
  static constexpr int TILES = F == BF16 ? 2 : 4;
  Codes<F> codes[TILES];
  Scales<F> scales;
  uint2 x[TILES][2];
};

// What a warp of `one_row` holds of 4 neighbouring tiles: their codes; the scales of one of them, as in `Group`; and the row's
// inputs of one of them.
template <int F> struct RowGroup {
  static constexpr int TILES = 4;
  Codes<F> codes[TILES];
  Scales<F> scales;
  uint2 x[2];
};

// A single row by a block format: the blocks, slices and sums of `narrow`, and its bits. mma has 8 columns of x for one row: column 2i
// and the next one are the row's inputs in tile i of 4. So one product with ones gives the sums of x for all 4 tiles, and of tile
// i's product lane 4g + i has the column that counts, and its scales. That lane adds it to the total, which the other lanes then take
// from it: of what a tile costs beside its codes half is left.
template <int F>
static __device__ __forceinline__ void one_row(const unsigned char* __restrict__ w, const bf16* __restrict__ x,
                                               float* __restrict__ y, const unsigned* __restrict__ rows_at, int outputs,
                                               int inputs, int y_stride, int y_column, int slices,
                                               float (&parts)[WARPS][2][8]) {
  constexpr int TILES = RowGroup<F>::TILES;
  if (*rows_at == 0) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row_in_8 = lane / 4, place = lane % 4;
  const int slice = warp % slices, panels = (outputs + PANEL - 1) / PANEL;
  const int panel = blockIdx.x * (WARPS / slices) + warp / slices;
  const int tiles = inputs / TILE;
  float total[4] = {0.f, 0.f, 0.f, 0.f};  // of the uneven columns nobody wants one
  if (panel < panels) {
    const Panel<F> at(w + (size_t)panel * panel_bytes<F>(tiles), tiles, lane);
    const Range range = slice_tiles(slice, slices, tiles);
    auto load = [&](RowGroup<F>& to, int base) {
      const int last = range.end - 1;
      if (base + TILES <= range.end) {
#pragma unroll
        for (int i = 0; i < TILES; i++) at.load(to.codes[i], base + i);
      } else if (base < range.end) {
        // Past the end of the slice its last tile is read, again.
#pragma unroll
        for (int i = 0; i < TILES; i++) at.load(to.codes[i], min(base + i, last));
      }
      if (base < range.end) {
        const bf16* const from = x + min(base + lane / 8, last) * TILE + place * 4;
#pragma unroll
        for (int step = 0; step < 2; step++) to.x[step] = *reinterpret_cast<const uint2*>(from + step * 16);
        at.load(to.scales, min(base + place, last));
      }
    };
    auto multiply = [&](const RowGroup<F>& group, int count) {
      const Factors<F> by = factors<F>(group.scales);
      float sums[4] = {0.f, 0.f, 0.f, 0.f};
      if constexpr (Layout<F>::least) tile_sums(group.x, sums);
      auto one = [&](int i) {
        unsigned a[2][4];
        step_fragment<F>(group.codes[i], 0, a[0]);
        step_fragment<F>(group.codes[i], 1, a[1]);
        multiply_tile<F>(a, by, group.x, make_float2(sums[0], sums[1]), total);
#pragma unroll
        for (int half = 0; half < 4; half += 2) total[half] = __shfl_sync(ALL_LANES, total[half], (lane & 28) + i);
      };
      if (count >= TILES) {
#pragma unroll
        for (int i = 0; i < TILES; i++) one(i);
      } else {
#pragma unroll
        for (int i = 0; i < TILES - 1; i++)
          if (i < count) one(i);
      }
    };
    RowGroup<F> even, odd;
    load(even, range.begin);
    load(odd, range.begin + TILES);
    for (int base = range.begin; base < range.end; base += 2 * TILES) {
      multiply(even, range.end - base);
      load(even, base + 2 * TILES);
      if (base + TILES < range.end) {
        multiply(odd, range.end - base - TILES);
        load(odd, base + 3 * TILES);
      }
    }
  }
  if (place == 0) parts[warp][0][row_in_8] = total[0], parts[warp][1][row_in_8] = total[2];
  __syncthreads();
  if (slice != 0 || panel >= panels || lane >= PANEL) return;
  float sum = parts[warp][lane / 8][lane % 8];
#pragma unroll 1
  for (int s = 1; s < slices; s++) sum += parts[warp + s][lane / 8][lane % 8];
  const int output = panel * PANEL + lane;
  if (output < outputs) y[y_column + output] = sum;
}

// At most 8 rows in a block (blockIdx.y is the row tile). Its 8 warps are 8 / slices panels with `slices` warps each.
template <int F>
static __device__ __forceinline__ void narrow(const unsigned char* __restrict__ w, const bf16* __restrict__ x,
                                              float* __restrict__ y, const unsigned* __restrict__ rows_at, int outputs,
                                              int inputs, int y_stride, int y_column, int slices,
                                              NarrowShared& parts) {
  constexpr int TILES = Group<F>::TILES;
  const int rows = *rows_at, first_row = blockIdx.y * 8;
  if (first_row >= rows) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row_in_8 = lane / 4, place = lane % 4;
  const int slice = warp % slices, panels = (outputs + PANEL - 1) / PANEL;
  const int panel = blockIdx.x * (WARPS / slices) + warp / slices;
  const int tiles = inputs / TILE;
  float acc[4] = {0.f, 0.f, 0.f, 0.f};
  if (panel < panels) {
    const Panel<F> at(w + (size_t)panel * panel_bytes<F>(tiles), tiles, lane);
    // A row that is not there reads the last one, and is not stored.
    const bf16* from = x + (size_t)min(first_row + row_in_8, rows - 1) * inputs + place * 4;
    const Range range = slice_tiles(slice, slices, tiles);
    // Past the end of the slice nothing is read but its last tile, again.
    auto load = [&](Group<F>& to, int base) {
      auto one = [&](int i, int index) {
        at.load(to.codes[i], index);
#pragma unroll
        for (int step = 0; step < 2; step++) to.x[i][step] = *reinterpret_cast<const uint2*>(from + index * TILE + step * 16);
      };
      if (base + TILES <= range.end) {
#pragma unroll
        for (int i = 0; i < TILES; i++) one(i, base + i);
      } else if (base < range.end) {
#pragma unroll
        for (int i = 0; i < TILES; i++) one(i, min(base + i, range.end - 1));
      }
      if (F != BF16 && base < range.end) at.load(to.scales, min(base + place, range.end - 1));
    };
    auto multiply = [&](const Group<F>& group, int count) {
      const Factors<F> mine = factors<F>(group.scales);
      auto one = [&](int i) {
        unsigned a[2][4];
        step_fragment<F>(group.codes[i], 0, a[0]);
        step_fragment<F>(group.codes[i], 1, a[1]);
        float sums[4] = {0.f, 0.f, 0.f, 0.f};
        if constexpr (Layout<F>::least) tile_sums(group.x[i], sums);
        Factors<F> by{};
        if constexpr (F != BF16) by = factors_of<F>(mine, (lane & 28) + i);
        multiply_tile<F>(a, by, group.x[i], make_float2(sums[0], sums[1]), acc);
      };
      if (count >= TILES) {
#pragma unroll
        for (int i = 0; i < TILES; i++) one(i);
      } else {
#pragma unroll
        for (int i = 0; i < TILES - 1; i++)
          if (i < count) one(i);
      }
    };
    Group<F> even, odd;
    load(even, range.begin);
    load(odd, range.begin + TILES);
    for (int base = range.begin; base < range.end; base += 2 * TILES) {
      multiply(even, range.end - base);
      load(even, base + 2 * TILES);
      if (base + TILES < range.end) {
        multiply(odd, range.end - base - TILES);
        load(odd, base + 3 * TILES);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) parts[warp][i][lane] = acc[i];
  __syncthreads();
  if (slice != 0 || panel >= panels) return;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float total = parts[warp][i][lane];
#pragma unroll 1
    for (int s = 1; s < slices; s++) total += parts[warp + s][i][lane];
    const int row = first_row + place * 2 + i % 2, output = panel * PANEL + row_in_8 + i / 2 * 8;
    if (row < rows && output < outputs) y[(size_t)row * y_stride + y_column + output] = total;
  }
}

// 8 * N rows (blockIdx.x is the row tile, so that blocks that read the same weights run together) by 128 outputs: a warp has
// 16 outputs and all rows. x goes through shared memory in the order of the fragments, in three stages; the weights of two
// stages are in registers. Each block does `slices / gridDim.z` slices: all of them, or one into `partials` [slices, rows_max,
// outputs].
template <int F, int N>
static __device__ __forceinline__ void wide(const unsigned char* __restrict__ w, const bf16* __restrict__ x,
                                     float* __restrict__ y, float* __restrict__ partials,
                                     const unsigned* __restrict__ rows_at, int outputs, int inputs, int y_stride,
                                     int y_column, int rows_max, int slices, WideShared<N>& shared) {
  constexpr int STAGES = WideShared<N>::STAGES, STAGE_TILES = WideShared<N>::STAGE_TILES;
  auto& staged = shared.staged;
  auto& tile_sum = shared.tile_sum;
  const int rows = *rows_at, first_row = blockIdx.x * 8 * N;
  if (first_row >= rows) return;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, row_in_8 = lane / 4, place = lane % 4;
  const int panels = (outputs + PANEL - 1) / PANEL, tiles = inputs / TILE;
  const int panel = blockIdx.y * WARPS + warp;
  const bool has_panel = panel < panels;
  const Panel<F> at(w + (size_t)(has_panel ? panel : 0) * panel_bytes<F>(tiles), tiles, lane);
  const int in_block = slices / (int)gridDim.z, first_slice = blockIdx.z * in_block;
  float acc[N][4];

  // A thread stages 8 inputs of one row, if any: they are the 8 bytes of two neighbouring lanes.
  static_assert(STAGE_TILES * N * 32 <= THREADS, "a chunk for each thread");
  const int part = tid % 4, my_row = tid / 4 % (8 * N), my_tile = tid / (32 * N);
  const bool has_chunk = my_tile < STAGE_TILES, has_row = first_row + my_row < rows;
  const bf16* const chunk = x + (size_t)(has_row ? first_row + my_row : 0) * inputs + my_tile * TILE + part * 8;
  uint2* const to = &staged[0][has_chunk ? my_tile : 0][my_row / 8][part / 2][my_row % 8 * 4 + part % 2 * 2];
  constexpr int STAGE = sizeof(staged[0]) / sizeof(uint2);

  for (int slice = first_slice; slice < first_slice + in_block; slice++) {
    const Range range = slice_tiles(slice, slices, tiles);
    const int stages = (range.end - range.begin + STAGE_TILES - 1) / STAGE_TILES;
    int slot = 0;  // of the stage that is multiplied
    auto stage = [&](int index, int into) {
      const int first = range.begin + index * STAGE_TILES;
      const bool in = has_row && first + my_tile < range.end;
      if (index < stages && has_chunk) cp_async16(to + into * STAGE, in ? chunk + (size_t)first * TILE : x, in);
      cp_async_commit();
    };
    struct Tile {
      Codes<F> codes;
      Scales<F> scales;
    };
    auto fetch = [&](Tile(&into)[STAGE_TILES], int index) {
#pragma unroll
      for (int i = 0; i < STAGE_TILES; i++) {
        const int from = range.begin + index * STAGE_TILES + i;
        if (from < range.end) {
          at.load(into[i].codes, from);
          at.load(into[i].scales, from);
        }
      }
    };
    auto step = [&](Tile(&held)[STAGE_TILES], int index) {
      cp_async_wait<1>();
      __syncthreads();  // stage `index` is there, and the one before it has been read
      stage(index + 2, slot == 0 ? STAGES - 1 : slot - 1);
      if constexpr (Layout<F>::least) {
        if (warp < N) {
#pragma unroll
          for (int i = 0; i < STAGE_TILES; i++) {
            const uint2 values[2] = {staged[slot][i][warp][0][lane], staged[slot][i][warp][1][lane]};
            float sums[4];
            tile_sums(values, sums);
            if (lane < 4) tile_sum[i][warp][lane] = make_float2(sums[0], sums[1]);
          }
        }
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < STAGE_TILES; i++) {
        if (has_panel && range.begin + index * STAGE_TILES + i < range.end) {
          unsigned a[2][4];
          step_fragment<F>(held[i].codes, 0, a[0]);
          step_fragment<F>(held[i].codes, 1, a[1]);
          const Factors<F> by = factors<F>(held[i].scales);
#pragma unroll
          for (int n = 0; n < N; n++) {
            const uint2 values[2] = {staged[slot][i][n][0][lane], staged[slot][i][n][1][lane]};
            float2 sums = make_float2(0.f, 0.f);
            if constexpr (Layout<F>::least) sums = tile_sum[i][n][place];
            multiply_tile<F>(a, by, values, sums, acc[n]);
          }
        }
      }
      slot = slot == STAGES - 1 ? 0 : slot + 1;
      fetch(held, index + 2);
    };
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) acc[n][i] = 0.f;
    Tile even[STAGE_TILES], odd[STAGE_TILES];
    fetch(even, 0);
    fetch(odd, 1);
    __syncthreads();  // the slice before has read its last stages
    stage(0, 0);
    stage(1, 1);
    for (int index = 0; index < stages; index += 2) {
      step(even, index);
      if (index + 1 < stages) step(odd, index + 1);
    }
    cp_async_wait<0>();
    if (in_block > 1) {
#pragma unroll
      for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float& total = shared.totals[n * 4 + i][tid];
          if (slice > first_slice) acc[n][i] = total + acc[n][i];
          total = acc[n][i];
        }
    }
  }
  if (!has_panel) return;
  const bool whole = gridDim.z == 1;
  float* out = whole ? y + y_column : partials + (size_t)blockIdx.z * rows_max * outputs;
  const size_t stride = whole ? y_stride : outputs;
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = first_row + n * 8 + place * 2 + i % 2, output = panel * PANEL + row_in_8 + i / 2 * 8;
      if (row < rows && output < outputs) out[(size_t)row * stride + output] = acc[n][i];
    }
}
}  // namespace linear

// y[row][column + o] = the slices' sums in ascending order. grid (outputs / 256, rows_max).
extern "C" __global__ void __launch_bounds__(256)
    linear_combine(float* __restrict__ y, const float* __restrict__ partials, const unsigned* __restrict__ rows_at,
                   int outputs, int y_stride, int y_column, int rows_max, int slices) {
  const int output = blockIdx.x * 256 + threadIdx.x, row = blockIdx.y;
  if (row >= (int)*rows_at || output >= outputs) return;
  float total = partials[(size_t)row * outputs + output];
  for (int s = 1; s < slices; s++) total += partials[((size_t)s * rows_max + row) * outputs + output];
  y[(size_t)row * y_stride + y_column + output] = total;
}
EXPORT_KERNEL(linear_combine)

// Three blocks on an SM where 80 registers are enough without spilling.
#define LINEAR_ONE(NAME, FORMAT)                                                                                \
  extern "C" __global__ void __launch_bounds__(256, FORMAT == weights::Q5_K || FORMAT == weights::Q6_K ? 2 : 3) \
      linear_1_##NAME(const unsigned char* w, const bf16* x, float* y, const unsigned* rows_at, int outputs,    \
                      int inputs, int y_stride, int y_column, int slices) {                                     \
    SHARED float parts[linear::WARPS][2][8];                                                                    \
    linear::one_row<FORMAT>(w, x, y, rows_at, outputs, inputs, y_stride, y_column, slices, parts);              \
  }                                                                                                             \
  EXPORT_KERNEL(linear_1_##NAME)
#define LINEAR_NARROW(NAME, FORMAT)                                                                             \
  extern "C" __global__ void __launch_bounds__(256, 2)                                                          \
      linear_8_##NAME(const unsigned char* w, const bf16* x, float* y, const unsigned* rows_at, int outputs,    \
                      int inputs, int y_stride, int y_column, int slices) {                                     \
    SHARED linear::NarrowShared shared;                                                                         \
    linear::narrow<FORMAT>(w, x, y, rows_at, outputs, inputs, y_stride, y_column, slices, shared);              \
  }                                                                                                             \
  EXPORT_KERNEL(linear_8_##NAME)
// Two blocks on an SM where 128 registers are enough without spilling.
#define LINEAR_WIDE(NAME, FORMAT, ROWS)                                                                         \
  extern "C" __global__ void __launch_bounds__(256, FORMAT == weights::Q6_K && ROWS == 64 ? 1 : 2)              \
      linear_##ROWS##_##NAME(const unsigned char* w, const bf16* x, float* y, float* partials,                  \
                             const unsigned* rows_at, int outputs, int inputs, int y_stride, int y_column,      \
                             int rows_max, int slices) {                                                        \
    SHARED linear::WideShared<ROWS / 8> shared;                                                                 \
    linear::wide<FORMAT, ROWS / 8>(w, x, y, partials, rows_at, outputs, inputs, y_stride, y_column, rows_max,   \
                                   slices, shared);                                                             \
  }                                                                                                             \
  EXPORT_KERNEL(linear_##ROWS##_##NAME)
#define LINEAR(NAME, FORMAT)    \
  LINEAR_NARROW(NAME, FORMAT)   \
  LINEAR_WIDE(NAME, FORMAT, 16) \
  LINEAR_WIDE(NAME, FORMAT, 32) \
  LINEAR_WIDE(NAME, FORMAT, 64)

LINEAR(bf16, weights::BF16)
LINEAR(q4_0, weights::Q4_0)
LINEAR(q4_1, weights::Q4_1)
LINEAR(q8_0, weights::Q8_0)
LINEAR(q4_k, weights::Q4_K)
LINEAR(q5_k, weights::Q5_K)
LINEAR(q6_k, weights::Q6_K)
LINEAR_ONE(q4_0, weights::Q4_0)
LINEAR_ONE(q4_1, weights::Q4_1)
LINEAR_ONE(q8_0, weights::Q8_0)
LINEAR_ONE(q4_k, weights::Q4_K)
LINEAR_ONE(q5_k, weights::Q5_K)
LINEAR_ONE(q6_k, weights::Q6_K)
