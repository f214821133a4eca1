//! Plain numbers with AVX2: tiles of up to 4 rows x 8 outputs, two registers for each row. bf16 goes as f32, the first of a
//! pair and then the second. Not here: the order of the arithmetic, which is written down in `gemm.rs`.

use std::arch::x86_64::*;

use super::Results;
use crate::packed::PANEL;
use crate::quantised::BlockFormat;
use crate::quantised_rows::PANEL_ROWS;

/// Outputs of a tile.
const LANES: usize = 8;

/// `weights` is a panel, `x` the inputs (bf16: pairs of inputs) of `rows` rows, as 32 bits each.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
///
/// # Panics
/// If the lengths do not belong together.
pub(super) unsafe fn floats(format: BlockFormat, weights: &[u8], x: &[u32], rows: usize, results: &mut Results) {
    assert!((1..=PANEL_ROWS).contains(&rows));
    for row in (0..rows).step_by(4) {
        for first in (0..PANEL).step_by(LANES) {
            macro_rules! tiles {
                ($format:literal) => {
                    match rows - row {
                        1 => tile::<$format, 1>(weights, x, rows, row, first, results),
                        2 => tile::<$format, 2>(weights, x, rows, row, first, results),
                        3 => tile::<$format, 3>(weights, x, rows, row, first, results),
                        _ => tile::<$format, 4>(weights, x, rows, row, first, results),
                    }
                };
            }
            // SAFETY: the features are the caller's promise.
            unsafe {
                match format {
                    BlockFormat::F32 => tiles!(0),
                    BlockFormat::F16 => tiles!(1),
                    _ => tiles!(2),
                }
            }
        }
    }
}

/// ROWS rows from `row` on and 8 outputs from `first` on; FORMAT is 0 for f32, 1 for f16 and 2 for bf16.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const FORMAT: u8, const ROWS: usize>(
    weights: &[u8],
    x: &[u32],
    rows: usize,
    row: usize,
    first: usize,
    results: &mut Results,
) {
    let line_bytes = if FORMAT == 1 { 2 * PANEL } else { 4 * PANEL };
    let mut sums = [[_mm256_setzero_ps(); ROWS]; 2];
    for (weights, x) in weights.chunks_exact(2 * line_bytes).zip(x.chunks_exact(2 * rows)) {
        for parity in 0..2 {
            let weights = &weights[parity * line_bytes..][..line_bytes];
            let x = &x[parity * rows + row..][..ROWS];
            // SAFETY: 16 or 32 bytes of the line.
            let weights = unsafe {
                if FORMAT == 1 {
                    _mm256_cvtph_ps(_mm_loadu_si128(weights[2 * first..][..16].as_ptr().cast()))
                } else {
                    _mm256_loadu_ps(weights[4 * first..][..32].as_ptr().cast())
                }
            };
            for index in 0..ROWS {
                let x = _mm256_castsi256_ps(_mm256_set1_epi32(x[index] as i32));
                let sum = &mut sums[parity][index];
                if FORMAT == 2 {
                    *sum = _mm256_fmadd_ps(low(weights), low(x), *sum);
                    *sum = _mm256_fmadd_ps(high(weights), high(x), *sum);
                } else {
                    *sum = _mm256_fmadd_ps(weights, x, *sum);
                }
            }
        }
    }
    for (results, (even, odd)) in results[row..].iter_mut().zip(sums[0].into_iter().zip(sums[1])) {
        // SAFETY: 8 of 32 values.
        unsafe { _mm256_storeu_ps(results[first..][..LANES].as_mut_ptr(), _mm256_add_ps(even, odd)) };
    }
}

/// The first bf16 of each pair.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn low(pairs: __m256) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs)))
}

/// The second.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn high(pairs: __m256) -> __m256 {
    _mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32)))
}
