//! What can go wrong with functions and plugins.

use types::{Blame, Digest, FunctionName};

use super::ManifestError;
use crate::store::StoreError;

/// Why something about functions failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such function.
    #[error("there is no function `{0}`")]
    UnknownFunction(FunctionName),
    /// No such version.
    #[error("function `{function}` has no version {version}")]
    UnknownVersion {
        /// The function.
        function: FunctionName,
        /// The version.
        version: u32,
    },
    /// Someone else moved the pointer first.
    #[error("version {live} of `{function}` is live, not {expected}; look at its versions and try again")]
    LiveChanged {
        /// The function.
        function: FunctionName,
        /// What the caller took for live.
        expected: u32,
        /// What is.
        live: u32,
    },
    /// What is live is neither canary nor shadow.
    #[error("version {version} of `{function}` is live: it has all callers already")]
    IsLive {
        /// The function.
        function: FunctionName,
        /// The version.
        version: u32,
    },
    /// Not uploaded, or not by this tenant.
    #[error("there is no plugin {0}; upload it first")]
    UnknownPlugin(Digest),
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Over a limit.
    #[error("{what} is over the limit {limit} of {max}; delete what is not needed")]
    OverLimit {
        /// What.
        what: &'static str,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: usize,
    },
    /// A record that this version did not write.
    #[error("the stored record `{0}` cannot be read")]
    BadRecord(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RegistryError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownFunction(_) => "function_not_found",
            Self::UnknownVersion { .. } => "version_not_found",
            Self::LiveChanged { .. } => "conflict",
            Self::IsLive { .. } => "version_is_live",
            Self::UnknownPlugin(_) => "plugin_not_found",
            Self::Manifest(error) => error.code(),
            Self::OverLimit { .. } => "limit_exceeded",
            Self::BadRecord(_) => "internal",
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::UnknownFunction(_) | Self::UnknownVersion { .. } | Self::UnknownPlugin(_) => Blame::Caller,
            Self::LiveChanged { .. } | Self::IsLive { .. } => Blame::Caller,
            Self::Manifest(error) => error.blame(),
            Self::OverLimit { .. } => Blame::Caller,
            Self::BadRecord(_) => Blame::Host,
            Self::Store(error) => error.blame(),
        }
    }
}
