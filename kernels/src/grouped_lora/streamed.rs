//! Terms of few rows each, of many adapters: a part of the operation computes all that is added to its rows, so that each
//! adapter is read from its beginning to its end, which memory does twice as fast as pieces of half a kilobyte that are
//! far apart. The product's pieces add what they find. The bits are those of terms that are added by panels: both make the
//! sum of a row's terms first.
//!
//! A worker takes the same share of the parts in each operation, as long as it keeps up: so what it fetches of the next
//! operation's adapters beside the product lies in the cache that wants it.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::expand::{Places, Shrunk, add_apart, expand_all};
use super::plan::share;
use super::{Terms, wait_for};
use crate::gemm::{Ahead, LINE_BYTES, PieceAt, Results, fetch_lines};

/// Lines of the next operation's adapters that a worker fetches at most: an eighth of a second-level cache of 1 MiB.
pub(super) const LINES_MAX: usize = 2048;
/// Lines of what a part reads first that are fetched during the part before.
const BEGINNING_LINES: usize = 32;

impl Terms<'_> {
    /// Writes what all terms add to a part's rows, when these are shrunk; `end` is that of the parts of the same worker.
    pub(super) fn expand_part(&self, index: usize, end: usize) {
        if let Some(next) = self.parts[..end].get(index + 1) {
            let item = &self.items[self.pieces[next.piece].items.start];
            fetch_lines(self.runs[item.run].group.values().as_ptr(), BEGINNING_LINES);
        }
        let part = &self.parts[index];
        let piece = &self.pieces[part.piece];
        let (first, rows) = (piece.rows.start + part.rows.start, part.rows.len());
        // SAFETY: each row is in one part, and nobody reads it before all parts are ready.
        let added = unsafe { self.added.slice(first * self.width..(first + rows) * self.width) };
        let mut written = 0u8;
        for item in &self.items[piece.items.clone()] {
            let run = &self.runs[item.run];
            let stride = run.group.layout.row_words;
            let own = item.shrunk.start + part.rows.start * stride..item.shrunk.start + part.rows.end * stride;
            // SAFETY: of this part's rows, which this thread has written, and nobody else does.
            let words = unsafe { self.shrunk.read(own) };
            for term in run.terms() {
                let h = Shrunk { words: &words[term.first_word..], stride, rank_words: term.words() };
                let out = &mut added[self.columns[term.slot]..];
                let to = Places { out, stride: self.width, rows, outputs: term.outputs };
                expand_all(self.isa, run.group.b(term), h, to, written >> term.slot & 1 == 1);
                written |= 1 << term.slot;
            }
        }
    }

    /// What [`Self::add_streamed`] of the same piece will read, and a share of what this worker's parts of the next operation
    /// will.
    pub(super) fn ahead_of_streamed(&self, worker: usize, at: &PieceAt<'_>, ahead: &mut Ahead) {
        let column = self.columns[at.matrix] + at.outputs.start;
        for rows in self.rows_of(at) {
            for row in rows.clone() {
                let first = self.added.first().wrapping_add((at.first_row + row) * self.width + column);
                fetch_lines(first.cast(), at.outputs.len().div_ceil(LINE_BYTES / size_of::<f32>()));
            }
        }
        let Some(state) = self.workers.get(worker) else { return };
        let own = &self.next[share(worker, self.workers.len(), self.next.len())];
        let fetched = state.lines.load(Ordering::Relaxed);
        let mut line = fetched;
        for next in own {
            if line < next.lines && fetched < LINES_MAX {
                let count = self.next_each.min(next.lines - line);
                ahead.later(std::ptr::without_provenance(next.first.wrapping_add(line * LINE_BYTES)), count);
                state.lines.store(fetched + count, Ordering::Relaxed);
                return;
            }
            line = line.saturating_sub(next.lines);
        }
    }

    /// Adds what the parts have made.
    pub(super) fn add_streamed(&self, at: &PieceAt<'_>, results: &mut Results) {
        let column = self.columns[at.matrix] + at.outputs.start;
        for rows in self.rows_of(at) {
            wait_for(&self.waiting[0]);
            let first = (at.first_row + rows.start) * self.width + column;
            let last = first + (rows.len() - 1) * self.width + at.outputs.len();
            // SAFETY: it is ready: written, and only read from then on.
            let added = unsafe { self.added.read(first..last) };
            add_apart(self.isa, added, self.width, at.outputs.len(), &mut results[rows.clone()]);
        }
    }

    /// The rows of a piece to which something is added, counted from its first.
    fn rows_of(&self, at: &PieceAt<'_>) -> &[Range<usize>] {
        &self.added_rows[self.adds_of[at.matrix * self.row_panels + at.row_panel].clone()]
    }
}
