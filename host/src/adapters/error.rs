//! What can go wrong with adapters.

use std::path::Path;
use std::sync::Arc;

use model::{AdapterRejection, DeriveError};
use types::{AdapterAlias, Blame, Digest, TenantId};

use super::license::License;
use super::signature::SignatureError;
use super::source::SourceError;
use crate::artifacts::ArtifactError;
use crate::revocation::RevocationError;
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
    /// The signature policy of the tenant is not met.
    #[error(transparent)]
    Signature(#[from] SignatureError),
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
    /// The tenant has so many under way.
    #[error("{max} derivations of this tenant are under way, which is derivations_per_tenant_max: wait for their end")]
    ManyDerivations {
        /// The limit.
        max: usize,
    },
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
    /// One answer for what is not there and what is not shared with the tenant.
    #[error("no such adapter is shared with this tenant")]
    SharedNotFound,
    /// Nobody but its owner may read it.
    #[error("`{0}` is not shared with anybody")]
    NotShared(AdapterAlias),
    /// It is another tenant's.
    #[error("this adapter is shared by `{0}`: who may read it is its owner's to say")]
    SharedByOther(TenantId),
    /// Nobody said under what readers may use it.
    #[error(
        "what `{0}` is licensed under is not known: send `license`, an SPDX identifier such as `Apache-2.0`, or derive it from \
         adapters whose licences are known"
    )]
    Unlicensed(AdapterAlias),
    /// It has another licence.
    #[error("the adapter is licensed under `{0}`: send this one, or none")]
    OtherLicense(License),
    /// It lies elsewhere and could not be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The configured root cannot be used.
    #[error("adapters_root `{path}` is not a folder that can be read")]
    BadRoot {
        /// As configured.
        path: String,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// The folder of packed adapters cannot be used.
    #[error("the folder of packed adapters `{path}` cannot be used: {source}; adapter_disk_bytes_max = 0 does without")]
    BadDisk {
        /// The folder.
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
    /// It was revoked.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AdapterError {
    pub(super) fn bad_disk(path: &Path, error: std::io::Error) -> Self {
        Self::BadDisk { path: path.display().to_string(), source: Arc::new(error) }
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "adapter_not_found",
            Self::Rejected(rejection) => rejection.code(),
            Self::Signature(error) => error.code(),
            Self::DigestMismatch { .. } => "digest_mismatch",
            Self::OverLimit { .. } => "limit_exceeded",
            Self::Derive(error) => error.code(),
            Self::ParentIsResult(_) => "invalid_request",
            Self::ManyDerivations { .. } => "queue_full",
            Self::NoRoot => "adapters_root_not_configured",
            Self::BadSource(_) => "invalid_source",
            Self::SourceNotFound | Self::SourceFile(_) | Self::SharedNotFound => "source_not_found",
            Self::NotShared(_) => "adapter_not_shared",
            Self::SharedByOther(_) => "adapter_not_own",
            Self::Unlicensed(_) => "adapter_license_required",
            Self::OtherLicense(_) => "adapter_license_differs",
            Self::Source(error) => error.code(),
            Self::BadRoot { .. } => "invalid_adapters_root",
            Self::BadDisk { .. } => "invalid_adapter_disk",
            Self::BadRecord(_) | Self::Lost(_) => "internal",
            Self::Artifact(error) => error.code(),
            Self::Revocation(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::NotFound(_) | Self::DigestMismatch { .. } | Self::OverLimit { .. } => Blame::Caller,
            Self::NoRoot | Self::BadSource(_) | Self::SourceNotFound | Self::SourceFile(_) => Blame::Caller,
            Self::ParentIsResult(_) | Self::SharedNotFound | Self::NotShared(_) => Blame::Caller,
            Self::SharedByOther(_) | Self::Unlicensed(_) | Self::OtherLicense(_) => Blame::Caller,
            Self::ManyDerivations { .. } => Blame::Capacity,
            Self::Rejected(rejection) => rejection.blame(),
            Self::Derive(error) => error.blame(),
            Self::Signature(error) => error.blame(),
            Self::Source(error) => error.blame(),
            Self::BadRoot { .. } | Self::BadDisk { .. } | Self::BadRecord(_) | Self::Lost(_) => Blame::Host,
            Self::Artifact(error) => error.blame(),
            Self::Revocation(error) => error.blame(),
            Self::Store(error) => error.blame(),
        }
    }
}
