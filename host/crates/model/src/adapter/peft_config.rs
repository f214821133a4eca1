//! PEFT's `adapter_config.json`: LoRA, rsLoRA, DoRA and aLoRA pass, every other kind is named and refused. Not here: which modules
//! are targeted (`targets`), and by what an aLoRA is invoked (`invocation`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fingerprint::BASE_DIGEST_KEY;
use super::rejection::short;
use super::tensors::{Site, Term};
use super::{AdapterKind, AdapterLimits, AdapterRejection, Invocation, invocation, targets};
use crate::ModelConfig;

/// What the configuration says, as far as it decides what is computed.
#[derive(Debug)]
pub(super) struct PeftConfig {
    pub(super) kind: AdapterKind,
    /// Of an aLoRA.
    pub(super) invocation: Option<Invocation>,
    /// Every targeted module; the scale is alpha / rank, or alpha / sqrt(rank) for rsLoRA, of the module's own.
    pub(super) terms: BTreeMap<Site, Term>,
    pub(super) base_model_name: Option<String>,
    /// The base that it is for, by digest.
    pub(super) base_digest: Option<String>,
    /// What its owner should know, though it changes nothing.
    pub(super) warnings: Vec<String>,
}

/// Keys that must be absent, null, false or empty, and what they would turn on.
const NEUTRAL: [(&str, &str); 8] = [
    ("modules_to_save", "replaced modules of the base"),
    ("lora_bias", "a bias on B"),
    ("fan_in_fan_out", "transposed weights"),
    ("target_parameters", "LoRA on bare parameters"),
    ("trainable_token_indices", "trained embeddings"),
    ("layer_replication", "replicated layers"),
    ("use_qalora", "QALoRA, whose A acts on groups of inputs"),
    ("use_bdlora", "BD-LoRA, whose factors are block-diagonal"),
];

/// Keys of PEFT's `LoraConfig` (0.21) and its parents that say nothing about the result, or are read elsewhere. `eva_config`
/// belongs to an initialisation that leaves the base alone.
const KNOWN: [&str; 29] = [
    invocation::KEY,
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
    "modules_to_tie",
    "target_modules_to_tie",
    BASE_DIGEST_KEY,
];

/// Bytes of the base's name that are kept.
const NAME_BYTES_MAX: usize = 256;
/// Unknown keys that are named in a warning.
const UNKNOWN_SHOWN_MAX: usize = 8;

impl PeftConfig {
    pub(super) fn parse(bytes: &[u8], base: &ModelConfig, limits: &AdapterLimits) -> Result<Self, AdapterRejection> {
        let config: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| {
            let error = short(&error.to_string());
            AdapterRejection::Malformed(format!("adapter_config.json is not a JSON object: {error}"))
        })?;
        let mut warnings = refuse_other_kinds(&config)?;
        let (is_dora, is_rslora) = (flag(&config, "use_dora")?, flag(&config, "use_rslora")?);
        let invocation = Invocation::of(&config, base, limits)?;
        let mut terms = BTreeMap::new();
        for (site, (rank, alpha)) in targets::targets(&config, base, limits)? {
            let divisor = if is_rslora { f64::from(rank).sqrt() } else { f64::from(rank) };
            let scale = alpha / divisor;
            if !(scale as f32).is_finite() {
                return Err(AdapterRejection::NotFinite(format!("its scale is {scale}")));
            }
            terms.insert(site, Term { rank: rank as usize, scale });
        }
        if !is_dora && terms.values().all(|term| term.scale == 0.0) {
            warnings.push("its alpha is 0: it changes nothing".into());
        }
        let kind = match (is_dora, is_rslora) {
            _ if invocation.is_some() => AdapterKind::Alora,
            (true, _) => AdapterKind::Dora,
            (false, true) => AdapterKind::RsLora,
            (false, false) => AdapterKind::Lora,
        };
        let base_digest = match config.get(BASE_DIGEST_KEY) {
            None | Some(Value::Null) => None,
            Some(Value::String(digest)) => Some(digest.clone()),
            Some(_) => return Err(AdapterRejection::Malformed(format!("`{BASE_DIGEST_KEY}` must be a text"))),
        };
        Ok(Self { kind, invocation, terms, base_model_name: base_model_name(&config), base_digest, warnings })
    }
}

/// True or false; absent and null are false.
fn flag(config: &Map<String, Value>, key: &str) -> Result<bool, AdapterRejection> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(set)) => Ok(*set),
        Some(_) => Err(AdapterRejection::Malformed(format!("`{key}` must be true or false"))),
    }
}

/// Refuses what would be computed otherwise; gives warnings about what is ignored.
fn refuse_other_kinds(config: &Map<String, Value>) -> Result<Vec<String>, AdapterRejection> {
    let unsupported = |reason: String| Err(AdapterRejection::Unsupported(reason));
    match config.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => return unsupported(format!("peft_type is {}, expected LORA", short(other.unwrap_or("absent")))),
    }
    if config.get("bias").is_some_and(|bias| bias != "none" && !is_neutral(bias)) {
        return unsupported("it trains biases (`bias` must be `none`)".into());
    }
    for (key, meaning) in NEUTRAL {
        if config.get(key).is_some_and(|value| !is_neutral(value)) {
            return unsupported(format!("`{key}` is set: {meaning}"));
        }
    }
    // These initialise A and B only. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, …) also change the base.
    let harmless = |init: &str| ["gaussian", "orthogonal", "eva", "mica"].contains(&init);
    let plain = |init: &Value| init.is_boolean() || init.is_null() || init.as_str().is_some_and(harmless);
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
    // Heads of other tasks take the place of the base's output layer.
    let task = config.get("task_type").and_then(Value::as_str).unwrap_or("CAUSAL_LM");
    if ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"].contains(&task) {
        return unsupported(format!("`task_type` is {task}: it needs another output layer than the base's"));
    }
    let mut unknown = Vec::new();
    for (key, value) in config {
        if KNOWN.contains(&key.as_str()) || is_neutral(value) {
            continue;
        }
        // Every variant so far was turned on by a key of one of these two forms, so that an unknown one is refused too.
        if key.starts_with("use_") || key.ends_with("_config") {
            return unsupported(format!("`{}` is set: a variant of LoRA", short(key)));
        }
        unknown.push(format!("`{}`", short(key)));
    }
    let mut warnings = Vec::new();
    if task != "CAUSAL_LM" {
        warnings.push(format!("`task_type` is `{}`: it is executed as CAUSAL_LM", short(task)));
    }
    if !unknown.is_empty() {
        let more = unknown.len().saturating_sub(UNKNOWN_SHOWN_MAX);
        unknown.truncate(UNKNOWN_SHOWN_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        warnings.push(format!("keys that are not known were ignored, as PEFT does: {}{more}", unknown.join(", ")));
    }
    Ok(warnings)
}

/// Null, false, or empty.
pub(super) fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::Number(_) => false,
    }
}

fn base_model_name(config: &Map<String, Value>) -> Option<String> {
    let name = config.get("base_model_name_or_path")?.as_str()?;
    let end = name.char_indices().map(|(at, character)| at + character.len_utf8());
    let end = end.take_while(|end| *end <= NAME_BYTES_MAX).last()?;
    name.get(..end).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use types::Module;

    use super::*;

    fn base() -> ModelConfig {
        crate::adapter::tiny_config(2)
    }

    fn parse(changes: &str) -> Result<PeftConfig, AdapterRejection> {
        let mut config: Map<String, Value> = serde_json::from_str(
            r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none",
                "lora_dropout": 0.1, "task_type": "CAUSAL_LM", "megatron_core": "megatron.core", "loftq_config": {}}"#,
        )
        .unwrap();
        config.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
        PeftConfig::parse(&serde_json::to_vec(&config).unwrap(), &base(), &AdapterLimits::default())
    }

    #[test]
    fn the_scale_is_that_of_peft() {
        let term = |changes: &str, module| parse(changes).unwrap().terms[&Site { layer: 1, module }];
        let of = |rank, scale| Term { rank, scale };
        assert_eq!(term("{}", Module::Q), of(4, 2.0));
        assert_eq!(term(r#"{"use_rslora": true}"#, Module::Q), of(4, 4.0));
        assert_eq!(term(r#"{"lora_alpha": 0}"#, Module::Q), of(4, 0.0));
        // rsLoRA takes the root of the module's own rank.
        let patterns = r#"{"use_rslora": true, "rank_pattern": {"q_proj": 16}, "alpha_pattern": {"v_proj": 3}}"#;
        assert_eq!(term(patterns, Module::Q), of(16, 2.0));
        assert_eq!(term(patterns, Module::V), of(4, 1.5));
        for (changes, kind) in [
            ("{}", AdapterKind::Lora),
            (r#"{"use_rslora": true}"#, AdapterKind::RsLora),
            (r#"{"use_dora": true, "use_rslora": true}"#, AdapterKind::Dora),
            (r#"{"alora_invocation_tokens": [1]}"#, AdapterKind::Alora),
            (r#"{"alora_invocation_tokens": [1], "use_rslora": true}"#, AdapterKind::Alora),
        ] {
            assert_eq!(parse(changes).unwrap().kind, kind);
        }
    }

    #[test]
    fn what_does_not_change_the_meaning_passes_and_the_owner_is_told() {
        for (changes, warning) in [
            (r#"{"future_flag": true, "peft_version": "99", "future_cfg": {"a": 1}}"#, "`future_flag`, `future_cfg`"),
            (r#"{"lora_alpha": 0}"#, "changes nothing"),
            (r#"{"task_type": "SEQ_2_SEQ_LM"}"#, "executed as CAUSAL_LM"),
            (r#"{"init_lora_weights": "gaussian", "use_dora": false, "rank_pattern": {}, "eva_config": null}"#, ""),
            (r#"{"init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "rank_pattern": {"q_proj": 8}}"#, ""),
            (
                r#"{"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"}}"#,
                "",
            ),
            (r#"{"alora_invocation_tokens": []}"#, ""),
            (r#"{"bias": null, "exclude_modules": null, "layers_pattern": [], "ensure_weight_tying": true}"#, ""),
        ] {
            let warnings = parse(changes).unwrap_or_else(|rejection| panic!("{changes}: {rejection}")).warnings;
            assert_eq!(warnings.len(), usize::from(!warning.is_empty()), "{changes}: {warnings:?}");
            assert!(warnings.iter().all(|text| text.contains(warning)), "{changes}: {warnings:?}");
        }
    }

    #[test]
    fn every_other_kind_is_refused_by_its_name() {
        for (changes, named) in [
            (r#"{"peft_type": "IA3"}"#, "IA3"),
            (r#"{"peft_type": null}"#, "peft_type"),
            (r#"{"use_qalora": true}"#, "QALoRA"),
            (r#"{"use_bdlora": {"nblocks": 2}}"#, "BD-LoRA"),
            (r#"{"alora_invocation_tokens": [1], "use_dora": true}"#, "use_dora"),
            (r#"{"alora_invocation_tokens": [1], "init_lora_weights": "mica"}"#, "mica"),
            (r#"{"alora_invocation_tokens": [1], "task_type": null}"#, "CAUSAL_LM"),
            (r#"{"alora_invocation_tokens": [1], "task_type": "SEQ_2_SEQ_LM"}"#, "CAUSAL_LM"),
            (r#"{"modules_to_save": ["lm_head"]}"#, "modules_to_save"),
            (r#"{"bias": "all"}"#, "bias"),
            (r#"{"bias": "lora_only"}"#, "bias"),
            (r#"{"lora_bias": true}"#, "lora_bias"),
            (r#"{"fan_in_fan_out": true}"#, "fan_in_fan_out"),
            (r#"{"use_dora": true, "fan_in_fan_out": true}"#, "fan_in_fan_out"),
            (r#"{"target_parameters": ["a"]}"#, "target_parameters"),
            (r#"{"trainable_token_indices": [1]}"#, "trainable_token_indices"),
            (r#"{"layer_replication": [[0, 2], [0, 2]]}"#, "layer_replication"),
            (r#"{"init_lora_weights": "pissa"}"#, "init_lora_weights"),
            (r#"{"init_lora_weights": "pissa_niter_4"}"#, "init_lora_weights"),
            (r#"{"init_lora_weights": "olora"}"#, "init_lora_weights"),
            (r#"{"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}"#, "init_lora_weights"),
            (r#"{"init_lora_weights": "lora_ga"}"#, "init_lora_weights"),
            (r#"{"auto_mapping": {"parent_library": "subprocess"}}"#, "auto_mapping"),
            (r#"{"task_type": "SEQ_CLS"}"#, "task_type"),
            (r#"{"kasa_config": {"beta": 1}}"#, "kasa_config"),
            (r#"{"monteclora_config": {"num_samples": 8}}"#, "monteclora_config"),
            (r#"{"arrow_config": {"top_k": 3}}"#, "arrow_config"),
            (r#"{"velora_config": {"scale": 1.0}}"#, "velora_config"),
            (r#"{"megatron_config": {"a": 1}}"#, "megatron_config"),
            (r#"{"use_tomorrow": true}"#, "use_tomorrow"),
            (r#"{"tomorrow_config": {"a": 1}}"#, "tomorrow_config"),
        ] {
            let rejection = parse(changes).unwrap_err();
            assert_eq!(rejection.code(), "adapter_unsupported", "{changes}");
            assert!(rejection.to_string().contains(named), "{changes}: {rejection}");
        }
    }

    #[test]
    fn numbers_and_forms_are_checked() {
        for (changes, code) in [
            (r#"{"lora_alpha": -4}"#, "adapter_unsupported"),
            (r#"{"lora_alpha": "8"}"#, "adapter_malformed"),
            (r#"{"lora_alpha": 1e300}"#, "adapter_not_finite"),
            (r#"{"use_rslora": 1}"#, "adapter_malformed"),
            (r#"{"use_dora": "yes"}"#, "adapter_malformed"),
            (r#"{"r": 0}"#, "adapter_malformed"),
            (r#"{"r": 4.5}"#, "adapter_malformed"),
            (r#"{"r": null}"#, "adapter_malformed"),
            (r#"{"r": 4294967296}"#, "adapter_malformed"),
            (r#"{"tenon.base_digest": 7}"#, "adapter_malformed"),
        ] {
            assert_eq!(parse(changes).unwrap_err().code(), code, "{changes}");
        }
        let limits = AdapterLimits::default();
        assert_eq!(PeftConfig::parse(b"[]", &base(), &limits).unwrap_err().code(), "adapter_malformed");
    }
}
