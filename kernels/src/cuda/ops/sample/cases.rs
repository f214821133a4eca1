//! Cases of sampling: many requests of all kinds over one vocabulary, drawn at once, compared with the plain rules.

use super::{
    SAMPLE_NO_LOGPROBS, Sample, SampleArgs, SampleBias, SampleParams, SampleSeen, Sampled, SampledRow, sample,
};
use crate::cuda::selftest::{Buffers, Case, Random};
use crate::cuda::{CudaError, Device};

/// Of a log-probability: f32 rounds it, f64 has computed it.
const TOLERANCE: f64 = 1e-5;
/// A draw nearer to a boundary, as a share of all weights, may fall on either side: f64 against whole numbers.
const MARGIN: f64 = 1e-9;
const ALTERNATIVES_MAX: usize = 6;

#[derive(Clone, Copy)]
enum Logits {
    Normal,
    /// Many are equal, in steps of 1/4.
    Ties,
    /// All are equal.
    Flat,
    /// NaN and infinities among them.
    Hostile,
}

pub(crate) fn cases() -> Vec<Case> {
    let shapes = [
        ("one token", 1, Logits::Normal, 4),
        ("small", 37, Logits::Normal, 24),
        ("ties", 700, Logits::Ties, 16),
        ("flat", 2100, Logits::Flat, 6),
        ("large", 5000, Logits::Normal, 12),
        ("hostile", 300, Logits::Hostile, 24),
        ("nothing", 50, Logits::Normal, 0),
    ];
    let case = |(name, vocabulary, logits, samples)| {
        let name = format!("{name}: {samples} x {vocabulary}");
        Case::new("sample", name, TOLERANCE, move |device, seed| run(device, seed, vocabulary, logits, samples))
    };
    shapes.into_iter().map(case).collect()
}

/// The requests of one launch and what they point into.
#[derive(Default)]
struct Requests {
    params: Vec<SampleParams>,
    seen: Vec<SampleSeen>,
    biases: Vec<SampleBias>,
    masks: Vec<u32>,
}

impl Requests {
    fn add(&mut self, random: &mut Random, vocabulary: usize) {
        let pick = |random: &mut Random, of: &[f32]| of[random.below(of.len())];
        let mut params = SampleParams {
            temperature: pick(random, &[0.0, 0.3, 1.0, 1.0, 5.0, 1e-40, 1e30]),
            top_k: [0, 0, 1, 2, 7, 300][random.below(6)],
            top_p: pick(random, &[1.0, 1.0, 0.9, 0.5, 0.999, 1e-6]),
            min_p: pick(random, &[0.0, 0.0, 0.05, 1.0]),
            alternatives: [SAMPLE_NO_LOGPROBS, SAMPLE_NO_LOGPROBS, 0, 1, 3, 6][random.below(6)],
            uniform: [random.unit(), random.unit(), 0.0, 1.0 - f64::EPSILON / 2.0][random.below(4)],
            ..SampleParams::GREEDY
        };
        if random.below(2) == 0 {
            params.seen_begin = self.seen.len() as u32;
            let step = 1 + random.below(5);
            let ids = (0..vocabulary + step).step_by(step).filter(|_| random.below(2) == 0).map(|id| id as u32);
            let ids: Vec<u32> = ids.collect();
            self.seen.extend(ids.iter().map(|id| SampleSeen { id: *id, output_count: random.below(3) as u32 }));
            params.seen_end = self.seen.len() as u32;
            params.repetition = pick(random, &[1.0, 1.3, 0.8]);
            params.frequency = pick(random, &[0.0, 0.25, -0.5]);
            params.presence = pick(random, &[0.0, 0.5]);
        }
        if random.below(2) == 0 {
            params.bias_begin = self.biases.len() as u32;
            let ids = (0..vocabulary + 3).step_by(3);
            self.biases.extend(ids.map(|id| SampleBias { id: id as u32, bias: random.normal(3.0) }));
            params.bias_end = self.biases.len() as u32;
        }
        if random.below(3) == 0 {
            params.mask_begin = self.masks.len() as u32;
            // Shorter than the vocabulary, sparse, or with nothing in it.
            params.mask_words = vocabulary.div_ceil(32) as u32 - u32::from(vocabulary > 64 && random.below(2) == 0);
            let density = random.below(3);
            let word = |random: &mut Random| match density {
                0 => random.bits() as u32,
                1 => (random.bits() & random.bits() & random.bits() & random.bits()) as u32,
                _ => 0,
            };
            self.masks.extend((0..params.mask_words).map(|_| word(random)));
        }
        self.params.push(params);
    }
}

fn logits_of(random: &mut Random, vocabulary: usize, kind: Logits) -> Vec<f32> {
    let mut logits = random.normals(vocabulary, 4.0);
    match kind {
        Logits::Normal => {}
        Logits::Ties => logits.iter_mut().for_each(|logit| *logit = (*logit * 4.0).round() / 4.0),
        Logits::Flat => logits.fill(-1.5),
        Logits::Hostile => {
            let values = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 3e38, -3e38, -0.0, 0.0];
            let kinds = 1 + random.below(values.len());
            let all_bad = random.below(4) == 0;
            for logit in &mut logits {
                if all_bad || random.below(8) == 0 {
                    *logit = values[random.below(if all_bad { kinds.min(2) } else { kinds })];
                }
            }
        }
    }
    logits
}

fn run(device: &Device, seed: u64, vocabulary: usize, kind: Logits, samples: usize) -> Result<f64, CudaError> {
    let (op, mut random, mut buffers) = (Sample::load(device)?, Random::new(seed), Buffers::new(device));
    let mut requests = Requests::default();
    let mut logits = Vec::new();
    for _ in 0..samples {
        requests.add(&mut random, vocabulary);
        logits.extend(logits_of(&mut random, vocabulary, kind));
    }
    let samples_max = samples + 2;
    let args = SampleArgs {
        logits: buffers.with_room(&logits, samples_max * vocabulary)?,
        params: buffers.with_room(&requests.params, samples_max)?,
        seen: buffers.with(&requests.seen)?,
        biases: buffers.with(&requests.biases)?,
        masks: buffers.with(&requests.masks)?,
        raw: buffers.empty::<f32>(requests.seen.len() + requests.biases.len())?,
        out: buffers.empty::<SampledRow>(samples_max)?,
        top_ids: buffers.empty::<u32>(samples_max * ALTERNATIVES_MAX)?,
        top_logprobs: buffers.empty::<f32>(samples_max * ALTERNATIVES_MAX)?,
        samples: buffers.with(&[samples as u32])?,
        samples_max: samples_max as u32,
        vocabulary: vocabulary as u32,
        alternatives_max: ALTERNATIVES_MAX as u32,
    };
    op.launch(device.compute(), &args)?;
    let out: Vec<SampledRow> = buffers.read(args.out, samples_max)?;
    let top_ids: Vec<u32> = buffers.read(args.top_ids, samples_max * ALTERNATIVES_MAX)?;
    let top_logprobs: Vec<f32> = buffers.read(args.top_logprobs, samples_max * ALTERNATIVES_MAX)?;
    let mut error = 0.0f64;
    for (row, params) in requests.params.iter().enumerate() {
        let logits = &logits[row * vocabulary..][..vocabulary];
        let want = sample(logits, params, &requests.seen, &requests.biases, &requests.masks);
        let part = row * ALTERNATIVES_MAX..(row + 1) * ALTERNATIVES_MAX;
        let tops = (&top_ids[part.clone()], &top_logprobs[part]);
        error = error.max(difference(out[row], tops, &want, params));
    }
    // Rows past the last are not written.
    let is_untouched = out[samples..].iter().all(|row| row.id == u32::MAX);
    Ok(if is_untouched { error } else { f64::INFINITY })
}

fn difference(got: SampledRow, tops: (&[u32], &[f32]), want: &Sampled, params: &SampleParams) -> f64 {
    if got.id != want.id && want.margin > MARGIN {
        return f64::INFINITY;
    }
    let close = |got: f32, want: f32| {
        let (got, want) = (f64::from(got), f64::from(want));
        if got == want || got.is_nan() && want.is_nan() { 0.0 } else { (got - want).abs() / want.abs().max(1.0) }
    };
    let mut error = 0.0f64;
    let mut add = |part: f64| error = if part.is_nan() { f64::INFINITY } else { error.max(part) };
    if let Some(logprob) = want.logprob.filter(|_| got.id == want.id) {
        add(close(got.logprob, logprob));
    }
    if params.alternatives != SAMPLE_NO_LOGPROBS {
        for at in 0..params.alternatives as usize {
            match want.top.get(at) {
                Some((id, logprob)) if *id == tops.0[at] => add(close(tops.1[at], *logprob)),
                None if tops.0[at] == u32::MAX => {}
                _ => return f64::INFINITY,
            }
        }
    }
    error
}
