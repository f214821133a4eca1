//! What hostile guests run into. After each, the host goes on.

use std::sync::Arc;
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
        assert_eq!(instance.route(&request("compose")).await, Err(error.clone()), "a second call after a trap");
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
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, ..limits() });
    for text in ["stack", "calls"] {
        let error = routed(&setup, "deep-recursion", text).await;
        assert!(matches!(&error, PluginError::Trap { reason, .. } if reason.contains("stack")), "{text}: {error}");
    }
    let error = routed(&setup, "deep-recursion", "memory").await;
    assert!(matches!(&error, PluginError::Trap { reason, .. } if reason.contains("out of bounds")), "{error}");
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
    let mut opened = setup.start("trap").await;
    let error = opened.open_post_processor(&request("constructor")).await.expect_err("a trap");
    assert!(error.to_string().contains("`post-processor`"), "{error}");
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
    for text in ["compose", "constructor", "chunk", "finish"] {
        let mut spin = setup.start("spin").await;
        let error = async {
            spin.compose(&request(text)).await?;
            spin.open_post_processor(&request(text)).await?;
            spin.chunk(Chunk::default()).await?;
            spin.finish(HookUsage { prompt_tokens: 1, completion_tokens: 1, finish: FinishReason::Stop }).await
        };
        let error = error.await.expect_err("a loop");
        assert!(
            matches!(error, PluginError::Timeout { call, limit: "call_cpu_ms_max", .. } if call.ends_with(text)
            || text == "constructor" && call == "post-processor"),
            "{text}: {error}"
        );
    }
}

#[tokio::test]
async fn many_short_calls_use_up_the_time_of_the_request() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, request_cpu_ms_max: 200, ..limits() });
    let mut spin = setup.start("spin").await;
    spin.open_post_processor(&request("often")).await.expect("open");
    let mut error = None;
    for _ in 0..10_000 {
        if let Err(failure) = spin.chunk(Chunk::default()).await {
            error = Some(failure);
            break;
        }
    }
    let call = "post-processor.chunk";
    assert_eq!(error, Some(PluginError::Timeout { call, limit: "request_cpu_ms_max", max_ms: 200 }));
    assert_eq!(setup.start("spin").await.route(&request("compose")).await, Ok(Decision::Serve), "another request");
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
    let mut instance = setup.start_with("cancel", Session { catalog, ..session() }).await;
    let error = instance.route(&request("wait")).await.expect_err("too long");
    assert_eq!(error, PluginError::Timeout { call: "route", limit: "call_wall_ms_max", max_ms: 100 });
    assert_eq!(instance.route(&request("")).await, Err(error));
}

#[tokio::test]
async fn host_calls_are_counted() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, request_host_calls_max: 5_500, ..limits() });
    for text in ["", "config", "random", "clock"] {
        let error = routed(&setup, "host-call-flood", text).await;
        assert_eq!(error, PluginError::Limit { call: "route", limit: "host_calls_max" }, "{text}");
    }
    let mut instance = setup.start("host-call-flood").await;
    instance.open_post_processor(&request("chunk")).await.expect("open");
    for _ in 0..5 {
        instance.chunk(Chunk::default()).await.expect("1000 calls are few enough for one chunk");
    }
    let error = instance.chunk(Chunk::default()).await.expect_err("6000 in all");
    assert_eq!(error, PluginError::Limit { call: "post-processor.chunk", limit: "request_host_calls_max" });
}

#[tokio::test]
async fn a_full_log_drops_lines_and_says_so() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, ..limits() });
    // What is asked; lines that may come through, their bytes, and the limit that is named.
    for (text, lines_max, bytes_max, limit) in [
        ("long", 65, 64 << 10, "log_bytes_max is 65536 bytes"),
        ("empty", 512, 0, "log_lines_max is 512 lines"),
        ("huge", 0, 0, "log_bytes_max is 65536 bytes"),
    ] {
        let log = Arc::new(Kept::default());
        let mut instance = setup.start_with("flood-log", Session { log: Arc::clone(&log) as _, ..session() }).await;
        let before = setup.host.stats().log_lines_dropped;
        assert_eq!(instance.route(&request(text)).await, Ok(Decision::Answer("logged".into())), "it does not notice");
        let lines = log.0.lock().expect("not poisoned");
        let (notices, own): (Vec<_>, Vec<_>) = lines.iter().partition(|(_, line)| line.contains("lines are dropped"));
        let bytes: usize = own.iter().map(|(_, line)| line.len()).sum();
        assert!(own.len() == lines_max && bytes <= bytes_max, "{text}: {} lines, {bytes} bytes", own.len());
        assert!(notices.len() == 1 && notices[0].1.contains(limit), "{text}: {notices:?}");
        let dropped = if text == "huge" { 1 } else { 1000 - lines_max };
        assert_eq!(usize::try_from(instance.log_lines_dropped()), Ok(dropped), "{text}");
        assert_eq!(setup.host.stats().log_lines_dropped - before, u64::from(instance.log_lines_dropped()));
    }
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
async fn memories_that_grow_count_together() {
    let setup = Setup::with(PluginLimits { start_cpu_ms_max: 30_000, ..limits() });
    let echo = guest("echo");
    let one = setup.host.admit(components::with_growing_memories(&echo, 1).into()).await.expect("admitted");
    assert!(setup.host.start(one, &Nowhere, session()).await.is_ok(), "one takes what there is, and is content");
    let two = setup.host.admit(components::with_growing_memories(&echo, 2).into()).await.expect("admitted");
    let error = setup.host.start(two, &Nowhere, session()).await.expect_err("nothing is left for the second");
    assert_eq!(error, PluginError::OutOfMemory { call: "start", max_bytes: 64 << 20 });
}

#[tokio::test]
async fn many_tables_count_together() {
    let setup = Setup::new();
    let echo = guest("echo");
    let few = setup.host.admit(components::with_tables(&echo, 2, 30_000).into()).await.expect("admitted");
    assert!(setup.host.start(few, &Nowhere, session()).await.is_ok());
    let sum = setup.host.admit(components::with_tables(&echo, 3, 30_000).into()).await.expect("each is small enough");
    let error = setup.host.start(sum, &Nowhere, session()).await.expect_err("90,000 elements");
    assert_eq!(error, PluginError::Limit { call: "start", limit: "table_elements_max" });
    let many = setup.host.admit(components::with_tables(&echo, 40, 1).into()).await.expect_err("40 core instances");
    assert_eq!(many.code(), "plugin_invalid", "{many}");
}

#[tokio::test]
async fn what_is_passed_to_the_host_may_not_be_endless() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 30_000, ..limits() });
    for text in ["answer", "reject", "error", "log", "config", "prefetch"] {
        let error = routed(&setup, "huge-strings", text).await;
        assert_eq!(error, PluginError::Limit { call: "route", limit: "transfer_bytes_max" }, "{text}");
    }
    for text in ["plan-text", "plan-messages", "plan-stops"] {
        let error = setup.start("huge-strings").await.compose(&request(text)).await.expect_err("too much");
        assert_eq!(error, PluginError::Limit { call: "compose", limit: "transfer_bytes_max" }, "{text}");
    }
    let error = setup.start("huge-strings").await.route(&request("long-error")).await.expect_err("its own");
    assert!(error.to_string().len() < 2000, "a message is cut: {} bytes", error.to_string().len());
    let mut instance = setup.start("grow").await;
    instance.open_post_processor(&request("actions")).await.expect("open");
    let error = instance.chunk(Chunk::default()).await.expect_err("10,000 actions");
    assert_eq!(error, PluginError::Limit { call: "post-processor.chunk", limit: "actions_max" });
}

#[tokio::test]
async fn a_length_that_lies_outside_of_the_memory_is_a_trap() {
    let setup = Setup::new();
    for text in ["lying-string", "lying-list"] {
        let error = routed(&setup, "huge-strings", text).await;
        assert!(matches!(&error, PluginError::Trap { reason, .. } if reason.contains("out of bounds")), "{error}");
    }
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
