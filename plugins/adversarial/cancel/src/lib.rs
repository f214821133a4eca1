//! Is still at work when its caller leaves: in `route`, `compose`, `constructor`, `chunk` or `finish`, as the request's text
//! says. It computes, and asks the host for the time now and then; with text `wait` it only asks the host, endlessly.

use tenon_sdk::{Action, Chunk, Decision, Ending, Plan, Policy, PostProcessor, Request, Result, Usage, catalog, clock};

/// Few enough for the limit on calls of the host.
const CALLS: u32 = 512;

struct Cancel;

impl Policy for Cancel {
    fn route(request: &Request) -> Result<Decision> {
        if request.text == "wait" {
            loop {
                catalog::adapters()?;
            }
        }
        work_at(&request.text, "route");
        Ok(Decision::Serve)
    }

    fn compose(request: &Request) -> Result<Plan> {
        work_at(&request.text, "compose");
        Ok(Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed())
    }

    fn post_processor(request: &Request) -> Box<dyn PostProcessor> {
        work_at(&request.text, "constructor");
        Box::new(AtWork(request.text.clone()))
    }
}

struct AtWork(String);

impl PostProcessor for AtWork {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        work_at(&self.0, "chunk");
        Ok(vec![Action::Pass])
    }

    fn finish(&mut self, _: &Usage) -> Result<Ending> {
        work_at(&self.0, "finish");
        Ok(Ending { actions: vec![Action::Pass], metadata: Vec::new(), claims: Vec::new() })
    }
}

/// Never returns where it is asked to work.
fn work_at(asked: &str, place: &str) {
    if asked != place {
        return;
    }
    let (mut turns, mut calls) = (0_u64, 0);
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
        if turns.is_multiple_of(1 << 16) && calls < CALLS {
            calls += 1;
            clock::elapsed_ms();
        }
    }
}

tenon_sdk::export_policy!(Cancel);
