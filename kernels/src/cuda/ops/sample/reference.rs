//! The rules of a draw written down plainly, in f64 and one token at a time, as `plain.rs` of the sampler on the CPU states
//! them.

use std::cmp::Ordering;

use super::{SAMPLE_NO_LOGPROBS, SAMPLE_NO_MASK, SampleBias, SampleParams, SampleSeen};

/// What is drawn and reported of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its log-probability, if asked.
    pub logprob: Option<f32>,
    /// The most likely tokens with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
    /// How far, as a share of all that may be drawn, the draw was from falling on another token.
    pub margin: f64,
}

/// Draws as `params` ask. The ranges in them are of `seen`, `biases` and `masks`.
#[must_use]
pub fn sample(
    logits: &[f32],
    params: &SampleParams,
    seen: &[SampleSeen],
    biases: &[SampleBias],
    masks: &[u32],
) -> Sampled {
    let seen = &seen[params.seen_begin as usize..params.seen_end as usize];
    let biases = &biases[params.bias_begin as usize..params.bias_end as usize];
    let has_logprobs = params.alternatives != SAMPLE_NO_LOGPROBS;
    let mut sampled = Sampled { margin: 1.0, ..Sampled::default() };
    let normaliser = log_sum_exp(logits);
    if has_logprobs {
        let mut top = candidates(logits);
        keep_best(&mut top, params.alternatives as usize);
        sampled.top = top.iter().map(|(id, logit)| (*id, (f64::from(*logit) - normaliser) as f32)).collect();
    }
    let is_masked = |id: usize| {
        let word = |words: &[u32]| words.get(id / 32).copied().unwrap_or(0);
        params.mask_begin != SAMPLE_NO_MASK
            && word(&masks[params.mask_begin as usize..][..params.mask_words as usize]) >> (id % 32) & 1 == 0
    };
    let mut changed = logits.to_vec();
    (0..logits.len()).filter(|id| is_masked(*id)).for_each(|id| changed[id] = f32::NEG_INFINITY);
    adjust(&mut changed, params, seen, biases);
    let lowest = (0..logits.len()).find(|id| !is_masked(*id)).unwrap_or(0) as u32;
    let best = argmax(&changed).unwrap_or(lowest);
    let max = changed[best as usize];
    sampled.id = best;
    if params.temperature > 0.0 && max.is_finite() {
        (sampled.id, sampled.margin) = draw(&changed, max, params).unwrap_or((best, 1.0));
    }
    let is_listed = seen.iter().any(|token| token.id == sampled.id) || biases.iter().any(|bias| bias.id == sampled.id);
    let logit = if is_listed { logits[sampled.id as usize] } else { changed[sampled.id as usize] };
    sampled.logprob = has_logprobs.then(|| (f64::from(logit) - normaliser) as f32);
    sampled
}

fn adjust(logits: &mut [f32], params: &SampleParams, seen: &[SampleSeen], biases: &[SampleBias]) {
    for SampleBias { id, bias } in biases {
        if let Some(logit) = logits.get_mut(*id as usize) {
            *logit += bias;
        }
    }
    for SampleSeen { id, output_count } in seen {
        let Some(logit) = logits.get_mut(*id as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / params.repetition } else { *logit * params.repetition };
        if *output_count > 0 {
            *logit -= params.frequency * *output_count as f32;
            *logit -= params.presence;
        }
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - f64::from(max)).exp()).sum();
    if max.is_finite() { f64::from(max) + sum.ln() } else { f64::NAN }
}

fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = candidates(logits);
    keep_best(&mut best, 1);
    best.first().filter(|best| best.1 > f32::NEG_INFINITY).map(|best| best.0)
}

/// Temperature first, then min-p, then top-k, then top-p of what is left.
fn draw(logits: &[f32], max: f32, params: &SampleParams) -> Option<(u32, f64)> {
    let weight = |logit: f32| {
        let weight = (f64::from(logit - max) * (1.0 / f64::from(params.temperature))).exp();
        if weight.is_finite() { weight } else { 0.0 }
    };
    let mut kept = candidates(logits);
    kept.retain(|(_, logit)| weight(*logit) >= f64::from(params.min_p));
    if params.top_k > 0 {
        keep_best(&mut kept, params.top_k as usize);
    }
    let total = |kept: &[(u32, f32)]| kept.iter().map(|(_, logit)| weight(*logit)).sum::<f64>();
    let mut margin = 1.0f64;
    if params.top_p < 1.0 {
        let target = f64::from(params.top_p) * total(&kept);
        let all = kept.len();
        keep_best(&mut kept, all);
        let mut reached = 0.0;
        let mut count = 0;
        for (_, logit) in &kept {
            // A boundary that is met exactly, by weights that are equal, is met exactly on the device.
            let distance: f64 = (reached - target).abs() / target;
            margin = if distance == 0.0 { margin } else { margin.min(distance) };
            if reached >= target {
                break;
            }
            reached += weight(*logit);
            count += 1;
        }
        kept.truncate(count.max(1));
    }
    let total = total(&kept);
    let target = params.uniform * total;
    let mut reached = 0.0;
    let mut last = None;
    for (id, logit) in kept {
        let weight = weight(logit);
        reached += weight;
        let distance: f64 = (reached - target).abs() / total;
        margin = if distance == 0.0 { margin } else { margin.min(distance) };
        if weight > 0.0 {
            last = Some(id);
        }
        if reached > target {
            break;
        }
    }
    last.map(|id| (id, margin))
}

fn candidates(logits: &[f32]) -> Vec<(u32, f32)> {
    (0..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan()).collect()
}

/// The best `count`, best first, the lower id first on ties.
fn keep_best(candidates: &mut Vec<(u32, f32)>, count: usize) {
    candidates.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0)));
    candidates.truncate(count);
}
