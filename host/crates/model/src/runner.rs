//! The CPU runner: executes a batch layer by layer over the base, the KV memory and the adapter slots.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use engine::{Batch, ModelRunner, RunnerError, RunnerShape, SampledToken, Slot};

use crate::{Base, LoraAdapter, ModelError};

/// In which numbers the base's linear layers are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Weights dequantised to f32 once, at load: the reference.
    F32,
    /// Weights as they lie in the file.
    Quantised,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Quantised => "quantised",
        })
    }
}

impl FromStr for Precision {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        match text {
            "f32" => Ok(Self::F32),
            "quantised" => Ok(Self::Quantised),
            _ => Err(ModelError::Configuration(format!("precision `{text}` is not known: use f32 or quantised"))),
        }
    }
}

/// The sizes of a CPU runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuRunnerConfig {
    /// Numbers of the base's linear layers.
    pub precision: Precision,
    /// Tokens in one KV block.
    pub block_tokens: u32,
    /// KV blocks in all.
    pub kv_blocks: u32,
    /// Adapter slots in all.
    pub adapter_slots: u32,
    /// Rows of a batch.
    pub batch_rows_max: u32,
    /// Threads of the runner's own pool.
    pub threads: usize,
}

/// Runs batches on the CPU.
pub struct CpuRunner {
    shape: RunnerShape,
}

impl CpuRunner {
    /// Loads the base's weights and reserves KV memory.
    ///
    /// # Errors
    /// If a size is zero or too large, or a tensor is missing or has the wrong shape.
    pub fn new(_base: &Base, _config: CpuRunnerConfig) -> Result<Self, ModelError> {
        Err(ModelError::Unsupported("not written yet".into()))
    }

    /// Runs one step and gives the logits of its samples, `[samples, vocabulary]`, instead of drawing from them.
    ///
    /// # Errors
    /// As [`ModelRunner::step`].
    pub fn step_logits(&mut self, _batch: &Batch) -> Result<Vec<f32>, RunnerError> {
        Err(RunnerError::Failed("not written yet".into()))
    }
}

impl ModelRunner for CpuRunner {
    type Adapter = LoraAdapter;

    fn shape(&self) -> RunnerShape {
        self.shape
    }

    fn load_adapter(&mut self, _slot: Slot, _adapter: &Arc<LoraAdapter>) -> Result<(), RunnerError> {
        Err(RunnerError::Failed("not written yet".into()))
    }

    fn unload_adapter(&mut self, _slot: Slot) {}

    fn step(&mut self, _batch: &Batch, _sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        Err(RunnerError::Failed("not written yet".into()))
    }
}
