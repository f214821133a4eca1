//! `bench dropped`: calls that nobody waits for any more. Nine tenths are dropped inside the plugin crate, at every place where a
//! guest waits for its host and in the middle of its own code; one tenth are callers over HTTP who leave a real host. There may
//! be no panic, and in the end everything is as it was. Not here: what hostile guests do (`hostile`).

// Capabilities that never come back, which the sandbox's own tests use as well.
#[allow(dead_code, reason = "made for the tests of another crate, which use all of it")]
#[allow(unreachable_pub, reason = "as there")]
#[path = "../../../host/crates/plugin/tests/it/stuck.rs"]
mod stuck;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::hostile::Source;
use clap::Args;
use plugin::{CompilerCommand, PluginHost, PluginHostConfig, PluginInstance, PluginLimits};
use serde_json::{Value, json};
use types::{Chunk, Digest, FinishReason, HookUsage};

use crate::hostile::{Held, put, upload, wait_until_idle};
use crate::load::{Http, with_key};
use crate::machine::Machine;
use crate::process::Server;
use crate::report::{Report, rounded};
use crate::soak::requests::metric;
use crate::statistics::{Bound, Spread};
use crate::{Given, Outcome};

/// How many.
#[derive(Args)]
pub(crate) struct Options {
    /// Write the report here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Calls in all
    #[arg(long, default_value_t = 100_000)]
    calls: usize,
    /// A hundredth
    #[arg(long, conflicts_with = "calls")]
    quick: bool,
}

/// One in so many is a caller over HTTP.
const OVER_HTTP: usize = 10;
/// At once, inside the crate and over HTTP.
const AT_ONCE: usize = 24;
/// Every so many calls one is dropped while its guest computes: that takes to the end of an epoch.
const COMPUTING_EVERY: usize = 10;
/// Before memory, threads and files are counted for the first time.
const WARM_SHARE: f64 = 0.1;
/// An abandoned guest ends at its next epoch.
const ENDED_MAX: Duration = Duration::from_secs(60);
/// What an allocator may keep. A page of each call would be some 370 MB.
const MEMORY_MORE_MAX_MB: f64 = 48.0;
const MORE_MAX: f64 = 16.0;
/// The hook in which the guest `cancel` computes, and after how many polls its call is dropped.
const PLACES: [&str; 5] = ["route", "compose", "constructor", "chunk", "finish"];

/// Drops, prints, writes.
///
/// # Errors
/// If nothing can be measured; a missed bar is no error.
pub(crate) fn run(given: &Given, options: &Options) -> Outcome {
    let calls = if options.quick { options.calls / 100 } else { options.calls };
    let machine = Machine::read();
    println!("{}", machine.line());
    let mut report = Report::new("dropped", machine, json!({"calls": calls, "over_http": calls / OVER_HTTP}));
    println!("\n== inside the plugin crate");
    let inside = inside(given, calls - calls / OVER_HTTP, &mut report)?;
    println!("\n== over HTTP");
    let outside = over_http(given, calls / OVER_HTTP, &mut report)?;
    report.bar("dropped calls", Bound::AtLeast(calls as f64), exactly((inside + outside) as f64));
    println!("{}", report.summary());
    options.json.as_ref().map_or(Ok(()), |path| report.write(path))
}

fn exactly(value: f64) -> Result<Spread, &'static str> {
    Ok(Spread::exactly(value))
}

/// The crate alone, in this process: what is counted are its own memory, threads and files.
fn inside(given: &Given, calls: usize, report: &mut Report) -> Outcome<usize> {
    let folder = tempfile::tempdir()?;
    let compiler = CompilerCommand { program: given.tenon.clone(), arguments: vec!["__compile-plugin".into()] };
    let limits = PluginLimits { call_cpu_ms_max: 30_000, call_wall_ms_max: 600_000, ..PluginLimits::default() };
    let config = PluginHostConfig {
        cache_dir: folder.path().join("cache"),
        compiler,
        limits,
        instances_max: 64,
        cache_bytes_max: 64 << 20,
        images_max: 64,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let host = PluginHost::new(config)?;
    let waiting = Arc::new(AtomicU32::new(0));
    let (dropped, places, warm, begun) = runtime.block_on(async {
        let waits = host.admit(Source::Fixture("imports").component()?.into()).await?;
        let computes = host.admit(Source::Fixture("cancel").component()?.into()).await?;
        let mut places = 0;
        while stuck::dropped_at(&host, waits, places, &waiting).await? {
            places += 1;
        }
        let places = places.max(1);
        let warm_calls = (calls as f64 * WARM_SHARE) as usize;
        drop_many(&host, [waits, computes], 0..warm_calls, places, &waiting).await?;
        ended(&host, &waiting).await?;
        let (warm, begun) = (Held::of(std::process::id()), Instant::now());
        drop_many(&host, [waits, computes], warm_calls..calls, places, &waiting).await?;
        ended(&host, &waiting).await?;
        Outcome::Ok((calls + places as usize, places, warm, begun))
    })?;
    let after = Held::of(std::process::id());
    let rate = calls as f64 * (1.0 - WARM_SHARE) / begun.elapsed().as_secs_f64();
    report.row(json!({"inside": dropped, "places_to_wait_at": places, "per_s": rounded(rate), "warm": warm.json(),
        "after": after.json()}));
    // As many as may live at once start again.
    let fresh = runtime.block_on(async {
        let digest = host.admit(Source::Fixture("echo").component()?.into()).await?;
        let stuck = stuck::Stuck::at(u32::MAX, &waiting);
        let mut all: Vec<PluginInstance> = Vec::new();
        for _ in 0..host.stats().instances_max {
            let mut instance = host.start(digest, &stuck::Elsewhere, stuck.session()).await?;
            instance.compose(&stuck::asked("hello")).await?;
            all.push(instance);
        }
        Outcome::Ok(all.len())
    })?;
    report.bar("inside: places to wait at", Bound::AtLeast(18.0), exactly(f64::from(places)));
    report.bar("inside: instances that start afterwards", Bound::AtLeast(64.0), exactly(fresh as f64));
    judge("inside", warm, after, report);
    Ok(dropped)
}

/// So many at a time, each at another place.
async fn drop_many(
    host: &PluginHost,
    [waits, computes]: [Digest; 2],
    calls: std::ops::Range<usize>,
    places: u32,
    waiting: &Arc<AtomicU32>,
) -> Outcome {
    let next = AtomicUsize::new(calls.start);
    let one = || async {
        loop {
            let call = next.fetch_add(1, Ordering::Relaxed);
            if call >= calls.end {
                return Outcome::Ok(());
            }
            if call.is_multiple_of(COMPUTING_EVERY) {
                computing(host, computes, call / COMPUTING_EVERY, waiting).await?;
            } else {
                let place = u32::try_from(call).unwrap_or(0) % places;
                let is_dropped = stuck::dropped_at(host, waits, place, waiting).await;
                match is_dropped {
                    Ok(true) => {}
                    Ok(false) => return Err(format!("place {place} was not reached").into()),
                    // Those that were dropped still end.
                    Err(error) if error.code() == "plugin_busy" => tokio::time::sleep(Duration::from_millis(1)).await,
                    Err(error) => return Err(error.into()),
                }
            }
        }
    };
    futures::future::try_join_all((0..AT_ONCE).map(|_| one())).await.map(drop)
}

/// Drops a call in which the guest computes, or the start of its instance.
async fn computing(host: &PluginHost, digest: Digest, turn: usize, waiting: &Arc<AtomicU32>) -> Outcome {
    let stuck = stuck::Stuck::at(u32::MAX, waiting);
    let time = Duration::from_micros(50 * (turn as u64 % 40));
    let start = host.start(digest, &stuck::Elsewhere, stuck.session());
    if turn.is_multiple_of(7) {
        // The start itself; it may well have ended by then.
        let _started = tokio::time::timeout(time / 10, start).await;
        return Ok(());
    }
    let mut instance = match start.await {
        Ok(instance) => instance,
        Err(error) if error.code() == "plugin_busy" => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let place = PLACES.get(turn % PLACES.len()).copied().unwrap_or_default();
    let asked = stuck::asked(place);
    let usage = HookUsage { prompt_tokens: 1, completion_tokens: 1, finish: FinishReason::Stop };
    let call = async {
        match place {
            "route" => drop(instance.route(&asked).await?),
            "compose" => drop(instance.compose(&asked).await?),
            place => {
                instance.open_post_processor(&asked).await?;
                match place {
                    "chunk" => drop(instance.chunk(Chunk::default()).await?),
                    _ => drop(instance.finish(usage).await?),
                }
            }
        }
        Outcome::Ok(())
    };
    match tokio::time::timeout(time, call).await {
        Ok(Ok(())) => Err(format!("`{place}` came to an end").into()),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(()),
    }
}

async fn ended(host: &PluginHost, waiting: &AtomicU32) -> Outcome {
    let asked = Instant::now();
    while host.stats().instances > 0 || waiting.load(Ordering::SeqCst) > 0 {
        if asked.elapsed() > ENDED_MAX {
            return Err(format!("{} abandoned guests still live", host.stats().instances).into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Callers of a real host who leave within 150 ms, wherever their guest is by then.
fn over_http(given: &Given, calls: usize, report: &mut Report) -> Outcome<usize> {
    let http = Http::new()?;
    let hour = "3600000".to_owned();
    let settings = [
        ("THREADS", "2".to_owned()),
        ("LIMITS__PLUGIN_CALL_CPU_MS_MAX", hour.clone()),
        ("LIMITS__PLUGIN_REQUEST_CPU_MS_MAX", hour.clone()),
        ("LIMITS__PLUGIN_CALL_WALL_MS_MAX", hour),
    ];
    let mut server = Server::tenon(&http, &given.tenon, &given.base, &settings)?;
    let (runtime, client) = http.parts();
    let digest = runtime.block_on(upload(client, &server.target, Source::Fixture("cancel").component()?))?;
    let digest = digest.map_err(|(status, body)| format!("cancel: {status} {body}"))?;
    runtime.block_on(put(client, &server.target, "cancel", &json!({"plugin": digest})))?;
    let leave = |calls: std::ops::Range<usize>| -> Outcome<usize> {
        let (next, answered) = (AtomicUsize::new(calls.start), AtomicUsize::new(0));
        let (end, target, next, answered) = (calls.end, &server.target, &next, &answered);
        let caller = || async move {
            loop {
                let call = next.fetch_add(1, Ordering::Relaxed);
                // One that was answered was not dropped: another one takes its place.
                if call >= end + answered.load(Ordering::Relaxed) {
                    return;
                }
                let place = ["wait", "route", "compose", "constructor", "chunk", "finish"].get(call % 6);
                let body = json!({"input": place, "max_tokens": 2, "stream": call % 12 < 6});
                let url = format!("{}/v1/functions/cancel/invoke", target.url);
                let request = with_key(client.post(url), target).json(&body);
                let whole = async { request.send().await?.bytes().await };
                let time = Duration::from_millis(1 + call as u64 * 7 % 150);
                if tokio::time::timeout(time, whole).await.is_ok() {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        runtime.block_on(futures::future::join_all((0..AT_ONCE).map(|_| caller())));
        Ok(answered.load(Ordering::Relaxed))
    };
    let warm_calls = (calls as f64 * WARM_SHARE) as usize;
    let mut answered = leave(0..warm_calls)?;
    wait_until_idle(&http, &server)?;
    let warm = Held::read(&server);
    answered += leave(warm_calls..calls)?;
    let (idle, after_s) = wait_until_idle(&http, &server)?;
    let receipts = receipts(&http, &server)?;
    let after = Held::settled(server.pid(), warm);
    report.row(json!({"over_http": calls, "answered_before": answered, "warm": warm.json(), "after": after.json(),
        "idle": idle, "idle_after_s": rounded(after_s.as_secs_f64()), "receipts": receipts}));
    for (name, value) in idle.as_object().into_iter().flatten() {
        let value = value.as_f64().map(Spread::exactly).ok_or("the metrics do not say");
        report.bar(&format!("over HTTP, at idle: {name}"), Bound::AtMost(0.0), value);
    }
    let of = |kind: &str| receipts.get(kind).and_then(Value::as_f64).unwrap_or_default();
    let open = of("started") - of("finished") - of("cancelled") - of("failed");
    report.bar("over HTTP: receipts that are still open", Bound::AtMost(0.0), exactly(open));
    let panics = server.log().matches("panicked").count();
    report.bar("over HTTP: panics in the server's log", Bound::AtMost(0.0), exactly(panics as f64));
    report.bar(
        "over HTTP: the server still runs",
        Bound::AtLeast(1.0),
        exactly(f64::from(u8::from(server.is_running()))),
    );
    judge("over HTTP", warm, after, report);
    Ok(calls)
}

/// How many of each kind, once none is open any more: a record becomes durable a moment after its request.
fn receipts(http: &Http, server: &Server) -> Outcome<Value> {
    const KINDS: [&str; 4] = ["started", "finished", "cancelled", "failed"];
    let asked = Instant::now();
    loop {
        let (_, text) = http.get(&server.target, "/metrics")?;
        let [started, ended @ ..] =
            KINDS.map(|kind| metric(&text, &format!("tenon_receipts_total{{kind=\"{kind}\"}}")).unwrap_or_default());
        if started == ended.iter().sum::<f64>() || asked.elapsed() > ENDED_MAX {
            let [finished, cancelled, failed] = ended;
            return Ok(json!({"started": started, "finished": finished, "cancelled": cancelled, "failed": failed}));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn judge(place: &str, warm: Held, after: Held, report: &mut Report) {
    let more = |after: usize, warm: usize| exactly(after as f64 - warm as f64);
    let grown = (after.resident_bytes as f64 - warm.resident_bytes as f64) / 1e6;
    report.bar(&format!("{place}: memory more, in MB"), Bound::AtMost(MEMORY_MORE_MAX_MB), exactly(grown));
    report.bar(&format!("{place}: threads more"), Bound::AtMost(MORE_MAX), more(after.threads, warm.threads));
    report.bar(&format!("{place}: files and connections more"), Bound::AtMost(MORE_MAX), more(after.files, warm.files));
}
