//! The names of a base's tensors: GGUF's are ours, transformers' are turned into them. A tensor that is not known here would
//! be left out of the sums, so a base that has one is refused. Not here: shapes.

use types::Module;

use crate::{ModelConfig, ModelError};

/// Tokens' embeddings, `[vocabulary, hidden]`.
pub(crate) const EMBEDDING: &str = "token_embd.weight";
/// The last norm, `[hidden]`.
pub(crate) const OUTPUT_NORM: &str = "output_norm.weight";
/// `[vocabulary, hidden]`; absent where the embeddings serve for it.
pub(crate) const OUTPUT: &str = "output.weight";
/// What each pair's rotary frequency is divided by, `[head_dim / 2]`; llama 3's scaling, precomputed.
pub(crate) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// A linear module's name within its layer.
const fn module(module: Module) -> &'static str {
    match module {
        Module::Q => "attn_q",
        Module::K => "attn_k",
        Module::V => "attn_v",
        Module::O => "attn_output",
        Module::Gate => "ffn_gate",
        Module::Up => "ffn_up",
        Module::Down => "ffn_down",
    }
}

/// The name of a linear module's weight.
pub(crate) fn module_weight(layer: usize, of: Module) -> String {
    format!("blk.{layer}.{}.weight", module(of))
}

/// The norms of a layer, by their GGUF names and transformers'.
const NORMS: [(&str, &str); 4] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
];

/// transformers' name of a tensor in GGUF's words; `None` if there is no such word.
pub(crate) fn from_transformers(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some(EMBEDDING.to_owned()),
        "model.norm.weight" => return Some(OUTPUT_NORM.to_owned()),
        "lm_head.weight" => return Some(OUTPUT.to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer = layer_number(layer)?;
    let part = rest.strip_suffix(".weight")?;
    if let Some((ours, _)) = NORMS.iter().find(|(_, theirs)| *theirs == part) {
        return Some(format!("blk.{layer}.{ours}.weight"));
    }
    let (block, last) = part.split_once('.')?;
    let found = Module::from_name(last)?;
    let expected = if matches!(found, Module::Q | Module::K | Module::V | Module::O) { "self_attn" } else { "mlp" };
    (block == expected).then(|| module_weight(layer, found))
}

/// Refuses tensors that this base's layers would not read.
pub(crate) fn refuse_others<'a>(names: impl Iterator<Item = &'a str>, config: &ModelConfig) -> Result<(), ModelError> {
    // In order, so that of several the same one is told each time.
    let other = names.filter(|name| !is_read(name, config)).min();
    match other {
        None => Ok(()),
        Some(name) => {
            let name: String = name.chars().take(200).collect();
            Err(ModelError::Unsupported(format!("its tensor `{name}` has no place in a model of its architecture")))
        }
    }
}

/// Every tensor that this base's layers read, with its shape.
pub(crate) fn required(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let table = vec![config.vocabulary, config.hidden];
    let mut all = vec![(EMBEDDING.to_owned(), table.clone()), (OUTPUT_NORM.to_owned(), vec![config.hidden])];
    if !config.tied_output {
        all.push((OUTPUT.to_owned(), table));
    }
    for layer in 0..config.layers {
        for (index, (norm, _)) in norms(config).iter().enumerate() {
            let width = if index < 2 { config.hidden } else { config.head_dim };
            all.push((format!("blk.{layer}.{norm}.weight"), vec![width]));
        }
        for of in Module::ALL {
            let (inputs, outputs) = config.module_shape(of);
            all.push((module_weight(layer, of), vec![outputs, inputs]));
        }
    }
    all
}

/// Those of the stream, then those of heads where the base has them.
const fn norms(config: &ModelConfig) -> &'static [(&'static str, &'static str)] {
    match config.query_key_norm {
        true => &NORMS,
        false => NORMS.split_at(2).0,
    }
}

fn is_read(name: &str, config: &ModelConfig) -> bool {
    if [EMBEDDING, OUTPUT_NORM, OUTPUT, ROPE_DIVISORS].contains(&name) {
        return true;
    }
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else { return false };
    let Some(part) = part.strip_suffix(".weight") else { return false };
    layer_number(layer).is_some_and(|layer| layer < config.layers)
        && (norms(config).iter().any(|(ours, _)| *ours == part) || Module::ALL.iter().any(|of| module(*of) == part))
}

/// A layer's number as it is written: without signs or leading zeros.
fn layer_number(text: &str) -> Option<usize> {
    let number = text.parse::<usize>().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_transformers_are_known() {
        for (theirs, ours) in [
            ("model.embed_tokens.weight", Some("token_embd.weight")),
            ("model.norm.weight", Some("output_norm.weight")),
            ("lm_head.weight", Some("output.weight")),
            ("model.layers.0.input_layernorm.weight", Some("blk.0.attn_norm.weight")),
            ("model.layers.12.post_attention_layernorm.weight", Some("blk.12.ffn_norm.weight")),
            ("model.layers.3.self_attn.q_norm.weight", Some("blk.3.attn_q_norm.weight")),
            ("model.layers.3.self_attn.k_proj.weight", Some("blk.3.attn_k.weight")),
            ("model.layers.3.self_attn.o_proj.weight", Some("blk.3.attn_output.weight")),
            ("model.layers.3.mlp.down_proj.weight", Some("blk.3.ffn_down.weight")),
            ("model.layers.3.mlp.q_proj.weight", None),
            ("model.layers.3.self_attn.q_proj.bias", None),
            ("model.layers.03.self_attn.q_proj.weight", None),
            ("model.layers.+3.self_attn.q_proj.weight", None),
            ("model.layers.3.block_sparse_moe.gate.weight", None),
            ("layers.3.mlp.down_proj.weight", None),
        ] {
            assert_eq!(from_transformers(theirs).as_deref(), ours, "{theirs}");
        }
    }

    #[test]
    fn tensors_that_nobody_reads_are_refused() {
        let mut config = crate::adapter::tiny_config(2);
        let told = |names: &[&str], config: &ModelConfig| {
            refuse_others(names.iter().copied(), config).err().map(|error| error.to_string()).unwrap_or_default()
        };
        let sound = ["token_embd.weight", "output.weight", "blk.1.ffn_gate.weight", "blk.0.attn_norm.weight"];
        assert_eq!(told(&sound, &config), "");
        assert!(told(&["blk.2.ffn_gate.weight"], &config).contains("blk.2."));
        assert!(told(&["blk.1.z.weight", "blk.0.attn_q.bias"], &config).contains("blk.0.attn_q.bias"));
        assert!(told(&["blk.0.attn_q_norm.weight"], &config).contains("attn_q_norm"));
        config.query_key_norm = true;
        assert_eq!(told(&["blk.0.attn_q_norm.weight"], &config), "");
        assert!(told(&[&"x".repeat(1 << 16)], &config).len() < 400);
    }
}
