//! 32 weights of any integer format in one form: unsigned codes and their scales. What packing reads and copying a row
//! gives back. Not here: speed.

use super::{BLOCK_VALUES, BlockFormat, half_to_f32};

/// 32 weights that follow each other in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    /// Signed formats have their offset (8, 16, 32, 128) added.
    pub(crate) codes: [u8; BLOCK_VALUES],
    /// d as f16; of the super-block in the K formats.
    pub(crate) scale: [u8; 2],
    /// m or dmin as f16, where there is one.
    pub(crate) least: [u8; 2],
    /// In the K formats the scale and the minimum of these 32; in Q6_K the scales of the first and the last 16.
    pub(crate) sub: [u8; 2],
}

impl Block {
    /// Reads the `index`-th 32 weights of a row of blocks.
    ///
    /// # Panics
    /// If they are not there, or the format is not one of integers.
    pub(crate) fn read(format: BlockFormat, blocks: &[u8], index: usize) -> Self {
        let in_block = format.block_values() / BLOCK_VALUES;
        assert!(in_block > 0, "{format:?} has no integers");
        let block = &blocks[index / in_block * format.block_bytes()..][..format.block_bytes()];
        let part = index % in_block;
        match format {
            BlockFormat::Q4_0 => simple(block, 2, None),
            BlockFormat::Q4_1 => simple(block, 4, None),
            BlockFormat::Q5_0 => simple(block, 6, Some(2)),
            BlockFormat::Q5_1 => simple(block, 8, Some(4)),
            BlockFormat::Q4_K => k4_or_k5(block, part, None, 16),
            BlockFormat::Q5_K => k4_or_k5(block, part, Some(16), 48),
            BlockFormat::Q6_K => k6(block, part),
            _ => {
                let mut codes = [0; BLOCK_VALUES];
                codes.iter_mut().zip(&block[2..]).for_each(|(code, byte)| *code = byte ^ 0x80);
                Self { codes, scale: [block[0], block[1]], ..Self::default() }
            }
        }
    }

    /// The weights, with the same rounding as ggml.
    pub(crate) fn values(&self, format: BlockFormat) -> [f32; BLOCK_VALUES] {
        let scale = half_to_f32(self.scale[0], self.scale[1]);
        let least = half_to_f32(self.least[0], self.least[1]);
        let offset: i16 = match format {
            BlockFormat::Q4_0 => 8,
            BlockFormat::Q5_0 => 16,
            BlockFormat::Q6_K => 32,
            BlockFormat::Q8_0 => 128,
            _ => 0,
        };
        let mut values = self.codes.map(|code| f32::from(i16::from(code) - offset));
        match format {
            BlockFormat::Q4_1 | BlockFormat::Q5_1 => {
                values.iter_mut().for_each(|value| *value = *value * scale + least)
            }
            BlockFormat::Q4_K | BlockFormat::Q5_K => {
                let (scale, least) = (scale * f32::from(self.sub[0]), least * f32::from(self.sub[1]));
                values.iter_mut().for_each(|value| *value = scale * *value - least);
            }
            BlockFormat::Q6_K => {
                for (half, sub) in values.chunks_mut(16).zip(self.sub) {
                    let scale = scale * f32::from(sub as i8);
                    half.iter_mut().for_each(|value| *value *= scale);
                }
            }
            _ => values.iter_mut().for_each(|value| *value *= scale),
        }
        values
    }
}

/// Low halves are the first 16 values; the fifth bits, if any, are one word.
fn simple(block: &[u8], quants_at: usize, high_at: Option<usize>) -> Block {
    let mut codes = [0; BLOCK_VALUES];
    for (j, byte) in block[quants_at..].iter().enumerate() {
        codes[j] = byte & 15;
        codes[j + 16] = byte >> 4;
    }
    if let Some(at) = high_at {
        for (j, code) in codes.iter_mut().enumerate() {
            *code |= (block[at + j / 8] >> (j % 8) & 1) << 4;
        }
    }
    let has_least = quants_at == 4 || quants_at == 8;
    let least = if has_least { [block[2], block[3]] } else { [0; 2] };
    Block { codes, scale: [block[0], block[1]], least, sub: [0; 2] }
}

/// Parts 2p and 2p + 1 are the low and high halves of the same 32 bytes; bit `part` of the high bytes is the fifth.
fn k4_or_k5(block: &[u8], part: usize, high_at: Option<usize>, quants_at: usize) -> Block {
    let (mut codes, scales) = ([0; BLOCK_VALUES], &block[4..16]);
    for (j, code) in codes.iter_mut().enumerate() {
        *code = block[quants_at + part / 2 * 32 + j] >> (part % 2 * 4) & 15;
        if let Some(at) = high_at {
            *code |= (block[at + j] >> part & 1) << 4;
        }
    }
    let sub = if part < 4 {
        [scales[part] & 63, scales[part + 4] & 63]
    } else {
        let low = scales[part + 4];
        [low & 15 | scales[part - 4] >> 6 << 4, low >> 4 | scales[part] >> 6 << 4]
    };
    Block { codes, scale: [block[0], block[1]], least: [block[2], block[3]], sub }
}

/// 128 bytes of low bits, 64 of high bits, 16 signed scales, d. Each half of 128 values uses 64 and 32 of those bytes.
fn k6(block: &[u8], part: usize) -> Block {
    let (half, quarter) = (part / 4, part % 4);
    let mut codes = [0; BLOCK_VALUES];
    for (j, code) in codes.iter_mut().enumerate() {
        let low = block[half * 64 + quarter % 2 * 32 + j] >> (quarter / 2 * 4) & 15;
        let high = block[128 + half * 32 + j] >> (quarter * 2) & 3;
        *code = low | high << 4;
    }
    let sub = [block[192 + part * 2], block[193 + part * 2]];
    Block { codes, scale: [block[208], block[209]], least: [0; 2], sub }
}
