//! Guests that mean harm, over HTTP: each ends in a clear error of its own, beside a neighbour whose answers stay what they
//! are, and when it has ended nothing of it is left. How much slower the neighbour was is printed, not asserted.

// Components that no toolchain makes; the sandbox's own tests put them together.
#[allow(dead_code, reason = "made for the tests of another crate, which use all of it")]
#[path = "../../host/crates/plugin/tests/it/components.rs"]
mod components;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Answer, Client, Server, deploy_component, deploy_examples, deploy_plugin, guest};
use tests::{receipt_of, server_with_limits, wait_until_idle};

/// One way to misbehave: the request's text, the error's code, and what its message must name.
type Case = (&'static str, &'static str, &'static str);

/// What a neighbour asks, over and over; its answers do not depend on who else is there.
struct Neighbour {
    client: Client,
    expected: [(&'static str, Value, Value); 2],
}

impl Neighbour {
    fn new(client: &Client) -> Self {
        let ask = [
            ("skills", json!({"input": "December 7th, 1997"})),
            ("echo", json!({"input": "What is the capital of France?", "max_tokens": 6})),
        ];
        let expected = ask.map(|(function, body)| {
            let output = invoke(client, function, &body).expect(200).json()["output"].clone();
            (function, body, output)
        });
        assert_eq!(expected[0].2, json!("1997-12-07"));
        Self { client: client.clone(), expected }
    }

    /// Asks everything once; how long it took.
    fn round(&self) -> Duration {
        let started = Instant::now();
        for (function, body, expected) in &self.expected {
            let answer = invoke(&self.client, function, body).expect(200);
            assert_eq!(answer.json()["output"], *expected, "{function}, whoever else is there");
        }
        started.elapsed()
    }

    /// Asks while something else runs, and at least once.
    fn beside(&self, what: &str, run: impl FnOnce()) {
        let alone = self.round();
        let done = AtomicBool::new(false);
        let rounds = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut rounds = vec![self.round()];
                while !done.load(Ordering::Relaxed) {
                    rounds.push(self.round());
                }
                rounds
            });
            // When this panics, the neighbour must end too.
            let end = EndsWith(&done);
            run();
            drop(end);
            asking.join().expect("the neighbour is well")
        });
        let mean = rounds.iter().sum::<Duration>() / u32::try_from(rounds.len()).expect("few");
        eprintln!("{what}: a neighbour took {alone:?} alone, {mean:?} beside it ({} rounds)", rounds.len());
    }
}

struct EndsWith<'a>(&'a AtomicBool);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn invoke(client: &Client, function: &str, body: &Value) -> Answer {
    client.post(&format!("/v1/functions/{function}/invoke"), body)
}

/// A server with limits that let each guest meet the limit that it is about: computing is cheap, the rest is not.
fn generous(test: &str) -> Option<Server> {
    let limits = [
        ("plugin_call_cpu_ms_max", 30_000),
        ("plugin_request_cpu_ms_max", 60_000),
        ("plugin_start_cpu_ms_max", 30_000),
        ("plugin_call_wall_ms_max", 120_000),
        ("plugin_request_host_calls_max", 2_500),
        ("answer_bytes_max", 1 << 20),
    ];
    let server = server_with_limits(test, &limits)?;
    deploy_examples(&server.client());
    Some(server)
}

/// Each case whole and streamed, beside the neighbour: the error, the receipt if one was begun, and in the end nothing left.
fn check(server: &Server, function: &str, cases: &[Case]) {
    let client = server.client();
    Neighbour::new(&client).beside(function, || cases.iter().for_each(|case| misbehave(&client, function, *case)));
    wait_until_idle(&client);
}

fn misbehave(client: &Client, function: &str, (text, code, says): Case) {
    let mut body = json!({"input": text, "max_tokens": 4});
    let whole = invoke(client, function, &body).expect_error(502, code);
    assert!(whole.text.contains(says), "{text}: {}", whole.text);
    assert!(whole.text.len() < 4096, "{text}: a message is short");
    body["stream"] = json!(true);
    let streamed = client.stream(&format!("/v1/functions/{function}/invoke"), &body);
    let began = streamed.status == 200;
    if began {
        assert_eq!(streamed.last("/error/code"), Some(&json!(code)), "{text}: {:?}", streamed.data);
    } else {
        assert_eq!(streamed.status, 502, "{text}");
    }
    let sent = began.then(|| streamed.text());
    for (receipt, sent) in [(whole.receipt, None), (streamed.receipt, sent.as_deref())] {
        let Some(receipt) = receipt else { continue };
        let receipt = receipt_of(client, &receipt, sent);
        let outcome = &receipt["receipt"]["outcome"];
        assert_eq!((&receipt["kind"], &outcome["error"]), (&json!("failed"), &json!(code)), "{text}");
    }
}

#[test]
fn time_stack_and_traps() {
    let Some(server) = server_with_limits("time_stack_and_traps", &[]) else { return };
    let client = server.client();
    deploy_examples(&client);
    deploy_plugin(&client, "spin", "spin", &json!({}));
    let spin = |place| (place, "plugin_timeout", "call_cpu_ms_max");
    check(&server, "spin", &["route", "compose", "constructor", "chunk", "finish"].map(spin));
    deploy_plugin(&client, "trap", "trap", &json!({}));
    let trap = |place| (place, "plugin_trap", "unreachable");
    check(&server, "trap", &["panic", "compose", "constructor", "chunk", "finish", "stop"].map(trap));
    deploy_plugin(&client, "deep-recursion", "deep-recursion", &json!({}));
    let cases = [
        ("stack", "plugin_trap", "stack"),
        ("calls", "plugin_trap", "stack"),
        ("memory", "plugin_trap", "out of bounds"),
    ];
    check(&server, "deep-recursion", &cases);
}

#[test]
fn memories_tables_and_instances() {
    let Some(server) = generous("memories_tables_and_instances") else { return };
    let client = server.client();
    deploy_plugin(&client, "grow", "grow", &json!({}));
    let memory = ("route", "plugin_out_of_memory", "memory_bytes_max");
    check(&server, "grow", &[memory, ("chunk", memory.1, memory.2), ("actions", "plugin_limit", "actions_max")]);
    let echo = guest("echo");
    deploy_component(&client, "memories", components::with_memories(&echo, 3, 400), &json!({}));
    check(&server, "memories", &[memory]);
    deploy_component(&client, "growing", components::with_growing_memories(&echo, 2), &json!({}));
    check(&server, "growing", &[memory]);
    deploy_component(&client, "tables", components::with_tables(&echo, 3, 30_000), &json!({}));
    check(&server, "tables", &[("", "plugin_limit", "table_elements_max")]);
    let many = client.post_bytes("/v1/plugins", components::with_memories(&echo, 40, 1));
    many.expect_error(422, "plugin_invalid");
}

#[test]
fn plans_that_are_refused() {
    let Some(server) = generous("plans_that_are_refused") else { return };
    let client = server.client();
    deploy_plugin(&client, "bad-plan", "bad-plan", &json!({"adapters": ["all-caps", "iso-date"]}));
    let cases = [
        ("", "invalid_plan", "NaN"),
        ("infinite", "invalid_plan", "inf"),
        ("heavy", "limit_exceeded", "adapter_weight_abs_max"),
        ("entries", "limit_exceeded", "composition_entries_max"),
        ("layers", "invalid_plan", ""),
        ("template", "unknown_template", "`brief`"),
        ("budget", "limit_exceeded", "output_tokens_max"),
        ("deadline", "limit_exceeded", "deadline_ms_max"),
        ("temperature", "invalid_plan", "temperature"),
        ("top-p", "invalid_plan", "top_p"),
        ("stop", "invalid_plan", ""),
        ("stops", "limit_exceeded", "stop_conditions_max"),
        ("empty-prompt", "invalid_plan", "prompt"),
        ("long-prompt", "limit_exceeded", "prompt_bytes_max"),
        ("constraint", "invalid_constraint", "regular expression"),
        ("hand-over", "hand_over_not_granted", "may not hand over"),
    ];
    // A caller's own max_tokens would lower the budget.
    let invoke = |text: &str| client.post("/v1/functions/bad-plan/invoke", &json!({"input": text}));
    for (text, code, says) in cases {
        let answer = invoke(text).expect_error(502, code);
        assert!(answer.text.contains(says), "{text}: {}", answer.text);
        assert!(answer.receipt.is_none(), "{text}: nothing was begun");
    }
    wait_until_idle(&client);
    deploy_plugin(&client, "ungranted", "ungranted-adapter", &json!({"adapters": ["iso-date"]}));
    // The tenant's own, one that is not there, and what is no name at all: one answer.
    let names = ["all-caps", "nobody", "../iso-date", &"0".repeat(64), "\u{0}"];
    for name in names {
        let answer = client.post("/v1/functions/ungranted/invoke", &json!({"input": name}));
        answer.expect_error(502, "adapter_not_granted");
    }
    check(&server, "ungranted", &[("all-caps", "adapter_not_granted", "`all-caps`")]);
}

#[test]
fn floods_of_calls_and_of_text() {
    let Some(server) = generous("floods_of_calls_and_of_text") else { return };
    let client = server.client();
    deploy_plugin(&client, "host-call-flood", "host-call-flood", &json!({}));
    let cases = [
        ("", "plugin_limit", "host_calls_max"),
        ("config", "plugin_limit", "host_calls_max"),
        ("random", "plugin_limit", "host_calls_max"),
        ("clock", "plugin_limit", "host_calls_max"),
        ("chunk", "plugin_limit", "request_host_calls_max"),
    ];
    check(&server, "host-call-flood", &cases);
    deploy_plugin(&client, "huge-strings", "huge-strings", &json!({}));
    let transfer = |text| (text, "plugin_limit", "transfer_bytes_max");
    let passed = ["answer", "reject", "error", "log", "config", "prefetch", "plan-text", "plan-messages", "plan-stops"];
    check(&server, "huge-strings", &passed.map(transfer));
    let cases = [
        transfer("emit"),
        transfer("metadata"),
        ("emit-often", "limit_exceeded", "answer_bytes_max"),
        ("claims", "limit_exceeded", "claim_value_bytes_max"),
        ("long-error", "plugin_error", "route"),
        ("plan-adapter", "adapter_not_granted", "aaaa"),
        ("lying-string", "plugin_trap", "out of bounds"),
        ("lying-list", "plugin_trap", "out of bounds"),
    ];
    check(&server, "huge-strings", &cases);
}

#[test]
fn a_flooded_log_is_bounded_and_counted() {
    let Some(server) = generous("a_flooded_log_is_bounded_and_counted") else { return };
    let client = server.client();
    deploy_plugin(&client, "flood-log", "flood-log", &json!({}));
    let neighbour = Neighbour::new(&client);
    let dropped = || client.metric("tenon_plugin_log_lines_dropped_total").expect("the metric");
    deploy_plugin(&client, "trap", "trap", &json!({}));
    // The log up to here: it comes in order, so all of it is there once the end is.
    let log = || {
        let end = invoke(&client, "trap", &json!({"input": "panic"})).request.expect("an id");
        let mut log = server.wait_for_log(&end);
        log.truncate(log.find(&end).expect("it is there"));
        log
    };
    // What is asked, lines that are dropped, lines and bytes that the log may have more.
    for (text, lost, lines_max, bytes_max) in [
        ("long", 935.0, 80, 96 << 10),
        ("empty", 488.0, 530, 96 << 10),
        ("huge", 1.0, 20, 16 << 10),
        ("forged", 0.0, 20, 16 << 10),
    ] {
        let (before, lost_before) = (log().len(), dropped());
        neighbour.beside(&format!("flood-log {text}"), || {
            let answer = invoke(&client, "flood-log", &json!({"input": text})).expect(200);
            assert_eq!(answer.json()["output"], json!("logged"), "the guest does not notice");
        });
        assert_eq!(dropped() - lost_before, lost, "{text}");
        let grown = log().split_off(before);
        let lines = grown.lines().filter(|line| line.contains("plugin:")).count();
        assert!(lines <= lines_max && grown.len() <= bytes_max, "{text}: {lines} lines, {} bytes", grown.len());
        assert_eq!(grown.contains("lines are dropped"), lost > 0.0, "{text}: {grown}");
        assert!(!grown.lines().any(|line| line.starts_with("2026-01-01")), "no line is the guest's own: {grown}");
    }
    // 1000 calls in each of at most two chunks, and a limit for the whole request.
    let body = json!({"input": "chunk", "max_tokens": 2});
    invoke(&client, "flood-log", &body).expect(200);
    wait_until_idle(&client);
}
