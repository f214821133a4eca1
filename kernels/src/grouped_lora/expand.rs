//! y += B h of some rows for some of a term's outputs, h being what `shrink.rs` gives. A sum begins at y and takes the ranks
//! in ascending order, fused: the same for every number of rows and instruction set.

use super::pack::VECTOR;
use super::shrink::{ROWS, widen};
use crate::Isa;
use crate::isa::{Level, multiversion};

/// What DoRA needs beside B h: y += weight · growth · plain + (growth + 1) · B h.
pub(super) struct Growth<'a> {
    /// Of the outputs that are computed.
    pub(super) growth: &'a [f32],
    /// The module's own output, laid out as `y`, from the first row's first output.
    pub(super) plain: &'a [f32],
    pub(super) stride: usize,
    pub(super) weight: f32,
}

/// `b` is `[tiles, rank, 16]`; row r of `h` begins at r · `h_stride` and has `rank` values; each row of `y`, at most
/// [`ROWS`], has the outputs of these tiles, the last maybe not all of them.
pub(super) fn expand(
    isa: Isa,
    (b, rank): (&[u16], usize),
    (h, h_stride): (&[f32], usize),
    y: &mut [&mut [f32]],
    growth: Option<&Growth<'_>>,
) {
    let Some(outputs) = y.first().map(|y| y.len()) else { return };
    assert!(y.len() <= ROWS && y.iter().all(|y| y.len() == outputs));
    assert!(b.len() == outputs.div_ceil(VECTOR) * VECTOR * rank && h.len() >= (y.len() - 1) * h_stride + rank);
    if let Some(growth) = growth {
        assert!(growth.growth.len() == outputs && growth.plain.len() >= (y.len() - 1) * growth.stride + outputs);
    }
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `avx512` enables.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => unsafe { avx512::expand((b, rank), (h, h_stride), y, growth) },
        _ => {
            for (row, y) in y.iter_mut().enumerate() {
                let plain = growth.map_or(&[][..], |growth| &growth.plain[row * growth.stride..][..outputs]);
                let (growth, weight) = growth.map_or((&[][..], 0.0), |growth| (growth.growth, growth.weight));
                one_row(isa, b, &h[row * h_stride..][..rank], y, growth, plain, weight);
            }
        }
    }
}

multiversion! {
    fn one_row(b: &[u16], h: &[f32], y: &mut [f32], growth: &[f32], plain: &[f32], weight: f32) {
        for (tile, (b, y)) in b.chunks_exact(h.len() * VECTOR).zip(y.chunks_mut(VECTOR)).enumerate() {
            let mut sums = [0.0f32; VECTOR];
            if growth.is_empty() {
                sums[..y.len()].copy_from_slice(y);
            }
            for (h, b) in h.iter().zip(b.chunks_exact(VECTOR)) {
                for lane in 0..VECTOR {
                    sums[lane] = widen(b[lane]).mul_add(*h, sums[lane]);
                }
            }
            if growth.is_empty() {
                y.copy_from_slice(&sums[..y.len()]);
            } else {
                let at = tile * VECTOR;
                for (lane, y) in y.iter_mut().enumerate() {
                    let growth = growth[at + lane];
                    let grown = (growth + 1.0).mul_add(sums[lane], *y);
                    *y = (weight * growth).mul_add(plain[at + lane], grown);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{Growth, VECTOR};

    /// How far ahead of its use B is fetched, in values.
    const AHEAD: usize = 1024;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(super) fn expand(b: (&[u16], usize), h: (&[f32], usize), y: &mut [&mut [f32]], growth: Option<&Growth<'_>>) {
        match y {
            [a] => rows(b, h, [&mut **a], growth),
            [a, e] => rows(b, h, [&mut **a, &mut **e], growth),
            [a, e, i] => rows(b, h, [&mut **a, &mut **e, &mut **i], growth),
            [a, e, i, o] => rows(b, h, [&mut **a, &mut **e, &mut **i, &mut **o], growth),
            [a, e, i, o, u] => rows(b, h, [&mut **a, &mut **e, &mut **i, &mut **o, &mut **u], growth),
            [a, e, i, o, u, y] => {
                rows(b, h, [&mut **a, &mut **e, &mut **i, &mut **o, &mut **u, &mut **y], growth);
            }
            _ => {}
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn rows<const ROWS: usize>(
        (b, rank): (&[u16], usize),
        (h, h_stride): (&[f32], usize),
        mut y: [&mut [f32]; ROWS],
        growth: Option<&Growth<'_>>,
    ) {
        let outputs = y[0].len();
        assert!(y.iter().all(|y| y.len() == outputs) && b.len() == outputs.div_ceil(VECTOR) * VECTOR * rank);
        assert!(h.len() >= (ROWS - 1) * h_stride + rank);
        for tile in 0..outputs.div_ceil(VECTOR) {
            let first = tile * VECTOR;
            let mask = u16::MAX >> (VECTOR - VECTOR.min(outputs - first));
            let mut sums = [_mm512_setzero_ps(); ROWS];
            if growth.is_none() {
                for (sum, y) in sums.iter_mut().zip(&y) {
                    // SAFETY: the mask leaves the values from `first` to `outputs`, the length of `y`.
                    *sum = unsafe { _mm512_maskz_loadu_ps(mask, y.as_ptr().add(first)) };
                }
            }
            for r in 0..rank {
                let at = (tile * rank + r) * VECTOR;
                if ROWS <= 2 && r % 2 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(b.as_ptr().wrapping_add(at + AHEAD).cast());
                }
                // SAFETY: `tile < tiles`, `r < rank` and `b` has tiles · rank · 16 values.
                let values = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(b.as_ptr().add(at).cast()) });
                for (row, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `h` has `rank` values from each row's first, as asserted.
                    let h = unsafe { *h.as_ptr().add(row * h_stride + r) };
                    *sum = _mm512_fmadd_ps(values, _mm512_set1_ps(h), *sum);
                }
            }
            for (row, (sum, y)) in sums.iter().zip(&mut y).enumerate() {
                let mut result = *sum;
                if let Some(growth) = growth {
                    result = grown(growth, row, first, mask, *sum, y);
                }
                // SAFETY: as for the load.
                unsafe { _mm512_mask_storeu_ps(y.as_mut_ptr().add(first), mask, result) };
            }
        }
    }

    /// y + weight · growth · plain + (growth + 1) · sum.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn grown(growth: &Growth<'_>, row: usize, first: usize, mask: u16, sum: __m512, y: &[f32]) -> __m512 {
        let plain = &growth.plain[row * growth.stride + first..];
        let values = &growth.growth[first..];
        let count = mask.count_ones() as usize;
        assert!(plain.len() >= count && values.len() >= count && y.len() >= first + count);
        // SAFETY: the mask leaves as many values as the assertion asks for.
        let [plain, values, y] = unsafe {
            [plain.as_ptr(), values.as_ptr(), y.as_ptr().add(first)].map(|from| _mm512_maskz_loadu_ps(mask, from))
        };
        let grown = _mm512_fmadd_ps(_mm512_add_ps(values, _mm512_set1_ps(1.0)), sum, y);
        _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(growth.weight), values), plain, grown)
    }
}
