//! The self-test of dense products: panels become rows with equal bits, and cuBLASLt, where it is, is near f64.

use half::bf16;

use super::{CublasLt, DenseMatmul, DenseShape, unpack};
use crate::cuda::kernel::fatbin;
use crate::cuda::ops::linear::{LinearArgs, LinearWeights, reference};
use crate::cuda::selftest::{Buffers, Case, Random, worst};
use crate::cuda::{CudaError, Device, Module, WeightFormat, cublaslt_version, repack};
use crate::quantised::BlockFormat;

/// Of the sum of sizes: as our own product in bf16, whose sums are cut as others'.
const TOLERANCE: f64 = 3e-5;
/// Columns of y before the first output; 16 bytes.
const COLUMN: usize = 4;

pub(super) fn cases() -> Vec<Case> {
    let rows = [(16, 32), (37, 96), (130, 160), (1, 288)].map(|(outputs, inputs)| {
        let name = format!("bf16 panels of {outputs} x {inputs} as rows");
        Case::new("unpack", name, 0.0, move |device, seed| rows_of_panels(device, seed, outputs, inputs))
    });
    let mut cases = Vec::from(rows);
    // Rows that there are, the least that are planned for, the most of a launch.
    if cublaslt_version().is_ok() {
        for (rows, rows_min, rows_max) in [(130, 100, 200), (128, 1, 128), (3, 2, 8), (257, 256, 300)] {
            let name = format!("bf16 {rows} rows of {rows_min} to {rows_max}");
            let run = move |device: &Device, seed| product(device, seed, rows, [rows_min, rows_max]);
            cases.push(Case::new("cublaslt", name, TOLERANCE, run));
        }
    }
    cases
}

/// Random weights and what they become on the device.
fn weights(random: &mut Random, outputs: usize, inputs: usize) -> Result<(Vec<bf16>, Vec<u8>), CudaError> {
    let values: Vec<bf16> = random.normals(outputs * inputs, 1.0).into_iter().map(bf16::from_f32).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let shape = CudaError::Shape { what: "a case's shape", value: inputs };
    let mut packed = vec![0xff; WeightFormat::Bf16.packed_bytes(outputs, inputs).ok_or(shape)?];
    repack(BlockFormat::Bf16, outputs, inputs, &bytes, &mut packed)?;
    Ok((values, packed))
}

fn rows_of_panels(device: &Device, seed: u64, outputs: usize, inputs: usize) -> Result<f64, CudaError> {
    let (mut random, mut buffers) = (Random::new(seed), Buffers::new(device));
    let (values, packed) = weights(&mut random, outputs, inputs)?;
    let data = buffers.with(&packed)?;
    let rows = buffers.empty::<bf16>(outputs * inputs)?;
    let args = LinearArgs {
        weights: LinearWeights { format: WeightFormat::Bf16, outputs, inputs, data },
        x: data,
        y: data,
        y_stride: outputs,
        y_column: 0,
        rows: data,
        rows_max: 1,
        workspace: None,
    };
    let kernel = Module::load(device, fatbin!("unpack"))?.kernel("unpack_bf16", 0)?;
    unpack(&kernel, device.compute(), &args, rows)?;
    let got: Vec<bf16> = buffers.read(rows, outputs * inputs)?;
    let is_equal = got.iter().zip(&values).all(|(got, want)| got.to_bits() == want.to_bits());
    Ok(if is_equal { 0.0 } else { f64::INFINITY })
}

fn product(device: &Device, seed: u64, rows: usize, [rows_min, rows_max]: [usize; 2]) -> Result<f64, CudaError> {
    let (outputs, inputs, y_stride) = (53, 96, 64);
    let (mut random, mut buffers) = (Random::new(seed), Buffers::new(device));
    let (values, packed) = weights(&mut random, outputs, inputs)?;
    let x: Vec<bf16> = random.normals(rows * inputs, 1.0).into_iter().map(bf16::from_f32).collect();
    let shapes = [DenseShape { outputs, inputs, y_stride }];
    let scratch = buffers.empty::<u8>(CublasLt::scratch_bytes(&shapes))?;
    let lt = CublasLt::new(device, scratch, &shapes, [rows_min, rows_max])?;
    let args = LinearArgs {
        weights: LinearWeights { format: WeightFormat::Bf16, outputs, inputs, data: buffers.with(&packed)? },
        x: buffers.with_room(&x, rows_max * inputs)?,
        y: buffers.empty::<f32>(rows_max * y_stride)?,
        y_stride,
        y_column: COLUMN,
        rows: buffers.with(&[rows as u32])?,
        rows_max: rows.max(rows_min),
        workspace: None,
    };
    let others = [
        LinearArgs { rows_max: rows_min - 1, ..args },
        LinearArgs { rows_max: rows_max + 1, ..args },
        LinearArgs { y_column: COLUMN + 1, ..args },
        LinearArgs { y_stride: y_stride + 4, ..args },
    ];
    if others.iter().any(|other| lt.takes(other)) || !lt.takes(&args) {
        return Ok(f64::INFINITY);
    }
    lt.multiply(device.compute(), &args)?;
    let all: Vec<f32> = buffers.read(args.y, rows_max * y_stride)?;
    let (w, x): (Vec<f32>, Vec<f32>) =
        (values.into_iter().map(bf16::to_f32).collect(), x.into_iter().map(bf16::to_f32).collect());
    let (want, sizes) = reference(&w, &x, inputs);
    let written = COLUMN..COLUMN + outputs;
    // What lies between the outputs of two rows is another matrix's.
    let is_kept = |(at, value): (usize, &f32)| written.contains(&(at % y_stride)) || value.to_bits() == u32::MAX;
    if !all.iter().enumerate().all(is_kept) {
        return Ok(f64::INFINITY);
    }
    let got = all.chunks(y_stride).take(rows).flat_map(|row| row[written.clone()].iter().copied().map(f64::from));
    let got = got.zip(&sizes).map(|(got, size)| got / size);
    Ok(worst(got, want.iter().zip(&sizes).map(|(want, size)| want / size)))
}
