//! The base's tensors in the form that the kernels take, read through candle.

use candle_core::quantized::{GgmlDType, QTensor};
use kernels::{BlockFormat, Matrix};
use types::Module;

use super::Precision;
use crate::base::values;
use crate::gguf::malformed;
use crate::{Base, ModelError};

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
    /// In the order of [`Module::ALL`].
    modules: [Matrix; 7],
}

impl LayerWeights {
    pub(super) fn module(&self, module: Module) -> &Matrix {
        &self.modules[module.index()]
    }
}

impl Weights {
    pub(super) fn load(base: &Base, precision: Precision) -> Result<Self, ModelError> {
        let config = base.config();
        let shape = [config.vocabulary, config.hidden];
        let table = |name| matrix(&base.tensor(name, &shape)?, shape, precision);
        let tied = !base.has_tensor("output.weight");
        Ok(Self {
            embedding: table("token_embd.weight")?,
            layers: (0..config.layers).map(|layer| load_layer(base, layer, precision)).collect::<Result<_, _>>()?,
            output_norm: vector(base, "output_norm.weight")?,
            output: if tied { None } else { Some(table("output.weight")?) },
        })
    }

    pub(super) fn output(&self) -> &Matrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

fn load_layer(base: &Base, layer: usize, precision: Precision) -> Result<LayerWeights, ModelError> {
    let module = |module: Module| {
        let (inputs, outputs) = base.config().module_shape(module);
        matrix(&base.module_tensor(layer, module)?, [outputs, inputs], precision)
    };
    let [q, k, v, o, gate, up, down] = Module::ALL.map(module);
    Ok(LayerWeights {
        attention_norm: vector(base, &format!("blk.{layer}.attn_norm.weight"))?,
        feed_forward_norm: vector(base, &format!("blk.{layer}.ffn_norm.weight"))?,
        modules: [q?, k?, v?, o?, gate?, up?, down?],
    })
}

fn matrix(tensor: &QTensor, [outputs, inputs]: [usize; 2], precision: Precision) -> Result<Matrix, ModelError> {
    let format = match tensor.dtype() {
        GgmlDType::Q4_0 => Some(BlockFormat::Q4_0),
        GgmlDType::Q4_1 => Some(BlockFormat::Q4_1),
        GgmlDType::Q8_0 => Some(BlockFormat::Q8_0),
        _ => None,
    };
    let matrix = match format.filter(|_| precision == Precision::Quantised) {
        Some(format) => {
            let bytes = tensor.data().map_err(malformed)?.into_owned();
            Matrix::from_blocks(outputs, inputs, format, bytes)
        }
        None => Matrix::from_f32(outputs, inputs, values(tensor)?),
    };
    matrix.ok_or_else(|| ModelError::Malformed(format!("a tensor of {outputs} x {inputs} has the wrong size")))
}

fn vector(base: &Base, name: &str) -> Result<Vec<f32>, ModelError> {
    values(&base.tensor(name, &[base.config().hidden])?)
}
