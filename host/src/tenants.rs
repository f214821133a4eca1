//! Tenants and their API keys: who is asking, and what that key may do.
//!
//! Only a keyed hash of a key's secret is at rest. Not here: which route needs which right (`http`), and what a tenant owns
//! (`registry`, `adapters`).

mod dev_key;
mod error;
mod rights;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use types::{Digest, TenantId};
use zeroize::Zeroizing;

use crate::store::{SWAP_ATTEMPTS_MAX, Store, StoreError};

pub use error::TenantError;
pub use rights::{Right, Rights, RightsError};

/// Keys of one tenant, the revoked ones included.
pub const KEYS_PER_TENANT_MAX: usize = 1000;
/// Bytes of a key's label.
pub const LABEL_BYTES_MAX: usize = 200;

const SECRET_DOMAIN: &str = "tenon 2026-11 api key secret";
const SECRET_BYTES: usize = 32;
/// `tk_`, 26 characters of identifier, `_`, 64 hexadecimal digits.
const KEY_TEXT_BYTES: usize = 3 + 26 + 1 + 2 * SECRET_BYTES;

/// The public half of a key: sortable by time of creation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for KeyId {
    type Err = TenantError;

    fn from_str(text: &str) -> Result<Self, TenantError> {
        let character_ok = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
        let ok = text.len() == 26 && text.bytes().all(character_ok);
        if ok { Ok(Self(text.to_owned())) } else { Err(TenantError::BadKeyId) }
    }
}

/// A key that was just made. The text is shown once and kept nowhere.
pub struct NewKey {
    /// Its identifier.
    pub id: KeyId,
    /// `tk_<id>_<secret>`.
    pub text: Zeroizing<String>,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The owner of the key.
    pub tenant: TenantId,
    /// The key.
    pub key_id: KeyId,
    /// What it may do.
    pub rights: Rights,
}

/// A key as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its identifier.
    pub id: KeyId,
    /// Its owner.
    pub tenant: TenantId,
    /// What it may do.
    pub rights: Rights,
    /// What it is for.
    pub label: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
    /// When it was revoked, in the same measure.
    pub revoked_unix_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantRecord {
    created_unix_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    tenant: String,
    rights: Rights,
    label: String,
    secret_hash: String,
    created_unix_ms: u64,
    revoked_unix_ms: Option<u64>,
}

/// Tenants and keys.
#[derive(Clone, Debug)]
pub struct Tenants {
    store: Arc<dyn Store>,
}

impl Tenants {
    /// Over a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Makes a tenant.
    ///
    /// # Errors
    /// [`TenantError::TenantExists`].
    pub async fn create_tenant(&self, tenant: &TenantId) -> Result<(), TenantError> {
        let value = record(&TenantRecord { created_unix_ms: unix_ms() })?;
        match self.store.swap(&tenant_key(tenant), None, Some(value)).await {
            Ok(_) => Ok(()),
            Err(StoreError::Conflict { .. }) => Err(TenantError::TenantExists(tenant.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// Every tenant, by name.
    ///
    /// # Errors
    /// [`TenantError::Store`].
    pub async fn list_tenants(&self) -> Result<Vec<TenantId>, TenantError> {
        let found = self.store.scan("tenants/").await?;
        let name = |key: &str| key.strip_prefix("tenants/").and_then(|name| name.parse().ok());
        found.iter().map(|found| name(&found.key).ok_or_else(|| TenantError::BadRecord(found.key.clone()))).collect()
    }

    /// Makes a key. Its text is in the answer and nowhere else.
    ///
    /// # Errors
    /// [`TenantError::UnknownTenant`], [`TenantError::OverLimit`].
    pub async fn create_key(&self, tenant: &TenantId, rights: Rights, label: &str) -> Result<NewKey, TenantError> {
        if label.len() > LABEL_BYTES_MAX {
            let (limit, max) = ("key_label_bytes_max", LABEL_BYTES_MAX);
            return Err(TenantError::OverLimit { what: "a key's label", limit, max });
        }
        if self.store.get(&tenant_key(tenant)).await?.is_none() {
            return Err(TenantError::UnknownTenant(tenant.clone()));
        }
        if self.list_keys(Some(tenant)).await?.len() >= KEYS_PER_TENANT_MAX {
            let (limit, max) = ("keys_per_tenant_max", KEYS_PER_TENANT_MAX);
            return Err(TenantError::OverLimit { what: "the number of keys", limit, max });
        }
        let id = new_key_id()?;
        let secret = new_secret()?;
        let value = record(&KeyRecord {
            tenant: tenant.to_string(),
            rights,
            label: label.to_owned(),
            secret_hash: secret_hash(id.as_str(), &secret).to_string(),
            created_unix_ms: unix_ms(),
            revoked_unix_ms: None,
        })?;
        self.store.swap(&key_key(&id), None, Some(value)).await?;
        let text = Zeroizing::new(format!("tk_{id}_{}", *secret));
        Ok(NewKey { id, text })
    }

    /// Revokes a key at once; again is no error. With a tenant, only that tenant's keys are found.
    ///
    /// # Errors
    /// [`TenantError::UnknownKey`].
    pub async fn revoke_key(&self, within: Option<&TenantId>, id: &KeyId) -> Result<(), TenantError> {
        let unknown = || TenantError::UnknownKey(id.clone());
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let (value, version) = self.store.get(&key_key(id)).await?.ok_or_else(unknown)?;
            let mut key: KeyRecord = read_record(&value, id)?;
            if within.is_some_and(|tenant| tenant.as_str() != key.tenant) {
                return Err(unknown());
            }
            if key.revoked_unix_ms.is_some() {
                return Ok(());
            }
            key.revoked_unix_ms = Some(unix_ms());
            match self.store.swap(&key_key(id), Some(version), Some(record(&key)?)).await {
                Err(StoreError::Conflict { .. }) => {}
                swapped => return Ok(swapped.map(|_| ())?),
            }
        }
        Err(StoreError::contended(&key_key(id)).into())
    }

    /// The keys of one tenant or of all, the oldest first, revoked ones included.
    ///
    /// # Errors
    /// [`TenantError::Store`], [`TenantError::BadRecord`].
    pub async fn list_keys(&self, within: Option<&TenantId>) -> Result<Vec<KeyInfo>, TenantError> {
        let mut keys = Vec::new();
        for found in self.store.scan("keys/").await? {
            let bad = || TenantError::BadRecord(found.key.clone());
            let id: KeyId = found.key.strip_prefix("keys/").ok_or_else(bad)?.parse().map_err(|_| bad())?;
            let key: KeyRecord = read_record(&found.value, &id)?;
            if within.is_some_and(|tenant| tenant.as_str() != key.tenant) {
                continue;
            }
            let tenant = key.tenant.parse().map_err(|_| bad())?;
            let (created_unix_ms, revoked_unix_ms) = (key.created_unix_ms, key.revoked_unix_ms);
            let (rights, label) = (key.rights, key.label);
            keys.push(KeyInfo { id, tenant, rights, label, created_unix_ms, revoked_unix_ms });
        }
        Ok(keys)
    }

    /// Whose key this is, if it is one and was not revoked. Every wrong key of the right form takes the same path, and the secret
    /// is compared in constant time.
    ///
    /// # Errors
    /// [`TenantError::Store`], [`TenantError::BadRecord`]: the host failed, which says nothing about the key.
    pub async fn authenticate(&self, text: &str) -> Result<Option<Principal>, TenantError> {
        let Some((key_id, secret)) = parse_key(text) else { return Ok(None) };
        let found = self.store.get(&key_key(&key_id)).await?;
        let key = found.map(|(value, _)| read_record::<KeyRecord>(&value, &key_id)).transpose()?;
        let presented = secret_hash(key_id.as_str(), secret);
        let unusable = "0".repeat(64);
        let kept = key.as_ref().map_or(&unusable, |key| &key.secret_hash);
        let kept: Digest = kept.parse().map_err(|_| TenantError::BadRecord(key_id.to_string()))?;
        let same = bool::from(presented.as_bytes().ct_eq(kept.as_bytes()));
        let Some(key) = key.filter(|key| same && key.revoked_unix_ms.is_none()) else { return Ok(None) };
        let tenant = key.tenant.parse().map_err(|_| TenantError::BadRecord(key_id.to_string()))?;
        Ok(Some(Principal { tenant, key_id, rights: key.rights }))
    }
}

fn tenant_key(tenant: &TenantId) -> String {
    format!("tenants/{tenant}")
}

fn key_key(id: &KeyId) -> String {
    format!("keys/{id}")
}

fn parse_key(text: &str) -> Option<(KeyId, &str)> {
    if text.len() != KEY_TEXT_BYTES {
        return None;
    }
    let (id, secret) = text.strip_prefix("tk_")?.split_once('_')?;
    Some((id.parse().ok()?, secret))
}

/// Bound to the identifier, so that a hash cannot be moved to another key.
fn secret_hash(id: &str, secret: &str) -> Digest {
    Digest::of_parts(SECRET_DOMAIN, [id.as_bytes(), secret.as_bytes()])
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, TenantError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|error| TenantError::Random(error.to_string()))?;
    Ok(bytes)
}

fn new_key_id() -> Result<KeyId, TenantError> {
    let random = u128::from_le_bytes(*random::<16>()?);
    ulid::Ulid::from_parts(unix_ms(), random).to_string().to_ascii_lowercase().parse()
}

fn new_secret() -> Result<Zeroizing<String>, TenantError> {
    use std::fmt::Write as _;
    let mut text = Zeroizing::new(String::with_capacity(2 * SECRET_BYTES));
    for byte in random::<SECRET_BYTES>()?.iter() {
        // Writing to a string cannot fail.
        let _ = write!(*text, "{byte:02x}");
    }
    Ok(text)
}

fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn record(value: &impl Serialize) -> Result<Bytes, TenantError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| TenantError::BadRecord(error.to_string()))
}

fn read_record<T: serde::de::DeserializeOwned>(value: &[u8], id: &KeyId) -> Result<T, TenantError> {
    serde_json::from_slice(value).map_err(|_| TenantError::BadRecord(format!("key {id}")))
}

#[cfg(test)]
mod tests;
