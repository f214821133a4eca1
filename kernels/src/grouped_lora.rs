//! The low-rank terms of a step: y += Σᵢ wᵢ·sᵢ·Bᵢ(Aᵢx) over runs of rows, each run with an adapter of its own, for the
//! modules of a layer that share their input. The two steps, shrink and expand over segments, are Punica's SGMV (Chen et
//! al., 2023); mixed ranks without padding to the largest are S-LoRA's (Sheng et al., 2023).
//!
//! Both factors and what they multiply are rounded to bf16, sums are f32: twice the speed of f32, which is what one adapter
//! shared by many rows costs, and the precision in which adapters are trained and served elsewhere.
//!
//! A row's terms are summed from zero, run by run, and the sum is added to y.
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
use crate::isa::multiversion;
use crate::pool::SharedMut;
use crate::{Isa, Team};

/// Outputs of a step up to which the terms are computed beside the product: 1 MiB, which is in the cache when it is added.
const BESIDE_VALUES_MAX: usize = 1 << 18;
/// Sums that the caller adds alone: about 2 µs.
const ADD_INLINE_VALUES: usize = 1 << 15;

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
    scratch.plan(runs, team.threads(), rows.y_stride);
    let split = scratch.split(runs, team.threads());
    run(team, isa, runs, rows, scratch, split);
}

/// As [`grouped_lora`] after `product`, which writes `rows.y`; where the rows are few the terms are computed beside it: they
/// wait for memory while it computes. The bits are the same.
///
/// # Panics
/// As [`grouped_lora`]. No term may have growth, which wants what `product` writes.
pub fn grouped_lora_beside(
    team: &Team<'_>,
    isa: Isa,
    runs: &[LoraRun<'_>],
    rows: LoraRows<'_>,
    scratch: &mut LoraScratch,
    product: impl FnOnce(&mut [f32]),
) {
    let few = rows.y.len() <= BESIDE_VALUES_MAX && team.threads() > 1;
    if runs.is_empty() || !few {
        product(rows.y);
        return grouped_lora(team, isa, runs, rows, scratch);
    }
    check(runs, &rows);
    scratch.plan(runs, team.threads(), rows.y_stride);
    let (step, memory) = Step::new(isa, runs, &rows, scratch);
    let y = rows.y;
    let whole = |_: usize, index: usize| step.whole(index, &memory);
    team.beside(step.pieces.len(), &whole, || product(y));
    step.add_all(team, y, &memory);
}

/// With the plan that is in `scratch`.
fn run(team: &Team<'_>, isa: Isa, runs: &[LoraRun<'_>], rows: LoraRows<'_>, scratch: &mut LoraScratch, split: Split) {
    check(runs, &rows);
    let (step, memory) = Step::new(isa, runs, &rows, scratch);
    let pieces = step.pieces.len();
    match split {
        Split::Inline => {
            (0..pieces).for_each(|index| step.whole(index, &memory));
            step.add_all(&Team::alone(), rows.y, &memory);
        }
        Split::Pieces => {
            let y = SharedMut::new(rows.y);
            team.tiles(pieces, |_, index| {
                step.whole(index, &memory);
                step.add(index, &y, &memory);
            });
        }
        Split::Outputs { panels, chunks } => {
            // Few rows: that there are more is what other splits are for.
            (0..pieces).for_each(|index| step.begin(index, &memory));
            // SAFETY: an (item, panel) is one tile's.
            team.tiles(step.items.len() * panels, |_, index| unsafe {
                step.shrink_panel(&step.items[index / panels], index % panels, &memory);
            });
            team.tiles(pieces * chunks, |_, index| {
                for item in step.items_of(index / chunks) {
                    // SAFETY: a (piece, chunk) is one tile's; what was shrunk is only read from here on.
                    unsafe { step.expand(item, index % chunks, chunks, &memory) };
                }
            });
            step.add_all(team, rows.y, &memory);
        }
    }
}

/// What tiles write.
struct Memory<'a> {
    /// The inputs of all pieces' rows in bf16.
    pairs: SharedMut<'a, u32>,
    /// What A makes of them, item by item.
    shrunk: SharedMut<'a, u32>,
    /// What is to be added to all pieces' rows of y.
    delta: SharedMut<'a, f32>,
}

/// What the tiles read, and the outputs.
struct Step<'a> {
    isa: Isa,
    runs: &'a [LoraRun<'a>],
    pieces: &'a [Piece],
    items: &'a [Item],
    x: &'a [f32],
    inputs: usize,
    y_stride: usize,
    module_first: &'a [usize],
    plain: Option<&'a [f32]>,
}

impl<'a> Step<'a> {
    fn new(isa: Isa, runs: &'a [LoraRun<'a>], rows: &LoraRows<'a>, scratch: &'a mut LoraScratch) -> (Self, Memory<'a>) {
        let LoraScratch { pieces, items, pairs, shrunk, delta, .. } = scratch;
        let LoraRows { x, inputs, y_stride, module_first, plain, .. } = *rows;
        let step = Self { isa, runs, pieces, items, x, inputs, y_stride, module_first, plain };
        let memory =
            Memory { pairs: SharedMut::new(pairs), shrunk: SharedMut::new(shrunk), delta: SharedMut::new(delta) };
        (step, memory)
    }

    fn items_of(&self, piece: usize) -> &'a [Item] {
        &self.items[self.pieces[piece].items.clone()]
    }

    /// Where the inputs of rows lie in bf16.
    fn pairs_of(&self, at_row: usize, rows: usize) -> Range<usize> {
        at_row * self.inputs / 2..(at_row + rows) * self.inputs / 2
    }

    /// The inputs of a piece in bf16, and nothing to be added yet.
    fn begin(&self, piece: usize, memory: &Memory<'_>) {
        let Piece { rows, at_row, .. } = &self.pieces[piece];
        // SAFETY: the inputs and the sums of a piece are its own, and a piece is one tile's.
        let (pairs, delta) = unsafe {
            let delta = *at_row * self.y_stride..(*at_row + rows.len()) * self.y_stride;
            (memory.pairs.slice(self.pairs_of(*at_row, rows.len())), memory.delta.slice(delta))
        };
        bf16::pairs(self.isa, &self.x[rows.start * self.inputs..rows.end * self.inputs], pairs);
        delta.fill(0.0);
    }

    /// All of a piece but adding it to y: its runs one after the other.
    fn whole(&self, piece: usize, memory: &Memory<'_>) {
        self.begin(piece, memory);
        for item in self.items_of(piece) {
            for panel in 0..self.runs[item.run].group.panels.len() {
                // SAFETY: the items of a piece are its own, and a piece is one tile's.
                unsafe { self.shrink_panel(item, panel, memory) };
            }
            // SAFETY: as above.
            unsafe { self.expand(item, 0, 1, memory) };
        }
    }

    /// Adds a piece's sums to y.
    fn add(&self, piece: usize, y: &SharedMut<'_, f32>, memory: &Memory<'_>) {
        let Piece { rows, at_row, .. } = &self.pieces[piece];
        // SAFETY: the rows of y and the sums of a piece are its own, and a piece is one tile's.
        let (y, delta) = unsafe {
            let delta = *at_row * self.y_stride..(*at_row + rows.len()) * self.y_stride;
            (y.slice(rows.start * self.y_stride..rows.end * self.y_stride), memory.delta.slice(delta))
        };
        add_values(self.isa, y, delta);
    }

    fn add_all(&self, team: &Team<'_>, y: &mut [f32], memory: &Memory<'_>) {
        let rows: usize = self.pieces.iter().map(|piece| piece.rows.len()).sum();
        let y = SharedMut::new(y);
        if rows * self.y_stride <= ADD_INLINE_VALUES {
            (0..self.pieces.len()).for_each(|piece| self.add(piece, &y, memory));
        } else {
            team.tiles(self.pieces.len(), |_, piece| self.add(piece, &y, memory));
        }
    }

    /// The item's part of `shrunk`, `[rows, pairs of lanes]`, for the lanes of a panel, if it has that panel.
    ///
    /// # Safety
    /// Nobody else has this item's lanes of this panel, and the piece was begun.
    unsafe fn shrink_panel(&self, item: &Item, panel: usize, memory: &Memory<'_>) {
        let run = &self.runs[item.run];
        let (group, lanes) = (run.group, run.group.factors.len());
        let Some(panel) = group.panels.get(panel).filter(|panel| is_enabled(run, panel)) else { return };
        let columns = panel.first_lane..panel.first_lane + panel.lanes;
        for rows in blocks(item.rows.clone()) {
            let mut out: [&mut [u32]; ROWS] = Default::default();
            for (row, out) in rows.clone().zip(&mut out) {
                let at = item.shrunk.start + (row - item.rows.start) * lanes / 2;
                // SAFETY: of this item's and panel's own; rows are distinct.
                *out = unsafe { memory.shrunk.slice(at + columns.start / 2..at + columns.end / 2) };
            }
            let at_row = item.at_row + rows.start - item.rows.start;
            // SAFETY: written when the piece was begun, and only read since.
            let x = unsafe { memory.pairs.slice(self.pairs_of(at_row, rows.len())) };
            let (x, factors) = ((&*x, self.inputs / 2), (&group.factors[columns.clone()], run.weight));
            shrink(self.isa, group.a(*panel), x, factors, &mut out[..rows.len()]);
        }
    }

    /// Adds what an item's terms make of what was shrunk, for the `chunk`th of `chunks` parts of each module's outputs.
    ///
    /// # Safety
    /// Nobody else has these rows' outputs of this chunk, and the item was shrunk.
    unsafe fn expand(&self, item: &Item, chunk: usize, chunks: usize, memory: &Memory<'_>) {
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
                    let at = (item.at_row + row - item.rows.start) * self.y_stride + first;
                    // SAFETY: of this chunk's own, as slots are apart and have the same outputs in all runs (`check`);
                    // rows are distinct.
                    *y = unsafe { memory.delta.slice(at..at + outputs.len()) };
                }
                let growth = term.growth.as_ref().zip(self.plain).map(|(growth, plain)| Growth {
                    growth: &growth[outputs.clone()],
                    plain: &plain[rows.start * self.y_stride + first..],
                    stride: self.y_stride,
                    weight: run.weight,
                });
                let from = item.shrunk.start + (rows.start - item.rows.start) * lane_pairs;
                // SAFETY: written when the item was shrunk, and only read since.
                let h = unsafe { memory.shrunk.slice(from..from + rows.len() * lane_pairs) };
                let h = &h[term.first_lane / 2..];
                expand(self.isa, (b, term.pairs()), (h, lane_pairs), &mut y[..rows.len()], growth.as_ref());
            }
        }
    }
}

multiversion! {
    fn add_values(y: &mut [f32], delta: &[f32]) {
        for (y, delta) in y.iter_mut().zip(delta) {
            *y += delta;
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
