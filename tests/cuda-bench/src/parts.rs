//! The parts, their order and time, and the processes that they run in. Not here: what they measure.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::Value;

use crate::record::Record;
use crate::report::Report;
use crate::{Given, Outcome};
use crate::{cold_load, decode, goldens, limits, lora_alone, red_line, resident, selftest, tax};

/// What a part may overrun its time by before it is ended: it may be in the middle of a round.
const GRACE_SECONDS: f64 = 10.0;
/// What no part may use of the time of all.
pub(crate) const RESERVE_SECONDS: f64 = 3.0;
/// Below it a part is not begun.
const SECONDS_MIN: f64 = 1.0;

/// One part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Bandwidth and matrix peak of the device, which the floors are computed from
    Limits,
    /// Every kernel against its reference
    Selftest,
    /// A tiny base and its adapter against logits of PyTorch
    Goldens,
    /// LoRA's kernels alone, beside PyTorch and Triton
    LoraAlone,
    /// Decode steps of generated bases
    Decode,
    /// 4,096 tokens at once
    Prefill,
    /// What adapters cost in a batch
    AdapterTax,
    /// An adapter from host memory
    ColdLoad,
    /// 2,000 adapters, some of them popular
    Resident,
    /// Adapters and sequences come and go under a ceiling of memory
    RedLine,
}

impl Part {
    /// In the order in which they run: what later ones need first, what takes all that is left last.
    pub(crate) const ALL: [Self; 10] = [
        Self::Limits,
        Self::Selftest,
        Self::Goldens,
        Self::LoraAlone,
        Self::Decode,
        Self::Prefill,
        Self::AdapterTax,
        Self::ColdLoad,
        Self::Resident,
        Self::RedLine,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Limits => "limits",
            Self::Selftest => "selftest",
            Self::Goldens => "goldens",
            Self::LoraAlone => "lora-alone",
            Self::Decode => "decode",
            Self::Prefill => "prefill",
            Self::AdapterTax => "adapter-tax",
            Self::ColdLoad => "cold-load",
            Self::Resident => "resident",
            Self::RedLine => "red-line",
        }
    }

    /// How long it may take.
    pub(crate) const fn seconds(self) -> f64 {
        match self {
            Self::Limits => 45.0,
            Self::Selftest => 30.0,
            Self::Goldens => 10.0,
            Self::LoraAlone => 60.0,
            Self::Decode => 40.0,
            Self::Prefill => 15.0,
            Self::AdapterTax => 40.0,
            Self::ColdLoad => 15.0,
            Self::Resident => 40.0,
            Self::RedLine => 300.0,
        }
    }

    pub(crate) fn run(self, given: &Given, record: &mut Record) -> Outcome {
        match self {
            Self::Limits => limits::run(given, record),
            Self::Selftest => selftest::run(given, record),
            Self::Goldens => goldens::run(record),
            Self::LoraAlone => lora_alone::run(given, record),
            Self::Decode => decode::run(given, record),
            Self::Prefill => decode::run_prefill(given, record),
            Self::AdapterTax => tax::run(given, record),
            Self::ColdLoad => cold_load::run(given, record),
            Self::Resident => resident::run(given, record),
            Self::RedLine => red_line::run(given, record),
        }
    }
}

/// Runs a part in a process of its own, and takes what it records until it ends or its time is over.
pub(crate) fn spawn(part: Part, seconds: f64, tiny: bool, peers: &Path, report: &mut Report) {
    if seconds < SECONDS_MIN {
        return report.failure(part.name(), "no time was left for it");
    }
    let start = Instant::now();
    let outcome = supervise(part, seconds, tiny, peers, report);
    report.duration(part.name(), start.elapsed().as_secs_f64());
    if let Err(error) = outcome {
        report.failure(part.name(), &error.to_string());
    }
}

fn supervise(part: Part, seconds: f64, tiny: bool, peers: &Path, report: &mut Report) -> Outcome {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--part", part.name(), "--limits", &report.limits().to_string()]);
    command.args(["--seconds", &seconds.to_string()]).arg("--peers").arg(peers);
    if tiny {
        command.arg("--tiny");
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (to, lines) = channel();
    let streams: [Option<Box<dyn std::io::Read + Send>>; 2] =
        [child.stdout.take().map(|pipe| Box::new(pipe) as _), child.stderr.take().map(|pipe| Box::new(pipe) as _)];
    for pipe in streams.into_iter().flatten() {
        let to = to.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let _ = to.send(line);
            }
        });
    }
    drop(to);
    let end = Instant::now() + Duration::from_secs_f64(seconds + GRACE_SECONDS);
    let mut last = String::new();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => match record_of(&line) {
                Some((kind, value)) => report.take(part.name(), &kind, value),
                None => {
                    report.said(part.name(), &line);
                    last = line;
                }
            },
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it was ended after {:.0} s; last it said: {last}", seconds + GRACE_SECONDS).into());
            }
        }
    }
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("{status}; last it said: {last}").into()) }
}

/// What a part records is a line of this form; everything else is for whoever watches.
fn record_of(line: &str) -> Option<(String, Value)> {
    let (kind, value) = line.strip_prefix(crate::record::MARK)?.split_once(' ')?;
    Some((kind.to_owned(), serde_json::from_str(value).ok()?))
}
