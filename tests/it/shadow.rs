//! Shadows: a version gets copies, its answers are compared and dropped, and no caller learns anything of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use tests::{Client, Options, Server, guest, server_with_limits, shared_server, wait_until_idle};

fn put(client: &Client, function: &str, config: &Value) {
    let plugin = client.upload_plugin(guest("decide"));
    client.put(&format!("/v1/functions/{function}"), &json!({"plugin": plugin, "config": config})).expect(201);
}

/// A live version and a shadow of it.
fn deploy(client: &Client, function: &str, live: &Value, shadow: &Value) {
    put(client, function, live);
    put(client, function, shadow);
    let set = client.put(&format!("/v1/functions/{function}/shadow"), &json!({"version": 2})).expect(200).json();
    assert_eq!(set["shadow"], json!({"version": 2, "percent": 100.0}));
}

fn report(client: &Client, function: &str) -> Value {
    client.get(&format!("/v1/functions/{function}/shadow")).expect(200).json()
}

fn sum(report: &Value) -> u64 {
    let dropped = ["busy", "under_way", "cut_off"].map(|name| report["dropped"][name].as_u64().unwrap());
    let counted = ["equal", "different", "failed"].map(|name| report[name].as_u64().unwrap());
    dropped.iter().chain(&counted).sum()
}

/// The report once so many requests are accounted for.
fn settled(client: &Client, function: &str, requests: u64) -> Value {
    let started = Instant::now();
    loop {
        let report = report(client, function);
        if sum(&report) >= requests {
            assert_eq!(sum(&report), requests, "{report}");
            return report;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{requests} requests: {report}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Invokes until one copy was not dropped for want of room: others use the host too.
fn compared(client: &Client, function: &str, body: &Value) -> (Value, tests::Answer) {
    for requests in 1..100 {
        let answer = client.post(&format!("/v1/functions/{function}/invoke"), body);
        let report = settled(client, function, requests);
        if let Some(last) = report["data"].as_array().unwrap().last() {
            assert_eq!(last["request"].as_str(), answer.request.as_deref());
            return (last.clone(), answer);
        }
        // Other tests keep the host busy.
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no copy was ever compared: {}", report(client, function));
}

#[test]
fn copies_are_compared_and_dropped() {
    let Some(server) = shared_server("copies_are_compared_and_dropped") else { return };
    let client = server.client();
    let plain = |text: &str| json!({"answer": text});
    for (function, live, shadow, verdict, at) in [
        ("shadow-equal", plain("the same"), plain("the same"), "equal", Value::Null),
        ("shadow-different", plain("the same"), plain("the sane"), "different", json!(6)),
        ("shadow-trapping", plain("fine"), json!({"trap": "yes"}), "failed", json!(0)),
        ("shadow-rejecting", plain("fine"), json!({"reject": "no"}), "failed", json!(0)),
        ("shadow-both-fail", json!({"trap": "yes"}), json!({"trap": "yes"}), "equal", Value::Null),
        ("shadow-repairs", json!({"trap": "yes"}), plain("fine"), "different", json!(0)),
    ] {
        deploy(&client, function, &live, &shadow);
        let (comparison, answer) = compared(&client, function, &json!({"input": "a"}));
        assert_eq!((&comparison["verdict"], &comparison["differs_at_byte"]), (&json!(verdict), &at), "{comparison}");
        assert_eq!(answer.version.as_deref(), Some("1"), "the caller has to do with the live version alone");
        assert!(!answer.text.contains("sane"), "{}", answer.text);
        let same = comparison["primary"]["digest"] == comparison["shadow"]["digest"];
        assert_eq!(same, at.is_null(), "{comparison}");
        assert_eq!(comparison["shadow"]["version"], json!(2));
    }
    let (trapped, _) = compared_again(&client, "shadow-trapping");
    assert_eq!(trapped["shadow"]["error"], json!("plugin_trap"));
    let page = client.get("/v1/functions/shadow-trapping/logs").expect(200).json();
    let lines = page["data"].as_array().unwrap();
    assert!(!lines.is_empty() && lines.iter().all(|line| line["request"].as_str().unwrap().ends_with("/shadow")));
}

fn compared_again(client: &Client, function: &str) -> (Value, Value) {
    let report = report(client, function);
    (report["data"].as_array().unwrap().last().unwrap().clone(), report)
}

#[test]
fn generated_answers_are_compared_with_the_same_randomness() {
    let Some(server) = shared_server("generated_answers_are_compared_with_the_same_randomness") else { return };
    let client = server.client();
    deploy(&client, "shadow-tokens", &json!({}), &json!({}));
    let body = json!({"input": "What is the capital of France?", "max_tokens": 12});
    let (comparison, answer) = compared(&client, "shadow-tokens", &body);
    assert_eq!(comparison["verdict"], json!("equal"), "{comparison}");
    assert_eq!(comparison["shadow"]["finish_reason"], comparison["primary"]["finish_reason"]);
    let tokens = &answer.json()["usage"]["completion_tokens"];
    assert_eq!(
        (&comparison["shadow"]["completion_tokens"], &comparison["primary"]["completion_tokens"]),
        (tokens, tokens)
    );
    assert!(comparison["shadow"]["duration_ms"].as_f64().unwrap() > 0.0);
    deploy(&client, "shadow-other", &json!({}), &json!({"prompt": "Count to ten."}));
    let streamed = json!({"input": "What is the capital of France?", "max_tokens": 12, "stream": true});
    let events = client.stream("/v1/functions/shadow-other/invoke", &streamed);
    assert!(events.done && events.text().contains("Paris"), "{}", events.text());
    let (comparison, _) = compared_from(&client, "shadow-other", &body, 1);
    assert_eq!(comparison["verdict"], json!("different"), "{comparison}");
    let report = report(&client, "shadow-other");
    assert!(report["completion_tokens"].as_u64().unwrap() > 0, "what copies cost is told: {report}");
}

/// As [`compared`], after some requests.
fn compared_from(client: &Client, function: &str, body: &Value, before: u64) -> (Value, Value) {
    for requests in before + 1..100 {
        client.post(&format!("/v1/functions/{function}/invoke"), body).expect(200);
        let report = settled(client, function, requests);
        if let Some(last) = report["data"].as_array().unwrap().last() {
            return (last.clone(), report);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("no copy was ever compared");
}

#[test]
fn copies_leave_no_receipt_and_no_usage() {
    let test = "copies_leave_no_receipt_and_no_usage";
    let Some(server) = Server::start(test, Options::default()) else { return };
    let client = server.client();
    deploy(&client, "counted", &json!({}), &json!({}));
    let body = json!({"input": "a", "max_tokens": 3});
    for _ in 0..3 {
        client.post("/v1/functions/counted/invoke", &body).expect(200);
    }
    let report = settled(&client, "counted", 3);
    assert!(report["equal"].as_u64().unwrap() >= 1, "{report}");
    let usage = client.get("/v1/usage").expect(200).json();
    assert_eq!(usage["total"]["requests"], json!(3), "{usage}");
    assert_eq!(usage["total"]["completion_tokens"], json!(9), "{usage}");
    let receipts = client.get("/v1/receipts").expect(200).json();
    assert_eq!(receipts["data"].as_array().map(Vec::len), Some(6), "two records for each of the three answers");
    client.delete("/v1/functions/counted/shadow").expect(204);
    client.post("/v1/functions/counted/invoke", &body).expect(200);
    std::thread::sleep(Duration::from_millis(300));
    let after = report_of(&client, "counted");
    assert_eq!((sum(&after), &after["shadow"], &after["version"]), (3, &Value::Null, &json!(2)), "no more copies");
    client.delete("/v1/functions/counted").expect(204);
    put(&client, "counted", &json!({}));
    assert_eq!(report_of(&client, "counted")["version"], Value::Null, "a successor of the name has none");
}

fn report_of(client: &Client, function: &str) -> Value {
    report(client, function)
}

#[test]
fn a_slow_shadow_costs_its_caller_nothing_and_copies_are_few() {
    let limits = [("plugin_call_cpu_ms_max", 3000), ("plugin_call_wall_ms_max", 20_000)];
    let test = "a_slow_shadow_costs_its_caller_nothing_and_copies_are_few";
    let Some(server) = server_with_limits(test, &limits) else { return };
    let client = server.client();
    // It never ends by itself: its time does.
    deploy(&client, "slow", &json!({"answer": "quick"}), &json!({"turns": u64::MAX.to_string()}));
    for _ in 0..12 {
        let started = Instant::now();
        let answer = client.post("/v1/functions/slow/invoke", &json!({"input": "a"})).expect(200);
        assert_eq!(answer.json()["output"], json!("quick"));
        assert!(started.elapsed() < Duration::from_secs(2), "nobody waits for a shadow: {:?}", started.elapsed());
    }
    let report = settled(&client, "slow", 12);
    assert_eq!(report["equal"], json!(0));
    assert!(report["failed"].as_u64().unwrap() >= 2, "{report}");
    assert!(report["dropped"]["under_way"].as_u64().unwrap() >= 6, "{report}");
    assert_eq!(report["data"][0]["shadow"]["error"], json!("plugin_timeout"));
    wait_until_idle(&client);
}

#[test]
fn a_host_that_stops_does_not_wait_for_copies() {
    let limits = [("plugin_call_cpu_ms_max", 80_000), ("plugin_call_wall_ms_max", 80_000)];
    let Some(mut server) = server_with_limits("a_host_that_stops_does_not_wait_for_copies", &limits) else { return };
    let client = server.client();
    deploy(&client, "stopped", &json!({"answer": "quick"}), &json!({"turns": u64::MAX.to_string()}));
    client.post("/v1/functions/stopped/invoke", &json!({"input": "a"})).expect(200);
    let started = Instant::now();
    server.terminate();
    assert!(server.wait().success());
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_busy_host_makes_no_copies() {
    let test = "a_busy_host_makes_no_copies";
    let arguments = ["--threads", "1"].map(str::to_owned).to_vec();
    let Some(server) = Server::start(test, Options { arguments, ..Options::default() }) else { return };
    let client = server.client();
    deploy(&client, "busy", &json!({"answer": "quick"}), &json!({"answer": "quick"}));
    let long = json!({"model": "base", "prompt": "Once upon a time", "max_tokens": 400, "ignore_eos": true, "stream": true,
        "n": 8});
    std::thread::scope(|scope| {
        // More than the host runs at once: some wait.
        let crowd: Vec<_> = (0..24).map(|_| scope.spawn(|| client.open("/v1/completions", &long))).collect();
        let started = Instant::now();
        while client.metric("vllm:num_requests_waiting").unwrap_or_default() < 4.0 {
            assert!(started.elapsed() < Duration::from_secs(60), "the queue does not fill");
            std::thread::sleep(Duration::from_millis(10));
        }
        client.post("/v1/functions/busy/invoke", &json!({"input": "a"})).expect(200);
        let report = settled(&client, "busy", 1);
        assert_eq!(report["dropped"]["busy"], json!(1), "{report}");
        crowd.into_iter().for_each(|caller| drop(caller.join()));
    });
}
