//! Which modules a PEFT configuration targets, and with which rank and alpha: `target_modules`, `exclude_modules`,
//! `layers_to_transform`, `rank_pattern` and `alpha_pattern`, as PEFT 0.21 matches them against the names of modules.
//! Not here: what is done with rank and alpha.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use types::Module;

use super::pattern::Pattern;
use super::rejection::short;
use super::tensors::{Site, block};
use super::{AdapterLimits, AdapterRejection};
use crate::ModelConfig;

/// Patterns of one key.
const PATTERNS_MAX: usize = 1024;
/// Those of them that are more than a name: each is compiled, and tried on every module.
const COMPILED_PATTERNS_MAX: usize = 64;

/// Rank and alpha of every targeted module.
pub(super) type Targets = BTreeMap<Site, (u32, f64)>;

/// What the configuration targets in this base.
pub(super) fn targets(
    config: &Map<String, Value>,
    base: &ModelConfig,
    limits: &AdapterLimits,
) -> Result<Targets, AdapterRejection> {
    let (rank, alpha) = (rank("r", config.get("r"))?, alpha("lora_alpha", config.get("lora_alpha"))?);
    let ranks = patterns(config, "rank_pattern", limits, |key, value| self::rank(key, Some(value)))?;
    let alphas = patterns(config, "alpha_pattern", limits, |key, value| self::alpha(key, Some(value)))?;
    let names = Names::of(config, "target_modules")?.ok_or_else(|| malformed("`target_modules` is missing"))?;
    let excluded = Names::of(config, "exclude_modules")?;
    let layers = Layers::of(config, &names)?;

    let is_excluded = |name: &str| excluded.as_ref().is_some_and(|names| names.find(name).is_some());
    let mut targets = Targets::new();
    for layer in 0..base.layers {
        for module in Module::ALL {
            let name = format!("model.layers.{layer}.{}.{}", block(module), module.name());
            let targeted = match names.find(&name).filter(|_| !is_excluded(&name)) {
                // PEFT looks at the layers only where the name is not given in full.
                Some(Found::Whole) => true,
                Some(Found::Ending) => layers.contain(layer),
                None => false,
            };
            if targeted {
                let rank = first(&ranks, &name).unwrap_or(rank);
                let alpha = first(&alphas, &name).unwrap_or(alpha);
                targets.insert(Site { layer, module }, (rank, alpha));
            }
        }
    }
    refuse_others(&names, &is_excluded, base)?;
    if targets.is_empty() {
        return Err(unsupported("`target_modules` matches no linear module of the base"));
    }
    Ok(targets)
}

/// What a key of the configuration says about names.
enum Names {
    AllLinear,
    List(Vec<String>),
    Pattern(Pattern),
}

enum Found {
    Whole,
    Ending,
}

impl Names {
    fn of(config: &Map<String, Value>, key: &'static str) -> Result<Option<Self>, AdapterRejection> {
        let not_names = || malformed(format!("`{key}` must be a list of names or a pattern"));
        match config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if key == "target_modules" && text.eq_ignore_ascii_case("all-linear") => {
                Ok(Some(Self::AllLinear))
            }
            Some(Value::String(text)) if text.is_empty() && key == "exclude_modules" => Ok(None),
            Some(Value::String(text)) => Ok(Some(Self::Pattern(Pattern::whole(key, text)?))),
            Some(Value::Array(names)) => {
                let names = names.iter().map(|name| name.as_str().map(str::to_owned).ok_or_else(not_names));
                Ok(Some(Self::List(names.collect::<Result<_, _>>()?)))
            }
            Some(_) => Err(not_names()),
        }
    }

    fn find(&self, name: &str) -> Option<Found> {
        let found = |found: bool, how| found.then_some(how);
        match self {
            // PEFT replaces it by the full names of all linear modules.
            Self::AllLinear => found(name.ends_with("_proj"), Found::Whole),
            Self::Pattern(pattern) => found(pattern.matches(name), Found::Whole),
            Self::List(names) if names.iter().any(|listed| listed == name) => Some(Found::Whole),
            Self::List(names) => found(names.iter().any(|listed| is_ending(listed, name)), Found::Ending),
        }
    }
}

fn is_ending(listed: &str, name: &str) -> bool {
    name.strip_suffix(listed).is_some_and(|rest| rest.ends_with('.'))
}

/// Refuses targets that would be adapted elsewhere: embeddings, the output layer, norms, whole blocks, unknown names.
fn refuse_others(
    names: &Names,
    is_excluded: &impl Fn(&str) -> bool,
    base: &ModelConfig,
) -> Result<(), AdapterRejection> {
    let mut of_a_layer = vec!["", ".self_attn", ".mlp", ".mlp.act_fn", ".input_layernorm", ".post_attention_layernorm"];
    if base.query_key_norm {
        of_a_layer.extend([".self_attn.q_norm", ".self_attn.k_norm"]);
    }
    let of_a_layer = &of_a_layer;
    let layers =
        (0..base.layers).flat_map(|layer| of_a_layer.iter().map(move |end| format!("model.layers.{layer}{end}")));
    let outside = ["model", "lm_head", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb"];
    let mut others = outside.into_iter().map(str::to_owned).chain(layers);
    if let Some(other) = others.find(|name| names.find(name).is_some() && !is_excluded(name)) {
        return Err(unsupported(format!("`target_modules` matches `{other}`, which is no linear module of a layer")));
    }
    let Names::List(listed) = names else { return Ok(()) };
    for listed in listed {
        let last = listed.rsplit('.').next().unwrap_or_default();
        let is_known = Module::from_name(last).is_some_and(|module| {
            (0..base.layers).any(|layer| {
                let name = format!("model.layers.{layer}.{}.{}", block(module), module.name());
                *listed == name || is_ending(listed, &name)
            })
        });
        if !is_known {
            return Err(unsupported(format!("the base has no linear module `{}`", short(listed))));
        }
    }
    Ok(())
}

/// `layers_to_transform`; `None` is every layer.
struct Layers(Option<Vec<u64>>);

impl Layers {
    fn of(config: &Map<String, Value>, names: &Names) -> Result<Self, AdapterRejection> {
        let not_layers = || malformed("`layers_to_transform` must be layer numbers");
        let number = |value: &Value| value.as_u64().ok_or_else(not_layers);
        let layers = match config.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(Value::Array(layers)) => Some(layers.iter().map(number).collect::<Result<Vec<_>, _>>()?),
            Some(layer) => Some(vec![number(layer)?]),
        };
        let pattern = config.get("layers_pattern").filter(|pattern| !super::peft_config::is_neutral(pattern));
        if !matches!(names, Names::List(_)) && (layers.is_some() || pattern.is_some()) {
            return Err(malformed("`layers_to_transform` and `layers_pattern` need `target_modules` to be a list"));
        }
        if let Some(pattern) = pattern {
            if layers.is_none() {
                return Err(malformed("`layers_pattern` is given without `layers_to_transform`"));
            }
            let is_layers = |name: &Value| name == "layers" || name == "model.layers";
            let all_are = pattern.as_array().map_or_else(|| is_layers(pattern), |names| names.iter().all(is_layers));
            if !all_are {
                return Err(unsupported("`layers_pattern` names another list than `layers`, the base's only one"));
            }
        }
        Ok(Self(layers.filter(|layers| !layers.is_empty())))
    }

    fn contain(&self, layer: usize) -> bool {
        self.0.as_ref().is_none_or(|layers| layers.contains(&(layer as u64)))
    }
}

/// A pattern dictionary, in its own order: the first that matches counts.
fn patterns<T>(
    config: &Map<String, Value>,
    key: &'static str,
    limits: &AdapterLimits,
    value_of: impl Fn(&str, &Value) -> Result<T, AdapterRejection>,
) -> Result<Vec<(Pattern, T)>, AdapterRejection> {
    let entries = match config.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(_) => return Err(malformed(format!("`{key}` must be an object of patterns"))),
    };
    limits.check("the number of patterns", entries.len(), PATTERNS_MAX)?;
    let (mut found, mut compiled) = (Vec::with_capacity(entries.len()), 0);
    for (text, value) in entries {
        let (pattern, value) = (Pattern::ending(key, text)?, value_of(key, value)?);
        compiled += usize::from(pattern.is_compiled());
        limits.check("the number of patterns that are more than a name", compiled, COMPILED_PATTERNS_MAX)?;
        found.push((pattern, value));
    }
    Ok(found)
}

fn first<T: Copy>(patterns: &[(Pattern, T)], name: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.matches(name)).map(|(_, value)| *value)
}

/// How large it may be is looked at later, where it is used.
fn rank(key: &str, value: Option<&Value>) -> Result<u32, AdapterRejection> {
    let rank = value.and_then(Value::as_u64).filter(|rank| *rank > 0);
    let rank = rank.ok_or_else(|| malformed(format!("a rank in `{key}` must be a whole number above 0")))?;
    u32::try_from(rank).map_err(|_| malformed("a rank is too large"))
}

fn alpha(key: &str, value: Option<&Value>) -> Result<f64, AdapterRejection> {
    let alpha = value.and_then(Value::as_f64);
    let alpha = alpha.ok_or_else(|| malformed(format!("an alpha in `{key}` must be a number")))?;
    if alpha < 0.0 {
        return Err(unsupported(format!("an alpha in `{key}` is below 0: give the adapter a negative weight instead")));
    }
    Ok(alpha)
}

fn malformed(reason: impl Into<String>) -> AdapterRejection {
    AdapterRejection::Malformed(reason.into())
}

fn unsupported(reason: impl Into<String>) -> AdapterRejection {
    AdapterRejection::Unsupported(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> ModelConfig {
        crate::adapter::tiny_config(12)
    }

    fn of(changes: &str) -> Result<Targets, AdapterRejection> {
        let mut config: Map<String, Value> =
            serde_json::from_str(r#"{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}"#).unwrap();
        config.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
        targets(&config, &base(), &AdapterLimits::default())
    }

    /// `layer/module` of each.
    fn sites(changes: &str) -> Vec<String> {
        let targets = of(changes).unwrap_or_else(|rejection| panic!("{changes}: {rejection}"));
        targets.keys().map(|site| format!("{}/{}", site.layer, site.module.name())).collect()
    }

    #[test]
    fn targets_are_those_of_peft() {
        assert_eq!(sites("{}").len(), 24);
        assert_eq!(sites(r#"{"target_modules": ["self_attn.q_proj"]}"#).len(), 12);
        assert_eq!(sites(r#"{"target_modules": "all-linear"}"#).len(), 84);
        assert_eq!(sites(r#"{"target_modules": "ALL-linear", "exclude_modules": ["mlp.up_proj"]}"#).len(), 72);
        assert_eq!(sites(r#"{"target_modules": "all-linear", "exclude_modules": ".*(up|down)_proj"}"#).len(), 60);
        assert_eq!(sites(r#"{"layers_to_transform": 3, "target_modules": ["o_proj"]}"#), ["3/o_proj"]);
        assert_eq!(
            sites(r#"{"layers_to_transform": [1, 11, 99]}"#),
            ["1/q_proj", "1/v_proj", "11/q_proj", "11/v_proj"]
        );
        assert_eq!(sites(r#"{"layers_to_transform": []}"#).len(), 24);
        let pattern = r#"{"layers_to_transform": [1], "layers_pattern": ["layers"], "target_modules": ["q_proj"]}"#;
        assert_eq!(sites(pattern), ["1/q_proj"]);
        let regex = r#"{"target_modules": ".*layers\\.[01]\\.self_attn\\.(q_proj|v_proj)"}"#;
        assert_eq!(sites(regex), ["0/q_proj", "0/v_proj", "1/q_proj", "1/v_proj"]);
        // A name in full is targeted whatever the layers are; `layers.1.` is no ending of layer 11.
        let full = r#"{"layers_to_transform": [0],
            "target_modules": ["model.layers.5.self_attn.q_proj", "1.self_attn.k_proj", "layers.0.mlp.up_proj"]}"#;
        assert_eq!(sites(full), ["0/up_proj", "5/q_proj"]);
    }

    #[test]
    fn ranks_and_alphas_are_those_of_the_first_pattern_that_matches() {
        let found = of(r#"{"rank_pattern": {"layers.1.self_attn.q_proj": 16, "q_proj": 2, ".*": 1},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32, "proj": 1}}"#)
        .unwrap();
        let at = |layer, module| found[&Site { layer, module }];
        assert_eq!(at(1, Module::Q), (16, 8.0));
        assert_eq!(at(11, Module::Q), (2, 8.0));
        assert_eq!(at(0, Module::Q), (2, 32.0));
        assert_eq!(at(0, Module::V), (1, 8.0));
    }

    #[test]
    fn what_cannot_be_placed_is_refused_with_its_code() {
        for (changes, code) in [
            (r#"{"target_modules": null}"#, "adapter_malformed"),
            (r#"{"target_modules": 4}"#, "adapter_malformed"),
            (r#"{"target_modules": [4]}"#, "adapter_malformed"),
            (r#"{"target_modules": []}"#, "adapter_unsupported"),
            (r#"{"target_modules": ["lm_head", "q_proj"]}"#, "adapter_unsupported"),
            (r#"{"target_modules": ["qkv_fused", "v_proj"]}"#, "adapter_unsupported"),
            (r#"{"target_modules": ["mlp.q_proj", "v_proj"]}"#, "adapter_unsupported"),
            (r#"{"target_modules": ["model.layers.12.self_attn.q_proj", "v_proj"]}"#, "adapter_unsupported"),
            (r#"{"target_modules": ["self_attn"]}"#, "adapter_unsupported"),
            (r#"{"target_modules": ".*"}"#, "adapter_unsupported"),
            (r#"{"target_modules": ".*norm|.*q_proj"}"#, "adapter_unsupported"),
            (r#"{"target_modules": "(([a-z0-9_.]+)+)+!"}"#, "adapter_unsupported"),
            (r#"{"target_modules": "(?=q).*"}"#, "adapter_unsupported"),
            (r#"{"target_modules": "q_proj"}"#, "adapter_unsupported"),
            (r#"{"exclude_modules": ["q_proj", "v_proj"]}"#, "adapter_unsupported"),
            (r#"{"exclude_modules": {"a": 1}}"#, "adapter_malformed"),
            (r#"{"layers_to_transform": [-1]}"#, "adapter_malformed"),
            (r#"{"layers_to_transform": [99]}"#, "adapter_unsupported"),
            (r#"{"layers_to_transform": [1], "target_modules": ".*q_proj"}"#, "adapter_malformed"),
            (r#"{"layers_pattern": "layers"}"#, "adapter_malformed"),
            (r#"{"layers_to_transform": [1], "layers_pattern": ["h", "layers"]}"#, "adapter_unsupported"),
            (r#"{"rank_pattern": ["q_proj"]}"#, "adapter_malformed"),
            (r#"{"rank_pattern": {"q_proj": 0}}"#, "adapter_malformed"),
            (r#"{"rank_pattern": {"q_proj": 2.5}}"#, "adapter_malformed"),
            (r#"{"rank_pattern": {"nothing": 4294967296}}"#, "adapter_malformed"),
            (r#"{"rank_pattern": {"(": 2}}"#, "adapter_unsupported"),
            (r#"{"alpha_pattern": {"q_proj": "8"}}"#, "adapter_malformed"),
            (r#"{"alpha_pattern": {"q_proj": -1}}"#, "adapter_unsupported"),
        ] {
            assert_eq!(of(changes).unwrap_err().code(), code, "{changes}");
        }
        let many: Map<String, Value> = (0..=PATTERNS_MAX).map(|at| (format!("a{at}"), Value::from(2))).collect();
        let many = format!(r#"{{"rank_pattern": {}}}"#, Value::Object(many));
        assert_eq!(of(&many).unwrap_err().code(), "adapter_too_large");
        // What matching costs at most: so many patterns, each nearly as large as it may be, with many states alive at once.
        let heavy = |count: usize| {
            let entry = |at: usize| (format!("[a-z_.0-9]{{0,{}}}x", 200 + at), Value::from(2));
            let entries: Map<String, Value> = (0..count).map(entry).collect();
            of(&format!(r#"{{"rank_pattern": {}}}"#, Value::Object(entries))).map(|targets| targets.len())
        };
        assert_eq!(heavy(COMPILED_PATTERNS_MAX).unwrap(), 24);
        assert_eq!(heavy(COMPILED_PATTERNS_MAX + 1).unwrap_err().code(), "adapter_too_large");
    }
}
