//! PEFT's `adapter_config.json`: plain LoRA and rsLoRA pass, every other kind is named and refused.

use serde_json::{Map, Value};
use types::{Module, ModuleSet};

use super::{AdapterLimits, AdapterRejection};

/// What the configuration says, as far as it decides what is computed.
#[derive(Debug)]
pub(super) struct PeftConfig {
    pub(super) rank: u32,
    /// alpha / rank, or alpha / sqrt(rank) for rsLoRA.
    pub(super) scale: f64,
    pub(super) modules: ModuleSet,
    /// `None` is every layer.
    pub(super) layers: Option<Vec<usize>>,
    pub(super) base_model_name: Option<String>,
}

/// Keys that must be absent, null, false or empty, and what they would turn on.
const NEUTRAL: [(&str, &str); 12] = [
    ("use_dora", "DoRA"),
    ("alora_invocation_tokens", "aLoRA, which acts only after its invocation tokens"),
    ("rank_pattern", "ranks that differ between modules"),
    ("alpha_pattern", "scales that differ between modules"),
    ("modules_to_save", "replaced modules of the base"),
    ("lora_bias", "a bias on B"),
    ("fan_in_fan_out", "transposed weights"),
    ("target_parameters", "LoRA on bare parameters"),
    ("trainable_token_indices", "trained embeddings"),
    ("layer_replication", "replicated layers"),
    ("layers_pattern", "a pattern of layer names"),
    ("exclude_modules", "excluded modules"),
];

/// Bytes of the base's name that are kept.
const NAME_BYTES_MAX: usize = 256;

impl PeftConfig {
    pub(super) fn parse(bytes: &[u8], limits: &AdapterLimits) -> Result<Self, AdapterRejection> {
        limits.check("adapter_config.json in bytes", bytes.len(), limits.config_bytes_max)?;
        let config: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| {
            AdapterRejection::Malformed(format!("adapter_config.json is not a JSON object: {error}"))
        })?;
        refuse_other_kinds(&config)?;
        let rank = rank(&config, limits)?;
        Ok(Self {
            rank,
            scale: scale(&config, rank)?,
            modules: modules(&config)?,
            layers: layers(&config)?,
            base_model_name: base_model_name(&config),
        })
    }
}

fn refuse_other_kinds(config: &Map<String, Value>) -> Result<(), AdapterRejection> {
    let unsupported = |reason: String| Err(AdapterRejection::Unsupported(reason));
    match config.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => return unsupported(format!("peft_type is {}, expected LORA", other.unwrap_or("absent"))),
    }
    if config.get("bias").is_some_and(|bias| bias != "none" && !is_neutral(bias)) {
        return unsupported("it trains biases (`bias` must be `none`)".into());
    }
    for (key, meaning) in NEUTRAL {
        if config.get(key).is_some_and(|value| !is_neutral(value)) {
            return unsupported(format!("`{key}` is set: {meaning}"));
        }
    }
    // These initialise A and B only. The others (PiSSA, OLoRA, CorDA, LoftQ, …) also change the base.
    let plain = |init: &Value| init.is_boolean() || init.is_null() || init == "gaussian" || init == "orthogonal";
    if config.get("init_lora_weights").is_some_and(|init| !plain(init)) {
        return unsupported(
            "`init_lora_weights` changes the base: convert the adapter to plain LoRA when saving it".into(),
        );
    }
    // Written by PEFT when no task type was given; never imported, but only transformers' own names are expected.
    let library =
        config.get("auto_mapping").filter(|mapping| !is_neutral(mapping)).map(|mapping| &mapping["parent_library"]);
    if library.is_some_and(|library| !library.as_str().is_some_and(|name| name.starts_with("transformers."))) {
        return unsupported("`auto_mapping` names a library other than transformers".into());
    }
    // Every variant so far was turned on by a key of one of these two forms, so that an unknown one is refused too.
    for (key, value) in config {
        let variant = key.starts_with("use_") && key != "use_rslora" || key.ends_with("_config");
        if variant && !is_neutral(value) {
            return unsupported(format!("`{}` is set: a variant of LoRA", key.escape_debug()));
        }
    }
    Ok(())
}

/// Null, false, or empty.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Number(_) => false,
    }
}

fn rank(config: &Map<String, Value>, limits: &AdapterLimits) -> Result<u32, AdapterRejection> {
    let rank = config.get("r").and_then(Value::as_u64).filter(|rank| *rank > 0);
    let rank = rank.ok_or_else(|| AdapterRejection::Malformed("`r` must be a whole number above 0".into()))?;
    limits.check("its rank", usize::try_from(rank).unwrap_or(usize::MAX), limits.rank_max as usize)?;
    u32::try_from(rank).map_err(|_| AdapterRejection::Malformed("`r` is too large".into()))
}

fn scale(config: &Map<String, Value>, rank: u32) -> Result<f64, AdapterRejection> {
    let alpha = config.get("lora_alpha").and_then(Value::as_f64);
    let alpha = alpha.ok_or_else(|| AdapterRejection::Malformed("`lora_alpha` must be a number".into()))?;
    if alpha < 0.0 {
        return Err(AdapterRejection::Unsupported(
            "`lora_alpha` is below 0: give the adapter a negative weight instead".into(),
        ));
    }
    let divisor = match config.get("use_rslora") {
        None | Some(Value::Null | Value::Bool(false)) => f64::from(rank),
        Some(Value::Bool(true)) => f64::from(rank).sqrt(),
        Some(_) => return Err(AdapterRejection::Malformed("`use_rslora` must be true or false".into())),
    };
    let scale = alpha / divisor;
    if (scale as f32).is_finite() {
        Ok(scale)
    } else {
        Err(AdapterRejection::NotFinite(format!("its scale is {scale}")))
    }
}

fn modules(config: &Map<String, Value>) -> Result<ModuleSet, AdapterRejection> {
    let Some(Value::Array(names)) = config.get("target_modules") else {
        return Err(AdapterRejection::Unsupported(
            "`target_modules` must be a list of names; patterns are not evaluated".into(),
        ));
    };
    let module = |name: &Value| {
        let module = name.as_str().and_then(Module::from_name);
        module.ok_or_else(|| AdapterRejection::Unsupported(format!("the base has no linear module {}", short(name))))
    };
    let modules: ModuleSet = names.iter().map(module).collect::<Result<_, _>>()?;
    if modules.is_empty() { Err(AdapterRejection::Malformed("`target_modules` is empty".into())) } else { Ok(modules) }
}

fn layers(config: &Map<String, Value>) -> Result<Option<Vec<usize>>, AdapterRejection> {
    let malformed = || AdapterRejection::Malformed("`layers_to_transform` must be layer numbers".into());
    let number = |value: &Value| value.as_u64().and_then(|layer| usize::try_from(layer).ok()).ok_or_else(malformed);
    let mut layers = match config.get("layers_to_transform") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(layers)) => layers.iter().map(number).collect::<Result<Vec<_>, _>>()?,
        Some(layer) => vec![number(layer)?],
    };
    layers.sort_unstable();
    layers.dedup();
    if layers.is_empty() { Err(malformed()) } else { Ok(Some(layers)) }
}

fn base_model_name(config: &Map<String, Value>) -> Option<String> {
    let name = config.get("base_model_name_or_path")?.as_str()?;
    let end = name.char_indices().map(|(at, character)| at + character.len_utf8());
    let end = end.take_while(|end| *end <= NAME_BYTES_MAX).last()?;
    name.get(..end).map(str::to_owned)
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(changes: &str) -> Result<PeftConfig, AdapterRejection> {
        let mut config: Map<String, Value> = serde_json::from_str(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none",
                "lora_dropout": 0.1, "task_type": "CAUSAL_LM", "megatron_core": "megatron.core", "loftq_config": {}}"#,
        )
        .unwrap();
        config.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
        PeftConfig::parse(&serde_json::to_vec(&config).unwrap(), &AdapterLimits::default())
    }

    #[test]
    fn the_scale_is_that_of_peft() {
        assert_eq!(parse("{}").unwrap().scale, 2.0);
        assert_eq!(parse(r#"{"use_rslora": true}"#).unwrap().scale, 4.0);
        assert_eq!(parse(r#"{"lora_alpha": 0}"#).unwrap().scale, 0.0);
        assert_eq!(parse(r#"{"layers_to_transform": [2, 1, 2]}"#).unwrap().layers, Some(vec![1, 2]));
        assert_eq!(parse(r#"{"layers_to_transform": 3}"#).unwrap().layers, Some(vec![3]));
    }

    #[test]
    fn what_does_not_change_the_meaning_passes() {
        for changes in [
            r#"{"future_flag": true, "peft_version": "99"}"#,
            r#"{"init_lora_weights": "gaussian", "use_dora": false, "rank_pattern": {}, "eva_config": null}"#,
            r#"{"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"}}"#,
        ] {
            assert!(parse(changes).is_ok(), "{changes}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_code() {
        for (changes, code) in [
            (r#"{"peft_type": "IA3"}"#, "adapter_unsupported"),
            (r#"{"use_dora": true}"#, "adapter_unsupported"),
            (r#"{"use_qalora": true}"#, "adapter_unsupported"),
            (r#"{"use_tomorrow": true}"#, "adapter_unsupported"),
            (r#"{"tomorrow_config": {"a": 1}}"#, "adapter_unsupported"),
            (r#"{"alora_invocation_tokens": [1]}"#, "adapter_unsupported"),
            (r#"{"rank_pattern": {"q_proj": 2}}"#, "adapter_unsupported"),
            (r#"{"alpha_pattern": {"q_proj": 2}}"#, "adapter_unsupported"),
            (r#"{"modules_to_save": ["lm_head"]}"#, "adapter_unsupported"),
            (r#"{"bias": "all"}"#, "adapter_unsupported"),
            (r#"{"lora_bias": true}"#, "adapter_unsupported"),
            (r#"{"fan_in_fan_out": true}"#, "adapter_unsupported"),
            (r#"{"target_parameters": ["a"]}"#, "adapter_unsupported"),
            (r#"{"trainable_token_indices": [1]}"#, "adapter_unsupported"),
            (r#"{"init_lora_weights": "pissa"}"#, "adapter_unsupported"),
            (r#"{"auto_mapping": {"parent_library": "subprocess"}}"#, "adapter_unsupported"),
            (r#"{"target_modules": ".*"}"#, "adapter_unsupported"),
            (r#"{"target_modules": ["lm_head"]}"#, "adapter_unsupported"),
            (r#"{"target_modules": []}"#, "adapter_malformed"),
            (r#"{"lora_alpha": -4}"#, "adapter_unsupported"),
            (r#"{"lora_alpha": "8"}"#, "adapter_malformed"),
            (r#"{"lora_alpha": 1e300}"#, "adapter_not_finite"),
            (r#"{"use_rslora": 1}"#, "adapter_malformed"),
            (r#"{"r": 0}"#, "adapter_malformed"),
            (r#"{"r": 4.5}"#, "adapter_malformed"),
            (r#"{"r": null}"#, "adapter_malformed"),
            (r#"{"r": 257}"#, "adapter_too_large"),
            (r#"{"layers_to_transform": [-1]}"#, "adapter_malformed"),
        ] {
            assert_eq!(parse(changes).unwrap_err().code(), code, "{changes}");
        }
        let limits = AdapterLimits::default();
        assert_eq!(PeftConfig::parse(b"[]", &limits).unwrap_err().code(), "adapter_malformed");
        assert_eq!(PeftConfig::parse(&[b' '; 70_000], &limits).unwrap_err().code(), "adapter_too_large");
    }
}
