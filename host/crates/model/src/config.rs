//! The sizes of a base, as its file states them. Not here: the sizes of a runner.

use types::Module;

use crate::ModelError;
use crate::gguf::Gguf;

/// Widths are multiples of this: the kernels' vectors and the quantised blocks.
const WIDTH_MULTIPLE: usize = 32;

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

    /// From the metadata of a `llama` file. The bounds are far above any known model, and low enough that no product of
    /// two sizes overflows.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let architecture = gguf.string("general.architecture")?;
        if architecture != "llama" {
            return Err(ModelError::Unsupported(format!(
                "architecture `{architecture}` is not known: use a file of architecture llama"
            )));
        }
        let (hidden, heads) =
            (gguf.size("llama.embedding_length", 1 << 17)?, gguf.size("llama.attention.head_count", 1 << 10)?);
        let kv_heads = gguf.size("llama.attention.head_count_kv", heads).or_else(|error| {
            if gguf.get("llama.attention.head_count_kv").is_none() { Ok(heads) } else { Err(error) }
        })?;
        let head_dim = match gguf.get("llama.attention.key_length") {
            Some(_) => gguf.size("llama.attention.key_length", 1 << 12)?,
            None => hidden / heads,
        };
        let config = Self {
            layers: gguf.size("llama.block_count", 1 << 10)?,
            hidden,
            intermediate: gguf.size("llama.feed_forward_length", 1 << 20)?,
            heads,
            kv_heads,
            head_dim,
            vocabulary: gguf.strings("tokenizer.ggml.tokens")?.len(),
            context_tokens_max: gguf.size("llama.context_length", 1 << 24)?,
            rope_theta: gguf.float("llama.rope.freq_base").unwrap_or(10_000.0),
            rms_epsilon: gguf.float("llama.attention.layer_norm_rms_epsilon")?,
        };
        config.check(gguf)?;
        Ok(config)
    }

    fn check(&self, gguf: &Gguf) -> Result<(), ModelError> {
        let unsupported = |reason: &str| Err(ModelError::Unsupported(reason.to_owned()));
        let widths = [self.hidden, self.intermediate, self.head_dim, self.heads * self.head_dim];
        if widths.iter().any(|width| *width == 0 || !width.is_multiple_of(WIDTH_MULTIPLE)) {
            return unsupported("hidden, feed-forward and head widths must be multiples of 32");
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return unsupported("the key heads must divide the query heads");
        }
        let sound = |value: f32| value.is_finite() && value > 0.0;
        if !sound(self.rope_theta) || !sound(self.rms_epsilon) || self.vocabulary == 0 {
            return Err(ModelError::Malformed("rope base, norm epsilon and vocabulary must be above zero".into()));
        }
        if gguf.get("llama.rope.dimension_count").is_some()
            && gguf.size("llama.rope.dimension_count", 1 << 12)? != self.head_dim
        {
            return unsupported("partial rotary embedding");
        }
        let scaling = gguf.string("llama.rope.scaling.type").unwrap_or("none");
        if scaling != "none" || gguf.content().tensor_infos.contains_key("rope_freqs.weight") {
            return unsupported("scaled rotary embedding");
        }
        if gguf.get("llama.expert_count").is_some_and(|count| count.to_u64().unwrap_or(1) > 0) {
            return unsupported("a mixture of experts");
        }
        Ok(())
    }
}
