//! Paged KV memory: which blocks are free, which belong to sequences (to several, if these begin alike), and which keep a
//! known content that nobody uses now. Where a runner keeps adapters in the same memory they hold blocks like a sequence
//! (unified paging, after S-LoRA). Not here: what lies in the blocks, and how a content is named (`block_keys.rs`).
//!
//! After `block_manager.py` of nano-vllm, PagedAttention (Kwon et al. 2023) and vLLM's automatic prefix caching. A block with
//! a key is full and never written again, so that it can be shared without being copied; a sequence that has to write into a
//! block that it shares gets a block of its own and has the old one copied into it.

mod idle;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use types::Digest;

use self::idle::IdleBlocks;
use crate::BlockCopy;

/// The blocks of one sequence, in order of position. Only a [`BlockManager`] fills and empties it.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct BlockTable(Vec<u32>);

impl BlockTable {
    /// An empty table that does not allocate up to this many blocks.
    pub(crate) fn with_capacity(blocks: usize) -> Self {
        Self(Vec::with_capacity(blocks))
    }

    pub(crate) fn blocks(&self) -> &[u32] {
        &self.0
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// Tables that it is in.
    holders: u32,
    /// What it holds, if it is full and the first to hold that.
    key: Option<Digest>,
    /// Who may know what lies in it: whoever it was given to last.
    owner: Option<Digest>,
}

/// Hands out blocks and takes them back. A block is free, idle (nobody's, with a key) or held; together they are all.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct BlockManager {
    block_tokens: usize,
    blocks: Vec<Block>,
    /// Used last, given first: its memory is warm.
    free: Vec<u32>,
    idle: IdleBlocks,
    /// Held or idle.
    by_key: HashMap<Digest, u32>,
    /// Given to another owner than the last one, and not written since.
    wipes: Vec<u32>,
}

impl BlockManager {
    /// `block_tokens` is at least 1.
    pub(crate) fn new(total: u32, block_tokens: u32) -> Self {
        Self {
            block_tokens: (block_tokens as usize).max(1),
            blocks: vec![Block::default(); total as usize],
            free: (0..total).rev().collect(),
            idle: IdleBlocks::new(total),
            by_key: HashMap::with_capacity(total as usize),
            wipes: Vec::with_capacity(total as usize),
        }
    }

    pub(crate) const fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that hold this many tokens.
    pub(crate) const fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Makes the table long enough for this many tokens, with blocks that nobody else holds. What lies in those whose last
    /// owner was another one has to be wiped: see [`Self::wipes`]. If there are not enough it changes nothing and answers false. Idle blocks count as free and lose their content, the one unused for longest
    /// first.
    #[must_use]
    pub(crate) fn grow(&mut self, table: &mut BlockTable, tokens: usize, owner: Digest) -> bool {
        let missing = self.missing(table, tokens);
        if missing > self.available() {
            return false;
        }
        for _ in 0..missing {
            let Some(block) = self.take(owner) else { return false };
            table.0.push(block);
        }
        true
    }

    /// Extends the table by this many blocks for an adapter, `owner`, which is written over all of them before the next step
    /// begins: there is nothing to be wiped, and a block that this step still copies from, or into for one that was set
    /// back meanwhile, is not taken. If there are not enough it changes nothing and answers false.
    #[must_use]
    pub(crate) fn take_for_adapter(
        &mut self,
        table: &mut BlockTable,
        count: usize,
        owner: Digest,
        copies: &[BlockCopy],
    ) -> bool {
        if count + self.unheld_of_copies(copies) > self.available() {
            return false;
        }
        let mut passed_over = Vec::new();
        let before = table.0.len();
        while table.0.len() < before + count
            && let Some(number) = self.take(owner)
        {
            if copies.iter().any(|copy| copy.from == number || copy.to == number) {
                passed_over.push(number);
            } else {
                self.note_copied(number);
                table.0.push(number);
            }
        }
        // Free now: their key is gone, and what they hold is theirs until the copy.
        self.release(&mut BlockTable(passed_over));
        table.0.len() == before + count
    }

    /// Blocks that can be had, but not before these copies were made.
    pub(crate) fn unheld_of_copies(&self, copies: &[BlockCopy]) -> usize {
        let unheld = |number: u32| self.blocks.get(number as usize).is_some_and(|block| block.holders == 0);
        let all = || copies.iter().flat_map(|copy| [copy.from, copy.to]);
        all()
            .enumerate()
            .filter(|(index, number)| unheld(*number) && all().take(*index).all(|one| one != *number))
            .count()
    }

    /// Blocks that the table lacks for this many tokens.
    pub(crate) fn missing(&self, table: &BlockTable, tokens: usize) -> usize {
        self.blocks_for(tokens).saturating_sub(table.0.len())
    }

    /// Extends the table by the blocks that hold these keys, as far as there are any. How many.
    pub(crate) fn adopt(&mut self, table: &mut BlockTable, keys: &[Digest]) -> usize {
        let before = table.0.len();
        for key in keys {
            let Some(&block) = self.by_key.get(key) else { break };
            self.hold(block);
            table.0.push(block);
        }
        table.0.len() - before
    }

    /// Extends the table by the first `count` blocks of another one.
    pub(crate) fn share(&mut self, from: &BlockTable, count: usize, table: &mut BlockTable) {
        for &block in from.0.iter().take(count) {
            self.hold(block);
            table.0.push(block);
        }
    }

    /// The block that holds this key.
    pub(crate) fn find(&self, key: &Digest) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Notes that the block at this place of the table is full and what it holds. If another block holds the same it stays
    /// without a key.
    pub(crate) fn set_key(&mut self, table: &BlockTable, index: usize, key: Digest) {
        let Some(&number) = table.0.get(index) else { return };
        let Some(block) = self.blocks.get_mut(number as usize) else { return };
        if block.key.is_none() && !self.by_key.contains_key(&key) {
            block.key = Some(key);
            self.by_key.insert(key, number);
        }
    }

    /// Takes a table's blocks back. Those with a key keep their content for as long as there are others to give; the last of
    /// the table go before the first, which more sequences may begin with.
    pub(crate) fn release(&mut self, table: &mut BlockTable) {
        self.release_from(table, 0);
    }

    fn release_from(&mut self, table: &mut BlockTable, kept: usize) {
        for number in table.0.drain(kept..).rev() {
            let Some(block) = self.blocks.get_mut(number as usize) else { continue };
            block.holders = block.holders.saturating_sub(1);
            match (block.holders, block.key) {
                (0, None) => self.free.push(number),
                (0, Some(_)) => self.idle.push(number),
                _ => {}
            }
        }
    }

    /// Gives back what the table has beyond this many tokens; none of it is known to be full.
    pub(crate) fn shrink(&mut self, table: &mut BlockTable, tokens: usize) {
        let kept = self.blocks_for(tokens).min(table.0.len());
        self.release_from(table, kept);
    }

    /// Blocks that can be had, those that keep a content included.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    pub(crate) fn total_blocks(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    /// Blocks that keep a content though nobody uses them.
    pub(crate) fn idle_blocks(&self) -> u32 {
        u32::try_from(self.idle.len()).unwrap_or(u32::MAX)
    }

    /// Blocks to be wiped before the next step writes anything, and after its copies.
    pub(crate) fn wipes(&self) -> &[u32] {
        &self.wipes
    }

    /// What was to be wiped was.
    pub(crate) fn clear_wipes(&mut self) {
        self.wipes.clear();
    }

    /// Of one of those that were: it may not have been.
    pub(crate) fn wipe_again(&mut self, block: u32) {
        if !self.wipes.contains(&block) {
            self.wipes.push(block);
        }
    }

    /// Another block is copied over all of this one, or an adapter is written there: there is nothing left to be wiped.
    pub(crate) fn note_copied(&mut self, block: u32) {
        self.wipes.retain(|wiped| *wiped != block);
    }

    fn take(&mut self, owner: Digest) -> Option<u32> {
        let number = self.free.pop().or_else(|| self.idle.pop_oldest())?;
        let block = self.blocks.get_mut(number as usize)?;
        if let Some(key) = block.key.take() {
            self.by_key.remove(&key);
        }
        block.holders = 1;
        if block.owner.replace(owner).is_some_and(|last| last != owner) && !self.wipes.contains(&number) {
            self.wipes.push(number);
        }
        Some(number)
    }

    fn hold(&mut self, number: u32) {
        let Some(block) = self.blocks.get_mut(number as usize) else { return };
        block.holders += 1;
        if block.holders == 1 {
            self.idle.remove(number);
        }
    }

    /// That every block is free, idle or held, by as many as count it in `tables`, which are all there are; and that a block
    /// has a key if and only if it is found by it.
    pub(crate) fn check_integrity<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Result<(), String> {
        let mut holders = vec![0; self.blocks.len()];
        for table in tables {
            for (index, number) in table.0.iter().enumerate() {
                *holders.get_mut(*number as usize).ok_or_else(|| format!("block {number} does not exist"))? += 1;
                if table.0.iter().skip(index + 1).any(|other| other == number) {
                    return Err(format!("block {number} is twice in {table:?}"));
                }
            }
        }
        let mut unheld: Vec<u32> = self.free.iter().copied().chain(self.idle.iter()).collect();
        unheld.sort_unstable();
        let nobody = |(number, count): (u32, &u32)| (*count == 0).then_some(number);
        if !unheld.iter().copied().eq((0..).zip(&holders).filter_map(nobody)) {
            return Err(format!("not each block in one place: {unheld:?} are free or idle, {holders:?} the holders"));
        }
        if self.idle.iter().count() != self.idle.len() {
            return Err(format!("{} idle blocks are counted as {}", self.idle.iter().count(), self.idle.len()));
        }
        for (number, (block, count)) in (0..).zip(self.blocks.iter().zip(&holders)) {
            let of_key = block.key.map(|key| self.by_key.get(&key).copied());
            if block.holders != *count || of_key.is_some_and(|found| found != Some(number)) {
                return Err(format!("block {number} is {block:?}, has {count} holders and is found as {of_key:?}"));
            }
        }
        let keyed = |number: &u32| self.blocks.get(*number as usize).is_some_and(|block| block.key.is_some());
        if self.free.iter().any(keyed) || !self.idle.iter().all(|number| keyed(&number)) {
            return Err("a free block has a key or an idle one has none".into());
        }
        if self.by_key.len() != self.blocks.iter().filter(|block| block.key.is_some()).count() {
            return Err("a key is kept of no block".into());
        }
        Ok(())
    }
}
