//! y = x Wᵀ for packed weights and the activations of a batch. Here: the split into tiles, who computes one, and where the
//! results go; the arithmetic is in `gemm/`, the layouts are in `packed/layout.rs` and `quantised_rows.rs`.
//!
//! Integer formats, for each output and row, over blocks b of 32 inputs (16 in Q6_K), ascending:
//! y = fma(d·x_scale, Σ w·q, y), and with minima y = fma(m, x_scale·Σq, y). The sums are of integers and exact, so that
//! every instruction set and every shape of tile gives the same bits. Plain numbers: even and odd inputs (bf16: pairs of
//! inputs) go by fused multiply-add into two sums, ascending, added at the end; bf16 x bf16 differs in the last bits where
//! the machine has an instruction for it (see `gemm/tests.rs` for how much).

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

use place::{Place, fetch, write};

use crate::isa::Level;
use crate::packed::{PANEL, PackedMatrix, formats};
use crate::pool::SharedMut;
use crate::quantised::BlockFormat;
use crate::quantised_rows::{PANEL_ROWS, QuantisedRows, row_panel, row_panels};
use crate::{Isa, Team};

/// What a panel of rows gives with a panel of outputs.
type Results = [[f32; PANEL]; PANEL_ROWS];

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

/// `out[row, o]` = or += output o of the matrices, one after the other, for a row of `x`; rows of `out` are as wide as the
/// sum of `outputs`. `accumulate` adds to what is there.
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
    let width: usize = matrices.iter().map(|matrix| matrix.outputs()).sum();
    assert!(out.len() == x.rows() * width, "{} rows of {width} in {} values", x.rows(), out.len());
    let out = SharedMut::new(out);
    let place = |column: usize, rows: &Range<usize>, outputs: &Range<usize>| Place {
        first: rows.start * width + column + outputs.start,
        rows: rows.len(),
        outputs: outputs.len(),
        stride: width,
    };
    let prepare = |column, rows: &Range<usize>, outputs: &Range<usize>| fetch(&place(column, rows, outputs), &out);
    pieces(team, isa, matrices, x, prepare, |_, column, rows, outputs, piece| {
        write(isa, piece.results, &place(column, &rows, &outputs), accumulate, &out);
    });
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
        |_, _, _| {},
        |worker, _, rows, outputs, piece| consume(worker, rows, outputs, piece),
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

/// Computes everything: `consume(worker, first column of the matrix, rows, outputs of the matrix, piece)`, and before each
/// piece `prepare(first column, rows, outputs)`.
fn pieces(
    team: &Team<'_>,
    isa: Isa,
    matrices: &[&PackedMatrix],
    x: &QuantisedRows,
    prepare: impl Fn(usize, &Range<usize>, &Range<usize>) + Sync,
    consume: impl Fn(usize, usize, Range<usize>, Range<usize>, Piece<'_>) + Sync,
) {
    for matrix in matrices {
        assert!(matrix.inputs() == x.width() || x.rows() == 0, "{} inputs, width {}", matrix.inputs(), x.width());
    }
    let panels: usize = matrices.iter().map(|matrix| matrix.panels()).sum();
    let rows = x.rows();
    if panels == 0 || rows == 0 {
        return;
    }
    let panel_bytes = matrices.iter().map(|matrix| matrix.memory_bytes()).sum::<usize>() / panels;
    let cut = Cut::new(team.threads(), panels, panel_bytes, x.width(), rows);
    let across = panels.div_ceil(cut.outputs);
    let down = row_panels(rows).div_ceil(cut.rows);
    let team_threads = team.threads();
    team.tiles(across * down, |worker, tile| {
        let mut results: Results = [[0.0; PANEL]; PANEL_ROWS];
        let first = tile % across * cut.outputs;
        let first_rows = tile / across * cut.rows;
        let last_rows = row_panels(rows).min(first_rows + cut.rows);
        let last = panels.min(first + cut.outputs);
        for panel in first..last {
            let Some((matrix, panel_of_matrix, column)) = locate(matrices, panel) else { return };
            let outputs = panel_of_matrix * PANEL..matrix.outputs().min((panel_of_matrix + 1) * PANEL);
            // At the end of a tile a guess: where this thread goes on if all claim in turn.
            let next = if panel + 1 < last { panel + 1 } else { first + team_threads * cut.outputs };
            let next = locate(matrices, next).map(|(matrix, panel, _)| matrix.panel(panel)).unwrap_or_default();
            let mut nexts = next.chunks(next.len().div_ceil(last_rows - first_rows).next_multiple_of(64).max(64));
            for row_panel_index in first_rows..last_rows {
                let at = row_panel(rows, row_panel_index);
                prepare(column, &at, &outputs);
                let ahead = nexts.next().unwrap_or_default();
                multiply(isa, matrix, panel_of_matrix, x, &at, ahead, &mut results);
                let piece = Piece { results: &results, rows: at.len(), outputs: outputs.len() };
                consume(worker, column, at, outputs.clone(), piece);
            }
        }
    });
}

/// The matrix that a panel belongs to, which of its panels it is, and the first column of that matrix.
fn locate<'a>(matrices: &[&'a PackedMatrix], mut panel: usize) -> Option<(&'a PackedMatrix, usize, usize)> {
    let mut column = 0;
    for matrix in matrices {
        if panel < matrix.panels() {
            return Some((matrix, panel, column));
        }
        panel -= matrix.panels();
        column += matrix.outputs();
    }
    None
}

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

/// One panel of outputs with one panel of rows; `ahead` is what will be wanted next.
fn multiply(
    isa: Isa,
    matrix: &PackedMatrix,
    panel: usize,
    x: &QuantisedRows,
    rows: &Range<usize>,
    ahead: &[u8],
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
