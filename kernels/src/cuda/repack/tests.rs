//! Repacking loses nothing: what is read back at the places that `cuda/weights.cuh` reads is what the file has.

use super::*;
use crate::quantised::tests::random_blocks;

/// 32 weights of a row, read as the kernel reads them: words of a lane, shifted and masked.
fn unpack_block(format: WeightFormat, packed: &[u8], inputs: usize, row: usize, tile: usize) -> Block {
    let tiles = inputs / BLOCK_VALUES;
    let Layout { codes, high, scales, supers } = format.layout();
    let panel = &packed[row / PANEL * format.panel_bytes(inputs).unwrap()..];
    let (half, group) = (row % PANEL / 8, row % 8);
    let word = |at: usize| u32::from_le_bytes(panel[at..at + 4].try_into().unwrap());
    let pair_of = |at: usize| [panel[at], panel[at + 1]];
    let mut block = Block::default();
    for (input, code) in block.codes.iter_mut().enumerate() {
        let (step, part, second) = (input / 16, input % 4 / 2, input % 2);
        let (lane, pair) = (group * 4 + input % 16 / 4, 2 * step + part);
        let low_bits = |bits: u32| if second == 0 { bits & 0xffff } else { bits >> 16 };
        *code = if format == WeightFormat::Q8_0 {
            let word = word(tile * codes + lane * 16 + half * 8 + step * 4);
            low_bits(word >> (8 * part) & 0x00ff_00ff) as u8 ^ 0x80
        } else {
            low_bits(word(tile * codes + lane * 8 + half * 4) >> (4 * pair) & 0x000f_000f) as u8
        };
        let high_at = tiles * codes + tile * high;
        if format == WeightFormat::Q5_K {
            let bits = u32::from(u16::from_le_bytes(pair_of(high_at + lane * 2)));
            let spread = bits & 0xff | (bits & 0xff00) << 8;
            *code |= (low_bits(spread >> (pair + 4 * half) & 0x0001_0001) << 4) as u8;
        }
        if format == WeightFormat::Q6_K {
            *code |= (low_bits(word(high_at + lane * 4) >> (2 * (pair + 4 * half)) & 0x0003_0003) << 4) as u8;
        }
    }
    let scales_at = tiles * (codes + high) + tile * scales;
    let supers_at = tiles * (codes + high + scales) + tile / SUPER_TILES * supers;
    match format {
        WeightFormat::Bf16 => {}
        WeightFormat::Q4_0 | WeightFormat::Q8_0 => block.scale = pair_of(scales_at + group * 4 + half * 2),
        WeightFormat::Q4_1 => {
            block.scale = pair_of(scales_at + group * 8 + half * 4);
            block.least = pair_of(scales_at + group * 8 + half * 4 + 2);
        }
        WeightFormat::Q4_K | WeightFormat::Q5_K => {
            block.sub = pair_of(scales_at + group * 4 + half * 2);
            block.scale = pair_of(supers_at + group * 8 + half * 4);
            block.least = pair_of(supers_at + group * 8 + half * 4 + 2);
        }
        WeightFormat::Q6_K => {
            block.sub = pair_of(scales_at + group * 4 + half * 2);
            block.scale = pair_of(supers_at + group * 4 + half * 2);
        }
    }
    block
}

#[test]
fn every_bit_of_the_file_is_found_again() {
    for format in WeightFormat::ALL.into_iter().filter(|format| *format != WeightFormat::Bf16) {
        let source = format.source();
        for (outputs, inputs) in [(16, 256), (37, 512), (1, 2304)] {
            let row_bytes = source.row_bytes(inputs).unwrap();
            // Random bytes throughout: scales of any sign and size, every code.
            let mut blocks = random_blocks(source, outputs * inputs / source.block_values(), 5);
            blocks.iter_mut().enumerate().for_each(|(index, byte)| *byte ^= ((index * 151) >> 3) as u8);
            let mut packed = vec![0xff; format.packed_bytes(outputs, inputs).unwrap()];
            repack(source, outputs, inputs, &blocks, &mut packed).unwrap();
            for (row, blocks) in blocks.chunks(row_bytes).enumerate() {
                for tile in 0..inputs / BLOCK_VALUES {
                    let expected = Block::read(source, blocks, tile);
                    assert_eq!(unpack_block(format, &packed, inputs, row, tile), expected, "{format:?} {row} {tile}");
                }
            }
        }
    }
}

#[test]
fn plain_numbers_are_rounded_once_and_padding_is_zero() {
    let (outputs, inputs) = (19, 64);
    let floats = random_blocks(BlockFormat::F32, outputs * inputs, 9);
    let values: Vec<f32> = floats.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let halves: Vec<u8> = values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
    let uppers: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
    for (format, blocks) in [(BlockFormat::F32, &floats), (BlockFormat::F16, &halves), (BlockFormat::Bf16, &uppers)] {
        let mut packed = vec![0xff; WeightFormat::Bf16.packed_bytes(outputs, inputs).unwrap()];
        repack(format, outputs, inputs, blocks, &mut packed).unwrap();
        let panel_bytes = WeightFormat::Bf16.panel_bytes(inputs).unwrap();
        for row in 0..outputs.next_multiple_of(PANEL) {
            for input in 0..inputs {
                let (tile, step, part) = (input / 32, input % 32 / 16, input % 4 / 2);
                let lane = row % 8 * 4 + input % 16 / 4;
                let register = part * 2 + row % PANEL / 8;
                let at =
                    row / PANEL * panel_bytes + tile * 1024 + step * 512 + lane * 16 + register * 4 + input % 2 * 2;
                let expected = values.get(row * inputs + input).map_or(bf16::ZERO, |value| match format {
                    BlockFormat::F16 => bf16::from_f32(f16::from_f32(*value).to_f32()),
                    _ => bf16::from_f32(*value),
                });
                assert_eq!(bf16::from_le_bytes([packed[at], packed[at + 1]]), expected, "{format:?} {row} {input}");
            }
        }
    }
}

#[test]
fn matrices_that_follow_each_other_are_one() {
    let (format, inputs) = (WeightFormat::Q4_K, 256);
    let blocks = random_blocks(BlockFormat::Q4_K, 48, 2);
    let whole = packed(format, 48, inputs, &blocks);
    let parts = [packed(format, 32, inputs, &blocks[..32 * 144]), packed(format, 16, inputs, &blocks[32 * 144..])];
    assert_eq!(whole, parts.concat());
}

fn packed(format: WeightFormat, outputs: usize, inputs: usize, blocks: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; format.packed_bytes(outputs, inputs).unwrap()];
    repack(format.source(), outputs, inputs, blocks, &mut packed).unwrap();
    packed
}

#[test]
fn what_has_no_layout_is_refused() {
    assert_eq!(WeightFormat::of(BlockFormat::Q5_1), None);
    assert_eq!(WeightFormat::Q4_0.packed_bytes(16, 48), None);
    assert_eq!(WeightFormat::Q6_K.packed_bytes(16, 288), None);
    assert_eq!(WeightFormat::Bf16.packed_bytes(usize::MAX, 32), None);
    assert!(repack(BlockFormat::Q5_0, 16, 32, &[0; 16 * 22], &mut [0; 5120]).is_err());
    assert!(repack(BlockFormat::Q4_0, 16, 32, &[0; 16 * 18 - 1], &mut [0; 384]).is_err());
    assert!(repack(BlockFormat::Q4_0, 16, 32, &[0; 16 * 18], &mut [0; 383]).is_err());
    assert!(repack(BlockFormat::Q4_0, 16, 32, &[0; 16 * 18], &mut [0; 384]).is_ok());
}
