//! Shows post-processing: the answer is held back until its first sentence is complete; then that is sent, in one
//! piece, and the generation ends.

use tenon_sdk::{Action, Chunk, Ending, Pair, Plan, Policy, PostProcessor, Request, Result, Usage};

struct FirstSentence;

impl Policy for FirstSentence {
    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed())
    }

    fn post_processor(_: &Request) -> Box<dyn PostProcessor> {
        Box::new(Held(String::new()))
    }
}

struct Held(String);

impl PostProcessor for Held {
    fn chunk(&mut self, chunk: &Chunk) -> Result<Vec<Action>> {
        self.0 += &chunk.text;
        Ok(match self.0.find(['.', '!', '?']) {
            Some(end) => vec![Action::Replace(self.0[..=end].to_owned()), Action::Stop],
            None => vec![Action::Hold],
        })
    }

    fn finish(&mut self, usage: &Usage) -> Result<Ending> {
        let tokens = Pair { name: "tokens-read".to_owned(), value: usage.completion_tokens.to_string() };
        Ok(Ending { actions: vec![Action::Pass], metadata: vec![tokens.clone()], claims: vec![tokens] })
    }
}

tenon_sdk::export_policy!(FirstSentence);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn one_sentence_is_enough() {
        let read = |chunks: &[&str]| Harness::new().post_process::<FirstSentence>(&request(""), chunks).unwrap().0;
        assert_eq!(read(&["It ", "is. But ", "no."]), "It is.");
        assert_eq!(read(&["no ", "end"]), "no end");
    }
}
