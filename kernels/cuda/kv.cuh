// Where the keys and values of a position lie in the pool, and the three forms they are kept in: f16, int8 and fp8 (e4m3),
// the latter two with one f32 scale for each (layer, key or value, head, position). Twin of `KvLayout` in src/cuda/kv_layout.rs.
#pragma once
#include "common.cuh"

enum KvFormat { KV_F16 = 0, KV_INT8 = 1, KV_FP8 = 2 };

// One block holds, for each layer, K [kv_heads, block_tokens, head_dim] and V the same; after the last layer, where there are
// scales, those, [layers, 2, kv_heads, block_tokens].
struct KvLayout {
  unsigned long long block_bytes;
  unsigned long long layer_bytes;
  unsigned long long kv_bytes;      // K of one layer; V follows it
  unsigned long long scales_begin;  // from the start of a block
  unsigned block_tokens_log2;
  unsigned kv_heads;
  unsigned head_dim;
  unsigned format;
};
static_assert(sizeof(KvLayout) == 48, "as in Rust");

// One (layer, key or value, head) of the pool, to be asked for positions.
struct KvPlane {
  unsigned char* base;
  unsigned long long block_bytes;
  unsigned long long scales_begin;
  unsigned block_tokens_log2;
  unsigned head_dim;
  unsigned format;

  __device__ __forceinline__ KvPlane(unsigned char* pool, const KvLayout& kv, unsigned layer, unsigned is_value, unsigned head)
      : block_bytes(kv.block_bytes), block_tokens_log2(kv.block_tokens_log2), head_dim(kv.head_dim), format(kv.format) {
    const unsigned long long row = (unsigned long long)head << kv.block_tokens_log2;
    const unsigned element = kv.format == KV_F16 ? 2 : 1;
    const unsigned long long values = layer * kv.layer_bytes + is_value * kv.kv_bytes + row * kv.head_dim * element;
    base = pool + values;
    const unsigned long long plane = (layer * 2ull + is_value) * kv.kv_heads + head;
    scales_begin = kv.scales_begin + (plane << kv.block_tokens_log2) * 4 - values;
  }
  __device__ __forceinline__ unsigned char* block_of(const unsigned* table, unsigned position) const {
    return base + table[position >> block_tokens_log2] * block_bytes;
  }
  __device__ __forceinline__ unsigned offset(unsigned position) const { return position & ((1u << block_tokens_log2) - 1); }
  // The first value of a position.
  __device__ __forceinline__ unsigned char* row(const unsigned* table, unsigned position) const {
    const unsigned element = format == KV_F16 ? 2 : 1;
    return block_of(table, position) + (unsigned long long)offset(position) * head_dim * element;
  }
  __device__ __forceinline__ float* scale(const unsigned* table, unsigned position) const {
    return reinterpret_cast<float*>(block_of(table, position) + scales_begin) + offset(position);
  }
};

// What is beyond the range of f16 becomes its largest number, so that a finite value stays finite. NaN stays NaN.
__device__ __forceinline__ float to_f16_range(float x) {
  x = x > 65504.f ? 65504.f : x;
  return x < -65504.f ? -65504.f : x;
}
__device__ __forceinline__ f16 to_f16(float x) { return __float2half_rn(to_f16_range(x)); }

constexpr float KV_INT8_MAX = 127.f;
constexpr float KV_FP8_MAX = 448.f;  // e4m3

__device__ __forceinline__ unsigned char to_int8(float x) {
  const int whole = __float2int_rn(x);
  return (unsigned char)(whole > 127 ? 127 : whole < -127 ? -127 : whole);
}
// Two codes, the first in the low byte, as f16: the caller multiplies by `scale_of_codes` in f32 and rounds once. e4m3's bits
// below the sign are those of an f16 that is smaller by 2^8; its NaN is never written, a head that is not finite has it in
// its scale.
__device__ __forceinline__ float2 from_codes(unsigned two, bool is_int8) {
  if (is_int8) return make_float2((float)(signed char)two, (float)(signed char)(two >> 8));
  const unsigned bits = (two & 0x7f) << 7 | (two & 0x80) << 8 | (two & 0x7f00) << 15 | (two & 0x8000) << 16;
  return make_float2(__half2float(__ushort_as_half((unsigned short)bits)), __half2float(__ushort_as_half((unsigned short)(bits >> 16))));
}
// At most what keeps the largest code inside f16, so that a finite value stays finite there too.
__device__ __forceinline__ float scale_of_codes(float scale, bool is_int8) {
  const float most = 65504.f / (is_int8 ? KV_INT8_MAX : KV_FP8_MAX);
  return (scale > most ? most : scale) * (is_int8 ? 1.f : 256.f);
}
