//! The self-test of linear layers: values against f64, and equal bits however a launch is cut.

use half::bf16;

use super::{Linear, LinearArgs, LinearWeights, Plan, Tile, reference, slices};
use crate::Isa;
use crate::cuda::selftest::{Buffers, Case, Random, worst};
use crate::cuda::{CudaError, Device, WeightFormat, repack};
use crate::quantised::{BlockFormat, dequantise};

/// Of the sum of sizes: f32 sums of up to 2,048 products. Integers are scaled once for each 32 inputs, bf16 never, so that
/// there every step of the tensor cores may round (or cut off) the sum.
const TOLERANCE: f64 = 4e-6;
const TOLERANCE_BF16: f64 = 3e-5;

/// Columns before and after those that are written.
const MARGIN: usize = 3;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for format in WeightFormat::ALL {
        let k = format.source().block_values() == 256;
        let tolerance = if format == WeightFormat::Bf16 { TOLERANCE_BF16 } else { TOLERANCE };
        // Rows, rows of the launch, outputs, inputs.
        let shapes = [
            (1, 1, 16, if k { 256 } else { 32 }),
            (7, 8, 37, if k { 512 } else { 96 }),
            (9, 16, 130, if k { 256 } else { 576 }),
            (8, 8, 48, if k { 256 } else { 64 }),
            (33, 64, 16, if k { 256 } else { 32 }),
            (0, 8, 32, 256),
        ];
        for shape @ (rows, rows_max, outputs, inputs) in shapes {
            let name = format!("{} {rows} of {rows_max} x {outputs} x {inputs}", format.name());
            let run = move |device: &Device, seed| values(device, seed, format, shape);
            cases.push(Case::new("linear", name, tolerance, run));
        }
        let name = format!("{} equal bits however it is cut", format.name());
        // Three slices of three tiles and five of two, or nothing but whole stages and one half of one.
        let shape = (33, 40, 53, if k { 768 } else { 608 });
        cases.push(Case::new("linear", name, 0.0, move |device, seed| cuts(device, seed, format, shape)));
        // Slices of ten or eleven tiles: more than a warp has under way.
        let name = format!("{} equal bits in long slices", format.name());
        let shape = (9, 9, 21, if k { 2560 } else { 2656 });
        cases.push(Case::new("linear", name, 0.0, move |device, seed| cuts(device, seed, format, shape)));
    }
    // Two blocks of the kernel for prompts either way, the second with little in it; slices of two and three tiles, more than
    // the ring has stages.
    let run = |device: &Device, seed| cuts(device, seed, WeightFormat::Bf16, (130, 137, 261, 160));
    cases.push(Case::new("linear", "bf16 equal bits for a prompt", 0.0, run));
    cases
}

/// A matrix of random blocks: its device form and its values.
struct Base {
    packed: Vec<u8>,
    values: Vec<f32>,
}

impl Base {
    fn random(random: &mut Random, format: WeightFormat, outputs: usize, inputs: usize) -> Result<Self, CudaError> {
        let source = format.source();
        let mut blocks = Vec::new();
        for _ in 0..outputs * inputs / source.block_values() {
            blocks.extend(block(random, source));
        }
        let mut values = vec![0.0; outputs * inputs];
        dequantise(Isa::plain(), source, &blocks, &mut values);
        let shape = CudaError::Shape { what: "a case's shape", value: inputs };
        let mut packed = vec![0xff; format.packed_bytes(outputs, inputs).ok_or(shape)?];
        repack(source, outputs, inputs, &blocks, &mut packed)?;
        Ok(Self { packed, values })
    }
}

/// Random codes, and scales that make weights of about 1.
fn block(random: &mut Random, format: BlockFormat) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..format.block_bytes()).map(|_| random.bits() as u8).collect();
    let mut scale = |at: usize, size: f32| {
        bytes[at..at + 2].copy_from_slice(&half::f16::from_f32(random.normal(size)).to_le_bytes());
    };
    match format {
        BlockFormat::Q4_0 => scale(0, 0.1),
        BlockFormat::Q4_1 => {
            scale(0, 0.1);
            scale(2, 0.5);
        }
        BlockFormat::Q8_0 => scale(0, 0.01),
        BlockFormat::Q4_K | BlockFormat::Q5_K => {
            scale(0, 0.003);
            scale(2, 0.03);
        }
        BlockFormat::Q6_K => scale(208, 0.0003),
        _ => bytes.copy_from_slice(&bf16::from_f32(random.normal(1.0)).to_le_bytes()),
    }
    bytes
}

/// One launch's data, its buffers exactly as long as they must be.
struct Setup<'a> {
    op: Linear,
    buffers: Buffers<'a>,
    args: LinearArgs,
    x: Vec<f32>,
    base: Base,
    rows: usize,
}

impl<'a> Setup<'a> {
    fn new(
        device: &'a Device,
        seed: u64,
        format: WeightFormat,
        (rows, rows_max, outputs, inputs): (usize, usize, usize, usize),
    ) -> Result<Self, CudaError> {
        let (op, mut random, mut buffers) = (Linear::load(device)?, Random::new(seed), Buffers::new(device));
        let base = Base::random(&mut random, format, outputs, inputs)?;
        let x: Vec<bf16> = random.normals(rows * inputs, 1.0).into_iter().map(bf16::from_f32).collect();
        let y_stride = outputs + 2 * MARGIN;
        let args = LinearArgs {
            weights: LinearWeights { format, outputs, inputs, data: buffers.with(&base.packed)? },
            x: buffers.with_room(&x, rows_max * inputs)?,
            y: buffers.empty::<f32>(rows_max * y_stride)?,
            y_stride,
            y_column: MARGIN,
            rows: buffers.with(&[rows as u32])?,
            rows_max,
            workspace: Some(buffers.empty::<f32>(slices(outputs, inputs) * rows_max * outputs)?),
        };
        Ok(Self { op, buffers, args, x: x.into_iter().map(bf16::to_f32).collect(), base, rows })
    }

    /// The outputs of the rows that there are; `None` if anything else was written.
    fn outputs(&self) -> Result<Option<Vec<f32>>, CudaError> {
        let LinearArgs { y, y_stride, rows_max, .. } = self.args;
        let all: Vec<u32> = self.buffers.read(y, rows_max * y_stride)?;
        let mut outputs = Vec::new();
        for (row, values) in all.chunks(y_stride).enumerate() {
            let written = MARGIN..if row < self.rows { y_stride - MARGIN } else { MARGIN };
            let is_kept = |(column, bits): (usize, &u32)| written.contains(&column) || *bits == u32::MAX;
            if !values.iter().enumerate().all(is_kept) {
                return Ok(None);
            }
            outputs.extend(values[written.clone()].iter().map(|bits| f32::from_bits(*bits)));
        }
        Ok(Some(outputs))
    }
}

fn values(
    device: &Device,
    seed: u64,
    format: WeightFormat,
    shape: (usize, usize, usize, usize),
) -> Result<f64, CudaError> {
    let setup = Setup::new(device, seed, format, shape)?;
    setup.op.launch(device.compute(), &setup.args)?;
    Ok(setup.outputs()?.map_or(f64::INFINITY, |outputs| error_of(&setup, &outputs)))
}

fn error_of(setup: &Setup<'_>, outputs: &[f32]) -> f64 {
    let (want, sizes) = reference(&setup.base.values, &setup.x, setup.args.weights.inputs);
    let got = outputs.iter().zip(&sizes).map(|(got, size)| f64::from(*got) / size);
    worst(got, want.iter().zip(&sizes).map(|(want, size)| want / size))
}

/// Every tile, slices in one block and in several, and the last row alone: the same bits, and near the reference.
fn cuts(
    device: &Device,
    seed: u64,
    format: WeightFormat,
    shape @ (rows, _, columns, inputs): (usize, usize, usize, usize),
) -> Result<f64, CudaError> {
    let setup = Setup::new(device, seed, format, shape)?;
    let mut first: Option<Vec<f32>> = None;
    let tiles = Tile::OF_EVERY_FORMAT.into_iter().chain([Tile::Rows128]).filter(|tile| setup.op.has(format, *tile));
    for tile in tiles {
        for is_spread in [false, true] {
            if matches!(tile, Tile::Rows8 | Tile::Rows128) && is_spread {
                continue;
            }
            device.compute().fill(setup.args.y, 0xff)?;
            setup.op.launch_as(device.compute(), &setup.args, Plan { tile, is_spread })?;
            let Some(outputs) = setup.outputs()? else { return Ok(f64::INFINITY) };
            let first = first.get_or_insert_with(|| outputs.clone());
            if !same_bits(first, &outputs) {
                return Ok(f64::INFINITY);
            }
        }
    }
    let outputs = first.unwrap_or_default();
    // The last row where the first one was.
    let (x, one) = (setup.args.x.part((rows - 1) * inputs * 2, inputs * 2)?, setup.args.rows.part(0, 4)?);
    device.compute().upload_now(&[1_u32], one)?;
    device.compute().fill(setup.args.y, 0xff)?;
    setup.op.launch(device.compute(), &LinearArgs { x, rows_max: 1, ..setup.args })?;
    let alone: Vec<f32> = setup.buffers.read(setup.args.y, MARGIN + columns)?;
    let is_equal = same_bits(&alone[MARGIN..], &outputs[(rows - 1) * columns..]);
    let is_near = error_of(&setup, &outputs) <= if format == WeightFormat::Bf16 { TOLERANCE_BF16 } else { TOLERANCE };
    Ok(if is_equal && is_near { 0.0 } else { f64::INFINITY })
}

fn same_bits(one: &[f32], two: &[f32]) -> bool {
    one.len() == two.len() && one.iter().zip(two).all(|(one, two)| one.to_bits() == two.to_bits())
}
