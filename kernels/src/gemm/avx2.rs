//! Integer formats with AVX2: tiles of up to 4 rows x 8 outputs. Products of unsigned codes and signed inputs are added in
//! pairs to 16 bits (VPMADDUBSW), as many as fit, and then to 32 bits; 8-bit codes are made signed again and hand their sign
//! to the inputs, so that nothing saturates. Not here: the order of the arithmetic, which is written down in `gemm.rs`.

use std::arch::x86_64::*;

use super::Results;
use crate::packed::{Layout, PANEL};
use crate::quantised_rows::{BLOCK_WORDS, PANEL_ROWS, Words};

/// Outputs of a tile.
const LANES: usize = 8;

/// An integer format: `weights` is a panel, `x` the words of a panel of `rows` rows.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
///
/// # Panics
/// If the lengths do not belong together.
pub(super) unsafe fn integers<F: Layout>(weights: &[u8], x: &[u32], rows: usize, results: &mut Results) {
    assert!((1..=PANEL_ROWS).contains(&rows));
    let blocks = x.len() / (rows * BLOCK_WORDS);
    assert!(x.len() == blocks * rows * BLOCK_WORDS && blocks.is_multiple_of(F::SHAPE.shared));
    assert!(weights.len() == F::SHAPE.block_at(blocks) - F::SHAPE.header_bytes());
    for row in (0..rows).step_by(4) {
        for first in (0..PANEL).step_by(LANES) {
            // SAFETY: the features are the caller's promise; the lengths were asserted above.
            unsafe {
                match rows - row {
                    1 => tile::<F, 1>(weights, x, rows, row, first, results),
                    2 => tile::<F, 2>(weights, x, rows, row, first, results),
                    3 => tile::<F, 3>(weights, x, rows, row, first, results),
                    _ => tile::<F, 4>(weights, x, rows, row, first, results),
                }
            }
        }
    }
}

/// ROWS rows from `row` on and 8 outputs from `first` on.
///
/// # Safety
/// The machine has the features; `weights` and `x` have the same number of blocks; `row + ROWS <= rows` and
/// `first` is 0, 8, 16 or 24.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<F: Layout, const ROWS: usize>(
    weights: &[u8],
    x: &[u32],
    rows: usize,
    row: usize,
    first: usize,
    results: &mut Results,
) {
    let shape = F::SHAPE;
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for (block, x) in x.chunks_exact(rows * BLOCK_WORDS).enumerate() {
        let x: [&[u32]; ROWS] = std::array::from_fn(|index| &x[row + index..]);
        let at = shape.block_at(block);
        let header = &weights[at - block % shape.shared * shape.block_bytes() - shape.header_bytes()..];
        let block = &weights[at..][..shape.block_bytes()];
        let codes = &block[first / 16 * shape.codes_bytes()..][..shape.codes_bytes()];
        let scales = &block[2 * shape.codes_bytes()..];
        let halves = if shape.bits == 6 { 2 } else { 1 };
        for half in 0..halves {
            let mut dots = [_mm256_setzero_si256(); ROWS];
            for index in 0..ROWS {
                dots[index] = _mm256_set1_epi32(offset_sum::<F>(x[index], rows, half));
            }
            // Pairs of products that 16 bits hold: 8 of 2 · 15 · 127, 4 of 2 · 31 · 127, 2 of 2 · 63 · 127.
            let together = [8, 4, 2, 1][(shape.bits - 4).min(3)];
            for groups in (half * 8 / halves..(half + 1) * 8 / halves).step_by(together) {
                let mut shorts = [_mm256_setzero_si256(); ROWS];
                for group in groups..groups + together {
                    let quad = unpack::<F>(codes, group, first % 16 / LANES);
                    for index in 0..ROWS {
                        let x = _mm256_set1_epi32(x[index][(Words::CODES + group) * rows] as i32);
                        let products = if shape.bits == 8 {
                            let quad = _mm256_xor_si256(quad, _mm256_set1_epi8(-128));
                            _mm256_maddubs_epi16(_mm256_abs_epi8(quad), _mm256_sign_epi8(x, quad))
                        } else {
                            _mm256_maddubs_epi16(quad, x)
                        };
                        shorts[index] = _mm256_add_epi16(shorts[index], products);
                    }
                }
                for index in 0..ROWS {
                    let words = _mm256_madd_epi16(shorts[index], _mm256_set1_epi16(1));
                    dots[index] = _mm256_add_epi32(dots[index], words);
                }
            }
            let (scale, least) = scale_and_least::<F>(header, scales, first, half);
            for index in 0..ROWS {
                let word = |word: usize| _mm256_set1_ps(f32::from_bits(x[index][word * rows]));
                let scale = _mm256_mul_ps(scale, word(Words::SCALE));
                sums[index] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dots[index]), sums[index]);
                if shape.minima {
                    sums[index] = _mm256_fmadd_ps(least, word(Words::SCALED_SUM), sums[index]);
                }
            }
        }
    }
    for (results, sum) in results[row..].iter_mut().zip(sums) {
        // SAFETY: 8 of 32 values.
        unsafe { _mm256_storeu_ps(results[first..][..LANES].as_mut_ptr(), sum) };
    }
}

/// What the offset of the codes adds to a sum, taken away. 8-bit codes are made signed instead.
#[inline(always)]
fn offset_sum<F: Layout>(x: &[u32], rows: usize, half: usize) -> i32 {
    match F::SHAPE.offset {
        0 | 128 => 0,
        32 => x[Words::MINUS_32[half] * rows] as i32,
        offset => x[Words::MINUS_8 * rows] as i32 * (offset / 8),
    }
}

/// The codes of 4 inputs x 8 outputs: the lower or upper half of a group of 16.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack<F: Layout>(codes: &[u8], group: usize, upper: usize) -> __m256i {
    // SAFETY: 32 bytes.
    let load = |at: usize| unsafe { _mm256_loadu_si256(codes[at + upper * 32..][..32].as_ptr().cast()) };
    if F::SHAPE.bits == 8 {
        return load(group * 64);
    }
    let both = load(group % 4 * 64);
    let low = if group < 4 { both } else { _mm256_srli_epi16::<4>(both) };
    let low = _mm256_and_si256(low, _mm256_set1_epi8(15));
    match F::SHAPE.bits {
        5 => {
            let [a, b, c, d] = *codes[256 + group * 8 + upper * 4..].first_chunk().unwrap_or(&[0; 4]);
            let bits = _mm256_set1_epi32(i32::from_le_bytes([a, b, c, d]));
            // Byte i of the result takes byte i / 8, and of that bit i % 8.
            let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let fifth = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(bits, spread), bit), bit);
            _mm256_or_si256(low, _mm256_and_si256(fifth, _mm256_set1_epi8(16)))
        }
        6 => {
            let pairs = load(256 + group / 4 * 64);
            let pairs = match group % 4 {
                0 => _mm256_slli_epi16::<4>(pairs),
                1 => _mm256_slli_epi16::<2>(pairs),
                2 => pairs,
                _ => _mm256_srli_epi16::<2>(pairs),
            };
            _mm256_or_si256(low, _mm256_and_si256(pairs, _mm256_set1_epi8(0x30)))
        }
        _ => low,
    }
}

/// The scales of 8 outputs and their minima, if there are any.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scale_and_least<F: Layout>(header: &[u8], scales: &[u8], first: usize, half: usize) -> (__m256, __m256) {
    let shape = F::SHAPE;
    let halves = if shape.shared == 1 { scales } else { header };
    // SAFETY: 16 bytes.
    let floats = |at: usize| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(halves[at..][..16].as_ptr().cast())) };
    // SAFETY: 8 bytes.
    let bytes = |at: usize| unsafe { _mm_loadl_epi64(scales[at..][..8].as_ptr().cast()) };
    let unsigned = |at: usize| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes(at)));
    let scale = floats(2 * first);
    let least = if shape.minima { floats(2 * PANEL + 2 * first) } else { _mm256_setzero_ps() };
    match (shape.shared, shape.minima) {
        (1, _) => (scale, least),
        (_, true) => {
            let least = _mm256_xor_ps(least, _mm256_set1_ps(-0.0));
            (_mm256_mul_ps(scale, unsigned(first)), _mm256_mul_ps(least, unsigned(PANEL + first)))
        }
        (_, false) => {
            let signed = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(half * PANEL + first)));
            (_mm256_mul_ps(scale, signed), least)
        }
    }
}
