//! `tenon doctor`: whether a host would start and serve here, line by line, each with what to do. It writes nothing but a
//! file that it removes again, and asks a running host no more than its health. Not here: what single checks look at.

mod machine;
mod state;

pub(super) use machine::mib;
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Printer, printable};
use crate::config::Config;
use crate::error::Error;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// As it should be.
    Ok,
    /// A host would start, and someone should look.
    Warn,
    /// A host would not start, or not serve.
    Fail,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One line.
#[derive(Debug)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do; empty if nothing is.
    advice: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), advice: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), advice: advice.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), advice: advice.into() }
    }
}

/// Makes all checks that the configuration allows, and prints them.
pub(crate) async fn run(config: Result<Config, Error>, printer: Printer) -> Result<(), Failure> {
    let mut checks = vec![machine::clock(), machine::processor(), machine::gpu()];
    match config {
        Ok(config) => {
            checks.push(Check::ok("configuration", "valid"));
            checks.extend(machine::tls(&config));
            checks.extend(state::directory(&config.data));
            checks.push(state::disk(&config.data));
            let bases = state::base(&config.base).await;
            checks.extend(bases);
            checks.push(machine::memory(&config));
            checks.push(state::sandbox().await);
            let (port, answers) = state::port(&config).await;
            checks.push(port);
            checks.push(state::receipts(&config.data, answers).await);
        }
        Err(error) => {
            let advice = "correct it, and run this again for the other checks";
            checks.push(Check::fail("configuration", super::failure::chain(&error), advice));
            checks.push(state::sandbox().await);
        }
    }
    checks.extend(machine::checkout());
    let worst = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
    let is_sound = worst < Verdict::Fail;
    printer.result(&to_json(&checks, is_sound), |_| checks.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    if is_sound { Ok(()) } else { Err(Failure::Unsound) }
}

fn line(check: &Check) -> String {
    let advice =
        if check.advice.is_empty() { String::new() } else { format!("\n      → {}", printable(&check.advice)) };
    format!("{:<4}  {}: {}{advice}", check.verdict.name(), check.name, printable(&check.found))
}

fn to_json(checks: &[Check], is_sound: bool) -> Value {
    let one = |check: &Check| json!({"name": check.name, "verdict": check.verdict.name(), "found": check.found, "advice": check.advice});
    json!({"object": "list", "ok": is_sound, "data": checks.iter().map(one).collect::<Vec<_>>()})
}
