//! A step: its tables in one copy, copies and wipes of blocks, the layers, the output layer in passes, the draws. Steps of few
//! rows are graphs that were recorded at the start, one for each bucket of rows and with adapters or without. Not here: the
//! launches (`forward.rs`).

use std::ops::Range;

use engine::{Batch, RunnerError, SampledToken, Slot};
use kernels::cuda::ops::copy_wipe::BlockPool;
use kernels::cuda::ops::sample::SampleArgs;
use kernels::cuda::{CudaError, Device, DeviceMemory, DeviceRange, Event, Graph, LoraTile};

use super::adapters::Adapters;
use super::draw::{ANSWER_WORDS, Draw};
use super::flight::Flight;
use super::forward::{Forward, Kernels, Shape};
use super::plan::{Buffers, MOVES_WORDS, Plan};
use super::runs::{RunLimits, Runs};
use super::source::Source;
use super::staging::StagedImage;
use super::tables::AttentionWay;
use super::{CudaRunnerConfig, failed, step_failed};
use crate::adapter::DeviceFactors;
use crate::{ModelConfig, ModelError};

/// Words before the pairs or numbers in the table of copies and wipes: their count, and room to be aligned.
const MOVES_HEAD: usize = 4;

/// The recorded steps of one bucket.
struct Recorded {
    without_adapters: Graph,
    /// None if there are no slots.
    with_adapters: Option<Graph>,
}

/// Everything that lives on the device, and the buffers on the way to it.
pub(super) struct Steps {
    // Dropped in this order: what uses the memory, the memory, the device.
    graphs: Vec<Recorded>,
    adapters: Adapters,
    kernels: Kernels,
    /// Of the step that was submitted last, and of the one before it.
    newest: Flight,
    oldest: Flight,
    /// Of these, steps that were not collected.
    under_way: usize,
    /// Draws of the step that was submitted last.
    drawn: usize,
    /// Reached when the last step has read everything.
    step_end: Event,
    runs: Runs,
    buffers: Buffers<DeviceRange>,
    pool: DeviceRange,
    plan: Plan,
    memory: DeviceMemory,
    device: Device,
    split_tile_rows: u32,
    rows_tile_rows: u32,
    counts: [u64; 2],
}

/// A pass of the output layer whose logits lie on the device.
#[derive(Clone, Debug)]
pub(super) struct HeadPass {
    samples: Range<usize>,
}

impl Steps {
    pub(super) fn new(
        device: Device,
        base: Source<'_>,
        plan: Plan,
        config: &CudaRunnerConfig,
    ) -> Result<Self, ModelError> {
        use kernels::cuda::ops::attention::{rows_tile_rows, split_tile_rows};
        let model = base.config();
        let memory = device.allocate(plan.bytes).map_err(failed)?;
        // What is never written must not be what another program left.
        device.compute().fill(memory.range(), 0).map_err(failed)?;
        plan.weights.upload(base, device.compute(), &memory)?;
        let (heads, kv_heads) = (model.heads as u32, model.kv_heads as u32);
        let buffers = plan.buffers.in_memory(&memory).map_err(failed)?;
        let pool = memory.part(plan.pool.at, plan.pool.bytes).map_err(failed)?;
        let words = plan.layouts.iter().chain([&plan.plain_layout]).map(|layout| layout.bytes / 4).max().unwrap_or(0);
        let adapters = Adapters::new(
            &device,
            config.adapter_slots,
            model.layers,
            plan.pieces_max,
            plan.kv.block_bytes(),
            [buffers.pieces, pool],
        );
        let entries = plan.plain_layout.sizes.entries;
        let mut steps = Self {
            graphs: Vec::new(),
            adapters: adapters.map_err(failed)?,
            kernels: Kernels::load(&device, &plan, model.head_dim, config.matmul, buffers.dense).map_err(failed)?,
            newest: Flight::new(&device, &plan, words).map_err(failed)?,
            oldest: Flight::new(&device, &plan, words).map_err(failed)?,
            under_way: 0,
            drawn: 0,
            step_end: Event::new(&device).map_err(failed)?,
            runs: Runs::with_capacity(config.batch_rows_max as usize, entries),
            buffers,
            pool,
            memory,
            split_tile_rows: split_tile_rows(heads, kv_heads),
            rows_tile_rows: rows_tile_rows(heads, kv_heads),
            counts: [0, 0],
            plan,
            device,
        };
        if config.graphs {
            steps.graphs = steps.record(model, config.adapter_slots > 0).map_err(failed)?;
        }
        steps.device.synchronize().map_err(failed)?;
        Ok(steps)
    }

    /// Steps that were graphs, and others.
    pub(super) const fn counts(&self) -> [u64; 2] {
        self.counts
    }

    /// Draws of the step that was submitted last: the next one may name them.
    pub(super) const fn drawn(&self) -> usize {
        self.drawn
    }

    pub(super) fn has_adapter(&self, slot: Slot) -> bool {
        self.adapters.is_loaded(slot)
    }

    pub(super) fn load_adapter(
        &mut self,
        slot: Slot,
        adapter: (&DeviceFactors, Option<&StagedImage>),
        blocks: &[u32],
    ) -> Result<(), RunnerError> {
        self.adapters.load(&self.device, slot, adapter, blocks, &self.step_end)
    }

    pub(super) fn is_loading(&mut self) -> Result<bool, CudaError> {
        self.adapters.is_arriving(|_| true)
    }

    /// Bytes of adapters that the engine's thread has copied.
    pub(super) const fn copied_bytes(&self) -> u64 {
        self.adapters.copied_bytes()
    }

    pub(super) fn unload_adapter(&mut self, slot: Slot) {
        if let Err(error) = self.adapters.unload(slot, self.device.compute()) {
            // The next step fails likewise, and says so to those that wait for it.
            tracing::error!(%error, "an adapter's upload cannot be waited for");
        }
    }

    pub(super) fn read_block(&self, block: u32, block_bytes: usize) -> Result<Vec<u8>, CudaError> {
        let mut bytes = vec![0; block_bytes];
        self.device.compute().download_now(self.pool.part(block as usize * block_bytes, block_bytes)?, &mut bytes)?;
        Ok(bytes)
    }

    fn forward<'a>(&'a self, model: &'a ModelConfig) -> Forward<'a> {
        Forward {
            kernels: &self.kernels,
            model,
            plan: &self.plan,
            memory: &self.memory,
            buffers: &self.buffers,
            pool: self.pool,
            slots: self.adapters.slots(),
        }
    }

    fn record(&self, model: &ModelConfig, has_slots: bool) -> Result<Vec<Recorded>, CudaError> {
        let buckets = self.plan.buckets.iter().zip(&self.plan.layouts);
        let graphs = buckets.map(|(rows, layout)| {
            let items = 0..u32::try_from(*rows).unwrap_or(u32::MAX);
            let graph = |passes: &[Range<u32>]| {
                let tile = LoraTile::Rows8;
                let shape = Shape { layout, rows: *rows, tiles: *rows, splits: true, passes, tile };
                self.device.compute().record_graph(|stream| {
                    let forward = self.forward(model);
                    forward.layers(stream, &shape, |_| Ok(()))?;
                    forward.head(stream, layout, 0, *rows)
                })
            };
            let with_adapters = has_slots.then(|| graph(std::slice::from_ref(&items))).transpose()?;
            Ok(Recorded { without_adapters: graph(&[])?, with_adapters })
        });
        graphs.collect()
    }

    /// Begins a batch that was checked, behind one that may be under way.
    pub(super) fn submit(&mut self, batch: &Batch, model: &ModelConfig) -> Result<(), RunnerError> {
        if self.under_way >= 2 {
            return Err(RunnerError::Malformed("two steps are under way".into()));
        }
        std::mem::swap(&mut self.newest, &mut self.oldest);
        self.newest.clear();
        let ran = self.run(batch, model, |steps, pass| steps.draw(batch, pass));
        let ran = ran.and_then(|()| self.newest.ends_here(self.device.compute()));
        match ran {
            Ok(()) => (self.under_way, self.drawn) = (self.under_way + 1, batch.samples.len()),
            // The one before is collected yet.
            Err(_) => std::mem::swap(&mut self.newest, &mut self.oldest),
        }
        ran
    }

    /// Waits for the step that was submitted first, with this batch, and appends what it drew.
    pub(super) fn collect(&mut self, batch: &Batch, sampled: &mut Vec<SampledToken>) -> Result<(), RunnerError> {
        let flight = match self.under_way {
            0 => return Err(RunnerError::Malformed("no step is under way".into())),
            1 => &mut self.newest,
            _ => &mut self.oldest,
        };
        self.under_way -= 1;
        flight.collect(batch, sampled)
    }

    /// Runs a batch that was checked; `answer` is called for each pass of the output layer, while its logits lie on the device.
    pub(super) fn run(
        &mut self,
        batch: &Batch,
        model: &ModelConfig,
        answer: impl FnMut(&mut Self, &HeadPass) -> Result<(), RunnerError>,
    ) -> Result<(), RunnerError> {
        let ran = self.run_layers(batch, model, answer);
        // Of a step that failed too: what it was given still reads and writes blocks.
        let ended = self.device.compute().record(&self.step_end).map_err(step_failed);
        ran.and(ended)
    }

    fn run_layers(
        &mut self,
        batch: &Batch,
        model: &ModelConfig,
        mut answer: impl FnMut(&mut Self, &HeadPass) -> Result<(), RunnerError>,
    ) -> Result<(), RunnerError> {
        self.move_blocks(batch).map_err(step_failed)?;
        if batch.tokens.is_empty() {
            return Ok(());
        }
        let used = |slot: Slot| batch.segments.iter().any(|segment| segment.slot == slot);
        let arriving = self.adapters.is_arriving(used).map_err(step_failed)?;
        let recorded = !arriving && self.launch_recorded(batch)?;
        if recorded {
            self.counts[0] += 1;
        } else {
            self.run_plainly(batch, model)?;
            self.counts[1] += 1;
        }
        let head_rows = self.plan.head_rows;
        for (pass, first) in (0..batch.samples.len()).step_by(head_rows).enumerate() {
            let end = batch.samples.len().min(first + head_rows);
            if !recorded {
                let forward = self.forward(model);
                let layout = &self.plan.plain_layout;
                forward.head(self.device.compute(), layout, pass, end - first).map_err(step_failed)?;
            }
            answer(self, &HeadPass { samples: first..end })?;
        }
        Ok(())
    }

    /// Launches the graph of the least bucket that has room. False if none has.
    fn launch_recorded(&mut self, batch: &Batch) -> Result<bool, RunnerError> {
        let Some(bucket) = self.plan.buckets.iter().position(|rows| *rows >= batch.tokens.len()) else {
            return Ok(false);
        };
        let (Some(layout), Some(graph)) = (self.plan.layouts.get(bucket), self.graphs.get(bucket)) else {
            return Ok(false);
        };
        let limits = RunLimits { tile_rows: LoraTile::Rows8.rows(), scratch: self.plan.scratch };
        let fits = self.runs.build(&batch.segments, limits, |slot| self.adapters.stride(slot));
        if !fits || self.runs.passes.len() > 1 || !layout.holds(batch, &self.runs) {
            return Ok(false);
        }
        let way = AttentionWay::Split { tile_rows: self.split_tile_rows, units_max: self.plan.partial_units };
        let words = self.newest.tables.as_mut_slice().map_err(step_failed)?;
        let Some(written) = layout.write(batch, &self.runs, way, words) else { return Ok(false) };
        let graph = match &graph.with_adapters {
            Some(with_adapters) if !self.runs.items.is_empty() => with_adapters,
            _ => &graph.without_adapters,
        };
        let compute = self.device.compute();
        compute.upload(&mut self.newest.tables, 0..written.words, self.buffers.tables).map_err(step_failed)?;
        graph.launch(compute).map_err(step_failed)?;
        Ok(true)
    }

    fn run_plainly(&mut self, batch: &Batch, model: &ModelConfig) -> Result<(), RunnerError> {
        let rows = batch.tokens.len();
        let is_few = rows <= self.plan.head_rows;
        let tile = if is_few { LoraTile::Rows8 } else { LoraTile::Rows32 };
        let limits = RunLimits { tile_rows: tile.rows(), scratch: self.plan.scratch };
        let layout = &self.plan.plain_layout;
        let fits = self.runs.build(&batch.segments, limits, |slot| self.adapters.stride(slot));
        if !fits || !layout.holds(batch, &self.runs) {
            let what = "more sequences, or more adapters on its rows, than there is room for in one step";
            return Err(RunnerError::Malformed(what.into()));
        }
        let split = AttentionWay::Split { tile_rows: self.split_tile_rows, units_max: self.plan.partial_units };
        let all = AttentionWay::Rows { tile_rows: self.rows_tile_rows };
        let words = self.newest.tables.as_mut_slice().map_err(step_failed)?;
        let written = if is_few { layout.write(batch, &self.runs, split, words) } else { None };
        let splits = written.is_some();
        let written = written.or_else(|| layout.write(batch, &self.runs, all, words));
        let written = written.ok_or_else(|| RunnerError::Failed("the tables of a step found no room".into()))?;
        let compute = self.device.compute();
        compute.upload(&mut self.newest.tables, 0..written.words, self.buffers.tables).map_err(step_failed)?;
        let shape = Shape { layout, rows, tiles: written.tiles, splits, passes: &self.runs.passes, tile };
        let before = |layer: usize| self.adapters.wait_for_layer(layer, compute);
        self.forward(model).layers(compute, &shape, before).map_err(step_failed)
    }

    /// Copies in their order, then wipes: as many at a time as a table holds.
    fn move_blocks(&mut self, batch: &Batch) -> Result<(), CudaError> {
        let compute = self.device.compute();
        let (blocks, room) =
            (BlockPool { pool: self.pool, block_bytes: self.plan.kv.block_bytes() as u64 }, MOVES_WORDS);
        let (count, list) =
            (self.buffers.moves.part(0, 4)?, self.buffers.moves.part(MOVES_HEAD * 4, (room - MOVES_HEAD) * 4)?);
        for copies in batch.copies.chunks((room - MOVES_HEAD) / 2) {
            let words = self.newest.copies.as_mut_slice()?;
            let number = write_moves(words, copies.len(), copies.iter().flat_map(|copy| [copy.from, copy.to]));
            compute.upload(&mut self.newest.copies, 0..MOVES_HEAD + 2 * copies.len(), self.buffers.moves)?;
            self.kernels.copy_wipe.copy(compute, blocks, list, count, number)?;
        }
        for wipes in batch.wipes.chunks(room - MOVES_HEAD) {
            let words = self.newest.wipes.as_mut_slice()?;
            let number = write_moves(words, wipes.len(), wipes.iter().copied());
            compute.upload(&mut self.newest.wipes, 0..MOVES_HEAD + wipes.len(), self.buffers.moves)?;
            self.kernels.copy_wipe.wipe(compute, blocks, list, count, number)?;
        }
        Ok(())
    }

    /// Has the tokens of a pass drawn: by one launch, unless they ask for much.
    fn draw(&mut self, batch: &Batch, pass: &HeadPass) -> Result<(), RunnerError> {
        let HeadPass { samples } = pass;
        let mut first = samples.start;
        while first < samples.end {
            let limits = self.plan.draw;
            let too_much = || RunnerError::Malformed("a sample asks for too many alternatives or penalties".into());
            let mut draw = Draw::of(batch, first, samples.end, &limits).ok_or_else(too_much)?;
            let words = self.newest.next_draw(batch)?.asked.as_mut_slice().map_err(step_failed)?;
            let used = draw.write(batch, &limits, words).ok_or_else(too_much)?;
            self.launch_draw(batch, &draw, first - samples.start, used)?;
            first = draw.samples.end;
            self.newest.note_launched(draw);
        }
        Ok(())
    }

    /// `row` is the first sample's among the logits.
    fn launch_draw(&mut self, batch: &Batch, draw: &Draw, row: usize, used: usize) -> Result<(), RunnerError> {
        let buffers = self.newest.next_draw(batch)?;
        let compute = self.device.compute();
        let vocabulary = self.plan.weights.output().outputs;
        let samples = draw.samples.len();
        let row_bytes = vocabulary * 4;
        let part = |buffer: DeviceRange, at: usize, bytes: usize| buffer.part(at, bytes).map_err(step_failed);
        let words = |buffer: DeviceRange, words: &Range<usize>| part(buffer, words.start * 4, words.len() * 4);
        let [rows, ids, logprobs] = draw.answers();
        let to = part(self.buffers.answers, draw.samples.start * ANSWER_WORDS * 4, logprobs.end * 4)?;
        compute.upload(&mut buffers.asked, 0..used, self.buffers.draw).map_err(step_failed)?;
        let args = SampleArgs {
            logits: part(self.buffers.logits, row * row_bytes, samples * row_bytes)?,
            params: words(self.buffers.draw, &draw.params)?,
            seen: words(self.buffers.draw, &draw.seen)?,
            biases: words(self.buffers.draw, &draw.biases)?,
            masks: words(self.buffers.draw, &draw.masks)?,
            raw: self.buffers.raw,
            out: words(to, &rows)?,
            top_ids: words(to, &ids)?,
            top_logprobs: words(to, &logprobs)?,
            samples: part(self.buffers.draw, 0, 4)?,
            samples_max: u32::try_from(samples).unwrap_or(u32::MAX),
            vocabulary: u32::try_from(vocabulary).unwrap_or(u32::MAX),
            alternatives_max: u32::try_from(draw.alternatives).unwrap_or(u32::MAX),
        };
        self.kernels.sample.launch(compute, &args).map_err(step_failed)?;
        compute.download(to, &mut buffers.answers, 0..logprobs.end).map_err(step_failed)
    }

    /// Appends the logits of a pass.
    pub(super) fn read_logits(&self, pass: &HeadPass, logits: &mut Vec<f32>) -> Result<(), RunnerError> {
        let values = pass.samples.len() * self.plan.weights.output().outputs;
        let first = logits.len();
        logits.resize(first + values, 0.0);
        let range = self.buffers.logits.part(0, values * 4).map_err(step_failed)?;
        let to = logits.get_mut(first..).unwrap_or_default();
        self.device.compute().download_now(range, to).map_err(step_failed)
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        // A step without samples has nobody who waits for it, and may still run the code that is unloaded next.
        if let Err(error) = self.device.synchronize() {
            tracing::warn!(%error, "the device could not be waited for");
        }
    }
}

/// Writes how many there are, and behind it the numbers.
fn write_moves(words: &mut [u32], count: usize, numbers: impl Iterator<Item = u32>) -> u32 {
    let count = u32::try_from(count).unwrap_or(0);
    words.iter_mut().take(1).for_each(|word| *word = count);
    words.iter_mut().skip(MOVES_HEAD).zip(numbers).for_each(|(word, number)| *word = number);
    count
}
