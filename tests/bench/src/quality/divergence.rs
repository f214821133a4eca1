//! Kullback-Leibler divergence of one distribution from another, token by token. Not here: where the logits come from.

use serde_json::{Value, json};

use crate::report::rounded;
use crate::statistics::quantile;

/// Over all tokens so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Divergence {
    /// Of each token, in nats.
    each: Vec<f64>,
    /// Tokens whose most likely successor is the same.
    same_best: usize,
}

impl Divergence {
    /// Adds rows of logits, `[rows, vocabulary]` each.
    pub(super) fn add(&mut self, exact: &[f32], other: &[f32], vocabulary: usize, threads: usize) {
        let rows: Vec<(&[f32], &[f32])> = exact.chunks_exact(vocabulary).zip(other.chunks_exact(vocabulary)).collect();
        let share = rows.len().div_ceil(threads.max(1)).max(1);
        let parts: Vec<Vec<(f64, bool)>> = std::thread::scope(|scope| {
            let one = |rows: &[(&[f32], &[f32])]| -> Vec<(f64, bool)> {
                rows.iter().map(|(exact, other)| (divergence(exact, other), best(exact) == best(other))).collect()
            };
            let threads: Vec<_> = rows.chunks(share).map(|rows| scope.spawn(move || one(rows))).collect();
            // A thread that panicked would leave a hole: it counts as infinitely far.
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| vec![(f64::INFINITY, false)])).collect()
        });
        for (nats, is_same) in parts.into_iter().flatten() {
            self.each.push(nats);
            self.same_best += usize::from(is_same);
        }
    }

    /// Nats a token.
    pub(super) fn mean(&self) -> f64 {
        self.each.iter().sum::<f64>() / self.each.len().max(1) as f64
    }

    /// Twice the standard error of the mean.
    pub(super) fn mean_error(&self) -> f64 {
        let (mean, count) = (self.mean(), self.each.len().max(2) as f64);
        let variance = self.each.iter().map(|nats| (nats - mean) * (nats - mean)).sum::<f64>() / (count - 1.0);
        2.0 * (variance / count).sqrt()
    }

    /// A row of the report.
    pub(super) fn json(&self, name: &str) -> Value {
        let at = |share| quantile(&self.each, share).map_or(Value::Null, rounded);
        json!({
            "configuration": name, "tokens": self.each.len(), "mean_kl_nats": rounded(self.mean()),
            "two_standard_errors": rounded(self.mean_error()), "median_kl": at(0.5), "p99_kl": at(0.99), "max_kl": at(1.0),
            "same_most_likely": rounded(self.same_best as f64 / self.each.len().max(1) as f64),
        })
    }
}

/// Sum of p (ln p − ln q), in f64: the terms cancel.
fn divergence(exact: &[f32], other: &[f32]) -> f64 {
    let (p_norm, q_norm) = (log_sum_exp(exact), log_sum_exp(other));
    let terms = exact.iter().zip(other).map(|(p, q)| {
        let log_p = f64::from(*p) - p_norm;
        log_p.exp() * (log_p - (f64::from(*q) - q_norm))
    });
    terms.sum()
}

/// Natural logarithm of the sum of exponentials.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(max) + logits.iter().map(|logit| f64::from(logit - max).exp()).sum::<f64>().ln()
}

/// The place of the largest value; the first of equals.
pub(super) fn best(logits: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (place, logit) in logits.iter().enumerate() {
        if best.is_none_or(|(_, largest)| *logit > largest) {
            best = Some((place, *logit));
        }
    }
    best.map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_divergence_is_that_of_the_book() {
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 − (ln 3)/2 … = ½ ln 2 + ½ ln(2/3).
        let (p, q) = ([0.0, 0.0], [1.0f32.ln(), 3.0f32.ln()]);
        let expected = 0.5 * 2f64.ln() + 0.5 * (2.0f64 / 3.0).ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-7);
        assert_eq!(divergence(&p, &p), 0.0);
        // A constant on all logits changes nothing.
        assert!(divergence(&[5.0, 5.0], &[100.0, 100.0]).abs() < 1e-6);
    }

    #[test]
    fn rows_are_added_whatever_the_threads() {
        let exact: Vec<f32> = (0..35u8).map(|at| f32::from(at % 7) * 0.3).collect();
        let other: Vec<f32> = (0..35u8).map(|at| f32::from(at % 5) * 0.3).collect();
        let sums = [1, 2, 8].map(|threads| {
            let mut all = Divergence::default();
            all.add(&exact, &other, 7, threads);
            assert_eq!(all.each.len(), 5);
            (all.mean(), all.same_best)
        });
        assert!(sums[0] == sums[1] && sums[1] == sums[2] && sums[0].0 > 0.0);
        assert_eq!(best(&[1.0, 3.0, 3.0]), Some(1));
    }
}
