//! y = x Wᵀ for packed weights and the activations of a batch. Here: the split into tiles, who computes one, and where the
//! results go; the arithmetic is in `gemm/`, the layouts are in `packed/layout.rs` and `quantised_rows.rs`.
//!
//! Integer formats, for each output and row, over blocks b of 32 inputs (16 in Q6_K), ascending:
//! y = fma(d·x_scale, Σ w·q, y), and with minima y = fma(m, x_scale·Σq, y). The sums are of integers and exact, so that
//! every instruction set and every shape of tile gives the same bits. Plain numbers: even and odd inputs (bf16: pairs of
//! inputs) go by fused multiply-add into two sums, ascending, added at the end; bf16 x bf16 differs in the last bits where
//! the machine has an instruction for it (see `gemm/tests.rs` for how much).

mod ahead;
#[cfg_attr(not(target_arch = "x86_64"), path = "gemm/no_amx.rs")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod floats;
#[cfg(target_arch = "x86_64")]
mod floats_avx2;
mod place;
mod plain;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

pub(crate) use ahead::{Ahead, LINE_BYTES, fetch_lines};
pub use amx::TileScratch;
pub(crate) use amx::matmul_tiles_beside;
use place::{Place, fetch, pass_gates, write};

use crate::isa::{Amx, Level};
use crate::packed::{PANEL, PackedMatrix, formats};
use crate::pool::SharedMut;
use crate::quantised::BlockFormat;
use crate::quantised_rows::{PANEL_ROWS, QuantisedRows, row_panel, row_panels};
use crate::tile_rows::TileRows;
use crate::{Isa, Team};

/// What a panel of rows gives with a panel of outputs.
pub(crate) type Results = [[f32; PANEL]; PANEL_ROWS];

/// What an operation does besides a product: see [`matmul_beside`].
pub(crate) trait Beside: Sync {
    /// How many tiles of its own it has.
    fn tiles(&self) -> usize;

    /// Computes one of them, whichever is best for the worker: called as often as there are tiles. All calls are begun before
    /// any tile of the product is.
    fn tile(&self, worker: usize);

    /// What [`Beside::add`] of the same piece will read, and whatever else the worker will read later.
    fn ahead(&self, worker: usize, at: &PieceAt<'_>, ahead: &mut Ahead);

    /// Adds something to the results of a piece, before they are written.
    fn add(&self, at: &PieceAt<'_>, results: &mut Results);
}

/// Outputs of a matrix for a panel of rows.
pub(crate) struct PieceAt<'a> {
    /// The number of the matrix.
    pub(crate) matrix: usize,
    /// The number of the panel of rows, and its first row.
    pub(crate) row_panel: usize,
    pub(crate) first_row: usize,
    pub(crate) outputs: &'a Range<usize>,
    /// The number of the piece.
    pub(crate) number: usize,
}

/// Nothing.
impl Beside for () {
    fn tiles(&self) -> usize {
        0
    }

    fn tile(&self, _: usize) {}

    fn ahead(&self, _: usize, _: &PieceAt<'_>, _: &mut Ahead) {}

    fn add(&self, _: &PieceAt<'_>, _: &mut Results) {}
}

/// Results in the cache, on their way to whoever wants them.
pub struct Piece<'a> {
    results: &'a Results,
    rows: usize,
    outputs: usize,
}

impl Piece<'_> {
    /// How many rows it has.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// One row of results: as many as the piece has outputs.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.results[..self.rows][row][..self.outputs]
    }
}

/// `out[row, o]` = or += output o of the matrices, one after the other, for a row of `x`; rows of `out` are at least as wide as the
/// sum of `outputs`, and what is behind these is left as it is. `accumulate` adds to what is there.
///
/// # Panics
/// If a shape is wrong, or `x` does not keep the form that a matrix needs.
pub fn matmul_packed(
    team: &Team<'_>,
    isa: Isa,
    matrices: &[&PackedMatrix],
    x: &QuantisedRows,
    out: &mut [f32],
    accumulate: bool,
) {
    matmul_beside(team, isa, matrices, x, out, accumulate, &());
}

/// How far the rows of so many values lie apart.
fn row_stride(values: usize, rows: usize, width: usize) -> usize {
    let stride = values.checked_div(rows).unwrap_or(width);
    assert!(stride >= width && values == rows * stride, "{rows} rows of {width} in {values} values");
    stride
}

/// [`matmul_packed`] as one operation with what is beside it.
pub(crate) fn matmul_beside(
    team: &Team<'_>,
    isa: Isa,
    matrices: &[&PackedMatrix],
    x: &QuantisedRows,
    out: &mut [f32],
    accumulate: bool,
    beside: &impl Beside,
) {
    let width: usize = matrices.iter().map(|matrix| matrix.outputs()).sum();
    let stride = row_stride(out.len(), x.rows(), width);
    let out = SharedMut::new(out);
    let place = |at: &Located<'_>| Place {
        first: at.rows.start * stride + at.column + at.outputs.start,
        rows: at.rows.len(),
        outputs: at.outputs.len(),
        stride,
    };
    let prepare = |worker, at: &Located<'_>, ahead: &mut Ahead| {
        fetch(&place(at), &out);
        beside.ahead(worker, &at.piece_at(), ahead);
    };
    let first = (beside.tiles(), |worker| beside.tile(worker));
    pieces(team, isa, matrices, x, first, prepare, |_, [at]: [&Located<'_>; 1], [results]| {
        beside.add(&at.piece_at(), results);
        write(isa, results, &place(at), accumulate, &out);
    });
}

/// The rows silu(output of `gate`) · output of `up` of each row of `x`, in the forms that `out` keeps: to the bit what it takes from
/// [`swiglu_rows`](crate::swiglu_rows) of the product; with what is beside it. A worker computes the same outputs of both, and
/// what lies between never leaves its cache.
pub(crate) fn matmul_gated_beside(
    team: &Team<'_>,
    isa: Isa,
    [gate, up]: [&PackedMatrix; 2],
    x: &QuantisedRows,
    out: &mut QuantisedRows,
    beside: &impl Beside,
) {
    assert!(gate.outputs() == up.outputs(), "{} gates of {} outputs", gate.outputs(), up.outputs());
    let out = out.parts(x.rows(), gate.outputs());
    let prepare = |worker, at: &Located<'_>, ahead: &mut Ahead| beside.ahead(worker, &at.piece_at(), ahead);
    let first = (beside.tiles(), |worker| beside.tile(worker));
    pieces(team, isa, &[gate, up], x, first, prepare, |_, both: [&Located<'_>; 2], results| {
        for (at, results) in both.iter().zip(&mut *results) {
            beside.add(&at.piece_at(), results);
        }
        let [at, _] = both;
        pass_gates(isa, results, at.rows.len());
        // SAFETY: each panel of outputs, which is a block of what is written, meets each panel of rows in one piece.
        unsafe { out.write(isa, &at.rows, at.panel, results[0][..at.rows.len()].as_flattened()) };
    });
}

/// [`matmul_packed`] of rows in tiles: other bits, faster for many rows. See `gemm/amx.rs`.
///
/// # Panics
/// If a shape is wrong, or [`takes_tiles`] says no of a matrix.
#[expect(clippy::too_many_arguments, reason = "a product's, and its memory")]
pub fn matmul_tiles(
    team: &Team<'_>,
    isa: Isa,
    amx: Amx,
    matrices: &[&PackedMatrix],
    x: &TileRows,
    out: &mut [f32],
    accumulate: bool,
    scratch: &mut TileScratch,
) {
    matmul_tiles_beside(team, isa, amx, matrices, x, out, accumulate, scratch, &());
}

/// Whether [`matmul_tiles`] multiplies with weights of this format: all but f32, of which bf16 would lose two thirds.
#[must_use]
pub fn takes_tiles(format: BlockFormat) -> bool {
    amx::takes(format)
}

/// Hands the results to `consume(worker, rows, outputs, piece)` in pieces, each once and in no particular order, instead of
/// writing them: for the LM head, whose results are reduced where they are made.
///
/// # Panics
/// If a shape is wrong, or `x` does not keep the form that the matrix needs.
pub fn matmul_each(
    team: &Team<'_>,
    isa: Isa,
    matrix: &PackedMatrix,
    x: &QuantisedRows,
    consume: impl Fn(usize, Range<usize>, Range<usize>, Piece<'_>) + Sync,
) {
    pieces(
        team,
        isa,
        &[matrix],
        x,
        (0, |_| {}),
        |_, _, _| {},
        |worker, [at]: [&Located<'_>; 1], [results]| {
            let piece = Piece { results, rows: at.rows.len(), outputs: at.outputs.len() };
            consume(worker, at.rows.clone(), at.outputs.clone(), piece);
        },
    );
}

/// How the work is cut: a tile is some panels of outputs x some panels of rows.
struct Cut {
    outputs: usize,
    rows: usize,
}

impl Cut {
    /// Tiles of about 1 to 10 µs, so that claiming costs little and threads finish together; about 4 panels of rows where
    /// there are many, which then stay in the second-level cache while the weights pass.
    fn new(threads: usize, panels: usize, panel_bytes: usize, inputs: usize, rows: usize) -> Self {
        let row_panels = row_panels(rows);
        if threads == 1 {
            return Self { outputs: panels, rows: row_panels.min(4) };
        }
        // An estimate in ns: 150 multiply-accumulates or 40 bytes in each, whichever takes longer.
        let panel_ns = (rows * inputs * PANEL / 150).max(panel_bytes / 40).max(1);
        let tile_ns = (panels * panel_ns / (threads * 8)).clamp(1_000, 10_000);
        let chunks = panel_ns.div_ceil(tile_ns).min(row_panels).max(1);
        // The largest tile with which the thread that has most has no more than it must.
        let outputs = (1..=(tile_ns / panel_ns).clamp(1, panels)).rev();
        let least = panels.div_ceil(threads);
        let outputs = outputs.into_iter().find(|each| panels.div_ceil(*each).div_ceil(threads) * each == least);
        Self { outputs: outputs.unwrap_or(1), rows: row_panels.div_ceil(chunks) }
    }
}

/// Computes everything: `consume(worker, where, results)` for the pieces of EACH matrices at the same place (of 1: of all of them; of 2:
/// of both, which have equal outputs), before that `prepare(worker, where, ahead)` for each of them, and before all of them
/// `first.1(worker)`, `first.0` times.
fn pieces<const EACH: usize>(
    team: &Team<'_>,
    isa: Isa,
    matrices: &[&PackedMatrix],
    x: &QuantisedRows,
    (first_tiles, first_tile): (usize, impl Fn(usize) + Sync),
    prepare: impl Fn(usize, &Located<'_>, &mut Ahead) + Sync,
    consume: impl Fn(usize, [&Located<'_>; EACH], &mut [Results; EACH]) + Sync,
) {
    for matrix in matrices {
        assert!(matrix.inputs() == x.width() || x.rows() == 0, "{} inputs, width {}", matrix.inputs(), x.width());
    }
    let panels: usize = matrices.iter().map(|matrix| matrix.panels()).sum();
    let rows = x.rows();
    if panels == 0 || rows == 0 {
        return;
    }
    // What is counted from here on is places: that of one panel, or of one of each matrix.
    let places = panels / EACH;
    let place_bytes = matrices.iter().map(|matrix| matrix.memory_bytes()).sum::<usize>() / places;
    let cut = Cut::new(team.threads(), places, place_bytes, x.width() * EACH, rows);
    let across = places.div_ceil(cut.outputs);
    let down = row_panels(rows).div_ceil(cut.rows);
    let (team_threads, row_panels) = (team.threads(), row_panels(rows));
    let locate = |place: usize, of: usize| locate(matrices, of * places + place);
    team.tiles(first_tiles + across * down, |worker, tile| {
        let Some(tile) = tile.checked_sub(first_tiles) else { return first_tile(worker) };
        let mut results: [Results; EACH] = [[[0.0; PANEL]; PANEL_ROWS]; EACH];
        let mut ahead = Ahead::new();
        let first = tile % across * cut.outputs;
        let first_rows = tile / across * cut.rows;
        let last_rows = row_panels.min(first_rows + cut.rows);
        let last = places.min(first + cut.outputs);
        for place in first..last {
            let mut all = [const { None }; EACH];
            (0..EACH).for_each(|of| all[of] = locate(place, of));
            // At the end of a tile a guess: where this thread goes on if all claim in turn.
            let next = if place + 1 < last { place + 1 } else { first + team_threads * cut.outputs };
            let mut nexts: [_; EACH] = std::array::from_fn(|of| {
                let next = Some(next).filter(|next| *next < places).and_then(|next| locate(next, of));
                let next = next.map(|next| next.matrix.panel(next.panel)).unwrap_or_default();
                next.chunks(next.len().div_ceil(last_rows - first_rows).next_multiple_of(64).max(64))
            });
            for row_panel_index in first_rows..last_rows {
                for of in 0..EACH {
                    let Some(at) = &mut all[of] else { return };
                    (at.row_panel, at.rows) = (row_panel_index, row_panel(rows, row_panel_index));
                    at.piece = (of * places + place) * row_panels + row_panel_index;
                    ahead.clear();
                    prepare(worker, at, &mut ahead);
                    let next = nexts[of].next().unwrap_or_default();
                    if at.rows.len() > STREAMED_ROWS_MAX {
                        ahead.stream(next);
                    }
                    multiply(isa, at.matrix, at.panel, x, &at.rows, &mut ahead, &mut results[of]);
                }
                let Some(all) = each(&all) else { return };
                consume(worker, all, &mut results);
            }
        }
    });
}

/// All of them, if there are.
fn each<T, const EACH: usize>(all: &[Option<T>; EACH]) -> Option<[&T; EACH]> {
    let first = all[0].as_ref()?;
    let mut each = [first; EACH];
    for (each, one) in each.iter_mut().zip(all) {
        *each = one.as_ref()?;
    }
    Some(each)
}

/// Where a piece is.
struct Located<'a> {
    /// The matrix that its outputs belong to, and the number of that.
    matrix: &'a PackedMatrix,
    index: usize,
    /// The first column of the matrix.
    column: usize,
    /// Which of the matrix's panels it is, and the outputs of that.
    panel: usize,
    outputs: Range<usize>,
    /// The number of its panel of rows, and these.
    row_panel: usize,
    rows: Range<usize>,
    /// The number of the piece.
    piece: usize,
}

impl Located<'_> {
    fn piece_at(&self) -> PieceAt<'_> {
        let Self { index: matrix, row_panel, rows, outputs, piece: number, .. } = self;
        PieceAt { matrix: *matrix, row_panel: *row_panel, first_row: rows.start, outputs, number: *number }
    }
}

/// The place of a panel of outputs, still without rows.
fn locate<'a>(matrices: &[&'a PackedMatrix], mut panel: usize) -> Option<Located<'a>> {
    let mut column = 0;
    for (index, matrix) in matrices.iter().enumerate() {
        if panel < matrix.panels() {
            let outputs = panel * PANEL..matrix.outputs().min((panel + 1) * PANEL);
            return Some(Located { matrix, index, column, panel, outputs, row_panel: 0, rows: 0..0, piece: 0 });
        }
        panel -= matrix.panels();
        column += matrix.outputs();
    }
    None
}

/// Rows up to which a kernel reads the weights as a stream, and fetches them itself.
const STREAMED_ROWS_MAX: usize = 6;

/// Calls `$kernel::<format as a type>(...)`.
macro_rules! for_format {
    ($format:expr, $kernel:path, $args:tt) => {
        match $format {
            BlockFormat::Q4_0 => call!($kernel, formats::Q40, $args),
            BlockFormat::Q4_1 => call!($kernel, formats::Q41, $args),
            BlockFormat::Q5_0 => call!($kernel, formats::Q50, $args),
            BlockFormat::Q5_1 => call!($kernel, formats::Q51, $args),
            BlockFormat::Q8_0 => call!($kernel, formats::Q80, $args),
            BlockFormat::Q4_K => call!($kernel, formats::Q4K, $args),
            BlockFormat::Q5_K => call!($kernel, formats::Q5K, $args),
            _ => call!($kernel, formats::Q6K, $args),
        }
    };
}
macro_rules! call {
    ($kernel:path, $format:path, ($($arg:expr),*)) => { { use $kernel as kernel; kernel::<$format>($($arg),*) } };
}

/// One panel of outputs with one panel of rows; `ahead` are the lines that will be wanted.
fn multiply(
    isa: Isa,
    matrix: &PackedMatrix,
    panel: usize,
    x: &QuantisedRows,
    rows: &Range<usize>,
    ahead: &mut Ahead,
    results: &mut Results,
) {
    let (weights, count) = (matrix.panel(panel), rows.len());
    match (matrix.format(), isa.level()) {
        // SAFETY: the level exists only where `Isa::available` (isa.rs) found what `floats::floats` enables.
        #[cfg(target_arch = "x86_64")]
        (BlockFormat::F32, Level::Avx512Vnni) => unsafe {
            floats::floats::<{ floats::F32 }>(weights, x.floats(rows), count, results)
        },
        // SAFETY: the level exists only where `Isa::available` (isa.rs) found what `floats::floats` enables.
        #[cfg(target_arch = "x86_64")]
        (BlockFormat::F16, Level::Avx512Vnni) => unsafe {
            floats::floats::<{ floats::F16 }>(weights, x.floats(rows), count, results)
        },
        // SAFETY: the level exists only where `Isa::available` (isa.rs) found what `floats::floats` enables.
        #[cfg(target_arch = "x86_64")]
        (BlockFormat::Bf16, Level::Avx512Vnni) => unsafe {
            floats::floats::<{ floats::BF16 }>(weights, x.pairs(rows), count, results)
        },
        // SAFETY: the levels exist only where `Isa::available` (isa.rs) found what `floats_avx2::floats` enables.
        #[cfg(target_arch = "x86_64")]
        (format @ (BlockFormat::F32 | BlockFormat::F16), Level::Avx2 | Level::Avx512) => unsafe {
            floats_avx2::floats(format, weights, x.floats(rows), count, results)
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        (BlockFormat::Bf16, Level::Avx2 | Level::Avx512) => unsafe {
            floats_avx2::floats(BlockFormat::Bf16, weights, x.pairs(rows), count, results)
        },
        (BlockFormat::F32 | BlockFormat::F16, _) => {
            plain::floats(matrix.format(), weights, x.floats(rows), count, results);
        }
        (BlockFormat::Bf16, _) => plain::pairs(weights, x.pairs(rows), count, results),
        // SAFETY: the level exists only where `Isa::available` (isa.rs) found what `vnni::integers` enables.
        #[cfg(target_arch = "x86_64")]
        (format, Level::Avx512Vnni) => unsafe {
            for_format!(format, vnni::integers, (weights, x.words(rows), count, ahead, results));
        },
        // SAFETY: the levels exist only where `Isa::available` (isa.rs) found what `avx2::integers` enables.
        #[cfg(target_arch = "x86_64")]
        (format, Level::Avx2 | Level::Avx512) => unsafe {
            for_format!(format, avx2::integers, (weights, x.words(rows), count, results));
        },
        (format, _) => for_format!(format, plain::integers, (weights, x.words(rows), count, results)),
    }
}

#[cfg(test)]
mod tests;
