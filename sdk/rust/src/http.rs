//! Outgoing HTTP requests to hosts that the manifest grants (`grants.http`). Natively the harness answers. Redirects are not
//! followed. Not here: streams; a request and its answer are whole.

use crate::{Error, Result};

/// A request that is not sent yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// `GET`, `POST`, …
    pub method: String,
    /// `https://…`; plain `http://` must be granted as such.
    pub url: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// Empty for none.
    pub body: Vec<u8>,
}

/// What was answered, whatever the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpResponse {
    /// The status.
    pub status: u16,
    /// Names, in lower case, and values, as far as they are text.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

impl HttpRequest {
    /// `GET` of a URL.
    pub fn get(url: impl Into<String>) -> Self {
        Self { method: "GET".to_owned(), url: url.into(), headers: Vec::new(), body: Vec::new() }
    }

    /// `POST` to a URL.
    pub fn post(url: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self { method: "POST".to_owned(), body: body.into(), ..Self::get(url) }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends it and waits for the whole answer.
    pub fn send(&self) -> Result<HttpResponse> {
        let host = self.url.split('/').take(3).collect::<Vec<_>>().join("/");
        sys::send(self).map_err(|reason| Error(format!("{} {host}: {reason}", self.method)))
    }
}

impl HttpResponse {
    /// The body as text.
    pub fn text(&self) -> Result<String> {
        String::from_utf8(self.body.clone()).map_err(|_| Error("the answer is no text".to_owned()))
    }
}

#[cfg(not(target_arch = "wasm32"))]
use crate::testing::web as sys;

#[cfg(target_arch = "wasm32")]
mod sys {
    use super::{HttpRequest, HttpResponse};
    use crate::bindings::wasi::http::outgoing_handler::handle;
    use crate::bindings::wasi::http::types::{
        Fields, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest, Scheme,
    };
    use crate::bindings::wasi::io::streams::StreamError;

    /// Bytes of one read or write: `blocking-write-and-flush` takes no more.
    const PIECE_BYTES: usize = 4096;

    pub(super) fn send(request: &HttpRequest) -> Result<HttpResponse, String> {
        let outgoing = outgoing(request)?;
        let body = outgoing.body().map_err(|()| "it has no body")?;
        let answer = handle(outgoing, None).map_err(|error| error.to_string())?;
        if !request.body.is_empty() {
            let stream = body.write().map_err(|()| "its body cannot be written")?;
            for piece in request.body.chunks(PIECE_BYTES) {
                // Whoever does not take the body says why in the answer.
                if stream.blocking_write_and_flush(piece).is_err() {
                    break;
                }
            }
        }
        // One that is not whole fails in the answer too.
        let _finished = OutgoingBody::finish(body, None);
        answer.subscribe().block();
        let answer = answer.get().and_then(Result::ok).ok_or("there is no answer")?;
        read(answer.map_err(|error| error.to_string())?)
    }

    fn outgoing(request: &HttpRequest) -> Result<OutgoingRequest, String> {
        let (scheme, rest) = request.url.split_once("://").ok_or("the URL has no scheme")?;
        let scheme = match scheme {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            other => Scheme::Other(other.to_owned()),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let headers = Fields::new();
        for (name, value) in &request.headers {
            let appended = headers.append(name, value.as_bytes());
            appended.map_err(|error| format!("the header `{name}`: {error}"))?;
        }
        let outgoing = OutgoingRequest::new(headers);
        let method = match request.method.as_str() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "PATCH" => Method::Patch,
            other => Method::Other(other.to_owned()),
        };
        let is_set = outgoing.set_method(&method).is_ok()
            && outgoing.set_scheme(Some(&scheme)).is_ok()
            && outgoing.set_authority(Some(authority)).is_ok()
            && outgoing.set_path_with_query(Some(&path)).is_ok();
        if is_set { Ok(outgoing) } else { Err("its method or URL cannot be sent".to_owned()) }
    }

    fn read(answer: IncomingResponse) -> Result<HttpResponse, String> {
        let entries = answer.headers().entries();
        let text = |(name, value): (String, Vec<u8>)| Some((name, String::from_utf8(value).ok()?));
        let headers = entries.into_iter().filter_map(text).collect();
        let incoming: IncomingBody = answer.consume().map_err(|()| "its body is gone")?;
        let stream = incoming.stream().map_err(|()| "its body is gone")?;
        let mut body = Vec::new();
        loop {
            match stream.blocking_read(PIECE_BYTES as u64) {
                Ok(piece) => body.extend(piece),
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
            }
        }
        Ok(HttpResponse { status: answer.status(), headers, body })
    }
}
