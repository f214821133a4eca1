//! An adapter as its owner sees it: what it is, what its admission found, who had signed it. Not here: where a derived one comes from
//! (`lineage.rs`).

use serde::Serialize;
use utoipa::ToSchema;

use super::lineage::Lineage;
use crate::adapters::{AdapterInfo, SignatureState};

/// An adapter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Adapter {
    alias: String,
    /// BLAKE3 of its canonical form.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    rank: u32,
    /// What it acts on, by PEFT's names.
    modules: Vec<&'static str>,
    /// Of its canonical form.
    bytes: u64,
    /// What its admission found; lists leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<AdapterReport>,
    /// Why it cannot be used any more, if it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked: Option<String>,
    signature: AdapterSignature,
    /// What its owner says that it is licensed under. A derived adapter has the strictest of its parents'.
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<String>,
    /// Where it comes from, if it was derived; lists leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    lineage: Option<Lineage>,
    /// Whose it is, if another tenant shares it.
    #[serde(skip_serializing_if = "Option::is_none")]
    shared_by: Option<SharedBy>,
    /// Words that functions may be granted it by.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
}

/// The owner of a shared adapter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SharedBy {
    owner: String,
    /// What the owner shared it as, or its digest.
    name: String,
    /// Whether it may be used; not when it is shared no more.
    usable: bool,
}

/// Who had signed an adapter when its alias was set, or a plugin when it was uploaded.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdapterSignature {
    /// `signed`, `unsigned`, or `unchecked`: there was one that the tenant's policy does not look at.
    state: &'static str,
    /// SHA-256 of the public key's DER, of `signed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl From<&SignatureState> for AdapterSignature {
    fn from(state: &SignatureState) -> Self {
        match state {
            SignatureState::Unsigned => Self { state: "unsigned", key: None },
            SignatureState::Unchecked => Self { state: "unchecked", key: None },
            SignatureState::Signed { key } => Self { state: "signed", key: Some(key.clone()) },
        }
    }
}

impl Adapter {
    /// As lists show it.
    pub(crate) fn listed(info: &AdapterInfo) -> Self {
        Self {
            report: None,
            lineage: None,
            license: info.license.as_ref().map(ToString::to_string),
            alias: info.alias.as_str().to_owned(),
            digest: info.digest.to_string(),
            rank: info.rank,
            modules: info.modules.iter().map(types::Module::name).collect(),
            bytes: info.bytes,
            revoked: info.revoked.as_ref().map(|revocation| revocation.reason.clone()),
            signature: AdapterSignature::from(&info.signature),
            shared_by: info.shared_by.as_ref().map(|from| SharedBy {
                owner: from.owner.to_string(),
                name: from.name.clone(),
                usable: info.is_usable,
            }),
            tags: info.tags.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<&AdapterInfo> for Adapter {
    fn from(info: &AdapterInfo) -> Self {
        let report = info.report.as_ref().map(AdapterReport::from);
        Self { report, lineage: info.lineage.as_ref().map(Lineage::from), ..Self::listed(info) }
    }
}

/// What an adapter's admission found.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdapterReport {
    /// `lora`, `rslora`, `dora` or `alora`.
    kind: &'static str,
    /// Of an `alora`: it acts from where these tokens stand last in a prompt, and on nothing if they do not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    invocation_tokens: Vec<u32>,
    modules: Vec<ModuleReport>,
    /// Types of its tensors.
    dtypes: Vec<String>,
    /// Values of all tensors.
    parameters: u64,
    /// The base that its configuration claims; never used.
    base_model: Option<String>,
    /// Whether its files name this base by `tenon.base_digest`.
    base_is_named: bool,
    /// What its owner should know, though it was admitted.
    warnings: Vec<String>,
}

/// Layers in which one module changes in the same way.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModuleReport {
    module: String,
    layers: Vec<u32>,
    rank: u32,
    /// What B(A x) is multiplied by.
    scale: f64,
    /// The Frobenius norm of s·BA in each of the layers, to four digits; empty where an older version admitted it.
    frobenius_norms: Vec<f64>,
    /// The spectral norm of s·BA in each of the layers, to four digits: an estimate from below. Empty likewise.
    spectral_norms: Vec<f64>,
}

impl From<&model::AdapterReport> for AdapterReport {
    fn from(report: &model::AdapterReport) -> Self {
        let module = |one: &model::ModuleReport| ModuleReport {
            module: one.module.clone(),
            layers: one.layers.clone(),
            rank: one.rank,
            scale: one.scale,
            frobenius_norms: one.frobenius_norms.clone(),
            spectral_norms: one.spectral_norms.clone(),
        };
        Self {
            kind: report.kind.name(),
            invocation_tokens: report.invocation_tokens.clone(),
            modules: report.modules.iter().map(module).collect(),
            dtypes: report.dtypes.clone(),
            parameters: report.parameters,
            base_model: report.base_model_name.clone(),
            base_is_named: report.base_is_named,
            warnings: report.warnings.clone(),
        }
    }
}
