//! Weights of a matrix repacked at load for the products of `gemm.rs`: without loss, in one sequential stream for each 32
//! outputs. Not here: the products, and what the file's blocks mean (`quantised.rs`).

mod layout;

pub(crate) use layout::{Layout, PANEL, formats, panel_bytes};

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
    /// Where the first panel is in the memory, and how far the others are from each other: whole cache lines.
    first: usize,
    stride: usize,
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
        Some(Self { outputs, inputs, format, panel_bytes, memory: Arc::new(memory), first: 0, stride: panel_bytes })
    }

    /// Moves matrices next to each other, in this order: to be called with those that a step reads one after the other, as
    /// many as there is memory for twice. Then they lie in huge pages, which few matrices fill alone, and the end of one is
    /// read while the beginning of the next is fetched. The panels of those that come together alternate, as
    /// [`matmul_lora_gated`](crate::matmul_lora_gated) reads them.
    ///
    /// # Panics
    /// If matrices that come together have different numbers of panels.
    pub fn gather<'a>(matrices: impl IntoIterator<Item = &'a mut [Self]>) {
        let groups: Vec<&mut [Self]> = matrices.into_iter().collect();
        let mut memory = Memory::new(groups.iter().flat_map(|group| group.iter()).map(Self::memory_bytes).sum());
        let mut end = 0;
        let mut firsts = Vec::with_capacity(groups.len());
        for group in &groups {
            firsts.push(end);
            let panels = group.first().map_or(0, Self::panels);
            assert!(group.iter().all(|matrix| matrix.panels() == panels), "{panels} panels and others");
            for (panel, matrix) in (0..panels).flat_map(|panel| group.iter().map(move |matrix| (panel, matrix))) {
                memory.bytes_mut()[end..end + matrix.panel_bytes].copy_from_slice(matrix.panel(panel));
                end += matrix.panel_bytes;
            }
        }
        let memory = Arc::new(memory);
        for (group, mut first) in groups.into_iter().zip(firsts) {
            let stride = group.iter().map(|matrix| matrix.panel_bytes).sum();
            for matrix in group {
                (matrix.memory, matrix.first, matrix.stride) = (Arc::clone(&memory), first, stride);
                first += matrix.panel_bytes;
            }
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
        self.panels() * self.panel_bytes
    }

    /// The packed weights in the order in which products read them, with those of other matrices that alternate with them: see
    /// [`crate::Team::upcoming`].
    #[must_use]
    pub fn stream(&self) -> &[u8] {
        let len = self.panels().checked_sub(1).map_or(0, |last| last * self.stride + self.panel_bytes);
        &self.memory.bytes()[self.first..][..len]
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
        assert!(index < self.panels());
        &self.memory.bytes()[self.first + index * self.stride..][..self.panel_bytes]
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
        let (mut some, same) = ([40, 1, 64, 33].map(make), [40, 1, 64, 33].map(make));
        let equal = |matrix: &PackedMatrix, same: &PackedMatrix| {
            let panels = (0..same.panels()).map(|panel| (matrix.panel(panel), same.panel(panel)));
            panels.into_iter().all(|(panel, same)| panel == same && panel.as_ptr().addr().is_multiple_of(64))
                && matrix.memory_bytes() == same.memory_bytes()
        };
        let (apart, together) = some.split_at_mut(2);
        PackedMatrix::gather(apart.chunks_mut(1).chain([together]));
        assert!(some.iter().zip(&same).all(|(matrix, same)| equal(matrix, same)));
        assert_eq!(some[0].stream().as_ptr_range().end, some[1].stream().as_ptr());
        assert_eq!(some[1].stream().as_ptr_range().end, some[2].stream().as_ptr());
        for panel in 0..2 {
            assert_eq!(some[2].panel(panel).as_ptr_range().end, some[3].panel(panel).as_ptr());
        }
        assert_eq!(some[3].panel(0).as_ptr_range().end, some[2].panel(1).as_ptr());
        PackedMatrix::gather([&mut some[..0]]);
        let [_, mut one, _, mut other] = some;
        PackedMatrix::gather([std::slice::from_mut(&mut one), std::slice::from_mut(&mut other)]);
        assert!(equal(&one, &same[1]) && equal(&other, &same[3]));
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
