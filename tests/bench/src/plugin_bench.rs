//! `bench plugin`: what plugins cost. In reading order: `calls` (in the sandbox, beside the same policy natively), `served` (tokens
//! a second over HTTP), `functions` (thousands of them on one host). Not here: whether they are confined, which tests hold.

mod calls;
mod deploy;
mod functions;
mod native;
mod sandbox;
mod served;

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use model::Base;
use serde_json::json;

use crate::machine::{Machine, repository};
use crate::report::Report;
use crate::statistics::{Bound, Spread};
use crate::{Given, Outcome, mask};

/// How much is measured.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer rounds and 200 functions: some minutes
    #[arg(long)]
    quick: bool,
    /// Rounds of the parts that take turns; 12 by default, 3 with `--quick`
    #[arg(long)]
    rounds: Option<usize>,
    /// Distinct functions on one host; 5000 by default, 200 with `--quick`
    #[arg(long)]
    functions: Option<usize>,
    /// Threads of the engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Components in other languages, as `sdk/check.py` leaves them; `target/sdk/components` by default
    #[arg(long, value_name = "DIR")]
    components: Option<PathBuf>,
    /// The router's policy compiled for this machine; `cargo xtask bench plugin` builds it
    #[arg(long, value_name = "FILE")]
    native: Option<PathBuf>,
}

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Calls in the sandbox
    Calls,
    /// Masks of constrained outputs
    Mask,
    /// Tokens a second over HTTP
    Served,
    /// Thousands of functions
    Functions,
}

/// Measures, prints, writes.
///
/// # Errors
/// If something cannot be measured; a missed bar is no error.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let started = Instant::now();
    let machine = Machine::read();
    println!("{}", machine.line());
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 12 }).max(1);
    let settings = json!({"quick": options.quick, "rounds": rounds, "threads": options.threads});
    let mut report = Report::new("plugin", machine, settings);
    let measured = measure(given, options, rounds, &mut report);
    if let Err(error) = &measured {
        // What was measured before is worth keeping.
        report.row(json!({"failed": error.to_string()}));
    }
    println!("{}", report.summary());
    println!("measured in {:.0} s", started.elapsed().as_secs_f64());
    options.json.as_ref().map_or(Ok(()), |path| report.write(path))?;
    measured
}

fn measure(given: &Given, options: &Options, rounds: usize, report: &mut Report) -> Outcome {
    let has = |part| options.only.is_empty() || options.only.contains(&part);
    let components = options.components.clone().unwrap_or_else(|| repository().join("target/sdk/components"));
    if has(Part::Calls) {
        let (cycles, chunks) = if options.quick { (300, 2000) } else { (1000, 5000) };
        let native = options.native.clone().map_or_else(native::program, Ok)?;
        calls::run(&given.tenon, &native, &components, &calls::Amount { rounds, cycles, chunks }, report)?;
    }
    if has(Part::Mask) {
        masks(given, if options.quick { 1 } else { rounds }, report)?;
    }
    if has(Part::Served) {
        served::run(given, &served::Amount { threads: options.threads, rounds, is_quick: options.quick }, report)?;
    }
    if has(Part::Functions) {
        let functions = options.functions.unwrap_or(if options.quick { 200 } else { 5000 }).max(1);
        functions::run(given, &components, functions, options.threads, report)?;
    }
    Ok(())
}

/// What `bench mask` measures.
fn masks(given: &Given, rounds: usize, report: &mut Report) -> Outcome {
    println!("\n== masks of constrained outputs");
    let base = Base::open(&given.base)?;
    let measured = mask::measure(&base, rounds)?;
    let value = measured.pointer("/later_us/p50").and_then(serde_json::Value::as_f64).map(Spread::exactly);
    report.row(json!({"mask_first_us": measured["first_us"], "mask_later_us": measured["later_us"]}));
    report.bar("a mask, p50 in us", Bound::AtMost(mask::MEDIAN_US_MAX), value.ok_or("no masks"));
    Ok(())
}
