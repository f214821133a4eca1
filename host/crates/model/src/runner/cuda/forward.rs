//! The layers of a step, as launches on one stream: recorded into a graph, or run. The same launches either way, so that the
//! bits are the same. Not here: what the tables say.

use kernels::cuda::ops::attention::{Attention, AttentionArgs, AttentionPartials};
use kernels::cuda::ops::copy_wipe::CopyWipe;
use kernels::cuda::ops::dense::{CublasLt, DenseMatmul};
use kernels::cuda::ops::embed::{Embed, EmbedArgs};
use kernels::cuda::ops::linear::{Linear, LinearArgs, LinearWeights};
use kernels::cuda::ops::lora::{Lora, LoraArgs};
use kernels::cuda::ops::rms_norm::{GatherNormArgs, RmsNorm, RmsNormArgs};
use kernels::cuda::ops::rope_append::{DeviceHeadNorms, RopeAppend, RopeAppendArgs};
use kernels::cuda::ops::sample::Sample;
use kernels::cuda::ops::swiglu::{Swiglu, SwigluArgs};
use kernels::cuda::{CudaError, Device, DeviceMemory, DeviceRange, LoraGroupId, LoraTile, Stream};

use super::Matmul;
use super::plan::{Buffers, Plan};
use super::spans::Span;
use super::tables::TableLayout;
use super::weights::{LayerPlan, MatrixPlan};
use crate::ModelConfig;
use crate::adapter::Group;

/// Blocks that share the chunks of one tile of attention, if there are few tiles.
const CHUNK_BLOCKS_MAX: u32 = 16;
/// Likewise at least: one long context among many short ones would else be read by one block alone.
const CHUNK_BLOCKS_MIN: u32 = 4;
/// Blocks of attention that keep a device busy several times over. What is beyond finds no chunk where contexts are short.
const ATTENTION_BLOCKS_ENOUGH: u32 = 4096;

/// Every kernel of a step.
pub(super) struct Kernels {
    embed: Embed,
    norm: RmsNorm,
    rope: RopeAppend,
    attention: Attention,
    linear: Linear,
    /// What takes products of many rows, if it takes them.
    dense: Box<dyn DenseMatmul>,
    lora: Lora,
    swiglu: Swiglu,
    pub(super) copy_wipe: CopyWipe,
    pub(super) sample: Sample,
}

impl Kernels {
    /// Those for this base.
    pub(super) fn load(
        device: &Device,
        plan: &Plan,
        head_dim: usize,
        matmul: Matmul,
        scratch: DeviceRange,
    ) -> Result<Self, CudaError> {
        let linear = Linear::load(device)?;
        let rows_max = plan.plain_layout.sizes.rows;
        let dense: Box<dyn DenseMatmul> = match matmul {
            Matmul::Own => Box::new(linear.clone()),
            Matmul::CublasLt { rows_min } => {
                Box::new(CublasLt::new(device, scratch, &plan.dense, [rows_min as usize, rows_max])?)
            }
        };
        Ok(Self {
            embed: Embed::load(device, plan.weights.embedding.format)?,
            norm: RmsNorm::load(device)?,
            rope: RopeAppend::load(device)?,
            attention: Attention::load(device, head_dim)?,
            linear,
            dense,
            lora: Lora::load(device)?,
            swiglu: Swiglu::load(device)?,
            copy_wipe: CopyWipe::load(device)?,
            sample: Sample::load(device)?,
        })
    }
}

/// Which launches a step takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape<'a> {
    pub(super) layout: &'a TableLayout,
    /// Rows that the launches have room for.
    pub(super) rows: usize,
    /// Tiles of attention that they have room for.
    pub(super) tiles: usize,
    /// Whether attention is split among chunks of positions.
    pub(super) splits: bool,
    /// Items of adapters of each pass that they have room for; none if no adapter acts.
    pub(super) passes: &'a [std::ops::Range<u32>],
    pub(super) tile: LoraTile,
}

/// Everything that launches reach.
pub(super) struct Forward<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) model: &'a ModelConfig,
    pub(super) plan: &'a Plan,
    pub(super) memory: &'a DeviceMemory,
    pub(super) buffers: &'a Buffers<DeviceRange>,
    pub(super) pool: DeviceRange,
    /// Of adapters.
    pub(super) slots: usize,
}

impl Forward<'_> {
    /// All layers: the residual stream of every row without what the last one adds. `before` is called before each layer.
    pub(super) fn layers(
        &self,
        stream: &Stream,
        shape: &Shape<'_>,
        before: impl Fn(usize) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let embedding = &self.plan.weights.embedding;
        let args = EmbedArgs {
            stream: self.buffers.stream,
            table: self.part(embedding.span)?,
            tokens: self.table(shape.layout.tokens)?,
            drawn: self.buffers.answers,
            draws_max: self.plan.draws_max,
            rows: self.rows(shape)?,
            rows_max: shape.rows,
            vocabulary: self.model.vocabulary,
            width: self.model.hidden,
        };
        self.kernels.embed.launch(stream, &args)?;
        for (layer, plan) in self.plan.weights.layers.iter().enumerate() {
            before(layer)?;
            self.attend(stream, shape, layer, plan)?;
            self.feed_forward(stream, shape, layer, plan)?;
        }
        Ok(())
    }

    /// The logits of one pass of sampled rows, the first or one after it.
    pub(super) fn head(
        &self,
        stream: &Stream,
        layout: &TableLayout,
        pass: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        let head_rows = self.plan.head_rows;
        let sample_rows = self.table(layout.sample_rows)?;
        let counts = self.table(layout.sample_counts)?;
        let count = counts.part(pass * 4, 4)?;
        let args = GatherNormArgs {
            stream: self.buffers.stream,
            added: Some(self.buffers.added),
            weight: self.part(self.plan.weights.output_norm)?,
            out: self.buffers.head,
            ids: sample_rows.part(pass * head_rows * 4, rows * 4)?,
            rows: count,
            rows_max: rows,
            stream_rows: layout.sizes.rows,
            width: self.model.hidden,
            epsilon: self.model.rms_epsilon,
        };
        self.kernels.norm.launch_gather(stream, &args)?;
        let output = self.plan.weights.output();
        let places = LinearPlaces {
            x: self.buffers.head,
            y: self.buffers.logits,
            stride: self.model.vocabulary,
            rows: count,
            rows_max: rows,
        };
        self.linear(stream, output, &places)
    }

    fn attend(&self, stream: &Stream, shape: &Shape<'_>, layer: usize, plan: &LayerPlan) -> Result<(), CudaError> {
        let (model, buffers, layout) = (self.model, self.buffers, shape.layout);
        // What the layer before has added, if there was one.
        self.norm(stream, shape, (layer > 0).then_some(buffers.added), plan.attention_norm)?;
        let width = (model.heads + 2 * model.kv_heads) * model.head_dim;
        self.group(stream, shape, (layer, Group::QueryKeyValue), plan, [buffers.normed, buffers.wide], width)?;
        let norms = plan.head_norms.map(|[query, key]| {
            let epsilon = model.rms_epsilon;
            Ok::<_, CudaError>(DeviceHeadNorms { query: self.part(query)?, key: self.part(key)?, epsilon })
        });
        let args = RopeAppendArgs {
            q: buffers.queries,
            pool: self.pool,
            kv: self.plan.kv,
            layer: small(layer),
            qkv: buffers.wide,
            qkv_stride: small(width),
            positions: self.table(layout.positions)?,
            table_begins: self.table(layout.table_begins)?,
            block_tables: self.table(layout.block_tables)?,
            turns: self.part(self.plan.weights.turns)?,
            context: small(self.plan.context),
            norms: norms.transpose()?,
            heads: small(model.heads),
            layout: model.rope,
            rows: self.rows(shape)?,
            rows_max: small(shape.rows),
        };
        self.kernels.rope.launch(stream, &args)?;
        let args = AttentionArgs {
            out: buffers.narrow,
            q: buffers.queries,
            pool: self.pool,
            kv: self.plan.kv,
            layer: small(layer),
            heads: small(model.heads),
            positions: self.table(layout.positions)?,
            block_tables: self.table(layout.block_tables)?,
            tiles: self.table(layout.tiles)?,
            tiles_count: self.table(layout.counts)?.part(4, 4)?,
            tiles_max: small(shape.tiles),
            rows_max: small(shape.rows),
        };
        if shape.splits {
            let units = self.plan.partial_units;
            let partials = AttentionPartials { values: buffers.partials, sums: buffers.partial_sums, units };
            let chunk_blocks = chunk_blocks(args.tiles_max.saturating_mul(small(model.kv_heads)));
            self.kernels.attention.split(stream, &args, partials, chunk_blocks)?;
        } else {
            self.kernels.attention.rows(stream, &args)?;
        }
        self.group(stream, shape, (layer, Group::Output), plan, [buffers.narrow, buffers.added], model.hidden)
    }

    fn feed_forward(
        &self,
        stream: &Stream,
        shape: &Shape<'_>,
        layer: usize,
        plan: &LayerPlan,
    ) -> Result<(), CudaError> {
        let (model, buffers) = (self.model, self.buffers);
        self.norm(stream, shape, Some(buffers.added), plan.feed_forward_norm)?;
        let width = 2 * model.intermediate;
        self.group(stream, shape, (layer, Group::GateUp), plan, [buffers.normed, buffers.wide], width)?;
        let args = SwigluArgs {
            out: buffers.narrow,
            gate_up: buffers.wide,
            rows: self.rows(shape)?,
            rows_max: small(shape.rows),
            width: small(model.intermediate),
        };
        self.kernels.swiglu.launch(stream, &args)?;
        self.group(stream, shape, (layer, Group::Down), plan, [buffers.narrow, buffers.added], model.hidden)
    }

    fn norm(
        &self,
        stream: &Stream,
        shape: &Shape<'_>,
        added: Option<DeviceRange>,
        weight: Span,
    ) -> Result<(), CudaError> {
        let args = RmsNormArgs {
            stream: self.buffers.stream,
            added,
            weight: self.part(weight)?,
            out: self.buffers.normed,
            rows: self.rows(shape)?,
            rows_max: shape.rows,
            width: self.model.hidden,
            epsilon: self.model.rms_epsilon,
        };
        self.kernels.norm.launch(stream, &args)
    }

    /// The modules of one input, then what adapters add to them.
    fn group(
        &self,
        stream: &Stream,
        shape: &Shape<'_>,
        (layer, group): (usize, Group),
        plan: &LayerPlan,
        [x, y]: [DeviceRange; 2],
        stride: usize,
    ) -> Result<(), CudaError> {
        let matrices = plan.groups.get(group as usize).map(Vec::as_slice).unwrap_or_default();
        let places = LinearPlaces { x, y, stride, rows: self.rows(shape)?, rows_max: shape.rows };
        matrices.iter().try_for_each(|matrix| self.linear(stream, matrix, &places))?;
        self.adapters(stream, shape, (layer, group), [x, y], stride)
    }

    fn linear(&self, stream: &Stream, matrix: &MatrixPlan, places: &LinearPlaces) -> Result<(), CudaError> {
        let args = LinearArgs {
            weights: LinearWeights {
                format: matrix.format,
                outputs: matrix.outputs,
                inputs: matrix.inputs,
                data: self.part(matrix.span)?,
            },
            x: places.x,
            y: places.y,
            y_stride: places.stride,
            y_column: matrix.column,
            rows: places.rows,
            rows_max: places.rows_max,
            workspace: Some(self.buffers.workspace),
        };
        let Kernels { linear, dense, .. } = self.kernels;
        let product: &dyn DenseMatmul = if dense.takes(&args) { &**dense } else { linear };
        product.multiply(stream, &args)
    }

    fn adapters(
        &self,
        stream: &Stream,
        shape: &Shape<'_>,
        (layer, group): (usize, Group),
        [x, y]: [DeviceRange; 2],
        stride: usize,
    ) -> Result<(), CudaError> {
        let (mut outputs, mut columns, mut column, mut inputs) = ([0; 3], [0; 3], 0, 0);
        let modules = group.modules().iter().map(|module| self.model.module_shape(*module));
        for ((own, first), shape) in outputs.iter_mut().zip(&mut columns).zip(modules) {
            (*own, *first, inputs) = (shape.1, column, shape.0);
            column += shape.1;
        }
        let item_counts = self.table(shape.layout.item_counts)?;
        let items = self.table(shape.layout.items)?;
        for (pass, range) in shape.passes.iter().enumerate() {
            let room = (range.end - range.start) as usize;
            let args = LoraArgs {
                pieces: self.buffers.pieces,
                slots: self.slots,
                layers: self.model.layers,
                entries: self.table(shape.layout.entries)?,
                items: items.part(range.start as usize * 16, room * 16)?,
                item_count: item_counts.part(pass * 4, 4)?,
                items_max: room,
                tile: shape.tile,
                layer,
                group: group_id(group),
                x,
                inputs,
                y,
                y_stride: stride,
                outputs,
                columns,
                rows_max: shape.rows,
                tmp: self.buffers.scratch,
                tmp_floats: self.plan.scratch as usize,
            };
            self.kernels.lora.shrink(stream, &args)?;
            self.kernels.lora.expand(stream, &args)?;
        }
        Ok(())
    }

    fn rows(&self, shape: &Shape<'_>) -> Result<DeviceRange, CudaError> {
        self.table(shape.layout.counts)?.part(0, 4)
    }

    fn table(&self, span: Span) -> Result<DeviceRange, CudaError> {
        self.buffers.tables.part(span.at, span.bytes)
    }

    fn part(&self, span: Span) -> Result<DeviceRange, CudaError> {
        self.memory.part(span.at, span.bytes)
    }
}

/// Where a product reads and writes.
struct LinearPlaces {
    x: DeviceRange,
    y: DeviceRange,
    stride: usize,
    rows: DeviceRange,
    rows_max: usize,
}

const fn group_id(group: Group) -> LoraGroupId {
    match group {
        Group::QueryKeyValue => LoraGroupId::Qkv,
        Group::Output => LoraGroupId::O,
        Group::GateUp => LoraGroupId::GateUp,
        Group::Down => LoraGroupId::Down,
    }
}

/// Sizes of a base are below 2^24, and rows and tables fit their `u32`s.
fn small(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Into how many blocks the chunks of each tile go round: never decides the bits.
fn chunk_blocks(blocks_without: u32) -> u32 {
    ATTENTION_BLOCKS_ENOUGH.div_ceil(blocks_without.max(1)).clamp(CHUNK_BLOCKS_MIN, CHUNK_BLOCKS_MAX)
}
