//! What the host may connect to for a caller: origins that the operator listed, at addresses that are public or listed too.
//! Not here: what is asked there.
//!
//! A name is resolved by the client through [`GuardedResolver`], at the moment of the connection, and only what passed is connected
//! to: an answer that changes between a check and a use (DNS rebinding) has no such moment. Addresses written as such never reach
//! a resolver, so [`Guard::check`] looks at them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use ipnet::IpNet;
use plugin::Turns;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use types::TenantId;

use super::{AdapterError, AllowedOrigin, SourceError};

/// Addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 32;
/// Names that the system's resolver is asked for at once for sources and registries: each blocks a thread, also when nobody waits
/// any more.
const LOOKUPS_MAX: usize = 32;
/// Of one tenant.
const TENANT_LOOKUPS_MAX: usize = 4;

/// The threads that block are the process's, and so are the turns.
static TURNS: LazyLock<Turns> = LazyLock::new(|| Turns::new(LOOKUPS_MAX, TENANT_LOOKUPS_MAX));

tokio::task_local! {
    /// Whose names are looked up. The client asks its resolver without saying for whom.
    static LOOKER: TenantId;
}

/// Does what may look names up, in the tenant's turns. Waiting for one is part of the time to connect.
pub(crate) async fn on_behalf_of<T>(tenant: &TenantId, asking: impl Future<Output = T>) -> T {
    LOOKER.scope(tenant.clone(), asking).await
}

/// What may be asked.
#[derive(Debug)]
pub(crate) struct Guard {
    hosts: Vec<AllowedOrigin>,
    private_networks: Vec<IpNet>,
}

/// Why something may not be asked. Says nothing of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("not an HTTP address without user name")]
    Malformed,
    #[error("not in adapter_sources.hosts")]
    Host,
    #[error("no public address, nor one in adapter_sources.private_networks")]
    Address,
}

impl Guard {
    pub(crate) const fn new(hosts: Vec<AllowedOrigin>, private_networks: Vec<IpNet>) -> Self {
        Self { hosts, private_networks }
    }

    /// Whether this URL may be asked, as far as the URL itself tells.
    pub(crate) fn check(&self, url: &Url) -> Result<(), Refusal> {
        if !url.username().is_empty() || url.password().is_some() || !matches!(url.scheme(), "http" | "https") {
            return Err(Refusal::Malformed);
        }
        if !self.hosts.iter().any(|origin| origin.allows(url)) {
            return Err(Refusal::Host);
        }
        self.check_address(url)
    }

    /// Whether the URL's host may be connected to, where it is written as an address. Names are looked at when they are resolved.
    pub(crate) fn check_address(&self, url: &Url) -> Result<(), Refusal> {
        let host = url.host_str().unwrap_or_default();
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(address) if !self.may_connect(address) => Err(Refusal::Address),
            _ => Ok(()),
        }
    }

    /// The same as an error for whoever named the URL.
    pub(super) fn check_named(&self, url: &Url, source_name: &str) -> Result<(), AdapterError> {
        self.check(url).map_err(|refusal| self.explain(refusal, source_name))
    }

    /// For a caller who named this source.
    pub(super) fn explain(&self, refusal: Refusal, source_name: &str) -> AdapterError {
        let reason = match refusal {
            Refusal::Host if self.hosts.is_empty() => {
                "this host fetches from nowhere, because `adapter_sources.hosts` is empty in its configuration"
            }
            Refusal::Host => {
                "its scheme, host and port are not in `adapter_sources.hosts` of this host's configuration"
            }
            Refusal::Address => {
                "it has no public address, and none in `adapter_sources.private_networks` of this host's configuration"
            }
            Refusal::Malformed => return AdapterError::BadSource("use https:// without user name and password"),
        };
        SourceError::NotAllowed { source_name: source_name.to_owned(), reason }.into()
    }

    /// Whether the operator listed anything that needs certificates.
    pub(crate) fn needs_tls(&self) -> bool {
        self.hosts.iter().any(|origin| !origin.is_plain())
    }

    pub(crate) fn may_connect(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let inner = embedded(address);
        if self.private_networks.iter().any(|network| network.contains(&inner)) {
            return true;
        }
        match inner {
            IpAddr::V4(address) => is_public_v4(address),
            IpAddr::V6(address) => is_public_v6(address),
        }
    }
}

/// The IPv4 address that a NAT64 gateway would connect to (RFC 6052), or the address itself.
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Ipv4Addr::new(a, b, c, d).into()
        }
        _ => address,
    }
}

/// Globally reachable by IANA's registry of special addresses, and not known as a cloud's metadata service.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    let is_special = match a {
        0 | 10 | 127 | 224..=255 => true,
        100 => b & 0xc0 == 64,
        169 => b == 254,
        172 => b & 0xf0 == 16,
        192 => matches!((b, c), (0, 0 | 2) | (88, 99) | (168, _)),
        198 => b & 0xfe == 18 || (b, c) == (51, 100),
        203 => (b, c) == (0, 113),
        // Azure's, on an address that looks public.
        168 => (b, c, d) == (63, 129, 16),
        _ => false,
    };
    !is_special
}

/// Only global unicast (2000::/3), less what embeds other addresses, is for documentation or for protocols.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let is_special = match first {
        // 2001::/23 holds Teredo, ORCHID and benchmarks.
        0x2001 => second < 0x200 || second == 0xdb8,
        0x2002 => true,
        0x3fff => second < 0x1000,
        _ => false,
    };
    first & 0xe000 == 0x2000 && !is_special
}

/// Turns names into addresses; the system's, or a test's.
#[async_trait]
pub(crate) trait Lookup: fmt::Debug + Send + Sync {
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
#[derive(Debug)]
pub(crate) struct SystemLookup;

#[async_trait]
impl Lookup for SystemLookup {
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        let name = name.to_owned();
        in_turn(&TURNS, move || {
            Ok((name.as_str(), 0).to_socket_addrs()?.map(|address| address.ip()).take(ADDRESSES_MAX).collect())
        })
        .await
    }
}

/// Blocks a thread in the turn of whom the task looks up for; the host's own lookups only wait for one among all.
async fn in_turn<T: Send + 'static>(
    turns: &Turns,
    resolve: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let tenant = LOOKER.try_with(Clone::clone).ok();
    let turn = turns.take(tenant.as_ref()).await.map_err(std::io::Error::other)?;
    let resolving = tokio::task::spawn_blocking(move || {
        let found = resolve();
        // Kept until here, even if nobody waits any more.
        drop(turn);
        found
    });
    resolving.await.map_err(std::io::Error::other)?
}

/// Resolves names for the client, and hands out only addresses that may be connected to.
#[derive(Clone, Debug)]
pub(crate) struct GuardedResolver {
    pub(crate) guard: Arc<Guard>,
    pub(crate) lookup: Arc<dyn Lookup>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { guard, lookup } = self.clone();
        Box::pin(async move {
            let mut found = lookup.lookup(name.as_str()).await?;
            let before = found.len();
            found.retain(|address| guard.may_connect(*address));
            if found.is_empty() && before > 0 {
                return Err(Refusal::Address.into());
            }
            // Port 0 stands for the URL's own.
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silent_servers_of_one_tenant_keep_only_its_own_turns() {
        use std::sync::mpsc::{Sender, channel};
        use std::time::Duration;
        let turns = Turns::new(LOOKUPS_MAX, TENANT_LOOKUPS_MAX);
        let (flood, other): (TenantId, TenantId) = ("flood".parse().unwrap(), "other".parse().unwrap());
        let mut answers: Vec<Sender<()>> = Vec::new();
        let given_up = async |tenant, silent: std::sync::mpsc::Receiver<()>| {
            let looking = on_behalf_of(
                tenant,
                in_turn(&turns, move || {
                    silent.recv().ok();
                    Ok(())
                }),
            );
            tokio::time::timeout(Duration::from_millis(20), looking).await.is_err()
        };
        for _ in 0..TENANT_LOOKUPS_MAX {
            let (answer, silent) = channel();
            answers.push(answer);
            assert!(given_up(&flood, silent).await);
        }
        // Nobody waits for those any more, and their threads do.
        let quick = in_turn(&turns, || Ok(1));
        assert!(tokio::time::timeout(Duration::from_millis(50), on_behalf_of(&flood, quick)).await.is_err());
        assert_eq!(on_behalf_of(&other, in_turn(&turns, || Ok(2))).await.unwrap(), 2);
        assert_eq!(in_turn(&turns, || Ok(3)).await.unwrap(), 3, "the host's own");
        drop(answers);
        assert_eq!(on_behalf_of(&flood, in_turn(&turns, || Ok(4))).await.unwrap(), 4);
    }

    fn guard(hosts: &[&str], networks: &[&str]) -> Guard {
        let hosts = hosts.iter().map(|host| host.parse().expect(host)).collect();
        Guard::new(hosts, networks.iter().map(|network| network.parse().expect(network)).collect())
    }

    fn may_connect(guard: &Guard, address: &str) -> bool {
        guard.may_connect(address.parse().expect(address))
    }

    #[test]
    fn only_public_addresses_are_connected_to() {
        let guard = guard(&[], &[]);
        for public in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "168.63.129.17",
            "223.255.255.255",
            "2606:4700::1",
            "2001:4860:4860::8888",
            "64:ff9b::1.1.1.1",
            "::ffff:1.1.1.1",
        ] {
            assert!(may_connect(&guard, public), "{public}");
        }
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1.1.1.1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "4000::1",
            "100::1",
        ] {
            assert!(!may_connect(&guard, special), "{special}");
        }
    }

    #[test]
    fn a_listed_network_is_connected_to_in_every_spelling() {
        let guard = guard(&[], &["10.1.0.0/16", "fd00::/64"]);
        for listed in ["10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fd00::7"] {
            assert!(may_connect(&guard, listed), "{listed}");
        }
        for other in ["10.2.0.1", "127.0.0.1", "fd00:0:0:1::7"] {
            assert!(!may_connect(&guard, other), "{other}");
        }
    }

    #[test]
    fn hostile_urls() {
        let guard = guard(&["good.example", "http://127.0.0.1", "10.0.0.1", "[::1]"], &["10.0.0.1/32"]);
        let check = |url: &str| guard.check(&Url::parse(url).expect(url));
        assert_eq!(check("https://good.example/a"), Ok(()));
        assert_eq!(check("https://10.0.0.1/a"), Ok(()));
        for (url, refusal) in [
            ("https://user@good.example/", Refusal::Malformed),
            ("https://:secret@good.example/", Refusal::Malformed),
            ("ftp://good.example/", Refusal::Malformed),
            ("http://good.example/", Refusal::Host),
            ("https://good.example:22/", Refusal::Host),
            ("https://good.example@evil.net/", Refusal::Malformed),
            ("https://good.example.evil.net/", Refusal::Host),
            ("https://evil.net/#good.example", Refusal::Host),
            ("https://evil.net\\@good.example/", Refusal::Host),
            ("https://169.254.169.254/latest/meta-data", Refusal::Host),
            // Listed as hosts, and yet not addresses that are connected to.
            ("http://127.0.0.1/", Refusal::Address),
            ("http://2130706433/", Refusal::Address),
            ("http://0x7f.1/", Refusal::Address),
            ("http://0177.0.0.1/", Refusal::Address),
            ("http://①②⑦.0.0.1/", Refusal::Address),
            ("https://[::1]/", Refusal::Address),
            ("https://[0:0::0:1]/", Refusal::Address),
            ("https://[::ffff:10.0.0.1]/", Refusal::Host),
        ] {
            assert_eq!(check(url), Err(refusal), "{url}");
        }
        let closed = Guard::new(Vec::new(), Vec::new());
        let url = Url::parse("https://good.example/").expect("a URL");
        let error = closed.check_named(&url, "hf://a/b").expect_err("closed");
        assert_eq!(error.code(), "source_not_allowed");
        assert!(error.to_string().contains("`adapter_sources.hosts` is empty"), "{error}");
    }

    #[derive(Debug)]
    struct Fixed(Vec<IpAddr>);

    #[async_trait]
    impl Lookup for Fixed {
        async fn lookup(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
            Ok(self.0.clone())
        }
    }

    #[tokio::test]
    async fn a_name_yields_only_addresses_that_pass() {
        let resolve = async |addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| address.parse().expect(address)).collect();
            let guard = Arc::new(guard(&[], &[]));
            let resolver = GuardedResolver { guard, lookup: Arc::new(Fixed(addresses)) };
            let found = resolver.resolve("a.example".parse().expect("a name")).await;
            found.map(|found| found.map(|address| address.ip().to_string()).collect::<Vec<_>>())
        };
        assert_eq!(resolve(&["127.0.0.1", "1.1.1.1", "::1"]).await.expect("one passes"), ["1.1.1.1"]);
        let error = resolve(&["10.0.0.1", "::1"]).await.expect_err("none passes");
        assert_eq!(error.downcast_ref(), Some(&Refusal::Address));
    }
}
