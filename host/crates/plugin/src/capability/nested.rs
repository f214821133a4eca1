//! Requests that a plugin makes of the host: calls of other functions, and generations of its own. Not here: how many, which the
//! sandbox counts (`imports/`), and whether, which the host says.

use async_trait::async_trait;
use types::{Chunk, ColdPolicy, Constraint, HookUsage, PlanEntry, Prompt, Sampling, StopConditions};

use super::{CapabilityError, Nothing};

/// What another function is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallInput {
    /// A text.
    Text(String),
    /// JSON, as text.
    Json(String),
}

/// What another function answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionReply {
    /// The whole answer.
    pub text: String,
    /// Who gave it.
    pub function: String,
    /// In which version.
    pub version: u32,
    /// What it used.
    pub usage: HookUsage,
    /// What its plugin added.
    pub metadata: Vec<(String, String)>,
    /// Its receipt.
    pub receipt: String,
}

/// The functions that the manifest lets the plugin call.
#[async_trait]
pub trait Functions: Send + Sync {
    /// Calls one, and waits for its whole answer. Dropping the future cancels it.
    async fn call(
        &self,
        function: String,
        input: CallInput,
        max_tokens: Option<u32>,
    ) -> Result<FunctionReply, CapabilityError>;
}

/// How a session begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Opening {
    /// What it holds at first.
    pub prompt: Prompt,
    /// The adapters and their weights.
    pub composition: Vec<PlanEntry>,
    /// How tokens are chosen, where a generation does not say.
    pub sampling: Sampling,
    /// When to stop, where a generation does not say.
    pub stop: StopConditions,
    /// What to do about adapters that are not in memory.
    pub cold: Option<ColdPolicy>,
}

/// One generation of a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationBounds {
    /// Tokens at most; the host's default if absent, or what is left.
    pub max_tokens: Option<u32>,
    /// Tokens that the request may have generated still.
    pub tokens_left: u32,
    /// In place of the session's.
    pub sampling: Option<Sampling>,
    /// In place of the session's.
    pub stop: Option<StopConditions>,
    /// What the text must match.
    pub constraint: Option<Constraint>,
}

/// What comes of a generation.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionStep {
    /// Decoded text with its tokens.
    Text(Chunk),
    /// The end.
    Done(HookUsage),
}

/// Opens sessions.
#[async_trait]
pub trait Generations: Send + Sync {
    /// A session that holds this prompt, under this composition.
    async fn open(&self, opening: Opening) -> Result<Box<dyn GenerationSession>, CapabilityError>;
}

/// What one session holds. Dropping it gives everything back.
#[async_trait]
pub trait GenerationSession: Send {
    /// Tokens that it holds.
    fn tokens(&self) -> u32;

    /// Adds text; the session must not hold more than so many tokens then.
    async fn append(&mut self, text: String) -> Result<(), CapabilityError>;

    /// Begins to generate, and says how many tokens at most. What was begun before and not ended is an error.
    async fn start(&mut self, bounds: GenerationBounds) -> Result<u32, CapabilityError>;

    /// What comes next of it.
    async fn next(&mut self) -> Result<SessionStep, CapabilityError>;

    /// Ends it, and says how many tokens were generated that nobody has read.
    fn stop(&mut self) -> u32;

    /// Another session that holds the same.
    fn fork(&self) -> Result<Box<dyn GenerationSession>, CapabilityError>;
}

/// The answer of an agent as it goes out.
#[async_trait]
pub trait Output: Send + Sync {
    /// Sends text; waits while the caller is slow to read.
    async fn write(&self, text: String) -> Result<(), CapabilityError>;
}

#[async_trait]
impl Functions for Nothing {
    async fn call(&self, name: String, _: CallInput, _: Option<u32>) -> Result<FunctionReply, CapabilityError> {
        let shown: String = name.chars().take(96).collect();
        Err(CapabilityError::Denied(format!("the function `{shown}`: the manifest's grants.calls does not name it")))
    }
}

#[async_trait]
impl Generations for Nothing {
    async fn open(&self, _: Opening) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        Err(CapabilityError::Denied("generations: the manifest's grants.generations is not set".to_owned()))
    }
}

#[async_trait]
impl Output for Nothing {
    async fn write(&self, _: String) -> Result<(), CapabilityError> {
        Err(CapabilityError::Denied("output: only a plugin of world `agent` writes its answer".to_owned()))
    }
}
