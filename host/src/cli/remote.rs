//! A running host as the command line reaches it: address, key, trust, progress of uploads. Not here: what is asked of it.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use futures::stream;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Body, Client, Method, RequestBuilder, Response};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::failure::{Failure, Refusal, chain};
use super::output::{read, read_text};
use crate::error::Error;

/// Uploads that are smaller are done before anybody looks.
const PROGRESS_BYTES_MIN: usize = 1 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// Where a running host is, with which key, and who vouches for it.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// Address of the host
    #[arg(long, env = "TENON_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// API key; else `--key-file`, else the environment's TENON_KEY, else its TENON_KEY_FILE
    #[arg(long, conflicts_with = "key_file")]
    key: Option<String>,
    /// File that holds the key, such as DATA/dev.key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Certificate authorities (PEM) to trust with https, in place of the system's
    #[arg(long, env = "TENON_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Connection {
    /// Another host, with a key from this file.
    pub(crate) fn at(&self, url: &str, key_file: &Path) -> Self {
        Self { url: url.to_owned(), key: None, key_file: Some(key_file.to_path_buf()), ca: self.ca.clone() }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A host that is reached over HTTP.
pub(crate) struct Remote {
    client: Client,
    url: String,
    key: Option<String>,
}

impl Remote {
    /// Takes address, key and trust from the arguments.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Failure> {
        let file = |file: &Path| read_text(file).map(|text| Some(text.trim().to_owned()));
        let key = match (&connection.key, &connection.key_file) {
            (Some(key), _) => Some(key.clone()),
            (None, Some(path)) => file(path)?,
            // Not by clap, to which a flag beside another flag's variable is a conflict.
            (None, None) => match (variable("TENON_KEY"), variable("TENON_KEY_FILE")) {
                (Some(key), _) => Some(key),
                (None, Some(path)) => file(Path::new(&path))?,
                (None, None) => None,
            },
        };
        let url = connection.url.trim_end_matches('/').to_owned();
        let tls = tls(url.starts_with("https://"), connection.ca.as_deref())?;
        let client = Client::builder().tls_backend_preconfigured(tls).build();
        let client = client.map_err(|error| Error::Internal(format!("no HTTP client: {}", chain(&error))))?;
        Ok(Self { client, url, key })
    }

    /// A call to a path that begins with `/`.
    pub(crate) fn call(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a call; an error answer becomes a failure.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| {
            let reason = chain(&error);
            Failure::Unreachable(format!("cannot reach {}: {reason}; is `tenon serve` running there?", self.url))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let header = |name: &str| response.headers().get(name).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let (request, receipt) = (header("x-request-id"), header("x-tenon-receipt"));
        let status = response.status().as_u16();
        let body: Value = response.json().await.unwrap_or_default();
        Err(Failure::Remote(Box::new(Refusal { request, receipt, ..Refusal::read(Some(status), &body) })))
    }

    /// Sends a call and reads its JSON.
    pub(crate) async fn json(&self, request: RequestBuilder) -> Result<Value, Failure> {
        self.send(request).await?.json().await.map_err(broken)
    }

    /// `GET` of JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(self.call(Method::GET, path)).await
    }
}

/// An answer that was cut off or is no JSON.
pub(crate) fn broken(error: reqwest::Error) -> Failure {
    Failure::Unreachable(format!("the answer is broken: {}", chain(&error)))
}

/// A path's segment as it must be written in a URL.
pub(crate) fn segment(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(escape).collect()
}

/// The body of an upload, with a bar if somebody watches and it takes a while.
pub(crate) fn upload(bytes: Vec<u8>, what: &str) -> Body {
    if bytes.len() < PROGRESS_BYTES_MIN || !std::io::stderr().is_terminal() {
        return bytes.into();
    }
    let style = ProgressStyle::with_template("{msg} {bar:32} {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = ProgressBar::new(bytes.len() as u64).with_message(what.to_owned());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let chunks = stream::unfold((Bytes::from(bytes), bar), async |(mut rest, bar)| {
        if rest.is_empty() {
            bar.finish_and_clear();
            return None;
        }
        let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
        bar.inc(chunk.len() as u64);
        Some((Ok::<_, std::convert::Infallible>(chunk), (rest, bar)))
    });
    Body::wrap_stream(chunks)
}

/// The named authorities, or the system's.
pub(crate) fn tls(is_https: bool, ca: Option<&Path>) -> Result<ClientConfig, Failure> {
    let internal = |error: rustls::Error| Error::Internal(format!("TLS: {error}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(internal)?;
    if let Some(file) = ca {
        return Ok(config.with_root_certificates(authorities(file)?).with_no_client_auth());
    }
    if !is_https {
        // The system's authorities are read only where they are needed: a small container may have none.
        return Ok(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let verifier = rustls_platform_verifier::Verifier::new(provider).map_err(internal)?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

fn authorities(file: &Path) -> Result<RootCertStore, Failure> {
    let bad = |reason: String| Error::invalid("invalid_request", "ca", format!("{}: {reason}", file.display()));
    let pem = read(file)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| bad(format!("not PEM: {error}")))?;
        roots.add(certificate).map_err(|error| bad(format!("not an authority's certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err(bad("holds no certificate (BEGIN CERTIFICATE)".into()).into());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::segment;

    #[test]
    fn a_name_cannot_change_the_path() {
        assert_eq!(segment("iso-date_1.2"), "iso-date_1.2");
        assert_eq!(segment("../a?b#c d"), "..%2Fa%3Fb%23c%20d");
    }
}
