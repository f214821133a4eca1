// Draws a token of each row of logits, as the sampler on the CPU does (host/crates/model/src/sampler.rs): the mask, biases and
// penalties change the logits; then temperature, min-p, top-k and top-p leave the first few in the order (logit descending, id
// ascending), and the draw falls on the first whose running sum of weights is above uniform * total. A request without top-k
// and top-p draws in the order of ids.
//
// Nothing is sorted. Weights exp((logit - max) / temperature) are whole numbers, units of 2^-shift, so that their sums do not
// depend on the order and atomics may add them; a draw differs from that of f64 sums only where `uniform` is within about
// 2^-45 * vocabulary of a boundary. An element is found by bins of its key: first by the distance from the maximum, 1/64
// wide, then, until the bin has a few elements, by bytes of (logit, id).
//
// Total: NaN is never drawn, infinities are drawn greedily, ids outside the vocabulary are ignored.
//
// Floor: 4 bytes a logit once (greedy); 5 passes with top-p, from L2. One block a row: at 64 bytes a clock 128k logits take
// about 5 microseconds a pass.
#include "common.cuh"

constexpr int SAMPLE_THREADS = 512;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr unsigned BINS = 2048;
constexpr unsigned LIST = 256;
constexpr unsigned NO_TOKEN = 0xffffffffu, NO_LOGPROBS = 0xffffffffu, NO_MASK = 0xffffffffu;
typedef unsigned long long u64;

// Twins in Rust: src/cuda/ops/sample.rs.
struct SampleParams {
  float temperature;
  unsigned top_k;
  float top_p, min_p, repetition, presence, frequency;
  unsigned alternatives;
  unsigned seen_begin, seen_end, bias_begin, bias_end;
  unsigned mask_begin, mask_words;
  double uniform;
};
static_assert(sizeof(SampleParams) == 64, "as in Rust");
struct SampledRow {
  unsigned id;
  float logprob;
};

struct SampleArguments {
  float* logits;              // [samples, vocabulary], changed in place
  const SampleParams* params;
  const uint2* seen;          // (id, times in the output)
  const uint2* biases;        // (id, bits of an f32)
  const unsigned* masks;
  float* raw;                 // [seen_capacity + bias_capacity]
  SampledRow* out;            // [samples]
  unsigned* top_ids;          // [samples, alternatives_max]
  float* top_logprobs;        // likewise
  const unsigned* samples_count;
  unsigned vocabulary;
  unsigned seen_capacity;
  unsigned alternatives_max;
  unsigned unused;
};

struct Scored {
  float value;
  unsigned id;
};
// NaN is before nothing.
__device__ __forceinline__ bool is_before(const Scored& a, const Scored& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

struct SampleShared {
  u64 sums[BINS];
  unsigned counts[BINS];
  u64 list_keys[LIST], list_weights[LIST], sorted_weights[LIST], sorted_keys[LIST];
  double doubles[SAMPLE_THREADS];
  Scored best[SAMPLE_WARPS];
  unsigned list_count;
  unsigned bin;
  u64 total, before, need;
  unsigned words[SAMPLE_WARPS];
  float raw_seen, raw_bias;
  unsigned has_raw_seen, has_raw_bias;
};

// The best of a row, or of what comes after `last` in it: never NaN; NO_TOKEN if there is none.
__device__ __forceinline__ Scored best_after(SampleShared& shared, const float* row, unsigned vocabulary, const Scored& last, bool is_first) {
  Scored best = {-INFINITY, NO_TOKEN};
  for (unsigned id = threadIdx.x; id < vocabulary; id += SAMPLE_THREADS) {
    const Scored one = {row[id], id};
    if ((is_first || is_before(last, one)) && is_before(one, best)) best = one;
  }
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) {
    const Scored other = {__shfl_xor_sync(ALL_LANES, best.value, offset), __shfl_xor_sync(ALL_LANES, best.id, offset)};
    if (is_before(other, best)) best = other;
  }
  __syncthreads();  // who still reads the last call's
  if (threadIdx.x % WARP == 0) shared.best[threadIdx.x / WARP] = best;
  __syncthreads();
  best = shared.best[0];
  for (int warp = 1; warp < SAMPLE_WARPS; warp++)
    if (is_before(shared.best[warp], best)) best = shared.best[warp];
  return best;
}

// ln sum exp(logit) in f64; NaN if a logit is, or if the largest is infinite.
__device__ __forceinline__ double log_sum_exp(SampleShared& shared, const float* row, unsigned vocabulary, float most) {
  double sum = 0.0;
  for (unsigned id = threadIdx.x; id < vocabulary; id += SAMPLE_THREADS) sum += exp((double)row[id] - (double)most);
  shared.doubles[threadIdx.x] = sum;
  for (unsigned half = SAMPLE_THREADS / 2; half; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared.doubles[threadIdx.x] += shared.doubles[threadIdx.x + half];
  }
  __syncthreads();
  return most - most == 0.f ? (double)most + log(shared.doubles[0]) : (double)NAN;
}

// Takes out what the mask does not have; gives the first token that it has, 0 if it has none.
__device__ __forceinline__ unsigned keep_allowed(SampleShared& shared, float* row, unsigned vocabulary, const unsigned* words, unsigned count) {
  unsigned lowest = NO_TOKEN;
  for (unsigned id = threadIdx.x; id < vocabulary; id += SAMPLE_THREADS) {
    const unsigned word = id / 32 < count ? words[id / 32] : 0;
    if (word >> id % 32 & 1)
      lowest = id < lowest ? id : lowest;
    else
      row[id] = -INFINITY;
  }
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) {
    const unsigned other = __shfl_xor_sync(ALL_LANES, lowest, offset);
    lowest = other < lowest ? other : lowest;
  }
  if (threadIdx.x % WARP == 0) shared.words[threadIdx.x / WARP] = lowest;
  __syncthreads();
  for (int warp = 0; warp < SAMPLE_WARPS; warp++) lowest = shared.words[warp] < lowest ? shared.words[warp] : lowest;
  return lowest == NO_TOKEN ? 0 : lowest;
}

// Bias, then penalties; no token is twice in either list.
__device__ __forceinline__ void adjust(float* row, unsigned vocabulary, const SampleArguments& a, const SampleParams& p) {
  for (unsigned i = p.bias_begin + threadIdx.x; i < p.bias_end; i += SAMPLE_THREADS)
    if (a.biases[i].x < vocabulary) row[a.biases[i].x] += __uint_as_float(a.biases[i].y);
  __syncthreads();
  for (unsigned i = p.seen_begin + threadIdx.x; i < p.seen_end; i += SAMPLE_THREADS) {
    const uint2 token = a.seen[i];
    if (token.x >= vocabulary) continue;
    float logit = row[token.x];
    logit = logit > 0.f ? logit / p.repetition : logit * p.repetition;
    if (token.y > 0) {
      logit -= p.frequency * (float)token.y;
      logit -= p.presence;
    }
    row[token.x] = logit;
  }
  __syncthreads();
}

// 1 / x in f64 by Newton's steps: a division would be a call, and registers would spill around it.
__device__ __forceinline__ double reciprocal(float x) {
  double r = (double)(1.f / x);
#pragma unroll
  for (int step = 0; step < 3; step++) r = fma(r, fma(-(double)x, r, 1.0), r);
  return r;
}

// The weights of a row and the order in which they are drawn.
struct Weights {
  const float* row;
  unsigned vocabulary;
  float most, near, bins_per_logit;
  double factor, min_p, unit;
  bool is_by_id;
  unsigned ids_per_bin;

  __device__ __forceinline__ Weights(const float* row, unsigned vocabulary, float most, const SampleParams& p)
      : row(row), vocabulary(vocabulary), most(most), min_p((double)p.min_p) {
    // The smallest numbers have no inverse in f32.
    const float temperature = fmaxf(p.temperature, 1e-37f);
    factor = reciprocal(temperature);
    is_by_id = p.top_k == 0 && !(p.top_p < 1.f);
    ids_per_bin = (vocabulary + BINS - 1) / BINS;
    int shift = 62;
    for (unsigned v = vocabulary; v; v >>= 1) shift--;
    unit = (double)(1ull << shift);
    bins_per_logit = fminf(64.f / temperature, 1e30f);
    near = fminf(-45.f * temperature, -1e-30f);
  }
  // 0 for what cannot be drawn. Below e^-45 a weight is less than half a unit, as shift is below 63.
  __device__ __forceinline__ u64 of(float logit) const {
    const float distance = logit - most;
    if (!(distance >= near)) return 0;
    const double weight = exp((double)distance * factor);
    return weight >= min_p && weight <= 1.0 ? (u64)(weight * unit + 0.5) : 0;
  }
  __device__ __forceinline__ unsigned bin(float logit, unsigned id) const {
    return is_by_id ? id / ids_per_bin : (unsigned)fminf((most - logit) * bins_per_logit, (float)(BINS - 1));
  }
  // Ascending in the order of the draw, among those of a bin.
  __device__ __forceinline__ u64 key(float logit, unsigned id) const {
    const unsigned bits = __float_as_uint(logit + 0.f);  // -0 is 0
    const unsigned ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return is_by_id ? id : (u64)~ascending << 32 | id;
  }
};

// A place in the order: all up to and with it.
struct Cut {
  unsigned bin;
  u64 key;
  __device__ __forceinline__ bool has(unsigned other_bin, u64 other_key) const {
    return other_bin < bin || (other_bin == bin && other_key <= key);
  }
};

enum Wanted { BY_COUNT, BY_SHARE, BY_DRAW };

// Warp 0: the bin in which the running sum, from shared.before on, reaches shared.need; the last with something in it, if
// rounding leaves it short. On the first level `need` is made from the total.
__device__ __forceinline__ void choose_bin(SampleShared& shared, unsigned bins, Wanted wanted, bool is_first, double wish) {
  const unsigned lane = threadIdx.x, each = bins / WARP;
  u64 mine = 0;
  for (unsigned i = 0; i < each; i++) {
    const unsigned bin = lane * each + i;
    mine += wanted == BY_COUNT ? shared.counts[bin] : shared.sums[bin];
  }
  u64 upto = mine;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const u64 other = __shfl_up_sync(ALL_LANES, upto, offset);
    if (lane >= (unsigned)offset) upto += other;
  }
  const u64 total = __shfl_sync(ALL_LANES, upto, 31);
  u64 need = shared.need, before = shared.before;
  __syncwarp();
  if (is_first) {
    before = 0;
    need = wanted == BY_COUNT ? (u64)wish : wanted == BY_SHARE ? (u64)ceil(wish * (double)total) : (u64)floor(wish * (double)total) + 1;
    need = need < 1 ? 1 : need;
    need = need > total ? total : need;
  }
  // One lane at most: its bins are where the sum passes.
  const u64 upto_here = before + upto, before_here = upto_here - mine;
  if (total > 0 && before_here < need && upto_here >= need) {
    u64 reached = before_here;
    for (unsigned i = 0; i < each; i++) {
      const unsigned bin = lane * each + i;
      const u64 next = reached + (wanted == BY_COUNT ? shared.counts[bin] : shared.sums[bin]);
      if (next >= need) {
        shared.bin = bin, shared.before = reached, shared.need = need;
        break;
      }
      reached = next;
    }
  }
  if (lane == 0 && is_first) shared.total = total;
}

// The first element whose running sum (of counts or weights, of what `cut` leaves) reaches what is wanted. False if there is
// none at all.
__device__ __forceinline__ bool find(SampleShared& shared, const Weights& weights, Wanted wanted, double wish, const Cut& cut, Cut& found) {
  found = {0, 0};
  u64 prefix = 0;
  for (unsigned level = 0;; level++) {
    const unsigned bins = level == 0 ? BINS : 256, down = 64 - 8 * level;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < bins; i += SAMPLE_THREADS) shared.sums[i] = 0, shared.counts[i] = 0;
    if (threadIdx.x == 0) shared.list_count = 0;
    __syncthreads();
    for (unsigned id = threadIdx.x; id < weights.vocabulary; id += SAMPLE_THREADS) {
      const float logit = weights.row[id];
      if (!(logit - weights.most >= weights.near)) continue;
      const unsigned bin = weights.bin(logit, id);
      const u64 key = weights.key(logit, id);
      if (!cut.has(bin, key)) continue;
      if (level > 0 && (bin != found.bin || (level > 1 && key >> (down + 8) != prefix))) continue;
      const u64 weight = weights.of(logit);
      if (weight == 0) continue;
      const unsigned at = level == 0 ? bin : (unsigned)(key >> down) & 255;
      atomicAdd(&shared.sums[at], weight);
      atomicAdd(&shared.counts[at], 1u);
    }
    __syncthreads();
    if (threadIdx.x < WARP) choose_bin(shared, bins, wanted, level == 0, wish);
    __syncthreads();
    if (shared.total == 0) return false;
    const unsigned chosen = shared.bin, count = shared.counts[chosen];
    if (level == 0)
      found.bin = chosen;
    else
      prefix = prefix << 8 | chosen;
    if (count > LIST) continue;
    // Few enough to be put in order.
    for (unsigned id = threadIdx.x; id < weights.vocabulary; id += SAMPLE_THREADS) {
      const float logit = weights.row[id];
      if (!(logit - weights.most >= weights.near) || weights.bin(logit, id) != found.bin) continue;
      const u64 key = weights.key(logit, id);
      if (!cut.has(found.bin, key) || (level > 0 && key >> down != prefix)) continue;
      const u64 weight = weights.of(logit);
      if (weight == 0) continue;
      const unsigned at = atomicAdd(&shared.list_count, 1u);
      shared.list_keys[at] = key, shared.list_weights[at] = weight;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
      unsigned rank = 0;
      for (unsigned j = 0; j < count; j++) rank += shared.list_keys[j] < shared.list_keys[i];
      shared.sorted_keys[rank] = shared.list_keys[i], shared.sorted_weights[rank] = shared.list_weights[i];
    }
    __syncthreads();
    u64 reached = shared.before;
    unsigned at = 0;
    for (; at + 1 < count; at++) {
      reached += wanted == BY_COUNT ? 1 : shared.sorted_weights[at];
      if (reached >= shared.need) break;
    }
    found.key = shared.sorted_keys[at];
    return true;
  }
}

// Of a row whose largest logit is finite.
__device__ __forceinline__ unsigned draw(SampleShared& shared, const float* row, unsigned vocabulary, const Scored& best, const SampleParams& p) {
  const Weights weights(row, vocabulary, best.value, p);
  Cut cut = {BINS, 0}, found;
  if (p.top_k > 0 && find(shared, weights, BY_COUNT, (double)p.top_k, cut, found)) cut = found;
  if (p.top_p < 1.f && find(shared, weights, BY_SHARE, (double)p.top_p, cut, found)) cut = found;
  return find(shared, weights, BY_DRAW, p.uniform, cut, found) ? (unsigned)found.key : best.id;
}

// grid samples_max, block SAMPLE_THREADS
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1) sample(const SampleArguments a) {
  SHARED SampleShared shared;
  if (blockIdx.x >= *a.samples_count) return;
  const SampleParams p = a.params[blockIdx.x];
  const unsigned vocabulary = a.vocabulary;
  float* const row = a.logits + (size_t)blockIdx.x * vocabulary;
  const bool has_logprobs = p.alternatives != NO_LOGPROBS;
  double normaliser = 0.0;
  if (threadIdx.x == 0) shared.has_raw_seen = shared.has_raw_bias = 0;
  if (has_logprobs) {
    Scored one = best_after(shared, row, vocabulary, {0.f, 0}, true);
    normaliser = log_sum_exp(shared, row, vocabulary, one.value);
    for (unsigned i = 0; i < p.alternatives && i < a.alternatives_max; i++) {
      if (i > 0 && one.id != NO_TOKEN) one = best_after(shared, row, vocabulary, one, false);
      if (threadIdx.x == 0) {
        a.top_ids[(size_t)blockIdx.x * a.alternatives_max + i] = one.id;
        a.top_logprobs[(size_t)blockIdx.x * a.alternatives_max + i] = (float)((double)one.value - normaliser);
      }
    }
    for (unsigned i = p.seen_begin + threadIdx.x; i < p.seen_end; i += SAMPLE_THREADS)
      if (a.seen[i].x < vocabulary) a.raw[i] = row[a.seen[i].x];
    for (unsigned i = p.bias_begin + threadIdx.x; i < p.bias_end; i += SAMPLE_THREADS)
      if (a.biases[i].x < vocabulary) a.raw[a.seen_capacity + i] = row[a.biases[i].x];
  }
  __syncthreads();
  const unsigned lowest = p.mask_begin == NO_MASK ? 0 : keep_allowed(shared, row, vocabulary, a.masks + p.mask_begin, p.mask_words);
  __syncthreads();
  adjust(row, vocabulary, a, p);
  Scored best = best_after(shared, row, vocabulary, {0.f, 0}, true);
  if (!(best.value > -INFINITY)) best = {-INFINITY, lowest};
  const bool is_drawn = p.temperature > 0.f && best.value - best.value == 0.f;
  const unsigned id = is_drawn ? draw(shared, row, vocabulary, best, p) : best.id;
  if (has_logprobs) {
    // The logit as the model gave it, should it have been changed.
    for (unsigned i = p.seen_begin + threadIdx.x; i < p.seen_end; i += SAMPLE_THREADS)
      if (a.seen[i].x == id) shared.raw_seen = a.raw[i], shared.has_raw_seen = 1;
    for (unsigned i = p.bias_begin + threadIdx.x; i < p.bias_end; i += SAMPLE_THREADS)
      if (a.biases[i].x == id) shared.raw_bias = a.raw[a.seen_capacity + i], shared.has_raw_bias = 1;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    float logprob = 0.f;
    if (has_logprobs) {
      const float logit = shared.has_raw_seen ? shared.raw_seen : shared.has_raw_bias ? shared.raw_bias : row[id];
      logprob = (float)((double)logit - normaliser);
    }
    a.out[blockIdx.x] = {id, logprob};
  }
}
EXPORT_KERNEL(sample)
