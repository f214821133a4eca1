//! How an adapter is lent: from memory, mapped from disk, or packed from its blob; and what is brought before anyone waits for it.
//! Not here: the memory itself, and what is done for a request when an adapter is not there (`invoke/cold.rs`).

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use model::{AdapterStaging, LoraAdapter};
use types::{AdapterAlias, Digest, TenantId};

use super::keep::Keep;
use super::loads::LoadPermit;
use super::memory::{AdapterLease, AdapterMemoryStats, Loaded};
use super::residents::{Key, ReleasePolicy};
use super::{AdapterError, AdapterStore, ResolvedAdapters, WHAT, disk};
use crate::artifacts::ArtifactKind;

/// Where a load found an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadedFrom {
    /// Packed, in a file.
    Disk,
    /// In canonical form, in the store.
    Store,
}

/// How long the stages of a load took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadTimes {
    /// Where it was.
    pub from: LoadedFrom,
    /// Until its turn among the loads.
    pub wait: Duration,
    /// Reading the blob. A file is read while it is verified.
    pub fetch: Duration,
    /// Comparing its digest, or its mark.
    pub verify: Duration,
    /// From the canonical to the packed form.
    pub pack: Duration,
    /// Making a packed file usable.
    pub load: Duration,
}

impl LoadTimes {
    /// Without the wait.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.fetch + self.verify + self.pack + self.load
    }

    const fn new(from: LoadedFrom, wait: Duration) -> Self {
        let zero = Duration::ZERO;
        Self { from, wait, fetch: zero, verify: zero, pack: zero, load: zero }
    }
}

/// Told of every load that succeeded, once.
#[derive(Clone)]
pub struct LoadObserver(Arc<dyn Fn(&LoadTimes) + Send + Sync>);

impl LoadObserver {
    /// Calls this.
    pub fn new(observe: impl Fn(&LoadTimes) + Send + Sync + 'static) -> Self {
        Self(Arc::new(observe))
    }
}

impl fmt::Debug for LoadObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadObserver")
    }
}

impl AdapterStore {
    /// A right to use the packed adapter, which is loaded if it is not in memory (once for all who ask at the same time). A load that
    /// has begun runs to its end and is kept, also if whoever asked has left.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] if the tenant does not own it; [`AdapterError::Rejected`] if it does not fit this base.
    pub async fn lease(&self, tenant: &TenantId, digest: Digest) -> Result<AdapterLease, AdapterError> {
        if self.owners.find_digest(tenant, digest).await?.is_none() {
            return Err(AdapterError::NotFound(digest.to_string()));
        }
        self.lease_owned(tenant, digest, ReleasePolicy::Lru).await
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
        release: ReleasePolicy,
    ) -> Result<AdapterLease, AdapterError> {
        check_resolved(resolved, digest)?;
        self.lease_owned(&resolved.tenant, digest, release).await
    }

    /// Whether a lease would have to wait for a load.
    #[must_use]
    pub fn is_cold(&self, resolved: &ResolvedAdapters, digest: Digest) -> bool {
        self.memory.residency(&self.key(&resolved.tenant, digest)) == super::Residency::Storage
    }

    /// Has an adapter loaded that will be needed, without waiting for it. A hint: where many loads are under way it is dropped.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`] if the digest is none of those that were resolved, and if it was revoked.
    pub fn prefetch(&self, resolved: &ResolvedAdapters, digest: Digest) -> Result<(), AdapterError> {
        check_resolved(resolved, digest)?;
        self.revocations.check(WHAT, digest)?;
        let Ok(permit) = Arc::clone(&self.prefetches).try_acquire_owned() else { return Ok(()) };
        let (key, load) = self.loading(&resolved.tenant, digest);
        let Some(coming) = self.memory.prefetch(&key, &self.loads, load) else { return Ok(()) };
        let staging = self.staging.clone();
        drop(self.loads.spawn(async move {
            match coming.await {
                Ok(loaded) => make_ready(staging, &loaded.adapter).await,
                Err(error) => tracing::debug!(%digest, %error, "an adapter could not be loaded ahead of its use"),
            }
            drop(permit);
        }));
        Ok(())
    }

    /// Loads the adapter of an alias and keeps it in memory, whatever else comes, until it is unpinned, removed or replaced, or
    /// this host ends.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`]; [`AdapterError::OverLimit`] if those that are pinned would take more than they may.
    pub async fn pin(&self, tenant: &TenantId, alias: &AdapterAlias) -> Result<(), AdapterError> {
        let digest = self.resolve(tenant, alias.as_str()).await?;
        let digest = digest.ok_or_else(|| AdapterError::NotFound(alias.to_string()))?;
        let _lease = self.lease_owned(tenant, digest, ReleasePolicy::Lru).await?;
        match self.memory.pin(&self.key(tenant, digest)) {
            Some(true) => Ok(()),
            // What takes more than all of memory may was not kept.
            Some(false) | None => {
                let max = self.memory.pinned_bytes_max();
                let what = "the memory of pinned adapters in bytes";
                Err(AdapterError::OverLimit { what, limit: "adapter_pinned_bytes_max", max })
            }
        }
    }

    /// Lets it give way to others again.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`].
    pub async fn unpin(&self, tenant: &TenantId, alias: &AdapterAlias) -> Result<(), AdapterError> {
        // Also where it may not be used any more.
        let found = self.owners.find(tenant, alias.as_str()).await?;
        let (_, record) = found.ok_or_else(|| AdapterError::NotFound(alias.to_string()))?;
        self.memory.unpin(&self.key(tenant, record.digest));
        Ok(())
    }

    /// Takes what was revoked out of memory and off the disk, whoever brought it there. Leases that are out stay good: the
    /// engine ends their sequences.
    ///
    /// # Errors
    /// [`AdapterError::Lost`] if the host is being stopped.
    pub async fn evict(&self, digest: Digest) -> Result<(), AdapterError> {
        self.memory.forget_everywhere(digest);
        match &self.disk {
            Some(disk) => disk::forget_everywhere(disk, digest).await,
            None => Ok(()),
        }
    }

    /// Bytes of packed adapters in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.stats().bytes
    }

    /// Leases that are out.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.memory.stats().leases
    }

    /// What memory holds of packed adapters, and has done.
    pub fn memory_stats(&self) -> AdapterMemoryStats {
        self.memory.stats()
    }

    /// Under which key memory and disk have it.
    pub(super) fn key(&self, tenant: &TenantId, digest: Digest) -> Key {
        ((!self.is_shared_across_tenants).then(|| tenant.clone()), digest)
    }

    async fn lease_owned(
        &self,
        tenant: &TenantId,
        digest: Digest,
        release: ReleasePolicy,
    ) -> Result<AdapterLease, AdapterError> {
        self.revocations.check(WHAT, digest)?;
        let (key, load) = self.loading(tenant, digest);
        let lease = self.memory.lease(key, release, &self.loads, load).await?;
        make_ready(self.staging.clone(), lease.adapter()).await;
        Ok(lease)
    }

    /// What a load of it is.
    fn loading(
        &self,
        tenant: &TenantId,
        digest: Digest,
    ) -> (Key, impl FnOnce(LoadPermit) -> BoxFuture<'static, Result<Loaded, AdapterError>> + Send + 'static + use<>)
    {
        let key = self.key(tenant, digest);
        let (artifacts, loads, asked) = (self.artifacts.clone(), self.loads.clone(), Instant::now());
        let (base, limits, precision) = (Arc::clone(&self.base), self.limits.clone(), self.precision);
        let (whose, on_load) = (key.0.clone(), self.on_load.clone());
        let disk = self.disk.clone().map(|disk| Keep {
            disk,
            tenant: tenant.clone(),
            is_shared: key.0.is_none(),
            digest,
            owners: self.owners.clone(),
            revocations: self.revocations.clone(),
        });
        let load = async move |mut permit: LoadPermit| {
            let wait = asked.elapsed();
            if let Some(Keep { disk, .. }) = disk.clone() {
                let begun = Instant::now();
                let found;
                (found, permit) = loads.compute(permit, move || Ok(disk.read(whose.as_ref(), digest))).await?;
                if let Some((adapter, verify)) = found {
                    let load = begun.elapsed().saturating_sub(verify);
                    let times = LoadTimes { verify, load, ..LoadTimes::new(LoadedFrom::Disk, wait) };
                    return Ok::<_, AdapterError>(Loaded { adapter: Arc::new(adapter), times });
                }
            }
            let (bytes, fetch, verify) = artifacts.get_timed(ArtifactKind::Adapter, digest).await?;
            let begun = Instant::now();
            let pack = move || Ok(model::LoraAdapter::from_canonical(&bytes, &*base, &limits, precision)?);
            let (adapter, permit) = loads.compute(permit, pack).await?;
            let times = LoadTimes { fetch, verify, pack: begun.elapsed(), ..LoadTimes::new(LoadedFrom::Store, wait) };
            let adapter = Arc::new(adapter);
            if let Some(disk) = disk {
                // Nobody waits for it but the end; the permit bounds how many there are.
                drop(loads.spawn(disk.keep(Arc::clone(&adapter), loads.clone(), permit)));
            }
            Ok(Loaded { adapter, times })
        };
        let observed = move |permit| {
            let load = load(permit);
            async move {
                let loaded = load.await?;
                on_load.iter().for_each(|observer| (observer.0)(&loaded.times));
                Ok(loaded)
            }
            .boxed()
        };
        (key, observed)
    }
}

/// Has an adapter lie in page-locked memory before the engine needs it, which would have to copy it there otherwise. Off the
/// async threads: it takes as long as a copy of it. If there is no room, or the device fails, nobody is told here.
async fn make_ready(staging: Option<AdapterStaging>, adapter: &Arc<LoraAdapter>) {
    let Some(staging) = staging.filter(|staging| staging.is_wanted(adapter)) else { return };
    let adapter = Arc::clone(adapter);
    let prepared = tokio::task::spawn_blocking(move || staging.prepare(&adapter)).await;
    if !matches!(prepared, Ok(true)) {
        tracing::debug!("an adapter was not made ready for the device");
    }
}

fn check_resolved(resolved: &ResolvedAdapters, digest: Digest) -> Result<(), AdapterError> {
    let is_owned = resolved.digests.values().any(|owned| *owned == digest);
    if is_owned { Ok(()) } else { Err(AdapterError::NotFound(digest.to_string())) }
}
