//! One step's work as flat arrays, in the form a runner consumes. Not here: how it is chosen.

use std::ops::Range;
use std::sync::Arc;

use types::{LayerRange, ModuleSet};

use crate::{RunnerError, RunnerShape, SeenToken, TokenMask};

/// A place in the runner that holds one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// One step. A row is one token of one sequence; rows of a sequence are contiguous and in order of position; sequences
/// with equal compositions are neighbours, so that their rows form one segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token of each row, `[rows]`.
    pub tokens: Vec<u32>,
    /// Rows whose token is what the step before draws, in ascending order of row; what `tokens` has for them is not read. Only
    /// for a runner that overlaps steps.
    pub unseen: Vec<UnseenToken>,
    /// Rows of tokens that were drawn, for a runner that separates them from those that were asked: so many at the beginning, all
    /// others were asked. Rows of a sequence are of one kind. 0 for any other runner.
    pub drawn_rows: u32,
    /// Position of each row in its sequence, counted from 0, `[rows]`.
    pub positions: Vec<u32>,
    /// The sequences, in row order; their row ranges cover all rows.
    pub sequences: Vec<BatchSequence>,
    /// Block tables of all sequences, one after the other.
    pub block_tables: Vec<u32>,
    /// Blocks whose whole content is copied into others, in this order, before the step writes anything: a sequence goes on
    /// in a block of its own from one that it shares. A copy may read what an earlier one wrote.
    pub copies: Vec<BlockCopy>,
    /// Blocks that are zeroed in every layer after the copies and before the step writes anything: another tenant had them.
    pub wipes: Vec<u32>,
    /// Where adapters apply. Segments may overlap: a row with k adapters lies in k segments, executed in this order.
    pub segments: Vec<LoraSegment>,
    /// Rows whose next token is wanted, in ascending order of row.
    pub samples: Vec<SampleRequest>,
    /// Tokens that penalties fall on, those of all samples one after the other; within a sample each token once.
    pub seen_tokens: Vec<SeenToken>,
    /// Tokens and what is added to their logits, likewise.
    pub logit_biases: Vec<(u32, f32)>,
    /// What may be drawn, of the samples that may not draw everything. They may become known while the step runs.
    pub masks: Vec<Arc<TokenMask>>,
}

impl Batch {
    /// Whether the batch keeps its rules for a runner of this shape. Cheap beside a step; every runner may call it.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self, shape: &RunnerShape) -> Result<(), RunnerError> {
        let rows = self.tokens.len();
        rule(rows == self.positions.len() && rows <= shape.batch_rows_max as usize, "tokens and positions")?;
        rule(self.tokens.iter().all(|&token| token < shape.vocabulary), "a token is outside the vocabulary")?;
        let ascending = self.unseen.windows(2).all(|pair| matches!(pair, [one, two] if one.row < two.row));
        rule(ascending, "rows of unseen tokens are not in order")?;
        rule(self.unseen.last().is_none_or(|last| (last.row as usize) < rows), "an unseen token has no row")?;
        rule(self.block_tables.iter().all(|&block| block < shape.kv_blocks), "a block does not exist")?;
        let exists =
            |copy: &BlockCopy| copy.from < shape.kv_blocks && copy.to < shape.kv_blocks && copy.from != copy.to;
        rule(self.copies.iter().all(exists), "a copy is of or into a block that does not exist, or into itself")?;
        rule(self.wipes.iter().all(|&block| block < shape.kv_blocks), "a block to be wiped does not exist")?;
        rule(self.drawn_rows as usize <= rows, "more rows are drawn than there are")?;
        let mut row = 0;
        for sequence in &self.sequences {
            rule(sequence.rows.start == row && row < sequence.rows.end, "rows are not covered in order")?;
            let is_mixed = sequence.rows.start < self.drawn_rows && self.drawn_rows < sequence.rows.end;
            rule(!is_mixed, "rows of a sequence are drawn and asked")?;
            row = sequence.rows.end;
            let positions = part(&self.positions, &sequence.rows).ok_or_else(|| broken("rows do not exist"))?;
            let contiguous = positions.windows(2).all(|pair| matches!(pair, [one, two] if one + 1 == *two));
            rule(contiguous, "positions are not contiguous")?;
            let blocks = part(&self.block_tables, &sequence.blocks).ok_or_else(|| broken("blocks do not exist"))?;
            let tokens = positions.last().map_or(0, |&last| last as usize + 1);
            rule(tokens <= shape.context_tokens_max as usize, "a position is outside the context")?;
            rule(tokens <= blocks.len() * shape.block_tokens as usize, "a block table is too short")?;
        }
        rule(row as usize == rows, "rows belong to no sequence")?;
        for segment in &self.segments {
            rule(part(&self.tokens, &segment.rows).is_some_and(|rows| !rows.is_empty()), "a segment has no rows")?;
            rule(segment.slot.0 < shape.adapter_slots, "a slot does not exist")?;
        }
        let ascending = self.samples.windows(2).all(|pair| matches!(pair, [one, two] if one.row < two.row));
        rule(ascending, "samples are not in order of row")?;
        rule(self.samples.last().is_none_or(|last| (last.row as usize) < rows), "a sample has no row")?;
        for sample in &self.samples {
            let (seen, biases) = (self.seen_of(sample), self.biases_of(sample));
            let known = seen.is_some_and(|seen| seen.iter().all(|token| token.id < shape.vocabulary))
                && biases.is_some_and(|biases| biases.iter().all(|(id, _)| *id < shape.vocabulary));
            rule(known, "a sample has tokens that do not exist")?;
            let has_mask = sample.mask.is_none_or(|mask| (mask as usize) < self.masks.len());
            rule(has_mask, "a sample has a mask that does not exist")?;
        }
        Ok(())
    }

    /// The tokens that a sample's penalties fall on; `None` if its range is wrong.
    #[must_use]
    pub fn seen_of(&self, sample: &SampleRequest) -> Option<&[SeenToken]> {
        part(&self.seen_tokens, &sample.seen)
    }

    /// The biases of a sample; `None` if its range is wrong.
    #[must_use]
    pub fn biases_of(&self, sample: &SampleRequest) -> Option<&[(u32, f32)]> {
        part(&self.logit_biases, &sample.biases)
    }

    /// What a sample may draw, if not everything.
    #[must_use]
    pub fn mask_of(&self, sample: &SampleRequest) -> Option<&TokenMask> {
        sample.mask.and_then(|mask| self.masks.get(mask as usize)).map(AsRef::as_ref)
    }

    /// An empty one with memory for a full step, so that no later step has to find some. What depends on what is asked for
    /// (penalties, biases) grows when it is first needed.
    pub(crate) fn for_shape(shape: &RunnerShape, rows_max: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(rows_max),
            unseen: Vec::with_capacity(rows_max),
            positions: Vec::with_capacity(rows_max),
            sequences: Vec::with_capacity(rows_max),
            block_tables: Vec::with_capacity(shape.kv_blocks as usize),
            wipes: Vec::with_capacity(shape.kv_blocks as usize),
            samples: Vec::with_capacity(rows_max),
            ..Self::default()
        }
    }

    /// Empties it and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.tokens.clear();
        self.unseen.clear();
        self.drawn_rows = 0;
        self.positions.clear();
        self.sequences.clear();
        self.block_tables.clear();
        self.copies.clear();
        self.wipes.clear();
        self.segments.clear();
        self.samples.clear();
        self.seen_tokens.clear();
        self.logit_biases.clear();
        self.masks.clear();
    }
}

fn rule(holds: bool, what: &str) -> Result<(), RunnerError> {
    if holds { Ok(()) } else { Err(broken(what)) }
}

fn broken(what: &str) -> RunnerError {
    RunnerError::Malformed(what.to_owned())
}

fn part<'a, T>(all: &'a [T], range: &Range<u32>) -> Option<&'a [T]> {
    all.get(range.start as usize..range.end as usize)
}

/// The rows of one sequence and where its KV lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchSequence {
    /// Into [`Batch::tokens`].
    pub rows: Range<u32>,
    /// Into [`Batch::block_tables`]: enough blocks for every position up to the last row's. The KV of position p lies
    /// in block `p / block_tokens` of the table at offset `p % block_tokens`.
    pub blocks: Range<u32>,
}

/// A row whose token the host has not seen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnseenToken {
    /// Into [`Batch::tokens`].
    pub row: u32,
    /// Which of the samples of the step that was submitted before this one draws it.
    pub sample: u32,
}

/// A block whose content becomes that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block that is read.
    pub from: u32,
    /// The block that is written, all of it.
    pub to: u32,
}

/// Rows over which one adapter is added: y += weight · scale · B(A x).
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSegment {
    /// Into [`Batch::tokens`].
    pub rows: Range<u32>,
    /// Where the adapter lies.
    pub slot: Slot,
    /// Its weight in the composition; the adapter's own scale is in the slot.
    pub weight: f32,
    /// The modules it acts on.
    pub modules: ModuleSet,
    /// The layers it acts on.
    pub layers: LayerRange,
}

/// A token to be drawn from one row's logits. The draw depends on (seed, step), the logits and the sequence's own tokens
/// alone, never on what else is in the batch. In this order: the mask, bias, repetition, frequency and presence penalty on the
/// logits; temperature, `min_p`, `top_k`, `top_p` on what is left; the draw.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRequest {
    /// Into [`Batch::tokens`].
    pub row: u32,
    /// 0 is greedy (ties go to the lowest id).
    pub temperature: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
    /// Of all `seen`: divides positive logits, multiplies others; 1 is off.
    pub repetition_penalty: f32,
    /// Taken from the logits of those `seen` in the output; 0 is off.
    pub presence_penalty: f32,
    /// Taken from them once for each time; 0 is off.
    pub frequency_penalty: f32,
    /// Into [`Batch::seen_tokens`]; empty without penalties.
    pub seen: Range<u32>,
    /// Into [`Batch::logit_biases`].
    pub biases: Range<u32>,
    /// Into [`Batch::masks`]: only what is in it may be drawn. If it cannot be found out, what is drawn is not used.
    pub mask: Option<u32>,
    /// The sequence's seed.
    pub seed: u64,
    /// How many tokens the sequence has generated before this one.
    pub step: u32,
    /// Report the log-probability (the model's own: of the full softmax, before all of the above) and this many
    /// alternatives.
    pub logprobs: Option<u32>,
}

impl SampleRequest {
    /// The most likely token of this row, and nothing else.
    #[must_use]
    pub const fn greedy(row: u32) -> Self {
        Self {
            row,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seen: 0..0,
            biases: 0..0,
            mask: None,
            seed: 0,
            step: 0,
            logprobs: None,
        }
    }
}

/// A drawn token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampledToken {
    /// Its number in the vocabulary.
    pub id: u32,
    /// Natural logarithm of its probability, if asked.
    pub logprob: Option<f32>,
    /// The most likely tokens with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}
