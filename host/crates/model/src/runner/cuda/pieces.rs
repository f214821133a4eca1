//! How an adapter lies in the blocks that it is given: its matrices one after the other, none across a block's end. One that
//! is too large for a block is cut by rank: B·A of rank 64 is the exact sum of four products of rank 16. Not here: the copy to
//! the device, and the kernels' descriptors (`adapters.rs`).

use std::ops::Range;

use types::Module;

use crate::ModelConfig;
use crate::adapter::{DeviceFactors, DeviceTerm, Group, RANK_MULTIPLE};

/// Matrices begin at a multiple of it: what a warp reads at once.
const ALIGN_BYTES: usize = 128;
const FACTOR_BYTES: usize = size_of::<u16>();
/// Modules of a group, at most.
pub(super) const GROUP_MODULES: usize = 3;

/// Every group of modules, in the order of execution and of the kernels' descriptors.
pub(super) const ALL_GROUPS: [Group; 4] = [Group::QueryKeyValue, Group::Output, Group::GateUp, Group::Down];

/// A place in an adapter's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Of the adapter's blocks, in their order.
    pub(super) block: usize,
    /// In bytes.
    pub(super) offset: usize,
}

/// A part of the change that an adapter makes to one group of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) layer: usize,
    pub(super) group: Group,
    /// bf16: the ranks of its modules one after the other, `[Σ rank, inputs]`.
    pub(super) a: Place,
    /// By place in the group.
    pub(super) modules: [Option<PieceModule>; GROUP_MODULES],
}

/// One module's part of a piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PieceModule {
    /// Of [`DeviceFactors::terms`].
    pub(super) term: usize,
    /// Of the term's ranks.
    pub(super) ranks: Range<usize>,
    /// bf16 `[outputs, ranks]`
    pub(super) b: Place,
    /// f32 `[outputs]`: the term's, shared by its pieces.
    pub(super) growth: Option<Place>,
}

/// Where everything of an adapter goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Placement {
    /// In the order of layers and groups; those of one group are neighbours.
    pub(super) pieces: Vec<Piece>,
    /// Blocks that it takes.
    pub(super) blocks: usize,
}

impl Placement {
    /// `None` if a matrix of the least rank is larger than a block: see [`least_block_bytes`].
    pub(super) fn of(factors: &DeviceFactors, block_bytes: usize) -> Option<Self> {
        let mut shelf = Shelf { block_bytes, block: 0, used: 0 };
        let mut pieces = Vec::new();
        let terms = factors.terms();
        let mut first = 0;
        while let Some(term) = terms.get(first) {
            let (layer, group) = (term.layer, group_of(term.module));
            let alike = |other: &&DeviceTerm| other.layer == layer && group_of(other.module) == group;
            let count = terms.iter().skip(first).take_while(alike).count();
            place_group(terms, first..first + count, group, &mut shelf, &mut pieces)?;
            first += count;
        }
        let blocks = if pieces.is_empty() { 0 } else { shelf.block + 1 };
        Some(Self { pieces, blocks })
    }

    /// How many pieces the group has that is cut most.
    pub(super) fn pieces_of_a_group_max(&self) -> usize {
        let same = |one: &Piece, two: &Piece| one.layer == two.layer && one.group == two.group;
        self.pieces.chunk_by(same).map(<[Piece]>::len).max().unwrap_or(0)
    }
}

/// Fills blocks from their start to their end.
struct Shelf {
    block_bytes: usize,
    block: usize,
    used: usize,
}

impl Shelf {
    /// The next place for so many bytes, in another block if this one has no room; `None` if none could have.
    fn take(&mut self, bytes: usize) -> Option<Place> {
        if bytes > self.block_bytes {
            return None;
        }
        let mut offset = self.used.next_multiple_of(ALIGN_BYTES);
        if offset + bytes > self.block_bytes {
            self.block += 1;
            offset = 0;
        }
        self.used = offset + bytes;
        Some(Place { block: self.block, offset })
    }
}

/// Every module in pieces of as many ranks as fit a block.
fn place_group(
    terms: &[DeviceTerm],
    own: Range<usize>,
    group: Group,
    shelf: &mut Shelf,
    pieces: &mut Vec<Piece>,
) -> Option<()> {
    let own_terms = terms.get(own.clone())?;
    let layer = own_terms.first()?.layer;
    let ranks_max = ranks_of_a_piece(own_terms, shelf.block_bytes)?;
    let mut growths = [None; GROUP_MODULES];
    for (growth, term) in growths.iter_mut().zip(own_terms) {
        if term.growth.is_some() {
            *growth = Some(shelf.take(term.outputs * size_of::<f32>())?);
        }
    }
    let all = own_terms.iter().map(|term| term.rank).max()?;
    for begin in (0..all).step_by(ranks_max) {
        let part = |term: &DeviceTerm| begin.min(term.rank)..(begin + ranks_max).min(term.rank);
        let a_bytes: usize = own_terms.iter().map(|term| part(term).len() * term.inputs * FACTOR_BYTES).sum();
        let a = shelf.take(a_bytes)?;
        let mut modules = [const { None }; GROUP_MODULES];
        for ((index, term), growth) in own.clone().zip(own_terms).zip(growths) {
            let ranks = part(term);
            if !ranks.is_empty() {
                let b = shelf.take(ranks.len() * term.outputs * FACTOR_BYTES)?;
                let place = group.modules().iter().position(|module| *module == term.module)?;
                *modules.get_mut(place)? = Some(PieceModule { term: index, ranks, b, growth });
            }
        }
        pieces.push(Piece { layer, group, a, modules });
    }
    Some(())
}

/// Ranks of every module in one piece, so that A of all of them and each B fits a block.
fn ranks_of_a_piece(terms: &[DeviceTerm], block_bytes: usize) -> Option<usize> {
    let fits = |ranks: usize| {
        let a: usize = terms.iter().map(|term| ranks.min(term.rank) * term.inputs * FACTOR_BYTES).sum();
        a <= block_bytes && terms.iter().all(|term| ranks.min(term.rank) * term.outputs * FACTOR_BYTES <= block_bytes)
    };
    let all = terms.iter().map(|term| term.rank).max()?;
    (1..=all.div_ceil(RANK_MULTIPLE)).rev().map(|eights| eights * RANK_MULTIPLE).find(|ranks| fits(*ranks))
}

fn group_of(module: Module) -> Group {
    ALL_GROUPS.into_iter().find(|group| group.modules().contains(&module)).unwrap_or(Group::Down)
}

/// A block of this size holds every matrix of the least rank of any adapter for this base.
pub(super) fn least_block_bytes(config: &ModelConfig) -> usize {
    let of_group = |group: Group| {
        let shapes = group.modules().iter().map(|module| config.module_shape(*module));
        let a: usize = shapes.clone().map(|(inputs, _)| inputs * RANK_MULTIPLE * FACTOR_BYTES).sum();
        let b = shapes.map(|(_, outputs)| outputs * RANK_MULTIPLE * FACTOR_BYTES).max().unwrap_or(0);
        a.max(b)
    };
    ALL_GROUPS.into_iter().map(of_group).max().unwrap_or(0)
}

/// Pieces of a group, at most, of an adapter whose modules have ranks up to `rank_max`.
pub(super) fn pieces_max(config: &ModelConfig, rank_max: usize, block_bytes: usize) -> usize {
    let rank = rank_max.next_multiple_of(RANK_MULTIPLE);
    let of_group = |group: Group| {
        let term = |module: &Module| {
            let (inputs, outputs) = config.module_shape(*module);
            DeviceTerm { layer: 0, module: *module, rank, inputs, outputs, scale: 1.0, a: 0, b: 0, growth: None }
        };
        let terms: Vec<DeviceTerm> = group.modules().iter().map(term).collect();
        ranks_of_a_piece(&terms, block_bytes).map_or(rank / RANK_MULTIPLE, |ranks| rank.div_ceil(ranks))
    };
    ALL_GROUPS.into_iter().map(of_group).max().unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::tiny_config;

    fn factors(ranks: &[(usize, Module, usize, bool)]) -> DeviceFactors {
        let config = tiny_config(2);
        let terms = ranks.iter().map(|(layer, module, rank, grows)| {
            DeviceTerm::new(*layer, *module, *rank, config.module_shape(*module), 1.0, *grows)
        });
        DeviceFactors::of_zeros(terms.collect(), 2)
    }

    /// Every byte range that a placement uses.
    fn ranges(factors: &DeviceFactors, placement: &Placement) -> Vec<(usize, Range<usize>)> {
        let mut ranges = Vec::new();
        for piece in &placement.pieces {
            let modules = piece.modules.iter().flatten();
            let a: usize = modules.clone().map(|one| one.ranks.len() * factors.terms()[one.term].inputs * 2).sum();
            ranges.push((piece.a.block, piece.a.offset..piece.a.offset + a));
            for module in modules {
                let term = &factors.terms()[module.term];
                let b = module.ranks.len() * term.outputs * 2;
                ranges.push((module.b.block, module.b.offset..module.b.offset + b));
                if let Some(at) = module.growth
                    && module.ranks.start == 0
                {
                    ranges.push((at.block, at.offset..at.offset + term.outputs * 4));
                }
            }
        }
        ranges
    }

    #[test]
    fn every_rank_lies_once_inside_a_block_and_nothing_overlaps() {
        let all = Module::ALL.into_iter().enumerate();
        let some =
            all.flat_map(|(index, module)| [(0, module, 8 * (index + 1), index % 2 == 0), (1, module, 64, false)]);
        let mut some: Vec<_> = some.collect();
        some.sort_by_key(|(layer, module, ..)| (*layer, module.index()));
        let factors = factors(&some);
        let least = least_block_bytes(&tiny_config(2));
        for block_bytes in [least, least + 1000, 3 * least, 1 << 20] {
            let placement = Placement::of(&factors, block_bytes).expect("it fits");
            let mut ranges = ranges(&factors, &placement);
            ranges.sort_by_key(|(block, range)| (*block, range.start));
            assert!(ranges.iter().all(|(block, range)| *block < placement.blocks && range.end <= block_bytes));
            assert!(ranges.iter().all(|(_, range)| range.start.is_multiple_of(ALIGN_BYTES)));
            for pair in ranges.windows(2) {
                assert!(pair[0].0 < pair[1].0 || pair[0].1.end <= pair[1].1.start, "{pair:?} in {block_bytes}");
            }
            for (index, term) in factors.terms().iter().enumerate() {
                let own = placement.pieces.iter().flat_map(|piece| piece.modules.iter().flatten());
                let ranks: Vec<usize> = own.filter(|one| one.term == index).flat_map(|one| one.ranks.clone()).collect();
                assert_eq!(ranks, (0..term.rank).collect::<Vec<_>>(), "of {:?}", term.module);
            }
            let most = pieces_max(&tiny_config(2), 64, block_bytes);
            assert!(placement.pieces_of_a_group_max() <= most, "{} and {most}", placement.pieces_of_a_group_max());
        }
        assert_eq!(Placement::of(&factors, 1 << 20).map(|placement| placement.blocks), Some(1));
        assert_eq!(Placement::of(&factors, least - 1), None, "a block that is too small");
    }

    #[test]
    fn an_adapter_without_changes_takes_nothing() {
        assert_eq!(Placement::of(&factors(&[]), 4096), Some(Placement::default()));
    }
}
