//! The answers of OpenAI's routes as the document describes them: `openai/format.rs` writes these objects piece by piece, so
//! their types exist here only. What holds the two together is schemathesis, which checks answers against the document.
#![expect(dead_code, reason = "only their schemas are used")]

use std::collections::BTreeMap;

use utoipa::ToSchema;

use crate::http::answers::{ComposedAdapter, Usage};

/// A model: the base, an adapter or a function.
#[derive(ToSchema)]
pub(crate) struct Model {
    id: String,
    #[schema(example = "model")]
    object: String,
    created: u64,
    owned_by: Owner,
    /// The base's own name, an adapter's digest.
    #[schema(required)]
    root: Option<String>,
    /// Of an adapter: the base.
    #[schema(required)]
    parent: Option<String>,
}

/// What a model is.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum Owner {
    Tenon,
    Adapter,
    Function,
}

/// A chat completion. Streamed, `chat.completion.chunk`s with `choices[].delta`.
#[derive(ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    #[schema(example = "chat.completion")]
    object: String,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    adapters: Vec<ComposedAdapter>,
}

/// One of the answers.
#[derive(ToSchema)]
struct ChatChoice {
    message: AssistantMessage,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    #[serde(flatten)]
    rest: ChoiceRest,
}

/// What a choice has in both of OpenAI's APIs.
#[derive(ToSchema)]
struct ChoiceRest {
    index: u32,
    finish_reason: FinishReason,
    /// With `return_token_ids`.
    token_ids: Option<Vec<u32>>,
    /// With `return_token_ids`.
    prompt_token_ids: Option<Vec<u32>>,
    /// Of this choice, which is an inference of its own.
    #[schema(pattern = "^rcpt_[0-9A-Z]{26}$")]
    receipt: String,
}

/// What the model said.
#[derive(ToSchema)]
struct AssistantMessage {
    #[schema(example = "assistant")]
    role: String,
    #[schema(required)]
    content: Option<String>,
    /// Always null.
    #[schema(required)]
    refusal: Option<String>,
}

/// Why an answer ended.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
enum FinishReason {
    Stop,
    Length,
}

/// Log-probabilities of a chat's tokens.
#[derive(ToSchema)]
struct ChatLogprobs {
    content: Vec<ChatLogprob>,
    /// Always null.
    #[schema(required)]
    refusal: Option<String>,
}

/// A token that was chosen.
#[derive(ToSchema)]
struct ChatLogprob {
    token: String,
    #[schema(required)]
    logprob: Option<f64>,
    /// All tokens' bytes together are the text; null for a special token, which prints nothing.
    #[schema(required)]
    bytes: Option<Vec<u8>>,
    top_logprobs: Vec<TopLogprob>,
}

/// A token that could have been chosen.
#[derive(ToSchema)]
struct TopLogprob {
    token: String,
    #[schema(required)]
    logprob: Option<f64>,
    /// All tokens' bytes together are the text; null for a special token, which prints nothing.
    #[schema(required)]
    bytes: Option<Vec<u8>>,
}

/// A completion. Streamed, the same in pieces.
#[derive(ToSchema)]
pub(crate) struct Completion {
    id: String,
    #[schema(example = "text_completion")]
    object: String,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
    adapters: Vec<ComposedAdapter>,
}

/// One of the answers.
#[derive(ToSchema)]
struct CompletionChoice {
    text: String,
    #[schema(required)]
    logprobs: Option<CompletionLogprobs>,
    #[serde(flatten)]
    rest: ChoiceRest,
}

/// Log-probabilities of a completion's tokens, in lists of one length.
#[derive(ToSchema)]
struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<BTreeMap<String, f64>>,
    text_offset: Vec<u32>,
}
