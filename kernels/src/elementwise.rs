//! Operations on each value of rows: the feed-forward network's gate, and sums. Each row by itself; the same bits on every
//! instruction set. Not here: those that look at a whole row (`norm_rows`) or turn heads (`elementwise_rope`); the
//! references `swiglu` and `rms_norm`.

use std::ops::Range;

use crate::exp::exp_fast;
use crate::isa::multiversion;
use crate::pool::SharedMut;
use crate::{Isa, Team};

/// Values of a tile: a few µs.
const TILE_VALUES: usize = 16_384;
/// Up to this many values the caller does the work alone: it takes less time than waking others.
const ALONE_VALUES_MAX: usize = 16_384;

/// Runs `work` on parts of `rows` rows of `width` values.
pub(crate) fn each_part(team: &Team<'_>, rows: usize, width: usize, work: impl Fn(Range<usize>) + Sync) {
    if rows * width <= ALONE_VALUES_MAX {
        return work(0..rows);
    }
    let part = (TILE_VALUES / width.max(1)).max(1);
    team.tiles(rows.div_ceil(part), |_, tile| work(tile * part..rows.min((tile + 1) * part)));
}

/// out = silu(gate) · up, where row r of `gate_up` `[rows, 2 · width or more]` holds the gate and then the up values, and `out` is
/// `[rows, width]` (Shazeer, 2020). Relative error below 1e-6 where nothing is too small to be normal.
///
/// # Panics
/// If a shape is wrong.
pub fn swiglu_rows(team: &Team<'_>, isa: Isa, gate_up: &[f32], width: usize, out: &mut [f32]) {
    assert!(width > 0 && out.len().is_multiple_of(width));
    let rows = out.len() / width;
    let stride = gate_up.len().checked_div(rows).unwrap_or(2 * width);
    assert!(stride >= 2 * width && gate_up.len() == rows * stride);
    let out = SharedMut::new(out);
    each_part(team, rows, 2 * width, |rows| {
        // SAFETY: parts have different rows.
        let out = unsafe { out.slice(rows.start * width..rows.end * width) };
        swiglu_part(isa, &gate_up[rows.start * stride..rows.end * stride], stride, width, out);
    });
}

multiversion! {
    fn swiglu_part(gate_up: &[f32], stride: usize, width: usize, out: &mut [f32]) {
        for (out, gate_up) in out.chunks_exact_mut(width).zip(gate_up.chunks_exact(stride)) {
            let (gates, ups) = gate_up[..2 * width].split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gates).zip(ups) {
                *out = gated(*gate, *up);
            }
        }
    }
}

/// silu(gate) · up.
#[inline(always)]
pub(crate) fn gated(gate: f32, up: f32) -> f32 {
    gate / (1.0 + exp_fast(-gate)) * up
}

/// x += added.
///
/// # Panics
/// If the lengths differ.
pub fn add_rows(team: &Team<'_>, isa: Isa, x: &mut [f32], added: &[f32]) {
    assert!(x.len() == added.len());
    const WIDTH: usize = 1024;
    let len = x.len();
    let x = SharedMut::new(x);
    each_part(team, len.div_ceil(WIDTH), WIDTH, |rows| {
        let range = rows.start * WIDTH..len.min(rows.end * WIDTH);
        // SAFETY: parts have different rows.
        add_part(isa, unsafe { x.slice(range.clone()) }, &added[range]);
    });
}

multiversion! {
    fn add_part(x: &mut [f32], added: &[f32]) {
        x.iter_mut().zip(added).for_each(|(x, added)| *x += added);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pool;
    use crate::dot::tests::values;

    #[test]
    fn the_gate_is_close_to_the_reference_in_any_batch() {
        let pool = Pool::new(3).unwrap();
        for (rows, width) in [(1, 32), (3, 33), (40, 1536), (130, 96), (0, 32)] {
            let gate_up: Vec<f32> = values(1, rows * 2 * width).into_iter().map(|value| value * 12.0).collect();
            let mut plain = vec![0.0; rows * width];
            swiglu_rows(&Team::alone(), Isa::plain(), &gate_up, width, &mut plain);
            for isa in Isa::available() {
                let mut out = vec![0.0; rows * width];
                pool.step(|team| swiglu_rows(team, isa, &gate_up, width, &mut out));
                assert_eq!(out, plain, "{isa:?} {rows} {width}");
            }
            // Rows with something behind them.
            let stride = 2 * width + 5;
            let apart: Vec<f32> =
                gate_up.chunks(2 * width).flat_map(|row| row.iter().copied().chain([f32::NAN; 5])).collect();
            assert_eq!(apart.len(), rows * stride);
            let mut out = vec![0.0; rows * width];
            pool.step(|team| swiglu_rows(team, Isa::detect(), &apart, width, &mut out));
            assert_eq!(out, plain, "{rows} {width} apart");
            for row in 0..rows {
                for at in 0..width {
                    let (gate, up) = (gate_up[row * 2 * width + at], gate_up[(row * 2 + 1) * width + at]);
                    let exact = f64::from(gate) / (1.0 + f64::from(-gate).exp()) * f64::from(up);
                    assert!((f64::from(plain[row * width + at]) - exact).abs() <= exact.abs() * 1e-6, "{gate} {up}");
                }
            }
        }
    }

    #[test]
    fn extreme_gates_stay_in_their_place() {
        for isa in Isa::available() {
            let gates = [f32::NAN, f32::INFINITY, -1e30, 1e30, 0.0, f32::NEG_INFINITY, 1.0];
            let gate_up = [gates, [2.0; 7]].concat();
            let mut out = [0.0; 7];
            swiglu_rows(&Team::alone(), isa, &gate_up, 7, &mut out);
            assert!(out[0].is_nan() && out[5].is_nan());
            assert_eq!(out[1..5], [f32::INFINITY, 0.0, 2e30, 0.0]);
            assert!((out[6] - 2.0 / (1.0 + (-1.0f32).exp())).abs() < 1e-6);
        }
    }

    #[test]
    fn sums() {
        let pool = Pool::new(2).unwrap();
        for len in [0, 1, 1023, 1025, 70_001] {
            let (x, added) = (values(1, len), values(2, len));
            let mut out = x.clone();
            pool.step(|team| add_rows(team, Isa::detect(), &mut out, &added));
            assert!(out.iter().zip(x.iter().zip(added)).all(|(out, (x, added))| *out == x + added));
        }
    }
}
