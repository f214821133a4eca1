//! `bench churn`: many callers add, use, replace, remove and re-add adapters, with so little memory and disk for them that
//! nearly every use loads. Each answer is compared, to the bits of its log-probabilities, with the answer of the same content
//! when it was alone; in the end nothing may be left of any of them. Not here: speed.

mod users;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use model::Base;
use serde_json::{Value, json};

use crate::adapters::{Form, RandomAdapter};
use crate::files::files;
use crate::load::{Http, upload_request, with_key};
use crate::machine::Machine;
use crate::memory::{self, Growth, Memory, Sample};
use crate::process::Server;
use crate::report::{Report, rounded};
use crate::soak::requests::metric;
use crate::statistics::{Bound, Spread};
use crate::{Given, Outcome};

use users::{Answer, Content, Counts, ask};

/// How long, and how much.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Times that an adapter is set or removed, and used
    #[arg(long, default_value_t = 20_000)]
    cycles: usize,
    /// 100,000 of them
    #[arg(long, conflicts_with = "cycles")]
    long: bool,
    /// Callers at once
    #[arg(long, default_value_t = 32)]
    users: usize,
    /// Threads of the engine
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Makes what the callers do something else
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Different contents.
const CONTENTS: usize = 96;
/// Of rank 8, on some layers, strong enough that no two answer alike.
const FORM: Form = Form { alpha: 64, layers_max: 12, ..Form::queries_and_values(8) };
/// Memory for adapters: the least that there is, a few of them.
const MEMORY_BYTES_MAX: u64 = 1 << 20;
/// Disk for packed ones: less than half of them.
const DISK_BYTES_MAX: u64 = 6 << 20;
/// Slots of the runner: fewer than callers.
const SLOTS: usize = 8;
/// Blocks for keys and values: so few that all are in use after some seconds, and the process grows no longer for them.
const KV_BLOCKS: usize = 256;
/// The second half of the run may add or take this share of the memory, by the line through its samples.
const GROWTH_MAX: f64 = 0.05;
/// The first half fills what is bounded and not small: the 16 MiB that the host keeps of its database, with the receipts of some
/// 4,000 cycles, and what the allocator holds back for threads. Of a run whose second half begins before this, memory is not
/// judged.
const FILLING_CYCLES: usize = 6_000;
/// After the last answer everything must be given back within this time.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Points of the report's curve of memory.
const MEMORY_POINTS: usize = 40;

/// Runs the callers, prints, writes.
///
/// # Errors
/// If a server does not come up or nothing can be checked; a missed bar is no error.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let cycles = if options.long { 100_000 } else { options.cycles };
    let machine = Machine::read();
    println!("{}", machine.line());
    let settings = json!({"cycles": cycles, "users": options.users, "threads": options.threads, "seed": options.seed,
        "contents": CONTENTS, "adapter_cache_bytes_max": MEMORY_BYTES_MAX, "adapter_disk_bytes_max": DISK_BYTES_MAX,
        "adapter_slots": SLOTS, "kv_blocks": KV_BLOCKS, "filling_cycles": FILLING_CYCLES});
    let mut report = Report::new("churn", machine, settings);
    let (http, base) = (Http::new()?, Base::open(&given.base)?);
    let folder = tempfile::tempdir()?;

    println!("\n== each adapter alone");
    let contents = golden(given, options, &http, &base, &mut report)?;

    println!("\n== {cycles} cycles of {} callers", options.users);
    let data = folder.path().join("data");
    let settings = [
        ("THREADS", options.threads.to_string()),
        ("ADAPTER_CACHE_BYTES_MAX", MEMORY_BYTES_MAX.to_string()),
        ("ADAPTER_DISK_BYTES_MAX", DISK_BYTES_MAX.to_string()),
        ("ADAPTER_SLOTS", SLOTS.to_string()),
        ("KV_BLOCKS", KV_BLOCKS.to_string()),
    ];
    let mut server = Server::tenon_on(&http, &given.tenon, &given.base, &data, &settings)?;
    let watch = Memory::watch(server.pid());
    let started = Instant::now();
    let counts = users::run(&http, &server.target, &contents, (options.users, cycles), options.seed);
    let (seconds, samples) = (started.elapsed().as_secs_f64(), watch.stop());
    let end = End::read(&http, &server, &data)?;
    let mut row = counts.json();
    row["cycles_per_s"] = rounded(counts.cycles as f64 / seconds);
    report.row(row);
    report.row(end.json());
    report.row(json!({"resident_mb_by_second": memory::outline(&samples, MEMORY_POINTS)}));
    let database = std::fs::metadata(data.join("state.redb"))?.len();
    report.row(json!({"seconds": rounded(seconds), "database_mb": rounded(database as f64 / 1e6)}));
    let left = empty(&http, &server, &data)?;
    report.row(json!({"all_removed": left.json()}));
    let lives = (server.is_running(), server.log().matches("panicked").count());
    bars(cycles, &counts, (&end, &left), &samples, lives, &mut report);
    println!("{}", report.summary());
    options.json.as_ref().map_or(Ok(()), |path| report.write(path))
}

/// The contents, each with its answer when nothing else was there, on a server with room for everything.
fn golden(given: &Given, options: &Options, http: &Http, base: &Base, report: &mut Report) -> Outcome<Vec<Content>> {
    let server = Server::tenon(http, &given.tenon, &given.base, &[("THREADS", options.threads.to_string())])?;
    let (runtime, client) = http.parts();
    let mut contents = Vec::with_capacity(CONTENTS);
    for number in 0..CONTENTS {
        let adapter = RandomAdapter::of(number as u64, base.config(), FORM);
        let (config, weights) = (adapter.peft_config(), adapter.peft_weights());
        let answer = runtime.block_on(async {
            let (config, weights) = (config.clone(), weights.clone());
            let answer = upload_request(client, &server.target, "alone", config, weights).send().await?;
            if !answer.status().is_success() {
                return Err(format!("content {number}: {} {}", answer.status(), answer.text().await?).into());
            }
            let (status, body) = ask(client, &server.target, "alone").await?;
            let answer = Answer::of(&body).filter(|_| status == 200);
            Outcome::Ok(answer.ok_or_else(|| format!("content {number}: {status} {body}"))?)
        })?;
        contents.push(Content { config, weights, answer });
    }
    let mut all: Vec<String> = contents.iter().map(|content| format!("{:?}", content.answer)).collect();
    all.sort();
    all.dedup();
    report.row(json!({"contents": CONTENTS, "distinct_answers": all.len()}));
    report.bar("answers that no two adapters share", Bound::AtLeast(CONTENTS as f64), exactly(all.len()));
    Ok(contents)
}

/// What is there after the last answer.
struct End {
    /// Metrics, once nothing runs any more, or at the end of our patience.
    held: Vec<(&'static str, Option<f64>)>,
    loads: f64,
    evicted: f64,
    disk_bytes: f64,
    /// As the folder has it.
    files_bytes: u64,
    unfinished_files: usize,
    stored_blobs: usize,
}

/// What must be zero when nothing runs.
const HELD: [&str; 4] =
    ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "tenon_adapter_leases"];

impl End {
    fn read(http: &Http, server: &Server, data: &Path) -> Outcome<Self> {
        let started = Instant::now();
        loop {
            let (_, text) = http.get(&server.target, "/metrics")?;
            let of = |name: &str| metric(&text, name);
            let packed = files(&data.join("packed-adapters"))?;
            let is = |path: &Path, end: &str| path.to_string_lossy().ends_with(end);
            let end = Self {
                held: HELD.map(|name| (name, of(name))).to_vec(),
                loads: ["hit", "miss"].iter().filter_map(|kind| of(&disk(kind))).sum(),
                evicted: of(&disk("evicted")).unwrap_or_default(),
                disk_bytes: of("tenon_adapter_disk_bytes").unwrap_or_default(),
                files_bytes: packed.iter().filter(|(path, _)| is(path, ".packed")).map(|(_, bytes)| bytes).sum(),
                unfinished_files: packed.iter().filter(|(path, _)| !is(path, ".packed") && !is(path, ".key")).count(),
                stored_blobs: files(&data.join("blobs").join("adapter"))?.len(),
            };
            // What was packed last is written when its answer has gone out already.
            let is_idle = end.held.iter().all(|(_, value)| *value == Some(0.0))
                && end.disk_bytes == end.files_bytes as f64
                && end.unfinished_files == 0;
            if is_idle || started.elapsed() > IDLE_MAX {
                return Ok(end);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn json(&self) -> Value {
        let held: serde_json::Map<String, Value> =
            self.held.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({"held": held, "loads": self.loads, "evicted_from_disk": self.evicted, "disk_bytes": self.disk_bytes,
            "packed_file_bytes": self.files_bytes, "unfinished_files": self.unfinished_files,
            "stored_blobs": self.stored_blobs})
    }
}

fn disk(kind: &str) -> String {
    format!("tenon_adapter_disk_total{{kind=\"{kind}\"}}")
}

/// Removes every alias that is left; what is there then.
fn empty(http: &Http, server: &Server, data: &Path) -> Outcome<End> {
    let (runtime, client) = http.parts();
    let (_, listed) = http.get(&server.target, "/v1/adapters")?;
    let listed: Value = serde_json::from_str(&listed)?;
    let aliases = listed.get("data").and_then(Value::as_array).ok_or("no list of adapters")?;
    for alias in aliases.iter().filter_map(|adapter| adapter.get("alias")?.as_str()) {
        let url = format!("{}/v1/adapters/{alias}", server.target.url);
        let status = runtime.block_on(async { with_key(client.delete(url), &server.target).send().await })?.status();
        if !status.is_success() {
            return Err(format!("{alias} cannot be removed: {status}").into());
        }
    }
    End::read(http, server, data)
}

fn exactly(count: usize) -> Result<Spread, &'static str> {
    Ok(Spread::exactly(count as f64))
}

fn bars(
    cycles: usize,
    counts: &Counts,
    (end, left): (&End, &End),
    samples: &[Sample],
    (still_runs, panics): (bool, usize),
    report: &mut Report,
) {
    let none = Bound::AtMost(0.0);
    report.bar("cycles", Bound::AtLeast(cycles as f64), exactly(counts.cycles));
    report.bar("wrong answers", none, exactly(counts.wrong));
    report.bar("removed adapters that still answer", none, exactly(counts.undead));
    report.bar("errors that nothing explains", none, exactly(counts.unexpected));
    report.bar("requests that got no answer in a minute", none, exactly(counts.stuck));
    // What others removed before it was used, and what was only left, has no answer.
    report.bar("answers compared", Bound::AtLeast(0.9 * cycles as f64), exactly(counts.right));
    // A use that finds its adapter in memory or joins another's load is none.
    report.bar("loads per cycle", Bound::AtLeast(0.5), Ok(Spread::exactly(end.loads / cycles.max(1) as f64)));
    report.bar("panics in the server's log", none, exactly(panics));
    report.bar("the server still runs", Bound::AtLeast(1.0), exactly(usize::from(still_runs)));
    for (name, value) in &end.held {
        report.bar(&format!("at idle: {name}"), none, value.map(Spread::exactly).ok_or("the metrics do not say"));
    }
    report.bar("bytes of packed files", Bound::AtMost(DISK_BYTES_MAX as f64), exactly(end.files_bytes as usize));
    let apart = (end.disk_bytes - end.files_bytes as f64).abs();
    report.bar("bytes that metrics and disk do not agree on", none, Ok(Spread::exactly(apart)));
    report.bar("stored contents", Bound::AtMost(CONTENTS as f64), exactly(end.stored_blobs));
    let remains = left.files_bytes as usize + left.unfinished_files;
    report.bar("packed bytes and unfinished files when all are removed", none, exactly(remains));
    let growth = judged_growth(cycles, samples);
    if let Ok(growth) = growth {
        report.row(json!({"memory": "second half", "start_mb": rounded(growth.start / 1e6),
            "growth_mb": rounded(growth.bytes / 1e6), "samples": samples.len()}));
    }
    let share = growth.map(|growth| Spread::exactly(growth.bytes.abs() / growth.start));
    report.bar("change of memory over the second half, as a share", Bound::AtMost(GROWTH_MAX), share);
}

/// What the second half added, if the first one was long enough to fill what is bounded.
fn judged_growth(cycles: usize, samples: &[Sample]) -> Result<Growth, &'static str> {
    if cycles / 2 < FILLING_CYCLES {
        return Err("too few cycles: caches still fill in the second half");
    }
    memory::growth_of_second_half(samples).ok_or("too few samples")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_judged_after_the_caches_are_full_and_a_leak_shows() {
        let leak: Vec<Sample> = (0..100u8).map(|at| (at.into(), 1e6 + 1e4 * f64::from(at))).collect();
        assert!(judged_growth(2 * FILLING_CYCLES - 2, &leak).is_err());
        let growth = judged_growth(2 * FILLING_CYCLES, &leak).expect("long enough");
        assert!(growth.bytes / growth.start > GROWTH_MAX);
        assert!(judged_growth(20_000, &leak[..5]).is_err(), "too few samples");
    }
}
