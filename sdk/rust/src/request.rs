//! Typed access to what the caller asked for.

use std::str::FromStr;

use crate::{Error, Message, Prompt, Request, Result};

impl Request {
    /// A scalar member of the input object, as text.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|pair| pair.name == name).map(|pair| pair.value.as_str())
    }

    /// A scalar member of the input object, parsed; `None` if it is not there.
    pub fn parameter_as<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let parse =
            |text: &str| text.parse().map_err(|_| Error(format!("the parameter `{name}` is not valid: {text}")));
        self.parameter(name).map(parse).transpose()
    }

    /// The conversation if there is one, else the text as one user message.
    pub fn conversation(&self) -> Vec<Message> {
        if self.messages.is_empty() { vec![Message::new("user", &self.text)] } else { self.messages.clone() }
    }

    /// [`Self::conversation`] as a prompt.
    pub fn prompt(&self) -> Prompt {
        Prompt::Messages(self.conversation())
    }
}
