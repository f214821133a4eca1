//! Calls the host without end in `route`; with text `chunk`, often at every chunk, but never too often for one call. Each
//! text names another function of the host.

use tenon_sdk::{
    Action, Chunk, Decision, Plan, Policy, PostProcessor, Request, Result, catalog, clock, config, random,
};

struct HostCallFlood;

impl Policy for HostCallFlood {
    fn route(request: &Request) -> Result<Decision> {
        loop {
            match request.text.as_str() {
                "chunk" => return Ok(Decision::Serve),
                "config" => drop(config::all()),
                "random" => drop(random::next()),
                "clock" => drop(clock::unix_seconds()),
                _ => drop(catalog::adapters()?),
            }
        }
    }

    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed())
    }

    fn post_processor(_: &Request) -> Box<dyn PostProcessor> {
        Box::new(FloodEach)
    }
}

struct FloodEach;

impl PostProcessor for FloodEach {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        for _ in 0..1000 {
            clock::elapsed_ms();
        }
        Ok(vec![Action::Pass])
    }
}

tenon_sdk::export_policy!(HostCallFlood);
