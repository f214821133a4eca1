//! y = x Wᵀ for weights in f32 or in blocks. Blocks are turned into f32 a few rows at a time, next to their use, so that
//! both kinds give the same bits.

use rayon::prelude::*;

use crate::Isa;
use crate::dot::{LANES, Rows, dot_reference, dots};
use crate::quantised::{BLOCK_VALUES, BlockFormat, dequantise};

/// Weight rows that one task computes.
const CHUNK_OUTPUTS: usize = 32;
/// Input rows that are kept in the cache while a chunk of weights passes over them.
const INPUT_ROWS: usize = 32;

/// A weight matrix `[outputs, inputs]`.
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    data: Data,
}

enum Data {
    F32(Vec<f32>),
    Blocks(BlockFormat, Vec<u8>),
}

impl Matrix {
    /// From f32 values, row after row; `None` if their number is wrong or `inputs` is not a multiple of 16.
    #[must_use]
    pub fn from_f32(outputs: usize, inputs: usize, values: Vec<f32>) -> Option<Self> {
        let fits = inputs.is_multiple_of(LANES) && outputs.checked_mul(inputs) == Some(values.len());
        fits.then_some(Self { outputs, inputs, data: Data::F32(values) })
    }

    /// From blocks, row after row; `None` if their number is wrong or `inputs` is not a multiple of 32 (256 in the K formats).
    #[must_use]
    pub fn from_blocks(outputs: usize, inputs: usize, format: BlockFormat, bytes: Vec<u8>) -> Option<Self> {
        let expected = format.row_bytes(inputs).and_then(|row_bytes| outputs.checked_mul(row_bytes));
        let fits = inputs.is_multiple_of(BLOCK_VALUES) && expected == Some(bytes.len());
        fits.then_some(Self { outputs, inputs, data: Data::Blocks(format, bytes) })
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

    /// Copies one row as f32: a token's embedding.
    ///
    /// # Panics
    /// If there is no such row or `out` is not as wide as one.
    pub fn copy_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        assert!(row < self.outputs && out.len() == self.inputs);
        match &self.data {
            Data::F32(_) => out.copy_from_slice(self.rows(isa, row, 1, &mut Vec::new())),
            Data::Blocks(format, bytes) => dequantise(isa, *format, self.row_bytes(*format, bytes, row, 1), out),
        }
    }

    /// Rows as f32, through `scratch` if they are in blocks.
    fn rows<'a>(&'a self, isa: Isa, first: usize, count: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        match &self.data {
            Data::F32(values) => &values[first * self.inputs..][..count * self.inputs],
            Data::Blocks(format, bytes) => {
                scratch.resize(count * self.inputs, 0.0);
                dequantise(isa, *format, self.row_bytes(*format, bytes, first, count), scratch);
                scratch
            }
        }
    }

    /// Weight rows to pass over the inputs together. With few inputs the weights' way from memory decides: f32 is read as
    /// one stream (a third faster than as four, one input on a 2-core EPYC), blocks stay in the first-level cache once
    /// they are f32. With many inputs each block is made f32 once.
    fn tile_outputs(&self, rows: usize) -> usize {
        match (&self.data, rows) {
            (Data::F32(_), ..=4) => 1,
            (_, ..=8) => 4,
            _ => CHUNK_OUTPUTS,
        }
    }

    fn row_bytes<'a>(&self, format: BlockFormat, bytes: &'a [u8], first: usize, count: usize) -> &'a [u8] {
        let row_bytes = self.inputs / format.block_values() * format.block_bytes();
        &bytes[first * row_bytes..][..count * row_bytes]
    }
}

/// Multiplies `x` `[rows, inputs]` with matrices of equal `inputs`; row r of `y` `[rows, sum of outputs]` is their results
/// one after the other. `scratch` keeps its memory from call to call.
///
/// # Panics
/// If a shape is wrong.
pub fn matmul(isa: Isa, matrices: &[&Matrix], x: &[f32], rows: usize, y: &mut [f32], scratch: &mut Vec<f32>) {
    let outputs: usize = matrices.iter().map(|matrix| matrix.outputs).sum();
    assert!(y.len() == rows * outputs && matrices.iter().all(|matrix| x.len() == rows * matrix.inputs));
    match rows {
        0 => {}
        1 => multiply(isa, matrices, x, rows, y),
        _ => {
            scratch.resize(y.len(), 0.0);
            multiply(isa, matrices, x, rows, scratch);
            transpose(scratch, rows, y);
        }
    }
}

/// What [`matmul`] computes, one dot product at a time.
pub fn matmul_reference(matrices: &[&Matrix], x: &[f32], rows: usize, y: &mut [f32]) {
    let outputs: usize = matrices.iter().map(|matrix| matrix.outputs).sum();
    for row in 0..rows {
        let mut column = 0;
        for matrix in matrices {
            let mut weights = vec![0.0; matrix.inputs];
            for output in 0..matrix.outputs {
                matrix.copy_row(Isa::plain(), output, &mut weights);
                y[row * outputs + column] = dot_reference(&weights, &x[row * matrix.inputs..][..matrix.inputs]);
                column += 1;
            }
        }
    }
}

/// Writes `[outputs, rows]`.
fn multiply(isa: Isa, matrices: &[&Matrix], x: &[f32], rows: usize, mut out: &mut [f32]) {
    let mut tasks = Vec::new();
    for matrix in matrices {
        for first in (0..matrix.outputs).step_by(CHUNK_OUTPUTS) {
            let count = CHUNK_OUTPUTS.min(matrix.outputs - first);
            let (task, rest) = out.split_at_mut(count * rows);
            tasks.push((*matrix, first, task));
            out = rest;
        }
    }
    tasks.into_par_iter().for_each_init(Vec::new, |scratch, (matrix, first, out)| {
        let tile_outputs = matrix.tile_outputs(rows);
        for (tile, out) in out.chunks_mut(tile_outputs * rows).enumerate() {
            let count = out.len() / rows;
            let weights = matrix.rows(isa, first + tile * tile_outputs, count, scratch);
            let weights = Rows::new(weights, matrix.inputs, count, matrix.inputs);
            for row in (0..rows).step_by(INPUT_ROWS) {
                let inputs = INPUT_ROWS.min(rows - row);
                let inputs = Rows::new(&x[row * matrix.inputs..], matrix.inputs, inputs, matrix.inputs);
                dots(isa, weights, inputs, &mut out[row..], rows);
            }
        }
    });
}

/// `[columns, rows]` to `[rows, columns]`, a cache line of rows at a time.
fn transpose(from: &[f32], rows: usize, to: &mut [f32]) {
    let columns = from.len() / rows;
    to.par_chunks_mut(LANES * columns).enumerate().for_each(|(band, to)| {
        let band_rows = to.len() / columns;
        for column in 0..columns {
            let line = &from[column * rows + band * LANES..][..band_rows];
            for (row, value) in line.iter().enumerate() {
                to[row * columns + column] = *value;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dot::tests::values;

    fn blocks(format: BlockFormat, count: usize, seed: u64) -> Vec<u8> {
        let scale = half::f16::from_f32(0.01).to_bits().to_le_bytes();
        let mut bytes: Vec<u8> =
            values(seed, count * format.block_bytes()).iter().map(|value| (value * 127.0) as i8 as u8).collect();
        for block in bytes.chunks_mut(format.block_bytes()) {
            block[..2].copy_from_slice(&scale);
            if format == BlockFormat::Q4_1 {
                block[2..4].copy_from_slice(&scale);
            }
        }
        bytes
    }

    #[test]
    fn equals_the_reference_whatever_the_batch() {
        let inputs = 96;
        let matrices = [
            Matrix::from_f32(67, inputs, values(1, 67 * inputs)),
            Matrix::from_blocks(33, inputs, BlockFormat::Q4_1, blocks(BlockFormat::Q4_1, 33 * 3, 2)),
            Matrix::from_blocks(40, inputs, BlockFormat::Q8_0, blocks(BlockFormat::Q8_0, 40 * 3, 3)),
            Matrix::from_blocks(5, inputs, BlockFormat::Q4_0, blocks(BlockFormat::Q4_0, 5 * 3, 4)),
        ]
        .map(Option::unwrap);
        let matrices: Vec<&Matrix> = matrices.iter().collect();
        let outputs = 67 + 33 + 40 + 5;
        let x = values(9, 77 * inputs);
        let mut expected = vec![0.0; 77 * outputs];
        matmul_reference(&matrices, &x, 77, &mut expected);
        for isa in Isa::available() {
            for (first, rows) in [(0, 1), (5, 1), (3, 7), (10, 20), (0, 77)] {
                let mut y = vec![0.0; rows * outputs];
                matmul(isa, &matrices, &x[first * inputs..][..rows * inputs], rows, &mut y, &mut Vec::new());
                assert!(y == expected[first * outputs..][..rows * outputs], "{isa:?} rows {first} + {rows}");
            }
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(Matrix::from_f32(2, 17, vec![0.0; 34]).is_none());
        assert!(Matrix::from_f32(2, 16, vec![0.0; 31]).is_none());
        assert!(Matrix::from_blocks(1, 48, BlockFormat::Q8_0, vec![0; 51]).is_none());
        assert!(Matrix::from_f32(usize::MAX, 32, Vec::new()).is_none());
    }
}
