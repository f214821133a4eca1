//! One step through the layers. The batch was checked; shapes are the base's.
//!
//! Rows are independent but for attention, which reads the paged KV: a row sees its own sequence's earlier rows of the same
//! batch because a layer writes all keys and values before it attends. Each operation gives a row the same bits whatever
//! rows are beside it, so that a step does.

use std::ops::Range;
use std::sync::Arc;

use engine::{Batch, LoraSegment};
use kernels::{
    Amx, AttentionScratch, AttentionSequence, Buffer, HeadNorms, Isa, LoraRun, LoraScratch, PackedMatrix, PagedKv,
    QuantisedRows, RopeRows, Team, TileRows, TileScratch, embed_rows, matmul_lora, matmul_lora_gated,
    matmul_lora_tiles, paged_attention, rms_norm_rows, rope_rows, swiglu_rows, takes_tiles,
};
use types::Module;

use super::weights::Weights;
use crate::adapter::{GROUPS, Group};
use crate::{LoraAdapter, ModelConfig};

/// Rows for which there is room from the start; a larger step makes its own.
const ROWS_AT_ONCE: usize = 512;
/// Of a cache line.
const LINE_VALUES: usize = 16;

/// Activations, kept from step to step for their memory.
pub(super) struct Buffers {
    /// `[rows, hidden]`, the residual stream.
    stream: Buffer<f32>,
    /// `[rows, hidden]`
    normed: Buffer<f32>,
    /// `[rows, q + k + v]`, later of asked rows in tiles `[rows, gate + up]`, each row [`padded`].
    wide: Buffer<f32>,
    /// `[rows, heads, head_dim]`, later of asked rows in tiles `[rows, intermediate]`.
    narrow: Buffer<f32>,
    /// The input of a linear layer in int8.
    activations: QuantisedRows,
    /// What the gate lets through, of drawn tokens.
    gated: QuantisedRows,
    /// The same in bf16, of asked tokens.
    tiles: TileRows,
    tile_scratch: TileScratch,
    /// (block, offset) of each row's keys and values.
    places: Vec<(u32, u32)>,
    sequences: Vec<AttentionSequence<'static>>,
    runs: Vec<LoraRun<'static>>,
    attention: AttentionScratch,
    /// Of the linear layers of drawn and of asked rows: what was planned for one is right for those of the other layers.
    lora: [[LoraScratch; GROUPS.len()]; 2],
}

impl Buffers {
    /// Room for steps of this many rows.
    pub(super) fn new(config: &ModelConfig, rows: usize, [activations, gated]: [QuantisedRows; 2]) -> Self {
        let queries = config.heads * config.head_dim;
        let projected = queries + 2 * config.kv_heads * config.head_dim;
        let room = |width: usize| Buffer::with_capacity(rows.min(ROWS_AT_ONCE).saturating_mul(width));
        Self {
            stream: room(config.hidden),
            normed: room(config.hidden),
            wide: room(padded(projected.max(2 * config.intermediate))),
            narrow: room(queries.max(config.intermediate)),
            activations,
            gated,
            tiles: TileRows::default(),
            tile_scratch: TileScratch::default(),
            places: Vec::with_capacity(rows),
            sequences: Vec::with_capacity(rows),
            runs: Vec::with_capacity(rows),
            attention: AttentionScratch::default(),
            lora: Default::default(),
        }
    }
}

/// A step in progress.
pub(super) struct Forward<'a> {
    pub(super) team: &'a Team<'a>,
    pub(super) isa: Isa,
    /// What asked tokens are multiplied with, if not with what drawn ones are.
    pub(super) amx: Option<Amx>,
    pub(super) batch: &'a Batch,
    pub(super) config: &'a ModelConfig,
    pub(super) weights: &'a Weights,
    pub(super) rope: &'a RopeRows,
    pub(super) kv: &'a mut PagedKv,
    pub(super) slots: &'a [Option<Arc<LoraAdapter>>],
    pub(super) buffers: &'a mut Buffers,
}

impl Forward<'_> {
    /// Writes the KV of every row and leaves the residual stream of the last layer.
    pub(super) fn run(&mut self) {
        self.batch.copies.iter().for_each(|copy| self.kv.copy_block(copy.from, copy.to));
        self.batch.wipes.iter().for_each(|block| self.kv.wipe_block(*block));
        self.embed();
        self.find_places();
        for layer in 0..self.config.layers {
            self.attend(layer);
            self.feed_forward(layer);
        }
    }

    /// The inputs of the output layer, one row for each sample.
    pub(super) fn sampled_rows(&mut self) -> &QuantisedRows {
        let (hidden, samples) = (self.config.hidden, &self.batch.samples);
        let Buffers { stream, normed, narrow, activations, .. } = &mut *self.buffers;
        narrow.resize(samples.len() * hidden);
        for (row, sample) in narrow.chunks_exact_mut(hidden).zip(samples) {
            row.copy_from_slice(&stream[sample.row as usize * hidden..][..hidden]);
        }
        normed.resize(narrow.len());
        rms_norm_rows(self.team, self.isa, narrow, &self.weights.output_norm, self.config.rms_epsilon, normed);
        activations.fill(self.team, self.isa, normed, samples.len(), hidden);
        activations
    }

    fn rows(&self) -> usize {
        self.batch.tokens.len()
    }

    fn embed(&mut self) {
        let stream = &mut self.buffers.stream;
        stream.resize(self.batch.tokens.len() * self.config.hidden);
        embed_rows(self.team, &self.weights.embedding, &self.batch.tokens, stream);
    }

    /// Where each row's keys and values go: the same in every layer.
    fn find_places(&mut self) {
        let block_tokens = self.kv.block_tokens();
        self.buffers.places.clear();
        for sequence in &self.batch.sequences {
            let table = &self.batch.block_tables[sequence.blocks.start as usize..sequence.blocks.end as usize];
            let positions = &self.batch.positions[sequence.rows.start as usize..sequence.rows.end as usize];
            let place = |position: &u32| {
                let position = *position as usize;
                (table[position / block_tokens], (position % block_tokens) as u32)
            };
            self.buffers.places.extend(positions.iter().map(place));
        }
    }

    fn attend(&mut self, layer: usize) {
        let (config, weights, team, isa) = (self.config, &self.weights.layers[layer], self.team, self.isa);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let rows = self.rows();
        let Buffers { stream, normed, wide, .. } = &mut *self.buffers;
        normed.resize(stream.len());
        rms_norm_rows(team, isa, stream, &weights.attention_norm, config.rms_epsilon, normed);
        let stride = padded(queries + 2 * keys);
        wide.resize(rows * stride);
        self.linear(layer, Group::QueryKeyValue, Place::Normed, Place::Wide);

        let Buffers { wide, narrow, places, sequences, attention, .. } = &mut *self.buffers;
        let norms = weights.query_key_norms.as_ref().map(|[query, key]| HeadNorms {
            query,
            key,
            query_heads: config.heads,
            epsilon: config.rms_epsilon,
        });
        let heads = config.heads + config.kv_heads;
        let positions = &self.batch.positions;
        rope_rows(team, isa, self.rope, config.rope, positions, wide, stride, 0, heads, config.head_dim, norms);
        self.kv.write(team, isa, layer, places, wide, stride, queries, queries + keys);

        narrow.resize(rows * queries);
        let mut attending = recycled(std::mem::take(sequences));
        attending.extend(self.batch.sequences.iter().map(|sequence| AttentionSequence {
            blocks: &self.batch.block_tables[sequence.blocks.start as usize..sequence.blocks.end as usize],
            first_position: self.batch.positions[sequence.rows.start as usize] as usize,
            rows: sequence.rows.start as usize..sequence.rows.end as usize,
            amx: self.amx.filter(|_| sequence.rows.start >= self.batch.drawn_rows),
        }));
        paged_attention(team, isa, self.kv, layer, &attending, wide, stride, 0, config.heads, narrow, attention);
        *sequences = recycled(attending);
        self.linear(layer, Group::Output, Place::Narrow, Place::Stream);
    }

    fn feed_forward(&mut self, layer: usize) {
        let (config, weights, team, isa) = (self.config, &self.weights.layers[layer], self.team, self.isa);
        let rows = self.rows();
        let Buffers { stream, normed, .. } = &mut *self.buffers;
        rms_norm_rows(team, isa, stream, &weights.feed_forward_norm, config.rms_epsilon, normed);
        // Of drawn rows the gate and the up values stay where they are computed.
        let asked = rows - self.drawn(self.tiles_of(layer, Group::GateUp));
        let Buffers { wide, narrow, .. } = &mut *self.buffers;
        wide.resize(asked * padded(2 * config.intermediate));
        narrow.resize(asked * config.intermediate);
        self.linear(layer, Group::GateUp, Place::Normed, Place::Gated);
        let Buffers { wide, narrow, .. } = &mut *self.buffers;
        swiglu_rows(team, isa, wide, config.intermediate, narrow);
        self.linear(layer, Group::Down, Place::Gated, Place::Stream);
    }

    /// What asked rows are multiplied with in these layers, if not with what drawn ones are: the same in a whole feed-forward network,
    /// as what lies between is kept in one form.
    fn tiles_of(&self, layer: usize, group: Group) -> Option<Amx> {
        let weights = &self.weights.layers[layer];
        let takes = |group: Group| group.modules().iter().all(|module| takes_tiles(weights.module(*module).format()));
        let groups: &[Group] = match group {
            Group::GateUp | Group::Down => &[Group::GateUp, Group::Down],
            _ => &[group],
        };
        self.amx.filter(|_| groups.iter().all(|group| takes(*group)))
    }

    /// The rows before the asked ones.
    fn drawn(&self, tiles: Option<Amx>) -> usize {
        tiles.map_or(self.rows(), |_| self.batch.drawn_rows as usize)
    }

    /// y = Wx + Σᵢ δᵢ(x) for modules of equal input, into `wide` or added to `stream`; their outputs lie one after the other
    /// in each row. δᵢ is wᵢ·sᵢ·Bᵢ(Aᵢx), or what DoRA makes of it and of the plain Wx: no δ sees another's. Of gate and up values
    /// only what the gate lets through is kept of drawn rows, in `gated`.
    fn linear(&mut self, layer: usize, group: Group, from: Place, to: Place) {
        let (team, isa, rows) = (self.team, self.isa, self.batch.tokens.len());
        let weights = &self.weights.layers[layer];
        let mut room = [weights.module(Module::Q); 3];
        let modules = group.modules();
        modules.iter().zip(&mut room).for_each(|(module, matrix)| *matrix = weights.module(*module));
        let matrices: &[&PackedMatrix] = &room[..modules.len()];
        let amx = self.tiles_of(layer, group);
        let drawn = self.drawn(amx);
        let inputs = matrices[0].inputs();
        let Buffers { stream, normed, wide, narrow, activations, gated, tiles, tile_scratch, runs, lora, .. } =
            &mut *self.buffers;
        let (drawn_x, asked_x): (&[f32], &[f32]) = match from {
            Place::Gated => (&[], narrow),
            Place::Normed => normed.split_at(drawn * inputs),
            _ => narrow.split_at(drawn * inputs),
        };
        let (drawn_y, asked_y): (&mut [f32], &mut [f32]) = match to {
            Place::Gated => (&mut [], wide),
            Place::Stream => split_rows(stream, rows, drawn),
            _ => split_rows(wide, rows, drawn),
        };
        let accumulate = to == Place::Stream;
        let mut adding = recycled(std::mem::take(runs));
        let segments = || self.batch.segments.iter();
        if drawn > 0 {
            if from != Place::Gated {
                activations.fill(team, isa, drawn_x, drawn, inputs);
            }
            team.upcoming(self.weights.after(layer, group));
            adding.extend(segments().filter_map(|segment| run(self.slots, segment, 0..drawn, layer, group)));
            let (next_layer, next) = group.after(layer);
            let next = segments().filter_map(|segment| run(self.slots, segment, 0..drawn, next_layer, next));
            let lora = &mut lora[0][group as usize];
            lora.upcoming(next.map(|run| run.group));
            match (matrices, to) {
                (&[gate, up], Place::Gated) => {
                    matmul_lora_gated(team, isa, [gate, up], activations, gated, &adding, lora);
                }
                _ => {
                    let x = if from == Place::Gated { &*gated } else { &*activations };
                    matmul_lora(team, isa, matrices, x, drawn_y, accumulate, &adding, lora);
                }
            }
        }
        if let Some(amx) = amx.filter(|_| drawn < rows) {
            tiles.fill(team, amx, asked_x, rows - drawn, inputs);
            adding.clear();
            adding.extend(segments().filter_map(|segment| run(self.slots, segment, drawn..rows, layer, group)));
            if !adding.is_empty() {
                // Adapters are multiplied in int8 everywhere.
                activations.fill(team, isa, asked_x, rows - drawn, inputs);
            }
            let (x, lora) = ((&*tiles, &*activations), &mut lora[1][group as usize]);
            matmul_lora_tiles(team, isa, amx, matrices, x, asked_y, accumulate, &adding, lora, tile_scratch);
        }
        *runs = recycled(adding);
    }
}

/// Values of a row with what is behind it, so that the same place of many rows is in many sets of a cache: an odd number of cache
/// lines. Rows that are a multiple of 4 KiB apart would share one set.
const fn padded(width: usize) -> usize {
    (width.div_ceil(LINE_VALUES) | 1) * LINE_VALUES
}

/// So many of the rows, and the others.
fn split_rows(values: &mut [f32], rows: usize, first: usize) -> (&mut [f32], &mut [f32]) {
    values.split_at_mut(first * (values.len() / rows.max(1)))
}

/// What a linear layer reads or writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Normed,
    Narrow,
    Wide,
    Stream,
    /// What the gate lets through: of drawn rows `gated`; of asked ones `wide` is written and `narrow` is read.
    Gated,
}

/// What a segment's adapter adds to these modules in these rows, if it adds something; rows are counted from the first of them.
fn run<'a>(
    slots: &'a [Option<Arc<LoraAdapter>>],
    segment: &LoraSegment,
    of: Range<usize>,
    layer: usize,
    group: Group,
) -> Option<LoraRun<'a>> {
    if !segment.layers.contains(u32::try_from(layer).unwrap_or(u32::MAX)) {
        return None;
    }
    let packed = slots.get(segment.slot.0 as usize)?.as_ref()?.group(layer, group)?;
    let slots = (0..).zip(group.modules()).filter(|(_, module)| segment.modules.contains(**module));
    let enabled = slots.fold(0, |bits, (slot, _)| bits | 1u8 << slot);
    let start = (segment.rows.start as usize).max(of.start);
    let end = (segment.rows.end as usize).min(of.end);
    let rows = start.saturating_sub(of.start)..end.saturating_sub(of.start);
    (enabled != 0 && start < end).then_some(LoraRun { rows, group: packed, weight: segment.weight, enabled })
}

/// The memory of an emptied vector, for items of another lifetime.
fn recycled<T, U>(mut items: Vec<T>) -> Vec<U> {
    items.clear();
    items.into_iter().map(|_| unreachable!("it is empty")).collect()
}
