//! HTTP requests for every route of the host: what its clients send, and then a body, a header, a path or a method that they
//! would not. Not here: bytes that are no HTTP; those are the HTTP library's.

mod bodies;

use std::fmt;

use crate::{Draw, Json};

/// Stands for the caller's key in a header.
pub const KEY: &str = "KEY";

/// A request. It is shown as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names and values, the same name perhaps twice.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
    /// The body comes in pieces of so many bytes.
    pub piece_bytes: usize,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        for (name, value) in &self.headers {
            write!(f, "\n{name}: {}", String::from_utf8_lossy(value))?;
        }
        let body = String::from_utf8_lossy(&self.body);
        write!(f, "\n\n{} (in pieces of {} bytes)", body.escape_debug(), self.piece_bytes)
    }
}

/// What a body is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Chat,
    Completion,
    Invoke,
    Manifest,
    Promote,
    Rollout,
    Adapter,
    Derivation,
    Readers,
    Tags,
    Plugin,
    PluginSource,
    Tenant,
    Quota,
    Key,
    Revocation,
    Secret,
    Lorax,
    LoadLora,
    UnloadLora,
    None,
}

/// Method, path and body of every route. `{}` is filled in with a name.
const ROUTES: &[(&str, &str, Kind)] = &[
    ("POST", "/v1/chat/completions", Kind::Chat),
    ("POST", "/v1/completions", Kind::Completion),
    ("POST", "/v1/functions/{}/invoke", Kind::Invoke),
    ("PUT", "/v1/adapters/{}", Kind::Adapter),
    ("PUT", "/v1/functions/{}", Kind::Manifest),
    ("POST", "/v1/functions/{}/promote", Kind::Promote),
    ("POST", "/generate", Kind::Lorax),
    ("POST", "/", Kind::Lorax),
    ("POST", "/generate_stream", Kind::Lorax),
    ("GET", "/info", Kind::None),
    ("POST", "/v1/load_lora_adapter", Kind::LoadLora),
    ("POST", "/v1/unload_lora_adapter", Kind::UnloadLora),
    ("POST", "/v1/adapters/{}/derive", Kind::Derivation),
    ("POST", "/v1/keys", Kind::Key),
    ("POST", "/v1/tenants", Kind::Tenant),
    ("GET", "/v1/functions/{}", Kind::None),
    ("GET", "/v1/functions/{}/versions", Kind::None),
    ("PUT", "/v1/functions/{}/canary", Kind::Rollout),
    ("DELETE", "/v1/functions/{}/canary", Kind::None),
    ("PUT", "/v1/functions/{}/shadow", Kind::Rollout),
    ("GET", "/v1/functions/{}/shadow", Kind::None),
    ("DELETE", "/v1/functions/{}/shadow", Kind::None),
    ("DELETE", "/v1/functions/{}", Kind::None),
    ("GET", "/v1/functions", Kind::None),
    ("GET", "/v1/adapters/{}", Kind::None),
    ("DELETE", "/v1/adapters/{}", Kind::None),
    ("GET", "/v1/adapters", Kind::None),
    ("PUT", "/v1/adapters/{}/tags", Kind::Tags),
    ("PUT", "/v1/adapters/{}/pin", Kind::None),
    ("DELETE", "/v1/adapters/{}/pin", Kind::None),
    ("PUT", "/v1/adapters/{}/readers", Kind::Readers),
    ("GET", "/v1/adapters/{}/readers", Kind::None),
    ("DELETE", "/v1/adapters/{}/readers", Kind::None),
    ("GET", "/v1/shared-adapters", Kind::None),
    ("GET", "/v1/models", Kind::None),
    ("GET", "/v1/models/{}", Kind::None),
    ("GET", "/v1/receipts", Kind::None),
    ("GET", "/v1/receipts/export", Kind::None),
    ("GET", "/v1/receipts/keys", Kind::None),
    ("GET", "/v1/receipts/{}", Kind::None),
    ("GET", "/v1/tenants", Kind::None),
    ("GET", "/v1/tenants/{}/signers", Kind::None),
    ("PUT", "/v1/tenants/{}/signers", Kind::Tenant),
    ("GET", "/v1/tenants/{}/quota", Kind::None),
    ("PUT", "/v1/tenants/{}/quota", Kind::Quota),
    ("DELETE", "/v1/tenants/{}/quota", Kind::None),
    ("GET", "/v1/quota", Kind::None),
    ("GET", "/v1/revocations", Kind::None),
    ("PUT", "/v1/revocations/{}", Kind::Revocation),
    ("GET", "/v1/secrets", Kind::None),
    ("PUT", "/v1/secrets/{}", Kind::Secret),
    ("DELETE", "/v1/secrets/{}", Kind::None),
    ("GET", "/v1/kv", Kind::None),
    ("GET", "/v1/kv/{}", Kind::None),
    ("DELETE", "/v1/kv/{}", Kind::None),
    ("GET", "/v1/kv/{}/{}", Kind::None),
    ("PUT", "/v1/kv/{}/{}", Kind::Secret),
    ("DELETE", "/v1/kv/{}/{}", Kind::None),
    ("DELETE", "/v1/keys/{}", Kind::None),
    ("GET", "/v1/functions/{}/logs", Kind::None),
    ("GET", "/v1/usage", Kind::None),
    ("GET", "/openapi.json", Kind::None),
    ("GET", "/health", Kind::None),
    ("GET", "/ready", Kind::None),
    ("GET", "/metrics", Kind::None),
    ("POST", "/v1/plugins", Kind::PluginSource),
    ("GET", "/v1/plugins/{}", Kind::None),
    ("GET", "/v1/functions/{}/recordings", Kind::None),
    ("GET", "/v1/recordings/{}", Kind::None),
    // The last one: it is drawn apart.
    ("POST", "/v1/plugins", Kind::Plugin),
];

/// Names in paths: some exist, some cannot.
const NAMES: &[&str] =
    &["echo", "tiny", "one", "a.b-c_d", "base", "%2e%2e", "%ff", "a%2Fb", "%00", "req_1", "x%0d%0ay"];

/// Method and path of every route that is known here; `{}` stands for a name.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|(method, path, _)| (*method, *path))
}

/// Up to three requests, to be sent one after the other.
pub fn requests(draw: &mut Draw<'_>) -> Vec<Request> {
    (0..=draw.below(3)).map(|_| request(draw)).collect()
}

fn request(draw: &mut Draw<'_>) -> Request {
    // Half of all for the bodies that hold most.
    let (method, path, kind) = match draw.below(8) {
        0..=2 => draw.pick(&ROUTES[..4]),
        3 => draw.pick(&ROUTES[..11]),
        // An upload starts a process: seldom.
        _ if draw.one_in(64) => ("POST", "/v1/plugins", Kind::Plugin),
        _ => draw.pick(&ROUTES[..ROUTES.len() - 1]),
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.replace("{}", &name(draw)),
        headers: vec![("authorization".to_owned(), format!("Bearer {KEY}").into_bytes())],
        body: Vec::new(),
        piece_bytes: draw.pick(&[1 << 20, 1 << 20, 1 << 20, 1000, 64]),
    };
    if let Some((content_type, body)) = bodies::body(kind, draw) {
        request.headers.push(("content-type".to_owned(), content_type));
        request.body = body;
    }
    if draw.one_in(4) {
        spoil(&mut request, draw);
    }
    request
}

fn name(draw: &mut Draw<'_>) -> String {
    match draw.below(8) {
        7 => draw.bytes(80).iter().map(|byte| format!("%{byte:02x}")).collect(),
        6 => "a".repeat(1 << draw.below(8)),
        _ => draw.pick(NAMES).to_owned(),
    }
}

/// Changes something around the body.
fn spoil(request: &mut Request, draw: &mut Draw<'_>) {
    const TYPES: &[&str] = &[
        "application/json",
        "",
        "text/plain",
        "application/json; charset=utf-16",
        "multipart/form-data",
        "multipart/form-data; boundary=\"\"",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "APPLICATION/JSON",
        "application/zip",
        "a/b; c=\"",
    ];
    const OTHERS: &[(&str, &str)] = &[
        ("accept", "text/event-stream"),
        ("content-encoding", "gzip"),
        ("content-length", "0"),
        ("content-length", "99999999999"),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        ("x-request-id", "mine\u{e9}"),
        ("host", "evil.example"),
        ("connection", "upgrade"),
        ("range", "bytes=0-1"),
        ("x-http-method-override", "DELETE"),
        ("x-tenon-sticky", ""),
        ("x-tenon-sticky", "caller\u{e9}"),
        ("x-tenon-sticky", "caller"),
    ];
    match draw.below(8) {
        0 => {
            let value = draw.pick(TYPES).as_bytes().to_vec();
            request.headers.retain(|(name, _)| name != "content-type");
            request.headers.push(("content-type".to_owned(), value));
        }
        1 => {
            let (name, value) = draw.pick(OTHERS);
            request.headers.push((name.to_owned(), value.as_bytes().to_vec()));
        }
        2 => {
            let keys =
                ["", "Bearer", "Bearer ", "Basic a2V5", "bearer \u{e9}", "Bearer tenon_x_y", "Bearer KEY KEY", "\t"];
            let value = draw.pick(&keys).as_bytes().to_vec();
            request.headers.retain(|(name, _)| name != "authorization");
            request.headers.push(("authorization".to_owned(), value));
        }
        3 => {
            request.method =
                draw.pick(&["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "X"]).to_owned()
        }
        4 => request.path.push_str(draw.pick(&[
            "/",
            "?limit=1",
            "?limit=-1&after=%ff",
            "?a=b&a=c",
            "?limit=99999999999",
            "?follow=true&since=-1",
            "?from=a&to=%00",
            "//",
            "/..",
        ])),
        5 => draw.damage(&mut request.body),
        6 => request.body = Json::any(draw).into_bytes(draw),
        _ => request.body = draw.bytes(256),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_bytes_it_is_one_plain_chat() {
        let requests = requests(&mut Draw::new(&[]));
        assert_eq!(requests.len(), 1);
        assert_eq!((requests[0].method.as_str(), requests[0].path.as_str()), ("POST", "/v1/chat/completions"));
        let body = String::from_utf8(requests[0].body.clone()).unwrap();
        assert_eq!(body, r#"{"model":"base","messages":[{"role":"user","content":"a"}]}"#);
    }

    #[test]
    fn every_route_is_drawn() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..12000 {
            let bytes = crate::seeded_bytes(seed, 400);
            seen.extend(requests(&mut Draw::new(&bytes)).into_iter().map(|request| request.method + &request.path));
        }
        for (method, path, _) in ROUTES {
            let path = path.replace("{}", "one");
            assert!(seen.contains(&format!("{method}{path}")), "{method} {path}");
        }
    }
}
