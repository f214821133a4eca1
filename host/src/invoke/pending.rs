//! Tokens whose text was not sent yet, each with the place where its text begins: text that a stop string holds back keeps
//! its tokens back with it. Not here: what is held back, which is `stop.rs`.

use std::collections::VecDeque;

use super::TokenOut;

/// Tokens in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct PendingTokens {
    tokens: VecDeque<(usize, TokenOut)>,
    /// Bytes of text that all tokens so far completed.
    decoded: usize,
    /// Bytes of it that were let through.
    released: usize,
}

impl PendingTokens {
    /// One more token, which completed this many bytes of text. One that only begins a character counts as where that
    /// character will be.
    pub(crate) fn push(&mut self, token: TokenOut, completed: usize) {
        self.tokens.push_back((self.decoded, token));
        self.decoded += completed;
    }

    /// This many more bytes of text are let through: the tokens whose text begins in what was let through so far.
    pub(crate) fn release(&mut self, bytes: usize) -> Vec<TokenOut> {
        self.released += bytes;
        let count = self.tokens.partition_point(|(begins, _)| *begins < self.released);
        self.tokens.drain(..count).map(|(_, token)| token).collect()
    }

    /// The rest, at the end of a text of which nothing was cut off: tokens that print nothing.
    pub(crate) fn take_all(&mut self) -> Vec<TokenOut> {
        self.tokens.drain(..).map(|(_, token)| token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u32) -> TokenOut {
        TokenOut { id, logprob: None, top: Vec::new() }
    }

    fn ids(tokens: &[TokenOut]) -> Vec<u32> {
        tokens.iter().map(|token| token.id).collect()
    }

    #[test]
    fn tokens_go_with_the_text_that_they_begin() {
        let mut pending = PendingTokens::default();
        // "ab", then "c" of which nothing is let through.
        pending.push(token(1), 2);
        pending.push(token(2), 1);
        assert_eq!(ids(&pending.release(2)), [1]);
        // A stop string begins inside the third token: it goes, the fourth does not.
        pending.push(token(3), 4);
        pending.push(token(4), 4);
        assert_eq!(ids(&pending.release(0)), [0u32; 0]);
        assert_eq!(ids(&pending.release(3)), [2, 3]);
        assert_eq!(ids(&pending.take_all()), [4]);
    }

    #[test]
    fn parts_of_a_character_go_together() {
        let mut pending = PendingTokens::default();
        pending.push(token(1), 0);
        pending.push(token(2), 0);
        assert!(pending.release(0).is_empty());
        pending.push(token(3), 4);
        pending.push(token(4), 1);
        assert_eq!(ids(&pending.release(4)), [1, 2, 3]);
        assert_eq!(ids(&pending.release(1)), [4]);
    }
}
