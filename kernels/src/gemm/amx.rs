//! Products of many rows in bf16 by AMX's tiles: weights of any format but f32 are widened to bf16 for 32 outputs at a time
//! (`widen.rs`) and serve all rows of a piece; rows are bf16 too ([`TileRows`]). 512 multiply-adds a cycle by the book where
//! VPDPBUSD has 128, and nothing to be scaled after each block: sums stay in tiles over all inputs.
//!
//! Arithmetic: w = bf16(fma(scale, code - offset, minimum)), x = bf16(x), to the nearest, ties to even. For each 32 inputs,
//! ascending, the tile unit adds to an f32 sum what even and odd inputs give in two sums of their own. It flushes numbers that
//! are too small to be normal to zero, in the rows, the weights and the sums.
//!
//! Invariance: a row of a tile meets no other row, and the order of its sum is that of the inputs, so that its bits depend
//! neither on its place, nor on the rows beside it, nor on how the work was cut. They are not those of the other products.
//!
//! Memory decides: tiles from the second-level cache run at 70 % of the peak, from beyond it at 15 %. Hence the size of a
//! piece, sums that go straight to their place, and lines of that place that are fetched while the sums are made. And hence slices
//! of inputs: a panel's weights of one slice stay in the first-level cache while all rows of the piece pass by it (TILELOADDT1),
//! and the sums wait in memory between slices, with the bits that they have in tiles.
//!
//! Not here: which rows are computed this way (the runner's business).

mod widen;

use std::arch::asm;
use std::ops::Range;

use super::place::{self, Place};
use super::{Beside, PieceAt, Results, locate, row_stride};
use crate::amx_tiles::{TileShape, TileShapes, Tiles};
use crate::isa::Amx;
use crate::packed::{PANEL, PackedMatrix};
use crate::pool::SharedMut;
use crate::quantised::{BLOCK_VALUES, BlockFormat};
use crate::quantised_rows::{PANEL_ROWS, row_panel, row_panels};
use crate::tile_rows::{TILE_ROWS, TILE_WORDS, TileRows};
use crate::{Buffer, Isa, Team};

/// Rows that two tiles have: they share the loads of the weights.
const PAIR_ROWS: usize = 2 * TILE_ROWS;
/// Of one block of 32 inputs of a panel of weights, and of a tile of rows.
const PANEL_BLOCK_BYTES: usize = 2 * TILE_BYTES;
const TILE_BYTES: usize = TILE_WORDS * 4;
/// Blocks of a panel that are widened, while tiles multiply those before.
const WIDENED_AT_ONCE: usize = 2;
/// Blocks of a slice at most: 36 KiB of weights, of a first-level cache of 48.
const SLICE_BLOCKS_MAX: usize = 18;
/// Rows of a piece that stay in the second-level cache while panels of weights pass.
const ROWS_BYTES: usize = 1 << 20;
/// Rows of a piece at least: fewer would be faster than the widening of their weights.
const ROWS_MIN: usize = 128;

/// Memory that [`matmul_tiles`] works in, of each thread. It only grows.
#[derive(Default)]
pub struct TileScratch {
    panels: Buffer<u32>,
    sums: Buffer<f32>,
}

/// Eight tiles of 16 rows of 64 bytes.
static SHAPES: TileShapes = TileShapes::new([TileShape::FULL; 8]);

/// Whether [`matmul_tiles`] takes this matrix.
pub(super) fn takes(format: BlockFormat) -> bool {
    format != BlockFormat::F32
}

/// As [`super::matmul_beside`], of rows in tiles.
///
/// # Panics
/// If a shape is wrong or a matrix is of f32.
#[expect(clippy::too_many_arguments, reason = "a product's, and its memory")]
pub(crate) fn matmul_tiles_beside(
    team: &Team<'_>,
    isa: Isa,
    amx: Amx,
    matrices: &[&PackedMatrix],
    x: &TileRows,
    out: &mut [f32],
    accumulate: bool,
    scratch: &mut TileScratch,
    beside: &impl Beside,
) {
    let (rows, blocks) = (x.rows(), x.width() / BLOCK_VALUES);
    for matrix in matrices {
        assert!(matrix.inputs() == x.width() || rows == 0, "{} inputs, width {}", matrix.inputs(), x.width());
        assert!(takes(matrix.format()), "{:?} in tiles", matrix.format());
    }
    let width: usize = matrices.iter().map(|matrix| matrix.outputs()).sum();
    let panels: usize = matrices.iter().map(|matrix| matrix.panels()).sum();
    let row_stride = row_stride(out.len(), rows, width);
    if panels == 0 || rows == 0 {
        return;
    }
    // What is beside adds to panels of rows that do not end where tiles do.
    let is_beside = beside.tiles() > 0;
    let piece_rows = match is_beside {
        true => rows.next_multiple_of(PAIR_ROWS),
        false => piece_rows(team.threads(), panels, rows, x.width()),
    };
    let pieces = rows.div_ceil(piece_rows);
    let slices = blocks.div_ceil(SLICE_BLOCKS_MAX);
    let slice = |number: usize| blocks * number / slices..blocks * (number + 1) / slices;
    let panel_words = blocks.div_ceil(slices) * PANEL_BLOCK_BYTES / 4;
    let sums_len = if is_beside || slices > 1 { piece_rows * PANEL } else { 0 };
    scratch.panels.resize(team.threads() * panel_words);
    scratch.sums.resize(team.threads() * sums_len);
    let (widened, sums) = (SharedMut::new(&mut scratch.panels), SharedMut::new(&mut scratch.sums));
    let out = SharedMut::new(out);
    team.tiles(beside.tiles() + panels * pieces, |worker, tile| {
        let Some(tile) = tile.checked_sub(beside.tiles()) else { return beside.tile(worker) };
        let Some(mut at) = locate(matrices, tile % panels) else { return };
        at.rows = tile / panels * piece_rows..rows.min((tile / panels + 1) * piece_rows);
        // SAFETY: a worker runs one tile at a time, and these parts are its own.
        let (widened, sums) = unsafe {
            let words = widened.slice(worker * panel_words..(worker + 1) * panel_words);
            (words, sums.slice(worker * sums_len..(worker + 1) * sums_len))
        };
        let mut weights = Weights::new(amx, at.matrix, at.panel, widened);
        let kept_stride = PANEL * size_of::<f32>();
        let place = |first: usize, rows: usize| Place {
            first: first * row_stride + at.column + at.outputs.start,
            rows,
            outputs: at.outputs.len(),
            stride: row_stride,
        };
        let _tiles = Tiles::new(amx, &SHAPES);
        // What tiles have stored is read a pair of tiles later: at once it would be waited for.
        let mut some = [const { Aligned::ZERO }; 2];
        let mut waiting: Option<Place> = None;
        for slice_number in 0..slices {
            let slice = slice(slice_number);
            weights.turn_to(slice.clone());
            for (number, first) in at.rows.clone().step_by(PAIR_ROWS).enumerate() {
                let count = PAIR_ROWS.min(at.rows.end - first);
                let x = &x.words()[first / TILE_ROWS * blocks * TILE_WORDS..][..2 * blocks * TILE_WORDS];
                let x = [x, &x[blocks * TILE_WORDS..]].map(|x| &x[slice.start * TILE_WORDS..slice.end * TILE_WORDS]);
                let kept = match sums.get_mut((first - at.rows.start) * PANEL..) {
                    Some(sums) if sums_len > 0 => sums[..PAIR_ROWS * PANEL].as_mut_ptr(),
                    _ => std::ptr::null_mut(),
                };
                let from = if slice_number > 0 { kept.cast_const() } else { std::ptr::null() };
                if is_beside || slice_number + 1 < slices {
                    // SAFETY: the tiles are set up, and 32 rows of sums follow each other.
                    unsafe { weights.multiply(x, from, (kept, kept_stride), (kept, kept_stride)) };
                    continue;
                }
                let place = place(first, count);
                let stride = row_stride * size_of::<f32>();
                let to = out.first().wrapping_add(place.first);
                if count == PAIR_ROWS && place.outputs == PANEL && !accumulate {
                    // SAFETY: as above; the rows and outputs of a piece are one tile's, all of them are inside of `out`.
                    unsafe { weights.multiply(x, from, (to, stride), (to, stride)) };
                    continue;
                }
                let some_place = some[number % 2].0.as_mut_ptr().cast();
                // SAFETY: as above.
                unsafe { weights.multiply(x, from, (some_place, kept_stride), (to, stride)) };
                if let Some(place) = waiting.replace(place) {
                    place::write(isa, &some[1 - number % 2].0, &place, accumulate, &out);
                }
            }
        }
        if let Some(place) = waiting {
            let last = (at.rows.len().div_ceil(PAIR_ROWS) - 1) % 2;
            place::write(isa, &some[last].0, &place, accumulate, &out);
        }
        if is_beside {
            for row_panel_index in 0..row_panels(rows) {
                let range = row_panel(rows, row_panel_index);
                let mut results: Results = [[0.0; PANEL]; PANEL_ROWS];
                let from = sums[range.start * PANEL..range.end * PANEL].as_chunks::<PANEL>().0;
                results[..range.len()].copy_from_slice(from);
                let number = tile * row_panels(rows) + row_panel_index;
                let (matrix, outputs) = (at.index, &at.outputs);
                let first_row = range.start;
                let piece = PieceAt { matrix, row_panel: row_panel_index, first_row, outputs, number };
                beside.add(&piece, &mut results);
                place::write(isa, &results, &place(range.start, range.len()), accumulate, &out);
            }
        }
    });
}

/// Rows of a piece: as many as the cache holds, fewer where threads would have nothing to do.
fn piece_rows(threads: usize, panels: usize, rows: usize, inputs: usize) -> usize {
    let most = (ROWS_BYTES / (2 * inputs)).max(ROWS_MIN);
    let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(panels) };
    let pieces = rows.div_ceil(most).max(wanted.min(rows.div_ceil(ROWS_MIN)));
    rows.div_ceil(pieces).next_multiple_of(PAIR_ROWS)
}

#[repr(C, align(64))]
struct Aligned([[f32; PANEL]; PAIR_ROWS]);

impl Aligned {
    const ZERO: Self = Self([[0.0; PANEL]; PAIR_ROWS]);
}

/// A slice of a panel of weights in bf16: for each 32 inputs two tiles of 16 pairs of inputs by 16 outputs.
struct Weights<'a> {
    amx: Amx,
    first: *const u8,
    /// Of the panel.
    slice: Range<usize>,
    /// Between the pairs of a tile, and between the two tiles.
    stride: usize,
    second: usize,
    format: BlockFormat,
    panel: &'a [u8],
    /// Where to a slice is widened, and whether it is: not used of bf16.
    widened: &'a mut [u32],
    is_wide: bool,
}

impl<'a> Weights<'a> {
    /// No slice of it yet.
    fn new(amx: Amx, matrix: &'a PackedMatrix, panel: usize, widened: &'a mut [u32]) -> Self {
        let (format, panel) = (matrix.format(), matrix.panel(panel));
        let is_wide = format == BlockFormat::Bf16;
        assert!(!is_wide || panel.len() == matrix.inputs() / BLOCK_VALUES * PANEL_BLOCK_BYTES);
        let (stride, second) = if is_wide { (PANEL * 4, 64) } else { (64, TILE_BYTES) };
        Self { amx, first: panel.as_ptr(), slice: 0..0, stride, second, format, panel, widened, is_wide }
    }

    /// Goes on with other blocks.
    fn turn_to(&mut self, slice: Range<usize>) {
        if self.format == BlockFormat::Bf16 {
            self.first = self.panel[slice.start * PANEL_BLOCK_BYTES..slice.end * PANEL_BLOCK_BYTES].as_ptr();
        } else {
            self.first = self.widened[..slice.len() * PANEL_BLOCK_BYTES / 4].as_mut_ptr().cast_const().cast();
            self.is_wide = false;
        }
        self.slice = slice;
    }

    /// 32 rows by 32 outputs: to `sums`, whose rows are `stride` bytes apart, beginning with what is at `from`, which are rows of
    /// 32, or with zeros if that is null. `fetched` are the lines that will be written next, row by row like the sums; they need not
    /// be of memory. The first time after [`Self::turn_to`] weights are widened on the way: vectors do that while tiles multiply what
    /// was widened before.
    ///
    /// # Safety
    /// Tiles are set up; `sums` and `from` have 32 rows of 32 values, nobody else uses them.
    #[inline]
    unsafe fn multiply(
        &mut self,
        x: [&[u32]; 2],
        from: *const f32,
        (sums, stride): (*mut f32, usize),
        (fetched, fetched_stride): (*mut f32, usize),
    ) {
        let blocks = self.slice.len();
        assert!(blocks > 0 && x.iter().all(|x| x.len() == blocks * TILE_WORDS));
        // SAFETY: `x` has as many blocks; the blocks of weights that are multiplied were widened, or need not be. Sums by the
        // caller's promise.
        unsafe {
            if from.is_null() {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, preserves_flags)
                );
            } else {
                let stride = PANEL * size_of::<f32>();
                asm!(
                    "tileloaddt1 tmm0, [{first} + {down}]", "tileloaddt1 tmm1, [{first} + {down} + 64]",
                    "tileloaddt1 tmm2, [{second} + {down}]", "tileloaddt1 tmm3, [{second} + {down} + 64]",
                    first = in(reg) from, second = in(reg) from.byte_add(TILE_ROWS * stride), down = in(reg) stride,
                    options(nostack, preserves_flags, readonly),
                );
            }
            if self.is_wide {
                self.add(x, 0..blocks, fetched, fetched_stride);
            } else {
                self.is_wide = true;
                for start in (0..blocks + WIDENED_AT_ONCE).step_by(WIDENED_AT_ONCE) {
                    let end = blocks.min(start + WIDENED_AT_ONCE);
                    if start < blocks {
                        let words = &mut self.widened[start * PANEL_BLOCK_BYTES / 4..end * PANEL_BLOCK_BYTES / 4];
                        widen::widen(self.amx, self.format, self.panel, self.slice.start + start, words);
                    }
                    if let Some(before) = start.checked_sub(WIDENED_AT_ONCE) {
                        let fetched = fetched.wrapping_byte_add(2 * before * fetched_stride);
                        self.add(x, before..blocks.min(start), fetched, fetched_stride);
                    }
                }
            }
            asm!(
                "tilestored [{first} + {down}], tmm0", "tilestored [{first} + {down} + 64], tmm1",
                "tilestored [{second} + {down}], tmm2", "tilestored [{second} + {down} + 64], tmm3",
                first = in(reg) sums, second = in(reg) sums.byte_add(TILE_ROWS * stride), down = in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Adds to the sums in the tiles what these blocks of the slice give, of which there is at least one.
    ///
    /// # Safety
    /// Tiles are set up, `x` and the weights have the blocks.
    #[inline]
    unsafe fn add(&self, x: [&[u32]; 2], blocks: Range<usize>, fetched: *mut f32, fetched_stride: usize) {
        // SAFETY: `x` and the weights are walked over from block to block.
        unsafe {
            let [x0, x1] = x.map(|x| x.as_ptr().add(blocks.start * TILE_WORDS));
            let weights = self.first.add(blocks.start * PANEL_BLOCK_BYTES);
            // Rows pass by: they need not stay in the first-level cache, where the weights are.
            asm!(
                "2:",
                "tileloaddt1 tmm4, [{x0} + {line}]",
                "tileloadd tmm6, [{w0} + {pair}]",
                "tileloadd tmm7, [{w1} + {pair}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloaddt1 tmm5, [{x1} + {line}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x0}, {TILE}", "add {x1}, {TILE}",
                "add {w0}, {PANEL_BLOCK}", "add {w1}, {PANEL_BLOCK}",
                "prefetchw [{to}]", "prefetchw [{to} + 64]",
                "prefetchw [{to} + {down}]", "prefetchw [{to} + {down} + 64]",
                "lea {to}, [{to} + 2 * {down}]",
                "dec {count}",
                "jnz 2b",
                x0 = inout(reg) x0 => _, x1 = inout(reg) x1 => _,
                w0 = inout(reg) weights => _, w1 = inout(reg) weights.add(self.second) => _,
                count = inout(reg) blocks.len() => _, line = in(reg) 64usize, pair = in(reg) self.stride,
                to = inout(reg) fetched => _, down = in(reg) fetched_stride,
                TILE = const TILE_BYTES, PANEL_BLOCK = const PANEL_BLOCK_BYTES, options(nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests;
