// How weights lie on the device, and how a warp turns them into the fragments of mma.m16n8k16. The Rust side writes this
// layout in src/cuda/repack.rs; nothing is lost in it.
//
// A matrix [outputs, inputs] is cut into panels of 16 outputs, one after the other; the last one is padded with zeros. A panel
// is cut into tiles of 32 inputs, which are two steps of k = 16. Within a panel first lie the codes of all tiles, then their
// high bits, their scales, and the scales of each 8 tiles; a panel's bytes are rounded up to 128.
//
// Lane 4g + t of a warp holds the rows g and g + 8 (its two halves) at the inputs 16s + 4t + j of step s, j = 0..3. The
// product only asks that both operands put the same input in the same place, so that mma's columns 2t and 2t + 1 are
// j = 0, 1 here, and its columns 2t + 8 and 2t + 9 are j = 2, 3. Thus a lane reads 8 neighbouring bytes of a row of x.
#pragma once
#include "common.cuh"

namespace weights {

constexpr int PANEL = 16;        // outputs
constexpr int TILE = 32;         // inputs
constexpr int SUPER_TILES = 8;   // tiles that share a scale of scales in the K formats

enum Format { BF16 = 0, Q4_0 = 1, Q4_1 = 2, Q8_0 = 3, Q4_K = 4, Q5_K = 5, Q6_K = 6 };

// Bytes of one tile's codes, high bits and scales, and of the scales of 8 tiles.
template <int F> struct Layout {
  static constexpr int codes = F == BF16 ? 1024 : F == Q8_0 ? 512 : 256;
  static constexpr int high = F == Q5_K ? 64 : F == Q6_K ? 128 : 0;
  static constexpr int scales = F == BF16 ? 0 : F == Q4_1 ? 64 : 32;
  static constexpr int supers = F == Q4_K || F == Q5_K ? 64 : F == Q6_K ? 32 : 0;
  static constexpr bool least = F == Q4_1 || F == Q4_K || F == Q5_K;
};

template <int F> __device__ __forceinline__ size_t panel_bytes(size_t tiles) {
  using L = Layout<F>;
  return (tiles * (L::codes + L::high + L::scales) + tiles / SUPER_TILES * L::supers + 127) / 128 * 128;
}

// What a lane reads of one tile: its weights, and the scales of its two rows.
template <int F> struct Codes {
  unsigned words[Layout<F>::codes / 128];
  unsigned high;
};
template <int F> struct Scales {
  unsigned tile[2];
  unsigned super[2];
};
// The scales as numbers: by half, and by step in Q6_K. `least` is what is added to each weight, less what `step_fragment`
// added to each code.
template <int F> struct Factors {
  static constexpr int STEPS = F == Q6_K ? 2 : 1;
  float scale[2][STEPS];
  float least[2];
};

__device__ __forceinline__ float half_bits_to_float(unsigned bits) {
  return __half2float(__ushort_as_half((unsigned short)(bits & 0xffff)));
}

// a - b, each half for itself.
__device__ __forceinline__ unsigned sub_bf16x2(unsigned a, unsigned b) {
  const __nv_bfloat162 d = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const unsigned*>(&d);
}

__device__ __forceinline__ void load_words(unsigned (&out)[2], const void* from) {
  const uint2 v = *reinterpret_cast<const uint2*>(from);
  out[0] = v.x, out[1] = v.y;
}
__device__ __forceinline__ void load_words(unsigned (&out)[4], const void* from) {
  const uint4 v = load_stream(from);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
// The two steps of bf16 lie 512 bytes apart, so that a warp reads 512 neighbouring bytes at a time.
__device__ __forceinline__ void load_words(unsigned (&out)[8], const void* from) {
  const uint4 v = load_stream(from), w = load_stream(static_cast<const char*>(from) + 512);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  out[4] = w.x, out[5] = w.y, out[6] = w.z, out[7] = w.w;
}

// Where a lane reads a panel.
template <int F> struct Panel {
  using L = Layout<F>;
  const unsigned char *codes, *high, *scales, *supers;

  __device__ __forceinline__ Panel(const unsigned char* panel, int tiles, int lane) {
    const int group = lane / 4;
    codes = panel + lane * (L::codes == 256 ? 8 : 16);
    high = panel + (size_t)tiles * L::codes;
    scales = high + (size_t)tiles * L::high + group * (L::scales / 8);
    supers = high + (size_t)tiles * (L::high + L::scales) + group * (L::supers / 8);
    high += lane * (L::high / 32);
  }

  __device__ __forceinline__ void load(Codes<F>& to, int index) const {
    load_words(to.words, codes + (size_t)index * L::codes);
    if constexpr (F == Q5_K) to.high = *reinterpret_cast<const unsigned short*>(high + (size_t)index * L::high);
    if constexpr (F == Q6_K) to.high = *reinterpret_cast<const unsigned*>(high + (size_t)index * L::high);
  }

  __device__ __forceinline__ void load(Scales<F>& to, int index) const {
    if constexpr (F == Q4_1) load_words(to.tile, scales + (size_t)index * L::scales);
    else if constexpr (F != BF16) to.tile[0] = *reinterpret_cast<const unsigned*>(scales + (size_t)index * L::scales);
    const unsigned char* super = supers + (size_t)((unsigned)index / SUPER_TILES) * L::supers;
    if constexpr (F == Q4_K || F == Q5_K) load_words(to.super, super);
    if constexpr (F == Q6_K) to.super[0] = *reinterpret_cast<const unsigned*>(super);
  }
};

// What `step_fragment` adds to each code of a format with minima: there the sum of x is known anyway, and the bits of a code
// under this power of two are a bf16 as they are. It is small, so that the sums of integers lose nothing to it.
template <int F> constexpr float ADDED = F == Q5_K ? 32.f : 16.f;

// The operand of one step: integers for the quantised formats, in the order that mma wants.
template <int F> __device__ __forceinline__ void step_fragment(const Codes<F>& tile, int step, unsigned (&a)[4]) {
#pragma unroll
  for (int part = 0; part < 2; part++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int pair = 2 * step + part;
      unsigned& out = a[2 * part + half];
      if constexpr (F == BF16) {
        out = tile.words[4 * step + 2 * part + half];
      } else if constexpr (F == Q8_0) {
        // Two's complement: the low seven bits, less 128 where the eighth is set.
        const unsigned codes = tile.words[2 * half + step] >> (8 * part);
        out = sub_bf16x2(and_or<0x007f007fu, 0x43004300u>(codes), and_or<0x00800080u, 0x43004300u>(codes));
      } else if constexpr (Layout<F>::least) {
        // The code in the upper bits of the mantissa: 16 + code, or 32 + code.
        constexpr int UP = F == Q5_K ? 2 : 3;
        const unsigned word = tile.words[half];
        const unsigned codes = pair == 0 ? word << UP : word >> (4 * pair - UP);
        out = and_or<(0x000f000fu << UP), (F == Q5_K ? 0x42004200u : 0x41804180u)>(codes);
        if constexpr (F == Q5_K) {
          const unsigned high = (tile.high & 0xffu) | (tile.high & 0xff00u) << 8;
          out |= (high >> (pair + 4 * half) & 0x00010001u) << 6;
        }
      } else {
        // 128 + code is written into the mantissa, and 128 + offset taken away: 136 or 160. Exact.
        unsigned codes = and_or<0x000f000fu, 0x43004300u>(tile.words[half] >> (4 * pair));
        if constexpr (F == Q6_K) codes |= (tile.high >> (2 * (pair + 4 * half)) & 0x00030003u) << 4;
        out = sub_bf16x2(codes, F == Q4_0 ? 0x43084308u : 0x43204320u);
      }
    }
}

// What a half's codes are multiplied by, in one step; f16 times 6 or 8 bits is exact in f32.
template <int F> __device__ __forceinline__ float step_scale(const Scales<F>& scales, int half, int step) {
  if constexpr (F == Q4_0 || F == Q8_0) return half_bits_to_float(scales.tile[0] >> (16 * half));
  else if constexpr (F == Q4_1) return half_bits_to_float(scales.tile[half]);
  else if constexpr (F == Q6_K)
    return half_bits_to_float(scales.super[0] >> (16 * half)) * (float)(signed char)(scales.tile[0] >> (16 * half + 8 * step));
  else return half_bits_to_float(scales.super[half]) * (float)(scales.tile[0] >> (16 * half) & 0xff);
}

// What is added to each weight of a half.
template <int F> __device__ __forceinline__ float tile_least(const Scales<F>& scales, int half) {
  if constexpr (F == Q4_1) return half_bits_to_float(scales.tile[half] >> 16);
  else return -(half_bits_to_float(scales.super[half] >> 16) * (float)(scales.tile[0] >> (16 * half + 8) & 0xff));
}

template <int F> __device__ __forceinline__ Factors<F> factors(const Scales<F>& scales) {
  Factors<F> f{};
  if constexpr (F != BF16) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int step = 0; step < Factors<F>::STEPS; step++) f.scale[half][step] = step_scale<F>(scales, half, step);
      if constexpr (Layout<F>::least) f.least[half] = fmaf(-ADDED<F>, f.scale[half][0], tile_least<F>(scales, half));
    }
  }
  return f;
}

// Those that lane `from` has.
template <int F> __device__ __forceinline__ Factors<F> factors_of(const Factors<F>& mine, int from) {
  Factors<F> f{};
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int step = 0; step < Factors<F>::STEPS; step++) f.scale[half][step] = __shfl_sync(ALL_LANES, mine.scale[half][step], from);
    if constexpr (Layout<F>::least) f.least[half] = __shfl_sync(ALL_LANES, mine.least[half], from);
  }
  return f;
}

// The sum of 32 values of each of 8 rows of x: columns 2t and 2t + 1 in `c[0]` and `c[1]` of every lane. By mma with ones,
// so that one warp's sums are another's to the last bit.
__device__ __forceinline__ void tile_sums(const uint2 (&x)[2], float (&c)[4]) {
  const unsigned ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
  c[0] = c[1] = c[2] = c[3] = 0.f;
#pragma unroll
  for (int step = 0; step < 2; step++) {
    const unsigned b[2] = {x[step].x, x[step].y};
    mma_m16n8k16_bf16(c, ones, b);
  }
}

// acc += tile * x for 8 rows of x. The integers are summed exactly as bf16 by mma and scaled in f32 afterwards, so that the
// weights lose nothing; `sums` are those of tile_sums.
template <int F>
__device__ __forceinline__ void multiply_tile(const unsigned (&a)[2][4], const Factors<F>& by, const uint2 (&x)[2],
                                              float2 sums, float (&acc)[4]) {
  float c[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int step = 0; step < 2; step++) {
    const unsigned b[2] = {x[step].x, x[step].y};
    if constexpr (F == BF16) {
      mma_m16n8k16_bf16(acc, a[step], b);
    } else {
      mma_m16n8k16_bf16(c, a[step], b);
      if (F == Q6_K || step == 1) {
#pragma unroll
        for (int i = 0; i < 4; i++) acc[i] = fmaf(by.scale[i / 2][F == Q6_K ? step : 0], c[i], acc[i]);
        c[0] = c[1] = c[2] = c[3] = 0.f;
      }
    }
  }
  if constexpr (Layout<F>::least) {
#pragma unroll
    for (int i = 0; i < 4; i++) acc[i] = fmaf(by.least[i / 2], i % 2 ? sums.y : sums.x, acc[i]);
  }
}

// One weight, rounded as ggml does: for reading single rows, as the embedding does.
template <int F> __device__ __forceinline__ float weight_at(const unsigned char* weights, size_t inputs, size_t row, size_t k) {
  using L = Layout<F>;
  const size_t tiles = inputs / TILE, index = k / TILE;
  const unsigned char* panel = weights + row / PANEL * panel_bytes<F>(tiles);
  const int half = row % PANEL / 8, step = k % TILE / 16, j = k % 4, pair = 2 * step + j / 2, second = j % 2;
  const int group = row % 8, lane = group * 4 + k % 16 / 4;
  const unsigned char* codes = panel + index * L::codes;
  if constexpr (F == BF16) {
    return __bfloat162float(reinterpret_cast<const bf16*>(codes)[step * 256 + lane * 8 + (2 * (j / 2) + half) * 2 + second]);
  } else {
    const unsigned char* high = panel + tiles * L::codes;
    const unsigned char* scales = high + tiles * L::high + index * L::scales;
    const unsigned char* supers = high + tiles * (L::high + L::scales) + index / SUPER_TILES * L::supers;
    Scales<F> held;
    held.tile[0] = reinterpret_cast<const unsigned*>(scales)[F == Q4_1 ? group * 2 : group];
    if constexpr (F == Q4_1) held.tile[1] = reinterpret_cast<const unsigned*>(scales)[group * 2 + 1];
    if constexpr (F == Q4_K || F == Q5_K) held.super[half] = reinterpret_cast<const unsigned*>(supers)[group * 2 + half];
    if constexpr (F == Q6_K) held.super[0] = reinterpret_cast<const unsigned*>(supers)[group];
    int code;
    if constexpr (F == Q8_0) {
      code = reinterpret_cast<const signed char*>(codes)[lane * 16 + half * 8 + step * 4 + j / 2 + 2 * second];
    } else {
      code = reinterpret_cast<const unsigned*>(codes)[lane * 2 + half] >> (4 * (pair + 4 * second)) & 15;
      if constexpr (F == Q5_K)
        code |= (reinterpret_cast<const unsigned short*>(high + index * L::high)[lane] >> (pair + 4 * half + 8 * second) & 1) << 4;
      if constexpr (F == Q6_K)
        code |= (reinterpret_cast<const unsigned*>(high + index * L::high)[lane] >> (2 * (pair + 4 * half) + 16 * second) & 3) << 4;
      code -= F == Q4_0 ? 8 : F == Q6_K ? 32 : 0;
    }
    const float scaled = __fmul_rn(step_scale<F>(held, half, step), (float)code);
    if constexpr (L::least) return __fadd_rn(scaled, tile_least<F>(held, half));
    else return scaled;
  }
}

}  // namespace weights
