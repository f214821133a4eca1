//! The files of a source that lies elsewhere: so many sources at a time, each within its time, and once for all of a tenant who
//! ask for the same with the same credentials. Not here: one file (`download.rs`).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use model::AdapterLimits;
use tokio::sync::Semaphore;
use types::{Digest, TenantId};

use super::download::{Budget, Wanted, download};
use super::guard::{Guard, Lookup};
use super::web::{Target, Web};
use super::{AdapterError, AdapterFiles, CONFIG, SIGNATURE, SourceError, SourcesConfig, WEIGHTS};
use crate::adapters::SIGNATURE_BYTES_MAX;
use crate::adapters::loads::lost;

/// A folder elsewhere, with what opens it.
#[async_trait]
pub(super) trait RemoteFolder: fmt::Debug + Send + Sync {
    /// In messages, and to tell sources apart: no two sources share it.
    fn name(&self) -> &str;

    /// To tell credentials apart.
    fn credential(&self) -> Option<Digest>;

    /// One of its files.
    async fn file(&self, from: &Requests, wanted: Wanted<'_>) -> Result<Bytes, AdapterError>;
}

/// What a scheme fetches with.
#[derive(Debug)]
pub(super) struct Requests {
    web: Web,
    budget: Budget,
}

impl Requests {
    pub(super) async fn download(&self, target: &Target, wanted: Wanted<'_>) -> Result<Bytes, AdapterError> {
        download(&self.web, target, wanted, self.budget).await
    }
}

type Files = Result<AdapterFiles, AdapterError>;
/// Whose, with which credentials, what, and whether with its signature.
type Key = (TenantId, Option<Digest>, String, bool);

/// A fetch that has begun. It lives as long as anybody waits for it.
struct Flight {
    number: u64,
    files: WeakShared<BoxFuture<'static, Files>>,
}

#[derive(Default)]
struct Flights {
    begun: u64,
    under_way: HashMap<Key, Flight>,
}

pub(super) struct Fetcher {
    requests: Requests,
    total: Duration,
    permits: Semaphore,
    flights: Mutex<Flights>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("requests", &self.requests).finish_non_exhaustive()
    }
}

impl Fetcher {
    pub(super) fn new(config: &SourcesConfig, lookup: Arc<dyn Lookup>) -> Result<Self, SourceError> {
        let budget = Budget { attempts_max: config.attempts_max, wait_first: config.retry_wait };
        Ok(Self {
            requests: Requests { web: Web::new(config, lookup)?, budget },
            total: config.total,
            permits: Semaphore::new(config.fetches_max.max(1)),
            flights: Mutex::default(),
        })
    }

    pub(super) fn guard(&self) -> &Guard {
        &self.requests.web.guard
    }

    pub(super) fn close(&self) {
        self.permits.close();
    }

    /// Joins the fetch that is under way, or begins one. It ends with the last of those who wait for it. A signature is asked for
    /// only where somebody looks at it.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        tenant: &TenantId,
        remote: Arc<dyn RemoteFolder>,
        limits: &AdapterLimits,
        with_signature: bool,
    ) -> Files {
        let key = (tenant.clone(), remote.credential(), remote.name().to_owned(), with_signature);
        let (number, files) = self.join_or_begin(&key, remote, limits);
        let files = files.await;
        // Its result is for those who asked while it ran: the next one asks anew.
        let mut flights = self.flights();
        if flights.under_way.get(&key).is_some_and(|flight| flight.number == number) {
            flights.under_way.remove(&key);
        }
        files
    }

    fn join_or_begin(
        self: &Arc<Self>,
        key: &Key,
        remote: Arc<dyn RemoteFolder>,
        limits: &AdapterLimits,
    ) -> (u64, Shared<BoxFuture<'static, Files>>) {
        let mut flights = self.flights();
        if let Some(flight) = flights.under_way.get(key) {
            // One that has ended, or that everybody left, is not joined.
            if let Some(files) = flight.files.upgrade().filter(|files| files.peek().is_none()) {
                return (flight.number, files);
            }
        }
        let (fetcher, limits) = (Arc::clone(self), limits.clone());
        let with_signature = key.3;
        let files = async move { fetcher.run(&*remote, &limits, with_signature).await }.boxed().shared();
        flights.begun += 1;
        let number = flights.begun;
        flights.under_way.retain(|_, flight| flight.files.upgrade().is_some());
        if let Some(weak) = files.downgrade() {
            flights.under_way.insert(key.clone(), Flight { number, files: weak });
        }
        (number, files)
    }

    async fn run(&self, remote: &dyn RemoteFolder, limits: &AdapterLimits, with_signature: bool) -> Files {
        let work = async {
            let _permit = self.permits.acquire().await.map_err(lost)?;
            // The small one first: most sources that are none are found out by it.
            let (config_max, weights_max) = (limits.config_bytes_max, limits.file_bytes_max);
            let config = Wanted { name: CONFIG, limit: "adapter_config_bytes_max", bytes_max: config_max };
            let config = remote.file(&self.requests, config).await?;
            let weights = Wanted { name: WEIGHTS, limit: "adapter_file_bytes_max", bytes_max: weights_max };
            let signature = if with_signature { self.signature(remote).await? } else { None };
            Ok(AdapterFiles { config, weights: remote.file(&self.requests, weights).await?, signature })
        };
        let too_slow = || SourceError::TooSlow {
            source_name: remote.name().to_owned(),
            limit: "adapter_sources.total_ms_max",
            ms: u64::try_from(self.total.as_millis()).unwrap_or(u64::MAX),
        };
        tokio::time::timeout(self.total, work).await.map_err(|_| too_slow())?
    }

    /// `None` if there is none. A server that does not tell who asks what it has refuses what is not there, too.
    async fn signature(&self, remote: &dyn RemoteFolder) -> Result<Option<Bytes>, AdapterError> {
        let wanted = Wanted { name: SIGNATURE, limit: "adapter_signature_bytes_max", bytes_max: SIGNATURE_BYTES_MAX };
        match remote.file(&self.requests, wanted).await {
            Err(AdapterError::Source(SourceError::Missing { .. } | SourceError::Denied { .. })) => Ok(None),
            found => found.map(Some),
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> usize {
        self.flights().under_way.len()
    }
}
