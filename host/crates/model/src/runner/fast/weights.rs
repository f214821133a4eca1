//! The base's tensors, repacked for the kernels one after the other: never the model twice in memory.

use kernels::{BlockFormat, PackedMatrix, takes_tiles};
use types::Module;

use crate::adapter::Group;
use crate::{Base, BaseTensor, ModelError, TensorFormat, names};

/// Layers are moved next to each other in pieces of about this size, which are in memory twice for a moment.
const GATHER_BYTES: usize = 32 << 20;

pub(super) struct Weights {
    /// `[vocabulary, hidden]`
    pub(super) embedding: PackedMatrix,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) output_norm: Vec<f32>,
    /// `[vocabulary, hidden]`; absent if the embedding serves for it.
    output: Option<PackedMatrix>,
}

pub(super) struct LayerWeights {
    pub(super) attention_norm: Vec<f32>,
    pub(super) feed_forward_norm: Vec<f32>,
    /// `[head_dim]`, for each head of q and of k; absent if these are not normed.
    pub(super) query_key_norms: Option<[Vec<f32>; 2]>,
    /// In the order of [`Module::ALL`].
    modules: [PackedMatrix; 7],
}

impl LayerWeights {
    pub(super) fn module(&self, module: Module) -> &PackedMatrix {
        &self.modules[module.index()]
    }

    /// The matrices in the order in which a step reads them; gate and up are read together.
    fn in_order(&mut self) -> [&mut [PackedMatrix]; 6] {
        let [q, k, v, o, gate_up @ .., down] = &mut self.modules;
        let one = std::slice::from_mut;
        [one(q), one(k), one(v), one(o), gate_up, one(down)]
    }
}

impl Weights {
    pub(super) fn load(base: &Base) -> Result<Self, ModelError> {
        let config = base.config();
        let shape = [config.vocabulary, config.hidden];
        let table = |name| matrix(base.tensor(name, &shape)?, shape);
        let embedding = table(names::EMBEDDING)?;
        let mut layers = Vec::with_capacity(config.layers);
        let (mut gathered, mut apart_bytes) = (0, 0);
        for layer in 0..config.layers {
            let weights = load_layer(base, layer)?;
            apart_bytes += weights.modules.iter().map(PackedMatrix::memory_bytes).sum::<usize>();
            layers.push(weights);
            if apart_bytes >= GATHER_BYTES || layer + 1 == config.layers {
                PackedMatrix::gather(layers[gathered..].iter_mut().flat_map(LayerWeights::in_order));
                (gathered, apart_bytes) = (layers.len(), 0);
            }
        }
        Ok(Self {
            embedding,
            layers,
            output_norm: vector(base, names::OUTPUT_NORM, config.hidden)?,
            output: if config.tied_output { None } else { Some(table(names::OUTPUT)?) },
        })
    }

    /// Of all matrices that multiply.
    pub(super) fn formats(&self) -> impl Iterator<Item = BlockFormat> {
        let modules = self.layers.iter().flat_map(|layer| &layer.modules);
        modules.chain([self.output()]).map(PackedMatrix::format)
    }

    /// Whether rows in tiles can be multiplied with any of the layers' matrices.
    pub(super) fn take_tiles(&self) -> bool {
        let mut modules = self.layers.iter().flat_map(|layer| &layer.modules);
        modules.any(|matrix| takes_tiles(matrix.format()))
    }

    /// What a step multiplies with after the modules of a group.
    pub(super) fn after(&self, layer: usize, group: Group) -> &[u8] {
        let (layer, next) = group.after(layer);
        self.layers.get(layer).map_or(self.output(), |weights| weights.module(next.modules()[0])).stream()
    }

    pub(super) fn output(&self) -> &PackedMatrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

fn load_layer(base: &Base, layer: usize) -> Result<LayerWeights, ModelError> {
    let module = |module: Module| {
        let (inputs, outputs) = base.config().module_shape(module);
        matrix(base.module_tensor(layer, module)?, [outputs, inputs])
    };
    let [q, k, v, o, gate, up, down] = Module::ALL.map(module);
    let norm = |name: &str, width| vector(base, &format!("blk.{layer}.{name}.weight"), width);
    let (hidden, head_dim) = (base.config().hidden, base.config().head_dim);
    let query_key_norms = match base.config().query_key_norm {
        true => Some([norm("attn_q_norm", head_dim)?, norm("attn_k_norm", head_dim)?]),
        false => None,
    };
    Ok(LayerWeights {
        attention_norm: norm("attn_norm", hidden)?,
        feed_forward_norm: norm("ffn_norm", hidden)?,
        query_key_norms,
        modules: [q?, k?, v?, o?, gate?, up?, down?],
    })
}

/// In the file's own format where the kernels have it; Q2_K and Q3_K are widened to f32.
fn matrix(tensor: BaseTensor, [outputs, inputs]: [usize; 2]) -> Result<PackedMatrix, ModelError> {
    let format = match tensor.format() {
        TensorFormat::F32 => Some(BlockFormat::F32),
        TensorFormat::F16 => Some(BlockFormat::F16),
        TensorFormat::Bf16 => Some(BlockFormat::Bf16),
        TensorFormat::Q4_0 => Some(BlockFormat::Q4_0),
        TensorFormat::Q4_1 => Some(BlockFormat::Q4_1),
        TensorFormat::Q5_0 => Some(BlockFormat::Q5_0),
        TensorFormat::Q5_1 => Some(BlockFormat::Q5_1),
        TensorFormat::Q8_0 => Some(BlockFormat::Q8_0),
        TensorFormat::Q4K => Some(BlockFormat::Q4_K),
        TensorFormat::Q5K => Some(BlockFormat::Q5_K),
        TensorFormat::Q6K => Some(BlockFormat::Q6_K),
        TensorFormat::Q2K | TensorFormat::Q3K => None,
    };
    let matrix = match format {
        Some(format) => PackedMatrix::pack(outputs, inputs, format, tensor.bytes()),
        None => {
            let bytes: Vec<u8> = tensor.to_f32()?.into_iter().flat_map(f32::to_le_bytes).collect();
            PackedMatrix::pack(outputs, inputs, BlockFormat::F32, &bytes)
        }
    };
    matrix.ok_or_else(|| {
        let format = tensor.format();
        ModelError::Unsupported(format!("a tensor of {outputs} x {inputs} in {format:?}: rows are not whole blocks"))
    })
}

fn vector(base: &Base, name: &str, width: usize) -> Result<Vec<f32>, ModelError> {
    base.tensor(name, &[width])?.to_f32()
}
