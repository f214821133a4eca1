//! `bench soak`: mixed load at the admission limit for a long time. Every answer is compared with the same request's answer
//! when it was alone on a server of its own; memory must stay flat; in the end nothing may be left in use. Not here: speed.

pub(crate) mod requests;
mod workers;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use model::Base;
use serde_json::json;

use crate::adapters::RandomAdapter;
use crate::load::Http;
use crate::machine::Machine;
use crate::memory::{self, Memory};
use crate::process::Server;
use crate::report::{Report, rounded};
use crate::statistics::{Bound, Spread};
use crate::{Given, Outcome};

use requests::{Template, templates};
use workers::Counts;

/// How long, and how much.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How long the load lasts
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// An hour
    #[arg(long, conflicts_with = "minutes")]
    long: bool,
    /// Threads of the engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Callers at once: more than the server takes
    #[arg(long, default_value_t = 64)]
    callers: usize,
}

/// Adapters on the server: more than its slots.
const ADAPTERS: usize = 12;
const SLOTS: usize = 8;
/// Requests that may wait: few, so that callers are refused.
const WAITING_MAX: usize = 24;
/// Blocks for keys and values: too few for all that runs, so that sequences are set back.
const KV_BLOCKS: usize = 320;
/// The second half of the run may add this share to the memory, by the line through its samples.
const GROWTH_MAX: f64 = 0.02;
/// After the last answer everything must be given back within this time.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Times the slowest request alone: what a request under load may take.
const DEADLINE_FACTOR: f64 = 8.0;

/// Runs the load, prints, writes.
///
/// # Errors
/// If a server does not come up or nothing can be measured; a missed bar is no error.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let minutes = if options.long { 60.0 } else { options.minutes };
    let machine = Machine::read();
    println!("{}", machine.line());
    let settings = json!({"minutes": minutes, "threads": options.threads, "callers": options.callers,
        "kv_blocks": KV_BLOCKS, "adapter_slots": SLOTS, "adapters": ADAPTERS, "queue_requests_max": WAITING_MAX});
    let mut report = Report::new("soak", machine, settings);
    let http = Http::new()?;
    let base = Base::open(&given.base)?;

    println!("\n== each request alone");
    let mut templates = templates(ADAPTERS);
    let slowest = answer_alone(given, options, &http, &base, &mut templates)?;
    let (answers, bytes) = requests::distinct_answers(&templates);
    report.row(json!({"requests_alone": templates.len(), "slowest_s": rounded(slowest.as_secs_f64()),
        "distinct_answers": answers, "answer_bytes": bytes}));
    report.bar("distinct answers among the requests alone", Bound::AtLeast(24.0), Ok(Spread::exactly(answers as f64)));

    println!("\n== {minutes} minutes of load");
    let deadline = slowest.mul_f64(DEADLINE_FACTOR).max(Duration::from_secs(5));
    let mut server = start(given, options, &http, &base, Some(deadline))?;
    let memory = Memory::watch(server.pid());
    let length = Duration::from_secs_f64(minutes * 60.0);
    let counts = workers::run(&http, &server.target, &templates, options.callers, length, deadline)?;
    let samples = memory.stop();
    report.row(counts.json());
    let idle = wait_until_idle(&http, &server)?;
    report.row(json!({"at_idle": idle.0, "after_s": rounded(idle.1.as_secs_f64())}));
    let still_runs = server.is_running();
    let panics = server.log().matches("panicked").count();
    bars(&counts, &samples, &idle.0, (still_runs, panics), &mut report);
    println!("{}", report.summary());
    options.json.as_ref().map_or(Ok(()), |path| report.write(path))
}

/// A server with its adapters. Under load it is short of everything; alone it is not.
fn start(given: &Given, options: &Options, http: &Http, base: &Base, deadline: Option<Duration>) -> Outcome<Server> {
    let mut settings = vec![("THREADS", options.threads.to_string())];
    if let Some(deadline) = deadline {
        settings.push(("KV_BLOCKS", KV_BLOCKS.to_string()));
        settings.push(("ADAPTER_SLOTS", SLOTS.to_string()));
        settings.push(("QUEUE_REQUESTS_MAX", WAITING_MAX.to_string()));
        settings.push(("LIMITS__DEADLINE_MS_MAX", deadline.as_millis().to_string()));
    }
    let server = Server::tenon(http, &given.tenon, &given.base, &settings)?;
    for number in 0..ADAPTERS {
        server.upload(http, &RandomAdapter::new(number as u64, base.config()), number)?;
    }
    Ok(server)
}

/// Fills in what each request answers when nothing else runs; the time of the slowest.
fn answer_alone(
    given: &Given,
    options: &Options,
    http: &Http,
    base: &Base,
    templates: &mut [Template],
) -> Outcome<Duration> {
    let server = start(given, options, http, base, None)?;
    let mut slowest = Duration::ZERO;
    for template in templates {
        let started = Instant::now();
        let (status, body) = http.post(&server.target, template.path(), &template.body(false))?;
        if status != 200 {
            return Err(format!("{} alone: {status} {body}", template.path()).into());
        }
        template.expect(&body)?;
        slowest = slowest.max(started.elapsed());
    }
    Ok(slowest)
}

/// What the metrics say once nothing runs any more, or at the end of our patience; and when that was.
fn wait_until_idle(http: &Http, server: &Server) -> Outcome<(serde_json::Value, Duration)> {
    let started = Instant::now();
    loop {
        let (_, text) = http.get(&server.target, "/metrics")?;
        let value = |name: &str| requests::metric(&text, name);
        let (running, waiting) = (value("vllm:num_requests_running"), value("vllm:num_requests_waiting"));
        let (kv, leases) = (value("vllm:kv_cache_usage_perc"), value("tenon_adapter_leases"));
        let is_idle = [running, waiting, kv].into_iter().all(|value| value == Some(0.0));
        if is_idle || started.elapsed() > IDLE_MAX {
            let found = json!({"running": running, "waiting": waiting, "kv_used": kv, "adapter_leases": leases,
                "preemptions": value("tenon_preemptions_total"), "steps": value("tenon_engine_steps_total")});
            return Ok((found, started.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn bars(
    counts: &Counts,
    samples: &[(f64, f64)],
    idle: &serde_json::Value,
    (still_runs, panics): (bool, usize),
    report: &mut Report,
) {
    let count = |value: usize| Ok(Spread::exactly(value as f64));
    report.bar("wrong answers", Bound::AtMost(0.0), count(counts.wrong));
    report.bar("errors that no limit explains", Bound::AtMost(0.0), count(counts.unexpected));
    report.bar("answers compared", Bound::AtLeast(100.0), count(counts.right));
    report.bar("refusals: the load is at the limit", Bound::AtLeast(1.0), count(counts.refused));
    report.bar("refusals without Retry-After", Bound::AtMost(0.0), count(counts.refused_without_retry));
    report.bar("panics in the server's log", Bound::AtMost(0.0), count(panics));
    report.bar("the server still runs", Bound::AtLeast(1.0), count(usize::from(still_runs)));
    for (name, key) in [
        ("requests running at idle", "running"),
        ("requests waiting at idle", "waiting"),
        ("share of KV memory in use at idle", "kv_used"),
        ("adapters leased at idle", "adapter_leases"),
    ] {
        let value = idle.get(key).and_then(serde_json::Value::as_f64).map(Spread::exactly);
        report.bar(name, Bound::AtMost(0.0), value.ok_or("the metrics do not say"));
    }
    let growth = memory::growth_of_second_half(samples);
    if let Some(growth) = growth {
        report.row(json!({"memory": "second half", "start_mb": rounded(growth.start / 1e6),
            "growth_mb": rounded(growth.bytes / 1e6), "samples": samples.len(),
            "peak_mb": rounded(samples.iter().map(|sample| sample.1).fold(0.0, f64::max) / 1e6)}));
    }
    let share = growth.map(|growth| Spread::exactly(growth.bytes / growth.start));
    let name = "memory added over the second half, as a share";
    report.bar(name, Bound::AtMost(GROWTH_MAX), share.ok_or("too few samples"));
}
