//! Where a packed panel of 32 outputs keeps what. Not here: who reads it fast (`gemm/`).
//!
//! The outputs of a panel are two vectors of 16. An integer format keeps, for each 32 inputs: the codes of vector 0, those
//! of vector 1, then the scales of both. A K format has a header with both vectors' d (and dmin) before each 8 of these.
//!
//! Codes of one vector, `bits` x 64 bytes: a dword belongs to an output and holds a *group* of 4 consecutive inputs.
//! - 4, 5 and 6 bits begin with four times 64 bytes: low halves are groups 0 to 3, high halves groups 4 to 7.
//! - 5 bits add a 64-bit word for each group: bit i is the fifth bit of byte i.
//! - 6 bits add two times 64 bytes: groups 0 to 3 and 4 to 7, two bits each, group 0 and 4 lowest.
//! - 8 bits are eight times 64 bytes.
//!
//! The scales of both vectors: d of 32 outputs and then, where there is one, m (f16); in a K format one byte each for
//! [`Block::sub`] 0 of 32 outputs and then 1.
//!
//! Plain numbers: for each input the 32 outputs' values (f32, f16), or for each two inputs 32 pairs (bf16).

use crate::quantised::{BLOCK_VALUES, Block, BlockFormat};

/// Outputs of a panel.
pub(crate) const PANEL: usize = 32;
/// Outputs of a vector.
const LANES: usize = 16;

/// What an integer format consists of.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Of a code.
    pub(crate) bits: usize,
    /// What was added to signed values.
    pub(crate) offset: i32,
    /// Whether there are minima.
    pub(crate) minima: bool,
    /// Blocks of 32 that share a header, 8; or 1, and no header.
    pub(crate) shared: usize,
}

impl Shape {
    /// `None` for plain numbers.
    pub(crate) const fn of(format: BlockFormat) -> Option<Self> {
        let (bits, offset, minima, shared) = match format {
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::Bf16 => return None,
            BlockFormat::Q4_0 => (4, 8, false, 1),
            BlockFormat::Q4_1 => (4, 0, true, 1),
            BlockFormat::Q5_0 => (5, 16, false, 1),
            BlockFormat::Q5_1 => (5, 0, true, 1),
            BlockFormat::Q8_0 => (8, 128, false, 1),
            BlockFormat::Q4_K => (4, 0, true, 8),
            BlockFormat::Q5_K => (5, 0, true, 8),
            BlockFormat::Q6_K => (6, 32, false, 8),
        };
        Some(Self { bits, offset, minima, shared })
    }

    /// Of one vector in one block.
    pub(crate) const fn codes_bytes(self) -> usize {
        self.bits * 64
    }

    /// Of one block of a panel.
    pub(crate) const fn block_bytes(self) -> usize {
        2 * self.codes_bytes() + if self.shared == 1 && self.minima { 128 } else { 64 }
    }

    /// Of a header; 0 without.
    pub(crate) const fn header_bytes(self) -> usize {
        match (self.shared, self.minima) {
            (1, _) => 0,
            (_, false) => 64,
            (_, true) => 128,
        }
    }

    const fn header_at(self, block: usize) -> usize {
        block / self.shared * (self.shared * self.block_bytes() + self.header_bytes())
    }

    /// Where a block begins in its panel.
    pub(crate) const fn block_at(self, block: usize) -> usize {
        self.header_at(block) + self.header_bytes() + block % self.shared * self.block_bytes()
    }
}

/// A format as a type, so that kernels are compiled for each.
pub(crate) trait Layout {
    const SHAPE: Shape;
}

/// The integer formats as types.
pub(crate) mod formats {
    use super::{BlockFormat, Layout, Shape};

    macro_rules! formats {
        ($($name:ident $format:ident)*) => { $(
            pub(crate) enum $name {}
            impl Layout for $name {
                const SHAPE: Shape = match Shape::of(BlockFormat::$format) {
                    Some(shape) => shape,
                    None => unreachable!(),
                };
            }
        )* };
    }
    formats!(Q40 Q4_0 Q41 Q4_1 Q50 Q5_0 Q51 Q5_1 Q80 Q8_0 Q4K Q4_K Q5K Q5_K Q6K Q6_K);
}

/// Of one panel; a multiple of 64.
pub(crate) const fn panel_bytes(format: BlockFormat, inputs: usize) -> usize {
    match Shape::of(format) {
        Some(shape) => shape.block_at(inputs / BLOCK_VALUES) - shape.header_bytes(),
        None => inputs * PANEL * format.block_bytes(),
    }
}

/// Writes the row of one output into its panel.
pub(crate) fn write_row(format: BlockFormat, panel: &mut [u8], lane: usize, row: &[u8]) {
    if let Some(shape) = Shape::of(format) {
        for index in 0..row.len() / format.block_bytes() * format.block_values() / BLOCK_VALUES {
            write_block(shape, panel, lane, index, &Block::read(format, row, index));
        }
        return;
    }
    // A bf16 pair travels as one unit.
    let unit = if format == BlockFormat::F16 { 2 } else { 4 };
    for (index, value) in row.chunks_exact(unit).enumerate() {
        panel[(index * PANEL + lane) * unit..][..unit].copy_from_slice(value);
    }
}

/// Positions of one output's parts of one block in a panel.
struct Places {
    codes: usize,
    scale: usize,
    least: Option<usize>,
    sub: Option<[usize; 2]>,
}

fn places(shape: Shape, lane: usize, index: usize) -> Places {
    let block = shape.block_at(index);
    let scales = block + 2 * shape.codes_bytes();
    let (scale, sub) = match shape.shared {
        1 => (scales + 2 * lane, None),
        _ => (shape.header_at(index) + 2 * lane, Some([scales + lane, scales + PANEL + lane])),
    };
    let least = shape.minima.then_some(scale + 2 * PANEL);
    Places { codes: block + lane / LANES * shape.codes_bytes(), scale, least, sub }
}

fn write_block(shape: Shape, panel: &mut [u8], lane: usize, index: usize, block: &Block) {
    let places = places(shape, lane, index);
    let codes = &mut panel[places.codes..][..shape.codes_bytes()];
    for (k, code) in block.codes.into_iter().enumerate() {
        let (group, byte) = (k / 4, lane % LANES * 4 + k % 4);
        if shape.bits == 8 {
            codes[group * 64 + byte] = code;
            continue;
        }
        codes[group % 4 * 64 + byte] |= (code & 15) << (group / 4 * 4);
        match shape.bits {
            5 => codes[256 + group * 8 + byte / 8] |= (code >> 4) << (byte % 8),
            6 => codes[256 + group / 4 * 64 + byte] |= (code >> 4) << (group % 4 * 2),
            _ => {}
        }
    }
    panel[places.scale..][..2].copy_from_slice(&block.scale);
    if let Some(at) = places.least {
        panel[at..][..2].copy_from_slice(&block.least);
    }
    if let Some([first, second]) = places.sub {
        (panel[first], panel[second]) = (block.sub[0], block.sub[1]);
    }
}

/// One output's 32 weights, as they were written.
pub(crate) fn read_block(format: BlockFormat, panel: &[u8], lane: usize, index: usize) -> Block {
    let mut block = Block::default();
    let Some(shape) = Shape::of(format) else { return block };
    let places = places(shape, lane, index);
    let codes = &panel[places.codes..][..shape.codes_bytes()];
    for (k, code) in block.codes.iter_mut().enumerate() {
        let (group, byte) = (k / 4, lane % LANES * 4 + k % 4);
        if shape.bits == 8 {
            *code = codes[group * 64 + byte];
            continue;
        }
        *code = codes[group % 4 * 64 + byte] >> (group / 4 * 4) & 15;
        match shape.bits {
            5 => *code |= (codes[256 + group * 8 + byte / 8] >> (byte % 8) & 1) << 4,
            6 => *code |= (codes[256 + group / 4 * 64 + byte] >> (group % 4 * 2) & 3) << 4,
            _ => {}
        }
    }
    block.scale = [panel[places.scale], panel[places.scale + 1]];
    block.least = places.least.map(|at| [panel[at], panel[at + 1]]).unwrap_or_default();
    block.sub = places.sub.map(|[first, second]| [panel[first], panel[second]]).unwrap_or_default();
    block
}
