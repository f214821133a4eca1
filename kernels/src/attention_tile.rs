//! What one step of the online softmax works on (Milakov and Gimelshein, 2018; in tiles as in FlashAttention, Dao et al.,
//! 2022): query rows, a tile of keys and values, and the running state of each row; and how states of neighbouring spans
//! of positions are merged. Not here: the step itself (`attention_bf16` with bf16 dot products, `attention_lanes` for all
//! machines: both give the same bits; `attention_amx` with tiles, which sum in another order), and how rows and spans become
//! work (`attention_paged`).
//!
//! What is rounded: queries, keys, values and probabilities to bf16; products are exact and added to f32 one by one, the
//! odd one of a pair first, as `VDPBF16PS` does it.

use crate::Isa;
use crate::isa::multiversion;
use crate::paged::{GROUP_POSITIONS, Line};

/// Groups in a tile.
pub(crate) const TILE_GROUPS: usize = 8;
/// Positions in a tile; tiles begin at its multiples.
pub(crate) const TILE_POSITIONS: usize = TILE_GROUPS * GROUP_POSITIONS;
/// Words of a row's probabilities: pairs of positions of a tile.
pub(crate) const TILE_PAIRS: usize = TILE_POSITIONS / 2;

/// What lies between the steps of a row: its scores, and behind them its probabilities as bf16 pairs.
pub(crate) type Between = [Line; TILE_GROUPS + TILE_PAIRS / 16];
/// Rows of one of AMX's tiles: where they are used, memory of rows is for a multiple of it.
pub(crate) const AMX_ROWS: usize = 16;
/// Rows whose scores tiles compute before the first are read, so that nobody waits for a store.
pub(crate) const AMX_ROWS_AT_ONCE: usize = 3 * AMX_ROWS;

/// Query rows that see the same groups: the last position of each lies in the last group that is given.
#[derive(Clone, Copy)]
pub(crate) struct QueryRows<'a> {
    /// bf16 pairs `[rows, head_dim / 2]`.
    pub(crate) pairs: &'a [u32],
    /// Values of a head.
    pub(crate) head_dim: usize,
    /// How many rows.
    pub(crate) count: usize,
    /// Rows of one position.
    pub(crate) heads: usize,
    /// Position of the first row.
    pub(crate) first_position: usize,
    /// What scores are multiplied by: log2(e) / sqrt(head_dim), as probabilities are powers of two here.
    pub(crate) factor: f32,
}

impl QueryRows<'_> {
    /// How many positions of a tile that begins at `tile_position` a row sees.
    pub(crate) fn visible(&self, row: usize, tile_position: usize) -> usize {
        (self.first_position + row / self.heads + 1).saturating_sub(tile_position).min(TILE_POSITIONS)
    }
}

/// Up to [`TILE_GROUPS`] groups of keys and values.
pub(crate) struct Tile<'a> {
    /// Each group's keys, `[head_dim / 2]` lines of 16 positions.
    pub(crate) keys: [&'a [Line]; TILE_GROUPS],
    /// Each group's values, `[8 pairs of positions, head_dim / 16]` lines.
    pub(crate) values: [&'a [Line]; TILE_GROUPS],
    /// What scores and probabilities of each position are multiplied by, where keys and values are int8 codes.
    pub(crate) scales: Option<&'a Scales>,
    /// How many groups there are.
    pub(crate) groups: usize,
    /// Position of the first.
    pub(crate) first_position: usize,
}

/// Scales of the keys and values of a tile.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scales {
    pub(crate) keys: [[f32; GROUP_POSITIONS]; TILE_GROUPS],
    pub(crate) values: [[f32; GROUP_POSITIONS]; TILE_GROUPS],
}

/// The running state of rows.
pub(crate) struct State<'a> {
    /// Σ probability, in 16 parts, `[rows, 16]`.
    pub(crate) sums: &'a mut [f32],
    /// Σ probability · value, `[rows, head_dim]`.
    pub(crate) outs: &'a mut [f32],
    /// Largest scaled score, `[rows]`; probabilities are relative to 2 to its power.
    pub(crate) maxima: &'a mut [f32],
}

impl<'a> State<'a> {
    /// Lines that hold the state of rows.
    pub(crate) const fn lines(rows: usize, head_dim: usize) -> usize {
        rows + rows * (head_dim / 16) + rows.div_ceil(16)
    }

    /// In this memory, which has [`State::lines`] lines.
    pub(crate) fn new(memory: &'a mut [Line], rows: usize, head_dim: usize) -> Self {
        assert!(memory.len() >= Self::lines(rows, head_dim) && head_dim.is_multiple_of(16));
        let (sums, rest) = floats(memory).split_at_mut(rows * 16);
        let (outs, maxima) = rest.split_at_mut(rows * head_dim);
        Self { sums, outs, maxima: &mut maxima[..rows] }
    }

    /// Nothing seen yet.
    pub(crate) fn reset(&mut self) {
        self.sums.fill(0.0);
        self.outs.fill(0.0);
        self.maxima.fill(f32::NEG_INFINITY);
    }

    /// Adds what later positions gave.
    pub(crate) fn merge(&mut self, later: &State<'_>) {
        let (rows, head_dim) = (self.maxima.len(), self.outs.len() / self.maxima.len().max(1));
        for row in 0..rows {
            let maximum = larger(self.maxima[row], later.maxima[row]);
            let ours = exp2(self.maxima[row] - maximum);
            let theirs = exp2(later.maxima[row] - maximum);
            self.maxima[row] = maximum;
            let add = |to: &mut [f32], from: &[f32]| {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = *to * ours + from * theirs);
            };
            add(&mut self.sums[row * 16..][..16], &later.sums[row * 16..][..16]);
            add(&mut self.outs[row * head_dim..][..head_dim], &later.outs[row * head_dim..][..head_dim]);
        }
    }

    /// Σ probability · value / Σ probability, `[rows, head_dim]`.
    pub(crate) fn finish(&self, isa: Isa, rows: std::ops::Range<usize>, out: &mut [f32]) {
        let head_dim = self.outs.len() / self.maxima.len().max(1);
        let (sums, outs) = (&self.sums[rows.start * 16..], &self.outs[rows.start * head_dim..]);
        finish(isa, sums, outs, head_dim, out);
    }
}

multiversion! {
    fn finish(sums: &[f32], outs: &[f32], head_dim: usize, to: &mut [f32]) {
        let rows = sums.as_chunks::<16>().0.iter().zip(outs.chunks_exact(head_dim));
        for ((sums, outs), to) in rows.zip(to.chunks_exact_mut(head_dim)) {
            let mut sums = *sums;
            for half in [8, 4, 2, 1] {
                (0..half).for_each(|lane| sums[lane] += sums[lane + half]);
            }
            let factor = 1.0 / sums[0];
            for (to, out) in to.iter_mut().zip(outs) {
                // Adding zero makes a negative zero positive: its sign may hang on what lies behind the sequence's end.
                *to = out * factor + 0.0;
            }
        }
    }
}

/// The words of lines as f32.
pub(crate) fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is 16 words, which have the size and at least the alignment of 16 f32; any bits are both.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// The larger one; the first if either is not a number, as `VMAXPS` with its operands exchanged has it.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Coefficients of f, f² … f⁵ in 2^f for f in 0 .. 1, with 1 at f = 0: relative error below 1e-7, before rounding.
pub(crate) const EXP2: [f32; 5] = [0.693_151_3, 0.240_164_45, 0.055_799_913, 0.009_017_03, 0.001_867_13];

/// 2^x for x up to 127: relative error below 3e-7; 1 at 0; 0 where the result would not be a normal number.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let whole = x.floor();
    let f = x - whole;
    let mut sum = EXP2[4];
    for coefficient in [EXP2[3], EXP2[2], EXP2[1], EXP2[0], 1.0] {
        sum = sum.mul_add(f, coefficient);
    }
    let scale = f32::from_bits(((whole as i32 + 127) << 23).cast_unsigned());
    if x < -126.0 { 0.0 } else { sum * scale }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two() {
        for step in 0..200_000 {
            let x = -126.0 + step as f32 * 0.0006;
            let exact = f64::from(x).exp2();
            assert!((f64::from(exp2(x)) / exact - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!((exp2(0.0), exp2(-3.0), exp2(-126.5), exp2(f32::NEG_INFINITY)), (1.0, 0.125, 0.0, 0.0));
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn merging_is_what_seeing_both_gives() {
        // Two spans of one row: maxima 3 and 5, one probability each of 1 with values 7 and 9.
        let mut memory = [[Line::ZERO; 3]; 2];
        let [first, second] = &mut memory;
        let (mut first, mut second) = (State::new(first, 1, 16), State::new(second, 1, 16));
        for (state, maximum, value) in [(&mut first, 3.0, 7.0), (&mut second, 5.0, 9.0)] {
            state.reset();
            state.maxima[0] = maximum;
            state.sums[4] = 1.0;
            state.outs.fill(value);
        }
        first.merge(&second);
        let mut out = [0.0; 16];
        first.finish(Isa::plain(), 0..1, &mut out);
        let expected = (7.0 * 0.25 + 9.0) / 1.25;
        assert!(out.iter().all(|out| (out - expected).abs() < 1e-6), "{out:?}");
    }
}
