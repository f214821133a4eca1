//! Rows in tiles against sums in the order that `gemm/amx.rs` promises, in every format. On a machine without AMX they say so.

use super::*;
use crate::dot::tests::values;
use crate::quantised::tests::random_blocks;
use crate::{LoraGroup, LoraRun, LoraScratch, LoraTermParts, Pool, QuantisedRows, dequantise};
use crate::{matmul_lora, matmul_lora_tiles, matmul_tiles};

/// Root mean square of the error over that of the result, against f64 products of the dequantised weights with f32 rows: both
/// are rounded to 8 bits.
const TOLERANCE: f64 = 4e-3;

fn amx() -> Option<Amx> {
    let amx = Amx::detect();
    if amx.is_none() {
        eprintln!("this machine has no AMX: nothing is tested");
    }
    amx
}

struct Weights {
    outputs: usize,
    /// `[outputs, inputs]`
    values: Vec<f32>,
    packed: PackedMatrix,
}

fn weights(format: BlockFormat, outputs: usize, inputs: usize, seed: u64) -> Weights {
    let blocks = random_blocks(format, outputs * inputs / format.block_values(), seed);
    let packed = PackedMatrix::pack(outputs, inputs, format, &blocks).unwrap();
    let mut values = vec![0.0; outputs * inputs];
    for (values, row) in values.chunks_mut(inputs).zip(blocks.chunks(format.row_bytes(inputs).unwrap())) {
        dequantise(Isa::plain(), format, row, values);
    }
    Weights { outputs, values, packed }
}

fn product(
    team: &Team<'_>,
    amx: Amx,
    matrices: &[&Weights],
    x: &[f32],
    rows: usize,
    before: Option<&[f32]>,
) -> Vec<f32> {
    let packed: Vec<&PackedMatrix> = matrices.iter().map(|weights| &weights.packed).collect();
    let (mut tiles, mut scratch) = (TileRows::default(), TileScratch::default());
    tiles.fill(team, amx, x, rows, packed[0].inputs());
    let width: usize = matrices.iter().map(|weights| weights.outputs).sum();
    let mut out = before.map_or(vec![f32::NAN; rows * width], <[f32]>::to_vec);
    matmul_tiles(team, Isa::detect(), amx, &packed, &tiles, &mut out, before.is_some(), &mut scratch);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// To the nearest bf16, as f32; too small to be normal is zero.
fn rounded(value: f32) -> f32 {
    let flushed = if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value };
    let bits = flushed.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

#[test]
fn sums_have_the_bits_of_the_reference() {
    let Some(amx) = amx() else { return };
    for (seed, format) in BlockFormat::ALL.into_iter().enumerate().filter(|(_, format)| takes(*format)) {
        // One slice of inputs, two, and three that are not alike.
        for (outputs, inputs) in [(33, 256), (64, 768), (7, 512), (34, 1280)] {
            let weights = weights(format, outputs, inputs, seed as u64);
            let rows = 50;
            let x = values(20 + seed as u64, rows * inputs);
            let out = product(&Team::alone(), amx, &[&weights], &x, rows, None);
            for (row, x) in x.chunks(inputs).enumerate() {
                for (output, w) in weights.values.chunks(inputs).enumerate() {
                    let mut sum = 0.0f32;
                    for (x, w) in x.chunks(BLOCK_VALUES).zip(w.chunks(BLOCK_VALUES)) {
                        let mut halves = [0.0f32; 2];
                        for (k, (x, w)) in x.iter().zip(w).enumerate() {
                            halves[k % 2] = rounded(*x).mul_add(rounded(*w), halves[k % 2]);
                        }
                        sum += halves[0] + halves[1];
                    }
                    let out = out[row * outputs + output];
                    assert!(out.to_bits() == sum.to_bits(), "{format:?} {inputs} inputs, {row} {output}: {out} {sum}");
                }
            }
        }
    }
}

#[test]
fn errors_are_within_the_tolerance() {
    let Some(amx) = amx() else { return };
    let (rows, outputs, inputs) = (13, 40, 1536);
    for format in BlockFormat::ALL.into_iter().filter(|format| takes(*format)) {
        let weights = weights(format, outputs, inputs, 4);
        let x = values(5, rows * inputs);
        let out = product(&Team::alone(), amx, &[&weights], &x, rows, None);
        let (mut error, mut size) = (0.0, 0.0);
        for (x, out) in x.chunks(inputs).zip(out.chunks(outputs)) {
            for (w, out) in weights.values.chunks(inputs).zip(out) {
                let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                error += (f64::from(*out) - exact).powi(2);
                size += exact.powi(2);
            }
        }
        let error = (error / size).sqrt();
        println!("{format:?} {error:.2e}");
        assert!(error < TOLERANCE, "{format:?} {error:e}");
    }
}

#[test]
fn a_row_does_not_depend_on_the_others_nor_on_the_threads() {
    let Some(amx) = amx() else { return };
    let pool = Pool::new(3).unwrap();
    for (format, inputs) in [(BlockFormat::Q4_1, 576), (BlockFormat::Bf16, 1536), (BlockFormat::Q6_K, 4096)] {
        let (a, b) = (weights(format, 70, inputs, 1), weights(BlockFormat::Q8_0, 100, inputs, 2));
        let (rows, width) = (512, 170);
        let x = values(3, rows * inputs);
        let before = values(4, rows * width);
        for before in [None, Some(before.as_slice())] {
            let together = pool.step(|team| product(team, amx, &[&a, &b], &x, rows, before));
            for (first, rows) in [(0, 1), (5, 1), (7, 9), (100, 31), (130, 129), (511, 1), (31, 33), (0, 512)] {
                let before = before.map(|before| &before[first * width..][..rows * width]);
                let x = &x[first * inputs..][..rows * inputs];
                let part = product(&Team::alone(), amx, &[&a, &b], x, rows, before);
                assert!(bits(&part) == bits(&together[first * width..][..rows * width]), "{format:?} {first} {rows}");
            }
        }
    }
}

#[test]
fn accumulating_adds_to_what_is_there() {
    let Some(amx) = amx() else { return };
    for rows in [1, 32, 65, 200] {
        let weights = weights(BlockFormat::Q4_1, 96, 96, 8);
        let x = values(9, rows * 96);
        let plain = product(&Team::alone(), amx, &[&weights], &x, rows, None);
        let before = values(10, plain.len());
        let added = product(&Team::alone(), amx, &[&weights], &x, rows, Some(&before));
        for (index, added) in added.iter().enumerate() {
            assert_eq!(*added, before[index] + plain[index], "{rows} rows, {index}");
        }
    }
}

#[test]
fn a_row_of_anything_disturbs_no_other() {
    let Some(amx) = amx() else { return };
    let (inputs, rows) = (96, 40);
    for format in [BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::F16, BlockFormat::Bf16] {
        let weights = weights(format, 40, inputs, 13);
        let good = values(14, rows * inputs);
        let expected = product(&Team::alone(), amx, &[&weights], &good, rows, None);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE / 8.0, 0.0] {
            let mut x = good.clone();
            x[5 * inputs..6 * inputs].fill(bad);
            x[9 * inputs + 40] = bad;
            let out = product(&Team::alone(), amx, &[&weights], &x, rows, None);
            for row in 0..rows {
                let (out, expected) = (&out[row * 40..][..40], &expected[row * 40..][..40]);
                match row {
                    // Subnormals are flushed.
                    5 if bad.abs() < 1.0 => assert!(out.iter().all(|out| *out == 0.0), "{format:?}"),
                    // The largest number rounds to infinity.
                    5 => assert!(out.iter().all(|out| !out.is_finite()), "{format:?} {bad}"),
                    9 if bad.abs() < 1.0 => {}
                    9 => assert!(out.iter().all(|out| !out.is_finite()), "{format:?} {bad}"),
                    _ => assert!(bits(out) == bits(expected), "{format:?} {bad} row {row}"),
                }
            }
        }
    }
}

#[test]
fn what_is_behind_a_row_is_left() {
    let Some(amx) = amx() else { return };
    // Directly to its place, and through memory; at once, and slice by slice.
    for (inputs, accumulate) in [(96, false), (640, false), (96, true), (640, true)] {
        let (rows, width, stride) = (70, 96 + 40, 151);
        let matrices = [weights(BlockFormat::Q4_1, 96, inputs, 1), weights(BlockFormat::Q8_0, 40, inputs, 2)];
        let x = values(3, rows * inputs);
        let before = values(4, rows * stride);
        let narrow: Vec<f32> = before.chunks(stride).flat_map(|row| &row[..width]).copied().collect();
        let mut out = before.clone();
        let (mut tiles, mut scratch) = (TileRows::default(), TileScratch::default());
        tiles.fill(&Team::alone(), amx, &x, rows, inputs);
        let packed = [&matrices[0].packed, &matrices[1].packed];
        matmul_tiles(&Team::alone(), Isa::detect(), amx, &packed, &tiles, &mut out, accumulate, &mut scratch);
        let both = [&matrices[0], &matrices[1]];
        let expected = product(&Team::alone(), amx, &both, &x, rows, accumulate.then_some(&narrow));
        for ((out, before), expected) in out.chunks(stride).zip(before.chunks(stride)).zip(expected.chunks(width)) {
            assert!(bits(&out[..width]) == bits(expected) && out[width..] == before[width..], "{inputs} {accumulate}");
        }
    }
}

/// Groups of adapters for matrices of these outputs; the last one grows.
fn groups(inputs: usize, outputs: [usize; 2]) -> Vec<LoraGroup> {
    let group = |seed: u64, rank: usize, grown: bool| {
        let term = |module_slot: usize| {
            let outputs = outputs[module_slot];
            let seed = seed + module_slot as u64 * 3;
            let growth = grown.then(|| values(seed + 2, outputs));
            let (a, b) = (values(seed, rank * inputs), values(seed + 1, rank * outputs));
            LoraTermParts { module_slot, rank, outputs, a, b, scale: 0.3, growth }
        };
        LoraGroup::pack(inputs, &[term(0), term(1)]).unwrap()
    };
    vec![group(50, 4, false), group(60, 17, false), group(70, 8, true)]
}

#[test]
fn terms_of_adapters_are_those_of_the_other_product_and_meet_their_rows_only() {
    let Some(amx) = amx() else { return };
    // In one slice, and in two.
    [96, 640].into_iter().for_each(|inputs| terms_of_adapters(amx, inputs));
}

fn terms_of_adapters(amx: Amx, inputs: usize) {
    let (outputs, rows) = ([70, 64], 100);
    let (width, isa) = (134, Isa::detect());
    let groups = groups(inputs, outputs);
    let matrices = [weights(BlockFormat::Q4_1, 70, inputs, 1), weights(BlockFormat::Bf16, 64, inputs, 2)];
    let nothing = outputs.map(|outputs| {
        let bytes = outputs * BlockFormat::Q8_0.row_bytes(inputs).unwrap();
        PackedMatrix::pack(outputs, inputs, BlockFormat::Q8_0, &vec![0; bytes]).unwrap()
    });
    let x = values(3, rows * inputs);
    let all = [(0..40, 0, 1.0, 3u8), (40..43, 1, -0.5, 1), (41..77, 2, 2.0, 3), (90..100, 1, 1.0, 2)];
    let run = |at: &Range<usize>, team: &Team<'_>, in_tiles: bool| {
        let runs: Vec<LoraRun<'_>> = all
            .iter()
            .filter(|(rows, ..)| rows.start < at.end && at.start < rows.end)
            .map(|(rows, group, weight, enabled)| LoraRun {
                rows: rows.start.max(at.start) - at.start..rows.end.min(at.end) - at.start,
                group: &groups[*group],
                weight: *weight,
                enabled: *enabled,
            })
            .collect();
        let x = &x[at.start * inputs..at.end * inputs];
        let mut quantised = QuantisedRows::for_formats([BlockFormat::Q8_0]);
        quantised.fill(team, isa, x, at.len(), inputs);
        let (mut lora, mut scratch) = (LoraScratch::new(), TileScratch::default());
        let mut out = values(5, 100 * width)[at.start * width..at.end * width].to_vec();
        if in_tiles {
            let mut tiles = TileRows::default();
            tiles.fill(team, amx, x, at.len(), inputs);
            let matrices = [&matrices[0].packed, &matrices[1].packed];
            let rows = (&tiles, &quantised);
            matmul_lora_tiles(team, isa, amx, &matrices, rows, &mut out, true, &runs, &mut lora, &mut scratch);
        } else {
            matmul_lora(team, isa, &[&nothing[0], &nothing[1]], &quantised, &mut out, true, &runs, &mut lora);
        }
        out
    };
    let pool = Pool::new(3).unwrap();
    let together = pool.step(|team| run(&(0..rows), team, true));
    for (first, count) in [(0, 1), (39, 4), (42, 1), (77, 13), (60, 40), (0, 100)] {
        let at = first..first + count;
        let part = run(&at, &Team::alone(), true);
        assert!(bits(&part) == bits(&together[first * width..][..count * width]), "{at:?}");
    }
    // Where nothing grows: what the other product adds to nothing, and the plain product in tiles.
    let terms = run(&(0..rows), &Team::alone(), false);
    let plain = product(&Team::alone(), amx, &[&matrices[0], &matrices[1]], &x, rows, None);
    for row in (0..41).chain(77..100) {
        for output in row * width..(row + 1) * width {
            let expected = plain[output] + terms[output];
            let error = (together[output] - expected).abs() / expected.abs().max(1.0);
            assert!(error < 1e-4, "row {row}: {} {expected}", together[output]);
        }
    }
}
