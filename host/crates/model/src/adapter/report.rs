//! The admission report: what an adapter was found to be, for its owner to read. Made once, when it is admitted. Not here:
//! anything that decides what is computed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::norms::Norms;
use super::tensors::{Site, Tensors, Term};

/// The kinds that are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// alpha / rank
    Lora,
    /// alpha / sqrt(rank)
    RsLora,
    /// With a magnitude for each output, of either scale.
    Dora,
    /// Activated by its invocation, of either scale.
    Alora,
}

impl AdapterKind {
    /// `lora`, `rslora`, `dora` or `alora`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::RsLora => "rslora",
            Self::Dora => "dora",
            Self::Alora => "alora",
        }
    }
}

/// What an adapter was found to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterReport {
    /// Its kind.
    pub kind: AdapterKind,
    /// The tokens that it acts from, where they stand last in a prompt; none for one that acts on every token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invocation_tokens: Vec<u32>,
    /// Layers with the same module, rank and scale together, in order of module and first layer.
    pub modules: Vec<ModuleReport>,
    /// Types of its tensors: `f32`, `f16`, `bf16`.
    pub dtypes: Vec<String>,
    /// Values of all tensors.
    pub parameters: u64,
    /// The base that its configuration claims, for people to read; at most 256 bytes, never used.
    pub base_model_name: Option<String>,
    /// Whether its files name this base by digest; the first versions did not look.
    #[serde(default)]
    pub base_is_named: bool,
    /// What its owner should know, though it was admitted.
    pub warnings: Vec<String>,
}

/// Layers in which one module changes in the same way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// `q_proj`, …
    pub module: String,
    /// In order.
    pub layers: Vec<u32>,
    /// Rows of A.
    pub rank: u32,
    /// What B(A x) is multiplied by.
    pub scale: f64,
    /// ‖s·BA‖ (Frobenius) in each of the layers, to four digits. Empty where an older version admitted it.
    #[serde(default)]
    pub frobenius_norms: Vec<f64>,
    /// The spectral norm of s·BA in each of the layers, to four digits: an estimate from below. Empty likewise.
    #[serde(default)]
    pub spectral_norms: Vec<f64>,
}

/// Groups the terms by module, rank and scale; `norms` are theirs, in their order.
pub(super) fn modules(terms: &BTreeMap<Site, Term>, norms: &[Norms]) -> Vec<ModuleReport> {
    let mut groups = Vec::<(Site, ModuleReport)>::new();
    for ((site, term), norms) in terms.iter().zip(norms) {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let (layer, rank) = (small(site.layer), small(term.rank));
        let name = site.module.name();
        let same = |(_, group): &&mut (Site, ModuleReport)| {
            group.module == name && group.rank == rank && group.scale == term.scale
        };
        let (frobenius, spectral) = (four_digits(norms.frobenius), four_digits(norms.spectral));
        match groups.iter_mut().find(same) {
            Some((_, group)) => {
                group.layers.push(layer);
                group.frobenius_norms.push(frobenius);
                group.spectral_norms.push(spectral);
            }
            None => {
                let group = ModuleReport {
                    module: name.to_owned(),
                    layers: vec![layer],
                    rank,
                    scale: term.scale,
                    frobenius_norms: vec![frobenius],
                    spectral_norms: vec![spectral],
                };
                groups.push((*site, group));
            }
        }
    }
    groups.sort_by_key(|(first, _)| (first.module, first.layer));
    groups.into_iter().map(|(_, group)| group).collect()
}

fn four_digits(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// Types and number of all values.
pub(super) fn sizes(tensors: &Tensors<'_>) -> (Vec<String>, u64) {
    let dtypes: BTreeSet<String> = tensors.values().map(|tensor| format!("{:?}", tensor.dtype())).collect();
    let parameters = tensors.values().map(|tensor| tensor.shape().iter().product::<usize>() as u64);
    (dtypes.into_iter().map(|dtype| dtype.to_ascii_lowercase()).collect(), parameters.sum())
}
