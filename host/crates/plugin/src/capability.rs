//! What the host lends to a guest: one trait for each import of the contract. The host implements them; this crate
//! adds limits, coarse time and seeded randomness. Not here: the WIT side, which is `imports/`.

mod keyvalue;
mod nested;
mod outbound;
mod tools;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use types::Digest;

use crate::{OwnLimits, Recorder};

pub use keyvalue::{BucketAccess, Expected, KeyPage, KeyValue, Versioned, Written};
pub use nested::{
    CallInput, FunctionReply, Functions, GenerationBounds, GenerationSession, Generations, Opening, Output, SessionStep,
};
pub use outbound::{Outbound, OutboundBounds, OutboundError};
pub use tools::{ToolDescription, ToolOutcome, Tools};

/// Why a capability did not do what was asked: the `host-error` of `wit/types.wit`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// In a slot of the runner.
    Device,
    /// In host memory.
    Memory,
    /// On storage.
    Storage,
}

/// An adapter that is granted to the function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// Movable name.
    pub alias: String,
    /// Its content.
    #[serde(with = "digest_text")]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

/// Secrets that the manifest grants.
#[async_trait]
pub trait Secrets: Send + Sync {
    /// What a secret holds. [`CapabilityError::Denied`] names the grant that is missing.
    async fn get(&self, name: &str) -> Result<String, CapabilityError>;
}

/// The base's tokenizer. The bytes are counted before it is called.
#[async_trait]
pub trait Tokenizer: Send + Sync {
    /// The tokens of a text.
    async fn encode(&self, text: String) -> Result<Vec<u32>, CapabilityError>;

    /// The text of tokens, of at most so many bytes.
    async fn decode(&self, tokens: Vec<u32>, bytes_max: usize) -> Result<String, CapabilityError>;
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
    /// The granted key-value buckets.
    pub keyvalue: Arc<dyn KeyValue>,
    /// The granted secrets.
    pub secrets: Arc<dyn Secrets>,
    /// The granted hosts.
    pub outbound: Arc<dyn Outbound>,
    /// The granted tools.
    pub tools: Arc<dyn Tools>,
    /// The base's tokenizer.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// The functions that may be called.
    pub functions: Arc<dyn Functions>,
    /// Sessions of generations, for an agent.
    pub generations: Arc<dyn Generations>,
    /// Where an agent's answer goes.
    pub output: Arc<dyn Output>,
    /// The function's own limits.
    pub limits: OwnLimits,
    /// Of the guest's random numbers; it goes into the receipt.
    pub seed: u64,
    /// Writes down what the instance does, if that is wanted.
    pub record: Option<Recorder>,
}

/// `types` knows no serialisation: a digest is its text.
mod digest_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use types::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Grants nothing: what a function has whose manifest names nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

#[async_trait]
impl Secrets for Nothing {
    async fn get(&self, name: &str) -> Result<String, CapabilityError> {
        Err(CapabilityError::Denied(format!("the secret `{name}`: the manifest's grants.secrets does not name it")))
    }
}

#[async_trait]
impl Tokenizer for Nothing {
    async fn encode(&self, _: String) -> Result<Vec<u32>, CapabilityError> {
        Err(CapabilityError::Unsupported("the tokenizer".to_owned()))
    }

    async fn decode(&self, _: Vec<u32>, _: usize) -> Result<String, CapabilityError> {
        Err(CapabilityError::Unsupported("the tokenizer".to_owned()))
    }
}
