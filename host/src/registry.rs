//! Functions: names with immutable versions, pointers to those that answer (`head.rs`, `rollout.rs`), and the plugins that a
//! tenant may deploy (`plugins.rs`).
//!
//! All of it is keyed by tenant; what another tenant has cannot be told from what is not there. Not here: the bytes of plugins
//! (`artifacts`), checks of a plan against a manifest (`types::ValidPlan`).
//!
//! Records: `functions/TENANT/NAME` is the head (a small pointer that is swapped), `versions/TENANT/NAME/NUMBER` a manifest that is
//! written once, `plugins/TENANT/DIGEST` the ownership of a plugin. A number is never given out twice, not even after the function
//! was deleted, because receipts cite it.

mod error;
mod head;
mod live;
mod manifest;
mod plugins;
mod rollout;

use std::sync::Arc;

use bytes::Bytes;
use moka::future::Cache;
use serde::{Deserialize, Serialize};
use types::{FunctionName, TenantId};

use crate::store::{Counts, SWAP_ATTEMPTS_MAX, Store, StoreError};

pub use error::RegistryError;
use head::Head;
use live::By;
pub use live::{ChangeKind, LIVE_CHANGES_MAX, LiveChange, LiveHistory};
pub(crate) use manifest::digest_text;
pub use manifest::*;
pub use rollout::{Beside, Chosen, Rollout, Share, ShareError};

/// Functions of one tenant.
pub const FUNCTIONS_PER_TENANT_MAX: usize = 10_000;
/// Versions of one function.
pub const VERSIONS_PER_FUNCTION_MAX: u32 = 1000;
/// Plugins of one tenant.
pub const PLUGINS_PER_TENANT_MAX: usize = 10_000;
/// Manifests kept in memory, in bytes of their JSON.
const MANIFEST_CACHE_BYTES_MAX: u64 = 64 << 20;

/// One deployed version.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionVersion {
    /// The function.
    pub function: FunctionName,
    /// Its number, from 1.
    pub version: u32,
    /// What was deployed.
    pub manifest: Arc<Manifest>,
    /// When, in milliseconds since 1970-01-01 UTC; 0 if it was not noted.
    pub created_unix_ms: u64,
    /// The life of the function that it belongs to: the number from which on versions are of this function, and not of a
    /// deleted one of the same name.
    pub life: u32,
}

/// What a version's record holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredVersion {
    created_unix_ms: u64,
    manifest: Manifest,
}

/// Which version answers, and which did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The one that answers.
    pub live: u32,
    /// The newest one.
    pub latest: u32,
    /// As [`FunctionVersion::life`].
    pub life: u32,
    /// The changes that led there.
    pub history: LiveHistory,
    /// The version that answers a share of the callers.
    pub canary: Option<Rollout>,
    /// The version that gets copies.
    pub shadow: Option<Rollout>,
    /// Everything that was done, the oldest first.
    pub changes: Vec<LiveChange>,
}

/// A function as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionInfo {
    /// Its name.
    pub function: FunctionName,
    /// The version that answers.
    pub live: u32,
    /// The newest version.
    pub latest: u32,
}

type VersionKey = (TenantId, FunctionName, u32);

/// Functions and plugins, by tenant.
#[derive(Clone)]
pub struct Registry {
    store: Arc<dyn Store>,
    /// Written once, so never stale; whether a version exists is asked of the head each time.
    versions: Cache<VersionKey, FunctionVersion>,
    counts: Counts,
}

/// Manifests hold what tenants configured; they do not belong in a log.
impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Registry {
    /// Over a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        let weigh =
            |_: &VersionKey, found: &FunctionVersion| u32::try_from(found.manifest.text_bytes()).unwrap_or(u32::MAX);
        let versions = Cache::builder().max_capacity(MANIFEST_CACHE_BYTES_MAX).weigher(weigh).build();
        Self { store, versions, counts: Counts::new() }
    }

    /// Adds a version, durable before it is visible. The first one becomes live, on behalf of the key `by`.
    ///
    /// # Errors
    /// [`RegistryError::Manifest`], [`RegistryError::UnknownPlugin`], [`RegistryError::OverLimit`].
    pub async fn put_version(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        manifest: Manifest,
        by: &str,
    ) -> Result<FunctionVersion, RegistryError> {
        manifest.check()?;
        if !self.owns_plugin(tenant, manifest.plugin).await? {
            return Err(RegistryError::UnknownPlugin(manifest.plugin));
        }
        self.check_room(tenant, function).await?;
        let stored = StoredVersion { created_unix_ms: unix_ms(), manifest };
        let version = self.write_version(tenant, function, &stored).await?;
        let by = By { key: by, plugin: stored.manifest.plugin };
        let life = self.note_version(tenant, function, version, by).await?.first;
        let StoredVersion { created_unix_ms, manifest } = stored;
        let manifest = Arc::new(manifest);
        let put = FunctionVersion { function: function.clone(), version, manifest, created_unix_ms, life };
        self.versions.insert((tenant.clone(), function.clone(), version), put.clone()).await;
        Ok(put)
    }

    async fn check_room(&self, tenant: &TenantId, function: &FunctionName) -> Result<(), RegistryError> {
        let Some(head) = self.head(tenant, function).await? else {
            if self.counts.are_fewer(&*self.store, &heads_prefix(tenant), FUNCTIONS_PER_TENANT_MAX).await? {
                return Ok(());
            }
            let (limit, max) = ("functions_per_tenant_max", FUNCTIONS_PER_TENANT_MAX);
            return Err(RegistryError::OverLimit { what: "the number of functions", limit, max });
        };
        if head.count() < VERSIONS_PER_FUNCTION_MAX && head.latest < u32::MAX - VERSIONS_PER_FUNCTION_MAX {
            return Ok(());
        }
        let (limit, max) = ("versions_per_function_max", VERSIONS_PER_FUNCTION_MAX as usize);
        Err(RegistryError::OverLimit { what: "the number of versions", limit, max })
    }

    /// Writes the manifest under the next number that nobody has taken. A number that was taken and not yet noted in the head
    /// (its writer is at work, or died) is passed over.
    async fn write_version(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        stored: &StoredVersion,
    ) -> Result<u32, RegistryError> {
        let value = record("manifest", stored)?;
        let mut version = self.head(tenant, function).await?.map_or(0, |head| head.latest);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            version = version.checked_add(1).ok_or_else(|| RegistryError::BadRecord(function.to_string()))?;
            match self.store.swap(&version_key(tenant, function, version), None, Some(value.clone())).await {
                Ok(_) => return Ok(version),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::contended(&version_key(tenant, function, version)).into())
    }

    async fn note_version(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        version: u32,
        by: By<'_>,
    ) -> Result<Head, RegistryError> {
        self.change_head(tenant, function, |head| {
            head.note(version, by);
            Ok(())
        })
        .await
    }

    /// The version that answers.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`].
    pub async fn get_live(&self, tenant: &TenantId, function: &FunctionName) -> Result<FunctionVersion, RegistryError> {
        let head = self.existing_head(tenant, function).await?;
        let live = head.live.ok_or_else(|| RegistryError::UnknownFunction(function.clone()))?;
        self.read_version(tenant, function, live, head.first).await
    }

    /// One version.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`], [`RegistryError::UnknownVersion`].
    pub async fn get_version(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        version: u32,
    ) -> Result<FunctionVersion, RegistryError> {
        let head = self.existing_head(tenant, function).await?;
        if !head.has(version) {
            return Err(RegistryError::UnknownVersion { function: function.clone(), version });
        }
        self.read_version(tenant, function, version, head.first).await
    }

    /// Every version, the oldest first. A number whose writer died is missing.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`].
    pub async fn versions(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
    ) -> Result<Vec<FunctionVersion>, RegistryError> {
        let head = self.existing_head(tenant, function).await?;
        let mut versions = Vec::new();
        for version in (head.first..=head.latest).filter(|version| head.has(*version)) {
            match self.read_version(tenant, function, version, head.first).await {
                Ok(found) => versions.push(found),
                Err(RegistryError::UnknownVersion { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(versions)
    }

    /// Which version is live, and which were.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`].
    pub async fn live(&self, tenant: &TenantId, function: &FunctionName) -> Result<Live, RegistryError> {
        let head = self.existing_head(tenant, function).await?;
        let live = head.live.ok_or_else(|| RegistryError::UnknownFunction(function.clone()))?;
        let changes = head.all_changes();
        let Head { latest, first: life, history, canary, shadow, .. } = head;
        Ok(Live { live, latest, life, history, canary, shadow, changes })
    }

    /// Makes a version live, a newer or an older one, on behalf of the key `by`. Requests in flight keep theirs. With
    /// `expect`, only if that version is live now: of two who roll back at once, one is refused. If it was the canary or the
    /// shadow, it is that no more.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`], [`RegistryError::UnknownVersion`], [`RegistryError::LiveChanged`].
    pub async fn promote(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        version: u32,
        expect: Option<u32>,
        by: &str,
    ) -> Result<FunctionVersion, RegistryError> {
        let promoted = self.get_version(tenant, function, version).await?;
        let plugin = promoted.manifest.plugin;
        self.change_head(tenant, function, |head| {
            head.expect(function, version, expect)?;
            if head.live != Some(version) {
                head.promote(version, By { key: by, plugin });
            }
            Ok(())
        })
        .await?;
        Ok(promoted)
    }

    /// Removes a function and its versions. Its numbers are not used again. The life that a successor of its name would begin.
    ///
    /// # Errors
    /// [`RegistryError::UnknownFunction`].
    pub async fn delete(&self, tenant: &TenantId, function: &FunctionName) -> Result<u32, RegistryError> {
        let mut removed = 0..=0;
        let head = self
            .change_head(tenant, function, |head| {
                if head.live.is_none() {
                    return Err(RegistryError::UnknownFunction(function.clone()));
                }
                removed = head.first..=head.latest;
                head.delete();
                Ok(())
            })
            .await?;
        for version in removed {
            let key = version_key(tenant, function, version);
            self.versions.invalidate(&(tenant.clone(), function.clone(), version)).await;
            if let Some((_, found)) = self.store.get(&key).await? {
                self.store.swap(&key, Some(found), None).await?;
            }
        }
        Ok(head.first)
    }

    /// The tenant's functions, by name.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub async fn list(&self, tenant: &TenantId) -> Result<Vec<FunctionInfo>, RegistryError> {
        let prefix = heads_prefix(tenant);
        let mut functions = Vec::new();
        for found in self.store.scan(&prefix).await? {
            let head: Head = read_record(&found.key, &found.value)?;
            let name = found.key.strip_prefix(&prefix).and_then(|name| name.parse().ok());
            let function = name.ok_or_else(|| RegistryError::BadRecord(found.key.clone()))?;
            if let Some(live) = head.live {
                functions.push(FunctionInfo { function, live, latest: head.latest });
            }
        }
        Ok(functions)
    }

    /// The life that a successor of a deleted function of this name would begin; `None` if there is one, or never was.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub(crate) async fn next_life(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
    ) -> Result<Option<u32>, RegistryError> {
        Ok(self.head(tenant, function).await?.filter(|head| head.live.is_none()).map(|head| head.first))
    }

    async fn head(&self, tenant: &TenantId, function: &FunctionName) -> Result<Option<Head>, RegistryError> {
        let key = head_key(tenant, function);
        let found = self.store.get(&key).await?;
        found.map(|(value, _)| read_record(&key, &value)).transpose()
    }

    async fn existing_head(&self, tenant: &TenantId, function: &FunctionName) -> Result<Head, RegistryError> {
        let head = self.head(tenant, function).await?.filter(|head| head.live.is_some());
        head.ok_or_else(|| RegistryError::UnknownFunction(function.clone()))
    }

    /// Reads, changes and swaps the head until no one came between; the new one.
    async fn change_head(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        mut change: impl FnMut(&mut Head) -> Result<(), RegistryError>,
    ) -> Result<Head, RegistryError> {
        let key = head_key(tenant, function);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let found = self.store.get(&key).await?;
            let (mut head, version) = match found {
                Some((value, version)) => (read_record(&key, &value)?, Some(version)),
                None => (Head::new(), None),
            };
            change(&mut head)?;
            let heads = match version {
                None => Some(self.counts.of(&*self.store, &heads_prefix(tenant)).await?),
                Some(_) => None,
            };
            match self.store.swap(&key, version, Some(record(&key, &head)?)).await {
                Err(StoreError::Conflict { .. }) => {}
                swapped => {
                    swapped?;
                    heads.iter().for_each(|heads| heads.one_more());
                    return Ok(head);
                }
            }
        }
        Err(StoreError::contended(&key).into())
    }

    async fn read_version(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        version: u32,
        life: u32,
    ) -> Result<FunctionVersion, RegistryError> {
        let cache_key = (tenant.clone(), function.clone(), version);
        if let Some(found) = self.versions.get(&cache_key).await {
            return Ok(found);
        }
        let key = version_key(tenant, function, version);
        let unknown = || RegistryError::UnknownVersion { function: function.clone(), version };
        let (value, _) = self.store.get(&key).await?.ok_or_else(unknown)?;
        // Before the time was noted, a record was the manifest alone.
        let stored = read_record::<StoredVersion>(&key, &value)
            .or_else(|_| read_record(&key, &value).map(|manifest| StoredVersion { created_unix_ms: 0, manifest }))?;
        let StoredVersion { created_unix_ms, manifest } = stored;
        let manifest = Arc::new(manifest);
        let found = FunctionVersion { function: function.clone(), version, manifest, created_unix_ms, life };
        self.versions.insert(cache_key, found.clone()).await;
        Ok(found)
    }
}

fn head_key(tenant: &TenantId, function: &FunctionName) -> String {
    format!("functions/{tenant}/{function}")
}

fn heads_prefix(tenant: &TenantId) -> String {
    format!("functions/{tenant}/")
}

fn version_key(tenant: &TenantId, function: &FunctionName, version: u32) -> String {
    format!("versions/{tenant}/{function}/{version:010}")
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn record(key: &str, value: &impl Serialize) -> Result<Bytes, RegistryError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|_| RegistryError::BadRecord(key.to_owned()))
}

fn read_record<T: serde::de::DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(value).map_err(|_| RegistryError::BadRecord(key.to_owned()))
}

#[cfg(test)]
mod tests;
