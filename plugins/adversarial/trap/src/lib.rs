//! Fails in the way that the request's text names: `panic`, `error`, `compose`, `constructor`, `chunk`, `finish`, and
//! `stop` in `finish` after the first chunk was passed and the generation stopped.

use tenon_sdk::{Action, Chunk, Decision, Ending, Plan, Policy, PostProcessor, Request, Result, Usage};

struct Trap;

impl Policy for Trap {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "panic" => panic!("as asked"),
            "error" => Err("a fault of my own".into()),
            _ => Ok(Decision::Serve),
        }
    }

    fn compose(request: &Request) -> Result<Plan> {
        assert_ne!(request.text, "compose");
        Ok(Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed())
    }

    fn post_processor(request: &Request) -> Box<dyn PostProcessor> {
        assert_ne!(request.text, "constructor");
        Box::new(TrapLater(request.text.clone()))
    }
}

struct TrapLater(String);

impl PostProcessor for TrapLater {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        assert_ne!(self.0, "chunk");
        let stop = (self.0 == "stop").then_some(Action::Stop);
        Ok([Action::Pass].into_iter().chain(stop).collect())
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        assert!(!["finish", "stop"].contains(&self.0.as_str()));
        Ok(Ending { actions: vec![Action::Pass], metadata: Vec::new(), claims: Vec::new() })
    }
}

tenon_sdk::export_policy!(Trap);
