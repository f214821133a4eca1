//! What lasts: immutable blobs, and small pointers that are swapped against their version.
//!
//! Everything durable but the receipt log goes through [`Store`], so that a bucket with conditional writes can stand in for the
//! embedded one. Not here: what the bytes mean.

#[cfg(test)]
pub(crate) mod conformance;
mod counts;
mod database;
mod embedded;
#[cfg(test)]
pub(crate) mod memory;
mod space;

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use types::Blame;

pub(crate) use counts::Counts;
pub(crate) use database::DatabaseFailure;
pub use database::StateDatabase;
pub use embedded::EmbeddedStore;
pub use space::STORAGE_RESERVE_BYTES;

/// Bytes of the largest blob.
pub const BLOB_BYTES_MAX: u64 = 2 << 30;
/// Bytes of the largest pointer value.
pub const POINTER_BYTES_MAX: usize = 1 << 20;
/// Bytes of the longest key of a pointer.
pub const POINTER_KEY_BYTES_MAX: usize = 512;
/// Pointers in one scan.
pub const SCAN_ENTRIES_MAX: usize = 100_000;

/// Times that a record is read and swapped again because someone came between. Each failure is another's success, so this many mean
/// that something is wrong.
pub const SWAP_ATTEMPTS_MAX: u32 = 1000;

/// The state of a pointer at one moment. No two states of a key share a version, not even across a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(u64);

/// A key, its value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// What a swap must expect.
    pub version: Version,
}

/// Whether a blob may take the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobWrite {
    /// What is there stays, and the write succeeds.
    Keep,
    /// What is there is replaced at once. Only for repair: blobs are immutable.
    Replace,
}

/// Why the store could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The pointer is not in the state that the swap expected.
    #[error("`{key}` was changed by someone else; read it again and retry")]
    Conflict {
        /// The pointer.
        key: String,
    },
    /// Over a limit on sizes.
    #[error("{what} is over the limit {limit} of {max}")]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: u64,
    },
    /// Another process holds the data directory.
    #[error("the data directory `{0}` is in use by another process; stop it, or use its HTTP address")]
    InUse(String),
    /// The database is not what was written, or not there while the rest of the folder is.
    #[error("`{file}` is damaged or missing ({reason}); it was left as it is: restore the data folder from a backup")]
    Damaged {
        /// The database.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that the store cannot keep.
    #[error("`{0}` is not a name that the store can keep")]
    BadKey(String),
    /// No room on the disk, or less than the reserve.
    #[error(
        "there is no room on the host's disk: free space under the data folder (16 MiB must stay free), then try again"
    )]
    Full,
    /// The data folder is not where it was.
    #[error(
        "the data folder `{0}` was removed or replaced under the running host; stop the host, put the folder back, start"
    )]
    Lost(String),
    /// The database could not be opened again after an error.
    #[error("the database is closed; the log has the reason")]
    Closed,
    /// The disk, the database or the service failed.
    #[error("the store could not {doing}")]
    Backend {
        /// What it was doing.
        doing: &'static str,
        /// Why it failed.
        source: Arc<dyn Error + Send + Sync>,
    },
}

impl StoreError {
    /// Wraps a failure of what lies beneath.
    pub(crate) fn backend(doing: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        if is_full(&source) { Self::Full } else { Self::Backend { doing, source: Arc::new(source) } }
    }

    /// Gave up after [`SWAP_ATTEMPTS_MAX`].
    pub(crate) fn contended(key: &str) -> Self {
        Self::Conflict { key: key.to_owned() }
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "conflict",
            Self::TooLarge { .. } => "limit_exceeded",
            Self::InUse(_) => "data_directory_in_use",
            Self::Full => "storage_full",
            Self::Lost(_) => "data_directory_lost",
            Self::Damaged { .. } => "store_damaged",
            Self::BadKey(_) | Self::Closed | Self::Backend { .. } => "store_failed",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Conflict { .. } | Self::Full => Blame::Capacity,
            Self::TooLarge { .. } => Blame::Caller,
            Self::InUse(_) | Self::BadKey(_) | Self::Lost(_) => Blame::Host,
            Self::Damaged { .. } | Self::Closed | Self::Backend { .. } => Blame::Host,
        }
    }
}

/// Whether an error, or one that it comes from, says that the disk, the quota or the file is full.
fn is_full(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let of_io = |error: &std::io::Error| matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge);
    let here = match (error.downcast_ref::<std::io::Error>(), error.downcast_ref::<redb::Error>()) {
        (Some(error), _) | (_, Some(redb::Error::Io(error))) => of_io(error),
        _ => matches!(error.downcast_ref(), Some(StoreError::Full)),
    };
    here || error.source().is_some_and(is_full)
}

/// Immutable blobs and small pointers with compare-and-swap. A write that returned is durable.
///
/// Blob names and pointer keys are segments of `a-z A-Z 0-9 . _ -` joined by `/`.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Whether a blob of so many bytes would find room: to be asked before work whose result would be turned away.
    ///
    /// # Errors
    /// [`StoreError::Full`], [`StoreError::Lost`].
    async fn check_room(&self, bytes: u64) -> Result<(), StoreError>;

    /// Keeps a blob.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::BadKey`], [`StoreError::Backend`].
    async fn put_blob(&self, name: &str, bytes: Bytes, write: BlobWrite) -> Result<(), StoreError>;

    /// The blob of this name, as the disk has it: the caller checks its digest.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::BadKey`], [`StoreError::Backend`].
    async fn get_blob(&self, name: &str) -> Result<Option<Bytes>, StoreError>;

    /// The value and version of a pointer.
    ///
    /// # Errors
    /// [`StoreError::Backend`].
    async fn get(&self, key: &str) -> Result<Option<(Bytes, Version)>, StoreError>;

    /// Sets (`Some`) or removes (`None`) a pointer if it is in the expected state; `None` expects that it is absent.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if it is not; then nothing was changed. Otherwise as for a blob.
    async fn swap(&self, key: &str, expected: Option<Version>, new: Option<Bytes>) -> Result<Version, StoreError>;

    /// The pointers whose key begins with `prefix`, in order of their keys, as of one moment.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] over [`SCAN_ENTRIES_MAX`]; [`StoreError::Backend`].
    async fn scan(&self, prefix: &str) -> Result<Vec<Pointer>, StoreError>;
}

/// Names are made by the host; this is the last check that none leaves its folder.
fn check_key(key: &str) -> Result<(), StoreError> {
    let segment_ok = |segment: &str| {
        let all_ok = segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        all_ok && !segment.is_empty() && segment != "." && segment != ".."
    };
    if key.len() <= POINTER_KEY_BYTES_MAX && key.split('/').all(segment_ok) {
        return Ok(());
    }
    Err(StoreError::BadKey(key.chars().take(96).collect()))
}

fn check_blob_bytes(bytes: u64) -> Result<(), StoreError> {
    if bytes <= BLOB_BYTES_MAX {
        return Ok(());
    }
    Err(StoreError::TooLarge { what: "a blob", limit: "blob_bytes_max", max: BLOB_BYTES_MAX })
}

fn check_pointer(key: &str, value: Option<&Bytes>) -> Result<(), StoreError> {
    check_key(key)?;
    if value.is_none_or(|value| value.len() <= POINTER_BYTES_MAX) {
        return Ok(());
    }
    let max = POINTER_BYTES_MAX as u64;
    Err(StoreError::TooLarge { what: "a record", limit: "pointer_bytes_max", max })
}

fn check_scan(entries: usize) -> Result<(), StoreError> {
    if entries <= SCAN_ENTRIES_MAX {
        return Ok(());
    }
    let max = SCAN_ENTRIES_MAX as u64;
    Err(StoreError::TooLarge { what: "a listing", limit: "scan_entries_max", max })
}
