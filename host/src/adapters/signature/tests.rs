//! A bundle that `model_signing` made, and bundles that are wrong in one way each.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::*;
use crate::adapters::{CONFIG, SIGNATURE, SignaturePolicy, SignatureState, Signers, WEIGHTS};

/// A file that `tests/signatures/make.py` wrote.
fn fixture(name: &str) -> Vec<u8> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/signatures");
    std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn public_key(name: &str) -> SignerKey {
    SignerKey::from_pem(&String::from_utf8(fixture(name)).expect("PEM is text")).expect("a P-256 key")
}

#[test]
fn a_bundle_of_model_signing_holds() {
    let (config, weights) = (fixture(&format!("adapter/{CONFIG}")), fixture(&format!("adapter/{WEIGHTS}")));
    let bundle = fixture(&format!("adapter/{SIGNATURE}"));
    let files = [(CONFIG, &config[..]), (WEIGHTS, &weights[..])];
    let (signer, other) = (public_key("signer.pub"), public_key("other.pub"));
    assert_eq!(verify(&bundle, std::slice::from_ref(&signer), &files), Ok(signer.id().to_owned()));
    assert_eq!(verify(&bundle, &[other.clone(), signer.clone()], &files), Ok(signer.id().to_owned()));
    assert_eq!(verify(&bundle, &[other], &files), Err(SignatureError::Untrusted(1)));
    assert_eq!(verify(&bundle, &[], &files), Err(SignatureError::Untrusted(0)));
    let mut changed = weights.clone();
    *changed.last_mut().expect("not empty") ^= 1;
    let files = [(CONFIG, &config[..]), (WEIGHTS, &changed[..])];
    assert_eq!(verify(&bundle, std::slice::from_ref(&signer), &files), Err(SignatureError::Changed(WEIGHTS)));
    // It also covers a README, which is not asked for.
    let text =
        String::from_utf8(STANDARD.decode(parse::<Bundle>(&bundle).expect("a bundle").envelope.payload).unwrap());
    assert!(text.expect("JSON").contains("README.md"));
    // Cut anywhere it is no bundle.
    for end in (0..bundle.trim_ascii_end().len()).step_by(7) {
        let error = verify(&bundle[..end], std::slice::from_ref(&signer), &files).expect_err("cut");
        assert!(matches!(error, SignatureError::Malformed(_)), "{end}: {error}");
    }
}

#[test]
fn the_identifier_of_a_key_is_that_of_its_der() {
    let key = public_key("signer.pub");
    assert_eq!(key.id().len(), 64);
    assert_eq!(SignerKey::from_pem(key.pem()).expect("its own PEM"), key);
    let pem =
        |label: &str, der: &[u8]| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der));
    let der = [&P256_PREFIX[..], &key.point].concat();
    let mut compressed = der.clone();
    compressed[26] = 2;
    for text in [
        String::new(),
        "no PEM".into(),
        pem("PRIVATE KEY", &der),
        pem("PUBLIC KEY", &der[..der.len() - 1]),
        pem("PUBLIC KEY", &[&der[..], &[0]].concat()),
        pem("PUBLIC KEY", &compressed),
        pem("PUBLIC KEY", &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00]),
        pem("PUBLIC KEY", &der).replace("PUBLIC KEY", &"A".repeat(2000)),
    ] {
        assert!(matches!(SignerKey::from_pem(&text), Err(SignatureError::PublicKey(_))), "{text:.60}");
    }
}

/// Signs what a test makes of a sound statement.
struct Forge {
    pair: EcdsaKeyPair,
    key: SignerKey,
}

const FILES: [(&str, &[u8]); 2] = [("a.json", b"{}"), ("b.bin", b"weights")];

impl Forge {
    fn new() -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &random).expect("it");
        let der = [&P256_PREFIX[..], pair.public_key().as_ref()].concat();
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        Self { pair, key: SignerKey::from_pem(&pem).expect("a key") }
    }

    fn bundle(&self, payload: &[u8]) -> Value {
        let signature = self.pair.sign(&SystemRandom::new(), &pae(PAYLOAD_TYPE, payload)).expect("signed");
        json!({
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": "anything"}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(payload), "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": STANDARD.encode(signature.as_ref()), "keyid": ""}],
            },
        })
    }

    fn verify(&self, bundle: &Value) -> Result<String, SignatureError> {
        verify(bundle.to_string().as_bytes(), std::slice::from_ref(&self.key), &FILES)
    }

    /// What is said of a statement that is signed well.
    fn verdict(&self, statement: &Value) -> Result<String, SignatureError> {
        self.verify(&self.bundle(statement.to_string().as_bytes()))
    }
}

fn statement(files: &[(&str, &[u8])]) -> Value {
    let sum = |bytes: &[u8]| hexadecimal(digest(&SHA256, bytes).as_ref());
    let resources: Vec<Value> =
        files.iter().map(|(name, bytes)| json!({"name": name, "algorithm": "sha256", "digest": sum(bytes)})).collect();
    let all: Vec<u8> = files.iter().flat_map(|(_, bytes)| digest(&SHA256, bytes).as_ref().to_vec()).collect();
    json!({
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "adapter", "digest": {"sha256": sum(&all)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "resources": resources,
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": []},
        },
    })
}

/// A key of its own, and its bundle over the two files of an adapter.
pub(in crate::adapters) fn signed(config: &[u8], weights: &[u8]) -> (SignerKey, Vec<u8>) {
    let forge = Forge::new();
    let bundle = forge.bundle(statement(&[(CONFIG, config), (WEIGHTS, weights)]).to_string().as_bytes());
    (forge.key, bundle.to_string().into_bytes())
}

#[test]
fn each_fault_of_a_statement_is_refused() {
    let forge = Forge::new();
    let sound = statement(&FILES);
    assert_eq!(forge.verdict(&sound), Ok(forge.key.id().to_owned()));
    let more = statement(&[FILES[0], FILES[1], ("chat_template.jinja", b"{{ }}")]);
    assert!(forge.verdict(&more).is_ok(), "what is covered beside the files is not asked for");
    assert_eq!(forge.verdict(&statement(&FILES[..1])), Err(SignatureError::NotCovered("b.bin")));
    assert_eq!(forge.verdict(&statement(&[])), Err(SignatureError::NotCovered("a.json")));
    assert_eq!(
        forge.verdict(&statement(&[("./a.json", b"{}"), FILES[1]])),
        Err(SignatureError::NotCovered("a.json")),
        "a name is taken as it is"
    );
    assert_eq!(forge.verdict(&statement(&[("a.json", b"{ }"), FILES[1]])), Err(SignatureError::Changed("a.json")));
    let twice = statement(&[FILES[0], ("a.json", b"other"), FILES[1]]);
    let named_twice = |error: &SignatureError| error.to_string().contains("`a.json` is there twice");
    assert!(forge.verdict(&twice).is_err_and(|error| named_twice(&error)));

    let other_kinds: [(&str, Value, &str); 10] = [
        ("/_type", json!("https://in-toto.io/Statement/v0.1"), "_type"),
        ("/predicateType", json!("https://slsa.dev/provenance/v1"), "predicateType"),
        ("/predicate/serialization/method", json!("shards"), "method"),
        ("/predicate/serialization/hash_type", json!("blake3"), "hash_type"),
        ("/predicate/resources/0/algorithm", json!("blake2b"), "algorithm"),
        ("/predicate/resources/0/digest", json!("00"), "64 hexadecimal digits"),
        ("/predicate/resources/0/digest", json!("é".repeat(32)), "64 hexadecimal digits"),
        ("/predicate/resources", json!({}), "invalid type"),
        ("/subject", json!([]), "0 subjects"),
        ("/subject/0/digest/sha256", json!("0".repeat(64)), "subject's digest"),
    ];
    for (place, value, says) in other_kinds {
        let mut changed = sound.clone();
        *changed.pointer_mut(place).expect("it is there") = value;
        let error = forge.verdict(&changed).expect_err(place);
        assert!(matches!(&error, SignatureError::Malformed(reason) if reason.contains(says)), "{place}: {error}");
    }
    // A key that is there twice: readers differ in which they take.
    let doubled = sound.to_string().replacen("{\"_type\"", "{\"_type\":\"x\",\"_type\"", 1);
    assert!(matches!(forge.verify(&forge.bundle(doubled.as_bytes())), Err(SignatureError::Malformed(_))));
    for payload in [&b""[..], b"[]", b"\xff", &b"[".repeat(100_000)] {
        assert!(matches!(forge.verify(&forge.bundle(payload)), Err(SignatureError::Malformed(_))));
    }
}

#[test]
fn each_fault_of_a_bundle_is_refused() {
    let forge = Forge::new();
    let sound = forge.bundle(statement(&FILES).to_string().as_bytes());
    assert!(forge.verify(&sound).is_ok());
    let untrusted = SignatureError::Untrusted(1);
    let changed = |place: &str, value: Value| {
        let mut bundle = sound.clone();
        *bundle.pointer_mut(place).expect("it is there") = value;
        forge.verify(&bundle).expect_err(place)
    };
    let one = sound["dsseEnvelope"]["signatures"][0].clone();
    for (place, value, says) in [
        ("/mediaType", json!("application/vnd.dev.sigstore.bundle+json;version=0.2"), "mediaType"),
        ("/dsseEnvelope/payloadType", json!("application/vnd.tenon.receipt.v1+json"), "payloadType"),
        ("/dsseEnvelope/payload", json!("?"), "payload is not base64"),
        ("/dsseEnvelope/signatures", json!([]), "0 signatures"),
        ("/dsseEnvelope/signatures", json!([one, one]), "2 signatures"),
        ("/dsseEnvelope/signatures/0/sig", json!("?"), "signature is not base64"),
        ("/dsseEnvelope", json!(null), "invalid type"),
    ] {
        let error = changed(place, value);
        assert!(matches!(&error, SignatureError::Malformed(reason) if reason.contains(says)), "{place}: {error}");
    }
    // Another payload under the same signature, and what is no signature.
    let other = STANDARD.encode(statement(&[]).to_string());
    assert_eq!(changed("/dsseEnvelope/payload", json!(other)), untrusted);
    for sig in [Vec::new(), vec![0; 72], vec![0x30; 4000]] {
        assert_eq!(changed("/dsseEnvelope/signatures/0/sig", json!(STANDARD.encode(sig))), untrusted);
    }
    // r = s = 0, which faulty verifiers took for every message (CVE-2022-21449).
    let zeros = STANDARD.encode([0x30, 0x06, 0x02, 0x01, 0, 0x02, 0x01, 0]);
    assert_eq!(changed("/dsseEnvelope/signatures/0/sig", json!(zeros)), untrusted);
    // Signed for another type of payload: the type is part of what is signed.
    let payload = statement(&FILES).to_string();
    let signature = forge.pair.sign(&SystemRandom::new(), &pae("other", payload.as_bytes())).expect("signed");
    let signature = json!(STANDARD.encode(signature.as_ref()));
    assert_eq!(changed("/dsseEnvelope/signatures/0/sig", signature), untrusted);
    assert_eq!(Forge::new().verify(&sound), Err(untrusted), "another key");

    let huge = vec![b' '; SIGNATURE_BYTES_MAX + 1];
    assert_eq!(verify(&huge, &[], &FILES), Err(SignatureError::TooLong));
    let deep = b"[".repeat(SIGNATURE_BYTES_MAX);
    assert!(matches!(verify(&deep, &[], &FILES), Err(SignatureError::Malformed(_))));
}

#[test]
fn the_policy_decides_what_is_looked_at() {
    let forge = Forge::new();
    let sound = forge.bundle(statement(&FILES).to_string().as_bytes()).to_string();
    let of = |policy, bundle: Option<&str>| {
        let signers = Signers { policy, plugins: policy, keys: vec![forge.key.clone()], revision: 1 };
        signers.check(bundle.map(str::as_bytes), &FILES).map_err(|error| error.code())
    };
    let signed = Ok(SignatureState::Signed { key: forge.key.id().to_owned() });
    for (policy, bundle, expected) in [
        (SignaturePolicy::None, None, Ok(SignatureState::Unsigned)),
        (SignaturePolicy::None, Some("no bundle"), Ok(SignatureState::Unchecked)),
        (SignaturePolicy::Optional, None, Ok(SignatureState::Unsigned)),
        (SignaturePolicy::Optional, Some(&*sound), signed.clone()),
        (SignaturePolicy::Optional, Some("no bundle"), Err("adapter_signature_invalid")),
        (SignaturePolicy::Required, None, Err("adapter_signature_required")),
        (SignaturePolicy::Required, Some(&*sound), signed),
        (SignaturePolicy::Required, Some("{}"), Err("adapter_signature_invalid")),
    ] {
        assert_eq!(of(policy, bundle), expected, "{policy:?} {bundle:?}");
    }
}
