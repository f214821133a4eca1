//! The plan as a plugin wrote it: untrusted. Not here: its check, which is `valid_plan.rs`.

use crate::{Chat, LayerRange, Message, ModuleSet, Sampling, StopConditions};

/// What the model is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, special tokens included.
    Text(String),
    /// Token numbers; only the HTTP surface makes these.
    Tokens(Vec<u32>),
    /// Rendered through the base's chat template.
    Messages(Vec<Message>),
    /// The same with tools and calls of them; only the HTTP surface makes these.
    Chat(Chat),
    /// A template of the function's manifest.
    Template {
        /// Its name.
        name: String,
        /// Its arguments.
        arguments: Vec<(String, String)>,
    },
}

/// Which part of the sequence an adapter applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// Prompt and output.
    Whole,
    /// Output tokens `first .. end`; `end` is `None` for the rest.
    Output {
        /// The first output token, counted from 0.
        first: u32,
        /// One past the last.
        end: Option<u32>,
    },
}

/// One entry of a composition, by a name that is not yet resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanEntry {
    /// An alias or a digest.
    pub adapter: String,
    /// The weight.
    pub weight: f32,
    /// Only these modules.
    pub modules: Option<ModuleSet>,
    /// Only these layers.
    pub layers: Option<LayerRange>,
    /// Where it applies.
    pub span: Span,
}

impl PlanEntry {
    /// The whole adapter with this weight.
    #[must_use]
    pub fn whole(adapter: impl Into<String>, weight: f32) -> Self {
        Self { adapter: adapter.into(), weight, modules: None, layers: None, span: Span::Whole }
    }
}

/// What the output must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// A JSON schema.
    JsonSchema(String),
    /// A regular expression.
    Regex(String),
    /// A Lark grammar.
    Grammar(String),
}

impl Constraint {
    /// What it is, in a word.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Grammar(_) => "grammar",
        }
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::JsonSchema(text) | Self::Regex(text) | Self::Grammar(text) => text,
        }
    }
}

/// What to do when an adapter is not resident.
#[derive(Clone, Debug, PartialEq)]
pub enum ColdPolicy {
    /// Wait for at most this many milliseconds.
    Wait(u32),
    /// Serve the base.
    Base,
    /// Use this composition.
    Fallback(Vec<PlanEntry>),
    /// Answer 503.
    Refuse,
}

/// What a plugin returns: a value that describes the generation. Nothing in it is to be believed before
/// [`crate::ValidPlan::check`].
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What the model is given.
    pub prompt: Prompt,
    /// The adapters and their weights.
    pub composition: Vec<PlanEntry>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// When to stop.
    pub stop: StopConditions,
    /// What the output must match.
    pub constraint: Option<Constraint>,
    /// What to do about adapters that are not resident.
    pub cold: Option<ColdPolicy>,
    /// Milliseconds in which the answer must be complete.
    pub deadline_ms: Option<u32>,
    /// How many tokens may be generated.
    pub token_budget: Option<u32>,
    /// Adapters that will be needed later.
    pub prefetch: Vec<String>,
    /// Whether the plugin sees the chunks.
    pub post_process: bool,
}

impl Plan {
    /// A greedy plan on the base, passed through.
    #[must_use]
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            composition: Vec::new(),
            sampling: Sampling::default(),
            stop: StopConditions::default(),
            constraint: None,
            cold: None,
            deadline_ms: None,
            token_budget: None,
            prefetch: Vec::new(),
            post_process: false,
        }
    }
}
