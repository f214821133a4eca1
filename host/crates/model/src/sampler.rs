//! Draws a token from a row of logits: bias and penalties, temperature, min-p, top-k, top-p, the draw. It depends on the
//! request's (seed, step), the logits and the sequence's own tokens alone.
//!
//! Total on purpose: an adapter can drive logits to infinity or NaN, and that must not stop the rows of others.

use std::cmp::Ordering;

use engine::{Batch, SampleRequest, SampledToken, SeenToken};
use kernels::log_sum_exp;
use types::Digest;

/// Draws as the request, one of the batch's, asks. The logits are biased and penalised in place.
pub(crate) fn sample(logits: &mut [f32], request: &SampleRequest, batch: &Batch) -> SampledToken {
    let seen = batch.seen_of(request).unwrap_or_default();
    let biases = batch.biases_of(request).unwrap_or_default();
    let report = request.logprobs.map(|alternatives| Report::of(logits, alternatives, seen, biases));
    adjust(logits, request, seen, biases);
    let best = argmax(logits);
    let max = logits.get(best as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let id = if request.temperature > 0.0 && max.is_finite() { draw(logits, max, request) } else { best };
    match report {
        None => SampledToken { id, logprob: None, top: Vec::new() },
        Some(report) => SampledToken { id, logprob: report.logprob(id, logits), top: report.top },
    }
}

/// Log-probabilities as the model gives them, before anything that the request asks for.
struct Report {
    normaliser: f64,
    top: Vec<(u32, f32)>,
    /// Logits that are about to be changed.
    changed: Vec<(u32, f32)>,
}

impl Report {
    fn of(logits: &[f32], alternatives: u32, seen: &[SeenToken], biases: &[(u32, f32)]) -> Self {
        let normaliser = log_sum_exp(logits);
        let mut top = Vec::new();
        if alternatives > 0 {
            top = candidates(logits);
            keep_best(&mut top, alternatives as usize);
        }
        top.iter_mut().for_each(|(_, logit)| *logit = (f64::from(*logit) - normaliser) as f32);
        let ids = seen.iter().map(|token| token.id).chain(biases.iter().map(|(id, _)| *id));
        let changed = ids.filter_map(|id| Some((id, *logits.get(id as usize)?))).collect();
        Self { normaliser, top, changed }
    }

    fn logprob(&self, id: u32, adjusted: &[f32]) -> Option<f32> {
        let was = self.changed.iter().find(|(changed, _)| *changed == id).map(|(_, logit)| *logit);
        let logit = was.or_else(|| adjusted.get(id as usize).copied())?;
        Some((f64::from(logit) - self.normaliser) as f32)
    }
}

/// Bias, then the penalties, each token at most once, so that the order of the tokens does not matter.
fn adjust(logits: &mut [f32], request: &SampleRequest, seen: &[SeenToken], biases: &[(u32, f32)]) {
    for (id, bias) in biases {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
    for SeenToken { id, output_count } in seen {
        let Some(logit) = logits.get_mut(*id as usize) else { continue };
        let repetition = request.repetition_penalty;
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        if *output_count > 0 {
            *logit -= request.frequency_penalty * *output_count as f32;
            *logit -= request.presence_penalty;
        }
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

/// Temperature first, then min-p, then top-k, then top-p of what is left.
fn draw(logits: &[f32], max: f32, request: &SampleRequest) -> u32 {
    let weight = |logit: f32| {
        let weight = (f64::from(logit - max) / f64::from(request.temperature)).exp();
        if weight.is_finite() { weight } else { 0.0 }
    };
    let mut kept = candidates(logits);
    if request.min_p > 0.0 {
        // The likeliest token has weight 1: a weight is its share of that one's probability.
        kept.retain(|(_, logit)| weight(*logit) >= f64::from(request.min_p));
    }
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
        SampleRequest { temperature, top_k, top_p, seed: 7, ..SampleRequest::greedy(0) }
    }

    /// Without bias and penalties.
    fn sample(logits: &[f32], request: &SampleRequest) -> SampledToken {
        super::sample(&mut logits.to_vec(), request, &Batch::default())
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

    /// What is drawn from, token by token, in f64 and in the order that is documented: every sum is written out, nothing
    /// is sorted in part or left out.
    fn reference(
        logits: &[f32],
        request: &SampleRequest,
        prompt: &[u32],
        output: &[u32],
        bias: &[(u32, f32)],
    ) -> Vec<f64> {
        let mut logits: Vec<f64> = logits.iter().map(|logit| f64::from(*logit)).collect();
        for (id, bias) in bias {
            logits[*id as usize] += f64::from(*bias);
        }
        for (id, logit) in (0..).zip(&mut logits) {
            let count = output.iter().filter(|token| **token == id).count() as f64;
            if count > 0.0 || prompt.contains(&id) {
                let penalty = f64::from(request.repetition_penalty);
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
            *logit -= count * f64::from(request.frequency_penalty);
            *logit -= count.min(1.0) * f64::from(request.presence_penalty);
        }
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if request.temperature == 0.0 {
            let best = logits.iter().position(|logit| *logit == max);
            return (0..logits.len()).map(|id| f64::from(u8::from(Some(id) == best))).collect();
        }
        let mut p: Vec<f64> =
            logits.iter().map(|logit| ((logit - max) / f64::from(request.temperature)).exp()).collect();
        p.iter_mut().for_each(|p| *p = if *p >= f64::from(request.min_p) { *p } else { 0.0 });
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
        if request.top_k > 0 {
            order.iter().skip(request.top_k as usize).for_each(|id| p[*id] = 0.0);
        }
        let total: f64 = p.iter().sum();
        let mut reached = 0.0;
        for id in order {
            let before = reached;
            reached += p[id];
            if before >= f64::from(request.top_p) * total && request.top_p < 1.0 {
                p[id] = 0.0;
            }
        }
        let total: f64 = p.iter().sum();
        p.iter().map(|p| p / total).collect()
    }

    /// Tokens and how often they are in the output, as the engine tells them.
    fn batch_of(request: &mut SampleRequest, prompt: &[u32], output: &[u32], bias: &[(u32, f32)]) -> Batch {
        let distinct: std::collections::BTreeSet<u32> = prompt.iter().chain(output).copied().collect();
        let count = |id: u32| output.iter().filter(|token| **token == id).count() as u32;
        let seen = distinct.into_iter().map(|id| SeenToken { id, output_count: count(id) });
        // Others' tokens around them: a wrong range shows.
        let other = SeenToken { id: 0, output_count: 9 };
        let mut batch = Batch { seen_tokens: vec![other], logit_biases: vec![(1, 50.0)], ..Batch::default() };
        batch.seen_tokens.extend(seen);
        batch.logit_biases.extend(bias);
        request.seen = 1..batch.seen_tokens.len() as u32;
        request.biases = 1..batch.logit_biases.len() as u32;
        batch.seen_tokens.push(other);
        batch.logit_biases.push((2, 50.0));
        batch
    }

    #[test]
    fn bias_and_penalties_are_as_in_the_reference() {
        let logits = [2.0f32, 1.5, 1.0, 0.5, 0.25, -0.5, -1.0, 1.75];
        let (prompt, output) = ([0u32, 5, 0], [1u32, 7, 1, 6, 1]);
        let neutral = request(1.0, 0, 1.0);
        let cases = [
            SampleRequest { repetition_penalty: 1.8, ..neutral.clone() },
            SampleRequest { repetition_penalty: 0.5, ..neutral.clone() },
            SampleRequest { presence_penalty: 1.1, ..neutral.clone() },
            SampleRequest { frequency_penalty: 0.4, ..neutral.clone() },
            SampleRequest { frequency_penalty: -0.4, presence_penalty: -0.3, ..neutral.clone() },
            SampleRequest { min_p: 0.3, ..neutral.clone() },
            SampleRequest { min_p: 0.3, temperature: 3.0, ..neutral.clone() },
            SampleRequest {
                repetition_penalty: 1.3,
                presence_penalty: 0.5,
                frequency_penalty: 0.2,
                min_p: 0.1,
                top_k: 6,
                top_p: 0.8,
                temperature: 0.7,
                ..neutral
            },
        ];
        for (case, bias) in
            cases.iter().flat_map(|case| [(case, &[][..]), (case, &[(2u32, 1.0f32), (0, -3.0), (1, 0.5)])])
        {
            for temperature in [case.temperature, 0.0] {
                let mut request = SampleRequest { temperature, ..case.clone() };
                let expected = reference(&logits, &request, &prompt, &output, bias);
                let batch = batch_of(&mut request, &prompt, &output, bias);
                let draws = if temperature > 0.0 { 20_000 } else { 1 };
                let mut seen = [0.0; 8];
                for step in 0..draws {
                    let request = SampleRequest { step, ..request.clone() };
                    let id = super::sample(&mut logits.to_vec(), &request, &batch).id;
                    seen[id as usize] += 1.0 / f64::from(draws);
                }
                for (id, (seen, expected)) in seen.iter().zip(&expected).enumerate() {
                    // Four standard deviations; what is cut off is never drawn.
                    let bound = 4.0 * (expected * (1.0 - expected) / f64::from(draws)).sqrt();
                    assert!((seen - expected).abs() <= bound, "{id}: {seen} {expected} {bias:?} {request:?}");
                }
            }
        }
    }

    #[test]
    fn logprobs_are_the_models_own_whatever_is_asked() {
        let logits = [0.1f64, 0.5, 0.25, 0.15].map(|p| p.ln() as f32 + 20.0);
        let mut request = SampleRequest { presence_penalty: 2.0, logprobs: Some(2), ..SampleRequest::greedy(0) };
        let batch = batch_of(&mut request, &[], &[1], &[(3, 5.0)]);
        let token = super::sample(&mut logits.to_vec(), &request, &batch);
        assert_eq!(token.id, 3, "the bias lifts it over the rest");
        assert!((token.logprob.unwrap() - 0.15f32.ln()).abs() < 1e-5, "{token:?}");
        assert_eq!(token.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
        assert!((token.top[0].1 - 0.5f32.ln()).abs() < 1e-5, "{token:?}");
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
    fn top_k_top_p_and_min_p_cut_exactly() {
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
        let min_p = |min_p, temperature| support(SampleRequest { min_p, ..request(temperature, 0, 1.0) });
        assert_eq!(min_p(0.19, 1.0), [0, 1, 2, 3]);
        assert_eq!(min_p(0.21, 1.0), [1, 2, 3]);
        assert_eq!(min_p(0.49, 1.0), [1, 2]);
        assert_eq!(min_p(1.0, 1.0), [1]);
        // After temperature: 0.1 ^ 0.5 is 0.45 of 0.5 ^ 0.5.
        assert_eq!(min_p(0.4, 2.0), [0, 1, 2, 3]);
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
                assert!(sample(&logits, &SampleRequest { logprobs: Some(3), ..request.clone() }).id < 3);
                let mut request = SampleRequest { repetition_penalty: 1e-30, min_p: 0.5, logprobs: Some(3), ..request };
                let batch = batch_of(&mut request, &[0, 1], &[2], &[(0, 100.0)]);
                assert!(super::sample(&mut logits.to_vec(), &request, &batch).id < 3);
            }
        }
    }
}
