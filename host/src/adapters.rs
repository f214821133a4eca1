//! Adapters of tenants: fetch, verify, keep, pack into host memory, lend out.
//!
//! Reading order: `owners` (whose, under which alias), `shares` (what other tenants may read), `resolved` (what a request may use),
//! `source` (where the files come from), `signature` and `signers` (who may sign them), `leases` (how one is lent), `loads` (the
//! work that is under way), `first_use` (what is named by where it lies), `memory` and `residents` (what is packed), `disk` (what
//! was packed before), `derive` (new ones out of others).
//! A digest is not a permission: ownership is checked per tenant on each use, and nothing tells an adapter of another tenant from
//! one that is not there. Not here: the format of an adapter (`model`), the slots of the runner (`engine`).

mod derive;
mod disk;
mod error;
mod first_use;
mod keep;
mod leases;
mod license;
mod loads;
mod memory;
mod owners;
mod residents;
mod resolved;
mod shares;
mod signature;
mod signers;
mod source;
mod tags;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use model::{AdapterBase, AdapterLimits, AdapterReport, AdapterStaging, Precision, canonical_adapter};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use types::{AdapterAlias, Digest, ModuleSet, TenantId};

use crate::artifacts::{ArtifactKind, Artifacts};
use crate::revocation::{Revocation, Revocations};
use crate::store::Store;
use derive::Derivations;
use disk::DiskTier;
use first_use::FirstUses;
use loads::{Loads, lost};
use memory::HostMemory;
use owners::{AliasRecord, Owners};
use signers::SignerStore;
use source::Sources;

pub use derive::{DeriveConfig, Lineage, LineageModule, LineageParent, NamedParent};
pub use disk::{AdapterDisk, AdapterDiskStats};
pub use error::AdapterError;
pub use leases::{LoadObserver, LoadTimes, LoadedFrom};
pub use license::{Claims, License, LicenseError};
pub use memory::{AdapterLease, AdapterMemoryStats, Residency};
pub use residents::{Evictions, ReleasePolicy};
pub use resolved::ResolvedAdapters;
pub(crate) use shares::source as shared_source;
pub use shares::{READERS_MAX, Readers, Share, SharedAdapter, SharedBy};
pub use signature::{PUBLIC_KEY_BYTES_MAX, PluginSignatureError, SIGNATURE_BYTES_MAX, SignatureError, SignerKey};
pub use signers::{SIGNER_KEYS_MAX, SignaturePolicy, SignatureState, Signers};
#[cfg(test)]
pub(crate) use source::fault_server;
pub use source::{AllowedOrigin, Credential, OriginError, SourceError, SourcesConfig};
pub(crate) use source::{CONFIG, SIGNATURE, WEIGHTS};
pub(crate) use source::{Guard, GuardedResolver, Lookup, Refusal, SystemLookup, on_behalf_of, reason, refusal, tls};
pub use tags::{AdapterTag, AdapterTagError};

/// Loads that were hinted at and have not ended; further hints are dropped.
const PREFETCHES_MAX: usize = 32;

/// What a revocation's refusal calls an adapter.
const WHAT: &str = "the adapter";

/// What an adapter store is built with.
#[derive(Clone, Debug)]
pub struct AdapterStoreConfig {
    /// The base that adapters must fit.
    pub base: Arc<dyn AdapterBase>,
    /// Of the runner that adapters are packed for.
    pub precision: Precision,
    /// Limits on one adapter.
    pub limits: AdapterLimits,
    /// Packed adapters in host memory. Those that are on lease do not give way and may exceed it.
    pub host_bytes_max: u64,
    /// Of these, the ones that are pinned.
    pub pinned_bytes_max: u64,
    /// Whether tenants with the same adapter share its packed form. One can then tell by time whether another uses it.
    pub is_shared_across_tenants: bool,
    /// Told of every load.
    pub on_load: Option<LoadObserver>,
    /// Where adapters are made ready for the runner's device, if it has one.
    pub staging: Option<AdapterStaging>,
    /// Where packed adapters are kept for later. `None` packs anew what is not in memory.
    pub disk: Option<AdapterDisk>,
    /// Aliases of one tenant.
    pub aliases_per_tenant_max: usize,
    /// Adapters that are being read, checked or packed at a time; bounds memory.
    pub loads_max: usize,
    /// What derivations may take.
    pub derive: DeriveConfig,
    /// The only folder that `file://` sources may lie in. `None` refuses them.
    pub adapters_root: Option<PathBuf>,
    /// What other sources may be fetched from.
    pub sources: SourcesConfig,
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
            pinned_bytes_max: 1 << 30,
            is_shared_across_tenants: false,
            on_load: None,
            staging: None,
            disk: None,
            aliases_per_tenant_max: 10_000,
            loads_max: 2,
            derive: DeriveConfig::default(),
            adapters_root: None,
            sources: SourcesConfig::default(),
        }
    }
}

/// What an adapter is sent or kept as.
#[derive(Clone, Debug)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: Bytes,
    /// `adapter_model.safetensors`.
    pub weights: Bytes,
    /// `model.sig`, the bundle of OpenSSF Model Signing.
    pub signature: Option<Bytes>,
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
    /// When and why it was revoked, if it was.
    pub revoked: Option<Revocation>,
    /// Who had signed it then.
    pub signature: SignatureState,
    /// What its owner says that it is licensed under; inherited by a derived one.
    pub license: Option<License>,
    /// Where it comes from, if it was derived.
    pub lineage: Option<Lineage>,
    /// Whose it is, if another tenant shares it.
    pub shared_by: Option<SharedBy>,
    /// Words that functions may be granted it by.
    pub tags: BTreeSet<AdapterTag>,
    /// Whether it may be used: not if its owner shares it no more.
    pub is_usable: bool,
}

/// Adapters, by tenant.
#[derive(Debug)]
pub struct AdapterStore {
    base: Arc<dyn AdapterBase>,
    precision: Precision,
    limits: AdapterLimits,
    aliases_per_tenant_max: usize,
    sources: Sources,
    artifacts: Artifacts,
    owners: Owners,
    revocations: Revocations,
    signers: SignerStore,
    memory: HostMemory,
    disk: Option<Arc<DiskTier>>,
    is_shared_across_tenants: bool,
    on_load: Option<LoadObserver>,
    staging: Option<AdapterStaging>,
    /// Loads that nobody waits for.
    prefetches: Arc<Semaphore>,
    loads: Loads,
    first_uses: FirstUses,
    derivations: Derivations,
    _sweeper: AbortOnDropHandle<()>,
}

impl AdapterStore {
    /// Over a store and its blobs.
    ///
    /// # Errors
    /// [`AdapterError::BadRoot`], [`AdapterError::BadDisk`], [`AdapterError::Source`] if no client can be made.
    pub async fn new(
        store: Arc<dyn Store>,
        artifacts: Artifacts,
        revocations: Revocations,
        config: AdapterStoreConfig,
    ) -> Result<Self, AdapterError> {
        let (root, sources) = (config.adapters_root, config.sources);
        let sources = blocking(move || Sources::new(root.as_deref(), sources)).await?;
        let disk = match config.disk {
            Some(disk) => {
                let layout = model::packed_layout(disk.base, config.precision, &config.limits);
                let sizes = config.base.config().clone();
                let bad = |error, disk: &AdapterDisk| AdapterError::bad_disk(&disk.folder, error);
                let open = move || DiskTier::open(&disk, layout, sizes).map_err(|error| bad(error, &disk));
                Some(Arc::new(blocking(open).await?))
            }
            None => None,
        };
        if let Some(disk) = &disk {
            // A host that ended between a revocation and its consequences.
            for (digest, _) in revocations.list() {
                disk::forget_everywhere(disk, digest).await?;
            }
        }
        let memory = HostMemory::new(config.host_bytes_max, config.pinned_bytes_max);
        Ok(Self {
            base: config.base,
            precision: config.precision,
            limits: config.limits,
            aliases_per_tenant_max: config.aliases_per_tenant_max,
            sources,
            artifacts,
            owners: Owners::new(Arc::clone(&store)),
            revocations,
            signers: SignerStore::new(store),
            _sweeper: AbortOnDropHandle::new(tokio::spawn(memory.sweep())),
            memory,
            disk,
            is_shared_across_tenants: config.is_shared_across_tenants,
            on_load: config.on_load,
            staging: config.staging,
            prefetches: Arc::new(Semaphore::new(PREFETCHES_MAX)),
            loads: Loads::new(config.loads_max),
            first_uses: FirstUses::new(),
            derivations: Derivations::new(config.derive),
        })
    }

    /// Checks the two files of a PEFT folder, keeps their canonical form and names it. The same content again is no error; other
    /// content moves the alias, and requests in flight keep what they have.
    ///
    /// # Errors
    /// [`AdapterError::Rejected`], [`AdapterError::Signature`], [`AdapterError::DigestMismatch`], [`AdapterError::OverLimit`].
    pub async fn add_bytes(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        files: AdapterFiles,
        claims: impl Into<Claims>,
    ) -> Result<AdapterInfo, AdapterError> {
        self.check_room(tenant, alias).await?;
        self.admit(tenant, alias, claims.into(), move |_| Ok(files)).await
    }

    /// The same from elsewhere: a folder below `adapters_root` (`file:///…`), or what `https://`, `http://`, `hf://`, `s3://`
    /// or `ipfs://` names, opened by the credential if it is private; or what another tenant shares (`tenon://OWNER/ALIAS`), which
    /// was checked before and stays its owner's.
    ///
    /// # Errors
    /// As for [`Self::add_bytes`], and [`AdapterError::NoRoot`], [`AdapterError::BadSource`], [`AdapterError::SourceNotFound`],
    /// [`AdapterError::SourceFile`], [`AdapterError::Source`], [`AdapterError::SharedNotFound`].
    pub async fn add_url(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        url: &str,
        credential: Option<&Credential>,
        claims: impl Into<Claims>,
    ) -> Result<AdapterInfo, AdapterError> {
        let claims = claims.into();
        if let Some(taken) = self.take_shared(tenant, alias, url, credential, &claims).await? {
            return Ok(taken);
        }
        let source = self.sources.parse(url, credential)?;
        self.check_room(tenant, alias).await?;
        // What takes its time elsewhere takes no turn of the work here.
        let is_looked_at = self.signers.of(tenant).await?.policy != SignaturePolicy::None;
        let opening = self.sources.open(tenant, source, &self.limits, is_looked_at);
        let opened = on_behalf_of(tenant, opening).await?;
        self.admit(tenant, alias, claims, move |limits| opened.read(limits)).await
    }

    /// Reads, checks and keeps. The steps are the same whether or not anyone has the content already.
    async fn admit(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        claims: Claims,
        read: impl FnOnce(&AdapterLimits) -> Result<AdapterFiles, AdapterError> + Send + 'static,
    ) -> Result<AdapterInfo, AdapterError> {
        let signers = self.signers.of(tenant).await?;
        let permit = self.loads.permit().await?;
        let (base, limits) = (Arc::clone(&self.base), self.limits.clone());
        let check = move || {
            let AdapterFiles { config, weights, signature } = read(&limits)?;
            let canonical = canonical_adapter(&config, &weights, &*base, &limits)?;
            // The last step of admission, over the very bytes that passed the others.
            let signature = signers.check(signature.as_deref(), &[(CONFIG, &config), (WEIGHTS, &weights)])?;
            Ok((canonical, signature))
        };
        let ((checked, signature), _permit) = self.loads.compute(permit, check).await?;
        if let Some(expected) = claims.digest.filter(|expected| *expected != checked.digest) {
            return Err(AdapterError::DigestMismatch { expected, found: checked.digest });
        }
        let record = AliasRecord { signature, license: claims.license, ..AliasRecord::of(&checked) };
        self.put(tenant, alias, checked.bytes.into(), record).await
    }

    /// Keeps canonical bytes and makes the alias name them.
    async fn put(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        bytes: Bytes,
        record: AliasRecord,
    ) -> Result<AdapterInfo, AdapterError> {
        self.revocations.check(WHAT, record.digest)?;
        self.artifacts.put(ArtifactKind::Adapter, bytes).await?;
        // Left by a host that ended between an alias and its share: what comes back is not shared by itself.
        self.owners.end_stale_share(tenant, record.digest).await?;
        self.name(tenant, alias, record).await
    }

    /// Makes the alias name what is kept already.
    async fn name(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        record: AliasRecord,
    ) -> Result<AdapterInfo, AdapterError> {
        let replaced = self.owners.set(tenant, alias, &record).await?;
        if let Some(replaced) = replaced {
            self.forget_unowned(tenant, replaced).await?;
        }
        Ok(self.described(tenant, alias.clone(), record, true))
    }

    /// The tenant's adapters, by alias.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn list(&self, tenant: &TenantId) -> Result<Vec<AdapterInfo>, AdapterError> {
        let mut list = Vec::new();
        for (alias, record) in self.owners.list(tenant).await? {
            let is_usable = self.owners.is_usable(tenant, &record).await?;
            list.push(self.described(tenant, alias, record, is_usable));
        }
        Ok(list)
    }

    /// One of the tenant's adapters.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn info(&self, tenant: &TenantId, alias_or_digest: &str) -> Result<Option<AdapterInfo>, AdapterError> {
        let Some((alias, record)) = self.owners.find(tenant, alias_or_digest).await? else { return Ok(None) };
        let is_usable = self.owners.is_usable(tenant, &record).await?;
        Ok(Some(self.described(tenant, alias, record, is_usable)))
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

    /// What the disk holds of packed adapters. Zeros if they are not kept there.
    pub fn disk_stats(&self) -> AdapterDiskStats {
        self.disk.as_ref().map(|disk| disk.stats()).unwrap_or_default()
    }

    /// Waits for the end of the work that is under way; no other begins. Adapters in memory can be leased still.
    pub async fn close(&self) {
        self.sources.close();
        self.derivations.close().await;
        self.loads.close().await;
    }

    async fn check_room(&self, tenant: &TenantId, alias: &AdapterAlias) -> Result<(), AdapterError> {
        if self.owners.find(tenant, alias.as_str()).await?.is_some() {
            return Ok(());
        }
        if self.owners.has_room(tenant, self.aliases_per_tenant_max).await? {
            return Ok(());
        }
        let (limit, max) = ("aliases_per_tenant_max", self.aliases_per_tenant_max as u64);
        Err(AdapterError::OverLimit { what: "the number of adapter aliases", limit, max })
    }

    async fn forget_unowned(&self, tenant: &TenantId, digest: Digest) -> Result<(), AdapterError> {
        self.owners.end_stale_share(tenant, digest).await?;
        if self.owners.find_digest(tenant, digest).await?.is_none() {
            let (whose, _) = &self.key(tenant, digest);
            self.memory.forget(&(whose.clone(), digest));
            if let Some(disk) = &self.disk {
                disk::forget(disk, whose.as_ref(), digest).await?;
            }
        }
        Ok(())
    }

    fn described(&self, tenant: &TenantId, alias: AdapterAlias, record: AliasRecord, is_usable: bool) -> AdapterInfo {
        let AliasRecord { digest, rank, modules, bytes, report, signature, license, lineage, shared_by, tags } = record;
        let residency = self.memory.residency(&self.key(tenant, digest));
        let revoked = self.revocations.find(digest);
        AdapterInfo {
            alias,
            digest,
            rank,
            modules,
            bytes,
            residency,
            report,
            revoked,
            signature,
            license,
            lineage,
            shared_by,
            tags,
            is_usable,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
) -> Result<T, AdapterError> {
    tokio::task::spawn_blocking(work).await.map_err(lost)?
}

#[cfg(test)]
mod tests;
