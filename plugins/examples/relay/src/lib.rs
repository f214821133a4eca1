//! Hands an answer from one adapter to another in mid-stream: it begins under the one that the configuration names `first`, and
//! after as many chunks as `after` says (4 if it does not) goes on under `second`. Either may be left out: then it is the base's
//! turn. What becomes of the KV of the first part is the manifest's `switch`. With `regex` the whole answer must match that.

use tenon_sdk::{
    Action, Chunk, CompositionEntry, Constraint, Ending, Plan, Policy, PostProcessor, Request, Result, Usage, config,
};

const AFTER_DEFAULT: u32 = 4;

struct Relay;

impl Policy for Relay {
    fn compose(request: &Request) -> Result<Plan> {
        let mut plan = Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed();
        plan.constraint = config::get("regex").map(Constraint::Regex);
        Ok(match config::get("first") {
            Some(first) => plan.adapter(first, 1.0),
            None => plan,
        })
    }

    fn post_processor(_: &Request) -> Box<dyn PostProcessor> {
        let after = config::get("after").and_then(|after| after.parse().ok()).unwrap_or(AFTER_DEFAULT);
        Box::new(Runner { chunks_left: after })
    }
}

struct Runner {
    chunks_left: u32,
}

impl PostProcessor for Runner {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        if self.chunks_left != 1 {
            self.chunks_left = self.chunks_left.saturating_sub(1);
            return Ok(vec![Action::Pass]);
        }
        self.chunks_left = 0;
        let second = config::get("second").into_iter().map(|second| CompositionEntry::whole(second, 1.0));
        Ok(vec![Action::Pass, Action::SwitchComposition(second.collect())])
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        Ok(Ending { actions: vec![], metadata: vec![], claims: vec![] })
    }
}

tenon_sdk::export_policy!(Relay);

#[cfg(test)]
mod tests {
    use tenon_sdk::testing::{Harness, request};

    use super::*;

    #[test]
    fn it_begins_under_the_first_and_passes_everything() {
        let harness = || Harness::new().config("first", "one").config("second", "two").config("after", "2");
        let plan = harness().compose::<Relay>(&request("hi")).unwrap();
        assert_eq!(plan.composition.len(), 1);
        assert_eq!(harness().post_process::<Relay>(&request("hi"), &["a", "b", "c"]).unwrap().0, "abc");
        assert!(Harness::new().compose::<Relay>(&request("hi")).unwrap().composition.is_empty());
    }
}
