//! Messages to prompt text, by the Jinja template in the base's metadata.

use types::Message;

use crate::ModelError;

/// The base's chat template.
pub struct ChatTemplate {
    _private: (),
}

impl ChatTemplate {
    /// The prompt text of these messages; with the generation prompt, it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// If the template refuses the messages or runs for too long.
    pub fn render(&self, _messages: &[Message], _add_generation_prompt: bool) -> Result<String, ModelError> {
        Err(ModelError::ChatTemplate("not written yet".into()))
    }
}
