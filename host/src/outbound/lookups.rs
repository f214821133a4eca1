//! Names that plugins ask for, turned into addresses: few at a time, and few of one tenant. The system's resolver blocks a thread, and
//! goes on when nobody waits any more: where a zone's servers are silent, for tens of seconds. So a lookup has a turn until it has
//! ended, and tenants who ask for such names are short of lookups themselves, not the host of threads.
//!
//! The client asks its resolver without saying for whom. So a request takes its turn before it is sent, and the resolver finds the
//! turn with the task that sends. Not here: which addresses may be connected to (`adapters/source/guard.rs`).

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use plugin::{OutboundError, Turn, Turns};
use reqwest::Url;
use types::TenantId;

use crate::adapters::Lookup;

/// Names that are looked up at once for plugins: a part of the 512 threads on which a runtime blocks.
const LOOKUPS_MAX: usize = 32;
/// Of one tenant.
pub(super) const TENANT_LOOKUPS_MAX: usize = 4;
/// Addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 32;

tokio::task_local! {
    /// For the one lookup of the request that the task sends.
    static TURN: Cell<Option<Turn>>;
}

/// What blocks until a name's addresses are known.
pub(super) type Resolver = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Looks names up for plugins.
#[derive(Clone)]
pub(super) struct Lookups {
    turns: Arc<Turns>,
    resolver: Arc<Resolver>,
}

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookups").field("turns", &self.turns).finish_non_exhaustive()
    }
}

impl Lookups {
    /// With something that resolves.
    pub(super) fn new(resolver: Arc<Resolver>) -> Self {
        Self { turns: Arc::new(Turns::new(LOOKUPS_MAX, TENANT_LOOKUPS_MAX)), resolver }
    }

    /// A turn at looking up the URL's host, where it has a name.
    ///
    /// # Errors
    /// [`OutboundError::Failed`] if there is none in this time; it names the limit.
    pub(super) async fn turn(
        &self,
        tenant: &TenantId,
        url: &Url,
        time: Duration,
    ) -> Result<Option<Turn>, OutboundError> {
        if is_address(url) {
            return Ok(None);
        }
        let taken = tokio::time::timeout(time, self.turns.take(tenant)).await;
        let busy = || {
            OutboundError::Failed(
                format!(
                    "its name could not be looked up in {} ms: the host looks up {TENANT_LOOKUPS_MAX} names of one tenant at a \
                     time (name_lookups_max) and {LOOKUPS_MAX} in all, and those have not been answered",
                    time.as_millis()
                )
                .into(),
            )
        };
        taken.ok().and_then(Result::ok).map(Some).ok_or_else(busy)
    }
}

/// Runs what connects, with the turn for its lookup.
pub(super) async fn with_turn<T>(turn: Option<Turn>, sending: impl Future<Output = T>) -> T {
    TURN.scope(Cell::new(turn), sending).await
}

#[async_trait]
impl Lookup for Lookups {
    async fn lookup(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let turn = TURN.try_with(Cell::take).ok().flatten();
        let turn = turn.ok_or_else(|| io::Error::other("a name is looked up without a turn"))?;
        let (resolver, name) = (Arc::clone(&self.resolver), name.to_owned());
        let resolving = tokio::task::spawn_blocking(move || {
            let found = resolver(&name);
            // Kept until here, even if nobody waits any more.
            drop(turn);
            found
        });
        resolving.await.map_err(io::Error::other)?
    }
}

/// By the system's resolver.
pub(super) fn resolve(name: &str) -> io::Result<Vec<IpAddr>> {
    Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).take(ADDRESSES_MAX).collect())
}

fn is_address(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}
