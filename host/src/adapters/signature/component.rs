//! Signatures of plugins: the same Sigstore bundles as for adapters, made with a key, over the bytes of the component. Either the
//! signature of a blob (what `cosign sign-blob --bundle` writes), or a statement of OpenSSF Model Signing that lists a file with the
//! component's SHA-256, under whatever name. Not here: whose keys a tenant trusts, and whether it asks (`signers`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use types::{Blame, Digest};

use super::{
    BUNDLE_TYPE, Envelope, SIGNATURE_BYTES_MAX, SignatureError, SignerKey, expect, hexadecimal, malformed, parse,
    signed_files,
};

/// What messages call it.
const COMPONENT: &str = "the component";

/// Why a plugin is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginSignatureError {
    /// None was sent, where the tenant wants one.
    #[error(
        "plugins of this tenant must be signed: send the bundle of `cosign sign-blob` as part `signature` (`tenon deploy --signature`)"
    )]
    Required,
    /// It was uploaded before it had to be, or its signer is not trusted any more.
    #[error(
        "plugin {0} is not signed under a key that this tenant trusts now; upload it again with a signature that is"
    )]
    Unsigned(Digest),
    /// There are too many to try.
    #[error("a plugin has at most {0} signatures; send those of signers that the tenant trusts")]
    TooMany(usize),
    /// None of those that were sent holds.
    #[error(transparent)]
    Refused(#[from] SignatureError),
}

impl PluginSignatureError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Required | Self::Unsigned(_) => "plugin_signature_required",
            Self::Refused(SignatureError::Untrusted(_)) => "plugin_signature_untrusted",
            Self::TooMany(_) | Self::Refused(_) => "plugin_signature_invalid",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        Blame::Caller
    }
}

#[derive(Deserialize)]
struct ComponentBundle {
    #[serde(rename = "mediaType")]
    media_type: String,
    #[serde(rename = "messageSignature")]
    message: Option<MessageSignature>,
    #[serde(rename = "dsseEnvelope")]
    envelope: Option<Envelope>,
}

#[derive(Deserialize)]
struct MessageSignature {
    #[serde(rename = "messageDigest")]
    message_digest: Option<MessageDigest>,
    signature: String,
}

#[derive(Deserialize)]
struct MessageDigest {
    digest: String,
}

/// Whose signature covers the component: the identifier of the key.
///
/// # Errors
/// If the bundle is not one, no key's signature holds, or it is of something else.
pub(in crate::adapters) fn verify_component(
    bundle: &[u8],
    keys: &[SignerKey],
    component: &[u8],
) -> Result<String, SignatureError> {
    if bundle.len() > SIGNATURE_BYTES_MAX {
        return Err(SignatureError::TooLong);
    }
    let ComponentBundle { media_type, message, envelope } = parse(bundle)?;
    expect("mediaType", &media_type, BUNDLE_TYPE)?;
    match (message, envelope) {
        (Some(message), None) => of_message(&message, keys, component),
        (None, Some(envelope)) => {
            let (files, key) = signed_files(&envelope, keys)?;
            let sha256 = hexadecimal(digest(&SHA256, component).as_ref());
            if files.values().any(|file| *file == sha256) {
                Ok(key)
            } else {
                Err(SignatureError::NotCovered(COMPONENT))
            }
        }
        _ => Err(malformed("it has neither a signature of a blob nor an envelope, or both")),
    }
}

/// The signature is over the component itself; the digest in the bundle says only what it was made for.
fn of_message(message: &MessageSignature, keys: &[SignerKey], component: &[u8]) -> Result<String, SignatureError> {
    let signature = STANDARD.decode(&message.signature).map_err(|_| malformed("its signature is not base64"))?;
    if let Some(key) = keys.iter().find(|key| key.holds(component, &signature)) {
        return Ok(key.id.clone());
    }
    let said = message.message_digest.as_ref().and_then(|said| STANDARD.decode(&said.digest).ok());
    match said {
        Some(said) if said != digest(&SHA256, component).as_ref() => Err(SignatureError::Changed(COMPONENT)),
        _ => Err(SignatureError::Untrusted(keys.len())),
    }
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
    use serde_json::{Value, json};

    use super::super::P256_PREFIX;
    use super::*;

    struct Signer {
        pair: EcdsaKeyPair,
        key: SignerKey,
    }

    fn signer() -> Signer {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &random).expect("a key");
        let der = [P256_PREFIX.as_slice(), pair.public_key().as_ref()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        Signer { pair, key: SignerKey::from_pem(&pem).expect("PEM") }
    }

    impl Signer {
        fn sign(&self, bytes: &[u8]) -> Value {
            let signature = self.pair.sign(&SystemRandom::new(), bytes).expect("a signature");
            json!({
                "mediaType": BUNDLE_TYPE,
                "verificationMaterial": {"publicKey": {"hint": "a hint"}},
                "messageSignature": {
                    "messageDigest": {"algorithm": "SHA2_256", "digest": STANDARD.encode(digest(&SHA256, bytes))},
                    "signature": STANDARD.encode(signature),
                },
            })
        }
    }

    #[test]
    fn a_signature_holds_for_its_component_and_its_key_alone() {
        let (one, other) = (signer(), signer());
        let bundle = one.sign(b"component").to_string();
        let keys = [other.key.clone(), one.key.clone()];
        let verify =
            |bundle: &str, keys: &[SignerKey], component: &[u8]| verify_component(bundle.as_bytes(), keys, component);
        assert_eq!(verify(&bundle, &keys, b"component"), Ok(one.key.id().to_owned()));
        assert_eq!(verify(&bundle, &keys, b"Component"), Err(SignatureError::Changed(COMPONENT)), "another component");
        assert_eq!(verify(&bundle, &keys[..1], b"component"), Err(SignatureError::Untrusted(1)), "another key");
        assert_eq!(verify(&bundle, &[], b"component"), Err(SignatureError::Untrusted(0)), "its key was taken away");
        // What the bundle says of itself is not believed.
        let mut lies = one.sign(b"other");
        lies["messageSignature"]["messageDigest"] = one.sign(b"component")["messageSignature"]["messageDigest"].clone();
        assert_eq!(verify(&lies.to_string(), &keys, b"component"), Err(SignatureError::Untrusted(2)));
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let one = signer();
        let bundle = one.sign(b"component");
        let keys = [one.key.clone()];
        let refused = |bundle: &str| verify_component(bundle.as_bytes(), &keys, b"component").expect_err(bundle);
        let text = bundle.to_string();
        for end in (0..text.len()).step_by(7) {
            let error = refused(text.get(..end).expect("ASCII"));
            assert!(matches!(error, SignatureError::Malformed(_)), "cut at {end}: {error}");
        }
        let with = |pointer: &str, value: Value| {
            let mut changed = bundle.clone();
            *changed.pointer_mut(pointer).expect(pointer) = value;
            refused(&changed.to_string())
        };
        assert!(matches!(with("/mediaType", json!("application/json")), SignatureError::Malformed(_)));
        assert!(matches!(with("/messageSignature", Value::Null), SignatureError::Malformed(_)));
        assert!(matches!(with("/messageSignature/signature", json!("***")), SignatureError::Malformed(_)));
        assert_eq!(with("/messageSignature/signature", json!("AAAA")), SignatureError::Untrusted(1));
        let mut both = bundle.clone();
        both["dsseEnvelope"] = json!({"payload": "", "payloadType": "", "signatures": []});
        assert!(matches!(refused(&both.to_string()), SignatureError::Malformed(_)));
        assert_eq!(refused(&" ".repeat(SIGNATURE_BYTES_MAX + 1)), SignatureError::TooLong);
    }

    #[test]
    fn a_statement_of_model_signing_covers_what_it_lists() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/signatures");
        let read = |name: &str| std::fs::read(fixtures.join(name)).expect(name);
        let pem = String::from_utf8(read("signer.pub")).expect("PEM");
        let keys = [SignerKey::from_pem(&pem).expect("PEM")];
        let (bundle, listed) = (read("adapter/model.sig"), read("adapter/adapter_config.json"));
        assert_eq!(verify_component(&bundle, &keys, &listed), Ok(keys[0].id().to_owned()));
        assert_eq!(verify_component(&bundle, &keys, b"component"), Err(SignatureError::NotCovered(COMPONENT)));
        assert_eq!(verify_component(&bundle, &[signer().key], &listed), Err(SignatureError::Untrusted(1)));
    }
}
