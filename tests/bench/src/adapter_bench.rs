//! `bench adapters`: thousands of registered adapters, some of them asked for far more often than others, under budgets of
//! memory that hold all, half and a quarter of them; and what the first use of one costs. In reading order: `population` (how
//! they get there), `popularity` (who is asked for), `traffic` (the load), `cold` (single first uses), `scratch` (the disk).
//! Not here: whether answers are right, which is `churn`'s and `soak`'s.
//!
//! All budgets see the same requests in the same order. The first budget is measured twice, before and after the others: how far
//! it is from itself (A/A) is how far two budgets may be apart for no reason at all.

mod cold;
mod popularity;
mod population;
mod scratch;
mod traffic;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use model::Base;
use serde_json::json;

use crate::load::Http;
use crate::machine::Machine;
use crate::memory;
use crate::report::{Report, rounded, spread_json};
use crate::statistics::{Bound, Spread};
use crate::{Given, Outcome};

use population::Population;
use scratch::Scratch;
use traffic::{Run, Traffic};

/// How much is measured.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// 200 adapters and few requests: some minutes
    #[arg(long)]
    quick: bool,
    /// Registered adapters; 5000 by default, 200 with `--quick`
    #[arg(long)]
    adapters: Option<usize>,
    /// Requests for each budget; 3000 by default, 300 with `--quick`
    #[arg(long)]
    requests: Option<usize>,
    /// Single first uses, each beside two that are none; 60 by default, 15 with `--quick`
    #[arg(long)]
    rounds: Option<usize>,
    /// Threads of the engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Makes popularity and requests others
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep the adapters below this folder while measuring: 2.5 MB of disk for each; a temporary one by default
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Requests at once.
const CONCURRENT: usize = 16;
/// Budgets of host memory, as shares of all packed bytes. The first one again at the end.
const BUDGETS: [(&str, f64); 4] = [("1x", 1.0), ("0.5x", 0.5), ("0.25x", 0.25), ("1x again", 1.0)];
/// Parts of a run whose 99th percentiles are compared one by one.
const BLOCKS: usize = 9;
/// Points of a row's curve of memory.
const MEMORY_POINTS: usize = 40;

const COLD_MS_BAR: f64 = 10.0;
const P99_BAR: f64 = 3.0;
const MEMORY_BAR: f64 = 0.05;

/// Registers, measures, prints, writes; what was written to disk is removed.
///
/// # Errors
/// If something cannot be measured; a missed bar is no error.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let started = Instant::now();
    let machine = Machine::read();
    println!("{}", machine.line());
    let adapters = options.adapters.unwrap_or(if options.quick { 200 } else { 5000 });
    let requests = options.requests.unwrap_or(if options.quick { 300 } else { 3000 });
    let rounds = options.rounds.unwrap_or(if options.quick { 15 } else { 60 });
    if adapters < cold::WARM + rounds + 1 || requests < BLOCKS * 10 {
        return Err(format!(
            "with {rounds} rounds take {} adapters at least, and 90 requests",
            cold::WARM + rounds + 1
        )
        .into());
    }
    let settings = json!({"adapters": adapters, "requests": requests, "rounds": rounds, "threads": options.threads,
        "concurrent": CONCURRENT, "popularity": "Zipf 1.0", "seed": options.seed, "quick": options.quick});
    let mut report = Report::new("adapters", machine, settings);
    let measured = measure(given, options, (adapters, requests, rounds), &mut report);
    if let Err(error) = &measured {
        // What was measured before is worth keeping.
        report.row(json!({"failed": error.to_string()}));
    }
    println!("{}", report.summary());
    println!("measured in {:.0} s", started.elapsed().as_secs_f64());
    options.json.as_ref().map_or(Ok(()), |path| report.write(path))?;
    measured
}

fn measure(
    given: &Given,
    options: &Options,
    (adapters, requests, rounds): (usize, usize, usize),
    report: &mut Report,
) -> Outcome {
    let (http, base) = (Http::new()?, Base::open(&given.base)?);
    let scratch = Scratch::new(options.data.as_deref(), adapters)?;
    println!("\n== {adapters} adapters are registered and packed");
    let population = Population::build(given, &http, &base, &scratch.data(), (adapters, options.threads), report)?;

    println!("\n== single first uses");
    let cold = cold::measure(&population, &http, rounds, population::DISK_BYTES_MAX, report)?;
    report.bar("first use of a packed adapter: milliseconds that it adds", Bound::AtMost(COLD_MS_BAR), cold);
    // How it would be without packed files; the bar is not about that.
    if let Err(why) = cold::measure(&population, &http, rounds, 0, report)? {
        report.row(json!({"first_use": "packed anew", "not_measured": why}));
    }

    let traffic = Traffic::new(adapters, requests, options.seed);
    report.row(json!({"distinct_adapters_asked_for": traffic.distinct(), "of": adapters, "requests": requests}));
    let mut runs = Vec::new();
    for (name, share) in BUDGETS {
        println!("\n== memory for {name} of the packed bytes");
        let run = traffic.run(&population, &http, share)?;
        row(name, &run, report);
        runs.push((name, run));
    }
    bars(&runs, report);
    Ok(())
}

fn row(name: &str, run: &Run, report: &mut Report) {
    let rate = |hits: f64, misses: f64| rounded(hits / (hits + misses));
    report.row(json!({
        "budget": name, "budget_mb": rounded(run.budget_bytes as f64 / 1e6), "requests": run.requests(),
        "requests_per_s": rounded(run.requests() as f64 / run.seconds), "tokens_per_s": rounded(run.tokens as f64 / run.seconds),
        "first_token_p50_ms": rounded(run.first_token(0.5) * 1e3), "first_token_p99_ms": rounded(run.first_token(0.99) * 1e3),
        "first_token_max_ms": rounded(run.first_token(1.0) * 1e3),
        "memory_hit_rate": rate(run.memory_hits, run.memory_misses), "disk_hit_rate": rate(run.disk_hits, run.disk_misses),
        "loads_per_s": rounded((run.disk_hits + run.disk_misses) / run.seconds),
        "cache_mb_at_end": rounded(run.cache_bytes / 1e6), "page_cache_dropped_mb": rounded(run.dropped_bytes / 1e6),
    }));
    report.row(json!({"budget": name, "resident_mb_by_second": memory::outline(&run.memory, MEMORY_POINTS)}));
}

fn bars(runs: &[(&'static str, Run)], report: &mut Report) {
    let blocks = |wanted: &str| {
        let run = runs.iter().find(|(name, _)| *name == wanted).map(|(_, run)| run);
        run.map(|run| run.block_p99s(BLOCKS)).unwrap_or_default()
    };
    let (all, again) = (blocks("1x"), blocks("1x again"));
    // Against both runs of the first budget: one before, one after.
    let both: Vec<f64> = all.iter().zip(&again).map(|(one, two)| f64::midpoint(*one, *two)).collect();
    let control = Spread::of_median_ratio(&again, &all);
    for name in ["0.5x", "0.25x"] {
        let ratio = Spread::of_median_ratio(&blocks(name), &both);
        let ratio = ratio.zip(control).map(|(ratio, control)| ratio.widened_by(control));
        report.row(json!({"first_token_p99_over_that_at_1x": spread_json(ratio), "budget": name,
            "control_a_a": spread_json(control)}));
        if name == "0.25x" {
            let name = "p99 time to first token at 0.25x over that at 1x";
            report.bar(name, Bound::AtMost(P99_BAR), ratio.ok_or("no requests"));
        }
    }
    for (name, run) in runs {
        let deviation = memory::largest_deviation(&run.memory).map(Spread::exactly);
        let name = format!("resident memory at {name}: largest deviation from its median, as a share");
        report.bar(&name, Bound::AtMost(MEMORY_BAR), deviation.ok_or("too few samples"));
    }
}
