//! What does the arithmetic of a step: the seam between scheduling and tensors.
//!
//! Three kinds implement it: a fake one (tests of the scheduler), CPU, CUDA.

use std::sync::Arc;

use types::Digest;

use crate::{Batch, SampledToken, Slot};

/// Fixed sizes of a runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerShape {
    /// Tokens in one KV block.
    pub block_tokens: u32,
    /// KV blocks in all.
    pub kv_blocks: u32,
    /// Adapter slots in all.
    pub adapter_slots: u32,
    /// Tokens of a sequence, prompt and output.
    pub context_tokens_max: u32,
    /// Rows of a batch.
    pub batch_rows_max: u32,
    /// Tokens in the vocabulary; ids are below it.
    pub vocabulary: u32,
}

impl RunnerShape {
    /// Tokens of the longest sequence that fits, prompt and output: the context, or all KV memory if that is less.
    #[must_use]
    pub fn sequence_tokens_max(&self) -> usize {
        let kv_tokens = u64::from(self.kv_blocks) * u64::from(self.block_tokens);
        usize::try_from(kv_tokens.min(self.context_tokens_max.into())).unwrap_or(usize::MAX)
    }
}

/// A step or a load that failed.
#[derive(Debug, thiserror::Error)]
pub enum RunnerError {
    /// The batch breaks a rule of [`Batch`] or of [`RunnerShape`]: a bug of the scheduler.
    #[error("malformed batch: {0}")]
    Malformed(String),
    /// The adapter does not fit this base.
    #[error("adapter does not fit: {0}")]
    Adapter(String),
    /// The device or library failed.
    #[error("runner failed: {0}")]
    Failed(String),
    /// The device failed for good: this runner will never run another step or load another adapter.
    #[error("the device is lost: {0}")]
    Lost(String),
}

/// Runs batches over the base, its KV memory and its adapter slots.
pub trait ModelRunner: Send + 'static {
    /// An adapter in the form in which it waits in host memory.
    type Adapter: Send + Sync + 'static;

    /// The runner's sizes.
    fn shape(&self) -> RunnerShape;

    /// What the KV of a token depends on beside its sequence: the base's content, the precision, the format of the KV
    /// memory. Two runners of equal fingerprints compute the same bits.
    fn fingerprint(&self) -> Digest;

    /// Whether it computes tokens that were asked in another way than those that were drawn: a step then has rows of one kind of
    /// each sequence, drawn ones first ([`Batch::drawn_rows`]), and KV is shared between tokens of one kind only. Not for a
    /// runner that overlaps steps.
    fn separates_prompts(&self) -> bool {
        false
    }

    /// KV blocks that this adapter takes while it is in a slot: 0 where adapters have memory of their own.
    fn adapter_blocks(&self, _adapter: &Self::Adapter) -> u32 {
        0
    }

    /// Puts an adapter into an empty slot, and into these blocks, [`Self::adapter_blocks`] of them. They are its own until it
    /// is unloaded; what lies in them is another's, and the runner writes or zeroes all of it.
    ///
    /// # Errors
    /// If it does not fit the base or the slot, which is then empty.
    fn load_adapter(&mut self, slot: Slot, adapter: &Arc<Self::Adapter>, blocks: &[u32]) -> Result<(), RunnerError>;

    /// Empties a slot; no batch names it until the next load. Its blocks are wiped before anything that comes later, and
    /// nobody waits for that; whoever has them next has them wiped all the same.
    fn unload_adapter(&mut self, slot: Slot);

    /// Runs one step: copies the blocks of `batch.copies`, in their order; zeroes those of `batch.wipes`; writes the KV of
    /// every row; and appends one token to `sampled` for each of `batch.samples`, in that order. Several rows of a sequence
    /// may be sampled, and the KV of its last rows may be written again by a later step, under other tokens.
    ///
    /// # Errors
    /// If the batch is malformed or the device fails; the KV of the rows is then undefined.
    fn step(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError>;

    /// Whether a step can be submitted while the one before it runs.
    fn overlaps(&self) -> bool {
        false
    }

    /// Begins a step, behind the one that may be under way, and behind all loads so far: what [`Self::step`] does, in the
    /// order of the calls, though it may happen later. At most two are under way. [`Batch::unseen`] names draws of the step
    /// that was submitted before this one, collected or not. Only for a runner that overlaps.
    ///
    /// # Errors
    /// If the batch is malformed or the device fails; there is nothing to be collected then.
    fn submit(&mut self, _batch: &Batch) -> Result<(), RunnerError> {
        Err(RunnerError::Failed("this runner does one step after the other".into()))
    }

    /// Waits for the step that was submitted first and not collected, and appends what it drew. `batch` is the one that it
    /// was submitted with.
    ///
    /// # Errors
    /// If the device failed; the KV of the step's rows is then undefined, and of those of a step behind it.
    fn collect(&mut self, _batch: &Batch, _sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        Err(RunnerError::Failed("no step was submitted".into()))
    }
}
