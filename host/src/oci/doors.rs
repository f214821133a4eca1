//! What may be asked on the way to an artefact: its registry, where that keeps its tokens, and where it redirects to. Two rules: on a
//! host, what the operator listed; on the command line, what the user named and where that leads over HTTPS, but from a public
//! registry never to an address that is not public. Not here: how an address is judged (`adapters/source/guard.rs`).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Url};
use rustls::ClientConfig;

use super::{OciError, Reference};
use crate::adapters::{Guard, GuardedResolver, Lookup, Refusal, SystemLookup};

const CONNECT: Duration = Duration::from_secs(10);
/// Variables by which a client is told to let another one resolve names.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// What may be asked for one artefact, and the client that asks.
#[derive(Debug)]
pub(crate) struct Doors {
    pub(super) origin: Url,
    pub(super) client: Client,
    rule: Rule,
}

#[derive(Debug)]
enum Rule {
    /// An operator's list says.
    Listed(Arc<Guard>),
    /// A person named the registry. With a guard, addresses must be public.
    Named(Option<Arc<Guard>>),
}

impl Doors {
    /// For a host: the registry must be in the list, over HTTPS or, if it is written so there, over plain HTTP.
    pub(crate) fn listed(client: Client, guard: Arc<Guard>, reference: &Reference) -> Result<Self, OciError> {
        let mut refusal = Refusal::Malformed;
        for scheme in ["https", "http"] {
            let origin = origin(scheme, reference)?;
            match guard.check(&origin) {
                Ok(()) => return Ok(Self { origin, client, rule: Rule::Listed(guard) }),
                // Of two refusals, that of the one that is listed.
                Err(found) if refusal != Refusal::Address => refusal = found,
                Err(_) => {}
            }
        }
        Err(explain(refusal, reference))
    }

    /// For a person's command line. Proxies of the environment are used, as by other commands.
    pub(crate) async fn named(reference: &Reference, is_plain: bool, tls: ClientConfig) -> Result<Self, OciError> {
        if is_plain {
            if !is_loopback(reference) {
                return Err(OciError::NotLoopback(reference.registry().to_owned()));
            }
            let client = build(Client::builder().no_proxy(), None, tls)?;
            return Ok(Self { origin: origin("http", reference)?, client, rule: Rule::Named(None) });
        }
        let origin = origin("https", reference)?;
        let guard = Arc::new(Guard::new(Vec::new(), Vec::new()));
        let has_proxy = PROXIES.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        let is_public = is_public(&guard, &origin).await;
        let guard = is_public.then_some(guard);
        let resolver = guard.as_ref().filter(|_| !has_proxy);
        let resolver =
            resolver.map(|guard| GuardedResolver { guard: Arc::clone(guard), lookup: Arc::new(SystemLookup) });
        Ok(Self { origin, client: build(Client::builder(), resolver, tls)?, rule: Rule::Named(guard) })
    }

    /// Whether this may be asked, as far as the URL itself tells; names are judged when they are resolved.
    pub(super) fn check(&self, url: &Url) -> Result<(), Refusal> {
        match &self.rule {
            Rule::Listed(guard) => guard.check(url),
            Rule::Named(_) if self.is_own(url) => Ok(()),
            Rule::Named(_) if url.scheme() != "https" => Err(Refusal::Host),
            Rule::Named(_) if !url.username().is_empty() || url.password().is_some() => Err(Refusal::Malformed),
            Rule::Named(Some(guard)) => guard.check_address(url),
            Rule::Named(None) => Ok(()),
        }
    }

    /// Why there is no answer: to a person the last cause too, which may name addresses; to a host's callers not.
    pub(super) fn told(&self, error: &reqwest::Error, short: &str) -> String {
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(next) = cause.and_then(|cause| cause.source()) {
            cause = Some(next);
        }
        match (&self.rule, cause) {
            (Rule::Named(_), Some(cause)) => format!("{short} ({cause})"),
            _ => short.to_owned(),
        }
    }

    /// Whether the URL is the registry's own.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.origin.origin() && url.username().is_empty() && url.password().is_none()
    }
}

/// What is said to whoever named the registry.
pub(super) fn explain(refusal: Refusal, reference: &Reference) -> OciError {
    let reason = match refusal {
        Refusal::Host => {
            "its registry's scheme, host and port are not in `plugin_sources.hosts` of this host's configuration"
        }
        Refusal::Address => "its registry has no public address, and none in `plugin_sources.private_networks`",
        Refusal::Malformed => "its registry is not a host with or without a port",
    };
    OciError::NotAllowed { name: reference.to_string(), reason }
}

/// A client that follows nothing and tries nothing twice by itself.
pub(super) fn build(
    builder: ClientBuilder,
    resolver: Option<GuardedResolver>,
    tls: ClientConfig,
) -> Result<Client, OciError> {
    let builder = builder
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .http1_only()
        .user_agent(concat!("tenon/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .tls_backend_preconfigured(tls);
    let builder = if let Some(resolver) = resolver { builder.dns_resolver(resolver) } else { builder };
    builder.build().map_err(|error| OciError::NoClient(error.to_string()))
}

/// Whether the registry is named as this machine.
pub(crate) fn is_loopback(reference: &Reference) -> bool {
    let Ok(url) = origin("http", reference) else { return false };
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn origin(scheme: &str, reference: &Reference) -> Result<Url, OciError> {
    let url = Url::parse(&format!("{scheme}://{}/", reference.address()));
    url.map_err(|_| OciError::Reference(format!("`{}` is no host", reference.registry())))
}

/// Whether the registry is at public addresses only. A name that cannot be resolved leads nowhere by itself.
async fn is_public(guard: &Guard, origin: &Url) -> bool {
    let host = origin.host_str().unwrap_or_default();
    if host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok() {
        return guard.check_address(origin).is_ok();
    }
    let found = SystemLookup.lookup(host).await.unwrap_or_default();
    !found.is_empty() && found.iter().all(|address| guard.may_connect(*address))
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;

    use super::*;

    fn tls() -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
        config.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    }

    fn reference(text: &str) -> Reference {
        text.parse().expect(text)
    }

    fn check(doors: &Doors, url: &str) -> Result<(), Refusal> {
        doors.check(&Url::parse(url).expect(url))
    }

    #[tokio::test]
    async fn a_public_registry_leads_to_no_private_address() {
        let doors = Doors::named(&reference("1.1.1.1/a:1"), false, tls()).await.expect("doors");
        assert_eq!(check(&doors, "https://1.1.1.1/v2/"), Ok(()));
        assert_eq!(check(&doors, "https://tokens.example/"), Ok(()), "names are judged at the connection");
        for url in ["https://169.254.169.254/", "https://127.0.0.1/", "https://[::1]/", "https://10.0.0.1/"] {
            assert_eq!(check(&doors, url), Err(Refusal::Address), "{url}");
        }
        assert_eq!(check(&doors, "http://tokens.example/"), Err(Refusal::Host), "nothing goes in the clear");
        assert_eq!(check(&doors, "https://user@tokens.example/"), Err(Refusal::Malformed));
    }

    #[tokio::test]
    async fn plain_http_is_for_this_machine() {
        for text in ["localhost:5000/a:1", "127.0.0.1:5000/a:1", "127.8.8.8/a:1", "[::1]:5000/a:1"] {
            let doors = Doors::named(&reference(text), true, tls()).await.expect(text);
            assert_eq!(doors.origin.scheme(), "http", "{text}");
            assert_eq!(check(&doors, "http://tokens.example/"), Err(Refusal::Host), "{text}");
        }
        for text in ["ghcr.io/a:1", "10.0.0.1:5000/a:1", "localhost.example.org/a:1", "127.0.0.1.example.org/a:1"] {
            let error = Doors::named(&reference(text), true, tls()).await.expect_err(text);
            assert_eq!(error.code(), "registry_not_loopback", "{text}");
        }
    }

    #[test]
    fn a_host_asks_what_its_operator_listed() {
        let hosts = ["registry.example", "http://127.0.0.1:5000", "https://10.0.0.1"];
        let hosts = hosts.map(|host| host.parse().expect(host)).to_vec();
        let guard = Arc::new(Guard::new(hosts, vec!["127.0.0.0/8".parse().expect("a network")]));
        let client = build(Client::builder(), None, tls()).expect("a client");
        let listed = |text: &str| Doors::listed(client.clone(), Arc::clone(&guard), &reference(text));
        assert_eq!(listed("registry.example/a:1").expect("listed").origin.as_str(), "https://registry.example/");
        let plain = listed("127.0.0.1:5000/a:1").expect("listed");
        assert_eq!(plain.origin.as_str(), "http://127.0.0.1:5000/");
        assert_eq!(check(&plain, "https://elsewhere.example/token"), Err(Refusal::Host));
        for (text, said) in [
            ("other.example/a:1", "plugin_sources.hosts"),
            ("registry.example:444/a:1", "plugin_sources.hosts"),
            ("10.0.0.1/a:1", "plugin_sources.private_networks"),
        ] {
            let error = listed(text).expect_err(text);
            assert!(error.code() == "source_not_allowed" && error.to_string().contains(said), "{error}");
        }
    }
}
