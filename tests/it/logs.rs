//! A function's log: what its plugin said, and which invocations failed; followed, bounded, its tenant's alone.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Client, guest, shared_server, tenant_key};

fn deploy(client: &Client, function: &str, component: &str, adapters: &Value) {
    let plugin = client.upload_plugin(guest(component));
    client.put(&format!("/v1/functions/{function}"), &json!({"plugin": plugin, "adapters": adapters})).expect(201);
}

fn lines(client: &Client, function: &str, query: &str) -> Value {
    client.get(&format!("/v1/functions/{function}/logs?{query}")).expect(200).json()
}

fn messages(page: &Value) -> Vec<&str> {
    page["data"].as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap()).collect()
}

#[test]
fn what_a_plugin_says_and_what_fails_is_logged_and_followed() {
    let Some(server) = shared_server("what_a_plugin_says_and_what_fails_is_logged_and_followed") else { return };
    let client = server.client();
    deploy(&client, "logged", "skill-router", &json!(["iso-date"]));
    let empty = lines(&client, "logged", "");
    assert_eq!((messages(&empty), &empty["dropped"]), (vec![], &json!(0)));
    let invoke = |input: &Value| client.post("/v1/functions/logged/invoke", input);
    let answer = invoke(&json!({"input": "December 7th, 1997"})).expect(200);
    let page = lines(&client, "logged", &format!("after={}", empty["next"].as_str().unwrap()));
    assert_eq!(messages(&page), ["chose iso-date"]);
    let line = &page["data"][0];
    assert_eq!((&line["level"], &line["version"]), (&json!("info"), &json!(1)));
    assert_eq!(line["request"].as_str(), answer.request.as_deref(), "a line names its request");
    assert!(line["time_unix_ms"].as_u64().unwrap() > 1_700_000_000_000);
    let next = page["next"].as_str().unwrap().to_owned();
    let query = format!("after={next}&wait_ms=30000");
    let page = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| lines(&client, "logged", &query));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished(), "there is nothing to tell yet");
        invoke(&json!({"input": "December 8th, 1997", "max_tokens": 4})).expect(200);
        // Unless that took very long, half of the waiting is ahead: who is not told of the line does not come back soon.
        let answered = Instant::now();
        while !waiting.is_finished() {
            assert!(answered.elapsed() < Duration::from_secs(15), "who waits is told at once");
            std::thread::sleep(Duration::from_millis(20));
        }
        waiting.join().unwrap()
    });
    assert_eq!(messages(&page), ["chose iso-date"]);
    let later = page["data"][0]["time_unix_ms"].as_u64().unwrap() + 1;
    assert!(messages(&lines(&client, "logged", &format!("since_unix_ms={later}"))).is_empty());
    assert_eq!(messages(&lines(&client, "logged", "limit=1")).len(), 1);
    client.get("/v1/functions/logged/logs?after=nonsense").expect_error(400, "invalid_request");
    client.get("/v1/functions/logged/logs?form=1").expect_error(400, "invalid_request");
}

#[test]
fn an_invocation_that_fails_leaves_a_line_with_its_code() {
    let Some(server) = shared_server("an_invocation_that_fails_leaves_a_line_with_its_code") else { return };
    let client = server.client();
    deploy(&client, "failing", "trap", &json!([]));
    for (text, code) in [("panic", "plugin_trap"), ("compose", "plugin_trap"), ("chunk", "plugin_trap")] {
        let failed = client.post("/v1/functions/failing/invoke", &json!({"input": text, "max_tokens": 4}));
        assert_eq!((failed.status, failed.code().as_str()), (502, code), "{}", failed.text);
        let page = lines(&client, "failing", "limit=1");
        let line = &page["data"][0];
        assert!(line["message"].as_str().unwrap().starts_with(&format!("the invocation failed: {code}: ")), "{line}");
        assert_eq!((line["level"].as_str(), line["request"].as_str()), (Some("error"), failed.request.as_deref()));
    }
    assert_eq!(messages(&lines(&client, "failing", "")).len(), 3, "one line for each");
}

#[test]
fn a_flood_is_bounded_and_counted() {
    let Some(server) = shared_server("a_flood_is_bounded_and_counted") else { return };
    let client = server.client();
    deploy(&client, "flooding", "flood-log", &json!([]));
    client.post("/v1/functions/flooding/invoke", &json!({"input": "flood", "max_tokens": 1})).expect(200);
    let page = lines(&client, "flooding", "limit=1000");
    let bytes: usize = messages(&page).iter().map(|message| message.len()).sum();
    assert!((1000..1 << 20).contains(&bytes), "{bytes} bytes");
    assert!(messages(&page).iter().any(|line| line.contains("log_bytes_max")), "what was dropped is said");
}

#[test]
fn a_log_is_its_tenants_and_goes_with_its_function() {
    let Some(server) = shared_server("a_log_is_its_tenants_and_goes_with_its_function") else { return };
    let client = server.client();
    deploy(&client, "private-log", "skill-router", &json!(["iso-date"]));
    client.post("/v1/functions/private-log/invoke", &json!({"input": "7 May 1990", "max_tokens": 2})).expect(200);
    let stranger = client.with_key(Some(tenant_key(&client, "log-stranger", &["deploy", "invoke"])));
    stranger.get("/v1/functions/private-log/logs").expect_not_found();
    let invoker = client.with_key(Some(tenant_key(&client, "log-stranger", &["invoke"])));
    invoker.get("/v1/functions/private-log/logs").expect_error(403, "forbidden");
    let page = lines(&client, "private-log", "");
    assert!(!messages(&page).is_empty());
    let query = format!("/v1/functions/private-log/logs?wait_ms=20000&after={}", page["next"].as_str().unwrap());
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| client.get(&query));
        std::thread::sleep(Duration::from_millis(200));
        client.delete("/v1/functions/private-log").expect(204);
        follower.join().unwrap().expect_not_found();
    });
    deploy(&client, "private-log", "skill-router", &json!(["iso-date"]));
    assert!(messages(&lines(&client, "private-log", "")).is_empty(), "its successor begins anew");
}
