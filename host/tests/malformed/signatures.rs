//! What holds of every bundle of signatures, whatever is in it and whoever made it. The fuzz target `adapter_signature` is these
//! lines over libFuzzer's bytes. A statement is read only if a trusted key signed it, so most of them are signed here.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use generators::{Draw, Json};
use host::adapters::{SignaturePolicy, SignatureState, SignerKey, Signers};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

/// A refusal is a line for people and logs, whatever it quotes.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Every reason that a bundle can give.
pub(crate) const CODES: [&str; 2] = ["adapter_signature_invalid", "adapter_signature_untrusted"];

const FILES: [(&str, &[u8]); 2] = [("adapter_config.json", b"{}"), ("adapter_model.safetensors", b"weights")];
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Before the point of an uncompressed P-256 key (RFC 5480).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A key that signs, and is trusted.
struct Signer {
    pair: EcdsaKeyPair,
    trusted: SignerKey,
}

impl Signer {
    /// Made once for a process.
    fn of_this_process() -> &'static Self {
        static SIGNER: OnceLock<Signer> = OnceLock::new();
        SIGNER.get_or_init(|| {
            let random = SystemRandom::new();
            let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &random);
            let pair = pair.expect("its own key");
            let der = STANDARD.encode([&P256_PREFIX[..], pair.public_key().as_ref()].concat());
            let pem = format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n");
            Self { pair, trusted: SignerKey::from_pem(&pem).expect("a public key") }
        })
    }

    fn bundle(&self, payload: &[u8]) -> Json {
        let message =
            [format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).as_bytes(), payload].concat();
        let signature = self.pair.sign(&SystemRandom::new(), &message).expect("signed");
        let signature =
            Json::object([("sig", STANDARD.encode(signature.as_ref()).as_str().into()), ("keyid", "".into())]);
        Json::object([
            ("mediaType", "application/vnd.dev.sigstore.bundle.v0.3+json".into()),
            ("verificationMaterial", Json::object([("publicKey", Json::object([("hint", "any".into())]))])),
            (
                "dsseEnvelope",
                Json::object([
                    ("payload", STANDARD.encode(payload).as_str().into()),
                    ("payloadType", PAYLOAD_TYPE.into()),
                    ("signatures", Json::List(vec![signature])),
                ]),
            ),
        ])
    }
}

/// Makes a bundle of these bytes and has it checked. Gives the verdict: `signed`, or a code.
///
/// # Panics
/// If something does not hold.
pub(crate) fn hold(bytes: &[u8]) -> &'static str {
    let signer = Signer::of_this_process();
    let mut draw = Draw::new(bytes);
    let kind = draw.below(8);
    let mut payload = statement();
    let bundle = if kind == 7 {
        payload = Json::Null;
        draw.rest().to_vec()
    } else {
        if kind < 4 {
            (0..draw.below(4)).for_each(|_| payload.mutate(&mut draw));
        }
        let mut bundle = signer.bundle(payload.to_string().as_bytes());
        if matches!(kind, 4 | 5) {
            (0..=draw.below(3)).for_each(|_| bundle.mutate(&mut draw));
        }
        let mut bundle = bundle.to_string().into_bytes();
        if kind == 6 {
            draw.damage(&mut bundle);
        }
        bundle
    };
    let (policy, keys) = (SignaturePolicy::Required, vec![signer.trusted.clone()]);
    let signers = Signers { policy, plugins: policy, keys, revision: 1 };
    let nobody = Signers { keys: Vec::new(), ..signers.clone() };
    assert!(nobody.check(Some(&bundle), &FILES).is_err(), "nobody's signature holds if nobody is trusted");
    // The same bundle beside a plugin: what covers both files covers each.
    let of_plugin = signers.check_plugin(&[bundle.clone().into()], FILES[0].1);
    if let Err(error) = &of_plugin {
        assert!(error.code().starts_with("plugin_signature_"), "{}: {error}", error.code());
        assert!(!error.to_string().contains(char::is_control), "{error:?}");
    }
    assert!(nobody.check_plugin(&[bundle.clone().into()], FILES[0].1).is_err());
    match signers.check(Some(&bundle), &FILES) {
        Ok(SignatureState::Signed { key }) => {
            assert_eq!(key, signer.trusted.id());
            assert!(of_plugin.is_ok(), "{of_plugin:?}");
            // The statement that was signed names both files by their digests, however it is written.
            let text = payload.to_string().to_ascii_lowercase();
            assert!(kind != 7, "nobody else has the key");
            assert!(FILES.iter().all(|(name, bytes)| text.contains(name) && text.contains(&sum(bytes))), "{text}");
            "signed"
        }
        Ok(state) => panic!("{state:?} where a signature is asked for"),
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() <= MESSAGE_BYTES_MAX, "{} bytes: {message:.200}", message.len());
            assert!(!message.contains(char::is_control), "{message:?}");
            let code = CODES.into_iter().find(|code| *code == error.code());
            code.unwrap_or_else(|| panic!("{}: {message}", error.code()))
        }
    }
}

/// A sound statement about both files.
fn statement() -> Json {
    let resource = |(name, bytes): (&str, &[u8])| {
        Json::object([("name", name.into()), ("algorithm", "sha256".into()), ("digest", sum(bytes).as_str().into())])
    };
    let all: Vec<u8> = FILES.iter().flat_map(|(_, bytes)| digest(&SHA256, bytes).as_ref().to_vec()).collect();
    let subject =
        Json::object([("name", "adapter".into()), ("digest", Json::object([("sha256", sum(&all).as_str().into())]))]);
    Json::object([
        ("_type", "https://in-toto.io/Statement/v1".into()),
        ("subject", Json::List(vec![subject])),
        ("predicateType", "https://model_signing/signature/v1.0".into()),
        (
            "predicate",
            Json::object([
                ("resources", Json::List(FILES.into_iter().map(resource).collect())),
                ("serialization", Json::object([("method", "files".into()), ("hash_type", "sha256".into())])),
            ]),
        ),
    ])
}

fn sum(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
