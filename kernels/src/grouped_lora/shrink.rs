//! A x of some rows for one panel of lanes. The sums of a lane are four, of the inputs 0, 1, 2 and 3 modulo 4, each in
//! ascending order and fused, added as (0 + 1) + (2 + 3): the same for every width, number of rows and instruction set.

use super::pack::{CHAINS, VECTOR};
use crate::Isa;
use crate::isa::{Level, multiversion};

/// Rows that are computed together: 6 rows of 4 vectors leave registers for a panel's.
pub(super) const ROWS: usize = 6;

/// `out[row][lane] = (A x)[lane] · factors[lane] · weight` for the lanes of a panel `a`, see `pack.rs`. `x` is
/// `[rows, inputs]`, at most [`ROWS`].
pub(super) fn shrink(
    isa: Isa,
    a: &[u16],
    (x, inputs): (&[f32], usize),
    (factors, weight): (&[f32], f32),
    out: &mut [&mut [f32]],
) {
    assert!((1..=ROWS).contains(&out.len()) && x.len() == out.len() * inputs && inputs.is_multiple_of(VECTOR));
    assert!(a.len() == factors.len() * inputs && matches!(factors.len(), 4 | 8 | 16));
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `avx512` enables; the
        // lengths are asserted above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => unsafe { avx512::shrink(a, (x, inputs), (factors, weight), out) },
        _ => {
            for (out, x) in out.iter_mut().zip(x.chunks_exact(inputs)) {
                one_row(isa, a, x, factors, weight, out);
            }
        }
    }
}

multiversion! {
    fn one_row(a: &[u16], x: &[f32], factors: &[f32], weight: f32, out: &mut [f32]) {
        match factors.len() {
            16 => finish(&sums::<4>(a, x), factors, weight, out),
            8 => finish(&sums::<2>(a, x), factors, weight, out),
            _ => finish(&sums::<1>(a, x), factors, weight, out),
        }
    }
}

#[inline(always)]
fn sums<const VECTORS: usize>(a: &[u16], x: &[f32]) -> [[f32; VECTOR]; VECTORS] {
    let chains = CHAINS / VECTORS;
    let mut sums = [[0.0f32; VECTOR]; VECTORS];
    for (a, x) in a.chunks_exact(VECTORS * VECTOR).zip(x.chunks_exact(CHAINS)) {
        for vector in 0..VECTORS {
            for lane in 0..VECTOR {
                let value = widen(a[vector * VECTOR + lane]);
                sums[vector][lane] = value.mul_add(x[vector * chains + lane % chains], sums[vector][lane]);
            }
        }
    }
    sums
}

/// Adds each lane's four sums.
#[inline(always)]
fn finish<const VECTORS: usize>(sums: &[[f32; VECTOR]; VECTORS], factors: &[f32], weight: f32, out: &mut [f32]) {
    let chains = CHAINS / VECTORS;
    for (lane, (out, factor)) in out.iter_mut().zip(factors).enumerate() {
        let sum = |chain: usize| sums[chain / chains][lane * chains + chain % chains];
        *out = ((sum(0) + sum(1)) + (sum(2) + sum(3))) * (factor * weight);
    }
}

/// The value of a finite number of f16, without the branches of a conversion that knows infinity.
#[inline(always)]
pub(super) fn widen(bits: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::{CHAINS, VECTOR, finish};

    /// How far ahead of its use a panel is fetched, in values: about what memory delivers within its latency.
    const AHEAD: usize = 1024;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(super) fn shrink(a: &[u16], x: (&[f32], usize), factors: (&[f32], f32), out: &mut [&mut [f32]]) {
        macro_rules! for_rows {
            ($vectors:literal) => {
                match out.len() {
                    1 => rows::<$vectors, 1>(a, x, factors, out),
                    2 => rows::<$vectors, 2>(a, x, factors, out),
                    3 => rows::<$vectors, 3>(a, x, factors, out),
                    4 => rows::<$vectors, 4>(a, x, factors, out),
                    5 => rows::<$vectors, 5>(a, x, factors, out),
                    _ => rows::<$vectors, 6>(a, x, factors, out),
                }
            };
        }
        match factors.0.len() {
            16 => for_rows!(4),
            8 => for_rows!(2),
            _ => for_rows!(1),
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn rows<const VECTORS: usize, const ROWS: usize>(
        a: &[u16],
        (x, inputs): (&[f32], usize),
        (factors, weight): (&[f32], f32),
        out: &mut [&mut [f32]],
    ) {
        assert!(x.len() == ROWS * inputs && a.len() == inputs * VECTORS * VECTOR / CHAINS);
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for group in 0..inputs / CHAINS {
            let at = group * VECTORS * VECTOR;
            if ROWS <= 2 {
                for line in (0..VECTORS * VECTOR).step_by(32) {
                    _mm_prefetch::<_MM_HINT_T0>(a.as_ptr().wrapping_add(at + line + AHEAD).cast());
                }
            }
            for vector in 0..VECTORS {
                // SAFETY: `group < inputs / 4` and `a` has VECTORS · 16 values for each group.
                let bits = unsafe { _mm256_loadu_si256(a.as_ptr().add(at + vector * VECTOR).cast()) };
                let values = _mm512_cvtph_ps(bits);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let chain = vector * (CHAINS / VECTORS);
                    // SAFETY: row `row` of `x` has `inputs` values, `group · 4 + chain + 4 / VECTORS <= inputs`.
                    let x = unsafe { x.as_ptr().add(row * inputs + group * CHAINS + chain) };
                    // SAFETY: as above: 4 / VECTORS values are read.
                    let x = unsafe {
                        match VECTORS {
                            4 => _mm512_set1_ps(*x),
                            2 => _mm512_castpd_ps(_mm512_set1_pd(x.cast::<f64>().read_unaligned())),
                            _ => _mm512_broadcast_f32x4(_mm_loadu_ps(x)),
                        }
                    };
                    sums[vector] = _mm512_fmadd_ps(values, x, sums[vector]);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(&sums) {
            let mut stored = [[0.0f32; VECTOR]; VECTORS];
            for (stored, sum) in stored.iter_mut().zip(sums) {
                // SAFETY: 16 values of f32.
                unsafe { _mm512_storeu_ps(stored.as_mut_ptr(), *sum) };
            }
            finish(&stored, factors, weight, out);
        }
    }
}
