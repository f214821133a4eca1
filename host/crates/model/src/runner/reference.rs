//! The f32 reference: the runner that the fast one is compared with, and the oracle of its tests. Not here: speed.

mod forward;
mod kv;
mod weights;

use std::sync::Arc;

use engine::Batch;
use kernels::{Isa, ReferencePool, RopeTable};

use self::forward::{Buffers, Forward};
use self::kv::KvMemory;
use self::weights::Weights;
use super::CpuRunnerConfig;
use crate::{Base, LoraAdapter, ModelConfig, ModelError};

/// Weights, keys and values in f32.
pub(super) struct Reference {
    isa: Isa,
    pool: ReferencePool,
    weights: Weights,
    rope: RopeTable,
    kv: KvMemory,
    buffers: Buffers,
}

impl Reference {
    pub(super) fn new(base: &Base, config: &CpuRunnerConfig, context_tokens_max: usize) -> Result<Self, ModelError> {
        let model = base.config();
        let pool = ReferencePool::new(config.threads)
            .map_err(|error| ModelError::Configuration(format!("cannot start {} threads: {error}", config.threads)))?;
        Ok(Self {
            isa: Isa::detect(),
            pool,
            weights: Weights::load(base)?,
            rope: RopeTable::with_layout(
                context_tokens_max,
                model.head_dim,
                model.rope_theta,
                model.rope,
                &model.rope_divisors,
            ),
            kv: KvMemory::new(model, config.kv_blocks as usize, config.block_tokens as usize)?,
            buffers: Buffers::default(),
        })
    }

    /// Writes the KV of every row and gives the logits of the sampled ones, `[samples, vocabulary]`. The batch was checked.
    pub(super) fn logits(
        &mut self,
        batch: &Batch,
        config: &ModelConfig,
        slots: &[Option<Arc<LoraAdapter>>],
    ) -> Vec<f32> {
        batch.copies.iter().for_each(|copy| self.kv.copy_block(copy.from as usize, copy.to as usize));
        batch.wipes.iter().for_each(|block| self.kv.wipe_block(*block as usize));
        let mut forward = Forward {
            batch,
            config,
            isa: self.isa,
            weights: &self.weights,
            rope: &self.rope,
            kv: &mut self.kv,
            slots,
            buffers: &mut self.buffers,
        };
        self.pool.run(|| forward.logits())
    }
}
