//! What may not be used any more: adapters and plugins, by digest. Kept in the store for good, and in memory, as every use asks.
//! Not here: ending what is under way, which is the host's (`host.rs`), and who may revoke (`http.rs`).
//!
//! A revocation cannot be taken back: a digest names content, and content that was bad once stays bad. It says nothing of who
//! has the content: any digest can be revoked, also one that nobody uploaded yet.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use types::{Blame, Digest};

use crate::store::{Store, StoreError};

/// Characters of a reason.
pub const REASON_CHARS_MAX: usize = 500;
const PREFIX: &str = "revoked/";

/// Why something about revocations failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RevocationError {
    /// What is asked for was revoked.
    #[error("{what} {digest} was revoked{}{reason}; use another one", if .reason.is_empty() { "" } else { ": " })]
    Revoked {
        /// `the adapter` or `the plugin`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// Why.
        reason: String,
    },
    /// A reason that is too long.
    #[error("the reason has {chars} characters; the limit reason_chars_max is {REASON_CHARS_MAX}")]
    LongReason {
        /// Its length.
        chars: usize,
    },
    /// A record that this version did not write.
    #[error("the stored record `{0}` cannot be read")]
    BadRecord(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RevocationError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Revoked { .. } => "revoked",
            Self::LongReason { .. } => "limit_exceeded",
            Self::BadRecord(_) => "internal",
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Revoked { .. } | Self::LongReason { .. } => Blame::Caller,
            Self::BadRecord(_) => Blame::Host,
            Self::Store(error) => error.blame(),
        }
    }
}

/// When, why and by whose key something was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocation {
    /// For people; may be empty.
    pub reason: String,
    /// The key's identifier.
    pub by_key: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub revoked_unix_ms: u64,
}

/// All that was revoked. Cheap to clone; the clones share everything.
#[derive(Clone, Debug)]
pub struct Revocations {
    store: Arc<dyn Store>,
    known: Arc<RwLock<BTreeMap<Digest, Revocation>>>,
}

impl Revocations {
    /// Reads what the store has.
    ///
    /// # Errors
    /// [`RevocationError::Store`], [`RevocationError::BadRecord`]: a host that does not know what was revoked must not serve.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, RevocationError> {
        let mut known = BTreeMap::new();
        for found in store.scan(PREFIX).await? {
            let bad = || RevocationError::BadRecord(found.key.clone());
            let digest = found.key.strip_prefix(PREFIX).and_then(|name| name.parse().ok()).ok_or_else(bad)?;
            known.insert(digest, serde_json::from_slice(&found.value).map_err(|_| bad())?);
        }
        Ok(Self { store, known: Arc::new(RwLock::new(known)) })
    }

    /// Revokes for good; durable when it returns. What was revoked before stays as it was said then.
    ///
    /// # Errors
    /// [`RevocationError::LongReason`], [`RevocationError::Store`].
    pub async fn add(&self, digest: Digest, reason: &str, by_key: &str) -> Result<Revocation, RevocationError> {
        let chars = reason.chars().count();
        if chars > REASON_CHARS_MAX {
            return Err(RevocationError::LongReason { chars });
        }
        if let Some(known) = self.find(digest) {
            return Ok(known);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let revoked_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let made = Revocation { reason: reason.to_owned(), by_key: by_key.to_owned(), revoked_unix_ms };
        let key = format!("{PREFIX}{digest}");
        let value = serde_json::to_vec(&made).map_err(|_| RevocationError::BadRecord(key.clone()))?;
        let kept = match self.store.swap(&key, None, Some(Bytes::from(value))).await {
            Ok(_) => made,
            // Another caller was faster: its word counts.
            Err(StoreError::Conflict { .. }) => {
                let (value, _) = self.store.get(&key).await?.ok_or_else(|| StoreError::contended(&key))?;
                serde_json::from_slice(&value).map_err(|_| RevocationError::BadRecord(key))?
            }
            Err(error) => return Err(error.into()),
        };
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(digest, kept.clone());
        Ok(kept)
    }

    /// Passes what may be used.
    ///
    /// # Errors
    /// [`RevocationError::Revoked`].
    pub fn check(&self, what: &'static str, digest: Digest) -> Result<(), RevocationError> {
        match self.find(digest) {
            Some(Revocation { reason, .. }) => Err(RevocationError::Revoked { what, digest, reason }),
            None => Ok(()),
        }
    }

    /// What is known of this digest.
    #[must_use]
    pub fn find(&self, digest: Digest) -> Option<Revocation> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&digest).cloned()
    }

    /// All, by digest.
    #[must_use]
    pub fn list(&self) -> Vec<(Digest, Revocation)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().map(|(digest, revocation)| (*digest, revocation.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EmbeddedStore;

    #[tokio::test]
    async fn what_was_revoked_stays_so_over_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let digest = Digest::of(b"bad");
        {
            let store = Arc::new(EmbeddedStore::open(folder.path()).await.expect("a store"));
            let revocations = Revocations::open(store).await.expect("opened");
            assert!(revocations.check("the adapter", digest).is_ok());
            let first = revocations.add(digest, "it leaks", "key1").await.expect("revoked");
            let again = revocations.add(digest, "another word", "key2").await.expect("revoked before");
            assert_eq!((first.reason.as_str(), &again), ("it leaks", &first));
            let error = revocations.add(digest, &"x".repeat(REASON_CHARS_MAX + 1), "key1").await.expect_err("long");
            assert_eq!(error.code(), "limit_exceeded");
        }
        let store = Arc::new(EmbeddedStore::open(folder.path()).await.expect("a store"));
        let revocations = Revocations::open(store).await.expect("opened");
        let error = revocations.check("the adapter", digest).expect_err("revoked");
        assert_eq!(error.to_string(), format!("the adapter {digest} was revoked: it leaks; use another one"));
        assert!(revocations.check("the adapter", Digest::of(b"good")).is_ok());
        assert_eq!(revocations.list().len(), 1);
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_stops_the_host() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Arc::new(EmbeddedStore::open(folder.path()).await.expect("a store"));
        let key = format!("{PREFIX}{}", Digest::of(b"x"));
        store.swap(&key, None, Some(Bytes::from_static(b"{}"))).await.expect("written");
        assert_eq!(Revocations::open(store).await.expect_err("unreadable").code(), "internal");
    }
}
