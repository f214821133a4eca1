//! JSON bodies of answers, as types, so that the OpenAPI document says what is sent. Not here: the answers in OpenAI's
//! shape (`openai/`), and the records of receipts, whose types are their own.

mod adapter;
mod lineage;
mod revoked;
mod rollout;
mod share;

pub(crate) use adapter::{Adapter, AdapterReport, AdapterSignature};
pub(crate) use revoked::Revoked;
pub(crate) use rollout::{CanarySet, LiveMove, RolloutCard, ShadowAnswer, ShadowSet};
pub(crate) use share::{AdapterShare, SharedAdapter};

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use types::TenantId;
use utoipa::ToSchema;

use crate::adapters::{SignaturePolicy, SignerKey, Signers};
use crate::logs::Line;
use crate::receipt::{Envelope, Kind, Receipt};
use crate::registry::{
    FunctionInfo, FunctionVersion, Manifest, ManifestCold, ManifestGrants, ManifestLimits, ManifestRecord,
    ManifestRelease, ManifestSwitch,
};
use crate::tenants::{KeyInfo, Right, Rights};

/// A list of things.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct List<T> {
    #[schema(example = "list")]
    object: &'static str,
    data: Vec<T>,
}

impl<T> List<T> {
    pub(crate) fn new(data: Vec<T>) -> Self {
        Self { object: "list", data }
    }
}

/// The process answers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    pub(crate) status: &'static str,
    pub(crate) version: &'static str,
}

/// Requests can be answered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Ready {
    pub(crate) status: &'static str,
}

/// A plugin that was taken in.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Plugin {
    /// BLAKE3 of the component: its name in manifests.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub(crate) digest: String,
    pub(crate) bytes: usize,
    pub(crate) signature: AdapterSignature,
    /// What it was pulled as, for good: with the digest of its manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<String>,
}

/// A version that was deployed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Deployed {
    pub(crate) name: String,
    pub(crate) version: u32,
    /// The version that answers.
    pub(crate) live: u32,
}

/// Which version answers now.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Promoted {
    pub(crate) name: String,
    pub(crate) live: u32,
}

/// A secret, by its name alone.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NamedSecret {
    pub(crate) name: String,
}

/// A function in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionCard {
    name: String,
    /// The version that answers.
    live: u32,
    /// The newest version.
    latest: u32,
}

impl From<&FunctionInfo> for FunctionCard {
    fn from(info: &FunctionInfo) -> Self {
        Self { name: info.function.as_str().to_owned(), live: info.live, latest: info.latest }
    }
}

/// One version of a function: its manifest and number.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Version {
    #[schema(pattern = "^[0-9a-f]{64}$")]
    plugin: String,
    adapters: Vec<String>,
    functions: Vec<String>,
    templates: BTreeMap<String, String>,
    config: BTreeMap<String, String>,
    grants: ManifestGrants,
    limits: ManifestLimits,
    /// What is done when an adapter is not in memory; `null` waits for it.
    #[schema(required)]
    cold: Option<ManifestCold>,
    release: ManifestRelease,
    switch: ManifestSwitch,
    /// Which requests are recorded; `null` is none.
    #[schema(required)]
    record: Option<ManifestRecord>,
    description: String,
    version: u32,
    /// When it was deployed, in milliseconds since 1970-01-01 UTC; 0 if that was not noted.
    created_unix_ms: u64,
}

impl From<&FunctionVersion> for Version {
    fn from(stored: &FunctionVersion) -> Self {
        // Taken apart, so that a field that is added there is missed here by the compiler.
        let Manifest {
            plugin,
            adapters,
            functions,
            templates,
            config,
            grants,
            limits,
            cold,
            release,
            switch,
            record,
            description,
        } = Manifest::clone(&stored.manifest);
        let (plugin, version, created_unix_ms) = (plugin.to_string(), stored.version, stored.created_unix_ms);
        Self {
            plugin,
            adapters,
            functions,
            templates,
            config,
            grants,
            limits,
            cold,
            release,
            switch,
            record,
            description,
            version,
            created_unix_ms,
        }
    }
}

/// The live version of a function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LiveVersion {
    #[serde(flatten)]
    pub(crate) version: Version,
    pub(crate) name: String,
    pub(crate) live: u32,
    /// The version that answers a share of the callers.
    #[schema(required)]
    pub(crate) canary: Option<RolloutCard>,
    /// The version that gets copies.
    #[schema(required)]
    pub(crate) shadow: Option<RolloutCard>,
}

/// Every version of a function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Versions {
    #[serde(flatten)]
    pub(crate) list: List<Version>,
    pub(crate) name: String,
    /// The version that answers.
    pub(crate) live: u32,
    /// The newest version.
    pub(crate) latest: u32,
    /// Where a rollback goes: what was live before the live one was for the first time.
    pub(crate) previous: Option<u32>,
    /// The version that answers a share of the callers.
    #[schema(required)]
    pub(crate) canary: Option<RolloutCard>,
    /// The version that gets copies.
    #[schema(required)]
    pub(crate) shadow: Option<RolloutCard>,
    /// The last changes of the live version, the oldest first.
    pub(crate) history: Vec<LiveMove>,
    /// The same and what else was done: deployments, canaries, shadows.
    pub(crate) changes: Vec<LiveMove>,
}

/// Lines of a function's log.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LogPage {
    #[serde(flatten)]
    pub(crate) list: List<LogLine>,
    pub(crate) name: String,
    /// Lines between `after` and the first of these that were forgotten; without `after`, all that were.
    pub(crate) dropped: u64,
    /// Where to go on: the next `after`.
    pub(crate) next: String,
}

/// One line. Plugins write messages as they like: mind control characters before showing them.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LogLine {
    sequence: u64,
    /// Milliseconds since 1970-01-01 UTC.
    time_unix_ms: u64,
    /// `debug`, `info`, `warn` or `error`.
    level: &'static str,
    /// The function's version.
    version: u32,
    /// The request's identifier.
    request: String,
    message: String,
}

impl From<&Line> for LogLine {
    fn from(line: &Line) -> Self {
        Self {
            sequence: line.sequence,
            time_unix_ms: line.time_unix_ms,
            level: line.level.name(),
            version: line.version,
            request: line.request_id.to_string(),
            message: line.message.clone(),
        }
    }
}

/// Who may sign a tenant's adapters.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantSigners {
    tenant: String,
    /// For adapters.
    policy: SignaturePolicy,
    /// For plugins.
    plugins: SignaturePolicy,
    keys: Vec<PublicSignerKey>,
    /// What to give as `expect` in order to change just this.
    revision: u64,
}

/// A public key that may sign adapters and plugins.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PublicSignerKey {
    /// SHA-256 of its DER.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    id: String,
    /// In PEM.
    public_key: String,
}

impl TenantSigners {
    pub(crate) fn new(tenant: &TenantId, signers: &Signers) -> Self {
        let key = |key: &SignerKey| PublicSignerKey { id: key.id().to_owned(), public_key: key.pem().to_owned() };
        let (tenant, keys) = (tenant.as_str().to_owned(), signers.keys.iter().map(key).collect());
        let Signers { policy, plugins, keys: _, revision } = *signers;
        Self { tenant, policy, plugins, keys, revision }
    }
}

/// A tenant that was made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NamedTenant {
    pub(crate) name: String,
}

/// A tenant with its keys.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) keys: Vec<Key>,
}

/// A key without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Key {
    id: String,
    label: String,
    rights: Vec<&'static str>,
    created_unix_ms: u64,
    #[schema(required)]
    revoked_unix_ms: Option<u64>,
}

impl From<&KeyInfo> for Key {
    fn from(key: &KeyInfo) -> Self {
        Self {
            id: key.id.as_str().to_owned(),
            label: key.label.clone(),
            rights: names(key.rights),
            created_unix_ms: key.created_unix_ms,
            revoked_unix_ms: key.revoked_unix_ms,
        }
    }
}

/// A key that was just made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct MadeKey {
    pub(crate) id: String,
    /// Shown here and never again.
    pub(crate) key: String,
    pub(crate) tenant: String,
    pub(crate) rights: Vec<&'static str>,
}

pub(crate) fn names(rights: Rights) -> Vec<&'static str> {
    rights.iter().map(Right::name).collect()
}

/// A receipt as its owner sees it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReceiptAnswer {
    #[schema(pattern = "^rcpt_[0-9A-Z]{26}$")]
    pub(crate) id: String,
    pub(crate) kind: Kind,
    /// The last record.
    #[schema(value_type = Receipt)]
    pub(crate) receipt: Value,
    /// The started record and, if there is one, the final one.
    pub(crate) envelopes: Vec<Envelope>,
    pub(crate) salts: Salts,
}

/// What opens the commitments of a receipt.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Salts {
    #[schema(required)]
    pub(crate) prompt: Option<String>,
    #[schema(required)]
    pub(crate) answer: Option<String>,
}

/// A record of the chain.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChainRecord {
    /// Its place, from 1.
    pub(crate) sequence: u64,
    #[schema(value_type = Receipt)]
    pub(crate) receipt: Value,
    pub(crate) envelope: Envelope,
}

/// A page of the chain.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChainPage {
    #[serde(flatten)]
    pub(crate) list: List<ChainRecord>,
    /// What to give as `after` for the next page; null at the end.
    #[schema(required)]
    pub(crate) next: Option<u64>,
}

/// An adapter of a composition.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ComposedAdapter {
    pub(crate) name: String,
    #[schema(pattern = "^[0-9a-f]{64}$")]
    pub(crate) digest: String,
    /// As it was written.
    #[schema(value_type = f64)]
    pub(crate) weight: Value,
}

/// Token counts in OpenAI's shape.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) total_tokens: u32,
}

/// What a function answered. Streamed, an object `function.begin`, `function.chunk`s with `delta`, and `function.end`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct FunctionResult {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    #[schema(required)]
    pub(crate) function: Option<String>,
    #[schema(required)]
    pub(crate) version: Option<u32>,
    pub(crate) finish_reason: &'static str,
    #[schema(value_type = Vec<ComposedAdapter>)]
    pub(crate) adapters: Value,
    #[schema(value_type = Usage)]
    pub(crate) usage: Value,
    /// What the plugin adds.
    #[schema(value_type = BTreeMap<String, String>)]
    pub(crate) metadata: Map<String, Value>,
    pub(crate) receipt: String,
    /// The whole text; not in `function.end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<String>,
}
