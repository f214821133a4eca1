//! One step's work as flat arrays, in the form a runner consumes. Not here: how it is chosen.

use std::ops::Range;

use types::{LayerRange, ModuleSet};

/// A place in the runner that holds one adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// One step. A row is one token of one sequence; rows of a sequence are contiguous and in order of position; sequences
/// with equal compositions are neighbours, so that their rows form one segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token of each row, `[rows]`.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence, counted from 0, `[rows]`.
    pub positions: Vec<u32>,
    /// The sequences, in row order; their row ranges cover all rows.
    pub sequences: Vec<BatchSequence>,
    /// Block tables of all sequences, one after the other.
    pub block_tables: Vec<u32>,
    /// Where adapters apply. Segments may overlap: a row with k adapters lies in k segments, executed in this order.
    pub segments: Vec<LoraSegment>,
    /// Rows whose next token is wanted, in ascending order of row.
    pub samples: Vec<SampleRequest>,
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

/// A token to be drawn from one row's logits. The draw depends on (seed, step) and the logits alone, never on what else
/// is in the batch.
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
    /// The sequence's seed.
    pub seed: u64,
    /// How many tokens the sequence has generated before this one.
    pub step: u32,
    /// Report the log-probability (of the full softmax, before temperature) and this many alternatives.
    pub logprobs: Option<u32>,
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
