//! Our runner within this process, driven with batches made by hand, so that a step can be timed alone. Not here: the
//! scheduler, which the load over HTTP includes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Batch, BatchSequence, LoraSegment, ModelRunner, SampleRequest, SampledToken, Slot};
use model::{AdapterLimits, Base, CpuRunner, CpuRunnerConfig, LoraAdapter, Precision, Prompts, canonical_adapter};
use types::{LayerRange, ModuleSet};

use crate::Outcome;
use crate::adapters::RandomAdapter;

const BLOCK_TOKENS: usize = 16;
/// Rows of one step: the prompt of the longest prefill in one piece.
pub(crate) const ROWS_MAX: usize = 512;

/// Which adapters the sequences of a batch carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    Base,
    /// All the same one.
    Shared,
    /// Each its own, out of this many: sequence i has adapter i modulo it.
    Distinct(usize),
    /// Each two of its own.
    TwoEach,
}

impl Mix {
    /// As rows name it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Base => "base".into(),
            Self::Shared => "one shared".into(),
            Self::Distinct(usize::MAX) => "all distinct".into(),
            Self::Distinct(count) => format!("{count} distinct"),
            Self::TwoEach => "two each".into(),
        }
    }

    /// The adapters of a sequence, out of this many.
    pub(crate) fn adapters_of(self, sequence: usize, adapters: usize) -> Vec<usize> {
        match self {
            Self::Base => Vec::new(),
            Self::Shared => vec![0],
            Self::Distinct(count) => vec![sequence % count.clamp(1, adapters)],
            Self::TwoEach => vec![sequence % adapters, (sequence + 1) % adapters],
        }
    }
}

/// A runner, its adapters in their slots, and KV memory shared out evenly between the sequences of a batch.
pub(crate) struct Ours {
    runner: CpuRunner,
    kv_blocks: usize,
    vocabulary: usize,
    adapters: usize,
    adapter_bytes: usize,
    batch: Batch,
    sampled: Vec<SampledToken>,
    /// Makes every prompt another one.
    turn: usize,
}

impl Ours {
    /// With so many random adapters in slots and room for so many tokens.
    ///
    /// # Errors
    /// If the base cannot be run or an adapter does not fit.
    pub(crate) fn new(base: &Base, threads: usize, adapters: &[Arc<LoraAdapter>], kv_tokens: usize) -> Outcome<Self> {
        let kv_blocks = kv_tokens.div_ceil(BLOCK_TOKENS);
        let config = CpuRunnerConfig {
            precision: Precision::Quantised,
            block_tokens: u32::try_from(BLOCK_TOKENS)?,
            kv_blocks: u32::try_from(kv_blocks)?,
            adapter_slots: u32::try_from(adapters.len())?,
            batch_rows_max: u32::try_from(ROWS_MAX)?,
            threads,
            prompts: Prompts::Auto,
        };
        let mut runner = CpuRunner::new(base, config)?;
        for (slot, adapter) in (0..).zip(adapters) {
            runner.load_adapter(Slot(slot), adapter, &[])?;
        }
        Ok(Self {
            runner,
            kv_blocks,
            vocabulary: base.config().vocabulary,
            adapters: adapters.len(),
            adapter_bytes: adapters.iter().map(|adapter| adapter.memory_bytes()).max().unwrap_or_default(),
            batch: Batch::default(),
            sampled: Vec::new(),
            turn: 0,
        })
    }

    /// What one adapter takes in memory, packed.
    pub(crate) fn adapter_bytes(&self) -> usize {
        self.adapter_bytes
    }

    /// Time for a prompt of so many tokens, at most [`ROWS_MAX`], drawing the token after it included.
    ///
    /// # Errors
    /// If the step fails.
    pub(crate) fn prefill(&mut self, tokens: usize) -> Outcome<Duration> {
        self.turn += 1;
        self.lay_out(1, 0..tokens, Mix::Base)?;
        self.timed_step()
    }

    /// Time for so many decode steps of a batch after a short context; the first step after it is not counted.
    ///
    /// # Errors
    /// If a step fails.
    pub(crate) fn decode(&mut self, sequences: usize, mix: Mix, context: usize, steps: usize) -> Outcome<Duration> {
        self.turn += 1;
        for start in (0..context).step_by((ROWS_MAX / sequences).max(1)) {
            let end = (start + (ROWS_MAX / sequences).max(1)).min(context);
            self.lay_out(sequences, start..end, mix)?;
            self.timed_step()?;
        }
        self.decode_on(sequences, mix, context, steps)
    }

    /// Time for so many decode steps after a context that earlier calls computed; the first one is not counted.
    ///
    /// # Errors
    /// If a step fails.
    pub(crate) fn decode_on(&mut self, sequences: usize, mix: Mix, context: usize, steps: usize) -> Outcome<Duration> {
        let mut time = Duration::ZERO;
        for step in 0..=steps {
            self.lay_out(sequences, context + step..context + step + 1, mix)?;
            let taken = self.timed_step()?;
            time += if step == 0 { Duration::ZERO } else { taken };
        }
        Ok(time)
    }

    /// Extends a single sequence's context from one length to another, in steps of at most [`ROWS_MAX`] tokens.
    ///
    /// # Errors
    /// If a step fails.
    pub(crate) fn extend(&mut self, from: usize, to: usize) -> Outcome {
        for start in (from..to).step_by(ROWS_MAX) {
            self.lay_out(1, start..(start + ROWS_MAX).min(to), Mix::Base)?;
            self.timed_step()?;
        }
        Ok(())
    }

    fn timed_step(&mut self) -> Outcome<Duration> {
        self.sampled.clear();
        let started = Instant::now();
        self.runner.step(&self.batch, &mut self.sampled)?;
        Ok(started.elapsed())
    }

    /// The batch of these positions of so many sequences, each with the token after its last row.
    fn lay_out(&mut self, sequences: usize, positions: std::ops::Range<usize>, mix: Mix) -> Outcome {
        let blocks_each = self.kv_blocks / sequences;
        let blocks_needed = positions.end.div_ceil(BLOCK_TOKENS);
        if blocks_needed > blocks_each {
            return Err(
                format!("{sequences} sequences of {} tokens do not fit the bench's KV memory", positions.end).into()
            );
        }
        let mut batch = std::mem::take(&mut self.batch);
        clear(&mut batch);
        let mut segments: Vec<(Vec<usize>, std::ops::Range<u32>)> = Vec::new();
        for sequence in 0..sequences {
            let first_row = u32::try_from(batch.tokens.len())?;
            for position in positions.clone() {
                batch.tokens.push(self.token(sequence, position)?);
                batch.positions.push(u32::try_from(position)?);
            }
            let rows = first_row..u32::try_from(batch.tokens.len())?;
            let first_block = u32::try_from(batch.block_tables.len())?;
            for block in 0..blocks_needed {
                batch.block_tables.push(u32::try_from(sequence * blocks_each + block)?);
            }
            let blocks = first_block..u32::try_from(batch.block_tables.len())?;
            batch.samples.push(SampleRequest::greedy(rows.end - 1));
            let adapters = mix.adapters_of(sequence, self.adapters);
            match segments.last_mut().filter(|(last, _)| *last == adapters) {
                Some((_, all)) => all.end = rows.end,
                None => segments.push((adapters, rows.clone())),
            }
            batch.sequences.push(BatchSequence { rows, blocks });
        }
        for (adapters, rows) in segments {
            for adapter in adapters {
                let slot = Slot(u32::try_from(adapter)?);
                let (modules, layers) = (ModuleSet::ALL, LayerRange::ALL);
                batch.segments.push(LoraSegment { rows: rows.clone(), slot, weight: 1.0, modules, layers });
            }
        }
        // Steps of one token each decode.
        batch.drawn_rows = if positions.len() == 1 { u32::try_from(batch.tokens.len())? } else { 0 };
        self.batch = batch;
        Ok(())
    }

    /// Any token, another one for each place and turn.
    fn token(&self, sequence: usize, position: usize) -> Outcome<u32> {
        let mixed = self.turn.wrapping_mul(7919) + sequence.wrapping_mul(104_729) + position.wrapping_mul(31);
        Ok(u32::try_from(mixed % self.vocabulary)?)
    }
}

/// Empties a batch and keeps its memory.
fn clear(batch: &mut Batch) {
    batch.tokens.clear();
    batch.drawn_rows = 0;
    batch.positions.clear();
    batch.sequences.clear();
    batch.block_tables.clear();
    batch.segments.clear();
    batch.samples.clear();
}

/// Adapters of these numbers, packed for the base.
///
/// # Errors
/// If one is refused, which is a bug of this bench.
pub(crate) fn random_adapters(base: &Base, count: usize) -> Outcome<Vec<Arc<LoraAdapter>>> {
    let limits = AdapterLimits::default();
    let one = |number: usize| -> Outcome<Arc<LoraAdapter>> {
        let adapter = RandomAdapter::new(number as u64, base.config());
        let canonical = canonical_adapter(&adapter.peft_config(), &adapter.peft_weights(), base, &limits)?;
        Ok(Arc::new(LoraAdapter::from_canonical(&canonical.bytes, base, &limits, Precision::default())?))
    };
    (0..count).map(one).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A base of some kilobytes.
    pub(crate) fn tiny_base() -> Arc<Base> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, generators::base_file(&generators::Sizes::TINY)).expect("written");
        Base::open(&path).expect("a base")
    }

    #[test]
    fn a_mix_gives_each_sequence_its_adapters() {
        assert!(Mix::Base.adapters_of(5, 32).is_empty());
        assert_eq!(Mix::Shared.adapters_of(5, 32), [0]);
        assert_eq!(Mix::Distinct(usize::MAX).adapters_of(33, 32), [1]);
        assert_eq!(Mix::Distinct(4).adapters_of(5, 32), [1]);
        assert_eq!(Mix::TwoEach.adapters_of(31, 32), [31, 0]);
    }

    #[test]
    fn every_mix_runs_and_changes_what_is_drawn() {
        let base = tiny_base();
        let adapters = random_adapters(&base, 4).expect("adapters");
        let mut ours = Ours::new(&base, 1, &adapters, 512).expect("a runner");
        assert!(ours.prefill(40).is_ok() && ours.adapter_bytes() > 0);
        for mix in [Mix::Base, Mix::Shared, Mix::Distinct(usize::MAX), Mix::Distinct(2), Mix::TwoEach] {
            ours.decode(4, mix, 8, 3).expect("steps");
            assert_eq!(ours.sampled.len(), 4, "{mix:?}");
            let segments = match mix {
                Mix::Base => 0,
                Mix::Shared => 1,
                Mix::TwoEach => 8,
                Mix::Distinct(_) => 4,
            };
            assert_eq!(ours.batch.segments.len(), segments, "{mix:?}");
        }
        assert!(ours.decode(4, Mix::Base, 512, 1).is_err(), "too long for the KV memory");
    }
}
