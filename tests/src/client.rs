//! A caller: one HTTP request at a time, answers as values. Not here: what the answers should be.

use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::blocking::{Body, Response, multipart};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

use crate::{Events, read_events};

/// Longer than any request of the tests should take on a busy machine with two cores.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// A caller with a key, or without one.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::blocking::Client,
    url: String,
    key: Option<String>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// `x-request-id`.
    pub request: Option<String>,
    /// `x-tenon-receipt`.
    pub receipt: Option<String>,
    /// `x-tenon-function-version`.
    pub version: Option<String>,
    /// `retry-after`.
    pub retry_after: Option<String>,
    /// `content-type`.
    pub content_type: String,
    /// The body as text.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {} {}", self.status, self.text))
    }

    /// The stable word of an error, empty if it is none.
    #[must_use]
    pub fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.text).unwrap_or_default();
        body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// This answer, if its status is what it should be.
    ///
    /// # Panics
    /// If not.
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// This answer, if it is an error of this status and code, shaped as OpenAI's errors are.
    ///
    /// # Panics
    /// If not.
    pub fn expect_error(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text);
        self.expect_error_where(status, |found| found == code)
    }

    /// This answer, if it says that something is not there; the code may say what (`function_not_found`).
    ///
    /// # Panics
    /// If not.
    pub fn expect_not_found(self) -> Self {
        self.expect_error_where(404, |code| code.ends_with("not_found"))
    }

    fn expect_error_where(self, status: u16, is_right: impl Fn(&str) -> bool) -> Self {
        assert!(self.status == status && is_right(&self.code()), "{} {}: {}", self.status, self.code(), self.text);
        let error = self.json().get("error").cloned().unwrap_or_default();
        for field in ["message", "type", "code", "param"] {
            assert!(error.get(field).is_some(), "the error has no `{field}`: {}", self.text);
        }
        assert!(self.request.is_some(), "an error has x-request-id too");
        self
    }
}

impl Client {
    /// A caller of this server.
    ///
    /// # Panics
    /// If there is no HTTP client to be had.
    #[must_use]
    pub fn new(url: &str, key: Option<String>) -> Self {
        Self::trusting(url, key, None)
    }

    /// A caller of a server whose certificate this authority signed (PEM).
    ///
    /// # Panics
    /// If there is no HTTP client to be had, or that is no certificate.
    #[must_use]
    pub fn trusting(url: &str, key: Option<String>, authority: Option<&str>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        if let Some(pem) = authority {
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("a certificate");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.expect("versions").with_root_certificates(roots).with_no_client_auth();
        let http = reqwest::blocking::Client::builder().timeout(ANSWER_MAX).no_proxy().tls_backend_preconfigured(tls);
        Self { http: http.build().expect("an HTTP client"), url: url.to_owned(), key }
    }

    /// The same server, another key.
    #[must_use]
    pub fn with_key(&self, key: Option<String>) -> Self {
        Self { key, ..self.clone() }
    }

    /// `GET`.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None)
    }

    /// `DELETE`.
    #[must_use]
    pub fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None)
    }

    /// `POST` of JSON.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, Some(body.to_string().into_bytes()))
    }

    /// `PUT` of JSON.
    #[must_use]
    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, Some(body.to_string().into_bytes()))
    }

    /// `POST` of bytes as they are.
    #[must_use]
    pub fn post_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        self.send(Method::POST, path, Some(body))
    }

    /// Uploads a component; its digest.
    ///
    /// # Panics
    /// If it is refused.
    #[must_use]
    pub fn upload_plugin(&self, bytes: Vec<u8>) -> String {
        let answer = self.post_bytes("/v1/plugins", bytes);
        assert!(matches!(answer.status, 200 | 201), "{}: {}", answer.status, answer.text);
        answer.json().get("digest").and_then(Value::as_str).expect("a digest").to_owned()
    }

    /// Uploads a component with signatures beside it.
    ///
    /// # Panics
    /// If the server does not answer.
    #[must_use]
    pub fn upload_signed_plugin(&self, bytes: Vec<u8>, signatures: &[Vec<u8>]) -> Answer {
        let form = multipart::Form::new().part("plugin", multipart::Part::bytes(bytes));
        let signed =
            |form: multipart::Form, bundle: &Vec<u8>| form.part("signature", multipart::Part::bytes(bundle.clone()));
        let request = self.request(Method::POST, "/v1/plugins").multipart(signatures.iter().fold(form, signed));
        answer(request.send().expect("the server answers"))
    }

    /// Uploads the two files of a PEFT folder.
    #[must_use]
    pub fn upload_adapter(&self, alias: &str, folder: &Path) -> Answer {
        let read =
            |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{folder:?} {name}: {error}"));
        self.upload_adapter_bytes(alias, read("adapter_config.json"), read("adapter_model.safetensors"))
    }

    /// Uploads the two files of an adapter.
    #[must_use]
    pub fn upload_adapter_bytes(&self, alias: &str, config: Vec<u8>, weights: Vec<u8>) -> Answer {
        let files = [("adapter_config.json".to_owned(), config), ("adapter_model.safetensors".to_owned(), weights)];
        self.upload_files(alias, files.into())
    }

    /// Uploads files as parts of a form that are named after them.
    ///
    /// # Panics
    /// If the server does not answer.
    #[must_use]
    pub fn upload_files(&self, alias: &str, files: Vec<(String, Vec<u8>)>) -> Answer {
        let form = files.into_iter().fold(multipart::Form::new(), |form, (name, bytes)| {
            form.part(name.clone(), multipart::Part::bytes(bytes).file_name(name))
        });
        let request = self.request(Method::PUT, &format!("/v1/adapters/{alias}")).multipart(form);
        answer(request.send().expect("the server answers"))
    }

    /// `PUT` of bytes as they are, of this content type.
    ///
    /// # Panics
    /// If the server does not answer.
    #[must_use]
    pub fn put_bytes(&self, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
        let request = self.request(Method::PUT, path).header("content-type", content_type).body(body);
        answer(request.send().expect("the server answers"))
    }

    /// A `POST` whose answer is read as server-sent events to its end.
    #[must_use]
    pub fn stream(&self, path: &str, body: &Value) -> Events {
        let started = Instant::now();
        let response = self.open(path, body);
        read_events(response, started)
    }

    /// A `POST` whose answer is not read yet; dropping it hangs up.
    ///
    /// # Panics
    /// If the server does not answer.
    #[must_use]
    pub fn open(&self, path: &str, body: &Value) -> Response {
        let body = Body::from(body.to_string());
        let request = self.request(Method::POST, path).header("content-type", "application/json").body(body);
        request.send().expect("the server answers")
    }

    /// Lines of an answer as they come.
    #[must_use]
    pub fn lines(response: Response) -> BufReader<Response> {
        BufReader::new(response)
    }

    /// The value of a metric without labels, or the sum over its labels; `None` if it is not there.
    ///
    /// # Panics
    /// If `/metrics` does not answer.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").expect(200).text;
        let samples = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).reduce(|sum, value| sum + value)
    }

    /// Sends a request with a body of this many zeros, and reads the answer while sending: a host may answer and hang up
    /// before it has read everything. The answer is its status and text.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn post_zeros(&self, path: &str, bytes: usize) -> (u16, String) {
        let host = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).expect("the server listens");
        let key = self.key.as_deref().unwrap_or_default();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {bytes}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("the head is taken");
        let mut writer = stream.try_clone().expect("a second handle");
        let sending = std::thread::spawn(move || {
            let chunk = vec![b'0'; 1 << 16];
            (0..bytes / chunk.len()).try_for_each(|_| writer.write_all(&chunk))
        });
        let mut text = String::new();
        // An error after the answer is the hang-up.
        drop(stream.read_to_string(&mut text));
        drop(sending.join());
        let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
    }

    /// Sends a request, reads until the answer so far has this text (nothing, if it is empty), waits, and hangs up.
    ///
    /// # Panics
    /// If the answer ends before.
    pub fn hang_up(&self, path: &str, body: &Value, after: &str, wait: Duration) {
        self.hang_up_after(path, body, after, || std::thread::sleep(wait));
    }

    /// The same, but hangs up when `stay` returns.
    ///
    /// # Panics
    /// If the answer ends before that.
    pub fn hang_up_after(&self, path: &str, body: &Value, after: &str, stay: impl FnOnce()) {
        let host = self.url.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).expect("the server listens");
        stream.set_read_timeout(Some(ANSWER_MAX)).expect("a time that is not zero");
        let (key, body) = (self.key.as_deref().unwrap_or_default(), body.to_string());
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("the request is taken");
        let (mut seen, mut piece) = (String::new(), [0; 4096]);
        while !seen.contains(after) {
            let bytes = stream.read(&mut piece).expect("the answer goes on");
            assert!(bytes > 0, "the answer ended without {after}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&piece[..bytes]));
        }
        stay();
    }

    /// `POST` of JSON with one more header.
    ///
    /// # Panics
    /// If the server does not answer.
    #[must_use]
    pub fn post_with(&self, path: &str, header: (&str, &str), body: &Value) -> Answer {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        answer(request.header(header.0, header.1).body(body.to_string()).send().expect("the server answers"))
    }

    fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Answer {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        match request.send() {
            Ok(response) => answer(response),
            Err(error) if error.is_connect() => Answer::none(&error),
            Err(error) => panic!("{path}: {error:?}"),
        }
    }

    /// A request with the key, for callers that want to see it fail.
    pub fn request(&self, method: Method, path: &str) -> reqwest::blocking::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }
}

impl Answer {
    fn none(error: &reqwest::Error) -> Self {
        let (request, receipt, version, retry_after) = (None, None, None, None);
        Self { status: 0, request, receipt, version, retry_after, content_type: String::new(), text: error.to_string() }
    }
}

fn answer(response: Response) -> Answer {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (request, receipt) = (header("x-request-id"), header("x-tenon-receipt"));
    let version = header("x-tenon-function-version");
    let (retry_after, content_type) = (header("retry-after"), header("content-type").unwrap_or_default());
    let status = response.status().as_u16();
    Answer {
        status,
        request,
        receipt,
        version,
        retry_after,
        content_type,
        text: response.text().expect("a whole body"),
    }
}

/// The token ids of a completion.
///
/// # Panics
/// If the answer has none.
#[must_use]
pub fn completion_ids(completion: &Value) -> Vec<u32> {
    let ids = completion.pointer("/choices/0/token_ids").and_then(Value::as_array);
    let ids = ids.unwrap_or_else(|| panic!("no choices[0].token_ids: {completion}"));
    ids.iter().filter_map(Value::as_u64).map(|id| u32::try_from(id).expect("a token id")).collect()
}
