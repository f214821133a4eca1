//! Bodies of `/v1/completions` and `/v1/chat/completions`, and the plan that they ask for. Not here: messages and tools
//! (`messages.rs`), and what is refused by name (`refused.rs`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use types::{Chat, Plan, PlanEntry, Prompt, Sampling, StopConditions};
use utoipa::ToSchema;

use super::composition::AdapterField;
use super::constraint::ConstraintFields;
use super::messages::{MessageField, ToolField, chat};
use super::or_default;
use super::refused::{Refused, unsupported};
use crate::error::Error;
use crate::invoke::Handling;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "stop: expected a text or a list of texts")]
enum StopField {
    One(String),
    Many(Vec<String>),
}

/// OpenAI's seeds are signed; the upper half of ours is written either way.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "seed: expected a whole number of 64 bits")]
enum SeedField {
    Signed(i64),
    Unsigned(u64),
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(expecting = "stream_options: expected an object")]
pub(crate) struct StreamOptions {
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    include_usage: bool,
}

/// What `/v1/completions` and `/v1/chat/completions` have in common.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct CommonBody {
    pub(crate) model: String,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) stream: bool,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<SeedField>,
    stop: Option<StopField>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<Vec<u32>>)]
    stop_token_ids: Vec<u32>,
    n: Option<i64>,
    best_of: Option<i64>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    ignore_eos: bool,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) return_token_ids: bool,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<Vec<AdapterField>>)]
    pub(crate) adapters: Vec<AdapterField>,
    /// vLLM's: a larger one is served later; 0 to 100.
    priority: Option<i64>,
    /// Whether tokens may be guessed and verified; the answer is the same.
    speculation: Option<bool>,
    #[serde(flatten)]
    pub(crate) constraint: ConstraintFields,
    modalities: Option<Vec<String>>,
    #[serde(flatten)]
    #[schema(ignore)]
    refused: Refused,
}

impl CommonBody {
    /// Fields that would change the answer and are not served are refused, never ignored; and so is what makes no sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.refused.check()?;
        self.constraint.constraint()?;
        if self.modalities.as_ref().is_some_and(|modalities| modalities.iter().any(|one| one != "text")) {
            return Err(unsupported("modalities"));
        }
        if self.stream_options.is_some() && !self.stream {
            let message = "stream_options is for streams: set stream, or leave it out";
            return Err(Error::invalid("invalid_request", "stream_options", message));
        }
        self.handling()?;
        self.max_tokens().map(|_| ())
    }

    /// What the caller says about its turn.
    pub(crate) fn handling(&self) -> Result<Handling, Error> {
        Handling::new(self.priority, self.speculation)
    }

    /// Whether a stream is to end with its usage.
    pub(crate) fn include_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
    }

    /// The caller's limit on output tokens.
    pub(crate) fn max_tokens(&self) -> Result<Option<u32>, Error> {
        let fields = [("max_completion_tokens", self.max_completion_tokens), ("max_tokens", self.max_tokens)];
        let mut limit = None;
        for (field, value) in fields {
            let Some(value) = value else { continue };
            if value < 1 {
                let message = format!("{field} is {value}: use at least 1, or leave it out");
                return Err(Error::invalid("invalid_request", field, message));
            }
            // One that is beyond a u32 is beyond every limit too.
            limit.get_or_insert(u32::try_from(value).unwrap_or(u32::MAX));
        }
        Ok(limit)
    }

    /// `n`, the choices of each of this many prompts.
    pub(crate) fn choices(&self, prompts: usize, choices_max: u32) -> Result<u32, Error> {
        let n = self.n.unwrap_or(1);
        let best_of = self.best_of.unwrap_or(n);
        if n < 1 {
            return Err(Error::invalid("invalid_request", "n", format!("n is {n}: use at least 1")));
        }
        if best_of != n {
            let message = format!("best_of is {best_of} and n is {n}: only the same number is supported");
            return Err(Error::invalid("unsupported", "best_of", message));
        }
        let all = i64::try_from(prompts).ok().and_then(|prompts| prompts.checked_mul(n));
        if prompts < 1 || all.is_none_or(|all| all > choices_max.into()) {
            let field = if prompts == 1 { "n" } else { "prompt" };
            let message =
                format!("{prompts} prompts times n of {n} is not from 1 to the limit choices_max of {choices_max}");
            return Err(Error::invalid("limit_exceeded", field, message));
        }
        Ok(u32::try_from(n).unwrap_or(choices_max))
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
            logit_bias: self.logit_bias()?,
            seed: self.seed.map(|seed| match seed {
                SeedField::Signed(seed) => seed.cast_unsigned(),
                SeedField::Unsigned(seed) => seed,
            }),
            logprobs,
        };
        let strings = match &self.stop {
            None => Vec::new(),
            Some(StopField::One(string)) => vec![string.clone()],
            Some(StopField::Many(strings)) => strings.clone(),
        };
        let whole = alias.map(|alias| Ok(PlanEntry::whole(alias, 1.0)));
        let composition = whole.into_iter().chain(self.adapters.iter().map(AdapterField::entry));
        let composition = composition.collect::<Result<_, _>>()?;
        let stop = StopConditions { strings, token_ids: self.stop_token_ids.clone(), ignore_eos: self.ignore_eos };
        let constraint = self.constraint.constraint()?;
        Ok(Plan { composition, sampling, stop, constraint, token_budget: self.max_tokens()?, ..Plan::new(prompt) })
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, Error> {
        let entry = |(token, bias): (&String, &f32)| {
            let invalid = || {
                let message = "a key of logit_bias is not a token's number, such as \"504\"";
                Error::invalid("invalid_request", "logit_bias", message)
            };
            token.parse().map(|token| (token, *bias)).map_err(|_| invalid())
        };
        let mut biases = self.logit_bias.iter().flatten().map(entry).collect::<Result<Vec<_>, _>>()?;
        biases.sort_unstable_by_key(|(token, _)| *token);
        Ok(biases)
    }
}

/// `POST /v1/chat/completions`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "base", "messages": [{"role": "user", "content": "Hello"}]}))]
pub(crate) struct ChatBody {
    #[serde(flatten)]
    pub(crate) common: CommonBody,
    messages: Vec<MessageField>,
    /// As they were written: the model sees their members in their order.
    #[schema(value_type = Option<Vec<ToolField>>)]
    tools: Option<Vec<Box<RawValue>>>,
    /// `auto` or `none`.
    #[schema(value_type = Option<String>)]
    tool_choice: Option<ToolChoice>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    logprobs: bool,
    top_logprobs: Option<i64>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(ignore)]
    echo: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ToolChoice {
    Mode(String),
    Named(IgnoredAny),
}

impl ChatBody {
    /// Alternatives to each token, if log-probabilities are asked for.
    pub(crate) fn logprobs(&self) -> Result<Option<u32>, Error> {
        if self.top_logprobs.is_some() && !self.logprobs {
            let message = "top_logprobs needs logprobs: set it to true";
            return Err(Error::invalid("invalid_request", "top_logprobs", message));
        }
        let top = count("top_logprobs", self.top_logprobs)?;
        Ok(self.logprobs.then(|| top.unwrap_or(0)))
    }

    /// The conversation, with the tools that the model may call.
    pub(crate) fn into_chat(self) -> Result<(CommonBody, Chat), Error> {
        if self.echo {
            return Err(unsupported("echo"));
        }
        let mut chat = chat(self.messages, self.tools.unwrap_or_default())?;
        match self.tool_choice {
            None => {}
            Some(ToolChoice::Mode(mode)) if mode == "auto" => {}
            // A model that is not told of tools calls none.
            Some(ToolChoice::Mode(mode)) if mode == "none" => chat.tools.clear(),
            Some(ToolChoice::Mode(_) | ToolChoice::Named(_)) => {
                let message =
                    "only the tool_choice auto and none are supported: nothing forces the model to call a tool";
                return Err(Error::invalid("unsupported", "tool_choice", message));
            }
        }
        Ok((self.common, chat))
    }
}

/// `POST /v1/completions`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"model": "base", "prompt": "Hello"}))]
pub(crate) struct CompletionBody {
    #[serde(flatten)]
    pub(crate) common: CommonBody,
    pub(crate) prompt: PromptField,
    logprobs: Option<i64>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) echo: bool,
    #[schema(ignore)]
    tools: Option<Vec<IgnoredAny>>,
}

impl CompletionBody {
    /// As [`CommonBody::check`], for what is this route's own.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
            return Err(unsupported("tools"));
        }
        if self.echo && self.logprobs.is_some() {
            let message = "echo with logprobs is not supported: there are no log-probabilities of the prompt";
            return Err(Error::invalid("unsupported", "echo", message));
        }
        Ok(())
    }

    /// Alternatives to each token, if log-probabilities are asked for.
    pub(crate) fn logprobs(&self) -> Result<Option<u32>, Error> {
        count("logprobs", self.logprobs)
    }
}

fn count(field: &str, value: Option<i64>) -> Result<Option<u32>, Error> {
    let invalid = |_| Error::invalid("invalid_request", field, format!("{field} is not a number of alternatives"));
    value.map(u32::try_from).transpose().map_err(invalid)
}

/// One prompt or a list of them, each as text or as token ids.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "prompt: expected a text, a list of texts, token ids, or a list of lists of token ids")]
pub(crate) enum PromptField {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl PromptField {
    pub(crate) fn prompts(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::{InvokeBody, parse};

    #[test]
    fn prompts_as_text_or_tokens_one_or_several() {
        let prompts = |body: &str| parse::<CompletionBody>(body.as_bytes()).map(|body| body.prompt.prompts());
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(prompts(r#"{"model": "base", "prompt": "a"}"#).expect("ok"), [text("a")]);
        assert_eq!(prompts(r#"{"model": "base", "prompt": [1, 2]}"#).expect("ok"), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(prompts(r#"{"model": "base", "prompt": ["a", "b"]}"#).expect("ok"), [text("a"), text("b")]);
        let tokens = prompts(r#"{"model": "base", "prompt": [[1, 2], [3]]}"#).expect("ok");
        assert_eq!(tokens, [Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])]);
        assert!(prompts(r#"{"model": "base", "prompt": [-1]}"#).is_err());
    }

    fn completion(fields: &str) -> CompletionBody {
        parse(format!(r#"{{"model": "base", "prompt": "a"{fields}}}"#)).expect("parsed")
    }

    /// Code and field of what refuses a completion with these fields.
    fn refused(fields: &str) -> Option<(String, String)> {
        let body = completion(fields);
        let checked = body.common.check().and_then(|()| body.check()).and_then(|()| body.logprobs().map(|_| ()));
        let checked = checked.and_then(|()| body.common.choices(1, 8).map(|_| ()));
        let checked = checked.and_then(|()| body.common.plan(Prompt::Text("a".into()), None, None).map(|_| ()));
        checked.err().map(|error| (error.code().to_owned(), error.param().unwrap_or_default().to_owned()))
    }

    #[test]
    fn null_is_as_good_as_left_out() {
        let fields = [
            "stream",
            "stream_options",
            "stop",
            "stop_token_ids",
            "ignore_eos",
            "return_token_ids",
            "adapters",
            "tools",
        ];
        let more = ["n", "best_of", "echo", "seed", "logprobs", "temperature", "max_tokens", "max_completion_tokens"];
        let rest = ["min_p", "logit_bias", "suffix", "functions", "modalities", "response_format", "reasoning_effort"];
        let nulls: String =
            fields.iter().chain(&more).chain(&rest).map(|field| format!(r#", "{field}": null"#)).collect();
        assert_eq!(refused(&nulls), None);
        let chat = format!(r#"{{"model": "base", "messages": [], "tool_choice": null, "top_logprobs": null{nulls}}}"#);
        let chat = parse::<ChatBody>(chat.as_bytes()).expect("parsed");
        assert!(!chat.common.stream && chat.common.check().is_ok() && chat.logprobs().is_ok());
        assert!(!parse::<InvokeBody>(br#"{"input": "a", "stream": null}"#).expect("parsed").stream);
    }

    #[test]
    fn what_is_not_used_is_not_kept() {
        let filler = format!("[{}{{}}]", "{},".repeat(1000));
        let parsed = completion(&format!(
            r#", "x": {filler}, "metadata": {filler}, "response_format": {{"type": "text", "x": {filler}}}"#
        ));
        assert!(format!("{parsed:?}").len() < 2000, "{parsed:?}");
    }

    #[test]
    fn what_would_change_the_answer_is_refused() {
        for (field, value) in [
            ("n", "9"),
            ("best_of", "2"),
            ("tools", "[{}]"),
            ("suffix", r#""b""#),
            ("response_format", r#"{"type": "grammar"}"#),
            ("response_format", "{}"),
            ("modalities", r#"["text", "audio"]"#),
            ("audio", r#"{"voice": "a"}"#),
            ("prediction", r#"{"type": "content"}"#),
            ("functions", r#"[{"name": "a"}]"#),
            ("function_call", r#""auto""#),
            ("reasoning_effort", r#""low""#),
            ("web_search_options", r#"{"a": 1}"#),
            ("stream_options", r#"{"include_usage": true}"#),
            ("max_tokens", "0"),
            ("max_tokens", "-1"),
            ("max_completion_tokens", "0"),
            ("n", "0"),
            ("logprobs", "-1"),
            ("logit_bias", r#"{"a": 1}"#),
            ("top_k", "5000000000"),
            ("priority", "-1"),
            ("priority", "101"),
        ] {
            let found = refused(&format!(r#", "{field}": {value}"#));
            assert_eq!(found.map(|(_, param)| param).as_deref(), Some(field), "{field}: {value}");
        }
        let echo = refused(r#", "echo": true, "logprobs": 1"#);
        assert_eq!(echo, Some(("unsupported".into(), "echo".into())));
        let ignored = r#", "user": "me", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "n": 8,
            "best_of": 8, "parallel_tool_calls": true, "modalities": ["text"], "stream": true, "stream_options": {}"#;
        assert_eq!(refused(ignored), None);
    }

    #[test]
    fn choices_are_bounded_in_all() {
        let choices =
            |fields: &str, prompts| completion(fields).common.choices(prompts, 8).map_err(|e| e.code().to_owned());
        assert_eq!(choices("", 1), Ok(1));
        assert_eq!(choices(r#", "n": 4"#, 2), Ok(4));
        assert_eq!(choices(r#", "n": 4"#, 3), Err("limit_exceeded".into()));
        assert_eq!(choices("", 0), Err("limit_exceeded".into()));
        assert_eq!(choices(&format!(r#", "n": {}"#, i64::MAX), 2), Err("limit_exceeded".into()));
        assert_eq!(choices(r#", "n": 1, "best_of": 3"#, 1), Err("unsupported".into()));
    }

    #[test]
    fn sampling_is_read_as_it_is_written() {
        let fields = r#", "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": -1, "frequency_penalty": 0.5,
            "logit_bias": {"50": -100, "7": 1.5}, "seed": -1, "top_k": -1, "max_tokens": 3, "max_completion_tokens": 2"#;
        let plan = completion(fields).common.plan(Prompt::Text("a".into()), None, Some(2)).expect("a plan");
        let sampling = plan.sampling;
        assert_eq!((sampling.min_p, sampling.repetition_penalty, sampling.top_k), (0.1, 1.1, 0));
        assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-1.0, 0.5));
        assert_eq!(sampling.logit_bias, [(7, 1.5), (50, -100.0)]);
        assert_eq!((sampling.seed, plan.token_budget, sampling.logprobs), (Some(u64::MAX), Some(2), Some(2)));
        let seed = completion(r#", "seed": 18446744073709551615"#).common.plan(Prompt::Text("a".into()), None, None);
        assert_eq!(seed.expect("a plan").sampling.seed, Some(u64::MAX));
    }

    #[test]
    fn a_request_may_step_back_and_ask_for_no_guesses() {
        let handling = |fields: &str| completion(fields).common.handling().expect("allowed");
        assert_eq!(handling(""), Handling::default());
        assert_eq!(handling(r#", "priority": null, "speculation": null"#), Handling::default());
        let asked = handling(r#", "priority": 7, "speculation": false"#);
        assert_eq!(asked, Handling { yields: 7, speculation: false, is_copy: false });
    }

    #[test]
    fn tools_may_be_offered_and_not_forced() {
        let tool = r#"{"type": "function", "function": {"name": "f"}}"#;
        let chat = |choice: &str| {
            let messages = r#""messages": [{"role": "user", "content": "a"}]"#;
            let body = format!(r#"{{"model": "base", {messages}, "tools": [{tool}], "tool_choice": {choice}}}"#);
            parse::<ChatBody>(body).expect("parsed").into_chat().map(|(_, chat)| chat.tools.len())
        };
        assert_eq!(chat("null").expect("served"), 1);
        assert_eq!(chat(r#""auto""#).expect("served"), 1);
        assert_eq!(chat(r#""none""#).expect("served"), 0);
        for forced in [r#""required""#, r#"{"type": "function", "function": {"name": "f"}}"#] {
            assert_eq!(chat(forced).expect_err("refused").param(), Some("tool_choice"));
        }
    }
}
