//! What this machine can do at the very most: peaks of its multiply-add instructions and its read bandwidth, measured by loops
//! that do nothing else. Benchmarks state how far from these a result is. Not here: any operation of a model.
//!
//! The loops hold all their operands in registers (or read a buffer once from end to end), so that no real kernel can beat
//! them by more than the noise of the machine.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::Buffer;

/// What a peak is counted in: one multiplication and one addition are two operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peak {
    /// u8 × i8 into i32: AVX-512 VNNI.
    Int8,
    /// bf16 × bf16 into f32: AVX-512 BF16.
    Bf16,
    /// f32 fused multiply-add: AVX-512 or AVX2.
    F32,
}

/// Operations a second of so many threads together, the best of some short tries; `None` where the machine has no such
/// instruction, or gives no threads.
#[must_use]
pub fn peak(peak: Peak, threads: usize) -> Option<f64> {
    let (run, operations) = peak_loop(peak)?;
    let seconds = best_seconds(threads, |_| run(black_box(ROUNDS)))?;
    Some(operations as f64 * ROUNDS as f64 * threads.max(1) as f64 / seconds)
}

/// Time that the calling thread takes for so many turns of a peak's loop, which fills its core's units for multiply-add: two
/// CPUs that are one core take twice as long together. A thousand turns are some microseconds. `None` where the machine
/// has no such instruction.
#[must_use]
pub fn peak_time(peak: Peak, turns: u64) -> Option<Duration> {
    let (run, _) = peak_loop(peak)?;
    let started = Instant::now();
    run(black_box(turns));
    Some(started.elapsed())
}

/// Bytes a second that so many threads together read from a working set of `bytes` in all, split between them evenly; the
/// best of some short tries. `None` if the machine gives no threads or the set is smaller than a page a thread.
#[must_use]
pub fn read_bandwidth(bytes: usize, threads: usize) -> Option<f64> {
    let threads = threads.max(1);
    let words_each = bytes / threads / size_of::<u64>() / 64 * 64;
    if words_each < 512 {
        return None;
    }
    // In huge pages, as weights are.
    let part = |number: usize| {
        let mut words = Buffer::<u64>::with_capacity(words_each);
        words.resize(words_each);
        words.fill(number as u64 | 1);
        words
    };
    let parts: Vec<Buffer<u64>> = (0..threads).map(part).collect();
    let read_each = words_each * size_of::<u64>();
    let passes = (READ_BYTES / read_each).max(2);
    let seconds = best_seconds(threads, |thread| {
        for _ in 0..passes {
            black_box(sum(black_box(&parts[thread])));
        }
    })?;
    Some((passes * read_each * threads) as f64 / seconds)
}

/// Turns of a peak's loop: some tens of milliseconds.
const ROUNDS: u64 = 4_000_000;
/// Bytes that each thread reads in one try, at least.
const READ_BYTES: usize = 512 << 20;
/// A limit is what the machine gives when nobody disturbs: some tries are enough for one undisturbed.
const TRIES: usize = 10;

/// Seconds from the moment when all threads are ready to the end of the last one; the best try.
fn best_seconds(threads: usize, work: impl Fn(usize) + Sync) -> Option<f64> {
    let threads = threads.max(1);
    let one_try = || -> Option<Duration> {
        let ready = Barrier::new(threads);
        std::thread::scope(|scope| {
            let others: Vec<_> = (0..threads)
                .map(|thread| {
                    let (ready, work) = (&ready, &work);
                    scope.spawn(move || {
                        ready.wait();
                        let started = Instant::now();
                        work(thread);
                        started.elapsed()
                    })
                })
                .collect();
            others.into_iter().map(|other| other.join().ok()).collect::<Option<Vec<_>>>()?.into_iter().max()
        })
    };
    let tries: Option<Vec<Duration>> = (0..TRIES).map(|_| one_try()).collect();
    tries?.into_iter().min().map(|best| best.as_secs_f64())
}

/// The loop of a peak, and the operations of one turn of it.
fn peak_loop(peak: Peak) -> Option<(fn(u64), u64)> {
    #[cfg(target_arch = "x86_64")]
    {
        x86::peak_loop(peak)
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = peak;
        None
    }
}

/// Reads every word once.
fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if let Some(sum) = x86::sum(words) {
        return sum;
    }
    words.iter().fold(0, |sum, word| sum ^ word)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::Peak;

    /// Independent accumulators: more than the latency of the instruction times the ports that take it.
    const CHAINS: usize = 16;

    pub(super) fn peak_loop(peak: Peak) -> Option<(fn(u64), u64)> {
        let (bits_512, avx2) = (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx2"));
        let chains = CHAINS as u64;
        match peak {
            Peak::Int8 if bits_512 && is_x86_feature_detected!("avx512vnni") => {
                // SAFETY: `vnni` enables avx512f and avx512vnni, which were found just above.
                let run: fn(u64) = |rounds| unsafe { vnni(rounds) };
                Some((run, chains * 64 * 2))
            }
            Peak::Bf16 if bits_512 && is_x86_feature_detected!("avx512bf16") => {
                // SAFETY: `bf16` enables avx512f and avx512bf16, which were found just above.
                let run: fn(u64) = |rounds| unsafe { bf16(rounds) };
                Some((run, chains * 32 * 2))
            }
            Peak::F32 if bits_512 => {
                // SAFETY: `fma_512` enables avx512f, which was found just above.
                let run: fn(u64) = |rounds| unsafe { fma_512(rounds) };
                Some((run, chains * 16 * 2))
            }
            Peak::F32 if avx2 && is_x86_feature_detected!("fma") => {
                // SAFETY: `fma_256` enables avx2 and fma, which were found just above.
                let run: fn(u64) = |rounds| unsafe { fma_256(rounds) };
                Some((run, CHAINS_256 as u64 * 8 * 2))
            }
            _ => None,
        }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn vnni(rounds: u64) {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        let sum = sums.iter().fold(_mm512_setzero_si512(), |sum, one| _mm512_add_epi32(sum, *one));
        black_box(_mm512_reduce_add_epi32(sum));
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16(rounds: u64) {
        let ones = _mm512_set1_ps(black_box(1.0));
        let (a, b) = (_mm512_cvtne2ps_pbh(ones, ones), _mm512_cvtne2ps_pbh(ones, ones));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        let sum = sums.iter().fold(_mm512_setzero_ps(), |sum, one| _mm512_add_ps(sum, *one));
        black_box(_mm512_reduce_add_ps(sum));
    }

    #[target_feature(enable = "avx512f")]
    fn fma_512(rounds: u64) {
        let (a, b) = (_mm512_set1_ps(black_box(1.0)), _mm512_set1_ps(black_box(0.5)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        let sum = sums.iter().fold(_mm512_setzero_ps(), |sum, one| _mm512_add_ps(sum, *one));
        black_box(_mm512_reduce_add_ps(sum));
    }

    /// There are only 16 registers.
    const CHAINS_256: usize = 10;

    #[target_feature(enable = "avx2,fma")]
    fn fma_256(rounds: u64) {
        let (a, b) = (_mm256_set1_ps(black_box(1.0)), _mm256_set1_ps(black_box(0.5)));
        let mut sums = [_mm256_setzero_ps(); CHAINS_256];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        let sum = sums.iter().fold(_mm256_setzero_ps(), |sum, one| _mm256_add_ps(sum, *one));
        black_box(_mm256_cvtss_f32(sum));
    }

    /// `None` without AVX-512.
    pub(super) fn sum(words: &[u64]) -> Option<u64> {
        if !is_x86_feature_detected!("avx512f") {
            return None;
        }
        // SAFETY: `sum_512` enables avx512f, which was found just above.
        Some(unsafe { sum_512(words) })
    }

    #[target_feature(enable = "avx512f")]
    fn sum_512(words: &[u64]) -> u64 {
        const WORDS: usize = 8;
        const STREAMS: usize = 8;
        let mut sums = [_mm512_setzero_si512(); STREAMS];
        let blocks = words.chunks_exact(WORDS * STREAMS);
        let rest = blocks.remainder().iter().fold(0, |sum, word| sum ^ word);
        for block in blocks {
            for (sum, words) in sums.iter_mut().zip(block.chunks_exact(WORDS)) {
                // SAFETY: `words` is a slice of exactly 8 words of 8 bytes, all of which this unaligned load reads.
                let loaded = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
                *sum = _mm512_xor_si512(*sum, loaded);
            }
        }
        let sum = sums.iter().fold(_mm512_setzero_si512(), |sum, one| _mm512_xor_si512(sum, *one));
        let mut lanes = [0u64; WORDS];
        // SAFETY: `lanes` has exactly the 64 bytes that this unaligned store writes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), sum) };
        lanes.iter().fold(rest, |sum, lane| sum ^ lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        for length in [0, 1, 63, 64, 65, 200, 1024] {
            let words: Vec<u64> = (0..length).map(|word: u64| word.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            assert_eq!(sum(&words), words.iter().fold(0, |sum, word| sum ^ word), "{length} words");
        }
    }

    #[test]
    fn small_sets_are_refused_and_others_have_a_bandwidth() {
        assert_eq!(read_bandwidth(4096, 2), None);
        assert!(read_bandwidth(1 << 20, 1).is_some_and(|bytes| bytes > 1e8 && bytes < 1e13));
    }

    #[test]
    fn a_peak_is_a_positive_number_where_the_machine_has_the_instruction() {
        for kind in [Peak::Int8, Peak::F32] {
            assert!(peak(kind, 1).is_none_or(|peak| peak.is_finite() && peak > 0.0));
        }
    }
}
