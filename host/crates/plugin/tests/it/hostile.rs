//! What hostile guests run into. After each, the host goes on.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use plugin::{PluginError, PluginLimits, Session};
use types::{Blame, Chunk, Decision, FinishReason, HookUsage, Plan};

use crate::components;
use crate::setup::{Granted, Kept, Nowhere, Setup, guest, limits, request, session};

/// Asks `route`, checks that the same instance answers no more, and that the host still serves others.
async fn routed(setup: &Setup, name: &str, text: &str) -> PluginError {
    let mut instance = setup.start(name).await;
    let error = instance.route(&request(text)).await.expect_err("it fails");
    if error.code() != "plugin_error" {
        assert_eq!(instance.route(&request("serve")).await, Err(error.clone()), "a second call after a trap");
        assert_eq!(instance.chunk(Chunk::default()).await, Err(error.clone()));
    }
    drop(instance);
    assert!(setup.start("echo").await.compose(&request("hi")).await.is_ok(), "the host goes on");
    error
}

#[tokio::test]
async fn a_trap_is_an_error() {
    let setup = Setup::new();
    let error = routed(&setup, "trap", "panic").await;
    assert_eq!((error.code(), error.blame()), ("plugin_trap", Blame::Function));
    assert!(error.to_string().contains("`route`") && error.to_string().contains("unreachable"), "{error}");
}

#[tokio::test]
async fn an_exhausted_stack_is_a_trap() {
    let error = routed(&Setup::new(), "trap", "stack").await;
    assert!(matches!(&error, PluginError::Trap { reason, .. } if reason.contains("stack")), "{error}");
}

#[tokio::test]
async fn a_guests_own_error_is_passed_on() {
    let setup = Setup::new();
    let error = routed(&setup, "trap", "error").await;
    assert_eq!(error, PluginError::Guest { call: "route", message: "a fault of my own".into() });
    let mut instance = setup.start("trap").await;
    assert!(instance.route(&request("error")).await.is_err());
    assert_eq!(instance.route(&request("")).await, Ok(Decision::Serve), "an error is no trap");
}

#[tokio::test]
async fn later_calls_trap_too() {
    let setup = Setup::new();
    let mut compose = setup.start("trap").await;
    assert_eq!(compose.compose(&request("compose")).await.expect_err("a trap").code(), "plugin_trap");
    for text in ["chunk", "finish"] {
        let mut instance = setup.start("trap").await;
        instance.open_post_processor(&request(text)).await.expect("open");
        let chunk = instance.chunk(Chunk::default()).await;
        assert_eq!(chunk.is_err(), text == "chunk");
        let usage = HookUsage { prompt_tokens: 1, completion_tokens: 1, finish: FinishReason::Stop };
        assert_eq!(instance.finish(usage).await.expect_err("a trap").code(), "plugin_trap");
    }
}

#[tokio::test]
async fn an_endless_loop_uses_up_its_time() {
    let setup = Setup::new();
    let began = Instant::now();
    let error = routed(&setup, "spin", "").await;
    assert_eq!(error, PluginError::Timeout { call: "route", limit: "call_cpu_ms_max", max_ms: 50 });
    assert!(began.elapsed() > Duration::from_millis(50));
    let mut instance = setup.start("spin").await;
    assert_eq!(instance.compose(&request("")).await.expect_err("a loop").code(), "plugin_timeout");
}

#[tokio::test]
async fn a_spinning_guest_gives_way_to_others() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 400, ..limits() });
    let mut spinning = setup.start("spin").await;
    let mut echo = setup.start("echo").await;
    let others = async {
        let mut answered = 0;
        for _ in 0..5 {
            answered += u32::from(echo.compose(&request("hi")).await.is_ok());
            tokio::task::yield_now().await;
        }
        (answered, Instant::now())
    };
    let spin = async { (spinning.route(&request("")).await, Instant::now()) };
    let ((result, spun), (answered, served)) = tokio::join!(spin, others);
    assert_eq!(result.expect_err("a loop").code(), "plugin_timeout");
    assert_eq!(answered, 5);
    assert!(served < spun, "on one thread, the others do not wait for the end of the loop");
}

#[tokio::test]
async fn waiting_in_the_host_ends_on_the_wall_clock() {
    let setup = Setup::with(PluginLimits { call_wall_ms_max: 100, ..limits() });
    let catalog = Arc::new(Granted(Vec::new(), Duration::from_secs(3600)));
    let mut instance = setup.start_with("spin", Session { catalog, ..session() }).await;
    let error = instance.route(&request("calls")).await.expect_err("too long");
    assert_eq!(error, PluginError::Timeout { call: "route", limit: "call_wall_ms_max", max_ms: 100 });
    assert_eq!(instance.route(&request("serve")).await, Err(error));
}

#[tokio::test]
async fn host_calls_are_counted() {
    let error = routed(&Setup::new(), "spin", "calls").await;
    assert_eq!(error, PluginError::Limit { call: "route", limit: "host_calls_max" });
}

#[tokio::test]
async fn a_full_log_drops_lines_and_says_so() {
    let setup = Setup::new();
    let log = Arc::new(Kept::default());
    let mut instance = setup.start_with("spin", Session { log: Arc::clone(&log) as _, ..session() }).await;
    assert_eq!(instance.route(&request("log")).await.expect_err("endless").code(), "plugin_limit");
    let lines = log.0.lock().expect("not poisoned");
    let bytes: usize = lines.iter().filter(|(_, line)| line.starts_with('x')).map(|(_, line)| line.len()).sum();
    assert!(bytes <= 64 << 10 && bytes > 60 << 10, "{bytes}");
    assert_eq!(lines.iter().filter(|(_, line)| line.contains("log_bytes_max")).count(), 1);
    assert!(instance.log_lines_dropped() > 0);
}

#[tokio::test]
async fn endless_allocation_runs_out_of_memory() {
    // Filling 64 MiB may take longer than 50 ms here; this test is about memory.
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, ..limits() });
    let error = routed(&setup, "grow", "").await;
    assert_eq!((error.code(), error.blame()), ("plugin_out_of_memory", Blame::Function), "{error}");
}

#[tokio::test]
async fn many_memories_count_together() {
    let setup = Setup::new();
    let echo = guest("echo");
    let few = setup.host.admit(components::with_memories(&echo, 2, 400).into()).await.expect("each is small enough");
    assert!(setup.host.start(few, &Nowhere, session()).await.is_ok(), "51 MiB");
    let sum = setup.host.admit(components::with_memories(&echo, 3, 400).into()).await.expect("each is small enough");
    let error = setup.host.start(sum, &Nowhere, session()).await.expect_err("77 MiB");
    assert_eq!(error.code(), "plugin_out_of_memory", "{error}");
    let one = setup.host.admit(components::with_memories(&echo, 1, 2000).into()).await.expect_err("125 MiB in one");
    assert_eq!(one.code(), "plugin_invalid", "{one}");
    let many = setup.host.admit(components::with_memories(&echo, 20, 1).into()).await;
    let error = match many {
        Ok(digest) => setup.host.start(digest, &Nowhere, session()).await.expect_err("20 memories"),
        Err(error) => error,
    };
    assert!(["plugin_invalid", "plugin_limit"].contains(&error.code()), "{error}");
}

#[tokio::test]
async fn an_answer_may_not_be_endless() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, ..limits() });
    let error = routed(&setup, "grow", "answer").await;
    assert_eq!(error, PluginError::Limit { call: "route", limit: "transfer_bytes_max" });
    let mut instance = setup.start("grow").await;
    instance.open_post_processor(&request("actions")).await.expect("open");
    let error = instance.chunk(Chunk::default()).await.expect_err("10,000 actions");
    assert_eq!(error, PluginError::Limit { call: "post-processor.chunk", limit: "actions_max" });
}

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

/// wasmtime 39 to 41 panicked when a call was dropped (CVE-2026-27195).
#[tokio::test]
async fn an_abandoned_call_leaves_the_host_whole() {
    const TURNS: usize = 2000;
    let setup = Setup::new();
    let catalog = Arc::new(Granted(Vec::new(), Duration::from_secs(3600)));
    let digest = setup.host.admit(guest("spin")).await.expect("admitted");
    for turn in 0..TURNS {
        // In a host function, and now and then in the middle of the guest's own code.
        let text = if turn % 100 == 0 { "" } else { "calls" };
        let waiting = Session { catalog: Arc::clone(&catalog) as _, ..session() };
        let mut instance = setup.host.start(digest, &Nowhere, waiting).await.expect("started");
        abandon(instance.route(&request(text)), turn % 3).await;
        let again = instance.route(&request("serve")).await;
        match again {
            Ok(decision) => assert_eq!((decision, turn % 3), (Decision::Serve, 0), "never polled, never begun"),
            Err(PluginError::Trap { reason, .. }) => assert!(reason.contains("abandoned"), "{reason}"),
            Err(error) => panic!("{error}"),
        }
    }
    assert!(setup.start("echo").await.compose(&request("hi")).await.is_ok());
}

#[tokio::test]
async fn a_bad_plan_arrives_as_it_is_and_is_refused_by_its_check() {
    let setup = Setup::new();
    let plan = async |name: &str, text: &str| -> Plan {
        setup.start(name).await.compose(&request(text)).await.expect("a plan")
    };
    assert!(plan("bad-plan", "").await.composition[0].weight.is_nan());
    assert_eq!(plan("bad-plan", "entries").await.composition.len(), 1000);
    assert_eq!(plan("ungranted-adapter", "").await.composition[0].adapter, "not-mine");
}
