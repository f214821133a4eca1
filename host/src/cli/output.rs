//! What client commands share: one HTTP call with the key, and errors in the host's own words.

use std::path::Path;

use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;

use super::Connection;
use crate::error::Error;

/// A host that is reached over HTTP.
pub(crate) struct Remote {
    client: Client,
    url: String,
    key: Option<String>,
}

impl Remote {
    /// Takes address and key from the arguments.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Error> {
        let key = match (&connection.key, &connection.key_file) {
            (Some(key), _) => Some(key.clone()),
            (None, Some(file)) => Some(read_text(file)?.trim().to_owned()),
            (None, None) => None,
        };
        Ok(Self { client: Client::new(), url: connection.url.trim_end_matches('/').to_owned(), key })
    }

    /// A call to a path that begins with `/`.
    pub(crate) fn call(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a call; an error answer becomes an error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|error| {
            let reason = super::chain(&error);
            Error::invalid("unreachable", "", format!("cannot reach {}: {reason}; is `tenon serve` running?", self.url))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body: Value = response.json().await.unwrap_or_default();
        let field = |name: &str| body.pointer(&format!("/error/{name}")).and_then(Value::as_str).map(str::to_owned);
        let message = field("message").unwrap_or_else(|| "no reason given".into());
        let code = field("code").unwrap_or_else(|| "unknown".into());
        Err(Error::invalid("remote", "", format!("the host answered {status} {code}: {message}")))
    }

    /// Sends a call and reads its JSON.
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value, Error> {
        self.send(request).await?.json().await.map_err(broken)
    }
}

/// An answer that was cut off or is no JSON.
pub(crate) fn broken(error: reqwest::Error) -> Error {
    Error::invalid("remote", "", format!("the answer is broken: {}", super::chain(&error)))
}

/// Reads a file, naming it in the error.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(Error::io(format!("cannot read {}", path.display())))
}

/// Reads a text file, naming it in the error.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(Error::io(format!("cannot read {}", path.display())))
}

/// A field of an answer as text.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Prints a JSON value over several lines.
pub(crate) fn print(value: &Value) {
    println!("{value:#}");
}
