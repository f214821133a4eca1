//! Weights of a matrix repacked at load for the products of `gemm.rs`: without loss, in one sequential stream for each 32
//! outputs. Not here: the products, and what the file's blocks mean (`quantised.rs`).

mod layout;

pub(crate) use layout::{Layout, PANEL, formats};

use crate::Isa;
use crate::quantised::{BLOCK_VALUES, BlockFormat, half_to_f32};

/// A cache line, so that the stream begins on one.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A weight matrix `[outputs, inputs]`, repacked.
pub struct PackedMatrix {
    outputs: usize,
    inputs: usize,
    format: BlockFormat,
    panel_bytes: usize,
    lines: Vec<Line>,
}

impl PackedMatrix {
    /// Repacks the blocks of a file, row after row; `None` if their number is wrong or `inputs` is not a multiple of 32
    /// (256 in the K formats).
    #[must_use]
    pub fn pack(outputs: usize, inputs: usize, format: BlockFormat, blocks: &[u8]) -> Option<Self> {
        let row_bytes = format.row_bytes(inputs).filter(|_| inputs.is_multiple_of(BLOCK_VALUES))?;
        if inputs == 0 || outputs.checked_mul(row_bytes)? != blocks.len() {
            return None;
        }
        let panel_bytes = layout::panel_bytes(format, inputs);
        let bytes = outputs.div_ceil(PANEL).checked_mul(panel_bytes)?;
        let mut packed =
            Self { outputs, inputs, format, panel_bytes, lines: vec![Line([0; 64]); bytes / size_of::<Line>()] };
        let mut panels = as_bytes_mut(&mut packed.lines).chunks_exact_mut(panel_bytes);
        for rows in blocks.chunks(PANEL * row_bytes) {
            let Some(panel) = panels.next() else { break };
            for (lane, row) in rows.chunks(row_bytes).enumerate() {
                layout::write_row(format, panel, lane, row);
            }
        }
        Some(packed)
    }

    /// Rows of the matrix.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// The format of the blocks that it was made from.
    #[must_use]
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// What it occupies: the blocks' own bytes, for a whole number of 32 outputs.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of_val(self.lines.as_slice())
    }

    /// Copies one row as f32, with the same bits as [`crate::dequantise`] of the file's blocks: a token's embedding.
    ///
    /// # Panics
    /// If there is no such row or `into` is not as wide as one.
    pub fn copy_row(&self, _isa: Isa, output: usize, into: &mut [f32]) {
        assert!(output < self.outputs && into.len() == self.inputs, "row {output}, {} values", into.len());
        let panel = self.panel(output / PANEL);
        let lane = output % PANEL;
        let bytes = |at: usize| [panel[at], panel[at + 1]];
        match self.format {
            BlockFormat::F32 => into.iter_mut().enumerate().for_each(|(k, value)| {
                let at = (k * PANEL + lane) * 4;
                *value = f32::from_le_bytes([panel[at], panel[at + 1], panel[at + 2], panel[at + 3]]);
            }),
            BlockFormat::F16 => into.iter_mut().enumerate().for_each(|(k, value)| {
                let [low, high] = bytes((k * PANEL + lane) * 2);
                *value = half_to_f32(low, high);
            }),
            BlockFormat::Bf16 => into.iter_mut().enumerate().for_each(|(k, value)| {
                let pair = bytes((k / 2 * PANEL + lane) * 4 + k % 2 * 2);
                *value = f32::from_bits(u32::from(u16::from_le_bytes(pair)) << 16);
            }),
            format => {
                for (index, into) in into.as_chunks_mut().0.iter_mut().enumerate() {
                    *into = layout::read_block(format, panel, lane, index).values(format);
                }
            }
        }
    }

    /// How many panels of 32 outputs there are; the last may be partly padding.
    pub(crate) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// The stream of one panel, aligned to 64 bytes.
    pub(crate) fn panel(&self, index: usize) -> &[u8] {
        &as_bytes(&self.lines)[index * self.panel_bytes..][..self.panel_bytes]
    }
}

fn as_bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a `Line` is 64 bytes without padding, and any byte may be read.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn as_bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: a `Line` is 64 bytes without padding, of which any value is one; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dequantise;
    use crate::quantised::tests::random_blocks;

    #[test]
    fn packing_loses_nothing() {
        for format in BlockFormat::ALL {
            for (outputs, inputs) in [(1, 256), (33, 512), (64, 768), (95, 256)] {
                let blocks = random_blocks(format, outputs * inputs / format.block_values(), 7);
                let packed = PackedMatrix::pack(outputs, inputs, format, &blocks).unwrap();
                let (mut row, mut expected) = (vec![0.0f32; inputs], vec![0.0f32; inputs]);
                for output in 0..outputs {
                    let bytes = format.row_bytes(inputs).unwrap();
                    dequantise(Isa::plain(), format, &blocks[output * bytes..][..bytes], &mut expected);
                    packed.copy_row(Isa::detect(), output, &mut row);
                    let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                    assert!(bits(&row) == bits(&expected), "{format:?} {outputs} x {inputs} row {output}");
                }
            }
        }
    }

    #[test]
    fn packing_adds_no_bytes_but_the_padding() {
        for format in BlockFormat::ALL {
            let blocks = random_blocks(format, 64 * 512 / format.block_values(), 7);
            let packed = PackedMatrix::pack(64, 512, format, &blocks).unwrap();
            // Sub-scales of the K formats grow from 6 to 8 bits: 4 bytes in 144 or 176.
            let grown = if matches!(format, BlockFormat::Q4_K | BlockFormat::Q5_K) { 128 * 4 } else { 0 };
            assert_eq!(packed.memory_bytes(), blocks.len() + grown, "{format:?}");
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(PackedMatrix::pack(1, 48, BlockFormat::Q8_0, &[0; 51]).is_none());
        assert!(PackedMatrix::pack(1, 128, BlockFormat::Q4_K, &[0; 144]).is_none());
        assert!(PackedMatrix::pack(2, 32, BlockFormat::Q8_0, &[0; 67]).is_none());
        assert!(PackedMatrix::pack(usize::MAX, 32, BlockFormat::F32, &[]).is_none());
        assert!(PackedMatrix::pack(3, 0, BlockFormat::F32, &[]).is_none());
    }
}
