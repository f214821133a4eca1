//! The crate's errors, by meaning: what went wrong, a stable word for it, and whose fault it is.

use types::{Blame, Digest};

/// Why a plugin was refused, or why a call of it gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PluginError {
    /// The guest trapped: a panic, a memory access out of bounds, an exhausted stack, ….
    #[error("the plugin trapped in `{call}`: {reason}")]
    Trap {
        /// The function of the contract that was called.
        call: &'static str,
        /// What the trap was.
        reason: String,
    },
    /// The guest ran, or waited, for longer than it may.
    #[error("the plugin did not answer `{call}` in time: the limit {limit} is {max_ms} ms")]
    Timeout {
        /// The function of the contract that was called.
        call: &'static str,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max_ms: u64,
    },
    /// The guest asked for more memory than it may have.
    #[error(
        "the plugin ran out of memory in `{call}`: the limit memory_bytes_max is {max_bytes} bytes for all memories"
    )]
    OutOfMemory {
        /// The function of the contract that was called.
        call: &'static str,
        /// The limit.
        max_bytes: usize,
    },
    /// The guest itself answered with an error.
    #[error("the plugin failed in `{call}`: {message}")]
    Guest {
        /// The function of the contract that was called.
        call: &'static str,
        /// What the guest said.
        message: String,
    },
    /// Another limit was met.
    #[error("the plugin went over its limit {limit} in `{call}`")]
    Limit {
        /// The function of the contract that was called.
        call: &'static str,
        /// The limit's name.
        limit: &'static str,
    },
    /// The upload is not a component, or not one that provides the world `policy` or `agent`.
    #[error("the upload is not a plugin: {0}; build a component for the world `policy` or `agent` of wit/")]
    Invalid(String),
    /// The upload imports what this host does not provide.
    #[error(
        "the upload imports `{0}`, which this host does not provide; remove the import or build with the toolchain's option to stub it"
    )]
    ImportUnknown(String),
    /// The upload is too large.
    #[error("the upload has {bytes} bytes, over the limit upload_bytes_max of {max_bytes}")]
    TooLarge {
        /// How large.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The component could not be compiled within the limits.
    #[error("the upload could not be compiled: {0}")]
    CompileFailed(String),
    /// No component of this digest is stored.
    #[error("there is no plugin {0}; upload it again")]
    NotFound(Digest),
    /// Everything of its kind is in use.
    #[error("the plugin host is busy: {limit} is reached; try again shortly")]
    Busy {
        /// The limit's name.
        limit: &'static str,
    },
    /// The host failed.
    #[error("the plugin host failed: {0}")]
    Internal(String),
}

impl PluginError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Trap { .. } => "plugin_trap",
            Self::Timeout { .. } => "plugin_timeout",
            Self::OutOfMemory { .. } => "plugin_out_of_memory",
            Self::Guest { .. } => "plugin_error",
            Self::Limit { .. } => "plugin_limit",
            Self::Invalid(_) => "plugin_invalid",
            Self::ImportUnknown(_) => "plugin_import_unknown",
            Self::TooLarge { .. } => "plugin_too_large",
            Self::CompileFailed(_) => "plugin_compile_failed",
            Self::NotFound(_) => "plugin_not_found",
            Self::Busy { .. } => "plugin_busy",
            Self::Internal(_) => "internal",
        }
    }

    /// Whose fault it is. An upload that is refused is the caller's, a call that fails the function's.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Trap { .. }
            | Self::Timeout { .. }
            | Self::OutOfMemory { .. }
            | Self::Guest { .. }
            | Self::Limit { .. } => Blame::Function,
            Self::Invalid(_)
            | Self::ImportUnknown(_)
            | Self::TooLarge { .. }
            | Self::CompileFailed(_)
            | Self::NotFound(_) => Blame::Caller,
            Self::Busy { .. } => Blame::Capacity,
            Self::Internal(_) => Blame::Host,
        }
    }
}
