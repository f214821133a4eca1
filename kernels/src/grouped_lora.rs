//! The low-rank terms of a step: y += Σᵢ wᵢ·sᵢ·Bᵢ(Aᵢx) over runs of rows, each run with an adapter of its own, for the
//! modules of a layer that share their input. The two steps, shrink and expand over segments, are Punica's SGMV (Chen et
//! al., 2023); mixed ranks without padding to the largest are S-LoRA's (Sheng et al., 2023).
//!
//! Both factors and what they multiply are rounded to bf16, sums are f32: twice the speed of f32, which is what one adapter
//! shared by many rows costs, and the precision in which adapters are trained and served elsewhere.
//!
//! A row's result is a function of its own input and its own runs, in their order: not of the other rows, of how rows are
//! cut into pieces, of threads or instruction set, all of which give the same bits.
//!
//! Not here: which adapter a row has, and Wx.

mod bf16;
mod expand;
mod pack;
mod plan;
mod shrink;
#[cfg(test)]
mod tests;

use std::ops::Range;

use self::expand::{Growth, expand};
pub use self::pack::{LoraGroup, LoraTermParts};
use self::pack::{Panel, Term, VECTOR};
pub use self::plan::LoraScratch;
use self::plan::{Item, Piece, Split};
use self::shrink::{ROWS, shrink};
use crate::pool::SharedMut;
use crate::{Isa, Team};

/// Modules that may share an input.
pub const SLOTS_MAX: usize = 8;

/// Rows to which one adapter's terms are added.
#[derive(Clone)]
pub struct LoraRun<'a> {
    /// Of x and y.
    pub rows: Range<usize>,
    /// The terms.
    pub group: &'a LoraGroup,
    /// w: how much of the adapter is asked for.
    pub weight: f32,
    /// Bit s: whether the term of module slot s is added.
    pub enabled: u8,
}

/// The rows of a step at a linear layer.
pub struct LoraRows<'a> {
    /// `[rows, inputs]`
    pub x: &'a [f32],
    /// Columns of `x`.
    pub inputs: usize,
    /// `[rows, y_stride]`: the modules' outputs one after the other.
    pub y: &'a mut [f32],
    /// Columns of `y`.
    pub y_stride: usize,
    /// The first column of each module slot, ascending.
    pub module_first: &'a [usize],
    /// Wx, laid out as `y`, without any adapter's part; needed only where a run's group has growth.
    pub plain: Option<&'a [f32]>,
}

/// Adds the runs' terms to `y`. Runs over the same row are added in their order; without runs nothing is done. Fastest where
/// runs are sorted by their first row.
///
/// # Panics
/// If a shape is wrong, or a term has growth and `plain` is missing.
pub fn grouped_lora(team: &Team<'_>, isa: Isa, runs: &[LoraRun<'_>], rows: LoraRows<'_>, scratch: &mut LoraScratch) {
    if runs.is_empty() {
        return;
    }
    scratch.plan(runs, team.threads());
    let split = scratch.split(runs, team.threads());
    run(team, isa, runs, rows, scratch, split);
}

/// With the plan that is in `scratch`.
fn run(team: &Team<'_>, isa: Isa, runs: &[LoraRun<'_>], rows: LoraRows<'_>, scratch: &mut LoraScratch, split: Split) {
    check(runs, &rows);
    let LoraRows { x, inputs, y, y_stride, module_first, plain } = rows;
    let LoraScratch { pieces, items, pairs, shrunk, .. } = scratch;
    let step = Step { isa, runs, pieces, items, x, inputs, y: SharedMut::new(y), y_stride, module_first, plain };
    match split {
        Split::Inline => {
            let (pairs, shrunk) = (SharedMut::new(pairs), SharedMut::new(shrunk));
            (0..pieces.len()).for_each(|index| step.whole(index, &pairs, &shrunk));
        }
        Split::Pieces => {
            let (pairs, shrunk) = (SharedMut::new(pairs), SharedMut::new(shrunk));
            team.tiles(pieces.len(), |_, index| step.whole(index, &pairs, &shrunk));
        }
        Split::Outputs { panels, chunks } => {
            // Few rows: that there are more is what other splits are for.
            pieces
                .iter()
                .for_each(|piece| step.round(piece, &mut pairs[step.pairs_of(piece.at_row, piece.rows.len())]));
            let (pairs, shrinking) = (&**pairs, SharedMut::new(shrunk));
            // SAFETY: an (item, panel) is one tile's.
            team.tiles(items.len() * panels, |_, index| unsafe {
                let item = &items[index / panels];
                let pairs = &pairs[step.pairs_of(item.at_row, item.rows.len())];
                step.shrink_panel(item, index % panels, pairs, &shrinking);
            });
            team.tiles(pieces.len() * chunks, |_, index| {
                for item in step.items_of(index / chunks) {
                    // SAFETY: a (piece, chunk) is one tile's.
                    unsafe { step.expand(item, &shrunk[item.shrunk.clone()], index % chunks, chunks) };
                }
            });
        }
    }
}

/// What the tiles read, and the outputs.
struct Step<'a> {
    isa: Isa,
    runs: &'a [LoraRun<'a>],
    pieces: &'a [Piece],
    items: &'a [Item],
    x: &'a [f32],
    inputs: usize,
    y: SharedMut<'a, f32>,
    y_stride: usize,
    module_first: &'a [usize],
    plain: Option<&'a [f32]>,
}

impl<'a> Step<'a> {
    fn items_of(&self, piece: usize) -> &'a [Item] {
        &self.items[self.pieces[piece].items.clone()]
    }

    /// Where the inputs of rows lie in bf16.
    fn pairs_of(&self, at_row: usize, rows: usize) -> Range<usize> {
        at_row * self.inputs / 2..(at_row + rows) * self.inputs / 2
    }

    /// The inputs of a piece in bf16.
    fn round(&self, piece: &Piece, pairs: &mut [u32]) {
        bf16::pairs(self.isa, &self.x[piece.rows.start * self.inputs..piece.rows.end * self.inputs], pairs);
    }

    /// All of a piece: its runs one after the other.
    fn whole(&self, piece: usize, pairs: &SharedMut<'_, u32>, shrunk: &SharedMut<'_, u32>) {
        let of_piece = &self.pieces[piece];
        // SAFETY: the inputs of a piece are its own, and a piece is one tile's.
        let pairs = unsafe { pairs.slice(self.pairs_of(of_piece.at_row, of_piece.rows.len())) };
        self.round(of_piece, pairs);
        for item in self.items_of(piece) {
            for panel in 0..self.runs[item.run].group.panels.len() {
                // SAFETY: the rows of `y` and the items of a piece are its own, and a piece is one tile's.
                unsafe { self.shrink_panel(item, panel, pairs, shrunk) };
            }
            // SAFETY: as above.
            unsafe { self.expand(item, shrunk.slice(item.shrunk.clone()), 0, 1) };
        }
    }

    /// The item's part of `shrunk`, `[rows, pairs of lanes]`, for the lanes of a panel, if it has that panel; `pairs` are
    /// its inputs.
    ///
    /// # Safety
    /// Nobody else has this item's lanes of this panel.
    unsafe fn shrink_panel(&self, item: &Item, panel: usize, pairs: &[u32], shrunk: &SharedMut<'_, u32>) {
        let run = &self.runs[item.run];
        let (group, lanes) = (run.group, run.group.factors.len());
        let Some(panel) = group.panels.get(panel).filter(|panel| is_enabled(run, panel)) else { return };
        let columns = panel.first_lane..panel.first_lane + panel.lanes;
        for rows in blocks(item.rows.clone()) {
            let mut out: [&mut [u32]; ROWS] = Default::default();
            for (row, out) in rows.clone().zip(&mut out) {
                let at = item.shrunk.start + (row - item.rows.start) * lanes / 2;
                // SAFETY: of this item's and panel's own; rows are distinct.
                *out = unsafe { shrunk.slice(at + columns.start / 2..at + columns.end / 2) };
            }
            let x = (&pairs[self.pairs_of(rows.start - item.rows.start, rows.len())], self.inputs / 2);
            shrink(self.isa, group.a(*panel), x, (&group.factors[columns.clone()], run.weight), &mut out[..rows.len()]);
        }
    }

    /// Adds what an item's terms make of `shrunk`, for the `chunk`th of `chunks` parts of each module's outputs.
    ///
    /// # Safety
    /// Nobody else has these rows' outputs of this chunk.
    unsafe fn expand(&self, item: &Item, shrunk: &[u32], chunk: usize, chunks: usize) {
        let run = &self.runs[item.run];
        let lane_pairs = run.group.factors.len() / 2;
        for term in run.group.terms.iter().filter(|term| run.enabled >> term.slot & 1 == 1) {
            let tiles = term.tiles() * chunk / chunks..term.tiles() * (chunk + 1) / chunks;
            if tiles.is_empty() {
                continue;
            }
            let b = &run.group.b(term)[tiles.start * VECTOR * term.pairs()..tiles.end * VECTOR * term.pairs()];
            let outputs = tiles.start * VECTOR..(tiles.end * VECTOR).min(term.outputs);
            for rows in blocks(item.rows.clone()) {
                let first = self.module_first[term.slot] + outputs.start;
                let mut y: [&mut [f32]; ROWS] = Default::default();
                for (row, y) in rows.clone().zip(&mut y) {
                    let at = row * self.y_stride + first;
                    // SAFETY: of this chunk's own, as slots are apart and have the same outputs in all runs (`check`);
                    // rows are distinct.
                    *y = unsafe { self.y.slice(at..at + outputs.len()) };
                }
                let growth = term.growth.as_ref().zip(self.plain).map(|(growth, plain)| Growth {
                    growth: &growth[outputs.clone()],
                    plain: &plain[rows.start * self.y_stride + first..],
                    stride: self.y_stride,
                    weight: run.weight,
                });
                let h = &shrunk[(rows.start - item.rows.start) * lane_pairs + term.first_lane / 2..];
                expand(self.isa, (b, term.pairs()), (h, lane_pairs), &mut y[..rows.len()], growth.as_ref());
            }
        }
    }
}

/// Whether a term of the panel's lanes is asked for.
fn is_enabled(run: &LoraRun<'_>, panel: &Panel) -> bool {
    let overlaps = |term: &Term| {
        term.first_lane < panel.first_lane + panel.lanes && panel.first_lane < term.first_lane + term.rank
    };
    run.group.terms.iter().any(|term| run.enabled >> term.slot & 1 == 1 && overlaps(term))
}

/// Rows in blocks of at most [`ROWS`], as equal as they can be.
fn blocks(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = rows.len().div_ceil(ROWS);
    let cut = move |index: usize| rows.start + rows.len() * index / count;
    (0..count).map(move |index| cut(index)..cut(index + 1))
}

fn check(runs: &[LoraRun<'_>], rows: &LoraRows<'_>) {
    let LoraRows { x, inputs, y, y_stride, module_first, plain } = rows;
    let count = x.len() / inputs;
    assert!(x.len() == count * inputs && y.len() == count * y_stride, "x and y have different rows");
    assert!(module_first.len() <= SLOTS_MAX && plain.is_none_or(|plain| plain.len() == y.len()));
    let mut outputs = [0; SLOTS_MAX];
    for run in runs {
        assert!(run.group.inputs == *inputs && run.rows.start <= run.rows.end && run.rows.end <= count);
        for term in &run.group.terms {
            let end = module_first.get(term.slot + 1).unwrap_or(y_stride);
            assert!(module_first[term.slot] + term.outputs <= *end, "slot {} reaches into the next", term.slot);
            assert!(outputs[term.slot] == 0 || outputs[term.slot] == term.outputs, "outputs of slot {}", term.slot);
            outputs[term.slot] = term.outputs;
            assert!(term.growth.is_none() || plain.is_some(), "growth needs the plain output");
        }
    }
}
