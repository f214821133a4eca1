//! The base's tokens as `llguidance` wants them: a tree of bytes. Not here: encoding, for which a constraint has no use.

use llguidance::toktrie::{INVALID_TOKEN, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::ModelError;

/// What the tree has room for: its depth is 10 bits, and a token's number 24.
const TOKEN_BYTES_MAX: usize = 1000;
const TOKENS_MAX: usize = 1 << 22;

pub(super) struct Vocabulary {
    tree: TokTrie,
}

impl Vocabulary {
    /// Tokens of these bytes; those without any are never text.
    pub(super) fn new(mut tokens: Vec<Vec<u8>>, eos: &[u32]) -> Result<Self, ModelError> {
        if tokens.is_empty() || tokens.len() > TOKENS_MAX {
            return Err(ModelError::Unsupported(format!("{} tokens, at most {TOKENS_MAX}", tokens.len())));
        }
        for bytes in &mut tokens {
            // The marker begins the names of special tokens in the tree; in UTF-8 it begins nothing.
            if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) || bytes.len() > TOKEN_BYTES_MAX {
                bytes.clear();
            }
        }
        for id in eos {
            if let Some(bytes) = tokens.get_mut(*id as usize) {
                bytes.clear();
            }
        }
        let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let eos: Vec<u32> = eos.iter().copied().filter(|id| *id < count).collect();
        // Without any, no text is ended by a token.
        let first = eos.first().copied().unwrap_or(INVALID_TOKEN);
        let tree = TokTrie::from(&TokRxInfo::new(count, first), &tokens);
        Ok(Self { tree: if eos.is_empty() { tree } else { tree.with_eos_tokens(&eos) } })
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.tree
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.tree.greedy_tokenize(bytes)
    }

    /// So that what is forced by a constraint may be said in any tokens: a mask is of the text, not of its tokens.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
