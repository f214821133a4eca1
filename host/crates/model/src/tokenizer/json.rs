//! The tokenizer of a `tokenizer.json` (Hugging Face tokenizers): encoding is that file's own, decoding is ours, so what a
//! token's text stands for must be known from its decoder. Not here: chat templates and the special tokens' roles.

use serde_json::Value;
use tokenizers::{DecoderWrapper, Tokenizer as Encoder};

use super::{Inner, Token, Tokenizer, token_bytes};
use crate::ModelError;
use crate::config::VOCABULARY_MAX;

/// How a token's text stands for bytes.
#[derive(Clone, Copy)]
enum Spelling {
    /// GPT-2's alphabet: a character for each byte.
    ByteLevel,
    /// SentencePiece's: `▁` is a space, `<0x0A>` a byte, all else its own text.
    ByteFallback,
}

impl Tokenizer {
    /// From the bytes of the file. Truncation and padding that it asks for are left out: a prompt is taken whole or refused.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Self, ModelError> {
        let refused = |error: tokenizers::Error| {
            let error: String = error.to_string().chars().take(200).collect();
            ModelError::Malformed(format!("tokenizer.json: {error}"))
        };
        refuse_what_panics(bytes)?;
        let mut encoder = Encoder::from_bytes(bytes).map_err(refused)?;
        encoder.with_truncation(None).map_err(refused)?;
        encoder.with_padding(None);
        let spelling = encoder.get_decoder().and_then(spelling).ok_or_else(|| {
            ModelError::Unsupported("tokenizer.json: its decoder is neither byte-level nor with byte fallback".into())
        })?;
        let added = encoder.get_added_tokens_decoder();
        let vocabulary = encoder.get_vocab(true);
        let count = vocabulary.values().max().map_or(0, |last| *last as usize + 1);
        if count > VOCABULARY_MAX {
            return Err(ModelError::Malformed(format!("tokenizer.json: token {} is too large", count - 1)));
        }
        // What no token has prints nothing.
        let mut tokens: Vec<Token> = Vec::new();
        tokens.resize_with(count, || Token { bytes: Box::default(), special: false });
        for (text, id) in vocabulary {
            let Some(token) = tokens.get_mut(id as usize) else { continue };
            *token = match added.get(&id) {
                Some(added) => Token { bytes: added.content.as_bytes().into(), special: added.special },
                None => Token { bytes: spelt(spelling, &text), special: false },
            };
        }
        Ok(Self { inner: std::sync::Arc::new(Inner { encoder, tokens }) })
    }
}

/// The library panics on JSON that breaks off within a decoder, and on a precompiled normaliser that is damaged, which no
/// BPE tokenizer needs.
fn refuse_what_panics(bytes: &[u8]) -> Result<(), ModelError> {
    fn is_precompiled(normalizer: &Value) -> bool {
        let parts = normalizer.get("normalizers").and_then(Value::as_array).into_iter().flatten();
        normalizer.get("type").is_some_and(|kind| kind == "Precompiled") || parts.into_iter().any(is_precompiled)
    }
    let file: Value = serde_json::from_slice(bytes)
        .map_err(|error| ModelError::Malformed(format!("tokenizer.json is not JSON: {error}")))?;
    if file.get("normalizer").is_some_and(is_precompiled) {
        return Err(ModelError::Unsupported("tokenizer.json: a precompiled normaliser".into()));
    }
    Ok(())
}

fn spelling(decoder: &DecoderWrapper) -> Option<Spelling> {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Some(Spelling::ByteLevel),
        DecoderWrapper::ByteFallback(_) => Some(Spelling::ByteFallback),
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().find_map(spelling),
        _ => None,
    }
}

fn spelt(spelling: Spelling, text: &str) -> Box<[u8]> {
    match spelling {
        Spelling::ByteLevel => token_bytes(text),
        Spelling::ByteFallback => {
            let byte = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|code| code.len() == 2);
            match byte.and_then(|code| u8::from_str_radix(code, 16).ok()) {
                Some(byte) => [byte].into(),
                None => text.replace('\u{2581}', " ").into_bytes().into(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentencepiece_spelling_is_undone() {
        let bytes = |text| spelt(Spelling::ByteFallback, text);
        assert_eq!(*bytes("▁the"), *b" the");
        assert_eq!(*bytes("<0x0A>"), *b"\n");
        assert_eq!(*bytes("<0xF0>"), [0xf0]);
        assert_eq!(*bytes("<0x0>"), *b"<0x0>");
        assert_eq!(*bytes("<0xZZ>"), *b"<0xZZ>");
        assert_eq!(*bytes("é"), *"é".as_bytes());
    }

    const LIKE_LLAMA2: &str = r#"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 2,
        "strategy": "LongestFirst", "stride": 0}, "padding": null,
        "added_tokens": [{"id": 4, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "▁a": 3, "</s>": 4, "▁": 6, "a": 7}, "merges": ["▁ a"]}}"#;

    #[test]
    fn a_tokenizer_with_byte_fallback_and_a_hole_in_its_ids() {
        let tokenizer = Tokenizer::from_json(LIKE_LLAMA2.as_bytes()).unwrap();
        assert_eq!(tokenizer.tokens(), 8);
        // More than the two to which the file would cut.
        assert_eq!(tokenizer.encode(" aé a</s>").unwrap(), [3, 1, 2, 3, 4]);
        assert_eq!(tokenizer.decode(&[3, 1, 2, 5, 3, 4]), " aé a");
        assert_eq!((tokenizer.token_id("</s>"), tokenizer.token_id("b")), (Some(4), None));
    }

    #[test]
    fn other_files_are_refused() {
        let told =
            |text: &str| Tokenizer::from_json(text.as_bytes()).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told("{").contains("tokenizer.json"));
        assert!(told("[]").contains("tokenizer.json"));
        let cut_in_decoder = LIKE_LLAMA2.split_once("{\"type\": \"Fuse\"").unwrap().0;
        assert!(told(cut_in_decoder).contains("not JSON"), "{}", told(cut_in_decoder));
        let precompiled = r#""normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "AA"}]}, "x": "#;
        assert!(told(&LIKE_LLAMA2.replace(r#""normalizer": "#, precompiled)).contains("precompiled"));
        let other = LIKE_LLAMA2.replace("ByteFallback", "Fuse");
        assert!(told(&other).contains("decoder"), "{}", told(&other));
        assert!(told(&LIKE_LLAMA2.replace(r#""a": 7"#, r#""a": 4294967295"#)).contains("too large"));
    }
}
