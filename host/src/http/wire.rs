//! JSON bodies of requests, checked into values. The only place, with its neighbours, where JSON exists. Unknown fields
//! of our own routes are errors; OpenAI's routes take and ignore what they do not know, as that API's users expect.

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use types::{InvocationRequest, Message, Plan, PlanEntry, Prompt, Sampling, StopConditions};

use super::{App, pace};
use crate::error::Error;

/// A request's body, whole and within the route's limit; what is over it is refused in our own error shape.
pub(crate) struct RawBody(pub(crate) Bytes);

impl FromRequest<App> for RawBody {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        match Bytes::from_request(request, app).await {
            Ok(body) => Ok(Self(body)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(Error::TooLarge { limit: "body_bytes_max", max: app.limits().body_bytes_max })
            }
            Err(rejection) => Err(pace::refusal(&rejection)
                .unwrap_or_else(|| Error::invalid("invalid_request", "", "the body was cut off"))),
        }
    }
}

/// The one variable part of a path; what is no UTF-8 is refused in our own error shape.
pub(crate) struct PathText(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let found = Path::<String>::from_request_parts(parts, state).await;
        found
            .map(|Path(text)| Self(text))
            .map_err(|_| Error::invalid("invalid_request", "path", "the path is not UTF-8: check its percent-encoding"))
    }
}

/// Parses a JSON body; the message names the place. Takes the body, so that a request does not hold it while it is answered.
///
/// # Errors
/// `invalid_json` if it is no JSON, `invalid_request` if it is JSON of another shape.
pub(crate) fn parse<T: DeserializeOwned>(body: impl AsRef<[u8]>) -> Result<T, Error> {
    serde_json::from_slice(body.as_ref()).map_err(|error| {
        let code = if error.is_data() { "invalid_request" } else { "invalid_json" };
        Error::invalid(code, "", format!("body: {error}"))
    })
}

/// For a field that may be left out, or be `null`, which many clients write in place of leaving it out.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// One chat message; content is text or a list of text parts.
#[derive(Debug, Deserialize)]
pub(crate) struct ChatMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// Checks roles and flattens content parts.
pub(crate) fn messages(messages: Vec<ChatMessage>) -> Result<Vec<Message>, Error> {
    if messages.is_empty() {
        return Err(Error::invalid("invalid_request", "messages", "messages is empty: send at least one"));
    }
    messages.into_iter().enumerate().map(|(index, one)| message(index, one)).collect()
}

fn message(index: usize, message: ChatMessage) -> Result<Message, Error> {
    let param = format!("messages[{index}]");
    let role = match message.role.as_str() {
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" | "tool" => message.role,
        _ => return Err(Error::invalid("invalid_request", &param, "role is not system, user, assistant or tool")),
    };
    let content = match message.content {
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut text = String::new();
            for part in parts {
                match (part.kind.as_str(), part.text) {
                    ("text", Some(piece)) => text.push_str(&piece),
                    _ => {
                        return Err(Error::invalid(
                            "unsupported",
                            &param,
                            "only content parts of type text are supported",
                        ));
                    }
                }
            }
            text
        }
    };
    Ok(Message { role, content })
}

/// `POST /v1/functions/{name}/invoke`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InvokeBody {
    input: Option<Value>,
    messages: Option<Vec<ChatMessage>>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) stream: bool,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    /// For OpenAI-shaped callers; the route names the function already.
    #[serde(rename = "model")]
    _model: Option<String>,
}

impl InvokeBody {
    /// What the plugin is asked; `function` and `version` are filled in when the function is known.
    pub(crate) fn request(self, id: &str) -> Result<InvocationRequest, Error> {
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        match (self.input, self.messages) {
            (Some(input), None) => Ok(input_request(id, &input, self.stream, max_tokens)),
            (None, Some(list)) => Ok(chat_request(id, messages(list)?, self.stream, max_tokens)),
            _ => Err(Error::invalid("invalid_request", "input", "send either `input` or `messages`")),
        }
    }
}

fn input_request(id: &str, input: &Value, stream: bool, max_tokens: Option<u32>) -> InvocationRequest {
    let text = match input {
        Value::String(text) => text.clone(),
        Value::Object(object) => object.get("text").and_then(Value::as_str).unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    let parameters = input.as_object().map(scalars).unwrap_or_default();
    let input_json = input.to_string();
    InvocationRequest { text, input_json, parameters, ..bare_request(id, stream, max_tokens) }
}

/// What a plugin sees of a chat-shaped call.
pub(crate) fn chat_request(
    id: &str,
    messages: Vec<Message>,
    stream: bool,
    max_tokens: Option<u32>,
) -> InvocationRequest {
    let last_user = messages.iter().rev().find(|message| message.role == "user");
    let text = last_user.map(|message| message.content.clone()).unwrap_or_default();
    let list: Vec<Value> =
        messages.iter().map(|one| serde_json::json!({"role": one.role, "content": one.content})).collect();
    let input_json = Value::Array(list).to_string();
    InvocationRequest { text, input_json, messages, ..bare_request(id, stream, max_tokens) }
}

/// What a plugin sees of a completion-shaped call.
pub(crate) fn text_request(id: &str, text: String, stream: bool, max_tokens: Option<u32>) -> InvocationRequest {
    input_request(id, &Value::String(text), stream, max_tokens)
}

fn bare_request(id: &str, stream: bool, max_tokens: Option<u32>) -> InvocationRequest {
    InvocationRequest {
        id: id.to_owned(),
        function: String::new(),
        version: 0,
        text: String::new(),
        input_json: String::new(),
        messages: Vec::new(),
        parameters: Vec::new(),
        stream,
        max_tokens,
    }
}

fn scalars(object: &Map<String, Value>) -> Vec<(String, String)> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    object.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

/// `adapters: [{"name", "weight"}]`, the extension that composes without a plugin.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdapterField {
    name: String,
    #[serde(default = "one")]
    weight: f32,
}

const fn one() -> f32 {
    1.0
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum StopField {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) include_usage: bool,
}

/// Only its type is kept: JSON takes twenty times its length in memory, and this lives as long as the request.
#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(default, rename = "type")]
    kind: String,
}

/// What `/v1/completions` and `/v1/chat/completions` have in common.
#[derive(Debug, Deserialize)]
pub(crate) struct CommonBody {
    pub(crate) model: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) stream: bool,
    #[serde(default, deserialize_with = "or_default")]
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
    stop_token_ids: Vec<u32>,
    n: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    ignore_eos: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) return_token_ids: bool,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) adapters: Vec<AdapterField>,
    response_format: Option<ResponseFormat>,
    tools: Option<Vec<Value>>,
    best_of: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
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
#[derive(Debug, Deserialize)]
pub(crate) struct ChatBody {
    #[serde(flatten)]
    pub(crate) common: CommonBody,
    pub(crate) messages: Vec<ChatMessage>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) logprobs: bool,
    pub(crate) top_logprobs: Option<u32>,
}

/// `POST /v1/completions`.
#[derive(Debug, Deserialize)]
pub(crate) struct CompletionBody {
    #[serde(flatten)]
    pub(crate) common: CommonBody,
    pub(crate) prompt: PromptField,
    pub(crate) logprobs: Option<u32>,
}

/// Text or token ids. A list of one prompt is taken as that prompt.
#[derive(Debug, Deserialize)]
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

/// `PUT /v1/adapters/{alias}` with a JSON body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdapterSource {
    pub(crate) source: String,
    pub(crate) digest: Option<String>,
}

/// `POST /v1/functions/{name}/promote`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promote {
    pub(crate) version: u32,
}

/// `POST /v1/tenants`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    pub(crate) name: String,
}

/// `POST /v1/keys`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    pub(crate) tenant: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) rights: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) label: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoke(body: &str) -> Result<InvocationRequest, Error> {
        parse::<InvokeBody>(body.as_bytes())?.request("req_1")
    }

    #[test]
    fn inputs_become_text_and_parameters() {
        assert_eq!(invoke(r#"{"input": "hello"}"#).expect("ok").text, "hello");
        let request = invoke(r#"{"input": {"text": "hi", "w": 0.5, "on": true, "list": [1]}}"#).expect("ok");
        assert_eq!(request.text, "hi");
        let expected = [("text", "hi"), ("w", "0.5"), ("on", "true")];
        let found: Vec<_> = request.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn chat_shaped_input_takes_the_last_user_message() {
        let body = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]}]}"#;
        assert_eq!(invoke(body).expect("ok").text, "cd");
    }

    #[test]
    fn wrong_bodies_have_codes() {
        let code = |body: &str| invoke(body).expect_err("refused").code().to_owned();
        assert_eq!(code("{"), "invalid_json");
        assert_eq!(code("[]"), "invalid_request");
        assert_eq!(code("{}"), "invalid_request");
        assert_eq!(code(r#"{"input": "a", "inptu": 1}"#), "invalid_request");
        assert_eq!(code(r#"{"input": "a", "messages": []}"#), "invalid_request");
        assert_eq!(code(r#"{"messages": []}"#), "invalid_request");
        assert_eq!(code(r#"{"messages": [{"role": "root", "content": "a"}]}"#), "invalid_request");
        assert_eq!(code(r#"{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}"#), "unsupported");
        assert_eq!(code(r#"{"input": "a", "max_tokens": -1}"#), "invalid_request");
    }

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
