//! The sizes and constants in a `config.json`, in the forms of transformers 4 and 5 (`configuration_llama.py`,
//! `configuration_qwen3.py`, `modeling_rope_utils.py`). What would change the result and is not known is refused.

use std::f64::consts::TAU;

use kernels::RopeLayout;
use serde_json::{Map, Value};

use crate::config::{
    CONTEXT_TOKENS_MAX, HEAD_DIM_MAX, HEADS_MAX, HIDDEN_MAX, INTERMEDIATE_MAX, LAYERS_MAX, VOCABULARY_MAX,
};
use crate::{Architecture, ModelConfig, ModelError};

/// transformers' default.
const ROPE_THETA: f64 = 10_000.0;

/// The architecture and sizes of a configuration.
pub(super) fn of(stated: &Map<String, Value>) -> Result<(Architecture, ModelConfig), ModelError> {
    let kind = stated.get("model_type").and_then(Value::as_str);
    let architecture = Architecture::from_name(kind.ok_or_else(|| malformed("it has no `model_type`"))?)?;
    refuse_variants(stated)?;
    let (hidden, heads) = (size(stated, "hidden_size", HIDDEN_MAX)?, size(stated, "num_attention_heads", HEADS_MAX)?);
    let default_head_dim = match architecture {
        Architecture::Llama => hidden / heads,
        Architecture::Qwen3 => 128,
    };
    let head_dim = size_or(stated, "head_dim", HEAD_DIM_MAX, default_head_dim)?;
    let rope = Rope::of(stated)?;
    let config = ModelConfig {
        layers: size(stated, "num_hidden_layers", LAYERS_MAX)?,
        hidden,
        intermediate: size(stated, "intermediate_size", INTERMEDIATE_MAX)?,
        heads,
        kv_heads: size_or(stated, "num_key_value_heads", heads, heads)?,
        head_dim,
        vocabulary: size(stated, "vocab_size", VOCABULARY_MAX)?,
        context_tokens_max: size(stated, "max_position_embeddings", CONTEXT_TOKENS_MAX)?,
        rope_theta: rope.number("rope_theta")?.unwrap_or(ROPE_THETA) as f32,
        rope: RopeLayout::Halves,
        rope_divisors: rope.divisors(head_dim)?,
        rms_epsilon: number(stated, "rms_norm_eps")?.unwrap_or(1e-6) as f32,
        query_key_norm: architecture == Architecture::Qwen3,
        tied_output: flag(stated, "tie_word_embeddings")?,
    };
    config.check()?;
    Ok((architecture, config))
}

/// Refuses what these architectures may say and the runners do not do.
fn refuse_variants(stated: &Map<String, Value>) -> Result<(), ModelError> {
    for key in ["attention_bias", "mlp_bias", "use_sliding_window"] {
        if flag(stated, key)? {
            return Err(unsupported(format!("`{key}` is set")));
        }
    }
    if stated.get("quantization_config").is_some_and(|value| !value.is_null()) {
        return Err(unsupported("its weights are quantised: use the plain ones, or a GGUF file".into()));
    }
    if let Some(act) = stated.get("hidden_act").filter(|act| *act != "silu") {
        return Err(unsupported(format!("`hidden_act` is {}, not silu", short(act))));
    }
    let others = stated.get("layer_types").and_then(Value::as_array).into_iter().flatten();
    if let Some(kind) = others.filter(|kind| *kind != "full_attention").map(short).next() {
        return Err(unsupported(format!("a layer of `layer_types` is {kind}, not full_attention")));
    }
    Ok(())
}

/// What is said of the rotary embedding: `rope_parameters`, or in older files `rope_scaling` beside `rope_theta`.
struct Rope<'a> {
    stated: &'a Map<String, Value>,
    parameters: Option<&'a Map<String, Value>>,
}

impl<'a> Rope<'a> {
    fn of(stated: &'a Map<String, Value>) -> Result<Self, ModelError> {
        let found =
            ["rope_parameters", "rope_scaling"].iter().find_map(|key| stated.get(*key).filter(|v| !v.is_null()));
        let parameters = found.map(|found| {
            found.as_object().ok_or_else(|| malformed("what is said of the rotary embedding is not an object"))
        });
        let rope = Self { stated, parameters: parameters.transpose()? };
        if rope.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(unsupported("partial rotary embedding".into()));
        }
        Ok(rope)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.parameters.filter(|parameters| parameters.contains_key(key)) {
            Some(parameters) => number(parameters, key),
            None => number(self.stated, key),
        }
    }

    /// A parameter that must be above zero.
    fn needed(&self, key: &str) -> Result<f64, ModelError> {
        let found = self.number(key)?.filter(|number| number.is_finite() && *number > 0.0);
        found.ok_or_else(|| malformed(&format!("the scaled rotary embedding needs `{key}`, above 0")))
    }

    fn kind(&self) -> &str {
        let kind = self.parameters.and_then(|found| found.get("rope_type").or_else(|| found.get("type")));
        kind.and_then(Value::as_str).unwrap_or("default")
    }

    /// By what each frequency is divided.
    fn divisors(&self, head_dim: usize) -> Result<Vec<f32>, ModelError> {
        match self.kind() {
            "default" => Ok(Vec::new()),
            "linear" => Ok(vec![self.needed("factor")? as f32; head_dim / 2]),
            "llama3" => self.llama3(head_dim),
            other => Err(unsupported(format!("rotary embedding scaled by `{other:.40}`"))),
        }
    }

    /// Llama 3.1's: short waves stay, long ones are stretched by `factor`, and between them it changes smoothly.
    fn llama3(&self, head_dim: usize) -> Result<Vec<f32>, ModelError> {
        let (factor, old) = (self.needed("factor")?, self.needed("original_max_position_embeddings")?);
        let (low, high) = (self.needed("low_freq_factor")?, self.needed("high_freq_factor")?);
        if high <= low {
            return Err(malformed("`high_freq_factor` must be above `low_freq_factor`"));
        }
        let theta = self.number("rope_theta")?.unwrap_or(ROPE_THETA);
        let divisor = |pair: usize| {
            let wavelength = TAU * theta.powf(2.0 * pair as f64 / head_dim as f64);
            let smooth = ((old / wavelength - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        };
        Ok((0..head_dim / 2).map(divisor).collect())
    }
}

/// A number in `1 ..= max`.
fn size(stated: &Map<String, Value>, key: &str, max: usize) -> Result<usize, ModelError> {
    let value = stated.get(key).ok_or_else(|| malformed(&format!("it has no `{key}`")))?;
    let found = value.as_u64().and_then(|size| usize::try_from(size).ok()).filter(|size| (1..=max).contains(size));
    found.ok_or_else(|| malformed(&format!("`{key}` is {}, expected 1 to {max}", short(value))))
}

fn size_or(stated: &Map<String, Value>, key: &str, max: usize, default: usize) -> Result<usize, ModelError> {
    match stated.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(_) => size(stated, key, max),
    }
}

fn number(stated: &Map<String, Value>, key: &str) -> Result<Option<f64>, ModelError> {
    match stated.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(malformed(&format!("`{key}` is {}, expected a number", short(value)))),
        },
    }
}

fn flag(stated: &Map<String, Value>, key: &str) -> Result<bool, ModelError> {
    match stated.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(value) => Err(malformed(&format!("`{key}` is {}, expected true or false", short(value)))),
    }
}

/// A value for a message, however long it is.
fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

fn malformed(reason: &str) -> ModelError {
    ModelError::Malformed(format!("config.json: {reason}"))
}

fn unsupported(reason: String) -> ModelError {
    ModelError::Unsupported(format!("config.json: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3,
        "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true}"#;

    fn read(changes: &str) -> Result<(Architecture, ModelConfig), ModelError> {
        let mut stated: Map<String, Value> = serde_json::from_str(LLAMA).unwrap();
        stated.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
        of(&stated)
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let (architecture, config) = read("{}").unwrap();
        assert_eq!(architecture, Architecture::Llama);
        assert_eq!((config.head_dim, config.kv_heads, config.rope_theta), (32, 2, 10_000.0));
        assert!(config.tied_output && !config.query_key_norm && config.rope_divisors.is_empty());
        let (_, qwen3) =
            read(r#"{"model_type": "qwen3", "tie_word_embeddings": null, "num_key_value_heads": 1}"#).unwrap();
        assert_eq!((qwen3.head_dim, qwen3.kv_heads), (128, 1));
        assert!(qwen3.query_key_norm && !qwen3.tied_output);
    }

    #[test]
    fn rotary_embeddings_are_read_in_both_forms() {
        let new = r#"{"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;
        let old = r#"{"rope_theta": 500000, "rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 1,
            "high_freq_factor": 4, "original_max_position_embeddings": 64}}"#;
        let (_, new) = read(new).unwrap();
        assert_eq!(new, read(old).unwrap().1);
        assert_eq!(new.rope_theta, 500_000.0);
        let divisors = new.rope_divisors;
        assert_eq!((divisors.len(), divisors[0], divisors[1], divisors[3], divisors[15]), (16, 1.0, 1.0, 8.0, 8.0));
        assert!(divisors[2] > 1.5 && divisors[2] < 7.0, "{}", divisors[2]);
        let linear = r#"{"rope_scaling": {"rope_type": "linear", "factor": 4.0}}"#;
        assert_eq!(read(linear).unwrap().1.rope_divisors, [4.0; 16]);
        assert!(read(r#"{"rope_scaling": {"rope_type": "default"}}"#).unwrap().1.rope_divisors.is_empty());
    }

    #[test]
    fn what_is_wrong_or_not_known_is_told() {
        let malformed = [
            (r#"{"model_type": null}"#, "model_type"),
            (r#"{"hidden_size": 0}"#, "hidden_size"),
            (r#"{"hidden_size": "64"}"#, "hidden_size"),
            (r#"{"num_hidden_layers": 1e9}"#, "num_hidden_layers"),
            (r#"{"num_hidden_layers": -1}"#, "num_hidden_layers"),
            (r#"{"vocab_size": 18446744073709551615}"#, "vocab_size"),
            (r#"{"num_key_value_heads": 4}"#, "num_key_value_heads"),
            (r#"{"rms_norm_eps": 0}"#, "epsilon"),
            (r#"{"rms_norm_eps": []}"#, "rms_norm_eps"),
            (r#"{"tie_word_embeddings": "yes"}"#, "tie_word_embeddings"),
            (r#"{"rope_theta": -1}"#, "rope base"),
            (r#"{"rope_scaling": 4}"#, "rotary"),
            (r#"{"rope_scaling": {"type": "linear"}}"#, "factor"),
            (r#"{"rope_scaling": {"type": "linear", "factor": 0}}"#, "factor"),
            (r#"{"rope_scaling": {"type": "llama3", "factor": 8}}"#, "original_max_position_embeddings"),
        ];
        for (changes, word) in malformed {
            let error = read(changes).unwrap_err();
            assert!(error.code() == "base_malformed" && error.to_string().contains(word), "{changes}: {error}");
        }
        let unsupported = [
            (r#"{"model_type": "mamba"}"#, "mamba"),
            (r#"{"head_dim": 20}"#, "multiples of 32"),
            (r#"{"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 32}"#, "divide"),
            (r#"{"attention_bias": true}"#, "attention_bias"),
            (r#"{"mlp_bias": true}"#, "mlp_bias"),
            (r#"{"use_sliding_window": true}"#, "use_sliding_window"),
            (r#"{"layer_types": ["full_attention", "sliding_attention"]}"#, "sliding_attention"),
            (r#"{"hidden_act": "gelu"}"#, "gelu"),
            (r#"{"quantization_config": {"quant_method": "gptq"}}"#, "quantised"),
            (r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4}}"#, "yarn"),
            (r#"{"partial_rotary_factor": 0.5}"#, "partial"),
        ];
        for (changes, word) in unsupported {
            let error = read(changes).unwrap_err();
            assert!(error.code() == "base_unsupported" && error.to_string().contains(word), "{changes}: {error}");
        }
    }
}
