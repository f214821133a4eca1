//! The fast runner: repacked weights, int8 activations, bf16 keys and values, one pool of threads. Read `forward.rs` for
//! the layers and `head.rs` for what comes out. Not here: which rows make a batch.

mod forward;
mod head;
mod weights;

use std::sync::Arc;

use engine::{Batch, SampledToken};
use kernels::{Amx, BlockFormat, Isa, KvFormat, PagedKv, Pool, QuantisedRows, RopeRows};

use self::forward::{Buffers, Forward};
use self::head::Head;
use self::weights::Weights;
use super::{CpuRunnerConfig, Prompts};
use crate::{Base, LoraAdapter, ModelConfig, ModelError};

/// Positions in a block are the lanes of a vector.
const BLOCK_TOKENS_MULTIPLE: u32 = 16;

/// Everything but the adapters.
pub(super) struct Fast {
    isa: Isa,
    /// What asked tokens are computed with, if not with what drawn ones are.
    amx: Option<Amx>,
    pool: Pool,
    weights: Weights,
    rope: RopeRows,
    kv: PagedKv,
    buffers: Buffers,
    head: Head,
}

impl Fast {
    pub(super) fn new(base: &Base, config: &CpuRunnerConfig, context_tokens_max: usize) -> Result<Self, ModelError> {
        if !config.block_tokens.is_multiple_of(BLOCK_TOKENS_MULTIPLE) {
            return Err(ModelError::Configuration(format!(
                "{} tokens in a block: precision quantised takes a multiple of {BLOCK_TOKENS_MULTIPLE}",
                config.block_tokens
            )));
        }
        let model = base.config();
        let pool = Pool::new(config.threads)
            .map_err(|error| ModelError::Configuration(format!("{} threads: {error}", config.threads)))?;
        let (blocks, block_tokens) = (config.kv_blocks as usize, config.block_tokens as usize);
        let kv = PagedKv::new(KvFormat::Bf16, model.layers, blocks, block_tokens, model.kv_heads, model.head_dim);
        let kv = kv.ok_or_else(|| ModelError::Configuration(format!("{blocks} KV blocks are more than fit")))?;
        let weights = Weights::load(base)?;
        // Adapters are multiplied in int8, whatever the base is.
        let adapters = (config.adapter_slots > 0).then_some(BlockFormat::Q8_0);
        let activations = [(); 2].map(|()| QuantisedRows::for_formats(weights.formats().chain(adapters)));
        let amx = match config.prompts {
            Prompts::Auto if weights.take_tiles() => Amx::detect(),
            Prompts::Auto | Prompts::Int8 => None,
        };
        Ok(Self {
            isa: Isa::detect(),
            amx,
            buffers: Buffers::new(model, config.batch_rows_max as usize, activations),
            weights,
            rope: RopeRows::new(context_tokens_max, model.head_dim, model.rope_theta, &model.rope_divisors),
            kv,
            head: Head::new(pool.threads(), Isa::detect()),
            pool,
        })
    }

    /// Whether asked tokens are computed in a way of their own.
    pub(super) fn separates_prompts(&self) -> bool {
        self.amx.is_some()
    }

    /// Writes the KV of every row and draws a token for each of the batch's samples. The batch was checked.
    pub(super) fn step(
        &mut self,
        batch: &Batch,
        config: &ModelConfig,
        slots: &[Option<Arc<LoraAdapter>>],
        sampled: &mut Vec<SampledToken>,
    ) {
        let Self { isa, amx, pool, weights, rope, kv, buffers, head } = self;
        pool.step(|team| {
            let mut forward = Forward { team, isa: *isa, amx: *amx, batch, config, weights, rope, kv, slots, buffers };
            forward.run();
            head.sample(team, *isa, batch, weights.output(), forward.sampled_rows(), sampled);
        });
    }

    /// As [`Self::step`], but gives the logits, `[samples, vocabulary]`.
    pub(super) fn logits(
        &mut self,
        batch: &Batch,
        config: &ModelConfig,
        slots: &[Option<Arc<LoraAdapter>>],
    ) -> Vec<f32> {
        let Self { isa, amx, pool, weights, rope, kv, buffers, head } = self;
        pool.step(|team| {
            let mut forward = Forward { team, isa: *isa, amx: *amx, batch, config, weights, rope, kv, slots, buffers };
            forward.run();
            head.logits(team, *isa, batch.samples.len(), weights.output(), forward.sampled_rows())
        })
    }
}
