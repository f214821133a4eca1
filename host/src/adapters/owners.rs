//! Whose an adapter is, and under which alias. Not here: its bytes.
//!
//! The truth is one record per alias, `adapters/TENANT/ALIAS`. A tenant owns a digest if one of its aliases names it; the index
//! `adapter-owners/TENANT/DIGEST/ALIAS` only says which alias to look at, and is believed if the alias agrees.
//!
//! An index entry is written before its alias is set, and removed after the alias was moved away, against the version that was read
//! before: whoever sets the alias again in between has changed that version, so the entry of a set alias is never lost.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use model::{AdapterReport, CanonicalAdapter};
use serde::{Deserialize, Serialize};
use types::{AdapterAlias, Digest, Module, ModuleSet, TenantId};

use super::shares::{Share, SharedBy, Shares};
use super::{AdapterError, AdapterTag, License, Lineage, SignatureState};
use crate::registry::digest_text;
use crate::store::{Counts, SWAP_ATTEMPTS_MAX, Store, StoreError, Version};

/// What an alias names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AliasRecord {
    #[serde(with = "digest_text")]
    pub(super) digest: Digest,
    pub(super) rank: u32,
    #[serde(with = "module_names")]
    pub(super) modules: ModuleSet,
    pub(super) bytes: u64,
    /// Of the upload that set this alias: the content decides all but the claimed base and the warnings. The first version
    /// wrote none.
    #[serde(default)]
    pub(super) report: Option<AdapterReport>,
    /// Of the same upload.
    #[serde(default)]
    pub(super) signature: SignatureState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) license: Option<License>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lineage: Option<Lineage>,
    /// Of an adapter that is another tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shared_by: Option<SharedBy>,
    /// The alias's own, whatever it names.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) tags: BTreeSet<AdapterTag>,
}

impl AliasRecord {
    /// Without a signature, and without what its owner says of it.
    pub(super) fn of(adapter: &CanonicalAdapter) -> Self {
        let CanonicalAdapter { bytes, digest, rank, modules, report } = adapter;
        Self {
            digest: *digest,
            rank: *rank,
            modules: *modules,
            bytes: bytes.len() as u64,
            report: Some(report.clone()),
            signature: SignatureState::Unsigned,
            license: None,
            lineage: None,
            shared_by: None,
            tags: BTreeSet::new(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Owners {
    store: Arc<dyn Store>,
    counts: Counts,
    pub(super) shares: Shares,
}

impl Owners {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { shares: Shares::new(Arc::clone(&store)), counts: Counts::new(), store }
    }

    /// Makes the alias name this record; the digest that it named before, if it was another one.
    pub(super) async fn set(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        record: &AliasRecord,
    ) -> Result<Option<Digest>, AdapterError> {
        let key = alias_key(tenant, alias);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let found = self.read(&key).await?;
            let tags = found.as_ref().map(|(found, _)| found.tags.clone()).unwrap_or_default();
            let record = &AliasRecord { tags, ..record.clone() };
            let value = to_bytes(&key, record)?;
            self.touch_index(tenant, record.digest, alias).await?;
            let (before, expected) = match found {
                Some((found, _)) if found == *record => return Ok(None),
                Some((found, version)) => (Some(found.digest), Some(version)),
                None => (None, None),
            };
            let before = before.filter(|before| *before != record.digest);
            let stale = match before {
                Some(before) => self.index_version(tenant, before, alias).await?,
                None => None,
            };
            match self.store.swap(&key, expected, Some(value)).await {
                Ok(_) => {}
                Err(StoreError::Conflict { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            if let Some(before) = before {
                self.drop_index(tenant, before, alias, stale).await?;
            }
            return Ok(before);
        }
        Err(StoreError::contended(&key).into())
    }

    /// Gives an alias these tags; what it is then, if it is there.
    pub(super) async fn set_tags(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        tags: BTreeSet<AdapterTag>,
    ) -> Result<Option<AliasRecord>, AdapterError> {
        let key = alias_key(tenant, alias);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let Some((found, version)) = self.read(&key).await? else { return Ok(None) };
            let record = AliasRecord { tags: tags.clone(), ..found };
            match self.store.swap(&key, Some(version), Some(to_bytes(&key, &record)?)).await {
                Ok(_) => return Ok(Some(record)),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::contended(&key).into())
    }

    /// Removes an alias; the digest that it named.
    pub(super) async fn remove(&self, tenant: &TenantId, alias: &AdapterAlias) -> Result<Option<Digest>, AdapterError> {
        let key = alias_key(tenant, alias);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let Some((found, version)) = self.read(&key).await? else { return Ok(None) };
            let stale = self.index_version(tenant, found.digest, alias).await?;
            match self.store.swap(&key, Some(version), None).await {
                Ok(_) => {}
                Err(StoreError::Conflict { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            self.drop_index(tenant, found.digest, alias, stale).await?;
            return Ok(Some(found.digest));
        }
        Err(StoreError::contended(&key).into())
    }

    /// By alias or digest. An alias is found also when it may not be used any more ([`Self::is_usable`]).
    pub(super) async fn find(
        &self,
        tenant: &TenantId,
        alias_or_digest: &str,
    ) -> Result<Option<(AdapterAlias, AliasRecord)>, AdapterError> {
        if let Ok(digest) = alias_or_digest.parse() {
            return self.find_digest(tenant, digest).await;
        }
        let Ok(alias) = alias_or_digest.parse() else { return Ok(None) };
        let found = self.read(&alias_key(tenant, &alias)).await?;
        Ok(found.map(|(record, _)| (alias, record)))
    }

    /// The same, if it may be used.
    pub(super) async fn find_usable(
        &self,
        tenant: &TenantId,
        alias_or_digest: &str,
    ) -> Result<Option<(AdapterAlias, AliasRecord)>, AdapterError> {
        match self.find(tenant, alias_or_digest).await? {
            Some(found) if self.is_usable(tenant, &found.1).await? => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// Whether what an alias of the tenant names is its own, or shared with it still.
    pub(super) async fn is_usable(&self, tenant: &TenantId, record: &AliasRecord) -> Result<bool, AdapterError> {
        let Some(SharedBy { owner, .. }) = &record.shared_by else { return Ok(true) };
        match self.shares.of(owner, record.digest, tenant).await? {
            Some(share) => Ok(self.shared(owner, &share).await?.is_some()),
            None => Ok(false),
        }
    }

    /// What is shared, if its owner has it still, and what it is called: as it was shared, or by its digest.
    pub(super) async fn shared(
        &self,
        owner: &TenantId,
        share: &Share,
    ) -> Result<Option<(String, AliasRecord)>, AdapterError> {
        let found = self.read(&alias_key(owner, &share.alias)).await?.map(|(record, _)| record);
        let is_it = |record: &AliasRecord| record.digest == share.digest && record.shared_by.is_none();
        match found.filter(is_it) {
            Some(record) => Ok(Some((share.alias.to_string(), record))),
            None => {
                let found = self.find_own(owner, share.digest).await?;
                Ok(found.map(|(_, record)| (share.digest.to_string(), record)))
            }
        }
    }

    /// Whether the tenant has this content as its own.
    pub(super) async fn owns(&self, tenant: &TenantId, digest: Digest) -> Result<bool, AdapterError> {
        Ok(self.find_own(tenant, digest).await?.is_some())
    }

    /// Ends the tenant's share of what it does not own; one that was written meanwhile stays.
    pub(super) async fn end_stale_share(&self, tenant: &TenantId, digest: Digest) -> Result<(), AdapterError> {
        match self.shares.version(tenant, digest).await? {
            Some(found) if !self.owns(tenant, digest).await? => self.shares.remove_version(tenant, digest, found).await,
            _ => Ok(()),
        }
    }

    /// An alias of the tenant that names this digest, which it may use: its own, if it has one.
    pub(super) async fn find_digest(
        &self,
        tenant: &TenantId,
        digest: Digest,
    ) -> Result<Option<(AdapterAlias, AliasRecord)>, AdapterError> {
        let mut shared = Vec::new();
        let own = self.find_named(tenant, digest, &mut shared).await?;
        if own.is_some() {
            return Ok(own);
        }
        for (alias, record) in shared {
            if self.is_usable(tenant, &record).await? {
                return Ok(Some((alias, record)));
            }
        }
        Ok(None)
    }

    /// An alias of the tenant that names this digest as its own.
    pub(super) async fn find_own(
        &self,
        tenant: &TenantId,
        digest: Digest,
    ) -> Result<Option<(AdapterAlias, AliasRecord)>, AdapterError> {
        self.find_named(tenant, digest, &mut Vec::new()).await
    }

    /// An alias of the tenant that names this digest as its own; those that were looked at before and do not are added to `shared`.
    async fn find_named(
        &self,
        tenant: &TenantId,
        digest: Digest,
        shared: &mut Vec<(AdapterAlias, AliasRecord)>,
    ) -> Result<Option<(AdapterAlias, AliasRecord)>, AdapterError> {
        let prefix = format!("adapter-owners/{tenant}/{digest}/");
        for entry in self.store.scan(&prefix).await? {
            let bad = || AdapterError::BadRecord(entry.key.clone());
            let alias: AdapterAlias =
                entry.key.strip_prefix(&prefix).and_then(|name| name.parse().ok()).ok_or_else(bad)?;
            let found = self.read(&alias_key(tenant, &alias)).await?;
            match found.filter(|(record, _)| record.digest == digest) {
                Some((record, _)) if record.shared_by.is_none() => return Ok(Some((alias, record))),
                Some((record, _)) => shared.push((alias, record)),
                None => {}
            }
        }
        Ok(None)
    }

    /// The tenant's aliases, in order.
    pub(super) async fn list(&self, tenant: &TenantId) -> Result<Vec<(AdapterAlias, AliasRecord)>, AdapterError> {
        let prefix = format!("adapters/{tenant}/");
        let mut aliases = Vec::new();
        for found in self.store.scan(&prefix).await? {
            let bad = || AdapterError::BadRecord(found.key.clone());
            let alias = found.key.strip_prefix(&prefix).and_then(|name| name.parse().ok()).ok_or_else(bad)?;
            aliases.push((alias, from_bytes(&found.key, &found.value)?));
        }
        Ok(aliases)
    }

    /// Whether the tenant has fewer aliases than this. The index has an entry for each at least, and is small, where the records
    /// of thousands of aliases are megabytes.
    pub(super) async fn has_room(&self, tenant: &TenantId, aliases_max: usize) -> Result<bool, AdapterError> {
        let indexed = self.counts.are_fewer(&*self.store, &index_prefix(tenant), aliases_max).await?;
        Ok(indexed || self.list(tenant).await?.len() < aliases_max)
    }

    async fn read(&self, key: &str) -> Result<Option<(AliasRecord, Version)>, AdapterError> {
        let found = self.store.get(key).await?;
        found.map(|(value, version)| Ok((from_bytes(key, &value)?, version))).transpose()
    }

    /// Writes the entry, also when it is there: its version must change.
    async fn touch_index(&self, tenant: &TenantId, digest: Digest, alias: &AdapterAlias) -> Result<(), AdapterError> {
        let key = index_key(tenant, digest, alias);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let version = self.index_version(tenant, digest, alias).await?;
            let count = self.counts.of(&*self.store, &index_prefix(tenant)).await?;
            match self.store.swap(&key, version, Some(Bytes::from_static(b"{}"))).await {
                Err(StoreError::Conflict { .. }) => {}
                swapped => {
                    swapped?;
                    version.is_none().then(|| count.one_more());
                    return Ok(());
                }
            }
        }
        Err(StoreError::contended(&key).into())
    }

    async fn index_version(
        &self,
        tenant: &TenantId,
        digest: Digest,
        alias: &AdapterAlias,
    ) -> Result<Option<Version>, AdapterError> {
        Ok(self.store.get(&index_key(tenant, digest, alias)).await?.map(|(_, version)| version))
    }

    /// Leaves an entry that was touched since: its alias was set again.
    async fn drop_index(
        &self,
        tenant: &TenantId,
        digest: Digest,
        alias: &AdapterAlias,
        stale: Option<Version>,
    ) -> Result<(), AdapterError> {
        let Some(stale) = stale else { return Ok(()) };
        match self.store.swap(&index_key(tenant, digest, alias), Some(stale), None).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn alias_key(tenant: &TenantId, alias: &AdapterAlias) -> String {
    format!("adapters/{tenant}/{alias}")
}

fn index_prefix(tenant: &TenantId) -> String {
    format!("adapter-owners/{tenant}/")
}

fn index_key(tenant: &TenantId, digest: Digest, alias: &AdapterAlias) -> String {
    format!("adapter-owners/{tenant}/{digest}/{alias}")
}

fn to_bytes(key: &str, record: &AliasRecord) -> Result<Bytes, AdapterError> {
    serde_json::to_vec(record).map(Bytes::from).map_err(|_| AdapterError::BadRecord(key.to_owned()))
}

fn from_bytes(key: &str, value: &[u8]) -> Result<AliasRecord, AdapterError> {
    serde_json::from_slice(value).map_err(|_| AdapterError::BadRecord(key.to_owned()))
}

mod module_names {
    use super::{Module, ModuleSet};
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(modules: &ModuleSet, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(modules.iter().map(Module::name))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ModuleSet, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        let module = |name: &String| Module::from_name(name).ok_or_else(|| de::Error::custom("not a module"));
        names.iter().map(module).collect()
    }
}

#[cfg(test)]
mod tests {
    use model::AdapterKind;

    use super::*;
    use crate::store::memory::MemoryStore;

    fn record(text: &str) -> AliasRecord {
        let modules = ModuleSet::EMPTY.with(Module::Q).with(Module::Down);
        let report = AdapterReport {
            kind: AdapterKind::Alora,
            invocation_tokens: vec![1, 520],
            modules: Vec::new(),
            dtypes: vec!["f32".into()],
            parameters: 10,
            base_model_name: Some(text.to_owned()),
            base_is_named: false,
            warnings: Vec::new(),
        };
        let signature = SignatureState::Signed { key: text.to_owned() };
        AliasRecord {
            digest: Digest::of(text.as_bytes()),
            rank: 8,
            modules,
            bytes: 10,
            report: Some(report),
            signature,
            license: None,
            lineage: None,
            shared_by: None,
            tags: BTreeSet::new(),
        }
    }

    fn owners() -> (Owners, TenantId, [AdapterAlias; 2]) {
        let alias = |name: &str| name.parse().expect("a name");
        (Owners::new(Arc::new(MemoryStore::default())), "acme".parse().expect("a name"), [alias("a"), alias("b")])
    }

    #[tokio::test]
    async fn an_alias_moves_and_ownership_with_it() {
        let (owners, acme, [a, b]) = owners();
        let (one, two) = (record("one"), record("two"));
        let owned =
            async |record: &AliasRecord| owners.find_digest(&acme, record.digest).await.expect("find").is_some();
        assert_eq!(owners.set(&acme, &a, &one).await.expect("set"), None);
        assert_eq!(owners.set(&acme, &a, &one).await.expect("again"), None);
        assert_eq!(owners.set(&acme, &b, &one).await.expect("set"), None);
        assert_eq!(owners.set(&acme, &a, &two).await.expect("move"), Some(one.digest));
        assert!(owned(&one).await && owned(&two).await);
        assert_eq!(owners.find(&acme, "a").await.expect("find"), Some((a.clone(), two.clone())));
        assert_eq!(owners.find(&acme, &one.digest.to_string()).await.expect("find"), Some((b.clone(), one.clone())));
        assert_eq!(owners.remove(&acme, &b).await.expect("remove"), Some(one.digest));
        assert!(!owned(&one).await && owned(&two).await);
        assert_eq!(owners.remove(&acme, &b).await.expect("remove"), None);
        assert_eq!(owners.list(&acme).await.expect("list"), [(a, two)]);
        for name in ["none", "", "../a", "a/b"] {
            assert_eq!(owners.find(&acme, name).await.expect("find"), None, "{name}");
        }
    }

    #[tokio::test]
    async fn a_digest_is_not_a_permission() {
        let (owners, acme, [a, _]) = owners();
        let other: TenantId = "other".parse().expect("a name");
        let one = record("one");
        owners.set(&acme, &a, &one).await.expect("set");
        for name in ["a", &one.digest.to_string(), &Digest::of(b"nobody's").to_string()] {
            assert_eq!(owners.find(&other, name).await.expect("find"), None);
        }
        assert_eq!(owners.remove(&other, &a).await.expect("remove"), None);
        assert!(owners.find(&acme, "a").await.expect("find").is_some());
        assert!(owners.list(&other).await.expect("list").is_empty());
    }

    #[tokio::test]
    async fn an_index_entry_without_its_alias_is_not_believed() {
        let (owners, acme, [a, _]) = owners();
        let one = record("one");
        owners.touch_index(&acme, one.digest, &a).await.expect("a writer that died here");
        assert_eq!(owners.find_digest(&acme, one.digest).await.expect("find"), None);
        owners.set(&acme, &a, &record("two")).await.expect("set");
        assert_eq!(owners.find_digest(&acme, one.digest).await.expect("find"), None);
    }

    #[tokio::test]
    async fn only_aliases_count_against_their_number() {
        let (owners, acme, [a, b]) = owners();
        let has_room = async |max| owners.has_room(&acme, max).await.expect("count");
        assert!(!has_room(0).await && has_room(1).await);
        owners.touch_index(&acme, record("one").digest, &b).await.expect("a writer that died here");
        assert!(has_room(1).await, "an entry without its alias takes no room");
        owners.set(&acme, &a, &record("one")).await.expect("set");
        assert!(!has_room(1).await && has_room(2).await);
        owners.set(&acme, &b, &record("one")).await.expect("set");
        assert!(!has_room(2).await && has_room(3).await, "two aliases of one digest are two");
    }

    #[tokio::test]
    async fn an_entry_that_was_touched_again_stays() {
        let (owners, acme, [a, _]) = owners();
        let one = record("one");
        owners.set(&acme, &a, &one).await.expect("set");
        let stale = owners.index_version(&acme, one.digest, &a).await.expect("read");
        owners.remove(&acme, &a).await.expect("remove");
        owners.set(&acme, &a, &one).await.expect("set again");
        owners.drop_index(&acme, one.digest, &a, stale).await.expect("too late is no error");
        assert!(owners.find_digest(&acme, one.digest).await.expect("find").is_some());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn races_leave_alias_and_index_in_step() {
        let (owners, acme, [a, _]) = owners();
        let owners = Arc::new(owners);
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let (owners, acme, a) = (Arc::clone(&owners), acme.clone(), a.clone());
                tokio::spawn(async move {
                    for step in 0..50 {
                        if (task + step) % 3 == 0 {
                            owners.remove(&acme, &a).await.expect("remove");
                        } else {
                            owners.set(&acme, &a, &record(["one", "two"][step % 2])).await.expect("set");
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic");
        }
        for text in ["one", "two"] {
            let named = owners.find(&acme, "a").await.expect("find").is_some_and(|(_, found)| found == record(text));
            let owned = owners.find_digest(&acme, record(text).digest).await.expect("find").is_some();
            assert_eq!(named, owned, "{text}");
        }
    }
}
