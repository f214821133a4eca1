//! Root-mean-square normalisation of rows (Zhang and Sennrich, 2019), with or without a sum before it. The same bits on
//! every instruction set: squares are exact in f64 and added in 16 parts, value i to part i mod 16, and the parts in
//! halves. Relative error below 4e-7 (asserted by a test; the reference is `rms_norm`).

use crate::elementwise::each_part;
use crate::isa::multiversion;
use crate::pool::SharedMut;
use crate::{Isa, Team};

/// out = x / sqrt(mean(x²) + epsilon) · weight, for each row of `x` and `out` `[rows, weight.len()]`.
///
/// # Panics
/// If a shape is wrong.
pub fn rms_norm_rows(team: &Team<'_>, isa: Isa, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(width > 0 && x.len() == out.len() && x.len().is_multiple_of(width));
    let rows = x.len() / width;
    let out = SharedMut::new(out);
    each_part(team, rows, width, |rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: parts have different rows.
        norm_part(isa, &x[range.clone()], weight, epsilon, unsafe { out.slice(range) });
    });
}

/// x += added, and then [`rms_norm_rows`] of it.
///
/// # Panics
/// If a shape is wrong.
pub fn add_rms_norm_rows(
    team: &Team<'_>,
    isa: Isa,
    x: &mut [f32],
    added: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) {
    let width = weight.len();
    assert!(width > 0 && x.len() == out.len() && x.len() == added.len() && x.len().is_multiple_of(width));
    let rows = x.len() / width;
    let (x, out) = (SharedMut::new(x), SharedMut::new(out));
    each_part(team, rows, 2 * width, |rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: parts have different rows.
        let (x, out) = unsafe { (x.slice(range.clone()), out.slice(range.clone())) };
        add_norm_part(isa, x, &added[range], weight, epsilon, out);
    });
}

multiversion! {
    fn norm_part(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            scale_row(x, weight, norm_factor(x, epsilon), out);
        }
    }
}

multiversion! {
    fn add_norm_part(x: &mut [f32], added: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        let width = weight.len();
        let rows = x.chunks_exact_mut(width).zip(added.chunks_exact(width)).zip(out.chunks_exact_mut(width));
        for ((x, added), out) in rows {
            x.iter_mut().zip(added).for_each(|(x, added)| *x += added);
            scale_row(x, weight, norm_factor(x, epsilon), out);
        }
    }
}

#[inline(always)]
fn scale_row(x: &[f32], weight: &[f32], factor: f32, out: &mut [f32]) {
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

/// 1 / sqrt(mean(x²) + epsilon).
#[inline(always)]
pub(crate) fn norm_factor(x: &[f32], epsilon: f32) -> f32 {
    let mut sums = [0.0f64; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for x in whole {
        for lane in 0..16 {
            let value = f64::from(x[lane]);
            sums[lane] += value * value;
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(*value) * f64::from(*value);
    }
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|lane| sums[lane] += sums[lane + half]);
    }
    (1.0 / (sums[0] / x.len() as f64 + f64::from(epsilon)).sqrt()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;
    use crate::{Pool, rms_norm};

    #[test]
    fn close_to_the_reference_in_any_batch_on_any_machine() {
        let pool = Pool::new(3).unwrap();
        for (rows, width) in [(1, 576), (5, 32), (64, 576), (17, 1000), (3, 7), (0, 64)] {
            let (x, added, weight) = (values(1, rows * width), values(3, rows * width), values(2, width));
            let mut expected = vec![0.0; x.len()];
            rms_norm(&x, &weight, 1e-5, &mut expected);
            let mut plain = vec![0.0; x.len()];
            rms_norm_rows(&Team::alone(), Isa::plain(), &x, &weight, 1e-5, &mut plain);
            for (out, expected) in plain.iter().zip(&expected) {
                assert!((out - expected).abs() <= expected.abs() * 4e-7, "{out} {expected}");
            }
            for isa in Isa::available() {
                let mut out = vec![0.0; x.len()];
                pool.step(|team| rms_norm_rows(team, isa, &x, &weight, 1e-5, &mut out));
                assert_eq!(out, plain, "{isa:?} {rows} {width}");
                let sum: Vec<f32> = x.iter().zip(&added).map(|(x, added)| x + added).collect();
                let (mut both, mut fused, mut separate) = (x.clone(), out.clone(), out.clone());
                pool.step(|team| add_rms_norm_rows(team, isa, &mut both, &added, &weight, 1e-5, &mut fused));
                rms_norm_rows(&Team::alone(), isa, &sum, &weight, 1e-5, &mut separate);
                assert_eq!((both, fused), (sum, separate));
            }
        }
    }

    #[test]
    fn huge_and_missing_numbers_stay_in_their_row() {
        for isa in Isa::available() {
            let x = [1e30, -1e30, f32::NAN, 1.0, 0.0, 0.0, 3.0, 4.0];
            let mut out = [9.0; 8];
            rms_norm_rows(&Team::alone(), isa, &x, &[1.0, 2.0], 1e-5, &mut out);
            assert!((out[0] - 1.0).abs() < 1e-6 && (out[1] + 2.0).abs() < 1e-6);
            assert!(out[2].is_nan() && out[3].is_nan());
            assert_eq!(out[4..6], [0.0, 0.0]);
            assert!((out[6] - 3.0 / 12.5f32.sqrt()).abs() < 1e-5);
        }
    }
}
