//! The sizes of a base, as its files state them. Not here: the sizes of a runner; where in the files they are stated
//! (`gguf_config.rs`, `safetensors/config.rs`).

use std::fmt;

use kernels::RopeLayout;
use types::Module;

use crate::ModelError;

/// Widths are multiples of this: the kernels' vectors and the quantised blocks.
const WIDTH_MULTIPLE: usize = 32;

/// The most that a file may state: far above any known model, and low enough that no product of two sizes overflows.
pub(crate) const LAYERS_MAX: usize = 1 << 10;
pub(crate) const HIDDEN_MAX: usize = 1 << 17;
pub(crate) const INTERMEDIATE_MAX: usize = 1 << 20;
pub(crate) const HEADS_MAX: usize = 1 << 10;
pub(crate) const HEAD_DIM_MAX: usize = 1 << 12;
pub(crate) const VOCABULARY_MAX: usize = 1 << 24;
pub(crate) const CONTEXT_TOKENS_MAX: usize = 1 << 24;

/// A family of bases that the runners know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama and those that only differ from it in sizes.
    Llama,
    /// Llama with a norm over each head of q and k.
    Qwen3,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Llama, Self::Qwen3];

    /// As GGUF and transformers call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen3 => "qwen3",
        }
    }

    pub(crate) fn from_name(name: &str) -> Result<Self, ModelError> {
        let found = Self::ALL.into_iter().find(|architecture| architecture.name() == name);
        found.ok_or_else(|| {
            let name: String = name.chars().take(80).collect();
            ModelError::Unsupported(format!("architecture `{name}` is not known: use a base of llama or qwen3"))
        })
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The sizes and constants of a Llama-shaped base.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward network.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even. `heads · head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Rows of the embedding: tokens of the tokenizer, or more.
    pub vocabulary: usize,
    /// Tokens of a sequence, prompt and output.
    pub context_tokens_max: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Which values of a head of q and k are turned together: the order of these rows in the base's tensors.
    pub rope: RopeLayout,
    /// What each rotary frequency is divided by, `[head_dim / 2]`; empty where the base is not scaled.
    pub rope_divisors: Vec<f32>,
    /// Added to the mean square in every RMS norm.
    pub rms_epsilon: f32,
    /// Whether each head of q and of k is normed, before its rotary embedding.
    pub query_key_norm: bool,
    /// Whether the embeddings serve as the output layer.
    pub tied_output: bool,
}

impl ModelConfig {
    /// (inputs, outputs) of a linear module.
    #[must_use]
    pub const fn module_shape(&self, module: Module) -> (usize, usize) {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match module {
            Module::Q => (self.hidden, queries),
            Module::K | Module::V => (self.hidden, keys),
            Module::O => (queries, self.hidden),
            Module::Gate | Module::Up => (self.hidden, self.intermediate),
            Module::Down => (self.intermediate, self.hidden),
        }
    }

    /// Refuses sizes and constants that the runners cannot take.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let unsupported = |reason: &str| Err(ModelError::Unsupported(reason.to_owned()));
        let widths = [self.hidden, self.intermediate, self.head_dim, self.heads * self.head_dim];
        if widths.iter().any(|width| *width == 0 || !width.is_multiple_of(WIDTH_MULTIPLE)) {
            return unsupported("hidden, feed-forward and head widths must be multiples of 32");
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return unsupported("the key heads must divide the query heads");
        }
        let sound = |value: f32| value.is_finite() && value > 0.0;
        if !sound(self.rope_theta) || !sound(self.rms_epsilon) || self.vocabulary == 0 {
            return Err(ModelError::Malformed("rope base, norm epsilon and vocabulary must be above zero".into()));
        }
        let divisors = &self.rope_divisors;
        if !(divisors.is_empty() || divisors.len() == self.head_dim / 2) || !divisors.iter().all(|d| sound(*d)) {
            return Err(ModelError::Malformed("a divisor of a rotary frequency must be above zero, one a pair".into()));
        }
        Ok(())
    }
}
