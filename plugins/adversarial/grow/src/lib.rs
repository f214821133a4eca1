//! Takes memory without end, in `route` or (text `chunk`) while it reads along; with text `actions` it returns too many
//! actions.

use tenon_sdk::{Action, Chunk, Decision, Plan, Policy, PostProcessor, Request, Result};

struct Grow;

impl Policy for Grow {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "actions" | "chunk" => Ok(Decision::Serve),
            _ => grow(),
        }
    }

    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()).token_budget(request.max_tokens).post_processed())
    }

    fn post_processor(request: &Request) -> Box<dyn PostProcessor> {
        Box::new(Chatter(request.text.clone()))
    }
}

struct Chatter(String);

impl PostProcessor for Chatter {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        if self.0 == "chunk" {
            grow();
        }
        Ok(vec![Action::Emit("x".to_owned()); 10_000])
    }
}

fn grow() -> ! {
    let mut kept = Vec::new();
    loop {
        kept.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
}

tenon_sdk::export_policy!(Grow);
