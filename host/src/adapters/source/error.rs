//! What can go wrong when the host fetches from elsewhere. Messages name what the caller named, never where that led to.

use types::Blame;

/// Why a source could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The operator does not let this be asked.
    #[error("`{source_name}` is not asked: {reason}")]
    NotAllowed {
        /// As the caller named it.
        source_name: String,
        /// Which setting says so.
        reason: &'static str,
    },
    /// A redirect that the operator does not let the host follow.
    #[error(
        "`{source_name}` redirects to where this host does not go: every step must be allowed by `adapter_sources.hosts` \
         and `adapter_sources.private_networks` of its configuration"
    )]
    RedirectNotAllowed {
        /// As the caller named it.
        source_name: String,
    },
    /// It is not there.
    #[error("`{source_name}` has no file `{file}`; adapter_config.json and adapter_model.safetensors are needed")]
    Missing {
        /// As the caller named it.
        source_name: String,
        /// The file.
        file: String,
    },
    /// 401 or 403.
    #[error("`{source_name}` refuses access: it is private or not there, or the secret does not open it")]
    Denied {
        /// As the caller named it.
        source_name: String,
    },
    /// An answer that trying again will not mend.
    #[error("`{source_name}` cannot be fetched: {reason}")]
    Failed {
        /// As the caller named it.
        source_name: String,
        /// What was wrong with the answer.
        reason: String,
    },
    /// The bytes are not those that the identifier names.
    #[error("`{source_name}` is refused: {reason}")]
    Unverified {
        /// As the caller named it.
        source_name: String,
        /// What did not match.
        reason: &'static str,
    },
    /// It failed in ways that may pass, until the attempts were used up.
    #[error("`{source_name}` could not be fetched in {attempts} attempts: {reason}; try again later")]
    Unavailable {
        /// As the caller named it.
        source_name: String,
        /// How often.
        attempts: u32,
        /// What happened last.
        reason: String,
    },
    /// The time for one source is over.
    #[error("`{source_name}` was not fetched within `{limit}` of {ms} ms")]
    TooSlow {
        /// As the caller named it.
        source_name: String,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        ms: u64,
    },
    /// The client for fetching could not be made.
    #[error("cannot prepare to fetch adapters: {0}")]
    NoClient(String),
}

impl SourceError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAllowed { .. } | Self::RedirectNotAllowed { .. } => "source_not_allowed",
            Self::Missing { .. } => "source_not_found",
            Self::Denied { .. } => "source_denied",
            Self::Failed { .. } => "source_failed",
            Self::Unverified { .. } => "source_unverified",
            Self::Unavailable { .. } => "source_unavailable",
            Self::TooSlow { .. } => "source_timeout",
            Self::NoClient(_) => "internal",
        }
    }

    /// Whose fault it is. What may pass counts as missing capacity, so that callers are told to come back.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Unavailable { .. } | Self::TooSlow { .. } => Blame::Capacity,
            Self::NoClient(_) => Blame::Host,
            _ => Blame::Caller,
        }
    }
}
