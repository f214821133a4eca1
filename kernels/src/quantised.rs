//! GGML's block formats: 32 weights of a row share a scale. Only turned into f32 here; the products are in `dot.rs`.
//!
//! Layouts from ggml's `ggml-common.h`: Q4_0 {d: f16, 16 bytes}, Q4_1 {d: f16, m: f16, 16 bytes}, Q8_0 {d: f16, 32 bytes}.
//! In the 4-bit formats byte j holds value j in its low half and value j + 16 in its high half.
//!
//! The scales pass through a black box so that the compiler vectorises within a block (one load) and not across blocks
//! (one load for each byte), which made it six times slower.

use std::hint::black_box;

use crate::isa::multiversion;

/// Weights in one block of any of these formats.
pub const BLOCK_VALUES: usize = 32;

/// A block format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFormat {
    /// (q - 8) · d
    Q4_0,
    /// q · d + m
    Q4_1,
    /// q · d
    Q8_0,
}

impl BlockFormat {
    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }
}

/// Turns blocks into values, with the same rounding as ggml.
///
/// # Panics
/// If the lengths do not belong together.
pub fn dequantise(isa: crate::Isa, format: BlockFormat, blocks: &[u8], out: &mut [f32]) {
    assert!(out.len().is_multiple_of(BLOCK_VALUES) && out.len() / BLOCK_VALUES * format.block_bytes() == blocks.len());
    match format {
        BlockFormat::Q4_0 => q4_0(isa, blocks, out),
        BlockFormat::Q4_1 => q4_1(isa, blocks, out),
        BlockFormat::Q8_0 => q8_0(isa, blocks, out),
    }
}

multiversion! {
    fn q4_0(blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.as_chunks::<18>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let scale = black_box(half_to_f32(block[0], block[1]));
            for j in 0..16 {
                out[j] = f32::from((block[2 + j] & 15) as i8 - 8) * scale;
                out[j + 16] = f32::from((block[2 + j] >> 4) as i8 - 8) * scale;
            }
        }
    }
}

multiversion! {
    fn q4_1(blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.as_chunks::<20>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let (scale, least) = black_box((half_to_f32(block[0], block[1]), half_to_f32(block[2], block[3])));
            for j in 0..16 {
                out[j] = f32::from(block[4 + j] & 15) * scale + least;
                out[j + 16] = f32::from(block[4 + j] >> 4) * scale + least;
            }
        }
    }
}

multiversion! {
    fn q8_0(blocks: &[u8], out: &mut [f32]) {
        for (block, out) in blocks.as_chunks::<34>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let scale = black_box(half_to_f32(block[0], block[1]));
            for j in 0..32 {
                out[j] = f32::from(block[2 + j] as i8) * scale;
            }
        }
    }
}

/// f16 (little-endian) to f32, exactly. The exponent's bias is moved by one multiplication, which also normalises
/// subnormals. Written out because `half` asks the CPU for its features on every call.
#[inline(always)]
fn half_to_f32(low: u8, high: u8) -> f32 {
    let bits = u32::from(u16::from_le_bytes([low, high]));
    let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
    let rebiased = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let value = if magnitude >= 0x7c00 { magnitude << 13 | 0x7f80_0000 } else { rebiased.to_bits() };
    f32::from_bits(value | sign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

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
        for format in [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q8_0] {
            let mut blocks: Vec<u8> = (0..format.block_bytes() * 18).map(|i| (i * 37 + i / 7) as u8).collect();
            for block in blocks.chunks_mut(format.block_bytes()) {
                block[1] &= 0x3f; // a finite scale
                if format == BlockFormat::Q4_1 {
                    block[3] &= 0x3f;
                }
            }
            let mut expected = vec![0.0; 18 * BLOCK_VALUES];
            dequantise(Isa::plain(), format, &blocks, &mut expected);
            for isa in Isa::available() {
                let mut out = vec![0.0; 18 * BLOCK_VALUES];
                dequantise(isa, format, &blocks, &mut out);
                assert_eq!(out, expected, "{isa:?} {format:?}");
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
    }
}
