//! DoRA's part of the low-rank term (Liu et al., 2024): a module becomes g ⊙ (W + s·BA) with g = m / ‖W + s·BA‖, the norm
//! taken of each output row. Here are the norms, computed once for an adapter, and the change that it makes to an output:
//! y += w·((g − 1) ⊙ Wx + g ⊙ s·B(Ax)). Not here: where m comes from, and what to do with a norm of zero.

use rayon::prelude::*;

use crate::Isa;
use crate::dot::LANES;
use crate::isa::multiversion;
use crate::lora::{LoraPair, shrink_expand};

/// ‖W + scale·BA‖ of each output row, for W `[outputs, inputs]`: the row in f32, as it is trained, its norm in f64.
///
/// # Panics
/// If a shape is wrong.
#[must_use]
pub fn dora_norms(isa: Isa, pair: &LoraPair, scale: f32, weight: &[f32]) -> Vec<f64> {
    let (rank, inputs, outputs) = (pair.rank(), pair.inputs(), pair.outputs());
    assert!(weight.len() == inputs * outputs, "{} weights for {outputs} rows of {inputs}", weight.len());
    let (mut row, mut squares) = (vec![0.0; inputs], [0.0; LANES]);
    let mut factors = vec![0.0; rank];
    let mut norms = Vec::with_capacity(outputs);
    for (output, weight) in weight.chunks_exact(inputs).enumerate() {
        let column = pair.b().iter().skip(output).step_by(outputs);
        factors.iter_mut().zip(column).for_each(|(factor, b)| *factor = scale * b);
        row.copy_from_slice(weight);
        squared_lanes(isa, pair.a(), &factors, &mut row, &mut squares);
        norms.push(squares.iter().sum::<f64>().sqrt());
    }
    norms
}

multiversion! {
    /// `row` += Σ factor·A, then the squares of its values, summed by their place modulo [`LANES`].
    fn squared_lanes(a: &[f32], factors: &[f32], row: &mut [f32], squares: &mut [f64; LANES]) {
        for (factor, a) in factors.iter().zip(a.chunks_exact(row.len())) {
            for (value, a) in row.iter_mut().zip(a) {
                *value += factor * a;
            }
        }
        *squares = [0.0; LANES];
        for values in row.chunks_exact(LANES) {
            for (square, value) in squares.iter_mut().zip(values) {
                *square += f64::from(*value) * f64::from(*value);
            }
        }
    }
}

/// Adds the change to `outputs` columns of `y`, from column `y_first` of rows of `y_stride`. `plain` is laid out as `y` and
/// holds Wx, without any other adapter's part; `growth` is g − 1, `[outputs]`; `factor` is the weight of the adapter, to
/// which its scale is given apart. `x` is `[rows, inputs]`.
///
/// # Panics
/// If a shape is wrong.
pub fn dora_add(
    isa: Isa,
    term: &DoraTerm<'_>,
    x: &[f32],
    plain: &[f32],
    y: &mut [f32],
    y_stride: usize,
    y_first: usize,
) {
    let DoraTerm { pair, growth, weight, scale } = *term;
    let outputs = pair.outputs();
    assert!(x.len() / pair.inputs() == y.len() / y_stride && y_first + outputs <= y_stride);
    assert!(plain.len() == y.len() && growth.len() == outputs);
    let rows = y.par_chunks_mut(y_stride).zip(plain.par_chunks(y_stride)).zip(x.par_chunks(pair.inputs()));
    rows.for_each_init(Vec::new, |scratch: &mut Vec<f32>, ((y, plain), x)| {
        let expanded = shrink_expand(isa, pair, x, scratch);
        add_grown(isa, expanded, growth, &plain[y_first..][..outputs], [weight, scale], &mut y[y_first..][..outputs]);
    });
}

/// What a DoRA adapter does to one module.
#[derive(Clone, Copy)]
pub struct DoraTerm<'a> {
    /// A and B.
    pub pair: &'a LoraPair,
    /// g − 1 of each output.
    pub growth: &'a [f32],
    /// How much of the adapter is asked for.
    pub weight: f32,
    /// s: what B(Ax) is multiplied by.
    pub scale: f32,
}

multiversion! {
    fn add_grown(expanded: &[f32], growth: &[f32], plain: &[f32], factors: [f32; 2], y: &mut [f32]) {
        let [weight, scale] = factors;
        for (((y, plain), growth), expanded) in y.iter_mut().zip(plain).zip(growth).zip(expanded) {
            *y += weight * (growth * plain + (growth + 1.0) * (scale * expanded));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;

    #[test]
    fn equals_the_dense_change_in_f64_and_does_not_depend_on_the_batch() {
        let (rank, inputs, outputs, rows, stride, first) = (5, 48, 33, 6, 70, 21);
        let (weight, scale) = (0.75f32, 1.5f32);
        let (a, b, x) = (values(1, rank * inputs), values(2, rank * outputs), values(3, rows * inputs));
        let (w, m) = (values(5, outputs * inputs), values(6, outputs));
        let pair = LoraPair::new(rank, inputs, outputs, a.clone(), b.clone()).unwrap();
        let start = values(4, rows * stride);
        // W + s·BA and its norms, dense, in f64.
        let changed = |o: usize, i: usize| {
            let delta: f64 = (0..rank).map(|r| f64::from(b[r * outputs + o]) * f64::from(a[r * inputs + i])).sum();
            f64::from(w[o * inputs + i]) + f64::from(scale) * delta
        };
        let norm = |o: usize| (0..inputs).map(|i| changed(o, i).powi(2)).sum::<f64>().sqrt();
        let mut results = Vec::new();
        for isa in Isa::available() {
            let norms = dora_norms(isa, &pair, scale, &w);
            assert!((0..outputs).all(|o| (norms[o] / norm(o) - 1.0).abs() < 1e-6), "{norms:?}");
            let growth: Vec<f32> = norms.iter().zip(&m).map(|(norm, m)| (f64::from(*m) / norm - 1.0) as f32).collect();
            let term = DoraTerm { pair: &pair, growth: &growth, weight, scale };
            // What is not Wx of this module in `plain` must not be read.
            let mut plain = vec![f32::NAN; rows * stride];
            for row in 0..rows {
                for o in 0..outputs {
                    let dot = (0..inputs).map(|i| f64::from(w[o * inputs + i]) * f64::from(x[row * inputs + i]));
                    plain[row * stride + first + o] = dot.sum::<f64>() as f32;
                }
            }
            let mut y = start.clone();
            dora_add(isa, &term, &x, &plain, &mut y, stride, first);
            for row in 0..rows {
                for column in 0..stride {
                    let delta = |o: usize| {
                        let dense = |i| f64::from(m[o]) * changed(o, i) / norm(o) - f64::from(w[o * inputs + i]);
                        (0..inputs).map(|i| dense(i) * f64::from(x[row * inputs + i])).sum::<f64>()
                    };
                    let inside = (first..first + outputs).contains(&column);
                    let expected = if inside { f64::from(weight) * delta(column - first) } else { 0.0 };
                    let at = row * stride + column;
                    assert!((f64::from(y[at]) - f64::from(start[at]) - expected).abs() < 1e-4, "{row} {column}");
                }
            }
            let (mut alone, row) = (start[2 * stride..3 * stride].to_vec(), 2 * stride..3 * stride);
            dora_add(isa, &term, &x[2 * inputs..3 * inputs], &plain[row], &mut alone, stride, first);
            assert_eq!(alone, y[2 * stride..3 * stride]);
            results.push((norms, y));
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn the_norm_of_a_row_that_is_cancelled_is_zero() {
        let (a, b) = (values(1, 16), vec![-1.0, 0.0]);
        let pair = LoraPair::new(1, 16, 2, a.clone(), b).unwrap();
        let weight = [a, vec![0.0; 16]].concat();
        assert_eq!(dora_norms(Isa::plain(), &pair, 1.0, &weight), [0.0, 0.0]);
    }
}
