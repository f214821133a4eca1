//! What can go wrong with a base: opening it, its tokenizer, its chat template. Not here: adapters, which are refused with
//! an [`AdapterRejection`](crate::AdapterRejection), and steps, which fail with an `engine::RunnerError`.

use std::path::PathBuf;

use types::Blame;

/// A base that cannot be used, or text that it cannot take.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The file cannot be read.
    #[error("cannot read the base {path}: check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A file of the base is not sound, or its files contradict each other.
    #[error("the base is not sound: {0}")]
    Malformed(String),
    /// The files are sound but hold something that this runner does not know.
    #[error("the base is not supported: {0}")]
    Unsupported(String),
    /// Text could not be turned into tokens.
    #[error("cannot tokenise the text: {0}")]
    Tokenize(String),
    /// The chat template refused the messages, or did not end in time.
    #[error("the chat template refused the messages: {0}")]
    ChatTemplate(String),
    /// The chat template has no place for what was sent with the messages.
    #[error(
        "this base's chat template has no place for {0}: leave them out, or use a base that was trained with tools"
    )]
    ChatTemplateLacks(&'static str),
    /// The runner's own sizes do not fit together.
    #[error("the runner's configuration is wrong: {0}")]
    Configuration(String),
    /// The device cannot be used, or failed.
    #[error("the device cannot be used: {0}")]
    Device(String),
}

impl ModelError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "base_unreadable",
            Self::Malformed(_) => "base_malformed",
            Self::Unsupported(_) => "base_unsupported",
            Self::Tokenize(_) => "tokenize_failed",
            Self::ChatTemplate(_) => "chat_template_failed",
            Self::ChatTemplateLacks(_) => "unsupported",
            Self::Configuration(_) => "runner_configuration",
            Self::Device(_) => "device_failed",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Tokenize(_) | Self::ChatTemplate(_) | Self::ChatTemplateLacks(_) => Blame::Caller,
            Self::Read { .. }
            | Self::Malformed(_)
            | Self::Unsupported(_)
            | Self::Configuration(_)
            | Self::Device(_) => Blame::Host,
        }
    }
}
