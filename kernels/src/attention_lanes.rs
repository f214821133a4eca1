//! A step of the online softmax in plain f32, compiled for each instruction set: the reference of `attention_bf16`, with
//! the same bits (but for numbers too small to be normal, which bf16 dot products take for zero).

#![expect(clippy::needless_range_loop, reason = "lanes: each index is of several arrays or of a row of one")]

use crate::attention_tile::{QueryRows, State, TILE_GROUPS, TILE_PAIRS, TILE_POSITIONS, Tile, exp2, larger};
use crate::isa::multiversion;
use crate::paged::{GROUP_POSITIONS, Line};
use crate::paged_write::bf16_bits;

/// Rows that share the loads of keys and values.
const ROWS: usize = 4;

type Lanes = [f32; GROUP_POSITIONS];

multiversion! {
    /// Takes a tile into the state of the rows.
    pub(crate) fn tile_lanes(rows: QueryRows<'_>, tile: &Tile<'_>, state: &mut State<'_>) {
        for first in (0..rows.count).step_by(ROWS) {
            // A short last part computes its last row more than once.
            let row_of: [usize; ROWS] = std::array::from_fn(|r| (first + r).min(rows.count - 1));
            let taken = (rows.count - first).min(ROWS);
            let mut probabilities = [[0u32; TILE_PAIRS]; ROWS];
            let mut alphas = [1.0f32; ROWS];
            let mut scores = [[[0.0f32; GROUP_POSITIONS]; TILE_GROUPS]; ROWS];
            for group in 0..tile.groups {
                let sums = group_scores(rows, row_of, tile.keys[group]);
                (0..ROWS).for_each(|r| scores[r][group] = sums[r]);
            }
            for r in 0..taken {
                let row = row_of[r];
                let visible = rows.visible(row, tile.first_position);
                let maximum = scale_and_mask(&mut scores[r], tile, visible, rows.factor, state.maxima[row]);
                alphas[r] = exp2(state.maxima[row] - maximum);
                state.maxima[row] = maximum;
                weigh(&scores[r], tile, visible, rows.factor, maximum, alphas[r], &mut state.sums[row * 16..][..16],
                    &mut probabilities[r]);
            }
            add_values(rows.head_dim, row_of, taken, tile, &probabilities, alphas, state.outs);
        }
    }
}

/// Both numbers of a pair, the odd one first.
#[inline(always)]
fn parts(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair & 0xffff_0000), f32::from_bits(pair << 16)]
}

/// sums += pair · pair, per lane.
#[inline(always)]
fn add_products(sums: &mut Lanes, pairs: &Line, with: u32) {
    let [odd, even] = parts(with);
    for lane in 0..GROUP_POSITIONS {
        let [lane_odd, lane_even] = parts(pairs.0[lane]);
        sums[lane] = lane_even.mul_add(even, lane_odd.mul_add(odd, sums[lane]));
    }
}

#[inline(always)]
fn group_scores(rows: QueryRows<'_>, row_of: [usize; ROWS], keys: &[Line]) -> [Lanes; ROWS] {
    let pairs = rows.head_dim / 2;
    let queries: [&[u32]; ROWS] = row_of.map(|row| &rows.pairs[row * pairs..][..pairs]);
    let mut sums = [[0.0; GROUP_POSITIONS]; ROWS];
    for (pair, line) in keys[..pairs].iter().enumerate() {
        for r in 0..ROWS {
            add_products(&mut sums[r], line, queries[r][pair]);
        }
    }
    sums
}

/// Applies the scales of keys, hides what the row does not see, and returns the new maximum.
#[inline(always)]
fn scale_and_mask(
    scores: &mut [Lanes; TILE_GROUPS],
    tile: &Tile<'_>,
    visible: usize,
    factor: f32,
    maximum: f32,
) -> f32 {
    let mut largest = [f32::NEG_INFINITY; GROUP_POSITIONS];
    for group in 0..tile.groups {
        for lane in 0..GROUP_POSITIONS {
            let score = &mut scores[group][lane];
            if let Some(scales) = tile.scales {
                *score *= scales.keys[group][lane];
            }
            if group * GROUP_POSITIONS + lane >= visible {
                *score = f32::NEG_INFINITY;
            }
            largest[lane] = larger(largest[lane], *score);
        }
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, larger);
    larger(maximum, largest * factor)
}

/// Probabilities of a row, their sum into `sums`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one row of the step, taken apart for the registers")]
fn weigh(
    scores: &[Lanes; TILE_GROUPS],
    tile: &Tile<'_>,
    visible: usize,
    factor: f32,
    maximum: f32,
    alpha: f32,
    sums: &mut [f32],
    probabilities: &mut [u32; TILE_PAIRS],
) {
    let mut bits = [0u32; TILE_POSITIONS];
    let mut plain_bits = [0u32; TILE_POSITIONS];
    for group in 0..tile.groups {
        for lane in 0..GROUP_POSITIONS {
            let at = group * GROUP_POSITIONS + lane;
            let probability = exp2(scores[group][lane].mul_add(factor, -maximum));
            let probability = if at < visible { probability } else { 0.0 };
            let scale = tile.scales.map_or(1.0, |scales| scales.values[group][lane]);
            plain_bits[at] = bf16_bits(probability);
            bits[at] = bf16_bits(probability * scale);
        }
    }
    let pair = |bits: &[u32; TILE_POSITIONS], at: usize| bits[2 * at] | bits[2 * at + 1] << 16;
    for (at, word) in probabilities.iter_mut().enumerate() {
        *word = pair(&bits, at);
    }
    sums.iter_mut().for_each(|sum| *sum *= alpha);
    for at in 0..TILE_PAIRS {
        let [odd, even] = parts(pair(&plain_bits, at));
        let sum = &mut sums[at % 16];
        *sum = *sum + odd + even;
    }
}

#[inline(always)]
fn add_values(
    head_dim: usize,
    row_of: [usize; ROWS],
    taken: usize,
    tile: &Tile<'_>,
    probabilities: &[[u32; TILE_PAIRS]; ROWS],
    alphas: [f32; ROWS],
    outs: &mut [f32],
) {
    let vectors = head_dim / 16;
    for vector in 0..vectors {
        let at = |r: usize| row_of[r] * head_dim + vector * 16;
        let mut sums = [[0.0; 16]; ROWS];
        for r in 0..taken {
            let old = &outs[at(r)..][..16];
            (0..16).for_each(|lane| sums[r][lane] = old[lane] * alphas[r]);
        }
        for group in 0..tile.groups {
            let lines = tile.values[group][vector..].iter().step_by(vectors);
            for (pair, line) in lines.enumerate().take(GROUP_POSITIONS / 2) {
                for r in 0..ROWS {
                    add_products(&mut sums[r], line, probabilities[r][group * GROUP_POSITIONS / 2 + pair]);
                }
            }
        }
        for r in 0..taken {
            outs[at(r)..][..16].copy_from_slice(&sums[r]);
        }
    }
}
