//! What a tenant may use in a minute and at once: requests, tokens, bytes of bodies. The host has a quota for every tenant, and
//! an administrator may set another for one. Not here: how a refusal is told and what counts (`http/quotas.rs`), and the places
//! in the engine's queue, which are shared fairly anyhow (`engine`).
//!
//! A quota is durable (`quotas/TENANT`); what was used of it is not: a minute's worth after a start.

mod bucket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use types::{Blame, TenantId};
use utoipa::ToSchema;

use crate::store::{Store, StoreError};
use bucket::Bucket;

const PREFIX: &str = "quotas/";
/// When a place among a tenant's requests is free again cannot be known.
const RETRY_CONCURRENT: Duration = Duration::from_secs(1);

/// What a tenant may use. What is absent has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Requests to functions and models in a minute.
    #[schema(minimum = 1)]
    pub requests_per_minute_max: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    #[schema(minimum = 1)]
    pub tokens_per_minute_max: Option<u32>,
    /// Bytes of the bodies of all requests in a minute, uploads included.
    #[schema(minimum = 1)]
    pub body_bytes_per_minute_max: Option<u64>,
    /// Requests to functions and models at once, until the last byte of their answers.
    #[schema(minimum = 1)]
    pub concurrent_requests_max: Option<u32>,
}

impl Quota {
    /// # Errors
    /// The name of a limit that would let nothing through: keys are revoked for that.
    fn check(&self) -> Result<(), QuotaError> {
        for (limit, is_zero) in [
            (REQUESTS, self.requests_per_minute_max == Some(0)),
            (TOKENS, self.tokens_per_minute_max == Some(0)),
            (BODY_BYTES, self.body_bytes_per_minute_max == Some(0)),
            (CONCURRENT, self.concurrent_requests_max == Some(0)),
        ] {
            if is_zero {
                return Err(QuotaError::Zero(limit));
            }
        }
        Ok(())
    }
}

const REQUESTS: &str = "requests_per_minute_max";
const TOKENS: &str = "tokens_per_minute_max";
const BODY_BYTES: &str = "body_bytes_per_minute_max";
const CONCURRENT: &str = "concurrent_requests_max";

/// Why a request is refused, or a quota.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QuotaError {
    /// Used up.
    #[error("the tenant's quota {limit} of {max} is used up; try again in {:.1} s", retry_after.as_secs_f64())]
    UsedUp {
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: u64,
        /// When there is something again.
        retry_after: Duration,
    },
    /// A quota that lets nothing through.
    #[error("{0} must be at least 1; leave it out for no limit, and revoke keys to shut a tenant out")]
    Zero(&'static str),
    /// A record that this version did not write.
    #[error("the stored quota of {0} cannot be read")]
    BadRecord(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl QuotaError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UsedUp { .. } => "quota_exceeded",
            Self::Zero(_) => "invalid_quota",
            Self::BadRecord(_) => "bad_record",
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::UsedUp { .. } | Self::Zero(_) => Blame::Caller,
            Self::BadRecord(_) => Blame::Host,
            Self::Store(error) => error.blame(),
        }
    }
}

/// One limit as a caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `requests`, `tokens`, `bytes` or `concurrent`.
    pub what: &'static str,
    /// The limit.
    pub limit: u64,
    /// What is left of it.
    pub remaining: u64,
    /// When all of it is there again; nobody knows for `concurrent`.
    pub reset: Option<Duration>,
}

/// The quotas of all tenants.
pub struct Quotas {
    store: Arc<dyn Store>,
    default: Quota,
    tenants: Mutex<HashMap<TenantId, Arc<Mutex<Use>>>>,
    writing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Quotas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quotas").field("default", &self.default).finish_non_exhaustive()
    }
}

/// What one tenant used lately.
#[derive(Debug)]
struct Use {
    quota: Quota,
    is_own: bool,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    body_bytes: Option<Bucket>,
    running: u32,
}

impl Use {
    fn new(quota: Quota, is_own: bool, now: Instant) -> Self {
        let mut used = Self { quota, is_own, requests: None, tokens: None, body_bytes: None, running: 0 };
        used.set(quota, is_own, now);
        used
    }

    fn set(&mut self, quota: Quota, is_own: bool, now: Instant) {
        (self.quota, self.is_own) = (quota, is_own);
        for (bucket, max) in [
            (&mut self.requests, quota.requests_per_minute_max.map(u64::from)),
            (&mut self.tokens, quota.tokens_per_minute_max.map(u64::from)),
            (&mut self.body_bytes, quota.body_bytes_per_minute_max),
        ] {
            match (bucket.as_mut(), max) {
                (Some(bucket), Some(max)) => bucket.set(max, now),
                (None, Some(max)) => *bucket = Some(Bucket::full(max, now)),
                (_, None) => *bucket = None,
            }
        }
    }

    /// Nothing is taken of one limit when another refuses.
    fn check(&mut self, asks: Asks, now: Instant) -> Result<(), QuotaError> {
        let used_up = |limit, max: u64, retry_after| QuotaError::UsedUp { limit, max, retry_after };
        let is_call = asks == Asks::Call;
        if let Some(max) = self.quota.concurrent_requests_max
            && is_call
            && self.running >= max
        {
            return Err(used_up(CONCURRENT, max.into(), RETRY_CONCURRENT));
        }
        for (limit, bucket, max, counts) in [
            (REQUESTS, &mut self.requests, self.quota.requests_per_minute_max.map(u64::from), is_call),
            (TOKENS, &mut self.tokens, self.quota.tokens_per_minute_max.map(u64::from), is_call),
            (BODY_BYTES, &mut self.body_bytes, self.quota.body_bytes_per_minute_max, true),
        ] {
            if let (Some(bucket), Some(max), true) = (bucket.as_mut(), max, counts)
                && let Some(wait) = bucket.wait(now)
            {
                return Err(used_up(limit, max, wait));
            }
        }
        Ok(())
    }

    fn standing(&mut self, now: Instant) -> Vec<Standing> {
        let mut standing = Vec::new();
        for (what, bucket, max) in [
            ("requests", &mut self.requests, self.quota.requests_per_minute_max.map(u64::from)),
            ("tokens", &mut self.tokens, self.quota.tokens_per_minute_max.map(u64::from)),
            ("bytes", &mut self.body_bytes, self.quota.body_bytes_per_minute_max),
        ] {
            if let (Some(bucket), Some(limit)) = (bucket.as_mut(), max) {
                let (remaining, reset) = bucket.remaining(now);
                standing.push(Standing { what, limit, remaining, reset: Some(reset) });
            }
        }
        if let Some(max) = self.quota.concurrent_requests_max {
            let remaining = max.saturating_sub(self.running).into();
            standing.push(Standing { what: "concurrent", limit: max.into(), remaining, reset: None });
        }
        standing
    }
}

/// What a request is to its tenant's quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// It calls a function or a model: it is counted, and has a place until its answer ended.
    Call,
    /// It does something else: the bytes of its body are counted.
    Other,
}

/// A request that was let in. A call has its place until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    used: Arc<Mutex<Use>>,
    is_call: bool,
}

impl Turn {
    /// So many bytes of its body came.
    pub(crate) fn read(&self, bytes: usize, now: Instant) {
        if let Some(bucket) = lock(&self.used).body_bytes.as_mut() {
            bucket.take(u64::try_from(bytes).unwrap_or(u64::MAX), now);
        }
    }

    /// What is left to the tenant.
    pub(crate) fn standing(&self, now: Instant) -> Vec<Standing> {
        lock(&self.used).standing(now)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.is_call {
            let mut used = lock(&self.used);
            used.running = used.running.saturating_sub(1);
        }
    }
}

impl Quotas {
    /// Reads the quotas that were set; the others have this one.
    ///
    /// # Errors
    /// [`QuotaError::BadRecord`], [`QuotaError::Store`].
    pub async fn open(store: Arc<dyn Store>, default: Quota) -> Result<Self, QuotaError> {
        let (mut tenants, now) = (HashMap::new(), Instant::now());
        for found in store.scan(PREFIX).await? {
            let bad = || QuotaError::BadRecord(found.key.clone());
            let tenant: TenantId = found.key.strip_prefix(PREFIX).and_then(|name| name.parse().ok()).ok_or_else(bad)?;
            let quota = serde_json::from_slice(&found.value).map_err(|_| bad())?;
            tenants.insert(tenant, Arc::new(Mutex::new(Use::new(quota, true, now))));
        }
        Ok(Self { store, default, tenants: Mutex::new(tenants), writing: tokio::sync::Mutex::new(()) })
    }

    fn used(&self, tenant: &TenantId, now: Instant) -> Arc<Mutex<Use>> {
        let mut tenants = lock(&self.tenants);
        if let Some(used) = tenants.get(tenant) {
            return Arc::clone(used);
        }
        let used = Arc::new(Mutex::new(Use::new(self.default, false, now)));
        tenants.insert(tenant.clone(), Arc::clone(&used));
        used
    }

    /// A tenant's quota, and whether it was set for it.
    pub fn of(&self, tenant: &TenantId) -> (Quota, bool) {
        let used = self.used(tenant, Instant::now());
        let used = lock(&used);
        (used.quota, used.is_own)
    }

    /// What is left to a tenant.
    pub fn standing(&self, tenant: &TenantId) -> Vec<Standing> {
        let now = Instant::now();
        lock(&self.used(tenant, now)).standing(now)
    }

    /// Sets a tenant's quota, or with `None` takes it back to the host's. What was used lately stays used.
    ///
    /// # Errors
    /// [`QuotaError::Zero`], [`QuotaError::Store`].
    pub async fn set(&self, tenant: &TenantId, quota: Option<Quota>) -> Result<(), QuotaError> {
        quota.map_or(Ok(()), |quota| quota.check())?;
        let key = format!("{PREFIX}{tenant}");
        let value = quota.map(|quota| serde_json::to_vec(&quota).map(Bytes::from)).transpose();
        let value = value.map_err(|_| QuotaError::BadRecord(key.clone()))?;
        // One at a time, so that what is in memory is what was stored last.
        let _writing = self.writing.lock().await;
        let version = self.store.get(&key).await?.map(|(_, version)| version);
        if version.is_some() || value.is_some() {
            self.store.swap(&key, version, value).await?;
        }
        let now = Instant::now();
        lock(&self.used(tenant, now)).set(quota.unwrap_or(self.default), quota.is_some(), now);
        Ok(())
    }

    /// Lets a request in, if nothing that it needs is used up.
    ///
    /// # Errors
    /// [`QuotaError::UsedUp`].
    pub(crate) fn admit(&self, tenant: &TenantId, asks: Asks, now: Instant) -> Result<Turn, QuotaError> {
        let used = self.used(tenant, now);
        let is_call = asks == Asks::Call;
        {
            let mut used = lock(&used);
            used.check(asks, now)?;
            if is_call {
                used.running = used.running.saturating_add(1);
                if let Some(requests) = used.requests.as_mut() {
                    requests.take(1, now);
                }
            }
        }
        Ok(Turn { used, is_call })
    }

    /// Whether a call would find tokens left.
    pub(crate) fn has_tokens(&self, tenant: &TenantId) -> bool {
        let now = Instant::now();
        lock(&self.used(tenant, now)).tokens.as_mut().is_none_or(|bucket| bucket.wait(now).is_none())
    }

    /// So many tokens were computed for the tenant.
    pub(crate) fn charge_tokens(&self, tenant: &TenantId, tokens: u32) {
        let now = Instant::now();
        if let Some(bucket) = lock(&self.used(tenant, now)).tokens.as_mut() {
            bucket.take(tokens.into(), now);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    fn tenant(name: &str) -> TenantId {
        name.parse().expect("a tenant")
    }

    fn refused(result: Result<Turn, QuotaError>) -> (&'static str, Duration) {
        match result.expect_err("used up") {
            QuotaError::UsedUp { limit, retry_after, .. } => (limit, retry_after),
            other => panic!("{other}"),
        }
    }

    async fn quotas(default: Quota) -> Quotas {
        Quotas::open(Arc::new(MemoryStore::default()), default).await.expect("opened")
    }

    #[tokio::test]
    async fn requests_are_counted_and_come_back() {
        let quotas = quotas(Quota { requests_per_minute_max: Some(2), ..Quota::default() }).await;
        let (one, other, now) = (tenant("one"), tenant("other"), Instant::now());
        for _ in 0..2 {
            quotas.admit(&one, Asks::Call, now).expect("in");
        }
        assert_eq!(refused(quotas.admit(&one, Asks::Call, now)), (REQUESTS, Duration::from_secs(30)));
        quotas.admit(&one, Asks::Other, now).expect("only calls are counted");
        quotas.admit(&other, Asks::Call, now).expect("another tenant has its own");
        quotas.admit(&one, Asks::Call, now + Duration::from_secs(30)).expect("half a minute's worth");
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_turn_ends() {
        let quotas = quotas(Quota { concurrent_requests_max: Some(1), ..Quota::default() }).await;
        let (one, now) = (tenant("one"), Instant::now());
        let turn = quotas.admit(&one, Asks::Call, now).expect("in");
        let other = quotas.admit(&one, Asks::Other, now).expect("no place is needed");
        assert_eq!(refused(quotas.admit(&one, Asks::Call, now)).0, CONCURRENT);
        drop(other);
        assert_eq!(refused(quotas.admit(&one, Asks::Call, now)).0, CONCURRENT);
        assert_eq!(turn.standing(now), [Standing { what: "concurrent", limit: 1, remaining: 0, reset: None }]);
        drop(turn);
        quotas.admit(&one, Asks::Call, now).expect("in again");
    }

    #[tokio::test]
    async fn tokens_and_bytes_are_a_debt_that_the_next_request_waits_for() {
        let quota = Quota {
            tokens_per_minute_max: Some(60),
            body_bytes_per_minute_max: Some(6000),
            requests_per_minute_max: Some(10),
            ..Quota::default()
        };
        let quotas = quotas(quota).await;
        let (one, now) = (tenant("one"), Instant::now());
        let turn = quotas.admit(&one, Asks::Call, now).expect("in");
        quotas.charge_tokens(&one, 90);
        let (limit, wait) = refused(quotas.admit(&one, Asks::Call, now));
        assert_eq!((limit, wait.as_secs()), (TOKENS, 31), "30 in debt, and one to use");
        turn.read(7000, now);
        let (limit, wait) = refused(quotas.admit(&one, Asks::Other, now));
        assert_eq!((limit, wait.as_secs()), (BODY_BYTES, 10));
        assert_eq!(turn.standing(now).first().map(|one| one.remaining), Some(9), "the refused took nothing");
    }

    #[tokio::test]
    async fn a_quota_of_ones_own_is_kept_and_given_back() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let default = Quota { requests_per_minute_max: Some(5), ..Quota::default() };
        let own = Quota { requests_per_minute_max: Some(1), ..Quota::default() };
        let (one, now) = (tenant("one"), Instant::now());
        let quotas = Quotas::open(Arc::clone(&store), default).await.expect("opened");
        assert_eq!(quotas.of(&one), (default, false));
        quotas.set(&one, Some(own)).await.expect("set");
        quotas.admit(&one, Asks::Call, now).expect("in");
        assert_eq!(refused(quotas.admit(&one, Asks::Call, now)).0, REQUESTS);
        let again = Quotas::open(store, default).await.expect("opened again");
        assert_eq!(again.of(&one), (own, true));
        again.set(&one, None).await.expect("given back");
        again.set(&one, None).await.expect("again is no error");
        assert_eq!(again.of(&one), (default, false));
        let zero = Quota { tokens_per_minute_max: Some(0), ..Quota::default() };
        assert_eq!(again.set(&one, Some(zero)).await.expect_err("zero").code(), "invalid_quota");
    }
}
