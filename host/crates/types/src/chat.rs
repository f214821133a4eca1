//! A conversation with its tools, as a base's chat template takes it. Not here: the turns that a plugin sees, which are
//! `hook.rs`, and JSON, which stays text here.

use crate::Message;

/// Messages and the tools that the model may be told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chat {
    /// The turns, oldest first.
    pub messages: Vec<ChatMessage>,
    /// Each tool's description, as JSON text.
    pub tools: Vec<String>,
}

/// One turn, with what tools need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Who speaks, or which tool.
    pub name: Option<String>,
    /// Calls that the assistant made.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's turn answers.
    pub tool_call_id: Option<String>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Its identifier.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

impl Chat {
    /// Bytes of all text in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let tools: usize = self.tools.iter().map(String::len).sum();
        self.messages.iter().map(ChatMessage::bytes).sum::<usize>() + tools
    }
}

impl ChatMessage {
    fn bytes(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let call = |call: &ToolCall| call.id.len() + call.name.len() + call.arguments.len();
        let calls: usize = self.tool_calls.iter().map(call).sum();
        self.role.len() + self.content.len() + length(&self.name) + length(&self.tool_call_id) + calls
    }
}

impl From<Vec<Message>> for Chat {
    fn from(messages: Vec<Message>) -> Self {
        let turn = |Message { role, content }| ChatMessage { role, content, ..ChatMessage::default() };
        Self { messages: messages.into_iter().map(turn).collect(), tools: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_counts() {
        let call = ToolCall { id: "1".into(), name: "22".into(), arguments: "{}".into() };
        let turn = ChatMessage {
            role: "tool".into(),
            content: "55555".into(),
            name: Some("666666".into()),
            tool_calls: vec![call],
            tool_call_id: Some("7777777".into()),
        };
        let chat = Chat { messages: vec![turn.clone(), turn], tools: vec!["{\"a\": 1}".into()] };
        assert_eq!(chat.bytes(), 2 * (4 + 5 + 6 + 7 + 1 + 2 + 2) + 8);
    }
}
