//! Which of those that wait begins, and how much of its KV is there already: kept from sequences that began alike, or shared
//! with one that runs. Not here: who gives way (`scheduler.rs`).

use std::cmp::Reverse;

use crate::BlockCopy;
use crate::adapter_slots::SharedMemory;
use crate::scheduler::{Scheduler, release};
use crate::sequence::Sequence;

/// KV that a sequence need not compute.
struct Found {
    tokens: usize,
    /// The block that the sequence goes on in, if it must be copied to be written.
    copied: Option<u32>,
}

impl<A> Scheduler<A> {
    /// Lets the first of those that wait begin, while there are rows, blocks for all their tokens, and slots. One that does
    /// not fit holds up those behind it, or it might never fit.
    pub(super) fn admit(&mut self) {
        let mut rows = self.rows_max.saturating_sub(self.planned_rows());
        while self.can_admit(rows)
            && let Some(index) = self.next_waiting()
        {
            let mut sequence = self.waiting.swap_remove(index);
            if !self.make_room(&mut sequence, &mut rows) {
                self.waiting.push(sequence);
                break;
            }
            sequence.planned = sequence.remaining().min(rows).min(sequence.rows_alike());
            rows -= sequence.planned;
            let order = sequence.run_order();
            let place = self.running.partition_point(|other| other.run_order() < order);
            self.running.insert(place, sequence);
        }
    }

    /// Whether looking is worth it: most steps of a full engine end here.
    fn can_admit(&self, rows: usize) -> bool {
        let is_room = rows > 0 && self.running.len() < self.running_max;
        let lowest = self.running.last().map(|sequence| sequence.terms.priority);
        is_room || self.waiting.iter().any(|sequence| lowest.is_some_and(|lowest| lowest < sequence.terms.priority))
    }

    /// By priority; then those set back, in their order; then the tenant that was served least; then the oldest. Passes over
    /// those whose prompt is being computed for another one of their family.
    fn next_waiting(&self) -> Option<usize> {
        let ready = self.waiting.iter().enumerate().filter(|(_, sequence)| !self.is_held(sequence));
        let order = |sequence: &Sequence<A>| {
            let (priority, rank) = sequence.run_order();
            (priority, rank, self.fairness.served(sequence.terms.tenant), sequence.number)
        };
        ready.min_by_key(|(_, sequence)| order(sequence)).map(|(index, _)| index)
    }

    /// Room for a sequence: a row, a place among those that run, blocks and slots; if need be at the cost of sequences of
    /// lower priority. It then holds what it needs.
    fn make_room(&mut self, sequence: &mut Sequence<A>, rows: &mut usize) -> bool {
        let priority = sequence.terms.priority;
        if *rows == 0 {
            *rows = self.take_prompt_rows(priority);
        }
        loop {
            if *rows > 0 && self.running.len() < self.running_max && self.reserve(sequence) {
                return true;
            }
            if self.running.last().is_none_or(|last| last.terms.priority >= priority) {
                return false;
            }
            self.preempt_last();
            *rows = self.rows_max.saturating_sub(self.planned_rows());
        }
    }

    /// Has the last prompt of a lower priority wait for the next step. How many rows that gives.
    fn take_prompt_rows(&mut self, priority: i8) -> usize {
        let lower = |other: &&mut Sequence<A>| other.terms.priority < priority && other.remaining() > 1;
        let last = self.running.iter_mut().rev().filter(lower).find(|other| other.planned > 0);
        last.map_or(0, |last| std::mem::take(&mut last.planned))
    }

    /// Blocks and slots, or nothing.
    fn reserve(&mut self, sequence: &mut Sequence<A>) -> bool {
        let wanted: Vec<_> = sequence.wanted_adapters().collect();
        let mut found = self.find_kv(sequence);
        if found.copied.is_some() && wanted.iter().any(|one| one.blocks > 0 && !self.slots.is_resident(one.digest)) {
            // An adapter may be loaded into the block that would be copied, and before it is.
            found =
                Found { tokens: found.tokens / self.blocks.block_tokens() * self.blocks.block_tokens(), copied: None };
        }
        let (length, salt) = (sequence.tokens().len(), sequence.terms.kv_salt);
        let missing = self.blocks.missing(&sequence.blocks, length);
        let brought = self.slots.missing_blocks(&wanted);
        let Self { blocks, slots, copies, loads, .. } = self;
        let memory = &mut SharedMemory { blocks, copies, loads };
        let Some(held) = slots.acquire(&wanted, missing, sequence.terms.tenant, memory) else {
            release(&mut self.blocks, &mut self.slots, sequence, false);
            return false;
        };
        sequence.slots = held;
        let grown = self.blocks.grow(&mut sequence.blocks, length, salt);
        debug_assert!(grown, "the blocks were counted");
        let block_tokens = self.blocks.block_tokens();
        let to = sequence.blocks.blocks().get(found.tokens / block_tokens).copied();
        // If the kept block had to be given up, to this very sequence, it has its content already.
        if let (Some(from), Some(to)) = (found.copied, to)
            && from != to
        {
            self.copies.push(BlockCopy { from, to });
            self.blocks.note_copied(to);
        }
        self.note_admitted(sequence, found.tokens, brought);
        true
    }

    /// `brought` are the blocks of adapters that are loaded for it: they count as the KV that would fill them, or whoever
    /// always brings another adapter would have the memory of many for the price of one.
    fn note_admitted(&mut self, sequence: &mut Sequence<A>, found: usize, brought: usize) {
        let (tenant, length) = (sequence.terms.tenant, sequence.tokens().len());
        self.counts.prefix_tokens_asked += length as u64;
        self.counts.prefix_tokens_found += found as u64;
        self.fairness.run(tenant);
        if sequence.rank.is_none() {
            // What has to be computed again is not this tenant's fault.
            let brought = brought.saturating_mul(self.blocks.block_tokens());
            self.fairness.charge_prompt(tenant, length.saturating_sub(found).saturating_add(brought));
        }
        sequence.admit(self.admissions, found, self.blocks.block_tokens());
        self.admissions += 1;
    }

    /// Shares all blocks that hold the beginning of a sequence. Its last token is always computed: what follows is drawn from
    /// it.
    fn find_kv(&mut self, sequence: &mut Sequence<A>) -> Found {
        let (length, block_tokens) = (sequence.tokens().len(), self.blocks.block_tokens());
        let whole = length.saturating_sub(1) / block_tokens;
        sequence.keys(block_tokens, &mut self.key_bytes);
        let (table, keys) = sequence.blocks_and_keys();
        let adopted = self.blocks.adopt(table, keys.get(..whole).unwrap_or_default());
        let mut found = Found { tokens: adopted * block_tokens, copied: None };
        if adopted == whole
            && length > 1
            && let Some(kept) = keys.get(whole).and_then(|key| self.blocks.find(key))
        {
            found = Found { tokens: length - 1, copied: Some(kept) };
        }
        if let Some((sibling, common)) = sibling(&self.running, sequence).filter(|(_, common)| *common > found.tokens) {
            self.blocks.release(&mut sequence.blocks);
            self.blocks.share(&sibling.blocks, common / block_tokens, &mut sequence.blocks);
            let begun = sibling.blocks.blocks().get(common / block_tokens).copied();
            found = Found { tokens: common, copied: begun.filter(|_| !common.is_multiple_of(block_tokens)) };
        }
        // Nothing before the last block is copied, and it only if the sequence begins inside it.
        if found.tokens.is_multiple_of(block_tokens) {
            found.copied = None;
        }
        found
    }

    /// Whether it is worth waiting: another one of its family computes the prompt and is not done. One that ran already does
    /// not wait, so that it keeps its place before those behind it.
    fn is_held(&self, sequence: &Sequence<A>) -> bool {
        let common = sequence.prompt_tokens().saturating_sub(1);
        sequence.rank.is_none() && sibling(&self.running, sequence).is_some_and(|(_, computed)| computed < common)
    }
}

/// The running one of the family that has computed most of the common prompt, and how much of that is of use.
fn sibling<'a, A>(running: &'a [Sequence<A>], sequence: &Sequence<A>) -> Option<(&'a Sequence<A>, usize)> {
    let family = sequence.family?;
    let siblings = running.iter().filter(|other| other.family == Some(family));
    let usable = |other: &Sequence<A>| other.computed.min(other.prompt_tokens());
    let best = siblings.max_by_key(|other| (usable(other), Reverse(other.number)))?;
    Some((best, usable(best).min(sequence.tokens().len().saturating_sub(1))))
}
