//! The extension field that composes without a plugin. Not here: the rest of a body in OpenAI's shape.

use serde::Deserialize;
use types::{LayerRange, Module, ModuleSet, PlanEntry};
use utoipa::ToSchema;

use crate::error::Error;

/// One of `adapters: [{"name", "weight", "modules", "layers"}]`. A weight for each module or layer is an entry for each.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdapterField {
    name: String,
    #[serde(default = "one")]
    #[schema(default = 1.0)]
    weight: f32,
    /// Only these, by PEFT's names: `q_proj`, …; all that the adapter has if left out.
    modules: Option<Vec<String>>,
    /// Only layers `first` to one before `end`, counted from 0; all that the adapter has if left out.
    layers: Option<[u32; 2]>,
}

const fn one() -> f32 {
    1.0
}

impl AdapterField {
    /// What a plan says of it.
    pub(super) fn entry(&self) -> Result<PlanEntry, Error> {
        let module = |name: &String| {
            Module::from_name(name).ok_or_else(|| {
                let known = Module::ALL.map(Module::name).join(", ");
                let name: String = name.chars().take(96).collect();
                Error::invalid("invalid_request", "adapters", format!("`{name}` is no module: use {known}"))
            })
        };
        let modules = self.modules.as_ref().map(|names| names.iter().map(module).collect::<Result<ModuleSet, _>>());
        Ok(PlanEntry {
            modules: modules.transpose()?,
            layers: self.layers.map(|[first, end]| LayerRange { first, end }),
            ..PlanEntry::whole(&self.name, self.weight)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(json: &str) -> Result<PlanEntry, Error> {
        serde_json::from_str::<AdapterField>(json).expect("a field").entry()
    }

    #[test]
    fn a_selection_is_taken_over() {
        assert_eq!(entry(r#"{"name": "a"}"#).expect("an entry"), PlanEntry::whole("a", 1.0));
        let nulls = r#"{"name": "a", "weight": -0.5, "modules": null, "layers": null}"#;
        assert_eq!(entry(nulls).expect("an entry"), PlanEntry::whole("a", -0.5));
        let selected =
            entry(r#"{"name": "a", "modules": ["down_proj", "q_proj"], "layers": [2, 5]}"#).expect("an entry");
        let modules = ModuleSet::EMPTY.with(Module::Q).with(Module::Down);
        let layers = LayerRange { first: 2, end: 5 };
        assert_eq!((selected.modules, selected.layers), (Some(modules), Some(layers)));
    }

    #[test]
    fn what_is_no_module_is_refused() {
        let error = entry(&format!(r#"{{"name": "a", "modules": ["{}"]}}"#, "x".repeat(1 << 16))).expect_err("refused");
        assert_eq!((error.code(), error.param()), ("invalid_request", Some("adapters")));
        assert!(error.to_string().len() < 300, "{error}");
        for bad in
            [r#"{"name": "a", "layers": [1]}"#, r#"{"name": "a", "layers": [-1, 2]}"#, r#"{"name": "a", "x": 1}"#]
        {
            assert!(serde_json::from_str::<AdapterField>(bad).is_err(), "{bad}");
        }
        // Empty selections are the plan's to refuse.
        assert_eq!(entry(r#"{"name": "a", "modules": []}"#).expect("an entry").modules, Some(ModuleSet::EMPTY));
    }
}
