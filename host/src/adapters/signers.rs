//! Who may sign a tenant's adapters and plugins, and whether that is asked for: one record per tenant, `adapter-signers/TENANT`, swapped
//! against its version. Not here: how a signature is verified (`signature`).

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use types::{Digest, TenantId};

use super::signature::{self, PluginSignatureError, SignatureError, SignerKey};
use super::{AdapterError, AdapterStore};
use crate::store::{SWAP_ATTEMPTS_MAX, Store, StoreError, Version};

/// Keys that one tenant may trust: a signature is tried under each.
pub const SIGNER_KEYS_MAX: usize = 16;

/// Whether what a tenant uploads must be signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SignaturePolicy {
    /// Signatures are not looked at.
    #[default]
    None,
    /// A signature that is sent must hold.
    Optional,
    /// There must be one that holds.
    Required,
}

/// What a tenant asks of signatures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signers {
    /// Whether adapters must have one.
    pub policy: SignaturePolicy,
    /// Whether plugins must have one.
    pub plugins: SignaturePolicy,
    /// Whose holds.
    pub keys: Vec<SignerKey>,
    /// Counts the changes; 0 before the first.
    pub revision: u64,
}

/// What was found of an adapter's signature when its alias was set, of a plugin's when it was uploaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum SignatureState {
    /// There was none.
    #[default]
    Unsigned,
    /// There was one that nobody asked for.
    Unchecked,
    /// It held under this key.
    Signed {
        /// [`SignerKey::id`].
        key: String,
    },
}

impl Signers {
    /// Applies the policy to the files of an adapter.
    ///
    /// # Errors
    /// [`SignatureError::Required`], and whatever is wrong with a signature that is looked at.
    pub fn check(
        &self,
        bundle: Option<&[u8]>,
        files: &[(&'static str, &[u8])],
    ) -> Result<SignatureState, SignatureError> {
        match (self.policy, bundle) {
            (SignaturePolicy::Required, None) => Err(SignatureError::Required),
            (_, None) => Ok(SignatureState::Unsigned),
            (SignaturePolicy::None, Some(_)) => Ok(SignatureState::Unchecked),
            (SignaturePolicy::Optional | SignaturePolicy::Required, Some(bundle)) => {
                Ok(SignatureState::Signed { key: signature::verify(bundle, &self.keys, files)? })
            }
        }
    }

    /// Applies the policy to a component that is uploaded. Of several bundles one must hold.
    ///
    /// # Errors
    /// [`PluginSignatureError::Required`], and whatever is wrong with the signatures that are looked at.
    pub fn check_plugin(&self, bundles: &[Bytes], component: &[u8]) -> Result<SignatureState, PluginSignatureError> {
        match (self.plugins, bundles) {
            (SignaturePolicy::Required, []) => Err(PluginSignatureError::Required),
            (_, []) => Ok(SignatureState::Unsigned),
            (SignaturePolicy::None, _) => Ok(SignatureState::Unchecked),
            (SignaturePolicy::Optional | SignaturePolicy::Required, [first, rest @ ..]) => {
                let verify = |bundle: &Bytes| signature::verify_component(bundle, &self.keys, component);
                // What is wrong with the first is what is told: mostly there is one.
                let found =
                    verify(first).or_else(|error| rest.iter().find_map(|bundle| verify(bundle).ok()).ok_or(error));
                Ok(SignatureState::Signed { key: found? })
            }
        }
    }

    /// Applies the policy as it is now to a plugin that was uploaded before.
    ///
    /// # Errors
    /// [`PluginSignatureError::Unsigned`].
    pub fn check_uploaded(&self, digest: Digest, found: &SignatureState) -> Result<(), PluginSignatureError> {
        let is_signed =
            matches!(found, SignatureState::Signed { key } if self.keys.iter().any(|known| known.id() == key));
        if self.plugins == SignaturePolicy::Required && !is_signed {
            return Err(PluginSignatureError::Unsigned(digest));
        }
        Ok(())
    }
}

impl AdapterStore {
    /// Who may sign the tenant's adapters.
    ///
    /// # Errors
    /// [`AdapterError::Store`], [`AdapterError::BadRecord`].
    pub async fn signers(&self, tenant: &TenantId) -> Result<Signers, AdapterError> {
        self.signers.of(tenant).await
    }

    /// Sets who may sign the tenant's adapters from now on; with `expect`, only if the revision is that one. What was admitted
    /// before stays.
    ///
    /// # Errors
    /// [`AdapterError::OverLimit`], a conflict as [`AdapterError::Store`].
    pub async fn set_signers(
        &self,
        tenant: &TenantId,
        policy: SignaturePolicy,
        keys: &[SignerKey],
        expect: Option<u64>,
    ) -> Result<Signers, AdapterError> {
        self.signers.set(tenant, policy, None, keys, expect).await
    }

    /// The same, and whether plugins must be signed; `None` leaves that as it is.
    ///
    /// # Errors
    /// As [`Self::set_signers`].
    pub async fn set_signers_of_all(
        &self,
        tenant: &TenantId,
        policy: SignaturePolicy,
        plugins: Option<SignaturePolicy>,
        keys: &[SignerKey],
        expect: Option<u64>,
    ) -> Result<Signers, AdapterError> {
        self.signers.set(tenant, policy, plugins, keys, expect).await
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignersRecord {
    policy: SignaturePolicy,
    /// Of plugins; an older record has none.
    #[serde(default)]
    plugins: SignaturePolicy,
    /// In PEM.
    keys: Vec<String>,
    revision: u64,
}

#[derive(Debug)]
pub(super) struct SignerStore {
    store: Arc<dyn Store>,
}

impl SignerStore {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Of a tenant; the policy is `none` until one was set.
    pub(super) async fn of(&self, tenant: &TenantId) -> Result<Signers, AdapterError> {
        Ok(self.read(&key(tenant)).await?.0)
    }

    /// Sets all of it; with `expect` only if the revision is that one.
    pub(super) async fn set(
        &self,
        tenant: &TenantId,
        policy: SignaturePolicy,
        plugins: Option<SignaturePolicy>,
        keys: &[SignerKey],
        expect: Option<u64>,
    ) -> Result<Signers, AdapterError> {
        if keys.len() > SIGNER_KEYS_MAX {
            let (limit, max) = ("signer_keys_max", SIGNER_KEYS_MAX as u64);
            return Err(AdapterError::OverLimit { what: "the number of keys that sign adapters", limit, max });
        }
        let key = key(tenant);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let (found, version) = self.read(&key).await?;
            if expect.is_some_and(|expect| expect != found.revision) {
                return Err(StoreError::Conflict { key }.into());
            }
            let revision = found.revision + 1;
            let pems = keys.iter().map(|key| key.pem().to_owned()).collect();
            let plugins = plugins.unwrap_or(found.plugins);
            let record = SignersRecord { policy, plugins, keys: pems, revision };
            let value = serde_json::to_vec(&record).map_err(|_| AdapterError::BadRecord(key.clone()))?;
            match self.store.swap(&key, version, Some(Bytes::from(value))).await {
                Ok(_) => return Ok(Signers { policy, plugins, keys: keys.to_vec(), revision }),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::contended(&key).into())
    }

    async fn read(&self, key: &str) -> Result<(Signers, Option<Version>), AdapterError> {
        let Some((value, version)) = self.store.get(key).await? else { return Ok((Signers::default(), None)) };
        let bad = || AdapterError::BadRecord(key.to_owned());
        let record: SignersRecord = serde_json::from_slice(&value).map_err(|_| bad())?;
        let keys = record.keys.iter().map(|pem| SignerKey::from_pem(pem).map_err(|_| bad()));
        let keys = keys.collect::<Result<_, _>>()?;
        let (policy, plugins) = (record.policy, record.plugins);
        Ok((Signers { policy, plugins, keys, revision: record.revision }, Some(version)))
    }
}

fn key(tenant: &TenantId) -> String {
    format!("adapter-signers/{tenant}")
}
