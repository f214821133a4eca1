//! What a sequence's output must match, as the engine sees it: which tokens may come next, and whether anything is left to come.
//! Not here: grammars, text, and who finds it out, which are behind [`OutputConstraint`].

use std::fmt;
use std::sync::{Arc, OnceLock};

/// The tokens that may be drawn, a bit for each: token `i` is bit `i % 32` of word `i / 32`, and what is beyond the last word
/// may not. It may still be being found out, beside the step that it is for.
#[derive(Default)]
pub struct TokenMask {
    words: OnceLock<Option<Box<[u32]>>>,
}

impl TokenMask {
    /// One that is there already.
    #[must_use]
    pub fn known(words: Vec<u32>) -> Self {
        Self { words: OnceLock::from(Some(words.into_boxed_slice())) }
    }

    /// Says what it is, to all who wait for it; `None` if it cannot be found out. Only the first word counts.
    pub fn fill(&self, words: Option<Vec<u32>>) {
        // Whoever came first has said it.
        let _ = self.words.set(words.map(Vec::into_boxed_slice));
    }

    /// The words, once they are there: blocks until then. `None` if they cannot be found out.
    #[must_use]
    pub fn wait(&self) -> Option<&[u32]> {
        self.words.wait().as_deref()
    }

    /// Whether the words are there, or will never be.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.words.get().is_some()
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed = self.words.get().map(|words| words.as_deref().map(count));
        f.debug_struct("TokenMask").field("allowed", &allowed).finish()
    }
}

/// One is equal to itself alone: to compare two would be to wait for them.
impl PartialEq for TokenMask {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

fn count(words: &[u32]) -> u32 {
    words.iter().map(|word| word.count_ones()).sum()
}

/// Whether a mask of these words has this token.
#[must_use]
pub fn is_allowed(words: &[u32], id: u32) -> bool {
    words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
}

/// Whether anything is left to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputState {
    /// More may follow, or must.
    Open,
    /// The output matches, and nothing can follow: the sequence ends with this token.
    Complete,
}

/// What the output of one sequence must match. It is a function of the sequence's tokens alone, and is told of each of them
/// once, in order; what the sequence had generated before it was submitted, it knows.
pub trait OutputConstraint: fmt::Debug + Send {
    /// The tokens that may come next. Asked for once before each draw, at the beginning of the step: what takes long is done
    /// beside the step, and the mask filled with what came of it, whatever that was.
    fn mask(&mut self) -> Arc<TokenMask>;

    /// Takes note of the token that was drawn.
    ///
    /// # Errors
    /// Why the output cannot go on, for people: the mask could not be found out, or the token is not in it.
    fn push(&mut self, id: u32) -> Result<OutputState, String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_too_early_waits_and_the_first_answer_counts() {
        let mask = Arc::new(TokenMask::default());
        let filler = std::thread::spawn({
            let mask = Arc::clone(&mask);
            move || {
                mask.fill(Some(vec![0b101, 1]));
                mask.fill(None);
            }
        });
        let words = mask.wait().expect("known");
        let allowed: Vec<u32> = (0..80).filter(|id| is_allowed(words, *id)).collect();
        assert_eq!(allowed, [0, 2, 32]);
        assert!(mask.is_known());
        filler.join().unwrap();
        assert_eq!(mask.wait(), Some(&[0b101, 1][..]));
        let lost = TokenMask::default();
        assert!(!lost.is_known());
        lost.fill(None);
        assert_eq!(lost.wait(), None);
        assert_ne!(lost, TokenMask::default());
        assert_eq!(format!("{mask:?}"), "TokenMask { allowed: Some(Some(3)) }");
    }
}
