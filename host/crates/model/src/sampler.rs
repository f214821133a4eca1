//! Draws a token from a row of logits. The draw depends on the request's (seed, step) and the logits alone.
//!
//! Total on purpose: an adapter can drive logits to infinity or NaN, and that must not stop the rows of others.

use std::cmp::Ordering;

use engine::{SampleRequest, SampledToken};
use kernels::log_sum_exp;
use types::Digest;

/// Draws as the request asks.
pub(crate) fn sample(logits: &[f32], request: &SampleRequest) -> SampledToken {
    let best = argmax(logits);
    let max = logits.get(best as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let id = if request.temperature > 0.0 && max.is_finite() { draw(logits, max, request) } else { best };
    let Some(alternatives) = request.logprobs else {
        return SampledToken { id, logprob: None, top: Vec::new() };
    };
    let normaliser = log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - normaliser) as f32;
    let mut top = candidates(logits);
    keep_best(&mut top, alternatives as usize);
    SampledToken {
        id,
        logprob: logits.get(id as usize).map(|logit| logprob(*logit)),
        top: top.into_iter().map(|(id, logit)| (id, logprob(logit))).collect(),
    }
}

/// The highest logit; the lowest id on ties; 0 if none is a number.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (id, *logit);
        }
    }
    best.0
}

/// Temperature first, then top-k, then top-p of what is left.
fn draw(logits: &[f32], max: f32, request: &SampleRequest) -> u32 {
    let weight = |logit: f32| {
        let weight = (f64::from(logit - max) / f64::from(request.temperature)).exp();
        if weight.is_finite() { weight } else { 0.0 }
    };
    let mut kept = candidates(logits);
    if request.top_k > 0 {
        keep_best(&mut kept, request.top_k as usize);
    }
    let mut total: f64 = kept.iter().map(|(_, logit)| weight(*logit)).sum();
    if request.top_p < 1.0 {
        let share = f64::from(request.top_p);
        // Tokens this unlikely add up to less than what top-p cuts off, so that they need not be sorted.
        let least = total * (1.0 - share) / kept.len() as f64;
        kept.retain(|(_, logit)| weight(*logit) >= least);
        let all = kept.len();
        keep_best(&mut kept, all);
        let mut reached = 0.0;
        let within = kept.iter().take_while(|(_, logit)| {
            let before = reached;
            reached += weight(*logit);
            before < share * total
        });
        let count = within.count().max(1);
        kept.truncate(count);
        total = kept.iter().map(|(_, logit)| weight(*logit)).sum();
    }
    let target = uniform(request.seed, request.step) * total;
    let mut reached = 0.0;
    let mut last = None;
    for (id, logit) in kept {
        let weight = weight(logit);
        reached += weight;
        if weight > 0.0 {
            last = Some(id);
        }
        if reached > target {
            break;
        }
    }
    last.unwrap_or_else(|| argmax(logits))
}

fn candidates(logits: &[f32]) -> Vec<(u32, f32)> {
    (0..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan()).collect()
}

/// The best `count`, best first, the lower id first on ties.
fn keep_best(candidates: &mut Vec<(u32, f32)>, count: usize) {
    let order = |a: &(u32, f32), b: &(u32, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    if (1..candidates.len()).contains(&count) {
        candidates.select_nth_unstable_by(count, order);
    }
    candidates.truncate(count);
    candidates.sort_unstable_by(order);
}

/// Uniform in 0 .. 1, a function of both numbers.
fn uniform(seed: u64, step: u32) -> f64 {
    let digest = Digest::of_parts("tenon 2026 sampler draw", [&seed.to_le_bytes()[..], &step.to_le_bytes()[..]]);
    let bits = digest.as_bytes().iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(temperature: f32, top_k: u32, top_p: f32) -> SampleRequest {
        SampleRequest { row: 0, temperature, top_k, top_p, seed: 7, step: 0, logprobs: None }
    }

    fn counts(logits: &[f32], request: &SampleRequest, draws: u32) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for step in 0..draws {
            let token = sample(logits, &SampleRequest { step, ..request.clone() });
            counts[token.id as usize] += 1.0 / f64::from(draws);
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_id_on_ties() {
        assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], &request(0.0, 0, 1.0)).id, 1);
        assert_eq!(sample(&[f32::NAN, -1.0, f32::NAN], &request(0.0, 0, 1.0)).id, 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let probabilities = [0.5f64, 0.25, 0.15, 0.1];
        let logits = probabilities.map(|p| p.ln() as f32 + 3.0);
        for (temperature, power) in [(1.0, 1.0), (0.5, 2.0), (2.0, 0.5)] {
            let total: f64 = probabilities.iter().map(|p| p.powf(power)).sum();
            let seen = counts(&logits, &request(temperature, 0, 1.0), 20_000);
            for (seen, p) in seen.iter().zip(probabilities) {
                let expected = p.powf(power) / total;
                // Four standard deviations.
                let bound = 4.0 * (expected * (1.0 - expected) / 20_000.0).sqrt();
                assert!((seen - expected).abs() < bound, "{seen} {expected} at {temperature}");
            }
        }
    }

    #[test]
    fn top_k_and_top_p_cut_exactly() {
        let logits = [0.1f64, 0.5, 0.25, 0.15].map(|p| p.ln() as f32);
        let support = |request| -> Vec<usize> {
            let counts = counts(&logits, &request, 4000);
            (0..4).filter(|id| counts[*id] > 0.0).collect()
        };
        assert_eq!(support(request(1.0, 1, 1.0)), [1]);
        assert_eq!(support(request(1.0, 2, 1.0)), [1, 2]);
        assert_eq!(support(request(1.0, 9, 1.0)), [0, 1, 2, 3]);
        assert_eq!(support(request(1.0, 0, 0.49)), [1]);
        assert_eq!(support(request(1.0, 0, 0.7)), [1, 2]);
        assert_eq!(support(request(1.0, 0, 0.76)), [1, 2, 3]);
        assert_eq!(support(request(1.0, 0, 0.0)), [1]);
        // Of the best two, the first has two thirds.
        assert_eq!(support(request(1.0, 2, 0.6)), [1]);
    }

    #[test]
    fn a_draw_is_a_function_of_seed_and_step() {
        let logits: Vec<f32> = (0..1000).map(|i| (i % 13) as f32 * 0.1).collect();
        let draw = |seed, step| sample(&logits, &SampleRequest { seed, step, ..request(1.0, 0, 0.9) }).id;
        assert_eq!(draw(1, 2), draw(1, 2));
        let distinct: std::collections::HashSet<u32> = (0..50).map(|step| draw(1, step)).collect();
        assert!(distinct.len() > 30);
        assert!((0..20).any(|step| draw(1, step) != draw(2, step)));
    }

    #[test]
    fn logprobs_are_of_the_full_softmax() {
        let logits = [0.1f64, 0.5, 0.25, 0.15].map(|p| p.ln() as f32 + 20.0);
        let token = sample(&logits, &SampleRequest { logprobs: Some(2), ..request(0.1, 1, 1.0) });
        assert_eq!(token.id, 1);
        assert!((token.logprob.unwrap() - 0.5f32.ln()).abs() < 1e-5);
        assert_eq!(token.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
        assert!((token.top[1].1 - 0.25f32.ln()).abs() < 1e-5);
        assert!(sample(&logits, &SampleRequest { logprobs: Some(0), ..request(0.0, 0, 1.0) }).top.is_empty());
    }

    #[test]
    fn broken_logits_still_give_a_token() {
        for logits in [[f32::NAN; 3], [f32::INFINITY; 3], [f32::NEG_INFINITY; 3], [1.0, f32::INFINITY, f32::NAN]] {
            for request in [request(0.0, 0, 1.0), request(1.0, 0, 0.5), request(1e-30, 2, 1.0)] {
                assert!(sample(&logits, &SampleRequest { logprobs: Some(3), ..request }).id < 3);
            }
        }
    }
}
