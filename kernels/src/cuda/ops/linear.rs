//! Linear layers y = W x, W in bf16 or a block format of GGML, for one row or thousands with equal bits. Kernels:
//! `kernels/cuda/linear.cu`, `linear_tall.cu`; how the weights lie: `repack.rs`. Not here: what adapters add (`lora.rs`).

use crate::cuda::kernel::fatbin;
use crate::cuda::selftest::Case;
use crate::cuda::{CudaError, Device, DevicePtr, DeviceRange, Kernel, Launch, Module, PANEL, Stream, WeightFormat};

const THREADS: u32 = 256;
/// Outputs of a block of the kernels for many rows.
const WIDE_OUTPUTS: usize = 128;
/// Outputs of a block of the kernel for prompts.
const TALL_OUTPUTS: usize = 256;
/// Its shared memory: four stages of 24 KiB, and a float for each output and row.
const TALL_SHARED_BYTES: u32 = 224 * 1024;
/// Parts of a sum over the inputs, at most: the warps of a block.
const SLICES_MAX: usize = 8;
/// Panels times slices, beyond which a matrix keeps every device busy without more slices.
const WARPS_ENOUGH: usize = 16_384;
/// Blocks that keep a device busy: with fewer, slices are blocks of their own.
const BLOCKS_ENOUGH: usize = 128;

/// A matrix on the device, as [`crate::cuda::repack`] wrote it.
#[derive(Clone, Copy, Debug)]
pub struct LinearWeights {
    /// Of all of it.
    pub format: WeightFormat,
    /// Rows of the matrix.
    pub outputs: usize,
    /// Columns of the matrix.
    pub inputs: usize,
    /// Begins at a multiple of 16 bytes.
    pub data: DeviceRange,
}

/// What one launch works on. How a row is summed depends on the shape of the matrix alone.
#[derive(Clone, Copy, Debug)]
pub struct LinearArgs {
    /// W `[outputs, inputs]`.
    pub weights: LinearWeights,
    /// bf16 `[rows_max, inputs]`.
    pub x: DeviceRange,
    /// f32 `[rows_max, y_stride]`; columns from `y_column` on are written, `outputs` of them.
    pub y: DeviceRange,
    /// Columns of `y`.
    pub y_stride: usize,
    /// The first that is written.
    pub y_column: usize,
    /// u32: how many rows there are.
    pub rows: DeviceRange,
    /// Rows of the launch.
    pub rows_max: usize,
    /// [`workspace_bytes`] of f32 for sums of slices, if any; launches of one stream may share it.
    pub workspace: Option<DeviceRange>,
}

/// Rows that a block works on at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    Rows8,
    Rows16,
    Rows32,
    Rows64,
    /// bf16 alone, on devices whose blocks may have [`TALL_SHARED_BYTES`].
    Rows128,
    /// A step of one row; block formats alone.
    Row1,
}

impl Tile {
    const OF_EVERY_FORMAT: [Self; 4] = [Self::Rows8, Self::Rows16, Self::Rows32, Self::Rows64];

    const fn rows(self) -> usize {
        match self {
            Self::Row1 => 1,
            _ => 8 << self as usize,
        }
    }

    fn for_rows(rows_max: usize) -> Self {
        Self::OF_EVERY_FORMAT.into_iter().find(|tile| rows_max <= tile.rows()).unwrap_or(Self::Rows64)
    }
}

/// Into how many parts sums over the inputs are cut. Of the shape alone: it decides the bits.
fn slices(outputs: usize, inputs: usize) -> usize {
    let (panels, tiles) = (outputs.div_ceil(PANEL), inputs / 32);
    let mut slices = SLICES_MAX;
    while slices > 1 && (panels * slices > WARPS_ENOUGH || tiles < 2 * slices) {
        slices /= 2;
    }
    slices
}

/// How a launch is cut into blocks; never decides the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    tile: Tile,
    /// Whether slices are blocks of their own, whose sums are added by another launch.
    is_spread: bool,
}

impl Plan {
    fn new(outputs: usize, inputs: usize, rows_max: usize) -> Self {
        let tile = Tile::for_rows(rows_max);
        let blocks = outputs.div_ceil(WIDE_OUTPUTS) * rows_max.div_ceil(tile.rows());
        let is_spread = tile != Tile::Rows8 && slices(outputs, inputs) > 1 && blocks < BLOCKS_ENOUGH;
        Self { tile, is_spread }
    }

    /// Whether the kernel for prompts keeps a device busy. It needs no workspace, and neither would any other then.
    fn is_tall(outputs: usize, rows_max: usize) -> bool {
        let blocks = rows_max.div_ceil(Tile::Rows128.rows()) * outputs.div_ceil(TALL_OUTPUTS);
        rows_max > Tile::Rows64.rows() && blocks >= BLOCKS_ENOUGH
    }

    fn workspace_bytes(self, outputs: usize, inputs: usize, rows_max: usize) -> usize {
        if self.is_spread { slices(outputs, inputs) * rows_max * outputs * size_of::<f32>() } else { 0 }
    }
}

/// Bytes of [`LinearArgs::workspace`] for a matrix and a launch's rows: 0, or up to 27 MB.
#[must_use]
pub fn workspace_bytes(outputs: usize, inputs: usize, rows_max: usize) -> usize {
    Plan::new(outputs, inputs, rows_max).workspace_bytes(outputs, inputs, rows_max)
}

/// The kernels on a device.
#[derive(Clone, Debug)]
pub struct Linear {
    /// By format and tile.
    kernels: Vec<[Kernel; 4]>,
    /// By format; none for bf16.
    single: Vec<Option<Kernel>>,
    /// Where a block may have so much shared memory.
    tall: Option<Kernel>,
    combine: Kernel,
}

impl Linear {
    /// Loads the kernels.
    ///
    /// # Errors
    /// If the device cannot run them.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, fatbin!("linear"))?;
        let kernel = |format: WeightFormat, rows: usize| module.kernel(&format!("linear_{rows}_{}", format.name()), 0);
        let of = |format| Ok([kernel(format, 8)?, kernel(format, 16)?, kernel(format, 32)?, kernel(format, 64)?]);
        let kernels = WeightFormat::ALL.into_iter().map(of).collect::<Result<_, CudaError>>()?;
        let single = |format| (format != WeightFormat::Bf16).then(|| kernel(format, 1)).transpose();
        let single = WeightFormat::ALL.into_iter().map(single).collect::<Result<_, CudaError>>()?;
        let has_room = device.info().shared_bytes_max >= TALL_SHARED_BYTES as usize;
        let load_tall = || Module::load(device, fatbin!("linear_tall"))?.kernel("linear_128_bf16", TALL_SHARED_BYTES);
        let tall = has_room.then(load_tall).transpose()?;
        Ok(Self { kernels, single, tall, combine: module.kernel("linear_combine", 0)? })
    }

    /// Runs it on `stream`.
    ///
    /// # Errors
    /// If a buffer is too short or begins at the wrong multiple, or the shape is none that the format can have.
    pub fn launch(&self, stream: &Stream, args: &LinearArgs) -> Result<(), CudaError> {
        let LinearWeights { format, outputs, inputs, .. } = args.weights;
        let plan = if self.has(format, Tile::Rows128) && Plan::is_tall(outputs, args.rows_max) {
            Plan { tile: Tile::Rows128, is_spread: false }
        } else if args.rows_max == 1 && self.has(format, Tile::Row1) {
            Plan { tile: Tile::Row1, is_spread: false }
        } else {
            Plan::new(outputs, inputs, args.rows_max)
        };
        self.launch_as(stream, args, plan)
    }

    fn has(&self, format: WeightFormat, tile: Tile) -> bool {
        match tile {
            Tile::Rows128 => format == WeightFormat::Bf16 && self.tall.is_some(),
            Tile::Row1 => format != WeightFormat::Bf16,
            _ => true,
        }
    }

    fn launch_as(&self, stream: &Stream, args: &LinearArgs, plan: Plan) -> Result<(), CudaError> {
        let LinearArgs { weights, y_stride, y_column, rows_max, .. } = *args;
        let LinearWeights { format, outputs, inputs, data } = weights;
        let bytes = format
            .packed_bytes(outputs, inputs)
            .ok_or(CudaError::Shape { what: "linear: inputs that are no whole blocks", value: inputs })?;
        if outputs == 0 || y_column.checked_add(outputs).is_none_or(|end| end > y_stride) {
            return Err(CudaError::Shape { what: "linear: outputs that do not fit y", value: outputs });
        }
        let w = data.for_kernel("linear: weights", bytes, 16)?;
        let x = args.x.for_kernel("linear: x", rows_max * inputs * 2, 16)?;
        let y = args.y.for_kernel("linear: y", rows_max * y_stride * 4, 4)?;
        let rows = args.rows.for_kernel("linear: rows", 4, 4)?;
        let partials = match (plan.workspace_bytes(outputs, inputs, rows_max), args.workspace) {
            (0, _) => DevicePtr::NULL,
            (needed, Some(workspace)) => workspace.for_kernel("linear: workspace", needed, 4)?,
            (needed, None) => return Err(CudaError::Range { what: "linear: workspace", needed, bytes: 0 }),
        };
        let [outputs_32, inputs_32, stride, column] = int([outputs, inputs, y_stride, y_column])?;
        let slices = slices(outputs, inputs);
        let [rows_32, slices_32] = int([rows_max, slices])?;
        let row_tiles = rows_max.div_ceil(plan.tile.rows());
        let special = match plan.tile {
            Tile::Rows128 => self.tall.as_ref().filter(|_| format == WeightFormat::Bf16),
            Tile::Row1 => self.single[format as usize].as_ref().filter(|_| rows_max == 1),
            tile => Some(&self.kernels[format as usize][tile as usize]),
        };
        let kernel = special.ok_or(CudaError::Shape { what: "linear: rows of a block", value: plan.tile.rows() })?;
        // These take all slices in one block.
        let whole = match plan.tile {
            Tile::Rows8 | Tile::Row1 => Some(blocks([outputs.div_ceil(PANEL * (SLICES_MAX / slices)), row_tiles, 1])?),
            Tile::Rows128 => Some(Launch {
                shared_bytes: TALL_SHARED_BYTES,
                ..blocks([row_tiles, outputs.div_ceil(TALL_OUTPUTS), 1])?
            }),
            _ => None,
        };
        if let Some(launch) = whole {
            // SAFETY: the kernel's parameters in order; the buffers were found long enough for the shape above.
            return unsafe {
                stream.launch(
                    kernel,
                    launch,
                    &[&w, &x, &y, &rows, &outputs_32, &inputs_32, &stride, &column, &slices_32],
                )
            };
        }
        let launch = blocks([row_tiles, outputs.div_ceil(WIDE_OUTPUTS), if plan.is_spread { slices } else { 1 }])?;
        // SAFETY: as above.
        unsafe {
            stream.launch(
                kernel,
                launch,
                &[&w, &x, &y, &partials, &rows, &outputs_32, &inputs_32, &stride, &column, &rows_32, &slices_32],
            )?;
        }
        if !plan.is_spread {
            return Ok(());
        }
        let launch = blocks([outputs.div_ceil(THREADS as usize), rows_max, 1])?;
        // SAFETY: as above.
        unsafe {
            stream.launch(
                &self.combine,
                launch,
                &[&y, &partials, &rows, &outputs_32, &stride, &column, &rows_32, &slices_32],
            )
        }
    }
}

/// As the kernels take numbers.
fn int<const N: usize>(values: [usize; N]) -> Result<[i32; N], CudaError> {
    let mut out = [0; N];
    for (out, value) in out.iter_mut().zip(values) {
        *out = i32::try_from(value).map_err(|_| CudaError::Shape { what: "linear: too large", value })?;
    }
    Ok(out)
}

fn blocks(grid: [usize; 3]) -> Result<Launch, CudaError> {
    let [x, y, z] = int(grid)?.map(i32::cast_unsigned);
    if y.max(z) > 65_535 {
        return Err(CudaError::Shape { what: "linear: too many rows", value: grid[1] });
    }
    Ok(Launch { grid: [x, y, z], block: [THREADS, 1, 1], shared_bytes: 0 })
}

/// y `[rows, outputs]` in f64, and the sum of the sizes of what was added, which an error is measured by.
#[must_use]
pub fn reference(weights: &[f32], x: &[f32], inputs: usize) -> (Vec<f64>, Vec<f64>) {
    let dot = |x: &[f32], w: &[f32], size: fn(f64) -> f64| -> f64 {
        x.iter().zip(w).map(|(x, w)| size(f64::from(*x) * f64::from(*w))).sum()
    };
    let each = |size: fn(f64) -> f64| {
        let of_row = |x| weights.chunks(inputs).map(move |w| dot(x, w, size));
        x.chunks(inputs).flat_map(of_row).collect()
    };
    (each(|product| product), each(f64::abs))
}

mod cases;

pub(crate) fn cases() -> Vec<Case> {
    cases::cases()
}

#[cfg(test)]
mod tests {
    use super::{Plan, workspace_bytes};

    #[test]
    fn prompts_take_the_tall_kernel_where_it_fills_a_device_and_it_needs_no_workspace() {
        // Layers of an 8B: 4,096 tokens at once, and a chunk of 512.
        assert!(Plan::is_tall(4096, 4096) && Plan::is_tall(28_672, 512));
        assert!(!Plan::is_tall(4096, 512) && !Plan::is_tall(128_256, 64));
        for outputs in [16, 1024, 4096, 6144, 28_672, 128_256] {
            for inputs in [256, 4096, 14_336] {
                for rows in (1..=8192).step_by(61) {
                    let needed = workspace_bytes(outputs, inputs, rows);
                    assert!(
                        !Plan::is_tall(outputs, rows) || needed == 0,
                        "{outputs} x {inputs}, {rows} rows: {needed}"
                    );
                }
            }
        }
    }
}
