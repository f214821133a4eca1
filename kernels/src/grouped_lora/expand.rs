//! y += B h of some rows for some of a term's outputs, h being what `shrink.rs` gives. A sum begins at y (for DoRA at 0) and
//! takes the ranks in pairs, ascending and within a pair the second first, fused: the same for every number of rows and
//! instruction set (numbers below f32's normal range apart, which the vector version takes for 0).

use super::bf16;
use super::pack::VECTOR;
use super::shrink::ROWS;
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

/// `b` is `[tiles, pairs of ranks, 16]`; row r of `h` begins at r · `h_stride` and has `pairs` values; each row of `y`, at
/// most [`ROWS`], has the outputs of these tiles, the last maybe not all of them.
pub(super) fn expand(
    isa: Isa,
    (b, pairs): (&[u32], usize),
    (h, h_stride): (&[u32], usize),
    y: &mut [&mut [f32]],
    growth: Option<&Growth<'_>>,
) {
    let Some(outputs) = y.first().map(|y| y.len()) else { return };
    assert!(y.len() <= ROWS && y.iter().all(|y| y.len() == outputs));
    assert!(b.len() == outputs.div_ceil(VECTOR) * VECTOR * pairs && h.len() >= (y.len() - 1) * h_stride + pairs);
    if let Some(growth) = growth {
        assert!(growth.growth.len() == outputs && growth.plain.len() >= (y.len() - 1) * growth.stride + outputs);
    }
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `vector` enables.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { vector::expand((b, pairs), (h, h_stride), y, growth) },
        _ => {
            for (row, y) in y.iter_mut().enumerate() {
                let plain = growth.map_or(&[][..], |growth| &growth.plain[row * growth.stride..][..outputs]);
                let (growth, weight) = growth.map_or((&[][..], 0.0), |growth| (growth.growth, growth.weight));
                one_row(isa, b, &h[row * h_stride..][..pairs], y, growth, plain, weight);
            }
        }
    }
}

multiversion! {
    fn one_row(b: &[u32], h: &[u32], y: &mut [f32], growth: &[f32], plain: &[f32], weight: f32) {
        for (tile, (b, y)) in b.chunks_exact(h.len() * VECTOR).zip(y.chunks_mut(VECTOR)).enumerate() {
            let mut sums = [0.0f32; VECTOR];
            if growth.is_empty() {
                sums[..y.len()].copy_from_slice(y);
            }
            for (h, b) in h.iter().zip(b.chunks_exact(VECTOR)) {
                let [h_first, h_second] = bf16::unpack(*h);
                for lane in 0..VECTOR {
                    let [b_first, b_second] = bf16::unpack(b[lane]);
                    sums[lane] = b_first.mul_add(h_first, b_second.mul_add(h_second, sums[lane]));
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
mod vector {
    use std::arch::x86_64::*;

    use super::super::shrink::dot;
    use super::{Growth, VECTOR};

    /// How far ahead of its use B is fetched, in pairs.
    const AHEAD: usize = 512;

    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(super) fn expand(b: (&[u32], usize), h: (&[u32], usize), y: &mut [&mut [f32]], growth: Option<&Growth<'_>>) {
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

    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn rows<const ROWS: usize>(
        (b, pairs): (&[u32], usize),
        (h, h_stride): (&[u32], usize),
        mut y: [&mut [f32]; ROWS],
        growth: Option<&Growth<'_>>,
    ) {
        let outputs = y[0].len();
        assert!(y.iter().all(|y| y.len() == outputs) && b.len() == outputs.div_ceil(VECTOR) * VECTOR * pairs);
        assert!(h.len() >= (ROWS - 1) * h_stride + pairs);
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
            for pair in 0..pairs {
                let at = (tile * pairs + pair) * VECTOR;
                _mm_prefetch::<_MM_HINT_T1>(b.as_ptr().wrapping_add(at + AHEAD).cast());
                // SAFETY: `tile < tiles`, `pair < pairs` and `b` has tiles · pairs · 16 values.
                let values = unsafe { _mm512_loadu_si512(b.as_ptr().add(at).cast()) };
                for (row, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `h` has `pairs` values from each row's first, as asserted.
                    let h = unsafe { *h.as_ptr().add(row * h_stride + pair) };
                    *sum = dot(*sum, values, _mm512_set1_epi32(h.cast_signed()));
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
