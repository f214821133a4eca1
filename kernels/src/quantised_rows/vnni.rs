//! Rounding rows to int8 with AVX-512 VNNI, a block of a row at a time. Gives the bits of the plain version.
//!
//! Nothing is written in small pieces and then read as a vector: such a read waits until the pieces have left for the
//! cache, which made a version that computed the scales and sums of all rows at once slower than this one.

use std::arch::x86_64::*;

use super::{BLOCK_WORDS, Part, SMALLEST, Words};
use crate::quantised::BLOCK_VALUES;

/// As `quantise` of `quantised_rows.rs`.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL, DQ and VNNI.
///
/// # Panics
/// If the lengths do not belong together.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn quantise(part: &Part<'_>, words: &mut [u32]) {
    let (rows, blocks) = (part.rows, (part.to - part.from) / BLOCK_VALUES);
    assert!(part.from <= part.to && part.to <= part.width && part.x.len() == rows * part.width);
    assert!(words.len() == blocks * rows * BLOCK_WORDS);
    for block in 0..blocks {
        for row in 0..rows {
            // SAFETY: a block of a row, and its words: see the lengths above.
            unsafe {
                let x = part.x.as_ptr().add(row * part.width + part.from + block * BLOCK_VALUES);
                quantise_block(x, rows, words.as_mut_ptr().add(block * rows * BLOCK_WORDS + row));
            }
        }
    }
}

/// # Safety
/// `x` has 32 values, and `words` has `BLOCK_WORDS` words, `stride` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn quantise_block(x: *const f32, stride: usize, words: *mut u32) {
    // SAFETY: 32 values.
    let (first, last) = unsafe { (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16))) };
    let (scale, [first, last]) = codes([first, last]);
    let sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), _mm256_set_m128i(last, first));
    let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<0b1110>(sums));
    let sums = _mm256_add_epi32(sums, _mm256_shuffle_epi32::<1>(sums));
    let halves = [_mm256_cvtsi256_si32(sums), _mm256_extract_epi32::<4>(sums)];
    let sum = halves[0] + halves[1];
    // SAFETY: the words of the block.
    unsafe {
        let word = |word: usize, value: u32| words.add(word * stride).write(value);
        word(Words::CODES, _mm_extract_epi32::<0>(first) as u32);
        word(Words::CODES + 1, _mm_extract_epi32::<1>(first) as u32);
        word(Words::CODES + 2, _mm_extract_epi32::<2>(first) as u32);
        word(Words::CODES + 3, _mm_extract_epi32::<3>(first) as u32);
        word(Words::CODES + 4, _mm_extract_epi32::<0>(last) as u32);
        word(Words::CODES + 5, _mm_extract_epi32::<1>(last) as u32);
        word(Words::CODES + 6, _mm_extract_epi32::<2>(last) as u32);
        word(Words::CODES + 7, _mm_extract_epi32::<3>(last) as u32);
        word(Words::SCALE, scale.to_bits());
        word(Words::SCALED_SUM, (scale * sum as f32).to_bits());
        word(Words::MINUS_8, (-8 * sum) as u32);
        word(Words::MINUS_128, (-128 * sum) as u32);
        word(Words::MINUS_32[0], (-32 * halves[0]) as u32);
        word(Words::MINUS_32[1], (-32 * halves[1]) as u32);
    }
}

/// The scale and the codes of 32 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) fn codes([first, last]: [__m512; 2]) -> (f32, [__m128i; 2]) {
    let largest = f32::from_bits(largest_bits(_mm512_castps_si512(first), _mm512_castps_si512(last)));
    let (scale, inverse) = match largest {
        SMALLEST..f32::INFINITY => (largest / 127.0, 127.0 / largest),
        0.0..SMALLEST => (0.0, 0.0),
        _ => (f32::NAN, 0.0),
    };
    let inverse = _mm512_set1_ps(inverse);
    // What does not fit an i32 (of a broken block) becomes 0x80000000, whose low byte is 0.
    let code = |values| _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)));
    (scale, [code(first), code(last)])
}

/// The largest magnitude, as bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn largest_bits(first: __m512i, last: __m512i) -> u32 {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let all = _mm512_max_epu32(_mm512_and_si512(first, magnitude), _mm512_and_si512(last, magnitude));
    let eight = _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    let four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two))) as u32
}
