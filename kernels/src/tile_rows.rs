//! The activations of a batch in bf16, in the order in which AMX's tiles are multiplied. Not here: the products (`gemm/amx.rs`).

use crate::isa::Amx;
use crate::pool::SharedMut;
use crate::quantised::BLOCK_VALUES;
use crate::{Buffer, Team};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Pairs of bf16 in a tile: 32 inputs of its rows.
pub(crate) const TILE_WORDS: usize = TILE_ROWS * BLOCK_VALUES / 2;

/// Rows in bf16, to the nearest, ties to even; numbers that are too small to be normal are zero, NaN stays NaN. The buffer keeps
/// its memory from step to step.
#[derive(Default)]
pub struct TileRows {
    rows: usize,
    width: usize,
    /// `[tile of 16 rows][block of 32 inputs][row of tile][pair of inputs]`; an even number of tiles, those that are too many
    /// are zero.
    words: Buffer<u32>,
}

impl TileRows {
    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn words(&self) -> &[u32] {
        &self.words
    }

    /// Takes the rows of `x` `[rows, width]`.
    ///
    /// # Panics
    /// If the lengths do not belong together or `width` is not a multiple of 32.
    pub fn fill(&mut self, team: &Team<'_>, _: Amx, x: &[f32], rows: usize, width: usize) {
        assert!(
            width > 0 && width.is_multiple_of(BLOCK_VALUES) && rows * width == x.len(),
            "{rows} x {width} of {}",
            x.len()
        );
        (self.rows, self.width) = (rows, width);
        let tile_words = width / BLOCK_VALUES * TILE_WORDS;
        let tiles = rows.div_ceil(2 * TILE_ROWS) * 2;
        self.words.resize(tiles * tile_words);
        let words = SharedMut::new(&mut self.words);
        team.tiles(tiles, |_, tile| {
            // SAFETY: each tile of rows is one tile's.
            let words = unsafe { words.slice(tile * tile_words..(tile + 1) * tile_words) };
            let first = rows.min(tile * TILE_ROWS);
            let end = rows.min(first + TILE_ROWS);
            for (row, x) in x[first * width..end * width].chunks_exact(width).enumerate() {
                // SAFETY: `Amx` exists only where the best level does, which has these features.
                unsafe { round_row(x, row, words) };
            }
            for row in end - first..TILE_ROWS {
                words.chunks_exact_mut(TILE_WORDS).for_each(|words| words[row * 16..][..16].fill(0));
            }
        });
    }
}

/// # Safety
/// The machine has AVX-512 with BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn round_row(x: &[f32], row: usize, words: &mut [u32]) {
    use std::arch::x86_64::*;
    for (x, words) in x.as_chunks::<BLOCK_VALUES>().0.iter().zip(words.chunks_exact_mut(TILE_WORDS)) {
        let words = &mut words[row * 16..][..16];
        // SAFETY: 32 values become 16 pairs.
        unsafe {
            let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x.as_ptr().add(16)), _mm512_loadu_ps(x.as_ptr()));
            _mm512_storeu_si512(words.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(pairs));
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn round_row(_: &[f32], _: usize, _: &mut [u32]) {}
