//! What becomes of text after the plugin has seen it: pass, replace, hold, emit, stop. Pure bookkeeping over strings.
//! Not here: calling the plugin.

use types::Action;

use crate::error::Error;

/// Text that a plugin holds back, and whether it has ended the generation.
#[derive(Debug)]
pub(crate) struct PostState {
    held: String,
    held_bytes_max: usize,
}

/// What one round of actions amounts to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PostOutcome {
    /// To be sent now.
    pub(crate) text: String,
    /// Whether the generation is to end.
    pub(crate) stop: bool,
}

impl PostState {
    /// Nothing held; at most this many bytes may be.
    pub(crate) const fn new(held_bytes_max: usize) -> Self {
        Self { held: String::new(), held_bytes_max }
    }

    /// Applies actions to a chunk, in order. Each of `pass`, `replace` and `hold` settles the chunk; what no action
    /// settled is passed.
    ///
    /// # Errors
    /// `unsupported` for a composition switch; `limit_exceeded` when too much is held.
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
                Action::SwitchComposition(_) => {
                    let source = types::PlanError::Unsupported("the action switch-composition");
                    return Err(Error::Plan { source, by_caller: false });
                }
            }
        }
        if let Some(chunk) = chunk {
            out.text.push_str(&std::mem::take(&mut self.held));
            out.text.push_str(chunk);
        }
        Ok(out)
    }

    fn hold(&mut self, chunk: &str) -> Result<(), Error> {
        let bytes = self.held.len() + chunk.len();
        if bytes > self.held_bytes_max {
            let (value, max) = (bytes.to_string(), self.held_bytes_max.to_string());
            let source =
                types::PlanError::OverLimit { what: "text held back in bytes", value, limit: "held_bytes_max", max };
            return Err(Error::Plan { source, by_caller: false });
        }
        self.held.push_str(chunk);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(state: &mut PostState, chunk: &str, actions: &[Action]) -> String {
        state.apply(chunk, actions.to_vec()).expect("applied").text
    }

    #[test]
    fn hold_then_pass_keeps_order() {
        let mut state = PostState::new(100);
        assert_eq!(text(&mut state, "a", &[Action::Hold]), "");
        assert_eq!(text(&mut state, "b", &[Action::Hold]), "");
        assert_eq!(text(&mut state, "c", &[Action::Pass]), "abc");
        assert_eq!(text(&mut state, "d", &[]), "d");
    }

    #[test]
    fn replace_drops_what_is_held() {
        let mut state = PostState::new(100);
        assert_eq!(text(&mut state, "secret", &[Action::Hold]), "");
        let actions = [Action::Replace("***".into()), Action::Emit("!".into())];
        assert_eq!(text(&mut state, "more", &actions), "***!");
        assert_eq!(text(&mut state, "x", &[Action::Emit("<".into()), Action::Pass]), "<x");
    }

    #[test]
    fn stop_keeps_what_was_said() {
        let mut state = PostState::new(100);
        let outcome = state.apply("end", vec![Action::Pass, Action::Stop]).expect("applied");
        assert_eq!(outcome, PostOutcome { text: "end".into(), stop: true });
    }

    #[test]
    fn a_plugin_cannot_hold_without_end() {
        let mut state = PostState::new(4);
        assert!(state.apply("abcd", vec![Action::Hold]).is_ok());
        assert_eq!(state.apply("e", vec![Action::Hold]).expect_err("over").code(), "limit_exceeded");
    }

    #[test]
    fn a_switch_is_unsupported() {
        let error = PostState::new(4).apply("a", vec![Action::SwitchComposition(Vec::new())]).expect_err("no");
        assert_eq!(error.code(), "unsupported");
    }
}
