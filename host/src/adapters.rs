//! Adapters of tenants: fetch, verify, keep, pack into host memory, lend out.
//!
//! Reading order: `owners` (whose, under which alias), `source` (where the files come from), `loads` (the work that is under way),
//! `memory` (what is packed, and leases), `derive` (new ones out of others).
//! A digest is not a permission: ownership is checked per tenant on each use, and nothing tells an adapter of another tenant from
//! one that is not there. Not here: the format of an adapter (`model`), the slots of the runner (`engine`).

mod derive;
mod error;
mod license;
mod loads;
mod memory;
mod owners;
mod source;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use model::{AdapterBase, AdapterLimits, AdapterReport, DeriveLimits, Precision, canonical_adapter};
use types::{AdapterAlias, Digest, ModuleSet, TenantId};

use crate::artifacts::{ArtifactKind, Artifacts};
use crate::store::Store;
use loads::{Loads, lost};
use memory::HostMemory;
use owners::{AliasRecord, Owners};
use source::AdaptersRoot;

pub use derive::{Lineage, LineageModule, LineageParent, NamedParent};
pub use error::AdapterError;
pub use license::{License, LicenseError};
pub use memory::{AdapterLease, Residency};

/// Up to here names are looked up one by one; beyond, one listing is cheaper.
const RESOLVED_ONE_BY_ONE_MAX: usize = 16;

/// What an adapter store is built with.
#[derive(Clone, Debug)]
pub struct AdapterStoreConfig {
    /// The base that adapters must fit.
    pub base: Arc<dyn AdapterBase>,
    /// Of the runner that adapters are packed for.
    pub precision: Precision,
    /// Limits on one adapter.
    pub limits: AdapterLimits,
    /// Packed adapters in host memory, those out on lease but evicted not counted.
    pub host_bytes_max: u64,
    /// Aliases of one tenant.
    pub aliases_per_tenant_max: usize,
    /// Adapters that are being read, checked or packed at a time; bounds memory.
    pub loads_max: usize,
    /// Limits on one derivation.
    pub derive_limits: DeriveLimits,
    /// Derivations that are computed at a time; bounds memory.
    pub derivations_max: usize,
    /// How long one may compute.
    pub derive_time_max: Duration,
    /// The only folder that `file://` sources may lie in. `None` refuses them.
    pub adapters_root: Option<PathBuf>,
}

impl AdapterStoreConfig {
    /// For a base, with defaults.
    #[must_use]
    pub fn new(base: Arc<dyn AdapterBase>) -> Self {
        Self {
            base,
            precision: Precision::default(),
            limits: AdapterLimits::default(),
            host_bytes_max: 2 << 30,
            aliases_per_tenant_max: 10_000,
            loads_max: 2,
            derive_limits: DeriveLimits::default(),
            derivations_max: 1,
            derive_time_max: Duration::from_secs(300),
            adapters_root: None,
        }
    }
}

/// An adapter as its owner sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterInfo {
    /// Its name.
    pub alias: AdapterAlias,
    /// Its content.
    pub digest: Digest,
    /// The largest rank of a module.
    pub rank: u32,
    /// What it acts on.
    pub modules: ModuleSet,
    /// Bytes of its canonical form.
    pub bytes: u64,
    /// Where it is, as far as this tenant's own use has brought it.
    pub residency: Residency,
    /// What it was found to be when this alias was set.
    pub report: Option<AdapterReport>,
    /// What its owner says that it is licensed under; inherited by a derived one.
    pub license: Option<License>,
    /// Where it comes from, if it was derived.
    pub lineage: Option<Lineage>,
}

/// What its owner says of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// What it must turn out to be.
    pub digest: Option<Digest>,
    /// What it is licensed under.
    pub license: Option<License>,
}

impl From<Option<Digest>> for Claims {
    fn from(digest: Option<Digest>) -> Self {
        Self { digest, license: None }
    }
}

/// Names that were resolved for one request of one tenant: the proof of ownership that the request goes on with. Not to be kept
/// longer than the request.
#[derive(Clone, Debug)]
pub struct ResolvedAdapters {
    tenant: TenantId,
    digests: HashMap<String, Digest>,
}

impl ResolvedAdapters {
    /// The content behind one of the names.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Digest> {
        self.digests.get(name).copied()
    }

    /// The names and their content, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Digest)> {
        self.digests.iter().map(|(name, digest)| (name.as_str(), *digest))
    }
}

/// Adapters, by tenant.
#[derive(Debug)]
pub struct AdapterStore {
    base: Arc<dyn AdapterBase>,
    precision: Precision,
    limits: AdapterLimits,
    aliases_per_tenant_max: usize,
    root: Option<AdaptersRoot>,
    artifacts: Artifacts,
    owners: Owners,
    memory: HostMemory,
    loads: Loads,
    derivations: Loads,
    derive_limits: DeriveLimits,
    derive_time_max: Duration,
}

impl AdapterStore {
    /// Over a store and its blobs.
    ///
    /// # Errors
    /// [`AdapterError::BadRoot`].
    pub async fn new(
        store: Arc<dyn Store>,
        artifacts: Artifacts,
        config: AdapterStoreConfig,
    ) -> Result<Self, AdapterError> {
        let root = match config.adapters_root {
            Some(path) => Some(blocking(move || AdaptersRoot::open(&path)).await?),
            None => None,
        };
        Ok(Self {
            base: config.base,
            precision: config.precision,
            limits: config.limits,
            aliases_per_tenant_max: config.aliases_per_tenant_max,
            root,
            artifacts,
            owners: Owners::new(store),
            memory: HostMemory::new(config.host_bytes_max),
            loads: Loads::new(config.loads_max),
            derivations: Loads::new(config.derivations_max),
            derive_limits: config.derive_limits,
            derive_time_max: config.derive_time_max,
        })
    }

    /// Checks the two files of a PEFT folder, keeps their canonical form and names it. The same content again is no error; other
    /// content moves the alias, and requests in flight keep what they have.
    ///
    /// # Errors
    /// [`AdapterError::Rejected`], [`AdapterError::DigestMismatch`], [`AdapterError::OverLimit`].
    pub async fn add_bytes(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        config_json: Bytes,
        weights: Bytes,
        claims: impl Into<Claims>,
    ) -> Result<AdapterInfo, AdapterError> {
        self.check_room(tenant, alias).await?;
        self.admit(tenant, alias, claims.into(), move |_| Ok((config_json, weights))).await
    }

    /// The same from a folder below `adapters_root`, named as `file:///…`.
    ///
    /// # Errors
    /// As for [`Self::add_bytes`], and [`AdapterError::NoRoot`], [`AdapterError::BadSource`], [`AdapterError::SourceNotFound`],
    /// [`AdapterError::SourceFile`].
    pub async fn add_file_url(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        url: &str,
        claims: impl Into<Claims>,
    ) -> Result<AdapterInfo, AdapterError> {
        let root = self.root.clone().ok_or(AdapterError::NoRoot)?;
        let path = source::file_path(url)?;
        self.check_room(tenant, alias).await?;
        self.admit(tenant, alias, claims.into(), move |limits| root.read_folder(&path, limits)).await
    }

    /// Reads, checks and keeps. The steps are the same whether or not anyone has the content already.
    async fn admit(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        claims: Claims,
        read: impl FnOnce(&AdapterLimits) -> Result<(Bytes, Bytes), AdapterError> + Send + 'static,
    ) -> Result<AdapterInfo, AdapterError> {
        let permit = self.loads.permit().await?;
        let (base, limits) = (Arc::clone(&self.base), self.limits.clone());
        let check = move || {
            let (config_json, weights) = read(&limits)?;
            Ok(canonical_adapter(&config_json, &weights, &*base, &limits)?)
        };
        let (checked, _permit) = self.loads.compute(permit, check).await?;
        let digest = checked.digest;
        if let Some(expected) = claims.digest.filter(|expected| *expected != digest) {
            return Err(AdapterError::DigestMismatch { expected, found: digest });
        }
        let record = AliasRecord { license: claims.license, ..AliasRecord::of(&checked) };
        self.keep(tenant, alias, checked.bytes.into(), record).await
    }

    /// Keeps the canonical bytes and makes the alias name them.
    async fn keep(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        bytes: Bytes,
        record: AliasRecord,
    ) -> Result<AdapterInfo, AdapterError> {
        self.artifacts.put(ArtifactKind::Adapter, bytes).await?;
        let replaced = self.owners.set(tenant, alias, &record).await?;
        if let Some(replaced) = replaced {
            self.forget_unowned(tenant, replaced).await?;
        }
        Ok(self.described(tenant, alias.clone(), record))
    }

    /// The tenant's adapters, by alias.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn list(&self, tenant: &TenantId) -> Result<Vec<AdapterInfo>, AdapterError> {
        let found = self.owners.list(tenant).await?;
        Ok(found.into_iter().map(|(alias, record)| self.described(tenant, alias, record)).collect())
    }

    /// One of the tenant's adapters.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn info(&self, tenant: &TenantId, alias_or_digest: &str) -> Result<Option<AdapterInfo>, AdapterError> {
        let found = self.owners.find(tenant, alias_or_digest).await?;
        Ok(found.map(|(alias, record)| self.described(tenant, alias, record)))
    }

    /// The content behind an alias or digest, if the tenant owns it.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn resolve(&self, tenant: &TenantId, alias_or_digest: &str) -> Result<Option<Digest>, AdapterError> {
        Ok(self.owners.find(tenant, alias_or_digest).await?.map(|(_, record)| record.digest))
    }

    /// The same for many names at once, as what one request may use. Names that the tenant does not own are missing from it.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn resolve_all(&self, tenant: &TenantId, names: &[String]) -> Result<ResolvedAdapters, AdapterError> {
        let tenant = tenant.clone();
        let mut digests = HashMap::new();
        if names.len() <= RESOLVED_ONE_BY_ONE_MAX {
            for name in names {
                if let Some(digest) = self.resolve(&tenant, name).await? {
                    digests.insert(name.clone(), digest);
                }
            }
            return Ok(ResolvedAdapters { tenant, digests });
        }
        let owned = self.owners.list(&tenant).await?;
        let aliases: HashMap<_, _> = owned.iter().map(|(alias, record)| (alias.as_str(), record.digest)).collect();
        let owned: HashSet<Digest> = aliases.values().copied().collect();
        let digest = |name: &str| match name.parse() {
            Ok(digest) => owned.get(&digest).copied(),
            Err(_) => aliases.get(name).copied(),
        };
        digests.extend(names.iter().filter_map(|name| Some((name.clone(), digest(name)?))));
        Ok(ResolvedAdapters { tenant, digests })
    }

    /// Removes an alias. With the last alias of a digest goes the right to use it; leases that are out stay good.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`].
    pub async fn remove(&self, tenant: &TenantId, alias: &AdapterAlias) -> Result<(), AdapterError> {
        let removed = self.owners.remove(tenant, alias).await?;
        let removed = removed.ok_or_else(|| AdapterError::NotFound(alias.to_string()))?;
        self.forget_unowned(tenant, removed).await
    }

    /// A right to use the packed adapter, which is loaded if it is not in memory (once for all who ask at the same time). A load that
    /// has begun runs to its end and is kept, also if whoever asked has left.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] if the tenant does not own it; [`AdapterError::Rejected`] if it does not fit this base.
    pub async fn lease(&self, tenant: &TenantId, digest: Digest) -> Result<AdapterLease, AdapterError> {
        if self.owners.find_digest(tenant, digest).await?.is_none() {
            return Err(AdapterError::NotFound(digest.to_string()));
        }
        self.lease_owned(tenant, digest).await
    }

    /// The same for a request whose names were resolved, and ownership with them, when it began: an alias that was moved or removed
    /// since does not fail it.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] if the digest is none of those; [`AdapterError::Rejected`] if it does not fit this base.
    pub async fn lease_resolved(
        &self,
        resolved: &ResolvedAdapters,
        digest: Digest,
    ) -> Result<AdapterLease, AdapterError> {
        if !resolved.digests.values().any(|owned| *owned == digest) {
            return Err(AdapterError::NotFound(digest.to_string()));
        }
        self.lease_owned(&resolved.tenant, digest).await
    }

    /// Bytes of packed adapters in the cache.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Leases that are out.
    pub fn leases(&self) -> usize {
        self.memory.leases()
    }

    /// Waits for the end of the work that is under way; no other begins. Adapters in memory can be leased still.
    pub async fn close(&self) {
        self.derivations.close().await;
        self.loads.close().await;
    }

    async fn lease_owned(&self, tenant: &TenantId, digest: Digest) -> Result<AdapterLease, AdapterError> {
        let (artifacts, loads) = (self.artifacts.clone(), self.loads.clone());
        let (base, limits, precision) = (Arc::clone(&self.base), self.limits.clone(), self.precision);
        let load = async move |permit| {
            let bytes = artifacts.get(ArtifactKind::Adapter, digest).await?;
            let pack = move || Ok(model::LoraAdapter::from_canonical(&bytes, &*base, &limits, precision)?);
            loads.compute(permit, pack).await.map(|(adapter, _permit)| adapter)
        };
        self.memory.lease(tenant, digest, &self.loads, load).await
    }

    async fn check_room(&self, tenant: &TenantId, alias: &AdapterAlias) -> Result<(), AdapterError> {
        if self.owners.find(tenant, alias.as_str()).await?.is_some() {
            return Ok(());
        }
        if self.owners.list(tenant).await?.len() < self.aliases_per_tenant_max {
            return Ok(());
        }
        let (limit, max) = ("aliases_per_tenant_max", self.aliases_per_tenant_max as u64);
        Err(AdapterError::OverLimit { what: "the number of adapter aliases", limit, max })
    }

    async fn forget_unowned(&self, tenant: &TenantId, digest: Digest) -> Result<(), AdapterError> {
        if self.owners.find_digest(tenant, digest).await?.is_none() {
            self.memory.forget(tenant, digest).await;
        }
        Ok(())
    }

    fn described(&self, tenant: &TenantId, alias: AdapterAlias, record: AliasRecord) -> AdapterInfo {
        let AliasRecord { digest, rank, modules, bytes, report, license, lineage } = record;
        let residency = self.memory.residency(tenant, digest);
        AdapterInfo { alias, digest, rank, modules, bytes, residency, report, license, lineage }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

#[cfg(test)]
mod tests;
