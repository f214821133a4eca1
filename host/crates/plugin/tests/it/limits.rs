//! Every limit that a function may narrow: narrowed, met, and named in what is said about it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use plugin::{OwnLimits, PluginError, PluginLimits, Session};
use types::{Chunk, Decision};

use crate::components;
use crate::lenders::{lent, lines};
use crate::setup::{Granted, Nowhere, Setup, guest, limits, request};

/// A limit, the guest that meets it when it is asked so, and its configuration.
struct Case {
    limit: &'static str,
    own: OwnLimits,
    guest: &'static str,
    text: &'static str,
    config: &'static [(&'static str, &'static str)],
}

fn case(limit: &'static str, own: OwnLimits, guest: &'static str, text: &'static str) -> Case {
    Case { limit, own, guest, text, config: &[] }
}

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let own = OwnLimits::default;
    vec![
        case("memory_bytes_max", OwnLimits { memory_bytes_max: Some(4 << 20), ..own() }, "grow", ""),
        case("table_elements_max", OwnLimits { table_elements_max: Some(1), ..own() }, "echo", ""),
        case("handles_max", OwnLimits { handles_max: Some(8), ..own() }, "imports", "kv-hold b 50"),
        case("call_cpu_ms_max", OwnLimits { call_cpu_ms_max: Some(5), ..own() }, "spin", ""),
        case("request_cpu_ms_max", OwnLimits { request_cpu_ms_max: Some(5), ..own() }, "spin", ""),
        case("call_wall_ms_max", OwnLimits { call_wall_ms_max: Some(50), ..own() }, "cancel", "wait"),
        case("start_cpu_ms_max", OwnLimits { start_cpu_ms_max: Some(5), ..own() }, "endless start", ""),
        case("log_bytes_max", OwnLimits { log_bytes_max: Some(10), ..own() }, "flood-log", "long"),
        case("log_lines_max", OwnLimits { log_lines_max: Some(3), ..own() }, "flood-log", "empty"),
        case("host_calls_max", OwnLimits { host_calls_max: Some(20), ..own() }, "host-call-flood", "clock"),
        case("request_host_calls_max", OwnLimits { request_host_calls_max: Some(20), ..own() }, "host-call-flood", "clock"),
        case("transfer_bytes_max", OwnLimits { transfer_bytes_max: Some(10_000), ..own() }, "imports", "count x100000"),
        case("random_bytes_max", OwnLimits { random_bytes_max: Some(3), ..own() }, "wasi-peek", "lent"),
        Case { config: &[("1", "emit:a|emit:b")], ..case("actions_max", OwnLimits { actions_max: Some(1), ..own() }, "actions", "chunk") },
        case("kv_writes_max", OwnLimits { kv_writes_max: Some(2), ..own() }, "imports", "3*kv-set b k v"),
        case("http_requests_max", OwnLimits { http_requests_max: Some(1), ..own() }, "imports", "2*get http://echo/"),
        case("http_request_bytes_max", OwnLimits { http_request_bytes_max: Some(10), ..own() }, "imports", "post http://echo/ x100"),
        case("http_response_bytes_max", OwnLimits { http_response_bytes_max: Some(10), ..own() }, "imports", "get http://long/"),
        case("http_headers_bytes_max", OwnLimits { http_headers_bytes_max: Some(1000), ..own() }, "imports", "header http://echo/ a x2000"),
        case("tool_calls_max", OwnLimits { tool_calls_max: Some(1), ..own() }, "imports", "2*tools facts"),
        case("tokenizer_bytes_max", OwnLimits { tokenizer_bytes_max: Some(4), ..own() }, "imports", "count hello"),
        case("function_calls_max", OwnLimits { function_calls_max: Some(1), ..own() }, "agent-probe", "repeat 2 call other x"),
        case("sessions_max", OwnLimits { sessions_max: Some(1), ..own() }, "agent-probe", "open a x\nfork a b"),
        case("generations_max", OwnLimits { generations_max: Some(1), ..own() }, "agent-probe", "open a x\nrepeat 2 gen a 1"),
        case("generated_tokens_max", OwnLimits { generated_tokens_max: Some(2), ..own() }, "agent-probe", "open a x\ngen a 3"),
        case("generated_tokens_max", OwnLimits { generated_tokens_max: Some(3), ..own() }, "agent-probe", "open a x\nopen b x\nstart a 2\nstart b 2"),
        case("generated_tokens_max", OwnLimits { generated_tokens_max: Some(3), ..own() }, "agent-probe", "open a x\nstart a 2\nstop a\nstart a 2"),
        case("session_tokens_max", OwnLimits { session_tokens_max: Some(3), ..own() }, "agent-probe", "open a hello\ngen a 1"),
        case("run_cpu_ms_max", OwnLimits { run_cpu_ms_max: Some(5), ..own() }, "agent-probe", "spin"),
        case("run_wall_ms_max", OwnLimits { run_wall_ms_max: Some(50), ..own() }, "agent-probe", "call slow x"),
    ]
}

/// What the caller, the guest and the log are told, in one text.
async fn told(setup: &Setup, case: &Case, own: OwnLimits) -> String {
    let (session, log) = lent();
    let config = case.config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let catalog = Arc::new(Granted(Vec::new(), Duration::from_millis(5)));
    let session = Session { limits: own, config, catalog, ..session };
    let component = match case.guest {
        "endless start" => components::with_endless_start(&guest("echo")).into(),
        name => guest(name),
    };
    let digest = setup.host.admit(component).await.expect("admitted");
    let outcome = async {
        let mut instance = setup.host.start(digest, &Nowhere, session).await?;
        if case.text == "chunk" {
            instance.open_post_processor(&request("")).await?;
            return instance.chunk(Chunk::default()).await.map(|_| Decision::Serve);
        }
        if instance.is_agent() {
            return instance.run_agent(&request(case.text)).await.map(|answer| Decision::Answer(answer.text));
        }
        instance.route(&request(case.text)).await
    };
    let outcome: Result<Decision, PluginError> = outcome.await;
    let answer = match outcome {
        Ok(Decision::Answer(text)) => text,
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    };
    format!("{answer}\n{}", lines(&log).join("\n"))
}

#[tokio::test]
async fn each_limit_is_met_and_named() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 500, start_cpu_ms_max: 500, ..limits() });
    let cases = cases();
    for case in &cases {
        let said = told(&setup, case, case.own.clone()).await;
        assert!(said.contains(case.limit), "{}: {said}", case.limit);
    }
    let tested: BTreeSet<&str> = cases.iter().map(|case| case.limit).collect();
    assert_eq!(tested, OwnLimits::NAMES.iter().copied().collect(), "every limit has its case");
}

/// The cases would prove little if their guests met the host's own limits just the same.
#[tokio::test]
async fn without_it_the_same_guest_does_not_meet_it() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 500, start_cpu_ms_max: 500, ..limits() });
    // These guests go on until some limit ends them.
    let endless = [
        "memory_bytes_max",
        "call_cpu_ms_max",
        "call_wall_ms_max",
        "start_cpu_ms_max",
        "log_bytes_max",
        "log_lines_max",
        "host_calls_max",
        "run_cpu_ms_max",
        "run_wall_ms_max",
    ];
    for case in cases().iter().filter(|case| !endless.contains(&case.limit)) {
        let said = told(&setup, case, OwnLimits::default()).await;
        // It asks for too much on purpose as well.
        let is_met = said.contains(case.limit) && case.limit != "random_bytes_max";
        assert!(!is_met, "{}: {said}", case.limit);
    }
}

#[tokio::test]
async fn a_function_s_limits_do_not_widen_the_host_s() {
    let setup = Setup::with(PluginLimits { call_cpu_ms_max: 5, ..limits() });
    let wide = OwnLimits { call_cpu_ms_max: Some(60_000), memory_bytes_max: Some(usize::MAX), ..OwnLimits::default() };
    let (session, _) = lent();
    let mut spin = setup.start_with("spin", Session { limits: wide, ..session }).await;
    let error = spin.route(&request("")).await.expect_err("too long");
    assert_eq!(error, PluginError::Timeout { call: "route", limit: "call_cpu_ms_max", max_ms: 5 });
}
