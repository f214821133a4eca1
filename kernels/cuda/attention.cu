// Causal attention over paged keys and values with grouped query heads: decode and prefill, with equal bits (attention.cuh).
//
//   out[r, h] = bf16(sum over p <= positions[r] of softmax(q[r, h] k[p, h / group] / sqrt(head_dim)) v[p, h / group])
//
// q f16 [rows, heads, D], out bf16 [rows, heads * D]. A tile's rows belong to one sequence and follow each other in batch and
// position. Two ways to compute a tile:
//
// attention_split_D, for few rows (decode): a block has one kv head of a tile, at most 16 queries, and one chunk of 256
// positions after the other, `gridDim.x` apart; its four warps share the tile's positions for the scores and its dims for the
// sum. Partial sums go to memory and attention_combine adds them, unless there is but one chunk. Floor: the bytes of the
// keys and values; of the partial sums, one in 256 / 16 of them in f32, about 3 % at 4 query heads a kv head.
//
// attention_rows_D, for many rows (prefill): a block has one kv head of a tile, at most 128 queries, 16 a warp, and goes
// through all positions. Sums of earlier chunks wait in shared memory. Floor: the products; 32 KiB of keys and values are
// loaded for each 128 x 64 scores (D = 128), 32 bytes a clock of an SM at half of its matrix peak.
#include "attention.cuh"

constexpr int SPLIT_WARPS = 4;
constexpr int SPLIT_STAGES = 2;  // tiles of keys and values: one is used, the next is on its way
constexpr int ROWS_WARPS = 8;
constexpr int ROWS_QUERIES = ROWS_WARPS * QUERIES;

struct AttentionArguments {
  bf16* out;
  const f16* q;
  unsigned char* pool;
  const unsigned* positions;
  const unsigned* block_tables;
  const AttentionTile* tiles;
  const unsigned* tiles_count;
  float* partials;      // [units, heads, D]
  float* partial_sums;  // [units, heads, 2]: maximum, sum
  unsigned layer;
  unsigned heads;
  float scale;  // log2(e) / sqrt(D)
  unsigned unused;
};

// Scores of the four pairs or of one become weights; those of positions beyond `last` count for nothing.
template <int PAIRS>
__device__ __forceinline__ void mask_scores(float (&s)[PAIRS][2][4], float (&most)[2], unsigned first, const int (&last)[2]) {
  const unsigned lane = threadIdx.x % WARP;
#pragma unroll
  for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& score = s[pair][j][i];
        score = masked(score, first + pair * 16 + j * 8 + lane % 4 * 2 + i % 2, last[i / 2]);
        most[i / 2] = fmaxf(most[i / 2], score);
      }
#pragma unroll
  for (int half = 0; half < 2; half++) {
    most[half] = fmaxf(most[half], __shfl_xor_sync(ALL_LANES, most[half], 1));
    most[half] = fmaxf(most[half], __shfl_xor_sync(ALL_LANES, most[half], 2));
  }
}

// The row's position, or -1 where there is no query.
template <int SLOTS>
__device__ __forceinline__ int last_of(const AttentionArguments& a, const Queries<SLOTS>& queries, unsigned slot) {
  return queries.has(slot) ? (int)a.positions[queries.row_begin + queries.row(slot)] : -1;
}

template <int D>
__device__ __forceinline__ void attend_rows(const AttentionArguments& a, const KvLayout& kv) {
  DYN_SHARED(f16, keys);
  if (blockIdx.y >= *a.tiles_count) return;
  const AttentionTile tile = a.tiles[blockIdx.y];
  const Queries<ROWS_QUERIES> queries(tile, a.heads, kv.kv_heads, blockIdx.x);
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  f16* const values = keys + TILE * D;
  float4* const totals = reinterpret_cast<float4*>(values + TILE * D) + warp * (D / 8) * WARP + lane;
  const unsigned end = a.positions[tile.row_begin + tile.row_count - 1] + 1, tiles = (end + TILE - 1) / TILE;
  const unsigned* const table = a.block_tables + tile.table_begin;
  const KvPlane key_plane(a.pool, kv, a.layer, 0, queries.kv_head), value_plane(a.pool, kv, a.layer, 1, queries.kv_head);

  unsigned q[D / 16][4];
  load_queries<D>(q, a.q, queries, warp * QUERIES, a.heads);
  const unsigned slots[2] = {warp * QUERIES + lane / 4, warp * QUERIES + lane / 4 + 8};
  const int last[2] = {last_of(a, queries, slots[0]), last_of(a, queries, slots[1])};
  int warp_last = last[0] > last[1] ? last[0] : last[1];
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) {
    const int other = __shfl_xor_sync(ALL_LANES, warp_last, offset);
    warp_last = other > warp_last ? other : warp_last;
  }

  float o[D / 8][4], l[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int n = 0; n < D / 8; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.f;
  float most[2] = {-INFINITY, -INFINITY}, total_most[2] = {-INFINITY, -INFINITY}, total_sum[2] = {0.f, 0.f};

  load_tile<D, ROWS_WARPS * WARP>(keys, key_plane, table, 0, end);
  cp_async_commit();
  for (unsigned t = 0; t < tiles; t++) {
    load_tile<D, ROWS_WARPS * WARP>(values, value_plane, table, t * TILE, end);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    // The same in all lanes. What a warp does not see would leave its sums as they are.
    const bool is_seen = (int)(t * TILE) <= warp_last;
    float s[TILE / 16][2][4];
    if (is_seen) {
#pragma unroll
      for (int pair = 0; pair < TILE / 16; pair++) scores_of<D>(s[pair], q, keys, pair);
    }
    __syncthreads();
    if (t + 1 < tiles) load_tile<D, ROWS_WARPS * WARP>(keys, key_plane, table, (t + 1) * TILE, end);
    cp_async_commit();
    unsigned e[TILE / 16][4];
    if (is_seen) {
      const float was[2] = {most[0], most[1]};
      mask_scores<TILE / 16>(s, most, t * TILE, last);
      const float base[2] = {base_of(most[0], a.scale), base_of(most[1], a.scale)};
      const float by[2] = {rescale(was[0], most[0], a.scale, base[0]), rescale(was[1], most[1], a.scale, base[1])};
#pragma unroll
      for (int pair = 0; pair < TILE / 16; pair++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int half = i % 2;
          const float* two = &s[pair][i / 2][2 * half];
          e[pair][i] = pack_f16(weight_of(two[0], a.scale, base[half]), weight_of(two[1], a.scale, base[half]));
        }
#pragma unroll
      for (int n = 0; n < D / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) o[n][i] *= by[i / 2];
#pragma unroll
      for (int i = 0; i < 4; i++) l[i] *= by[i / 2];
    }
    cp_async_wait<1>();
    __syncthreads();
    if (is_seen) {
      const unsigned ones[2] = {ONES, ONES};
#pragma unroll
      for (int k = 0; k < TILE / 16; k++) {
        mma_m16n8k16_f16(l, e[k], ones);
#pragma unroll
        for (int pair = 0; pair < D / 16; pair++) add_values<D>(o[2 * pair], o[2 * pair + 1], e[k], values, k, pair);
      }
    }
    const bool is_last = t + 1 == tiles;
    if (is_last || t % CHUNK_TILES == CHUNK_TILES - 1) {
      const Merge merges[2] = {merge_weights(total_most[0], total_sum[0], most[0], l[0], a.scale),
                               merge_weights(total_most[1], total_sum[1], most[1], l[2], a.scale)};
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        const float4 total = t < CHUNK_TILES ? make_float4(0.f, 0.f, 0.f, 0.f) : totals[n * WARP];
        o[n][0] = merged(total.x, o[n][0], merges[0]), o[n][1] = merged(total.y, o[n][1], merges[0]);
        o[n][2] = merged(total.z, o[n][2], merges[1]), o[n][3] = merged(total.w, o[n][3], merges[1]);
        if (!is_last) {
          totals[n * WARP] = make_float4(o[n][0], o[n][1], o[n][2], o[n][3]);
          o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.f;
        }
      }
      most[0] = most[1] = -INFINITY;
      l[0] = l[1] = l[2] = l[3] = 0.f;
    }
    __syncthreads();
  }
  cp_async_wait<0>();
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (!queries.has(slots[half])) continue;
    const size_t row = queries.row_begin + queries.row(slots[half]);
    bf16* const out = a.out + (row * a.heads + queries.head(slots[half])) * D + lane % 4 * 2;
    const float inverse = 1.f / total_sum[half];
#pragma unroll
    for (int n = 0; n < D / 8; n++)
      *reinterpret_cast<unsigned*>(out + n * 8) = pack_bf16(o[n][2 * half] * inverse, o[n][2 * half + 1] * inverse);
  }
}

// The tile after t: of the same chunk, or the first of the next chunk of this block.
__device__ __forceinline__ unsigned tile_after(unsigned t) {
  return t % CHUNK_TILES == CHUNK_TILES - 1 ? t + 1 + (gridDim.x - 1) * CHUNK_TILES : t + 1;
}

template <int D>
__device__ __forceinline__ void attend_split(const AttentionArguments& a, const KvLayout& kv) {
  constexpr int THREADS = SPLIT_WARPS * WARP, PAIRS = D / 16, WARP_PAIRS = (PAIRS + SPLIT_WARPS - 1) / SPLIT_WARPS;
  DYN_SHARED(f16, stages);  // [SPLIT_STAGES, keys and values, TILE, D]
  if (blockIdx.z >= *a.tiles_count) return;
  const AttentionTile tile = a.tiles[blockIdx.z];
  const unsigned end = a.positions[tile.row_begin + tile.row_count - 1] + 1, tiles = (end + TILE - 1) / TILE;
  if (blockIdx.x * CHUNK_TILES >= tiles) return;
  const Queries<QUERIES> queries(tile, a.heads, kv.kv_heads, blockIdx.y);
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  f16* const weights = stages + SPLIT_STAGES * 2 * TILE * D;                  // [QUERIES, TILE]
  float* const maxima = reinterpret_cast<float*>(weights + QUERIES * TILE);  // [SPLIT_WARPS, QUERIES]
  const unsigned* const table = a.block_tables + tile.table_begin;
  const KvPlane key_plane(a.pool, kv, a.layer, 0, queries.kv_head), value_plane(a.pool, kv, a.layer, 1, queries.kv_head);

  unsigned q[D / 16][4];
  load_queries<D>(q, a.q, queries, 0, a.heads);
  const unsigned slots[2] = {lane / 4, lane / 4 + 8};
  const int last[2] = {last_of(a, queries, slots[0]), last_of(a, queries, slots[1])};
  float o[WARP_PAIRS][2][4], l[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int n = 0; n < WARP_PAIRS * 8; n++) o[n / 8][n / 4 % 2][n % 4] = 0.f;
  float most[2] = {-INFINITY, -INFINITY};

  const auto load = [&](unsigned t, unsigned stage) {
    if (t < tiles) {
      load_tile<D, THREADS>(stages + stage * 2 * TILE * D, key_plane, table, t * TILE, end);
      load_tile<D, THREADS>(stages + (stage * 2 + 1) * TILE * D, value_plane, table, t * TILE, end);
    }
    cp_async_commit();
  };
  unsigned stage = 0, next = tile_after(blockIdx.x * CHUNK_TILES);
  load(blockIdx.x * CHUNK_TILES, 0);
  load(next, 1);
  for (unsigned t = blockIdx.x * CHUNK_TILES; t < tiles; stage ^= 1) {
    const f16 *const keys = stages + stage * 2 * TILE * D, *const values = keys + TILE * D;
    cp_async_wait<SPLIT_STAGES - 1>();
    __syncthreads();
    float s[1][2][4], warp_most[2] = {-INFINITY, -INFINITY};
    scores_of<D>(s[0], q, keys, warp);
    mask_scores<1>(s, warp_most, t * TILE + warp * 16, last);
    if (lane % 4 == 0) maxima[warp * QUERIES + slots[0]] = warp_most[0], maxima[warp * QUERIES + slots[1]] = warp_most[1];
    __syncthreads();
    float by[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float was = most[half];
#pragma unroll
      for (int w = 0; w < SPLIT_WARPS; w++) most[half] = fmaxf(most[half], maxima[w * QUERIES + slots[half]]);
      const float base = base_of(most[half], a.scale);
      by[half] = rescale(was, most[half], a.scale, base);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const float* two = &s[0][j][2 * half];
        unsigned* const place = reinterpret_cast<unsigned*>(weights + tile_at<TILE>(slots[half], warp * 2 + j));
        place[lane % 4] = pack_f16(weight_of(two[0], a.scale, base), weight_of(two[1], a.scale, base));
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      l[i] *= by[i / 2];
#pragma unroll
      for (int n = 0; n < WARP_PAIRS * 2; n++) o[n / 2][n % 2][i] *= by[i / 2];
    }
    __syncthreads();
    const unsigned ones[2] = {ONES, ONES};
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
      unsigned e[4];
      ldmatrix(e, weights + tile_at<TILE>(lane % 16, k * 2 + lane / 16));
      mma_m16n8k16_f16(l, e, ones);
#pragma unroll
      for (int n = 0; n < WARP_PAIRS; n++)
        if (PAIRS % SPLIT_WARPS == 0 || warp + n * SPLIT_WARPS < PAIRS)
          add_values<D>(o[n][0], o[n][1], e, values, k, warp + n * SPLIT_WARPS);
    }
    if (t + 1 == tiles || t % CHUNK_TILES == CHUNK_TILES - 1) {
      const unsigned chunk = t / CHUNK_TILES;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        if (!queries.has(slots[half])) continue;
        const unsigned row = queries.row(slots[half]), head = queries.head(slots[half]);
        const size_t unit = ((size_t)tile.partial_begin + chunk * tile.row_count + row) * a.heads + head;
        float total_most = -INFINITY, total_sum = 0.f;
        const Merge merge = merge_weights(total_most, total_sum, most[half], l[2 * half], a.scale);
        const float inverse = 1.f / total_sum;
#pragma unroll
        for (int n = 0; n < WARP_PAIRS * 2; n++) {
          const unsigned pair = warp + n / 2 * SPLIT_WARPS, dim = pair * 16 + n % 2 * 8 + lane % 4 * 2;
          if (pair >= PAIRS) continue;
          const float x = o[n / 2][n % 2][2 * half], y = o[n / 2][n % 2][2 * half + 1];
          if (tiles <= CHUNK_TILES) {
            unsigned* const out = reinterpret_cast<unsigned*>(a.out + ((size_t)(tile.row_begin + row) * a.heads + head) * D + dim);
            *out = pack_bf16(merged(0.f, x, merge) * inverse, merged(0.f, y, merge) * inverse);
          } else {
            *reinterpret_cast<float2*>(a.partials + unit * D + dim) = make_float2(x, y);
          }
        }
        if (warp == 0 && lane % 4 == 0 && tiles > CHUNK_TILES)
          *reinterpret_cast<float2*>(a.partial_sums + unit * 2) = make_float2(most[half], l[2 * half]);
      }
#pragma unroll
      for (int n = 0; n < WARP_PAIRS * 8; n++) o[n / 8][n / 4 % 2][n % 4] = 0.f;
      most[0] = most[1] = -INFINITY;
      l[0] = l[1] = l[2] = l[3] = 0.f;
    }
    __syncthreads();
    t = next, next = tile_after(next);
    load(next, stage);
  }
  cp_async_wait<0>();
}

// attention_split: grid (chunk blocks, kv_heads * ceil(group / 16), tiles_max), block 32 * SPLIT_WARPS, shared
// 2 * 4 * 64 * D + 2 * 16 * 64 + 4 * 4 * 16 bytes. attention_rows: grid (kv_heads * ceil(group / 128), tiles_max), block
// 32 * ROWS_WARPS, shared 4 * 64 * D + 4 * 128 * D bytes.
#define ATTENTION(D)                                                                      \
  extern "C" __global__ void __launch_bounds__(SPLIT_WARPS* WARP, 3)                       \
      attention_split_##D(const AttentionArguments arguments, const KvLayout kv) {        \
    attend_split<D>(arguments, kv);                                                       \
  }                                                                                       \
  extern "C" __global__ void __launch_bounds__(ROWS_WARPS* WARP)                          \
      attention_rows_##D(const AttentionArguments arguments, const KvLayout kv) {         \
    attend_rows<D>(arguments, kv);                                                        \
  }                                                                                       \
  EXPORT_KERNEL(attention_split_##D)                                                      \
  EXPORT_KERNEL(attention_rows_##D)

ATTENTION(32)
ATTENTION(64)
ATTENTION(96)
ATTENTION(128)

constexpr int COMBINE_WARPS = 4;
constexpr int COMBINE_DIMS_MAX = 4;  // of a lane

// A warp has one head of one row of a tile that attention_split left in parts.
// grid (ceil(rows of a tile * heads / COMBINE_WARPS), tiles_max), block 32 * COMBINE_WARPS
extern "C" __global__ void __launch_bounds__(COMBINE_WARPS* WARP)
    attention_combine(const AttentionArguments a, const KvLayout kv) {
  if (blockIdx.y >= *a.tiles_count) return;
  const AttentionTile tile = a.tiles[blockIdx.y];
  const unsigned lane = threadIdx.x % WARP, item = blockIdx.x * COMBINE_WARPS + threadIdx.x / WARP;
  const unsigned row = item / a.heads, head = item % a.heads, dim = kv.head_dim;
  if (row >= tile.row_count || a.positions[tile.row_begin + tile.row_count - 1] < CHUNK) return;
  const unsigned chunks = a.positions[tile.row_begin + row] / CHUNK + 1;
  float total[COMBINE_DIMS_MAX] = {0.f, 0.f, 0.f, 0.f}, most = -INFINITY, sum = 0.f;
  for (unsigned chunk = 0; chunk < chunks; chunk++) {
    const size_t unit = ((size_t)tile.partial_begin + chunk * tile.row_count + row) * a.heads + head;
    const float2 sums = *reinterpret_cast<const float2*>(a.partial_sums + unit * 2);
    const Merge merge = merge_weights(most, sum, sums.x, sums.y, a.scale);
#pragma unroll
    for (int i = 0; i < COMBINE_DIMS_MAX; i++)
      if (lane + i * WARP < dim) total[i] = merged(total[i], a.partials[unit * dim + lane + i * WARP], merge);
  }
  const float inverse = 1.f / sum;
  bf16* const out = a.out + ((size_t)(tile.row_begin + row) * a.heads + head) * dim;
#pragma unroll
  for (int i = 0; i < COMBINE_DIMS_MAX; i++)
    if (lane + i * WARP < dim) out[lane + i * WARP] = __float2bfloat16(total[i] * inverse);
}
EXPORT_KERNEL(attention_combine)
