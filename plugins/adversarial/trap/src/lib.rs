//! Fails in the way that the request's text names: `panic`, `stack`, `error`, `compose`, `chunk`, `finish`.

use tenon_sdk::{Action, Chunk, Decision, Ending, Plan, Policy, PostProcessor, Request, Result, Usage};

struct Trap;

impl Policy for Trap {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "panic" => panic!("as asked"),
            "stack" => Ok(Decision::Answer(deeper(request.version.into()).to_string())),
            "error" => Err("a fault of my own".into()),
            _ => Ok(Decision::Serve),
        }
    }

    fn compose(request: &Request) -> Result<Plan> {
        assert_ne!(request.text, "compose");
        Ok(Plan::new(request.prompt()).post_processed())
    }

    fn post_processor(request: &Request) -> Box<dyn PostProcessor> {
        Box::new(TrapLater(request.text.clone()))
    }
}

/// Nothing of it lives in linear memory, so that it is the engine's stack that ends.
#[inline(never)]
fn deeper(depth: u64) -> u64 {
    if depth == u64::MAX { 0 } else { deeper(depth + 1).wrapping_mul(31) ^ depth }
}

struct TrapLater(String);

impl PostProcessor for TrapLater {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        assert_ne!(self.0, "chunk");
        Ok(vec![Action::Pass])
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        assert_ne!(self.0, "finish");
        Ok(Ending { actions: vec![Action::Pass], metadata: Vec::new(), claims: Vec::new() })
    }
}

tenon_sdk::export_policy!(Trap);
