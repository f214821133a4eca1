//! Who runs in the next step, in steps of bounded size. Not here: tensors, clocks, streams, and the arrays of the step
//! (`assembly.rs`).
//!
//! Those that wait are taken by priority; among equals first those that ran already, in the order in which they first did,
//! then the tenant that was served least, then the oldest. Every step takes one row of each sequence that is decoding; what
//! is left of its rows goes to prompts, cut where the step is full (chunked prefill, after Sarathi), and then to guesses.
//! When blocks run out adapters that nobody uses are evicted, and then the last in order gives up its KV and waits to have it computed again; so it does when one of higher
//! priority finds no room. Of one priority whoever runs came before whoever was set back: the first always goes on, so that
//! every sequence ends unless higher priorities take all there is.

use std::cmp::Reverse;
use std::sync::Arc;

use types::Digest;

use crate::adapter_slots::{AdapterSlots, SharedMemory, SlotLoad};
use crate::block_manager::BlockManager;
use crate::fairness::Fairness;
use crate::handle::Arrival;
use crate::sequence::{RunOrder, Sequence, SequenceShape};
use crate::{BlockCopy, EngineConfig, GenerationError, RunnerShape, Slot, SpeculationConfig};

mod admission;

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) preemptions: u64,
    pub(crate) prefix_tokens_asked: u64,
    pub(crate) prefix_tokens_found: u64,
}

/// The sequences and the memory that they compete for.
pub(crate) struct Scheduler<A> {
    /// In no order; they hold nothing.
    waiting: Vec<Sequence<A>>,
    /// In order of [`Sequence::run_order`]: first served first, last to give way first.
    running: Vec<Sequence<A>>,
    blocks: BlockManager,
    slots: AdapterSlots,
    fairness: Fairness,
    rows_max: usize,
    running_max: usize,
    prefix_cache: bool,
    speculation: SpeculationConfig,
    sequence_shape: SequenceShape,
    arrivals: u64,
    admissions: u64,
    counts: Counts,
    // Of the step that was planned last.
    loads: Vec<SlotLoad>,
    copies: Vec<BlockCopy>,
    /// Kept for its memory.
    key_bytes: Vec<u8>,
}

impl<A> Scheduler<A> {
    /// `rows_max` is at least 1.
    pub(crate) fn new(
        shape: &RunnerShape,
        fingerprint: Digest,
        separates_prompts: bool,
        rows_max: usize,
        config: &EngineConfig,
    ) -> Self {
        let blocks = BlockManager::new(shape.kv_blocks, shape.block_tokens);
        let sequence_shape = SequenceShape {
            fingerprint,
            block_tokens: blocks.block_tokens(),
            tokens_max: shape.sequence_tokens_max(),
            blocks: shape.kv_blocks as usize,
            draft_tokens_max: config.speculation.draft_tokens_max as usize,
            separates_prompts,
        };
        // A sequence that decodes needs a row in every step.
        let running_max = config.running_sequences_max.clamp(1, rows_max);
        Self {
            waiting: Vec::new(),
            running: Vec::with_capacity(running_max),
            blocks,
            slots: AdapterSlots::new(shape.adapter_slots),
            fairness: Fairness::default(),
            rows_max,
            running_max,
            prefix_cache: config.prefix_cache,
            speculation: config.speculation,
            sequence_shape,
            arrivals: 0,
            admissions: 0,
            counts: Counts::default(),
            loads: Vec::new(),
            copies: Vec::new(),
            key_bytes: Vec::new(),
        }
    }

    /// `adapter_blocks` says what an adapter takes. One that would not fit with its adapters into memory that is all its own
    /// is refused.
    pub(crate) fn add(&mut self, arrival: Arrival<A>, adapter_blocks: impl Fn(&A) -> u32) {
        let mut sequence = Sequence::new(self.arrivals, arrival, self.sequence_shape, adapter_blocks);
        if sequence.tokens().len() >= sequence.tokens_max {
            let (tokens, max) = (sequence.tokens().len(), sequence.tokens_max.saturating_sub(1));
            return sequence.fail(GenerationError::NoRoom { tokens, max });
        }
        sequence.keys(self.blocks.block_tokens(), &mut self.key_bytes);
        self.fairness.wait(sequence.terms.tenant);
        self.waiting.push(sequence);
        self.arrivals += 1;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Plans the next step: sets `planned` of every running sequence and reserves the blocks and slots for it. The loads
    /// have to be done before the step, the copies at its beginning. `is_ahead` if the step before it has not ended, of which
    /// [`Self::can_go_ahead`] holds.
    pub(crate) fn schedule(&mut self, is_ahead: bool) {
        self.loads.clear();
        self.copies.clear();
        self.plan_running();
        self.admit();
        if !is_ahead {
            self.plan_drafts();
        }
    }

    /// Whether the next step can be planned before it is known what the last one drew: nobody needs to know it, nobody would
    /// have to give way, who may have ended by then, and no guess is worth more than the time between two steps.
    pub(crate) fn can_go_ahead(&self) -> bool {
        let goes_on = || self.running.iter().filter(|sequence| !sequence.ends_unseen());
        let missing = |sequence: &Sequence<A>| self.blocks.missing(&sequence.blocks, sequence.reach() + 1);
        let missing: usize = goes_on().filter(|sequence| sequence.remaining() == 1).map(missing).sum();
        let lowest = self.running.last().map(|sequence| sequence.terms.priority);
        missing <= self.blocks.available()
            && goes_on().all(Sequence::can_go_ahead)
            && !self.waiting.iter().any(|sequence| lowest.is_some_and(|lowest| lowest < sequence.terms.priority))
            && !goes_on().any(|sequence| self.is_guess_worth(sequence))
    }

    fn is_guess_worth(&self, sequence: &Sequence<A>) -> bool {
        let Some(lookup) = sequence.lookup.as_ref().filter(|lookup| lookup.has_guess()) else { return false };
        let rows = self.running.len();
        let count = sequence.draft_tokens_max().min(self.rows_max.saturating_sub(rows));
        self.speculation.drafts(lookup.acceptance(), rows, rows, count) > 0
    }

    fn plan_running(&mut self) {
        let decodes = |sequence: &&Sequence<A>| sequence.remaining() == 1 && !sequence.ends_unseen();
        let decoding = self.running.iter().filter(decodes).count();
        let mut prompt_rows = self.rows_max.saturating_sub(decoding);
        let mut index = 0;
        while let Some(sequence) = self.running.get_mut(index) {
            sequence.planned = match sequence.remaining() {
                1 => usize::from(!sequence.ends_unseen()),
                remaining => remaining.min(prompt_rows).min(sequence.rows_alike()),
            };
            if sequence.remaining() > 1 {
                prompt_rows -= sequence.planned;
            }
            let tokens = sequence.reach() + sequence.planned;
            let Self { blocks, slots, copies, loads, .. } = self;
            let missing = blocks.missing(&sequence.blocks, tokens);
            let has_room = slots.make_room(missing, &mut SharedMemory { blocks, copies, loads });
            if has_room && blocks.grow(&mut sequence.blocks, tokens, sequence.terms.kv_salt) {
                index += 1;
            } else {
                // Not planned yet, since it is the last; it may be this one itself.
                self.preempt_last();
            }
        }
    }

    fn preempt_last(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        debug_assert!(sequence.in_flight == 0, "it gives way before it is known what was drawn for it");
        self.counts.preemptions += 1;
        self.fairness.wait(sequence.terms.tenant);
        self.fairness.leave_running(sequence.terms.tenant);
        // It comes back for its adapters.
        release(&mut self.blocks, &mut self.slots, &mut sequence, false);
        self.waiting.push(sequence);
    }

    fn planned_rows(&self) -> usize {
        self.running.iter().map(|sequence| sequence.planned).sum()
    }

    /// Rows that nobody needs go to guesses, as long as they pay. A guess takes nobody's block away.
    fn plan_drafts(&mut self) {
        if self.speculation.draft_tokens_max == 0 {
            return;
        }
        let mut rows = self.planned_rows();
        let tokens = self.running.iter().filter(|sequence| sequence.samples() > 0).count();
        for sequence in &mut self.running {
            // What comes after an asked token is of another kind.
            let is_decoding = sequence.planned == 1 && sequence.remaining() == 1 && sequence.rows_alike() > 1;
            let Some(lookup) = sequence.lookup.as_ref().filter(|lookup| is_decoding && lookup.has_guess()) else {
                continue;
            };
            let useful = sequence.draft_tokens_max();
            let count = useful.min(self.rows_max.saturating_sub(rows));
            let count = self.speculation.drafts(lookup.acceptance(), rows, tokens, count);
            if count == 0 {
                continue;
            }
            let mut drafts = std::mem::take(&mut sequence.drafts);
            lookup.draft(sequence.tokens(), count, &mut drafts);
            let tokens = sequence.computed + 1 + drafts.len();
            if self.blocks.grow(&mut sequence.blocks, tokens, sequence.terms.kv_salt) {
                sequence.planned = 1 + drafts.len();
                rows += drafts.len();
            } else {
                drafts.clear();
            }
            sequence.drafts = drafts;
        }
    }

    /// A step has run: what it made full can be shared, what it drew was appended, and blocks of wrong guesses are free.
    pub(crate) fn note_computed(&mut self, index: usize, tokens: usize) {
        let Some(sequence) = self.running.get_mut(index) else { return };
        if self.prefix_cache {
            sequence.publish_blocks(&mut self.blocks, &mut self.key_bytes);
        }
        if tokens > 0 {
            // What is planned or under way has its blocks already.
            let begun = sequence.in_flight + sequence.planned;
            self.blocks.shrink(&mut sequence.blocks, sequence.computed + begun.max(1));
            self.fairness.charge_output(sequence.terms.tenant, tokens);
        }
    }

    /// Takes the sequences of which `gone` holds out of the schedule and frees what they held.
    pub(crate) fn remove_where(&mut self, gone: impl Fn(&Sequence<A>) -> bool) -> Vec<Sequence<A>> {
        let mut removed: Vec<_> = self.running.extract_if(.., |sequence| gone(sequence)).collect();
        for sequence in &mut removed {
            let unload = sequence.terms.unload;
            release(&mut self.blocks, &mut self.slots, sequence, unload);
            self.fairness.leave_running(sequence.terms.tenant);
        }
        let ran = removed.len();
        removed.extend(self.waiting.extract_if(.., |sequence| gone(sequence)));
        for sequence in removed.iter().skip(ran) {
            self.fairness.leave_waiting(sequence.terms.tenant);
            if sequence.terms.unload && sequence.rank.is_some() {
                // What it had when it was set back, and nobody else came for.
                let brought = sequence.wanted_adapters().map(|wanted| wanted.digest);
                self.slots.unload(brought, &mut self.blocks);
            }
        }
        removed
    }

    /// Takes the sequences out that hold a slot whose load failed, and the slot out of use.
    pub(crate) fn remove_slot(&mut self, slot: Slot) -> Vec<Sequence<A>> {
        let removed = self.remove_where(|sequence| sequence.slots.contains(&slot));
        self.slots.forget(slot, &mut self.blocks);
        removed
    }

    /// The slot in which an adapter lies, held or idle.
    pub(crate) fn resident(&self, digest: Digest) -> Option<Slot> {
        self.slots.slot_of(digest)
    }

    /// Takes a slot out of use that nobody holds.
    pub(crate) fn forget(&mut self, slot: Slot) {
        self.slots.forget(slot, &mut self.blocks);
    }

    /// Takes all slots out of use, with the device that they were on. Nobody runs.
    pub(crate) fn forget_all(&mut self) {
        (0..self.slots.total()).for_each(|slot| self.slots.forget(Slot(slot), &mut self.blocks));
        self.loads.clear();
    }

    /// Slots that the runner has to empty now: those who brought their adapters are gone, and wanted them gone.
    pub(crate) fn take_unloads(&mut self) -> Vec<Slot> {
        self.slots.take_unloads()
    }

    /// An adapter that a running sequence brought.
    pub(crate) fn adapter(&self, digest: Digest) -> Option<Arc<A>> {
        self.running.iter().find_map(|sequence| sequence.adapter(digest)).cloned()
    }

    /// In order; [`Sequence::planned`] says what each does in the next step.
    pub(crate) fn running(&self) -> &[Sequence<A>] {
        &self.running
    }

    /// As [`Self::running`], in the same order.
    pub(crate) fn running_mut(&mut self) -> &mut [Sequence<A>] {
        &mut self.running
    }

    /// Where a running sequence is, which was at `before`. None if it is gone.
    pub(crate) fn find(&self, number: u64, before: usize) -> Option<usize> {
        let is_it = |sequence: &Sequence<A>| sequence.number == number;
        let is_there = self.running.get(before).is_some_and(is_it);
        if is_there { Some(before) } else { self.running.iter().position(is_it) }
    }

    /// All there are, in no order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Sequence<A>> {
        self.running.iter().chain(&self.waiting)
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sequences that a step has touched, running or set back.
    pub(crate) fn started(&self) -> usize {
        self.running.len() + self.waiting.iter().filter(|sequence| sequence.has_started()).count()
    }

    pub(crate) fn loads(&self) -> &[SlotLoad] {
        &self.loads
    }

    pub(crate) fn copies(&self) -> &[BlockCopy] {
        &self.copies
    }

    /// What was to be wiped is, at the start of the step that was submitted.
    pub(crate) fn note_wiped(&mut self) {
        self.blocks.clear_wipes();
    }

    /// A step failed: nobody knows whether these were wiped or copied over. Adapters in them were loaded since.
    pub(crate) fn restore_wipes(&mut self, blocks: impl Iterator<Item = u32>) {
        for block in blocks {
            let is_adapters = self.slots.tables().any(|table| table.blocks().contains(&block));
            if !is_adapters {
                self.blocks.wipe_again(block);
            }
        }
    }

    /// Blocks that are copied into have nothing left to be wiped.
    pub(crate) fn note_copies(&mut self) {
        self.copies.iter().for_each(|copy| self.blocks.note_copied(copy.to));
    }

    pub(crate) const fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Blocks that a sequence can have, those of kept KV and of idle adapters included.
    pub(crate) fn free_blocks(&self) -> u32 {
        let free = self.blocks.available() + self.slots.idle_blocks(|_| true);
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// Blocks of adapters, held or idle.
    pub(crate) fn adapter_blocks(&self) -> u32 {
        let blocks: usize = self.slots.tables().map(|table| table.blocks().len()).sum();
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    pub(crate) const fn slots(&self) -> &AdapterSlots {
        &self.slots
    }

    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    /// What must hold between steps: nobody is there twice, those that run are in order and of their priority before those
    /// that were set back; blocks and slots are conserved, those that wait hold nothing, those that run hold enough.
    pub(crate) fn check_integrity(&self) -> Result<(), String> {
        let mut numbers: Vec<u64> = self.all().map(|sequence| sequence.number).collect();
        numbers.sort_unstable();
        if !numbers.is_sorted_by(|one, two| one < two) {
            return Err("a sequence is there twice".into());
        }
        self.check_order()?;
        self.blocks.check_integrity(self.all().map(|sequence| &sequence.blocks).chain(self.slots.tables()))?;
        self.slots.check_integrity(self.all().flat_map(|sequence| &sequence.slots))?;
        let tenants = |sequences: &[Sequence<A>]| sequences.iter().map(|one| one.terms.tenant).collect::<Vec<_>>();
        self.fairness.check_integrity(tenants(&self.waiting).into_iter(), tenants(&self.running).into_iter())?;
        let idle = |sequence: &Sequence<A>| sequence.slots.is_empty() && sequence.blocks.blocks().is_empty();
        if !self.waiting.iter().all(|sequence| idle(sequence) && sequence.reach() == 0 && sequence.planned == 0) {
            return Err("a sequence waits and holds blocks or slots".into());
        }
        let enough = |sequence: &Sequence<A>| {
            sequence.slots.len() == sequence.parts().len()
                && sequence.blocks.blocks().len() >= self.blocks.blocks_for(sequence.reach())
                && sequence.blocks.blocks().len() <= self.blocks.blocks_for(sequence.tokens().len())
                && sequence.tokens().len() <= sequence.tokens_max
                && sequence.remaining() >= 1
                && sequence.drafts.is_empty()
        };
        if !self.running.iter().all(enough) || self.running.len() > self.running_max {
            return Err("a sequence runs with too few or too many blocks or slots, or too many run".into());
        }
        Ok(())
    }

    fn check_order(&self) -> Result<(), String> {
        let ran: Vec<RunOrder> = self.running.iter().map(Sequence::run_order).collect();
        if !ran.is_sorted_by(|one, two| one < two) || self.running.iter().any(|sequence| sequence.rank.is_none()) {
            return Err(format!("those that run are not in order: {ran:?}"));
        }
        let set_back = self.waiting.iter().filter(|sequence| sequence.rank.is_some()).map(Sequence::run_order);
        for (Reverse(priority), rank) in set_back {
            if ran.iter().any(|(Reverse(of), before)| *of == priority && *before > rank) {
                return Err(format!(
                    "sequence {rank} of priority {priority} was set back and a later one runs: {ran:?}"
                ));
            }
        }
        Ok(())
    }
}

/// Frees what a sequence holds; its KV has to be computed again, or found where it still lies.
fn release<A>(blocks: &mut BlockManager, slots: &mut AdapterSlots, sequence: &mut Sequence<A>, unload: bool) {
    blocks.release(&mut sequence.blocks);
    slots.release(&mut sequence.slots, unload, blocks);
    sequence.set_back();
}
