//! What plugins ask of the web: to origins that their manifest grants, at addresses that are public or that the operator lists. Not
//! here: how an address is judged, at each connection, which is the fetcher's guard (`adapters/source/guard.rs`), and how names are
//! looked up (`lookups`).
//!
//! A request and its answer are whole and bounded. Redirects are not followed: the plugin sees them, and asks again if it may. No
//! connection is kept, so that no tenant can tell by time what another one asks.

mod lookups;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use plugin::{OutboundBounds, OutboundError};
use reqwest::header::{CONTENT_LENGTH, HOST, HeaderMap};
use reqwest::{Client, Method, Url};
use types::TenantId;

use crate::adapters::{AllowedOrigin, Guard, GuardedResolver, OriginError, Refusal};
use crate::adapters::{reason, refusal, tls};
use lookups::{Lookups, Resolver};

const CONNECT: Duration = Duration::from_secs(5);
/// Characters of a host that a message quotes.
const QUOTED_CHARS_MAX: usize = 96;

/// What the operator says about plugins' requests: the table `plugin_http`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutboundConfig {
    /// Which origins a manifest may grant at all; `None` is every one.
    pub hosts: Option<Vec<AllowedOrigin>>,
    /// Addresses that are not public, and may be connected to nevertheless.
    pub private_networks: Vec<IpNet>,
}

/// An entry of a manifest's `grants.http`: an origin, and a path at which and below which may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpGrant {
    origin: AllowedOrigin,
    /// Without a slash at its end; empty for every path.
    path: String,
}

/// An entry that grants nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpGrantError {
    /// No scheme, so nobody knows whether plain HTTP is meant.
    #[error("write the scheme too, such as `https://api.example.com`")]
    Scheme,
    /// Not an origin.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// A path that a URL would write in another way.
    #[error("its path is no plain one, such as `/v1/items`, without a query")]
    Path,
}

impl FromStr for HttpGrant {
    type Err = HttpGrantError;

    fn from_str(text: &str) -> Result<Self, HttpGrantError> {
        let (scheme, rest) = text.split_once("://").ok_or(HttpGrantError::Scheme)?;
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let origin = format!("{scheme}://{host}").parse()?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let url = Url::parse(&format!("https://a.example{path}")).map_err(|_| HttpGrantError::Path)?;
        let is_plain = path.is_empty() || (url.path() == path && url.query().is_none() && url.fragment().is_none());
        if !is_plain || has_hidden_separator(path) || path.contains("//") {
            return Err(HttpGrantError::Path);
        }
        Ok(Self { origin, path: path.to_owned() })
    }
}

impl HttpGrant {
    /// Whether it lets this URL be asked.
    #[must_use]
    pub fn allows(&self, url: &Url) -> bool {
        let below = url.path().strip_prefix(&self.path);
        let is_path = below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        // A server may read `%2f` as a separator, and then `..` beside it.
        let is_clear = self.path.is_empty() || !has_hidden_separator(url.path());
        is_path && is_clear && self.origin.allows(url)
    }
}

fn has_hidden_separator(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    path.contains("%2f") || path.contains("%5c") || path.contains("%2e")
}

/// Asks for plugins.
pub(crate) struct WebClient {
    config: OutboundConfig,
    guard: Arc<Guard>,
    lookups: Lookups,
    /// Made when it is first needed: it reads the system's authorities, and a small container may have none.
    client: Mutex<Option<Client>>,
}

impl fmt::Debug for WebClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebClient").field("config", &self.config).finish_non_exhaustive()
    }
}

impl WebClient {
    /// With the system's resolver.
    pub(crate) fn new(config: OutboundConfig) -> Self {
        Self::with_resolver(config, Arc::new(lookups::resolve))
    }

    fn with_resolver(config: OutboundConfig, resolver: Arc<Resolver>) -> Self {
        // Which origins may be asked differs from manifest to manifest; addresses are judged alike.
        let guard = Arc::new(Guard::new(Vec::new(), config.private_networks.clone()));
        Self { config, guard, lookups: Lookups::new(resolver), client: Mutex::new(None) }
    }

    /// Asks for a tenant, if one of the grants and the operator allow it, and reads the whole answer. Half of the time at most is for
    /// waiting until the name may be looked up, so that whoever waited in vain is told for what.
    pub(crate) async fn send(
        &self,
        tenant: &TenantId,
        grants: &[HttpGrant],
        request: http::Request<Bytes>,
        bounds: OutboundBounds,
    ) -> Result<http::Response<Bytes>, OutboundError> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string()).map_err(|_| OutboundError::Failed("its URL is none".into()))?;
        self.check(grants, &parts.method, &url)?;
        let mut headers = parts.headers;
        // These follow from the URL and the body.
        headers.remove(HOST);
        headers.remove(CONTENT_LENGTH);
        let host = shown(&url);
        let client = self.client()?;
        let answered = async {
            let turn = self.lookups.turn(tenant, &url, bounds.time / 2).await?;
            let request = client.request(parts.method, url).headers(headers).body(body);
            let answer = lookups::with_turn(turn, request.send()).await.map_err(|error| match refusal(&error) {
                Some(_) => OutboundError::Address(host),
                None => OutboundError::Failed(reason(&error).into()),
            })?;
            read(answer, bounds).await
        };
        let in_time = tokio::time::timeout(bounds.time, answered).await;
        in_time.unwrap_or_else(|_| Err(OutboundError::Timeout(bounds.time.as_millis())))
    }

    fn check(&self, grants: &[HttpGrant], method: &Method, url: &Url) -> Result<(), OutboundError> {
        let host = shown(url);
        let denied = |reason: &str| Err(OutboundError::Denied(format!("`{host}` {reason}")));
        let has_user = !url.username().is_empty() || url.password().is_some();
        if has_user || *method == Method::CONNECT || !matches!(url.scheme(), "http" | "https") {
            return denied("is not asked by CONNECT, with a user name, or by another scheme than http and https");
        }
        if !grants.iter().any(|grant| grant.allows(url)) {
            return denied("is not in the manifest's grants.http");
        }
        let is_listed = |hosts: &Vec<AllowedOrigin>| hosts.iter().any(|origin| origin.allows(url));
        if !self.config.hosts.as_ref().is_none_or(is_listed) {
            return denied("is not in plugin_http.hosts of this host's configuration");
        }
        self.guard.check_address(url).map_err(|_: Refusal| OutboundError::Address(host))
    }

    fn client(&self) -> Result<Client, OutboundError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let resolver = GuardedResolver { guard: Arc::clone(&self.guard), lookup: Arc::new(self.lookups.clone()) };
        let no_client = |error: String| {
            tracing::error!(error, "no HTTP client for plugins");
            OutboundError::Failed("the host has no HTTP client; its log has the reason".into())
        };
        let tls = tls(true).map_err(|error| no_client(error.to_string()))?;
        let made = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .user_agent(concat!("tenon-plugin/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(0)
            .dns_resolver(resolver)
            .tls_backend_preconfigured(tls)
            .build()
            .map_err(|error| no_client(error.to_string()))?;
        Ok(client.insert(made).clone())
    }
}

/// Scheme, host and port: the path may hold what is secret.
fn shown(url: &Url) -> String {
    url.origin().ascii_serialization().chars().take(QUOTED_CHARS_MAX).collect()
}

async fn read(mut answer: reqwest::Response, bounds: OutboundBounds) -> Result<http::Response<Bytes>, OutboundError> {
    let max = bounds.headers_bytes_max;
    if header_bytes(answer.headers()) > max {
        return Err(OutboundError::Limit { limit: "http_headers_bytes_max", max });
    }
    let max = bounds.response_bytes_max;
    let mut body = BytesMut::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| OutboundError::Failed(reason(&error).into()))? {
        if body.len().saturating_add(piece.len()) > max {
            return Err(OutboundError::Limit { limit: "http_response_bytes_max", max });
        }
        body.extend_from_slice(&piece);
    }
    let mut whole = http::Response::new(body.freeze());
    *whole.status_mut() = answer.status();
    *whole.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(whole)
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

#[cfg(test)]
mod tests;
