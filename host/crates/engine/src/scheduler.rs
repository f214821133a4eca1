//! Who runs in the next step: first come, first served, in steps of bounded size. Not here: tensors, time, streams, and
//! the arrays of the step (`assembly.rs`).
//!
//! Every step takes one row of each sequence that is decoding; what is left of its rows goes to prompts, oldest first,
//! cut where the step is full (chunked prefill, after Sarathi). When blocks run out the youngest sequence gives up its
//! KV and waits to have it computed again. Whoever runs is older than whoever waits: the oldest always goes on, so that
//! every sequence ends. Priorities and fairness between tenants would go into the order of `waiting`.

use std::collections::VecDeque;
use std::sync::Arc;

use types::Digest;

use crate::adapter_slots::{AdapterSlots, SlotLoad};
use crate::block_manager::BlockManager;
use crate::handle::Arrival;
use crate::sequence::Sequence;
use crate::{RunnerShape, Slot};

/// The sequences and the memory that they compete for.
pub(crate) struct Scheduler<A> {
    /// Oldest first; they hold nothing.
    waiting: VecDeque<Sequence<A>>,
    /// Oldest first.
    running: Vec<Sequence<A>>,
    blocks: BlockManager,
    slots: AdapterSlots,
    rows_max: usize,
    running_max: usize,
    arrivals: u64,
    preemptions: u64,
}

impl<A> Scheduler<A> {
    /// `rows_max` and `running_max` are at least 1.
    pub(crate) fn new(shape: &RunnerShape, rows_max: usize, running_max: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks: BlockManager::new(shape.kv_blocks, shape.block_tokens),
            slots: AdapterSlots::new(shape.adapter_slots),
            rows_max,
            // A sequence that decodes needs a row in every step.
            running_max: running_max.min(rows_max),
            arrivals: 0,
            preemptions: 0,
        }
    }

    pub(crate) fn add(&mut self, arrival: Arrival<A>) {
        self.waiting.push_back(Sequence::new(self.arrivals, arrival));
        self.arrivals += 1;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Plans the next step: sets `planned` of every running sequence and reserves the blocks and slots for it. The
    /// loads have to be done before the step.
    pub(crate) fn schedule(&mut self) -> Vec<SlotLoad> {
        self.plan_running();
        // Whoever was preempted is first in line, and what it left does not suffice for it: nothing is lost and taken
        // back in one step.
        self.admit()
    }

    fn plan_running(&mut self) {
        let decoding = self.running.iter().filter(|sequence| sequence.remaining() == 1).count();
        let mut prompt_rows = self.rows_max.saturating_sub(decoding);
        let mut index = 0;
        while let Some(sequence) = self.running.get_mut(index) {
            sequence.planned = match sequence.remaining() {
                1 => 1,
                remaining => remaining.min(prompt_rows),
            };
            if sequence.remaining() > 1 {
                prompt_rows -= sequence.planned;
            }
            if self.blocks.grow(&mut sequence.blocks, sequence.computed + sequence.planned) {
                index += 1;
            } else {
                // Not planned yet, since it is the youngest; it may be this one itself.
                self.preempt_youngest();
            }
        }
    }

    fn preempt_youngest(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        self.preemptions += 1;
        release(&mut self.blocks, &mut self.slots, &mut sequence);
        self.waiting.push_front(sequence);
    }

    /// Lets the oldest that wait begin, while there are rows, blocks for all their tokens, and slots. One that does not
    /// fit holds up those behind it, or it might never fit.
    fn admit(&mut self) -> Vec<SlotLoad> {
        let mut loads = Vec::new();
        let planned: usize = self.running.iter().map(|sequence| sequence.planned).sum();
        let mut rows = self.rows_max.saturating_sub(planned);
        while rows > 0 && self.running.len() < self.running_max {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            if !self.reserve(&mut sequence, &mut loads) {
                self.waiting.push_front(sequence);
                break;
            }
            sequence.planned = sequence.remaining().min(rows);
            rows -= sequence.planned;
            self.running.push(sequence);
        }
        loads
    }

    /// Blocks and slots, or nothing.
    fn reserve(&mut self, sequence: &mut Sequence<A>, loads: &mut Vec<SlotLoad>) -> bool {
        let tokens = sequence.tokens().len();
        if self.blocks.blocks_for(tokens) > self.blocks.free_blocks() as usize {
            return false;
        }
        let Some(slots) = self.slots.acquire(&sequence.wanted_adapters(), loads) else { return false };
        sequence.slots = slots;
        self.blocks.grow(&mut sequence.blocks, tokens)
    }

    /// Takes the sequences of which `gone` holds out of the schedule and frees what they held.
    pub(crate) fn remove_where(&mut self, gone: impl Fn(&Sequence<A>) -> bool) -> Vec<Sequence<A>> {
        let mut removed: Vec<_> = self.running.extract_if(.., |sequence| gone(sequence)).collect();
        for sequence in &mut removed {
            release(&mut self.blocks, &mut self.slots, sequence);
        }
        if self.waiting.iter().any(&gone) {
            let (out, kept) = std::mem::take(&mut self.waiting).into_iter().partition(gone);
            self.waiting = kept;
            removed.extend::<VecDeque<_>>(out);
        }
        removed
    }

    /// Takes the sequences out that hold a slot whose load failed, and the slot out of use.
    pub(crate) fn remove_slot(&mut self, slot: Slot) -> Vec<Sequence<A>> {
        let removed = self.remove_where(|sequence| sequence.slots.contains(&slot));
        self.slots.forget(slot);
        removed
    }

    /// An adapter that a running sequence brought.
    pub(crate) fn adapter(&self, digest: Digest) -> Option<Arc<A>> {
        self.running.iter().find_map(|sequence| sequence.adapter(digest)).cloned()
    }

    /// Oldest first; [`Sequence::planned`] says what each does in the next step.
    pub(crate) fn running(&self) -> &[Sequence<A>] {
        &self.running
    }

    /// As [`Self::running`], in the same order.
    pub(crate) fn running_mut(&mut self) -> &mut [Sequence<A>] {
        &mut self.running
    }

    /// Sequences that a step has touched, running or set back.
    pub(crate) fn started(&self) -> usize {
        self.running.len() + self.waiting.iter().filter(|sequence| sequence.has_started()).count()
    }

    pub(crate) const fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    pub(crate) const fn slots(&self) -> &AdapterSlots {
        &self.slots
    }

    pub(crate) const fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// What must hold between steps: whoever runs is older than whoever waits and nobody is there twice; blocks and slots are conserved, those that wait hold nothing, those that run hold
    /// enough.
    pub(crate) fn check_integrity(&self) -> Result<(), String> {
        let all = || self.running.iter().chain(&self.waiting);
        if !all().is_sorted_by(|one, two| one.number < two.number) {
            return Err("the sequences are not in order of arrival".into());
        }
        self.blocks.check_integrity(all().map(|sequence| &sequence.blocks))?;
        self.slots.check_integrity(all().flat_map(|sequence| &sequence.slots))?;
        let idle = |sequence: &Sequence<A>| sequence.slots.is_empty() && sequence.blocks.blocks().is_empty();
        if !self.waiting.iter().all(|sequence| idle(sequence) && sequence.computed == 0) {
            return Err("a sequence waits and holds blocks or slots".into());
        }
        let parts = |sequence: &Sequence<A>| sequence.plan().composition().parts().len();
        let enough = |sequence: &Sequence<A>| {
            sequence.slots.len() == parts(sequence)
                && sequence.blocks.blocks().len() >= self.blocks.blocks_for(sequence.computed)
                && sequence.remaining() >= 1
        };
        if !self.running.iter().all(enough) || self.running.len() > self.running_max {
            return Err("a sequence runs without its blocks or slots, or too many run".into());
        }
        Ok(())
    }
}

/// Frees what a sequence holds; its KV has to be computed again.
fn release<A>(blocks: &mut BlockManager, slots: &mut AdapterSlots, sequence: &mut Sequence<A>) {
    blocks.release(&mut sequence.blocks);
    slots.release(&mut sequence.slots);
    sequence.computed = 0;
    sequence.planned = 0;
}
