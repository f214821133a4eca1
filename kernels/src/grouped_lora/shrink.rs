//! A x of some rows for one panel of lanes. The sums of a lane are four, of the pairs of inputs 0, 1, 2 and 3 modulo 4, each
//! in ascending order and within a pair the second first, fused; added as (0 + 1) + (2 + 3). The same for every width,
//! number of rows and instruction set (numbers below f32's normal range apart, which the vector version takes for 0).

use super::bf16;
use super::pack::{CHAINS, VECTOR};
use crate::Isa;
use crate::isa::{Level, multiversion};

/// Rows that are computed together: 6 rows of 4 vectors leave registers for a panel's.
pub(super) const ROWS: usize = 6;

/// `out[row]` = the pairs of (A x)[lane] · factors[lane] · weight for the lanes of a panel `a`, see `pack.rs`. `x` is
/// `[rows, pairs of inputs]`, at most [`ROWS`].
pub(super) fn shrink(
    isa: Isa,
    a: &[u32],
    (x, pairs): (&[u32], usize),
    (factors, weight): (&[f32], f32),
    out: &mut [&mut [u32]],
) {
    assert!((1..=ROWS).contains(&out.len()) && x.len() == out.len() * pairs && pairs.is_multiple_of(CHAINS));
    assert!(a.len() == factors.len() * pairs && matches!(factors.len(), 4 | 8 | 16));
    assert!(out.iter().all(|out| out.len() * 2 == factors.len()));
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `bf16` enables.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { vector::shrink(a, (x, pairs), (factors, weight), out) },
        _ => {
            for (out, x) in out.iter_mut().zip(x.chunks_exact(pairs)) {
                one_row(isa, a, x, factors, weight, out);
            }
        }
    }
}

multiversion! {
    fn one_row(a: &[u32], x: &[u32], factors: &[f32], weight: f32, out: &mut [u32]) {
        match factors.len() {
            16 => finish(&sums::<4>(a, x), factors, weight, out),
            8 => finish(&sums::<2>(a, x), factors, weight, out),
            _ => finish(&sums::<1>(a, x), factors, weight, out),
        }
    }
}

#[inline(always)]
fn sums<const VECTORS: usize>(a: &[u32], x: &[u32]) -> [[f32; VECTOR]; VECTORS] {
    let chains = CHAINS / VECTORS;
    let mut sums = [[0.0f32; VECTOR]; VECTORS];
    for (a, x) in a.chunks_exact(VECTORS * VECTOR).zip(x.chunks_exact(CHAINS)) {
        for vector in 0..VECTORS {
            for lane in 0..VECTOR {
                let [a_first, a_second] = bf16::unpack(a[vector * VECTOR + lane]);
                let [x_first, x_second] = bf16::unpack(x[vector * chains + lane % chains]);
                let sum = a_second.mul_add(x_second, sums[vector][lane]);
                sums[vector][lane] = a_first.mul_add(x_first, sum);
            }
        }
    }
    sums
}

/// Adds each lane's four sums.
#[inline(always)]
fn finish<const VECTORS: usize>(sums: &[[f32; VECTOR]; VECTORS], factors: &[f32], weight: f32, out: &mut [u32]) {
    let chains = CHAINS / VECTORS;
    let lane = |lane: usize| {
        let sum = |chain: usize| sums[chain / chains][lane * chains + chain % chains];
        ((sum(0) + sum(1)) + (sum(2) + sum(3))) * (factors[lane] * weight)
    };
    for (pair, out) in out.iter_mut().enumerate().take(factors.len() / 2) {
        *out = bf16::pair(lane(2 * pair), lane(2 * pair + 1));
    }
}

#[cfg(target_arch = "x86_64")]
mod vector {
    use std::arch::x86_64::*;

    use super::{CHAINS, VECTOR, finish};

    /// How far ahead of its use a panel is fetched, in pairs: about what memory delivers within its latency.
    const AHEAD: usize = 512;

    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    pub(super) fn shrink(a: &[u32], x: (&[u32], usize), factors: (&[f32], f32), out: &mut [&mut [u32]]) {
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

    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn rows<const VECTORS: usize, const ROWS: usize>(
        a: &[u32],
        (x, pairs): (&[u32], usize),
        (factors, weight): (&[f32], f32),
        out: &mut [&mut [u32]],
    ) {
        assert!(x.len() == ROWS * pairs && a.len() == pairs * VECTORS * VECTOR / CHAINS);
        let mut sums = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for group in 0..pairs / CHAINS {
            let at = group * VECTORS * VECTOR;
            for vector in 0..VECTORS {
                _mm_prefetch::<_MM_HINT_T1>(a.as_ptr().wrapping_add(at + vector * VECTOR + AHEAD).cast());
                // SAFETY: `group < pairs / 4` and `a` has VECTORS · 16 values for each group.
                let values = unsafe { _mm512_loadu_si512(a.as_ptr().add(at + vector * VECTOR).cast()) };
                for (row, sums) in sums.iter_mut().enumerate() {
                    let chain = vector * (CHAINS / VECTORS);
                    // SAFETY: row `row` of `x` has `pairs` values, `group · 4 + chain + 4 / VECTORS <= pairs`.
                    let x = unsafe { x.as_ptr().add(row * pairs + group * CHAINS + chain) };
                    // SAFETY: as above: 4 / VECTORS values are read.
                    let x = unsafe {
                        match VECTORS {
                            4 => _mm512_set1_epi32(x.cast::<i32>().read_unaligned()),
                            2 => _mm512_set1_epi64(x.cast::<i64>().read_unaligned()),
                            _ => _mm512_broadcast_i32x4(_mm_loadu_si128(x.cast())),
                        }
                    };
                    sums[vector] = dot(sums[vector], values, x);
                }
            }
        }
        // Written in full by loops of constant length: an index that the compiler does not know would keep the sums in memory.
        let mut stored = [[[0.0f32; VECTOR]; VECTORS]; ROWS];
        for row in 0..ROWS {
            for vector in 0..VECTORS {
                // SAFETY: 16 values of f32.
                unsafe { _mm512_storeu_ps(stored[row][vector].as_mut_ptr(), sums[row][vector]) };
            }
        }
        for (out, stored) in out.iter_mut().zip(&stored) {
            finish(stored, factors, weight, out);
        }
    }

    /// `sums` + the products of 16 pairs: first the second ones', then the first ones', each fused.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(in super::super) fn dot(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: both types are 512 bits without a meaning of their own.
        let [a, b] = unsafe { [a, b].map(|bits| std::mem::transmute::<__m512i, __m512bh>(bits)) };
        _mm512_dpbf16_ps(sums, a, b)
    }
}
#[cfg(target_arch = "x86_64")]
pub(super) use vector::dot;
