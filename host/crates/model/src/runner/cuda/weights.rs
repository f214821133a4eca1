//! The base on the device: which tensors become which matrix, where each lies, and their upload, once. Matrices of one input
//! and one format are one: a step reads them in one launch. Not here: the layout within a matrix (`kernels::cuda::repack`).

use kernels::BlockFormat;
use kernels::cuda::ops::rope_append::turns;
use kernels::cuda::{DeviceMemory, Stream, WeightFormat, repack};
use types::Module;

use super::failed;
use super::pieces::ALL_GROUPS;
use super::source::{Source, generate};
use super::spans::{Span, Spans};
use crate::{BaseTensor, ModelError, TensorFormat, names};

/// Outputs that a matrix must have a multiple of for another one to follow it.
const PANEL: usize = 16;

/// A matrix that one launch multiplies with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MatrixPlan {
    /// Tensors of the base, one below the other, with their outputs.
    tensors: Vec<(String, usize)>,
    pub(super) format: WeightFormat,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// The first of its columns in the joint output of its group.
    pub(super) column: usize,
    pub(super) span: Span,
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerPlan {
    /// By [`crate::adapter::Group`].
    pub(super) groups: [Vec<MatrixPlan>; 4],
    pub(super) attention_norm: Span,
    pub(super) feed_forward_norm: Span,
    /// Of each head of q and of k.
    pub(super) head_norms: Option<[Span; 2]>,
}

/// All that a base is on the device.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WeightsPlan {
    pub(super) embedding: MatrixPlan,
    /// None if the embedding serves for it.
    output: Option<MatrixPlan>,
    pub(super) layers: Vec<LayerPlan>,
    pub(super) output_norm: Span,
    /// Cosines and sines of all positions.
    pub(super) turns: Span,
    context: usize,
}

impl WeightsPlan {
    /// Takes a place for everything.
    pub(super) fn new(base: Source<'_>, context: usize, spans: &mut Spans) -> Result<Self, ModelError> {
        let config = base.config();
        let table = |name: &str, spans: &mut Spans| {
            let tensors = vec![(name.to_owned(), config.vocabulary)];
            matrix(base, tensors, config.hidden, 0, spans)
        };
        let norm = |width: usize, spans: &mut Spans| spans.take(width, size_of::<f32>());
        let embedding = table(names::EMBEDDING, spans)?;
        let output = if config.tied_output { None } else { Some(table(names::OUTPUT, spans)?) };
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let mut groups = [const { Vec::new() }; 4];
            for (place, group) in groups.iter_mut().zip(ALL_GROUPS) {
                *place = matrices(base, layer, group.modules(), spans)?;
            }
            layers.push(LayerPlan {
                groups,
                attention_norm: norm(config.hidden, spans),
                feed_forward_norm: norm(config.hidden, spans),
                head_norms: config.query_key_norm.then(|| [norm(config.head_dim, spans), norm(config.head_dim, spans)]),
            });
        }
        let output_norm = norm(config.hidden, spans);
        let turns = spans.take(context.saturating_mul(config.head_dim), size_of::<f32>());
        Ok(Self { embedding, output, layers, output_norm, turns, context })
    }

    /// What the logits are made with.
    pub(super) fn output(&self) -> &MatrixPlan {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Every matrix.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &MatrixPlan> {
        let modules = self.layers.iter().flat_map(|layer| layer.groups.iter().flatten());
        modules.chain(&self.output).chain([&self.embedding])
    }

    /// A format of the base that there is no kernel for, if there is one: such weights take 16 bits on the device.
    pub(super) fn widened(&self, base: Source<'_>) -> Option<TensorFormat> {
        let tensors = self.matrices().flat_map(|matrix| matrix.tensors.iter().map(|tensor| (tensor, matrix.inputs)));
        let mut formats =
            tensors.filter_map(|((name, outputs), inputs)| base.tensor_format(name, &[*outputs, inputs]).ok());
        formats.find(|format| device_format(*format).0.is_none())
    }

    /// Reads the base tensor by tensor, repacks and uploads it: never the base twice in memory.
    pub(super) fn upload(&self, base: Source<'_>, stream: &Stream, memory: &DeviceMemory) -> Result<(), ModelError> {
        let config = base.config();
        for matrix in self.matrices() {
            upload_matrix(base, matrix, stream, memory)?;
        }
        let numbers = |values: &[f32], span: Span| {
            let range = memory.part(span.at, span.bytes).map_err(failed)?;
            stream.upload_now(values, range).map_err(failed)
        };
        let norm = |name: &str, width: usize, span: Span| match base {
            Source::Files(base) => numbers(&base.tensor(name, &[width])?.to_f32()?, span),
            Source::Seed(_) => numbers(&vec![1.0; width], span),
        };
        for (layer, plan) in self.layers.iter().enumerate() {
            let name = |norm: &str| format!("blk.{layer}.{norm}.weight");
            norm(&name("attn_norm"), config.hidden, plan.attention_norm)?;
            norm(&name("ffn_norm"), config.hidden, plan.feed_forward_norm)?;
            if let Some([query, key]) = plan.head_norms {
                norm(&name("attn_q_norm"), config.head_dim, query)?;
                norm(&name("attn_k_norm"), config.head_dim, key)?;
            }
        }
        norm(names::OUTPUT_NORM, config.hidden, self.output_norm)?;
        numbers(&turns(self.context, config.head_dim, config.rope_theta, &config.rope_divisors), self.turns)
    }
}

/// Modules of one input: as few matrices as their formats allow.
fn matrices(
    base: Source<'_>,
    layer: usize,
    modules: &[Module],
    spans: &mut Spans,
) -> Result<Vec<MatrixPlan>, ModelError> {
    let mut joined: Vec<(WeightFormat, Vec<(String, usize)>)> = Vec::new();
    let mut inputs = 0;
    for module in modules {
        let (module_inputs, outputs) = base.config().module_shape(*module);
        inputs = module_inputs;
        let name = names::module_weight(layer, *module);
        let format = device_format(base.tensor_format(&name, &[outputs, inputs])?).1;
        match joined.last_mut() {
            Some((last, tensors)) if *last == format && tensors.iter().all(|(_, above)| above % PANEL == 0) => {
                tensors.push((name, outputs));
            }
            _ => joined.push((format, vec![(name, outputs)])),
        }
    }
    let mut column = 0;
    let mut matrices = Vec::new();
    for (_, tensors) in joined {
        let plan = matrix(base, tensors, inputs, column, spans)?;
        column += plan.outputs;
        matrices.push(plan);
    }
    Ok(matrices)
}

fn matrix(
    base: Source<'_>,
    tensors: Vec<(String, usize)>,
    inputs: usize,
    column: usize,
    spans: &mut Spans,
) -> Result<MatrixPlan, ModelError> {
    let outputs = tensors.iter().map(|(_, outputs)| outputs).sum();
    let unknown = || ModelError::Malformed("a matrix has no tensor".into());
    let (name, first) = tensors.first().ok_or_else(unknown)?;
    let format = device_format(base.tensor_format(name, &[*first, inputs])?).1;
    let bytes = format.packed_bytes(outputs, inputs).ok_or_else(|| {
        ModelError::Unsupported(format!("{name} of {outputs} x {inputs} in {format:?}: rows are not whole blocks"))
    })?;
    Ok(MatrixPlan { tensors, format, outputs, inputs, column, span: spans.take(bytes, 1) })
}

fn upload_matrix(
    base: Source<'_>,
    plan: &MatrixPlan,
    stream: &Stream,
    memory: &DeviceMemory,
) -> Result<(), ModelError> {
    let base = match base {
        Source::Files(base) => base,
        Source::Seed(base) => {
            let matrix = memory.part(plan.span.at, plan.span.bytes).map_err(failed)?;
            let source = device_format(base.format).0.unwrap_or(BlockFormat::Bf16);
            return generate(base, source, plan.format, [plan.outputs, plan.inputs], stream, matrix);
        }
    };
    let mut at = plan.span.at;
    for (name, outputs) in &plan.tensors {
        let tensor = base.tensor(name, &[*outputs, plan.inputs])?;
        let mut packed = vec![0; plan.format.packed_bytes(*outputs, plan.inputs).unwrap_or(0)];
        pack(&tensor, *outputs, plan.inputs, &mut packed)?;
        stream.upload_now(&packed, memory.part(at, packed.len()).map_err(failed)?).map_err(failed)?;
        at += packed.len();
    }
    Ok(())
}

fn pack(tensor: &BaseTensor, outputs: usize, inputs: usize, packed: &mut [u8]) -> Result<(), ModelError> {
    let widened: Vec<u8>;
    let (source, bytes) = match device_format(tensor.format()) {
        (Some(source), _) => (source, tensor.bytes()),
        (None, _) => {
            widened = tensor.to_f32()?.into_iter().flat_map(f32::to_le_bytes).collect();
            (BlockFormat::F32, widened.as_slice())
        }
    };
    repack(source, outputs, inputs, bytes, packed).map_err(failed)
}

/// The file's format if the kernels have it, and what it becomes; others are widened and become bf16.
const fn device_format(format: TensorFormat) -> (Option<BlockFormat>, WeightFormat) {
    match format {
        TensorFormat::F32 => (Some(BlockFormat::F32), WeightFormat::Bf16),
        TensorFormat::F16 => (Some(BlockFormat::F16), WeightFormat::Bf16),
        TensorFormat::Bf16 => (Some(BlockFormat::Bf16), WeightFormat::Bf16),
        TensorFormat::Q4_0 => (Some(BlockFormat::Q4_0), WeightFormat::Q4_0),
        TensorFormat::Q4_1 => (Some(BlockFormat::Q4_1), WeightFormat::Q4_1),
        TensorFormat::Q8_0 => (Some(BlockFormat::Q8_0), WeightFormat::Q8_0),
        TensorFormat::Q4K => (Some(BlockFormat::Q4_K), WeightFormat::Q4_K),
        TensorFormat::Q5K => (Some(BlockFormat::Q5_K), WeightFormat::Q5_K),
        TensorFormat::Q6K => (Some(BlockFormat::Q6_K), WeightFormat::Q6_K),
        TensorFormat::Q5_0 | TensorFormat::Q5_1 | TensorFormat::Q2K | TensorFormat::Q3K => (None, WeightFormat::Bf16),
    }
}
