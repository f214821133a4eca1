//! Adapters that their owner lets other tenants read, and how a reader takes one under an alias of its own. Not here: whose an
//! adapter is (`owners`).
//!
//! What is shared is content, `adapter-shares/OWNER/DIGEST`, never "whatever the alias will name": new content is shared by saying so
//! again. A share is worth something only while its owner has the content under an alias, and goes with the last one. A reader's
//! alias says whom it is from, and each use asks again whether it still may; what is in flight goes on with its lease.
//!
//! Not being a reader and there being nothing are one answer, and nobody learns which tenants there are: whom an owner names is kept
//! as it is written, and an owner does not learn who took what.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use model::AdapterReport;
use serde::{Deserialize, Serialize};
use types::{AdapterAlias, Digest, ModuleSet, TenantId};

use super::owners::AliasRecord;
use super::{
    AdapterError, AdapterInfo, AdapterStore, Claims, Credential, License, SignatureError, SignaturePolicy,
    SignatureState, WHAT,
};
use crate::store::{SWAP_ATTEMPTS_MAX, Store, StoreError, Version};

/// How the source of a shared adapter begins; `OWNER/ALIAS` follows.
const SCHEME: &str = "tenon://";
/// Tenants that one share may name.
pub const READERS_MAX: usize = 100;
/// Adapters that one tenant may share.
const SHARES_PER_TENANT_MAX: usize = 1000;
/// Of an adapter whose licence nobody can say; to share it, its owner must.
const UNKNOWN_LICENSE: &str = "unknown";

/// Who may read a shared adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readers {
    /// All tenants of this host.
    Everyone,
    /// These. Whether there are such tenants is not looked at.
    Tenants(BTreeSet<TenantId>),
}

impl Readers {
    fn include(&self, tenant: &TenantId) -> bool {
        match self {
            Self::Everyone => true,
            Self::Tenants(tenants) => tenants.contains(tenant),
        }
    }
}

/// What an owner shares of its adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Under this name, and by its digest. The owner's other names for it are its own.
    pub alias: AdapterAlias,
    /// The content, which stays shared when the alias is moved, as long as another alias of the owner's names it.
    pub digest: Digest,
    /// What readers take it under.
    pub license: License,
    /// Who they are.
    pub readers: Readers,
}

/// Whose a reader's alias is by right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedBy {
    /// The tenant.
    #[serde(with = "name_text")]
    pub owner: TenantId,
    /// What the owner shared it as, or its digest if that names something else by now.
    pub name: String,
}

/// An adapter that a tenant may take.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedAdapter {
    /// Whose it is, under which name.
    pub from: SharedBy,
    /// Its content.
    pub digest: Digest,
    /// The largest rank of a module.
    pub rank: u32,
    /// What it acts on.
    pub modules: ModuleSet,
    /// Bytes of its canonical form.
    pub bytes: u64,
    /// What its owner says that it is licensed under.
    pub license: License,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShareRecord {
    #[serde(with = "name_text")]
    alias: AdapterAlias,
    license: License,
    /// `None` is everyone.
    readers: Option<BTreeSet<String>>,
}

/// The records.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    store: Arc<dyn Store>,
}

impl Shares {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    async fn get(&self, owner: &TenantId, digest: Digest) -> Result<Option<Share>, AdapterError> {
        let key = key(owner, digest);
        let found = self.store.get(&key).await?;
        found.map(|(value, _)| read(&key, digest, &value)).transpose()
    }

    /// What the owner lets the tenant read of this content.
    pub(super) async fn of(
        &self,
        owner: &TenantId,
        digest: Digest,
        reader: &TenantId,
    ) -> Result<Option<Share>, AdapterError> {
        let found = self.get(owner, digest).await?;
        Ok(found.filter(|share| owner != reader && share.readers.include(reader)))
    }

    /// The version that it has now.
    async fn set(&self, owner: &TenantId, share: &Share) -> Result<Version, AdapterError> {
        let key = key(owner, share.digest);
        let readers = match &share.readers {
            Readers::Everyone => None,
            Readers::Tenants(tenants) => Some(tenants.iter().map(ToString::to_string).collect()),
        };
        let record = ShareRecord { alias: share.alias.clone(), license: share.license.clone(), readers };
        let value: Bytes = serde_json::to_vec(&record).map_err(|_| AdapterError::BadRecord(key.clone()))?.into();
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let found = self.version(owner, share.digest).await?;
            if found.is_none() && self.store.scan(&format!("{PREFIX}{owner}/")).await?.len() >= SHARES_PER_TENANT_MAX {
                let (what, max) = ("the number of shared adapters", SHARES_PER_TENANT_MAX as u64);
                return Err(AdapterError::OverLimit { what, limit: "shares_per_tenant_max", max });
            }
            match self.store.swap(&key, found, Some(value.clone())).await {
                Err(StoreError::Conflict { .. }) => {}
                swapped => return Ok(swapped?),
            }
        }
        Err(StoreError::contended(&key).into())
    }

    /// Whether there was one.
    async fn remove(&self, owner: &TenantId, digest: Digest) -> Result<bool, AdapterError> {
        let key = key(owner, digest);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let Some(found) = self.version(owner, digest).await? else { return Ok(false) };
            match self.store.swap(&key, Some(found), None).await {
                Err(StoreError::Conflict { .. }) => {}
                swapped => return Ok(swapped.map(|_| true)?),
            }
        }
        Err(StoreError::contended(&key).into())
    }

    /// Of the record, if there is one.
    pub(super) async fn version(&self, owner: &TenantId, digest: Digest) -> Result<Option<Version>, AdapterError> {
        Ok(self.store.get(&key(owner, digest)).await?.map(|(_, version)| version))
    }

    /// Removes the record, if it is this one still.
    pub(super) async fn remove_version(
        &self,
        owner: &TenantId,
        digest: Digest,
        found: Version,
    ) -> Result<(), AdapterError> {
        match self.store.swap(&key(owner, digest), Some(found), None).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What others let the tenant read.
    async fn of_reader(&self, reader: &TenantId) -> Result<Vec<(TenantId, Share)>, AdapterError> {
        let mut shares = Vec::new();
        for found in self.store.scan(PREFIX).await? {
            let named = found.key.strip_prefix(PREFIX).and_then(|rest| rest.split_once('/'));
            let named = named.and_then(|(owner, digest)| Some((owner.parse().ok()?, digest.parse().ok()?)));
            let share = named.map(|(owner, digest)| Ok((owner, read(&found.key, digest, &found.value)?)));
            match share.unwrap_or_else(|| Err(AdapterError::BadRecord(found.key.clone()))) {
                Ok((owner, share)) if owner != *reader && share.readers.include(reader) => shares.push((owner, share)),
                Ok(_) => {}
                // One that its owner cannot be helped with here is not everybody's loss.
                Err(error) => tracing::warn!(%error, "a share is passed over"),
            }
        }
        Ok(shares)
    }
}

const PREFIX: &str = "adapter-shares/";

fn key(owner: &TenantId, digest: Digest) -> String {
    format!("{PREFIX}{owner}/{digest}")
}

fn read(key: &str, digest: Digest, value: &[u8]) -> Result<Share, AdapterError> {
    let bad = || AdapterError::BadRecord(key.to_owned());
    let ShareRecord { alias, license, readers } = serde_json::from_slice(value).map_err(|_| bad())?;
    let tenants = |names: BTreeSet<String>| names.iter().map(|name| name.parse()).collect::<Result<_, _>>();
    let readers = readers.map(tenants).transpose().map_err(|_| bad())?;
    Ok(Share { alias, digest, license, readers: readers.map_or(Readers::Everyone, Readers::Tenants) })
}

/// What a reader takes a shared adapter from.
pub(crate) fn source(owner: &TenantId, name: &str) -> String {
    format!("{SCHEME}{owner}/{name}")
}

/// Owner and name of a shared source; `None` for another kind of source.
fn parse(url: &str) -> Option<Result<(TenantId, &str), AdapterError>> {
    let (scheme, rest) = url.split_at_checked(SCHEME.len())?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return None;
    }
    let found = rest.split_once('/').and_then(|(owner, name)| Some((owner.parse().ok()?, name)));
    Some(
        found.ok_or(AdapterError::BadSource(
            "a shared adapter is tenon://OWNER/ALIAS, or its digest in place of the alias",
        )),
    )
}

impl AdapterStore {
    /// Lets other tenants read what the alias names now, in place of who could read it before. A licence must be known: the
    /// adapter's own, or `license` if it has none. One that was derived from what nobody has licensed has none to be given.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`]; [`AdapterError::Unlicensed`]; [`AdapterError::OtherLicense`]; [`AdapterError::SharedByOther`] for an
    /// alias of a shared adapter; [`AdapterError::OverLimit`] over [`READERS_MAX`] or too many shares;
    /// [`AdapterError::Revocation`].
    pub async fn share(
        &self,
        owner: &TenantId,
        alias: &AdapterAlias,
        readers: Readers,
        license: Option<License>,
    ) -> Result<Share, AdapterError> {
        if let Readers::Tenants(tenants) = &readers
            && tenants.len() > READERS_MAX
        {
            let (what, limit, max) = ("the number of readers", "readers_max", READERS_MAX as u64);
            return Err(AdapterError::OverLimit { what, limit, max });
        }
        let record = self.own(owner, alias).await?;
        self.revocations.check(WHAT, record.digest)?;
        let is_unknown =
            |license: &Option<License>| license.as_ref().is_some_and(|said| said.as_str() == UNKNOWN_LICENSE);
        if is_unknown(&record.license) || is_unknown(&license) {
            return Err(AdapterError::Unlicensed(alias.clone()));
        }
        let license = match (record.license, license) {
            (Some(known), Some(said)) if known != said => return Err(AdapterError::OtherLicense(known)),
            (Some(license), _) | (None, Some(license)) => license,
            (None, None) => return Err(AdapterError::Unlicensed(alias.clone())),
        };
        let share = Share { alias: alias.clone(), digest: record.digest, license, readers };
        let written = self.owners.shares.set(owner, &share).await?;
        // Looked for after it was written: whoever gives the adapter up later removes the share.
        if !self.owners.owns(owner, record.digest).await? {
            self.owners.shares.remove_version(owner, record.digest, written).await?;
            return Err(AdapterError::NotFound(alias.to_string()));
        }
        Ok(share)
    }

    /// Who may read what the alias names now.
    ///
    /// # Errors
    /// [`AdapterError::NotFound`]; [`AdapterError::SharedByOther`]; [`AdapterError::NotShared`] if nobody may.
    pub async fn share_of(&self, owner: &TenantId, alias: &AdapterAlias) -> Result<Share, AdapterError> {
        let record = self.own(owner, alias).await?;
        let found = self.owners.shares.get(owner, record.digest).await?;
        found.ok_or_else(|| AdapterError::NotShared(alias.clone()))
    }

    /// Lets nobody else read what the alias names any more. What is in flight ends as it began.
    ///
    /// # Errors
    /// As for [`Self::share_of`].
    pub async fn unshare(&self, owner: &TenantId, alias: &AdapterAlias) -> Result<(), AdapterError> {
        let record = self.own(owner, alias).await?;
        let removed = self.owners.shares.remove(owner, record.digest).await?;
        if removed { Ok(()) } else { Err(AdapterError::NotShared(alias.clone())) }
    }

    /// What others let the tenant read, by owner.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn shared_with(&self, reader: &TenantId) -> Result<Vec<SharedAdapter>, AdapterError> {
        let mut found = Vec::new();
        for (owner, share) in self.owners.shares.of_reader(reader).await? {
            if let Some((name, record)) = self.owners.shared(&owner, &share).await? {
                let (AliasRecord { rank, modules, bytes, .. }, Share { digest, license, .. }) = (record, share);
                found.push(SharedAdapter { from: SharedBy { owner, name }, digest, rank, modules, bytes, license });
            }
        }
        found.sort_by(|one, other| (&one.from.owner, &one.from.name).cmp(&(&other.from.owner, &other.from.name)));
        Ok(found)
    }

    /// Takes `tenon://OWNER/ALIAS` under an alias of the tenant's own; `None` if the source is of another kind. Where the tenant's
    /// adapters must be signed, it must have been when its owner added it, under a key that the tenant trusts.
    ///
    /// # Errors
    /// [`AdapterError::SharedNotFound`], [`AdapterError::BadSource`], [`AdapterError::DigestMismatch`], [`AdapterError::Signature`],
    /// [`AdapterError::OverLimit`], [`AdapterError::Revocation`].
    pub(super) async fn take_shared(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        url: &str,
        credential: Option<&Credential>,
        claims: &Claims,
    ) -> Result<Option<AdapterInfo>, AdapterError> {
        let Some(named) = parse(url) else { return Ok(None) };
        let (owner, name) = named?;
        if credential.is_some() {
            return Err(AdapterError::BadSource("a secret is of no use for this source; leave it out"));
        }
        if claims.license.is_some() {
            return Err(AdapterError::BadSource(
                "what a shared adapter is licensed under is its owner's to say; leave it out",
            ));
        }
        let (name, record, license) = self.readable(tenant, &owner, name).await?;
        let digest = record.digest;
        if let Some(expected) = claims.digest.filter(|expected| *expected != digest) {
            return Err(AdapterError::DigestMismatch { expected, found: digest });
        }
        self.check_signed(tenant, &record.signature).await?;
        self.check_room(tenant, alias).await?;
        self.revocations.check(WHAT, digest)?;
        // What its owner made it of, and wrote beside it, stays with its owner.
        let report =
            record.report.map(|report| AdapterReport { base_model_name: None, warnings: Vec::new(), ..report });
        let record = AliasRecord {
            report,
            license: Some(license),
            lineage: None,
            shared_by: Some(SharedBy { owner, name }),
            tags: BTreeSet::new(),
            ..record
        };
        Ok(Some(self.name(tenant, alias, record).await?))
    }

    /// What the owner shares with the tenant under this name. All that it could fail for is one answer, after as many looks
    /// into the store.
    async fn readable(
        &self,
        tenant: &TenantId,
        owner: &TenantId,
        name: &str,
    ) -> Result<(String, AliasRecord, License), AdapterError> {
        let (digest, alias) = match name.parse() {
            Ok(digest) => (Some(digest), None),
            Err(_) => {
                let found = self.owners.find(owner, name).await?.filter(|(_, record)| record.shared_by.is_none());
                found.map_or((None, None), |(alias, record)| (Some(record.digest), Some(alias)))
            }
        };
        let none = Digest::from_bytes([0; 32]);
        let share = self.owners.shares.of(owner, digest.unwrap_or(none), tenant).await?;
        let share = share.filter(|share| alias.is_none_or(|alias| alias == share.alias));
        let share = share.ok_or(AdapterError::SharedNotFound)?;
        let found = self.owners.shared(owner, &share).await?;
        let (name, record) = found.ok_or(AdapterError::SharedNotFound)?;
        Ok((name, record, share.license))
    }

    async fn check_signed(&self, tenant: &TenantId, signature: &SignatureState) -> Result<(), AdapterError> {
        let signers = self.signers.of(tenant).await?;
        if signers.policy != SignaturePolicy::Required {
            return Ok(());
        }
        match signature {
            SignatureState::Signed { key } if signers.keys.iter().any(|trusted| trusted.id() == key) => Ok(()),
            SignatureState::Signed { .. } => Err(SignatureError::Untrusted(signers.keys.len()).into()),
            SignatureState::Unsigned | SignatureState::Unchecked => Err(SignatureError::Required.into()),
        }
    }

    /// What the alias names, which must be the tenant's own to share.
    async fn own(&self, owner: &TenantId, alias: &AdapterAlias) -> Result<AliasRecord, AdapterError> {
        let found = self.owners.find(owner, alias.as_str()).await?;
        let (_, record) = found.ok_or_else(|| AdapterError::NotFound(alias.to_string()))?;
        match record.shared_by {
            Some(SharedBy { owner, .. }) => Err(AdapterError::SharedByOther(owner)),
            None => Ok(record),
        }
    }
}

mod name_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(name: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&name.to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, T: std::str::FromStr>(deserializer: D) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(|_| de::Error::custom("not a name"))
    }
}

#[cfg(test)]
mod tests;
