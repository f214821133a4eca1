//! One HTTP request of a fetch: through the guard, with redirects followed by hand, each checked again. Not here: attempts and
//! bodies (`download.rs`).
//!
//! The client takes no proxy from the environment, follows no redirect and sends no referrer of its own, keeps no cookies and asks
//! for no compression: what arrives is what was stored.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Response, StatusCode, Url};
use rustls::{ClientConfig, RootCertStore};

use super::guard::{Guard, GuardedResolver, Lookup, Refusal};
use super::origin::is_same_origin;
use super::{AdapterError, SourceError, SourcesConfig};

/// Connections that are kept for a later request to the same host.
const IDLE_CONNECTIONS_MAX: usize = 4;
const IDLE_CONNECTION_SECONDS: u64 = 15;

/// What is asked for, and how it is called in messages.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) url: Url,
    /// What the caller named. The URL may hold signatures and the operator's own hosts, and is never told.
    pub(super) name: String,
    /// Sent to the URL's own origin and to no other.
    pub(super) authorization: Option<HeaderValue>,
}

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// For good.
    Final(AdapterError),
    /// Perhaps not the next time; not before the time that the server asked for.
    Passing { reason: String, not_before: Option<Duration> },
}

impl Failure {
    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self::Passing { reason: reason.into(), not_before: None }
    }
}

impl From<AdapterError> for Failure {
    fn from(error: AdapterError) -> Self {
        Self::Final(error)
    }
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Final(error.into())
    }
}

#[derive(Debug)]
pub(super) struct Web {
    client: Client,
    pub(super) guard: Arc<Guard>,
    redirects_max: u32,
    /// For an answer's beginning, and for each piece of its body.
    pub(super) stall: Duration,
}

impl Web {
    pub(super) fn new(config: &SourcesConfig, lookup: Arc<dyn Lookup>) -> Result<Self, SourceError> {
        let guard = Arc::new(Guard::new(config.hosts.clone(), config.private_networks.clone()));
        let resolver = GuardedResolver { guard: Arc::clone(&guard), lookup };
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .user_agent(concat!("tenon/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(config.connect)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(Duration::from_secs(IDLE_CONNECTION_SECONDS))
            .dns_resolver(resolver)
            .tls_backend_preconfigured(tls(guard.needs_tls())?)
            .build()
            .map_err(|error| SourceError::NoClient(error.to_string()))?;
        Ok(Self { client, guard, redirects_max: config.redirects_max, stall: config.stall })
    }

    /// Asks, and follows redirects. The answer has any other status.
    pub(super) async fn get(&self, target: &Target, headers: &HeaderMap) -> Result<Response, Failure> {
        let mut url = target.url.clone();
        self.guard.check_named(&url, &target.name)?;
        for _ in 0..=self.redirects_max {
            let answer = self.ask(target, &url, headers).await?;
            if !is_redirect(answer.status()) {
                return Ok(answer);
            }
            let location = answer.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            url = next.ok_or_else(|| failed(target, "it redirects to nowhere"))?;
            if let Err(refusal) = self.guard.check(&url) {
                return Err(redirect_refused(target, &url, refusal));
            }
        }
        Err(failed(target, &format!("it redirects more than {} times", self.redirects_max)))
    }

    async fn ask(&self, target: &Target, url: &Url, headers: &HeaderMap) -> Result<Response, Failure> {
        let is_own = is_same_origin(&target.url, url);
        let mut request = self.client.get(url.clone()).headers(headers.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = target.authorization.clone().filter(|_| is_own) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let answer = tokio::time::timeout(self.stall, request.send()).await;
        let answer = answer.map_err(|_| Failure::passing("no answer began in time"))?;
        answer.map_err(|error| match refusal(&error) {
            Some(refusal) if is_own => Failure::Final(self.guard.explain(refusal, &target.name)),
            Some(refusal) => redirect_refused(target, url, refusal),
            None => Failure::passing(reason(&error)),
        })
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

pub(super) fn failed(target: &Target, reason: &str) -> Failure {
    SourceError::Failed { source_name: target.name.clone(), reason: reason.to_owned() }.into()
}

/// Where to is for the operator's log: the caller did not name it.
fn redirect_refused(target: &Target, url: &Url, refusal: Refusal) -> Failure {
    let host = url.host_str().unwrap_or_default();
    tracing::warn!(source = target.name, host, %refusal, "a redirect of an adapter's source was not followed");
    SourceError::RedirectNotAllowed { source_name: target.name.clone() }.into()
}

/// What our own resolver said, below the client's layers of errors.
pub(crate) fn refusal(error: &reqwest::Error) -> Option<Refusal> {
    let mut cause = error.source();
    while let Some(found) = cause {
        if let Some(refusal) = found.downcast_ref::<Refusal>() {
            return Some(*refusal);
        }
        cause = found.source();
    }
    None
}

/// In few words: the causes below name addresses.
pub(crate) fn reason(error: &reqwest::Error) -> &'static str {
    match error {
        error if error.is_timeout() => "it did not answer in time",
        error if error.is_connect() => "it could not be connected to",
        error if error.is_body() || error.is_decode() => "its answer broke off",
        _ => "the connection failed",
    }
}

/// The system's authorities, read only where they are needed: a small container may have none.
pub(crate) fn tls(is_needed: bool) -> Result<ClientConfig, SourceError> {
    let no_client = |error: rustls::Error| SourceError::NoClient(format!("TLS: {error}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(no_client)?;
    if !is_needed {
        return Ok(config.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
    }
    let verifier = rustls_platform_verifier::Verifier::new(provider).map_err(no_client)?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}
