//! Text to tokens and back, from the tokenizer in the base's files. Not here: chat templates.
//!
//! Encoding is BPE by the `tokenizers` crate. Decoding is ours: every token is a run of bytes, and text is the
//! bytes of the tokens, so that a stream can be cut exactly at the end of a UTF-8 character.

mod gguf;
mod json;

use std::sync::Arc;

use tokenizers::Tokenizer as Encoder;

use crate::ModelError;

/// The base's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    encoder: Encoder,
    tokens: Vec<Token>,
}

struct Token {
    bytes: Box<[u8]>,
    special: bool,
}

impl Tokenizer {
    /// The tokens of a text. Special tokens in the text are recognised, none are added.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encoder.encode_fast(text, false);
        let encoding = encoding.map_err(|error| ModelError::Tokenize(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of these tokens; special tokens are not printed.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| self.printed(*id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A decoder for one sequence, token by token.
    #[must_use]
    pub fn decoder(&self) -> TextDecoder {
        TextDecoder { tokenizer: self.clone(), pending: Vec::new() }
    }

    /// One token's own text, special tokens included; what is not UTF-8 by itself is replaced.
    #[must_use]
    pub fn token_text(&self, id: u32) -> String {
        self.token(id).map(|token| String::from_utf8_lossy(&token.bytes).into_owned()).unwrap_or_default()
    }

    /// The bytes that a token prints; they may begin or end inside a character. None for special tokens, which print
    /// nothing, and for those that do not exist.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.token(id).filter(|token| !token.special).map(|token| &*token.bytes)
    }

    /// Tokens that it has, holes in their ids included.
    pub(crate) fn tokens(&self) -> usize {
        self.inner.tokens.len()
    }

    /// The token of exactly this text.
    pub(crate) fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.encoder.token_to_id(text)
    }

    fn token(&self, id: u32) -> Option<&Token> {
        self.inner.tokens.get(id as usize)
    }

    fn printed(&self, id: u32) -> &[u8] {
        self.token_bytes(id).unwrap_or_default()
    }
}

/// The bytes that a byte-level token stands for. GPT-2 writes the bytes that do not print as characters from U+0100 on,
/// in order; a token with any other character stands for its own text.
fn token_bytes(text: &str) -> Box<[u8]> {
    let byte = |character: char| -> Option<u8> {
        let code = u32::from(character);
        match code {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
            0x100..=0x120 => Some((code - 0x100) as u8),
            0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
            0x143 => Some(0xad),
            _ => None,
        }
    };
    text.chars().map(byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| text.as_bytes().to_vec()).into()
}

/// Decodes one sequence as its tokens arrive.
pub struct TextDecoder {
    tokenizer: Tokenizer,
    /// The beginning of a character.
    pending: Vec<u8>,
}

impl TextDecoder {
    /// The text that this token completes. Never ends inside a UTF-8 character; may be empty; special tokens print nothing.
    pub fn push(&mut self, id: u32) -> String {
        self.pending.extend_from_slice(self.tokenizer.printed(id));
        let mut complete = self.pending.len();
        // The last character may lack bytes; anything else that is not UTF-8 will never become so, and is replaced.
        if let Some(chunk) = self.pending.utf8_chunks().last()
            && std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none())
        {
            complete -= chunk.invalid().len();
        }
        let text = String::from_utf8_lossy(self.pending.get(..complete).unwrap_or_default()).into_owned();
        self.pending.drain(..complete);
        text
    }

    /// What is left; bytes that never became a character are replaced.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::models::bpe::BPE;

    use super::*;

    fn tokenizer(tokens: &[&[u8]]) -> Tokenizer {
        let model = BPE::builder().vocab_and_merges([("a".to_owned(), 0u32)], Vec::new()).build().unwrap();
        let tokens = tokens.iter().map(|bytes| Token { bytes: (*bytes).into(), special: *bytes == b"<|x|>" }).collect();
        Tokenizer { inner: Arc::new(Inner { encoder: Encoder::new(model), tokens }) }
    }

    #[test]
    fn every_byte_has_a_character() {
        let mut seen = [false; 256];
        for character in (0x21u32..=0x143).filter_map(char::from_u32) {
            if let [byte] = *token_bytes(&character.to_string())
                && character != '\u{7f}'
            {
                seen[usize::from(byte)] = true;
            }
        }
        assert!(seen.iter().all(|seen| *seen));
        assert_eq!(*token_bytes("Ġthe"), *b" the");
        assert_eq!(*token_bytes("Ċ"), *b"\n");
    }

    #[test]
    fn a_stream_is_cut_between_characters_only() {
        let tokenizer = tokenizer(&[b"a\xf0\x9f", b"\x99", b"\x82b", b"<|x|>", b"\xff", b"\xc3"]);
        let mut decoder = tokenizer.decoder();
        let pushed: Vec<String> = [0, 1, 3, 2, 4, 5, 99].into_iter().map(|id| decoder.push(id)).collect();
        assert_eq!(pushed, ["a", "", "", "\u{1f642}b", "\u{fffd}", "", ""]);
        assert_eq!(decoder.finish(), "\u{fffd}");
        assert_eq!(decoder.finish(), "");
        assert_eq!(tokenizer.decode(&[0, 1, 2, 3, 7]), "a\u{1f642}b");
        assert_eq!(tokenizer.token_text(3), "<|x|>");
        assert_eq!((tokenizer.token_bytes(1), tokenizer.token_bytes(3)), (Some(&b"\x99"[..]), None));
    }
}
