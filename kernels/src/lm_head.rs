//! The LM head: what the samples of a step want of their logits, taken from the products while they are in the cache. Full
//! rows of logits are written only for those that ask.
//!
//! A row's results are the same, to the bit, whatever the other rows are and want. Not here: the draw.

use crate::gemm::matmul_each;
use crate::pool::SharedMut;
use crate::sample_weights::{SUM_BLOCK, SumPart};
use crate::topk::{Best, Scored};
use crate::{Isa, PackedMatrix, QuantisedRows, Team};

/// The most that a row may want of its best.
pub const HEAD_TOP_MAX: usize = 64;

/// What one row wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadWant {
    /// This many of the highest logits, up to [`HEAD_TOP_MAX`].
    pub top: usize,
    /// ln Σ exp(logit).
    pub log_sum_exp: bool,
    /// All logits.
    pub logits: bool,
}

/// What the rows got; keeps its memory from step to step.
#[derive(Default)]
pub struct HeadOutput {
    vocabulary: usize,
    rows: Vec<Place>,
    /// `[worker][places of all rows]`; in the end the first worker's are everybody's.
    places: Vec<Scored>,
    /// `[worker][row, padded]`
    counts: Vec<usize>,
    /// `[row that wants the sum][block]`
    parts: Vec<SumPart>,
    /// `[row that wants the sum]`
    log_sum_exps: Vec<f64>,
    /// `[row that wants them, vocabulary]`
    logits: Vec<f32>,
}

/// Where a row's results lie.
#[derive(Clone, Copy)]
struct Place {
    top: usize,
    top_first: usize,
    sum: Option<usize>,
    logits: Option<usize>,
}

/// What one row got.
#[derive(Debug)]
pub struct HeadRow<'a> {
    /// Ids and logits, the highest first, the lower id first on ties, none that is not a number: as many as wanted or there
    /// are.
    pub top: &'a [(u32, f32)],
    /// If wanted; as [`TokenWeights::log_sum_exp`](crate::TokenWeights::log_sum_exp) has it.
    pub log_sum_exp: Option<f64>,
    /// If wanted.
    pub logits: Option<&'a mut [f32]>,
}

impl HeadOutput {
    /// Nothing kept yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// What a row got.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&mut self, row: usize) -> HeadRow<'_> {
        let place = self.rows[row];
        HeadRow {
            top: &self.places[place.top_first..][..self.counts[row].min(place.top)],
            log_sum_exp: place.sum.map(|index| self.log_sum_exps[index]),
            logits: place.logits.map(|index| &mut self.logits[index * self.vocabulary..][..self.vocabulary]),
        }
    }

    /// Calls `work` for each row with what it got, once each, and with a worker's own state and the row's own result. Rows that
    /// got all logits are shared among the threads.
    ///
    /// # Panics
    /// If there are fewer states than threads, or not as many results as rows.
    pub fn for_each_row<S: Send, R: Send>(
        &mut self,
        team: &Team<'_>,
        states: &mut [S],
        results: &mut [R],
        work: impl Fn(&mut S, usize, HeadRow<'_>, &mut R) + Sync,
    ) {
        assert!(states.len() >= team.threads() && results.len() == self.rows.len());
        let has_logits = self.rows.iter().any(|place| place.logits.is_some());
        let (states, results) = (SharedMut::new(states), SharedMut::new(results));
        let Self { rows, places, counts, log_sum_exps, logits, vocabulary, .. } = self;
        let logits = SharedMut::new(logits);
        let one = |worker: usize, row: usize| {
            let place = rows[row];
            let full = place.logits.map(|index| index * *vocabulary..(index + 1) * *vocabulary);
            // SAFETY: the state is the worker's, which is in one tile at a time; the result and the logits are the row's,
            // which is in one tile.
            let (state, result, logits) = unsafe {
                let logits = full.map(|range| logits.slice(range));
                (states.slice(worker..worker + 1), results.slice(row..row + 1), logits)
            };
            let top = &places[place.top_first..][..counts[row].min(place.top)];
            let log_sum_exp = place.sum.map(|index| log_sum_exps[index]);
            work(&mut state[0], row, HeadRow { top, log_sum_exp, logits }, &mut result[0]);
        };
        match has_logits {
            true => team.tiles(rows.len(), one),
            false => (0..rows.len()).for_each(|row| one(0, row)),
        }
    }

    /// Makes room. Returns places and padded counts of one worker.
    fn reserve(&mut self, vocabulary: usize, wants: &[HeadWant], threads: usize) -> (usize, usize) {
        self.vocabulary = vocabulary;
        self.rows.clear();
        let (mut places, mut sums, mut full) = (0, 0, 0);
        let next = |wanted: bool, next: &mut usize| {
            *next += usize::from(wanted);
            wanted.then(|| *next - 1)
        };
        for want in wants {
            assert!(want.top <= HEAD_TOP_MAX, "{} of the highest logits: at most {HEAD_TOP_MAX}", want.top);
            let (sum, logits) = (next(want.log_sum_exp, &mut sums), next(want.logits, &mut full));
            self.rows.push(Place { top: want.top, top_first: places, sum, logits });
            places += want.top;
        }
        // A cache line or two between workers' counts.
        let counts = wants.len().next_multiple_of(16);
        self.counts.clear();
        self.counts.resize(counts * threads, 0);
        self.places.resize(places * threads, (0, 0.0));
        self.log_sum_exps.resize(sums, 0.0);
        // Only ever longer, so that nothing is filled again.
        let (parts, logits) = (sums * vocabulary.div_ceil(SUM_BLOCK), full * vocabulary);
        self.parts.resize(self.parts.len().max(parts), SumPart::default());
        self.logits.resize(self.logits.len().max(logits), 0.0);
        (places, counts)
    }
}

/// Multiplies each row of `x` with the matrix `[vocabulary, hidden]` and keeps what the row wants.
///
/// # Panics
/// If a shape is wrong, a row wants more than [`HEAD_TOP_MAX`], or `x` does not keep the form that the matrix needs.
pub fn lm_head(
    team: &Team<'_>,
    isa: Isa,
    matrix: &PackedMatrix,
    x: &QuantisedRows,
    wants: &[HeadWant],
    out: &mut HeadOutput,
) {
    assert!(wants.len() == x.rows(), "{} wants for {} rows", wants.len(), x.rows());
    let vocabulary = matrix.outputs();
    let blocks = vocabulary.div_ceil(SUM_BLOCK);
    let (worker_places, worker_counts) = out.reserve(vocabulary, wants, team.threads());
    let HeadOutput { rows, places, counts, parts, log_sum_exps, logits, .. } = out;
    let shared_places = SharedMut::new(places);
    let shared_counts = SharedMut::new(counts);
    let shared_parts = SharedMut::new(parts);
    let shared_logits = SharedMut::new(logits);
    matmul_each(team, isa, matrix, x, |worker, piece_rows, outputs, piece| {
        assert!(outputs.start.is_multiple_of(SUM_BLOCK), "a piece begins within a block");
        for (index, row) in piece_rows.enumerate() {
            let (place, values) = (rows[row], piece.row(index));
            let first = worker * worker_places + place.top_first;
            let count = worker * worker_counts + row;
            // SAFETY: a worker's places and counts are its own, and it is in one piece at a time.
            let (places, count) =
                unsafe { (shared_places.slice(first..first + place.top), shared_counts.slice(count..count + 1)) };
            let first_id = u32::try_from(outputs.start).unwrap_or(u32::MAX);
            Best { places, count: &mut count[0] }.offer_all(isa, first_id, values);
            if let Some(sum) = place.sum {
                let first = sum * blocks + outputs.start / SUM_BLOCK;
                // SAFETY: each row of each output is in one piece, and pieces end where blocks do.
                let parts = unsafe { shared_parts.slice(first..first + values.len().div_ceil(SUM_BLOCK)) };
                let of_blocks = values.chunks(SUM_BLOCK).map(|block| SumPart::of(isa, block));
                parts.iter_mut().zip(of_blocks).for_each(|(part, block)| *part = block);
            }
            if let Some(full) = place.logits {
                let first = full * vocabulary + outputs.start;
                // SAFETY: each row of each output is in one piece.
                unsafe { shared_logits.slice(first..first + values.len()) }.copy_from_slice(values);
            }
        }
    });
    join_workers(rows, places, counts, [worker_places, worker_counts]);
    let parts = &*parts;
    for (index, sum) in log_sum_exps.iter_mut().enumerate() {
        *sum = SumPart::merge(isa, &parts[index * blocks..][..blocks]);
    }
}

/// Offers what the other workers found to the first one.
fn join_workers(rows: &[Place], places: &mut [Scored], counts: &mut [usize], [in_places, in_counts]: [usize; 2]) {
    if in_places == 0 {
        return;
    }
    let (first_places, others) = places.split_at_mut(in_places);
    let (first_counts, other_counts) = counts.split_at_mut(in_counts);
    for (places, counts) in others.chunks_exact(in_places).zip(other_counts.chunks_exact(in_counts)) {
        for ((place, count), found) in rows.iter().zip(&mut *first_counts).zip(counts) {
            let range = place.top_first..place.top_first + place.top;
            let mut best = Best { places: &mut first_places[range.clone()], count };
            places[range][..*found].iter().for_each(|scored| best.offer(*scored));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;
    use crate::{BlockFormat, Pool, TokenWeights, matmul_packed};

    #[test]
    fn gives_what_full_logits_give_whatever_the_others_want() {
        let (hidden, pool) = (64, Pool::new(3).unwrap());
        for (vocabulary, rows) in [(1000, 1), (515, 7), (4096, 30), (40, 3)] {
            // Few distinct rows, so that logits tie.
            let row = |token: usize| values(token as u64 % 37, hidden);
            let weights: Vec<u8> = (0..vocabulary).flat_map(row).flat_map(f32::to_le_bytes).collect();
            let matrix = PackedMatrix::pack(vocabulary, hidden, BlockFormat::F32, &weights).unwrap();
            let mut x = values(99, rows * hidden);
            if rows > 2 {
                x[hidden + 3] = f32::NAN;
                x[2 * hidden] = f32::INFINITY;
            }
            let wants: Vec<HeadWant> = (0..rows)
                .map(|row| HeadWant { top: [1, 0, 5, 64][row % 4], log_sum_exp: row % 3 != 1, logits: row % 5 == 2 })
                .collect();
            for isa in Isa::available() {
                pool.step(|team| {
                    let mut quantised = QuantisedRows::new();
                    quantised.fill(team, isa, &x, rows, hidden);
                    let mut full = vec![0.0; rows * vocabulary];
                    matmul_packed(team, isa, &[&matrix], &quantised, &mut full, false);
                    let mut out = HeadOutput::new();
                    // Twice: nothing stays from the step before.
                    lm_head(team, isa, &matrix, &quantised, &vec![HeadWant { top: 9, ..wants[0] }; rows], &mut out);
                    lm_head(team, isa, &matrix, &quantised, &wants, &mut out);
                    for (row, want) in wants.iter().enumerate() {
                        check(isa, *want, &full[row * vocabulary..][..vocabulary], &out.row(row));
                    }
                    let (mut calls, mut seen) = (vec![0; team.threads()], vec![0; rows]);
                    out.for_each_row(team, &mut calls, &mut seen, |calls, row, found, seen| {
                        check(isa, wants[row], &full[row * vocabulary..][..vocabulary], &found);
                        (*calls, *seen) = (*calls + 1, *seen + 1);
                    });
                    assert!(calls.iter().sum::<usize>() == rows && seen.iter().all(|seen| *seen == 1));
                });
            }
        }
    }

    fn check(isa: Isa, want: HeadWant, logits: &[f32], found: &HeadRow<'_>) {
        let mut sorted: Vec<Scored> = (0..).zip(logits.iter().copied()).filter(|one| !one.1.is_nan()).collect();
        sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        sorted.truncate(want.top);
        assert_eq!(found.top, sorted);
        let sum = want.log_sum_exp.then(|| TokenWeights::new().log_sum_exp(isa, logits).to_bits());
        assert_eq!(found.log_sum_exp.map(f64::to_bits), sum);
        let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
        assert_eq!(found.logits.as_deref().map(bits), want.logits.then(|| bits(logits)));
    }
}
