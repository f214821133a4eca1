//! The device's memory, decided before any of it is taken: the base, what a step works in, its tables, and all that is left as
//! blocks for KV and adapters. One allocation under a ceiling that is never crossed, since nothing is allocated afterwards.

use kernels::cuda::ops::dense::{CublasLt, DenseShape};
use kernels::cuda::ops::linear::workspace_bytes;
use kernels::cuda::{CudaError, DeviceMemory, DeviceRange, KvLayout, WeightFormat};

use super::draw::{ANSWER_WORDS, DrawLimits};
use super::pieces::{ALL_GROUPS, least_block_bytes, pieces_max};
use super::source::Source;
use super::spans::{Span, Spans};
use super::tables::{TableLayout, TableSizes};
use super::weights::{MatrixPlan, WeightsPlan};
use super::{CudaRunnerConfig, Matmul};
use crate::{ModelConfig, ModelError};

/// Rows that decode steps are recorded for, at most; also the rows of one pass of the output layer.
const GRAPH_ROWS_MAX: usize = 128;
/// Adapters of a row that a recorded step has room for, on average. One with more is launched plainly.
const ROW_ENTRIES: usize = 8;
/// Passes of the LoRA kernels in a recorded step, which has one, and room for what comes behind.
const PASSES: usize = 64;
/// Values of A x that there is room for, for each row of a step: a rank of 64 on q, k and v, or four of 16.
const ROW_SCRATCH: usize = 256;
/// Modules that read the same input, at most: q, k and v.
const MODULES: usize = 3;
/// What the driver takes for itself besides: its context, code, graphs. One part in so many of what is free, and at most so much.
const RESERVE_PART: usize = 16;
const RESERVE_BYTES_MAX: usize = 512 << 20;
/// A x is summed in so many parts, at most.
const SCRATCH_PARTS: usize = 4;
/// The largest rank of an adapter.
pub(super) const RANK_MAX: usize = 256;
/// Partial results of attention, for each row of a decode step: contexts of 8,192 tokens on average.
const ROW_PARTIALS: usize = 32;
const ALTERNATIVES: usize = 1 << 12;
/// Words of the table of copies or wipes of one launch.
pub(super) const MOVES_WORDS: usize = 1 << 12;
/// Words of a descriptor of a piece: `LoraPiece`.
pub(super) const PIECE_WORDS: usize = 24;
/// Of the memory that is free, what is taken if no ceiling is given.
const SHARE_PERCENT: usize = 90;

/// What a step works in; `T` is where each part lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers<T> {
    /// f32 `[rows, hidden]`
    pub(super) stream: T,
    /// bf16 `[rows, hidden]`
    pub(super) normed: T,
    /// f32 `[rows, widest joint output]`
    pub(super) wide: T,
    /// bf16 `[rows, widest input of o and down]`
    pub(super) narrow: T,
    /// f32 `[rows, hidden]`
    pub(super) added: T,
    /// f16 `[rows, heads, head_dim]`
    pub(super) queries: T,
    /// f32 `[units, heads, head_dim]`
    pub(super) partials: T,
    /// f32 `[units, heads, 2]`
    pub(super) partial_sums: T,
    /// Of the linear layers.
    pub(super) workspace: T,
    /// Of cuBLASLt: a matrix in rows, and what it works in.
    pub(super) dense: T,
    /// f32: A x of adapters.
    pub(super) scratch: T,
    /// bf16 `[head rows, hidden]`
    pub(super) head: T,
    /// f32 `[head rows, vocabulary]`
    pub(super) logits: T,
    /// What the sampling kernel is told and answers.
    pub(super) draw: T,
    pub(super) raw: T,
    /// Each launch's behind those of the draws before it in its step: ids and log-probabilities of a step's draws are one
    /// array, which the next step's embedding reads.
    pub(super) answers: T,
    /// Copies and wipes of blocks.
    pub(super) moves: T,
    /// What the other kernels are told.
    pub(super) tables: T,
    /// Descriptors of adapters.
    pub(super) pieces: T,
}

impl Buffers<Span> {
    pub(super) fn in_memory(&self, memory: &DeviceMemory) -> Result<Buffers<DeviceRange>, CudaError> {
        let part = |span: Span| memory.part(span.at, span.bytes);
        Ok(Buffers {
            stream: part(self.stream)?,
            normed: part(self.normed)?,
            wide: part(self.wide)?,
            narrow: part(self.narrow)?,
            added: part(self.added)?,
            queries: part(self.queries)?,
            partials: part(self.partials)?,
            partial_sums: part(self.partial_sums)?,
            workspace: part(self.workspace)?,
            dense: part(self.dense)?,
            scratch: part(self.scratch)?,
            head: part(self.head)?,
            logits: part(self.logits)?,
            draw: part(self.draw)?,
            raw: part(self.raw)?,
            answers: part(self.answers)?,
            moves: part(self.moves)?,
            tables: part(self.tables)?,
            pieces: part(self.pieces)?,
        })
    }
}

/// Everything's place and size.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) weights: WeightsPlan,
    pub(super) buffers: Buffers<Span>,
    pub(super) pool: Span,
    pub(super) kv: KvLayout,
    pub(super) blocks: u32,
    /// Tokens of a sequence that there are rotary turns of.
    pub(super) context: usize,
    pub(super) head_rows: usize,
    /// Values of A x.
    pub(super) scratch: u32,
    pub(super) partial_units: u32,
    /// Pieces of one group of a layer.
    pub(super) pieces_max: usize,
    pub(super) draw: DrawLimits,
    /// Products that go to cuBLASLt, if any do.
    pub(super) dense: Vec<DenseShape>,
    /// Draws of a step, in as many launches as they take.
    pub(super) draws_max: usize,
    /// Rows that steps are recorded for, ascending.
    pub(super) buckets: Vec<usize>,
    /// Of each bucket.
    pub(super) layouts: Vec<TableLayout>,
    /// Of steps that are not recorded.
    pub(super) plain_layout: TableLayout,
    pub(super) bytes: usize,
}

impl Plan {
    /// `free_bytes` is what the device has to give now.
    pub(super) fn new(base: Source<'_>, config: &CudaRunnerConfig, free_bytes: usize) -> Result<Self, ModelError> {
        let model = base.config();
        let (rows, slots) = (config.batch_rows_max as usize, config.adapter_slots as usize);
        let kv = kv_layout(model, config)?;
        let head_rows = rows.min(GRAPH_ROWS_MAX);
        let buckets = buckets(head_rows);
        let mut spans = Spans::default();
        let context = model.context_tokens_max.min(config.context_tokens_max as usize);
        let weights = WeightsPlan::new(base, context, &mut spans)?;
        let weights_bytes = spans.bytes();

        // One row with the most and largest adapters must find room: then every step does, in as many passes as it needs.
        let row_adapters = config.row_adapters_max as usize;
        let scratch = if slots == 0 { 0 } else { (rows * ROW_SCRATCH).max(row_adapters * MODULES * RANK_MAX) };
        let partial_units = head_rows * context.div_ceil(256).min(ROW_PARTIALS);
        let pieces_max = pieces_max(model, RANK_MAX, kv.block_bytes());
        let draw = DrawLimits {
            samples: head_rows,
            adjusted: context.max(model.vocabulary),
            mask_words: model.vocabulary.div_ceil(32),
            alternatives: ALTERNATIVES,
        };
        let blocks_of_a_sequence = context.div_ceil(kv.block_tokens());
        let layout = |rows: usize, row_entries: usize, passes: usize| {
            TableLayout::new(TableSizes {
                rows,
                head_rows,
                entries: if slots == 0 { 0 } else { rows * row_entries + 64 },
                passes,
                blocks: rows.min(config.sequences_max as usize).saturating_mul(blocks_of_a_sequence),
            })
        };
        let plain_layout = layout(rows, row_adapters, rows.max(PASSES));
        let dense = dense_shapes(model, &weights, config)?;
        let descriptors = slots * pieces_max;
        let sizes = Sizes { model, rows, head_rows, scratch, partial_units, descriptors, draw, dense: &dense };
        let buffers = sizes.buffers(&weights, &plain_layout, &mut spans);
        let fixed_bytes = spans.bytes();

        let reserve = (free_bytes / RESERVE_PART).min(RESERVE_BYTES_MAX);
        let ceiling = match config.device_memory_bytes_max {
            Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX).min(free_bytes - reserve),
            None => free_bytes / 100 * SHARE_PERCENT,
        };
        let block_bytes = kv.block_bytes();
        let left = ceiling.saturating_sub(fixed_bytes) / block_bytes;
        // What is asked for in bytes is a ceiling too, of adapters and KV together.
        let asked = config.kv_bytes_max.map_or(u64::MAX, |bytes| bytes / block_bytes.max(1) as u64);
        let left = left.min(usize::try_from(asked).unwrap_or(usize::MAX));
        let blocks = u32::try_from(left).unwrap_or(u32::MAX).min(config.kv_blocks_max.unwrap_or(u32::MAX));
        if blocks == 0 || blocks as usize * kv.block_tokens() < 2 {
            return Err(ModelError::Configuration(format!(
                "the base takes {weights_bytes} bytes of device memory, a step of {rows} rows and its tables {}, a block of \
                 KV {block_bytes}; {ceiling} are allowed of {free_bytes} that are free: raise device_memory_bytes_max or \
                 kv_bytes_max, or lower batch_rows_max or the context",
                fixed_bytes - weights_bytes
            )));
        }
        let pool = spans.take(blocks as usize, block_bytes);
        Ok(Self {
            weights,
            buffers,
            pool,
            kv,
            blocks,
            context,
            head_rows,
            scratch: u32::try_from(scratch).unwrap_or(u32::MAX),
            partial_units: u32::try_from(partial_units).unwrap_or(u32::MAX),
            pieces_max,
            draw,
            dense,
            draws_max: rows,
            layouts: buckets.iter().map(|rows| layout(*rows, ROW_ENTRIES, PASSES)).collect(),
            buckets,
            plain_layout,
            bytes: spans.bytes(),
        })
    }
}

fn kv_layout(model: &ModelConfig, config: &CudaRunnerConfig) -> Result<KvLayout, ModelError> {
    let tokens = config.block_tokens as usize;
    let layout = KvLayout::new(model.layers, model.kv_heads, model.head_dim, tokens, config.kv_format);
    let layout = layout.ok_or_else(|| {
        let head_dim = model.head_dim;
        ModelError::Configuration(format!(
            "blocks of {tokens} tokens and heads of {head_dim}: the CUDA runner has blocks of a power of two, at most 256, and \
             heads of 32, 64, 96 or 128"
        ))
    })?;
    let least = least_block_bytes(model);
    if config.adapter_slots > 0 && layout.block_bytes() < least {
        return Err(ModelError::Configuration(format!(
            "a block of {tokens} tokens has {} bytes; adapters, which share these blocks, need {least}: raise block_tokens",
            layout.block_bytes()
        )));
    }
    Ok(layout)
}

/// The matrices that cuBLASLt multiplies with: those of the layers that are in bf16.
fn dense_shapes(
    model: &ModelConfig,
    weights: &WeightsPlan,
    config: &CudaRunnerConfig,
) -> Result<Vec<DenseShape>, ModelError> {
    let Matmul::CublasLt { rows_min } = config.matmul else { return Ok(Vec::new()) };
    if rows_min > config.batch_rows_max {
        return Err(ModelError::Configuration(format!(
            "cuBLASLt multiplies {rows_min} rows or more, and a step has {} at most: raise batch_rows_max, or leave matmul out",
            config.batch_rows_max
        )));
    }
    let strides = ALL_GROUPS.map(|group| group.modules().iter().map(|module| model.module_shape(*module).1).sum());
    let groups = weights.layers.iter().flat_map(|layer| layer.groups.iter().zip(strides));
    let matrices = groups.flat_map(|(matrices, y_stride)| matrices.iter().map(move |matrix| (matrix, y_stride)));
    let mut shapes = Vec::new();
    for (matrix, y_stride) in matrices.filter(|(matrix, _)| matrix.format == WeightFormat::Bf16) {
        let shape = DenseShape { outputs: matrix.outputs, inputs: matrix.inputs, y_stride };
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    if shapes.is_empty() {
        return Err(ModelError::Configuration(
            "cuBLASLt multiplies with bf16 weights, and no layer of this base has any: leave matmul out".into(),
        ));
    }
    Ok(shapes)
}

/// Powers of two, and the most.
fn buckets(rows_max: usize) -> Vec<usize> {
    let powers = (0..usize::BITS).map(|power| 1usize << power).take_while(|rows| *rows < rows_max);
    powers.chain([rows_max]).collect()
}

struct Sizes<'a> {
    model: &'a ModelConfig,
    rows: usize,
    head_rows: usize,
    scratch: usize,
    partial_units: usize,
    /// Of adapters, for each group of a layer.
    descriptors: usize,
    draw: DrawLimits,
    dense: &'a [DenseShape],
}

impl Sizes<'_> {
    fn buffers(&self, weights: &WeightsPlan, tables: &TableLayout, spans: &mut Spans) -> Buffers<Span> {
        let Self { model, rows, head_rows, .. } = *self;
        let (queries, keys) = (model.heads * model.head_dim, model.kv_heads * model.head_dim);
        // It does not grow with the rows: few need more than many.
        let of_rows =
            |matrix: &MatrixPlan| (1..=rows).map(|rows| workspace_bytes(matrix.outputs, matrix.inputs, rows)).max();
        let workspace = weights.matrices().filter_map(of_rows).max().unwrap_or(0);
        let mut take = |values: usize, bytes: usize| spans.take(values, bytes);
        Buffers {
            stream: take(rows * model.hidden, 4),
            normed: take(rows * model.hidden, 2),
            wide: take(rows * (queries + 2 * keys).max(2 * model.intermediate), 4),
            narrow: take(rows * queries.max(model.intermediate), 2),
            added: take(rows * model.hidden, 4),
            queries: take(rows * queries, 2),
            partials: take(self.partial_units * queries, 4),
            partial_sums: take(self.partial_units * model.heads * 2, 4),
            workspace: take(workspace, 1),
            dense: take(if self.dense.is_empty() { 0 } else { CublasLt::scratch_bytes(self.dense) }, 1),
            scratch: take(self.scratch * SCRATCH_PARTS, 4),
            head: take(head_rows * model.hidden, 2),
            logits: take(head_rows * model.vocabulary, 4),
            draw: take(self.draw.words(), 4),
            raw: take(2 * self.draw.adjusted, 4),
            answers: take(rows * ANSWER_WORDS + self.draw.answer_words(), 4),
            moves: take(MOVES_WORDS, 4),
            tables: take(tables.bytes, 1),
            pieces: take(self.descriptors * model.layers * 4 * PIECE_WORDS, 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_and_the_most() {
        assert_eq!(buckets(1), [1]);
        assert_eq!(buckets(8), [1, 2, 4, 8]);
        assert_eq!(buckets(100), [1, 2, 4, 8, 16, 32, 64, 100]);
    }
}
