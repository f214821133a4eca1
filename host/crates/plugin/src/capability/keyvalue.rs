//! Key-value buckets as the host lends them. Not here: where they lie, and how long a key or a value may be.

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{CapabilityError, Nothing};

/// What a function may do with a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BucketAccess {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
}

/// A value with the version that a swap goes by. No two states of a key share a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned {
    /// The value.
    #[serde(with = "octets")]
    pub value: Bytes,
    /// Its version.
    pub version: u64,
}

/// The state that a write expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expected {
    /// Whatever it is.
    Any,
    /// No value.
    Absent,
    /// The value of this version.
    Version(u64),
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Written {
    /// It is durable; the version of the value that is there now, if one is.
    Done(Option<u64>),
    /// The key was not in the expected state, and nothing was written; the version of what it has, if anything.
    Changed(Option<u64>),
}

/// Some of a bucket's keys, in order of their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<String>,
    /// Whether there are more after the last of these.
    pub has_more: bool,
}

/// A value as recordings have it.
mod octets {
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::record::Octets;

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        Octets::from(bytes.as_ref()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        Octets::deserialize(deserializer).map(Bytes::from)
    }
}

/// The buckets that the manifest grants. Each call but [`Self::access`] is of a bucket that was found granted.
#[async_trait]
pub trait KeyValue: Send + Sync {
    /// What the function may do with the bucket of this name; nothing, if it is not granted.
    fn access(&self, bucket: &str) -> Option<BucketAccess>;

    /// The value of a key.
    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Versioned>, CapabilityError>;

    /// Sets (`Some`) or removes (`None`) a value if the key is in the expected state.
    async fn write(
        &self,
        bucket: &str,
        key: &str,
        expected: Expected,
        value: Option<Bytes>,
    ) -> Result<Written, CapabilityError>;

    /// Keys that come after this one.
    async fn keys(&self, bucket: &str, after: Option<&str>) -> Result<KeyPage, CapabilityError>;
}

#[async_trait]
impl KeyValue for Nothing {
    fn access(&self, _: &str) -> Option<BucketAccess> {
        None
    }

    async fn get(&self, bucket: &str, _: &str) -> Result<Option<Versioned>, CapabilityError> {
        Err(CapabilityError::Denied(bucket.to_owned()))
    }

    async fn write(&self, bucket: &str, _: &str, _: Expected, _: Option<Bytes>) -> Result<Written, CapabilityError> {
        Err(CapabilityError::Denied(bucket.to_owned()))
    }

    async fn keys(&self, bucket: &str, _: Option<&str>) -> Result<KeyPage, CapabilityError> {
        Err(CapabilityError::Denied(bucket.to_owned()))
    }
}
