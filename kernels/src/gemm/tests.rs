//! The products against plain sums, in every format, on every instruction set and for every shape of tile.

use std::sync::Mutex;

use super::*;
use crate::dot::tests::values;
use crate::quantised::tests::random_blocks;
use crate::quantised::{BLOCK_VALUES, Block, half_to_f32};
use crate::{Pool, dequantise};

const INTEGERS: [BlockFormat; 8] = [
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q5_0,
    BlockFormat::Q5_1,
    BlockFormat::Q8_0,
    BlockFormat::Q4_K,
    BlockFormat::Q5_K,
    BlockFormat::Q6_K,
];

/// What the result may be off by, against f64 products of the dequantised weights with the f32 activations: the root mean
/// square of the error over that of the result. The integer formats' is the rounding of activations to int8.
const TOLERANCES: [(BlockFormat, f64); 11] = [
    (BlockFormat::F32, 1e-6),
    (BlockFormat::F16, 1e-6),
    (BlockFormat::Bf16, 2.5e-3),
    (BlockFormat::Q4_0, 5e-3),
    (BlockFormat::Q4_1, 5e-3),
    (BlockFormat::Q5_0, 5e-3),
    (BlockFormat::Q5_1, 5e-3),
    (BlockFormat::Q8_0, 5e-3),
    (BlockFormat::Q4_K, 5e-3),
    (BlockFormat::Q5_K, 5e-3),
    (BlockFormat::Q6_K, 5e-3),
];
/// How far the machine's bf16 instruction may be from the plain version, over the sum of the products' magnitudes. It adds
/// the two products of a pair before it rounds, and takes subnormals for zero.
const BF16_TOLERANCE: f64 = 1e-6;

struct Weights {
    format: BlockFormat,
    outputs: usize,
    blocks: Vec<u8>,
    packed: PackedMatrix,
}

impl Weights {
    fn new(format: BlockFormat, outputs: usize, inputs: usize, seed: u64) -> Self {
        let blocks = random_blocks(format, outputs * inputs / format.block_values(), seed);
        let packed = PackedMatrix::pack(outputs, inputs, format, &blocks).unwrap();
        Self { format, outputs, blocks, packed }
    }

    fn row(&self, output: usize) -> &[u8] {
        let bytes = self.format.row_bytes(self.packed.inputs()).unwrap();
        &self.blocks[output * bytes..][..bytes]
    }
}

/// One output in the order that `gemm.rs` promises, out of the file's own blocks and with nothing shared but
/// `Block::read`, which is tested against ggml's loops.
fn reference(weights: &Weights, output: usize, x: &[f32]) -> f32 {
    let mut y = 0.0f32;
    for (index, x) in x.chunks(BLOCK_VALUES).enumerate() {
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let x_scale = largest / 127.0;
        let q: Vec<i32> = x.iter().map(|x| (x * (127.0 / largest)).round_ties_even() as i32).collect();
        let block = Block::read(weights.format, weights.row(output), index);
        let (d, m) = (half_to_f32(block.scale[0], block.scale[1]), half_to_f32(block.least[0], block.least[1]));
        let dot = |range: Range<usize>, offset: i32| {
            range.map(|k| (i32::from(block.codes[k]) - offset) * q[k]).sum::<i32>() as f32
        };
        let sum = q.iter().sum::<i32>() as f32;
        let sub = block.sub.map(f32::from);
        let (scale, offset, least) = match weights.format {
            BlockFormat::Q4_0 => (d, 8, None),
            BlockFormat::Q5_0 => (d, 16, None),
            BlockFormat::Q8_0 => (d, 128, None),
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => (d, 0, Some(m)),
            BlockFormat::Q4_K | BlockFormat::Q5_K => (d * sub[0], 0, Some(-m * sub[1])),
            _ => {
                for half in 0..2 {
                    let scale = d * f32::from(block.sub[half] as i8) * x_scale;
                    y = scale.mul_add(dot(half * 16..half * 16 + 16, 32), y);
                }
                continue;
            }
        };
        y = (scale * x_scale).mul_add(dot(0..32, offset), y);
        if let Some(least) = least {
            y = least.mul_add(x_scale * sum, y);
        }
    }
    y
}

fn product(team: &Team<'_>, isa: Isa, matrices: &[&Weights], x: &[f32], rows: usize) -> Vec<f32> {
    let packed: Vec<&PackedMatrix> = matrices.iter().map(|weights| &weights.packed).collect();
    let mut quantised = QuantisedRows::for_formats(matrices.iter().map(|weights| weights.format));
    quantised.fill(team, isa, x, rows, packed[0].inputs());
    let mut out = vec![f32::NAN; rows * matrices.iter().map(|weights| weights.outputs).sum::<usize>()];
    matmul_packed(team, isa, &packed, &quantised, &mut out, false);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn integers_give_the_bits_of_the_reference() {
    for (seed, format) in INTEGERS.into_iter().enumerate() {
        for (outputs, inputs) in [(33, 256), (64, 768), (7, 512)] {
            let weights = Weights::new(format, outputs, inputs, seed as u64);
            let x = values(50 + seed as u64, 26 * inputs);
            let expected: Vec<f32> = x
                .chunks(inputs)
                .flat_map(|x| (0..outputs).map(|output| reference(&weights, output, x)).collect::<Vec<_>>())
                .collect();
            for isa in Isa::available() {
                for rows in (1..=14).chain([24, 25, 26]) {
                    let out = product(&Team::alone(), isa, &[&weights], &x[..rows * inputs], rows);
                    assert!(
                        bits(&out) == bits(&expected[..rows * outputs]),
                        "{isa:?} {format:?} {outputs} x {inputs}, {rows} rows"
                    );
                }
            }
        }
    }
}

#[test]
fn few_tiles_are_shared_evenly() {
    for (threads, panels, inputs) in
        [(2, 18, 576), (2, 30, 576), (2, 96, 576), (2, 18, 1536), (3, 100, 64), (4, 18, 576)]
    {
        let cut = Cut::new(threads, panels, inputs * PANEL * 5 / 8, inputs, 1);
        let tiles = panels.div_ceil(cut.outputs);
        assert!(tiles.div_ceil(threads) * cut.outputs == panels.div_ceil(threads), "{threads} {panels} {inputs}");
    }
}

#[test]
fn the_largest_codes_do_not_saturate() {
    for format in INTEGERS {
        for byte in [0x00, 0x7f, 0x80, 0xff] {
            let mut blocks = random_blocks(format, 32 * 256 / format.block_values(), 1);
            let (scales, codes) = match format {
                BlockFormat::Q4_0 | BlockFormat::Q5_0 | BlockFormat::Q8_0 => (0..2, 2..format.block_bytes()),
                BlockFormat::Q6_K => (208..210, 0..208),
                _ => (0..4, 4..format.block_bytes()),
            };
            for block in blocks.chunks_mut(format.block_bytes()) {
                block[codes.clone()].fill(byte);
                block[scales.clone()].fill(0x1c);
            }
            let packed = PackedMatrix::pack(32, 256, format, &blocks).unwrap();
            let weights = Weights { format, outputs: 32, blocks, packed };
            for x in [1.0, -1.0] {
                let x = vec![x; 256 * 5];
                let expected = reference(&weights, 0, &x[..256]);
                for isa in Isa::available() {
                    let out = product(&Team::alone(), isa, &[&weights], &x, 5);
                    assert!(out.iter().all(|out| *out == expected), "{isa:?} {format:?} {byte:x}");
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others_nor_on_the_threads() {
    let pool = Pool::new(3).unwrap();
    for format in BlockFormat::ALL {
        let inputs = 256;
        let (a, b) = (Weights::new(format, 70, inputs, 1), Weights::new(BlockFormat::Q8_0, 100, inputs, 2));
        let x = values(3, 131 * inputs);
        for isa in Isa::available() {
            let together = pool.step(|team| product(team, isa, &[&a, &b], &x, 131));
            for (first, rows) in [(0, 1), (5, 1), (7, 9), (100, 31), (130, 1), (0, 131)] {
                let part = product(&Team::alone(), isa, &[&a, &b], &x[first * inputs..][..rows * inputs], rows);
                assert!(
                    bits(&part) == bits(&together[first * 170..][..rows * 170]),
                    "{isa:?} {format:?} {first} {rows}"
                );
            }
        }
    }
}

#[test]
fn errors_are_within_the_tolerances() {
    let (rows, outputs, inputs) = (13, 40, 1536);
    for (format, tolerance) in TOLERANCES {
        let weights = Weights::new(format, outputs, inputs, 4);
        let x = values(5, rows * inputs);
        let (mut row, mut exact) = (vec![0.0; inputs], Vec::new());
        for x in x.chunks(inputs) {
            for output in 0..outputs {
                dequantise(Isa::plain(), format, weights.row(output), &mut row);
                exact.push(row.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>());
            }
        }
        for isa in Isa::available() {
            let out = product(&Team::alone(), isa, &[&weights], &x, rows);
            let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
            let error = square(&mut out.iter().zip(&exact).map(|(out, exact)| f64::from(*out) - exact));
            let error = (error / square(&mut exact.iter().copied())).sqrt();
            println!("{isa:?} {format:?} {error:.2e}");
            assert!(error < tolerance, "{isa:?} {format:?} {error:e}");
        }
    }
}

#[test]
fn plain_numbers_give_the_same_bits_and_bf16_nearly() {
    for format in [BlockFormat::F32, BlockFormat::F16, BlockFormat::Bf16] {
        let (rows, inputs) = (12, 608);
        let weights = Weights::new(format, 45, inputs, 6);
        let x = values(7, rows * inputs);
        for rows in 1..=rows {
            let plain = product(&Team::alone(), Isa::plain(), &[&weights], &x[..rows * inputs], rows);
            for isa in Isa::available() {
                let out = product(&Team::alone(), isa, &[&weights], &x[..rows * inputs], rows);
                if format == BlockFormat::Bf16 {
                    // Weights below 0.1 and activations below 1.
                    let bound = 0.1 * inputs as f64 * BF16_TOLERANCE;
                    let far = out.iter().zip(&plain).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
                    assert!(far < bound, "{isa:?} {rows} rows: {far:e}");
                } else {
                    assert!(bits(&out) == bits(&plain), "{isa:?} {format:?} {rows} rows");
                }
            }
        }
    }
}

#[test]
fn what_is_behind_a_row_is_left() {
    let (rows, inputs, width, stride) = (14, 96, 40, 47);
    for isa in Isa::available() {
        for accumulate in [false, true] {
            let weights = Weights::new(BlockFormat::Q4_1, width, inputs, 1);
            let x = values(2, rows * inputs);
            let before = values(3, rows * stride);
            let mut narrow: Vec<f32> = before.chunks(stride).flat_map(|row| &row[..width]).copied().collect();
            let mut out = before.clone();
            let mut quantised = QuantisedRows::for_formats([BlockFormat::Q4_1]);
            quantised.fill(&Team::alone(), isa, &x, rows, inputs);
            matmul_packed(&Team::alone(), isa, &[&weights.packed], &quantised, &mut narrow, accumulate);
            matmul_packed(&Team::alone(), isa, &[&weights.packed], &quantised, &mut out, accumulate);
            for ((out, before), narrow) in out.chunks(stride).zip(before.chunks(stride)).zip(narrow.chunks(width)) {
                assert!(bits(&out[..width]) == bits(narrow) && out[width..] == before[width..], "{isa:?} {accumulate}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "2 rows of 32 in 63 values")]
fn rows_that_are_too_short_are_the_callers_bug() {
    let weights = Weights::new(BlockFormat::Q4_1, 32, 32, 1);
    let mut quantised = QuantisedRows::for_formats([BlockFormat::Q4_1]);
    quantised.fill(&Team::alone(), Isa::detect(), &values(2, 64), 2, 32);
    matmul_packed(&Team::alone(), Isa::detect(), &[&weights.packed], &quantised, &mut [0.0; 63], false);
}

#[test]
fn accumulating_adds_to_what_is_there() {
    let weights = Weights::new(BlockFormat::Q4_1, 50, 96, 8);
    let x = values(9, 20 * 96);
    let product = product(&Team::alone(), Isa::detect(), &[&weights], &x, 20);
    let mut rows = QuantisedRows::new();
    rows.fill(&Team::alone(), Isa::detect(), &x, 20, 96);
    let before = values(10, product.len());
    let mut out = before.clone();
    matmul_packed(&Team::alone(), Isa::detect(), &[&weights.packed], &rows, &mut out, true);
    for (index, out) in out.iter().enumerate() {
        assert_eq!(*out, before[index] + product[index]);
    }
}

#[test]
fn pieces_are_the_whole_product_once() {
    let pool = Pool::new(2).unwrap();
    for (outputs, count) in [(1000, 1), (70, 30), (5, 200), (32, 12)] {
        let weights = Weights::new(BlockFormat::Q8_0, outputs, 64, 11);
        let x = values(12, count * 64);
        let expected = product(&Team::alone(), Isa::detect(), &[&weights], &x, count);
        let out = Mutex::new(vec![f32::NAN; expected.len()]);
        pool.step(|team| {
            let mut rows = QuantisedRows::new();
            rows.fill(team, Isa::detect(), &x, count, 64);
            matmul_each(team, Isa::detect(), &weights.packed, &rows, |worker, rows, outputs_of_piece, piece| {
                assert!(worker < 2 && piece.rows() == rows.len());
                let mut out = out.lock().unwrap();
                for (index, row) in rows.enumerate() {
                    let out = &mut out[row * outputs..][outputs_of_piece.clone()];
                    assert!(out.iter().all(|out| out.is_nan()), "written twice");
                    out.copy_from_slice(piece.row(index));
                }
            });
        });
        assert_eq!(*out.lock().unwrap(), expected);
    }
}

#[test]
fn a_row_of_anything_disturbs_no_other() {
    let inputs = 96;
    for format in [BlockFormat::Q4_1, BlockFormat::Q8_0, BlockFormat::F16, BlockFormat::Bf16] {
        let weights = Weights::new(format, 40, inputs, 13);
        let good = values(14, 14 * inputs);
        for isa in Isa::available() {
            let expected = product(&Team::alone(), isa, &[&weights], &good, 14);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE / 8.0, 0.0] {
                let mut x = good.clone();
                x[5 * inputs..6 * inputs].fill(bad);
                x[9 * inputs + 40] = bad;
                let out = product(&Team::alone(), isa, &[&weights], &x, 14);
                for row in 0..14 {
                    let (out, expected) = (&out[row * 40..][..40], &expected[row * 40..][..40]);
                    match row {
                        5 if bad.abs() < 1.0 => assert!(out.iter().all(|out| out.abs() < 1e-30), "{isa:?} {format:?}"),
                        5 if !bad.is_finite() => assert!(out.iter().all(|out| !out.is_finite()), "{isa:?} {format:?}"),
                        5 => {}
                        9 if bad.is_finite() => {}
                        9 => assert!(out.iter().all(|out| !out.is_finite()), "{isa:?} {format:?} {bad}"),
                        _ => assert!(bits(out) == bits(expected), "{isa:?} {format:?} {bad} row {row}"),
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "rows are not kept as int8")]
fn a_form_that_is_not_kept_is_the_callers_bug() {
    let weights = Weights::new(BlockFormat::Q8_0, 1, 32, 15);
    let mut rows = QuantisedRows::for_formats([BlockFormat::F16]);
    rows.fill(&Team::alone(), Isa::plain(), &[1.0; 32], 1, 32);
    matmul_packed(&Team::alone(), Isa::plain(), &[&weights.packed], &rows, &mut [0.0], false);
}
