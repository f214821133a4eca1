//! GGML's block formats: weights of a row that share a scale. Their sizes, and how blocks turn into f32; the products are
//! in `gemm.rs` (from a packed copy) and `matmul.rs` (the f32 reference).
//!
//! Layouts from ggml's `ggml-common.h`. In the 4-bit and 5-bit formats of 32 values, byte j holds value j in its low half
//! and value j + 16 in its high half; the K formats are read in `quantised/block.rs`.
//!
//! The scales pass through a black box so that the compiler vectorises within a block (one load) and not across blocks
//! (one load for each byte), which made it six times slower.

mod block;

use std::hint::black_box;

pub(crate) use block::Block;

use crate::isa::multiversion;

/// Weights that share a scale in every format, and activations that share one in [`crate::QuantisedRows`]. A block of a K
/// format is eight of these.
pub const BLOCK_VALUES: usize = 32;

/// A format of weights: blocks of integers with scales, or plain numbers as blocks of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum BlockFormat {
    /// 32 bits, little-endian.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// (q - 8) · d
    Q4_0,
    /// q · d + m
    Q4_1,
    /// (q - 16) · d
    Q5_0,
    /// q · d + m
    Q5_1,
    /// q · d
    Q8_0,
    /// q · (d · s) - dmin · m, with 6-bit s and m for each 32 of 256
    Q4_K,
    /// As `Q4_K`, with 5-bit q.
    Q5_K,
    /// (q - 32) · (d · s), with 8-bit s for each 16 of 256
    Q6_K,
}

impl BlockFormat {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// Weights in one block.
    #[must_use]
    pub const fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => BLOCK_VALUES,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of a row of this many weights; `None` if it is not whole blocks.
    #[must_use]
    pub const fn row_bytes(self, values: usize) -> Option<usize> {
        if values.is_multiple_of(self.block_values()) {
            (values / self.block_values()).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

/// Turns blocks into values, with the same rounding as ggml.
///
/// # Panics
/// If the lengths do not belong together.
pub fn dequantise(isa: crate::Isa, format: BlockFormat, blocks: &[u8], out: &mut [f32]) {
    assert!(format.row_bytes(out.len()) == Some(blocks.len()), "{} values in {} bytes", out.len(), blocks.len());
    match format {
        BlockFormat::F32 => f32s(isa, blocks, out),
        BlockFormat::F16 => f16s(isa, blocks, out),
        BlockFormat::Bf16 => bf16s(isa, blocks, out),
        BlockFormat::Q4_0 => q4_0(isa, blocks, out),
        BlockFormat::Q4_1 => q4_1(isa, blocks, out),
        BlockFormat::Q8_0 => q8_0(isa, blocks, out),
        _ => {
            for (index, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                *out = Block::read(format, blocks, index).values(format);
            }
        }
    }
}

multiversion! {
    fn f32s(blocks: &[u8], out: &mut [f32]) {
        for (bytes, out) in blocks.as_chunks::<4>().0.iter().zip(out) {
            *out = f32::from_le_bytes(*bytes);
        }
    }
}

multiversion! {
    fn f16s(blocks: &[u8], out: &mut [f32]) {
        for (bytes, out) in blocks.as_chunks::<2>().0.iter().zip(out) {
            *out = half_to_f32(bytes[0], bytes[1]);
        }
    }
}

multiversion! {
    fn bf16s(blocks: &[u8], out: &mut [f32]) {
        for (bytes, out) in blocks.as_chunks::<2>().0.iter().zip(out) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
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
pub(crate) fn half_to_f32(low: u8, high: u8) -> f32 {
    let bits = u32::from(u16::from_le_bytes([low, high]));
    let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
    let rebiased = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let value = if magnitude >= 0x7c00 { magnitude << 13 | 0x7f80_0000 } else { rebiased.to_bits() };
    f32::from_bits(value | sign)
}

#[cfg(test)]
pub(crate) mod tests;
