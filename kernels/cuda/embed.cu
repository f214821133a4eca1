// The embedding of each token into the residual stream, out of a table in any of the formats of weights (weights.cuh): it is
// often the output layer's matrix too.
//
//   stream[r, k] = table[tokens[r], k], rounded as ggml does
//
// A token with the bit UNSEEN is the number of a draw instead, in the answers of the sampling kernel that ran last (sample.cu):
// the host need not have seen it. A draw that found nothing is read as token 0; the host fails its step.
//
// stream f32 [rows, width]; width a multiple of 32, of 256 in the K formats. Floor: a row's codes read (0.5 to 2 bytes a value,
// neighbours of 15 other rows') and 4 bytes written a value.
#include "weights.cuh"

constexpr int EMBED_THREADS = 128;
constexpr unsigned UNSEEN = 0x80000000u;  // twin in Rust: src/cuda/ops/embed.rs

template <int F>
__device__ __forceinline__ void embed(float* stream, const unsigned char* table, const unsigned* tokens, unsigned width,
                                      const unsigned* rows, const uint2* drawn, unsigned vocabulary) {
  const unsigned row = blockIdx.x;
  if (row >= *rows) return;
  unsigned token = tokens[row];
  if (token & UNSEEN) token = drawn[token & ~UNSEEN].x;
  token = token < vocabulary ? token : 0;
  float* const out = stream + (size_t)row * width;
  for (unsigned k = threadIdx.x; k < width; k += EMBED_THREADS) out[k] = weights::weight_at<F>(table, width, token, k);
}

// grid rows_max, block EMBED_THREADS
#define EMBED(name, format)                                                                                  \
  extern "C" __global__ void __launch_bounds__(EMBED_THREADS)                                                \
      name(float* __restrict__ stream, const unsigned char* __restrict__ table,                              \
           const unsigned* __restrict__ tokens, unsigned width, const unsigned* __restrict__ rows,           \
           const uint2* __restrict__ drawn, unsigned vocabulary) {                                           \
    embed<weights::format>(stream, table, tokens, width, rows, drawn, vocabulary);                           \
  }                                                                                                          \
  EXPORT_KERNEL(name)

EMBED(embed_bf16, BF16)
EMBED(embed_q4_0, Q4_0)
EMBED(embed_q4_1, Q4_1)
EMBED(embed_q8_0, Q8_0)
EMBED(embed_q4_k, Q4_K)
EMBED(embed_q5_k, Q5_K)
EMBED(embed_q6_k, Q6_K)
