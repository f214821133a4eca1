// Many adapters in one step: y[row] += sum over the row's entries, in order, of weight * scale * B (A x[row]) (Hu et al., 2021;
// the two kernels and their segments as Punica's SGMV, Chen et al., 2023). x bf16 [rows, inputs], A and B bf16, y f32.
//
// An item is up to 8 * N neighbouring rows with the same entries. An entry names a slot, and what a slot adds to a group of
// modules with one input (q, k and v; o; gate and up; down) is a chain of pieces: pairs A, B whose products add up, cut by rank
// so that each matrix fits where it lies. `shrink` writes t = A x in f32, cut over the inputs into gridDim.z parts that `expand`
// adds in ascending order. `expand` multiplies the upper and the lower bf16 half of t with B, which keeps 16 bits of it, and
// owns its elements of y through all entries. So DoRA finds the plain output Wx in y, where nothing was stored yet.
//
// A row's bits depend on its own entries alone: sums over inputs are cut by `inputs`, sums over ranks run upwards.
//
// Floor: the bytes of the A and B of the adapters that are used (once for all rows of an item), and y twice.
#include "common.cuh"

namespace lora {

constexpr unsigned NONE = 0xffffffffu;
constexpr int WARPS = 8, GROUPS = 4, TILE = 32, PARTS_MAX = 4;

// Twins in src/cuda/lora_tables.rs, which says what they mean.
struct Piece {
  unsigned long long a, b[3], growth[3];
  float scale[3];
  unsigned rank[3], row, next, padding[2];
};
struct Entry { unsigned slot; float weight; unsigned modules, layer_from, layer_to, tmp, stride, row; };
struct Item { unsigned row, rows, entry_begin, entry_end; };
static_assert(sizeof(Piece) == 96 && sizeof(Entry) == 32 && sizeof(Item) == 16, "as in Rust");

// Q, K, V, O, Gate, Up, Down are the bits 0 to 6 of a module mask; the first one of each group.
__device__ __forceinline__ unsigned group_modules(unsigned modules, int group) {
  const int first = group == 0 ? 0 : group == 1 ? 3 : group == 2 ? 4 : 6, count = group == 0 ? 3 : group == 2 ? 2 : 1;
  return modules >> first & ((1u << count) - 1);
}
// Which modules of the group an entry changes in this layer.
__device__ __forceinline__ unsigned active(const Entry& entry, unsigned layer, int group) {
  return layer >= entry.layer_from && layer < entry.layer_to ? group_modules(entry.modules, group) : 0;
}
__device__ __forceinline__ unsigned first_piece(const Entry& entry, unsigned layer, unsigned layers, int group) {
  return (entry.slot * layers + layer) * GROUPS + group;
}

// grid (items, at least 1, parts). The 16-rank tiles of all entries and pieces go round over blockIdx.y; within a tile each
// warp has a part of the inputs, and the warps' sums are added in ascending order.
template <int N>
static __device__ __forceinline__ void shrink(const Piece* __restrict__ pieces, const Entry* __restrict__ entries,
                                       const Item* __restrict__ items, const unsigned* __restrict__ item_count,
                                       const bf16* __restrict__ x, float* __restrict__ tmp, unsigned tmp_floats,
                                       int inputs, unsigned layer, unsigned layers, int group,
                                       float (&sums)[WARPS][N * 4][32]) {
  constexpr int AHEAD = N == 1 ? 4 : 2;  // tiles in flight
  // The tables are read one after the other, which takes longer than what follows: the first two not so.
  const Item item = items[blockIdx.x];
  if (blockIdx.x >= *item_count) return;
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, row_in_8 = lane / 4, place = lane % 4;
  const int tiles = inputs / TILE, slices = WARPS * gridDim.z, slice = blockIdx.z * WARPS + warp;
  const int begin = (int)((long long)slice * tiles / slices), end = (int)((long long)(slice + 1) * tiles / slices);
  unsigned unit = 0;
  for (unsigned e = item.entry_begin; e < item.entry_end; e++) {
    const Entry entry = entries[e];
    if (active(entry, layer, group) == 0) continue;
    for (unsigned p = first_piece(entry, layer, layers, group); p != NONE; p = pieces[p].next) {
      const unsigned total = pieces[p].rank[0] + pieces[p].rank[1] + pieces[p].rank[2];
      const bf16* a = reinterpret_cast<const bf16*>(pieces[p].a);
      for (unsigned first = 0; first < total; first += 16) {
        if (unit++ % gridDim.y != blockIdx.y) continue;
        float acc[N][4];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) acc[n][i] = 0.f;
        // Lane 4g + t takes the inputs 8t..8t + 7 of a tile of both operands: which ones mma adds in one step is all the same.
        // A rank or a row that is not there reads the last one, and nobody reads what comes of it.
        const bf16* ranks[2];
        const bf16* rows[N];
#pragma unroll
        for (int half = 0; half < 2; half++)
          ranks[half] = a + (size_t)min(first + row_in_8 + half * 8, total - 1) * inputs + place * 8;
#pragma unroll
        for (int n = 0; n < N; n++)
          rows[n] = x + (size_t)(item.row + min(n * 8 + row_in_8, item.rows - 1)) * inputs + place * 8;
        uint4 held[AHEAD][2], values[AHEAD][N];
        auto load = [&](int i, int tile) {
#pragma unroll
          for (int half = 0; half < 2; half++) held[i][half] = load_stream(ranks[half] + tile * TILE);
#pragma unroll
          for (int n = 0; n < N; n++) values[i][n] = *reinterpret_cast<const uint4*>(rows[n] + tile * TILE);
        };
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
          if (begin + i < end) load(i, begin + i);
        for (int base = begin; base < end; base += AHEAD) {
#pragma unroll
          for (int i = 0; i < AHEAD; i++) {
            if (base + i < end) {
              const unsigned step0[4] = {held[i][0].x, held[i][1].x, held[i][0].y, held[i][1].y};
              const unsigned step1[4] = {held[i][0].z, held[i][1].z, held[i][0].w, held[i][1].w};
#pragma unroll
              for (int n = 0; n < N; n++) {
                const unsigned b0[2] = {values[i][n].x, values[i][n].y}, b1[2] = {values[i][n].z, values[i][n].w};
                mma_m16n8k16_bf16(acc[n], step0, b0);
                mma_m16n8k16_bf16(acc[n], step1, b1);
              }
              if (base + i + AHEAD < end) load(i, base + i + AHEAD);
            }
          }
        }
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) sums[warp][n * 4 + i][lane] = acc[n][i];
        __syncthreads();
        for (unsigned i = warp; i < N * 4; i += WARPS) {
          float sum = sums[0][i][lane];
#pragma unroll
          for (int w = 1; w < WARPS; w++) sum += sums[w][i][lane];
          const unsigned row = i / 4 * 8 + place * 2 + i % 2, rank = first + row_in_8 + i % 4 / 2 * 8;
          if (row < item.rows && rank < total)
            tmp[(size_t)blockIdx.z * tmp_floats + entry.tmp + (size_t)(item.row + row - entry.row) * entry.stride +
                pieces[p].row + rank] = sum;
        }
        __syncthreads();
      }
    }
  }
}

// Four values of t as the operand of mma: the upper halves, and what bf16 makes of the rest.
struct Split { unsigned high[2], low[2]; };
__device__ __forceinline__ Split split(const float4& t) {
  Split s;
  s.high[0] = pack_bf16(t.x, t.y), s.high[1] = pack_bf16(t.z, t.w);
  auto part = [](unsigned bits) { return __uint_as_float(bits); };
  s.low[0] = pack_bf16(t.x - part(s.high[0] << 16), t.y - part(s.high[0] & 0xffff0000u));
  s.low[1] = pack_bf16(t.z - part(s.high[1] << 16), t.w - part(s.high[1] & 0xffff0000u));
  return s;
}

struct Module { int index, first; };  // of a group, and a block's first output
__device__ __forceinline__ Module block_module(int block, int width, int outputs0, int outputs1) {
  const int blocks0 = (outputs0 + width - 1) / width, blocks1 = (outputs1 + width - 1) / width;
  if (block < blocks0) return {0, block * width};
  if (block < blocks0 + blocks1) return {1, (block - blocks0) * width};
  return {2, (block - blocks0 - blocks1) * width};
}

// grid (tiles of 512 or 256 outputs of each module in turn, items). A warp has four or two times 16 outputs and the item's
// rows: enough of B in flight for what it takes to find it.
template <int N>
static __device__ __forceinline__ void expand(const Piece* __restrict__ pieces, const Entry* __restrict__ entries,
                                       const Item* __restrict__ items, const unsigned* __restrict__ item_count,
                                       const float* __restrict__ tmp, unsigned tmp_floats, int parts, float* y,
                                       int y_stride, int outputs0, int outputs1, int outputs2, int column0,
                                       int column1, int column2, unsigned layer, unsigned layers, int group) {
  constexpr int PANELS = N == 1 ? 4 : 2, WIDTH = PANELS * 16 * WARPS;
  const Item item = items[blockIdx.y];
  if (blockIdx.y >= *item_count) return;
  if (item.entry_begin == item.entry_end) return;
  const Module module = block_module(blockIdx.x, WIDTH, outputs0, outputs1);
  const int outputs = module.index == 0 ? outputs0 : module.index == 1 ? outputs1 : outputs2;
  const int column = module.index == 0 ? column0 : module.index == 1 ? column1 : column2;
  const int lane = threadIdx.x % 32, group_row = lane / 4, place = lane % 4, rows = item.rows;
  const int first = module.first + threadIdx.x / 32 * (PANELS * 16);
  if (first >= outputs) return;
  // Outputs are multiples of 32: of a warp's panels, two at a time are there or not.
  const int panels = min(PANELS, (outputs - first) / 16);
  float* const out = y + (size_t)item.row * y_stride + column + first + group_row;
  auto element = [&](int m, int n, int i) {
    return out + (size_t)(n * 8 + place * 2 + i % 2) * y_stride + m * 16 + i / 2 * 8;
  };
  auto has_row = [&](int n, int i) { return n * 8 + place * 2 + i % 2 < rows; };
  float value[PANELS][N][4];
#pragma unroll
  for (int m = 0; m < PANELS; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) value[m][n][i] = m < panels && has_row(n, i) ? *element(m, n, i) : 0.f;
  for (unsigned e = item.entry_begin; e < item.entry_end; e++) {
    const Entry entry = entries[e];
    if (!(active(entry, layer, group) >> module.index & 1)) continue;
    bool is_first = true;  // of the module's pieces
    for (unsigned p = first_piece(entry, layer, layers, group); p != NONE; p = pieces[p].next) {
      const Piece& piece = pieces[p];
      const int rank = piece.rank[module.index];
      if (rank == 0) continue;
      const bf16* b = reinterpret_cast<const bf16*>(piece.b[module.index]);
      const float* t = tmp + entry.tmp + (size_t)(item.row - entry.row) * entry.stride + piece.row;
      for (int m = 0; m < module.index; m++) t += piece.rank[m];
      float acc[PANELS][N][4];
#pragma unroll
      for (int m = 0; m < PANELS; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) acc[m][n][i] = 0.f;
      for (int step = 0; step < rank; step += 16) {
        const int at = step + place * 4;  // this lane's ranks; a rank that is not a multiple of 16 ends in the middle of a step
        unsigned a[PANELS][4];
#pragma unroll
        for (int m = 0; m < PANELS; m++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const int output = first + m * 16 + group_row + half * 8;
            uint2 v = make_uint2(0, 0);
            if (at < rank && m < panels) v = *reinterpret_cast<const uint2*>(b + (size_t)output * rank + at);
            a[m][half] = v.x, a[m][2 + half] = v.y;
          }
#pragma unroll
        for (int n = 0; n < N; n++) {
          float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
          if (at < rank) {
            // A row that is not there reads the last one, and nobody reads what comes of it.
            const float* from = t + (size_t)min(n * 8 + group_row, rows - 1) * entry.stride + at;
            sum = *reinterpret_cast<const float4*>(from);
#pragma unroll
            for (int part = 1; part < PARTS_MAX; part++) {
              if (part < parts) {
                const float4 v = *reinterpret_cast<const float4*>(from + (size_t)part * tmp_floats);
                sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
              }
            }
          }
          const Split s = split(sum);
#pragma unroll
          for (int m = 0; m < PANELS; m++) {
            mma_m16n8k16_bf16(acc[m][n], a[m], s.high);
            mma_m16n8k16_bf16(acc[m][n], a[m], s.low);
          }
        }
      }
      const float scale = piece.scale[module.index], weight = entry.weight, factor = weight * scale;
      const float* growths = reinterpret_cast<const float*>(piece.growth[module.index]);
#pragma unroll
      for (int m = 0; m < PANELS; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            float& v = value[m][n][i];
            if (growths == nullptr) {
              v = fmaf(factor, acc[m][n][i], v);
            } else {
              // y += weight * (growth * Wx + (growth + 1) * scale * B t), with Wx as it still lies in y.
              if (m >= panels) continue;
              const float growth = growths[first + group_row + m * 16 + i / 2 * 8];
              const float plain = is_first && has_row(n, i) ? *element(m, n, i) : 0.f;
              v = fmaf(weight, fmaf(growth, plain, (growth + 1.f) * (scale * acc[m][n][i])), v);
            }
          }
      is_first = false;
    }
  }
#pragma unroll
  for (int m = 0; m < PANELS; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (m < panels && has_row(n, i)) *element(m, n, i) = value[m][n][i];
}
}  // namespace lora

// How many blocks an SM can hold is said so that ptxas does not spill to have more.
#define LORA(ROWS, BLOCKS)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                              \
      lora_shrink_##ROWS(const lora::Piece* pieces, const lora::Entry* entries, const lora::Item* items,                 \
                         const unsigned* item_count, const bf16* x, float* tmp, unsigned tmp_floats, int inputs,         \
                         unsigned layer, unsigned layers, int group) {                                                   \
    SHARED float sums[lora::WARPS][ROWS / 2][32];                                                                        \
    lora::shrink<ROWS / 8>(pieces, entries, items, item_count, x, tmp, tmp_floats, inputs, layer, layers, group, sums);  \
  }                                                                                                                      \
  EXPORT_KERNEL(lora_shrink_##ROWS)                                                                                      \
  extern "C" __global__ void __launch_bounds__(256, BLOCKS)                                                              \
      lora_expand_##ROWS(const lora::Piece* pieces, const lora::Entry* entries, const lora::Item* items,                 \
                         const unsigned* item_count, const float* tmp, unsigned tmp_floats, int parts, float* y,         \
                         int y_stride, int outputs0, int outputs1, int outputs2, int column0, int column1, int column2,  \
                         unsigned layer, unsigned layers, int group) {                                                   \
    lora::expand<ROWS / 8>(pieces, entries, items, item_count, tmp, tmp_floats, parts, y, y_stride, outputs0, outputs1,  \
                           outputs2, column0, column1, column2, layer, layers, group);                                   \
  }                                                                                                                      \
  EXPORT_KERNEL(lora_expand_##ROWS)

LORA(8, 2)
LORA(32, 1)
