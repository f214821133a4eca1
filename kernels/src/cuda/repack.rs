//! Weights of a base as they lie on the device: panels of 16 outputs, cut into tiles of 32 inputs, in the order in which
//! the lanes of a warp read them (`cuda/weights.cuh` says where what is, and multiplies them). Without loss for everything
//! but f32 and f16, which become bf16. Needs no device. Not here: the products (`ops/linear.rs`).

use half::{bf16, f16};
use rayon::prelude::*;

use super::CudaError;
use crate::quantised::{BLOCK_VALUES, Block, BlockFormat};

/// Outputs of a panel; the last one is padded with zeros.
pub const PANEL: usize = 16;
/// Panels that are worth a task of their own.
const PANELS_OF_TASK: usize = 16;
/// Tiles that share a scale of scales in the K formats.
const SUPER_TILES: usize = 8;

/// A format of weights on the device; the numbers are those of `weights::Format` in `cuda/weights.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types)]
pub enum WeightFormat {
    /// The upper half of an f32.
    Bf16 = 0,
    /// As [`BlockFormat::Q4_0`].
    Q4_0 = 1,
    /// As [`BlockFormat::Q4_1`].
    Q4_1 = 2,
    /// As [`BlockFormat::Q8_0`].
    Q8_0 = 3,
    /// As [`BlockFormat::Q4_K`], with 8 bits for each of the 6-bit scales.
    Q4_K = 4,
    /// As [`BlockFormat::Q5_K`], likewise.
    Q5_K = 5,
    /// As [`BlockFormat::Q6_K`].
    Q6_K = 6,
}

/// Bytes of one tile, and of what 8 tiles share; in a panel these lie one after the other, each for all tiles.
#[derive(Clone, Copy)]
struct Layout {
    codes: usize,
    high: usize,
    scales: usize,
    supers: usize,
}

impl WeightFormat {
    /// Every format.
    pub const ALL: [Self; 7] = [Self::Bf16, Self::Q4_0, Self::Q4_1, Self::Q8_0, Self::Q4_K, Self::Q5_K, Self::Q6_K];

    /// What a file's format becomes; `None` if there is no kernel for it.
    #[must_use]
    pub const fn of(format: BlockFormat) -> Option<Self> {
        match format {
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::Bf16 => Some(Self::Bf16),
            BlockFormat::Q4_0 => Some(Self::Q4_0),
            BlockFormat::Q4_1 => Some(Self::Q4_1),
            BlockFormat::Q8_0 => Some(Self::Q8_0),
            BlockFormat::Q4_K => Some(Self::Q4_K),
            BlockFormat::Q5_K => Some(Self::Q5_K),
            BlockFormat::Q6_K => Some(Self::Q6_K),
            BlockFormat::Q5_0 | BlockFormat::Q5_1 => None,
        }
    }

    /// The file's format that becomes this one without loss.
    #[must_use]
    pub const fn source(self) -> BlockFormat {
        match self {
            Self::Bf16 => BlockFormat::Bf16,
            Self::Q4_0 => BlockFormat::Q4_0,
            Self::Q4_1 => BlockFormat::Q4_1,
            Self::Q8_0 => BlockFormat::Q8_0,
            Self::Q4_K => BlockFormat::Q4_K,
            Self::Q5_K => BlockFormat::Q5_K,
            Self::Q6_K => BlockFormat::Q6_K,
        }
    }

    /// As kernels are named.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q8_0 => "q8_0",
            Self::Q4_K => "q4_k",
            Self::Q5_K => "q5_k",
            Self::Q6_K => "q6_k",
        }
    }

    const fn layout(self) -> Layout {
        let (codes, high, scales, supers) = match self {
            Self::Bf16 => (1024, 0, 0, 0),
            Self::Q4_0 => (256, 0, 32, 0),
            Self::Q4_1 => (256, 0, 64, 0),
            Self::Q8_0 => (512, 0, 32, 0),
            Self::Q4_K => (256, 0, 32, 64),
            Self::Q5_K => (256, 64, 32, 64),
            Self::Q6_K => (256, 128, 32, 32),
        };
        Layout { codes, high, scales, supers }
    }

    /// Bytes of a panel, a multiple of 128; `None` if `inputs` is 0 or no multiple of 32 (256 in the K formats).
    #[must_use]
    pub fn panel_bytes(self, inputs: usize) -> Option<usize> {
        let layout = self.layout();
        let multiple = if layout.supers > 0 { SUPER_TILES * BLOCK_VALUES } else { BLOCK_VALUES };
        if inputs == 0 || !inputs.is_multiple_of(multiple) {
            return None;
        }
        let tiles = inputs / BLOCK_VALUES;
        let each = tiles.checked_mul(layout.codes + layout.high + layout.scales)?;
        each.checked_add(tiles / SUPER_TILES * layout.supers)?.checked_next_multiple_of(128)
    }

    /// Bytes of a matrix `[outputs, inputs]`; `None` as [`WeightFormat::panel_bytes`], or on overflow. Matrices of the same
    /// format and inputs are one when they follow each other, if all but the last have a multiple of 16 outputs.
    #[must_use]
    pub fn packed_bytes(self, outputs: usize, inputs: usize) -> Option<usize> {
        self.panel_bytes(inputs)?.checked_mul(outputs.div_ceil(PANEL))
    }
}

/// Writes a file's blocks, row after row, into `packed` as [`WeightFormat::of`] the format.
///
/// # Errors
/// If there is no kernel for the format, or a length is not that of the shape.
pub fn repack(
    format: BlockFormat,
    outputs: usize,
    inputs: usize,
    blocks: &[u8],
    packed: &mut [u8],
) -> Result<(), CudaError> {
    let to = WeightFormat::of(format).ok_or(CudaError::Shape {
        what: "no kernel multiplies blocks of this many bytes",
        value: format.block_bytes(),
    })?;
    let panel_bytes = to
        .panel_bytes(inputs)
        .ok_or(CudaError::Shape { what: "inputs of a matrix are whole blocks", value: inputs })?;
    let row_bytes = format.row_bytes(inputs).unwrap_or(0);
    if row_bytes.checked_mul(outputs) != Some(blocks.len()) {
        return Err(CudaError::Shape { what: "bytes of a matrix in a file", value: blocks.len() });
    }
    if to.packed_bytes(outputs, inputs) != Some(packed.len()) {
        return Err(CudaError::Shape { what: "bytes of a matrix on the device", value: packed.len() });
    }
    let panels = packed.par_chunks_mut(panel_bytes).zip(blocks.par_chunks(row_bytes * PANEL));
    panels.with_min_len(PANELS_OF_TASK).for_each(|(panel, rows)| {
        panel.fill(0);
        for (row, blocks) in rows.chunks(row_bytes).enumerate() {
            for tile in 0..inputs / BLOCK_VALUES {
                if to == WeightFormat::Bf16 {
                    write_numbers(panel, row, tile, &numbers(format, blocks, tile));
                } else {
                    write_block(to, panel, inputs / BLOCK_VALUES, row, tile, &Block::read(format, blocks, tile));
                }
            }
        }
    });
    Ok(())
}

/// 32 plain numbers of a row.
fn numbers(format: BlockFormat, row: &[u8], tile: usize) -> [bf16; BLOCK_VALUES] {
    let mut values = [bf16::ZERO; BLOCK_VALUES];
    let bytes = &row[tile * BLOCK_VALUES * format.block_bytes()..];
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(format.block_bytes())) {
        *value = match *bytes {
            [a, b, c, d] => bf16::from_f32(f32::from_le_bytes([a, b, c, d])),
            [a, b] if format == BlockFormat::F16 => bf16::from_f32(f16::from_le_bytes([a, b]).to_f32()),
            [a, b] => bf16::from_le_bytes([a, b]),
            _ => bf16::ZERO,
        };
    }
    values
}

/// Who holds an input of a row: lane 4 (row % 8) + t has the inputs 16 s + 4 t + j of step s, as pairs of neighbours.
struct Place {
    lane: usize,
    step: usize,
    /// 0 to 3: `2 step + j / 2`.
    pair: usize,
    /// `j % 2`
    second: usize,
}

fn place(row: usize, input: usize) -> Place {
    let (step, j) = (input / 16, input % 4);
    Place { lane: row % 8 * 4 + input % 16 / 4, step, pair: 2 * step + j / 2, second: j % 2 }
}

fn write_numbers(panel: &mut [u8], row: usize, tile: usize, values: &[bf16; BLOCK_VALUES]) {
    for (input, value) in values.iter().enumerate() {
        let Place { lane, step, pair, second } = place(row, input);
        let at = tile * 1024 + step * 512 + lane * 16 + (pair % 2 * 2 + row / 8) * 4 + second * 2;
        panel[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

/// Adds 32 weights of one row to a panel that began as zeros.
fn write_block(format: WeightFormat, panel: &mut [u8], tiles: usize, row: usize, tile: usize, block: &Block) {
    let Layout { codes, high, scales, supers } = format.layout();
    let (half, group) = (row / 8, row % 8);
    let high_at = tiles * codes + tile * high;
    let scales_at = tiles * (codes + high) + tile * scales;
    let supers_at = tiles * (codes + high + scales) + tile / SUPER_TILES * supers;
    for (input, code) in block.codes.iter().enumerate() {
        let Place { lane, step, pair, second } = place(row, input);
        if format == WeightFormat::Q8_0 {
            panel[tile * codes + lane * 16 + half * 8 + step * 4 + pair % 2 + 2 * second] = code ^ 0x80;
            continue;
        }
        let nibble = pair + 4 * second;
        panel[tile * codes + lane * 8 + half * 4 + nibble / 2] |= (code & 15) << (nibble % 2 * 4);
        let (bits, bit) = match format {
            WeightFormat::Q5_K => (2, pair + 4 * half + 8 * second),
            WeightFormat::Q6_K => (4, 2 * (pair + 4 * half) + 16 * second),
            _ => continue,
        };
        panel[high_at + lane * bits + bit / 8] |= (code >> 4) << (bit % 8);
    }
    let mut write = |at: usize, bytes: [u8; 2]| panel[at..at + 2].copy_from_slice(&bytes);
    match format {
        WeightFormat::Bf16 => {}
        WeightFormat::Q4_0 | WeightFormat::Q8_0 => write(scales_at + group * 4 + half * 2, block.scale),
        WeightFormat::Q4_1 => {
            write(scales_at + group * 8 + half * 4, block.scale);
            write(scales_at + group * 8 + half * 4 + 2, block.least);
        }
        WeightFormat::Q4_K | WeightFormat::Q5_K => {
            write(scales_at + group * 4 + half * 2, block.sub);
            write(supers_at + group * 8 + half * 4, block.scale);
            write(supers_at + group * 8 + half * 4 + 2, block.least);
        }
        WeightFormat::Q6_K => {
            write(scales_at + group * 4 + half * 2, block.sub);
            write(supers_at + group * 4 + half * 2, block.scale);
        }
    }
}

#[cfg(test)]
mod tests;
