//! What an operator sees: health, readiness, metrics, and who is let in.

use serde_json::json;
use tests::{Client, shared_server, tenant_key};

#[test]
fn health_ready_and_metrics_need_no_key() {
    let Some(server) = shared_server("health_ready_and_metrics_need_no_key") else { return };
    let anyone = Client::new(server.url(), None);
    assert_eq!(anyone.get("/health").expect(200).json().get("status"), Some(&json!("ok")));
    anyone.get("/ready").expect(200);
    let metrics = anyone.get("/metrics").expect(200);
    assert!(metrics.text.contains("# TYPE") && metrics.text.ends_with("# EOF\n"), "{}", metrics.text);
    assert!(!metrics.text.contains("skills"), "metrics name no tenant's functions: {}", metrics.text);
}

#[test]
fn every_answer_has_a_request_id_of_its_own() {
    let Some(server) = shared_server("every_answer_has_a_request_id_of_its_own") else { return };
    let client = server.client();
    let ids: Vec<String> =
        ["/health", "/v1/models", "/v1/nowhere"].map(|path| client.get(path).request.unwrap()).into();
    assert!(ids.iter().all(|id| id.starts_with("req_")), "{ids:?}");
    assert!(ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
}

#[test]
fn a_key_is_needed_and_must_hold_and_must_have_the_right() {
    let Some(server) = shared_server("a_key_is_needed_and_must_hold_and_must_have_the_right") else { return };
    let anyone = Client::new(server.url(), None);
    anyone.get("/v1/models").expect_error(401, "unauthorized");
    let body = json!({"input": "hello"});
    anyone.post("/v1/functions/echo/invoke", &body).expect_error(401, "unauthorized");
    let wrong = anyone.with_key(Some("tnk_00000000000000000000000000_nothing".into()));
    wrong.get("/v1/models").expect_error(401, "unauthorized");
    let mut nearly = server.key();
    let last = nearly.pop().unwrap();
    nearly.push(if last == 'a' { 'b' } else { 'a' });
    anyone.with_key(Some(nearly)).get("/v1/models").expect_error(401, "unauthorized");
    let invoker = anyone.with_key(Some(tenant_key(&server.client(), "invoker", &["invoke"])));
    invoker.get("/v1/models").expect(200);
    invoker.get("/v1/functions").expect_error(403, "forbidden");
    invoker.post("/v1/keys", &json!({"tenant": "invoker", "rights": ["admin"]})).expect_error(403, "forbidden");
    invoker.post_bytes("/v1/plugins", vec![0; 8]).expect_error(403, "forbidden");
}

#[test]
fn a_revoked_key_is_let_in_no_more() {
    let Some(server) = shared_server("a_revoked_key_is_let_in_no_more") else { return };
    let operator = server.client();
    operator.post("/v1/tenants", &json!({"name": "leaver"})).expect(201);
    let made = operator.post("/v1/keys", &json!({"tenant": "leaver", "rights": ["invoke"]})).expect(201).json();
    let key = made["key"].as_str().unwrap().to_owned();
    let leaver = operator.with_key(Some(key.clone()));
    leaver.get("/v1/models").expect(200);
    operator.delete(&format!("/v1/keys/{}", made["id"].as_str().unwrap())).expect(204);
    leaver.get("/v1/models").expect_error(401, "unauthorized");
    let listed = operator.get("/v1/tenants").expect(200).text;
    assert!(!listed.contains(&key), "secrets are shown once");
}

#[test]
fn what_is_not_there_is_not_found() {
    let Some(server) = shared_server("what_is_not_there_is_not_found") else { return };
    let client = server.client();
    client.get("/v1/nowhere").expect_not_found();
    client.get("/v1/functions/nobody").expect_not_found();
    client.post("/v1/functions/nobody/invoke", &json!({"input": "hello"})).expect_not_found();
    client.get("/v1/adapters/nobody").expect_not_found();
    client.get("/v1/receipts/rcpt_00000000000000000000000000").expect_not_found();
    client.delete("/v1/functions/echo/invoke").expect_error(405, "method_not_allowed");
}

#[test]
fn bodies_that_make_no_sense_are_refused() {
    let Some(server) = shared_server("bodies_that_make_no_sense_are_refused") else { return };
    let client = server.client();
    let invoke = "/v1/functions/echo/invoke";
    client.post_bytes(invoke, b"{\"input\": ".to_vec()).expect_error(400, "invalid_json");
    client.post_bytes(invoke, vec![0xff, 0xfe]).expect_error(400, "invalid_json");
    client.post(invoke, &json!({"inptu": "hello"})).expect_error(400, "invalid_request");
    client.post(invoke, &json!({"input": "hello", "messages": []})).expect_error(400, "invalid_request");
    client.post("/v1/chat/completions", &json!({"model": "base"})).expect_error(400, "invalid_request");
    client.post_bytes(invoke, Vec::new()).expect_error(400, "invalid_json");
}

#[test]
fn a_huge_body_is_refused_and_the_server_goes_on() {
    let Some(server) = shared_server("a_huge_body_is_refused_and_the_server_goes_on") else { return };
    let client = server.client();
    for bytes in [48 << 20, 4 << 30] {
        let (status, text) = client.post_zeros("/v1/functions/echo/invoke", bytes);
        assert!(status == 413 && text.contains("body_too_large"), "{text}");
    }
    client.get("/v1/models").expect(200);
}
