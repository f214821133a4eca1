//! Packed adapters in host memory under a budget of bytes, and the leases on them. Not here: who may have one.
//!
//! The cache is keyed by tenant as well: were it shared, one tenant could tell by time whether another uses the same adapter.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use model::LoraAdapter;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use types::{Digest, TenantId};

use super::AdapterError;

/// Where an adapter is. Slots of the runner are the engine's to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// Packed, in host memory.
    Memory,
    /// In the store only.
    Storage,
}

type Key = (TenantId, Digest);

pub(super) struct HostMemory {
    cache: Cache<Key, Arc<LoraAdapter>>,
    leases: Arc<AtomicUsize>,
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory").field("bytes", &self.bytes()).field("leases", &self.leases()).finish()
    }
}

impl HostMemory {
    pub(super) fn new(bytes_max: u64) -> Self {
        let weigh = |_: &Key, adapter: &Arc<LoraAdapter>| u32::try_from(adapter.memory_bytes()).unwrap_or(u32::MAX);
        let cache =
            Cache::builder().max_capacity(bytes_max).weigher(weigh).eviction_policy(EvictionPolicy::lru()).build();
        Self { cache, leases: Arc::default() }
    }

    /// The adapter from memory, or from `load`, which runs once however many ask. A failure is not kept.
    pub(super) async fn lease(
        &self,
        tenant: &TenantId,
        digest: Digest,
        load: impl Future<Output = Result<LoraAdapter, AdapterError>>,
    ) -> Result<AdapterLease, AdapterError> {
        let load = async { load.await.map(Arc::new) };
        let found = self.cache.try_get_with((tenant.clone(), digest), load).await;
        let adapter = found.map_err(|error: Arc<AdapterError>| AdapterError::clone(&error))?;
        self.leases.fetch_add(1, Ordering::Relaxed);
        Ok(AdapterLease { digest, adapter, leases: Arc::clone(&self.leases) })
    }

    pub(super) fn residency(&self, tenant: &TenantId, digest: Digest) -> Residency {
        if self.cache.contains_key(&(tenant.clone(), digest)) { Residency::Memory } else { Residency::Storage }
    }

    pub(super) async fn forget(&self, tenant: &TenantId, digest: Digest) {
        self.cache.invalidate(&(tenant.clone(), digest)).await;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weighted_size()
    }

    pub(super) fn leases(&self) -> usize {
        self.leases.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) async fn settle(&self) {
        self.cache.run_pending_tasks().await;
    }
}

/// A counted right to use one generation of an adapter. Eviction, removal and a moved alias do not end it.
pub struct AdapterLease {
    digest: Digest,
    adapter: Arc<LoraAdapter>,
    leases: Arc<AtomicUsize>,
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterLease").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl AdapterLease {
    /// The content that was leased.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The packed adapter.
    #[must_use]
    pub const fn adapter(&self) -> &Arc<LoraAdapter> {
        &self.adapter
    }
}

impl Drop for AdapterLease {
    fn drop(&mut self) {
        self.leases.fetch_sub(1, Ordering::Relaxed);
    }
}
