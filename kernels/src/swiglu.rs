//! The gate of the feed-forward network (Shazeer, 2020).

use rayon::prelude::*;

/// out = silu(gate) · up, where row r of `gate_up` `[rows, 2 · width]` holds the gate and then the up values, and `out` is
/// `[rows, width]`.
///
/// # Panics
/// If a shape is wrong.
pub fn swiglu(gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(width));
    out.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).for_each(|(out, gate_up)| {
        let (gates, ups) = gate_up.split_at(width);
        for ((out, gate), up) in out.iter_mut().zip(gates).zip(ups) {
            *out = gate / (1.0 + (-gate).exp()) * up;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        let mut out = [0.0; 2];
        swiglu(&[0.0, 1.0, 5.0, 2.0], 2, &mut out);
        assert_eq!(out[0], 0.0);
        assert!((out[1] - 2.0 / (1.0 + (-1.0f32).exp())).abs() < 1e-6);
    }
}
