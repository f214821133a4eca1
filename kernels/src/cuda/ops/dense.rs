//! Products of many rows with bf16 weights, by whichever of two ways: our own kernel, whose rows do not depend on their batch,
//! or cuBLASLt, which is not bound to that. Weights lie in our own layout, so cuBLASLt is given a copy of one matrix at a time
//! in rows (`cuda/unpack.cu`): that costs its bytes twice, which many rows are worth. Not here: the library (`cublaslt.rs`).

use std::fmt;
use std::sync::Arc;

use super::linear::{Linear, LinearArgs};
use crate::cuda::cublaslt::{ALIGNMENT, Library, ProductPlan};
use crate::cuda::kernel::fatbin;
use crate::cuda::selftest::Case;
use crate::cuda::{CudaError, Device, DeviceRange, Kernel, Launch, Module, PANEL, Stream, WeightFormat};

const THREADS: u32 = 256;
/// Inputs of a block of `unpack_bf16`.
const BLOCK_INPUTS: usize = 128;
/// Plans are made for multiples of so many rows, and a launch takes the next one: what is computed of rows beyond is not read.
const ROWS_STEP: usize = 128;
/// What cuBLASLt's own algorithms may work in; what NVIDIA advises for devices of compute capability 9.0.
const WORKSPACE_BYTES: usize = 32 << 20;

/// A way to compute y = W x.
pub trait DenseMatmul: fmt::Debug + Send + Sync {
    /// Whether this is a product for it.
    fn takes(&self, args: &LinearArgs) -> bool;

    /// Runs it on `stream`. Rows of `y` beyond those that there are may be written.
    ///
    /// # Errors
    /// If a buffer is too short, or it does not take the product.
    fn multiply(&self, stream: &Stream, args: &LinearArgs) -> Result<(), CudaError>;
}

impl DenseMatmul for Linear {
    fn takes(&self, _args: &LinearArgs) -> bool {
        true
    }

    fn multiply(&self, stream: &Stream, args: &LinearArgs) -> Result<(), CudaError> {
        self.launch(stream, args)
    }
}

/// A matrix that products are planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenseShape {
    /// Rows of the matrix.
    pub outputs: usize,
    /// Columns of the matrix.
    pub inputs: usize,
    /// [`LinearArgs::y_stride`].
    pub y_stride: usize,
}

/// cuBLASLt for bf16 weights and many rows. A row's bits depend on how many rows there are.
#[derive(Debug)]
pub struct CublasLt {
    unpack: Kernel,
    /// By shape, then by rows: those of the first multiple of [`ROWS_STEP`] that is enough.
    plans: Vec<(DenseShape, Vec<(usize, ProductPlan)>)>,
    rows_min: usize,
    matrix: DeviceRange,
    workspace: DeviceRange,
}

impl CublasLt {
    /// Device memory that [`CublasLt::new`] is to be given for these matrices.
    #[must_use]
    pub fn scratch_bytes(shapes: &[DenseShape]) -> usize {
        shapes.iter().map(DenseShape::bytes).max().unwrap_or(0) + WORKSPACE_BYTES
    }

    /// Plans products of at least `rows_min` and at most `rows_max` rows. `scratch` is its own.
    ///
    /// # Errors
    /// If the library is not there or has no way to compute one of them, or `scratch` is too short.
    pub fn new(
        device: &Device,
        scratch: DeviceRange,
        shapes: &[DenseShape],
        [rows_min, rows_max]: [usize; 2],
    ) -> Result<Self, CudaError> {
        let library = Arc::new(Library::open(device)?);
        let mut plans: Vec<(DenseShape, Vec<_>)> = Vec::new();
        for shape in shapes {
            if plans.iter().any(|(planned, _)| planned == shape) {
                continue;
            }
            let each = |rows: usize| {
                let DenseShape { outputs, inputs, y_stride } = *shape;
                Ok((rows, ProductPlan::new(&library, [rows, outputs, inputs, y_stride], WORKSPACE_BYTES)?))
            };
            plans.push((*shape, steps(rows_min, rows_max).map(each).collect::<Result<_, CudaError>>()?));
        }
        let matrix_bytes = Self::scratch_bytes(shapes) - WORKSPACE_BYTES;
        Ok(Self {
            unpack: Module::load(device, fatbin!("unpack"))?.kernel("unpack_bf16", 0)?,
            plans,
            rows_min,
            matrix: scratch.part(0, matrix_bytes)?,
            workspace: scratch.part(matrix_bytes, WORKSPACE_BYTES)?,
        })
    }

    fn plan(&self, args: &LinearArgs) -> Option<(&DenseShape, usize, &ProductPlan)> {
        let is_aligned = (args.y_column * 4).is_multiple_of(ALIGNMENT as usize);
        if args.weights.format != WeightFormat::Bf16 || args.rows_max < self.rows_min || !is_aligned {
            return None;
        }
        let (outputs, inputs, y_stride) = (args.weights.outputs, args.weights.inputs, args.y_stride);
        let shape = DenseShape { outputs, inputs, y_stride };
        let (shape, plans) = self.plans.iter().find(|(planned, _)| *planned == shape)?;
        let (rows, plan) = plans.iter().find(|(rows, _)| *rows >= args.rows_max)?;
        Some((shape, *rows, plan))
    }

    /// The matrix in rows, at the start of what it has.
    fn unpack(&self, stream: &Stream, args: &LinearArgs) -> Result<(), CudaError> {
        unpack(&self.unpack, stream, args, self.matrix)
    }
}

impl DenseShape {
    const fn bytes(&self) -> usize {
        (self.outputs * self.inputs * 2).next_multiple_of(256)
    }
}

/// Rows that plans are made for: multiples of [`ROWS_STEP`], and the most.
fn steps(rows_min: usize, rows_max: usize) -> impl Iterator<Item = usize> {
    let first = rows_min.max(1).next_multiple_of(ROWS_STEP);
    (first..rows_max).step_by(ROWS_STEP).chain((rows_max >= rows_min).then_some(rows_max))
}

impl DenseMatmul for CublasLt {
    fn takes(&self, args: &LinearArgs) -> bool {
        self.plan(args).is_some()
    }

    fn multiply(&self, stream: &Stream, args: &LinearArgs) -> Result<(), CudaError> {
        let not_planned = CudaError::Shape { what: "cuBLASLt: a product that was not planned", value: args.rows_max };
        let (shape, rows, plan) = self.plan(args).ok_or(not_planned)?;
        if args.y_column + shape.outputs > shape.y_stride {
            return Err(CudaError::Shape { what: "cuBLASLt: outputs that do not fit y", value: shape.outputs });
        }
        // The product ends with the last output of the last row.
        let values = rows * shape.y_stride - args.y_column;
        let y = args.y.part(args.y_column * 4, args.y.bytes().saturating_sub(args.y_column * 4))?;
        let multiple = ALIGNMENT as usize;
        let addresses = [
            self.matrix.for_kernel("cuBLASLt: weights", shape.bytes(), multiple)?,
            args.x.for_kernel("cuBLASLt: x", rows * shape.inputs * 2, multiple)?,
            y.for_kernel("cuBLASLt: y", values * 4, multiple)?,
            self.workspace.for_kernel("cuBLASLt: workspace", WORKSPACE_BYTES, multiple)?,
        ];
        self.unpack(stream, args)?;
        // SAFETY: the buffers were found long enough for the shape and the rows of the plan.
        unsafe { plan.launch(stream, addresses) }
    }
}

fn unpack(kernel: &Kernel, stream: &Stream, args: &LinearArgs, to: DeviceRange) -> Result<(), CudaError> {
    let LinearArgs { weights, .. } = *args;
    let (outputs, inputs) = (weights.outputs, weights.inputs);
    let wrong = CudaError::Shape { what: "unpack: inputs that are no whole tiles", value: inputs };
    let bytes = weights.format.packed_bytes(outputs, inputs).ok_or(wrong)?;
    let packed = weights.data.for_kernel("unpack: weights", bytes, 16)?;
    let rows = to.for_kernel("unpack: rows", outputs * inputs * 2, 16)?;
    let int = |value: usize| u32::try_from(value).map_err(|_| CudaError::Shape { what: "unpack: too large", value });
    let [outputs, inputs, panels] = [int(outputs)?, int(inputs)?, int(outputs.div_ceil(PANEL))?];
    if weights.format != WeightFormat::Bf16 || panels > 65_535 {
        return Err(CudaError::Shape { what: "unpack: not in bf16, or too many outputs", value: weights.outputs });
    }
    let grid = [int(weights.inputs.div_ceil(BLOCK_INPUTS))?, panels, 1];
    let launch = Launch { grid, block: [THREADS, 1, 1], shared_bytes: 0 };
    // SAFETY: both buffers are as long as the shape takes.
    unsafe { stream.launch(kernel, launch, &[&rows, &packed, &outputs, &inputs]) }
}

mod cases;

pub(crate) fn cases() -> Vec<Case> {
    cases::cases()
}
