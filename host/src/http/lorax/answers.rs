//! What LoRAX's routes answer, as types: the document and the answers are made from them. Not here: how a generation
//! becomes one (`format.rs`).

use serde::Serialize;
use utoipa::ToSchema;

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoraxAnswer {
    pub(super) generated_text: String,
    /// With `details`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<LoraxDetails>,
}

/// How an answer came about.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoraxDetails {
    pub(super) finish_reason: LoraxFinish,
    pub(super) prompt_tokens: u32,
    /// Those that ended the answer, and are not among `tokens`, included.
    pub(super) generated_tokens: u32,
    /// Always 0.
    pub(super) skipped_tokens: u32,
    /// Of an answer that was drawn.
    #[schema(required)]
    pub(super) seed: Option<u64>,
    /// Always empty: there are no log-probabilities of the prompt.
    #[schema(value_type = Vec<LoraxToken>)]
    pub(super) prefill: [LoraxToken; 0],
    pub(super) tokens: Vec<LoraxToken>,
    /// With `best_of`: the answers that were not taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    pub(super) best_of_sequences: Vec<LoraxSequence>,
}

/// An answer that was not taken.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoraxSequence {
    pub(super) generated_text: String,
    pub(super) finish_reason: LoraxFinish,
    pub(super) generated_tokens: u32,
    #[schema(required)]
    pub(super) seed: Option<u64>,
    /// Always empty.
    #[schema(value_type = Vec<LoraxToken>)]
    pub(super) prefill: [LoraxToken; 0],
    pub(super) tokens: Vec<LoraxToken>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LoraxFinish {
    /// No more tokens were asked for, or there was no time for more.
    Length,
    /// The model ended it.
    EosToken,
    /// One of `stop` came.
    StopSequence,
}

/// A token of an answer. The texts of those that are not special, joined, are the answer's text.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct LoraxToken {
    pub(super) id: u32,
    pub(super) text: String,
    /// The model's own, before anything that changes the draw.
    pub(super) logprob: f32,
    pub(super) special: bool,
    /// With `return_k_alternatives`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) alternative_tokens: Option<Vec<LoraxAlternative>>,
}

/// A token that could have been chosen.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct LoraxAlternative {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) logprob: f32,
}

/// One event of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoraxEvent {
    pub(super) token: LoraxToken,
    /// In the last event: the whole text.
    #[schema(required)]
    pub(super) generated_text: Option<String>,
    /// In the last event, with `details`.
    #[schema(required)]
    pub(super) details: Option<LoraxStreamDetails>,
}

/// How a streamed answer came about.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoraxStreamDetails {
    pub(super) finish_reason: LoraxFinish,
    pub(super) prompt_tokens: u32,
    pub(super) generated_tokens: u32,
    #[schema(required)]
    pub(super) seed: Option<u64>,
}

/// What is served, and how much of it at once.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoraxInfo {
    /// The base's name.
    pub(super) model_id: String,
    /// The base's digest.
    pub(super) model_sha: String,
    pub(super) model_dtype: String,
    #[schema(example = "cpu")]
    pub(super) model_device_type: &'static str,
    #[schema(example = "text-generation")]
    pub(super) model_pipeline_tag: &'static str,
    pub(super) max_best_of: u32,
    pub(super) max_stop_sequences: usize,
    /// Tokens of a prompt.
    pub(super) max_input_length: usize,
    /// Tokens of a prompt and its answer.
    pub(super) max_total_tokens: usize,
    /// Tokens that the memory for keys and values holds.
    pub(super) max_batch_total_tokens: u64,
    pub(super) version: &'static str,
}

/// Why a request was not answered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LoraxError {
    /// For people; says what to do.
    pub(super) error: String,
    /// `validation`, `overloaded`, `generation`, or the code.
    pub(super) error_type: String,
    /// Our own stable word for programs.
    pub(super) code: String,
}
