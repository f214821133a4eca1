//! The CPU runner, and `cuda.rs`, the other one. The CPU runner executes a batch layer by layer over the base, the KV memory and the adapter slots. Read
//! `fast/forward.rs` for the layers; `reference/` does the same in plain f32 and is what the fast one is measured against.
//! Not here: which rows make a batch.

mod check;
mod cuda;
mod either;
mod fast;
mod reference;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use engine::{Batch, ModelRunner, RunnerError, RunnerShape, SampledToken, Slot};
use serde::{Deserialize, Serialize};
use types::Digest;

pub use self::cuda::{AdapterStaging, CudaRunner, CudaRunnerConfig, Matmul, StagingStats};
pub use self::either::Runner;
use self::fast::Fast;
use self::reference::Reference;
use crate::sampler::sample;
use crate::{Base, LoraAdapter, ModelConfig, ModelError};

/// How the runner computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// All in f32, weights dequantised at load: the reference, at five times the memory and a fraction of the speed.
    F32,
    /// Weights in the file's own blocks, repacked without loss; activations in int8 with a scale for each 32 values; keys and
    /// values in bf16, and so are adapters; all sums in f32 or exact. `cargo xtask bench quality` measures what it costs.
    #[default]
    Quantised,
    /// Weights in the file's own blocks, activations and adapters in bf16, all sums in f32: on a CUDA device, which has no
    /// other, so that nobody has to ask for it.
    #[serde(skip)]
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Quantised => "quantised",
            Self::Bf16 => "bf16",
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

/// How the linear layers of asked tokens are computed where the precision is [`Precision::Quantised`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prompts {
    /// With rows and weights rounded to bf16 where the processor has AMX, which is more than twice as fast for many rows and no
    /// less exact; as all others elsewhere. Drawn tokens are computed with rows in int8 everywhere.
    #[default]
    Auto,
    /// As all others.
    Int8,
}

/// The sizes of a CPU runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuRunnerConfig {
    /// How the base's linear layers are kept.
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
    /// How asked tokens are computed.
    pub prompts: Prompts,
}

/// Runs batches on the CPU. A row's result does not depend, to the last bit, on what else is in the batch.
pub struct CpuRunner {
    shape: RunnerShape,
    fingerprint: Digest,
    config: ModelConfig,
    slots: Vec<Option<Arc<LoraAdapter>>>,
    way: Way,
}

/// How it computes: [`Precision`], with what that needs.
enum Way {
    Reference(Box<Reference>),
    Fast(Box<Fast>),
}

impl CpuRunner {
    /// Loads the base's weights and reserves KV memory.
    ///
    /// # Errors
    /// If a size is zero or too large, or a tensor is missing or has the wrong shape.
    pub fn new(base: &Base, config: CpuRunnerConfig) -> Result<Self, ModelError> {
        let sizes = [config.block_tokens, config.kv_blocks, config.batch_rows_max];
        if sizes.contains(&0) || config.block_tokens > 1 << 12 || config.adapter_slots > 1 << 20 {
            return Err(ModelError::Configuration(
                "block tokens (at most 4096), KV blocks and batch rows must be above 0, adapter slots at most 1048576"
                    .into(),
            ));
        }
        let model = base.config().clone();
        // A sequence cannot be longer than the KV memory, whatever the base could do.
        let kv_tokens = (config.kv_blocks as usize).saturating_mul(config.block_tokens as usize);
        let context_tokens_max = model.context_tokens_max.min(kv_tokens);
        let small = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let shape = RunnerShape {
            block_tokens: config.block_tokens,
            kv_blocks: config.kv_blocks,
            adapter_slots: config.adapter_slots,
            context_tokens_max: small(context_tokens_max),
            batch_rows_max: config.batch_rows_max,
            vocabulary: small(model.vocabulary),
        };
        let way = match config.precision {
            Precision::F32 => Way::Reference(Box::new(Reference::new(base, &config, context_tokens_max)?)),
            Precision::Quantised => Way::Fast(Box::new(Fast::new(base, &config, context_tokens_max)?)),
            Precision::Bf16 => {
                return Err(ModelError::Configuration(
                    "precision bf16 is of the CUDA runner: use f32 or quantised".into(),
                ));
            }
        };
        let format = match &way {
            Way::Reference(_) => "reference, f32 kv",
            Way::Fast(fast) if fast.separates_prompts() => "quantised, bf16 kv, prompts in bf16",
            Way::Fast(_) => "quantised, bf16 kv",
        };
        let digest = base.digest();
        let parts = [digest.as_bytes().as_slice(), format.as_bytes()];
        Ok(Self {
            shape,
            fingerprint: Digest::of_parts("tenon 2026-11 cpu runner", parts),
            slots: (0..config.adapter_slots).map(|_| None).collect(),
            way,
            config: model,
        })
    }

    /// Runs one step and gives the logits of its samples, `[samples, vocabulary]`, instead of drawing from them.
    ///
    /// # Errors
    /// As [`ModelRunner::step`].
    pub fn step_logits(&mut self, batch: &Batch) -> Result<Vec<f32>, RunnerError> {
        check::batch(batch, &self.shape, 0, |slot| self.slots.get(slot.0 as usize).is_some_and(Option::is_some))?;
        Ok(match &mut self.way {
            Way::Reference(reference) => reference.logits(batch, &self.config, &self.slots),
            Way::Fast(fast) => fast.logits(batch, &self.config, &self.slots),
        })
    }

    /// How it computes, and what adapters must be packed for.
    #[must_use]
    pub fn precision(&self) -> Precision {
        match &self.way {
            Way::Reference(_) => Precision::F32,
            Way::Fast(_) => Precision::Quantised,
        }
    }
}

impl ModelRunner for CpuRunner {
    type Adapter = LoraAdapter;

    fn shape(&self) -> RunnerShape {
        self.shape
    }

    fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    fn separates_prompts(&self) -> bool {
        matches!(&self.way, Way::Fast(fast) if fast.separates_prompts())
    }

    fn load_adapter(&mut self, slot: Slot, adapter: &Arc<LoraAdapter>, _: &[u32]) -> Result<(), RunnerError> {
        if !adapter.fits(&self.config, self.precision()) {
            return Err(RunnerError::Adapter("it was packed for another base".into()));
        }
        let place = self.slots.get_mut(slot.0 as usize);
        match place {
            Some(place @ None) => *place = Some(Arc::clone(adapter)),
            Some(Some(_)) => return Err(RunnerError::Malformed(format!("slot {} is not empty", slot.0))),
            None => return Err(RunnerError::Malformed(format!("there is no slot {}", slot.0))),
        }
        Ok(())
    }

    fn unload_adapter(&mut self, slot: Slot) {
        if let Some(place) = self.slots.get_mut(slot.0 as usize) {
            *place = None;
        }
    }

    fn step(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        check::batch(batch, &self.shape, 0, |slot| self.slots.get(slot.0 as usize).is_some_and(Option::is_some))?;
        match &mut self.way {
            Way::Reference(reference) => {
                let mut logits = reference.logits(batch, &self.config, &self.slots);
                let rows = logits.chunks_exact_mut(self.config.vocabulary);
                sampled.extend(rows.zip(&batch.samples).map(|(logits, request)| sample(logits, request, batch)));
            }
            Way::Fast(fast) => fast.step(batch, &self.config, &self.slots, sampled),
        }
        Ok(())
    }
}
