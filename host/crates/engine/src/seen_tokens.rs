//! The tokens that penalties fall on, counted as a sequence grows: one lookup a token, no recount. Not here: what a
//! penalty does to a logit, which is the runner's sampler.

use std::collections::HashMap;

use types::Sampling;

/// A token of a sequence whose logit is penalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenToken {
    /// Its number in the vocabulary.
    pub id: u32,
    /// How often it is in the output; 0 if only in the prompt.
    pub output_count: u32,
}

/// Every distinct token, in the order in which it was first seen.
#[derive(Debug)]
pub(crate) struct SeenTokens {
    tokens: Vec<SeenToken>,
    /// Where each lies in `tokens`.
    places: HashMap<u32, usize>,
}

impl SeenTokens {
    /// Those of a sequence that begins; `None` if its sampling has no penalty.
    pub(crate) fn new(sampling: &Sampling, prompt: &[u32]) -> Option<Self> {
        let of_prompt = sampling.repetition_penalty != 1.0;
        let of_output = sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        if !of_prompt && !of_output {
            return None;
        }
        let mut seen = Self { tokens: Vec::new(), places: HashMap::new() };
        if of_prompt {
            for id in prompt {
                seen.entry(*id);
            }
        }
        Some(seen)
    }

    /// One more token of the output.
    pub(crate) fn push(&mut self, id: u32) {
        if let Some(token) = self.entry(id) {
            token.output_count = token.output_count.saturating_add(1);
        }
    }

    pub(crate) fn as_slice(&self) -> &[SeenToken] {
        &self.tokens
    }

    fn entry(&mut self, id: u32) -> Option<&mut SeenToken> {
        let next = self.tokens.len();
        let place = *self.places.entry(id).or_insert(next);
        if place == next {
            self.tokens.push(SeenToken { id, output_count: 0 });
        }
        self.tokens.get_mut(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_tokens_count_for_repetition_only() {
        let pairs = |seen: &SeenTokens| seen.as_slice().iter().map(|t| (t.id, t.output_count)).collect::<Vec<_>>();
        let mut all =
            SeenTokens::new(&Sampling { repetition_penalty: 1.1, ..Sampling::default() }, &[5, 3, 5]).unwrap();
        [3, 7, 7].into_iter().for_each(|id| all.push(id));
        assert_eq!(pairs(&all), [(5, 0), (3, 1), (7, 2)]);
        let mut output =
            SeenTokens::new(&Sampling { presence_penalty: 0.5, ..Sampling::default() }, &[5, 3, 5]).unwrap();
        [3, 7, 7].into_iter().for_each(|id| output.push(id));
        assert_eq!(pairs(&output), [(3, 1), (7, 2)]);
        assert!(SeenTokens::new(&Sampling::default(), &[5, 3, 5]).is_none());
    }
}
