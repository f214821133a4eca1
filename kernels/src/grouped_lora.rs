//! y = Wx + Σᵢ wᵢ·sᵢ·Bᵢ(Aᵢx) over runs of rows, each run with an adapter of its own, for the modules of a layer that share
//! their input. The two steps of the low-rank terms, shrink and expand over segments, are Punica's SGMV (Chen et al.,
//! 2023); mixed ranks without padding to the largest are S-LoRA's (Sheng et al., 2023).
//!
//! Both are part of the product's own operation: its first tiles compute Aᵢx, and each tile of Wx adds the Bᵢ's part to its
//! outputs while these are in the cache (it waits for the Aᵢx of its rows, which other threads have begun by then). So a
//! step with adapters has no operation more than one without, and writes y once.
//!
//! The factors and what they multiply are int8 with a scale for each 32 values (decision 0026), sums are i32 and f32.
//!
//! Where many runs have few rows each, a run's part computes all that its terms add, and pieces add what they find:
//! `streamed.rs`, decision 0055.
//!
//! A row's terms are summed run by run, added to Wx, and then all of it to y where y is added to.
//!
//! A row's result is a function of its own input and its own runs, in their order: not of the other rows, of how rows are
//! cut into pieces, of threads or instruction set, all of which give the same bits.
//!
//! Not here: which adapter a row has, and Wx (`gemm.rs`).

mod expand;
mod pack;
mod plan;
mod shrink;
mod streamed;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::expand::{Growth, Shrunk, add_rows, expand, grow};
pub use self::pack::{LoraGroup, LoraTermHead, LoraTermParts};
use self::pack::{Panel, Term};
pub use self::plan::LoraScratch;
use self::plan::{Add, Item, Next, Part, Piece, Worker, recycled, share};
use self::shrink::{Inputs, round, shrink};
use crate::gemm::{
    Ahead, Beside, LINE_BYTES, PieceAt, Results, TileScratch, fetch_lines, matmul_beside, matmul_gated_beside,
    matmul_packed, matmul_tiles, matmul_tiles_beside,
};
use crate::packed::PANEL;
use crate::pool::SharedMut;
use crate::quantised_rows::PANEL_ROWS;
use crate::{Amx, Isa, PackedMatrix, QuantisedRows, Team, TileRows};

/// Modules that may share an input.
pub const SLOTS_MAX: usize = 8;
/// Lines up to which they are fetched all at once before a piece; more go at an even pace within it, which costs a list.
const LINES_AT_ONCE: usize = 40;
/// Turns of waiting after which a thread offers its core to others: the one that it waits for may have none.
const SPINS_MAX: u32 = 1 << 9;

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

/// [`matmul_packed`](crate::matmul_packed), and the runs' terms added: module slot s is `matrices[s]`. Runs over the same row
/// are added in their order. Fastest where runs are sorted by their first row.
///
/// # Panics
/// If a shape is wrong, or `x` does not keep the int8 form.
#[expect(clippy::too_many_arguments, reason = "a product's, and the runs with their memory")]
pub fn matmul_lora(
    team: &Team<'_>,
    isa: Isa,
    matrices: &[&PackedMatrix],
    x: &QuantisedRows,
    out: &mut [f32],
    accumulate: bool,
    runs: &[LoraRun<'_>],
    scratch: &mut LoraScratch,
) {
    if runs.is_empty() {
        scratch.next.clear();
        return matmul_packed(team, isa, matrices, x, out, accumulate);
    }
    with_terms((team.threads(), isa), matrices, x, runs, scratch, |terms| {
        matmul_beside(team, isa, matrices, x, out, accumulate, terms)
    });
}

/// What [`swiglu_rows`](crate::swiglu_rows) makes of the [`matmul_lora`] of these two, in the forms that `out` keeps and to the bit, in one
/// operation. Module slot 0 is the gate.
///
/// # Panics
/// If a shape is wrong, the outputs are no multiple of 32, or `x` does not keep the form that a matrix needs.
pub fn matmul_lora_gated(
    team: &Team<'_>,
    isa: Isa,
    gate_up: [&PackedMatrix; 2],
    x: &QuantisedRows,
    out: &mut QuantisedRows,
    runs: &[LoraRun<'_>],
    scratch: &mut LoraScratch,
) {
    if runs.is_empty() {
        scratch.next.clear();
        return matmul_gated_beside(team, isa, gate_up, x, out, &());
    }
    with_terms((team.threads(), isa), &gate_up, x, runs, scratch, |terms| {
        matmul_gated_beside(team, isa, gate_up, x, out, terms);
    });
}

/// [`matmul_lora`] with the product of rows in tiles ([`matmul_tiles`](crate::matmul_tiles)): `tiles` and `x` are of the same
/// rows, and `x` is read where there are runs only.
///
/// # Panics
/// As both.
#[expect(clippy::too_many_arguments, reason = "two products', and their memory")]
pub fn matmul_lora_tiles(
    team: &Team<'_>,
    isa: Isa,
    amx: Amx,
    matrices: &[&PackedMatrix],
    (tiles, x): (&TileRows, &QuantisedRows),
    out: &mut [f32],
    accumulate: bool,
    runs: &[LoraRun<'_>],
    scratch: &mut LoraScratch,
    tile_scratch: &mut TileScratch,
) {
    if runs.is_empty() {
        scratch.next.clear();
        return matmul_tiles(team, isa, amx, matrices, tiles, out, accumulate, tile_scratch);
    }
    assert!(tiles.rows() == x.rows() && tiles.width() == x.width(), "{} and {} rows", tiles.rows(), x.rows());
    with_terms((team.threads(), isa), matrices, x, runs, scratch, |terms| {
        matmul_tiles_beside(team, isa, amx, matrices, tiles, out, accumulate, tile_scratch, terms);
    });
}

/// Plans what the runs add, and lets `multiply` do it.
fn with_terms<'a>(
    (threads, isa): (usize, Isa),
    matrices: &[&PackedMatrix],
    x: &QuantisedRows,
    runs: &[LoraRun<'a>],
    scratch: &mut LoraScratch,
    multiply: impl FnOnce(&Terms<'_>),
) {
    let (mut columns, mut width) = ([0; SLOTS_MAX], 0);
    for (column, matrix) in columns.iter_mut().zip(matrices) {
        *column = width;
        width += matrix.outputs();
    }
    let shape = (x.rows(), x.width());
    if !scratch.is_planned(runs, matrices, shape, threads) {
        check(runs, matrices, x);
        scratch.plan(runs, matrices, shape, threads);
    }
    scratch.begin();
    let mut adds = recycled(std::mem::take(&mut scratch.adds));
    scratch.plan_adds(runs, matrices.len(), &mut adds);
    let LoraScratch {
        pieces,
        parts,
        items,
        adds_of,
        streams,
        added_rows,
        row_panels,
        next,
        workers,
        sums,
        shrunk,
        added,
        waiting,
        ..
    } = &mut *scratch;
    let (sums, shrunk, added) = (SharedMut::new(sums), SharedMut::new(shrunk), SharedMut::new(added));
    let product_pieces = matrices.iter().map(|matrix| matrix.panels()).sum::<usize>() * *row_panels;
    let next_lines = match *streams {
        true => next.iter().map(|next| next.lines).sum::<usize>().min(threads * streamed::LINES_MAX),
        false => next.last().map_or(0, |last| last.end),
    };
    let next_each = next_lines.div_ceil(product_pieces.max(1));
    let terms = Terms {
        isa,
        runs,
        x,
        pieces,
        parts,
        items,
        adds: &adds,
        adds_of,
        streams: *streams,
        added_rows,
        row_panels: *row_panels,
        added,
        columns,
        width,
        next,
        next_each,
        workers,
        sums,
        shrunk,
        waiting,
    };
    multiply(&terms);
    scratch.adds = recycled(adds);
    scratch.next.clear();
}

/// What the tiles share.
struct Terms<'a> {
    isa: Isa,
    runs: &'a [LoraRun<'a>],
    x: &'a QuantisedRows,
    pieces: &'a [Piece],
    parts: &'a [Part],
    items: &'a [Item],
    adds: &'a [Add<'a>],
    /// Of each matrix and panel of rows, which of the adds are theirs, or of the ranges of rows.
    adds_of: &'a [Range<usize>],
    /// Whether the parts compute all that terms add: `streamed.rs`.
    streams: bool,
    /// To which rows of a panel, then.
    added_rows: &'a [Range<usize>],
    row_panels: usize,
    /// What, for all rows and the outputs of all matrices.
    added: SharedMut<'a, f32>,
    /// Where the outputs of each matrix begin, and how many there are in all.
    columns: [usize; SLOTS_MAX],
    width: usize,
    next: &'a [Next],
    /// Lines of what the next operation begins with that are fetched with each piece.
    next_each: usize,
    workers: &'a [Worker],
    /// What A makes of x, item by item: `[rows, lanes]`.
    sums: SharedMut<'a, f32>,
    /// The same in int8.
    shrunk: SharedMut<'a, u32>,
    /// Of each piece, how many of its parts are not ready; if they stream, the first is that of all.
    waiting: &'a [AtomicUsize],
}

impl Beside for Terms<'_> {
    fn tiles(&self) -> usize {
        self.parts.len()
    }

    fn tile(&self, worker: usize) {
        // Its own ones first, which its cache has, in their order; then what others have not begun.
        let workers = self.workers.len();
        for other in (worker..workers).chain(0..worker.min(workers)) {
            let own = share(other, workers, self.parts.len());
            let taken = self.workers[other].parts.fetch_add(1, Ordering::Relaxed);
            if taken < own.len() {
                return self.part(own.start + taken, own.end);
            }
        }
    }

    fn ahead(&self, worker: usize, at: &PieceAt<'_>, ahead: &mut Ahead) {
        if self.streams {
            return self.ahead_of_streamed(worker, at, ahead);
        }
        // An equal share of what the next operation begins with, behind B. One that began in an earlier piece of rows has been
        // fetched for that.
        let mut line = at.number * self.next_each;
        let last = self.next.last().map_or(0, |last| last.end).min(line + self.next_each);
        if let ([], [add]) | ([_], [add]) = (self.next, self.adds_of(at))
            && add.lines(at.outputs) + self.next_each <= LINES_AT_ONCE
        {
            if add.begins {
                let b = add.b(at.outputs);
                fetch_lines(b.codes.as_ptr(), b.codes.len().div_ceil(LINE_BYTES));
                fetch_lines(b.scales.as_ptr(), b.scales.len().div_ceil(LINE_BYTES));
            }
            self.next.iter().for_each(|next| fetch_lines(next.line(line), last.saturating_sub(line)));
            return;
        }
        for add in self.adds_of(at).iter().filter(|add| add.begins) {
            let b = add.b(at.outputs);
            ahead.push(b.codes);
            ahead.push(b.scales);
        }
        for next in &self.next[self.next.partition_point(|next| next.end <= line)..] {
            let end = next.end.min(last);
            if line < end {
                ahead.push_lines(next.line(line), end - line);
                line = end;
            }
        }
    }

    fn add(&self, at: &PieceAt<'_>, results: &mut Results) {
        if self.streams {
            return self.add_streamed(at, results);
        }
        let mut rest = self.adds_of(at);
        while let [first, ..] = rest {
            let (adds, others) = rest.split_at(rest.iter().take_while(|add| add.piece == first.piece).count());
            rest = others;
            wait_for(&self.waiting[first.piece]);
            let results = &mut results[first.rows.clone()];
            if let ([add], None) = (adds, first.growth) {
                self.expand(add, at.outputs, true, results);
                continue;
            }
            let mut own: Results = [[0.0; PANEL]; PANEL_ROWS];
            let own = &mut own[..results.len()];
            for add in adds {
                match add.growth {
                    None => self.expand(add, at.outputs, false, own),
                    Some(growth) => self.add_grown(add, &growth[at.outputs.clone()], (at.outputs, results), own),
                }
            }
            add_rows(self.isa, own, results);
        }
    }
}

impl Terms<'_> {
    fn adds_of(&self, at: &PieceAt<'_>) -> &[Add<'_>] {
        &self.adds[self.adds_of[at.matrix * self.row_panels + at.row_panel].clone()]
    }

    /// Computes a part; `end` is that of the parts of the same worker.
    fn part(&self, index: usize, end: usize) {
        let part = &self.parts[index];
        // Also if this one panics: the operation ends with that panic, and nobody may wait for it for ever.
        let _ready = Ready(&self.waiting[if self.streams { 0 } else { part.piece }]);
        let piece = &self.pieces[part.piece];
        let words = self.x.words(&piece.panel);
        let (panel_rows, first) = (piece.panel.len(), piece.rows.start - piece.panel.start + part.rows.start);
        for item in &self.items[piece.items.clone()] {
            let run = &self.runs[item.run];
            let layout = &*run.group.layout;
            let lanes = layout.lanes;
            let own = |of: &Range<usize>, each| of.start + part.rows.start * each..of.start + part.rows.end * each;
            // SAFETY: an item's places are its own, rows of it are one tile's, and nobody reads them before all are ready.
            let (sums, shrunk) = unsafe {
                (self.sums.slice(own(&item.sums, lanes)), self.shrunk.slice(own(&item.shrunk, layout.row_words)))
            };
            for panel in layout.panels.iter().filter(|panel| is_enabled(run, panel)) {
                let inputs = Inputs { words, panel_rows, first, rows: part.rows.len() };
                let sums = &mut sums[panel.first_lane..];
                shrink(self.isa, (run.group.a(*panel), panel.lanes), inputs, sums, lanes);
            }
            round(self.isa, run, sums, shrunk);
        }
        if self.streams {
            self.expand_part(index, end);
        }
    }

    /// Adds what a term makes of what was shrunk, which is ready.
    fn expand(&self, add: &Add<'_>, outputs: &Range<usize>, whole: bool, y: &mut [[f32; PANEL]]) {
        // SAFETY: it is ready: written, and only read from then on.
        let words = unsafe { self.shrunk.read(add.words.clone()) };
        expand(self.isa, add.b(outputs), Shrunk { words, stride: add.stride, rank_words: add.rank_words }, whole, y);
    }

    /// The same of a run with growth; `plain` is Wx.
    #[cold]
    fn add_grown(
        &self,
        add: &Add<'_>,
        growth: &[f32],
        (outputs, plain): (&Range<usize>, &[[f32; PANEL]]),
        y: &mut [[f32; PANEL]],
    ) {
        let mut own: Results = [[0.0; PANEL]; PANEL_ROWS];
        let own = &mut own[..y.len()];
        self.expand(add, outputs, false, own);
        grow(self.isa, &Growth { growth, plain, weight: add.weight }, own, y);
    }
}

/// Says so at its end.
struct Ready<'a>(&'a AtomicUsize);

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        // Release: what was written is seen by whoever sees this.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// Whoever makes it ready has begun, as its tile is before all that wait, and waits for nobody.
fn wait_for(waiting: &AtomicUsize) {
    let mut spins = 0;
    while waiting.load(Ordering::Acquire) > 0 {
        spins += 1;
        if spins < SPINS_MAX { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

impl<'a> LoraRun<'a> {
    /// Its terms that are asked for.
    fn terms(&self) -> impl Iterator<Item = &'a Term> + use<'a> {
        let enabled = self.enabled;
        self.group.layout.terms.iter().filter(move |term| enabled >> term.slot & 1 == 1)
    }

    /// That of a module slot, and its number in the group.
    fn term(&self, slot: usize) -> Option<(usize, &'a Term)> {
        let mut terms = self.group.layout.terms.iter().enumerate();
        terms.find(|(_, term)| term.slot == slot && self.enabled >> slot & 1 == 1)
    }
}

/// Whether a term of the panel's lanes is asked for.
fn is_enabled(run: &LoraRun<'_>, panel: &Panel) -> bool {
    let overlaps = |term: &Term| {
        term.first_lane < panel.first_lane + panel.lanes && panel.first_lane < term.first_lane + term.rank
    };
    run.terms().any(overlaps)
}

fn check(runs: &[LoraRun<'_>], matrices: &[&PackedMatrix], x: &QuantisedRows) {
    for run in runs {
        assert!(run.group.inputs() == x.width() && run.rows.start <= run.rows.end && run.rows.end <= x.rows());
        for term in &run.group.layout.terms {
            let outputs = matrices.get(term.slot).map(|matrix| matrix.outputs());
            assert!(outputs == Some(term.outputs), "slot {} has {outputs:?} outputs, not {}", term.slot, term.outputs);
        }
    }
}
