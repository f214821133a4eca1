//! Shared adapters, as their owner and their readers see them. Not here: what a reader has taken (`adapter.rs`).

use serde::Serialize;
use utoipa::ToSchema;

use crate::adapters::{self, Readers, Share};

/// Who may read an adapter.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AdapterShare {
    /// What readers know it as.
    alias: String,
    /// What is shared: the content that the alias names now.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    /// An SPDX identifier.
    license: String,
    /// All tenants of this host.
    everyone: bool,
    /// These tenants, if not everyone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tenants: Vec<String>,
    /// What readers send as `source` to take it.
    source: String,
}

impl AdapterShare {
    pub(crate) fn new(owner: &types::TenantId, share: Share) -> Self {
        let Share { alias, digest, license, readers } = share;
        let (everyone, tenants) = match readers {
            Readers::Everyone => (true, Vec::new()),
            Readers::Tenants(tenants) => (false, tenants.iter().map(ToString::to_string).collect()),
        };
        let source = adapters::shared_source(owner, alias.as_str());
        Self {
            alias: alias.to_string(),
            digest: digest.to_string(),
            license: license.to_string(),
            everyone,
            tenants,
            source,
        }
    }
}

/// An adapter that another tenant shares.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SharedAdapter {
    owner: String,
    /// What its owner shared it as, or its digest.
    name: String,
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    rank: u32,
    /// What it acts on, by PEFT's names.
    modules: Vec<&'static str>,
    /// Of its canonical form.
    bytes: u64,
    /// An SPDX identifier.
    license: String,
    /// What to send as `source` to take it.
    source: String,
}

impl From<adapters::SharedAdapter> for SharedAdapter {
    fn from(shared: adapters::SharedAdapter) -> Self {
        let adapters::SharedAdapter { from, digest, rank, modules, bytes, license } = shared;
        Self {
            source: adapters::shared_source(&from.owner, &from.name),
            owner: from.owner.to_string(),
            name: from.name,
            digest: digest.to_string(),
            rank,
            modules: modules.iter().map(types::Module::name).collect(),
            bytes,
            license: license.to_string(),
        }
    }
}
