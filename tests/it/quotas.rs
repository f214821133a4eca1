//! What a tenant may use is refused with a reason when it is used up, and belongs to nobody else.

use std::io::BufRead as _;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tests::{Client, guest, shared_server, tenant_key};

const ALL: [&str; 4] = ["invoke", "deploy", "adapters", "receipts"];

fn tenant(operator: &Client, name: &str, quota: &Value) -> Client {
    let client = operator.with_key(Some(tenant_key(operator, name, &ALL)));
    let set = operator.put(&format!("/v1/tenants/{name}/quota"), quota).expect(200).json();
    assert_eq!(set["own"], json!(true), "{set}");
    client
}

fn ask(max_tokens: u32) -> Value {
    json!({"model": "base", "prompt": "The ocean is", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true})
}

#[test]
fn requests_are_refused_when_they_are_used_up_and_say_when_to_come_back() {
    let Some(server) = shared_server("requests_are_refused_when_they_are_used_up_and_say_when_to_come_back") else {
        return;
    };
    let operator = server.client();
    let client = tenant(&operator, "quota-requests", &json!({"requests_per_minute_max": 1}));
    let response = client.request(Method::POST, "/v1/completions").json(&ask(1)).send().expect("an answer");
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(response.status(), 200);
    assert_eq!(header("x-ratelimit-limit-requests").as_deref(), Some("1"));
    assert_eq!(header("x-ratelimit-remaining-requests").as_deref(), Some("0"));
    assert!(header("x-ratelimit-reset-requests").is_some_and(|reset| reset.ends_with('s')));
    let refused = client.post("/v1/completions", &ask(1)).expect_error(429, "quota_exceeded");
    assert!(refused.text.contains("requests_per_minute_max of 1 is used up"), "{}", refused.text);
    let wait: u64 = refused.retry_after.as_deref().expect("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&wait), "{wait}");
    // The other dialects say it in their own words; what is no call is not counted.
    let lorax = client.post("/generate", &json!({"inputs": "The ocean is", "parameters": {"max_new_tokens": 1}}));
    assert_eq!((lorax.status, lorax.json()["code"].clone()), (429, json!("quota_exceeded")), "{}", lorax.text);
    client.get("/v1/models").expect(200);
    client.get("/v1/functions").expect(200);
    let left = client.get("/v1/quota").expect(200).json();
    assert_eq!((&left["tenant"], &left["own"]), (&json!("quota-requests"), &json!(true)));
    assert_eq!((&left["standing"][0]["what"], &left["standing"][0]["remaining"]), (&json!("requests"), &json!(0)));
    // Nobody else pays for it, and an administrator raises it at once.
    operator.post("/v1/completions", &ask(1)).expect(200);
    operator.put("/v1/tenants/quota-requests/quota", &json!({"requests_per_minute_max": 100})).expect(200);
    client.post("/v1/completions", &ask(1)).expect(200);
    let given_back = operator.delete("/v1/tenants/quota-requests/quota").expect(200).json();
    assert_eq!((&given_back["own"], &given_back["standing"]), (&json!(false), &json!([])));
    let response = client.request(Method::POST, "/v1/completions").json(&ask(1)).send().expect("an answer");
    assert!(!response.headers().contains_key("x-ratelimit-limit-requests"), "who has no limit is told none");
}

#[test]
fn tokens_of_an_answer_are_paid_back_before_the_next() {
    let Some(server) = shared_server("tokens_of_an_answer_are_paid_back_before_the_next") else { return };
    let client = tenant(&server.client(), "quota-tokens", &json!({"tokens_per_minute_max": 1}));
    let answer = client.post("/v1/completions", &ask(16)).expect(200).json();
    assert_eq!(answer["usage"]["completion_tokens"], json!(16), "what was let in is finished");
    let refused = client.post("/v1/completions", &ask(1)).expect_error(429, "quota_exceeded");
    assert!(refused.text.contains("tokens_per_minute_max of 1"), "{}", refused.text);
    let wait: u64 = refused.retry_after.as_deref().expect("retry-after").parse().expect("seconds");
    assert_eq!(wait, 120, "more than 16 tokens are owed, at a minute each; no estimate is good for longer than this");
}

#[test]
fn a_stream_holds_its_place_until_it_ends() {
    let Some(server) = shared_server("a_stream_holds_its_place_until_it_ends") else { return };
    let client = tenant(&server.client(), "quota-places", &json!({"concurrent_requests_max": 1}));
    let mut body = ask(2000);
    body["stream"] = json!(true);
    let mut stream = Client::lines(client.open("/v1/completions", &body));
    let mut line = String::new();
    stream.read_line(&mut line).expect("a first line");
    let refused = client.post("/v1/completions", &ask(1)).expect_error(429, "quota_exceeded");
    assert!(refused.text.contains("concurrent_requests_max of 1"), "{}", refused.text);
    assert_eq!(refused.retry_after.as_deref(), Some("1"));
    // A caller that leaves gives its place back.
    drop(stream);
    let started = Instant::now();
    while client.post("/v1/completions", &ask(1)).status != 200 {
        assert!(started.elapsed() < Duration::from_secs(30), "the place is not free again");
        std::thread::sleep(Duration::from_millis(50));
    }
    client.post("/v1/completions", &ask(1)).expect(200);
}

#[test]
fn bytes_of_uploads_count_and_keep_nobody_from_administering() {
    let Some(server) = shared_server("bytes_of_uploads_count_and_keep_nobody_from_administering") else { return };
    let operator = server.client();
    let client = tenant(&operator, "quota-bytes", &json!({"body_bytes_per_minute_max": 1000}));
    let plugin = guest("echo");
    assert!(plugin.len() > 2000);
    drop(client.upload_plugin(plugin.clone()));
    let refused = client.post_bytes("/v1/plugins", plugin).expect_error(429, "quota_exceeded");
    assert!(refused.text.contains("body_bytes_per_minute_max of 1000"), "{}", refused.text);
    client.post("/v1/completions", &ask(1)).expect_error(429, "quota_exceeded");
    client.get("/v1/functions").expect(200);
    let mine = json!({"body_bytes_per_minute_max": 1});
    operator.put("/v1/tenants/dev-of-quotas/quota", &mine).expect_not_found();
}

#[test]
fn quotas_that_make_no_sense_are_refused() {
    let Some(server) = shared_server("quotas_that_make_no_sense_are_refused") else { return };
    let operator = server.client();
    let client = tenant(&operator, "quota-wrong", &json!({"requests_per_minute_max": 1_000_000}));
    let path = "/v1/tenants/quota-wrong/quota";
    for (body, code) in [
        (json!({"requests_per_minute_max": 0}), "invalid_quota"),
        (json!({"concurrent_requests_max": 0}), "invalid_quota"),
        (json!({"tokens_per_minute_max": -1}), "invalid_request"),
        (json!({"tokens_per_minute_max": 1.5}), "invalid_request"),
        (json!({"body_bytes_per_minute_max": 1e300}), "invalid_request"),
        (json!({"tokens": 5}), "invalid_request"),
        (json!([1, 2, 3, 4]), "invalid_request"),
    ] {
        operator.put(path, &body).expect_error(400, code);
    }
    operator.put("/v1/tenants/nobody-there/quota", &json!({})).expect_not_found();
    client.put(path, &json!({})).expect_error(403, "forbidden");
    client.get(path).expect_error(403, "forbidden");
    let kept = operator.get(path).expect(200).json();
    assert_eq!(kept["quota"]["requests_per_minute_max"], json!(1_000_000), "{kept}");
}
