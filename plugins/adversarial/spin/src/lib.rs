//! Computes without end: in `route`, or where the request's text says: `compose`, `constructor`, `chunk`, `finish`. With text
//! `often` it computes at every chunk for less than a call may, but too long for all of them.

use tenon_sdk::{Action, Chunk, Decision, Ending, Plan, Policy, PostProcessor, Request, Result, Usage};

struct Spin;

impl Policy for Spin {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "compose" | "constructor" | "chunk" | "finish" | "often" => Ok(Decision::Serve),
            _ => spin(),
        }
    }

    fn compose(request: &Request) -> Result<Plan> {
        match request.text.as_str() {
            "compose" => spin(),
            _ => Ok(Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed()),
        }
    }

    fn post_processor(request: &Request) -> Box<dyn PostProcessor> {
        match request.text.as_str() {
            "constructor" => spin(),
            place => Box::new(SpinLater(place.to_owned())),
        }
    }
}

struct SpinLater(String);

impl PostProcessor for SpinLater {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        match self.0.as_str() {
            "chunk" => spin(),
            "often" => turn(10_000_000),
            _ => {}
        }
        Ok(vec![Action::Pass])
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        if self.0 == "finish" {
            spin();
        }
        Ok(Ending { actions: vec![Action::Pass], metadata: Vec::new(), claims: Vec::new() })
    }
}

fn spin() -> ! {
    loop {
        turn(u64::MAX);
    }
}

fn turn(turns: u64) {
    for turn in 0..turns {
        std::hint::black_box(turn);
    }
}

tenon_sdk::export_policy!(Spin);
