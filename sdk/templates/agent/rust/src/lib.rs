//! {{name}}: an agent that answers an empty text by itself, and otherwise has the model answer twice from one prompt and sends the
//! longer answer, under the adapter that the configuration's `adapter` names, if any. Not here: the host, which is `tenon`.

use tenon_sdk::agent::{Bounds, Opening, Session};
use tenon_sdk::{Agent, Answer, Request, Result, Sampling, config, random};

/// Tokens of an answer, if the caller asks for none.
const TOKENS: u32 = 64;

struct Plugin;

impl Agent for Plugin {
    fn run(request: &Request) -> Result<Answer> {
        if request.text.trim().is_empty() {
            return Ok(Answer::text("Say something."));
        }
        let mut opening = Opening::new(request.prompt());
        if let Some(adapter) = config::get("adapter") {
            opening = opening.adapter(adapter, 1.0);
        }
        let start = Session::open(&opening)?;
        let mut longer = String::new();
        for _ in 0..2 {
            // Each has a fork of the one session, whose prompt is computed once.
            let sampling = Sampling { temperature: 0.8, seed: Some(random::next()), ..Sampling::default() };
            let bounds = Bounds { sampling: Some(sampling), ..Bounds::tokens(request.max_tokens.unwrap_or(TOKENS)) };
            let text = start.fork()?.generate(&bounds)?.text;
            if text.len() > longer.len() {
                longer = text;
            }
        }
        Ok(Answer::text(longer))
    }
}

tenon_sdk::export_agent!(Plugin);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn the_longer_of_two_answers_is_sent() {
        let harness = Harness::new().says("short", -1.0).says("a longer one", -1.0);
        let (text, _) = harness.run::<Plugin>(&request("hello")).unwrap();
        assert_eq!(text, "a longer one");
        assert_eq!(harness.prompts().len(), 2);
    }

    #[test]
    fn nothing_is_answered_by_itself() {
        let harness = Harness::new();
        let (text, _) = harness.run::<Plugin>(&request(" ")).unwrap();
        assert_eq!(text, "Say something.");
        assert!(harness.prompts().is_empty());
    }
}
