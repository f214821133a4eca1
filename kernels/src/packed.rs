//! Weights of a matrix repacked at load for the products of `gemm.rs`: without loss, in one sequential stream for each 32
//! outputs. Not here: the products, and what the file's blocks mean (`quantised.rs`).

mod layout;

pub(crate) use layout::{Layout, PANEL, formats, panel_bytes};

use std::ops::Range;
use std::sync::Arc;

use crate::Team;
use crate::memory::Memory;
use crate::pool::SharedMut;
use crate::quantised::{BLOCK_VALUES, BlockFormat, half_to_f32};

/// Tokens whose embeddings one tile copies: about 10 µs.
const EMBED_ROWS: usize = 8;

/// A weight matrix `[outputs, inputs]`, repacked.
pub struct PackedMatrix {
    outputs: usize,
    inputs: usize,
    format: BlockFormat,
    panel_bytes: usize,
    memory: Arc<Memory>,
    /// In the memory; begins at a cache line.
    range: Range<usize>,
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
        let mut memory = Memory::new(bytes);
        let panels = memory.bytes_mut()[..bytes].chunks_exact_mut(panel_bytes);
        for (panel, rows) in panels.zip(blocks.chunks(PANEL * row_bytes)) {
            for (lane, row) in rows.chunks(row_bytes).enumerate() {
                layout::write_row(format, panel, lane, row);
            }
        }
        Some(Self { outputs, inputs, format, panel_bytes, memory: Arc::new(memory), range: 0..bytes })
    }

    /// Moves matrices next to each other, in this order: to be called with those that a step reads one after the other, as
    /// many as there is memory for twice. Then they lie in huge pages, which few matrices fill alone, and the end of one is
    /// read while the beginning of the next is fetched.
    pub fn gather<'a>(matrices: impl IntoIterator<Item = &'a mut Self>) {
        let matrices: Vec<&mut Self> = matrices.into_iter().collect();
        let mut memory = Memory::new(matrices.iter().map(|matrix| matrix.range.len()).sum());
        let mut end = 0;
        let ranges: Vec<Range<usize>> = matrices
            .iter()
            .map(|matrix| {
                let range = end..end + matrix.range.len();
                memory.bytes_mut()[range.clone()].copy_from_slice(matrix.bytes());
                end = range.end;
                range
            })
            .collect();
        let memory = Arc::new(memory);
        for (matrix, range) in matrices.into_iter().zip(ranges) {
            (matrix.memory, matrix.range) = (Arc::clone(&memory), range);
        }
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
        self.range.len()
    }

    /// The packed weights in the order in which products read them: see [`crate::Team::upcoming`].
    #[must_use]
    pub fn stream(&self) -> &[u8] {
        self.bytes()
    }

    /// Copies one row as f32, with the same bits as [`crate::dequantise`] of the file's blocks: a token's embedding.
    ///
    /// # Panics
    /// If there is no such row or `into` is not as wide as one.
    pub fn copy_row(&self, output: usize, into: &mut [f32]) {
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
        &self.bytes()[index * self.panel_bytes..][..self.panel_bytes]
    }

    fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.range.clone()]
    }
}

/// Copies the rows of these tokens, `[tokens, inputs]`: their embeddings.
///
/// # Panics
/// If there is no such row or the lengths do not belong together.
pub fn embed_rows(team: &Team<'_>, table: &PackedMatrix, tokens: &[u32], into: &mut [f32]) {
    let width = table.inputs();
    assert!(into.len() == tokens.len() * width, "{} tokens of {width} in {} values", tokens.len(), into.len());
    let into = SharedMut::new(into);
    team.tiles(tokens.len().div_ceil(EMBED_ROWS), |_, tile| {
        let first = tile * EMBED_ROWS;
        for (index, token) in tokens.iter().enumerate().skip(first).take(EMBED_ROWS) {
            // SAFETY: each token's row is in one tile.
            table.copy_row(*token as usize, unsafe { into.slice(index * width..(index + 1) * width) });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
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
                    packed.copy_row(output, &mut row);
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
    fn gathering_moves_and_changes_nothing() {
        let make = |outputs: usize| {
            let blocks = random_blocks(BlockFormat::Q5_0, outputs * 3, outputs as u64);
            PackedMatrix::pack(outputs, 96, BlockFormat::Q5_0, &blocks).unwrap()
        };
        let (mut some, same) = ([make(40), make(1), make(64)], [make(40), make(1), make(64)]);
        PackedMatrix::gather(&mut some);
        for (matrix, same) in some.iter().zip(&same) {
            assert!(matrix.bytes() == same.bytes() && matrix.bytes().as_ptr().addr().is_multiple_of(64));
        }
        assert_eq!(some[0].bytes().as_ptr_range().end, some[1].bytes().as_ptr());
        PackedMatrix::gather(&mut some[..0]);
        let [_, mut one, _] = some;
        PackedMatrix::gather([&mut one]);
        assert!(one.bytes() == same[1].bytes());
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
