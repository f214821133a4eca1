//! The plugins that a tenant may deploy, and who had signed them when they were uploaded. Not here: their bytes (`artifacts`), and
//! whether a signature is asked for (`adapters/signers`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use types::{Digest, TenantId};

use super::{PLUGINS_PER_TENANT_MAX, Registry, RegistryError, read_record, record};
use crate::adapters::SignatureState;
use crate::store::{SWAP_ATTEMPTS_MAX, StoreError};

/// What an ownership's record holds; an older one says nothing.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct StoredPlugin {
    signature: SignatureState,
}

impl Registry {
    /// Notes that the tenant uploaded this plugin; again is no error. A signature that held is not forgotten when the plugin is
    /// uploaded once more without one.
    ///
    /// # Errors
    /// [`RegistryError::OverLimit`].
    pub async fn record_plugin(
        &self,
        tenant: &TenantId,
        digest: Digest,
        signature: &SignatureState,
    ) -> Result<(), RegistryError> {
        let key = plugin_key(tenant, digest);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let found = self.store.get(&key).await?;
            let version = found.as_ref().map(|(_, version)| *version);
            let count = match &found {
                None => Some(self.counts.of(&*self.store, &plugins_prefix(tenant)).await?),
                Some(_) => None,
            };
            match &found {
                None if !self.has_room(tenant).await? => {
                    let (limit, max) = ("plugins_per_tenant_max", PLUGINS_PER_TENANT_MAX);
                    return Err(RegistryError::OverLimit { what: "the number of plugins", limit, max });
                }
                Some(_) if !matches!(signature, SignatureState::Signed { .. }) => return Ok(()),
                Some((value, _)) if read_record::<StoredPlugin>(&key, value)?.signature == *signature => return Ok(()),
                _ => {}
            }
            let value: Bytes = record(&key, &StoredPlugin { signature: signature.clone() })?;
            match self.store.swap(&key, version, Some(value)).await {
                Ok(_) => {
                    count.iter().for_each(|count| count.one_more());
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::contended(&key).into())
    }

    async fn has_room(&self, tenant: &TenantId) -> Result<bool, StoreError> {
        self.counts.are_fewer(&*self.store, &plugins_prefix(tenant), PLUGINS_PER_TENANT_MAX).await
    }

    /// Whether the tenant uploaded this plugin.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub async fn owns_plugin(&self, tenant: &TenantId, digest: Digest) -> Result<bool, RegistryError> {
        Ok(self.store.get(&plugin_key(tenant, digest)).await?.is_some())
    }

    /// Who had signed a plugin of the tenant; nobody, if it is not the tenant's.
    ///
    /// # Errors
    /// [`RegistryError::Store`], [`RegistryError::BadRecord`].
    pub async fn plugin_signature(&self, tenant: &TenantId, digest: Digest) -> Result<SignatureState, RegistryError> {
        let key = plugin_key(tenant, digest);
        let Some((value, _)) = self.store.get(&key).await? else { return Ok(SignatureState::Unsigned) };
        Ok(read_record::<StoredPlugin>(&key, &value)?.signature)
    }

    /// The tenant's plugins.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub async fn plugins(&self, tenant: &TenantId) -> Result<Vec<Digest>, RegistryError> {
        let prefix = plugins_prefix(tenant);
        let found = self.store.scan(&prefix).await?;
        let digest = |key: &str| key.strip_prefix(&prefix).and_then(|text| text.parse().ok());
        found
            .iter()
            .map(|found| digest(&found.key).ok_or_else(|| RegistryError::BadRecord(found.key.clone())))
            .collect()
    }
}

fn plugins_prefix(tenant: &TenantId) -> String {
    format!("plugins/{tenant}/")
}

fn plugin_key(tenant: &TenantId, digest: Digest) -> String {
    format!("plugins/{tenant}/{digest}")
}
