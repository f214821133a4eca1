//! What the host lends to a guest: one trait for each import of the contract. The host implements them; this crate
//! adds limits, coarse time and seeded randomness. Not here: the WIT side, which is `imports/`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use types::Digest;

/// Why a capability did not do what was asked: the `host-error` of `wit/types.wit`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// Not granted to this function.
    #[error("not granted: {0}")]
    Denied(String),
    /// Declared in the contract, not there yet.
    #[error("not supported yet: {0}")]
    Unsupported(String),
    /// A limit, by name.
    #[error("over the limit {0}")]
    Limit(String),
    /// It failed.
    #[error("failed: {0}")]
    Failed(String),
}

/// Where an adapter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// In a slot of the runner.
    Device,
    /// In host memory.
    Memory,
    /// On storage.
    Storage,
}

/// An adapter that is granted to the function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogEntry {
    /// Movable name.
    pub alias: String,
    /// Its content.
    pub digest: Digest,
    /// The rank of its matrices.
    pub rank: u32,
    /// Where it is.
    pub residency: Residency,
}

/// The adapters that a function may use.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Every adapter that is granted to this function.
    async fn adapters(&self) -> Result<Vec<CatalogEntry>, CapabilityError>;

    /// A hint that these will be needed soon.
    async fn prefetch(&self, adapters: &[String]) -> Result<(), CapabilityError>;
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For the plugin's author.
    Debug,
    /// Ordinary.
    Info,
    /// Worth a look.
    Warn,
    /// Something failed.
    Error,
}

/// Where a function's log lines go. Called on the request's own task, so it must not block.
pub trait LogSink: Send + Sync {
    /// One line. The bytes are counted before this is called.
    fn write(&self, level: LogLevel, message: &str);
}

/// Time for one request, as exact as the host has it; guests see it in steps of 10 ms.
pub trait Clock: Send + Sync {
    /// Since the request began.
    fn elapsed(&self) -> Duration;

    /// Since 1970-01-01 UTC.
    fn unix_time(&self) -> Duration;
}

/// What one request lends to its instance.
#[derive(Clone)]
pub struct Session {
    /// The granted adapters.
    pub catalog: Arc<dyn Catalog>,
    /// The function's log.
    pub log: Arc<dyn LogSink>,
    /// The request's clock.
    pub clock: Arc<dyn Clock>,
    /// The function's configuration, from its manifest.
    pub config: Vec<(String, String)>,
    /// Of the guest's random numbers; it goes into the receipt.
    pub seed: u64,
}
