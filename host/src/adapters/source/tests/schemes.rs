//! `hf://` and `s3://` against a server of our own: which URLs they ask for, and with what.

use super::*;

fn path(seen: &Seen) -> &str {
    seen.path.split('?').next().unwrap_or_default()
}

async fn serve_below(folder: &'static str) -> FaultServer {
    FaultServer::start(move |seen| match path(seen).strip_prefix(folder) {
        Some("adapter_config.json") => Reply::ok(CONFIG_TEXT),
        Some("adapter_model.safetensors") => Reply::honest(&weights(), "\"one\"", seen).cut(2000),
        _ => Reply::status(404),
    })
    .await
}

#[tokio::test]
async fn a_repository_of_the_hub_is_fetched_with_a_token_for_the_hub_alone() {
    let server = serve_below("/org/name/resolve/v1/").await;
    let endpoint = Url::parse(&format!("http://files.example:{}", server.port())).expect("a URL");
    let sources = sources(SourcesConfig { hugging_face_endpoint: Some(endpoint.clone()), ..config(server.port()) });
    let bearer = |origin: Url| Credential::Bearer { origin, token: Zeroizing::new("hf_x".to_owned()) };
    let token = bearer(endpoint);
    let found = fetch_as(&sources, "acme", "hf://org/name@v1", Some(&token)).await.expect("fetched");
    assert_eq!(found, (Bytes::from_static(CONFIG_TEXT), Bytes::from(weights())));
    let seen = server.seen();
    assert_eq!((seen.len(), seen[2].range_first()), (3, Some(2000)));
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some("Bearer hf_x")));
    assert_eq!(code(&fetch(&sources, "hf://org/name@v2").await), "source_not_found");

    let before = server.seen().len();
    let elsewhere = bearer(Url::parse("https://huggingface.co").expect("a URL"));
    let text = |text: &str| Zeroizing::new(text.to_owned());
    let keys = Credential::S3 { access_key_id: text("a"), secret_access_key: text("b"), session_token: None };
    let unsendable = match token {
        Credential::Bearer { origin, .. } => Credential::Bearer { origin, token: text("a\r\nX: y") },
        keys => keys,
    };
    for credential in [elsewhere, keys, unsendable] {
        let found = fetch_as(&sources, "acme", "hf://org/name@v1", Some(&credential)).await;
        assert_eq!(code(&found), "invalid_source", "{credential:?}");
    }
    assert_eq!(server.seen().len(), before);
}

#[tokio::test]
async fn objects_of_a_bucket_are_fetched_with_signed_urls_that_nobody_is_told() {
    let server = serve_below("/bucket/lora/a/").await;
    let endpoint = Url::parse(&format!("http://files.example:{}/", server.port())).expect("a URL");
    let sources = sources(SourcesConfig { s3_endpoint: Some(endpoint), ..config(server.port()) });
    let text = |text: &str| Zeroizing::new(text.to_owned());
    let keys =
        Credential::S3 { access_key_id: text("AKID"), secret_access_key: text("very-secret"), session_token: None };
    let found = fetch_as(&sources, "acme", "s3://bucket/lora/a", Some(&keys)).await.expect("fetched");
    assert_eq!(found.1, weights());
    let found = fetch(&sources, "s3://bucket/lora/a/").await.expect("fetched without a signature");
    assert_eq!(found.1, weights());
    let seen = server.seen();
    assert_eq!((seen.len(), seen[2].range_first()), (6, Some(2000)));
    let is_signed = |seen: &Seen| seen.path.contains("X-Amz-Signature=") && seen.path.contains("X-Amz-Credential=AKID");
    assert!(seen[..3].iter().all(is_signed) && !seen[3..].iter().any(|seen| seen.path.contains('?')));
    assert!(seen.iter().all(|seen| !seen.path.contains("very-secret") && seen.header("authorization").is_none()));

    let found = fetch_as(&sources, "acme", "s3://bucket/none", Some(&keys)).await;
    assert_eq!(code(&found), "source_not_found");
    let message = found.expect_err("not there").to_string();
    assert!(message.contains("s3://bucket/none") && !message.contains("X-Amz"), "{message}");
    assert!(!message.contains("files.example"), "{message}");
}

#[test]
fn a_token_goes_to_the_origin_of_its_source() {
    let endpoint = Url::parse("http://hub.example:8080/mirror").expect("a URL");
    let sources = sources(SourcesConfig { hugging_face_endpoint: Some(endpoint), ..config(1) });
    let origin = |url: &str| sources.token_origin(url).map(|url| url.origin().ascii_serialization());
    assert_eq!(origin("hf://a/b").expect("a hub"), "http://hub.example:8080");
    assert_eq!(origin("HTTPS://a.example/x/y").expect("a site"), "https://a.example");
    for url in ["s3://bucket/x", "ipfs://cid", "file:///srv/x", "x", "", "ftp://a.example", "https://"] {
        assert_eq!(origin(url).expect_err("refused").code(), "invalid_source", "{url}");
    }
}

#[test]
fn a_folder_may_be_named_from_the_root_on() {
    let root = tempfile::tempdir().expect("a folder");
    let folder = root.path().canonicalize().expect("a folder");
    let rooted = Sources::new(Some(root.path()), SourcesConfig::default()).expect("sources");
    for (path, found) in [("a b/c", folder.join("a b/c")), ("", folder.clone()), ("/etc", "/etc".into())] {
        let url = rooted.folder_url(path).expect("a URL");
        let parsed = rooted.parse(&url, None).expect("understood");
        // A path that ends with a separator is the same folder.
        assert!(format!("{parsed:?}").contains(found.to_str().expect("UTF-8")), "{path}: {parsed:?}");
    }
    for path in ["../x", "a/../../x", "%2e%2e/x"] {
        let url = rooted.folder_url(path).expect("a URL");
        let leaves = rooted.parse(&url, None).is_ok() && !url.contains("%252e");
        assert!(!leaves, "{path}: {url}");
    }
    let rootless = Sources::new(None, SourcesConfig::default()).expect("sources");
    assert_eq!(rootless.folder_url("a").expect_err("refused").code(), "adapters_root_not_configured");
}
