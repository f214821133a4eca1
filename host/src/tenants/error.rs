//! What can go wrong with tenants and keys. Not here: a key that does not authenticate, which is no error but an answer.

use std::sync::Arc;

use types::{Blame, TenantId};

use super::KeyId;
use crate::store::StoreError;

/// Why something about tenants or keys failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TenantError {
    /// The name is taken.
    #[error("tenant `{0}` exists already")]
    TenantExists(TenantId),
    /// No such tenant.
    #[error("there is no tenant `{0}`; create it first")]
    UnknownTenant(TenantId),
    /// No such key, or it is another tenant's.
    #[error("there is no key `{0}`")]
    UnknownKey(KeyId),
    /// Not the form of a key's identifier.
    #[error("a key's identifier has 26 of 0-9 a-z, as `key list` shows it")]
    BadKeyId,
    /// Over a limit.
    #[error("{what} is over the limit {limit} of {max}")]
    OverLimit {
        /// What.
        what: &'static str,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: usize,
    },
    /// The operating system gave no randomness.
    #[error("the operating system gave no random bytes: {0}")]
    Random(String),
    /// The file of the development key.
    #[error("could not {doing} `{path}`")]
    DevKeyFile {
        /// What it was doing.
        doing: &'static str,
        /// The file.
        path: String,
        /// Why it failed.
        source: Arc<std::io::Error>,
    },
    /// A record that this version did not write.
    #[error("the stored record of {0} cannot be read")]
    BadRecord(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl TenantError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TenantExists(_) => "tenant_exists",
            Self::UnknownTenant(_) => "tenant_not_found",
            Self::UnknownKey(_) => "key_not_found",
            Self::BadKeyId => "invalid_key_id",
            Self::OverLimit { .. } => "limit_exceeded",
            Self::Random(_) | Self::DevKeyFile { .. } | Self::BadRecord(_) => "internal",
            Self::Store(error) => error.code(),
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::TenantExists(_) | Self::UnknownTenant(_) | Self::UnknownKey(_) | Self::BadKeyId => Blame::Caller,
            Self::OverLimit { .. } => Blame::Caller,
            Self::Random(_) | Self::DevKeyFile { .. } | Self::BadRecord(_) => Blame::Host,
            Self::Store(error) => error.blame(),
        }
    }
}
