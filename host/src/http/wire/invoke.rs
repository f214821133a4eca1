//! `POST /v1/functions/{name}/invoke`, and what a plugin sees of any request.

use serde::Deserialize;
use serde_json::{Map, Value};
use types::{InvocationRequest, Message};
use utoipa::ToSchema;

use super::messages::{MessageField, messages};
use super::or_default;
use crate::error::Error;
use crate::invoke::Handling;

/// `POST /v1/functions/{name}/invoke`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InvokeBody {
    /// Anything; of an object, `text` is the request's text and other scalars are its parameters.
    input: Option<Value>,
    /// In place of `input`.
    messages: Option<Vec<MessageField>>,
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    pub(crate) stream: bool,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    /// By what a canary knows the caller, in place of the header `x-tenon-sticky`; without both, by its API key.
    #[schema(min_length = 1, max_length = 256)]
    pub(crate) sticky: Option<String>,
    /// A larger one is served later; 0 to 100.
    priority: Option<i64>,
    /// Whether tokens may be guessed and verified; the answer is the same.
    speculation: Option<bool>,
    /// For OpenAI-shaped callers; the route names the function already.
    #[serde(rename = "model")]
    _model: Option<String>,
}

impl InvokeBody {
    /// How the call is to be served.
    pub(crate) fn handling(&self) -> Result<Handling, Error> {
        Handling::new(self.priority, self.speculation)
    }

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

/// What a plugin sees of a call by another plugin, which wrote JSON.
pub(crate) fn json_request(id: &str, json: &str, max_tokens: Option<u32>) -> Result<InvocationRequest, Error> {
    let input = serde_json::from_str(json);
    let input: Value = input.map_err(|error| Error::invalid("invalid_json", "input", format!("the input: {error}")))?;
    Ok(input_request(id, &input, false, max_tokens))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::parse;

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
}
