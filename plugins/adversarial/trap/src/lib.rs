//! Fails in the way that the request's text names: `panic`, `stack`, `error`, `compose`, `chunk`, `finish`.

use tenon_sdk::{Action, Chunk, Decision, Ending, Plan, Policy, PostProcessor, Request, Result, Usage};

struct Trap;

impl Policy for Trap {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "panic" => panic!("as asked"),
            "stack" => Ok(Decision::Answer(deeper(&[1; 64], 0).to_string())),
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

#[allow(unconditional_recursion, reason = "this guest is here to exhaust the stack")]
fn deeper(numbers: &[u64], depth: u64) -> u64 {
    let mut mine = [depth; 64];
    mine[depth as usize % 64] += numbers[0];
    std::hint::black_box(deeper(std::hint::black_box(&mine), depth + 1)) + mine[1]
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
