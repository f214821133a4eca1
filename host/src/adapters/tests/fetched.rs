//! Adapters that are fetched, from the URL to the lease.

use super::super::source::fault_server::{FaultServer, Reply, Seen};
use super::*;

/// May ask this server alone.
async fn allowed(server: &FaultServer) -> AdapterStore {
    over(Arc::new(MemoryStore::default()), |config| {
        config.sources = SourcesConfig {
            hosts: vec![format!("http://{}", server.address).parse().expect("an origin")],
            private_networks: vec!["127.0.0.1/32".parse().expect("a network")],
            retry_wait: std::time::Duration::from_millis(1),
            ..SourcesConfig::default()
        };
    })
    .await
}

fn honest(seen: &Seen) -> Reply {
    let (config, weights) = peft(0.5);
    match seen.path.as_str() {
        "/caps/adapter_config.json" => Reply::ok(&config),
        "/caps/adapter_model.safetensors" => Reply::honest(&weights, "\"one\"", seen).cut(700),
        _ => Reply::status(404),
    }
}

#[tokio::test]
async fn a_fetched_adapter_is_the_one_that_was_uploaded() {
    let server = FaultServer::start(honest).await;
    let adapters = allowed(&server).await;
    let (acme, url) = (tenant("acme"), format!("http://{}/caps/", server.address));
    let uploaded = add(&in_memory().await, &acme, "caps", 0.5).await;
    let digest = Some(uploaded.digest);
    let fetched = adapters.add_url(&acme, &alias("caps"), &url, None, digest).await.expect("fetched");
    assert_eq!(fetched, uploaded);
    assert_eq!(adapters.lease(&acme, fetched.digest).await.expect("lease").adapter().rank(), 2);
}

#[tokio::test]
async fn what_was_fetched_and_is_wrong_leaves_nothing() {
    let wrong = |seen: &Seen| if seen.path.ends_with(".json") { honest(seen) } else { Reply::ok(b"not an adapter") };
    let (good, bad) = (FaultServer::start(honest).await, FaultServer::start(wrong).await);
    let acme = tenant("acme");
    let adapters = allowed(&good).await;
    let url = format!("http://{}/caps", good.address);
    let other = Some(Digest::of(b"something else"));
    let error = adapters.add_url(&acme, &alias("caps"), &url, None, other).await.expect_err("another digest");
    assert_eq!(error.code(), "digest_mismatch");
    let error = adapters.add_url(&acme, &alias("caps"), &format!("{url}-none"), None, None).await.expect_err("none");
    assert_eq!(error.code(), "source_not_found");
    let elsewhere = format!("http://{}/caps", bad.address);
    let error = adapters.add_url(&acme, &alias("caps"), &elsewhere, None, None).await.expect_err("not listed");
    assert_eq!((error.code(), bad.seen().len()), ("source_not_allowed", 0));
    assert!(adapters.list(&acme).await.expect("list").is_empty());
    let adapters = allowed(&bad).await;
    let error = adapters.add_url(&acme, &alias("caps"), &elsewhere, None, None).await.expect_err("no adapter");
    assert!(matches!(error, AdapterError::Rejected(_)), "{error:?}");
    assert!(adapters.list(&acme).await.expect("list").is_empty());
}

#[tokio::test]
async fn who_has_no_room_for_an_alias_fetches_nothing() {
    let server = FaultServer::start(honest).await;
    let adapters = over(Arc::new(MemoryStore::default()), |config| {
        config.aliases_per_tenant_max = 0;
        config.sources.hosts = vec![format!("http://{}", server.address).parse().expect("an origin")];
        config.sources.private_networks = vec!["127.0.0.1/32".parse().expect("a network")];
    })
    .await;
    let url = format!("http://{}/caps", server.address);
    let error = adapters.add_url(&tenant("acme"), &alias("caps"), &url, None, None).await.expect_err("full");
    assert_eq!((error.code(), server.seen().len()), ("limit_exceeded", 0));
}

#[tokio::test]
async fn a_first_use_adds_once_and_a_later_one_changes_nothing() {
    let server = FaultServer::start(honest).await;
    let adapters = allowed(&server).await;
    let (acme, url) = (tenant("acme"), format!("http://{}/caps", server.address));
    let by_url = adapters.alias_of_source(&url).expect("an alias");
    assert_eq!(adapters.alias_of_source(&url).expect("an alias"), by_url);
    assert_ne!(adapters.alias_of_source(&format!("{url}/")).expect("an alias"), by_url);

    let none = format!("{url}-none");
    for _ in 0..2 {
        let error = adapters.add_url_once(&acme, &by_url, &none, None).await.expect_err("none");
        assert_eq!(error.code(), "source_not_found", "a failure is not kept");
    }
    let add = || adapters.add_url_once(&acme, &by_url, &url, None);
    let (one, two, three) = tokio::join!(add(), add(), add());
    let added = [one, two, three].map(|added| added.expect("there"));
    assert_eq!(added.iter().filter(|is_new| **is_new).count(), 1);
    let weights = |seen: &Seen| seen.path == "/caps/adapter_model.safetensors" && seen.range_first().is_none();
    assert_eq!(server.seen().iter().filter(|seen| weights(seen)).count(), 1);

    // The alias is the truth: it is not asked for again while it is there, and is after it was removed.
    let before = server.seen().len();
    assert!(!adapters.add_url_once(&acme, &by_url, &none, None).await.expect("there"));
    assert_eq!(server.seen().len(), before);
    adapters.remove(&acme, &by_url).await.expect("removed");
    assert!(add().await.expect("added"));
    assert!(server.seen().len() > before);
    assert!(adapters.info(&tenant("other"), by_url.as_str()).await.expect("asked").is_none());
}

/// Of those who ask at the same time, each with another credential, one that does not hold fails alone.
#[tokio::test]
async fn a_credential_that_does_not_hold_fails_nobody_else() {
    let private = |seen: &Seen| match seen.header("authorization") {
        Some("Bearer right") => honest(seen),
        _ => Reply::status(401),
    };
    let server = FaultServer::start(private).await;
    let adapters = allowed(&server).await;
    let (acme, url) = (tenant("acme"), format!("http://{}/caps", server.address));
    let token = |token: &str| {
        let origin = adapters.token_origin(&url).expect("an origin");
        Credential::Bearer { origin, token: zeroize::Zeroizing::new(token.to_owned()) }
    };
    let (right, wrong, by_url) = (token("right"), token("wrong"), alias("by-url"));
    let add = |credential| adapters.add_url_once(&acme, &by_url, &url, Some(credential));
    let (refused, added) = tokio::join!(add(&wrong), add(&right));
    assert_eq!(refused.expect_err("denied").code(), "source_denied");
    assert!(added.expect("added"));
}

#[tokio::test]
async fn a_signature_is_fetched_where_somebody_looks_at_it() {
    let served = |signature: fn() -> Reply| {
        move |seen: &Seen| if seen.path == "/caps/model.sig" { signature() } else { honest(seen) }
    };
    let acme = tenant("acme");
    let asked = |server: &FaultServer| server.seen().iter().filter(|seen| seen.path.ends_with("model.sig")).count();
    for (signature, optional, required) in [
        ((|| Reply::status(404)) as fn() -> Reply, "added", "adapter_signature_required"),
        (|| Reply::status(403), "added", "adapter_signature_required"),
        (|| Reply::ok(b"{}"), "adapter_signature_invalid", "adapter_signature_invalid"),
        (|| Reply::ok(&vec![b' '; SIGNATURE_BYTES_MAX + 1]), "limit_exceeded", "limit_exceeded"),
        (|| Reply::status(500), "source_unavailable", "source_unavailable"),
    ] {
        let server = FaultServer::start(served(signature)).await;
        let adapters = allowed(&server).await;
        let url = format!("http://{}/caps", server.address);
        let add = async || {
            let added = adapters.add_url(&acme, &alias("caps"), &url, None, None).await;
            added.map_or_else(|error| error.code(), |_| "added")
        };
        assert_eq!((add().await, asked(&server)), ("added", 0), "nobody looks");
        for (policy, expected) in [(SignaturePolicy::Optional, optional), (SignaturePolicy::Required, required)] {
            adapters.set_signers(&acme, policy, &[], None).await.expect("set");
            assert_eq!(add().await, expected, "{policy:?}");
        }
        assert!(asked(&server) >= 2);
    }
}
