//! Registries that lie, break off and lead astray, each against a pull as a command line and as a host does it. Not here: a registry
//! that is honest (`tests/it/registry.rs`).

use std::sync::Arc;

use serde_json::{Value, json};

use super::layout::documents;
use super::*;
use crate::adapters::fault_server::{FaultServer, Reply, Seen};
use crate::adapters::{Guard, SIGNATURE_BYTES_MAX};

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0 a component, as far as a registry can tell";

/// What an honest registry has of one artefact.
#[derive(Clone)]
struct Artefact {
    manifest: Vec<u8>,
    config: Vec<u8>,
}

impl Artefact {
    fn new() -> Self {
        let (manifest, config) = documents(COMPONENT, &WasmWorld::default(), Default::default()).expect("documents");
        Self { manifest, config }
    }

    fn changed(pointer: &str, value: Value) -> Self {
        let honest = Self::new();
        let mut manifest: Value = serde_json::from_slice(&honest.manifest).expect("JSON");
        *manifest.pointer_mut(pointer).expect(pointer) = value;
        Self { manifest: manifest.to_string().into_bytes(), ..honest }
    }

    fn digest(&self) -> Sha256 {
        Sha256::of(&self.manifest)
    }

    /// What is asked for, by the end of its path.
    fn answer(&self, seen: &Seen) -> Reply {
        let path = seen.path.split('?').next().unwrap_or_default();
        let is_of = |bytes: &[u8]| path.ends_with(&Sha256::of(bytes).to_string());
        if path.ends_with("/manifests/1") || path.ends_with(&format!("/manifests/{}", self.digest())) {
            Reply::ok(&self.manifest).with("Content-Type", super::layout::MANIFEST)
        } else if path.contains("/blobs/") && is_of(COMPONENT) {
            Reply::ok(COMPONENT)
        } else if path.contains("/blobs/") && is_of(&self.config) {
            Reply::ok(&self.config)
        } else {
            Reply::status(404)
        }
    }
}

/// As a command line does it, from a registry on this machine.
async fn pull_named(server: &FaultServer, which: &str, login: Option<Login>) -> Result<Pulled, OciError> {
    let reference: Reference = format!("127.0.0.1:{}/acme/echo{which}", server.port()).parse().expect("a reference");
    let tls = crate::adapters::tls(false).expect("TLS");
    let doors = Doors::named(&reference, true, tls).await?;
    pull(&mut Session::new(doors, reference, login, false), &|_, _| ()).await
}

/// As a host does it, which may ask this registry and nothing else.
async fn pull_listed(server: &FaultServer, networks: &[&str]) -> Result<Pulled, OciError> {
    let port = server.port();
    let hosts = vec![format!("http://127.0.0.1:{port}").parse().expect("an origin")];
    let private_networks = networks.iter().map(|network| network.parse().expect("a network")).collect();
    let sources = PluginSources::new(&PluginSourcesConfig { hosts, private_networks }).expect("sources");
    sources.pull(&format!("127.0.0.1:{port}/acme/echo:1").parse().expect("a reference")).await
}

async fn serve(script: impl Fn(&Artefact, &Seen) -> Option<Reply> + Send + Sync + 'static) -> FaultServer {
    let artefact = Artefact::new();
    FaultServer::start(move |seen| script(&artefact, seen).unwrap_or_else(|| artefact.answer(seen))).await
}

fn is_manifest(seen: &Seen) -> bool {
    seen.path.ends_with("/manifests/1")
}

fn is_component(seen: &Seen) -> bool {
    seen.path.ends_with(&format!("/blobs/{}", Sha256::of(COMPONENT)))
}

async fn refused(server: &FaultServer, code: &str, said: &str) {
    for (found, who) in [
        (pull_named(server, ":1", None).await, "a command line"),
        (pull_listed(server, &["127.0.0.0/8"]).await, "a host"),
    ] {
        let error = found.map(|_| ()).expect_err(said);
        assert_eq!(error.code(), code, "{who}: {error}");
        assert!(error.to_string().contains(said), "{who}: {error}");
    }
}

#[tokio::test]
async fn an_honest_registry_is_pulled_from() {
    let server = serve(|_, _| None).await;
    for pulled in [pull_named(&server, ":1", None).await, pull_listed(&server, &["127.0.0.0/8"]).await] {
        let pulled = pulled.expect("pulled");
        assert_eq!((&*pulled.component, pulled.digest), (COMPONENT, Artefact::new().digest()));
        assert!(pulled.signatures.is_empty());
    }
    let digest = Artefact::new().digest();
    pull_named(&server, &format!("@{digest}"), None).await.expect("by its digest");
    pull_named(&server, &format!(":1@{digest}"), None).await.expect("by both");
    let error = pull_named(&server, ":2", None).await.expect_err("another tag");
    assert_eq!(error.code(), "source_not_found");
}

#[tokio::test]
async fn nothing_is_believed_that_has_another_digest() {
    let server = serve(|_, seen| {
        let mut changed = COMPONENT.to_vec();
        changed[9] ^= 1;
        is_component(seen).then(|| Reply::ok(&changed))
    })
    .await;
    refused(&server, "source_unverified", "the component does not have the digest").await;
    let server = serve(|_, seen| is_component(seen).then(|| Reply::ok(&COMPONENT[..20]))).await;
    refused(&server, "source_unverified", "the component does not have the digest").await;
    let server = serve(|artefact, seen| {
        let mut changed = artefact.config.clone();
        *changed.last_mut().expect("a byte") = b' ';
        seen.path.ends_with(&Sha256::of(&artefact.config).to_string()).then(|| Reply::ok(&changed))
    })
    .await;
    refused(&server, "source_unverified", "the config does not have the digest").await;
    // The registry says one digest and sends another.
    let server = serve(|artefact, seen| {
        let said = Sha256::of(b"other").to_string();
        is_manifest(seen).then(|| Reply::ok(&artefact.manifest).with("Docker-Content-Digest", &said))
    })
    .await;
    refused(&server, "source_unverified", "the manifest does not have the digest").await;
    // The reference says one digest, and the registry has another under it.
    let other = Sha256::of(b"other");
    let server =
        serve(move |artefact, seen| seen.path.ends_with(&other.to_string()).then(|| Reply::ok(&artefact.manifest)))
            .await;
    let error = pull_named(&server, &format!(":1@{other}"), None).await.expect_err("another digest");
    assert_eq!(error.code(), "source_unverified");
    // A config of another layer.
    let (manifest, _) = documents(COMPONENT, &WasmWorld::default(), Default::default()).expect("documents");
    let (_, config) = documents(b"other", &WasmWorld::default(), Default::default()).expect("documents");
    let mut manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    manifest["config"] = json!(super::layout::Descriptor::of(super::layout::CONFIG, &config));
    let artefact = Artefact { manifest: manifest.to_string().into_bytes(), config };
    let server = FaultServer::start(move |seen| artefact.answer(seen)).await;
    refused(&server, "source_not_plugin", "its config is of another layer").await;
}

#[tokio::test]
async fn lengths_are_known_before_a_byte_is_kept() {
    let server = serve(|_, seen| is_manifest(seen).then(|| Reply::ok(&[b' '; 1024]).endless())).await;
    refused(&server, "source_too_large", "the manifest is longer").await;
    let server = serve(|_, seen| is_manifest(seen).then(|| Reply::ok(b"{").saying(Some(1 << 40)))).await;
    refused(&server, "source_too_large", "document_bytes_max").await;
    let server = serve(|_, seen| is_component(seen).then(|| Reply::ok(&[7; 4096]).endless())).await;
    refused(&server, "source_too_large", "the component is longer").await;
    for size in [COMPONENT_BYTES_MAX + 1, u64::MAX] {
        let huge = Artefact::changed("/layers/0/size", json!(size));
        let server = FaultServer::start(move |seen| huge.answer(seen)).await;
        refused(&server, "source_too_large", "upload_bytes_max").await;
        assert!(!server.seen().iter().any(is_component), "it is not even asked for");
    }
    let server = serve(|_, seen| is_component(seen).then(|| Reply::ok(COMPONENT).cut(9))).await;
    refused(&server, "source_unavailable", "try again later").await;
}

#[tokio::test]
async fn where_a_registry_leads_is_judged() {
    let server = serve(|_, seen| is_component(seen).then(|| Reply::redirect("http://169.254.169.254/latest/"))).await;
    refused(&server, "source_not_allowed", "leads to where this does not go").await;
    let server = serve(|_, seen| is_manifest(seen).then(|| Reply::redirect("/v2/acme/echo/manifests/1"))).await;
    refused(&server, "source_failed", "redirects more than 5 times").await;
    let server = serve(|_, seen| is_manifest(seen).then(|| Reply::redirect("file:///etc/passwd"))).await;
    refused(&server, "source_not_allowed", "leads to where").await;
    let server = serve(|_, seen| is_manifest(seen).then(|| Reply::status(302))).await;
    refused(&server, "source_failed", "redirects to nowhere").await;
    let realm = "Bearer realm=\"http://169.254.169.254/token\"";
    let server = serve(move |_, _| Some(Reply::status(401).with("WWW-Authenticate", realm))).await;
    refused(&server, "source_not_allowed", "leads to where").await;
    // A listed registry at an address that is not.
    let server = serve(|_, _| None).await;
    let error = pull_listed(&server, &[]).await.expect_err("a private address");
    assert_eq!(error.code(), "source_not_allowed");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn what_is_no_component_is_said() {
    for (pointer, value, said) in [
        ("/config/mediaType", json!("application/vnd.oci.image.config.v1+json"), "its config is of type"),
        ("/layers/0/mediaType", json!("application/vnd.oci.image.layer.v1.tar"), "its layer is of type"),
        ("/config/digest", json!("sha512:00"), "not sha256"),
        ("/config/digest", json!("../../../etc/passwd"), "not sha256"),
    ] {
        let artefact = Artefact::changed(pointer, value);
        let server = FaultServer::start(move |seen| artefact.answer(seen)).await;
        refused(&server, "source_not_plugin", said).await;
    }
    let server = serve(|_, seen| is_manifest(seen).then(|| Reply::ok(b"<html>log in</html>"))).await;
    refused(&server, "source_not_plugin", "cannot be read").await;
    let server = serve(|_, seen| is_manifest(seen).then(|| Reply::ok(br#"{"schemaVersion":2,"manifests":[]}"#))).await;
    refused(&server, "source_not_plugin", "index of several").await;
}

#[tokio::test]
async fn a_registry_that_is_never_content_is_asked_twice_and_no_more() {
    let server = FaultServer::start(|seen| {
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", seen.header("host").unwrap_or_default());
        if seen.path.starts_with("/token") {
            return Reply::ok(br#"{"token": "worthless"}"#);
        }
        Reply::status(401).with("WWW-Authenticate", &realm)
    })
    .await;
    let error = pull_named(&server, ":1", None).await.expect_err("never content");
    assert!(error.code() == "source_denied" && error.to_string().contains("--password-stdin"), "{error}");
    let seen = server.seen();
    let paths: Vec<&str> = seen.iter().map(|seen| seen.path.split('?').next().unwrap_or_default()).collect();
    assert_eq!(paths, ["/v2/acme/echo/manifests/1", "/token", "/v2/acme/echo/manifests/1"]);
    assert!(seen[1].path.ends_with("?service=s&scope=repository%3Aacme%2Fecho%3Apull"), "{}", seen[1].path);
    assert_eq!(seen[2].header("authorization"), Some("Bearer worthless"));
    // Tokens have a length too, and must be such.
    for answer in [Reply::ok(&[b' '; 4096]).endless(), Reply::ok(b"{}"), Reply::ok(b"{\"token\": \"a\\nb\"}")] {
        let answer = Arc::new(answer);
        let server = FaultServer::start(move |seen| {
            let host = seen.header("host").unwrap_or_default();
            let realm = format!("Bearer realm=\"http://{host}/token\"");
            if seen.path.starts_with("/token") {
                (*answer).clone()
            } else {
                Reply::status(401).with("WWW-Authenticate", &realm)
            }
        })
        .await;
        let error = pull_named(&server, ":1", None).await.expect_err("no token");
        assert!(matches!(error.code(), "source_too_large" | "source_failed"), "{error}");
    }
}

#[tokio::test]
async fn a_password_goes_to_the_registry_and_nowhere_else() {
    let login = || Some(Login { username: "ann".into(), password: "secret".to_owned().into() });
    let elsewhere = Arc::new(FaultServer::start(|_| Reply::ok(COMPONENT)).await);
    let port = elsewhere.port();
    let server = serve(move |_, seen| {
        if seen.header("authorization") != Some("Basic YW5uOnNlY3JldA==") {
            return Some(Reply::status(401).with("WWW-Authenticate", "Basic realm=\"r\""));
        }
        None
    })
    .await;
    pull_named(&server, ":1", login()).await.expect("pulled");
    let error =
        pull_named(&server, ":1", Some(Login { username: "ann".into(), password: "no".to_owned().into() })).await;
    assert!(error.expect_err("wrong").to_string().contains("user name and password were given"));
    // Another origin, though on this machine: it gets no request at all over plain HTTP.
    let server = serve(move |_, seen| {
        if seen.header("authorization").is_none() {
            return Some(Reply::status(401).with("WWW-Authenticate", "Basic realm=\"r\""));
        }
        is_component(seen).then(|| Reply::redirect(&format!("http://127.0.0.1:{port}/blob")))
    })
    .await;
    let error = pull_named(&server, ":1", login()).await.expect_err("elsewhere");
    assert_eq!(error.code(), "source_not_allowed");
    assert!(elsewhere.seen().is_empty());
    // A host may list it: it is asked, and not told.
    let own = server.port();
    let hosts = [own, port].map(|port| format!("http://127.0.0.1:{port}").parse().expect("an origin")).to_vec();
    let guard = Arc::new(Guard::new(hosts, vec!["127.0.0.0/8".parse().expect("a network")]));
    let reference: Reference = format!("127.0.0.1:{own}/acme/echo:1").parse().expect("a reference");
    let tls = crate::adapters::tls(false).expect("TLS");
    let client = doors::build(reqwest::Client::builder().no_proxy(), None, tls).expect("a client");
    let doors = Doors::listed(client, guard, &reference).expect("listed");
    pull(&mut Session::new(doors, reference, login(), false), &|_, _| ()).await.expect("pulled");
    let seen = elsewhere.seen();
    assert!(seen.len() == 1 && seen[0].header("authorization").is_none());
}

#[tokio::test]
async fn signatures_are_found_by_both_ways_and_strangers_are_passed_over() {
    use super::layout::{BUNDLE, Descriptor, EMPTY, EMPTY_BYTES, INDEX, MANIFEST};
    let artefact = Artefact::new();
    let bundle = br#"{"mediaType": "a bundle, as far as a registry can tell"}"#;
    let referrer = |subject: &[u8], bytes: &[u8], size: usize| {
        let layer = Descriptor { size: size as u64, ..Descriptor::of(BUNDLE, bytes) };
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "layers": [layer],
            "config": Descriptor::of(EMPTY, EMPTY_BYTES), "subject": Descriptor::of(MANIFEST, subject),
        })
        .to_string()
    };
    let own = referrer(&artefact.manifest, bundle, bundle.len());
    let of_other = referrer(b"another manifest", bundle, bundle.len());
    let huge = referrer(&artefact.manifest, bundle, SIGNATURE_BYTES_MAX + 1);
    let entry =
        |text: &str| Descriptor { artifact_type: Some(BUNDLE.into()), ..Descriptor::of(MANIFEST, text.as_bytes()) };
    let gone = entry("a manifest that is not there");
    let untyped = Descriptor { artifact_type: None, ..entry(&own) };
    let list = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [untyped, gone, entry(&of_other), entry(&huge), entry(&own)],
    })
    .to_string();
    let subject = artefact.digest();
    for is_new in [true, false] {
        let (artefact, list, all) = (artefact.clone(), list.clone(), [own.clone(), of_other.clone(), huge.clone()]);
        let server = FaultServer::start(move |seen| {
            let path = seen.path.split('?').next().unwrap_or_default();
            let is_list = path.ends_with(&format!("/referrers/{subject}"));
            if (is_list && is_new) || path.ends_with(&format!("/manifests/sha256-{}", subject.digits())) {
                return Reply::ok(list.as_bytes()).with("Content-Type", INDEX);
            }
            if let Some(text) = all.iter().find(|text| path.ends_with(&Sha256::of(text.as_bytes()).to_string())) {
                return Reply::ok(text.as_bytes()).with("Content-Type", MANIFEST);
            }
            if path.ends_with(&format!("/blobs/{}", Sha256::of(bundle))) {
                return Reply::ok(bundle);
            }
            artefact.answer(seen)
        })
        .await;
        let pulled = pull_named(&server, ":1", None).await.expect("pulled");
        assert_eq!(pulled.signatures, [bundle.as_slice()], "by the API: {is_new}");
    }
}

#[tokio::test]
async fn a_registry_that_does_not_list_referrers_has_none() {
    for answer in [
        Reply::redirect("http://169.254.169.254/"),
        Reply::redirect("/login"),
        Reply::status(403),
        Reply::status(401),
        Reply::ok(b"<html>log in</html>"),
        Reply::ok(&[b' '; 4096]).endless(),
    ] {
        let answer = Arc::new(answer);
        let server = serve(move |_, seen| {
            let is_asked = seen.path.contains("/referrers/") || seen.path.contains("/manifests/sha256-");
            is_asked.then(|| (*answer).clone())
        })
        .await;
        for pulled in [pull_named(&server, ":1", None).await, pull_listed(&server, &["127.0.0.0/8"]).await] {
            assert!(pulled.expect("pulled").signatures.is_empty());
        }
    }
    let server = serve(|_, seen| seen.path.contains("/referrers/").then(|| Reply::status(503))).await;
    pull_named(&server, ":1", None).await.expect("the tag is asked too, and is not there");
    let server = serve(|_, seen| seen.path.contains("/manifests/sha256-").then(|| Reply::status(503))).await;
    let error = pull_named(&server, ":1", None).await.expect_err("it may be there");
    assert_eq!(error.code(), "source_unavailable");
}
