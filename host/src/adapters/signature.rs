//! Signatures of adapters in the form of OpenSSF Model Signing 1.0, made with a key: a Sigstore bundle round a DSSE envelope
//! round an in-toto statement that lists files with their SHA-256 (what `model_signing sign key` of PyPI's `model-signing`
//! writes; <https://github.com/sigstore/model-transparency>). Not here: whose keys a tenant trusts (`signers`).
//!
//! The bundle is a stranger's until a trusted key's signature holds over its payload; only then is the statement read. What it
//! says of keys itself (`hint`, `keyid`) is never used.

mod component;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use types::Blame;

use crate::receipt::pae;
pub use component::PluginSignatureError;
pub(super) use component::verify_component;

/// Bytes of a bundle: two files take a page, a folder with some hundred files still fits.
pub const SIGNATURE_BYTES_MAX: usize = 256 << 10;
/// Bytes of a public key in PEM.
pub const PUBLIC_KEY_BYTES_MAX: usize = 1 << 10;
/// Characters of a bundle that a message may quote.
const QUOTED_CHARS_MAX: usize = 96;

const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// Before the point of an uncompressed P-256 key in a `SubjectPublicKeyInfo` (RFC 5480).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// `04`, then both coordinates.
const P256_POINT_BYTES: usize = 65;

/// Why a signature does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// None, where the tenant wants one.
    #[error(
        "adapters of this tenant must be signed: send the bundle of `model_signing sign key` as part `signature`, or as model.sig in the folder"
    )]
    Required,
    /// One of those that an adapter is derived from, likewise.
    #[error(
        "adapters of this tenant must be signed, and `{0}` was not, under keys that it trusts now: derive from those that were"
    )]
    Parent(String),
    /// Larger than any bundle.
    #[error("the signature is longer than {SIGNATURE_BYTES_MAX} bytes")]
    TooLong,
    /// Not a bundle, or not one of this kind.
    #[error("the signature is not an OpenSSF Model Signing bundle made with a key: {0}")]
    Malformed(String),
    /// No trusted key made it.
    #[error("the signature does not hold under any of the {0} keys that this tenant trusts")]
    Untrusted(usize),
    /// A file was not signed.
    #[error("the signature does not cover {0}")]
    NotCovered(&'static str),
    /// A file is not what was signed.
    #[error("{0} is not the file that was signed")]
    Changed(&'static str),
    /// Not a public key that can be used.
    #[error("a public key must be ECDSA P-256 as PEM (`-----BEGIN PUBLIC KEY-----`): {0}")]
    PublicKey(&'static str),
}

impl SignatureError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Required | Self::Parent(_) => "adapter_signature_required",
            Self::Untrusted(_) => "adapter_signature_untrusted",
            Self::TooLong | Self::Malformed(_) | Self::NotCovered(_) | Self::Changed(_) => "adapter_signature_invalid",
            Self::PublicKey(_) => "invalid_public_key",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        Blame::Caller
    }
}

/// A public key that may sign adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerKey {
    id: String,
    point: Vec<u8>,
    pem: String,
}

impl SignerKey {
    /// Out of PEM.
    ///
    /// # Errors
    /// [`SignatureError::PublicKey`].
    pub fn from_pem(pem: &str) -> Result<Self, SignatureError> {
        if pem.len() > PUBLIC_KEY_BYTES_MAX {
            return Err(SignatureError::PublicKey("it is too long"));
        }
        let key = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| SignatureError::PublicKey("it is no PEM with a public key"))?;
        let point = key.strip_prefix(&P256_PREFIX).filter(|point| point.len() == P256_POINT_BYTES);
        let point = point.filter(|point| point.first() == Some(&4));
        let point = point.ok_or(SignatureError::PublicKey("it is of another kind or curve"))?.to_vec();
        let base64 = STANDARD.encode(&key);
        let (first, rest) = base64.split_at(64.min(base64.len()));
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{first}\n{rest}\n-----END PUBLIC KEY-----\n");
        Ok(Self { id: hexadecimal(digest(&SHA256, &key).as_ref()), point, pem })
    }

    /// SHA-256 of the key's DER, as `openssl pkey -pubin -outform DER | sha256sum` prints it.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    fn holds(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point).verify(message, signature).is_ok()
    }
}

/// Whose signature covers these files: the identifier of the key. Files that it covers beside them are not asked for: they are
/// not admitted either.
///
/// # Errors
/// If the bundle is not one, no key's signature holds, or it does not cover a file as it is here.
pub(super) fn verify(
    bundle: &[u8],
    keys: &[SignerKey],
    files: &[(&'static str, &[u8])],
) -> Result<String, SignatureError> {
    if bundle.len() > SIGNATURE_BYTES_MAX {
        return Err(SignatureError::TooLong);
    }
    let bundle: Bundle = parse(bundle)?;
    expect("mediaType", &bundle.media_type, BUNDLE_TYPE)?;
    let (signed, key) = signed_files(&bundle.envelope, keys)?;
    for &(name, bytes) in files {
        let expected = signed.get(name).ok_or(SignatureError::NotCovered(name))?;
        if *expected != hexadecimal(digest(&SHA256, bytes).as_ref()) {
            return Err(SignatureError::Changed(name));
        }
    }
    Ok(key)
}

/// What a trusted key signed: files with their SHA-256, and the identifier of the key.
fn signed_files(envelope: &Envelope, keys: &[SignerKey]) -> Result<(BTreeMap<String, String>, String), SignatureError> {
    expect("payloadType", &envelope.payload_type, PAYLOAD_TYPE)?;
    let [signature] = envelope.signatures.as_slice() else {
        return Err(malformed(format!("it has {} signatures, not one", envelope.signatures.len())));
    };
    let decode = |what, text: &str| STANDARD.decode(text).map_err(|_| malformed(format!("its {what} is not base64")));
    let payload = decode("payload", &envelope.payload)?;
    let message = pae(PAYLOAD_TYPE, &payload);
    let signature = decode("signature", &signature.sig)?;
    let key = keys.iter().find(|key| key.holds(&message, &signature));
    let key = key.ok_or(SignatureError::Untrusted(keys.len()))?;
    Ok((parse::<Statement>(&payload)?.resources()?, key.id.clone()))
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(rename = "mediaType")]
    media_type: String,
    #[serde(rename = "dsseEnvelope")]
    envelope: Envelope,
}

#[derive(Deserialize)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: String,
}

#[derive(Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

impl Statement {
    /// The files and their SHA-256 in lower-case digits, after every check that needs no file.
    fn resources(self) -> Result<BTreeMap<String, String>, SignatureError> {
        expect("_type", &self.kind, STATEMENT_TYPE)?;
        expect("predicateType", &self.predicate_type, PREDICATE_TYPE)?;
        expect("serialization method", &self.predicate.serialization.method, "files")?;
        expect("hash_type", &self.predicate.serialization.hash_type, "sha256")?;
        let [subject] = self.subject.as_slice() else {
            return Err(malformed(format!("it has {} subjects, not one", self.subject.len())));
        };
        let (mut all, mut found) = (Vec::new(), BTreeMap::new());
        for Resource { name, algorithm, digest } in self.predicate.resources {
            expect("algorithm", &algorithm, "sha256")?;
            let bytes = bytes_of(&digest).ok_or_else(|| malformed("a digest is not 64 hexadecimal digits"))?;
            all.extend(bytes);
            if found.contains_key(&name) {
                return Err(malformed(format!("`{}` is there twice", short(&name))));
            }
            found.insert(name, hexadecimal(&bytes));
        }
        expect("subject's digest", &subject.digest.sha256, &hexadecimal(digest(&SHA256, &all).as_ref()))?;
        Ok(found)
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, SignatureError> {
    serde_json::from_slice(json).map_err(|error| malformed(short(&error.to_string())))
}

fn expect(what: &str, found: &str, expected: &str) -> Result<(), SignatureError> {
    if found == expected {
        return Ok(());
    }
    Err(malformed(format!("its {what} is `{}`, expected `{expected}`", short(found))))
}

fn malformed(reason: impl Into<String>) -> SignatureError {
    SignatureError::Malformed(reason.into())
}

fn short(text: &str) -> String {
    text.chars().take(QUOTED_CHARS_MAX).flat_map(char::escape_debug).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes_of(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let pairs = digits.as_bytes().as_chunks::<2>();
    if pairs.0.len() != bytes.len() || !pairs.1.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs.0) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
pub(super) mod tests;
