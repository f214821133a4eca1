//! Rounding to bf16, and pairs of such numbers in 32 bits, the first in the low half: what the dot product of bf16 takes.
//! To nearest, ties to even; NaN stays NaN. The vector version takes numbers below f32's normal range for 0.

use crate::Isa;
use crate::isa::{Level, multiversion};

/// Two numbers, rounded.
#[inline(always)]
pub(super) fn pair(first: f32, second: f32) -> u32 {
    u32::from(round(first)) | u32::from(round(second)) << 16
}

/// The bits of the nearest bf16.
#[inline(always)]
pub(super) fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    // Rounding up could make infinity of a NaN.
    if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { nearest }
}

/// The numbers of a pair.
#[inline(always)]
pub(super) fn unpack(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair << 16), f32::from_bits(pair & 0xffff_0000)]
}

/// Pairs of neighbours; a multiple of 16 values.
pub(super) fn pairs(isa: Isa, values: &[f32], pairs: &mut [u32]) {
    assert!(values.len() == 2 * pairs.len() && values.len().is_multiple_of(16));
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `vector` enables.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { vector(values, pairs) },
        _ => plain(isa, values, pairs),
    }
}

multiversion! {
    fn plain(values: &[f32], pairs: &mut [u32]) {
        for (pair, values) in pairs.iter_mut().zip(values.as_chunks::<2>().0) {
            *pair = self::pair(values[0], values[1]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx2,fma")]
fn vector(values: &[f32], pairs: &mut [u32]) {
    use std::arch::x86_64::*;
    let (blocks, rest) = values.as_chunks::<32>();
    let (out, out_rest) = pairs.as_chunks_mut::<16>();
    for (values, out) in blocks.iter().zip(out) {
        // SAFETY: 32 values are read and as many of half their size written.
        unsafe {
            let [low, high] = [0, 16].map(|at| _mm512_loadu_ps(values.as_ptr().add(at)));
            _mm512_storeu_si512(
                out.as_mut_ptr().cast(),
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)),
            );
        }
    }
    if let (Ok(values), Ok(out)) = (<&[f32; 16]>::try_from(rest), <&mut [u32; 8]>::try_from(out_rest)) {
        // SAFETY: 16 values are read and as many of half their size written.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(values.as_ptr()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), std::mem::transmute::<__m256bh, __m256i>(rounded));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_as_the_crate_half_does_in_every_version() {
        let values: Vec<f32> = (0..1 << 16)
            .map(|at: u32| f32::from_bits(at.wrapping_mul(0x9e37_79b1)))
            .map(|value| if value.is_subnormal() { 0.0 } else { value })
            .chain([f32::MAX, f32::INFINITY, f32::NAN, 1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.0, 0.0].repeat(2))
            .collect();
        for isa in Isa::available() {
            let mut found = vec![0; values.len() / 2];
            pairs(isa, &values, &mut found);
            for (pair, values) in found.iter().zip(values.chunks_exact(2)) {
                for (found, value) in unpack(*pair).into_iter().zip(values) {
                    let expected = half::bf16::from_f32(*value).to_f32();
                    assert!(found.to_bits() == expected.to_bits() || found.is_nan() && value.is_nan(), "{value}");
                }
            }
        }
    }
}
