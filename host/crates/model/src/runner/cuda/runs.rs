//! From a batch's segments to what the LoRA kernels walk over: runs of neighbouring rows with the same adapters, cut into
//! items of a few rows, in passes that find room in the kernels' scratch memory. Not here: the adapters themselves.

use std::ops::Range;

use engine::{LoraSegment, Slot};
use types::Module;

/// One adapter over the rows of one run: `LoraEntry` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RunEntry {
    pub(super) slot: u32,
    pub(super) weight: f32,
    /// A bit for each module, in the order of [`Module::ALL`].
    pub(super) modules: u32,
    pub(super) layers: [u32; 2],
    /// Where its A x begins in the scratch memory, in f32.
    pub(super) scratch: u32,
    /// Values of a row there.
    pub(super) stride: u32,
    /// The first row of its run.
    pub(super) row: u32,
}

/// A few rows of a run: `LoraItem` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunItem {
    pub(super) row: u32,
    pub(super) rows: u32,
    pub(super) entries: [u32; 2],
}

/// Where adapters apply in one step. Keeps its memory from step to step.
#[derive(Debug, Default)]
pub(super) struct Runs {
    pub(super) entries: Vec<RunEntry>,
    pub(super) items: Vec<RunItem>,
    /// Items that are executed together, one range after the other; more than one if the scratch memory is too small for all.
    pub(super) passes: Vec<Range<u32>>,
    /// Segments by first row.
    starts: Vec<u32>,
    /// Those that cover the row that was come to, in the batch's order.
    active: Vec<u32>,
}

/// Sizes that a step keeps to.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunLimits {
    /// Rows of an item.
    pub(super) tile_rows: u32,
    /// Values of the scratch memory.
    pub(super) scratch: u32,
}

impl Runs {
    pub(super) fn with_capacity(rows: usize, entries: usize) -> Self {
        Self {
            entries: Vec::with_capacity(entries),
            items: Vec::with_capacity(rows),
            passes: Vec::with_capacity(16),
            starts: Vec::with_capacity(entries),
            active: Vec::with_capacity(64),
        }
    }

    /// Of these segments, which may overlap: a row's adapters are in their order. `stride_of` says how many values A x of a
    /// slot's adapter has at most; a slot of 0 changes nothing. False if a single row has no room in the scratch memory.
    #[must_use]
    pub(super) fn build(
        &mut self,
        segments: &[LoraSegment],
        limits: RunLimits,
        stride_of: impl Fn(Slot) -> u32,
    ) -> bool {
        self.entries.clear();
        self.items.clear();
        self.passes.clear();
        self.active.clear();
        self.starts.clear();
        let acts = |segment: &LoraSegment| !segment.rows.is_empty() && stride_of(segment.slot) > 0;
        self.starts.extend((0u32..).zip(segments).filter(|(_, segment)| acts(segment)).map(|(index, _)| index));
        let first_row = |index: u32| segments.get(index as usize).map_or(0, |segment| segment.rows.start);
        self.starts.sort_unstable_by_key(|index| (first_row(*index), *index));
        let (mut next, mut row, mut used, mut pass) = (0, 0, 0u32, 0u32);
        loop {
            let end_of = |index: &u32| segments.get(*index as usize).map_or(0, |segment| segment.rows.end);
            self.active.retain(|index| end_of(index) > row);
            while let Some(&index) = self.starts.get(next)
                && first_row(index) <= row
            {
                let place = self.active.partition_point(|other| *other < index);
                self.active.insert(place, index);
                next += 1;
            }
            let following = self.starts.get(next).map(|index| first_row(*index));
            let Some(end) = self.active.iter().map(end_of).chain(following).min() else { break };
            if !self.active.is_empty() && !self.add_run(segments, row..end, limits, &stride_of, &mut used, &mut pass) {
                return false;
            }
            row = end;
        }
        self.end_pass(&mut pass);
        true
    }

    /// In as many parts as passes need.
    fn add_run(
        &mut self,
        segments: &[LoraSegment],
        rows: Range<u32>,
        limits: RunLimits,
        stride_of: impl Fn(Slot) -> u32,
        used: &mut u32,
        pass: &mut u32,
    ) -> bool {
        let strides = self.active.iter().filter_map(|index| segments.get(*index as usize));
        let row_values: u32 = strides.map(|segment| stride_of(segment.slot)).sum();
        if row_values > limits.scratch {
            return false;
        }
        let mut row = rows.start;
        while row < rows.end {
            let room = (limits.scratch - *used) / row_values.max(1);
            // What begins in this pass and is cut is cut where tiles end.
            let whole = if room < rows.end - row { room - room % limits.tile_rows } else { room };
            // A pass that holds less than a tile is full of it all the same.
            let room = if whole == 0 && *used == 0 { room } else { whole };
            if room == 0 && *used > 0 {
                self.end_pass(pass);
                *used = 0;
                continue;
            }
            let end = (row + room.max(1)).min(rows.end);
            self.add_entries(segments, row..end, used, &stride_of);
            let entries = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
            let own = entries - u32::try_from(self.active.len()).unwrap_or(0);
            for first in (row..end).step_by(limits.tile_rows as usize) {
                let rows = (end - first).min(limits.tile_rows);
                self.items.push(RunItem { row: first, rows, entries: [own, entries] });
            }
            row = end;
        }
        true
    }

    fn add_entries(
        &mut self,
        segments: &[LoraSegment],
        rows: Range<u32>,
        used: &mut u32,
        stride_of: impl Fn(Slot) -> u32,
    ) {
        for segment in self.active.iter().filter_map(|index| segments.get(*index as usize)) {
            let stride = stride_of(segment.slot);
            let bit = |module: Module| u32::from(segment.modules.contains(module)) << module.index();
            self.entries.push(RunEntry {
                slot: segment.slot.0,
                weight: segment.weight,
                modules: Module::ALL.into_iter().map(bit).sum(),
                layers: [segment.layers.first, segment.layers.end],
                scratch: *used,
                stride,
                row: rows.start,
            });
            *used += stride * (rows.end - rows.start);
        }
    }

    fn end_pass(&mut self, first: &mut u32) {
        let end = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        if end > *first {
            self.passes.push(*first..end);
        }
        *first = end;
    }
}

#[cfg(test)]
mod tests {
    use types::{LayerRange, ModuleSet};

    use super::*;

    fn segment(rows: Range<u32>, slot: u32, weight: f32) -> LoraSegment {
        LoraSegment { rows, slot: Slot(slot), weight, modules: ModuleSet::ALL, layers: LayerRange::ALL }
    }

    /// What acts on each row, in order, by the segments and by the runs.
    fn check(segments: &[LoraSegment], rows: u32, limits: RunLimits) -> Runs {
        let stride_of = |slot: Slot| if slot.0 == 9 { 0 } else { 8 * (slot.0 + 1) };
        let mut runs = Runs::default();
        assert!(runs.build(segments, limits, stride_of));
        let passes: Vec<u32> = runs.passes.iter().flat_map(Clone::clone).collect();
        assert_eq!(passes, (0..runs.items.len() as u32).collect::<Vec<_>>(), "every item in one pass");
        for row in 0..rows {
            let expected = segments.iter().filter(|one| one.rows.contains(&row) && one.slot.0 != 9);
            let expected: Vec<_> = expected.map(|one| (one.slot.0, one.weight.to_bits())).collect();
            let own: Vec<&RunItem> =
                runs.items.iter().filter(|item| (item.row..item.row + item.rows).contains(&row)).collect();
            assert!(own.len() <= 1, "row {row} is in {own:?}");
            let found = own.iter().flat_map(|item| &runs.entries[item.entries[0] as usize..item.entries[1] as usize]);
            assert_eq!(found.map(|one| (one.slot, one.weight.to_bits())).collect::<Vec<_>>(), expected, "row {row}");
        }
        for pass in &runs.passes {
            let mut used = std::collections::BTreeSet::new();
            for item in &runs.items[pass.start as usize..pass.end as usize] {
                assert!(item.rows <= limits.tile_rows);
                for entry in &runs.entries[item.entries[0] as usize..item.entries[1] as usize] {
                    assert!(entry.row <= item.row);
                    let first = entry.scratch + (item.row - entry.row) * entry.stride;
                    let own = first..first + item.rows * entry.stride;
                    assert!(own.end <= limits.scratch && own.into_iter().all(|at| used.insert(at)), "shared scratch");
                }
            }
        }
        runs
    }

    #[test]
    fn rows_keep_their_adapters_in_order() {
        let limits = RunLimits { tile_rows: 8, scratch: 1 << 20 };
        let runs = check(&[segment(0..3, 0, 1.0), segment(3..40, 1, 2.0), segment(1..20, 2, 0.5)], 50, limits);
        assert_eq!((runs.passes.len(), runs.items.len()), (1, 1 + 1 + 3 + 3));
        // The first of a row is not the first to begin.
        check(
            &[segment(5..9, 0, 1.0), segment(0..9, 1, 2.0), segment(2..3, 0, 3.0), segment(4..4, 2, 1.0)],
            12,
            limits,
        );
        check(&[segment(0..9, 9, 1.0)], 12, limits);
        assert!(check(&[], 4, limits).items.is_empty());
    }

    #[test]
    fn what_finds_no_room_at_once_is_done_in_passes() {
        let segments = [segment(0..100, 0, 1.0), segment(10..60, 1, 1.0), segment(70..71, 2, 1.0)];
        for (tile_rows, scratch) in [(8, 24), (8, 200), (32, 24), (32, 1000)] {
            let scratch = scratch.max(32);
            let runs = check(&segments, 100, RunLimits { tile_rows, scratch });
            assert!(runs.passes.len() > 1, "{tile_rows} {scratch}");
        }
        let mut runs = Runs::default();
        assert!(!runs.build(&segments, RunLimits { tile_rows: 8, scratch: 23 }, |slot| 8 * (slot.0 + 1)));
    }

    #[test]
    fn random_segments_keep_every_row() {
        let mut state = 1u32;
        let mut draw = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..300 {
            let count = draw(12);
            let segments = (0..count).map(|_| {
                let start = draw(30);
                segment(start..start + draw(20), [0, 1, 2, 9][draw(4) as usize], draw(7) as f32)
            });
            let segments: Vec<_> = segments.collect();
            let scratch = 24 * 12 + draw(2000);
            check(&segments, 55, RunLimits { tile_rows: [8, 32][draw(2) as usize], scratch });
        }
    }

    #[test]
    fn a_pass_that_holds_less_than_a_tile_is_full() {
        // Rows of 6 times 64 values, 28 of them in a pass.
        let segments: Vec<_> = (0..6).map(|_| segment(0..512, 7, 1.0)).collect();
        let runs = check(&segments, 512, RunLimits { tile_rows: 32, scratch: 28 * 6 * 64 });
        assert_eq!(runs.passes.len(), 512usize.div_ceil(28));
    }
}
