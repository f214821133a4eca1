//! What a GGUF file's metadata says of the base: its architecture, sizes and constants, under the keys of llama.cpp
//! (`gguf-py/gguf/constants.py`). Not here: its tokenizer.

use kernels::RopeLayout;

use crate::config::{
    CONTEXT_TOKENS_MAX, HEAD_DIM_MAX, HEADS_MAX, HIDDEN_MAX, INTERMEDIATE_MAX, LAYERS_MAX, VOCABULARY_MAX,
};
use crate::gguf::Gguf;
use crate::names;
use crate::tensor_files::TensorFiles;
use crate::{Architecture, ModelConfig, ModelError};

/// The metadata of one architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: Architecture,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn size(&self, key: &str, max: usize) -> Result<usize, ModelError> {
        self.gguf.size(&self.key(key), max)
    }

    /// `None` if the file does not state it.
    fn stated_size(&self, key: &str, max: usize) -> Result<Option<usize>, ModelError> {
        self.gguf.get(&self.key(key)).map(|_| self.size(key, max)).transpose()
    }

    fn stated_float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        self.gguf.get(&self.key(key)).map(|_| self.gguf.float(&self.key(key))).transpose()
    }
}

/// The architecture and sizes.
pub(crate) fn from_gguf(gguf: &Gguf, tensors: &TensorFiles) -> Result<(Architecture, ModelConfig), ModelError> {
    let architecture = Architecture::from_name(gguf.string("general.architecture")?)?;
    let keys = Keys { gguf, architecture };
    let (hidden, heads) = (keys.size("embedding_length", HIDDEN_MAX)?, keys.size("attention.head_count", HEADS_MAX)?);
    let head_dim = keys.stated_size("attention.key_length", HEAD_DIM_MAX)?.unwrap_or(hidden / heads);
    refuse_variants(&keys, head_dim)?;
    let vocabulary = gguf.strings("tokenizer.ggml.tokens")?.len();
    let divisors = match linear_factor(&keys)? {
        Some(_) if tensors.has(names::ROPE_DIVISORS) => {
            return Err(ModelError::Unsupported("a rotary embedding that is scaled in two ways".into()));
        }
        Some(factor) => vec![factor; head_dim / 2],
        None if tensors.has(names::ROPE_DIVISORS) => tensors.read(names::ROPE_DIVISORS, &[head_dim / 2])?.to_f32()?,
        None => Vec::new(),
    };
    let config = ModelConfig {
        layers: keys.size("block_count", LAYERS_MAX)?,
        hidden,
        intermediate: keys.size("feed_forward_length", INTERMEDIATE_MAX)?,
        heads,
        kv_heads: keys.stated_size("attention.head_count_kv", heads)?.unwrap_or(heads),
        head_dim,
        vocabulary,
        context_tokens_max: keys.size("context_length", CONTEXT_TOKENS_MAX)?,
        rope_theta: keys.stated_float("rope.freq_base")?.unwrap_or(10_000.0),
        // llama.cpp's converter moves the rows of q and k for `llama` and leaves them for every later architecture.
        rope: match architecture {
            Architecture::Llama => RopeLayout::Neighbours,
            Architecture::Qwen3 => RopeLayout::Halves,
        },
        rope_divisors: divisors,
        rms_epsilon: gguf.float(&keys.key("attention.layer_norm_rms_epsilon"))?,
        query_key_norm: architecture == Architecture::Qwen3,
        tied_output: !tensors.has(names::OUTPUT),
    };
    if vocabulary > VOCABULARY_MAX {
        return Err(ModelError::Malformed(format!("{vocabulary} tokens are too many")));
    }
    config.check()?;
    Ok((architecture, config))
}

/// Refuses what these architectures may say and the runners do not do.
fn refuse_variants(keys: &Keys<'_>, head_dim: usize) -> Result<(), ModelError> {
    let unsupported = |reason: &str| Err(ModelError::Unsupported(reason.to_owned()));
    if keys.stated_size("rope.dimension_count", HEAD_DIM_MAX)?.is_some_and(|turned| turned != head_dim) {
        return unsupported("partial rotary embedding");
    }
    if keys.stated_size("attention.value_length", HEAD_DIM_MAX)?.is_some_and(|width| width != head_dim) {
        return unsupported("values of another width than keys");
    }
    let count = |key: &str| keys.gguf.get(&keys.key(key)).map_or(0, |count| count.to_u64().unwrap_or(1));
    if count("expert_count") > 0 {
        return unsupported("a mixture of experts");
    }
    if count("attention.sliding_window") > 0 {
        return unsupported("attention in a sliding window");
    }
    Ok(())
}

/// By what positions are divided.
fn linear_factor(keys: &Keys<'_>) -> Result<Option<f32>, ModelError> {
    match keys.gguf.string(&keys.key("rope.scaling.type")).unwrap_or("none") {
        "none" => Ok(None),
        "linear" => {
            let factor = keys.stated_float("rope.scaling.factor")?;
            factor.map(Some).ok_or_else(|| ModelError::Malformed("linear rope scaling without a factor".into()))
        }
        other => Err(ModelError::Unsupported(format!("rotary embedding scaled by `{other}`"))),
    }
}
