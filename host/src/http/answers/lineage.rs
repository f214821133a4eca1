//! Where a derived adapter comes from, as its owner sees it. Not here: how it is derived or kept.

use serde::Serialize;
use utoipa::ToSchema;

use crate::adapters;

/// Where a derived adapter comes from.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Lineage {
    /// `concatenate`, `svd`, `ties`, `dare_linear`, `dare_ties` or `magnitude_prune`.
    method: &'static str,
    /// What it was made of, in order of the digests.
    parents: Vec<LineageParent>,
    /// The rank that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<u32>,
    /// The part of the elements that was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    density: Option<f64>,
    /// `total` or `frequency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    majority_sign: Option<&'static str>,
    /// Of what was drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u32>,
    /// What compression was allowed to lose.
    #[serde(skip_serializing_if = "Option::is_none")]
    error_max: Option<f64>,
    /// What compression lost of the delta: the ratio of the Frobenius norms, over all modules.
    error: f64,
    /// The same by module.
    modules: Vec<LineageModule>,
}

/// A parent as it was then.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LineageParent {
    /// What it was called.
    adapter: String,
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    weight: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<String>,
    /// The keys that it, or all that it was derived from, was signed under: SHA-256 of their DER.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    signers: Vec<String>,
}

/// What compression lost of a module.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LineageModule {
    module: String,
    /// Over its layers.
    error: f64,
    /// The layer that lost the largest part of its own delta.
    worst_layer: usize,
    worst_error: f64,
}

impl From<&adapters::Lineage> for Lineage {
    fn from(lineage: &adapters::Lineage) -> Self {
        let adapters::Lineage { recipe, parents, error, modules } = lineage;
        Self {
            method: recipe.method.name(),
            parents: parents.iter().map(LineageParent::from).collect(),
            rank: recipe.rank,
            density: recipe.density,
            majority_sign: recipe.majority_sign.map(model::MajoritySign::name),
            seed: recipe.seed,
            error_max: recipe.error_max,
            error: *error,
            modules: modules.iter().map(LineageModule::from).collect(),
        }
    }
}

impl From<&adapters::LineageParent> for LineageParent {
    fn from(parent: &adapters::LineageParent) -> Self {
        let adapters::LineageParent { alias, digest, weight, license, signers } = parent;
        let license = license.as_ref().map(ToString::to_string);
        Self { adapter: alias.clone(), digest: digest.to_string(), weight: *weight, license, signers: signers.clone() }
    }
}

impl From<&adapters::LineageModule> for LineageModule {
    fn from(module: &adapters::LineageModule) -> Self {
        let adapters::LineageModule { module, error, worst_layer, worst_error } = module;
        Self { module: module.clone(), error: *error, worst_layer: *worst_layer, worst_error: *worst_error }
    }
}
