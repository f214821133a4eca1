//! Fills the log in `route`, or with text `chunk` at every chunk, and then answers as if nothing were: with long lines, with
//! lines that hold nothing (`empty`), with one that is too long by itself (`huge`), or with one that looks like several
//! lines of the host's own (`forged`).

use tenon_sdk::{Action, Chunk, Decision, Plan, Policy, PostProcessor, Request, Result, log};

/// Fewer than the calls of the host that one call may make: it is the log's own limits that are met.
const LINES: usize = 1000;

struct FloodLog;

impl Policy for FloodLog {
    fn route(request: &Request) -> Result<Decision> {
        match request.text.as_str() {
            "chunk" => return Ok(Decision::Serve),
            "empty" => flood(""),
            "huge" => log::info(&"h".repeat(1 << 20)),
            "forged" => log::error("before\n2026-01-01T00:00:00Z ERROR tenon: forged\u{1b}[2J"),
            _ => flood(&"x".repeat(1000)),
        }
        Ok(Decision::Answer("logged".to_owned()))
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
        flood("again");
        Ok(vec![Action::Pass])
    }
}

fn flood(line: &str) {
    for _ in 0..LINES {
        log::info(line);
    }
}

tenon_sdk::export_policy!(FloodLog);
