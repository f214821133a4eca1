//! Which tokens of a sequence were asked and which were drawn, for a runner that computes the two in different ways
//! ([`ModelRunner::separates_prompts`](crate::ModelRunner::separates_prompts)). It is a property of the token, not of the step
//! that computes it: a drawn token stays one when its KV has to be computed again. Not here: who computes them how.

use std::ops::Range;

/// Where the kind changes. The first token was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kinds {
    /// Ascending; what is drawn begins at the first one, ends at the second, and so on.
    changes: Vec<usize>,
}

impl Kinds {
    /// All tokens are of one kind.
    pub(crate) const ONE: Self = Self { changes: Vec::new() };

    /// Those of these ranges were drawn before, ascending and apart; those from `prompt_tokens` on are drawn.
    pub(crate) fn new(drawn: &[Range<u32>], prompt_tokens: usize) -> Self {
        let mut changes: Vec<usize> = Vec::new();
        let before = drawn
            .iter()
            .map(|range| (range.start as usize).min(prompt_tokens)..(range.end as usize).min(prompt_tokens));
        for range in before.filter(|range| !range.is_empty()).chain(std::iter::once(prompt_tokens..usize::MAX)) {
            match changes.last() {
                // One range after the other is one range.
                Some(last) if *last >= range.start => *changes.last_mut().unwrap_or(&mut 0) = range.end.max(*last),
                _ => changes.extend([range.start, range.end]),
            }
        }
        // The last range has no end.
        changes.pop();
        Self { changes }
    }

    /// Whether the token at this position was drawn.
    pub(crate) fn is_drawn(&self, position: usize) -> bool {
        self.changes.partition_point(|change| *change <= position) % 2 == 1
    }

    /// How many tokens from this position on are of one kind.
    pub(crate) fn alike_from(&self, position: usize) -> usize {
        let next = self.changes.partition_point(|change| *change <= position);
        self.changes.get(next).map_or(usize::MAX, |next| next - position)
    }

    /// Positions at which the kind is another than before, ascending.
    pub(crate) fn changes(&self) -> &[usize] {
        self.changes.strip_prefix(&[0]).unwrap_or(&self.changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_the_kind_of_its_range() {
        let (one, long) = (2..4, 3..9);
        let ranges: [&[Range<u32>]; 6] = [&[], &[one], &[0..3, 5..6], &[0..2, 2..4], &[long], &[4..4, 7..20]];
        for drawn in ranges {
            for prompt_tokens in 1..10 {
                let kinds = Kinds::new(drawn, prompt_tokens);
                let is_drawn =
                    |at: usize| at >= prompt_tokens || drawn.iter().any(|range| range.contains(&(at as u32)));
                for at in 0..14 {
                    assert_eq!(kinds.is_drawn(at), is_drawn(at), "{drawn:?} {prompt_tokens} {at}");
                    let alike = (at..30).take_while(|other| is_drawn(*other) == is_drawn(at)).count();
                    assert_eq!(kinds.alike_from(at).min(30 - at), alike, "{drawn:?} {prompt_tokens} {at}");
                }
                let changes: Vec<usize> = (1..14).filter(|at| is_drawn(*at) != is_drawn(at - 1)).collect();
                assert_eq!(kinds.changes(), changes, "{drawn:?} {prompt_tokens}");
            }
        }
        assert!(!Kinds::ONE.is_drawn(7) && Kinds::ONE.alike_from(7) == usize::MAX);
    }
}
