//! Root-mean-square normalisation (Zhang and Sennrich, 2019).

use rayon::prelude::*;

/// out = x / sqrt(mean(x²) + epsilon) · weight, for each row of `x` and `out` `[rows, weight.len()]`. The mean is taken in
/// f64.
///
/// # Panics
/// If a shape is wrong.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = weight.len();
    assert!(x.len() == out.len() && x.len().is_multiple_of(width));
    out.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(8).for_each(|(out, x)| {
        let squares: f64 = x.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
        let factor = 1.0 / (squares / width as f64 + f64::from(epsilon)).sqrt();
        for ((out, value), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = (f64::from(*value) * factor) as f32 * weight;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_normalised_one_by_one() {
        let mut out = [0.0; 4];
        rms_norm(&[3.0, 4.0, 0.0, 0.0], &[1.0, 2.0], 0.0, &mut out[..]);
        let mean = (12.5f32).sqrt();
        assert!((out[0] - 3.0 / mean).abs() < 1e-6 && (out[1] - 8.0 / mean).abs() < 1e-6);
        assert!(out[2].is_nan());
        rms_norm(&[0.0, 0.0], &[1.0, 2.0], 1e-5, &mut out[..2]);
        assert_eq!(out[..2], [0.0, 0.0]);
    }
}
