//! Chat messages and tools, as OpenAI's clients write them. Not here: what a chat template makes of them (crate `model`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use types::{Chat, ChatMessage, Message, ToolCall};
use utoipa::ToSchema;

use crate::error::Error;

/// One chat message; content is text or a list of text parts.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ChatMessage)]
pub(crate) struct MessageField {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    tool_calls: Option<Vec<ToolCallField>>,
    tool_call_id: Option<String>,
    /// What `tool_calls` was before; not served.
    #[schema(value_type = Option<serde_json::Value>)]
    function_call: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "content: expected a text or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize, ToSchema)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// A call that the assistant made.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ToolCall)]
struct ToolCallField {
    id: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<CalledFunction>,
}

/// The function that it called.
#[derive(Debug, Deserialize, ToSchema)]
struct CalledFunction {
    name: String,
    /// The text of a JSON object.
    arguments: String,
}

/// A tool that the model may call; it is given all of it, as it was written.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Tool)]
pub(crate) struct ToolField {
    #[serde(rename = "type")]
    kind: String,
    function: Option<ToolFunction>,
}

/// What it calls; with `description` and `parameters`, a JSON schema, which are the model's to read.
#[derive(Debug, Deserialize, ToSchema)]
struct ToolFunction {
    name: String,
}

/// Checks roles and tools, and flattens content parts.
pub(crate) fn chat(messages: Vec<MessageField>, tools: Vec<Box<RawValue>>) -> Result<Chat, Error> {
    if messages.is_empty() {
        return Err(Error::invalid("invalid_request", "messages", "messages is empty: send at least one"));
    }
    let messages =
        messages.into_iter().enumerate().map(|(index, one)| message(index, one)).collect::<Result<_, _>>()?;
    let tools = tools.into_iter().enumerate().map(|(index, one)| tool(index, &one)).collect::<Result<_, _>>()?;
    Ok(Chat { messages, tools })
}

/// The same for a plugin, which is told of role and text and of no tools.
pub(crate) fn messages(list: Vec<MessageField>) -> Result<Vec<Message>, Error> {
    let chat = chat(list, Vec::new())?;
    if let Some(index) = chat.messages.iter().position(|message| !message.tool_calls.is_empty()) {
        let message = "a function's plugin is not told of tool calls: leave them out";
        return Err(Error::invalid("unsupported", &format!("messages[{index}].tool_calls"), message));
    }
    Ok(plain_messages(&chat))
}

/// Role and text of each turn.
pub(crate) fn plain_messages(chat: &Chat) -> Vec<Message> {
    let plain = |one: &ChatMessage| Message { role: one.role.clone(), content: one.content.clone() };
    chat.messages.iter().map(plain).collect()
}

fn message(index: usize, message: MessageField) -> Result<ChatMessage, Error> {
    let param = format!("messages[{index}]");
    let invalid = |reason| Error::invalid("invalid_request", &param, reason);
    let role = match message.role.as_str() {
        "developer" => "system".to_owned(),
        "system" | "user" | "assistant" | "tool" => message.role,
        _ => return Err(invalid("role is not system, developer, user, assistant or tool")),
    };
    if message.function_call.is_some() {
        let reason = "function_call is not supported: send tool_calls in its place";
        return Err(Error::invalid("unsupported", &format!("{param}.function_call"), reason));
    }
    let calls = message.tool_calls.unwrap_or_default();
    if role != "assistant" && !calls.is_empty() {
        return Err(invalid("only the assistant has tool_calls: send the answer to a call with the role tool"));
    }
    let content = match message.content {
        None if role == "user" || role == "system" => return Err(invalid("content is missing: send text")),
        None => String::new(),
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => joined(parts, &param)?,
    };
    let call = |(call, one)| tool_call(&format!("{param}.tool_calls[{call}]"), one);
    let tool_calls = calls.into_iter().enumerate().map(call).collect::<Result<_, _>>()?;
    Ok(ChatMessage { role, content, name: message.name, tool_calls, tool_call_id: message.tool_call_id })
}

fn joined(parts: Vec<Part>, param: &str) -> Result<String, Error> {
    let mut text = String::new();
    for part in parts {
        match (part.kind.as_str(), part.text) {
            ("text", Some(piece)) => text.push_str(&piece),
            _ => return Err(Error::invalid("unsupported", param, "only content parts of type text are supported")),
        }
    }
    Ok(text)
}

fn tool_call(param: &str, call: ToolCallField) -> Result<ToolCall, Error> {
    let function = match (call.kind.as_deref(), call.function) {
        (None | Some("function"), Some(function)) => function,
        _ => return Err(Error::invalid("unsupported", param, "only calls of type function are supported")),
    };
    // A call without arguments is often written with none at all.
    let arguments = if function.arguments.trim().is_empty() { "{}".to_owned() } else { function.arguments };
    if serde_json::from_str::<BTreeMap<String, IgnoredAny>>(&arguments).is_err() {
        let message = "arguments is not the text of a JSON object";
        return Err(Error::invalid("invalid_request", &format!("{param}.function.arguments"), message));
    }
    Ok(ToolCall { id: call.id, name: function.name, arguments })
}

fn tool(index: usize, tool: &RawValue) -> Result<String, Error> {
    let param = format!("tools[{index}]");
    let field: ToolField = serde_json::from_str(tool.get())
        .map_err(|error| Error::invalid("invalid_request", &param, format!("this is not a tool: {error}")))?;
    match (field.kind.as_str(), field.function) {
        ("function", Some(function)) if !function.name.is_empty() => Ok(tool.get().to_owned()),
        ("function", _) => Err(Error::invalid("invalid_request", &param, "function has no name: give it one")),
        _ => Err(Error::invalid("unsupported", &param, "only tools of type function are supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::wire::{ChatBody, parse};

    fn read(body: &str) -> Result<Chat, Error> {
        let body = format!(r#"{{"model": "base", {body}}}"#);
        parse::<ChatBody>(body.as_bytes())?.into_chat().map(|(_, chat)| chat)
    }

    const TOOL: &str = r#"{"type":"function", "function":{"name":"weather","parameters":{"z":1,"a":2}}}"#;

    #[test]
    fn tools_and_calls_are_kept_as_they_were_written() {
        let chat = read(&format!(
            r#""tools": [{TOOL}], "messages": [{{"role": "developer", "content": "Be brief."}},
            {{"role": "assistant", "content": null, "tool_calls":
                [{{"id": "c1", "type": "function", "function": {{"name": "weather", "arguments": "{{\"b\": 1}}"}}}},
                 {{"id": "c2", "type": "function", "function": {{"name": "weather", "arguments": ""}}}}]}},
            {{"role": "tool", "tool_call_id": "c1", "name": "weather", "content": [{{"type": "text", "text": "4"}}]}}]"#
        ))
        .expect("read");
        assert_eq!(chat.tools, [TOOL]);
        assert_eq!((chat.messages[0].role.as_str(), chat.messages[0].content.as_str()), ("system", "Be brief."));
        let arguments: Vec<_> = chat.messages[1].tool_calls.iter().map(|call| call.arguments.as_str()).collect();
        assert_eq!((chat.messages[1].content.as_str(), arguments), ("", vec![r#"{"b": 1}"#, "{}"]));
        let answer = &chat.messages[2];
        assert_eq!((answer.tool_call_id.as_deref(), answer.name.as_deref()), (Some("c1"), Some("weather")));
        assert_eq!(answer.content, "4");
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused_with_its_place() {
        let refused = |body: &str| {
            let error = read(body).expect_err("refused");
            (error.code().to_owned(), error.param().unwrap_or_default().to_owned())
        };
        let user = r#"{"role": "user", "content": "a"}"#;
        let with = |message: &str| refused(&format!(r#""messages": [{user}, {message}]"#));
        let tool = |tool: &str| refused(&format!(r#""messages": [{user}], "tools": [{TOOL}, {tool}]"#));
        let expected = |code: &str, param: &str| (code.to_owned(), param.to_owned());
        assert_eq!(with(r#"{"role": "root", "content": "a"}"#), expected("invalid_request", "messages[1]"));
        assert_eq!(with(r#"{"role": "user", "content": null}"#), expected("invalid_request", "messages[1]"));
        assert_eq!(
            with(r#"{"role": "assistant", "function_call": {"name": "a", "arguments": ""}}"#),
            expected("unsupported", "messages[1].function_call")
        );
        let call = |arguments: &str| {
            let function = format!(r#"{{"name": "f", "arguments": {arguments}}}"#);
            format!(r#"{{"role": "assistant", "tool_calls": [{{"id": "c", "function": {function}}}]}}"#)
        };
        let arguments = "messages[1].tool_calls[0].function.arguments";
        assert_eq!(with(&call(r#""[1]""#)), expected("invalid_request", arguments));
        assert_eq!(with(&call(r#""{""#)), expected("invalid_request", arguments));
        let of_user = r#"{"role": "user", "content": "a", "tool_calls": [{"id": "c"}]}"#;
        assert_eq!(with(of_user), expected("invalid_request", "messages[1]"));
        assert_eq!(tool("1"), expected("invalid_request", "tools[1]"));
        assert_eq!(tool(r#"{"type": "function"}"#), expected("invalid_request", "tools[1]"));
        assert_eq!(tool(r#"{"type": "web_search"}"#), expected("unsupported", "tools[1]"));
    }
}
