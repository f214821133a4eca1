//! `bench hostile`: every guest of the catalogue, again and again at a fixed rate, beside tenants who mean no harm. Each hostile
//! call must end as the catalogue says; the neighbours' answers must stay what they were, and come nearly as soon; in the end
//! nothing may be left. Not here: the guests (`tests/hostile`), and callers that leave by the thousand (`dropped`).

mod neighbours;
mod sender;
mod spinners;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ::hostile::{Guest, all};
use clap::Args;
use serde_json::{Value, json};

use crate::load::Http;
use crate::machine::{Machine, resident_bytes};
use crate::process::Server;
use crate::report::{Report, rounded};
use crate::soak::requests::metric;
use crate::statistics::{Bound, Spread, quantile};
use crate::{Given, Outcome};

use neighbours::{Heard, Neighbours};
pub(crate) use neighbours::{put, upload};
use sender::{Sender, Told};

/// How much.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each guest is sent
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Three times
    #[arg(long, conflicts_with = "runs")]
    quick: bool,
    /// Threads of the engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Only guests whose names have this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Hostile calls a second.
const RATE: f64 = 5.0;
/// Length of a phase with hostile calls; one without them, half as long, goes before it, and one comes after.
const PHASE: Duration = Duration::from_secs(30);
/// What the neighbours' slowest answers may take, as a factor of what they take alone.
const P99_FACTOR_MAX: f64 = 1.5;
/// After the last answer everything must be given back within this time: a compiler may be at work for its whole minute.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// How long threads of a process may take to end that nobody needs any more.
const SETTLED_MAX: Duration = Duration::from_secs(20);
/// What the process may have more of than before the first hostile call: idle connections, threads for blocking work.
const THREADS_MORE_MAX: f64 = 24.0;
const FILES_MORE_MAX: f64 = 24.0;
/// Of memory over the second half of the calls: what each call left behind would show there as much as in the first. The first has
/// what is kept up to a bound: what was compiled, receipts, logs, what the allocator holds for threads.
const MEMORY_MORE_MAX: f64 = 0.05;
/// What spinning guests may leave of the engine's speed.
const SPEED_LEFT_MIN: f64 = 0.5;

/// Sends, prints, writes.
///
/// # Errors
/// If the server does not come up or nothing can be measured; a missed bar is no error.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let runs = if options.quick { 3 } else { options.runs };
    let machine = Machine::read();
    println!("{}", machine.line());
    let chosen = |guest: &Guest| options.only.as_ref().is_none_or(|text| guest.name.contains(text.as_str()));
    let guests: Vec<Guest> = all().into_iter().filter(chosen).collect();
    let settings = json!({"guests": guests.len(), "runs": runs, "hostile_per_s": RATE, "threads": options.threads,
        "neighbours_per_s": neighbours::RATE});
    let mut report = Report::new("hostile", machine, settings);
    let http = Http::new()?;
    let mut server = start(given, options, &http)?;
    let neighbours = Neighbours::deploy(&http, &server.target)?;

    println!("\n== {} guests are deployed", guests.len());
    let sender = Sender::deploy(&server.target, guests)?;
    let before = Held::read(&server);
    println!("\n== each once");
    let mut told = sender.send(&server.target, 0..sender.count())?;
    let settled = Held::read(&server);

    println!("\n== {runs} times each, {RATE} a second, and neighbours");
    let (mut quiet, mut beside, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    let calls = sender.count() * runs;
    let each = (PHASE.as_secs_f64() * RATE) as usize;
    let mut next = 0;
    quiet.push(neighbours.listen(&server.target, PHASE / 2)?);
    while next < calls {
        let end = calls.min(next + each);
        let time = Duration::from_secs_f64((end - next) as f64 / RATE);
        let (heard, more) = std::thread::scope(|scope| {
            let sending = scope.spawn(|| sender.send(&server.target, next..end).map_err(|error| error.to_string()));
            let heard = neighbours.listen(&server.target, time);
            (heard, sending.join())
        });
        told.add(more.map_err(|_| "the sender panicked")??);
        beside.push(heard?);
        // What was sent last must not be heard in what follows.
        wait_until_idle(&http, &server)?;
        quiet.push(neighbours.listen(&server.target, PHASE / 2)?);
        next = end;
        resident.push((next, Held::read(&server).resident_bytes));
        println!("  {next} of {calls} calls, {} of them wrong", told.wrong);
    }
    println!("\n== guests that compute all the time");
    let speeds = spinners::measure(&http, &server)?;
    let (idle, waited) = wait_until_idle(&http, &server)?;
    let after = Held::settled(server.pid(), before);
    report.row(told.json());
    report.row(json!({"before": before.json(), "when_each_was_sent_once": settled.json(), "after": after.json(),
        "at_idle": idle, "idle_after_s": rounded(waited.as_secs_f64())}));
    let megabytes = |(calls, bytes): &(usize, u64)| json!([calls, rounded(*bytes as f64 / 1e6)]);
    report.row(json!({"resident_mb_after_calls": resident.iter().map(megabytes).collect::<Vec<_>>()}));
    report.row(speeds.json());
    let lives = (server.is_running(), server.log().matches("panicked").count());
    judge_calls(&told, calls, lives, &mut report);
    judge_neighbours(&quiet, &beside, &mut report);
    let half = resident.iter().find(|(sent, _)| 2 * sent >= calls).map(|(_, bytes)| *bytes);
    judge_rest([before, after], half, &idle, &mut report);
    let bar = Bound::AtLeast(SPEED_LEFT_MIN);
    report.bar("speed of a stream beside spinning guests, as a share", bar, speeds.left().ok_or("too few rounds"));
    println!("{}", report.summary());
    options.json.as_ref().map_or(Ok(()), |path| report.write(path))
}

/// A host whose own limits are wide: each guest's manifest has the one that it is to meet.
fn start(given: &Given, options: &Options, http: &Http) -> Outcome<Server> {
    let settings = [
        ("THREADS", options.threads.to_string()),
        ("LIMITS__PLUGIN_CALL_CPU_MS_MAX", "5000".to_owned()),
        ("LIMITS__PLUGIN_REQUEST_CPU_MS_MAX", "20000".to_owned()),
        ("LIMITS__PLUGIN_START_CPU_MS_MAX", "5000".to_owned()),
        ("LIMITS__PLUGIN_CALL_WALL_MS_MAX", "60000".to_owned()),
    ];
    Server::tenon(http, &given.tenon, &given.base, &settings)
}

/// What the process holds.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    pub(crate) threads: usize,
    /// But for the images of plugins' memories, which are kept with what was compiled.
    pub(crate) files: usize,
    pub(crate) resident_bytes: u64,
}

impl Held {
    pub(crate) fn read(server: &Server) -> Self {
        Self::of(server.pid())
    }

    pub(crate) fn of(pid: u32) -> Self {
        let entries = |folder: &str| std::fs::read_dir(format!("/proc/{pid}/{folder}")).into_iter().flatten().flatten();
        let is_image = |target: PathBuf| {
            let target = target.to_string_lossy();
            target.contains("memfd:wasm-memory-image") || target.contains(".cwasm")
        };
        let files = entries("fd").filter(|file| !std::fs::read_link(file.path()).is_ok_and(is_image)).count();
        Self { threads: entries("task").count(), files, resident_bytes: resident_bytes(pid).unwrap_or_default() }
    }

    /// The same once it has no more threads than before, or at the end of our patience: those for blocking work end when nobody has
    /// needed them for ten seconds.
    pub(crate) fn settled(pid: u32, before: Self) -> Self {
        let started = Instant::now();
        while Self::of(pid).threads > before.threads && started.elapsed() < SETTLED_MAX {
            std::thread::sleep(Duration::from_millis(200));
        }
        Self::of(pid)
    }

    pub(crate) fn json(self) -> Value {
        json!({"threads": self.threads, "files": self.files, "resident_mb": rounded(self.resident_bytes as f64 / 1e6)})
    }
}

/// What must be zero when nothing runs.
const HELD: [&str; 5] = [
    "tenon_plugin_instances",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "tenon_adapter_leases",
];

/// What the metrics say once nothing runs any more, or at the end of our patience; and when that was.
pub(crate) fn wait_until_idle(http: &Http, server: &Server) -> Outcome<(Value, Duration)> {
    let started = Instant::now();
    loop {
        let (_, text) = http.get(&server.target, "/metrics")?;
        let held = HELD.map(|name| (name, metric(&text, name)));
        if held.iter().all(|(_, value)| *value == Some(0.0)) || started.elapsed() > IDLE_MAX {
            let held: serde_json::Map<String, Value> =
                held.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            return Ok((Value::Object(held), started.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn exactly(count: usize) -> Result<Spread, &'static str> {
    Ok(Spread::exactly(count as f64))
}

fn judge_calls(told: &Told, calls: usize, (still_runs, panics): (bool, usize), report: &mut Report) {
    let none = Bound::AtMost(0.0);
    report.bar("hostile calls", Bound::AtLeast(calls as f64), exactly(told.calls));
    report.bar("hostile calls that did not end as they must", none, exactly(told.wrong));
    report.bar("marks of one guest that another found", none, exactly(told.found));
    report.bar("hostile guests", Bound::AtLeast(60.0), exactly(told.guests()));
    report.bar("panics in the server's log", none, exactly(panics));
    report.bar("the server still runs", Bound::AtLeast(1.0), exactly(usize::from(still_runs)));
}

fn judge_neighbours(quiet: &[Heard], beside: &[Heard], report: &mut Report) {
    let p99 = |heard: &Heard| quantile(&heard.seconds, 0.99).unwrap_or(f64::NAN);
    let pooled = |phases: &[Heard], share| {
        let all: Vec<f64> = phases.iter().flat_map(|heard| heard.seconds.iter().copied()).collect();
        rounded(quantile(&all, share).unwrap_or(f64::NAN) * 1e3)
    };
    for (name, phases) in [("without", quiet), ("with", beside)] {
        let answers: usize = phases.iter().map(|heard| heard.seconds.len()).sum();
        report.row(json!({"neighbours": name, "answers": answers, "p50_ms": pooled(phases, 0.5),
            "p90_ms": pooled(phases, 0.9), "p99_ms": pooled(phases, 0.99), "max_ms": pooled(phases, 1.0)}));
    }
    let (before, after): (Vec<f64>, Vec<f64>) =
        quiet.windows(2).filter_map(|pair| Some((p99(pair.first()?), p99(pair.last()?)))).unzip();
    let about: Vec<f64> = before.iter().zip(&after).map(|(one, two)| (one * two).sqrt()).collect();
    let during: Vec<f64> = beside.iter().map(p99).collect();
    let control = Spread::of_median_ratio(&after, &before);
    let ratio = Spread::of_median_ratio(&during, &about);
    report.row(json!({"p99_ms_beside": during.iter().map(|s| rounded(s * 1e3)).collect::<Vec<_>>(),
        "p99_ms_about": about.iter().map(|s| rounded(s * 1e3)).collect::<Vec<_>>()}));
    let name = "neighbours' p99 beside hostile guests, as a factor";
    report.bar(name, Bound::AtMost(P99_FACTOR_MAX), ratio.ok_or("too few phases"));
    report.bar("the same of phases without any (A/A)", Bound::AtMost(P99_FACTOR_MAX), control.ok_or("too few phases"));
    let none = Bound::AtMost(0.0);
    let count = |of: fn(&Heard) -> usize| quiet.iter().chain(beside).map(of).sum();
    report.bar("neighbours' answers that changed", none, exactly(count(|heard| heard.changed)));
    report.bar("neighbours' requests that failed", none, exactly(count(|heard| heard.failed)));
}

fn judge_rest([before, after]: [Held; 2], half_bytes: Option<u64>, idle: &Value, report: &mut Report) {
    let more = |after: usize, before: usize| Ok(Spread::exactly(after as f64 - before as f64));
    for name in HELD {
        let value = idle.get(name).and_then(Value::as_f64).map(Spread::exactly);
        report.bar(&format!("at idle: {name}"), Bound::AtMost(0.0), value.ok_or("the metrics do not say"));
    }
    report.bar("threads more than before", Bound::AtMost(THREADS_MORE_MAX), more(after.threads, before.threads));
    report.bar("files and connections more", Bound::AtMost(FILES_MORE_MAX), more(after.files, before.files));
    let grown = half_bytes.map(|half| after.resident_bytes as f64 / half.max(1) as f64 - 1.0);
    let name = "memory more after all calls than after half of them, as a share";
    report.bar(name, Bound::AtMost(MEMORY_MORE_MAX), grown.map(Spread::exactly).ok_or("no calls"));
}
