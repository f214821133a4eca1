//! Text to tokens and back, from the tokenizer in the base's metadata. Not here: chat templates.
//!
//! Encoding is byte-level BPE by the `tokenizers` crate. Decoding is ours: every token is a run of bytes, and text is the
//! bytes of the tokens, so that a stream can be cut exactly at the end of a UTF-8 character.

use std::sync::Arc;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer as Encoder};

use crate::ModelError;
use crate::gguf::{Gguf, malformed};

/// Token kinds of GGUF (llama.cpp's `llama_token_type`).
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

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

    fn token(&self, id: u32) -> Option<&Token> {
        self.inner.tokens.get(id as usize)
    }

    fn printed(&self, id: u32) -> &[u8] {
        self.token_bytes(id).unwrap_or_default()
    }

    /// From the metadata of a file whose tokenizer is GPT-2's with digits set apart (`smollm`).
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let (kind, pre) =
            (gguf.string("tokenizer.ggml.model")?, gguf.string("tokenizer.ggml.pre").unwrap_or("default"));
        if kind != "gpt2" || pre != "smollm" {
            return Err(ModelError::Unsupported(format!("tokenizer `{kind}` with `{pre}`: use gpt2 with smollm")));
        }
        let texts = gguf.strings("tokenizer.ggml.tokens")?;
        let kinds = gguf.get("tokenizer.ggml.token_type").map(|value| value.to_vec().map_err(malformed)).transpose()?;
        let mut tokens = Vec::with_capacity(texts.len());
        let (mut special, mut added) = (Vec::new(), Vec::new());
        for (id, text) in texts.iter().enumerate() {
            let kind = kinds.and_then(|kinds| kinds.get(id)).map_or(1, kind_number);
            match kind {
                UNKNOWN | CONTROL => special.push(AddedToken::from((*text).to_owned(), true)),
                USER_DEFINED => added.push(AddedToken::from((*text).to_owned(), false)),
                _ => {}
            }
            let literal = matches!(kind, UNKNOWN | CONTROL | USER_DEFINED);
            let bytes = if literal { text.as_bytes().into() } else { token_bytes(text) };
            tokens.push(Token { bytes, special: matches!(kind, UNKNOWN | CONTROL) });
        }
        let encoder = encoder(&texts, gguf, special, added)?;
        if encoder.get_vocab_size(true) != texts.len() {
            return Err(ModelError::Malformed("the vocabulary names a token twice".into()));
        }
        Ok(Self { inner: Arc::new(Inner { encoder, tokens }) })
    }
}

fn kind_number(value: &candle_core::quantized::gguf_file::Value) -> u64 {
    value.to_u64().or_else(|_| value.to_i32().map(|kind| kind.max(0) as u64)).unwrap_or(1)
}

fn encoder(
    texts: &[&str],
    gguf: &Gguf,
    special: Vec<AddedToken>,
    added: Vec<AddedToken>,
) -> Result<Encoder, ModelError> {
    let refused = |error: tokenizers::Error| ModelError::Malformed(format!("tokenizer: {error}"));
    let vocabulary: tokenizers::models::bpe::Vocab =
        texts.iter().zip(0u32..).map(|(text, id)| ((*text).to_owned(), id)).collect();
    let merges = gguf.strings("tokenizer.ggml.merges")?.into_iter().map(|merge| {
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| ModelError::Malformed(format!("tokenizer: merge `{merge}` is not a pair")))?;
        Ok((left.to_owned(), right.to_owned()))
    });
    let merges = merges.collect::<Result<Vec<_>, ModelError>>()?;
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).build().map_err(refused)?;
    let mut encoder = Encoder::new(model);
    let steps: Vec<PreTokenizerWrapper> = vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
    encoder.with_pre_tokenizer(Some(Sequence::new(steps)));
    encoder.add_special_tokens(special).map_err(refused)?;
    encoder.add_tokens(added).map_err(refused)?;
    Ok(encoder)
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
