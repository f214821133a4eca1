//! What can go wrong with adapters.

use std::sync::Arc;

use model::{AdapterRejection, DeriveError};
use types::{Blame, Digest};

use crate::artifacts::ArtifactError;
use crate::store::StoreError;

/// Why something about adapters failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AdapterError {
    /// Not there, or not this tenant's.
    #[error("there is no adapter `{0}`")]
    NotFound(String),
    /// The files are not an adapter that this base can execute.
    #[error(transparent)]
    Rejected(#[from] AdapterRejection),
    /// Other content than the caller named.
    #[error("the adapter's digest is {found}, not {expected} as asked; nothing was added")]
    DigestMismatch {
        /// What the caller named.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// Over a limit.
    #[error("{what} is over the limit {limit} of {max}")]
    OverLimit {
        /// What.
        what: &'static str,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: u64,
    },
    /// Nothing was derived.
    #[error("{0}; nothing was derived")]
    Derive(Box<DeriveError>),
    /// A parent would lose its name to the result.
    #[error("`{0}` is a parent and cannot be the name of the result: take another alias")]
    ParentIsResult(String),
    /// `file://` without a root.
    #[error("no adapters_root is configured, so file:// sources are refused; upload the files instead")]
    NoRoot,
    /// An address that is not understood.
    #[error("the source is refused: {0}")]
    BadSource(&'static str),
    /// One answer for a folder that is not there and one that is elsewhere.
    #[error("there is no such adapter folder below the configured adapters_root")]
    SourceNotFound,
    /// The folder lacks a file.
    #[error(
        "the adapter folder has no readable file `{0}`; adapter_config.json and adapter_model.safetensors are needed"
    )]
    SourceFile(&'static str),
    /// The configured root cannot be used.
    #[error("adapters_root `{path}` is not a folder that can be read")]
    BadRoot {
        /// As configured.
        path: String,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// A record that this version did not write.
    #[error("the stored record `{0}` cannot be read")]
    BadRecord(String),
    /// A worker died.
    #[error("the work on an adapter was lost: {0}")]
    Lost(String),
    /// The blob is missing or rotten.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AdapterError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "adapter_not_found",
            Self::Rejected(rejection) => rejection.code(),
            Self::DigestMismatch { .. } => "digest_mismatch",
            Self::OverLimit { .. } => "limit_exceeded",
            Self::Derive(error) => error.code(),
            Self::ParentIsResult(_) => "invalid_request",
            Self::NoRoot => "adapters_root_not_configured",
            Self::BadSource(_) => "invalid_source",
            Self::SourceNotFound | Self::SourceFile(_) => "source_not_found",
            Self::BadRoot { .. } => "invalid_adapters_root",
            Self::BadRecord(_) | Self::Lost(_) => "internal",
            Self::Artifact(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::NotFound(_) | Self::DigestMismatch { .. } | Self::OverLimit { .. } => Blame::Caller,
            Self::NoRoot | Self::BadSource(_) | Self::SourceNotFound | Self::SourceFile(_) => Blame::Caller,
            Self::ParentIsResult(_) => Blame::Caller,
            Self::Rejected(rejection) => rejection.blame(),
            Self::Derive(error) => error.blame(),
            Self::BadRoot { .. } | Self::BadRecord(_) | Self::Lost(_) => Blame::Host,
            Self::Artifact(error) => error.blame(),
            Self::Store(error) => error.blame(),
        }
    }
}
