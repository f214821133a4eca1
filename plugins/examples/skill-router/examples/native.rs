//! The router's policy compiled for this machine, for the bench that compares it with the same policy in the sandbox. A number
//! on a line of standard input is answered with the nanoseconds that so many requests took, each decided and planned, on one
//! line. Not here: the bench (`cargo xtask bench plugin`).

#[path = "../src/lib.rs"]
mod router;

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Instant;

use router::SkillRouter;
use tenon_sdk::testing::{Harness, request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let harness = Harness::new().adapter("iso-date").adapter("sentiment-json").adapter("all-caps");
    let mut request = request("5 December 2008");
    request.max_tokens = Some(48);
    for line in std::io::stdin().lines() {
        let mut answer = String::new();
        for _ in 0..line?.trim().parse::<u32>()? {
            let begun = Instant::now();
            let decision = harness.route::<SkillRouter>(black_box(&request))?;
            let plan = harness.compose::<SkillRouter>(black_box(&request))?;
            black_box((decision, plan));
            write!(answer, "{} ", begun.elapsed().as_nanos())?;
        }
        println!("{}", answer.trim_end());
        std::io::stdout().flush()?;
    }
    Ok(())
}
