//! What the sampling kernel is told of each draw, and what it answers. Written once the masks of a step are known, which may
//! be while the step runs. Not here: the rules of a draw (`sampler.rs` and the kernel).

use std::ops::Range;

use engine::{Batch, SampleRequest, SampledToken, TokenMask};

use crate::sampler::uniform;

/// Words of `SampleParams`.
const PARAMS_WORDS: usize = 16;
/// Words of `SampledRow`.
pub(super) const ANSWER_WORDS: usize = 2;
/// Tables begin at a multiple of so many words.
const ALIGN_WORDS: usize = 4;
/// In place of a number of alternatives and of a mask: none is asked for.
const NONE: u32 = u32::MAX;

/// Room for one launch of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DrawLimits {
    pub(super) samples: usize,
    /// Tokens that penalties fall on, and as many that are biased: those of one sample fit.
    pub(super) adjusted: usize,
    /// Words of a mask over the vocabulary.
    pub(super) mask_words: usize,
    /// Alternatives of all samples, each counted as the one that asks for most.
    pub(super) alternatives: usize,
}

impl DrawLimits {
    /// Words of all tables together.
    pub(super) fn words(&self) -> usize {
        let aligned = |words: usize| words.next_multiple_of(ALIGN_WORDS);
        ALIGN_WORDS
            + aligned(self.samples * PARAMS_WORDS)
            + 2 * aligned(2 * self.adjusted)
            + aligned(self.samples * self.mask_words)
    }

    /// Words of the answers.
    pub(super) fn answer_words(&self) -> usize {
        (self.samples * ANSWER_WORDS).next_multiple_of(ALIGN_WORDS)
            + 2 * self.alternatives.next_multiple_of(ALIGN_WORDS)
    }
}

/// One launch: which samples, and where their tables lie, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Draw {
    pub(super) samples: Range<usize>,
    pub(super) params: Range<usize>,
    pub(super) seen: Range<usize>,
    pub(super) biases: Range<usize>,
    pub(super) masks: Range<usize>,
    /// Of each sample.
    pub(super) alternatives: usize,
}

impl Draw {
    /// The samples that are drawn in one launch, `first` and those after it, before `end`. `None` if the first alone asks for
    /// too much.
    pub(super) fn of(batch: &Batch, first: usize, end: usize, limits: &DrawLimits) -> Option<Self> {
        let mut draw = Self { samples: first..first, ..Self::default() };
        let (mut seen, mut biases) = (0, 0);
        for request in batch.samples.get(first..end)?.iter().take(limits.samples) {
            seen += request.seen.len();
            biases += request.biases.len();
            let alternatives = draw.alternatives.max(request.logprobs.unwrap_or(0) as usize);
            let count = draw.samples.len() + 1;
            if seen.max(biases) > limits.adjusted || alternatives.checked_mul(count)? > limits.alternatives {
                break;
            }
            draw.alternatives = alternatives;
            draw.samples.end += 1;
        }
        (!draw.samples.is_empty()).then_some(draw)
    }

    /// Writes the tables, waiting for masks; how many words. The count of samples is the first.
    pub(super) fn write(&mut self, batch: &Batch, limits: &DrawLimits, words: &mut [u32]) -> Option<usize> {
        let requests = batch.samples.get(self.samples.clone())?;
        let mut end = 0;
        let mut take = |count: usize| {
            let range = end..end + count;
            end = range.end.next_multiple_of(ALIGN_WORDS);
            range
        };
        let count = take(1);
        self.params = take(requests.len() * PARAMS_WORDS);
        self.seen = take(2 * requests.iter().map(|request| request.seen.len()).sum::<usize>());
        self.biases = take(2 * requests.iter().map(|request| request.biases.len()).sum::<usize>());
        let masked = requests.iter().filter(|request| request.mask.is_some()).count();
        self.masks = take(masked * limits.mask_words);
        *words.get_mut(count.start)? = u32::try_from(requests.len()).ok()?;
        let (mut seen_at, mut bias_at, mut mask_at) = (0, 0, 0);
        for (place, request) in requests.iter().enumerate() {
            let seen = batch.seen_of(request).unwrap_or_default();
            let biases = batch.biases_of(request).unwrap_or_default();
            let to = words.get_mut(self.seen.clone())?.get_mut(2 * seen_at..2 * (seen_at + seen.len()))?;
            for (place, token) in to.as_chunks_mut::<2>().0.iter_mut().zip(seen) {
                *place = [token.id, token.output_count];
            }
            let to = words.get_mut(self.biases.clone())?.get_mut(2 * bias_at..2 * (bias_at + biases.len()))?;
            for (place, (id, bias)) in to.as_chunks_mut::<2>().0.iter_mut().zip(biases) {
                *place = [*id, bias.to_bits()];
            }
            let mask = match batch.mask_of(request) {
                None => [NONE, 0],
                Some(mask) => {
                    // One that cannot be found out allows nothing; what is drawn is not used then.
                    let found = TokenMask::wait(mask).unwrap_or_default();
                    let found = found.get(..limits.mask_words).unwrap_or(found);
                    let to = words.get_mut(self.masks.clone())?.get_mut(mask_at..mask_at + found.len())?;
                    to.copy_from_slice(found);
                    let begin = u32::try_from(mask_at).ok()?;
                    mask_at += found.len();
                    [begin, u32::try_from(found.len()).ok()?]
                }
            };
            let ranges = [seen_at, seen_at + seen.len(), bias_at, bias_at + biases.len()];
            let to = words.get_mut(self.params.clone())?.get_mut(place * PARAMS_WORDS..)?;
            to.first_chunk_mut::<PARAMS_WORDS>()?.copy_from_slice(&params(request, ranges, mask));
            (seen_at, bias_at) = (seen_at + seen.len(), bias_at + biases.len());
        }
        Some(self.masks.end)
    }

    /// Where the answers lie: a word for each id and log-probability, then the alternatives' ids, then theirs.
    pub(super) fn answers(&self) -> [Range<usize>; 3] {
        let rows = 0..self.samples.len() * ANSWER_WORDS;
        let tops = self.samples.len() * self.alternatives;
        let ids = rows.end.next_multiple_of(ALIGN_WORDS);
        let ids = ids..ids + tops;
        let logprobs = ids.end.next_multiple_of(ALIGN_WORDS);
        [rows, ids, logprobs..logprobs + tops]
    }

    /// Takes the answers apart.
    pub(super) fn read(&self, batch: &Batch, words: &[u32], sampled: &mut Vec<SampledToken>) -> Option<()> {
        let [rows, ids, logprobs] = self.answers().map(|range| words.get(range));
        let (ids, logprobs) = (ids?, logprobs?);
        let requests = batch.samples.get(self.samples.clone())?;
        for (place, (request, answer)) in requests.iter().zip(rows?.as_chunks::<ANSWER_WORDS>().0).enumerate() {
            let [id, logprob] = *answer;
            let own = place * self.alternatives..place * self.alternatives + request.logprobs.unwrap_or(0) as usize;
            let tops = ids.get(own.clone())?.iter().zip(logprobs.get(own)?);
            sampled.push(SampledToken {
                id,
                logprob: request.logprobs.map(|_| f32::from_bits(logprob)),
                top: tops.filter(|(id, _)| **id != NONE).map(|(id, bits)| (*id, f32::from_bits(*bits))).collect(),
            });
        }
        Some(())
    }
}

fn params(request: &SampleRequest, ranges: [usize; 4], [mask_begin, mask_words]: [u32; 2]) -> [u32; PARAMS_WORDS] {
    let [seen_begin, seen_end, bias_begin, bias_end] = ranges.map(|at| u32::try_from(at).unwrap_or(NONE));
    let uniform = uniform(request.seed, request.step).to_bits();
    [
        request.temperature.to_bits(),
        request.top_k,
        request.top_p.to_bits(),
        request.min_p.to_bits(),
        request.repetition_penalty.to_bits(),
        request.presence_penalty.to_bits(),
        request.frequency_penalty.to_bits(),
        request.logprobs.unwrap_or(NONE),
        seen_begin,
        seen_end,
        bias_begin,
        bias_end,
        mask_begin,
        mask_words,
        // Little-endian, as every device that this runs beside.
        (uniform & u64::from(u32::MAX)) as u32,
        (uniform >> 32) as u32,
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use engine::SeenToken;

    use super::*;

    const LIMITS: DrawLimits = DrawLimits { samples: 3, adjusted: 4, mask_words: 2, alternatives: 6 };

    fn batch() -> Batch {
        let plain = SampleRequest::greedy;
        let seen = |id, output_count| SeenToken { id, output_count };
        Batch {
            samples: vec![
                SampleRequest { seen: 0..3, mask: Some(0), logprobs: Some(2), ..plain(0) },
                SampleRequest { temperature: 0.5, seed: 7, step: 3, biases: 0..2, ..plain(1) },
                SampleRequest { seen: 3..5, mask: Some(1), ..plain(2) },
                SampleRequest { logprobs: Some(7), ..plain(3) },
            ],
            seen_tokens: vec![seen(1, 0), seen(2, 1), seen(3, 2), seen(4, 3), seen(5, 4)],
            logit_biases: vec![(6, 0.5), (7, -1.0)],
            masks: vec![Arc::new(TokenMask::known(vec![1, 2, 3])), Arc::new(TokenMask::known(vec![5]))],
            ..Batch::default()
        }
    }

    #[test]
    fn a_launch_takes_what_finds_room() {
        let batch = batch();
        let first = Draw::of(&batch, 0, 4, &LIMITS).expect("one fits");
        assert_eq!((first.samples, first.alternatives), (0..2, 2), "five tokens are too many");
        let next = Draw::of(&batch, 2, 4, &LIMITS).expect("one fits");
        assert_eq!(next.samples, 2..3, "seven alternatives are too many");
        assert_eq!(Draw::of(&batch, 3, 4, &LIMITS), None);
        let wide = DrawLimits { adjusted: 5, alternatives: 14, ..LIMITS };
        assert_eq!(Draw::of(&batch, 0, 4, &wide).map(|draw| draw.samples), Some(0..3));
        assert_eq!(Draw::of(&batch, 0, 1, &wide).map(|draw| draw.samples), Some(0..1));
    }

    #[test]
    fn tables_hold_each_samples_own_and_answers_are_taken_apart() {
        let batch = batch();
        let limits = DrawLimits { adjusted: 5, ..LIMITS };
        let mut words = vec![99; limits.words()];
        let mut draw = Draw::of(&batch, 0, 3, &limits).expect("they fit");
        assert_eq!(draw.samples, 0..3);
        let used = draw.write(&batch, &limits, &mut words).expect("they fit");
        assert!(used <= words.len());
        assert_eq!(words[0], 3);
        assert_eq!(words[draw.seen.clone()], [1, 0, 2, 1, 3, 2, 4, 3, 5, 4]);
        assert_eq!(words[draw.biases.clone()], [6, 0.5f32.to_bits(), 7, (-1.0f32).to_bits()]);
        assert_eq!(words[draw.masks.clone()][..3], [1, 2, 5], "as many words as the vocabulary has");
        let params = words[draw.params.clone()].as_chunks::<PARAMS_WORDS>().0;
        assert_eq!(params[0][7..14], [2, 0, 3, 0, 0, 0, 2]);
        assert_eq!(params[1][7..14], [NONE, 3, 3, 0, 2, NONE, 0]);
        assert_eq!(params[2][7..14], [NONE, 3, 5, 2, 2, 2, 1]);
        let drawn = f64::from_bits(u64::from(params[1][14]) | u64::from(params[1][15]) << 32);
        assert_eq!(drawn, uniform(7, 3));

        let [rows, ids, logprobs] = draw.answers();
        let mut answers = vec![0; limits.answer_words()];
        answers[rows].copy_from_slice(&[10, 1.5f32.to_bits(), 11, 0, 12, 0]);
        answers[ids].copy_from_slice(&[20, NONE, 30, 31, 32, 33]);
        answers[logprobs].copy_from_slice(&[2.5f32.to_bits(), 0, 0, 0, 0, 0]);
        let mut sampled = Vec::new();
        draw.read(&batch, &answers, &mut sampled).expect("whole");
        assert_eq!(sampled[0], SampledToken { id: 10, logprob: Some(1.5), top: vec![(20, 2.5)] });
        assert_eq!(sampled[1..], [11, 12].map(|id| SampledToken { id, logprob: None, top: Vec::new() }));
    }
}
