//! Outgoing requests: what is granted, what is refused, what is bounded.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const BOUNDS: OutboundBounds =
    OutboundBounds { time: Duration::from_secs(20), response_bytes_max: 1000, headers_bytes_max: 1000 };

fn allows(grant: &str, url: &str) -> bool {
    let grant: HttpGrant = grant.parse().expect(grant);
    grant.allows(&Url::parse(url).expect(url))
}

#[test]
fn a_grant_is_an_origin_and_a_path() {
    for (grant, url) in [
        ("https://api.example.com", "https://api.example.com/any?q=1"),
        ("https://api.example.com/", "https://API.example.com:443/"),
        ("https://*.example.com:8443", "https://a.b.example.com:8443/x"),
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com/v1", "https://api.example.com/v1/items?x=%2f"),
        ("https://api.example.com/v1/", "https://api.example.com/v1/"),
        ("http://localhost:9000", "http://localhost:9000/%2e%2e"),
    ] {
        assert!(allows(grant, url), "{grant} {url}");
    }
    for (grant, url) in [
        ("https://api.example.com", "http://api.example.com/"),
        ("https://api.example.com", "https://api.example.com:8443/"),
        ("https://api.example.com", "https://api.example.com.evil.net/"),
        ("https://*.example.com", "https://example.com/"),
        ("https://*.example.com", "https://evilexample.com/"),
        ("https://api.example.com/v1", "https://api.example.com/"),
        ("https://api.example.com/v1", "https://api.example.com/v10"),
        ("https://api.example.com/v1", "https://api.example.com/v1/../admin"),
        ("https://api.example.com/v1", "https://api.example.com/v1/%2e%2e/admin"),
        ("https://api.example.com/v1", "https://api.example.com/v1/..%2fadmin"),
        ("https://api.example.com/v1", "https://api.example.com/v1/..%5cadmin"),
        ("https://api.example.com/v1", "https://api.example.com/V1"),
    ] {
        assert!(!allows(grant, url), "{grant} {url}");
    }
}

fn client(addresses: &[&str], networks: &[&str], hosts: Option<&[&str]>) -> WebClient {
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().expect(address)).collect();
    client_of(networks, hosts, move |_| Ok(addresses.clone()))
}

fn client_of(
    networks: &[&str],
    hosts: Option<&[&str]>,
    resolver: impl Fn(&str) -> std::io::Result<Vec<IpAddr>> + Send + Sync + 'static,
) -> WebClient {
    let config = OutboundConfig {
        hosts: hosts.map(|hosts| hosts.iter().map(|host| host.parse().expect(host)).collect()),
        private_networks: networks.iter().map(|network| network.parse().expect(network)).collect(),
    };
    WebClient::with_resolver(config, Arc::new(resolver))
}

fn tenant(name: &str) -> TenantId {
    name.parse().expect(name)
}

async fn ask(client: &WebClient, grant: &str, method: &str, url: &str) -> Result<http::Response<Bytes>, OutboundError> {
    let grants = [grant.parse().expect(grant)];
    let request = http::Request::builder().method(method).uri(url).body(Bytes::from_static(b"body")).expect(url);
    client.send(&tenant("acme"), &grants, request, BOUNDS).await
}

/// Answers every connection with these bytes, and then does nothing for so long; its port.
async fn server(answer: Vec<u8>, idle: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut read = vec![0; 4096];
                let _length = stream.read(&mut read).await;
                let _broken = stream.write_all(&answer).await;
                tokio::time::sleep(idle).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn what_is_not_granted_is_not_asked() {
    let client = client(&["127.0.0.1"], &["127.0.0.0/8"], None);
    for (grant, method, url) in [
        ("https://api.example.com", "GET", "https://other.example.com/"),
        ("https://api.example.com", "GET", "http://api.example.com/"),
        ("https://api.example.com", "CONNECT", "https://api.example.com/"),
        ("https://api.example.com/v1", "GET", "https://api.example.com/v2"),
        ("https://api.example.com", "GET", "ftp://api.example.com/"),
    ] {
        let error = ask(&client, grant, method, url).await.expect_err(url);
        assert!(matches!(&error, OutboundError::Denied(_)), "{url}: {error}");
    }
    let error = ask(&client, "https://a.example", "GET", "https://b.example/secret?token=x").await.expect_err("denied");
    let text = error.to_string();
    assert!(text.contains("grants.http") && text.contains("b.example") && !text.contains("token"), "{text}");
}

#[tokio::test]
async fn an_operator_s_list_narrows_what_manifests_grant() {
    let client = client(&["127.0.0.1"], &["127.0.0.0/8"], Some(&["api.example.com"]));
    let error = ask(&client, "https://other.example", "GET", "https://other.example/").await.expect_err("not listed");
    assert!(error.to_string().contains("plugin_http.hosts"), "{error}");
}

#[tokio::test]
async fn private_addresses_are_not_connected_to_whatever_the_name() {
    let port = server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi".to_vec(), Duration::ZERO).await;
    // As a DNS server that rebinds would answer.
    let closed = client(&["127.0.0.1", "169.254.169.254", "::1"], &[], None);
    for host in ["a.example", "127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"] {
        let url = format!("http://{host}:{port}/");
        let error = ask(&closed, &format!("http://{host}:{port}"), "GET", &url).await.expect_err(host);
        assert!(matches!(&error, OutboundError::Address(_)), "{host}: {error}");
    }
    let open = client(&["127.0.0.1"], &["127.0.0.0/8"], None);
    let answer = ask(&open, &format!("http://a.example:{port}"), "POST", &format!("http://a.example:{port}/x")).await;
    let answer = answer.expect("the operator lists the network");
    assert_eq!((answer.status().as_u16(), answer.body().as_ref()), (200, &b"hi"[..]));
}

#[tokio::test]
async fn redirects_are_answers() {
    let answer = b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n";
    let port = server(answer.to_vec(), Duration::ZERO).await;
    let client = client(&["127.0.0.1"], &["127.0.0.0/8"], None);
    let answer = ask(&client, &format!("http://a.example:{port}"), "GET", &format!("http://a.example:{port}/")).await;
    assert_eq!(answer.expect("an answer").status().as_u16(), 302);
}

#[tokio::test]
async fn floods_and_silence_end() {
    let client = client(&["127.0.0.1"], &["127.0.0.0/8"], None);
    let long_header = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(2000)).into_bytes();
    let many_headers = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(100_000)).into_bytes();
    let body = [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b'x'; 1 << 20]].concat();
    let lying = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\nshort".to_vec();
    let no_http = b"SSH-2.0-OpenSSH\r\n\r\n".to_vec();
    for (name, answer, expected) in [
        ("one long header", long_header, "http_headers_bytes_max"),
        ("many headers", many_headers, ""),
        ("a long body", body, "http_response_bytes_max"),
        ("a body that is cut off", lying, "broke off"),
        ("no HTTP", no_http, ""),
    ] {
        let port = server(answer, Duration::ZERO).await;
        let url = format!("http://a.example:{port}/");
        let error = ask(&client, &format!("http://a.example:{port}"), "GET", &url).await.expect_err(name);
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
    let port = server(Vec::new(), Duration::from_secs(60)).await;
    let (grant, url) = (format!("http://a.example:{port}"), format!("http://a.example:{port}/"));
    let request = http::Request::builder().uri(&url).body(Bytes::new()).expect("a request");
    let started = Instant::now();
    let bounds = OutboundBounds { time: Duration::from_millis(200), ..BOUNDS };
    let error = client.send(&tenant("acme"), &[grant.parse().expect("a grant")], request, bounds).await;
    let error = error.expect_err("silence");
    assert_eq!(error, OutboundError::Timeout(200));
    assert!(started.elapsed() < Duration::from_secs(10));
}

/// Asks by a name, with little time.
async fn ask_briefly(client: &WebClient, tenant_name: &str, number: usize) -> Result<u16, OutboundError> {
    let url = format!("http://{number}.silent.example:1/");
    let request = http::Request::builder().uri(&url).body(Bytes::new()).expect("a request");
    let bounds = OutboundBounds { time: Duration::from_millis(200), ..BOUNDS };
    let grants = ["http://*.silent.example:1".parse().expect("a grant")];
    client.send(&tenant(tenant_name), &grants, request, bounds).await.map(|answer| answer.status().as_u16())
}

#[tokio::test]
async fn names_that_nobody_answers_for_keep_few_threads_and_those_are_the_tenants() {
    let begun = Arc::new(AtomicUsize::new(0));
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let counted = Arc::clone(&begun);
    let client = client_of(&[], None, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        // Ends with an error once the test drops the other end.
        let _closed = gate.lock().expect("a lock").recv();
        Ok(Vec::new())
    });
    let client = &client;
    let ask_all = |tenant: &'static str| async move {
        futures::future::join_all((0..12).map(|number| ask_briefly(client, tenant, number))).await
    };
    for _ in 0..2 {
        let answers = ask_all("flood").await;
        let errors: Vec<_> = answers.into_iter().map(|answer| answer.expect_err("no answer").to_string()).collect();
        let refused = errors.iter().filter(|error| error.contains("name_lookups_max")).count();
        assert!(refused >= 12 - lookups::TENANT_LOOKUPS_MAX, "{errors:?}");
        // Requests were given up, and their lookups go on: the second round begins none.
        assert_eq!(begun.load(Ordering::SeqCst), lookups::TENANT_LOOKUPS_MAX);
    }
    ask_briefly(client, "other", 0).await.expect_err("no answer either");
    assert_eq!(begun.load(Ordering::SeqCst), lookups::TENANT_LOOKUPS_MAX + 1, "another tenant has turns of its own");
    drop(open);
    let mut answered = false;
    for _ in 0..100 {
        let error = ask_briefly(client, "flood", 0).await.expect_err("no address");
        answered |= begun.load(Ordering::SeqCst) > lookups::TENANT_LOOKUPS_MAX + 1;
        assert!(answered || error.to_string().contains("name_lookups_max"), "{error}");
        if answered {
            break;
        }
    }
    assert!(answered, "turns are given back when lookups end");
}
