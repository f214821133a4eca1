//! What a host pulls for its tenants: from registries that its operator listed, at addresses that are public or listed too, so many at
//! a time and each within its time. Not here: what is done with a component then.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Client;
use tokio::sync::Semaphore;

use super::doors::build;
use super::{Doors, OciError, Pulled, Reference, Session, pull};
use crate::adapters::{AllowedOrigin, Guard, GuardedResolver, SystemLookup, tls};

/// For a whole artefact, its wait for a turn included.
const TOTAL: Duration = Duration::from_secs(300);
/// At a time; bounds memory.
const PULLS_MAX: usize = 4;

/// What may be pulled by the host itself: the table `plugin_sources`. By default nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PluginSourcesConfig {
    /// Registries, the places of their tokens, and where they redirect to.
    pub hosts: Vec<AllowedOrigin>,
    /// Addresses that are not public, and may be connected to nevertheless.
    pub private_networks: Vec<IpNet>,
}

/// Pulls for tenants.
pub(crate) struct PluginSources {
    guard: Arc<Guard>,
    client: Client,
    permits: Semaphore,
    is_open: bool,
}

impl fmt::Debug for PluginSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginSources").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl PluginSources {
    /// Blocking: it looks at the system's certificate authorities if a registry is asked over HTTPS.
    pub(crate) fn new(config: &PluginSourcesConfig) -> Result<Self, OciError> {
        let guard = Arc::new(Guard::new(config.hosts.clone(), config.private_networks.clone()));
        let tls = tls(guard.needs_tls()).map_err(|error| OciError::NoClient(error.to_string()))?;
        let resolver = GuardedResolver { guard: Arc::clone(&guard), lookup: Arc::new(SystemLookup) };
        let client = build(Client::builder().no_proxy(), Some(resolver), tls)?;
        Ok(Self { guard, client, permits: Semaphore::new(PULLS_MAX), is_open: !config.hosts.is_empty() })
    }

    /// Pulls an artefact without credentials.
    pub(crate) async fn pull(&self, reference: &Reference) -> Result<Pulled, OciError> {
        let name = || reference.to_string();
        if !self.is_open {
            let reason = "this host pulls from nowhere, because `plugin_sources.hosts` is empty in its configuration";
            return Err(OciError::NotAllowed { name: name(), reason });
        }
        let doors = Doors::listed(self.client.clone(), Arc::clone(&self.guard), reference)?;
        let work = async {
            let closed = |_| OciError::Unavailable { name: name(), reason: "the host is going down".to_owned() };
            let _permit = self.permits.acquire().await.map_err(closed)?;
            pull(&mut Session::new(doors, reference.clone(), None, false), &|_, _| ()).await
        };
        let too_slow = |_| OciError::TooSlow { name: name(), ms: u64::try_from(TOTAL.as_millis()).unwrap_or(u64::MAX) };
        tokio::time::timeout(TOTAL, work).await.map_err(too_slow)?
    }
}
