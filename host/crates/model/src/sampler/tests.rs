//! The rules of a draw against a plain reference, and the draw from the best few against that from full rows.

use std::sync::Arc;

use engine::is_allowed;

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
fn reference(logits: &[f32], request: &SampleRequest, prompt: &[u32], output: &[u32], bias: &[(u32, f32)]) -> Vec<f64> {
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
    let mut p: Vec<f64> = logits.iter().map(|logit| ((logit - max) / f64::from(request.temperature)).exp()).collect();
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
    for (case, bias) in cases.iter().flat_map(|case| [(case, &[][..]), (case, &[(2u32, 1.0f32), (0, -3.0), (1, 0.5)])])
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

#[test]
fn a_mask_changes_what_is_drawn_and_not_what_is_reported() {
    let logits = [5.0, 4.0, 3.0, 2.0];
    let batch = |words: Option<Vec<u32>>| {
        let mask = TokenMask::default();
        mask.fill(words);
        Batch { masks: vec![Arc::new(mask)], ..Batch::default() }
    };
    let ask = SampleRequest { mask: Some(0), logprobs: Some(2), ..request(0.0, 0, 1.0) };
    let free = sample(&logits, &SampleRequest { mask: None, ..ask.clone() });
    let kept = super::sample(&mut logits.to_vec(), &ask, &batch(Some(vec![0b1100])));
    assert_eq!((free.id, kept.id, &kept.top), (0, 2, &free.top));
    let apart = free.logprob.unwrap() - kept.logprob.unwrap();
    assert!((apart - 2.0).abs() < 1e-6, "the model's own: {apart}");
    for temperature in [0.0, 1.0, 100.0] {
        for logits in [[f32::NAN; 4], [f32::NEG_INFINITY; 4], [f32::INFINITY; 4], [1e38, -1e38, 0.0, f32::NAN]] {
            let ask = SampleRequest { temperature, ..ask.clone() };
            let id = super::sample(&mut logits.to_vec(), &ask, &batch(Some(vec![0b1010]))).id;
            assert!(id == 1 || id == 3, "{id} of {logits:?}");
        }
    }
    // One that cannot be found out draws nothing of use, and does not wait for ever.
    assert_eq!(super::sample(&mut logits.to_vec(), &ask, &batch(None)), SampledToken::default());
}

/// Numbers below `bound`, repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) as usize * bound) >> 31
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn logits(&mut self) -> Vec<f32> {
        let vocabulary = self.of(&[1, 3, 50, 700, 5000]);
        // Of few values they tie.
        let values = self.of(&[3, 40, 1 << 30]);
        let scale = self.of(&[1.0, 8.0, 200.0]);
        let mut logits: Vec<f32> =
            (0..vocabulary).map(|_| (self.below(values) as f32 / values as f32 - 0.5) * scale).collect();
        for _ in 0..self.of(&[0, 0, 0, 5]) {
            let at = self.below(vocabulary);
            logits[at] = self.of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e38]);
        }
        logits
    }

    /// A mask with at least one token: of few, of many, and sometimes shorter than the vocabulary.
    fn words(&mut self, vocabulary: usize) -> Vec<u32> {
        let mut words = vec![0u32; vocabulary.div_ceil(32)];
        words.truncate(self.of(&[1, words.len(), words.len()]));
        let bits = vocabulary.min(words.len() * 32);
        for _ in 0..self.of(&[1, 2, 40, 20_000]) {
            let id = self.below(bits);
            words[id / 32] |= 1 << (id % 32);
        }
        words
    }

    fn request(&mut self) -> SampleRequest {
        SampleRequest {
            temperature: self.of(&[0.0, 0.01, 0.7, 1.0, 1.0, 5.0, 1e-30]),
            top_k: self.of(&[0, 0, 1, 5, 40, 64, 65, 200]),
            top_p: self.of(&[1.0, 1.0, 0.95, 0.5, 0.0]),
            min_p: self.of(&[0.0, 0.0, 0.05, 0.5, 1.0]),
            logprobs: self.of(&[None, None, Some(0), Some(3), Some(20), Some(90)]),
            seed: self.0,
            step: self.below(9) as u32,
            ..SampleRequest::greedy(0)
        }
    }
}

fn bits(token: &SampledToken) -> (u32, Option<u32>, Vec<(u32, u32)>) {
    // One NaN is as good as another.
    let bits = |value: f32| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
    (token.id, token.logprob.map(bits), token.top.iter().map(|(id, logprob)| (*id, bits(*logprob))).collect())
}

#[test]
fn the_sampler_draws_what_the_plain_rules_draw_from_all_logits_and_from_the_best_few() {
    let mut random = Random(1);
    let mut sampler = Sampler::new(Isa::detect());
    let (mut of_best, mut masked) = (0, 0);
    for case in 0..20_000 {
        let (logits, mut request) = (random.logits(), random.request());
        let mut batch = Batch::default();
        if random.below(3) == 0 {
            let id = |random: &mut Random| random.below(logits.len()) as u32;
            let seen: Vec<u32> = (0..random.below(6)).map(|_| id(&mut random)).collect();
            let biases = [(id(&mut random), 2.5), (id(&mut random), -100.0)];
            (request.repetition_penalty, request.presence_penalty) = (1.3, 0.5);
            batch = batch_of(&mut request, &seen, &seen[..seen.len() / 2], &biases);
        }
        let words = random.words(logits.len());
        if random.below(4) == 0 {
            masked += 1;
            request.mask = Some(0);
            batch.masks.push(Arc::new(TokenMask::known(words.clone())));
        }
        let expected = plain::sample(&mut logits.clone(), &request, &batch);
        let found = sampler.sample(&mut logits.clone(), &request, &batch);
        let close = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= 1e-6 * a.abs().max(1.0);
        let same = expected.id == found.id
            && expected.logprob.zip(found.logprob).is_none_or(|(a, b)| close(a, b))
            && expected.logprob.is_some() == found.logprob.is_some()
            && expected.top.len() == found.top.len()
            && expected.top.iter().zip(&found.top).all(|(a, b)| a.0 == b.0 && close(a.1, b.1));
        assert!(same, "case {case}: {expected:?} {found:?} {request:?}");
        assert!(request.mask.is_none() || is_allowed(&words, found.id), "case {case}: {found:?} {request:?}");

        let want = head_want(&request);
        of_best += usize::from(!want.logits);
        let mut top = Vec::new();
        best_of(Isa::plain(), &logits, want.top, &mut top);
        let mut full = logits.clone();
        let row = HeadRow {
            top: &top,
            log_sum_exp: want.log_sum_exp.then(|| TokenWeights::new().log_sum_exp(Isa::plain(), &logits)),
            logits: want.logits.then_some(&mut full),
        };
        let from_head = sampler.sample_head(row, &request, &batch);
        assert_eq!(bits(&from_head), bits(&found), "case {case}: {want:?} {request:?}");
    }
    assert!((3_000..15_000).contains(&of_best) && masked > 4_000, "{of_best} {masked}");
}
