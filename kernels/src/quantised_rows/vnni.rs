//! Rounding rows to int8 with AVX-512 VNNI. What belongs to rows and not to values (scales, sums) is computed for all rows
//! of a panel at once. Gives the bits of the plain version.
//!
//! Some blocks at a time go through four loops, so that nothing is read as a vector just after it was written in small
//! pieces: a load must wait until such stores have left for the cache, which made the whole five times slower.

use std::arch::x86_64::*;

use super::{BLOCK_WORDS, PANEL_ROWS, SMALLEST, Words};
use crate::quantised::BLOCK_VALUES;

/// Blocks that go through the loops together.
const TOGETHER: usize = 8;

/// A value for each row.
type Lanes<T> = [T; 16];

/// As `quantise` of `quantised_rows.rs`.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL, DQ and VNNI.
///
/// # Panics
/// If the lengths do not belong together.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn quantise(x: &[f32], rows: usize, words: &mut [u32]) {
    let blocks = words.len() / (rows * BLOCK_WORDS);
    let width = blocks * BLOCK_VALUES;
    assert!((1..=PANEL_ROWS).contains(&rows) && words.len() == blocks * rows * BLOCK_WORDS && x.len() == rows * width);
    let mut largest = [[0; 16]; TOGETHER];
    let mut inverse = [[0.0; 16]; TOGETHER];
    for (index, words) in words.chunks_mut(TOGETHER * rows * BLOCK_WORDS).enumerate() {
        let x = &x[index * TOGETHER * BLOCK_VALUES..];
        let together = words.len() / (rows * BLOCK_WORDS);
        for (block, largest) in largest[..together].iter_mut().enumerate() {
            for (row, largest) in largest[..rows].iter_mut().enumerate() {
                *largest = largest_bits(&x[row * width + block * BLOCK_VALUES..]);
            }
        }
        for ((words, largest), inverse) in words.chunks_exact_mut(rows * BLOCK_WORDS).zip(&largest).zip(&mut inverse) {
            *inverse = scales(largest, rows, words);
        }
        for (block, (words, inverse)) in words.chunks_exact_mut(rows * BLOCK_WORDS).zip(&inverse).enumerate() {
            for (row, inverse) in inverse[..rows].iter().enumerate() {
                let codes = round(&x[row * width + block * BLOCK_VALUES..], *inverse);
                for (group, codes) in codes.into_iter().enumerate() {
                    words[(Words::CODES + group) * rows + row] = codes;
                }
            }
        }
        for words in words.chunks_exact_mut(rows * BLOCK_WORDS) {
            sums(rows, words);
        }
    }
}

/// The largest magnitude of a block, as bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn largest_bits(x: &[f32]) -> u32 {
    let x: *const __m512i = x[..BLOCK_VALUES].as_ptr().cast();
    // SAFETY: 32 values.
    let (first, last) = unsafe { (_mm512_loadu_si512(x), _mm512_loadu_si512(x.add(1))) };
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let all = _mm512_max_epu32(_mm512_and_si512(first, magnitude), _mm512_and_si512(last, magnitude));
    let eight = _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    let four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two))) as u32
}

/// Writes the scales of a block and gives their inverses: 0 for a block that is too small or broken.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn scales(largest: &Lanes<u32>, rows: usize, words: &mut [u32]) -> Lanes<f32> {
    // SAFETY: 16 values.
    let largest = unsafe { _mm512_loadu_si512(largest.as_ptr().cast()) };
    let broken = _mm512_cmpge_epu32_mask(largest, _mm512_set1_epi32(f32::INFINITY.to_bits() as i32));
    let tame = !broken & _mm512_cmpge_epu32_mask(largest, _mm512_set1_epi32(SMALLEST.to_bits() as i32));
    let (largest, most) = (_mm512_castsi512_ps(largest), _mm512_set1_ps(127.0));
    let scale = _mm512_mask_div_ps(_mm512_maskz_mov_ps(broken, _mm512_set1_ps(f32::NAN)), tame, largest, most);
    write(words, Words::SCALE, rows, _mm512_castps_si512(scale));
    let mut inverse = [0.0; 16];
    // SAFETY: 16 values.
    unsafe { _mm512_storeu_ps(inverse.as_mut_ptr(), _mm512_maskz_div_ps(tame, most, largest)) };
    inverse
}

/// The codes of one row of a block. What does not fit an i32 (of a broken block) becomes 0x80000000, whose low byte is 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn round(x: &[f32], inverse: f32) -> [u32; 8] {
    let (x, inverse) = (x[..BLOCK_VALUES].as_ptr(), _mm512_set1_ps(inverse));
    let mut codes = [0; 8];
    for half in 0..2 {
        // SAFETY: 16 of 32 values, and 16 of 32 bytes.
        unsafe {
            let scaled = _mm512_mul_ps(_mm512_loadu_ps(x.add(half * 16)), inverse);
            let rounded = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(scaled));
            _mm_storeu_si128(codes.as_mut_ptr().add(half * 4).cast(), rounded);
        }
    }
    codes
}

/// Writes what follows from the codes and scales of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn sums(rows: usize, words: &mut [u32]) {
    let mut sums = [_mm512_setzero_si512(); 2];
    for group in 0..8 {
        let quads = read(words, Words::CODES + group, rows);
        sums[group / 4] = _mm512_dpbusd_epi32(sums[group / 4], _mm512_set1_epi8(1), quads);
    }
    let sum = _mm512_add_epi32(sums[0], sums[1]);
    let scale = _mm512_castsi512_ps(read(words, Words::SCALE, rows));
    let scaled = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum));
    let minus = |sum: __m512i| _mm512_sub_epi32(_mm512_setzero_si512(), sum);
    write(words, Words::SCALED_SUM, rows, _mm512_castps_si512(scaled));
    write(words, Words::MINUS_8, rows, minus(_mm512_slli_epi32::<3>(sum)));
    write(words, Words::MINUS_128, rows, minus(_mm512_slli_epi32::<7>(sum)));
    write(words, Words::MINUS_32[0], rows, minus(_mm512_slli_epi32::<5>(sums[0])));
    write(words, Words::MINUS_32[1], rows, minus(_mm512_slli_epi32::<5>(sums[1])));
}

/// A word of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn read(words: &[u32], word: usize, rows: usize) -> __m512i {
    let words = &words[word * rows..][..rows];
    // SAFETY: only the words of the slice are read.
    unsafe { _mm512_maskz_loadu_epi32((1 << rows) - 1, words.as_ptr().cast()) }
}

/// As [`read`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn write(words: &mut [u32], word: usize, rows: usize, values: __m512i) {
    let words = &mut words[word * rows..][..rows];
    // SAFETY: only the words of the slice are written.
    unsafe { _mm512_mask_storeu_epi32(words.as_mut_ptr().cast(), (1 << rows) - 1, values) }
}
