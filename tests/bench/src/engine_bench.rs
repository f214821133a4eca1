//! `bench engine`: everything about speed in one run on one machine. Not here: each part (`limits`, `cells`, `mixes`, `curves`,
//! `served`).

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use model::Base;
use serde_json::json;

use crate::calm::Calm;
use crate::cells::{self, Setting};
use crate::limits::{BaseCost, Limits};
use crate::machine::Machine;
use crate::ours::{Ours, random_adapters};
use crate::peer::{self, Driver, FORMATS, Installed};
use crate::report::Report;
use crate::{Given, Outcome, curves, mixes, served};

/// What is measured, and how long.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure llama.cpp in the same run; the first time installs it, which takes some ten minutes
    #[arg(long)]
    peer: bool,
    /// Install what `--peer` needs, and measure nothing
    #[arg(long)]
    prepare: bool,
    /// Threads of each side
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only what has bars, in fewer rounds: some minutes on an idle machine
    #[arg(long)]
    quick: bool,
    /// Rounds of the interleaved parts, six to sixteen times as many short ones with adapters; 9 by default, 2 with `--quick`; over HTTP 6 and 1
    #[arg(long)]
    rounds: Option<usize>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Write the charts of the cost curves into this folder
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// A part of the bench, besides the machine's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Prefill and decode on the base
    Cells,
    /// Decode with adapters
    Mixes,
    /// Cost by batch, context and adapters
    Curves,
    /// Streams over HTTP
    Served,
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Measures, prints, writes.
///
/// # Errors
/// If something cannot be measured; a missed bar is no error.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let started = Instant::now();
    let base = Base::open(&given.base)?;
    let installed = (options.peer || options.prepare).then(|| peer::ensure(&given.base, base.digest())).transpose()?;
    if options.prepare {
        println!("the peer is ready");
        return Ok(());
    }
    let machine = Machine::read();
    println!("{}", machine.line());
    let source = format!("cargo xtask bench engine, {}", machine.line());
    let settings = json!({"threads": options.threads, "quick": options.quick, "peer": options.peer,
        "rounds": options.rounds});
    let mut report = Report::new("engine", machine, settings);
    let measured = measure(given, options, &base, installed.as_ref(), &source, &mut report);
    if let Err(error) = &measured {
        // What was measured before is worth keeping.
        report.row(json!({"failed": error.to_string()}));
    }
    println!("{}", report.summary());
    println!("measured in {:.0} s", started.elapsed().as_secs_f64());
    options.json.as_ref().map_or(Ok(()), |path| report.write(path))?;
    measured
}

/// All parts that were asked for.
fn measure(
    given: &Given,
    options: &Options,
    base: &Base,
    installed: Option<&Installed>,
    source: &str,
    report: &mut Report,
) -> Outcome {
    println!("\n== the machine's limits");
    let mut calm = Calm::on(options.threads);
    let limits = Limits::measure(options.threads, options.quick, &mut calm);
    limits.rows().into_iter().for_each(|row| report.row(row));
    let cost = BaseCost::of(&given.base, base.config())?;
    let rounds = options.rounds.unwrap_or(if options.quick { 2 } else { 9 }).max(1);
    let is_quick = options.quick;
    let setting = Setting { threads: options.threads, rounds, is_quick, limits: &limits, cost };
    let formats = in_process(base, options, installed, (&setting, &mut calm), source, report)?;
    report.row(json!({"values_taken_again_because_the_machine_was_not_calm": calm.repeated,
        "values_kept_all_the_same": calm.disturbed}));
    drop(calm);
    if options.has(Part::Served) {
        let (rounds, requests_each) = if options.quick { (1, 1) } else { (6, 2) };
        let rounds = options.rounds.unwrap_or(rounds).max(1);
        let amount = served::Amount { threads: options.threads, rounds, requests_each, is_quick };
        let peer = installed.map(|installed| (installed, &formats[..]));
        served::run(given, base.config(), peer, &amount, report)?;
    }
    Ok(())
}

/// The parts within this process, and llama.cpp's beside it; its formats, the fastest first. Their memory is free when the
/// servers start.
fn in_process(
    base: &Base,
    options: &Options,
    installed: Option<&Installed>,
    (setting, calm): (&Setting<'_>, &mut Calm),
    source: &str,
    report: &mut Report,
) -> Outcome<Vec<&'static str>> {
    let mut formats = FORMATS.get(1..).unwrap_or_default().to_vec();
    if ![Part::Cells, Part::Mixes, Part::Curves].into_iter().any(|part| options.has(part)) {
        return Ok(formats);
    }
    let adapters = random_adapters(base, served::ADAPTERS)?;
    let mut ours = Ours::new(base, options.threads, &adapters, curves::KV_TOKENS)?;
    if options.has(Part::Cells) {
        let mut driver = installed.map(|installed| open(installed, report)).transpose()?;
        formats = cells::run(&mut ours, driver.as_mut(), setting, calm, report)?;
    }
    if options.has(Part::Mixes) {
        let mut bare = Ours::new(base, options.threads, &[], curves::KV_TOKENS)?;
        mixes::run(&mut ours, &mut bare, base.config(), setting, calm, report)?;
    }
    if options.has(Part::Curves) {
        let context_tokens_max = base.config().context_tokens_max;
        curves::run(&mut ours, context_tokens_max, options.plots.as_deref(), source, (setting, calm), report)?;
    }
    Ok(formats)
}

/// llama.cpp with the base in every format.
fn open(installed: &Installed, report: &mut Report) -> Outcome<Driver> {
    let mut driver = Driver::start(&installed.python)?;
    report.row(json!({"peer": "llama.cpp", "about": driver.about.clone()}));
    for (name, path) in &installed.models {
        driver.open(name, path)?;
    }
    Ok(driver)
}
