//! The tokenizer in a GGUF file's metadata: byte-level BPE, with the way of cutting text that the file names
//! (`tokenizer.ggml.pre`; llama.cpp's `llama-vocab.cpp` lists them). Not here: chat templates.

use std::sync::Arc;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Encoder};

use super::{Inner, Token, Tokenizer, token_bytes};
use crate::ModelError;
use crate::gguf::{Gguf, malformed};

/// Token kinds of GGUF (llama.cpp's `llama_token_type`).
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;

/// A way of cutting text before merges, and what comes with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// GPT-2's.
    Gpt2,
    /// GPT-2's with each digit apart.
    Smollm,
    /// Up to three digits together; a piece that is a token is not merged.
    Llama3,
    /// Each digit apart; text in composed form (NFC).
    Qwen2,
}

/// From the `tokenizer.json` of Llama 3 and of Qwen 2: contractions and words, then what follows the digits.
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|";
const REST: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Cut {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" => Self::Gpt2,
            "smollm" => Self::Smollm,
            "llama-bpe" | "llama3" | "llama-v3" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" => Self::Qwen2,
            _ => return None,
        })
    }

    fn steps(self) -> tokenizers::Result<Vec<PreTokenizerWrapper>> {
        let split = |digits: &str| {
            let pattern = SplitPattern::Regex(format!("{WORDS}{digits}{REST}"));
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        };
        let (whole, bytes) = (ByteLevel::new(false, true, true), ByteLevel::new(false, true, false));
        Ok(match self {
            Self::Gpt2 => vec![whole.into()],
            Self::Smollm => vec![Digits::new(true).into(), whole.into()],
            Self::Llama3 => vec![split(r"\p{N}{1,3}")?.into(), bytes.into()],
            Self::Qwen2 => vec![split(r"\p{N}")?.into(), bytes.into()],
        })
    }
}

impl Tokenizer {
    /// From the metadata of a file whose tokenizer is of GPT-2's kind.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, ModelError> {
        let (kind, pre) =
            (gguf.string("tokenizer.ggml.model")?, gguf.string("tokenizer.ggml.pre").unwrap_or("default"));
        let Some(cut) = Cut::from_name(pre).filter(|_| kind == "gpt2") else {
            return Err(ModelError::Unsupported(format!(
                "tokenizer `{kind}` with `{pre}`: use gpt2 with gpt-2, smollm, llama-bpe or qwen2, or the base as a folder"
            )));
        };
        let texts = gguf.strings("tokenizer.ggml.tokens")?;
        let kinds = gguf.get("tokenizer.ggml.token_type").map(|value| value.to_vec().map_err(malformed)).transpose()?;
        let mut tokens = Vec::with_capacity(texts.len());
        let (mut special, mut added) = (Vec::new(), Vec::new());
        for (id, text) in texts.iter().enumerate() {
            let kind = kinds.and_then(|kinds| kinds.get(id)).map_or(1, kind_number);
            match kind {
                UNKNOWN | CONTROL => special.push(AddedToken::from((*text).to_owned(), true)),
                // As transformers has those of Llama and Qwen; normalised ones would match other text, too.
                USER_DEFINED => added.push(AddedToken::from((*text).to_owned(), false).normalized(false)),
                _ => {}
            }
            let bytes = match kind {
                UNKNOWN | CONTROL | USER_DEFINED => text.as_bytes().into(),
                // Padding of the vocabulary: a name without a text.
                UNUSED => Box::default(),
                _ => token_bytes(text),
            };
            tokens.push(Token { bytes, special: matches!(kind, UNKNOWN | CONTROL) });
        }
        let encoder = encoder(&texts, gguf, cut, special, added)?;
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
    cut: Cut,
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
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(cut == Cut::Llama3);
    let mut encoder = Encoder::new(model.build().map_err(refused)?);
    if cut == Cut::Qwen2 {
        encoder.with_normalizer(Some(NFC)).map_err(refused)?;
    }
    encoder.with_pre_tokenizer(Some(Sequence::new(cut.steps().map_err(refused)?)));
    encoder.add_special_tokens(special).map_err(refused)?;
    encoder.add_tokens(added).map_err(refused)?;
    Ok(encoder)
}
