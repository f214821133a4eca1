//! What can go wrong with a registry. Messages name what the caller named, never where that led to. Not here: what may not be asked
//! for adapters, which has errors of its own.

use types::Blame;

/// Why an artefact could not be pulled or pushed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OciError {
    /// A name that is none.
    #[error("not a reference such as `ghcr.io/acme/polite:1.0`: {0}")]
    Reference(String),
    /// Plain HTTP over a network.
    #[error("`{0}` is asked over HTTPS: plain HTTP is for registries on this machine")]
    NotLoopback(String),
    /// The operator does not let this be asked, or it leads to where nobody should go.
    #[error("`{name}` is not asked: {reason}")]
    NotAllowed {
        /// As the caller named it.
        name: String,
        /// What says so.
        reason: &'static str,
    },
    /// It is not there.
    #[error("`{name}` is not there: check repository and tag, or log in if it is private")]
    NotFound {
        /// As the caller named it.
        name: String,
    },
    /// 401 or 403, with what was given.
    #[error("the registry of `{name}` refuses access: {advice}")]
    Denied {
        /// As the caller named it.
        name: String,
        /// What to do.
        advice: &'static str,
    },
    /// Something else than a component.
    #[error(
        "`{name}` is not a WebAssembly component in a registry's layout: {reason}; push one with `tenon push` or `wkg oci push`"
    )]
    NotPlugin {
        /// As the caller named it.
        name: String,
        /// What it has instead.
        reason: String,
    },
    /// The bytes are not those that were named.
    #[error("`{name}` is refused: the {what} does not have the digest that names it")]
    Unverified {
        /// As the caller named it.
        name: String,
        /// What.
        what: &'static str,
    },
    /// Longer than anything of its kind.
    #[error("`{name}` is refused: the {what} is longer than the limit {limit} of {max} bytes")]
    TooLarge {
        /// As the caller named it.
        name: String,
        /// What.
        what: &'static str,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: u64,
    },
    /// An answer that trying again will not mend.
    #[error("the registry of `{name}` cannot be used: {reason}")]
    Failed {
        /// As the caller named it.
        name: String,
        /// What was wrong.
        reason: String,
    },
    /// It failed in a way that may pass.
    #[error("the registry of `{name}` could not be reached: {reason}; try again later")]
    Unavailable {
        /// As the caller named it.
        name: String,
        /// What happened.
        reason: String,
    },
    /// The time for one artefact is over.
    #[error("`{name}` was not pulled within {ms} ms")]
    TooSlow {
        /// As the caller named it.
        name: String,
        /// The limit.
        ms: u64,
    },
    /// The client could not be made.
    #[error("cannot prepare to ask registries: {0}")]
    NoClient(String),
}

impl OciError {
    /// A stable word for programs; the same as for sources of adapters, where the meaning is the same.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Reference(_) => "invalid_reference",
            Self::NotLoopback(_) => "registry_not_loopback",
            Self::NotAllowed { .. } => "source_not_allowed",
            Self::NotFound { .. } => "source_not_found",
            Self::Denied { .. } => "source_denied",
            Self::NotPlugin { .. } => "source_not_plugin",
            Self::Unverified { .. } => "source_unverified",
            Self::TooLarge { .. } => "source_too_large",
            Self::Failed { .. } => "source_failed",
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
