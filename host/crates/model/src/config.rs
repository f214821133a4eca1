//! The sizes of a base, as its file states them. Not here: the sizes of a runner.

use types::Module;

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
    /// Width of a head; even.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Tokens of a sequence, prompt and output.
    pub context_tokens_max: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Added to the mean square in every RMS norm.
    pub rms_epsilon: f32,
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
}
