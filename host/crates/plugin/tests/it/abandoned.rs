//! Calls that are dropped in mid-flight, as when a caller hangs up. Not here: calls that the host ends itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use plugin::{PluginError, PluginInstance, PluginLimits, Session};
use types::{Chunk, Decision, FinishReason, HookUsage};

use crate::setup::{Granted, Nowhere, Setup, guest, limits, request, session};
use crate::stuck::dropped_at;

/// Set in the process that is started for one test.
const ALONE: &str = "TENON_TEST_ALONE";
/// In mid-flight; besides, every `UNPOLLED_EVERY`th call is dropped before it began.
const DROPPED: usize = 10_000;
const UNPOLLED_EVERY: usize = 51;
/// Before the memory is measured for the first time: the pool's slots have all been used by then.
const WARM: usize = 1_000;
/// What the allocator may keep. A leak of one instance's page in each call would be 36 MiB.
const RESIDENT_GROWTH_BYTES_MAX: usize = 16 << 20;
const PAGE_BYTES: usize = 4096;
/// An abandoned guest ends at its next epoch, a few milliseconds later; this is for machines that are very busy.
const ENDED_MAX: Duration = Duration::from_secs(60);

/// Polls this often, then drops.
async fn abandon<F: Future>(future: F, polls_max: usize) {
    let mut future = Box::pin(future);
    let mut polls = 0;
    std::future::poll_fn(|context| {
        polls += 1;
        if polls > polls_max {
            return Poll::Ready(());
        }
        let poll = future.as_mut().poll(context);
        assert!(poll.is_pending(), "it was to be abandoned before its end");
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("the second number") * PAGE_BYTES
}

/// Abandons the call in which the guest is at work when its text says so, after so many polls.
async fn abandon_at(instance: &mut PluginInstance, place: &str, polls_max: usize) {
    let asked = request(place);
    let usage = HookUsage { prompt_tokens: 1, completion_tokens: 1, finish: FinishReason::Stop };
    match place {
        "wait" | "route" => return abandon(instance.route(&asked), polls_max).await,
        "compose" => return abandon(instance.compose(&asked), polls_max).await,
        "constructor" => return abandon(instance.open_post_processor(&asked), polls_max).await,
        _ => instance.open_post_processor(&asked).await.expect("open"),
    }
    match place {
        "chunk" => abandon(instance.chunk(Chunk::default()), polls_max).await,
        _ => abandon(instance.finish(usage), polls_max).await,
    }
}

/// wasmtime 39 to 41 panicked when a call was dropped (CVE-2026-27195). In a process of its own: the memory of other tests
/// is not to be measured.
#[test]
fn ten_thousand_abandoned_calls_leave_the_host_whole() {
    if std::env::var_os(ALONE).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
        let name = "abandoned::ten_thousand_abandoned_calls_leave_the_host_whole";
        let output = child.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("calls dropped"), "{said}");
        eprint!("{said}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(abandon_many());
}

/// Whatever it is that the guest waits for: a bucket, a secret, a host, the tokenizer.
#[tokio::test]
async fn a_call_may_be_dropped_wherever_its_guest_waits() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, ..limits() });
    let digest = setup.host.admit(guest("imports")).await.expect("admitted");
    let waiting = Arc::new(AtomicU32::new(0));
    let mut places = 0;
    while dropped_at(&setup.host, digest, places, &waiting).await.expect("it starts") {
        let asked = Instant::now();
        while setup.host.stats().instances > 0 || waiting.load(Ordering::SeqCst) > 0 {
            assert!(asked.elapsed() < ENDED_MAX, "place {places}: an abandoned guest still lives");
            tokio::time::sleep(Duration::from_micros(50)).await;
        }
        places += 1;
    }
    assert!(places >= 18, "{places} places to wait at");
}

/// The start of an instance, and the wait for its being compiled, are dropped as well.
#[tokio::test]
async fn a_start_may_be_dropped() {
    let setup = Setup::new();
    let digest = setup.host.admit(guest("cancel")).await.expect("admitted");
    for polls in (0..4).cycle().take(400) {
        let mut start = Box::pin(setup.host.start(digest, &Nowhere, session()));
        for _ in 0..polls {
            // It may well be started by then, or find that those before it have not ended yet.
            if let Poll::Ready(started) = polled_once(&mut start).await {
                let busy = PluginError::Busy { limit: "instances_max" };
                assert!(started.as_ref().err().is_none_or(|error| *error == busy), "{started:?}");
                break;
            }
        }
    }
    let asked = Instant::now();
    while setup.host.stats().instances > 0 {
        assert!(asked.elapsed() < ENDED_MAX, "an abandoned start still lives");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Polls once.
async fn polled_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(std::pin::Pin::new(&mut *future).poll(context))).await
}

async fn abandon_many() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, ..limits() });
    let catalog = Arc::new(Granted(Vec::new(), Duration::from_secs(3600)));
    let digest = setup.host.admit(guest("cancel")).await.expect("admitted");
    let mut warm_bytes = 0;
    let mut dropped = 0;
    for turn in 0.. {
        // Mostly in a host function, which takes no time; now and then in the middle of the guest's own code.
        let places = ["route", "compose", "constructor", "chunk", "finish"];
        let place = if turn % 20 == 0 { places[turn / 20 % places.len()] } else { "wait" };
        let polls = if turn % UNPOLLED_EVERY == 0 { 0 } else { 1 + turn % 3 };
        dropped += usize::from(polls > 0);
        let waiting = Session { catalog: Arc::clone(&catalog) as _, ..session() };
        let mut instance = setup.host.start(digest, &Nowhere, waiting).await.expect("started");
        abandon_at(&mut instance, place, polls).await;
        match instance.route(&request("")).await {
            Ok(decision) => assert_eq!((decision, polls), (Decision::Serve, 0), "never polled, never begun"),
            Err(PluginError::Trap { reason, .. }) => assert!(reason.contains("abandoned"), "{reason}"),
            Err(error) => panic!("{error}"),
        }
        drop(instance);
        // The guest ends on its own thread, where it next waits or gives way.
        let asked = Instant::now();
        while setup.host.stats().instances > 0 {
            assert!(asked.elapsed() < ENDED_MAX, "turn {turn}: an abandoned guest still lives");
            std::thread::sleep(Duration::from_micros(20));
        }
        match dropped {
            WARM => warm_bytes = resident_bytes(),
            DROPPED => break,
            _ => {}
        }
    }
    let grown = resident_bytes().saturating_sub(warm_bytes);
    assert!(grown <= RESIDENT_GROWTH_BYTES_MAX, "{grown} bytes are left of {} calls", DROPPED - WARM);
    eprintln!("{dropped} calls dropped; resident memory grew by {grown} bytes after the first {WARM}");
    // As many as may live at once start again.
    let mut all = Vec::new();
    for _ in 0..setup.host.stats().instances_max {
        all.push(setup.start("echo").await);
    }
    for echo in &mut all {
        assert!(echo.compose(&request("hi")).await.is_ok());
    }
}
