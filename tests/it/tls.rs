//! The listener over TLS: certificates made for the test, clients that trust them and such that do not, callers that speak
//! something else or nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tests::{Client, Options, Server, run_tenon, skip};

/// An authority, and what it signed, in a folder.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of the tests");
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, issuer }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Signs a certificate for these names, and writes it with its key.
    fn sign(&self, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        std::fs::write(self.path("chain.pem"), certificate.pem()).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
    }

    fn options(&self, more: &[&str]) -> Options {
        let chain = self.path("chain.pem").display().to_string();
        let key = self.path("key.pem").display().to_string();
        let mut arguments = vec!["--tls-certificate-file".into(), chain, "--tls-private-key-file".into(), key];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        Options { arguments, ..Options::default() }
    }
}

fn start(test: &str, authority: &Authority) -> Option<Server> {
    authority.sign(&["127.0.0.1", "localhost"]);
    let file = authority.path("tenon.toml");
    std::fs::write(&file, "limits.handshake_timeout_ms = 700\nlimits.connections_max = 8\n").unwrap();
    let Some(base) = tests::base() else {
        skip(test, "the base is not there (cargo xtask base)");
        return None;
    };
    let options = authority.options(&["--config", file.to_str().unwrap()]);
    Some(Server::start_trusting(&base, options, Some(authority.pem())))
}

fn address(server: &Server) -> &str {
    server.url().strip_prefix("https://").expect("an https address")
}

fn models(server: &Server, ca: Option<&Path>) -> Output {
    let mut command = tests::tenon();
    command.args(["adapter", "list", "--url", server.url(), "--key", &server.key()]);
    if let Some(ca) = ca {
        command.arg("--ca").arg(ca);
    }
    command.env_remove("SSL_CERT_FILE").output().expect("tenon starts")
}

#[test]
fn requests_and_streams_over_tls() {
    let authority = Authority::new();
    let Some(server) = start("requests_and_streams_over_tls", &authority) else { return };
    let client = server.client();
    let body = json!({"model": "base", "prompt": "Once upon", "max_tokens": 4, "temperature": 0});
    let whole = client.post("/v1/completions", &body).expect(200).json();
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let response = client.open("/v1/completions", &streamed);
    let lines: Vec<String> = std::io::BufRead::lines(Client::lines(response)).map(|line| line.unwrap()).collect();
    let text: String = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["choices"][0]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(whole["choices"][0]["text"], json!(text));
    assert!(lines.iter().any(|line| line == "data: [DONE]"));
    let output = models(&server, Some(&authority.path("ca.pem")));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn who_does_not_trust_the_authority_does_not_talk() {
    let authority = Authority::new();
    let Some(server) = start("who_does_not_trust_the_authority_does_not_talk", &authority) else { return };
    let other = Authority::new();
    for ca in [Some(other.path("ca.pem")), None] {
        let output = models(&server, ca.as_deref());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("certificate"), "{said}");
        assert_eq!(output.status.code(), Some(3), "unreachable: {said}");
    }
    let missing = models(&server, Some(&other.path("key.pem")));
    assert_eq!(missing.status.code(), Some(1), "{}", String::from_utf8_lossy(&missing.stderr));
    server.client().get("/health").expect(200);
}

#[test]
fn plain_http_to_the_tls_port_is_told_so() {
    let authority = Authority::new();
    let Some(server) = start("plain_http_to_the_tls_port_is_told_so", &authority) else { return };
    let mut stream = TcpStream::connect(address(&server)).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 400 ") && said.contains("tls_required"), "{said}");
    server.client().get("/health").expect(200);
}

#[test]
fn who_says_nothing_holds_a_place_for_a_moment_only() {
    let authority = Authority::new();
    let Some(server) = start("who_says_nothing_holds_a_place_for_a_moment_only", &authority) else { return };
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(address(&server)).unwrap()).collect();
    // Half a record: the handshake has begun, and goes no further.
    let mut slow = &silent[0];
    slow.write_all(&[22, 3, 1, 0, 200, 1]).unwrap();
    // All eight places are held: it is answered when one of them is given back.
    server.client().get("/health").expect(200);
    for mut stream in &silent {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(stream.read(&mut [0; 64]).unwrap_or_default(), 0, "the server hung up");
    }
}

#[test]
fn a_drain_lets_streams_end_and_does_not_wait_for_the_silent() {
    let authority = Authority::new();
    let test = "a_drain_lets_streams_end_and_does_not_wait_for_the_silent";
    let Some(mut server) = start(test, &authority) else { return };
    let body = json!({"model": "base", "prompt": "Once", "max_tokens": 60, "ignore_eos": true, "stream": true});
    let mut lines = Client::lines(server.client().open("/v1/completions", &body));
    std::io::BufRead::read_line(&mut lines, &mut String::new()).unwrap();
    let _silent = TcpStream::connect(address(&server)).unwrap();
    server.terminate();
    let rest: Vec<String> = std::io::BufRead::lines(lines).map(|line| line.expect("the stream goes on")).collect();
    assert!(rest.iter().any(|line| line == "data: [DONE]"), "{rest:?}");
    assert!(server.wait().success(), "{}", server.log());
}

#[test]
fn a_new_certificate_is_read_on_sighup_and_a_bad_one_is_not() {
    let authority = Authority::new();
    let Some(server) = start("a_new_certificate_is_read_on_sighup_and_a_bad_one_is_not", &authority) else { return };
    std::fs::write(authority.path("key.pem"), "no key").unwrap();
    server.hang_up();
    server.wait_for_log("the old one stays in use");
    server.client().get("/health").expect(200);
    let successor = Authority::new();
    successor.sign(&["127.0.0.1"]);
    for name in ["chain.pem", "key.pem"] {
        std::fs::copy(successor.path(name), authority.path(name)).unwrap();
    }
    server.hang_up();
    server.wait_for_log("the TLS certificate was read again");
    let trusting = |pem: String| Client::trusting(server.url(), None, Some(&pem)).get("/health").status;
    assert_eq!(trusting(successor.pem()), 200);
    assert_eq!(trusting(authority.pem()), 0, "the old one is gone");
}

#[test]
fn connections_do_not_wait_for_a_certificate_that_is_read() {
    let authority = Authority::new();
    let Some(server) = start("connections_do_not_wait_for_a_certificate_that_is_read", &authority) else { return };
    let successor = Authority::new();
    successor.sign(&["127.0.0.1"]);
    std::fs::copy(successor.path("key.pem"), authority.path("key.pem")).unwrap();
    // A disk that takes as long as the test wants: a pipe with the file's name.
    let chain = authority.path("chain.pem");
    std::fs::remove_file(&chain).unwrap();
    assert!(Command::new("mkfifo").arg(&chain).status().expect("mkfifo").success());
    server.hang_up();
    // It opens when the server does, which then reads until this is closed.
    let mut disk = std::fs::OpenOptions::new().write(true).open(&chain).unwrap();
    let trusting = |pem: String| Client::trusting(server.url(), None, Some(&pem)).get("/health").status;
    assert_eq!(trusting(authority.pem()), 200, "with the old certificate");
    disk.write_all(&std::fs::read(successor.path("chain.pem")).unwrap()).unwrap();
    assert!(!server.log().contains("was read again"), "{}", server.log());
    drop(disk);
    server.wait_for_log("the TLS certificate was read again");
    assert_eq!((trusting(successor.pem()), trusting(authority.pem())), (200, 0));
}

#[test]
fn files_that_are_no_good_refuse_the_start() {
    let Some(base) = tests::base() else { return skip("files_that_are_no_good_refuse_the_start", "no base") };
    let (authority, other) = (Authority::new(), Authority::new());
    authority.sign(&["127.0.0.1"]);
    other.sign(&["127.0.0.1"]);
    std::fs::write(authority.path("empty.pem"), "").unwrap();
    let refused = |chain: PathBuf, key: PathBuf, expected: &str| {
        let data = authority.path("data");
        let output = run_tenon(&[
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--base",
            base.to_str().unwrap(),
            "--data",
            data.to_str().unwrap(),
            "--tls-certificate-file",
            chain.to_str().unwrap(),
            "--tls-private-key-file",
            key.to_str().unwrap(),
        ]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "expected `{expected}`: {said}");
    };
    let (chain, key) = (authority.path("chain.pem"), authority.path("key.pem"));
    refused(authority.path("none.pem"), key.clone(), "there is no file");
    refused(authority.path("empty.pem"), key.clone(), "holds no certificate");
    refused(key.clone(), key.clone(), "holds no certificate");
    refused(chain.clone(), chain.clone(), "does not hold an unencrypted private key");
    refused(chain, other.path("key.pem"), "cannot be used together");
}
