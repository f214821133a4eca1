//! Packed adapters in host memory under a budget of bytes, those that are on their way there, and the leases on them.
//! Not here: who may have one.
//!
//! The cache is keyed by tenant as well: were it shared, one tenant could tell by time whether another uses the same adapter.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use model::LoraAdapter;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use types::{Digest, TenantId};

use super::AdapterError;
use super::loads::{LoadPermit, Loads, lost};

/// Where an adapter is. Slots of the runner are the engine's to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// Packed, in host memory.
    Memory,
    /// In the store only.
    Storage,
}

type Key = (TenantId, Digest);
type Loaded = Result<Arc<LoraAdapter>, AdapterError>;

/// A load that has begun.
struct Underway {
    load: Shared<BoxFuture<'static, Loaded>>,
    /// Nobody owns it any more: it is not kept.
    is_forgotten: bool,
}

pub(super) struct HostMemory {
    cache: Cache<Key, Arc<LoraAdapter>>,
    underway: Arc<Mutex<HashMap<Key, Underway>>>,
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
        Self { cache, underway: Arc::default(), leases: Arc::default() }
    }

    /// The adapter from memory, or from `load`, which runs once however many ask, and to its end however many leave. A
    /// failure is not kept.
    pub(super) async fn lease<L>(
        &self,
        tenant: &TenantId,
        digest: Digest,
        loads: &Loads,
        load: impl FnOnce(LoadPermit) -> L,
    ) -> Result<AdapterLease, AdapterError>
    where
        L: Future<Output = Loaded> + Send + 'static,
    {
        let key = (tenant.clone(), digest);
        // The cache runs one of these for a key at a time, and the next one if this is dropped.
        let join_or_begin = async {
            if let Some(load) = self.join(&key) {
                return load.await;
            }
            // One that was under way may have ended just now.
            if let Some(adapter) = self.cache.get(&key).await {
                return Ok(adapter);
            }
            let permit = loads.permit().await?;
            self.begin(key.clone(), loads, load(permit)).await
        };
        let found = self.cache.try_get_with_by_ref(&key, join_or_begin).await;
        let adapter = found.map_err(|error: Arc<AdapterError>| AdapterError::clone(&error))?;
        self.leases.fetch_add(1, Ordering::Relaxed);
        Ok(AdapterLease { digest, adapter, leases: Arc::clone(&self.leases) })
    }

    /// The load that somebody began who may have left since.
    fn join(&self, key: &Key) -> Option<Shared<BoxFuture<'static, Loaded>>> {
        let mut underway = locked(&self.underway);
        let found = underway.get_mut(key)?;
        found.is_forgotten = false;
        Some(found.load.clone())
    }

    fn begin(
        &self,
        key: Key,
        loads: &Loads,
        load: impl Future<Output = Loaded> + Send + 'static,
    ) -> Shared<BoxFuture<'static, Loaded>> {
        let (cache, all, own) = (self.cache.clone(), Arc::clone(&self.underway), key.clone());
        let task = async move {
            let loaded = AssertUnwindSafe(load).catch_unwind().await.unwrap_or_else(|_| Err(lost("it panicked")));
            if let Ok(adapter) = &loaded {
                cache.insert(own.clone(), Arc::clone(adapter)).await;
            }
            // In this order: who finds no load under way finds it in the cache.
            let ended = locked(&all).remove(&own);
            if ended.is_some_and(|ended| ended.is_forgotten) {
                cache.invalidate(&own).await;
            }
            loaded
        };
        // Locked first: the task must not end before it is entered.
        let mut underway = locked(&self.underway);
        let task = loads.spawn(task);
        let load = async { task.await.unwrap_or_else(|error| Err(lost(error))) }.boxed().shared();
        underway.insert(key, Underway { load: load.clone(), is_forgotten: false });
        load
    }

    pub(super) fn residency(&self, tenant: &TenantId, digest: Digest) -> Residency {
        if self.cache.contains_key(&(tenant.clone(), digest)) { Residency::Memory } else { Residency::Storage }
    }

    pub(super) async fn forget(&self, tenant: &TenantId, digest: Digest) {
        let key = (tenant.clone(), digest);
        if let Some(underway) = locked(&self.underway).get_mut(&key) {
            underway.is_forgotten = true;
        }
        self.cache.invalidate(&key).await;
    }

    /// Takes a digest out for all tenants, also what is under way.
    pub(super) async fn forget_everywhere(&self, digest: Digest) {
        let underway: Vec<Key> = locked(&self.underway).keys().filter(|key| key.1 == digest).cloned().collect();
        let cached = self.cache.iter().map(|(key, _)| Key::clone(&key)).filter(|key| key.1 == digest);
        for (tenant, digest) in cached.chain(underway).collect::<Vec<_>>() {
            self.forget(&tenant, digest).await;
        }
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

fn locked(underway: &Mutex<HashMap<Key, Underway>>) -> MutexGuard<'_, HashMap<Key, Underway>> {
    underway.lock().unwrap_or_else(PoisonError::into_inner)
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
