//! Which origins an operator lets the host ask: scheme, host and port as they are written in `adapter_sources.hosts`.
//! Not here: which addresses a name may stand for (`guard.rs`).

use std::fmt;
use std::str::FromStr;

use reqwest::Url;

/// One entry of the list: `example.org` is HTTPS on port 443, `example.org:8443` another port, `*.example.org` every name
/// below that one and not the name itself, and `http://example.org` allows plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin {
    is_plain: bool,
    is_wildcard: bool,
    /// As URLs have it: lower case, punycode, IPv6 in brackets.
    host: String,
    port: u16,
}

/// An entry that is no origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write a host such as `example.org`, `example.org:8443`, `*.example.org` or, for plain HTTP, `http://example.org`"
)]
pub struct OriginError;

impl AllowedOrigin {
    /// Whether this entry lets the URL be asked.
    pub(crate) fn allows(&self, url: &Url) -> bool {
        let scheme = if self.is_plain { "http" } else { "https" };
        let Some(host) = url.host_str() else { return false };
        let is_host = if self.is_wildcard {
            let below = host.strip_suffix(self.host.as_str()).and_then(|below| below.strip_suffix('.'));
            below.is_some_and(|below| !below.is_empty())
        } else {
            host == self.host
        };
        is_host && url.scheme() == scheme && url.port_or_known_default() == Some(self.port)
    }

    /// Whether it is asked without TLS.
    pub(super) const fn is_plain(&self) -> bool {
        self.is_plain
    }
}

impl FromStr for AllowedOrigin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let (is_plain, rest) = match text.split_once("://") {
            Some(("http", rest)) => (true, rest),
            Some(("https", rest)) => (false, rest),
            Some(_) => return Err(OriginError),
            None => (false, text),
        };
        let (is_wildcard, rest) = rest.strip_prefix("*.").map_or((false, rest), |rest| (true, rest));
        let is_character = |c: char| c.is_alphanumeric() || "-._:[]".contains(c);
        if rest.is_empty() || !rest.chars().all(is_character) {
            return Err(OriginError);
        }
        let scheme = if is_plain { "http" } else { "https" };
        let url = Url::parse(&format!("{scheme}://{rest}/")).map_err(|_| OriginError)?;
        let host = url.host_str().ok_or(OriginError)?.to_owned();
        let is_address = host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
        let port = url.port_or_known_default().filter(|port| *port != 0).ok_or(OriginError)?;
        if is_wildcard && is_address {
            return Err(OriginError);
        }
        Ok(Self { is_plain, is_wildcard, host, port })
    }
}

impl fmt::Display for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_plain { "http" } else { "https" };
        let star = if self.is_wildcard { "*." } else { "" };
        write!(f, "{scheme}://{star}{}:{}", self.host, self.port)
    }
}

/// Whether both have scheme, host and port in common: credentials for one may go to the other.
pub(super) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(entry: &str, url: &str) -> bool {
        let entry: AllowedOrigin = entry.parse().expect(entry);
        entry.allows(&Url::parse(url).expect(url))
    }

    #[test]
    fn an_entry_is_scheme_host_and_port() {
        for (entry, url) in [
            ("example.org", "https://example.org/a"),
            ("Example.ORG", "https://EXAMPLE.org:443/a"),
            ("https://example.org", "https://example.org/"),
            ("example.org:8443", "https://example.org:8443/"),
            ("*.example.org", "https://a.b.example.org/"),
            ("http://localhost:9000", "http://localhost:9000/bucket"),
            ("http://10.0.0.1", "http://0xa.1/"),
            ("[2001:db8::1]:444", "https://[2001:DB8:0::1]:444/"),
            ("bücher.example", "https://xn--bcher-kva.example/"),
        ] {
            assert!(allows(entry, url), "{entry} {url}");
        }
        for (entry, url) in [
            ("example.org", "http://example.org/"),
            ("http://example.org", "https://example.org/"),
            ("http://example.org", "http://example.org:443/"),
            ("example.org", "https://example.org:8443/"),
            ("example.org", "https://example.org./"),
            ("example.org", "https://sub.example.org/"),
            ("example.org", "https://example.org.evil.net/"),
            ("*.example.org", "https://example.org/"),
            ("*.example.org", "https://badexample.org/"),
            ("*.example.org", "https://example.org.evil.net/"),
            ("example.org", "ftp://example.org/"),
        ] {
            assert!(!allows(entry, url), "{entry} {url}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for bad in [
            "",
            "*",
            "*.",
            "*.10.0.0.1",
            "ftp://a",
            "a/b",
            "a b",
            "u@a",
            "a?x",
            "a#x",
            "a:0",
            "a:99999",
            "https://",
            "*.*.a",
            "http://http://a",
            "a\\b",
            "file:///a",
        ] {
            assert!(bad.parse::<AllowedOrigin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_are_compared_whole() {
        let same = |one, other| is_same_origin(&Url::parse(one).expect(one), &Url::parse(other).expect(other));
        assert!(same("https://a/x", "https://A:443/y?z"));
        for other in ["http://a/", "https://a:444/", "https://b.a/"] {
            assert!(!same("https://a/", other), "{other}");
        }
    }
}
