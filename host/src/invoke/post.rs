//! What becomes of text after the plugin has seen it: pass, replace, hold, emit, stop. Pure bookkeeping over strings.
//! Not here: calling the plugin.

use types::{Action, PlanEntry, PlanError, PlanLimits};

use crate::error::Error;

/// Text that a plugin holds back, and whether it has ended the generation.
#[derive(Debug)]
pub(crate) struct PostState {
    held: String,
    held_bytes_max: usize,
    /// Bytes that may be sent still.
    answer_bytes_left: usize,
    answer_bytes_max: usize,
}

/// What one round of actions amounts to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct PostOutcome {
    /// To be sent now.
    pub(crate) text: String,
    /// Whether the generation is to end.
    pub(crate) stop: bool,
    /// The composition to go on under.
    pub(crate) switch: Option<Vec<PlanEntry>>,
}

impl PostState {
    /// Nothing held and nothing sent, within these limits.
    pub(crate) const fn new(limits: &PlanLimits) -> Self {
        let answer_bytes_max = limits.answer_bytes_max;
        Self {
            held: String::new(),
            held_bytes_max: limits.held_bytes_max,
            answer_bytes_left: answer_bytes_max,
            answer_bytes_max,
        }
    }

    /// Applies actions to a chunk, in order. Each of `pass`, `replace` and `hold` settles the chunk; what no action
    /// settled is passed.
    ///
    /// # Errors
    /// `limit_exceeded` when too much is held or sent.
    pub(crate) fn apply(&mut self, chunk: &str, actions: Vec<Action>) -> Result<PostOutcome, Error> {
        let mut out = PostOutcome::default();
        let mut chunk = Some(chunk);
        for action in actions {
            match action {
                Action::Pass => {
                    out.text.push_str(&std::mem::take(&mut self.held));
                    out.text.push_str(chunk.take().unwrap_or_default());
                }
                Action::Replace(text) => {
                    self.held.clear();
                    chunk = None;
                    out.text.push_str(&text);
                }
                Action::Hold => self.hold(chunk.take().unwrap_or_default())?,
                Action::Emit(text) => out.text.push_str(&text),
                Action::Stop => out.stop = true,
                Action::SwitchComposition(entries) => out.switch = Some(entries),
            }
        }
        if let Some(chunk) = chunk {
            out.text.push_str(&std::mem::take(&mut self.held));
            out.text.push_str(chunk);
        }
        let left = self.answer_bytes_left.checked_sub(out.text.len());
        self.answer_bytes_left = left.ok_or_else(|| {
            let bytes = self.answer_bytes_max - self.answer_bytes_left + out.text.len();
            over("the plugin's answer in bytes", bytes, "answer_bytes_max", self.answer_bytes_max)
        })?;
        Ok(out)
    }

    fn hold(&mut self, chunk: &str) -> Result<(), Error> {
        let bytes = self.held.len() + chunk.len();
        if bytes > self.held_bytes_max {
            return Err(over("the text held back in bytes", bytes, "held_bytes_max", self.held_bytes_max));
        }
        self.held.push_str(chunk);
        Ok(())
    }
}

/// A plugin that answers with too much.
pub(crate) fn over(what: &'static str, bytes: usize, limit: &'static str, max: usize) -> Error {
    let source = PlanError::OverLimit { what, value: bytes.to_string(), limit, max: max.to_string() };
    Error::Plan { source, by_caller: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(held_bytes_max: usize) -> PostState {
        PostState::new(&PlanLimits { held_bytes_max, answer_bytes_max: 10, ..PlanLimits::default() })
    }

    fn text(state: &mut PostState, chunk: &str, actions: &[Action]) -> String {
        state.apply(chunk, actions.to_vec()).expect("applied").text
    }

    #[test]
    fn hold_then_pass_keeps_order() {
        let mut state = holding(100);
        assert_eq!(text(&mut state, "a", &[Action::Hold]), "");
        assert_eq!(text(&mut state, "b", &[Action::Hold]), "");
        assert_eq!(text(&mut state, "c", &[Action::Pass]), "abc");
        assert_eq!(text(&mut state, "d", &[]), "d");
    }

    #[test]
    fn replace_drops_what_is_held() {
        let mut state = holding(100);
        assert_eq!(text(&mut state, "secret", &[Action::Hold]), "");
        let actions = [Action::Replace("***".into()), Action::Emit("!".into())];
        assert_eq!(text(&mut state, "more", &actions), "***!");
        assert_eq!(text(&mut state, "x", &[Action::Emit("<".into()), Action::Pass]), "<x");
    }

    #[test]
    fn stop_keeps_what_was_said() {
        let mut state = holding(100);
        let outcome = state.apply("end", vec![Action::Pass, Action::Stop]).expect("applied");
        assert_eq!(outcome, PostOutcome { text: "end".into(), stop: true, switch: None });
    }

    #[test]
    fn a_plugin_cannot_hold_without_end() {
        let mut state = holding(4);
        assert!(state.apply("abcd", vec![Action::Hold]).is_ok());
        assert_eq!(state.apply("e", vec![Action::Hold]).expect_err("over").code(), "limit_exceeded");
    }

    #[test]
    fn a_plugin_cannot_answer_without_end() {
        let mut state = holding(100);
        assert_eq!(text(&mut state, "12345678", &[]), "12345678");
        assert_eq!(text(&mut state, "9", &[Action::Emit("0".into()), Action::Hold]), "0");
        let error = state.apply("", vec![Action::Emit("xy".into())]).expect_err("9 + 1 + 2, and what is held");
        assert!(error.to_string().contains("is 12, over the limit answer_bytes_max of 10"), "{error}");
    }

    #[test]
    fn the_last_switch_counts() {
        let entry = |name: &str| vec![PlanEntry::whole(name, 1.0)];
        let actions = vec![Action::SwitchComposition(entry("one")), Action::SwitchComposition(entry("two"))];
        let outcome = holding(4).apply("a", actions).expect("applied");
        assert_eq!(outcome, PostOutcome { text: "a".into(), stop: false, switch: Some(entry("two")) });
    }
}
