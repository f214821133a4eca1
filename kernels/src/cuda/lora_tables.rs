//! The tables that the LoRA kernels read: what a slot holds, and which rows of a step have which adapters. Their twins in
//! C++ are at the top of `cuda/lora.cu`. Needs no device. Not here: where adapters lie, and the launches (`ops/lora.rs`).

use std::ops::Range;

use super::Plain;

/// Groups of modules that share an input, in each layer.
pub const LORA_GROUPS: usize = 4;
/// What ranks are padded to a multiple of, with zeros, in every piece.
pub const LORA_RANK_MULTIPLE: usize = 8;

/// Modules that share an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoraGroupId {
    /// q, k and v.
    Qkv = 0,
    /// o
    O = 1,
    /// gate and up
    GateUp = 2,
    /// down
    Down = 3,
}

impl LoraGroupId {
    /// In the order of a layer.
    pub const ALL: [Self; LORA_GROUPS] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// How many modules it has.
    #[must_use]
    pub const fn modules(self) -> usize {
        match self {
            Self::Qkv => 3,
            Self::GateUp => 2,
            Self::O | Self::Down => 1,
        }
    }

    /// The bit of its first module in [`LoraEntry::modules`].
    #[must_use]
    pub const fn first_module(self) -> u32 {
        match self {
            Self::Qkv => 0,
            Self::O => 3,
            Self::GateUp => 4,
            Self::Down => 6,
        }
    }
}

/// Pairs A, B of one slot, layer and group: all of them, or those whose ranks fit where they lie. Pieces add up.
///
/// The first one of (slot, layer, group) is number `(slot * layers + layer) * 4 + group` of the array; further ones lie
/// anywhere behind those.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraPiece {
    /// Address of bf16 `[sum of rank, inputs]`: the modules' ranks one after the other. A multiple of 16.
    pub a: u64,
    /// Addresses of bf16 `[outputs, rank]`, for each module. Multiples of 16.
    pub b: [u64; 3],
    /// DoRA's g - 1: addresses of f32 `[outputs]`, or 0. The same in every piece that has the module.
    pub growth: [u64; 3],
    /// s: what a module's B(Ax) is multiplied by.
    pub scale: [f32; 3],
    /// Ranks, multiples of [`LORA_RANK_MULTIPLE`]; 0 where the piece has nothing of the module.
    pub rank: [u32; 3],
    /// Ranks of the pieces before this one.
    pub row: u32,
    /// The number of the next piece, or [`LoraPiece::LAST`].
    pub next: u32,
    /// Unused.
    pub padding: [u32; 2],
}

impl LoraPiece {
    /// There is no next piece.
    pub const LAST: u32 = u32::MAX;
    /// What changes nothing: for the groups that an adapter does not have, and for empty slots.
    pub const EMPTY: Self = Self {
        a: 0,
        b: [0; 3],
        growth: [0; 3],
        scale: [0.0; 3],
        rank: [0; 3],
        row: 0,
        next: Self::LAST,
        padding: [0; 2],
    };
}

/// One adapter over one run of rows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraEntry {
    /// Which.
    pub slot: u32,
    /// w: how much of it.
    pub weight: f32,
    /// What it acts on: bits 0 to 6 are q, k, v, o, gate, up and down.
    pub modules: u32,
    /// The first layer that it acts on.
    pub layer_from: u32,
    /// The first that it does not act on any more.
    pub layer_to: u32,
    /// Where its Ax lie: values from the start of a part.
    pub tmp: u32,
    /// Values from one row's Ax to the next one's, a multiple of 8: the slot's largest sum of ranks in a group.
    pub stride: u32,
    /// The run's first row.
    pub row: u32,
}

/// Some rows of one run: what a block works on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoraItem {
    /// The first.
    pub row: u32,
    /// How many: at least 1, at most [`LoraTile::rows`].
    pub rows: u32,
    /// Their entries, in order.
    pub entry_begin: u32,
    /// The first that is not theirs.
    pub entry_end: u32,
}

const _: () = assert!(size_of::<LoraPiece>() == 96 && size_of::<LoraEntry>() == 32 && size_of::<LoraItem>() == 16);

// SAFETY: `repr(C)` numbers without padding, as their sizes above show; every pattern of bytes is a value.
unsafe impl Plain for LoraPiece {}
// SAFETY: as above.
unsafe impl Plain for LoraEntry {}
// SAFETY: as above.
unsafe impl Plain for LoraItem {}

/// Rows of an item; all items of a step have the same tile. It never decides the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraTile {
    /// Up to 8: for steps of single rows.
    Rows8,
    /// Up to 32: where runs are long.
    Rows32,
}

impl LoraTile {
    /// The most rows of an item.
    #[must_use]
    pub const fn rows(self) -> u32 {
        match self {
            Self::Rows8 => 8,
            Self::Rows32 => 32,
        }
    }
}

/// What one adapter of a run is, for [`LoraTables::push_run`].
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTerm {
    /// [`LoraEntry::slot`]
    pub slot: u32,
    /// [`LoraEntry::weight`]
    pub weight: f32,
    /// [`LoraEntry::modules`]
    pub modules: u32,
    /// Layers that it acts on.
    pub layers: Range<u32>,
    /// [`LoraEntry::stride`]
    pub stride: u32,
}

/// The entries and items of a step, filled run by run without allocating.
#[derive(Clone, Debug)]
pub struct LoraTables {
    tile: LoraTile,
    entries_max: usize,
    items_max: usize,
    tmp_floats_max: u32,
    entries: Vec<LoraEntry>,
    items: Vec<LoraItem>,
    tmp_floats: u32,
}

impl LoraTables {
    /// Empty, with room for as much as the device's copies have.
    #[must_use]
    pub fn new(entries_max: usize, items_max: usize, tmp_floats_max: u32) -> Self {
        let (entries, items) = (Vec::with_capacity(entries_max), Vec::with_capacity(items_max));
        Self { tile: LoraTile::Rows8, entries_max, items_max, tmp_floats_max, entries, items, tmp_floats: 0 }
    }

    /// Empties them for a step or a pass of one.
    pub fn clear(&mut self, tile: LoraTile) {
        self.tile = tile;
        self.entries.clear();
        self.items.clear();
        self.tmp_floats = 0;
    }

    /// Adds neighbouring rows that have the same terms, of which there is at least one, and says how many of the rows it
    /// had room for: the others go into another pass, after a `clear`. A row that never fits is a bug of the sizes.
    pub fn push_run(&mut self, rows: Range<u32>, terms: &[LoraTerm]) -> u32 {
        let room = self.room(rows.end.saturating_sub(rows.start), terms);
        if room == 0 || terms.is_empty() {
            return 0;
        }
        let entry_begin = self.entries.len() as u32;
        for term in terms {
            self.entries.push(LoraEntry {
                slot: term.slot,
                weight: term.weight,
                modules: term.modules,
                layer_from: term.layers.start,
                layer_to: term.layers.end,
                tmp: self.tmp_floats,
                stride: term.stride,
                row: rows.start,
            });
            self.tmp_floats += room * term.stride;
        }
        let entry_end = self.entries.len() as u32;
        for first in (0..room).step_by(self.tile.rows() as usize) {
            let count = self.tile.rows().min(room - first);
            self.items.push(LoraItem { row: rows.start + first, rows: count, entry_begin, entry_end });
        }
        room
    }

    /// How many of `rows` rows with these terms there is room for.
    fn room(&self, rows: u32, terms: &[LoraTerm]) -> u32 {
        if self.entries_max - self.entries.len() < terms.len() {
            return 0;
        }
        let stride: u64 = terms.iter().map(|term| u64::from(term.stride)).sum();
        let by_tmp = u64::from(self.tmp_floats_max - self.tmp_floats).checked_div(stride).unwrap_or(u64::from(rows));
        let by_items = (self.items_max - self.items.len()) as u64 * u64::from(self.tile.rows());
        u64::from(rows).min(by_tmp).min(by_items) as u32
    }

    /// Rows of an item.
    #[must_use]
    pub fn tile(&self) -> LoraTile {
        self.tile
    }

    /// What items refer to.
    #[must_use]
    pub fn entries(&self) -> &[LoraEntry] {
        &self.entries
    }

    /// What blocks work on.
    #[must_use]
    pub fn items(&self) -> &[LoraItem] {
        &self.items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(slot: u32, stride: u32) -> LoraTerm {
        LoraTerm { slot, weight: 1.0, modules: 127, layers: 0..9, stride }
    }

    #[test]
    fn runs_become_items_with_memory_of_their_own() {
        let mut tables = LoraTables::new(4, 8, 4096);
        tables.clear(LoraTile::Rows8);
        assert_eq!(tables.push_run(0..1, &[term(3, 48)]), 1);
        assert_eq!(tables.push_run(5..25, &[term(0, 16), term(3, 48)]), 20);
        let items: Vec<_> =
            tables.items().iter().map(|item| (item.row, item.rows, item.entry_begin, item.entry_end)).collect();
        assert_eq!(items, [(0, 1, 0, 1), (5, 8, 1, 3), (13, 8, 1, 3), (21, 4, 1, 3)]);
        let entries: Vec<_> =
            tables.entries().iter().map(|entry| (entry.slot, entry.tmp, entry.stride, entry.row)).collect();
        assert_eq!(entries, [(3, 0, 48, 0), (0, 48, 16, 5), (3, 48 + 20 * 16, 48, 5)]);
        tables.clear(LoraTile::Rows32);
        assert_eq!(tables.push_run(5..25, &[term(0, 16)]), 20);
        assert_eq!((tables.items().len(), tables.entries()[0].tmp), (1, 0));
    }

    #[test]
    fn what_does_not_fit_is_left_for_another_pass() {
        let mut tables = LoraTables::new(3, 3, 1000);
        tables.clear(LoraTile::Rows8);
        // By values: 15 rows of 64.
        assert_eq!(tables.push_run(0..20, &[term(0, 16), term(1, 48)]), 15);
        assert_eq!(tables.push_run(15..20, &[term(0, 16), term(1, 48)]), 0);
        // By entries, and by items.
        assert_eq!(tables.push_run(15..16, &[term(0, 16)]), 1);
        assert_eq!(tables.push_run(16..17, &[term(0, 16)]), 0);
        tables.clear(LoraTile::Rows8);
        assert_eq!(tables.push_run(0..100, &[term(0, 8)]), 24);
        assert_eq!(tables.push_run(24..100, &[term(0, 8)]), 0);
        assert_eq!(tables.items().iter().map(|item| item.rows).sum::<u32>(), 24);
    }
}
