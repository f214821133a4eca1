//! The low-rank term y += factor · B(A x) over a segment of rows: shrink to the rank, expand to the outputs (the two steps
//! of Punica's SGMV; Hu et al., 2021, for the term itself).

use rayon::prelude::*;

use crate::dot::{LANES, Rows, dots};
use crate::isa::multiversion;
use crate::{Floats, Isa};

/// One module's A and B.
pub struct LoraPair {
    rank: usize,
    inputs: usize,
    outputs: usize,
    /// `[rank, inputs]`
    a: Floats,
    /// B transposed, `[rank, outputs]`, so that a step of the expansion is one run over the outputs.
    b: Floats,
}

impl LoraPair {
    /// From A `[rank, inputs]` and B transposed `[rank, outputs]`; `None` if a length is wrong, the rank is 0, or `inputs`
    /// is not a multiple of 16.
    #[must_use]
    pub fn new(rank: usize, inputs: usize, outputs: usize, a: impl Into<Floats>, b: impl Into<Floats>) -> Option<Self> {
        let (a, b) = (a.into(), b.into());
        let fits = rank > 0
            && inputs.is_multiple_of(LANES)
            && rank.checked_mul(inputs) == Some(a.len())
            && rank.checked_mul(outputs) == Some(b.len());
        fits.then_some(Self { rank, inputs, outputs, a, b })
    }

    /// Bytes of both matrices.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        (self.a.len() + self.b.len()) * size_of::<f32>()
    }

    /// A and the transposed B, as [`LoraPair::new`] takes them.
    #[must_use]
    pub fn into_parts(self) -> (Vec<f32>, Vec<f32>) {
        (self.a.into_vec(), self.b.into_vec())
    }

    /// Rows of A.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Columns of A.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows of B.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `[rank, inputs]`
    #[must_use]
    pub fn a(&self) -> &[f32] {
        &self.a
    }

    /// Transposed, `[rank, outputs]`.
    #[must_use]
    pub fn b(&self) -> &[f32] {
        &self.b
    }
}

/// Adds the term to `outputs` columns of `y`, from column `y_first` of rows of `y_stride`; `x` is `[rows, inputs]`.
///
/// # Panics
/// If a shape is wrong.
pub fn lora_add(isa: Isa, pair: &LoraPair, factor: f32, x: &[f32], y: &mut [f32], y_stride: usize, y_first: usize) {
    assert!(x.len() / pair.inputs == y.len() / y_stride && y_first + pair.outputs <= y_stride);
    let rows = y.par_chunks_mut(y_stride).zip(x.par_chunks(pair.inputs));
    rows.for_each_init(Vec::new, |scratch: &mut Vec<f32>, (y, x)| {
        let expanded = shrink_expand(isa, pair, x, scratch);
        add_scaled(isa, expanded, factor, &mut y[y_first..][..pair.outputs]);
    });
}

/// B(A x) of one row, in memory of `scratch`.
pub(crate) fn shrink_expand<'a>(isa: Isa, pair: &LoraPair, x: &[f32], scratch: &'a mut Vec<f32>) -> &'a [f32] {
    scratch.clear();
    scratch.resize(pair.rank + pair.outputs, 0.0);
    let (shrunk, expanded) = scratch.split_at_mut(pair.rank);
    dots(isa, Rows::new(&pair.a, pair.inputs, pair.rank, pair.inputs), Rows::one(x), shrunk, 1);
    expand(isa, shrunk, &pair.b, expanded);
    expanded
}

multiversion! {
    /// `sums` begin as zeros.
    fn expand(shrunk: &[f32], b: &[f32], sums: &mut [f32]) {
        for (value, b) in shrunk.iter().zip(b.chunks_exact(sums.len())) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum += value * b;
            }
        }
    }
}

multiversion! {
    fn add_scaled(sums: &[f32], factor: f32, y: &mut [f32]) {
        for (y, sum) in y.iter_mut().zip(sums) {
            *y += factor * *sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;

    #[test]
    fn equals_the_dense_term_and_does_not_depend_on_the_batch() {
        let (rank, inputs, outputs, rows, stride, first) = (5, 48, 33, 6, 70, 21);
        let (a, b, x) = (values(1, rank * inputs), values(2, rank * outputs), values(3, rows * inputs));
        let pair = LoraPair::new(rank, inputs, outputs, a.clone(), b.clone()).unwrap();
        let start = values(4, rows * stride);
        let mut expected = Vec::new();
        for isa in Isa::available() {
            let mut y = start.clone();
            lora_add(isa, &pair, 0.5, &x, &mut y, stride, first);
            for row in 0..rows {
                for column in 0..stride {
                    let term = |r: usize| {
                        let shrunk: f64 =
                            (0..inputs).map(|i| f64::from(a[r * inputs + i]) * f64::from(x[row * inputs + i])).sum();
                        shrunk * f64::from(b[r * outputs + column - first])
                    };
                    let inside = (first..first + outputs).contains(&column);
                    let delta = if inside { 0.5 * (0..rank).map(term).sum::<f64>() } else { 0.0 };
                    let at = row * stride + column;
                    assert!((f64::from(y[at]) - f64::from(start[at]) - delta).abs() < 1e-4);
                }
            }
            let mut alone = start[2 * stride..3 * stride].to_vec();
            lora_add(isa, &pair, 0.5, &x[2 * inputs..3 * inputs], &mut alone, stride, first);
            assert_eq!(alone, y[2 * stride..3 * stride]);
            expected.push(y);
        }
        assert!(expected.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
