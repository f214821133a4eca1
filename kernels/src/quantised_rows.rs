//! The activations of a batch in the forms that packed weights are multiplied with. Not here: the products (`gemm.rs`).
//!
//! int8: each 32 values of a row are `scale · q`, q = round(x · (127 / max|x|)), scale = max|x| / 127. One scale for a whole
//! row costs ten times the divergence (mean KL 0.0495 against 0.0039 nat on SmolLM2-135M in Q4_1). A block that holds an
//! infinity or NaN gets NaN as its scale: the row's outputs are NaN and no other row notices. A block below 2⁻¹¹⁹ is zero.
//!
//! Rows lie in *panels* of up to 12, as even as they can be, so that a tile of the product reads them at fixed distances.
//! Which panel a row is in changes where it lies and never what is computed from it.

#[cfg(target_arch = "x86_64")]
mod vnni;

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
pub(crate) use self::vnni::codes;

use crate::buffer::Buffer;
use crate::isa::{Level, multiversion};
use crate::pool::SharedMut;
use crate::quantised::{BLOCK_VALUES, BlockFormat};
use crate::{Isa, Team};

/// Rows of a panel at most.
pub(crate) const PANEL_ROWS: usize = 12;
/// Words of one row in one block: see [`Words`].
pub(crate) const BLOCK_WORDS: usize = 14;
/// Values that one tile of filling takes at most: about 1.5 µs.
const TILE_VALUES: usize = 1 << 12;
/// Blocks below are zero: their inverse scale could overflow. 2⁻¹¹⁹.
const SMALLEST: f32 = f32::from_bits((127 - 119) << 23);

/// Where the parts of a block lie, counted in words x rows of the panel; each part has a word for each row.
pub(crate) struct Words;

impl Words {
    /// 8 groups of 4 consecutive int8.
    pub(crate) const CODES: usize = 0;
    /// f32.
    pub(crate) const SCALE: usize = 8;
    /// f32: scale · Σq.
    pub(crate) const SCALED_SUM: usize = 9;
    /// i32: -8 · Σq, what the offset of 4-bit codes adds.
    pub(crate) const MINUS_8: usize = 10;
    /// i32: -128 · Σq.
    pub(crate) const MINUS_128: usize = 11;
    /// i32: -32 · Σq of the first 16 values, and of the last.
    pub(crate) const MINUS_32: [usize; 2] = [12, 13];
}

/// Activations of a batch. The buffers keep their memory from step to step.
#[derive(Default)]
pub struct QuantisedRows {
    rows: usize,
    width: usize,
    forms: Forms,
    /// `[panel][block][word][row of panel]`, see [`Words`].
    words: Buffer<u32>,
    /// `[panel][pair of inputs][row of panel]`: two bf16, the first in the low half.
    pairs: Buffer<u32>,
    /// `[panel][input][row of panel]`: f32 as bits.
    floats: Buffer<u32>,
}

/// Which forms are kept.
#[derive(Clone, Copy, Default)]
struct Forms {
    words: bool,
    pairs: bool,
    floats: bool,
}

impl Forms {
    fn add(&mut self, format: BlockFormat) {
        match format {
            BlockFormat::F32 | BlockFormat::F16 => self.floats = true,
            BlockFormat::Bf16 => self.pairs = true,
            _ => self.words = true,
        }
    }
}

impl QuantisedRows {
    /// For matrices of any format: three forms of each value.
    #[must_use]
    pub fn new() -> Self {
        Self::for_formats(BlockFormat::ALL)
    }

    /// For matrices of these formats only, which is less work.
    #[must_use]
    pub fn for_formats(formats: impl IntoIterator<Item = BlockFormat>) -> Self {
        let mut rows = Self::default();
        formats.into_iter().for_each(|format| rows.forms.add(format));
        rows
    }

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

    /// Takes the rows of `x` `[rows, width]`.
    ///
    /// # Panics
    /// If the lengths do not belong together or `width` is not a multiple of 32.
    pub fn fill(&mut self, team: &Team<'_>, isa: Isa, x: &[f32], rows: usize, width: usize) {
        assert!(rows * width == x.len(), "{rows} x {width} of {}", x.len());
        // A tile is some blocks of one panel. The panels are about equal.
        let panels = row_panels(rows);
        let chunks = (rows * width).div_ceil(panels.max(1)).div_ceil(TILE_VALUES).max(1);
        let chunk_width = (width / BLOCK_VALUES).div_ceil(chunks) * BLOCK_VALUES;
        let parts = self.parts(rows, width);
        team.tiles(panels * chunks, |_, tile| {
            let at = row_panel(rows, tile / chunks);
            let from = width.min(tile % chunks * chunk_width);
            let to = width.min(from + chunk_width);
            let part = Part { x: &x[at.start * width..at.end * width], rows: at.len(), width, from, to };
            // SAFETY: panels are disjoint ranges of rows, chunks are disjoint within them, and each is one tile's.
            unsafe { parts.take(isa, &at, from / BLOCK_VALUES, &part) };
        });
    }

    /// Room for rows of this width, to be written in parts.
    ///
    /// # Panics
    /// If `width` is not a multiple of 32.
    pub(crate) fn parts(&mut self, rows: usize, width: usize) -> Parts<'_> {
        assert!(width > 0 && width.is_multiple_of(BLOCK_VALUES), "rows of {width} values");
        (self.rows, self.width) = (rows, width);
        let row_words = width / BLOCK_VALUES * BLOCK_WORDS;
        self.words.resize(if self.forms.words { rows * row_words } else { 0 });
        self.pairs.resize(if self.forms.pairs { rows * width / 2 } else { 0 });
        self.floats.resize(if self.forms.floats { rows * width } else { 0 });
        Parts {
            forms: self.forms,
            width,
            words: SharedMut::new(&mut self.words),
            pairs: SharedMut::new(&mut self.pairs),
            floats: SharedMut::new(&mut self.floats),
        }
    }

    /// The int8 form of one panel.
    ///
    /// # Panics
    /// If it is not kept.
    pub(crate) fn words(&self, rows: &Range<usize>) -> &[u32] {
        assert!(self.forms.words, "rows are not kept as int8");
        let row_words = self.width / BLOCK_VALUES * BLOCK_WORDS;
        &self.words[rows.start * row_words..rows.end * row_words]
    }

    /// The bf16 form of one panel.
    ///
    /// # Panics
    /// If it is not kept.
    pub(crate) fn pairs(&self, rows: &Range<usize>) -> &[u32] {
        assert!(self.forms.pairs, "rows are not kept as bf16");
        &self.pairs[rows.start * self.width / 2..rows.end * self.width / 2]
    }

    /// The f32 form of one panel, as bits.
    ///
    /// # Panics
    /// If it is not kept.
    pub(crate) fn floats(&self, rows: &Range<usize>) -> &[u32] {
        assert!(self.forms.floats, "rows are not kept as f32");
        &self.floats[rows.start * self.width..rows.end * self.width]
    }
}

/// Rows that are being written, by several threads.
pub(crate) struct Parts<'a> {
    forms: Forms,
    width: usize,
    words: SharedMut<'a, u32>,
    pairs: SharedMut<'a, u32>,
    floats: SharedMut<'a, u32>,
}

impl Parts<'_> {
    /// Takes one block of the rows of a panel: `x` is `[rows, 32]`.
    ///
    /// # Safety
    /// Nobody else writes this block of these rows, and `rows` are a panel of all of them.
    pub(crate) unsafe fn write(&self, isa: Isa, rows: &Range<usize>, block: usize, x: &[f32]) {
        let part = Part { x, rows: rows.len(), width: BLOCK_VALUES, from: 0, to: BLOCK_VALUES };
        // SAFETY: the caller's promise.
        unsafe { self.take(isa, rows, block, &part) };
    }

    /// Takes a part of the rows of a panel, from a block on.
    ///
    /// # Safety
    /// Nobody else writes these blocks of these rows, and `rows` are a panel of all of them.
    unsafe fn take(&self, isa: Isa, rows: &Range<usize>, block: usize, part: &Part<'_>) {
        // Of a form with `each` units for `values` values.
        let range = |each: usize, values: usize| {
            let start = (rows.start * self.width + block * BLOCK_VALUES * rows.len()) / values * each;
            start..start + (part.to - part.from) * rows.len() / values * each
        };
        if self.forms.words {
            // SAFETY: the caller's promise.
            quantise(isa, part, unsafe { self.words.slice(range(BLOCK_WORDS, BLOCK_VALUES)) });
        }
        if self.forms.pairs {
            // SAFETY: as above.
            round_pairs(isa, part, unsafe { self.pairs.slice(range(1, 2)) });
        }
        if self.forms.floats {
            // SAFETY: as above.
            transpose(isa, part, unsafe { self.floats.slice(range(1, 1)) });
        }
    }
}

/// Panels of this many rows.
pub(crate) const fn row_panels(rows: usize) -> usize {
    rows.div_ceil(PANEL_ROWS)
}

/// The rows of a panel: the first panels have one more where the number does not divide.
pub(crate) fn row_panel(rows: usize, panel: usize) -> Range<usize> {
    let panels = row_panels(rows);
    let (each, more) = (rows / panels, rows % panels);
    let start = panel * each + panel.min(more);
    start..start + each + usize::from(panel < more)
}

/// Some columns of the rows of a panel.
struct Part<'a> {
    /// All columns of these rows.
    x: &'a [f32],
    rows: usize,
    width: usize,
    from: usize,
    to: usize,
}

impl<'a> Part<'a> {
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = &'a [f32]> {
        let (from, to) = (self.from, self.to);
        self.x.chunks_exact(self.width).map(move |row| &row[from..to])
    }
}

fn quantise(isa: Isa, part: &Part<'_>, words: &mut [u32]) {
    match isa.level() {
        // SAFETY: the level exists only where `Isa::available` (isa.rs) found what `vnni::quantise` enables.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => unsafe { vnni::quantise(part, words) },
        _ => quantise_plain(isa, part, words),
    }
}

multiversion! {
    fn quantise_plain(part: &Part<'_>, words: &mut [u32]) {
        let rows = part.rows;
        for (row, x) in part.iter().enumerate() {
            for (x, block) in x.as_chunks().0.iter().zip(words.chunks_exact_mut(rows * BLOCK_WORDS)) {
                let block = &mut block[row..];
                let quantised = quantise_block(x);
                for (group, codes) in quantised.codes.as_chunks::<4>().0.iter().enumerate() {
                    block[(Words::CODES + group) * rows] = u32::from_le_bytes(codes.map(|code| code as u8));
                }
                let [first, last] = quantised.sums;
                block[Words::SCALE * rows] = quantised.scale.to_bits();
                block[Words::SCALED_SUM * rows] = (quantised.scale * (first + last) as f32).to_bits();
                block[Words::MINUS_8 * rows] = (-8 * (first + last)) as u32;
                block[Words::MINUS_128 * rows] = (-128 * (first + last)) as u32;
                block[Words::MINUS_32[0] * rows] = (-32 * first) as u32;
                block[Words::MINUS_32[1] * rows] = (-32 * last) as u32;
            }
        }
    }
}

/// 32 values in int8.
pub(crate) struct QuantisedBlock {
    pub(crate) codes: [i8; BLOCK_VALUES],
    pub(crate) scale: f32,
    /// Of the first and the last 16 codes.
    pub(crate) sums: [i32; 2],
}

/// See the head of the file.
#[inline(always)]
pub(crate) fn quantise_block(x: &[f32; BLOCK_VALUES]) -> QuantisedBlock {
    // Magnitudes as integers are in the order of the numbers, infinity above all and NaN above that.
    let largest = x.iter().fold(0, |largest, value| (value.to_bits() & 0x7fff_ffff).max(largest));
    let largest = f32::from_bits(largest);
    if !(SMALLEST..f32::INFINITY).contains(&largest) {
        let scale = if largest.is_finite() { 0.0 } else { f32::NAN };
        return QuantisedBlock { codes: [0; BLOCK_VALUES], scale, sums: [0; 2] };
    }
    let inverse = 127.0 / largest;
    let mut codes = [0i8; BLOCK_VALUES];
    let mut sums = [0; 2];
    for (half, sum) in sums.iter_mut().enumerate() {
        for k in half * 16..half * 16 + 16 {
            // SAFETY: the product is within ±127 and a rounding error, thus fits an i32.
            let code: i32 = unsafe { (x[k] * inverse).round_ties_even().to_int_unchecked() };
            codes[k] = code as i8;
            *sum += code;
        }
    }
    QuantisedBlock { codes, scale: largest / 127.0, sums }
}

multiversion! {
    fn round_pairs(part: &Part<'_>, pairs: &mut [u32]) {
        for (row, x) in part.iter().enumerate() {
            for (pair, x) in x.as_chunks::<2>().0.iter().enumerate() {
                pairs[pair * part.rows + row] = bf16(x[0]) | bf16(x[1]) << 16;
            }
        }
    }
}

multiversion! {
    fn transpose(part: &Part<'_>, floats: &mut [u32]) {
        for (row, x) in part.iter().enumerate() {
            for (k, x) in x.iter().enumerate() {
                floats[k * part.rows + row] = x.to_bits();
            }
        }
    }
}

/// To the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
fn bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 { bits >> 16 | 0x40 } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}

#[cfg(test)]
mod tests;
