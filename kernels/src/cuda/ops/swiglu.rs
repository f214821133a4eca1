//! The gate of the feed-forward network (Shazeer, 2020): `cuda/swiglu.cu`.

use half::bf16;

use crate::cuda::kernel::fatbin;
use crate::cuda::selftest::{Buffers, Case, Random, worst};
use crate::cuda::{CudaError, Device, DeviceRange, Kernel, Launch, Module, Stream};

const THREADS: u32 = 256;

/// The kernel on one device.
#[derive(Debug)]
pub struct Swiglu {
    swiglu: Kernel,
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct SwigluArgs {
    /// bf16 `[rows, width]`, written.
    pub out: DeviceRange,
    /// f32 `[rows, 2 · width]`: gates, then up values.
    pub gate_up: DeviceRange,
    /// One u32: how many rows there are, at most `rows_max`.
    pub rows: DeviceRange,
    /// Rows that there is room for.
    pub rows_max: u32,
    /// A multiple of 4.
    pub width: u32,
}

impl Swiglu {
    /// # Errors
    /// If the device cannot run it.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, fatbin!("swiglu"))?;
        Ok(Self { swiglu: module.kernel("swiglu", 0)? })
    }

    /// # Errors
    /// If a buffer is too short or the driver refuses.
    pub fn launch(&self, stream: &Stream, op: &SwigluArgs) -> Result<(), CudaError> {
        if !op.width.is_multiple_of(4) {
            return Err(CudaError::Shape { what: "gate: a width that is no multiple of 4", value: op.width as usize });
        }
        let values = op.rows_max as usize * op.width as usize;
        let out = op.out.for_kernel("gate: out", values * 2, 16)?;
        let gate_up = op.gate_up.for_kernel("gate: gate and up", values * 8, 16)?;
        let count = op.rows.for_kernel("gate: rows", 4, 4)?;
        let grid = [op.width.div_ceil(4 * THREADS), op.rows_max.min(65_535), 1];
        let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
        // SAFETY: every buffer is as long as `rows_max` rows take.
        unsafe { stream.launch(&self.swiglu, launch, &[&out, &gate_up, &op.width, &count]) }
    }
}

/// The reference, in f64.
#[must_use]
pub fn swiglu(gate_up: &[f32], width: usize) -> Vec<f64> {
    let row = |row: &[f32]| {
        let (gates, ups) = (row[..width].to_vec(), row[width..].to_vec());
        gates.into_iter().zip(ups).map(|(gate, up)| {
            let gate = f64::from(gate);
            gate / (1.0 + (-gate).exp()) * f64::from(up)
        })
    };
    gate_up.chunks_exact(2 * width).flat_map(row).collect()
}

/// bf16 rounds by at most 2^-8 of a value; the exponential of a device adds 2^-21.
const TOLERANCE: f64 = 0.003_922;

pub(crate) fn cases() -> Vec<Case> {
    let shapes = [(1, 1, 32), (3, 5, 96), (2, 2, 1500), (0, 2, 64)];
    let case = |(rows, rows_max, width)| {
        Case::new("swiglu", format!("{rows} of {rows_max} x {width}"), TOLERANCE, move |device, seed| {
            run(device, seed, rows, rows_max, width)
        })
    };
    shapes.into_iter().map(case).collect()
}

fn run(device: &Device, seed: u64, rows: usize, rows_max: usize, width: usize) -> Result<f64, CudaError> {
    let (op, mut random, mut buffers) = (Swiglu::load(device)?, Random::new(seed), Buffers::new(device));
    let mut gate_up = random.normals(rows * 2 * width, 4.0);
    for (at, hostile) in
        [-200.0, 200.0, f32::INFINITY, f32::NAN, -90.0, 0.0].into_iter().enumerate().take(gate_up.len())
    {
        gate_up[at] = hostile;
    }
    let args = SwigluArgs {
        out: buffers.empty::<bf16>(rows_max * width)?,
        gate_up: buffers.with_room(&gate_up, rows_max * 2 * width)?,
        rows: buffers.with(&[rows as u32])?,
        rows_max: rows_max as u32,
        width: width as u32,
    };
    op.launch(device.compute(), &args)?;
    let got: Vec<bf16> = buffers.read(args.out, rows_max * width)?;
    if got[rows * width..].iter().any(|value| value.to_bits() != 0xffff) {
        return Ok(f64::INFINITY);
    }
    let want = swiglu(&gate_up, width);
    Ok(worst(got[..rows * width].iter().map(|x| x.to_f64()), want))
}
