//! The benches: `engine` (speed, beside llama.cpp with `--peer`), `adapters` (thousands of them), `churn` (they come and go),
//! `soak` (load for a long time), `hostile` (guests that mean harm), `dropped` (callers that leave), `mask` (what a constrained output
//! costs), `plugin` (what plugins cost), `quality` (the fast path against f32). `cargo xtask bench` builds what they need in the release
//! profile and runs this. Each writes JSON with the machine, the commit, rows and bars.
//!
//! Not here: what CI runs; nothing depends on how fast a machine is there.

mod adapter_bench;
mod adapters;
mod calm;
mod cells;
mod churn;
mod curves;
mod dropped;
mod engine_bench;
mod files;
mod hostile;
mod limits;
mod load;
mod machine;
mod mask;
mod memory;
mod mixes;
mod ours;
mod peer;
mod plugin_bench;
mod process;
mod progress;
mod quality;
mod report;
mod rounds;
mod served;
mod soak;
mod stalls;
mod statistics;
mod svg;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A bench either succeeds or says in one line why not. A missed bar is no failure to measure.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Benches of Tenon.
#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Benches of Tenon, in the release profile")]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
    /// The base's file; `cargo xtask bench` gives the demo's
    #[arg(long, global = true, env = "TENON_BASE", value_name = "FILE")]
    base: Option<PathBuf>,
    /// The `tenon` to serve with; beside this program by default
    #[arg(long, global = true, value_name = "FILE")]
    tenon: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Bench {
    /// Prefill, decode, adapters, cost curves and load over HTTP; with `--peer` beside llama.cpp
    Engine(engine_bench::Options),
    /// Thousands of registered adapters, popular and rare ones, under three budgets of memory
    Adapters(adapter_bench::Options),
    /// Adapters are added, used, replaced and removed by many callers at once: no wrong answer, nothing left behind
    Churn(churn::Options),
    /// Mixed load at the admission limit: memory flat, integrity holds, zero wrong answers
    Soak(soak::Options),
    /// Guests that mean harm, again and again, beside neighbours: each ends as it must, and the neighbours hardly notice
    Hostile(hostile::Options),
    /// A hundred thousand calls that are dropped in mid-flight: no panic, nothing left
    Dropped(dropped::Options),
    /// What a mask of a constrained output costs, over the base's vocabulary
    Mask(mask::Options),
    /// What plugins cost: calls in the sandbox, tokens a second over HTTP, thousands of functions on one host
    Plugin(plugin_bench::Options),
    /// How far the fast path is from f32: KL divergence, greedy agreement, log-probabilities of the goldens
    Quality(quality::Options),
}

/// What every bench is given.
pub(crate) struct Given {
    pub(crate) base: PathBuf,
    pub(crate) tenon: PathBuf,
}

impl Given {
    fn of(arguments: &Arguments) -> Outcome<Self> {
        let base = arguments.base.clone().filter(|base| base.is_file());
        let base = base.ok_or("no base: run `cargo xtask bench`, or give the file with --base")?;
        let beside = || std::env::current_exe().map(|this| this.with_file_name("tenon"));
        let tenon = arguments.tenon.clone().map_or_else(beside, Ok)?;
        if !tenon.is_file() {
            return Err(format!("{} is missing: run `cargo xtask bench`", tenon.display()).into());
        }
        Ok(Self { base, tenon })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Given::of(&arguments).and_then(|given| match &arguments.bench {
        Bench::Engine(options) => engine_bench::run(&given, options),
        Bench::Adapters(options) => adapter_bench::run(&given, options),
        Bench::Churn(options) => churn::run(&given, options),
        Bench::Soak(options) => soak::run(&given, options),
        Bench::Hostile(options) => hostile::run(&given, options),
        Bench::Dropped(options) => dropped::run(&given, options),
        Bench::Mask(options) => mask::run(&given, options),
        Bench::Plugin(options) => plugin_bench::run(&given, options),
        Bench::Quality(options) => quality::run(&given, options),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
