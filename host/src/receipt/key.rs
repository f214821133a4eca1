//! The signing key and the public keys beside it. `receipt.key` holds the secret as 64 hexadecimal digits, mode 0600;
//! `receipt.pub` holds a JSON list of public keys, so that records of an earlier key can be checked after a rotation.
//! Not here: rotation itself; to rotate, stop the host, move `receipt.key` away and start it.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::ReceiptError;
use crate::key_file::{open_or_make, replace_file};

const KEY_FILE: &str = "receipt.key";
const PUBLIC_FILE: &str = "receipt.pub";
const PUBLIC_FILE_BYTES_MAX: u64 = 1 << 20;

/// The host's signing key. Wiped from memory when dropped.
pub struct ReceiptKey {
    signing: SigningKey,
    id: String,
}

impl std::fmt::Debug for ReceiptKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReceiptKey({})", self.id)
    }
}

impl ReceiptKey {
    /// The key in this folder; made at the first start, together with `receipt.pub`.
    ///
    /// # Errors
    /// [`ReceiptError::KeyFile`] when a file cannot be read or written, is damaged, or others may read the secret.
    pub fn open(folder: &Path) -> Result<Self, ReceiptError> {
        let path = folder.join(KEY_FILE);
        let secret = open_or_make(&path).map_err(|error| key_file(&path, error))?;
        let key = Self::from_secret(&secret);
        key.publish(&folder.join(PUBLIC_FILE))?;
        Ok(key)
    }

    /// A fresh key that lies in no file.
    ///
    /// # Errors
    /// [`ReceiptError::Random`].
    pub fn generate() -> Result<Self, ReceiptError> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(secret.as_mut_slice()).map_err(|error| ReceiptError::Random(error.to_string()))?;
        Ok(Self::from_secret(&secret))
    }

    fn from_secret(secret: &[u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(secret);
        let id = key_id(&signing.verifying_key());
        Self { signing, id }
    }

    /// Names the key in envelopes.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKeys {
        PublicKeys(vec![self.signing.verifying_key()])
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }

    /// Adds the public half to the list unless it is there.
    fn publish(&self, path: &Path) -> Result<(), ReceiptError> {
        let mut keys = match fs::exists(path) {
            Ok(true) => PublicKeys::read(path)?,
            Ok(false) => PublicKeys(Vec::new()),
            Err(error) => return Err(key_file(path, error)),
        };
        if keys.find(&self.id).is_none() {
            keys.0.push(self.signing.verifying_key());
            replace_file(path, keys.to_json().as_bytes(), 0o644).map_err(|error| key_file(path, error))?;
        }
        Ok(())
    }
}

/// The keys whose signatures are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKeys(Vec<VerifyingKey>);

/// A public key as it is written down.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublicKeyEntry {
    keyid: String,
    algorithm: String,
    key: String,
}

impl PublicKeys {
    /// The keys in a file such as `receipt.pub`.
    ///
    /// # Errors
    /// [`ReceiptError::KeyFile`].
    pub fn read(path: &Path) -> Result<Self, ReceiptError> {
        let file = File::open(path).map_err(|error| key_file(path, error))?;
        let mut json = String::new();
        file.take(PUBLIC_FILE_BYTES_MAX).read_to_string(&mut json).map_err(|error| key_file(path, error))?;
        Self::parse(&json).map_err(|reason| ReceiptError::KeyFile { path: path.to_owned(), reason })
    }

    /// Reads the JSON list; every entry must be an Ed25519 key under its own id.
    pub(crate) fn parse(json: &str) -> Result<Self, String> {
        let entries: Vec<PublicKeyEntry> =
            serde_json::from_str(json).map_err(|error| format!("it is not a list of public keys: {error}"))?;
        entries
            .iter()
            .map(|entry| entry.check().ok_or_else(|| format!("key `{}` is damaged", entry.keyid)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The key of this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&VerifyingKey> {
        self.0.iter().find(|key| key_id(key) == id)
    }

    /// The JSON list, as in `receipt.pub`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let entry = |key: &VerifyingKey| PublicKeyEntry {
            keyid: key_id(key),
            algorithm: "ed25519".to_owned(),
            key: STANDARD.encode(key.as_bytes()),
        };
        let entries: Vec<_> = self.0.iter().map(entry).collect();
        serde_json::to_string_pretty(&entries).unwrap_or_default() + "\n"
    }
}

impl PublicKeyEntry {
    fn check(&self) -> Option<VerifyingKey> {
        let bytes: [u8; 32] = STANDARD.decode(&self.key).ok()?.try_into().ok()?;
        let key = VerifyingKey::from_bytes(&bytes).ok().filter(|key| !key.is_weak())?;
        (self.algorithm == "ed25519" && self.keyid == key_id(&key)).then_some(key)
    }
}

fn key_id(key: &VerifyingKey) -> String {
    blake3::hash(key.as_bytes()).to_hex().chars().take(16).collect()
}

fn key_file(path: &Path, error: impl ToString) -> ReceiptError {
    ReceiptError::KeyFile { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::key_file::staged;

    #[test]
    fn the_key_is_made_once_and_private() {
        let folder = tempfile::tempdir().expect("folder");
        let first = ReceiptKey::open(folder.path()).expect("made");
        let second = ReceiptKey::open(folder.path()).expect("read");
        assert_eq!(first.id(), second.id());
        assert_eq!(first.id().len(), 16);
        let mode = fs::metadata(folder.path().join(KEY_FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let keys = PublicKeys::read(&folder.path().join(PUBLIC_FILE)).expect("keys");
        assert_eq!(keys, first.public());
        let secret = blake3::Hash::from_bytes(*first.signing.as_bytes()).to_hex().to_string();
        assert!(!format!("{first:?}").contains(&secret));
        let file = fs::read_to_string(folder.path().join(KEY_FILE)).expect("key");
        assert_eq!(file, secret + "\n");
    }

    #[test]
    fn what_a_killed_writer_left_is_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let first = ReceiptKey::open(folder.path()).expect("made");
        fs::write(staged(&folder.path().join(KEY_FILE)), b"half").expect("left");
        let second = ReceiptKey::open(folder.path()).expect("read");
        assert_eq!(first.id(), second.id());
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 2);
    }

    #[test]
    fn a_rotated_key_stays_in_the_list() {
        let folder = tempfile::tempdir().expect("folder");
        let old = ReceiptKey::open(folder.path()).expect("made");
        fs::remove_file(folder.path().join(KEY_FILE)).expect("moved away");
        let new = ReceiptKey::open(folder.path()).expect("made again");
        assert_ne!(old.id(), new.id());
        let keys = PublicKeys::read(&folder.path().join(PUBLIC_FILE)).expect("keys");
        assert!(keys.find(old.id()).is_some() && keys.find(new.id()).is_some());
    }

    #[test]
    fn bad_key_files_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(KEY_FILE);
        ReceiptKey::open(folder.path()).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = ReceiptKey::open(folder.path()).expect_err("others may read it");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        replace_file(&path, b"not a key", 0o600).expect("written");
        assert!(ReceiptKey::open(folder.path()).is_err());
    }

    #[test]
    fn bad_public_keys_are_refused() {
        let key = ReceiptKey::generate().expect("random");
        let json = key.public().to_json();
        assert_eq!(PublicKeys::parse(&json), Ok(key.public()));
        assert!(PublicKeys::parse(&json.replace(key.id(), "0123456789abcdef")).is_err());
        assert!(PublicKeys::parse(&json.replace("ed25519", "rsa")).is_err());
        assert!(PublicKeys::parse("{}").is_err());
    }
}
