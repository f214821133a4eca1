//! Dot products of rows with rows, in the one order that everything else relies on.
//!
//! The order: element i goes by fused multiply-add into partial sum i mod 16, i ascending; then partial sums are added in
//! halves (i and i + 8, i and i + 4, i and i + 2, 0 and 1). One 512-bit register, two 256-bit ones or an array of 16 hold
//! the partial sums equally well, so that every version gives the same bits.

use crate::Isa;
use crate::isa::Level;

/// Partial sums of one dot product; row widths are multiples of it.
pub const LANES: usize = 16;

/// Rows of equal width inside a slice.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    count: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    /// `count` rows of `width` values; row r begins at `r * stride`.
    ///
    /// # Panics
    /// If a row reaches beyond `data` or `width` is not a multiple of [`LANES`].
    #[must_use]
    pub fn new(data: &'a [f32], stride: usize, count: usize, width: usize) -> Self {
        assert!(width.is_multiple_of(LANES) && width <= stride, "rows of {width} values with stride {stride}");
        assert!(count == 0 || (count - 1) * stride + width <= data.len(), "{count} rows in {} values", data.len());
        Self { data, stride, count, width }
    }

    /// One row.
    #[must_use]
    pub fn one(row: &'a [f32]) -> Self {
        Self::new(row, row.len(), 1, row.len())
    }

    fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..][..self.width]
    }
}

/// `out[w * out_stride + x]` = row w of `weights` · row x of `inputs`.
///
/// # Panics
/// If the widths differ or `out` is too short.
pub fn dots(isa: Isa, weights: Rows<'_>, inputs: Rows<'_>, out: &mut [f32], out_stride: usize) {
    assert!(weights.width == inputs.width, "rows of {} and {} values", weights.width, inputs.width);
    if weights.count == 0 || inputs.count == 0 {
        return;
    }
    assert!(inputs.count <= out_stride && (weights.count - 1) * out_stride + inputs.count <= out.len());
    match isa.level() {
        Level::Plain => dots_plain(weights, inputs, out, out_stride),
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found AVX2 and FMA; the bounds that `dots_avx2`
        // asks for were asserted above and in `Rows::new`.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { x86::dots_avx2(weights, inputs, out, out_stride) },
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found AVX-512 F, BW and VL; bounds as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Vnni => unsafe { x86::dots_avx512(weights, inputs, out, out_stride) },
    }
}

/// The reference: one dot product in the order of this module.
#[must_use]
pub fn dot_reference(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (left, right) in left.chunks_exact(LANES).zip(right.chunks_exact(LANES)) {
        for lane in 0..LANES {
            sums[lane] = left[lane].mul_add(right[lane], sums[lane]);
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

fn dots_plain(weights: Rows<'_>, inputs: Rows<'_>, out: &mut [f32], out_stride: usize) {
    for w in 0..weights.count {
        for x in 0..inputs.count {
            out[w * out_stride + x] = dot_reference(weights.row(w), inputs.row(x));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Rows};

    /// Calls `$tile::<W, X>` over a grid of at most `$max` x `$max` rows at a time.
    macro_rules! grid {
        ($tile:ident, $max:literal, $weights:ident, $inputs:ident, $out:ident, $out_stride:ident, $($w:literal $x:literal),*) => {
            for w in (0..$weights.count).step_by($max) {
                for x in (0..$inputs.count).step_by($max) {
                    match (($weights.count - w).min($max), ($inputs.count - x).min($max)) {
                        // SAFETY: w + W <= weights.count and x + X <= inputs.count by the two `min`s, and the caller
                        // promises the rest; this function has the features of the tile.
                        $(($w, $x) => unsafe { $tile::<$w, $x>($weights, w, $inputs, x, $out, $out_stride) },)*
                        _ => {}
                    }
                }
            }
        };
    }

    /// # Safety
    /// The machine has AVX2 and FMA; both have the same width; `(weights.count - 1) * out_stride + inputs.count <= out.len()`.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn dots_avx2(weights: Rows<'_>, inputs: Rows<'_>, out: &mut [f32], out_stride: usize) {
        grid!(tile_avx2, 2, weights, inputs, out, out_stride, 1 1, 1 2, 2 1, 2 2);
    }

    /// # Safety
    /// The machine has AVX-512 F, BW and VL; both have the same width; `(weights.count - 1) * out_stride + inputs.count <=
    /// out.len()`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    pub(super) unsafe fn dots_avx512(weights: Rows<'_>, inputs: Rows<'_>, out: &mut [f32], out_stride: usize) {
        grid!(
            tile_avx512, 4, weights, inputs, out, out_stride,
            1 1, 1 2, 1 3, 1 4, 2 1, 2 2, 2 3, 2 4, 3 1, 3 2, 3 3, 3 4, 4 1, 4 2, 4 3, 4 4
        );
    }

    /// # Safety
    /// As [`dots_avx2`], and `w + W <= weights.count`, `x + X <= inputs.count`.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn tile_avx2<const W: usize, const X: usize>(
        weights: Rows<'_>,
        w: usize,
        inputs: Rows<'_>,
        x: usize,
        out: &mut [f32],
        out_stride: usize,
    ) {
        let weight_rows: [*const f32; W] = std::array::from_fn(|i| weights.row(w + i).as_ptr());
        let input_rows: [*const f32; X] = std::array::from_fn(|j| inputs.row(x + j).as_ptr());
        let mut sums = [[[_mm256_setzero_ps(); 2]; X]; W];
        for at in (0..weights.width).step_by(LANES) {
            for (half, at) in [at, at + 8].into_iter().enumerate() {
                // SAFETY: `at + 8 <= width`, as the width is a multiple of 16, and each row has `width` values.
                let values: [__m256; X] = std::array::from_fn(|j| unsafe { _mm256_loadu_ps(input_rows[j].add(at)) });
                for i in 0..W {
                    // SAFETY: as above.
                    let weight = unsafe { _mm256_loadu_ps(weight_rows[i].add(at)) };
                    for j in 0..X {
                        sums[i][j][half] = _mm256_fmadd_ps(weight, values[j], sums[i][j][half]);
                    }
                }
            }
        }
        for i in 0..W {
            for j in 0..X {
                out[(w + i) * out_stride + x + j] = reduce(_mm256_add_ps(sums[i][j][0], sums[i][j][1]));
            }
        }
    }

    /// # Safety
    /// As [`dots_avx512`], and `w + W <= weights.count`, `x + X <= inputs.count`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
    unsafe fn tile_avx512<const W: usize, const X: usize>(
        weights: Rows<'_>,
        w: usize,
        inputs: Rows<'_>,
        x: usize,
        out: &mut [f32],
        out_stride: usize,
    ) {
        let weight_rows: [*const f32; W] = std::array::from_fn(|i| weights.row(w + i).as_ptr());
        let input_rows: [*const f32; X] = std::array::from_fn(|j| inputs.row(x + j).as_ptr());
        let mut sums = [[_mm512_setzero_ps(); X]; W];
        for at in (0..weights.width).step_by(LANES) {
            // SAFETY: `at + 16 <= width`, as the width is a multiple of 16, and each row has `width` values.
            let values: [__m512; X] = std::array::from_fn(|j| unsafe { _mm512_loadu_ps(input_rows[j].add(at)) });
            for i in 0..W {
                // SAFETY: as above.
                let weight = unsafe { _mm512_loadu_ps(weight_rows[i].add(at)) };
                for j in 0..X {
                    sums[i][j] = _mm512_fmadd_ps(weight, values[j], sums[i][j]);
                }
            }
        }
        for i in 0..W {
            for j in 0..X {
                let low = _mm512_castps512_ps256(sums[i][j]);
                let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sums[i][j])));
                out[(w + i) * out_stride + x + j] = reduce(_mm256_add_ps(low, high));
            }
        }
    }

    /// Adds i and i + 4, i and i + 2, 0 and 1.
    #[target_feature(enable = "avx2,fma")]
    fn reduce(sums: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Repeatable values in -1 .. 1 (splitmix64).
    pub(crate) fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn every_version_gives_the_same_bits() {
        for (seed, (width, weights, inputs)) in
            [(16, 1, 1), (32, 3, 5), (576, 9, 4), (64, 7, 1), (1536, 5, 6), (48, 4, 9)].into_iter().enumerate()
        {
            let stride = width + 16;
            let (w, x) = (values(seed as u64, weights * stride), values(99 + seed as u64, inputs * stride));
            let (w, x) = (Rows::new(&w, stride, weights, width), Rows::new(&x, stride, inputs, width));
            let mut expected = vec![0.0; weights * inputs];
            dots(Isa::plain(), w, x, &mut expected, inputs);
            for isa in Isa::available() {
                let mut out = vec![0.0; weights * inputs];
                dots(isa, w, x, &mut out, inputs);
                assert_eq!(out, expected, "{isa:?} {width} {weights} {inputs}");
            }
        }
    }

    #[test]
    fn the_reference_is_a_dot_product() {
        let (a, b) = (values(1, 576), values(2, 576));
        let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        assert!((f64::from(dot_reference(&a, &b)) - exact).abs() < 1e-4);
    }
}
