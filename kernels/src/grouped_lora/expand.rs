//! y += B h of some rows for one or two tiles of a term's outputs, h being what `shrink.rs` gives in int8. For each block of
//! 32 ranks, ascending: y = fma(scale of B · scale of h, Σ codes, y). The sums of codes are of integers and exact: the same
//! bits for every number of rows and instruction set.

use super::pack::{BLOCK_WORDS, Codes, SCALE_BYTES, VECTOR, VECTOR_BYTES, ZERO};
use crate::Isa;
use crate::isa::{Level, multiversion};
use crate::packed::PANEL;
use crate::quantised_rows::PANEL_ROWS;

/// Rows at once: 6 of 2 vectors in two kinds of sums leave registers for B.
const ROWS_AT_ONCE: usize = 6;

/// Rows whose terms are computed in one go at most.
pub(super) const STREAMED_ROWS_MAX: usize = PANEL_ROWS / 2;

/// What DoRA needs beside B h: weight · growth · plain + (growth + 1) · B h.
pub(super) struct Growth<'a> {
    /// Of the outputs that are computed.
    pub(super) growth: &'a [f32],
    /// The module's own outputs.
    pub(super) plain: &'a [[f32; PANEL]],
    pub(super) weight: f32,
}

/// A row's part of what was shrunk begins at its number · `stride`.
#[derive(Clone, Copy)]
pub(super) struct Shrunk<'a> {
    pub(super) words: &'a [u32],
    pub(super) stride: usize,
    /// Of ranks, without scales and sums.
    pub(super) rank_words: usize,
}

impl Shrunk<'_> {
    fn blocks(&self) -> usize {
        self.rank_words.div_ceil(BLOCK_WORDS)
    }
}

/// Adds B h to as many rows of `y` as it has, of which only the first 16 values if B has one tile: block by block, or with `whole`
/// all of B h at once, which has the bits of adding what [`expand`] makes of zeros.
#[inline]
pub(super) fn expand(isa: Isa, b: Codes<'_>, h: Shrunk<'_>, whole: bool, y: &mut [[f32; PANEL]]) {
    let tile_bytes = h.rank_words * VECTOR_BYTES;
    let tiles = if b.codes.len() == tile_bytes { 1 } else { PANEL / VECTOR };
    assert!(b.codes.len() == tiles * tile_bytes && b.scales.len() == tiles * h.blocks() * VECTOR * SCALE_BYTES);
    assert!((1..=PANEL_ROWS).contains(&y.len()));
    assert!(h.words.len() >= (y.len() - 1) * h.stride + h.rank_words + 2 * h.blocks());
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `vector` enables; the lengths
        // were asserted above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { vector::expand(b, h, (tiles, whole), y) },
        _ if whole => {
            let mut own = [[0.0; PANEL]; PANEL_ROWS];
            plain(isa, b, h, tiles, &mut own[..y.len()]);
            add_rows(isa, &own[..y.len()], y);
        }
        _ => plain(isa, b, h, tiles, y),
    }
}

/// Where some rows' outputs of one term go: a row's begin at its number · `stride`.
pub(super) struct Places<'a> {
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) outputs: usize,
}

/// Writes B h of all of a term's outputs, or with `accumulate` adds it: B is read once from its beginning to its end. The same
/// bits as [`expand`] makes of zeros, or of what is there.
pub(super) fn expand_all(isa: Isa, b: Codes<'_>, h: Shrunk<'_>, to: Places<'_>, accumulate: bool) {
    let Places { out, stride, rows, outputs } = to;
    let (tile_bytes, tile_scales) = (h.rank_words * VECTOR_BYTES, h.blocks() * VECTOR * SCALE_BYTES);
    let tiles = outputs.div_ceil(VECTOR);
    assert!((1..=STREAMED_ROWS_MAX).contains(&rows) && outputs > 0 && outputs <= stride);
    assert!(b.codes.len() == tiles * tile_bytes && b.scales.len() == tiles * tile_scales);
    assert!(h.words.len() >= (rows - 1) * h.stride + h.rank_words + 2 * h.blocks());
    assert!(out.len() >= (rows - 1) * stride + outputs);
    match isa.level() {
        // SAFETY: this level exists only where `Isa::available` (isa.rs) found the features that `vector` enables; the lengths
        // were asserted above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { vector::expand_all(b, h, out, (stride, rows, outputs), accumulate) },
        _ => {
            let panels = b.codes.chunks(2 * tile_bytes).zip(b.scales.chunks(2 * tile_scales));
            for (panel, (codes, scales)) in panels.enumerate() {
                let own = panel * PANEL..outputs.min((panel + 1) * PANEL);
                let mut y = [[0.0; PANEL]; STREAMED_ROWS_MAX];
                let y = &mut y[..rows];
                if accumulate {
                    for (y, out) in y.iter_mut().zip(out.chunks(stride)) {
                        y[..own.len()].copy_from_slice(&out[own.clone()]);
                    }
                }
                plain(isa, Codes { codes, scales }, h, codes.len() / tile_bytes, y);
                for (y, out) in y.iter().zip(out.chunks_mut(stride)) {
                    out[own.clone()].copy_from_slice(&y[..own.len()]);
                }
            }
        }
    }
}

multiversion! {
    fn plain(b: Codes<'_>, h: Shrunk<'_>, tiles: usize, y: &mut [[f32; PANEL]]) {
        for (row, y) in y.iter_mut().enumerate() {
            for (tile, y) in y.as_chunks_mut::<VECTOR>().0.iter_mut().enumerate().take(tiles) {
                let mut h_block = &h.words[row * h.stride..];
                for block in 0..h.blocks() {
                    let words = (h.rank_words - block * BLOCK_WORDS).min(BLOCK_WORDS);
                    let mut dots = [0i32; VECTOR];
                    for word in 0..words {
                        let at = (tile * h.rank_words + block * BLOCK_WORDS + word) * VECTOR_BYTES;
                        let h = h_block[2 + word].to_le_bytes();
                        for (dot, codes) in dots.iter_mut().zip(b.codes[at..at + VECTOR_BYTES].as_chunks::<4>().0) {
                            for (code, h) in codes.iter().zip(h) {
                                *dot += (i32::from(*code) - i32::from(ZERO)) * i32::from(h.cast_signed());
                            }
                        }
                    }
                    let h_scale = f32::from_bits(h_block[0]);
                    let at = (tile * h.blocks() + block) * VECTOR * SCALE_BYTES;
                    let scales = b.scales[at..].as_chunks::<SCALE_BYTES>().0;
                    for ((y, dot), scale) in y.iter_mut().zip(dots).zip(scales) {
                        let scale = f32::from_bits(u32::from(u16::from_le_bytes(*scale)) << 16);
                        *y = (scale * h_scale).mul_add(dot as f32, *y);
                    }
                    h_block = &h_block[2 + words..];
                }
            }
        }
    }
}

multiversion! {
    /// `y` += what all terms add.
    pub(super) fn add_rows(own: &[[f32; PANEL]], y: &mut [[f32; PANEL]]) {
        for (y, own) in y.iter_mut().zip(own) {
            y.iter_mut().zip(own).for_each(|(y, own)| *y += own);
        }
    }
}

multiversion! {
    /// [`add_rows`] of rows that lie apart and may be shorter.
    pub(super) fn add_apart(own: &[f32], stride: usize, outputs: usize, y: &mut [[f32; PANEL]]) {
        for (y, own) in y.iter_mut().zip(own.chunks(stride)) {
            match own.first_chunk::<PANEL>() {
                Some(own) if outputs == PANEL => y.iter_mut().zip(own).for_each(|(y, own)| *y += own),
                _ => y.iter_mut().zip(&own[..outputs]).for_each(|(y, own)| *y += own),
            }
        }
    }
}

multiversion! {
    /// `y` += what DoRA makes of B h, which is in `own`.
    pub(super) fn grow(growth: &Growth<'_>, own: &[[f32; PANEL]], y: &mut [[f32; PANEL]]) {
        for ((y, own), plain) in y.iter_mut().zip(own).zip(growth.plain) {
            for (((y, own), plain), grown) in y.iter_mut().zip(own).zip(plain).zip(growth.growth) {
                *y = (growth.weight * grown).mul_add(*plain, (grown + 1.0).mul_add(*own, *y));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(clippy::needless_range_loop, reason = "with plain indices the compiler keeps the sums in registers")]
mod vector {
    use std::arch::x86_64::*;

    use super::super::shrink::widened;
    use super::{BLOCK_WORDS, Codes, PANEL, ROWS_AT_ONCE, SCALE_BYTES, Shrunk, VECTOR, VECTOR_BYTES};

    /// Words of ranks and blocks of them: of one block if WORDS says how many, so that loops are of a length that is known.
    #[inline(always)]
    fn known<const WORDS: usize>(h: Shrunk<'_>) -> (usize, usize) {
        if WORDS > 0 { (WORDS, 1) } else { (h.rank_words, h.blocks()) }
    }

    /// How far ahead of its use B is fetched where it is read in one go.
    const AHEAD: usize = 4096;

    /// # Safety
    /// The machine has the features, and the lengths are as `super::expand_all` asserts.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn expand_all(
        b: Codes<'_>,
        h: Shrunk<'_>,
        out: &mut [f32],
        (stride, rows, outputs): (usize, usize, usize),
        accumulate: bool,
    ) {
        macro_rules! for_rows {
            ($($rows:literal)*) => {
                match rows {
                    // SAFETY: the caller's promise.
                    $($rows => unsafe {
                        match h.rank_words {
                            2 => all::<$rows, 2>(b, h, out, (stride, outputs), accumulate),
                            4 => all::<$rows, 4>(b, h, out, (stride, outputs), accumulate),
                            8 => all::<$rows, 8>(b, h, out, (stride, outputs), accumulate),
                            _ => all::<$rows, 0>(b, h, out, (stride, outputs), accumulate),
                        }
                    },)*
                    _ => {}
                }
            };
        }
        for_rows!(1 2 3 4 5 6);
    }

    /// # Safety
    /// As [`expand_all`], for that many rows, and words of ranks if they are known: of one block.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn all<const ROWS: usize, const WORDS: usize>(
        b: Codes<'_>,
        h: Shrunk<'_>,
        out: &mut [f32],
        (stride, outputs): (usize, usize),
        accumulate: bool,
    ) {
        let (rank_words, blocks) = known::<WORDS>(h);
        let (mut codes, mut scales, out) = (b.codes.as_ptr(), b.scales.as_ptr(), out.as_mut_ptr());
        for first in (0..outputs).step_by(VECTOR) {
            let mask = u16::MAX >> (VECTOR - VECTOR.min(outputs - first));
            // SAFETY: `codes` and `scales` walk over the vectors and scales of all tiles, `h_block` over a row's blocks, others'
            // are `h.stride` away; the mask leaves what the rows of `out` have.
            unsafe {
                let mut sums = [_mm512_setzero_ps(); ROWS];
                if accumulate {
                    for row in 0..ROWS {
                        sums[row] = _mm512_maskz_loadu_ps(mask, out.add(row * stride + first));
                    }
                }
                let mut h_block = h.words.as_ptr();
                let mut words_left = rank_words;
                for _ in 0..blocks {
                    let words = words_left.min(BLOCK_WORDS);
                    let h_word = |word: usize, row: usize| h_block.add(row * h.stride + word).cast::<i32>().read();
                    let mut dots = [_mm512_setzero_si512(); ROWS];
                    for row in 0..ROWS {
                        dots[row] = _mm512_set1_epi32(h_word(1, row));
                    }
                    for word in 0..words {
                        _mm_prefetch::<_MM_HINT_T1>(codes.wrapping_add(AHEAD).cast());
                        let values = _mm512_load_si512(codes.cast());
                        codes = codes.add(VECTOR_BYTES);
                        for row in 0..ROWS {
                            dots[row] =
                                _mm512_dpbusd_epi32(dots[row], values, _mm512_set1_epi32(h_word(2 + word, row)));
                        }
                    }
                    let scale = widened(scales);
                    scales = scales.add(VECTOR * SCALE_BYTES);
                    for row in 0..ROWS {
                        let h_scale = _mm512_castsi512_ps(_mm512_set1_epi32(h_word(0, row)));
                        let both = _mm512_mul_ps(scale, h_scale);
                        sums[row] = _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(dots[row]), sums[row]);
                    }
                    words_left -= words;
                    h_block = h_block.add(2 + words);
                }
                for row in 0..ROWS {
                    _mm512_mask_storeu_ps(out.add(row * stride + first), mask, sums[row]);
                }
            }
        }
    }

    /// # Safety
    /// The machine has the features, and the lengths are as `super::expand` asserts.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn expand(b: Codes<'_>, h: Shrunk<'_>, (tiles, whole): (usize, bool), y: &mut [[f32; PANEL]]) {
        macro_rules! for_rows {
            ($h:ident, $y:ident, $tiles:literal: $($rows:literal)*) => {
                match $y.len() {
                    // SAFETY: the caller's promise.
                    $($rows => unsafe {
                        match $h.rank_words {
                            2 => rows::<$tiles, $rows, 2>(b, $h, whole, $y),
                            4 => rows::<$tiles, $rows, 4>(b, $h, whole, $y),
                            8 => rows::<$tiles, $rows, 8>(b, $h, whole, $y),
                            _ => rows::<$tiles, $rows, 0>(b, $h, whole, $y),
                        }
                    },)*
                    _ => {}
                }
            };
        }
        let each = y.len().div_ceil(y.len().div_ceil(ROWS_AT_ONCE));
        for (index, y) in y.chunks_mut(each).enumerate() {
            let h = Shrunk { words: &h.words[index * each * h.stride..], ..h };
            match tiles {
                2 => for_rows!(h, y, 2: 1 2 3 4 5 6),
                _ => for_rows!(h, y, 1: 1 2 3 4 5 6),
            }
        }
    }

    /// # Safety
    /// As [`expand`], for that many tiles and rows, and words of ranks if they are known: of one block.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn rows<const TILES: usize, const ROWS: usize, const WORDS: usize>(
        b: Codes<'_>,
        h: Shrunk<'_>,
        whole: bool,
        y: &mut [[f32; PANEL]],
    ) {
        assert!(y.len() == ROWS);
        let (rank_words, blocks) = known::<WORDS>(h);
        // SAFETY: a row has 32 values.
        let there = |y: &[[f32; PANEL]], row: usize, tile: usize| unsafe {
            _mm512_loadu_ps(y[row].as_ptr().add(tile * VECTOR))
        };
        let mut sums = [[_mm512_setzero_ps(); TILES]; ROWS];
        if !whole {
            for row in 0..ROWS {
                for tile in 0..TILES {
                    sums[row][tile] = there(y, row, tile);
                }
            }
        }
        let mut h_block = h.words.as_ptr();
        for block in 0..blocks {
            let words = (rank_words - block * BLOCK_WORDS).min(BLOCK_WORDS);
            // SAFETY: `h_block` walks over a row's blocks, other rows' are `h.stride` away; B has `rank_words` vectors and
            // `blocks` scales for each tile.
            unsafe {
                let h_word = |word: usize, row: usize| h_block.add(row * h.stride + word).cast::<i32>().read();
                let mut dots = [[_mm512_setzero_si512(); TILES]; ROWS];
                for row in 0..ROWS {
                    dots[row] = [_mm512_set1_epi32(h_word(1, row)); TILES];
                }
                for word in 0..words {
                    let mut codes = [_mm512_setzero_si512(); TILES];
                    for tile in 0..TILES {
                        let at = (tile * rank_words + block * BLOCK_WORDS + word) * VECTOR_BYTES;
                        codes[tile] = _mm512_load_si512(b.codes.as_ptr().add(at).cast());
                    }
                    for row in 0..ROWS {
                        let h = _mm512_set1_epi32(h_word(2 + word, row));
                        for tile in 0..TILES {
                            dots[row][tile] = _mm512_dpbusd_epi32(dots[row][tile], codes[tile], h);
                        }
                    }
                }
                for tile in 0..TILES {
                    let scale = widened(b.scales.as_ptr().add((tile * blocks + block) * VECTOR * SCALE_BYTES));
                    for row in 0..ROWS {
                        let h_scale = _mm512_castsi512_ps(_mm512_set1_epi32(h_word(0, row)));
                        let both = _mm512_mul_ps(scale, h_scale);
                        sums[row][tile] = _mm512_fmadd_ps(both, _mm512_cvtepi32_ps(dots[row][tile]), sums[row][tile]);
                    }
                }
                h_block = h_block.add(2 + words);
            }
        }
        if whole {
            for row in 0..ROWS {
                for tile in 0..TILES {
                    sums[row][tile] = _mm512_add_ps(there(y, row, tile), sums[row][tile]);
                }
            }
        }
        for row in 0..ROWS {
            for tile in 0..TILES {
                // SAFETY: a row has 32 values.
                unsafe { _mm512_storeu_ps(y[row].as_mut_ptr().add(tile * VECTOR), sums[row][tile]) };
            }
        }
    }
}
