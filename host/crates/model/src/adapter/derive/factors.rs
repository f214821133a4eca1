//! Linear algebra of deltas, in f64 and on one thread: products of factors, and the best factors of a rank (Eckart and Young).
//! Not here: which delta.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::{Piece, tensors};

/// A singular value below this part of the largest is rounding: no rank is spent on it.
const SINGULAR_VALUE_MIN: f64 = 1e-9;

/// A delta as B·A.
pub(super) struct Factors {
    pub(super) rank: usize,
    /// `[rank, inputs]`
    pub(super) a: Vec<f32>,
    /// `[outputs, rank]`
    pub(super) b: Vec<f32>,
    /// ‖delta‖², Frobenius.
    pub(super) norm_squared: f64,
    /// ‖delta − B·A‖², by the singular values that were left out.
    pub(super) lost_squared: f64,
}

/// s·B·A of one parent, dense by rows `[outputs, inputs]`, without its weight.
pub(super) fn delta(piece: &Piece<'_>, inputs: usize, outputs: usize) -> Vec<f64> {
    let rank = piece.term.rank;
    let (a, b) = (values(piece.a, 1.0), values(piece.b, piece.term.scale));
    let mut delta = vec![0.0; inputs * outputs];
    let (a, b) = (MatRef::from_row_major_slice(&a, rank, inputs), MatRef::from_row_major_slice(&b, outputs, rank));
    let to = MatMut::from_row_major_slice_mut(&mut delta, outputs, inputs);
    matmul(to, Accum::Replace, b, a, 1.0, Par::Seq);
    delta
}

/// Σ wᵢ·sᵢ·Bᵢ·Aᵢ in the nearest factors of at most this rank, without the dense sum: the QR decompositions of the stacked factors, and the
/// singular values of the small product of their triangles.
pub(super) fn of_sum(pieces: &[Piece<'_>], inputs: usize, outputs: usize, rank: usize) -> Option<Factors> {
    let ranks: usize = pieces.iter().map(|piece| piece.term.rank).sum();
    // Both with the summed ranks as columns.
    let (mut left, mut right) = (Mat::<f64>::zeros(outputs, ranks), Mat::<f64>::zeros(inputs, ranks));
    let mut first = 0;
    for piece in pieces {
        let own = piece.term.rank;
        let b = values(piece.b, piece.weight * piece.term.scale);
        let a = values(piece.a, 1.0);
        left.as_mut().subcols_mut(first, own).copy_from(MatRef::from_row_major_slice(&b, outputs, own));
        right.as_mut().subcols_mut(first, own).copy_from(MatRef::from_column_major_slice(&a, inputs, own));
        first += own;
    }
    let (left, right) = (left.qr(), right.qr());
    let core = left.thin_R() * right.thin_R().transpose();
    let svd = core.thin_svd().ok()?;
    let sizes: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let (kept, norm_squared, lost_squared) = split(&sizes, rank);
    let b = left.compute_thin_Q() * svd.U().subcols(0, kept);
    let a = right.compute_thin_Q() * svd.V().subcols(0, kept);
    Some(balanced(a.as_ref(), b.as_ref(), sizes.get(..kept)?, norm_squared, lost_squared))
}

/// A dense delta `[outputs, inputs]` by rows in the nearest factors of at most this rank.
pub(super) fn of_dense(delta: &[f64], inputs: usize, outputs: usize, rank: usize) -> Option<Factors> {
    let svd = MatRef::from_row_major_slice(delta, outputs, inputs).thin_svd().ok()?;
    let sizes: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let (kept, norm_squared, lost_squared) = split(&sizes, rank);
    let (a, b) = (svd.V().subcols(0, kept), svd.U().subcols(0, kept));
    Some(balanced(a, b, sizes.get(..kept)?, norm_squared, lost_squared))
}

/// How many singular values are kept, of at most `rank`; the squares of all and of the others.
fn split(sizes: &[f64], rank: usize) -> (usize, f64, f64) {
    let smallest = sizes.iter().copied().fold(0.0, f64::max) * SINGULAR_VALUE_MIN;
    let kept = sizes.iter().take(rank).take_while(|size| **size > smallest).count().max(1);
    let squares = |sizes: &[f64]| sizes.iter().map(|size| size * size).sum::<f64>();
    (kept, squares(sizes), squares(sizes.get(kept..).unwrap_or_default()))
}

/// Both factors of the same size, which is the smallest for their product: a root of the singular value each.
fn balanced(a: MatRef<'_, f64>, b: MatRef<'_, f64>, sizes: &[f64], norm_squared: f64, lost_squared: f64) -> Factors {
    let roots: Vec<f64> = sizes.iter().map(|size| size.sqrt()).collect();
    let column =
        |(index, root): (usize, &f64)| a.col(index).iter().map(|value| (value * root) as f32).collect::<Vec<_>>();
    let a_values = roots.iter().enumerate().flat_map(column).collect();
    let row = |row: usize| b.row(row).iter().zip(&roots).map(|(value, root)| (value * root) as f32).collect::<Vec<_>>();
    let b_values = (0..b.nrows()).flat_map(row).collect();
    Factors { rank: roots.len(), a: a_values, b: b_values, norm_squared, lost_squared }
}

fn values(tensor: &safetensors::tensor::TensorView<'_>, by: f64) -> Vec<f64> {
    tensors::values(tensor).into_iter().map(|value| f64::from(value) * by).collect()
}
