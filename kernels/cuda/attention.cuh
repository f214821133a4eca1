// The one arithmetic of attention, in pieces that both kernels of attention.cu are made of, so that a row has the same bits
// in either.
//
// A row sees positions 0 .. p of its sequence in tiles of 64, aligned at absolute positions. Within a chunk of 256 (4
// tiles) the softmax goes online (Milakov and Gimelshein, 2018; Dao et al., 2022):
//
//   s = q k (mma, dims ascending);  m' = max(m, max s);  e = f16(2^(c s - c m'));  a = 2^(c m - c m')
//   o = o a + e v,  l = l a + e 1 (mma, positions ascending)         c = log2(e) / sqrt(head_dim)
//
// and chunks are added in ascending order by `merge_weights` and fmaf. What a tile beyond the row's position adds is nothing,
// to the last bit, so that a row may be computed together with later rows.
#pragma once
#include "kv.cuh"

constexpr int TILE = 64;        // positions
constexpr int CHUNK_TILES = 4;  // tiles whose partial result is one
constexpr int CHUNK = TILE * CHUNK_TILES;
constexpr int QUERIES = 16;  // rows of an mma: one head of one row each
constexpr unsigned ONES = 0x3c003c00;

// Rows of one sequence, one after the other in the batch. Twin of the one in Rust.
struct AttentionTile {
  unsigned row_begin;
  unsigned row_count;
  unsigned table_begin;
  unsigned partial_begin;
};

// What a block of `SLOTS` queries has to do: heads of one kv head, of the rows of a tile.
template <int SLOTS>
struct Queries {
  unsigned group, width, kv_head, first, row_begin, row_count;
  __device__ __forceinline__ Queries(const AttentionTile& tile, unsigned heads, unsigned kv_heads, unsigned head_block) {
    group = heads / kv_heads;
    width = group < SLOTS ? group : SLOTS;
    const unsigned blocks = (group + width - 1) / width;
    kv_head = head_block / blocks;
    first = head_block % blocks * width;
    row_begin = tile.row_begin;
    row_count = tile.row_count;
  }
  // Row of the tile; beyond its count if the slot is empty.
  __device__ __forceinline__ unsigned row(unsigned slot) const { return first + slot % width < group ? slot / width : row_count; }
  __device__ __forceinline__ bool has(unsigned slot) const { return row(slot) < row_count; }
  __device__ __forceinline__ unsigned head(unsigned slot) const { return kv_head * group + first + slot % width; }
};

// 16-byte pieces of a tile's rows in shared memory change places so that the eight rows of an ldmatrix lie in different
// banks.
template <int D>
__device__ __forceinline__ unsigned tile_at(unsigned row, unsigned piece) {
  static_assert(D % 32 == 0, "four pieces change places among themselves");
  return row * D + (D % 64 == 0 ? piece ^ (row & 7) : piece ^ (row >> 1 & 3)) * 8;
}

// Loads positions first .. first + 64 into shared memory as f16, `end` and later ones as zeros: their memory holds anything,
// and 0 times NaN is NaN. f16 comes by cp.async (the caller commits and waits), the others are converted on their way.
template <int D, int THREADS>
__device__ __forceinline__ void load_tile(f16* tile, const KvPlane& plane, const unsigned* table, unsigned first, unsigned end) {
  if (plane.format == KV_F16) {
    constexpr int PIECES = D / 8;
    for (unsigned i = threadIdx.x; i < TILE * PIECES; i += THREADS) {
      const unsigned row = i / PIECES, piece = i % PIECES, position = first + row;
      const bool in = position < end;
      const unsigned char* from = in ? plane.row(table, position) + piece * 16 : plane.base;
      cp_async16(tile + tile_at<D>(row, piece), from, in);
    }
    return;
  }
  constexpr int PIECES = D / 16, EACH = (TILE * PIECES + THREADS - 1) / THREADS;
  const bool is_int8 = plane.format == KV_INT8;
  // All loads of a thread first, so that they are under way together.
  uint4 codes[EACH];
  float scales[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const unsigned at = threadIdx.x + i * THREADS, position = first + at / PIECES;
    codes[i] = make_uint4(0, 0, 0, 0);
    scales[i] = 0.f;
    if (at < TILE * PIECES && position < end) {
      codes[i] = *reinterpret_cast<const uint4*>(plane.row(table, position) + at % PIECES * 16);
      scales[i] = *plane.scale(table, position);
    }
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const unsigned at = threadIdx.x + i * THREADS, row = at / PIECES, piece = at % PIECES;
    if (at >= TILE * PIECES) break;
    const float scale = scale_of_codes(scales[i], is_int8);
    const unsigned words[4] = {codes[i].x, codes[i].y, codes[i].z, codes[i].w};
    unsigned pairs[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float2 two = from_codes(words[j / 2] >> 16 * (j & 1) & 0xffff, is_int8);
      pairs[j] = pack_f16(two.x * scale, two.y * scale);
    }
    *reinterpret_cast<uint4*>(tile + tile_at<D>(row, 2 * piece)) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    *reinterpret_cast<uint4*>(tile + tile_at<D>(row, 2 * piece + 1)) = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
  }
}

// Fragments of 16 queries; empty slots are zeros.
template <int D, int SLOTS>
__device__ __forceinline__ void load_queries(unsigned (&fragments)[D / 16][4], const f16* q, const Queries<SLOTS>& queries,
                                             unsigned first_slot, unsigned heads) {
  const unsigned lane = threadIdx.x % WARP;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const unsigned slot = first_slot + lane / 4 + 8 * half;
    const bool in = queries.has(slot);
    const f16* row = q + ((size_t)(queries.row_begin + (in ? queries.row(slot) : 0)) * heads + (in ? queries.head(slot) : 0)) * D;
#pragma unroll
    for (int k = 0; k < D / 16; k++)
#pragma unroll
      for (int part = 0; part < 2; part++)
        fragments[k][half + 2 * part] = in ? *reinterpret_cast<const unsigned*>(row + k * 16 + part * 8 + lane % 4 * 2) : 0;
  }
}

// Scores of 16 queries with positions 16 * pair .. + 16 of a tile: two fragments.
template <int D>
__device__ __forceinline__ void scores_of(float (&s)[2][4], const unsigned (&q)[D / 16][4], const f16* keys, unsigned pair) {
  const unsigned lane = threadIdx.x % WARP;
#pragma unroll
  for (int i = 0; i < 4; i++) s[0][i] = s[1][i] = 0.f;
#pragma unroll
  for (int k = 0; k < D / 16; k++) {
    unsigned b[4];
    ldmatrix(b, keys + tile_at<D>(pair * 16 + lane / 16 * 8 + lane % 8, k * 2 + lane / 8 % 2));
    const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
    mma_m16n8k16_f16(s[0], q[k], low);
    mma_m16n8k16_f16(s[1], q[k], high);
  }
}

// o[n] += e v for dims 16 * pair .. + 16, over positions 16 * k .. + 16 of a tile.
template <int D>
__device__ __forceinline__ void add_values(float (&low)[4], float (&high)[4], const unsigned (&e)[4], const f16* values, unsigned k,
                                           unsigned pair) {
  const unsigned lane = threadIdx.x % WARP;
  unsigned b[4];
  ldmatrix_trans(b, values + tile_at<D>(k * 16 + lane % 16, pair * 2 + lane / 16));
  const unsigned first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
  mma_m16n8k16_f16(low, e, first);
  mma_m16n8k16_f16(high, e, second);
}

// Scores of positions that a query does not see are minus infinity.
__device__ __forceinline__ float masked(float score, unsigned position, int last) {
  return (int)position <= last ? score : -INFINITY;
}

// The weight of a score: f16 rounds it afterwards. `most` is the maximum so far, in units of the scores.
__device__ __forceinline__ float base_of(float most, float scale) { return most == -INFINITY ? 0.f : most * scale; }
__device__ __forceinline__ float weight_of(float score, float scale, float base) { return exp2f(fmaf(score, scale, -base)); }
// By what earlier sums change when the maximum does; 1 exactly if it does not.
__device__ __forceinline__ float rescale(float was, float most, float scale, float base) {
  return was == most ? 1.f : weight_of(was, scale, base);
}

// Adding a chunk's sums to those of the chunks before it: total = total * a + chunk * b.
struct Merge {
  float a, b;
};
__device__ __forceinline__ Merge merge_weights(float& most, float& sum, float chunk_most, float chunk_sum, float scale) {
  // Nothing seen, neither a number nor NaN.
  if (chunk_most == -INFINITY && chunk_sum == 0.f) return {1.f, 0.f};
  const bool is_first = most == -INFINITY && sum == 0.f;
  const float both = fmaxf(most, chunk_most), base = base_of(both, scale);
  const Merge merge = {is_first ? 0.f : rescale(most, both, scale, base), rescale(chunk_most, both, scale, base)};
  sum = fmaf(chunk_sum, merge.b, sum * merge.a);
  most = both;
  return merge;
}
__device__ __forceinline__ float merged(float total, float chunk, const Merge& merge) { return fmaf(chunk, merge.b, total * merge.a); }
