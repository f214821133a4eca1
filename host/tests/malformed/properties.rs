//! What holds of every answer of a host, whatever was asked. The fuzz target `http_bodies` is these lines over libFuzzer's
//! bytes.

use std::path::{Path, PathBuf};

use generators::{Draw, KEY, Request, Sizes, adapter, base_file, requests};
use host::{Answer, InProcess};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host's state grows with what is stored in it: a new one after so many inputs.
const INPUTS_MAX: u32 = 4000;
/// No error is longer, whatever it quotes.
const ERROR_BYTES_MAX: usize = 4096;

/// A host that is asked.
pub(crate) struct Host {
    tenon: PathBuf,
    opened: Opened,
    inputs: u32,
}

struct Opened {
    // Before its folder, which is removed after it.
    host: InProcess,
    plugin: String,
    _folder: TempDir,
}

impl Host {
    /// With a tiny base, the function `echo` and the adapter `tiny`.
    pub(crate) fn open(tenon: &Path) -> Self {
        assert!(tenon.is_file(), "{} is missing: run `cargo build --workspace --bins` first", tenon.display());
        Self { tenon: tenon.to_owned(), opened: Opened::new(tenon), inputs: 0 }
    }

    /// The OpenAPI document.
    #[allow(dead_code, reason = "the fuzz target does not ask for it")]
    pub(crate) fn document(&self) -> Value {
        json_of(&self.opened.ask("GET", "/openapi.json", "", Vec::new()))
    }

    /// Makes requests of these bytes and asks them, one after the other. Gives the statuses.
    ///
    /// # Panics
    /// If something does not hold.
    pub(crate) fn hold(&mut self, bytes: &[u8]) -> Vec<u16> {
        self.inputs += 1;
        if self.inputs.is_multiple_of(INPUTS_MAX) {
            self.opened = Opened::new(&self.tenon);
        }
        let (mut statuses, mut is_changed) = (Vec::new(), false);
        for request in requests_of(bytes) {
            let names_ours = request.path.contains("/echo") || request.path.contains("/tiny");
            let changes = names_ours && ["PUT", "DELETE"].contains(&request.method.as_str());
            let status = self.opened.hold(request);
            is_changed |= changes && status.is_some_and(|status| status < 300);
            statuses.extend(status);
        }
        if is_changed {
            self.opened.restore();
        }
        statuses
    }
}

/// The first byte chooses: structured requests, or the rest as the body of a route that takes JSON.
fn requests_of(bytes: &[u8]) -> Vec<Request> {
    const RAW: [(&str, &str, &str); 4] = [
        ("POST", "/v1/chat/completions", "application/json"),
        ("POST", "/v1/completions", "application/json"),
        ("PUT", "/v1/functions/echo", "application/json"),
        ("PUT", "/v1/adapters/tiny", "multipart/form-data; boundary=boundary"),
    ];
    match bytes.split_first() {
        Some((first, rest)) if first % 8 == 7 => {
            let (method, path, content_type) = RAW[usize::from(first / 8) % RAW.len()];
            let authorization = ("authorization".to_owned(), format!("Bearer {KEY}").into_bytes());
            let content_type = ("content-type".to_owned(), content_type.as_bytes().to_vec());
            let headers = vec![authorization, content_type];
            vec![Request {
                method: method.into(),
                path: path.into(),
                headers,
                body: rest.to_vec(),
                piece_bytes: 1 << 20,
            }]
        }
        Some((_, rest)) => requests(&mut Draw::new(rest)),
        None => Vec::new(),
    }
}

impl Opened {
    fn new(tenon: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let base = folder.path().join("base.gguf");
        std::fs::write(&base, base_file(&Sizes::TINY)).expect("a base");
        let host = InProcess::open(&base, &folder.path().join("data"), tenon.to_owned()).expect("a host");
        let mut opened = Self { host, plugin: String::new(), _folder: folder };
        let echo = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .find_map(|folder| std::fs::read(folder.join("tests/fixtures/guests/echo.wasm")).ok());
        let uploaded =
            opened.ask("POST", "/v1/plugins", "application/wasm", echo.expect("tests/fixtures/guests/echo.wasm"));
        let digest = json_of(&uploaded)["digest"].as_str().map(str::to_owned);
        opened.plugin = digest.unwrap_or_else(|| panic!("the echo plugin was refused: {uploaded:?}"));
        opened.restore();
        opened
    }

    /// Puts the function and the adapter back as they were, whatever was done to them.
    fn restore(&self) {
        let files = adapter(&mut Draw::new(&[]), &Sizes::TINY);
        let part = |name: &str, content: &[u8]| {
            let head = format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n");
            [head.as_bytes(), content, b"\r\n"].concat()
        };
        let parts = [part("adapter_config.json", &files.config), part("adapter_model.safetensors", &files.weights)];
        let form = [parts.concat(), b"--b--\r\n".to_vec()].concat();
        let adapter = self.ask("PUT", "/v1/adapters/tiny", "multipart/form-data; boundary=b", form);
        assert_eq!(adapter.status, 201, "{}", String::from_utf8_lossy(&adapter.body));
        self.ask("DELETE", "/v1/functions/echo", "application/json", Vec::new());
        let manifest = json!({"plugin": self.plugin, "adapters": ["tiny"]}).to_string().into_bytes();
        let function = self.ask("PUT", "/v1/functions/echo", "application/json", manifest);
        assert_eq!(function.status, 201, "{}", String::from_utf8_lossy(&function.body));
    }

    fn ask(&self, method: &str, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
        let authorization = ("authorization".to_owned(), format!("Bearer {}", self.host.key()).into_bytes());
        let content_type = ("content-type".to_owned(), content_type.as_bytes().to_vec());
        let asked = self.host.ask(method, path, &[authorization, content_type], body, 1 << 20);
        asked.expect("a whole answer").expect("a request")
    }

    /// Asks, and checks the answer. `None` if it was no HTTP.
    fn hold(&self, mut request: Request) -> Option<u16> {
        for (_, value) in &mut request.headers {
            replace(value, KEY, self.host.key());
        }
        replace(&mut request.body, "PLUGIN", &self.plugin);
        let Request { method, path, headers, body, piece_bytes } = &request;
        let answer = self.host.ask(method, path, headers, body.clone(), *piece_bytes);
        let answer = answer.unwrap_or_else(|error| panic!("{error}: {request:?}"))?;
        let told = format!("{} {} to {request:?}", answer.status, String::from_utf8_lossy(&answer.body));
        assert!(header(&answer, "x-request-id").is_some(), "every answer has a request id: {told}");
        match answer.status {
            200..=299 => is_sound(&answer, Speaks::on(path), &told),
            // An answer to HEAD has no body.
            400..=499 if method == "HEAD" && answer.body.is_empty() => {}
            400..=499 => is_error(&answer, Speaks::on(path), &told),
            // What a plugin does wrong is told as such, and only where one runs.
            502 => {
                is_error(&answer, Speaks::on(path), &told);
                assert!(path.contains("/invoke") || path.contains("/completions"), "{told}");
            }
            503 => {
                is_error(&answer, Speaks::on(path), &told);
                assert!(header(&answer, "retry-after").is_some(), "{told}");
            }
            _ => panic!("{told}"),
        }
        assert_eq!(self.host.leases(), 0, "nothing is held after the answer: {told}");
        Some(answer.status)
    }
}

/// Whose words a route uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    Own,
    Lorax,
    Vllm,
}

impl Speaks {
    fn on(path: &str) -> Self {
        match path.split('?').next().unwrap_or_default() {
            "/" | "/generate" | "/generate_stream" | "/info" => Self::Lorax,
            "/v1/load_lora_adapter" | "/v1/unload_lora_adapter" => Self::Vllm,
            _ => Self::Own,
        }
    }
}

/// A success is JSON, events, text for people, or empty.
fn is_sound(answer: &Answer, speaks: Speaks, told: &str) {
    let content_type = header(answer, "content-type").unwrap_or_default();
    if content_type.starts_with("application/json") && !answer.body.is_empty() {
        assert!(serde_json::from_slice::<Value>(&answer.body).is_ok(), "{told}");
    }
    if content_type.starts_with("text/event-stream") {
        let text = std::str::from_utf8(&answer.body).unwrap_or_else(|_| panic!("events are UTF-8: {told}"));
        let mut events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim).collect();
        if speaks == Speaks::Own {
            assert_eq!(events.pop(), Some("[DONE]"), "{told}");
        }
        for event in events {
            let event: Value = serde_json::from_str(event).unwrap_or_else(|_| panic!("an event is JSON: {told}"));
            assert!(event["error"]["type"] != "server_error", "the host did not fail: {told}");
            assert!(event["error_type"] != "generation", "the host did not fail: {told}");
        }
    }
}

/// An error is ours, with all four members, or that of the server whose words the route uses. A method that a path does not
/// have is no matter of the route.
fn is_error(answer: &Answer, speaks: Speaks, told: &str) {
    let body = json_of(answer);
    let error = &body["error"];
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let is_param = |param: Option<&Value>| param.is_some_and(|param| param.is_null() || param.is_string());
    match speaks {
        Speaks::Lorax if answer.status != 405 => {
            assert!(text(error) && text(&body["error_type"]) && text(&body["code"]), "{told}");
            assert!(body["error_type"] != "generation", "{told}");
        }
        Speaks::Vllm if answer.status != 405 => {
            assert!(text(&error["message"]) && text(&error["type"]) && text(&error["reason"]), "{told}");
            assert!(error["code"] == answer.status && is_param(error.get("param")), "{told}");
        }
        _ => {
            assert!(text(&error["message"]) && text(&error["type"]) && text(&error["code"]), "{told}");
            assert!(is_param(error.get("param")), "{told}");
            assert!(error["type"] != "server_error" || answer.status == 503, "{told}");
        }
    }
    assert!(answer.body.len() <= ERROR_BYTES_MAX, "{} bytes: {told}", answer.body.len());
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_default()
}

/// Fills in a placeholder, if it is there.
fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    if let Some(at) = at {
        bytes.splice(at..at + from.len(), to.bytes());
    }
}
