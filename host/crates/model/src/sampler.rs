//! Draws a token from a row of logits: the mask, bias and penalties, temperature, min-p, top-k, top-p, the draw. It depends on the
//! request's (seed, step), the logits and the sequence's own tokens alone.
//!
//! Total on purpose: an adapter can drive logits to infinity or NaN, and that must not stop the rows of others.

#[cfg(test)]
mod plain;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use engine::{Batch, SampleRequest, SampledToken, SeenToken, TokenMask};
use kernels::{HEAD_TOP_MAX, HeadRow, HeadWant, Isa, TokenWeights, best_of};
use types::Digest;

/// What a request needs of its row, so that [`Sampler::sample_head`] draws what [`Sampler::sample`] would: the best few where
/// no other token can come into it, all logits otherwise.
pub(crate) fn head_want(request: &SampleRequest) -> HeadWant {
    let alternatives = request.logprobs.unwrap_or(0) as usize;
    let of_draw = match (request.temperature > 0.0, request.top_k as usize) {
        (false, _) => 1,
        (true, 0) => usize::MAX,
        (true, top_k) => top_k,
    };
    let top = of_draw.max(alternatives);
    let is_adjusted = !request.seen.is_empty() || !request.biases.is_empty() || request.mask.is_some();
    if is_adjusted || top > HEAD_TOP_MAX {
        return HeadWant { logits: true, ..HeadWant::default() };
    }
    HeadWant { top, log_sum_exp: request.logprobs.is_some(), logits: false }
}

/// Draws a token for each of the batch's samples from their logits, `[samples, vocabulary]`, which are biased and penalised in
/// place: what every runner must draw from the same logits.
#[must_use]
pub fn draw(logits: &mut [f32], batch: &Batch) -> Vec<SampledToken> {
    let rows = logits.chunks_exact_mut((logits.len() / batch.samples.len().max(1)).max(1));
    rows.zip(&batch.samples).map(|(row, request)| sample(row, request, batch)).collect()
}

/// As [`Sampler::sample`], for who draws seldom.
pub(crate) fn sample(logits: &mut [f32], request: &SampleRequest, batch: &Batch) -> SampledToken {
    Sampler::new(Isa::detect()).sample(logits, request, batch)
}

/// Draws tokens; keeps its memory from row to row.
pub(crate) struct Sampler {
    isa: Isa,
    weights: TokenWeights,
    /// Of the tokens that are left.
    kept: Vec<Kept>,
    /// The logits of `kept`, on their way to become weights.
    logits: Vec<f32>,
    best: Vec<(u32, f32)>,
}

/// A token that may be drawn.
#[derive(Clone, Copy)]
struct Kept {
    id: u32,
    logit: f32,
    weight: f64,
}

impl Sampler {
    pub(crate) fn new(isa: Isa) -> Self {
        Self { isa, weights: TokenWeights::new(), kept: Vec::new(), logits: Vec::new(), best: Vec::new() }
    }

    /// Draws as the request, one of the batch's, asks, from what [`head_want`] said of it.
    pub(crate) fn sample_head(&mut self, row: HeadRow<'_>, request: &SampleRequest, batch: &Batch) -> SampledToken {
        if let Some(logits) = row.logits {
            return self.sample(logits, request, batch);
        }
        let best = row.top.first().copied().filter(|best| best.1 > f32::NEG_INFINITY);
        // As `argmax`: the first token if none is above minus infinity.
        let (mut id, mut logit) = best.unwrap_or((0, f32::NEG_INFINITY));
        if request.temperature > 0.0 && logit.is_finite() {
            let top = row.top.get(..request.top_k as usize).unwrap_or(row.top);
            (id, logit) = self.draw_from_best(top, logit, request).unwrap_or((id, logit));
        }
        let alternatives = request.logprobs.unwrap_or(0) as usize;
        let logprob = |logit: f32| (f64::from(logit) - row.log_sum_exp.unwrap_or(f64::NAN)) as f32;
        SampledToken {
            id,
            logprob: request.logprobs.map(|_| logprob(logit)),
            top: row.top.iter().take(alternatives).map(|(id, logit)| (*id, logprob(*logit))).collect(),
        }
    }

    /// Draws as the request, one of the batch's, asks. The logits are biased and penalised in place.
    pub(crate) fn sample(&mut self, logits: &mut [f32], request: &SampleRequest, batch: &Batch) -> SampledToken {
        let seen = batch.seen_of(request).unwrap_or_default();
        let biases = batch.biases_of(request).unwrap_or_default();
        let report = request.logprobs.map(|alternatives| self.report(logits, alternatives, seen, biases));
        let mask = batch.mask_of(request).map(TokenMask::wait);
        let lowest = match mask {
            None => 0,
            Some(Some(words)) => keep_allowed(logits, words),
            // Of no use to anybody.
            Some(None) => return SampledToken::default(),
        };
        adjust(logits, request, seen, biases);
        let best = self.argmax(logits).unwrap_or(lowest);
        let max = logits.get(best as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let draws = request.temperature > 0.0 && max.is_finite();
        let id = if draws { self.draw(logits, max, request).unwrap_or(best) } else { best };
        match report {
            None => SampledToken { id, logprob: None, top: Vec::new() },
            Some(report) => SampledToken { id, logprob: report.logprob(id, logits), top: report.top },
        }
    }

    /// Temperature first, then min-p, then top-k, then top-p of what is left. `None` if nothing is.
    fn draw(&mut self, logits: &[f32], max: f32, request: &SampleRequest) -> Option<u32> {
        if (1..=HEAD_TOP_MAX).contains(&(request.top_k as usize)) {
            let mut best = std::mem::take(&mut self.best);
            best_of(self.isa, logits, request.top_k as usize, &mut best);
            let drawn = self.draw_from_best(&best, max, request);
            self.best = best;
            return drawn.map(|(id, _)| id);
        }
        self.weights.fill(self.isa, logits, max, request.temperature);
        let uniform = uniform(request.seed, request.step);
        if request.min_p <= 0.0 && request.top_k == 0 && request.top_p >= 1.0 {
            return self.weights.pick(uniform * self.weights.total()).and_then(|id| u32::try_from(id).ok());
        }
        // The likeliest token has weight 1: a weight is its share of that one's probability.
        let min_p = f64::from(request.min_p);
        let likely = |weight: &&f64| **weight >= min_p;
        let mut total = match request.min_p > 0.0 {
            true => self.weights.all().iter().filter(likely).sum(),
            false => self.weights.total(),
        };
        let mut least = min_p;
        if request.top_k == 0 && request.top_p < 1.0 {
            // Tokens this unlikely add up to less than what top-p cuts off, so that they need not be sorted.
            least = least.max(total * (1.0 - f64::from(request.top_p)) / logits.len() as f64);
        }
        let all = (0..).zip(logits.iter().zip(self.weights.all()));
        let left = all.filter(|(_, (logit, weight))| **weight >= least && !logit.is_nan());
        self.kept.clear();
        self.kept.extend(left.map(|(id, (&logit, &weight))| Kept { id, logit, weight }));
        if request.top_k > 0 {
            keep_best(&mut self.kept, request.top_k as usize);
            total = self.kept.iter().map(|kept| kept.weight).sum();
        }
        draw_kept(&mut self.kept, total, request.top_p, uniform).map(|kept| kept.id)
    }

    /// As [`Self::draw`] for a request with top-k, whose best they are, best first.
    fn draw_from_best(&mut self, best: &[(u32, f32)], max: f32, request: &SampleRequest) -> Option<(u32, f32)> {
        self.logits.clear();
        self.logits.extend(best.iter().map(|(_, logit)| *logit));
        self.weights.fill(self.isa, &self.logits, max, request.temperature);
        self.kept.clear();
        let likely = best.iter().zip(self.weights.all()).filter(|(_, weight)| **weight >= f64::from(request.min_p));
        self.kept.extend(likely.map(|(&(id, logit), &weight)| Kept { id, logit, weight }));
        let total = self.kept.iter().map(|kept| kept.weight).sum();
        let drawn = draw_kept(&mut self.kept, total, request.top_p, uniform(request.seed, request.step));
        drawn.map(|kept| (kept.id, kept.logit))
    }

    fn report(&mut self, logits: &[f32], alternatives: u32, seen: &[SeenToken], biases: &[(u32, f32)]) -> Report {
        let normaliser = self.weights.log_sum_exp(self.isa, logits);
        let mut top = Vec::new();
        best_of(self.isa, logits, alternatives as usize, &mut top);
        top.iter_mut().for_each(|(_, logit)| *logit = (f64::from(*logit) - normaliser) as f32);
        let ids = seen.iter().map(|token| token.id).chain(biases.iter().map(|(id, _)| *id));
        let changed = ids.filter_map(|id| Some((id, *logits.get(id as usize)?))).collect();
        Report { normaliser, top, changed }
    }

    /// The highest logit; the lowest id on ties; `None` if none is above minus infinity.
    fn argmax(&mut self, logits: &[f32]) -> Option<u32> {
        best_of(self.isa, logits, 1, &mut self.best);
        self.best.first().filter(|best| best.1 > f32::NEG_INFINITY).map(|best| best.0)
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
    fn logprob(&self, id: u32, adjusted: &[f32]) -> Option<f32> {
        let was = self.changed.iter().find(|(changed, _)| *changed == id).map(|(_, logit)| *logit);
        let logit = was.or_else(|| adjusted.get(id as usize).copied())?;
        Some((f64::from(logit) - self.normaliser) as f32)
    }
}

/// Takes the tokens out that are not in the mask; the first that is, should none be left with a logit.
fn keep_allowed(logits: &mut [f32], words: &[u32]) -> u32 {
    let mut lowest = None;
    let all = words.iter().copied().chain(std::iter::repeat(0));
    for (at, (logits, word)) in (0u32..).step_by(32).zip(logits.chunks_mut(32).zip(all)) {
        if word != 0 {
            lowest.get_or_insert(at + word.trailing_zeros());
        }
        if word == u32::MAX {
            continue;
        }
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    lowest.unwrap_or(0)
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

/// Draws at `uniform`, in 0 .. 1, of the weights' sum, from the tokens that top-p leaves of those whose weights are `total`; the
/// last token with a weight if rounding leaves the sum short of it. Unlikely ones may be missing from `kept` if top-p leaves
/// none of them.
fn draw_kept(kept: &mut Vec<Kept>, mut total: f64, top_p: f32, uniform: f64) -> Option<Kept> {
    if top_p < 1.0 {
        let share = f64::from(top_p);
        let all = kept.len();
        keep_best(kept, all);
        let mut reached = 0.0;
        let within = kept.iter().take_while(|kept| {
            let before = reached;
            reached += kept.weight;
            before < share * total
        });
        let count = within.count().max(1);
        kept.truncate(count);
        total = kept.iter().map(|kept| kept.weight).sum();
    }
    let target = uniform * total;
    let mut reached = 0.0;
    let mut last = None;
    for kept in kept.iter() {
        reached += kept.weight;
        if kept.weight > 0.0 {
            last = Some(*kept);
        }
        if reached > target {
            break;
        }
    }
    last
}

/// The best `count`, best first, the lower id first on ties.
fn keep_best(kept: &mut Vec<Kept>, count: usize) {
    // None is NaN.
    let order = |a: &Kept, b: &Kept| b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id));
    if (1..kept.len()).contains(&count) {
        kept.select_nth_unstable_by(count, order);
    }
    kept.truncate(count);
    kept.sort_unstable_by(order);
}

/// Uniform in 0 .. 1, a function of both numbers.
pub(crate) fn uniform(seed: u64, step: u32) -> f64 {
    let digest = Digest::of_parts("tenon 2026 sampler draw", [&seed.to_le_bytes()[..], &step.to_le_bytes()[..]]);
    let bits = digest.as_bytes().iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
