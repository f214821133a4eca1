//! How large the change of a module is: the Frobenius norm of s·B·A and an estimate of its spectral norm, in f64, from the
//! factors' Gram matrices alone: no product of the module's own size is formed. Not here: what is made of them.
//!
//! With G = AAᵀ and H = BᵀB, both `[rank, rank]`: ‖BA‖²_F = tr(HG), exactly; and ‖BA‖₂² is the largest eigenvalue of HG, which
//! has the nonzero eigenvalues of (BA)ᵀ(BA). It is found by power iteration (Golub and Van Loan, Matrix Computations, 4th
//! edition, 7.3): u ← HGu is x ← (BA)ᵀ(BA)x for x = Aᵀu, at 2·rank² multiplications a step.
//!
//! Error. Each step's value is a Rayleigh quotient, so the estimate is never above the spectral norm; it is below by less than
//! 1 % unless the largest singular values lie within some percent of each other, and then by less than their distance mostly
//! (the tests measure both). Sums in f64 err by 1e-15·√(inputs + outputs) of ‖A‖·‖B‖, which only shows where A and B cancel.
//! DoRA's norms are those of s·BA, before its magnitudes, which have their own limit (`dora_gain_max`).

use types::Digest;

/// Steps of the power iteration at most.
const STEPS_MAX: usize = 128;
/// Before these it does not stop: an unlucky start stands still for a moment.
const STEPS_MIN: usize = 12;
/// The estimate has settled when a step adds less than this part of it.
const SETTLED: f64 = 1e-9;
/// Products that are summed side by side, for the vector unit.
const LANES: usize = 8;

/// Norms of one module's change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Norms {
    /// √ of the sum of squares.
    pub(super) frobenius: f64,
    /// The most by which it can lengthen an input; an estimate from below, and never above `frobenius`.
    pub(super) spectral: f64,
}

/// Of scale · B · A with A `[rank, inputs]`, B `[outputs, rank]`, values finite. The seed chooses where the iteration starts:
/// taken from the content, so that no file can be made for a start that misses its largest direction.
pub(super) fn norms(a: &[f32], b: &[f32], rank: usize, scale: f64, seed: u64) -> Norms {
    let a: Vec<f64> = a.iter().copied().map(f64::from).collect();
    let mut columns = vec![0.0; b.len()];
    let outputs = b.len() / rank.max(1);
    for (row, values) in b.chunks_exact(rank.max(1)).enumerate() {
        for (column, value) in values.iter().enumerate() {
            columns[column * outputs + row] = f64::from(*value);
        }
    }
    let (a, b) = (gram(&a, rank), gram(&columns, rank));
    // tr(HG), both symmetric; what rounding leaves below zero is zero.
    let frobenius = dot(&a, &b).max(0.0).sqrt();
    let spectral = spectral(&a, &b, rank, seed).min(frobenius);
    Norms { frobenius: scale.abs() * frobenius, spectral: scale.abs() * spectral }
}

/// A start for one of an adapter's modules.
pub(super) fn seed(digest: &Digest, site: usize) -> u64 {
    let first = digest.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes);
    first ^ (site as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// R·Rᵀ, `[rows, rows]`, of R `[rows, width]`.
fn gram(values: &[f64], rows: usize) -> Vec<f64> {
    let mut gram = vec![0.0; rows * rows];
    if values.is_empty() {
        return gram;
    }
    let width = values.len() / rows;
    for (i, row) in values.chunks_exact(width).enumerate() {
        for (j, other) in values.chunks_exact(width).enumerate().take(i + 1) {
            let product = dot(row, other);
            gram[i * rows + j] = product;
            gram[j * rows + i] = product;
        }
    }
    gram
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    let mut sums = [0.0; LANES];
    let ((ones, rest), (others, rest_of_other)) = (one.as_chunks::<LANES>(), other.as_chunks::<LANES>());
    for (one, other) in ones.iter().zip(others) {
        for ((sum, one), other) in sums.iter_mut().zip(one).zip(other) {
            *sum += one * other;
        }
    }
    let rest: f64 = rest.iter().zip(rest_of_other).map(|(one, other)| one * other).sum();
    sums.iter().sum::<f64>() + rest
}

/// √ of the largest eigenvalue of H·G.
fn spectral(a: &[f64], b: &[f64], rank: usize, seed: u64) -> f64 {
    let times = |matrix: &[f64], vector: &[f64]| -> Vec<f64> {
        matrix.chunks_exact(rank.max(1)).map(|row| dot(row, vector)).collect()
    };
    let mut vector = start(rank, seed);
    let mut best = 0.0f64;
    for step in 0..STEPS_MAX {
        let through_a = times(a, &vector);
        let through_both = times(b, &through_a);
        // ‖BAx‖² / ‖x‖² of x = Aᵀu.
        let quotient = dot(&through_a, &through_both) / dot(&vector, &through_a);
        let largest = through_both.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        if !quotient.is_finite() || largest == 0.0 {
            // Nothing is left of x: B or A is zero where it matters.
            break;
        }
        let has_settled = step >= STEPS_MIN && quotient <= best * (1.0 + SETTLED);
        best = best.max(quotient);
        if has_settled {
            break;
        }
        vector = through_both.iter().map(|value| value / largest).collect();
    }
    best.sqrt()
}

/// Numbers from −1 to 1 by SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn start(rank: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..rank).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(count: usize, seed: u64) -> Vec<f32> {
        start(count, seed).into_iter().map(|value| value as f32).collect()
    }

    /// scale·B·A as it is, `[outputs, inputs]`.
    fn dense(a: &[f32], b: &[f32], rank: usize, scale: f64) -> Vec<Vec<f64>> {
        let inputs = a.len() / rank;
        let cell = |row: &[f32], column: usize| {
            let terms = row.iter().enumerate().map(|(k, b)| f64::from(*b) * f64::from(a[k * inputs + column]));
            scale * terms.sum::<f64>()
        };
        b.chunks_exact(rank).map(|row| (0..inputs).map(|column| cell(row, column)).collect()).collect()
    }

    /// Singular values by one-sided Jacobi rotations of the rows (Hestenes 1958), largest first: exact to rounding.
    fn singular_values(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
        for _ in 0..60 {
            for i in 0..rows.len() {
                for j in 0..i {
                    let (alpha, beta) = (dot(&rows[i], &rows[i]), dot(&rows[j], &rows[j]));
                    let gamma = dot(&rows[i], &rows[j]);
                    if gamma.abs() <= 1e-15 * (alpha * beta).sqrt() {
                        continue;
                    }
                    let zeta = (beta - alpha) / (2.0 * gamma);
                    let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
                    let sine = cosine * tangent;
                    let (before, from) = rows.split_at_mut(i);
                    for (one, other) in from[0].iter_mut().zip(&mut before[j]) {
                        (*one, *other) = (cosine * *one - sine * *other, sine * *one + cosine * *other);
                    }
                }
            }
        }
        let mut values: Vec<f64> = rows.iter().map(|row| dot(row, row).sqrt()).collect();
        values.sort_by(|one, other| other.total_cmp(one));
        values
    }

    #[test]
    fn norms_are_those_of_the_dense_product() {
        let mut worst = 0.0f64;
        for seed in 0..60u64 {
            let rank = [1, 2, 3, 4, 8, 16][seed as usize % 6];
            let (inputs, outputs) = [(24, 40), (33, 20), (17, 17)][seed as usize % 3];
            let (a, b) = (random(rank * inputs, seed), random(outputs * rank, seed + 1000));
            let scale = [2.0, 0.25, -1.5][seed as usize % 3];
            let found = norms(&a, &b, rank, scale, seed);
            let exact = singular_values(dense(&a, &b, rank, scale));
            let frobenius = exact.iter().map(|value| value * value).sum::<f64>().sqrt();
            assert!((found.frobenius / frobenius - 1.0).abs() < 1e-12, "seed {seed}: {found:?}, {frobenius}");
            assert!(found.spectral <= exact[0] * (1.0 + 1e-12), "seed {seed}: from below, {found:?}, {}", exact[0]);
            assert!(found.spectral <= found.frobenius);
            worst = worst.max(1.0 - found.spectral / exact[0]);
            assert!(
                rank > 1 || (found.spectral / found.frobenius - 1.0).abs() < 1e-12,
                "rank 1 has one singular value"
            );
        }
        println!("the spectral norm of random factors is low by {worst:e} at most");
        assert!(worst < 0.01, "{worst}");
    }

    /// A diagonal B·A, so that the singular values are known.
    fn diagonal(values: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let rank = values.len();
        let (mut a, mut b) = (vec![0.0; rank * rank], vec![0.0; rank * rank]);
        for (at, value) in values.iter().enumerate() {
            (a[at * rank + at], b[at * rank + at]) = (*value, 1.0);
        }
        (a, b)
    }

    #[test]
    fn near_singular_values_cost_less_than_their_distance() {
        for (second, allowed) in [(0.5, 1e-9), (0.9, 1e-6), (0.99, 0.01), (0.9999, 1.1e-4), (1.0, 1e-12)] {
            for seed in 0..50 {
                let (a, b) = diagonal(&[3.0, 3.0 * second, 0.5, 0.1]);
                let found = norms(&a, &b, 4, 1.0, seed).spectral;
                assert!(found <= 3.0 * (1.0 + 1e-12) && found >= 3.0 * (1.0 - allowed), "{second}, {seed}: {found}");
            }
        }
    }

    #[test]
    fn factors_that_cancel_or_vanish_have_small_norms_and_no_nan() {
        let zero = Norms { frobenius: 0.0, spectral: 0.0 };
        assert_eq!(norms(&[0.0; 8], &[1.0; 8], 2, 2.0, 1), zero);
        assert_eq!(norms(&[1.0; 8], &[0.0; 8], 2, 2.0, 1), zero);
        assert_eq!(norms(&[1.0; 8], &[1.0; 8], 2, 0.0, 1), zero);
        // Both rows of A alike, the columns of B opposite: B·A is zero.
        let b: Vec<f32> = (0..8).map(|at| if at % 2 == 0 { 1000.0 } else { -1000.0 }).collect();
        let found = norms(&[1.0; 8], &b, 2, 1.0, 1);
        assert!(found.frobenius < 1e-3 && found.spectral <= found.frobenius, "{found:?}");
        for size in [f32::MIN_POSITIVE, 1e-45, 1e18, f32::MAX] {
            let found = norms(&[size; 8], &[size; 8], 2, 1.0, 1);
            assert!(found.frobenius.is_finite() && found.spectral <= found.frobenius, "{size}: {found:?}");
            assert!(found.frobenius > 0.0 && found.spectral > 0.99 * found.frobenius, "{size}: {found:?}");
        }
    }

    #[test]
    fn every_module_has_a_start_of_its_own() {
        let digest = Digest::of(b"adapter");
        assert_ne!(seed(&digest, 0), seed(&digest, 1));
        assert_ne!(seed(&digest, 0), seed(&Digest::of(b"other"), 0));
        assert!(start(64, seed(&digest, 0)).iter().all(|value| value.abs() <= 1.0 && *value != 0.0));
    }
}
