//! The base's tensors in f32.

use kernels::Matrix;
use types::Module;

use crate::{Base, BaseTensor, ModelError, names};

pub(super) struct Weights {
    /// `[vocabulary, hidden]`
    pub(super) embedding: Matrix,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) output_norm: Vec<f32>,
    /// `[vocabulary, hidden]`; absent if the embedding serves for it.
    output: Option<Matrix>,
}

pub(super) struct LayerWeights {
    pub(super) attention_norm: Vec<f32>,
    pub(super) feed_forward_norm: Vec<f32>,
    /// `[head_dim]`, for each head of q and of k; absent if these are not normed.
    pub(super) query_key_norms: Option<[Vec<f32>; 2]>,
    /// In the order of [`Module::ALL`].
    modules: [Matrix; 7],
}

impl LayerWeights {
    pub(super) fn module(&self, module: Module) -> &Matrix {
        &self.modules[module.index()]
    }
}

impl Weights {
    pub(super) fn load(base: &Base) -> Result<Self, ModelError> {
        let config = base.config();
        let shape = [config.vocabulary, config.hidden];
        let table = |name| matrix(base.tensor(name, &shape)?, shape);
        Ok(Self {
            embedding: table(names::EMBEDDING)?,
            layers: (0..config.layers).map(|layer| load_layer(base, layer)).collect::<Result<_, _>>()?,
            output_norm: vector(base, names::OUTPUT_NORM, config.hidden)?,
            output: if config.tied_output { None } else { Some(table(names::OUTPUT)?) },
        })
    }

    pub(super) fn output(&self) -> &Matrix {
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

fn matrix(tensor: BaseTensor, [outputs, inputs]: [usize; 2]) -> Result<Matrix, ModelError> {
    let matrix = Matrix::from_f32(outputs, inputs, tensor.to_f32()?);
    matrix.ok_or_else(|| ModelError::Malformed(format!("a tensor of {outputs} x {inputs} has the wrong size")))
}

fn vector(base: &Base, name: &str, width: usize) -> Result<Vec<f32>, ModelError> {
    base.tensor(name, &[width])?.to_f32()
}
