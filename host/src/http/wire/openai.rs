//! Bodies of `/v1/completions` and `/v1/chat/completions`, and the plan that they ask for.

use serde::Deserialize;
use serde_json::{Map, Value};
use types::{Plan, PlanEntry, Prompt, Sampling, StopConditions};
use utoipa::ToSchema;

use super::messages::ChatMessage;
use super::or_default;
use crate::error::Error;

/// `adapters: [{"name", "weight"}]`, the extension that composes without a plugin.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdapterField {
    name: String,
    #[serde(default = "one")]
    #[schema(default = 1.0)]
    weight: f32,
}

const fn one() -> f32 {
    1.0
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
enum StopField {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) include_usage: bool,
}

/// Only its type is kept: JSON takes twenty times its length in memory, and this lives as long as the request.
#[derive(Debug, Deserialize, ToSchema)]
struct ResponseFormat {
    #[serde(default, rename = "type")]
    kind: String,
}

/// What `/v1/completions` and `/v1/chat/completions` have in common.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CommonBody {
    pub(crate) model: String,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) stream: bool,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<StreamOptions>)]
    pub(crate) stream_options: StreamOptions,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    seed: Option<i64>,
    stop: Option<StopField>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<Vec<u32>>)]
    stop_token_ids: Vec<u32>,
    n: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    ignore_eos: bool,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) return_token_ids: bool,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<Vec<AdapterField>>)]
    pub(crate) adapters: Vec<AdapterField>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<Value>>,
    best_of: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    echo: bool,
    suffix: Option<String>,
    logit_bias: Option<Map<String, Value>>,
}

impl CommonBody {
    /// The caller's limit on output tokens.
    pub(crate) fn max_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// Fields that would change the answer and are not there yet are refused, never ignored.
    pub(crate) fn refuse_unsupported(&self) -> Result<(), Error> {
        let refused = [
            ("n", self.n.is_some_and(|n| n != 1)),
            ("best_of", self.best_of.is_some_and(|n| n != 1)),
            ("response_format", self.response_format.as_ref().is_some_and(|format| format.kind != "text")),
            ("tools", self.tools.as_ref().is_some_and(|tools| !tools.is_empty())),
            ("echo", self.echo),
            ("suffix", self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty())),
            ("logit_bias", self.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty())),
        ];
        match refused.into_iter().find(|(_, is_set)| *is_set) {
            Some((field, _)) => Err(Error::invalid("unsupported", field, format!("{field} is not supported yet"))),
            None => Ok(()),
        }
    }

    /// The plan that the caller wrote: a prompt on the base, with `alias` (if the model is an adapter) and `adapters`.
    pub(crate) fn plan(&self, prompt: Prompt, alias: Option<&str>, logprobs: Option<u32>) -> Result<Plan, Error> {
        let neutral = Sampling::default();
        let top_k = u32::try_from(self.top_k.unwrap_or(0).max(0))
            .map_err(|_| Error::invalid("invalid_request", "top_k", "top_k is too large"))?;
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k,
            top_p: self.top_p.unwrap_or(neutral.top_p),
            min_p: self.min_p.unwrap_or(neutral.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(neutral.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(neutral.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(neutral.frequency_penalty),
            seed: self.seed.map(i64::cast_unsigned),
            logprobs,
        };
        let strings = match &self.stop {
            None => Vec::new(),
            Some(StopField::One(string)) => vec![string.clone()],
            Some(StopField::Many(strings)) => strings.clone(),
        };
        let named = self.adapters.iter().map(|field| PlanEntry::whole(&field.name, field.weight));
        let composition = alias.map(|alias| PlanEntry::whole(alias, 1.0)).into_iter().chain(named).collect();
        let stop = StopConditions { strings, token_ids: self.stop_token_ids.clone(), ignore_eos: self.ignore_eos };
        Ok(Plan { composition, sampling, stop, token_budget: self.max_tokens(), ..Plan::new(prompt) })
    }
}

/// `POST /v1/chat/completions`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "base", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}))]
pub(crate) struct ChatBody {
    #[serde(flatten)]
    pub(crate) common: CommonBody,
    pub(crate) messages: Vec<ChatMessage>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) logprobs: bool,
    pub(crate) top_logprobs: Option<u32>,
}

/// `POST /v1/completions`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "base", "prompt": "Hello", "max_tokens": 8}))]
pub(crate) struct CompletionBody {
    #[serde(flatten)]
    pub(crate) common: CommonBody,
    pub(crate) prompt: PromptField,
    pub(crate) logprobs: Option<u32>,
}

/// Text or token ids. A list of one prompt is taken as that prompt.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum PromptField {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl PromptField {
    pub(crate) fn prompt(self) -> Result<Prompt, Error> {
        let several = || Error::invalid("unsupported", "prompt", "send one prompt in each request");
        match self {
            Self::Text(text) => Ok(Prompt::Text(text)),
            Self::Tokens(tokens) => Ok(Prompt::Tokens(tokens)),
            Self::Texts(texts) => {
                <[String; 1]>::try_from(texts).map(|[text]| Prompt::Text(text)).map_err(|_| several())
            }
            Self::TokenLists(lists) => {
                <[Vec<u32>; 1]>::try_from(lists).map(|[tokens]| Prompt::Tokens(tokens)).map_err(|_| several())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::{InvokeBody, parse};

    #[test]
    fn prompts_as_text_or_tokens() {
        let prompt = |body: &str| parse::<CompletionBody>(body.as_bytes()).and_then(|body| body.prompt.prompt());
        let text = prompt(r#"{"model": "base", "prompt": "a"}"#).expect("ok");
        assert_eq!(text, Prompt::Text("a".into()));
        let tokens = prompt(r#"{"model": "base", "prompt": [[1, 2]]}"#).expect("ok");
        assert_eq!(tokens, Prompt::Tokens(vec![1, 2]));
        assert!(prompt(r#"{"model": "base", "prompt": ["a", "b"]}"#).is_err());
        assert!(prompt(r#"{"model": "base", "prompt": [-1]}"#).is_err());
    }

    #[test]
    fn null_is_as_good_as_left_out() {
        let fields =
            ["stream", "stream_options", "stop", "stop_token_ids", "ignore_eos", "return_token_ids", "adapters"];
        let fields = fields.iter().chain(&["tools", "n", "echo", "seed", "logprobs", "temperature", "max_tokens"]);
        let nulls: String = fields.map(|field| format!(r#", "{field}": null"#)).collect();
        let completion = format!(r#"{{"model": "base", "prompt": "a"{nulls}}}"#);
        assert!(parse::<CompletionBody>(completion.as_bytes()).expect("parsed").common.refuse_unsupported().is_ok());
        let chat = format!(r#"{{"model": "base", "messages": []{nulls}}}"#);
        assert!(!parse::<ChatBody>(chat.as_bytes()).expect("parsed").common.stream);
        assert!(!parse::<InvokeBody>(br#"{"input": "a", "stream": null}"#).expect("parsed").stream);
    }

    #[test]
    fn what_is_not_used_is_not_kept() {
        let filler = format!("[{}{{}}]", "{},".repeat(1000));
        let body = format!(
            r#"{{"model": "base", "prompt": "a", "x": {filler}, "response_format": {{"type": "text", "x": {filler}}}}}"#
        );
        let parsed = parse::<CompletionBody>(body).expect("parsed");
        assert!(format!("{parsed:?}").len() < 1000, "{parsed:?}");
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        for (field, value) in [
            ("n", "2"),
            ("tools", "[{}]"),
            ("response_format", r#"{"type": "json_object"}"#),
            ("response_format", "{}"),
        ] {
            let body = format!(r#"{{"model": "base", "prompt": "a", "{field}": {value}}}"#);
            let parsed = parse::<CompletionBody>(body.as_bytes()).expect("parsed");
            assert_eq!(parsed.common.refuse_unsupported().expect_err("refused").param(), Some(field));
        }
    }
}
