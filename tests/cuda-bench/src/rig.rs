//! A runner over generated weights, and the batches that it is given. Not here: what is measured with them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use engine::{Batch, BatchSequence, LoraSegment, ModelRunner, SampleRequest, SampledToken, Slot};
use model::{CudaRunner, CudaRunnerConfig, GeneratedBase, KvFormat, LoraAdapter, Matmul, ModelConfig};
use types::{LayerRange, ModuleSet};

use crate::Outcome;
use crate::floor;
use crate::shapes::{Format, Shape};

const BLOCK_TOKENS: u32 = 16;
const SEED: u64 = 7;

/// What there must be room for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Room {
    /// Tokens of a sequence.
    pub(crate) context: usize,
    pub(crate) sequences: usize,
    /// Rows of a step.
    pub(crate) rows: usize,
    pub(crate) slots: usize,
    /// Adapters that lie on the device at once, and their rank; `None` takes all memory for blocks.
    pub(crate) adapters: Option<(usize, usize)>,
    /// Of device memory.
    pub(crate) ceiling: Option<u64>,
    pub(crate) matmul: Matmul,
}

/// A runner with its sizes.
pub(crate) struct Rig {
    pub(crate) runner: CudaRunner,
    pub(crate) config: ModelConfig,
    sampled: Vec<SampledToken>,
}

impl Rig {
    pub(crate) fn new(shape: &Shape, format: Format, room: &Room) -> Outcome<Self> {
        let start = Instant::now();
        let base = GeneratedBase { config: shape.config.clone(), format: format.file, seed: SEED };
        let block_bytes = floor::kv_bytes(&base.config, BLOCK_TOKENS as usize);
        let blocks = room.adapters.map(|(adapters, rank)| {
            // No matrix crosses a block's end: some of each block is lost.
            let each = (floor::adapter_bytes(&base.config, rank) / block_bytes * 1.5).ceil() as usize + 2;
            adapters * each + room.sequences * room.context.div_ceil(BLOCK_TOKENS as usize)
        });
        let config = CudaRunnerConfig {
            device_memory_bytes_max: room.ceiling,
            block_tokens: BLOCK_TOKENS,
            kv_blocks_max: blocks.map(small),
            kv_format: KvFormat::F16,
            context_tokens_max: small(room.context),
            adapter_slots: small(room.slots),
            batch_rows_max: small(room.rows),
            sequences_max: small(room.sequences),
            row_adapters_max: 8,
            matmul: room.matmul,
            graphs: true,
            kv_bytes_max: None,
            staging_bytes_max: 1 << 30,
        };
        let runner = CudaRunner::generated(&base, &config)?;
        let gigabytes = runner.device_memory_bytes() as f64 / 1e9;
        println!("{} in {}: {gigabytes:.1} GB in {:.1} s", shape.name, format.name, start.elapsed().as_secs_f64());
        Ok(Self { runner, config: base.config, sampled: Vec::new() })
    }

    /// A batch to be filled.
    pub(crate) fn batch(&self) -> Batches {
        Batches { batch: Batch::default(), vocabulary: self.runner.shape().vocabulary }
    }

    /// `rows` sequences of one row each at the end of `context` tokens, in the blocks from 0 on.
    pub(crate) fn decode(&self, rows: usize, context: usize) -> Batches {
        let mut batches = self.batch();
        let each = small(context).div_ceil(BLOCK_TOKENS);
        for sequence in 0..small(rows) {
            batches.sequence(small(context) - 1, 1, sequence * each..(sequence + 1) * each);
        }
        batches
    }

    /// Runs a step, to the drawn tokens in host memory, and says how long it took.
    pub(crate) fn step(&mut self, batch: &Batch) -> Outcome<f64> {
        let start = Instant::now();
        self.sampled.clear();
        self.runner.step(batch, &mut self.sampled)?;
        let seconds = start.elapsed().as_secs_f64();
        if self.sampled.len() != batch.samples.len() {
            return Err("a step gave another number of tokens than it was asked for".into());
        }
        Ok(seconds)
    }

    /// What the last step drew.
    pub(crate) fn sampled(&self) -> impl Iterator<Item = u32> {
        self.sampled.iter().map(|token| token.id)
    }

    /// Puts an adapter into a slot and the blocks that end at `end`; where they begin.
    pub(crate) fn load_below(&mut self, slot: usize, adapter: &Arc<LoraAdapter>, end: u32) -> Outcome<u32> {
        let first = end.checked_sub(self.runner.adapter_blocks(adapter)).ok_or("no blocks are left for an adapter")?;
        let blocks: Vec<u32> = (first..end).collect();
        self.runner.load_adapter(Slot(small(slot)), adapter, &blocks)?;
        Ok(first)
    }

    /// Adapters of this rank in the first slots, in the blocks behind those of the sequences.
    pub(crate) fn load_all(&mut self, adapters: &[Arc<LoraAdapter>]) -> Outcome {
        let mut end = self.runner.shape().kv_blocks;
        for (slot, adapter) in adapters.iter().enumerate() {
            end = self.load_below(slot, adapter, end)?;
        }
        Ok(())
    }

    /// Blocks of a sequence of so many tokens.
    pub(crate) fn blocks_of(tokens: usize) -> u32 {
        small(tokens).div_ceil(BLOCK_TOKENS)
    }

    /// Different adapters in host memory.
    pub(crate) fn adapters(&self, count: usize, rank: u32) -> Outcome<Vec<Arc<LoraAdapter>>> {
        let one = |seed| LoraAdapter::generated(&self.config, rank, seed).map(Arc::new).ok_or("no such adapter".into());
        (0..count as u64).map(one).collect()
    }
}

/// A batch and what fills it.
pub(crate) struct Batches {
    batch: Batch,
    vocabulary: u32,
}

impl Batches {
    /// Rows of a sequence from position `first` on, in these blocks; its last row is drawn from. Which rows they are.
    pub(crate) fn sequence(&mut self, first: u32, rows: u32, blocks: Range<u32>) -> Range<u32> {
        let batch = &mut self.batch;
        let row = small(batch.tokens.len());
        let vocabulary = u64::from(self.vocabulary.max(1));
        // Some tokens of all of the vocabulary: the embedding is read in many places.
        batch.tokens.extend((row..row + rows).map(|row| (u64::from(row + first) * 40_503 % vocabulary) as u32));
        batch.positions.extend(first..first + rows);
        let table = small(batch.block_tables.len());
        batch.sequences.push(BatchSequence { rows: row..row + rows, blocks: table..table + small(blocks.len()) });
        batch.block_tables.extend(blocks);
        batch.samples.push(SampleRequest::greedy(row + rows - 1));
        row..row + rows
    }

    /// An adapter on all modules of these rows.
    pub(crate) fn adapter(&mut self, rows: Range<u32>, slot: usize) {
        let (modules, layers) = (ModuleSet::ALL, LayerRange::ALL);
        self.batch.segments.push(LoraSegment { rows, slot: Slot(small(slot)), weight: 1.0, modules, layers });
    }

    /// The same for all rows: as many adapters as `distinct`, each on neighbouring rows.
    pub(crate) fn with_adapters(mut self, distinct: usize) -> Self {
        let rows = self.batch.tokens.len();
        for slot in 0..distinct {
            self.adapter(small(slot * rows / distinct)..small((slot + 1) * rows / distinct), slot);
        }
        self
    }

    /// Blocks that this step zeroes first.
    pub(crate) fn wipe(&mut self, blocks: impl IntoIterator<Item = u32>) {
        self.batch.wipes.extend(blocks);
    }

    pub(crate) fn done(self) -> Batch {
        self.batch
    }
}

/// No size here has more than a `u32` counts.
pub(crate) fn small(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}
