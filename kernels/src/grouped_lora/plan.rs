//! Cuts the rows of a step into pieces under the same runs, each within one panel of activations. Not here: the arithmetic,
//! whose bits do not depend on any of this.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::expand::STREAMED_ROWS_MAX;
use super::pack::{Codes, Layout, SCALE_BYTES, VECTOR, VECTOR_BYTES};
use super::{LoraGroup, LoraRun};
use crate::gemm::{LINE_BYTES, fetch_lines};
use crate::quantised_rows::row_panel;
use crate::{Buffer, PackedMatrix};

/// What an item's numbers begin at a multiple of: a cache line, so that threads write to different ones.
const ALIGNMENT: usize = 16;
/// Rows of a part at most, but where B is read in one go: each part reads all of A, and threads that have none begin with the product.
const PART_ROWS_MAX: usize = 8;
/// Pieces for each thread from which on B is read in one go: with fewer, threads would wait for the one that has the last.
const STREAMED_PIECES_MIN: usize = 2;

/// Memory of [`matmul_lora`](super::matmul_lora), kept from call to call. What was planned for the last call is right for the
/// next one if its rows, its matrices' sizes and its adapters' layouts are the same: as those of the same modules
/// in the layers of a model are, and in steps that follow each other.
#[derive(Default)]
pub struct LoraScratch {
    planned: Planned,
    /// Where runs begin and end.
    cuts: Vec<usize>,
    /// Of each run, the furthest end up to it.
    reach: Vec<usize>,
    /// In the order of their rows.
    pub(super) pieces: Vec<Piece>,
    pub(super) parts: Vec<Part>,
    pub(super) items: Vec<Item>,
    /// Without any: kept for its memory.
    pub(super) adds: Vec<Add<'static>>,
    /// Of each matrix and panel of rows, which of the adds are theirs.
    pub(super) adds_of: Vec<Range<usize>>,
    pub(super) next: Vec<Next>,
    /// Of each worker, how many of its parts are taken, and how many lines of what is next it has fetched.
    pub(super) workers: Vec<Worker>,
    /// Panels of the step's rows.
    pub(super) row_panels: usize,
    /// What A makes of the inputs, item by item: `[rows, lanes]`.
    pub(super) sums: Buffer<f32>,
    /// The same in int8: `[rows, row_words]`.
    pub(super) shrunk: Buffer<u32>,
    /// Whether parts compute all that terms add: see [`super::Terms`].
    pub(super) streams: bool,
    /// What they add then: `[rows, outputs of all matrices]`.
    pub(super) added: Buffer<f32>,
    /// And to which rows, counted from a panel's first: `adds_of` is for these.
    pub(super) added_rows: Vec<Range<usize>>,
    /// Of each piece, how many of its parts are not ready; if they stream, the first is that of all.
    pub(super) waiting: Vec<AtomicUsize>,
}

/// What a plan is for.
#[derive(Default)]
struct Planned {
    /// Of each run, its rows, its terms that are added, and how they lie.
    runs: Vec<(Range<usize>, u8, Arc<Layout>)>,
    /// Of the matrices.
    outputs: Vec<usize>,
    rows: usize,
    inputs: usize,
    threads: usize,
}

/// What a worker has begun of its share: on cache lines of its own (two, as they are fetched in pairs).
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Worker {
    pub(super) parts: AtomicUsize,
    pub(super) lines: AtomicUsize,
}

/// Worker number so-and-so's share of this many.
pub(super) fn share(worker: usize, workers: usize, all: usize) -> Range<usize> {
    worker * all / workers..(worker + 1) * all / workers
}

/// Rows of one panel of activations that are all under the same runs.
pub(super) struct Piece {
    pub(super) rows: Range<usize>,
    /// The panel that its rows belong to.
    pub(super) panel: Range<usize>,
    /// The number of that panel.
    panel_number: usize,
    /// Into the items: its runs, in their order.
    pub(super) items: Range<usize>,
}

/// Some rows of a piece, which one thread shrinks.
pub(super) struct Part {
    pub(super) piece: usize,
    /// Counted from the piece's first.
    pub(super) rows: Range<usize>,
}

/// A run on a piece.
pub(super) struct Item {
    pub(super) run: usize,
    /// Its parts of the scratch.
    pub(super) sums: Range<usize>,
    pub(super) shrunk: Range<usize>,
}

/// What a run's term adds to a matrix's outputs for the rows of a piece: all that is needed for it in one place, as a piece
/// of the product may have as many as rows.
pub(super) struct Add<'a> {
    /// All of B.
    b: Codes<'a>,
    /// Of all outputs.
    pub(super) growth: Option<&'a [f32]>,
    pub(super) weight: f32,
    /// Its part of what is shrunk; a row's begins `stride` after the one before, and has so many words of ranks.
    pub(super) words: Range<usize>,
    pub(super) stride: usize,
    pub(super) rank_words: usize,
    /// Bytes of the scales of 16 outputs.
    tile_scales: usize,
    /// Of the panel of activations.
    pub(super) rows: Range<usize>,
    pub(super) piece: usize,
    /// Whether these are the first rows of its run.
    pub(super) begins: bool,
}

impl Add<'_> {
    /// Cache lines of the part of B that makes these outputs, about.
    pub(super) fn lines(&self, outputs: &Range<usize>) -> usize {
        let tiles = outputs.len().div_ceil(VECTOR);
        tiles * self.rank_words + (tiles * self.tile_scales).div_ceil(LINE_BYTES)
    }

    /// The part of B that makes these outputs.
    pub(super) fn b(&self, outputs: &Range<usize>) -> Codes<'_> {
        let tiles = outputs.start / VECTOR..outputs.end.div_ceil(VECTOR);
        let (codes, scales) = (self.rank_words * VECTOR_BYTES, self.tile_scales);
        Codes {
            codes: &self.b.codes[tiles.start * codes..tiles.end * codes],
            scales: &self.b.scales[tiles.start * scales..tiles.end * scales],
        }
    }
}

/// Bytes that the next operation begins with.
pub(super) struct Next {
    /// An address, of which nothing is read.
    pub(super) first: usize,
    /// The number of the line behind its last one, counted from the first of all; and of its first.
    pub(super) end: usize,
    start: usize,
    /// Lines with what follows: all that the operation reads of it.
    pub(super) lines: usize,
}

impl Next {
    /// The address of a line by its number.
    pub(super) fn line(&self, line: usize) -> *const u8 {
        std::ptr::without_provenance(self.first.wrapping_add((line - self.start) * LINE_BYTES))
    }
}

impl LoraScratch {
    /// Nothing kept yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says which terms the next call of [`matmul_lora`](super::matmul_lora) but one will be for: their beginning is fetched
    /// into the cache during the next one.
    pub fn upcoming<'a>(&mut self, groups: impl IntoIterator<Item = &'a LoraGroup>) {
        self.next.clear();
        for group in groups {
            // The operation after it: an adapter's groups lie in their order.
            let behind = std::ptr::from_ref(group).wrapping_add(1);
            fetch_lines(behind.cast(), size_of::<LoraGroup>().div_ceil(LINE_BYTES));
            let bytes = group.beginning();
            let (first, start) = (bytes.as_ptr().addr(), self.next.last().map_or(0, |last| last.end));
            if self.next.last().is_none_or(|last| last.first != first) {
                let lines = group.values().len().div_ceil(LINE_BYTES);
                let end = start + bytes.len().div_ceil(LINE_BYTES);
                self.next.push(Next { first, start, end, lines });
            }
        }
    }

    /// Whether the plan is for these.
    pub(super) fn is_planned(
        &self,
        runs: &[LoraRun<'_>],
        matrices: &[&PackedMatrix],
        (rows, inputs): (usize, usize),
        threads: usize,
    ) -> bool {
        let planned = &self.planned;
        (planned.rows, planned.inputs, planned.threads) == (rows, inputs, threads)
            && planned.outputs.iter().copied().eq(matrices.iter().map(|matrix| matrix.outputs()))
            && planned.runs.len() == runs.len()
            && planned.runs.iter().zip(runs).all(|((rows, enabled, layout), run)| {
                *rows == run.rows && *enabled == run.enabled && Arc::ptr_eq(layout, &run.group.layout)
            })
    }

    /// Makes pieces and items of `rows` rows, and the place for what is shrunk.
    pub(super) fn plan(
        &mut self,
        runs: &[LoraRun<'_>],
        matrices: &[&PackedMatrix],
        (rows, inputs): (usize, usize),
        threads: usize,
    ) {
        let is_cut = self.planned.rows == rows
            && self.planned.runs.iter().map(|(rows, ..)| rows).eq(runs.iter().map(|run| &run.rows));
        if !is_cut {
            self.cut(runs, rows);
        }
        let planned = &mut self.planned;
        planned.runs.clear();
        planned.runs.extend(runs.iter().map(|run| (run.rows.clone(), run.enabled, Arc::clone(&run.group.layout))));
        planned.outputs.clear();
        planned.outputs.extend(matrices.iter().map(|matrix| matrix.outputs()));
        (planned.rows, planned.inputs, planned.threads) = (rows, inputs, threads);
        let width: usize = planned.outputs.iter().sum();
        let Self { pieces, parts, items, sums, shrunk, streams, added, workers, .. } = self;
        let (mut sums_end, mut shrunk_end) = (0, 0);
        let place = |end: &mut usize, len: usize| {
            let start = *end;
            *end += len.next_multiple_of(ALIGNMENT);
            start..start + len
        };
        for piece in &*pieces {
            for item in &mut items[piece.items.clone()] {
                let layout = &runs[item.run].group.layout;
                item.sums = place(&mut sums_end, piece.rows.len() * layout.lanes);
                item.shrunk = place(&mut shrunk_end, piece.rows.len() * layout.row_words);
            }
        }
        // B of few rows is best read in one go; of many by panels, each while its outputs are in the cache. DoRA needs these.
        let with_terms: usize = pieces.iter().map(|piece| piece.rows.len()).sum();
        *streams = pieces.len() >= STREAMED_PIECES_MIN * threads
            && with_terms <= STREAMED_ROWS_MAX * pieces.len()
            && runs.iter().all(|run| !run.group.layout.grows);
        let part_rows_max = if *streams { STREAMED_ROWS_MAX } else { PART_ROWS_MAX };
        parts.clear();
        for (number, piece) in pieces.iter().enumerate() {
            let (rows, count) = (piece.rows.len(), piece.rows.len().div_ceil(part_rows_max));
            let cut = |index: usize| rows * index / count;
            parts.extend((0..count).map(|index| Part { piece: number, rows: cut(index)..cut(index + 1) }));
        }
        added.resize(if *streams { rows * width } else { 0 });
        workers.resize_with(threads, Worker::default);
        sums.resize(sums_end);
        shrunk.resize(shrunk_end);
        self.plan_added_rows(runs, matrices.len());
    }

    /// Sets what is counted during an operation to its beginning.
    pub(super) fn begin(&mut self) {
        let Self { parts, streams, workers, waiting, .. } = self;
        for Worker { parts, lines } in workers {
            (*parts.get_mut(), *lines.get_mut()) = (0, 0);
        }
        waiting.iter_mut().for_each(|waiting| *waiting.get_mut() = 0);
        parts.iter().for_each(|part| *waiting[if *streams { 0 } else { part.piece }].get_mut() += 1);
    }

    /// Makes the pieces, and the items without their places.
    fn cut(&mut self, runs: &[LoraRun<'_>], rows: usize) {
        let Self { cuts, reach, pieces, items, waiting, row_panels, .. } = self;
        cuts.clear();
        reach.clear();
        pieces.clear();
        items.clear();
        waiting.clear();
        *row_panels = crate::quantised_rows::row_panels(rows);
        let mut furthest = 0;
        for run in runs {
            cuts.extend([run.rows.start, run.rows.end]);
            furthest = furthest.max(run.rows.end);
            reach.push(furthest);
        }
        cuts.extend((0..*row_panels).map(|panel| row_panel(rows, panel).end));
        cuts.sort_unstable();
        cuts.dedup();
        let is_sorted = runs.is_sorted_by_key(|run| run.rows.start);

        let mut panel = 0;
        for between in cuts.windows(2).map(|pair| pair[0]..pair[1]) {
            // The runs that may be over these rows.
            let first = reach.partition_point(|reach| *reach <= between.start);
            let starts_before = |run: &LoraRun<'_>| run.rows.start <= between.start;
            let last = if is_sorted { runs.partition_point(starts_before) } else { runs.len() };
            let runs_over = (first..last).filter(|run| runs[*run].rows.contains(&between.start));
            if runs_over.clone().next().is_none() {
                continue;
            }
            while row_panel(rows, panel).end <= between.start {
                panel += 1;
            }
            waiting.push(AtomicUsize::new(0));
            let first_item = items.len();
            items.extend(runs_over.map(|run| Item { run, sums: 0..0, shrunk: 0..0 }));
            let items = first_item..items.len();
            pieces.push(Piece { rows: between, panel: row_panel(rows, panel), panel_number: panel, items });
        }
    }

    /// To which rows of each matrix and panel something is added, if parts compute all of it.
    fn plan_added_rows(&mut self, runs: &[LoraRun<'_>], matrices: usize) {
        let Self { streams, adds_of, added_rows, pieces, items, row_panels, .. } = self;
        adds_of.clear();
        added_rows.clear();
        if !*streams {
            return;
        }
        for slot in 0..matrices {
            let mut pieces = pieces.iter().peekable();
            for panel in 0..*row_panels {
                let first = added_rows.len();
                while let Some(piece) = pieces.next_if(|piece| piece.panel_number == panel) {
                    if items[piece.items.clone()].iter().any(|item| runs[item.run].term(slot).is_some()) {
                        let own = piece.rows_of_panel();
                        match added_rows[first..].last_mut() {
                            Some(last) if last.end == own.start => last.end = own.end,
                            _ => added_rows.push(own),
                        }
                    }
                }
                adds_of.push(first..added_rows.len());
            }
        }
    }

    /// Makes a list of what is added to each matrix for each panel of rows, if parts do not compute it.
    pub(super) fn plan_adds<'a>(&mut self, runs: &[LoraRun<'a>], matrices: usize, adds: &mut Vec<Add<'a>>) {
        let Self { streams, adds_of, pieces, items, row_panels, .. } = self;
        if *streams {
            return;
        }
        adds_of.clear();
        for slot in 0..matrices {
            let mut pieces = pieces.iter().enumerate().peekable();
            for panel in 0..*row_panels {
                let first = adds.len();
                while let Some((number, piece)) = pieces.next_if(|(_, piece)| piece.panel_number == panel) {
                    let items = &items[piece.items.clone()];
                    adds.extend(items.iter().filter_map(|item| add(item, number, piece, &runs[item.run], slot)));
                }
                adds_of.push(first..adds.len());
            }
        }
    }
}

impl Piece {
    /// Its rows, counted from the panel's first.
    fn rows_of_panel(&self) -> Range<usize> {
        self.rows.start - self.panel.start..self.rows.end - self.panel.start
    }
}

fn add<'a>(item: &Item, number: usize, piece: &Piece, run: &LoraRun<'a>, slot: usize) -> Option<Add<'a>> {
    let group = run.group;
    let (index, term) = run.term(slot)?;
    let (stride, rank_words) = (group.layout.row_words, term.words());
    let first = item.shrunk.start + term.first_word;
    Some(Add {
        b: group.b(term),
        growth: group.growth(index),
        weight: run.weight,
        words: first..first + (piece.rows.len() - 1) * stride + rank_words + 2 * term.blocks(),
        stride,
        rank_words,
        tile_scales: term.blocks() * VECTOR * SCALE_BYTES,
        rows: piece.rows_of_panel(),
        piece: number,
        begins: piece.rows.start == run.rows.start,
    })
}

/// The memory of an emptied vector, for items of another lifetime.
pub(super) fn recycled<'a>(mut adds: Vec<Add<'_>>) -> Vec<Add<'a>> {
    adds.clear();
    adds.into_iter().map(|_| unreachable!("it is empty")).collect()
}
