//! Paged KV memory: which blocks are free and which belong to a sequence. Not here: what lies in them, and (yet) blocks
//! that sequences share.
//!
//! After `block_manager.py` of nano-vllm and PagedAttention (Kwon et al. 2023).

/// The blocks of one sequence, in order of position. Only a [`BlockManager`] fills and empties it.
#[derive(Debug, Default)]
pub(crate) struct BlockTable(Vec<u32>);

impl BlockTable {
    pub(crate) fn blocks(&self) -> &[u32] {
        &self.0
    }
}

/// Hands out blocks and takes them back. Free and used blocks add up to the total at all times.
#[derive(Debug)]
pub(crate) struct BlockManager {
    block_tokens: usize,
    total: u32,
    /// Used last, given first: its memory is warm.
    free: Vec<u32>,
}

impl BlockManager {
    /// `block_tokens` is at least 1.
    pub(crate) fn new(total: u32, block_tokens: u32) -> Self {
        let block_tokens = (block_tokens as usize).max(1);
        Self { block_tokens, total, free: (0..total).rev().collect() }
    }

    /// Blocks that hold this many tokens.
    pub(crate) const fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Makes the table long enough for this many tokens. If there are not enough free blocks it changes nothing and
    /// answers false.
    #[must_use]
    pub(crate) fn grow(&mut self, table: &mut BlockTable, tokens: usize) -> bool {
        let missing = self.blocks_for(tokens).saturating_sub(table.0.len());
        let Some(kept) = self.free.len().checked_sub(missing) else { return false };
        table.0.extend(self.free.drain(kept..).rev());
        true
    }

    /// Takes all blocks of a table back.
    pub(crate) fn release(&mut self, table: &mut BlockTable) {
        self.free.extend(table.0.drain(..).rev());
    }

    pub(crate) fn free_blocks(&self) -> u32 {
        u32::try_from(self.free.len()).unwrap_or(u32::MAX)
    }

    pub(crate) const fn total_blocks(&self) -> u32 {
        self.total
    }

    /// That every block is exactly once in the free list or in one of the tables, which are all there are.
    pub(crate) fn check_integrity<'a>(&self, tables: impl Iterator<Item = &'a BlockTable>) -> Result<(), String> {
        let mut blocks = self.free.clone();
        blocks.extend(tables.flat_map(BlockTable::blocks));
        blocks.sort_unstable();
        if blocks.iter().copied().eq(0..self.total) {
            return Ok(());
        }
        Err(format!(
            "{} blocks, of which {} are free, are not each in one place: {blocks:?}",
            self.total,
            self.free.len()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_grow_by_whole_blocks() {
        let mut manager = BlockManager::new(4, 16);
        let mut table = BlockTable::default();
        for (tokens, blocks) in [(0, 0), (1, 1), (16, 1), (17, 2), (5, 2), (64, 4)] {
            assert!(manager.grow(&mut table, tokens));
            assert_eq!(table.blocks().len(), blocks, "{tokens} tokens");
            assert_eq!(manager.free_blocks(), 4 - blocks as u32);
            manager.check_integrity([&table].into_iter()).expect("conserved");
        }
        assert_eq!(table.blocks(), [0, 1, 2, 3]);
    }

    #[test]
    fn too_many_blocks_change_nothing() {
        let mut manager = BlockManager::new(3, 1);
        let (mut one, mut two) = (BlockTable::default(), BlockTable::default());
        assert!(manager.grow(&mut one, 2));
        assert!(!manager.grow(&mut two, 2));
        assert!(two.blocks().is_empty());
        manager.release(&mut one);
        assert!(manager.grow(&mut two, 3));
        manager.check_integrity([&one, &two].into_iter()).expect("conserved");
    }

    #[test]
    fn a_lost_or_doubled_block_is_found() {
        let mut manager = BlockManager::new(2, 1);
        let mut table = BlockTable::default();
        assert!(manager.grow(&mut table, 1));
        assert!(manager.check_integrity([].into_iter()).is_err(), "lost");
        assert!(manager.check_integrity([&table, &table].into_iter()).is_err(), "doubled");
    }
}
