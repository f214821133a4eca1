//! The gate of the feed-forward network (Shazeer, 2020): `cuda/swiglu.cu`.

use half::bf16;

use crate::cuda::{CudaError, Device, DeviceRange, Kernel, Launch, Module, Stream};

const THREADS: u32 = 256;

/// The kernel on one device.
#[derive(Debug)]
pub struct SwigluKernels {
    swiglu: Kernel,
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct Swiglu {
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

impl SwigluKernels {
    /// # Errors
    /// If the device cannot run it.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, include_bytes!("../../../prebuilt/swiglu.fatbin"))?;
        Ok(Self { swiglu: module.kernel("swiglu", 0)? })
    }

    /// # Errors
    /// If a buffer is too short or the driver refuses.
    pub fn launch(&self, stream: &Stream, op: &Swiglu) -> Result<(), CudaError> {
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
pub fn swiglu(gate_up: &[f32], width: usize) -> Vec<bf16> {
    let row = |row: &[f32]| {
        let (gates, ups) = (row[..width].to_vec(), row[width..].to_vec());
        gates.into_iter().zip(ups).map(|(gate, up)| {
            let gate = f64::from(gate);
            bf16::from_f64(gate / (1.0 + (-gate).exp()) * f64::from(up))
        })
    };
    gate_up.chunks_exact(2 * width).flat_map(row).collect()
}
