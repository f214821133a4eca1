//! What goes into the engine and what comes out, request by request.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use types::{Blame, Composition, Digest, FinishReason, Usage, ValidPlan};

use crate::{Activation, OutputConstraint};

/// A checked request, ready to be scheduled.
#[derive(Debug)]
pub struct Submission<A> {
    /// What was checked: composition, sampling, stop conditions, deadline, budget.
    pub plan: ValidPlan,
    /// The prompt as tokens; not empty.
    pub prompt: Vec<u32>,
    /// Every adapter that the plan's composition names, held until the sequence ends.
    pub adapters: Vec<(Digest, Arc<A>)>,
    /// From where on adapters of the composition act; those that are not named act on every token.
    pub activations: Vec<Activation>,
    /// What came before, if it goes on with another composition.
    pub continues: Continuation,
    /// What the output must match, as it stands after what was generated before.
    pub constraint: Option<Box<dyn OutputConstraint>>,
    /// Seed of the draw.
    pub seed: u64,
    /// For whom, and how.
    pub terms: Terms,
}

/// An answer that goes on with another composition than it began with. Nothing by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Continuation {
    /// How many tokens at the end of the prompt are the answer's: they count as generated, not as asked.
    pub generated_tokens: u32,
    /// What acted on its tokens so far, in order: their KV is as it was. The plan's composition acts from the end of the last
    /// one on. Empty if it acts on all tokens.
    pub stretches: Vec<Stretch>,
    /// Which tokens before these an earlier answer had drawn, ascending and apart. Their KV is found where that answer left it
    /// only if it is said: a runner may compute drawn tokens in another way than asked ones. What is generated after them is a
    /// continuation of exactly that.
    pub drawn: Vec<Range<u32>>,
}

/// A composition that acted on tokens up to some position.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    /// The composition.
    pub composition: Composition,
    /// As in [`Submission::activations`], for this composition.
    pub activations: Vec<Activation>,
    /// Position of the first token that it does not act on.
    pub end: u32,
}

/// For whom a request is served, and how, beside what its plan says. Made by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whose share of the engine it takes.
    pub tenant: Digest,
    /// Who may share its KV: those whose requests have the same salt, which must be a secret of the host's.
    pub kv_salt: Digest,
    /// A larger one goes first, and has smaller ones make room.
    pub priority: i8,
    /// Whether tokens may be guessed and verified. What comes out is the same.
    pub speculation: bool,
    /// What the plan was made by, if not by the caller: a plugin. It may be revoked.
    pub author: Option<Digest>,
    /// Whether its adapters leave their slots as soon as nobody uses them, rather than when a slot is needed.
    pub unload: bool,
}

impl Default for Terms {
    /// One tenant, which shares with itself.
    fn default() -> Self {
        let nobody = Digest::from_bytes([0; 32]);
        Self { tenant: nobody, kv_salt: nobody, priority: 0, speculation: true, author: None, unload: false }
    }
}

/// Why a submission was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many requests wait already.
    #[error("{waiting} requests wait already; try again later")]
    QueueFull {
        /// How many.
        waiting: usize,
        /// When there should be room, by what was measured.
        retry_after: Duration,
    },
    /// Too many requests of this tenant wait already.
    #[error("{waiting} of your requests wait already; try again when some of them have ended")]
    TenantQueueFull {
        /// How many.
        waiting: usize,
        /// When there should be room, by what was measured.
        retry_after: Duration,
    },
    /// It would still wait when its time is up.
    #[error(
        "the queue is {:.1} s long and the deadline is in {:.1} s; try again later, or with a later deadline",
        .wait.as_secs_f64(),
        .deadline.as_secs_f64()
    )]
    DeadlineTooShort {
        /// Until it would start, by what was measured.
        wait: Duration,
        /// What its plan says.
        deadline: Duration,
    },
    /// The prompt is empty or leaves no room for output.
    #[error("the prompt has {tokens} tokens; it must have at least 1 and at most {max}, which leaves room to answer")]
    PromptLength {
        /// Length of the prompt.
        tokens: usize,
        /// The most that fits.
        max: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {id} is outside the vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Its size.
        vocabulary: u32,
    },
    /// More adapters than the runner has slots.
    #[error("the composition names {adapters} adapters, the runner has {slots} slots")]
    TooManyAdapters {
        /// How many.
        adapters: usize,
        /// How many there are.
        slots: u32,
    },
    /// What it goes on from is longer than its prompt, or not in order.
    #[error("a continuation is of more than its prompt")]
    Continuation,
    /// A composition names an adapter that was not handed over with it.
    #[error("adapter {0} was not handed over with the plan")]
    MissingAdapter(Digest),
    /// The engine has stopped.
    #[error("the engine has stopped")]
    Stopped,
    /// The device failed for good; [`EngineHandle::lost`](crate::EngineHandle::lost) says how.
    #[error("the device that computes has failed; the host has to be restarted")]
    DeviceLost,
}

impl SubmitError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "overloaded",
            Self::TenantQueueFull { .. } => "queue_full",
            Self::DeadlineTooShort { .. } => "deadline_too_short",
            Self::PromptLength { .. } => "context_length_exceeded",
            Self::UnknownToken { .. } => "unknown_token",
            Self::TooManyAdapters { .. } => "limit_exceeded",
            Self::MissingAdapter(_) | Self::Continuation => "internal",
            Self::Stopped => "shutting_down",
            Self::DeviceLost => "device_lost",
        }
    }

    /// When it is worth trying again, if the engine knows.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. } | Self::TenantQueueFull { retry_after, .. } => Some(*retry_after),
            Self::DeadlineTooShort { wait, .. } => Some(*wait),
            _ => None,
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::QueueFull { .. }
            | Self::TenantQueueFull { .. }
            | Self::DeadlineTooShort { .. }
            | Self::Stopped
            | Self::DeviceLost => Blame::Capacity,
            Self::PromptLength { .. } | Self::UnknownToken { .. } | Self::TooManyAdapters { .. } => Blame::Caller,
            Self::MissingAdapter(_) | Self::Continuation => Blame::Host,
        }
    }
}

/// What a sequence has to say, in order; `Finished` or `Failed` is the last.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// One token. The token that ended the sequence (end of sequence, a stop token) is not sent.
    Token {
        /// Its number.
        id: u32,
        /// Its log-probability, if asked.
        logprob: Option<f32>,
        /// Alternatives, if asked.
        top: Vec<(u32, f32)>,
    },
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What was used.
        usage: Usage,
        /// From submission to the first step that had rows of this sequence.
        queued: Duration,
    },
    /// It could not be continued.
    Failed(GenerationError),
}

/// Why a sequence could not be continued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// The engine was stopped, or its thread died.
    #[error("the engine has stopped")]
    Stopped,
    /// An adapter of its composition, or what made its plan, was revoked.
    #[error("{0} was revoked")]
    Revoked(Digest),
    /// Memory would not hold it beside its adapters, even alone.
    #[error("the prompt has {tokens} tokens; beside its adapters there is room for at most {max}, and an answer")]
    NoRoom {
        /// Length of the prompt.
        tokens: usize,
        /// The most that fits.
        max: usize,
    },
    /// The runner refused the adapter.
    #[error("{0}")]
    Adapter(String),
    /// The output could not be kept to what it must match.
    #[error("the output's constraint: {0}")]
    Constraint(String),
    /// The runner failed, or nothing could be scheduled.
    #[error("{0}")]
    Runner(String),
    /// The device failed for good, and with it everything that ran or waited.
    #[error("the device that computes has failed; the host has to be restarted")]
    DeviceLost,
}

impl GenerationError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Stopped => "shutting_down",
            Self::Revoked(_) => "revoked",
            Self::NoRoom { .. } => "context_length_exceeded",
            Self::Adapter(_) => "adapter_load_failed",
            Self::Constraint(_) => "constraint_failed",
            Self::Runner(_) => "generation_failed",
            Self::DeviceLost => "device_lost",
        }
    }

    /// Whose fault it is; the host turns a constraint's to the function where a plugin wrote it.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Stopped | Self::DeviceLost => Blame::Capacity,
            Self::Revoked(_) | Self::Constraint(_) | Self::NoRoom { .. } => Blame::Caller,
            Self::Adapter(_) | Self::Runner(_) => Blame::Host,
        }
    }
}
