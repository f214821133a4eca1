//! How many guesses are worth a row each. Not here: the guesses (`lookup.rs`), and their verification, which is a draw from
//! each row: a draw is a function of (logits, seed, step) alone, so that what speculation changes is time and never a token.

/// When guesses are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeculationConfig {
    /// Guesses of one sequence in one step; 0 turns speculation off.
    pub draft_tokens_max: u32,
    /// What one more row adds to a step of one row, in percent of it. Measured for the runner: a step of n rows takes
    /// 1 + (n − 1) · this. 0 tries every guess.
    pub row_cost_percent: u32,
}

impl Default for SpeculationConfig {
    fn default() -> Self {
        Self { draft_tokens_max: 8, row_cost_percent: 20 }
    }
}

impl SpeculationConfig {
    /// How many guesses of a sequence make the step give the most tokens per time. `acceptance` is the chance that a guess
    /// is right if those before it were; the step has `rows` rows already and gives `tokens` tokens. 0 unless it gains.
    pub(crate) fn drafts(&self, acceptance: f32, rows: usize, tokens: usize, drafts_max: usize) -> usize {
        let drafts_max = drafts_max.min(self.draft_tokens_max as usize);
        if self.row_cost_percent == 0 {
            return drafts_max;
        }
        let row_cost = self.row_cost_percent as f32 / 100.0;
        let (mut tokens, mut time) = (tokens as f32, 1.0 + row_cost * rows.saturating_sub(1) as f32);
        let (mut best, mut best_rate, mut chance) = (0, tokens / time, 1.0);
        for count in 1..=drafts_max {
            chance *= acceptance;
            tokens += chance;
            time += row_cost;
            if tokens / time > best_rate {
                (best, best_rate) = (count, tokens / time);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(row_cost_percent: u32) -> SpeculationConfig {
        SpeculationConfig { draft_tokens_max: 8, row_cost_percent }
    }

    #[test]
    fn a_guess_must_be_worth_its_row() {
        assert_eq!(config(50).drafts(0.0, 1, 1, 8), 0);
        assert_eq!(config(50).drafts(0.45, 1, 1, 8), 0);
        assert_eq!(config(50).drafts(0.55, 1, 1, 8), 1);
        assert!(config(10).drafts(0.55, 1, 1, 8) > 1);
        assert_eq!(config(10).drafts(1.0, 1, 1, 8), 8);
        assert_eq!(config(10).drafts(1.0, 1, 1, 3), 3);
        assert_eq!(config(100).drafts(0.999, 1, 1, 8), 0, "rows that cost a step each are never worth it");
        assert_eq!(config(0).drafts(0.0, 1, 1, 8), 8, "rows that cost nothing always are");
        let off = SpeculationConfig { draft_tokens_max: 0, row_cost_percent: 0 };
        assert_eq!(off.drafts(1.0, 1, 1, 8), 0);
    }

    #[test]
    fn the_fuller_the_step_the_surer_a_guess_must_be() {
        let surest = |rows| (0..=100).find(|percent| config(20).drafts(*percent as f32 / 100.0, rows, rows, 8) > 0);
        let needed: Vec<_> = [1, 2, 4, 16, 64].map(|rows| surest(rows).unwrap_or(101)).to_vec();
        assert!(needed.is_sorted() && needed[0] < 25 && needed[4] > 90, "{needed:?}");
    }
}
