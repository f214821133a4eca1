//! What a step cannot do without: the bytes that it must read and the operations that it must do. Beside what the device was
//! measured to do in the same run they give the least time. Not here: the measuring.

use kernels::cuda::WeightFormat;
use model::ModelConfig;
use types::Module;

/// Bytes of an f16 key or value, and of a bf16 factor.
const HALF_BYTES: usize = 2;

/// Weights of all linear modules of all layers.
fn module_weights(config: &ModelConfig) -> usize {
    config.layers * Module::ALL.iter().map(|module| config.module_shape(*module)).map(|(i, o)| i * o).sum::<usize>()
}

/// Bytes of the weights that a step reads: the modules and the output layer, once. Of the embedding it reads a row for each
/// token, which is nothing beside them.
pub(crate) fn weight_bytes(config: &ModelConfig, format: WeightFormat) -> f64 {
    let bytes = |outputs: usize, inputs: usize| format.packed_bytes(outputs, inputs).unwrap_or(0) as f64;
    let module = |module: &Module| {
        let (inputs, outputs) = config.module_shape(*module);
        bytes(outputs, inputs)
    };
    config.layers as f64 * Module::ALL.iter().map(module).sum::<f64>() + bytes(config.vocabulary, config.hidden)
}

/// Bytes of keys and values in f16 of so many positions.
pub(crate) fn kv_bytes(config: &ModelConfig, positions: usize) -> f64 {
    (positions * config.layers * 2 * config.kv_heads * config.head_dim * HALF_BYTES) as f64
}

/// Bytes of an adapter on all modules.
pub(crate) fn adapter_bytes(config: &ModelConfig, rank: usize) -> f64 {
    let values = Module::ALL.iter().map(|module| config.module_shape(*module)).map(|(i, o)| i + o).sum::<usize>();
    (config.layers * values * rank * HALF_BYTES) as f64
}

/// Operations of so many rows of decode: two for each weight.
pub(crate) fn decode_operations(config: &ModelConfig, rows: usize) -> f64 {
    2.0 * rows as f64 * (module_weights(config) + config.vocabulary * config.hidden) as f64
}

/// Operations of a prompt from its start: the modules, scores and sums over half of the square, one row of the output layer.
pub(crate) fn prefill_operations(config: &ModelConfig, tokens: usize) -> f64 {
    let tokens = tokens as f64;
    let attention = 2.0 * (config.layers * config.heads * config.head_dim) as f64 * tokens * tokens;
    2.0 * tokens * module_weights(config) as f64 + attention + 2.0 * (config.vocabulary * config.hidden) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::large;

    #[test]
    fn the_public_numbers_of_the_8b_come_out() {
        let config = large(false).config;
        // 8.03 billion weights, of which the embedding's 0.53 are not read.
        assert!((weight_bytes(&config, WeightFormat::Bf16) / 2.0 / 1e9 - 7.504).abs() < 0.002);
        assert!(
            (weight_bytes(&config, WeightFormat::Q4_K) / weight_bytes(&config, WeightFormat::Bf16) - 148.0 / 512.0)
                .abs()
                < 1e-3
        );
        assert_eq!(kv_bytes(&config, 1), 131_072.0);
        assert!((128.0 * adapter_bytes(&config, 16) / 1e9 - 10.74).abs() < 0.01);
        let prompt = prefill_operations(&config, 4096);
        assert!((prompt / 1e12 - 61.6).abs() < 0.5, "{prompt}");
        assert!((decode_operations(&config, 64) / 1e12 - 0.9605).abs() < 0.001);
    }
}
