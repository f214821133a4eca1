//! What the engine is told at its start, and why it may refuse to start or end badly. Not here: the runner's own sizes.

use types::Blame;

use crate::SpeculationConfig;

/// Settings of an engine. [`Default`] suits a small machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Tokens that end a sequence, unless its plan ignores them.
    pub eos_token_ids: Vec<u32>,
    /// Requests that may wait for their first step; the next one is refused with
    /// [`SubmitError::QueueFull`](crate::SubmitError::QueueFull).
    pub waiting_requests_max: usize,
    /// Of these, requests of one tenant; the next one is refused with
    /// [`SubmitError::TenantQueueFull`](crate::SubmitError::TenantQueueFull). All of them if `None`.
    pub tenant_waiting_requests_max: Option<usize>,
    /// Sequences that run at once; the rows of a step are a second limit.
    pub running_sequences_max: usize,
    /// Rows of one step, if fewer than the runner takes: smaller steps give running sequences their tokens sooner while
    /// a long prompt is computed.
    pub step_rows_max: Option<u32>,
    /// Whether KV is kept after a sequence for others that begin alike. Answers to one prompt share it either way.
    pub prefix_cache: bool,
    /// When tokens are guessed and verified.
    pub speculation: SpeculationConfig,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            eos_token_ids: Vec::new(),
            waiting_requests_max: 256,
            tenant_waiting_requests_max: None,
            running_sequences_max: 64,
            step_rows_max: None,
            prefix_cache: true,
            speculation: SpeculationConfig::default(),
        }
    }
}

/// Why an engine did not start or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The runner has no room for a single sequence.
    #[error("the runner has no {0}; give it at least 1")]
    Shape(&'static str),
    /// The operating system gave no thread.
    #[error("no thread for the engine; raise the limit on threads")]
    Thread(#[source] std::io::Error),
    /// The engine's thread panicked; every stream has ended with a failure.
    #[error("the engine's thread panicked; see the log, and report it as a bug")]
    Panicked,
}

impl EngineError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Shape(_) => "invalid_config",
            Self::Thread(_) | Self::Panicked => "internal",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        Blame::Host
    }
}
