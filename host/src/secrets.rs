//! Credentials of tenants for private sources, and values for their plugins: written once, sealed at rest, read by the host alone. Not here: which source may
//! use one, which the credential itself says (`adapters/source/credential.rs`).
//!
//! A record `secrets/TENANT/NAME` is sealed with ChaCha20-Poly1305 (RFC 8439) under the key in `secrets.key`, with a random nonce, and
//! bound to its tenant and name: a record that is copied to another place in the store opens nothing there.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::Url;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use types::{Blame, SecretName, TenantId};
use zeroize::Zeroizing;

use crate::adapters::Credential;
use crate::key_file;
use crate::store::{SWAP_ATTEMPTS_MAX, Store, StoreError};

const KEY_FILE: &str = "secrets.key";
/// Secrets of one tenant.
const SECRETS_PER_TENANT_MAX: usize = 256;
/// Bytes of one part of a secret. Temporary credentials have long tokens.
const PART_BYTES_MAX: usize = 4096;

/// Why something about secrets failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SecretError {
    /// Not there, or not this tenant's.
    #[error("there is no secret `{0}`")]
    NotFound(SecretName),
    /// It could never be used.
    #[error("the secret is refused: {0}")]
    Bad(&'static str),
    /// Over a limit.
    #[error("{what} is over the limit {limit} of {max}")]
    OverLimit {
        /// What.
        what: &'static str,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: usize,
    },
    /// The key's file.
    #[error("the key of secrets `{path}`: {reason}")]
    KeyFile {
        /// The file.
        path: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes")]
    Random,
    /// A record that the key does not open.
    #[error(
        "the stored secret `{0}` cannot be opened: its record is damaged, or `secrets.key` is another one; set it again"
    )]
    Unreadable(SecretName),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SecretError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "secret_not_found",
            Self::Bad(_) => "invalid_secret",
            Self::OverLimit { .. } => "limit_exceeded",
            Self::KeyFile { .. } => "secrets_key_unusable",
            Self::Random => "internal",
            Self::Unreadable(_) => "secret_unreadable",
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::NotFound(_) | Self::Bad(_) | Self::OverLimit { .. } => Blame::Caller,
            Self::KeyFile { .. } | Self::Random | Self::Unreadable(_) => Blame::Host,
            Self::Store(error) => error.blame(),
        }
    }
}

/// What a record holds before it is sealed.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
enum Plain {
    Bearer {
        origin: String,
        token: Zeroizing<String>,
    },
    S3 {
        access_key_id: Zeroizing<String>,
        secret_access_key: Zeroizing<String>,
        session_token: Option<Zeroizing<String>>,
    },
    Value {
        value: Zeroizing<String>,
    },
}

/// The secrets, by tenant.
pub struct Secrets {
    store: Arc<dyn Store>,
    key: LessSafeKey,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// With the key in this folder, made at the first start. Blocking.
    ///
    /// # Errors
    /// [`SecretError::KeyFile`] when it cannot be read or written, is damaged, or others may read it.
    pub fn open(store: Arc<dyn Store>, folder: &Path) -> Result<Self, SecretError> {
        let path = folder.join(KEY_FILE);
        let unusable = |reason: String| SecretError::KeyFile { path: path.display().to_string(), reason };
        let secret = key_file::open_or_make(&path).map_err(|error| unusable(error.to_string()))?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, secret.as_slice());
        let key = key.map_err(|_| unusable("it has another length".to_owned()))?;
        Ok(Self { store, key: LessSafeKey::new(key) })
    }

    /// Sets a secret, in place of the one that has the name.
    ///
    /// # Errors
    /// [`SecretError::Bad`], [`SecretError::OverLimit`].
    pub async fn put(&self, tenant: &TenantId, name: &SecretName, credential: &Credential) -> Result<(), SecretError> {
        check(credential)?;
        let names = self.list(tenant).await?;
        if names.len() >= SECRETS_PER_TENANT_MAX && !names.contains(name) {
            let (limit, max) = ("secrets_per_tenant_max", SECRETS_PER_TENANT_MAX);
            return Err(SecretError::OverLimit { what: "the number of secrets", limit, max });
        }
        let record = self.seal(tenant, name, credential)?;
        self.swap(tenant, name, Some(record)).await.map(drop)
    }

    /// Removes a secret.
    ///
    /// # Errors
    /// [`SecretError::NotFound`].
    pub async fn remove(&self, tenant: &TenantId, name: &SecretName) -> Result<(), SecretError> {
        if self.swap(tenant, name, None).await? { Ok(()) } else { Err(SecretError::NotFound(name.clone())) }
    }

    /// The tenant's secrets by name, in order.
    ///
    /// # Errors
    /// [`SecretError::Store`].
    pub async fn list(&self, tenant: &TenantId) -> Result<Vec<SecretName>, SecretError> {
        let prefix = format!("secrets/{tenant}/");
        let found = self.store.scan(&prefix).await?;
        Ok(found.iter().filter_map(|entry| entry.key.strip_prefix(&prefix)?.parse().ok()).collect())
    }

    /// What a secret holds.
    ///
    /// # Errors
    /// [`SecretError::NotFound`], [`SecretError::Unreadable`].
    pub async fn read(&self, tenant: &TenantId, name: &SecretName) -> Result<Credential, SecretError> {
        let found = self.store.get(&key(tenant, name)).await?;
        let (record, _) = found.ok_or_else(|| SecretError::NotFound(name.clone()))?;
        self.unseal(tenant, name, &record).ok_or_else(|| SecretError::Unreadable(name.clone()))
    }

    /// Whether there was one before.
    async fn swap(&self, tenant: &TenantId, name: &SecretName, new: Option<Bytes>) -> Result<bool, SecretError> {
        let key = key(tenant, name);
        for _ in 0..SWAP_ATTEMPTS_MAX {
            let found = self.store.get(&key).await?.map(|(_, version)| version);
            if found.is_none() && new.is_none() {
                return Ok(false);
            }
            match self.store.swap(&key, found, new.clone()).await {
                Ok(_) => return Ok(found.is_some()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::contended(&key).into())
    }

    /// The nonce and what is sealed, as base64: pointers hold text elsewhere too.
    fn seal(&self, tenant: &TenantId, name: &SecretName, credential: &Credential) -> Result<Bytes, SecretError> {
        let json = serde_json::to_vec(&Plain::from(credential)).map_err(|_| SecretError::Bad("it is not text"))?;
        let mut sealed = Zeroizing::new(json);
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| SecretError::Random)?;
        let tag = self.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            bound_to(tenant, name),
            &mut sealed,
        );
        let tag = tag.map_err(|_| SecretError::Bad("it is too long"))?;
        Ok(STANDARD.encode([nonce.as_slice(), sealed.as_slice(), tag.as_ref()].concat()).into())
    }

    fn unseal(&self, tenant: &TenantId, name: &SecretName, record: &[u8]) -> Option<Credential> {
        let mut record = Zeroizing::new(STANDARD.decode(record).ok()?);
        let (nonce, sealed) = record.split_first_chunk_mut::<NONCE_LEN>()?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.key.open_in_place(nonce, bound_to(tenant, name), sealed).ok()?;
        serde_json::from_slice::<Plain>(plain).ok()?.try_into().ok()
    }
}

fn key(tenant: &TenantId, name: &SecretName) -> String {
    format!("secrets/{tenant}/{name}")
}

/// Neither part can hold the separator.
fn bound_to(tenant: &TenantId, name: &SecretName) -> Aad<String> {
    Aad::from(format!("tenon secret 1\n{tenant}\n{name}"))
}

/// Refuses what would fail at every use.
fn check(credential: &Credential) -> Result<(), SecretError> {
    let is_part = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let parts: Vec<&str> = match credential {
        Credential::Bearer { origin, token } => {
            let is_origin = matches!(origin.scheme(), "http" | "https") && origin.path() == "/";
            let has_more = origin.query().is_some() || origin.fragment().is_some();
            if !is_origin || has_more || !origin.username().is_empty() || origin.password().is_some() {
                return Err(SecretError::Bad("its origin is a scheme, host and port, such as https://huggingface.co"));
            }
            vec![token]
        }
        Credential::S3 { access_key_id, secret_access_key, session_token } => {
            let session = session_token.iter().map(|token| token.as_str());
            [access_key_id.as_str(), secret_access_key.as_str()].into_iter().chain(session).collect()
        }
        Credential::Value { value } => vec![value],
    };
    if parts.iter().any(|part| part.len() > PART_BYTES_MAX) {
        return Err(SecretError::OverLimit {
            what: "a part's bytes",
            limit: "secret_part_bytes_max",
            max: PART_BYTES_MAX,
        });
    }
    if let Credential::Value { value } = credential {
        return if value.is_empty() { Err(SecretError::Bad("its value is empty")) } else { Ok(()) };
    }
    if parts.into_iter().all(is_part) {
        Ok(())
    } else {
        Err(SecretError::Bad("its parts are visible ASCII characters"))
    }
}

impl From<&Credential> for Plain {
    fn from(credential: &Credential) -> Self {
        match credential.clone() {
            Credential::Bearer { origin, token } => Self::Bearer { origin: origin.into(), token },
            Credential::S3 { access_key_id, secret_access_key, session_token } => {
                Self::S3 { access_key_id, secret_access_key, session_token }
            }
            Credential::Value { value } => Self::Value { value },
        }
    }
}

impl TryFrom<Plain> for Credential {
    type Error = ();

    fn try_from(plain: Plain) -> Result<Self, ()> {
        Ok(match plain {
            Plain::Bearer { origin, token } => Self::Bearer { origin: Url::parse(&origin).map_err(drop)?, token },
            Plain::S3 { access_key_id, secret_access_key, session_token } => {
                Self::S3 { access_key_id, secret_access_key, session_token }
            }
            Plain::Value { value } => Self::Value { value },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn text(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    fn bearer(origin: &str, token: &str) -> Credential {
        Credential::Bearer { origin: Url::parse(origin).expect(origin), token: text(token) }
    }

    fn tenant(name: &str) -> TenantId {
        name.parse().expect("a name")
    }

    fn name(name: &str) -> SecretName {
        name.parse().expect("a name")
    }

    #[tokio::test]
    async fn a_secret_is_kept_sealed_replaced_and_removed() {
        let (folder, store) = (tempfile::tempdir().expect("a folder"), Arc::new(MemoryStore::default()));
        let secrets = Secrets::open(store.clone(), folder.path()).expect("open");
        let (acme, hub) = (tenant("acme"), name("hub"));
        let keys = Credential::S3 {
            access_key_id: text("AKID"),
            secret_access_key: text("keep-this-quiet"),
            session_token: Some(text("for-an-hour")),
        };
        for credential in [bearer("https://huggingface.co", "hf_keep-this-quiet"), keys] {
            secrets.put(&acme, &hub, &credential).await.expect("kept");
            assert_eq!(secrets.read(&acme, &hub).await.expect("read"), credential);
            let (record, _) = store.get("secrets/acme/hub").await.expect("get").expect("there");
            let sealed = STANDARD.decode(&record).expect("base64");
            assert!(
                !String::from_utf8_lossy(&sealed).contains("quiet") && !format!("{credential:?}").contains("quiet")
            );
            let again = Secrets::open(store.clone(), folder.path()).expect("open again");
            assert_eq!(again.read(&acme, &hub).await.expect("read after a restart"), credential);
        }
        assert_eq!(secrets.list(&acme).await.expect("list"), std::slice::from_ref(&hub));
        secrets.remove(&acme, &hub).await.expect("removed");
        assert_eq!(secrets.remove(&acme, &hub).await.expect_err("gone").code(), "secret_not_found");
        assert_eq!(secrets.read(&acme, &hub).await.expect_err("gone").code(), "secret_not_found");
    }

    #[tokio::test]
    async fn a_record_opens_only_where_it_was_written_and_whole() {
        let (folder, store) = (tempfile::tempdir().expect("a folder"), Arc::new(MemoryStore::default()));
        let secrets = Secrets::open(store.clone(), folder.path()).expect("open");
        let (acme, other) = (tenant("acme"), tenant("other"));
        secrets.put(&acme, &name("hub"), &bearer("https://a.example", "t")).await.expect("kept");
        assert_eq!(secrets.read(&other, &name("hub")).await.expect_err("not theirs").code(), "secret_not_found");
        assert!(secrets.list(&other).await.expect("list").is_empty());
        let (record, _) = store.get("secrets/acme/hub").await.expect("get").expect("there");
        let mut changed = STANDARD.decode(&record).expect("base64");
        if let Some(byte) = changed.last_mut() {
            *byte ^= 1;
        }
        for (key, record) in [
            ("secrets/other/hub", record.clone()),
            ("secrets/acme/hub2", record.clone()),
            ("secrets/acme/hub3", STANDARD.encode(changed).into()),
            ("secrets/acme/hub4", Bytes::from_static(b"AAAA")),
            ("secrets/acme/hub5", Bytes::from_static(b"\xff")),
        ] {
            store.swap(key, None, Some(record)).await.expect("planted");
        }
        for (whose, planted) in [(&other, "hub"), (&acme, "hub2"), (&acme, "hub3"), (&acme, "hub4"), (&acme, "hub5")] {
            let error = secrets.read(whose, &name(planted)).await.expect_err(planted);
            assert_eq!(error.code(), "secret_unreadable", "{planted}");
        }
        let elsewhere = tempfile::tempdir().expect("a folder");
        let stranger = Secrets::open(store, elsewhere.path()).expect("another key");
        assert_eq!(stranger.read(&acme, &name("hub")).await.expect_err("sealed").code(), "secret_unreadable");
    }

    #[tokio::test]
    async fn what_could_never_be_used_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let secrets = Secrets::open(Arc::new(MemoryStore::default()), folder.path()).expect("open");
        let acme = tenant("acme");
        let no_key = Credential::S3 { access_key_id: text(""), secret_access_key: text("x"), session_token: None };
        for (credential, code) in [
            (bearer("https://a.example/path", "t"), "invalid_secret"),
            (bearer("https://user@a.example", "t"), "invalid_secret"),
            (bearer("https://a.example?x", "t"), "invalid_secret"),
            (bearer("ftp://a.example", "t"), "invalid_secret"),
            (bearer("https://a.example", ""), "invalid_secret"),
            (bearer("https://a.example", "a\r\nX: y"), "invalid_secret"),
            (bearer("https://a.example", &"t".repeat(PART_BYTES_MAX + 1)), "limit_exceeded"),
            (no_key, "invalid_secret"),
        ] {
            assert_eq!(secrets.put(&acme, &name("hub"), &credential).await.expect_err(code).code(), code);
        }
        for number in 0..SECRETS_PER_TENANT_MAX {
            let kept = secrets.put(&acme, &name(&format!("s{number}")), &bearer("https://a.example", "t")).await;
            kept.expect("within the limit");
        }
        let more = secrets.put(&acme, &name("more"), &bearer("https://a.example", "t")).await;
        assert_eq!(more.expect_err("full").code(), "limit_exceeded");
        secrets.put(&acme, &name("s0"), &bearer("https://a.example", "u")).await.expect("replaced");
    }
}
