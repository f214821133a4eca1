//! The embedding of each token, from a bf16 table, into the residual stream: `cuda/embed.cu`.

use crate::cuda::{CudaError, Device, DeviceRange, Kernel, Launch, Module, Stream};

const THREADS: u32 = 128;

/// The kernel on one device.
#[derive(Debug)]
pub struct EmbedKernels {
    bf16: Kernel,
}

/// One launch.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    /// f32 `[rows, hidden]`, written.
    pub stream: DeviceRange,
    /// bf16 `[vocabulary, hidden]`.
    pub table: DeviceRange,
    /// u32 `[rows]`, each below the vocabulary.
    pub tokens: DeviceRange,
    /// One u32: how many rows there are, at most `rows_max`.
    pub rows: DeviceRange,
    /// Rows that there is room for.
    pub rows_max: u32,
    /// Tokens that there are.
    pub vocabulary: u32,
    /// A multiple of 8.
    pub hidden: u32,
}

impl EmbedKernels {
    /// # Errors
    /// If the device cannot run it.
    pub fn load(device: &Device) -> Result<Self, CudaError> {
        let module = Module::load(device, include_bytes!("../../../prebuilt/embed.fatbin"))?;
        Ok(Self { bf16: module.kernel("embed_bf16", 0)? })
    }

    /// # Errors
    /// If a buffer is too short or the driver refuses.
    pub fn launch(&self, stream: &Stream, op: &Embed) -> Result<(), CudaError> {
        if !op.hidden.is_multiple_of(8) {
            return Err(CudaError::Shape { what: "embedding: a width that is no multiple of 8", value: op.hidden as usize });
        }
        let (rows, hidden) = (op.rows_max as usize, op.hidden as usize);
        let to = op.stream.for_kernel("embedding: stream", rows * hidden * 4, 16)?;
        let table = op.table.for_kernel("embedding: table", op.vocabulary as usize * hidden * 2, 16)?;
        let tokens = op.tokens.for_kernel("embedding: tokens", rows * 4, 4)?;
        let count = op.rows.for_kernel("embedding: rows", 4, 4)?;
        let launch = Launch { grid: [op.rows_max, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
        // SAFETY: every buffer is as long as `rows_max` rows take; tokens are below the vocabulary by the batch's rules.
        unsafe { stream.launch(&self.bf16, launch, &[&to, &table, &tokens, &op.hidden, &count]) }
    }
}

/// The reference: rows of the table.
#[must_use]
pub fn embed(table: &[half::bf16], hidden: usize, tokens: &[u32]) -> Vec<f32> {
    tokens.iter().flat_map(|token| &table[*token as usize * hidden..][..hidden]).map(|value| value.to_f32()).collect()
}
