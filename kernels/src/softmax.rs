//! Softmax and its normaliser.

/// Replaces values by their softmax.
pub fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f32;
    for value in values.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    let factor = 1.0 / sum;
    values.iter_mut().for_each(|value| *value *= factor);
}

/// ln Σ exp(value), in f64: value minus this is the value's log-probability.
#[must_use]
pub fn log_sum_exp(values: &[f32]) -> f64 {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = values.iter().map(|value| f64::from(value - max).exp()).sum();
    f64::from(max) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_agree_and_do_not_overflow() {
        let logits = [1000.0f32, 999.0, 990.0];
        let mut probabilities = logits;
        softmax(&mut probabilities);
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let normaliser = log_sum_exp(&logits);
        for (logit, probability) in logits.iter().zip(probabilities) {
            assert!(((f64::from(*logit) - normaliser).exp() - f64::from(probability)).abs() < 1e-6);
        }
    }
}
