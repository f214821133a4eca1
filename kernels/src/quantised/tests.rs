//! Every block format against a plain reading of its bytes.

use super::*;
use crate::Isa;
use crate::dot::tests::values;

/// Blocks of random codes and tame scales.
pub(crate) fn random_blocks(format: BlockFormat, count: usize, seed: u64) -> Vec<u8> {
    let noise = values(seed, count * format.block_bytes());
    let mut bytes: Vec<u8> = noise.iter().map(|value| (value * 8_388_608.0) as i32 as u8).collect();
    for (index, block) in bytes.chunks_mut(format.block_bytes()).enumerate() {
        let mut scale = |at: usize, size: f32| {
            let value = size * noise[index * format.block_bytes() + at];
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_bits().to_le_bytes());
        };
        match format {
            BlockFormat::F32 => block.copy_from_slice(&(0.1 * noise[index * 4]).to_le_bytes()),
            BlockFormat::F16 => scale(0, 0.1),
            BlockFormat::Bf16 => {
                block.copy_from_slice(&half::bf16::from_f32(0.1 * noise[index * 2]).to_bits().to_le_bytes());
            }
            BlockFormat::Q4_0 | BlockFormat::Q5_0 => scale(0, 0.01),
            BlockFormat::Q8_0 => scale(0, 0.001),
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
                scale(0, 0.01);
                scale(2, 0.1);
            }
            BlockFormat::Q4_K | BlockFormat::Q5_K => {
                scale(0, 0.0003);
                scale(2, 0.003);
            }
            BlockFormat::Q6_K => scale(208, 0.00003),
        }
    }
    bytes
}

#[test]
fn every_half_converts() {
    for bits in 0..=u16::MAX {
        let [low, high] = bits.to_le_bytes();
        let (ours, theirs) = (half_to_f32(low, high), half::f16::from_bits(bits).to_f32());
        assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:04x}");
    }
}

#[test]
fn every_version_gives_the_same_bits() {
    for format in BlockFormat::ALL {
        let blocks = random_blocks(format, 18, 3);
        let mut expected = vec![0.0; 18 * format.block_values()];
        dequantise(Isa::plain(), format, &blocks, &mut expected);
        assert!(expected.iter().any(|value| *value > 0.0) && expected.iter().any(|value| *value < 0.0));
        for isa in Isa::available() {
            let mut out = vec![0.0; expected.len()];
            dequantise(isa, format, &blocks, &mut out);
            assert_eq!(out, expected, "{isa:?} {format:?}");
        }
    }
}

#[test]
fn blocks_and_the_vectorised_versions_agree() {
    for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0] {
        let blocks = random_blocks(format, 7, 5);
        let mut expected = vec![0.0; 7 * 32];
        dequantise(Isa::plain(), format, &blocks, &mut expected);
        for (index, expected) in expected.chunks(32).enumerate() {
            assert_eq!(Block::read(format, &blocks, index).values(format), expected, "{format:?}");
        }
    }
}

#[test]
fn one_block_of_each() {
    let one = half::f16::ONE.to_bits().to_le_bytes();
    let mut out = [0.0; 32];
    dequantise(Isa::detect(), BlockFormat::Q4_1, &[&one[..], &one, &[0x21; 16]].concat(), &mut out);
    assert_eq!((out[0], out[16]), (2.0, 3.0));
    dequantise(Isa::detect(), BlockFormat::Q4_0, &[&one[..], &[0x21; 16]].concat(), &mut out);
    assert_eq!((out[15], out[31]), (-7.0, -6.0));
    dequantise(Isa::detect(), BlockFormat::Q8_0, &[&one[..], &[0xff; 32]].concat(), &mut out);
    assert_eq!((out[0], out[31]), (-1.0, -1.0));
    // The fifth bits of values 0 and 31.
    let high = [1, 0, 0, 0x80];
    dequantise(Isa::detect(), BlockFormat::Q5_0, &[&one[..], &high, &[0x21; 16]].concat(), &mut out);
    assert_eq!((out[0], out[1], out[30], out[31]), (1.0, -15.0, -14.0, 2.0));
    dequantise(Isa::detect(), BlockFormat::Q5_1, &[&one[..], &one, &high, &[0x21; 16]].concat(), &mut out);
    assert_eq!((out[0], out[1], out[30], out[31]), (18.0, 2.0, 3.0, 19.0));
}

/// ggml's loops (`dequantize_row_q4_K`, `_q5_K`, `_q6_K` of `ggml-quants.c`), index by index.
#[test]
fn the_k_formats_are_read_as_ggml_does() {
    let scale_and_least = |j: usize, q: &[u8]| {
        if j < 4 {
            (q[j] & 63, q[j + 4] & 63)
        } else {
            ((q[j + 4] & 15) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
        }
    };
    let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    for (format, high, quants) in [(BlockFormat::Q4_K, None, 16), (BlockFormat::Q5_K, Some(16), 48)] {
        let block = random_blocks(format, 1, 8);
        let (d, least, mut expected) = (half(&block), half(&block[2..]), Vec::new());
        for pair in 0..4 {
            for (upper, is) in [(false, 2 * pair), (true, 2 * pair + 1)] {
                let (scale, m) = scale_and_least(is, &block[4..16]);
                for l in 0..32 {
                    let byte = block[quants + 32 * pair + l];
                    let bit = high.is_some_and(|at: usize| block[at + l] & (1 << is) != 0);
                    let q = (if upper { byte >> 4 } else { byte & 15 }) + if bit { 16 } else { 0 };
                    expected.push(d * f32::from(scale) * f32::from(q) - least * f32::from(m));
                }
            }
        }
        let mut out = [0.0; 256];
        dequantise(Isa::detect(), format, &block, &mut out);
        assert_eq!(out[..], expected, "{format:?}");
    }
    let block = random_blocks(BlockFormat::Q6_K, 1, 9);
    let mut expected = [0.0; 256];
    for n in 0..2 {
        let (ql, qh, sc) = (&block[64 * n..], &block[128 + 32 * n..], &block[192 + 8 * n..]);
        for l in 0..32 {
            let quants = [
                (ql[l] & 15) | ((qh[l] & 3) << 4),
                (ql[l + 32] & 15) | (((qh[l] >> 2) & 3) << 4),
                (ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4),
                (ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4),
            ];
            for (i, q) in quants.into_iter().enumerate() {
                let scale = half(&block[208..]) * f32::from(sc[l / 16 + 2 * i] as i8);
                expected[128 * n + 32 * i + l] = scale * f32::from(q as i8 - 32);
            }
        }
    }
    let mut out = [0.0; 256];
    dequantise(Isa::detect(), BlockFormat::Q6_K, &block, &mut out);
    assert_eq!(out, expected);
}
