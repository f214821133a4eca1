//! Plain numbers with AVX-512, in the tiles of the integer formats: up to 6 rows x 32 outputs or 12 rows x 16, and two
//! registers for each row and 16 outputs: even and odd inputs (bf16: pairs), which also hides the latency of one row. Not
//! here: the order of the arithmetic, which is written down in `gemm.rs`.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::Results;
use crate::packed::PANEL;
use crate::quantised_rows::PANEL_ROWS;

/// How far ahead of its use the stream is fetched.
const AHEAD_BYTES: usize = 4096;

/// f32 weights, f32 rows.
pub(super) const F32: u8 = 0;
/// f16 weights, f32 rows.
pub(super) const F16: u8 = 1;
/// Pairs of bf16 weights and of bf16 rows.
pub(super) const BF16: u8 = 2;

/// Bytes of the 32 outputs of an input, or of a pair of inputs.
const fn line_bytes(format: u8) -> usize {
    PANEL * if format == F16 { 2 } else { 4 }
}

/// `weights` is a panel, `x` the inputs or pairs of inputs of `rows` rows, as 32 bits each.
///
/// # Safety
/// The machine has AVX-512 F, BW, VL, DQ and, for [`BF16`], BF16.
///
/// # Panics
/// If the lengths do not belong together.
pub(super) unsafe fn floats<const FORMAT: u8>(weights: &[u8], x: &[u32], rows: usize, results: &mut Results) {
    assert!((1..=PANEL_ROWS).contains(&rows));
    let lines = x.len() / rows;
    assert!(x.len() == lines * rows && weights.len() == lines * line_bytes(FORMAT) && lines.is_multiple_of(2));
    let (panel, x) = (weights.as_ptr(), x.as_ptr());
    macro_rules! tiles {
        ($($both:literal)*, $($one:literal)*) => {
            match rows {
                $($both => tile::<FORMAT, $both, 2>(panel, x, lines, 0, results),)*
                $($one => {
                    tile::<FORMAT, $one, 1>(panel, x, lines, 0, results);
                    tile::<FORMAT, $one, 1>(panel, x, lines, 1, results);
                })*
                _ => {}
            }
        };
    }
    // SAFETY: the features are the caller's promise; the lengths were asserted above and fit the number of rows.
    unsafe { tiles!(1 2 3 4 5 6, 7 8 9 10 11 12) }
}

/// VECTORS vectors of 16 outputs from `first` on.
///
/// # Safety
/// The machine has the features; `weights` has a panel of `lines` lines and `x` those of ROWS rows; `lines` is even and
/// `first + VECTORS <= 2`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn tile<const FORMAT: u8, const ROWS: usize, const VECTORS: usize>(
    mut weights: *const u8,
    mut x: *const u32,
    lines: usize,
    first: usize,
    results: &mut Results,
) {
    let mut sums = [[[_mm512_setzero_ps(); VECTORS]; ROWS]; 2];
    // SAFETY: `weights` and `x` walk over `lines` lines; a row of results has 32 values. Fetching ahead reads nothing.
    unsafe {
        for _ in 0..lines / 2 {
            for line in 0..2 * line_bytes(FORMAT) / 64 {
                _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD_BYTES + line * 64).cast());
            }
            macro_rules! line {
                ($parity:literal) => {
                    let mut values = [_mm512_setzero_ps(); VECTORS];
                    for vector in 0..VECTORS {
                        values[vector] = load::<FORMAT>(weights, first + vector);
                    }
                    for row in 0..ROWS {
                        let x = _mm512_set1_ps(f32::from_bits(x.add(row).read()));
                        for vector in 0..VECTORS {
                            let sum = &mut sums[$parity][row][vector];
                            *sum = multiply_add::<FORMAT>(values[vector], x, *sum);
                        }
                    }
                    weights = weights.add(line_bytes(FORMAT));
                    x = x.add(ROWS);
                };
            }
            line!(0);
            line!(1);
        }
        for (results, (even, odd)) in results.iter_mut().zip(sums[0].into_iter().zip(sums[1])) {
            for (vector, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                _mm512_storeu_ps(results.as_mut_ptr().add((first + vector) * 16), _mm512_add_ps(even, odd));
            }
        }
    }
}

/// The weights of 16 outputs as f32, or as they are if they are pairs.
///
/// # Safety
/// `weights` points to a line; `vector < 2`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
unsafe fn load<const FORMAT: u8>(weights: *const u8, vector: usize) -> __m512 {
    // SAFETY: within the line.
    unsafe {
        match FORMAT {
            F16 => _mm512_cvtph_ps(_mm256_loadu_si256(weights.add(vector * 32).cast())),
            _ => _mm512_loadu_ps(weights.add(vector * 64).cast()),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
fn multiply_add<const FORMAT: u8>(weights: __m512, x: __m512, sum: __m512) -> __m512 {
    if FORMAT == BF16 {
        // SAFETY: 64 bytes each, of which any value is one.
        let (weights, x) = unsafe { (transmute::<__m512, __m512bh>(weights), transmute::<__m512, __m512bh>(x)) };
        _mm512_dpbf16_ps(sum, weights, x)
    } else {
        _mm512_fmadd_ps(weights, x, sum)
    }
}
