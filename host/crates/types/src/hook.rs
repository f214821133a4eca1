//! What a plugin is asked and what it answers, as values: the Rust side of `wit/types.wit`. Not here: the sandbox.

use crate::{FinishReason, PlanEntry};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// What the caller asked for, as a plugin sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvocationRequest {
    /// The request's identifier.
    pub id: String,
    /// The function's name.
    pub function: String,
    /// The function's version.
    pub version: u32,
    /// The input as text (see `wit/types.wit`).
    pub text: String,
    /// The whole input as JSON text.
    pub input_json: String,
    /// The conversation, if the call was chat-shaped.
    pub messages: Vec<Message>,
    /// The scalar members of an input object, each as text.
    pub parameters: Vec<(String, String)>,
    /// Whether the caller reads a stream.
    pub stream: bool,
    /// The caller's own limit on output tokens.
    pub max_tokens: Option<u32>,
}

/// A refusal that the caller sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// A stable word.
    pub code: String,
    /// For people.
    pub reason: String,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Compose is called next.
    Serve,
    /// Another function of the same tenant.
    HandOver(String),
    /// This text is the answer.
    Answer(String),
    /// No.
    Reject(Rejection),
}

/// One generated token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChunkToken {
    /// Its number in the vocabulary.
    pub id: u32,
    /// Natural logarithm of its probability, if the plan asked.
    pub logprob: Option<f32>,
}

/// Text that was decoded since the last call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    /// The text.
    pub text: String,
    /// The tokens it came from.
    pub tokens: Vec<ChunkToken>,
}

/// What to do with a chunk (see `wit/types.wit`).
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send what is held back, then the chunk.
    Pass,
    /// Send this in place of what is held back and the chunk.
    Replace(String),
    /// Keep the chunk back.
    Hold,
    /// Send this as well.
    Emit(String),
    /// End the generation.
    Stop,
    /// Go on with another composition.
    SwitchComposition(Vec<PlanEntry>),
}

/// What was used, as a plugin sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Why it ended.
    pub finish: FinishReason,
}

/// The last word of an agent, which answered by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentAnswer {
    /// Sent after what was sent before.
    pub text: String,
    /// Added to the answer.
    pub metadata: Vec<(String, String)>,
    /// Written into the receipt.
    pub claims: Vec<(String, String)>,
}

/// The plugin's last word.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// Applied to what is still held back.
    pub actions: Vec<Action>,
    /// Added to the answer.
    pub metadata: Vec<(String, String)>,
    /// Written into the receipt.
    pub claims: Vec<(String, String)>,
}
