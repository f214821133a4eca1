//! The names that a request may use, and the content behind them: looked up once, when it begins. Not here: who granted them
//! (`invoke/grants.rs`), and whose an adapter is (`owners`).

use std::collections::{HashMap, HashSet};

use types::{AdapterAlias, Digest, TenantId};

use super::owners::AliasRecord;
use super::{AdapterError, AdapterStore, SharedBy};

/// Up to here names are looked up one by one; beyond, one listing is cheaper.
const RESOLVED_ONE_BY_ONE_MAX: usize = 16;

/// Names that were resolved for one request of one tenant: the proof of the right to them that the request goes on with. Not to be kept
/// longer than the request.
#[derive(Clone, Debug)]
pub struct ResolvedAdapters {
    pub(super) tenant: TenantId,
    pub(super) digests: HashMap<String, Digest>,
    /// Of those that are other tenants'.
    pub(super) owners: HashMap<Digest, TenantId>,
    /// Of each content, its length as it is stored.
    pub(super) bytes: HashMap<Digest, u64>,
}

impl ResolvedAdapters {
    /// The content behind one of the names.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Digest> {
        self.digests.get(name).copied()
    }

    /// Whose those are that other tenants share.
    #[must_use]
    pub const fn owners(&self) -> &HashMap<Digest, TenantId> {
        &self.owners
    }

    /// Bytes of a content as it is stored.
    #[must_use]
    pub fn bytes(&self, digest: Digest) -> Option<u64> {
        self.bytes.get(&digest).copied()
    }

    fn new(tenant: &TenantId, found: Vec<(String, AliasRecord)>) -> Self {
        let own = found.iter().filter(|(_, record)| record.shared_by.is_none());
        let own: HashSet<Digest> = own.map(|(_, record)| record.digest).collect();
        let owner = |(_, record): &(String, AliasRecord)| {
            let SharedBy { owner, .. } = record.shared_by.as_ref().filter(|_| !own.contains(&record.digest))?;
            Some((record.digest, owner.clone()))
        };
        let owners = found.iter().filter_map(owner).collect();
        let bytes = found.iter().map(|(_, record)| (record.digest, record.bytes)).collect();
        let digests = found.into_iter().map(|(name, record)| (name, record.digest)).collect();
        Self { tenant: tenant.clone(), digests, owners, bytes }
    }

    /// The names and their content, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Digest)> {
        self.digests.iter().map(|(name, digest)| (name.as_str(), *digest))
    }
}

impl AdapterStore {
    /// The content behind an alias or digest, if the tenant may use it.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn resolve(&self, tenant: &TenantId, alias_or_digest: &str) -> Result<Option<Digest>, AdapterError> {
        Ok(self.owners.find_usable(tenant, alias_or_digest).await?.map(|(_, record)| record.digest))
    }

    /// The same for many names at once, as what one request may use. Names that the tenant may not use are missing from it.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn resolve_all(&self, tenant: &TenantId, names: &[String]) -> Result<ResolvedAdapters, AdapterError> {
        let mut found = Vec::with_capacity(names.len());
        if names.len() <= RESOLVED_ONE_BY_ONE_MAX {
            for name in names {
                found.extend(self.owners.find_usable(tenant, name).await?.map(|(_, record)| (name.clone(), record)));
            }
            return Ok(ResolvedAdapters::new(tenant, found));
        }
        let all: HashMap<_, _> = self.owners.list(tenant).await?.into_iter().collect();
        let own = all.values().filter(|record| record.shared_by.is_none());
        let own: HashMap<Digest, &AliasRecord> = own.map(|record| (record.digest, record)).collect();
        for name in names {
            if let Some(record) = name.parse().ok().and_then(|digest: Digest| own.get(&digest)) {
                found.push((name.clone(), (*record).clone()));
                continue;
            }
            let record = match name.parse::<AdapterAlias>().ok().and_then(|alias| all.get(&alias)) {
                Some(record) if self.owners.is_usable(tenant, record).await? => Some(record.clone()),
                Some(_) => None,
                None => self.owners.find_usable(tenant, name).await?.map(|(_, record)| record),
            };
            found.extend(record.map(|record| (name.clone(), record)));
        }
        Ok(ResolvedAdapters::new(tenant, found))
    }
}
