//! Takes memory without end; with text `answer` it returns more than a call may, with text `actions` too many actions.

use tenon_sdk::{Action, Chunk, Decision, Plan, Policy, PostProcessor, Request, Result};

struct Grow;

impl Policy for Grow {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "answer" => Ok(Decision::Answer("x".repeat(16 << 20))),
            "actions" => Ok(Decision::Serve),
            _ => {
                let mut kept = Vec::new();
                loop {
                    kept.push(std::hint::black_box(vec![1_u8; 1 << 20]));
                }
            }
        }
    }

    fn compose(request: &Request) -> Result<Plan> {
        Ok(Plan::new(request.prompt()).post_processed())
    }

    fn post_processor(_: &Request) -> Box<dyn PostProcessor> {
        Box::new(Chatter)
    }
}

struct Chatter;

impl PostProcessor for Chatter {
    fn chunk(&mut self, _: &Chunk) -> Result<Vec<Action>> {
        Ok(vec![Action::Emit("x".to_owned()); 10_000])
    }
}

tenon_sdk::export_policy!(Grow);
