//! A store that forgets, for tests of what stands on it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;

use super::{BlobWrite, Pointer, Store, StoreError, Version};

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<String, Bytes>,
    pointers: BTreeMap<String, (Bytes, Version)>,
    last_version: u64,
    scans: usize,
}

/// Maps behind a lock.
#[derive(Debug, Default)]
pub(crate) struct MemoryStore(Mutex<State>);

impl MemoryStore {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic under the lock")
    }

    /// Listings so far.
    pub(crate) fn scans(&self) -> usize {
        self.state().scans
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn check_room(&self, _bytes: u64) -> Result<(), StoreError> {
        Ok(())
    }

    async fn put_blob(&self, name: &str, bytes: Bytes, write: BlobWrite) -> Result<(), StoreError> {
        super::check_key(name)?;
        super::check_blob_bytes(bytes.len() as u64)?;
        let mut state = self.state();
        if write == BlobWrite::Replace || !state.blobs.contains_key(name) {
            state.blobs.insert(name.to_owned(), bytes);
        }
        Ok(())
    }

    async fn get_blob(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        super::check_key(name)?;
        Ok(self.state().blobs.get(name).cloned())
    }

    async fn get(&self, key: &str) -> Result<Option<(Bytes, Version)>, StoreError> {
        Ok(self.state().pointers.get(key).cloned())
    }

    async fn swap(&self, key: &str, expected: Option<Version>, new: Option<Bytes>) -> Result<Version, StoreError> {
        super::check_pointer(key, new.as_ref())?;
        let mut state = self.state();
        if state.pointers.get(key).map(|(_, version)| *version) != expected {
            return Err(StoreError::Conflict { key: key.to_owned() });
        }
        state.last_version += 1;
        let version = Version(state.last_version);
        match new {
            Some(value) => state.pointers.insert(key.to_owned(), (value, version)),
            None => state.pointers.remove(key),
        };
        Ok(version)
    }

    async fn scan(&self, prefix: &str) -> Result<Vec<Pointer>, StoreError> {
        let mut state = self.state();
        state.scans += 1;
        let found = state.pointers.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let pointer = |(key, (value, version)): (&String, &(Bytes, Version))| Pointer {
            key: key.clone(),
            value: value.clone(),
            version: *version,
        };
        Ok(found.map(pointer).collect())
    }
}

#[tokio::test]
async fn conforms() {
    super::conformance::run(std::sync::Arc::new(MemoryStore::default())).await;
}
