//! Callers that leave, hosts that stop, and hosts that are stopped: nothing leaks, nothing durable is lost. Each test has
//! a server of its own, in the default precision.

use std::io::BufRead;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Client, Options, Server, deploy_examples};

/// The share of KV memory that sequences hold; 0 when nothing runs.
fn kv_share_used(client: &Client) -> f64 {
    const NAME: &str = "vllm:kv_cache_usage_perc";
    client.metric(NAME).unwrap_or_else(|| panic!("/metrics has no {NAME}"))
}

fn long_completion() -> Value {
    json!({"model": "base", "prompt": "Once upon a time", "max_tokens": 1500, "temperature": 0, "ignore_eos": true,
        "stream": true})
}

/// Opens a long stream and reads its first events.
fn begin_stream(client: &Client) -> std::io::BufReader<reqwest::blocking::Response> {
    let response = client.open("/v1/completions", &long_completion());
    assert_eq!(response.status().as_u16(), 200);
    let mut lines = Client::lines(response);
    let mut line = String::new();
    for _ in 0..6 {
        line.clear();
        lines.read_line(&mut line).expect("a first event comes");
    }
    lines
}

#[test]
fn a_client_that_hangs_up_frees_its_blocks() {
    let Some(server) = Server::start("a_client_that_hangs_up_frees_its_blocks", Options::default()) else { return };
    let client = server.client();
    let used = || kv_share_used(&client);
    assert_eq!(used(), 0.0);
    let stream = begin_stream(&client);
    assert!(used() > 0.0);
    drop(stream);
    let started = Instant::now();
    while used() > 0.0 {
        assert!(started.elapsed() < Duration::from_secs(10), "the blocks are still held");
        std::thread::sleep(Duration::from_millis(20));
    }
    let receipts = client.get("/v1/receipts").expect(200).text;
    assert!(receipts.contains("cancelled"), "the receipt says so: {receipts}");
}

#[test]
fn a_crowd_that_comes_and_leaves_holds_nothing_in_the_end() {
    let test = "a_crowd_that_comes_and_leaves_holds_nothing_in_the_end";
    let Some(server) = Server::start(test, Options::default()) else { return };
    let client = server.client();
    deploy_examples(&client);
    std::thread::scope(|scope| {
        for caller in 0..24_usize {
            let client = &client;
            scope.spawn(move || match caller % 3 {
                0 => drop(begin_stream(client)),
                1 => {
                    let body = json!({"input": "December 7th, 1997", "stream": true});
                    let events = client.stream("/v1/functions/skills/invoke", &body);
                    assert_eq!(events.text(), "1997-12-07", "whoever else is in the batch");
                }
                _ => {
                    let input = json!({"text": "What is the ocean?", "all-caps": 0.1 * caller as f64});
                    let body = json!({"input": input, "max_tokens": 8});
                    client.post("/v1/functions/blend/invoke", &body).expect(200);
                }
            });
        }
    });
    let started = Instant::now();
    while kv_share_used(&client) > 0.0 {
        assert!(started.elapsed() < Duration::from_secs(10), "blocks are still held");
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = tests::run_tenon(&["receipt", "verify", "--url", server.url(), "--key", &server.key()]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("48 records") && said.contains("0 receipts are open"), "{said}");
}

#[test]
fn sigterm_lets_what_runs_end_and_takes_no_more() {
    let Some(mut server) = Server::start("sigterm_lets_what_runs_end_and_takes_no_more", Options::default()) else {
        return;
    };
    let client = server.client();
    let mut body = long_completion();
    body["max_tokens"] = json!(60);
    let response = client.open("/v1/completions", &body);
    let mut lines = Client::lines(response);
    let mut first = String::new();
    lines.read_line(&mut first).expect("a first event comes");
    server.terminate();
    let rest: Vec<String> = lines.lines().map(|line| line.expect("the stream goes on to its end")).collect();
    assert!(rest.iter().any(|line| line == "data: [DONE]"), "{rest:?}");
    let status = server.wait();
    assert!(status.success(), "{status}: {}", server.log());
    assert_eq!(client.get("/health").status, 0, "nobody listens any more");
}

#[test]
fn a_restart_keeps_functions_adapters_keys_and_receipts() {
    let test = "a_restart_keeps_functions_adapters_keys_and_receipts";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    deploy_examples(&server.client());
    let key = server.key();
    let ask = |client: &Client| {
        let answer = client.post("/v1/functions/skills/invoke", &json!({"input": "December 7th, 1997"})).expect(200);
        assert_eq!(answer.json()["output"], json!("1997-12-07"), "in the default precision too");
        answer.receipt.expect("a receipt")
    };
    let before = ask(&server.client());
    server.terminate();
    assert!(server.wait().success(), "{}", server.log());
    let data = server.data().to_path_buf();
    let _scratch = server.keep_data();
    drop(server);
    let Some(server) = Server::start(test, Options { data: Some(data), ..Options::default() }) else { return };
    assert_eq!(server.key(), key, "the development key holds on");
    let client = server.client();
    let after = ask(&client);
    client.get(&format!("/v1/receipts/{before}")).expect(200);
    let output = tests::run_tenon(&["receipt", "verify", &after, "--url", server.url(), "--key", &key]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_host_that_was_killed_recovers_its_receipts() {
    let test = "a_host_that_was_killed_recovers_its_receipts";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    let client = server.client();
    let response = client.open("/v1/completions", &long_completion());
    let header = response.headers().get("x-tenon-receipt").and_then(|value| value.to_str().ok());
    let receipt = header.expect("a receipt").to_owned();
    let mut lines = Client::lines(response);
    lines.read_line(&mut String::new()).expect("a first event comes");
    server.kill();
    let data = server.data().to_path_buf();
    let _scratch = server.keep_data();
    drop(server);
    let Some(server) = Server::start(test, Options { data: Some(data), ..Options::default() }) else { return };
    let value = server.client().get(&format!("/v1/receipts/{receipt}")).expect(200).json();
    assert_eq!(value["kind"], json!("recovered"), "{value}");
    let output = tests::run_tenon(&["receipt", "verify", &receipt, "--url", server.url(), "--key", &server.key()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn development_servers_refuse_other_addresses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (data, base) = (folder.path().join("data"), folder.path().join("base.gguf"));
    std::fs::write(&base, "never read").unwrap();
    let (data, base) = (data.to_str().unwrap(), base.to_str().unwrap());
    let arguments = ["serve", "--dev", "--listen", "0.0.0.0:0", "--base", base, "--data", data];
    let output = tests::run_tenon(&arguments);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("loopback") || said.contains("127.0.0.1"), "it says what to do: {said}");
}

#[test]
fn the_development_key_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let Some(server) = Server::start("the_development_key_is_for_its_owner_alone", Options::default()) else { return };
    let mode = std::fs::metadata(server.data().join("dev.key")).expect("dev.key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_sigterm_cuts_the_drain_short() {
    let Some(mut server) = Server::start("a_second_sigterm_cuts_the_drain_short", Options::default()) else { return };
    let client = server.client();
    let response = client.open("/v1/completions", &long_completion());
    let receipt = response.headers()["x-tenon-receipt"].to_str().unwrap().to_owned();
    let mut lines = Client::lines(response);
    lines.read_line(&mut String::new()).expect("a first event comes");
    server.terminate();
    let started = Instant::now();
    while !server.log().contains("draining") {
        assert!(started.elapsed() < Duration::from_secs(10), "it does not drain: {}", server.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    lines.read_line(&mut String::new()).expect("what runs goes on");
    server.terminate();
    let status = server.wait();
    assert!(started.elapsed() < Duration::from_secs(10) && status.success(), "{status}: {}", server.log());
    assert!(server.log().contains("a second signal"), "{}", server.log());
    let rest: Result<Vec<String>, _> = lines.lines().collect();
    assert!(rest.is_err() || rest.is_ok_and(|rest| !rest.iter().any(|line| line == "data: [DONE]")), "it was cut");
    let data = server.data().to_path_buf();
    let _scratch = server.keep_data();
    drop(server);
    let again = Options { data: Some(data), ..Options::default() };
    let Some(server) = Server::start("a_second_sigterm_cuts_the_drain_short", again) else { return };
    let value = server.client().get(&format!("/v1/receipts/{receipt}")).expect(200).json();
    assert_eq!(value["kind"], json!("cancelled"), "its receipt was closed before the end: {value}");
}

#[test]
fn who_follows_a_log_does_not_hold_up_the_drain() {
    let test = "who_follows_a_log_does_not_hold_up_the_drain";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    let client = server.client();
    deploy_examples(&client);
    let next = client.get("/v1/functions/echo/logs").expect(200).json()["next"].as_str().unwrap().to_owned();
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| client.get(&format!("/v1/functions/echo/logs?wait_ms=30000&after={next}")));
        std::thread::sleep(Duration::from_millis(300));
        let started = Instant::now();
        server.terminate();
        assert!(follower.join().expect("an answer").expect(200).json()["data"].as_array().unwrap().is_empty());
        assert!(server.wait().success(), "{}", server.log());
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    });
}

#[test]
fn what_serve_says_can_be_json() {
    let options = Options { arguments: vec!["--json".into()], ..Options::default() };
    let Some(mut server) = Server::start("what_serve_says_can_be_json", options) else { return };
    server.terminate();
    assert!(server.wait().success());
    let log = server.log();
    let said: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut events: Vec<&str> = said.iter().filter_map(|line| line["event"].as_str()).collect();
    events.sort_unstable();
    assert_eq!(events, ["development_key", "listening", "ready"], "{log}");
}
