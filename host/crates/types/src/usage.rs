//! What a generation used and why it ended.

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// End of sequence, a stop token or a stop string.
    Stop,
    /// The token budget or the base's context is used up.
    Length,
    /// The plugin said so.
    StoppedByPlugin,
    /// The caller went away.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

impl FinishReason {
    /// A stable word for receipts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::StoppedByPlugin => "stopped_by_plugin",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
        }
    }
}

/// What a generation used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, a final end-of-sequence token included.
    pub completion_tokens: u32,
}
