//! Rounding rows to int8 with AVX-512 VNNI: a block of four rows at a time, whose words are written together, and of the rows that
//! are left one by one. Gives the bits of the plain version.
//!
//! All four rows stay in registers. Nothing is written in small pieces and then read as a vector: such a read waits until the
//! pieces have left for the cache, which made a version that computed the scales and sums of all rows of a panel at once
//! slower than one row at a time.

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
        // SAFETY: a block of a row, and its words: see the lengths above; four rows where there are four.
        unsafe {
            let x = part.x.as_ptr().add(part.from + block * BLOCK_VALUES);
            let words = words.as_mut_ptr().add(block * rows * BLOCK_WORDS);
            let fours = rows / 4 * 4;
            for row in (0..fours).step_by(4) {
                quantise_four(x.add(row * part.width), part.width, rows, words.add(row));
            }
            for row in fours..rows {
                quantise_block(x.add(row * part.width), rows, words.add(row));
            }
        }
    }
}

/// What [`quantise_block`] does, of four rows at once.
///
/// # Safety
/// There are 32 values at `x` and at each multiple up to three of `width` from there, and four in each of the `BLOCK_WORDS` words, which are
/// `stride` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn quantise_four(x: *const f32, width: usize, stride: usize, words: *mut u32) {
    const ROWS: usize = 4;
    let mut values = [[_mm512_setzero_ps(); 2]; ROWS];
    let mut largest = [_mm_setzero_si128(); ROWS];
    for row in 0..ROWS {
        // SAFETY: 32 values.
        values[row] = unsafe { [0, 16].map(|at| _mm512_loadu_ps(x.add(row * width + at))) };
        largest[row] = largest_four(_mm512_castps_si512(values[row][0]), _mm512_castps_si512(values[row][1]));
    }
    let both = |a, b| _mm_max_epu32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let [first, last] = [both(largest[0], largest[1]), both(largest[2], largest[3])];
    let largest = _mm_max_epu32(_mm_unpacklo_epi64(first, last), _mm_unpackhi_epi64(first, last));
    // Magnitudes as integers are in the order of the numbers, infinity above all and NaN above that.
    let is_tiny = _mm_cmplt_epu32_mask(largest, _mm_set1_epi32(SMALLEST.to_bits().cast_signed()));
    let is_broken = _mm_cmpge_epu32_mask(largest, _mm_set1_epi32(f32::INFINITY.to_bits().cast_signed()));
    let (largest, limit) = (_mm_castsi128_ps(largest), _mm_set1_ps(127.0));
    let scales = _mm_maskz_div_ps(!is_tiny, largest, limit);
    let scales = _mm_mask_mov_ps(scales, is_broken, _mm_set1_ps(f32::NAN));
    let inverses = _mm_maskz_div_ps(!is_tiny & !is_broken, limit, largest);
    let inverses = _mm512_castps128_ps512(inverses);
    let mut codes = [_mm256_setzero_si256(); ROWS];
    let mut sums = [_mm256_setzero_si256(); ROWS];
    for row in 0..ROWS {
        let inverse = _mm512_permutexvar_ps(_mm512_set1_epi32(row as i32), inverses);
        let [first, last] = values[row].map(|values| rounded(values, inverse));
        codes[row] = _mm256_set_m128i(last, first);
        sums[row] = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), codes[row]);
    }
    let both = |a, b| _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let [first, last] = [both(sums[0], sums[1]), both(sums[2], sums[3])];
    let sums = _mm256_add_epi32(_mm256_unpacklo_epi64(first, last), _mm256_unpackhi_epi64(first, last));
    let halves = [_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums)];
    let sum = _mm_add_epi32(halves[0], halves[1]);
    let [low, high] = [0, 2].map(|row| [codes[row], codes[row + 1]]);
    let [ab, cd] = [low, high].map(|[a, b]| [_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b)]);
    let minus = |sum| _mm_sub_epi32(_mm_setzero_si128(), sum);
    // SAFETY: the words of the block.
    unsafe {
        let word = |word: usize, value| _mm_storeu_si128(words.add(word * stride).cast(), value);
        for half in 0..2 {
            // Word i of all rows in the low half, word i + 4 in the high one.
            let pair = [_mm256_unpacklo_epi64(ab[half], cd[half]), _mm256_unpackhi_epi64(ab[half], cd[half])];
            for (index, pair) in pair.into_iter().enumerate() {
                word(Words::CODES + 2 * half + index, _mm256_castsi256_si128(pair));
                word(Words::CODES + 4 + 2 * half + index, _mm256_extracti128_si256::<1>(pair));
            }
        }
        word(Words::SCALE, _mm_castps_si128(scales));
        word(Words::SCALED_SUM, _mm_castps_si128(_mm_mul_ps(scales, _mm_cvtepi32_ps(sum))));
        word(Words::MINUS_8, minus(_mm_slli_epi32::<3>(sum)));
        word(Words::MINUS_128, minus(_mm_slli_epi32::<7>(sum)));
        word(Words::MINUS_32[0], minus(_mm_slli_epi32::<5>(halves[0])));
        word(Words::MINUS_32[1], minus(_mm_slli_epi32::<5>(halves[1])));
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
    (scale, [rounded(first, inverse), rounded(last, inverse)])
}

/// The codes of 16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn rounded(values: __m512, inverse: __m512) -> __m128i {
    // What does not fit an i32 (of a broken block) becomes 0x80000000, whose low byte is 0.
    _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(values, inverse)))
}

/// Four numbers of which one is the largest magnitude, as bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn largest_four(first: __m512i, last: __m512i) -> __m128i {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let all = _mm512_max_epu32(_mm512_and_si512(first, magnitude), _mm512_and_si512(last, magnitude));
    let eight = _mm256_max_epu32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
    _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight))
}

/// The largest magnitude, as bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn largest_bits(first: __m512i, last: __m512i) -> u32 {
    let four = largest_four(first, last);
    let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b1110>(four));
    _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two))) as u32
}
