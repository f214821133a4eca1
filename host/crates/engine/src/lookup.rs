//! Guesses at a sequence's next tokens from its own earlier ones: where its last few tokens stood before, what followed then
//! is guessed to follow now. Not here: whether a guess is worth its row (`speculation.rs`), and whether it was right, which
//! only the model says.
//!
//! Prompt lookup decoding (Saxena 2023), with an index that is kept as the sequence grows: one entry a token.

/// Tokens that must be equal for a guess.
const GRAM_TOKENS: usize = 3;
/// Entries of an index, at most: 16 KiB.
const ENTRIES_MAX: usize = 4096;
/// How much the newest guess weighs in [`Lookup::acceptance`].
const NEWEST_WEIGHT: f32 = 0.125;

/// The index over one sequence's tokens.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// By a hash of three tokens: the position after where they stood last; 0 for nowhere. A length that is a power of two.
    /// A later one of the same hash takes the entry: an entry is checked before it is believed.
    entries: Vec<u32>,
    /// Where the guess at the next token stands.
    guess: Option<usize>,
    acceptance: f32,
}

impl Lookup {
    /// An index over these tokens, with room for a sequence of `tokens_max`.
    pub(crate) fn new(tokens: &[u32], tokens_max: usize) -> Self {
        let entries = (tokens_max * 2).next_power_of_two().clamp(64, ENTRIES_MAX);
        let mut lookup = Self { entries: vec![0; entries], guess: None, acceptance: 0.0 };
        (1..=tokens.len()).for_each(|end| lookup.extend(tokens.get(..end).unwrap_or_default()));
        lookup
    }

    /// Takes note of the last of these tokens, which is new: whether it was guessed, and what is guessed to follow it.
    pub(crate) fn push(&mut self, tokens: &[u32]) {
        if let (Some(guess), Some((new, before))) = (self.guess, tokens.split_last()) {
            let right = before.get(guess) == Some(new);
            self.acceptance += NEWEST_WEIGHT * (f32::from(u8::from(right)) - self.acceptance);
        }
        self.extend(tokens);
    }

    /// The share of guesses that were right, the newest counting most; 0 before there were any. A guess counts whether or
    /// not a row was spent on it.
    pub(crate) const fn acceptance(&self) -> f32 {
        self.acceptance
    }

    pub(crate) const fn has_guess(&self) -> bool {
        self.guess.is_some()
    }

    /// Guesses at the next `count` tokens; none if the last ones never stood before. What is guessed beyond the end repeats.
    pub(crate) fn draft(&self, tokens: &[u32], count: usize, drafts: &mut Vec<u32>) {
        drafts.clear();
        let Some(guess) = self.guess else { return };
        for place in guess..guess + count {
            let known = tokens.get(place).or_else(|| drafts.get(place.saturating_sub(tokens.len())));
            let Some(&token) = known else { return };
            drafts.push(token);
        }
    }

    fn extend(&mut self, tokens: &[u32]) {
        let Some(gram) = tokens.last_chunk::<GRAM_TOKENS>() else { return };
        let mask = self.entries.len() - 1;
        let Some(entry) = self.entries.get_mut(hash(gram) & mask) else { return };
        let place = *entry as usize;
        let is_same = place >= GRAM_TOKENS && tokens.get(place - GRAM_TOKENS..place) == Some(gram.as_slice());
        self.guess = is_same.then_some(place);
        *entry = u32::try_from(tokens.len()).unwrap_or(0);
    }
}

/// Multiplicative hashing (Knuth); its high bits are the good ones.
fn hash(gram: &[u32; GRAM_TOKENS]) -> usize {
    let mixed = gram
        .iter()
        .fold(0u64, |mixed, token| (mixed.rotate_left(25) ^ u64::from(*token)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed >> 40) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is guessed after these tokens, found in the slowest way: the last place before where the last three stood.
    fn slowly(tokens: &[u32], count: usize) -> Vec<u32> {
        let Some(gram) = tokens.last_chunk::<GRAM_TOKENS>() else { return Vec::new() };
        let found = (GRAM_TOKENS..tokens.len()).rev().find(|end| tokens[end - GRAM_TOKENS..*end] == *gram);
        let mut all = tokens.to_vec();
        found.map_or(Vec::new(), |first| {
            (first..first + count).for_each(|place| all.push(all[place]));
            all.split_off(tokens.len())
        })
    }

    fn drafted(lookup: &Lookup, tokens: &[u32], count: usize) -> Vec<u32> {
        let mut drafts = vec![99];
        lookup.draft(tokens, count, &mut drafts);
        drafts
    }

    #[test]
    fn guesses_are_what_stood_there_last() {
        let mut state = 7u32;
        let mut tokens: Vec<u32> = Vec::new();
        let mut lookup = Lookup::new(&tokens, 2000);
        let (mut guessed, mut missed) = (0, 0);
        for length in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let copy = length > 20 && state >> 28 < 13;
            tokens.push(if copy { tokens[length - 17] } else { state >> 16 & 7 });
            lookup.push(&tokens);
            let (found, expected) = (drafted(&lookup, &tokens, 5), slowly(&tokens, 5));
            if found.is_empty() {
                missed += usize::from(!expected.is_empty());
            } else {
                assert_eq!(found, expected, "after {length}");
                guessed += 1;
            }
        }
        assert!(guessed > 1000 && missed < 200, "{guessed} guesses, {missed} lost to collisions");
    }

    #[test]
    fn a_prompt_is_indexed_and_what_lies_beyond_the_end_repeats() {
        let tokens = [1, 2, 3, 4, 1, 2, 3];
        let lookup = Lookup::new(&tokens, 20);
        assert_eq!(drafted(&lookup, &tokens, 6), [4, 1, 2, 3, 4, 1]);
        assert_eq!(drafted(&Lookup::new(&tokens[..6], 20), &tokens[..6], 6), []);
        assert_eq!(drafted(&Lookup::new(&[5; 4], 20), &[5; 4], 3), [5, 5, 5]);
    }

    #[test]
    fn acceptance_follows_what_came_true_without_spending_a_row() {
        let mut tokens = vec![1, 2, 3];
        let mut lookup = Lookup::new(&tokens, 200);
        for step in 0..60 {
            tokens.push([1, 2, 3][step % 3]);
            lookup.push(&tokens);
        }
        assert!(lookup.acceptance() > 0.99, "{}", lookup.acceptance());
        for token in [9, 1, 2, 3, 8, 1, 2, 3, 7, 1, 2, 3, 6, 1, 2, 3] {
            tokens.push(token);
            lookup.push(&tokens);
        }
        assert!(lookup.acceptance() < 0.9, "{}", lookup.acceptance());
    }
}
