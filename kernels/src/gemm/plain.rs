//! The products in plain Rust: what runs where there is nothing better, and what the vector versions must equal. Not here:
//! the order of the arithmetic, which is written down in `gemm.rs`.

use super::Results;
use crate::packed::{Layout, PANEL};
use crate::quantised::{BlockFormat, half_to_f32};
use crate::quantised_rows::{BLOCK_WORDS, Words};

/// Outputs of a vector.
const LANES: usize = 16;

/// An integer format: `weights` is a panel, `x` the words of a panel of `rows` rows.
pub(super) fn integers<F: Layout>(weights: &[u8], x: &[u32], rows: usize, results: &mut Results) {
    let shape = F::SHAPE;
    for (row, results) in results[..rows].iter_mut().enumerate() {
        *results = [0.0; PANEL];
        for (block, x) in x.chunks_exact(rows * BLOCK_WORDS).enumerate() {
            let word = |word: usize| x[word * rows + row];
            let header =
                &weights[shape.block_at(block) - block % shape.shared * shape.block_bytes() - shape.header_bytes()..];
            let weights = &weights[shape.block_at(block)..][..shape.block_bytes()];
            for (vector, results) in results.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                let codes = &weights[vector * shape.codes_bytes()..][..shape.codes_bytes()];
                let scales = &weights[2 * shape.codes_bytes()..];
                let halves = if shape.bits == 6 { 2 } else { 1 };
                for half in 0..halves {
                    let groups = half * 8 / halves..(half + 1) * 8 / halves;
                    let mut sums = [offset_sum::<F>(half, word); LANES];
                    for group in groups {
                        let x = word(Words::CODES + group).to_le_bytes().map(|code| i32::from(code as i8));
                        for (lane, sum) in sums.iter_mut().enumerate() {
                            for (k, x) in x.into_iter().enumerate() {
                                *sum += i32::from(code::<F>(codes, group, lane * 4 + k)) * x;
                            }
                        }
                    }
                    for lane in 0..LANES {
                        let (scale, least) = scale_and_least::<F>(header, scales, vector * LANES + lane, half);
                        let scale = scale * f32::from_bits(word(Words::SCALE));
                        results[lane] = scale.mul_add(sums[lane] as f32, results[lane]);
                        if shape.minima {
                            results[lane] = least.mul_add(f32::from_bits(word(Words::SCALED_SUM)), results[lane]);
                        }
                    }
                }
            }
        }
    }
}

/// What the offset of the codes adds to a sum, taken away.
#[inline(always)]
fn offset_sum<F: Layout>(half: usize, word: impl Fn(usize) -> u32) -> i32 {
    match F::SHAPE.offset {
        0 => 0,
        32 => word(Words::MINUS_32[half]) as i32,
        128 => word(Words::MINUS_128) as i32,
        offset => word(Words::MINUS_8) as i32 * (offset / 8),
    }
}

#[inline(always)]
fn code<F: Layout>(codes: &[u8], group: usize, byte: usize) -> u8 {
    if F::SHAPE.bits == 8 {
        return codes[group * 64 + byte];
    }
    let low = codes[group % 4 * 64 + byte] >> (group / 4 * 4) & 15;
    match F::SHAPE.bits {
        5 => low | (codes[256 + group * 8 + byte / 8] >> (byte % 8) & 1) << 4,
        6 => low | (codes[256 + group / 4 * 64 + byte] >> (group % 4 * 2) & 3) << 4,
        _ => low,
    }
}

#[inline(always)]
fn scale_and_least<F: Layout>(header: &[u8], scales: &[u8], lane: usize, half: usize) -> (f32, f32) {
    let shape = F::SHAPE;
    let (halves, at) = if shape.shared == 1 { (scales, 2 * lane) } else { (header, 2 * lane) };
    let scale = half_to_f32(halves[at], halves[at + 1]);
    let least = if shape.minima { half_to_f32(halves[at + 2 * PANEL], halves[at + 2 * PANEL + 1]) } else { 0.0 };
    match (shape.shared, shape.minima) {
        (1, _) => (scale, least),
        (_, true) => (scale * f32::from(scales[lane]), -least * f32::from(scales[PANEL + lane])),
        (_, false) => (scale * f32::from(scales[half * PANEL + lane] as i8), 0.0),
    }
}

/// f32 or f16 weights with f32 rows.
pub(super) fn floats(format: BlockFormat, weights: &[u8], x: &[u32], rows: usize, results: &mut Results) {
    let unit = format.block_bytes();
    let mut sums = [Results::default(), Results::default()];
    let mut line = [0.0; PANEL];
    for (k, (weights, x)) in weights.chunks_exact(PANEL * unit).zip(x.chunks_exact(rows)).enumerate() {
        for (weight, bytes) in line.iter_mut().zip(weights.chunks_exact(unit)) {
            *weight = match *bytes {
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                [low, high] => half_to_f32(low, high),
                _ => 0.0,
            };
        }
        for (sums, x) in sums[k % 2].iter_mut().zip(x) {
            let x = f32::from_bits(*x);
            sums.iter_mut().zip(line).for_each(|(sum, weight)| *sum = weight.mul_add(x, *sum));
        }
    }
    add(&sums, rows, results);
}

/// bf16 weights with bf16 rows: the first of a pair, then the second.
pub(super) fn pairs(weights: &[u8], x: &[u32], rows: usize, results: &mut Results) {
    let mut sums = [Results::default(), Results::default()];
    for (pair, (weights, x)) in weights.as_chunks::<{ 4 * PANEL }>().0.iter().zip(x.chunks_exact(rows)).enumerate() {
        for (sums, x) in sums[pair % 2].iter_mut().zip(x) {
            let (first, second) = (f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000));
            for (sum, weights) in sums.iter_mut().zip(weights.as_chunks::<4>().0) {
                let weights = u32::from_le_bytes(*weights);
                *sum = f32::from_bits(weights << 16).mul_add(first, *sum);
                *sum = f32::from_bits(weights & 0xffff_0000).mul_add(second, *sum);
            }
        }
    }
    add(&sums, rows, results);
}

fn add([even, odd]: &[Results; 2], rows: usize, results: &mut Results) {
    for row in 0..rows {
        for lane in 0..PANEL {
            results[row][lane] = even[row][lane] + odd[row][lane];
        }
    }
}
