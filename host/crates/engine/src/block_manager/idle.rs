//! Blocks that keep what they hold though nobody uses them, the one unused for longest first. A list threaded through an
//! array: a block is put in, taken out of the middle and evicted in constant time, without allocating. Not here: what the
//! blocks hold.

/// No block.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Links {
    older: u32,
    newer: u32,
}

/// Which blocks are idle, in order of their last use.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct IdleBlocks {
    links: Vec<Links>,
    oldest: u32,
    newest: u32,
    length: usize,
}

impl IdleBlocks {
    /// None of `total` blocks is idle.
    pub(super) fn new(total: u32) -> Self {
        let links = vec![Links { older: NONE, newer: NONE }; total as usize];
        Self { links, oldest: NONE, newest: NONE, length: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.length
    }

    /// Puts in a block that is not in.
    pub(super) fn push(&mut self, block: u32) {
        let older = self.newest;
        self.set(block, Links { older, newer: NONE });
        match self.links.get_mut(older as usize) {
            Some(links) => links.newer = block,
            None => self.oldest = block,
        }
        self.newest = block;
        self.length += 1;
    }

    /// Takes out a block that is in.
    pub(super) fn remove(&mut self, block: u32) {
        let Some(Links { older, newer }) = self.links.get(block as usize).copied() else { return };
        match self.links.get_mut(older as usize) {
            Some(links) => links.newer = newer,
            None => self.oldest = newer,
        }
        match self.links.get_mut(newer as usize) {
            Some(links) => links.older = older,
            None => self.newest = older,
        }
        self.set(block, Links { older: NONE, newer: NONE });
        self.length = self.length.saturating_sub(1);
    }

    /// Takes out the one unused for longest.
    pub(super) fn pop_oldest(&mut self) -> Option<u32> {
        let block = self.oldest;
        (block != NONE).then(|| {
            self.remove(block);
            block
        })
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let newer = |block: &u32| self.links.get(*block as usize).map(|links| links.newer).filter(|next| *next != NONE);
        std::iter::successors(Some(self.oldest).filter(|block| *block != NONE), newer)
    }

    fn set(&mut self, block: u32, links: Links) {
        if let Some(place) = self.links.get_mut(block as usize) {
            *place = links;
        }
    }
}
