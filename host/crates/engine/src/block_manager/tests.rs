//! The block manager by itself: what it promises, and every state that a few blocks can come to beside a naive model.

use std::collections::{BTreeSet, VecDeque};

use super::*;

fn key(number: u8) -> Digest {
    Digest::of(&[number])
}

/// The one owner of all blocks, where owners do not matter.
fn nobody() -> Digest {
    Digest::from_bytes([0; 32])
}

#[test]
fn a_block_that_passes_to_another_owner_is_to_be_wiped_unless_it_is_copied_over() {
    let mut manager = BlockManager::new(3, 1);
    let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
    let mut table = BlockTable::default();
    let mut give = |manager: &mut BlockManager, tokens, owner| {
        manager.release(&mut table);
        assert!(manager.grow(&mut table, tokens, owner));
        let mut wipes = manager.wipes().to_vec();
        wipes.sort_unstable();
        wipes
    };
    assert_eq!(give(&mut manager, 2, one), [], "nobody had them");
    assert_eq!(give(&mut manager, 2, one), [], "the same owner");
    assert_eq!(give(&mut manager, 3, two), [0, 1], "the third is new");
    assert_eq!(give(&mut manager, 3, two), [0, 1], "not wiped yet, and not twice");
    manager.note_copied(1);
    assert_eq!(manager.wipes(), [0]);
    manager.clear_wipes();
    assert_eq!(give(&mut manager, 1, one).len(), 1);
    assert_eq!(give(&mut manager, 3, one).len(), 3, "the other two as well");
}

#[test]
fn tables_grow_by_whole_blocks() {
    let mut manager = BlockManager::new(4, 16);
    let mut table = BlockTable::default();
    for (tokens, blocks) in [(0, 0), (1, 1), (16, 1), (17, 2), (5, 2), (64, 4)] {
        assert!(manager.grow(&mut table, tokens, nobody()));
        assert_eq!(table.blocks().len(), blocks, "{tokens} tokens");
        assert_eq!(manager.available(), 4 - blocks);
        manager.check_integrity([&table].into_iter()).expect("conserved");
    }
    assert_eq!(table.blocks(), [0, 1, 2, 3]);
}

#[test]
fn too_many_blocks_change_nothing() {
    let mut manager = BlockManager::new(3, 1);
    let (mut one, mut two) = (BlockTable::default(), BlockTable::default());
    assert!(manager.grow(&mut one, 2, nobody()));
    assert!(!manager.grow(&mut two, 2, nobody()));
    assert!(two.blocks().is_empty());
    manager.release(&mut one);
    assert!(manager.grow(&mut two, 3, nobody()));
    manager.check_integrity([&one, &two].into_iter()).expect("conserved");
}

#[test]
fn a_lost_or_doubled_block_is_found() {
    let mut manager = BlockManager::new(2, 1);
    let mut table = BlockTable::default();
    assert!(manager.grow(&mut table, 1, nobody()));
    assert!(manager.check_integrity([].into_iter()).is_err(), "lost");
    assert!(manager.check_integrity([&table, &table].into_iter()).is_err(), "doubled");
}

#[test]
fn the_content_unused_for_longest_goes_first_and_the_end_of_a_table_before_its_beginning() {
    let mut manager = BlockManager::new(4, 1);
    let (mut old, mut new) = (BlockTable::default(), BlockTable::default());
    assert!(manager.grow(&mut old, 2, nobody()) && manager.grow(&mut new, 2, nobody()));
    (0..2).for_each(|index| manager.set_key(&old, index, key(index as u8)));
    (0..2).for_each(|index| manager.set_key(&new, index, key(10 + index as u8)));
    manager.release(&mut old);
    manager.release(&mut new);
    assert_eq!((manager.available(), manager.idle_blocks()), (4, 4), "idle counts as free");
    let mut table = BlockTable::default();
    for (tokens, left) in [(1, vec![0, 10, 11]), (2, vec![10, 11]), (3, vec![10]), (4, vec![])] {
        assert!(manager.grow(&mut table, tokens, nobody()));
        let found: Vec<u8> = [0, 1, 10, 11].into_iter().filter(|n| manager.find(&key(*n)).is_some()).collect();
        assert_eq!(found, left);
        manager.check_integrity([&table].into_iter()).expect("conserved");
    }
}

#[test]
fn what_is_used_again_is_not_evicted_and_not_given_away() {
    let mut manager = BlockManager::new(2, 1);
    let mut table = BlockTable::default();
    assert!(manager.grow(&mut table, 1, nobody()));
    manager.set_key(&table, 0, key(0));
    manager.release(&mut table);
    let (mut one, mut two) = (BlockTable::default(), BlockTable::default());
    assert_eq!(manager.adopt(&mut one, &[key(0), key(1)]), 1);
    assert_eq!(manager.adopt(&mut two, &[key(0)]), 1);
    assert_eq!(one.blocks(), two.blocks());
    assert!(!manager.grow(&mut one, 3, nobody()), "only one is left");
    assert!(manager.grow(&mut one, 2, nobody()));
    manager.release(&mut one);
    assert_eq!(manager.available(), 1, "the other table still holds it");
    manager.check_integrity([&two].into_iter()).expect("conserved");
}

const BLOCKS: u32 = 3;
const KEYS: u8 = 2;

#[derive(Clone, Copy, Debug)]
enum Operation {
    Grow { table: usize, tokens: usize },
    Release { table: usize },
    SetKey { table: usize, index: usize, key: u8 },
    Adopt { table: usize },
    Share { from: usize, count: usize },
}

fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    for table in 0..2 {
        all.extend((1..=BLOCKS as usize).map(|tokens| Operation::Grow { table, tokens }));
        all.extend([Operation::Release { table }, Operation::Adopt { table }]);
        all.extend((1..=2).map(|count| Operation::Share { from: table, count }));
        let places = (0..BLOCKS as usize).flat_map(|index| (0..KEYS).map(move |key| (index, key)));
        all.extend(places.map(|(index, key)| Operation::SetKey { table, index, key }));
    }
    all
}

/// What the manager does, said in the slowest way.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Model {
    tables: [Vec<u32>; 2],
    /// Which key each block has.
    keys: [Option<u8>; BLOCKS as usize],
    /// Oldest first.
    idle: Vec<u32>,
}

impl Model {
    fn is_held(&self, block: u32) -> bool {
        self.tables.iter().any(|table| table.contains(&block))
    }

    fn free(&self) -> BTreeSet<u32> {
        (0..BLOCKS).filter(|block| !self.is_held(*block) && !self.idle.contains(block)).collect()
    }

    fn holder_of(&self, key: u8) -> Option<u32> {
        (0..BLOCKS).find(|block| self.keys[*block as usize] == Some(key))
    }

    /// `None` if nothing may happen. Which of several free blocks is taken is read from the manager's table after it.
    fn apply(&mut self, operation: Operation, after: &[BlockTable; 2]) -> Option<()> {
        match operation {
            Operation::Grow { table, tokens } => {
                let missing = tokens.saturating_sub(self.tables[table].len());
                if missing > self.free().len() + self.idle.len() {
                    return None;
                }
                for _ in 0..missing {
                    let taken = *after[table].blocks().get(self.tables[table].len()).expect("it grew");
                    match self.free().is_empty() {
                        true => assert_eq!(self.idle.remove(0), taken, "the oldest is evicted"),
                        false => assert!(self.free().contains(&taken), "{taken} was not free"),
                    }
                    self.keys[taken as usize] = None;
                    self.tables[table].push(taken);
                }
            }
            Operation::Release { table } => {
                for block in std::mem::take(&mut self.tables[table]).into_iter().rev() {
                    if !self.is_held(block) && self.keys[block as usize].is_some() {
                        self.idle.push(block);
                    }
                }
            }
            Operation::SetKey { table, index, key } => {
                let block = *self.tables[table].get(index)?;
                if self.keys[block as usize].is_none() && self.holder_of(key).is_none() {
                    self.keys[block as usize] = Some(key);
                }
            }
            Operation::Adopt { table } => {
                for key in 0..KEYS {
                    let Some(block) = self.holder_of(key) else { break };
                    self.idle.retain(|idle| *idle != block);
                    self.tables[table].push(block);
                }
            }
            Operation::Share { from, count } => {
                let shared: Vec<u32> = self.tables[from].iter().copied().take(count).collect();
                self.tables[1 - from] = shared;
            }
        }
        Some(())
    }
}

/// The manager, and the tables that it filled.
#[derive(Clone)]
struct State {
    manager: BlockManager,
    tables: [BlockTable; 2],
    model: Model,
}

impl State {
    /// The state after this; `None` if the scheduler never does this here (tables begin by sharing, if at all).
    fn after(&self, operation: Operation) -> Option<Self> {
        let mut next = self.clone();
        let State { manager, tables, model } = &mut next;
        let mut grew = None;
        match operation {
            Operation::Grow { table, tokens } => grew = Some(manager.grow(&mut tables[table], tokens, nobody())),
            Operation::Release { table } => manager.release(&mut tables[table]),
            Operation::SetKey { table, index, key: number } => manager.set_key(&tables[table], index, key(number)),
            Operation::Adopt { table } if tables[table].blocks().is_empty() => {
                manager.adopt(&mut tables[table], &[key(0), key(1)]);
            }
            Operation::Share { from, count } if tables[1 - from].blocks().is_empty() => {
                let shared = tables[from].clone();
                manager.share(&shared, count, &mut tables[1 - from]);
            }
            Operation::Adopt { .. } | Operation::Share { .. } => return None,
        }
        let possible = model.apply(operation, tables).is_some();
        assert!(grew.is_none_or(|grew| grew == possible), "{operation:?}");
        next.check(operation);
        Some(next)
    }

    fn check(&self, operation: Operation) {
        let Self { manager, tables, model } = self;
        manager.check_integrity(tables.iter()).unwrap_or_else(|error| panic!("{operation:?}: {error}"));
        let blocks = [tables[0].blocks().to_vec(), tables[1].blocks().to_vec()];
        assert_eq!(blocks, model.tables, "{operation:?}");
        assert_eq!(manager.idle.iter().collect::<Vec<_>>(), model.idle, "{operation:?}");
        assert_eq!(manager.available(), model.free().len() + model.idle.len(), "{operation:?}");
        for number in 0..KEYS {
            assert_eq!(manager.find(&key(number)), model.holder_of(number), "{operation:?}");
        }
    }
}

#[test]
fn in_every_state_of_three_blocks_every_operation_does_what_the_model_does() {
    let first = State { manager: BlockManager::new(BLOCKS, 1), tables: Default::default(), model: Model::default() };
    let (mut seen, mut open) = (BTreeSet::new(), VecDeque::from([first]));
    while let Some(state) = open.pop_front() {
        for operation in operations() {
            let Some(next) = state.after(operation) else { continue };
            // The order of the free list is the manager's own, and the rest of its state is the model's.
            if seen.insert((next.model.clone(), next.manager.free.clone())) {
                open.push_back(next);
            }
        }
    }
    assert!(seen.len() > 500, "only {} states were met", seen.len());
}

#[test]
fn an_adapter_takes_no_block_that_is_still_copied_from_and_nothing_of_it_is_wiped() {
    let mut manager = BlockManager::new(4, 1);
    let (tenant, adapter) = (Digest::of(b"tenant"), Digest::of(b"adapter"));
    let (mut kept, mut taken) = (BlockTable::default(), BlockTable::default());
    assert!(manager.grow(&mut kept, 4, tenant));
    (0..4).for_each(|index| manager.set_key(&kept, index, key(index as u8)));
    manager.release(&mut kept);
    // The last of a table is the first to go.
    let copies = [BlockCopy { from: 3, to: 9 }, BlockCopy { from: 3, to: 8 }];
    assert_eq!(manager.unheld_of_copies(&copies), 1);
    assert!(!manager.take_for_adapter(&mut taken, 4, adapter, &copies), "one of four is not to be had");
    assert_eq!((taken.blocks().len(), manager.idle_blocks()), (0, 4), "nothing changed");
    assert!(manager.take_for_adapter(&mut taken, 2, adapter, &copies));
    assert_eq!(taken.blocks(), [2, 1]);
    assert!(!manager.wipes().contains(&1) && !manager.wipes().contains(&2), "the adapter is written over them");
    manager.check_integrity([&taken].into_iter()).expect("conserved");
    // Who has them next must not read an adapter.
    manager.clear_wipes();
    manager.release(&mut taken);
    assert!(manager.grow(&mut kept, 4, tenant));
    let mut wipes = manager.wipes().to_vec();
    wipes.sort_unstable();
    assert_eq!(wipes, [1, 2, 3], "the one that was passed over as well");
}
