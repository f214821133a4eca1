//! The CUDA runner: a base, its KV and adapters in one allocation on one device. Read `cuda/step.rs` for a step and
//! `cuda/forward.rs` for its layers; `cuda/plan.rs` says where everything lies. In the order in which it is made: `weights`
//! over `spans`, `plan`, `pieces`, `window`, `staging` and `adapters`, `runs`, `tables`, `forward`, `flight`, `step`, `draw`.
//!
//! What must hold: the whole of the device's memory is taken at the start, under the ceiling that is configured, and nothing
//! more afterwards; a row's result does not depend, to the last bit, on what else is in the batch, nor on whether the step was
//! recorded.
//!
//! Not here: which rows make a batch, whose blocks are whose, and the arithmetic (`kernels/cuda/`).

mod adapters;
mod draw;
mod flight;
mod forward;
mod pieces;
mod plan;
mod runs;
mod source;
mod spans;
mod staging;
mod step;
mod tables;
mod weights;
mod window;

use std::sync::Arc;

use engine::{Batch, ModelRunner, RunnerError, RunnerShape, SampledToken, Slot};
use kernels::cuda::{CudaError, Device, KvFormat};
use types::Digest;

use self::plan::Plan;
use self::source::Source;
pub use self::staging::{AdapterStaging, StagingStats};
use self::step::Steps;
use super::{Precision, check};
use crate::{Base, GeneratedBase, LoraAdapter, ModelConfig, ModelError};

/// What multiplies many rows with bf16 weights. Everything else is multiplied by our own kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Matmul {
    /// Our own kernel: a row's bits are the same in any batch, and however its prompt is cut.
    #[default]
    Own,
    /// NVIDIA's library, where it is installed, for steps of at least so many rows. A row's bits depend on how many share its
    /// step, so answers may differ in their last places from one run to another. It takes a copy of the largest matrix, and
    /// 32 MiB, under the ceiling.
    CublasLt {
        /// Below it a step is computed by our own kernels.
        rows_min: u32,
    },
}

impl Matmul {
    /// Where copying a matrix is worth it.
    pub const CUBLASLT_ROWS_MIN: u32 = 256;
}

/// The sizes of a CUDA runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaRunnerConfig {
    /// The ceiling of the device memory that it takes; nine tenths of what is free if not given.
    pub device_memory_bytes_max: Option<u64>,
    /// Tokens in one block: a power of two, at most 256.
    pub block_tokens: u32,
    /// Blocks in all, if fewer than there is memory for.
    pub kv_blocks_max: Option<u32>,
    /// Bytes of the blocks in all, if less than there is memory for.
    pub kv_bytes_max: Option<u64>,
    /// How keys and values are kept.
    pub kv_format: KvFormat,
    /// Tokens of a sequence, if fewer than the base could do.
    pub context_tokens_max: u32,
    /// Adapter slots in all.
    pub adapter_slots: u32,
    /// Rows of a batch.
    pub batch_rows_max: u32,
    /// Sequences of a batch.
    pub sequences_max: u32,
    /// Adapters of one row: what a composition may name.
    pub row_adapters_max: u32,
    /// What multiplies many rows with bf16 weights.
    pub matmul: Matmul,
    /// Pinned host memory, at most, for adapters that were made ready to be copied to the device: see
    /// [`CudaRunner::staging`]. Without it, or without room in it, the engine's thread copies them.
    pub staging_bytes_max: u64,
    /// Whether steps of few rows are recorded and launched as a whole. Without it every launch is made each time, to the same
    /// bits.
    pub graphs: bool,
}

impl Default for CudaRunnerConfig {
    fn default() -> Self {
        Self {
            device_memory_bytes_max: None,
            block_tokens: 16,
            kv_blocks_max: None,
            kv_bytes_max: None,
            kv_format: KvFormat::default(),
            context_tokens_max: u32::MAX,
            adapter_slots: 32,
            batch_rows_max: 512,
            sequences_max: 256,
            row_adapters_max: 8,
            matmul: Matmul::default(),
            staging_bytes_max: 1 << 30,
            graphs: true,
        }
    }
}

/// Runs batches on a CUDA device.
pub struct CudaRunner {
    shape: RunnerShape,
    fingerprint: Digest,
    model: ModelConfig,
    block_bytes: usize,
    memory_bytes: usize,
    matmul: Matmul,
    staging: AdapterStaging,
    steps: Steps,
}

impl CudaRunner {
    /// Takes all its memory on the first device, uploads the base and records the steps.
    ///
    /// # Errors
    /// If there is no device that can be used, the base does not fit under the ceiling with a single block of KV, or a tensor
    /// is missing or has the wrong shape; or if cuBLASLt is asked for and is not installed, or the base has no bf16.
    pub fn new(base: &Base, config: &CudaRunnerConfig) -> Result<Self, ModelError> {
        Self::of(Source::Files(base), config)
    }

    /// The same over generated weights, which are made on the device: for benches.
    ///
    /// # Errors
    /// As [`Self::new`], or if there is no kernel for the format.
    pub fn generated(base: &GeneratedBase, config: &CudaRunnerConfig) -> Result<Self, ModelError> {
        base.config.check()?;
        Self::of(Source::Seed(base), config)
    }

    fn of(base: Source<'_>, config: &CudaRunnerConfig) -> Result<Self, ModelError> {
        let sizes = [config.block_tokens, config.batch_rows_max, config.context_tokens_max, config.sequences_max];
        if sizes.contains(&0) || config.adapter_slots > 1 << 16 || config.batch_rows_max > 1 << 15 {
            return Err(ModelError::Configuration(
                "block tokens, batch rows (at most 32768), context and sequences must be above 0, adapter slots at most 65536"
                    .into(),
            ));
        }
        let device = Device::open(0).map_err(failed)?;
        let (free_bytes, _) = device.memory().map_err(failed)?;
        let plan = Plan::new(base, config, free_bytes)?;
        if let Some(format) = plan.weights.widened(base) {
            tracing::warn!(
                ?format,
                "the device has no kernel for this format: such weights become bf16 and take its memory"
            );
        }
        let model = base.config().clone();
        let small = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let kv_tokens = (plan.blocks as usize).saturating_mul(config.block_tokens as usize);
        let shape = RunnerShape {
            block_tokens: config.block_tokens,
            kv_blocks: plan.blocks,
            adapter_slots: config.adapter_slots,
            context_tokens_max: small(plan.context.min(kv_tokens)),
            batch_rows_max: config.batch_rows_max,
            vocabulary: small(model.vocabulary),
        };
        let block_bytes = plan.kv.block_bytes();
        let slots = config.adapter_slots as usize;
        let staging = AdapterStaging::new(device.pinned_memory(), block_bytes, config.staging_bytes_max, slots);
        let digest = base.digest();
        let matmul = match config.matmul {
            Matmul::Own => String::new(),
            Matmul::CublasLt { rows_min } => format!(", cublaslt from {rows_min} rows"),
        };
        let format = format!("bf16, {:?} kv{matmul}", config.kv_format);
        let parts = [digest.as_bytes().as_slice(), format.as_bytes()];
        Ok(Self {
            shape,
            fingerprint: Digest::of_parts("tenon 2026-11 cuda runner", parts),
            block_bytes,
            staging,
            memory_bytes: plan.bytes,
            matmul: config.matmul,
            steps: Steps::new(device, base, plan, config)?,
            model,
        })
    }

    /// As receipts call it: with cuBLASLt it is another, since a row's bits may depend on its batch.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.matmul {
            Matmul::Own => "cuda",
            Matmul::CublasLt { .. } => "cuda-cublaslt",
        }
    }

    /// What adapters must be packed for.
    #[must_use]
    pub const fn precision(&self) -> Precision {
        Precision::Bf16
    }

    /// Device memory that it has, all of it from the start.
    #[must_use]
    pub const fn device_memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Where adapters are made ready for their loads, by other threads. A load of one that was not takes as long on the
    /// engine's thread as a copy of it.
    #[must_use]
    pub const fn staging(&self) -> &AdapterStaging {
        &self.staging
    }

    /// Bytes of adapters that loads had to copy themselves, since they were not ready.
    #[must_use]
    pub const fn load_copied_bytes(&self) -> u64 {
        self.steps.copied_bytes()
    }

    /// Steps that were launched as a whole, and steps that were not.
    #[must_use]
    pub const fn step_counts(&self) -> [u64; 2] {
        self.steps.counts()
    }

    /// Runs one step and gives the logits of its samples, `[samples, vocabulary]`, instead of drawing from them.
    ///
    /// # Errors
    /// As [`ModelRunner::step`].
    pub fn step_logits(&mut self, batch: &Batch) -> Result<Vec<f32>, RunnerError> {
        self.check(batch)?;
        let mut logits = Vec::new();
        self.steps.run(batch, &self.model, |steps, pass| steps.read_logits(pass, &mut logits))?;
        Ok(logits)
    }

    /// Whether an adapter is still on its way to the device: for tests, which have to see that nobody waited for it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn is_loading(&mut self) -> Result<bool, RunnerError> {
        self.steps.is_loading().map_err(step_failed)
    }

    /// The content of a block as it lies on the device: for tests, which have to see that nothing is left in it.
    ///
    /// # Errors
    /// If there is no such block or the device fails.
    pub fn read_block(&self, block: u32) -> Result<Vec<u8>, RunnerError> {
        self.steps.read_block(block, self.block_bytes).map_err(step_failed)
    }

    fn check(&self, batch: &Batch) -> Result<(), RunnerError> {
        check::batch(batch, &self.shape, self.steps.drawn(), |slot| self.steps.has_adapter(slot))
    }
}

impl ModelRunner for CudaRunner {
    type Adapter = LoraAdapter;

    fn shape(&self) -> RunnerShape {
        self.shape
    }

    fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    fn adapter_blocks(&self, adapter: &LoraAdapter) -> u32 {
        adapter.device_factors().map_or(0, |factors| adapters::blocks_of(factors, self.block_bytes))
    }

    fn load_adapter(&mut self, slot: Slot, adapter: &Arc<LoraAdapter>, blocks: &[u32]) -> Result<(), RunnerError> {
        let factors = adapter.device_factors().filter(|_| adapter.fits(&self.model, Precision::Bf16));
        let factors = factors.ok_or_else(|| RunnerError::Adapter("it was packed for another base or runner".into()))?;
        let image = self.staging.find(adapter);
        self.steps.load_adapter(slot, (factors, image.as_deref()), blocks).inspect_err(say_if_lost)?;
        self.staging.note_slot(slot, Some(adapter));
        Ok(())
    }

    fn unload_adapter(&mut self, slot: Slot) {
        self.steps.unload_adapter(slot);
        self.staging.note_slot(slot, None);
    }

    fn step(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        self.submit(batch)?;
        self.collect(batch, sampled)
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), RunnerError> {
        self.check(batch)?;
        self.steps.submit(batch, &self.model).inspect_err(say_if_lost)
    }

    fn collect(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        self.steps.collect(batch, sampled).inspect_err(say_if_lost)
    }
}

/// Once: whoever was told asks for nothing more.
fn say_if_lost(error: &RunnerError) {
    if let RunnerError::Lost(why) = error {
        tracing::error!(
            why,
            "the CUDA device is lost to this process, and every request is refused: restart the host; if it comes again \
             run `tenon selftest --cuda`, and look for `Xid` in the kernel's log"
        );
    }
}

/// What the device says at the start.
fn failed(error: CudaError) -> ModelError {
    ModelError::Device(error.to_string())
}

/// What the device says in a step.
fn step_failed(error: CudaError) -> RunnerError {
    if error.is_lost() { RunnerError::Lost(error.to_string()) } else { RunnerError::Failed(error.to_string()) }
}
