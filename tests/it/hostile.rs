//! Callers and deployers who mean harm, or make mistakes: each gets an error of its own, and the host goes on.

use serde_json::{Value, json};
use tests::{Client, guest, shared_server};

fn is_alive(client: &Client) {
    client.post("/v1/completions", &json!({"model": "base", "prompt": "a", "max_tokens": 1})).expect(200);
}

#[test]
fn a_template_cannot_end_the_process() {
    let Some(server) = shared_server("a_template_cannot_end_the_process") else { return };
    let client = server.client();
    let plugin = client.upload_plugin(guest("echo"));
    let deep = |unit: &str| format!("{{{{ {}1 }}}}", unit.repeat(50_000));
    let bombs = [deep("-"), deep("not "), "{{ 'a' * 100000000000 }}".into(), "{% set a = 'a' %}".into()];
    for source in bombs {
        let manifest = json!({"plugin": plugin, "templates": {"bomb": source}});
        client.put("/v1/functions/bomb", &manifest).expect_error(400, "invalid_template");
        is_alive(&client);
    }
    let manifest = json!({"plugin": plugin, "templates": {"greet": "Hello {{ name }}!"}});
    client.put("/v1/functions/greeter", &manifest).expect(201);
}

#[test]
fn what_the_caller_asks_of_a_function_is_the_callers_fault() {
    let Some(server) = shared_server("what_the_caller_asks_of_a_function_is_the_callers_fault") else { return };
    let client = server.client();
    let refused = |body: Value, code: &str| {
        client.post("/v1/functions/echo/invoke", &body).expect_error(400, code);
    };
    refused(json!({"input": "a", "max_tokens": 0}), "invalid_plan");
    refused(json!({"input": "a", "max_tokens": u32::MAX}), "limit_exceeded");
    refused(json!({"input": "a".repeat(2 << 20)}), "limit_exceeded");
    let parameters: Value = (0..100_000).map(|index| (format!("k{index}"), json!(index))).collect();
    refused(json!({"input": parameters}), "limit_exceeded");
    let chat = json!({"model": "echo", "messages": [{"role": "user", "content": "a"}], "max_tokens": 0});
    client.post("/v1/chat/completions", &chat).expect_error(400, "invalid_request");
    is_alive(&client);
}

#[test]
fn a_functions_own_limit_bounds_what_a_caller_may_ask() {
    let Some(server) = shared_server("a_functions_own_limit_bounds_what_a_caller_may_ask") else { return };
    let client = server.client();
    let manifest = json!({"plugin": client.upload_plugin(guest("echo")), "limits": {"output_tokens_max": 2}});
    client.put("/v1/functions/two-tokens", &manifest).expect(201);
    let answer = client.post("/v1/functions/two-tokens/invoke", &json!({"input": "Tell me a story", "max_tokens": 50}));
    assert_eq!(answer.expect(200).json()["usage"]["completion_tokens"], json!(2));
}

#[test]
fn a_path_that_is_no_text_is_an_error_like_any_other() {
    let Some(server) = shared_server("a_path_that_is_no_text_is_an_error_like_any_other") else { return };
    let client = server.client();
    for path in ["/v1/functions/%ff", "/v1/adapters/%ff", "/v1/receipts/%ff"] {
        client.get(path).expect_error(400, "invalid_request");
    }
    client.delete("/v1/keys/%ff").expect_error(400, "invalid_request");
    client.post("/v1/functions/%ff/invoke", &json!({"input": "a"})).expect_error(400, "invalid_request");
}

#[test]
fn an_upload_over_its_limit_is_told_the_limit() {
    let Some(server) = shared_server("an_upload_over_its_limit_is_told_the_limit") else { return };
    let (status, text) = server.client().post_zeros("/v1/plugins", 33 << 20);
    assert_eq!(status, 413, "{text}");
    assert!(text.contains("upload_bytes_max of 33554432"), "{text}");
}
