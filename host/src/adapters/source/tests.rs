//! The real fetcher against a server that misbehaves.

mod ipfs;
mod schemes;

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use types::Blame;
use zeroize::Zeroizing;

use super::fault_server::{FaultServer, Reply, Seen};
use super::*;

const CONFIG_TEXT: &[u8] = b"{\"peft_type\": \"LORA\"}";

/// Every name is this machine, but for those that say otherwise.
#[derive(Debug, Default)]
struct Names {
    /// Answers in turn; the last one stays.
    rebinding: Mutex<Vec<IpAddr>>,
}

#[async_trait]
impl Lookup for Names {
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        let address = match name {
            "private.example" => "10.9.8.7",
            "metadata.example" => "169.254.169.254",
            "rebinding.example" => {
                let mut answers = self.rebinding.lock().expect("no panic");
                return Ok(vec![if answers.len() > 1 { answers.remove(0) } else { answers[0] }]);
            }
            "none.example" => return Err(std::io::Error::other("no such name")),
            _ => "127.0.0.1",
        };
        Ok(vec![address.parse().expect("an address")])
    }
}

/// 3000 bytes that do not repeat soon.
fn weights() -> Vec<u8> {
    (0..3000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).take(3000).collect()
}

fn limits() -> AdapterLimits {
    AdapterLimits { config_bytes_max: 100, file_bytes_max: 4000, ..AdapterLimits::default() }
}

/// May ask these names on the port, and is impatient.
fn config(port: u16) -> SourcesConfig {
    let names = ["files", "cdn", "private", "metadata", "rebinding", "none"];
    let hosts = names.map(|name| format!("http://{name}.example:{port}").parse().expect("an origin"));
    SourcesConfig {
        hosts: hosts.to_vec(),
        private_networks: vec!["127.0.0.1/32".parse().expect("a network")],
        total: Duration::from_secs(20),
        stall: Duration::from_millis(400),
        retry_wait: Duration::from_millis(2),
        ..SourcesConfig::default()
    }
}

fn sources(config: SourcesConfig) -> Sources {
    Sources::with_lookup(None, config, Arc::new(Names::default())).expect("sources")
}

fn tenant(name: &str) -> TenantId {
    name.parse().expect("a name")
}

type Fetched = Result<(Bytes, Bytes), AdapterError>;

async fn fetch_as(sources: &Sources, whose: &str, url: &str, credential: Option<&Credential>) -> Fetched {
    let source = sources.parse(url, credential)?;
    let files = sources.open(&tenant(whose), source, &limits(), false).await?.read(&limits())?;
    Ok((files.config, files.weights))
}

async fn fetch(sources: &Sources, url: &str) -> Fetched {
    fetch_as(sources, "acme", url, None).await
}

/// A folder whose weights are answered for by `script`.
async fn serve(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> FaultServer {
    let script = move |request: &Seen| match request.path.as_str() {
        "/lora/adapter_config.json" => Reply::ok(CONFIG_TEXT),
        "/lora/adapter_model.safetensors" => script(request),
        _ => Reply::status(404),
    };
    FaultServer::start(script).await
}

fn url(server: &FaultServer) -> String {
    format!("http://files.example:{}/lora", server.port())
}

/// Fetches, and says how often the weights were asked for.
async fn outcome(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Fetched, usize) {
    let server = serve(script).await;
    let found = fetch(&sources(config(server.port())), &url(&server)).await;
    (found, asked(&server))
}

fn asked(server: &FaultServer) -> usize {
    server.seen().iter().filter(|seen| seen.path.ends_with("safetensors")).count()
}

fn code(found: &Fetched) -> &'static str {
    found.as_ref().map_or_else(AdapterError::code, |_| "fetched")
}

#[tokio::test]
async fn an_honest_server_is_asked_once_for_each_file() {
    let server = serve(|_| Reply::ok(&weights())).await;
    let sources = sources(config(server.port()));
    for url in [url(&server), format!("{}/", url(&server))] {
        let (found, weights_found) = fetch(&sources, &url).await.expect("fetched");
        assert_eq!((&found[..], &weights_found[..]), (CONFIG_TEXT, &weights()[..]));
    }
    assert_eq!((asked(&server), server.seen().len(), sources.fetcher.under_way()), (2, 4, 0));
    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.header("referer").is_none() && seen.header("authorization").is_none()));
    assert!(seen.iter().all(|seen| seen.header("accept-encoding") == Some("identity")));
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    for status in [408, 425, 429, 500, 502, 503, 504] {
        let (found, asked) = outcome(move |seen| match seen.before {
            0..3 => Reply::status(status),
            _ => Reply::ok(&weights()),
        })
        .await;
        assert_eq!((code(&found), asked), ("fetched", 4), "{status}");
    }
    for (status, expected) in [
        (400, "source_failed"),
        (401, "source_denied"),
        (403, "source_denied"),
        (404, "source_not_found"),
        (410, "source_not_found"),
        (418, "source_failed"),
        (204, "source_failed"),
        (206, "source_failed"),
        (304, "source_failed"),
    ] {
        let (found, asked) = outcome(move |_| Reply::status(status)).await;
        assert_eq!((code(&found), asked), (expected, 1), "{status}");
        assert_eq!(found.expect_err("refused").blame(), Blame::Caller);
    }
    let (found, asked) = outcome(|_| Reply::status(503)).await;
    assert_eq!((code(&found), asked), ("source_unavailable", 5), "the budget ends");
    assert_eq!(found.expect_err("refused").blame(), Blame::Capacity);
}

#[tokio::test]
async fn a_server_may_ask_for_time() {
    let began = Instant::now();
    let (found, _) = outcome(|seen| match seen.before {
        0 => Reply::status(429).with("Retry-After", "1"),
        _ => Reply::ok(&weights()),
    })
    .await;
    assert_eq!(code(&found), "fetched");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_cut_body_goes_on_where_it_ended() {
    let server = serve(|seen| Reply::honest(&weights(), "\"one\"", seen).cut(1000)).await;
    let (_, found) = fetch(&sources(config(server.port())), &url(&server)).await.expect("fetched");
    assert_eq!(found, weights());
    let firsts: Vec<_> =
        server.seen().iter().filter(|seen| seen.path.ends_with("safetensors")).map(Seen::range_first).collect();
    assert_eq!(firsts, [None, Some(1000), Some(2000)]);
}

#[tokio::test]
async fn what_is_not_surely_the_same_begins_anew() {
    let new: Vec<u8> = weights().into_iter().rev().collect();
    let expected = new.clone();
    // The file changed: an honest server sends all of the new one.
    let (found, asked) = outcome(move |seen| match seen.before {
        0 => Reply::honest(&weights(), "\"one\"", seen).cut(1000),
        _ => Reply::honest(&new, "\"two\"", seen),
    })
    .await;
    assert_eq!((found.expect("fetched").1, asked), (Bytes::from(expected), 2));
    // No tag, a weak one, a server that does not know ranges: never the tail of one to the head of another.
    for tag in ["", "W/\"one\"", "\"\""] {
        let (found, asked) = outcome(move |seen| {
            assert_eq!(seen.range_first(), None);
            let reply = Reply::ok(&weights()).with("ETag", tag);
            if seen.before == 0 { reply.cut(1000) } else { reply }
        })
        .await;
        assert_eq!((found.expect("fetched").1, asked), (Bytes::from(weights()), 2), "{tag}");
    }
    let (found, asked) = outcome(|seen| match seen.before {
        0 => Reply::honest(&weights(), "\"one\"", seen).cut(1000),
        _ => Reply::ok(&weights()).with("ETag", "\"one\""),
    })
    .await;
    assert_eq!((found.expect("fetched").1, asked), (Bytes::from(weights()), 2));
}

#[tokio::test]
async fn a_part_of_something_else_is_not_taken() {
    let part = |range: &'static str, tag: &'static str| {
        outcome(move |seen| match seen.before {
            0 => Reply::honest(&weights(), "\"one\"", seen).cut(1000),
            1 => Reply::part(&weights()[1000..], range, tag),
            _ => Reply::honest(&weights(), "\"one\"", seen),
        })
    };
    for (range, tag) in [
        ("bytes 1000-2999/3000", "\"two\""),
        ("bytes 900-2899/3000", "\"one\""),
        ("bytes 1000-2999/5000", "\"one\""),
        ("bytes 1000-2999/2000", "\"one\""),
        ("nonsense", "\"one\""),
    ] {
        let (found, asked) = part(range, tag).await;
        assert_eq!((found.expect("fetched").1, asked), (Bytes::from(weights()), 3), "{range} {tag}");
    }
    // The file vanished in the middle, or became shorter.
    for (status, expected) in [(404, "source_not_found"), (416, "fetched")] {
        let (found, _) = outcome(move |seen| match seen.before {
            0 => Reply::honest(&weights(), "\"one\"", seen).cut(1000),
            1 => Reply::status(status),
            _ => Reply::honest(&weights(), "\"one\"", seen),
        })
        .await;
        assert_eq!(code(&found), expected);
    }
}

#[tokio::test]
async fn lengths_are_bounded_before_and_during_the_body() {
    let (found, asked) = outcome(|_| Reply::ok(&weights()).saying(Some(1 << 40))).await;
    assert_eq!((code(&found), asked), ("limit_exceeded", 1), "before a byte of it");
    let (found, asked) = outcome(|_| Reply::ok(&weights()).endless()).await;
    assert_eq!((code(&found), asked), ("limit_exceeded", 1), "endless");
    // Longer than it said: what was said is what is read.
    let (found, _) = outcome(|_| Reply::ok(&weights()).saying(Some(1000))).await;
    assert_eq!(found.expect("fetched").1, weights()[..1000]);
    // Shorter than it said, each time, and without a tag.
    let (found, asked) = outcome(|_| Reply::ok(&weights()).saying(Some(3500))).await;
    assert_eq!((code(&found), asked), ("source_unavailable", 5));
    let (found, asked) = outcome(|_| Reply::ok(&weights()).with("Content-Encoding", "gzip")).await;
    assert_eq!((code(&found), asked), ("source_failed", 1));
}

#[tokio::test]
async fn time_is_bounded() {
    // Every piece is in time, and the whole is not.
    let server = serve(|_| Reply::ok(&weights()).slowly(1, Duration::from_millis(50))).await;
    let began = Instant::now();
    let impatient = SourcesConfig { total: Duration::from_millis(500), ..config(server.port()) };
    let found = fetch(&sources(impatient), &url(&server)).await;
    assert_eq!(code(&found), "source_timeout");
    assert!(began.elapsed() < Duration::from_secs(5));
    // Nothing for too long: given up and gone on with.
    let (found, asked) = outcome(|seen| match seen.before {
        0 => Reply::honest(&weights(), "\"one\"", seen).slowly(1000, Duration::from_secs(30)),
        _ => Reply::honest(&weights(), "\"one\"", seen),
    })
    .await;
    assert_eq!((found.expect("fetched").1, asked), (Bytes::from(weights()), 2));
}

#[tokio::test]
async fn redirects_are_followed_as_far_as_the_guard_allows() {
    let cdn = FaultServer::start(|_| Reply::ok(&weights())).await;
    let at = format!("http://cdn.example:{}/blob?signature=x", cdn.port());
    let server = serve(move |_| Reply::redirect(&at)).await;
    let mut both = config(server.port());
    both.hosts.extend(config(cdn.port()).hosts);
    let origin = Url::parse(&url(&server)).expect("a URL");
    let token = Credential::Bearer { origin, token: Zeroizing::new("secret".to_owned()) };
    let (_, found) = fetch_as(&sources(both), "acme", &url(&server), Some(&token)).await.expect("fetched");
    assert_eq!(found, weights());
    assert!(server.seen().iter().all(|seen| seen.header("authorization") == Some("Bearer secret")));
    let seen = cdn.seen();
    assert_eq!((seen.len(), seen[0].header("authorization"), seen[0].header("referer")), (1, None, None));

    for to in [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:1/",
        "http://metadata.example:PORT/",
        "http://private.example:PORT/",
        "https://files.example/",
        "file:///etc/passwd",
        "http://elsewhere.example/",
        "http://user:x@files.example:PORT/lora/adapter_model.safetensors",
    ] {
        let server = serve(move |seen| {
            let port = seen.header("host").and_then(|host| host.split(':').nth(1)).unwrap_or_default();
            Reply::redirect(&to.replace("PORT", port))
        })
        .await;
        let found = fetch(&sources(config(server.port())), &url(&server)).await;
        assert_eq!((code(&found), asked(&server)), ("source_not_allowed", 1), "{to}");
        let message = found.expect_err("refused").to_string();
        assert!(
            !["169.254", "10.9", "metadata", "private.ex", "elsewhere"].iter().any(|part| message.contains(part)),
            "{message}"
        );
    }
    let (found, asked) = outcome(|_| Reply::redirect("/lora/adapter_model.safetensors")).await;
    assert_eq!((code(&found), asked), ("source_failed", 6), "round and round");
    let (found, _) = outcome(|_| Reply::status(302)).await;
    assert_eq!(code(&found), "source_failed", "to nowhere");
}

#[tokio::test]
async fn a_name_is_judged_by_the_address_of_each_connection() {
    let server = serve(|seen| if seen.before == 0 { Reply::status(503) } else { Reply::ok(&weights()) }).await;
    let rebinding = format!("http://rebinding.example:{}/lora", server.port());
    // Two connections to what is allowed; from then on the name stands for the metadata service.
    let answers = ["127.0.0.1", "127.0.0.1", "169.254.169.254"].map(|address| address.parse().expect("an address"));
    let names = Names { rebinding: Mutex::new(answers.to_vec()) };
    let sources = Sources::with_lookup(None, config(server.port()), Arc::new(names)).expect("sources");
    let found = fetch(&sources, &rebinding).await;
    assert_eq!((code(&found), asked(&server)), ("source_not_allowed", 1));
    for name in ["private", "metadata"] {
        let found = fetch(&sources, &format!("http://{name}.example:{}/lora", server.port())).await;
        assert_eq!(code(&found), "source_not_allowed", "{name}");
        let message = found.expect_err("refused").to_string();
        assert!(!message.contains("10.9.8.7") && !message.contains("169.254"), "{message}");
    }
    let found = fetch(&sources, &format!("http://none.example:{}/lora", server.port())).await;
    assert_eq!(code(&found), "source_unavailable");
    assert!(!found.expect_err("no such name").to_string().contains("no such name"));
}

#[tokio::test]
async fn one_fetch_serves_all_of_a_tenant_who_ask_at_the_same_time() {
    let slow = |_: &Seen| Reply::ok(&weights()).slowly(300, Duration::from_millis(20));
    let server = serve(slow).await;
    let sources = sources(config(server.port()));
    let url = url(&server);
    let origin = Url::parse(&url).expect("a URL");
    let token = Credential::Bearer { origin, token: Zeroizing::new("secret".to_owned()) };
    let found = tokio::join!(
        fetch_as(&sources, "acme", &url, None),
        fetch_as(&sources, "acme", &url, None),
        fetch_as(&sources, "acme", &url, Some(&token)),
        fetch_as(&sources, "other", &url, None),
    );
    let found = [found.0, found.1, found.2, found.3];
    assert!(found.iter().all(|found| code(found) == "fetched"));
    assert_eq!((asked(&server), sources.fetcher.under_way()), (3, 0), "by tenant and by credentials");

    // The one who began leaves: the other goes on with the same fetch. When both leave, it ends.
    let first = fetch_as(&sources, "acme", &url, None);
    let second = fetch_as(&sources, "acme", &url, None);
    let impatient = tokio::time::timeout(Duration::from_millis(50), first);
    let (left, found) = tokio::join!(impatient, second);
    assert!(left.is_err());
    assert_eq!((code(&found), asked(&server)), ("fetched", 4));
    let leave = tokio::time::timeout(Duration::from_millis(50), fetch_as(&sources, "acme", &url, None)).await;
    assert!(leave.is_err());
    assert_eq!(code(&fetch_as(&sources, "acme", &url, None).await), "fetched");
    assert_eq!(asked(&server), 6);
}

#[tokio::test]
async fn hostile_urls_are_refused_before_anything_is_asked() {
    let server = serve(|_| Reply::ok(&weights())).await;
    let sources = sources(config(server.port()));
    let long = format!("https://files.example/{}", "a".repeat(URL_BYTES_MAX));
    for (url, expected) in [
        ("", "adapters_root_not_configured"),
        ("ftp://files.example/lora", "adapters_root_not_configured"),
        ("gopher://127.0.0.1:6379/_FLUSHALL", "adapters_root_not_configured"),
        (long.as_str(), "invalid_source"),
        ("https://files.example/a b", "invalid_source"),
        ("https://files.example/a\r\nX: y", "invalid_source"),
        ("https://", "invalid_source"),
        ("https:///lora", "source_not_allowed"),
        ("http://files.example:PORT/lora?token=x", "invalid_source"),
        ("http://files.example:PORT/lora#x", "invalid_source"),
        ("http://user@files.example:PORT/lora", "invalid_source"),
        ("http://files.example:PORT/lora/adapter_config.json", "invalid_source"),
        ("http://files.example:PORT/lora.zip", "unsupported_media_type"),
        ("http://files.example:PORT/adapter_model.bin", "unsupported_media_type"),
        ("http://files.example/lora", "source_not_allowed"),
        ("https://files.example:PORT/lora", "source_not_allowed"),
        ("http://127.0.0.1:PORT/lora", "source_not_allowed"),
        ("http://localhost:PORT/lora", "source_not_allowed"),
        ("http://[::1]:PORT/lora", "source_not_allowed"),
        ("http://files.example.evil.net:PORT/lora", "source_not_allowed"),
        ("hf://org/repo", "source_not_allowed"),
        ("s3://bucket/a", "source_not_allowed"),
        ("ipfs://bafkqaaa", "invalid_source"),
    ] {
        let url = url.replace("PORT", &server.port().to_string());
        let found = fetch(&sources, &url).await;
        assert_eq!(code(&found), expected, "{url}: {found:?}");
    }
    assert_eq!(server.seen().len(), 0);
    sources.close();
    let error = fetch(&sources, &url(&server)).await.expect_err("closed");
    assert_eq!((error.code(), server.seen().len()), ("internal", 0));
}
