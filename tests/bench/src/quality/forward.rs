//! One runner that gives logits of chosen rows of one sequence. Not here: what they are compared with.

use std::ops::Range;
use std::sync::Arc;

use engine::{Batch, BatchSequence, LoraSegment, ModelRunner, SampleRequest, Slot};
use model::{Base, CpuRunner, CpuRunnerConfig, LoraAdapter, Precision, Prompts};
use types::{LayerRange, ModuleSet};

use super::{Composition, WINDOW};
use crate::Outcome;

const BLOCK_TOKENS: usize = 16;
/// Beyond the windows: prompts of the goldens with their answers.
const TOKENS_MAX: usize = 2 * WINDOW;

/// A runner with all adapters in slots.
pub(super) struct Forward {
    runner: CpuRunner,
    names: Vec<String>,
    vocabulary: usize,
}

impl Forward {
    /// # Errors
    /// If the base or an adapter cannot be run.
    pub(super) fn new(
        base: &Base,
        precision: Precision,
        threads: usize,
        adapters: &[(String, Arc<LoraAdapter>)],
    ) -> Outcome<Self> {
        let config = CpuRunnerConfig {
            precision,
            block_tokens: u32::try_from(BLOCK_TOKENS)?,
            kv_blocks: u32::try_from(TOKENS_MAX / BLOCK_TOKENS)?,
            adapter_slots: u32::try_from(adapters.len())?,
            batch_rows_max: u32::try_from(TOKENS_MAX)?,
            threads,
            prompts: Prompts::Auto,
        };
        let mut runner = CpuRunner::new(base, config)?;
        for (slot, (_, adapter)) in (0..).zip(adapters) {
            runner.load_adapter(Slot(slot), adapter, &[])?;
        }
        let names = adapters.iter().map(|(name, _)| name.clone()).collect();
        Ok(Self { runner, names, vocabulary: base.config().vocabulary })
    }

    /// Values of one row.
    pub(super) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Logits after each of these positions of the tokens, `[positions, vocabulary]`.
    ///
    /// # Errors
    /// If there are too many tokens, an adapter is not there, or the step fails.
    pub(super) fn logits(
        &mut self,
        tokens: &[u32],
        positions: Range<usize>,
        composition: &Composition,
    ) -> Outcome<Vec<f32>> {
        let rows = u32::try_from(tokens.len())?;
        let blocks = u32::try_from(tokens.len().div_ceil(BLOCK_TOKENS))?;
        let samples = u32::try_from(positions.start)?..u32::try_from(positions.end)?;
        let segment = |(name, weight): &(String, f32)| -> Outcome<LoraSegment> {
            let slot = self.names.iter().position(|known| known == name);
            let slot = slot.ok_or_else(|| format!("adapter {name} is not there"))?;
            let (modules, layers) = (ModuleSet::ALL, LayerRange::ALL);
            Ok(LoraSegment { rows: 0..rows, slot: Slot(u32::try_from(slot)?), weight: *weight, modules, layers })
        };
        let batch = Batch {
            tokens: tokens.to_vec(),
            positions: (0..rows).collect(),
            sequences: vec![BatchSequence { rows: 0..rows, blocks: 0..blocks }],
            block_tables: (0..blocks).collect(),
            segments: composition.iter().map(segment).collect::<Outcome<_>>()?,
            samples: samples.map(SampleRequest::greedy).collect(),
            ..Batch::default()
        };
        Ok(self.runner.step_logits(&batch)?)
    }
}
