//! A step of the online softmax in plain f32, compiled for each instruction set: the reference of `attention_bf16`, with
//! the same bits (but for numbers too small to be normal, which bf16 dot products take for zero).

#![expect(clippy::needless_range_loop, reason = "lanes: each index is of several arrays or of a row of one")]

use std::ops::Range;

use crate::Isa;
use crate::attention_tile::{QueryRows, State, TILE_GROUPS, TILE_PAIRS, Tile, exp2, larger};
use crate::isa::{Level, multiversion};
use crate::paged::{GROUP_POSITIONS, Line};
use crate::paged_write::bf16_bits;

/// Rows that share the loads of keys and values.
const ROWS: usize = 4;

type Lanes = [f32; GROUP_POSITIONS];

/// Takes a tile into the state of the rows.
pub(crate) fn tile_lanes(isa: Isa, rows: QueryRows<'_>, tile: &Tile<'_>, state: &mut State<'_>) {
    let (pairs, vectors) = (rows.head_dim / 2, rows.head_dim / 16);
    for first in (0..rows.count).step_by(ROWS) {
        // A short last part computes its last row more than once.
        let row_of: [usize; ROWS] = std::array::from_fn(|r| (first + r).min(rows.count - 1));
        let taken = (rows.count - first).min(ROWS);
        let queries = row_of.map(|row| &rows.pairs[row * pairs..][..pairs]);
        let mut scores = [[[0.0; GROUP_POSITIONS]; ROWS]; TILE_GROUPS];
        for group in 0..tile.groups {
            add_pairs(isa, tile.keys[group], 1, queries, &mut scores[group]);
        }
        let mut weights = Weights { probabilities: [[0; TILE_PAIRS]; ROWS], alphas: [1.0; ROWS] };
        weigh_rows(isa, rows, first..first + taken, tile, &mut scores, &mut weights, state);
        for vector in 0..vectors {
            let at = |r: usize| row_of[r] * rows.head_dim + vector * 16;
            let mut sums = [[0.0; 16]; ROWS];
            for r in 0..taken {
                let old = &state.outs[at(r)..][..16];
                (0..16).for_each(|lane| sums[r][lane] = old[lane] * weights.alphas[r]);
            }
            for group in 0..tile.groups {
                let pairs = weights.probabilities.each_ref().map(|words| &words[group * 8..][..8]);
                add_pairs(isa, &tile.values[group][vector..], vectors, pairs, &mut sums);
            }
            for r in 0..taken {
                state.outs[at(r)..][..16].copy_from_slice(&sums[r]);
            }
        }
    }
}

/// Probabilities of a part of the rows, as bf16 pairs, and what their old state is multiplied by.
struct Weights {
    probabilities: [[u32; TILE_PAIRS]; ROWS],
    alphas: [f32; ROWS],
}

/// sums of row r += Σ over i of the pairs of line `i * stride` · pair i of `with[r]`, per lane.
fn add_pairs(isa: Isa, lines: &[Line], stride: usize, with: [&[u32]; ROWS], sums: &mut [Lanes; ROWS]) {
    let count = with[0].len();
    assert!(with.iter().all(|with| with.len() == count) && count > 0 && lines.len() > (count - 1) * stride);
    match isa.level() {
        Level::Plain => {
            for (pair, line) in lines.iter().step_by(stride).take(count).enumerate() {
                (0..ROWS).for_each(|r| add_products(&mut sums[r], line, with[r][pair]));
            }
        }
        // SAFETY: these levels exist only where `Isa::available` (isa.rs) found AVX2 and FMA; lengths were asserted above.
        #[cfg(target_arch = "x86_64")]
        _ => unsafe { add_pairs_avx2(lines, stride, with, sums) },
    }
}

/// # Safety
/// The machine has AVX2 and FMA; all of `with` have the same length, and `lines` has a line for each of its words.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn add_pairs_avx2(lines: &[Line], stride: usize, with: [&[u32]; ROWS], sums: &mut [Lanes; ROWS]) {
    use std::arch::x86_64::*;
    let odd_bits = _mm256_set1_epi32(0xffff_0000u32.cast_signed());
    let odd = |pair: __m256i| _mm256_castsi256_ps(_mm256_and_si256(pair, odd_bits));
    let even = |pair: __m256i| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
    let mut registers = [[_mm256_setzero_ps(); 2]; ROWS];
    for r in 0..ROWS {
        for half in 0..2 {
            // SAFETY: 8 of 16 lanes.
            registers[r][half] = unsafe { _mm256_loadu_ps(sums[r][half * 8..][..8].as_ptr()) };
        }
    }
    for pair in 0..with[0].len() {
        // SAFETY: there is such a line, by the caller's promise.
        let line: *const __m256i = unsafe { lines.as_ptr().add(pair * stride) }.cast();
        // SAFETY: a line is two registers, aligned to 64 bytes.
        let line = unsafe { [_mm256_load_si256(line), _mm256_load_si256(line.add(1))] };
        for r in 0..ROWS {
            // SAFETY: `pair` is less than the length of each.
            let with = _mm256_set1_epi32(unsafe { *with[r].get_unchecked(pair) }.cast_signed());
            for half in 0..2 {
                let sum = _mm256_fmadd_ps(odd(line[half]), odd(with), registers[r][half]);
                registers[r][half] = _mm256_fmadd_ps(even(line[half]), even(with), sum);
            }
        }
    }
    for r in 0..ROWS {
        for half in 0..2 {
            // SAFETY: 8 of 16 lanes.
            unsafe { _mm256_storeu_ps(sums[r][half * 8..][..8].as_mut_ptr(), registers[r][half]) };
        }
    }
}

/// Both numbers of a pair, the odd one first.
#[inline(always)]
fn parts(pair: u32) -> [f32; 2] {
    [f32::from_bits(pair & 0xffff_0000), f32::from_bits(pair << 16)]
}

/// sums += pair · pair, per lane.
fn add_products(sums: &mut Lanes, pairs: &Line, with: u32) {
    let [odd, even] = parts(with);
    for lane in 0..GROUP_POSITIONS {
        let [lane_odd, lane_even] = parts(pairs.0[lane]);
        sums[lane] = lane_even.mul_add(even, lane_odd.mul_add(odd, sums[lane]));
    }
}

multiversion! {
    /// The rows' new maxima, sums and probabilities.
    fn weigh_rows(
        rows: QueryRows<'_>,
        range: Range<usize>,
        tile: &Tile<'_>,
        scores: &mut [[Lanes; ROWS]; TILE_GROUPS],
        weights: &mut Weights,
        state: &mut State<'_>,
    ) {
        let first = range.start;
        for row in range {
            let r = row - first;
            let visible = rows.visible(row, tile.first_position);
            let old = state.maxima[row];
            let maximum = scale_and_mask(scores, r, tile, visible, rows.factor, old);
            state.maxima[row] = maximum;
            weights.alphas[r] = exp2(old - maximum);
            let sums = &mut state.sums[row * 16..][..16];
            sums.iter_mut().for_each(|sum| *sum *= weights.alphas[r]);
            let probabilities = &mut weights.probabilities[r];
            for group in 0..tile.groups {
                weigh(&scores[group][r], rows.factor, maximum, visible, tile, group, sums, probabilities);
            }
        }
    }
}

/// Applies the scales of keys, hides what the row does not see, and returns the new maximum.
#[inline(always)]
fn scale_and_mask(
    scores: &mut [[Lanes; ROWS]; TILE_GROUPS],
    r: usize,
    tile: &Tile<'_>,
    visible: usize,
    factor: f32,
    maximum: f32,
) -> f32 {
    let mut largest = [f32::NEG_INFINITY; GROUP_POSITIONS];
    for group in 0..tile.groups {
        let scores = &mut scores[group][r];
        if let Some(scales) = tile.scales {
            (0..GROUP_POSITIONS).for_each(|lane| scores[lane] *= scales.keys[group][lane]);
        }
        for lane in 0..GROUP_POSITIONS {
            if group * GROUP_POSITIONS + lane >= visible {
                scores[lane] = f32::NEG_INFINITY;
            }
            largest[lane] = larger(largest[lane], scores[lane]);
        }
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, larger);
    larger(maximum, largest * factor)
}

/// Probabilities of a row and group; their sum into `sums`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "one row of the step, taken apart for the registers")]
fn weigh(
    scores: &Lanes,
    factor: f32,
    maximum: f32,
    visible: usize,
    tile: &Tile<'_>,
    group: usize,
    sums: &mut [f32],
    probabilities: &mut [u32; TILE_PAIRS],
) {
    let mut plain = [0.0; GROUP_POSITIONS];
    for lane in 0..GROUP_POSITIONS {
        let probability = exp2(scores[lane].mul_add(factor, -maximum));
        plain[lane] = if group * GROUP_POSITIONS + lane < visible { probability } else { 0.0 };
    }
    let mut scaled = plain;
    if let Some(scales) = tile.scales {
        (0..GROUP_POSITIONS).for_each(|lane| scaled[lane] *= scales.values[group][lane]);
    }
    let (plain, scaled) = (plain.map(bf16_bits), scaled.map(bf16_bits));
    // Pair i of the tile goes into sum i mod 16.
    let sums = &mut sums[group % 2 * 8..][..8];
    for pair in 0..8 {
        probabilities[group * 8 + pair] = scaled[2 * pair] | scaled[2 * pair + 1] << 16;
        let [even, odd] = [plain[2 * pair], plain[2 * pair + 1]].map(|bits| f32::from_bits(bits << 16));
        sums[pair] = sums[pair] + odd + even;
    }
}
