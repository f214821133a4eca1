//! How many records of a kind a tenant has, so that a limit on them costs no listing each time: listed once, then kept in memory by
//! whoever adds one. What is removed is not counted, so that it is a bound, and listed again where it seems to be too much. Not here:
//! what they are, and the limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use moka::future::Cache;

use super::{Store, StoreError};

/// Counts in memory; one that was let go of is listed again.
const COUNTS_MAX: u64 = 10_000;

/// By the prefix of the records' keys.
#[derive(Clone, Debug)]
pub(crate) struct Counts(Cache<String, Arc<AtomicUsize>>);

/// How many there are at most. To be had before one is added, so that the listing cannot have seen what is counted afterwards.
#[derive(Debug)]
pub(crate) struct Count(Arc<AtomicUsize>);

impl Counts {
    pub(crate) fn new() -> Self {
        Self(Cache::builder().max_capacity(COUNTS_MAX).build())
    }

    /// Whether there are fewer than this under a prefix. At the bound it costs a listing each time.
    pub(crate) async fn are_fewer(&self, store: &dyn Store, prefix: &str, than: usize) -> Result<bool, StoreError> {
        if self.of(store, prefix).await?.get() < than {
            return Ok(true);
        }
        self.0.invalidate(prefix).await;
        Ok(self.of(store, prefix).await?.get() < than)
    }

    /// At most so many are under a prefix.
    pub(crate) async fn of(&self, store: &dyn Store, prefix: &str) -> Result<Count, StoreError> {
        let list = async { store.scan(prefix).await.map(|found| Arc::new(AtomicUsize::new(found.len()))) };
        let count = self.0.try_get_with(prefix.to_owned(), list).await;
        count.map(Count).map_err(|error| StoreError::clone(&error))
    }
}

impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// One was added.
    pub(crate) fn one_more(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_bound_costs_one_listing_until_it_is_reached() {
        let (store, counts) = (MemoryStore::default(), Counts::new());
        for key in ["a/1", "a/2", "a/3", "ab/1"] {
            assert!(counts.are_fewer(&store, "a/", 3).await.unwrap(), "{key}");
            let count = counts.of(&store, "a/").await.unwrap();
            store.swap(key, None, Some(Bytes::new())).await.unwrap();
            if key.starts_with("a/") && key != "a/3" {
                count.one_more();
            }
        }
        assert_eq!(store.scans(), 1);
        counts.of(&store, "a/").await.unwrap().one_more();
        assert!(!counts.are_fewer(&store, "a/", 3).await.unwrap());
        assert_eq!(store.scans(), 2);
        // What was removed makes room.
        let (_, version) = store.get("a/1").await.unwrap().unwrap();
        store.swap("a/1", Some(version), None).await.unwrap();
        assert!(counts.are_fewer(&store, "a/", 3).await.unwrap());
    }
}
