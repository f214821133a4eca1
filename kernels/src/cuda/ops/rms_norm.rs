//! RMSNorm of the residual stream, with an optional residual add before it. Kernel: `kernels/cuda/rms_norm.cu`.

use half::bf16;

use crate::cuda::kernel::fatbin;
use crate::cuda::selftest::{Buffers, Case, Random, worst};
use crate::cuda::{Argument, CudaError, Device, DevicePtr, DeviceRange, Kernel, Launch, Module, Stream};

/// Columns of a warp, and the most warps of a block.
const WARP_COLUMNS: u32 = 128;
const WARPS_MAX: u32 = 16;

/// The kernel on a device.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    kernel: Kernel,
    gather: Kernel,
}

/// What one launch works on: `rows_max` and `width` are of the launch, `rows` (≤ `rows_max`) is read on the device.
#[derive(Clone, Copy, Debug)]
pub struct RmsNormArgs {
    /// Residual stream, f32 `[rows_max, width]`; written if `added` is given.
    pub stream: DeviceRange,
    /// What is added to the stream first, f32 `[rows_max, width]`.
    pub added: Option<DeviceRange>,
    /// f32 `[width]`.
    pub weight: DeviceRange,
    /// bf16 `[rows_max, width]`.
    pub out: DeviceRange,
    /// u32: how many rows there are.
    pub rows: DeviceRange,
    /// Rows of the launch.
    pub rows_max: usize,
    /// Columns, a multiple of 4.
    pub width: usize,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What a launch for chosen rows works on.
#[derive(Clone, Copy, Debug)]
pub struct GatherNormArgs {
    /// Residual stream, f32 `[stream_rows, width]`.
    pub stream: DeviceRange,
    /// What is added to it first, f32 `[stream_rows, width]`; the stream is not written.
    pub added: Option<DeviceRange>,
    /// f32 `[width]`.
    pub weight: DeviceRange,
    /// bf16 `[rows_max, width]`.
    pub out: DeviceRange,
    /// u32 `[rows_max]`: which row of the stream, below `stream_rows`.
    pub ids: DeviceRange,
    /// u32: how many are chosen.
    pub rows: DeviceRange,
    /// Rows of the launch.
    pub rows_max: usize,
    /// Rows of the stream.
    pub stream_rows: usize,
    /// Columns, a multiple of 4.
    pub width: usize,
    /// Added to the mean square.
    pub epsilon: f32,
}

impl RmsNorm {
    /// Loads the kernel.
    ///
    /// # Errors
    /// If the device cannot run it.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, fatbin!("rms_norm"))?;
        Ok(Self { kernel: module.kernel("rms_norm", 0)?, gather: module.kernel("rms_norm_gather", 0)? })
    }

    /// Runs it on `stream`.
    ///
    /// # Errors
    /// If a buffer is too short, or the width is no multiple of 4.
    pub fn launch(&self, stream: &Stream, args: &RmsNormArgs) -> Result<(), CudaError> {
        let RmsNormArgs { rows_max, width, .. } = *args;
        let (launch, columns) = shape(rows_max, width)?;
        let values = rows_max * width;
        let x = args.stream.for_kernel("rms_norm: stream", values * 4, 16)?;
        let added = match args.added {
            Some(added) => added.for_kernel("rms_norm: added", values * 4, 16)?,
            None => DevicePtr::NULL,
        };
        let weight = args.weight.for_kernel("rms_norm: weight", width * 4, 16)?;
        let out = args.out.for_kernel("rms_norm: out", values * 2, 8)?;
        let rows = args.rows.for_kernel("rms_norm: rows", 4, 4)?;
        let inverse_width = 1.0 / width as f64;
        // SAFETY: the kernel's parameters in order; the grid has `rows_max` blocks, each of which touches its own row of
        // buffers that were found long enough above.
        unsafe {
            let args: [&dyn Argument; 8] = [&x, &added, &weight, &out, &rows, &columns, &inverse_width, &args.epsilon];
            stream.launch(&self.kernel, launch, &args)
        }
    }

    /// Runs it for chosen rows.
    ///
    /// # Errors
    /// If a buffer is too short, or the width is no multiple of 4.
    pub fn launch_gather(&self, stream: &Stream, args: &GatherNormArgs) -> Result<(), CudaError> {
        let GatherNormArgs { rows_max, width, stream_rows, .. } = *args;
        let (launch, columns) = shape(rows_max, width)?;
        let x = args.stream.for_kernel("rms_norm: stream", stream_rows * width * 4, 16)?;
        let added = match args.added {
            Some(added) => added.for_kernel("rms_norm: added", stream_rows * width * 4, 16)?,
            None => DevicePtr::NULL,
        };
        let weight = args.weight.for_kernel("rms_norm: weight", width * 4, 16)?;
        let out = args.out.for_kernel("rms_norm: out", rows_max * width * 2, 8)?;
        let ids = args.ids.for_kernel("rms_norm: chosen rows", rows_max * 4, 4)?;
        let rows = args.rows.for_kernel("rms_norm: rows", 4, 4)?;
        let inverse_width = 1.0 / width as f64;
        // SAFETY: as above; the chosen rows are those of the stream by the batch's rules.
        unsafe {
            let args: [&dyn Argument; 9] =
                [&x, &added, &weight, &out, &ids, &rows, &columns, &inverse_width, &args.epsilon];
            stream.launch(&self.gather, launch, &args)
        }
    }
}

fn shape(rows_max: usize, width: usize) -> Result<(Launch, u32), CudaError> {
    if width == 0 || !width.is_multiple_of(4) {
        return Err(CudaError::Shape { what: "rms_norm: a width that is no multiple of 4", value: width });
    }
    let too_many = |_| CudaError::Shape { what: "rms_norm: too many values", value: rows_max };
    let (grid, columns) = (u32::try_from(rows_max).map_err(too_many)?, u32::try_from(width).map_err(too_many)?);
    // By the width alone: the order of the sum is.
    let threads = 32 * columns.div_ceil(WARP_COLUMNS).min(WARPS_MAX);
    Ok((Launch { grid: [grid, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }, columns))
}

/// The same in f64: the sums `stream + added`, rounded to f32 as they are kept, and their norm, not rounded.
#[must_use]
pub fn reference(stream: &[f32], added: Option<&[f32]>, weight: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f64>) {
    let sums: Vec<f32> = match added {
        Some(added) => stream.iter().zip(added).map(|(x, a)| x + a).collect(),
        None => stream.to_vec(),
    };
    let rows = sums.chunks(weight.len()).flat_map(|row| {
        let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let factor = 1.0 / (squares / weight.len() as f64 + f64::from(epsilon)).sqrt();
        row.iter().zip(weight).map(move |(x, w)| f64::from(*x) * factor * f64::from(*w))
    });
    let out = rows.collect();
    (sums, out)
}

/// bf16 rounds by at most 2^-8 of a value; the sum in f32 adds less than 2^-16.
const TOLERANCE: f64 = 0.003_922;

pub(crate) fn cases() -> Vec<Case> {
    // Rows, rows of the launch, width, with a residual.
    let shapes = [
        (1, 1, 32, false),
        (3, 8, 576, true),
        (2, 2, 8324, true),
        (5, 5, 1024, false),
        (1, 2, 9000, true),
        (0, 4, 64, true),
    ];
    let case = |(rows, rows_max, width, adds): (usize, usize, usize, bool)| {
        let name = format!("{rows} of {rows_max} x {width}{}", if adds { " + residual" } else { "" });
        Case::new("rms_norm", name, TOLERANCE, move |device, seed| run(device, seed, rows, rows_max, width, adds))
    };
    let gathers = [(1, 3, 32, false), (3, 5, 576, true), (1, 2, 8324, true), (0, 2, 64, true)].map(
        |(rows, stream_rows, width, adds)| {
            let name = format!("{rows} chosen of {stream_rows} x {width}{}", if adds { " + residual" } else { "" });
            Case::new("rms_norm", name, TOLERANCE, move |device, seed| {
                gather(device, seed, rows, stream_rows, width, adds)
            })
        },
    );
    let huge = Case::new("rms_norm", "numbers from 1e-30 to 1e38, NaN in its row", TOLERANCE, hostile);
    shapes.into_iter().map(case).chain(gathers).chain([huge]).collect()
}

fn gather(
    device: &Device,
    seed: u64,
    rows: usize,
    stream_rows: usize,
    width: usize,
    adds: bool,
) -> Result<f64, CudaError> {
    let (op, mut random, mut buffers) = (RmsNorm::load(device)?, Random::new(seed), Buffers::new(device));
    let stream = random.normals(stream_rows * width, 3.0);
    let added = adds.then(|| random.normals(stream_rows * width, 1.0));
    let weight = random.normals(width, 1.0);
    let ids: Vec<u32> = (0..rows).map(|_| random.below(stream_rows) as u32).collect();
    let rows_max = rows + 1;
    let args = GatherNormArgs {
        stream: buffers.with(&stream)?,
        added: added.as_ref().map(|added| buffers.with(added)).transpose()?,
        weight: buffers.with(&weight)?,
        out: buffers.empty::<bf16>(rows_max * width)?,
        ids: buffers.with_room(&ids, rows_max)?,
        rows: buffers.with(&[rows as u32])?,
        rows_max,
        stream_rows,
        width,
        epsilon: 1e-5,
    };
    op.launch_gather(device.compute(), &args)?;
    let (_, all) = reference(&stream, added.as_deref(), &weight, args.epsilon);
    let want = ids.iter().flat_map(|id| all[*id as usize * width..][..width].to_vec());
    let got: Vec<bf16> = buffers.read(args.out, rows_max * width)?;
    let kept: Vec<f32> = buffers.read(args.stream, stream_rows * width)?;
    if kept != stream || got[rows * width..].iter().any(|value| value.to_bits() != 0xffff) {
        return Ok(f64::INFINITY);
    }
    Ok(worst(got[..rows * width].iter().map(|x| x.to_f64()), want))
}

fn hostile(device: &Device, seed: u64) -> Result<f64, CudaError> {
    let (op, mut random, mut buffers) = (RmsNorm::load(device)?, Random::new(seed), Buffers::new(device));
    let width = 96;
    let scales = [1e-30f32, 1.0, 1e19, 1e30, 3e37, f32::NAN];
    let stream: Vec<f32> = scales.iter().flat_map(|scale| random.normals(width, *scale)).collect();
    let weight = random.normals(width, 1.0);
    let args = RmsNormArgs {
        stream: buffers.with(&stream)?,
        added: None,
        weight: buffers.with(&weight)?,
        out: buffers.empty::<bf16>(stream.len())?,
        rows: buffers.with(&[scales.len() as u32])?,
        rows_max: scales.len(),
        width,
        epsilon: 1e-12,
    };
    op.launch(device.compute(), &args)?;
    let got: Vec<bf16> = buffers.read(args.out, stream.len())?;
    Ok(worst(got.iter().map(|x| x.to_f64()), reference(&stream, None, &weight, args.epsilon).1))
}

fn run(device: &Device, seed: u64, rows: usize, rows_max: usize, width: usize, adds: bool) -> Result<f64, CudaError> {
    let (op, mut random, mut buffers) = (RmsNorm::load(device)?, Random::new(seed), Buffers::new(device));
    let stream = random.normals(rows * width, 3.0);
    let added = adds.then(|| random.normals(rows * width, 1.0));
    let weight = random.normals(width, 1.0);
    let epsilon = 1e-5;
    let args = RmsNormArgs {
        stream: buffers.with_room(&stream, rows_max * width)?,
        added: added.as_ref().map(|added| buffers.with_room(added, rows_max * width)).transpose()?,
        weight: buffers.with(&weight)?,
        out: buffers.empty::<bf16>(rows_max * width)?,
        rows: buffers.with(&[u32::try_from(rows).unwrap_or(0)])?,
        rows_max,
        width,
        epsilon,
    };
    op.launch(device.compute(), &args)?;
    let (sums, out) = reference(&stream, added.as_deref(), &weight, epsilon);
    let got: Vec<bf16> = buffers.read(args.out, rows * width)?;
    let kept: Vec<f32> = buffers.read(args.stream, rows * width)?;
    if kept != sums {
        return Ok(f64::INFINITY);
    }
    // Rows past the last are not written.
    let rest: Vec<u16> =
        buffers.read(args.out.part(rows * width * 2, (rows_max - rows) * width * 2)?, (rows_max - rows) * width)?;
    if rest.iter().any(|bits| *bits != 0xffff) {
        return Ok(f64::INFINITY);
    }
    Ok(worst(got.iter().map(|x| x.to_f64()), out))
}
