//! Cuts the rows of a step into pieces under the same runs, and says how threads share them. Not here: the arithmetic,
//! whose bits do not depend on any of this.

use std::ops::Range;

use super::LoraRun;
use super::shrink::ROWS;
use crate::Buffer;

/// Rows of a piece where there are many: its inputs and what is shrunk stay in the first-level cache.
const PIECE_ROWS_MAX: usize = 4 * ROWS;
/// Work below which waking others costs more than it saves.
const INLINE_NS: usize = 4_000;

/// Memory of [`grouped_lora`](super::grouped_lora), kept from call to call.
#[derive(Default)]
pub struct LoraScratch {
    /// Where runs begin and end.
    cuts: Vec<usize>,
    /// Of each run, the furthest end up to it.
    reach: Vec<usize>,
    pub(super) pieces: Vec<Piece>,
    pub(super) items: Vec<Item>,
    /// The inputs of the pieces in bf16, one piece after the other: `[rows, pairs]`.
    pub(super) pairs: Vec<u32>,
    /// What A makes of them, item by item, in pairs of bf16.
    pub(super) shrunk: Vec<u32>,
    /// What is to be added to the rows of all pieces, `[rows, y_stride]`.
    pub(super) delta: Buffer<f32>,
}

/// Rows that are all under the same runs.
pub(super) struct Piece {
    pub(super) rows: Range<usize>,
    /// Into the items: its runs, in their order.
    pub(super) items: Range<usize>,
    /// Where its inputs lie, in rows.
    pub(super) at_row: usize,
}

/// A run on a piece.
pub(super) struct Item {
    pub(super) run: usize,
    pub(super) rows: Range<usize>,
    /// Where its piece's inputs lie, in rows.
    pub(super) at_row: usize,
    /// Its part of what is shrunk, `[rows, pairs of lanes]`.
    pub(super) shrunk: Range<usize>,
}

/// How threads share the work.
#[derive(Clone, Copy, Debug)]
pub(super) enum Split {
    /// Too little to share.
    Inline,
    /// A tile is a piece, from x to y.
    Pieces,
    /// Two phases: a tile is an item's panel (up to `panels` each), then one of `chunks` parts of a piece's outputs.
    Outputs { panels: usize, chunks: usize },
}

impl LoraScratch {
    /// Nothing kept yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes pieces and items, and the place for what is shrunk.
    pub(super) fn plan(&mut self, runs: &[LoraRun<'_>], threads: usize, y_stride: usize) {
        let Self { cuts, reach, pieces, items, pairs, shrunk, delta } = self;
        cuts.clear();
        reach.clear();
        pieces.clear();
        items.clear();
        let (mut total_rows, mut furthest) = (0, 0);
        for run in runs {
            cuts.extend([run.rows.start, run.rows.end]);
            total_rows += run.rows.len();
            furthest = furthest.max(run.rows.end);
            reach.push(furthest);
        }
        // Sorted already where the runs are, which costs one pass.
        cuts.sort_unstable();
        cuts.dedup();
        let is_sorted = runs.is_sorted_by_key(|run| run.rows.start);
        let piece_rows = (total_rows / threads).next_multiple_of(ROWS).clamp(2 * ROWS, PIECE_ROWS_MAX);

        let (mut place, mut at_row) = (0, 0);
        for rows in cuts.windows(2).map(|pair| pair[0]..pair[1]) {
            // The runs that may be over these rows.
            let first = reach.partition_point(|reach| *reach <= rows.start);
            let last = if is_sorted { runs.partition_point(|run| run.rows.start <= rows.start) } else { runs.len() };
            let count = rows.len().div_ceil(piece_rows);
            for piece in 0..count {
                let cut = |index: usize| rows.start + rows.len() * index / count;
                let rows = cut(piece)..cut(piece + 1);
                let first_item = items.len();
                for run in (first..last).filter(|run| runs[*run].rows.contains(&rows.start)) {
                    let end = place + rows.len() * runs[run].group.factors.len() / 2;
                    items.push(Item { run, rows: rows.clone(), at_row, shrunk: place..end });
                    place = end;
                }
                if items.len() > first_item {
                    at_row += rows.len();
                    pieces.push(Piece { at_row: at_row - rows.len(), rows, items: first_item..items.len() });
                }
            }
        }
        delta.resize(at_row * y_stride);
        if shrunk.len() < place {
            shrunk.resize(place, 0);
        }
        let inputs = runs.first().map_or(0, |run| run.group.inputs);
        if pairs.len() < at_row * inputs / 2 {
            pairs.resize(at_row * inputs / 2, 0);
        }
    }

    /// Pieces if there are enough of them to go round, else parts of each.
    pub(super) fn split(&self, runs: &[LoraRun<'_>], threads: usize) -> Split {
        // A value is read at about 15 a nanosecond, and multiplied at about 100.
        let work = |item: &Item| runs[item.run].group.memory_bytes() / 2 * (item.rows.len() + 6) / 100;
        if threads == 1 || self.items.iter().map(work).sum::<usize>() < INLINE_NS {
            return Split::Inline;
        }
        if self.pieces.len() >= 2 * threads || self.pieces.len().is_multiple_of(threads) {
            return Split::Pieces;
        }
        let panels = self.items.iter().map(|item| runs[item.run].group.panels.len()).max().unwrap_or(0);
        Split::Outputs { panels, chunks: (4 * threads).div_ceil(self.pieces.len().max(1)) }
    }
}
