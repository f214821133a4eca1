//! Capabilities of which one call never comes back, so that a guest can be dropped at every place where it waits for its host; the
//! bench `dropped` uses them, too. Not here: callers that leave by themselves (`abandoned.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{
    BucketAccess, CapabilityError, Catalog, CatalogEntry, Clock, Expected, KeyPage, KeyValue, LogLevel, LogSink,
    Nothing, Outbound, OutboundBounds, OutboundError, OwnLimits, PluginError, PluginHost, Secrets, Session, Tokenizer,
    Versioned, Written,
};
use tokio::sync::Notify;
use types::{Digest, InvocationRequest};

/// What the guest `imports` is asked to do: everything that it may wait for.
pub(crate) const SCRIPT: &str = "kv-get b k|kv-set b k v|kv-add b n 1|kv-keys b|kv-swap b s v|kv-lost-swap b t|kv-delete b k|\
    secret key|get http://echo/|post http://echo/ x100000|header http://echo/ a b|encode ab|count ab|decode 1 2";

/// Comes back but for one call, which waits without end.
pub(crate) struct Stuck {
    calls: AtomicU32,
    stops_at: u32,
    reached: Notify,
    waiting: Arc<AtomicU32>,
}

/// Counts as waiting until it is dropped.
struct Waits(Arc<AtomicU32>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Stuck {
    /// The call of this number, from 0 on, does not come back; `waiting` counts those of all.
    pub(crate) fn at(stops_at: u32, waiting: &Arc<AtomicU32>) -> Arc<Self> {
        Arc::new(Self { calls: AtomicU32::new(0), stops_at, reached: Notify::new(), waiting: Arc::clone(waiting) })
    }

    async fn step(&self) {
        if self.calls.fetch_add(1, Ordering::SeqCst) == self.stops_at {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let _waits = Waits(Arc::clone(&self.waiting));
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
    }

    /// All that it lends.
    pub(crate) fn session(self: &Arc<Self>) -> Session {
        Session {
            catalog: Arc::clone(self) as _,
            log: Arc::new(Quiet),
            clock: Arc::new(Quiet),
            config: Vec::new(),
            keyvalue: Arc::clone(self) as _,
            secrets: Arc::clone(self) as _,
            outbound: Arc::clone(self) as _,
            tokenizer: Arc::clone(self) as _,
            functions: Arc::new(Nothing),
            tools: Arc::new(Nothing),
            generations: Arc::new(Nothing),
            output: Arc::new(Nothing),
            limits: OwnLimits::default(),
            seed: 7,
            record: None,
        }
    }
}

/// Starts the guest `imports`, and drops its call where it waits for the time of this number; whether it waited so often.
pub(crate) async fn dropped_at(
    host: &PluginHost,
    digest: Digest,
    stops_at: u32,
    waiting: &Arc<AtomicU32>,
) -> Result<bool, PluginError> {
    let stuck = Stuck::at(stops_at, waiting);
    let mut instance = host.start(digest, &Elsewhere, stuck.session()).await?;
    let asked = asked(SCRIPT);
    tokio::select! {
        biased;
        () = stuck.reached.notified() => Ok(true),
        outcome = instance.route(&asked) => outcome.map(|_| false),
    }
}

pub(crate) fn asked(text: &str) -> InvocationRequest {
    InvocationRequest {
        id: "request-1".into(),
        function: "test".into(),
        version: 1,
        text: text.into(),
        input_json: "null".into(),
        messages: Vec::new(),
        parameters: Vec::new(),
        stream: false,
        max_tokens: None,
    }
}

/// Where no component is kept: all were admitted.
pub(crate) struct Elsewhere;

#[async_trait]
impl plugin::ComponentSource for Elsewhere {
    async fn component(&self, digest: Digest) -> Result<Bytes, PluginError> {
        Err(PluginError::NotFound(digest))
    }
}

/// Keeps nothing and stands still.
struct Quiet;

impl LogSink for Quiet {
    fn write(&self, _: LogLevel, _: &str) {}
}

impl Clock for Quiet {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    fn unix_time(&self) -> Duration {
        Duration::from_secs(1_800_000_000)
    }
}

#[async_trait]
impl Catalog for Stuck {
    async fn adapters(&self) -> Result<Vec<CatalogEntry>, CapabilityError> {
        self.step().await;
        Ok(Vec::new())
    }

    async fn prefetch(&self, _: &[String]) -> Result<(), CapabilityError> {
        self.step().await;
        Ok(())
    }
}

#[async_trait]
impl KeyValue for Stuck {
    fn access(&self, _: &str) -> Option<BucketAccess> {
        Some(BucketAccess::ReadWrite)
    }

    async fn get(&self, _: &str, key: &str) -> Result<Option<Versioned>, CapabilityError> {
        self.step().await;
        Ok((key == "n").then(|| Versioned { value: Bytes::from_static(b"1"), version: 1 }))
    }

    async fn write(&self, _: &str, _: &str, _: Expected, _: Option<Bytes>) -> Result<Written, CapabilityError> {
        self.step().await;
        Ok(Written::Done(Some(2)))
    }

    async fn keys(&self, _: &str, _: Option<&str>) -> Result<KeyPage, CapabilityError> {
        self.step().await;
        Ok(KeyPage { keys: Vec::new(), has_more: false })
    }
}

#[async_trait]
impl Secrets for Stuck {
    async fn get(&self, _: &str) -> Result<String, CapabilityError> {
        self.step().await;
        Ok("s3cret".to_owned())
    }
}

#[async_trait]
impl Outbound for Stuck {
    async fn send(&self, _: http::Request<Bytes>, _: OutboundBounds) -> Result<http::Response<Bytes>, OutboundError> {
        self.step().await;
        Ok(http::Response::new(Bytes::from_static(b"answered")))
    }
}

#[async_trait]
impl Tokenizer for Stuck {
    async fn encode(&self, text: String) -> Result<Vec<u32>, CapabilityError> {
        self.step().await;
        Ok(text.bytes().map(u32::from).collect())
    }

    async fn decode(&self, _: Vec<u32>, _: usize) -> Result<String, CapabilityError> {
        self.step().await;
        Ok("text".to_owned())
    }
}
