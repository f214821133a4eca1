//! Adapters that are named by where they lie: the first use adds one under an alias that follows from its URL, later ones find
//! the alias. Not here: whether a caller may add one (`http/lorax/adapter.rs`), and how one is added (`adapters.rs`).

use std::fmt;
use std::sync::Arc;

use moka::future::Cache;
use reqwest::Url;
use types::{AdapterAlias, Digest, TenantId};

use super::{AdapterError, AdapterStore, Credential};

/// Work under way of which the result is remembered for a moment; an entry that is pushed out costs a second look.
const UNDER_WAY_MAX: u64 = 10_000;
/// Hexadecimal digits of a digest in an alias.
const DIGITS: usize = 32;

/// Whose, under which alias, opened by what: a credential that does not hold fails nobody who has another.
type Key = (TenantId, AdapterAlias, Option<Digest>);

/// What is being added and was not there.
pub(super) struct FirstUses(Cache<Key, ()>);

impl FirstUses {
    pub(super) fn new() -> Self {
        Self(Cache::new(UNDER_WAY_MAX))
    }
}

impl fmt::Debug for FirstUses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstUses").finish_non_exhaustive()
    }
}

impl AdapterStore {
    /// The alias that a source is added under at its first use: the same for the same URL.
    ///
    /// # Errors
    /// None in truth: digits are a name.
    pub fn alias_of_source(&self, url: &str) -> Result<AdapterAlias, AdapterError> {
        let digest = Digest::of_parts("tenon 2026 alias of a source", [url.as_bytes()]).to_string();
        let digits = digest.get(..DIGITS).unwrap_or(&digest);
        format!("source-{digits}").parse().map_err(|_| AdapterError::BadSource("it has no alias"))
    }

    /// The URL of a folder that is named by its path: absolute, or from the root on.
    ///
    /// # Errors
    /// [`AdapterError::NoRoot`], [`AdapterError::BadSource`].
    pub fn folder_url(&self, path: &str) -> Result<String, AdapterError> {
        self.sources.folder_url(path)
    }

    /// Scheme, host and port that a token for this source is sent to, and nowhere else.
    ///
    /// # Errors
    /// [`AdapterError::BadSource`] if no token opens such a source.
    pub fn token_origin(&self, url: &str) -> Result<Url, AdapterError> {
        self.sources.token_origin(url)
    }

    /// As [`Self::add_url`] where there is no such alias yet, once for all who ask at the same time with the same credential.
    /// True for the one who added it; an alias that was there stays as it is.
    ///
    /// # Errors
    /// As for [`Self::add_url`].
    pub async fn add_url_once(
        &self,
        tenant: &TenantId,
        alias: &AdapterAlias,
        url: &str,
        credential: Option<&Credential>,
    ) -> Result<bool, AdapterError> {
        let key = (tenant.clone(), alias.clone(), credential.map(Credential::digest));
        let mut is_new = false;
        // The cache runs one of these for a key at a time, and the next one if this is dropped.
        let add = async {
            let found = self.owners.find(tenant, alias.as_str()).await?;
            // An alias that is nothing but its source's may lead nowhere by now, where that was shared and is not.
            let is_of_source = self.alias_of_source(url)? == *alias;
            let is_there = match &found {
                Some((_, record)) => !is_of_source || self.owners.is_usable(tenant, record).await?,
                None => false,
            };
            if !is_there {
                self.add_url(tenant, alias, url, credential, None).await?;
                is_new = true;
            }
            Ok(())
        };
        let added = self.first_uses.0.try_get_with_by_ref(&key, add).await;
        // The alias is the truth: it may be removed, and added again, at any time.
        self.first_uses.0.invalidate(&key).await;
        added.map_err(|error: Arc<AdapterError>| AdapterError::clone(&error))?;
        Ok(is_new)
    }
}
