// Rotary embedding of q and k, with the norm of each head before it where the base has one (Qwen3); q goes to the attention
// in f16, k and v into their pages.
//
// A warp has one head of one row; a lane has pairs lane, lane + 32, ... of it. A head's values depend on nothing else.
// Floor: 4 bytes read for each value of q, k and v, 2 (f16) or 1 (int8, fp8) written: memory-bound, a few microseconds.
#include "kv.cuh"

constexpr int ROPE_WARPS = 4;
constexpr int ROPE_PAIRS_MAX = 4;  // of a lane: heads of at most 256 values

// NaN and infinity survive in it, unlike in fmaxf.
__device__ __forceinline__ float larger(float a, float b) { return a > b || a != a ? a : b; }

// grid (rows_max, ceil((heads + 2 kv_heads) / ROPE_WARPS)), block 32 * ROPE_WARPS
extern "C" __global__ void __launch_bounds__(32 * ROPE_WARPS)
    rope_append(f16* __restrict__ q_out, unsigned char* pool, KvLayout kv, unsigned layer, const float* __restrict__ qkv,
                unsigned qkv_stride, const unsigned* __restrict__ positions, const unsigned* __restrict__ table_begins,
                const unsigned* __restrict__ block_tables, const float* __restrict__ turns, const float* __restrict__ q_norm,
                const float* __restrict__ k_norm, float epsilon, unsigned heads, unsigned is_halves,
                const unsigned* __restrict__ rows_count) {
  const unsigned row = blockIdx.x, lane = threadIdx.x % 32, head = blockIdx.y * ROPE_WARPS + threadIdx.x / 32;
  if (row >= *rows_count || head >= heads + 2 * kv.kv_heads) return;
  const unsigned dim = kv.head_dim, pairs = dim / 2, position = positions[row];
  const float* in = qkv + (unsigned long long)row * qkv_stride + head * dim;
  const bool is_query = head < heads, is_value = head >= heads + kv.kv_heads;
  const float* norm = is_query ? q_norm : is_value ? nullptr : k_norm;
  // Values of a pair: 2i and 2i + 1, or i and i + dim / 2.
  const unsigned step = is_halves ? 1 : 2, apart = is_halves ? pairs : 1;

  float x[ROPE_PAIRS_MAX], y[ROPE_PAIRS_MAX];
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < ROPE_PAIRS_MAX; i++) {
    const unsigned pair = lane + 32 * i;
    x[i] = y[i] = 0.f;
    if (pair < pairs) x[i] = in[pair * step], y[i] = in[pair * step + apart];
    squares = fmaf(x[i], x[i], fmaf(y[i], y[i], squares));
  }
  if (norm != nullptr) {
    const float factor = 1.f / sqrtf(warp_sum(squares) / (float)dim + epsilon);
#pragma unroll
    for (int i = 0; i < ROPE_PAIRS_MAX; i++) {
      const unsigned pair = lane + 32 * i;
      if (pair < pairs) x[i] *= factor * norm[pair * step], y[i] *= factor * norm[pair * step + apart];
    }
  }
  if (!is_value) {
    const float* turn = turns + (unsigned long long)position * dim;
#pragma unroll
    for (int i = 0; i < ROPE_PAIRS_MAX; i++) {
      const unsigned pair = lane + 32 * i;
      if (pair >= pairs) continue;
      const float cosine = turn[pair], sine = turn[pairs + pair], was = x[i];
      x[i] = was * cosine - y[i] * sine;
      y[i] = was * sine + y[i] * cosine;
    }
  }

  if (is_query || kv.format == KV_F16) {
    f16* out = q_out + ((unsigned long long)row * heads + head) * dim;
    if (!is_query) {
      const KvPlane plane(pool, kv, layer, is_value, (head - heads) % kv.kv_heads);
      out = reinterpret_cast<f16*>(plane.row(block_tables + table_begins[row], position));
    }
#pragma unroll
    for (int i = 0; i < ROPE_PAIRS_MAX; i++) {
      const unsigned pair = lane + 32 * i;
      if (pair < pairs) out[pair * step] = to_f16(x[i]), out[pair * step + apart] = to_f16(y[i]);
    }
    return;
  }

  float most = 0.f;
#pragma unroll
  for (int i = 0; i < ROPE_PAIRS_MAX; i++) most = larger(larger(fabsf(x[i]), fabsf(y[i])), most);
#pragma unroll
  for (int o = 16; o; o >>= 1) most = larger(most, __shfl_xor_sync(ALL_LANES, most, o));
  const bool is_int8 = kv.format == KV_INT8;
  const float code_max = is_int8 ? KV_INT8_MAX : KV_FP8_MAX;
  const float scale = most / code_max;
  // Of a head of nothing, of numbers too small to be scaled, and of one that is not finite, the codes are zeros.
  const float inverse = scale > 1e-37f && scale < INFINITY ? 1.f / scale : 0.f;
  const KvPlane plane(pool, kv, layer, is_value, (head - heads) % kv.kv_heads);
  const unsigned* table = block_tables + table_begins[row];
  unsigned char* out = plane.row(table, position);
#pragma unroll
  for (int i = 0; i < ROPE_PAIRS_MAX; i++) {
    const unsigned pair = lane + 32 * i;
    if (pair >= pairs) continue;
    const float a = inverse == 0.f ? 0.f : x[i] * inverse, b = inverse == 0.f ? 0.f : y[i] * inverse;
    out[pair * step] = is_int8 ? to_int8(a) : float_to_e4m3(a);
    out[pair * step + apart] = is_int8 ? to_int8(b) : float_to_e4m3(b);
  }
  if (lane == 0) *plane.scale(table, position) = scale;
}
EXPORT_KERNEL(rope_append)
