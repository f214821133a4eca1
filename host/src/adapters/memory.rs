//! Packed adapters in host memory, those that are on their way there, and the leases on them. Not here: who may have one, and
//! which of them give way (`residents`).
//!
//! The table is keyed by tenant as well: were it shared, one tenant could tell by time whether another uses the same adapter.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use model::LoraAdapter;
use tokio::sync::Notify;
use types::Digest;

use super::loads::{LoadPermit, Loads, lost};
use super::residents::{Evictions, Key, ReleasePolicy, Residents};
use super::{AdapterError, LoadTimes};

/// Where an adapter is. Slots of the runner are the engine's to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// Packed, in host memory.
    Memory,
    /// In the store only.
    Storage,
}

/// What a load brings.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) adapter: Arc<LoraAdapter>,
    pub(super) times: LoadTimes,
}

type LoadResult = Result<Loaded, AdapterError>;
type Load = Shared<BoxFuture<'static, LoadResult>>;

/// A load that has begun.
struct Underway {
    load: Load,
    /// Nobody owns it any more: it is not kept.
    is_forgotten: bool,
}

/// What memory holds and what is coming.
struct Table {
    residents: Residents<LoraAdapter>,
    underway: HashMap<Key, Underway>,
    /// Loads that wait for a permit, for as long as somebody waits for them.
    waiting: HashMap<Key, WeakShared<BoxFuture<'static, LoadResult>>>,
    leases: usize,
    hits: u64,
    misses: u64,
}

/// What memory has done, and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdapterMemoryStats {
    /// Of all adapters that are there.
    pub bytes: u64,
    /// Of those that are pinned.
    pub pinned_bytes: u64,
    /// How many are there.
    pub adapters: usize,
    /// Leases that are out.
    pub leases: usize,
    /// Leases on what was there.
    pub hits: u64,
    /// Leases that had to wait for a load.
    pub misses: u64,
    /// What left, and why.
    pub evictions: Evictions,
}

/// Shared by all leases.
struct Shelf {
    table: Mutex<Table>,
    /// Something is there that will expire.
    expiring: Notify,
}

impl Shelf {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct HostMemory {
    shelf: Arc<Shelf>,
    pinned_bytes_max: u64,
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostMemory").field("stats", &self.stats()).finish()
    }
}

impl HostMemory {
    pub(super) fn new(bytes_max: u64, pinned_bytes_max: u64) -> Self {
        let table = Table {
            residents: Residents::new(bytes_max),
            underway: HashMap::new(),
            waiting: HashMap::new(),
            leases: 0,
            hits: 0,
            misses: 0,
        };
        Self { shelf: Arc::new(Shelf { table: Mutex::new(table), expiring: Notify::new() }), pinned_bytes_max }
    }

    /// The adapter from memory, or from `load`, which runs once however many ask, and to its end however many leave. A
    /// failure is not kept.
    pub(super) async fn lease<L>(
        &self,
        key: Key,
        release: ReleasePolicy,
        loads: &Loads,
        load: impl FnOnce(LoadPermit) -> L + Send + 'static,
    ) -> Result<AdapterLease, AdapterError>
    where
        L: Future<Output = LoadResult> + Send + 'static,
    {
        let found = {
            let mut table = self.shelf.table();
            let found = table.residents.lease(&key, release);
            match found {
                Some(adapter) => {
                    table.hits += 1;
                    table.leases += 1;
                    Ok(adapter)
                }
                None => {
                    table.misses += 1;
                    Err(self.join_or_begin(&mut table, &key, loads, load))
                }
            }
        };
        match found {
            Ok(adapter) => Ok(self.lent(key, adapter, None)),
            Err(load) => {
                let Loaded { adapter, times } = load.await?;
                let mut table = self.shelf.table();
                // It may have given way or been forgotten meanwhile: the lease is on what was loaded.
                let adapter = table.residents.lease(&key, release).unwrap_or(adapter);
                table.residents.make_room();
                table.leases += 1;
                drop(table);
                Ok(self.lent(key, adapter, Some(times)))
            }
        }
    }

    /// Has it loaded without waiting for it. `None` if it is there or on its way.
    pub(super) fn prefetch<L>(
        &self,
        key: &Key,
        loads: &Loads,
        load: impl FnOnce(LoadPermit) -> L + Send + 'static,
    ) -> Option<impl Future<Output = LoadResult> + Send + 'static>
    where
        L: Future<Output = LoadResult> + Send + 'static,
    {
        let mut table = self.shelf.table();
        let coming = table.underway.contains_key(key)
            || table.waiting.get(key).is_some_and(|waiting| waiting.upgrade().is_some());
        (!coming && !table.residents.contains(key)).then(|| self.join_or_begin(&mut table, key, loads, load))
    }

    fn lent(&self, key: Key, adapter: Arc<LoraAdapter>, times: Option<LoadTimes>) -> AdapterLease {
        AdapterLease { key, adapter, times, shelf: Arc::clone(&self.shelf) }
    }

    /// The load of this key that is under way, or a new one: it waits for a permit for as long as somebody waits for it, and
    /// from then on goes to its end.
    fn join_or_begin<L>(
        &self,
        table: &mut Table,
        key: &Key,
        loads: &Loads,
        load: impl FnOnce(LoadPermit) -> L + Send + 'static,
    ) -> Load
    where
        L: Future<Output = LoadResult> + Send + 'static,
    {
        if let Some(underway) = table.underway.get_mut(key) {
            underway.is_forgotten = false;
            return underway.load.clone();
        }
        if let Some(waiting) = table.waiting.get(key).and_then(WeakShared::upgrade) {
            return waiting;
        }
        let (shelf, loads, own) = (Arc::clone(&self.shelf), loads.clone(), key.clone());
        let waiting = async move {
            let permit = loads.permit().await?;
            begin(&shelf, own, &loads, load(permit)).await
        };
        let waiting = waiting.boxed().shared();
        table.waiting.retain(|_, waiting| waiting.upgrade().is_some());
        if let Some(weak) = waiting.downgrade() {
            table.waiting.insert(key.clone(), weak);
        }
        waiting
    }

    /// Takes out what has rested long enough, when it has. Ends with the host.
    pub(super) fn sweep(&self) -> impl Future<Output = ()> + Send + 'static {
        let shelf = Arc::clone(&self.shelf);
        async move {
            loop {
                let next = shelf.table().residents.expire(Instant::now());
                match next {
                    None => shelf.expiring.notified().await,
                    Some(at) => {
                        let rest = at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                        tokio::select! {
                            () = tokio::time::sleep(rest) => {}
                            () = shelf.expiring.notified() => {}
                        }
                    }
                }
            }
        }
    }

    pub(super) fn residency(&self, key: &Key) -> Residency {
        if self.shelf.table().residents.contains(key) { Residency::Memory } else { Residency::Storage }
    }

    pub(super) fn forget(&self, key: &Key) {
        forget(&mut self.shelf.table(), key);
    }

    /// Takes a digest out for all tenants, also what is under way.
    pub(super) fn forget_everywhere(&self, digest: Digest) {
        let mut table = self.shelf.table();
        let underway: Vec<Key> = table.underway.keys().filter(|key| key.1 == digest).cloned().collect();
        for key in table.residents.keys_of(digest).into_iter().chain(underway) {
            forget(&mut table, &key);
        }
    }

    /// Keeps what is there whatever else comes; `None` if it is not there, else whether there was room.
    pub(super) fn pin(&self, key: &Key) -> Option<bool> {
        self.shelf.table().residents.pin(key, self.pinned_bytes_max)
    }

    pub(super) const fn pinned_bytes_max(&self) -> u64 {
        self.pinned_bytes_max
    }

    pub(super) fn unpin(&self, key: &Key) {
        self.shelf.table().residents.unpin(key);
    }

    pub(super) fn stats(&self) -> AdapterMemoryStats {
        let table = self.shelf.table();
        let residents = &table.residents;
        AdapterMemoryStats {
            bytes: residents.bytes(),
            pinned_bytes: residents.pinned_bytes(),
            adapters: residents.count(),
            leases: table.leases,
            hits: table.hits,
            misses: table.misses,
            evictions: residents.evictions(),
        }
    }

    #[cfg(test)]
    pub(super) fn check_integrity(&self) {
        self.shelf.table().residents.check_integrity();
    }
}

fn forget(table: &mut Table, key: &Key) {
    if let Some(underway) = table.underway.get_mut(key) {
        underway.is_forgotten = true;
    }
    table.residents.forget(key);
}

/// Starts a load that runs to its end, and is kept unless it is forgotten before that.
fn begin(shelf: &Arc<Shelf>, key: Key, loads: &Loads, load: impl Future<Output = LoadResult> + Send + 'static) -> Load {
    let (owner, own) = (Arc::clone(shelf), key.clone());
    let task = async move {
        let loaded = AssertUnwindSafe(load).catch_unwind().await.unwrap_or_else(|_| Err(lost("it panicked")));
        // At once: who finds no load under way finds it in the table.
        let mut table = owner.table();
        let ended = table.underway.remove(&own);
        if let Ok(Loaded { adapter, .. }) = &loaded
            && ended.is_some_and(|ended| !ended.is_forgotten)
        {
            table.residents.enter(own, Arc::clone(adapter), adapter.memory_bytes() as u64);
        }
        drop(table);
        loaded
    };
    // Locked first: the task must not end before it is entered.
    let mut table = shelf.table();
    let task = loads.spawn(task);
    let load = async { task.await.unwrap_or_else(|error| Err(lost(error))) }.boxed().shared();
    table.waiting.remove(&key);
    table.underway.insert(key, Underway { load: load.clone(), is_forgotten: false });
    load
}

/// A counted right to use one generation of an adapter. Eviction, removal and a moved alias do not end it.
pub struct AdapterLease {
    key: Key,
    adapter: Arc<LoraAdapter>,
    times: Option<LoadTimes>,
    shelf: Arc<Shelf>,
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterLease").field("digest", &self.key.1).finish_non_exhaustive()
    }
}

impl AdapterLease {
    /// The content that was leased.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.key.1
    }

    /// The packed adapter.
    #[must_use]
    pub const fn adapter(&self) -> &Arc<LoraAdapter> {
        &self.adapter
    }

    /// How long its load took, if it was not in memory.
    #[must_use]
    pub const fn times(&self) -> Option<LoadTimes> {
        self.times
    }
}

impl Drop for AdapterLease {
    fn drop(&mut self) {
        let mut table = self.shelf.table();
        table.leases -= 1;
        if table.residents.give_back(&self.key, &self.adapter, Instant::now()) {
            self.shelf.expiring.notify_one();
        }
    }
}
