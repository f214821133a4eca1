//! The rules of a draw written down plainly, over all logits and one at a time: what the sampler is compared with.

use std::cmp::Ordering;

use engine::{Batch, SampleRequest, SampledToken, SeenToken, TokenMask, is_allowed};
use kernels::log_sum_exp;

use super::uniform;

/// Draws as the request, one of the batch's, asks. The logits are biased and penalised in place.
pub(crate) fn sample(logits: &mut [f32], request: &SampleRequest, batch: &Batch) -> SampledToken {
    let seen = batch.seen_of(request).unwrap_or_default();
    let biases = batch.biases_of(request).unwrap_or_default();
    let report = request.logprobs.map(|alternatives| Report::of(logits, alternatives, seen, biases));
    let words = batch.mask_of(request).map(|mask| TokenMask::wait(mask).unwrap_or_default());
    let is_masked = |id: u32| words.is_some_and(|words| !is_allowed(words, id));
    (0..).zip(logits.iter_mut()).filter(|(id, _)| is_masked(*id)).for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
    adjust(logits, request, seen, biases);
    let best = (0..)
        .find(|id| !is_masked(*id))
        .filter(|_| logits.iter().all(|logit| logit.is_nan() || *logit == f32::NEG_INFINITY));
    let best = best.unwrap_or_else(|| argmax(logits));
    let max = logits.get(best as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let id = if request.temperature > 0.0 && max.is_finite() { draw(logits, max, request) } else { best };
    debug_assert!(!is_masked(id), "the plain rules keep to the mask");
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
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0));
    if (1..candidates.len()).contains(&count) {
        candidates.select_nth_unstable_by(count, order);
    }
    candidates.truncate(count);
    candidates.sort_unstable_by(order);
}
