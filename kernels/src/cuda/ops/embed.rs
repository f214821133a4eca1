//! The embedding of each token into the residual stream, out of a table in any format of weights: `cuda/embed.cu`.

use crate::Isa;
use crate::cuda::kernel::fatbin;
use crate::cuda::repack::{WeightFormat, repack};
use crate::cuda::selftest::{Buffers, Case, Random, worst};
use crate::cuda::{CudaError, Device, DeviceRange, Kernel, Launch, Module, Stream};
use crate::quantised::{BlockFormat, dequantise};

const THREADS: u32 = 128;
/// What the sampling kernel answers if there is nothing to draw from.
const NOTHING: u32 = u32::MAX;
/// In place of a token: the rest of the number says which draw of the last sampling is meant.
pub const UNSEEN: u32 = 1 << 31;

/// The kernel on one device, for one format.
#[derive(Clone, Debug)]
pub struct Embed {
    format: WeightFormat,
    kernel: Kernel,
}

/// What one launch works on.
#[derive(Clone, Copy, Debug)]
pub struct EmbedArgs {
    /// f32 `[rows_max, width]`, written.
    pub stream: DeviceRange,
    /// `[vocabulary, width]`, repacked.
    pub table: DeviceRange,
    /// u32 `[rows_max]`, each below the vocabulary, or [`UNSEEN`] and the number of a draw.
    pub tokens: DeviceRange,
    /// [`super::sample::SampledRow`] `[draws_max]`: what was drawn last.
    pub drawn: DeviceRange,
    /// Draws that there is room for; none is named beyond them.
    pub draws_max: usize,
    /// u32: how many rows there are.
    pub rows: DeviceRange,
    /// Rows of the launch.
    pub rows_max: usize,
    /// Rows of the table.
    pub vocabulary: usize,
    /// Columns.
    pub width: usize,
}

impl Embed {
    /// Loads the kernel of a format.
    ///
    /// # Errors
    /// If the device cannot run it.
    pub fn load(device: &Device, format: WeightFormat) -> Result<Self, CudaError> {
        let module = Module::load(device, fatbin!("embed"))?;
        Ok(Self { format, kernel: module.kernel(&format!("embed_{}", format.name()), 0)? })
    }

    /// Runs it on `stream`.
    ///
    /// # Errors
    /// If a buffer is too short or the format has no such width.
    pub fn launch(&self, stream: &Stream, args: &EmbedArgs) -> Result<(), CudaError> {
        let EmbedArgs { rows_max, width, vocabulary, .. } = *args;
        let no_such = |value| CudaError::Shape { what: "embedding: no table of this width or so large", value };
        let table_bytes = self.format.packed_bytes(vocabulary, width).ok_or(no_such(width))?;
        let grid = u32::try_from(rows_max).map_err(|_| no_such(rows_max))?;
        let columns = u32::try_from(width).map_err(|_| no_such(width))?;
        let to = args.stream.for_kernel("embedding: stream", rows_max * width * 4, 4)?;
        let table = args.table.for_kernel("embedding: table", table_bytes, 16)?;
        let tokens = args.tokens.for_kernel("embedding: tokens", rows_max * 4, 4)?;
        let rows = args.rows.for_kernel("embedding: rows", 4, 4)?;
        let drawn = args.drawn.for_kernel("embedding: draws", args.draws_max * 8, 8)?;
        let tokens_max = u32::try_from(vocabulary).map_err(|_| no_such(vocabulary))?;
        let launch = Launch { grid: [grid, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
        // SAFETY: the kernel's parameters in order; every buffer is as long as `rows_max` rows take; no draw is named
        // beyond `draws_max` by the batch's rules, and the kernel keeps every token below the vocabulary.
        unsafe { stream.launch(&self.kernel, launch, &[&to, &table, &tokens, &columns, &rows, &drawn, &tokens_max]) }
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let case = |format: WeightFormat| {
        let width = if format.panel_bytes(32).is_some() { 96 } else { 512 };
        Case::new("embed", format!("{}: 5 of 9 x {width}, 37 tokens", format.name()), 0.0, move |device, seed| {
            run(device, seed, format, width)
        })
    };
    WeightFormat::ALL.into_iter().map(case).collect()
}

/// Values of the table are those that the file's blocks stand for, to the bit.
fn run(device: &Device, seed: u64, format: WeightFormat, width: usize) -> Result<f64, CudaError> {
    let (op, mut random, mut buffers) = (Embed::load(device, format)?, Random::new(seed), Buffers::new(device));
    let (vocabulary, rows, rows_max) = (37, 5, 9);
    let source = format.source();
    let blocks = blocks(&mut random, source, vocabulary * width);
    let mut packed = vec![0; format.packed_bytes(vocabulary, width).unwrap_or(0)];
    repack(source, vocabulary, width, &blocks, &mut packed)?;
    let mut table = vec![0.0; vocabulary * width];
    dequantise(Isa::plain(), source, &blocks, &mut table);
    let mut tokens: Vec<u32> = (0..rows).map(|_| random.below(vocabulary) as u32).collect();
    (tokens[0], tokens[1]) = (0, vocabulary as u32 - 1);
    // Two of them, and one that found nothing, come from draws.
    let drawn = [[NOTHING, 0], [7, u32::MAX], [tokens[3], 1], [9, 2]];
    let mut named = tokens.clone();
    (named[2], named[3], tokens[2]) = (UNSEEN, UNSEEN | 2, 0);
    let args = EmbedArgs {
        stream: buffers.empty::<f32>(rows_max * width)?,
        table: buffers.with(&packed)?,
        tokens: buffers.with_room(&named, rows_max)?,
        drawn: buffers.with(drawn.as_flattened())?,
        draws_max: drawn.len(),
        rows: buffers.with(&[rows as u32])?,
        rows_max,
        vocabulary,
        width,
    };
    op.launch(device.compute(), &args)?;
    let got: Vec<f32> = buffers.read(args.stream, rows_max * width)?;
    if got[rows * width..].iter().any(|value| value.to_bits() != u32::MAX) {
        return Ok(f64::INFINITY);
    }
    let want = tokens.iter().flat_map(|token| table[*token as usize * width..][..width].to_vec());
    Ok(worst(got[..rows * width].iter().map(|x| f64::from(*x)), want.map(f64::from)))
}

/// Blocks of any codes, with scales that are numbers.
fn blocks(random: &mut Random, format: BlockFormat, values: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (0..values / format.block_values() * format.block_bytes()).map(|_| random.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        // The high bytes of the halves that are scales; of bf16, of each value.
        let halves: &[usize] = match format {
            BlockFormat::Q4_0 | BlockFormat::Q8_0 => &[1],
            BlockFormat::Q6_K => &[209],
            BlockFormat::Bf16 => &[],
            _ => &[1, 3],
        };
        halves.iter().for_each(|at| block[*at] = 0x20 | block[*at] & 0x8f);
        if format == BlockFormat::Bf16 {
            block.iter_mut().skip(1).step_by(2).for_each(|high| *high = 0x3e | *high & 0x81);
        }
    }
    bytes
}
