//! The bases that are generated, in the shapes of real ones, and a tiny one for the emulation. Not here: their weights.

use kernels::cuda::WeightFormat;
use model::{ModelConfig, RopeLayout, TensorFormat};

/// A format of weights, as a file and as the device has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Format {
    pub(crate) name: &'static str,
    pub(crate) file: TensorFormat,
    pub(crate) device: WeightFormat,
}

pub(crate) const BF16: Format = Format { name: "bf16", file: TensorFormat::Bf16, device: WeightFormat::Bf16 };
pub(crate) const Q8_0: Format = Format { name: "q8_0", file: TensorFormat::Q8_0, device: WeightFormat::Q8_0 };
pub(crate) const Q4_K: Format = Format { name: "q4_k", file: TensorFormat::Q4K, device: WeightFormat::Q4_K };

/// A base's name and sizes.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) config: ModelConfig,
}

/// The base that most bars are about: Llama-3.1-8B.
pub(crate) fn large(tiny: bool) -> Shape {
    if tiny {
        return self::tiny();
    }
    let config = ModelConfig {
        layers: 32,
        hidden: 4096,
        intermediate: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocabulary: 128_256,
        context_tokens_max: 131_072,
        rope_theta: 500_000.0,
        rope: RopeLayout::Halves,
        rope_divisors: Vec::new(),
        rms_epsilon: 1e-5,
        query_key_norm: false,
        tied_output: false,
    };
    Shape { name: "llama-3.1-8b", config }
}

/// Qwen3-4B.
pub(crate) fn medium() -> Shape {
    let config = ModelConfig {
        layers: 36,
        hidden: 2560,
        intermediate: 9728,
        vocabulary: 151_936,
        context_tokens_max: 40_960,
        rope_theta: 1e6,
        rms_epsilon: 1e-6,
        query_key_norm: true,
        tied_output: true,
        ..large(false).config
    };
    Shape { name: "qwen3-4b", config }
}

/// SmolLM2-135M.
pub(crate) fn small() -> Shape {
    let config = ModelConfig {
        layers: 30,
        hidden: 576,
        intermediate: 1536,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        vocabulary: 49_152,
        context_tokens_max: 8192,
        rope_theta: 100_000.0,
        tied_output: true,
        ..large(false).config
    };
    Shape { name: "smollm2-135m", config }
}

fn tiny() -> Shape {
    let config = ModelConfig {
        layers: 2,
        hidden: 256,
        intermediate: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: 320,
        context_tokens_max: 512,
        ..large(false).config
    };
    Shape { name: "tiny", config }
}
