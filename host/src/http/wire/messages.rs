//! Chat messages, as OpenAI's clients write them.

use serde::Deserialize;
use types::Message;
use utoipa::ToSchema;

use crate::error::Error;

/// One chat message; content is text or a list of text parts.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ChatMessage {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
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
