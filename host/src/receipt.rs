//! Receipts: the signed record of every inference, chained per tenant. Reading order: `record` (what is said),
//! `commitment` (what is said about content), `envelope` (how it is signed), `key`, `log` (the public API), `writer`
//! (group commit), `tables` (where it lies), `usage` (what is counted of it),
//! `verify` (what anybody with the public keys can check).
//!
//! A `started` record is durable before the first byte of an answer, a final one (finished, cancelled, failed,
//! recovered) before the last. Records hold no content: prompt and answer enter as salted commitments, and the salts lie
//! apart from the records (see [`Commitment`]).
//!
//! Not here: who may read which receipt over HTTP, and what the stages of a request are.

mod commitment;
mod envelope;
mod key;
mod log;
mod record;
mod tables;
mod usage;
mod verify;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use types::Blame;

use crate::store::{DatabaseFailure, StoreError};

pub use commitment::{Commitment, Committer, Salt, Salts};
pub use envelope::{Envelope, EnvelopeSignature, Fault, PAYLOAD_TYPE, pae};
pub(crate) use key::PublicKeyEntry;
pub use key::{PublicKeys, ReceiptKey};
pub use log::{Final, OpenReceipt, ReceiptCounts, ReceiptLog, Started, StoredReceipt};
pub use record::{
    AdapterPart, AdapterUse, CallRecord, CalledBy, Claim, Claims, ColdRecord, Ending, FunctionRef, GenerationRecord,
    Kind, LoadRecord, Outcome, Receipt, ReceiptId, SamplingRecord, Subject, Timings, TokenCounts,
};
pub use usage::{Part, USAGE_DAYS_MAX, UsageCounts, UsageDays, UsageRow, day_of};
pub use verify::{Break, Head, Verified, Verifier, verify};

/// Bytes of one envelope as JSON; the writer makes none longer, the verifier reads none longer.
pub const RECORD_BYTES_MAX: usize = 256 << 10;

/// Why a receipt could not be written or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReceiptError {
    /// More requests at once than the log holds open receipts for.
    #[error("{open_max} receipts are open already; try again later")]
    TooManyOpen {
        /// The limit.
        open_max: usize,
    },
    /// The host drains.
    #[error("the receipt log is closed; the host is shutting down")]
    Closed,
    /// The receipt has its final record.
    #[error("receipt {0} has a final record already")]
    AlreadyFinal(ReceiptId),
    /// No started record.
    #[error("receipt {0} was never started")]
    NeverStarted(ReceiptId),
    /// The last day of a question lies before its first.
    #[error("`to` lies before `from`; give days as YYYY-MM-DD, the earlier one as `from`")]
    BadDays,
    /// A text or a list is over its limit.
    #[error("{what} is {size}, over the limit {limit} of {max}")]
    OverLimit {
        /// What was too large.
        what: &'static str,
        /// How large.
        size: usize,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: usize,
    },
    /// The record cannot be written down, such as a number that is not finite.
    #[error("the receipt cannot be encoded: {0}")]
    Encode(String),
    /// What lies in the log is not what was written.
    #[error("the receipt log holds a damaged record ({0}); restore the data folder from a backup")]
    Damaged(String),
    /// The database failed.
    #[error("the receipt log cannot be read or written; check the disk under the data folder")]
    Storage(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// The disk is full, or the data folder is not where it was.
    #[error("no receipt, no answer: {0}")]
    Store(#[from] StoreError),
    /// A key file is unusable.
    #[error("receipt key file {path}: {reason}", path = path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The operating system has no random numbers.
    #[error("the operating system gave no random numbers: {0}")]
    Random(String),
}

impl ReceiptError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooManyOpen { .. } => "overloaded",
            Self::Closed => "shutting_down",
            Self::OverLimit { .. } => "limit_exceeded",
            Self::BadDays => "invalid_request",
            Self::AlreadyFinal(_) | Self::NeverStarted(_) | Self::Encode(_) => "internal",
            Self::Store(error) => error.code(),
            Self::Damaged(_) | Self::Storage(_) | Self::KeyFile { .. } | Self::Random(_) => "receipts_unavailable",
        }
    }

    /// Whose fault it is. A text that is over its limit came from the caller, or from the plugin's claims.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::TooManyOpen { .. } | Self::Closed => Blame::Capacity,
            Self::OverLimit { limit, .. } if is_about_claims(limit) => Blame::Function,
            Self::OverLimit { .. } | Self::BadDays => Blame::Caller,
            Self::Store(error) => error.blame(),
            _ => Blame::Host,
        }
    }
}

impl ReceiptError {
    fn from_database(error: redb::Error) -> Self {
        match StoreError::backend("write a receipt", error) {
            StoreError::Backend { source, .. } => Self::Storage(source),
            full => Self::Store(full),
        }
    }
}

impl DatabaseFailure for ReceiptError {
    fn is_of_the_file(&self) -> bool {
        match self {
            Self::Storage(source) => source.downcast_ref::<redb::Error>().is_some_and(DatabaseFailure::is_of_the_file),
            Self::Store(StoreError::Full) => true,
            _ => false,
        }
    }
}

const fn is_about_claims(limit: &str) -> bool {
    matches!(limit.as_bytes(), [b'c', b'l', b'a', b'i', b'm', ..])
}

macro_rules! storage_errors {
    ($($error:ty),*) => {
        $(impl From<$error> for ReceiptError {
            fn from(error: $error) -> Self {
                Self::from_database(error.into())
            }
        })*
    };
}

storage_errors!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);
