//! Plugins that are broken or hostile: the caller gets a clear error with a stable code, and the host goes on.

use serde_json::json;
use tests::{Client, guest, shared_server};

/// Deploys a component under its own name, and invokes it with each text; each must fail as it says, and the host must
/// serve the next request.
fn check(client: &Client, component: &str, cases: &[(&str, &str)]) {
    let digest = client.upload_plugin(guest(component));
    let path = format!("/v1/functions/{component}");
    // `all-caps` is the tenant's own, but it is not granted.
    client.put(&path, &json!({"plugin": digest, "adapters": ["iso-date"]})).expect(201);
    for (text, code) in cases {
        let answer = client.post(&format!("{path}/invoke"), &json!({"input": text, "max_tokens": 4}));
        let is_right = answer.status == 502 && code.split('|').any(|code| code == answer.code());
        assert!(is_right, "{component} {text}: expected {code}, {} {}", answer.status, answer.text);
        let after = json!({"input": "What is the capital of France?", "max_tokens": 2});
        client.post("/v1/functions/echo/invoke", &after).expect(200);
    }
}

#[test]
fn a_trap_is_an_error_of_the_function() {
    let Some(server) = shared_server("a_trap_is_an_error_of_the_function") else { return };
    let cases = [
        ("panic", "plugin_trap"),
        ("error", "plugin_error"),
        ("compose", "plugin_trap"),
        ("chunk", "plugin_trap"),
        ("finish", "plugin_trap"),
    ];
    check(&server.client(), "trap", &cases);
}

#[test]
fn an_endless_loop_is_cut_off() {
    let Some(server) = shared_server("an_endless_loop_is_cut_off") else { return };
    check(&server.client(), "spin", &[("route", "plugin_timeout"), ("compose", "plugin_timeout")]);
}

#[test]
fn allocating_without_end_is_cut_off() {
    let Some(server) = shared_server("allocating_without_end_is_cut_off") else { return };
    // On a slow machine the pages take more CPU time than a call may have; `adversarial.rs` tells the two apart.
    check(&server.client(), "grow", &[("grow", "plugin_out_of_memory|plugin_timeout"), ("actions", "plugin_limit")]);
}

#[test]
fn an_invalid_plan_is_refused() {
    let Some(server) = shared_server("an_invalid_plan_is_refused") else { return };
    let cases = [
        ("temperature", "invalid_plan"),
        ("long-prompt", "limit_exceeded"),
        ("entries", "limit_exceeded"),
        ("constraint", "invalid_constraint"),
        ("hand-over", "hand_over_not_granted"),
        ("template", "unknown_template"),
    ];
    check(&server.client(), "bad-plan", &cases);
}

#[test]
fn a_template_of_the_manifest_is_rendered_and_a_broken_one_refused() {
    let Some(server) = shared_server("a_template_of_the_manifest_is_rendered_and_a_broken_one_refused") else { return };
    let client = server.client();
    let digest = client.upload_plugin(guest("bad-plan"));
    let manifest = |template: &str| json!({"plugin": digest, "templates": {"brief": template}});
    client.put("/v1/functions/templated", &manifest("Q: {{ question }}\nA:")).expect(201);
    let body = json!({"input": "template", "max_tokens": 4});
    let through = client.post("/v1/functions/templated/invoke", &body).expect(200).json();
    let same = json!({"model": "base", "prompt": "Q: What is the ocean?\nA:", "max_tokens": 4, "temperature": 0});
    let direct = client.post("/v1/completions", &same).expect(200).json();
    assert_eq!(through["output"], direct["choices"][0]["text"]);
    client.put("/v1/functions/templated", &manifest("{{ question")).expect_error(400, "invalid_template");
}

#[test]
fn what_a_plugin_rejects_is_its_callers_to_mend() {
    let Some(server) = shared_server("what_a_plugin_rejects_is_its_callers_to_mend") else { return };
    let client = server.client();
    let digest = client.upload_plugin(guest("bad-plan"));
    client.put("/v1/functions/choosy", &json!({"plugin": digest})).expect(201);
    let answer = client.post("/v1/functions/choosy/invoke", &json!({"input": "reject"}));
    assert!(answer.expect_error(422, "rejected_rude").text.contains("say please"));
}

#[test]
fn an_adapter_that_was_not_granted_is_refused() {
    let Some(server) = shared_server("an_adapter_that_was_not_granted_is_refused") else { return };
    check(&server.client(), "ungranted-adapter", &[("hello", "adapter_not_granted")]);
}

#[test]
fn a_failure_in_mid_stream_is_an_event_and_a_failed_receipt() {
    let Some(server) = shared_server("a_failure_in_mid_stream_is_an_event_and_a_failed_receipt") else { return };
    let client = server.client();
    let digest = client.upload_plugin(guest("trap"));
    client.put("/v1/functions/trap-later", &json!({"plugin": digest})).expect(201);
    let body = json!({"input": "finish", "max_tokens": 4, "stream": true});
    let events = client.stream("/v1/functions/trap-later/invoke", &body);
    assert_eq!(events.status, 200, "it was on its way already");
    assert_eq!(events.last("/error/code"), Some(&json!("plugin_trap")), "{:?}", events.data);
    let receipt = client.get(&format!("/v1/receipts/{}", events.receipt.expect("a receipt"))).expect(200).json();
    assert_eq!(receipt["kind"], json!("failed"), "{receipt}");
    assert_eq!(receipt["receipt"]["outcome"]["error"], json!("plugin_trap"), "{receipt}");
}

#[test]
fn a_failure_after_admission_names_its_receipt() {
    let Some(server) = shared_server("a_failure_after_admission_names_its_receipt") else { return };
    let client = server.client();
    let digest = client.upload_plugin(guest("trap"));
    client.put("/v1/functions/trap-whole", &json!({"plugin": digest})).expect(201);
    let answer = client.post("/v1/functions/trap-whole/invoke", &json!({"input": "finish", "max_tokens": 4}));
    let answer = answer.expect_error(502, "plugin_trap");
    let receipt = client.get(&format!("/v1/receipts/{}", answer.receipt.expect("a receipt"))).expect(200).json();
    assert_eq!(receipt["kind"], json!("failed"), "{receipt}");
}

#[test]
fn a_post_processor_holds_replaces_and_stops() {
    let Some(server) = shared_server("a_post_processor_holds_replaces_and_stops") else { return };
    let client = server.client();
    let digest = client.upload_plugin(guest("first-sentence"));
    client.put("/v1/functions/first-sentence", &json!({"plugin": digest})).expect(201);
    let body = json!({"input": "Tell me about the ocean.", "max_tokens": 100});
    let answer = client.post("/v1/functions/first-sentence/invoke", &body).expect(200);
    let value = answer.json();
    let output = value["output"].as_str().unwrap();
    assert!(output.ends_with('.') && output.matches('.').count() == 1, "{output}");
    assert_eq!(value["finish_reason"], json!("stopped_by_plugin"), "{value}");
    assert_eq!(value["metadata"]["tokens-read"], json!(value["usage"]["completion_tokens"].to_string()), "{value}");
    let receipt = client.get(&format!("/v1/receipts/{}", answer.receipt.expect("a receipt"))).expect(200).json();
    assert_eq!(receipt["receipt"]["outcome"]["claims"][0]["name"], json!("tokens-read"), "{receipt}");
}

#[test]
fn wasi_that_was_linked_in_shows_nothing() {
    let Some(server) = shared_server("wasi_that_was_linked_in_shows_nothing") else { return };
    let client = server.client();
    let digest = client.upload_plugin(guest("wasi-peek"));
    client.put("/v1/functions/wasi-peek", &json!({"plugin": digest})).expect(201);
    let value = client.post("/v1/functions/wasi-peek/invoke", &json!({"input": "look"})).expect(200).json();
    assert_eq!(value["output"], json!("0 things seen"));
}

#[test]
fn a_failing_plugin_does_not_disturb_others() {
    let Some(server) = shared_server("a_failing_plugin_does_not_disturb_others") else { return };
    let client = server.client();
    let spin = client.upload_plugin(guest("spin"));
    client.put("/v1/functions/spinning", &json!({"plugin": spin})).expect(201);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let answer = client.post("/v1/functions/spinning/invoke", &json!({"input": "hello"}));
                assert_eq!(answer.code(), "plugin_timeout", "{}", answer.text);
            });
        }
        let body = json!({"input": "December 7th, 1997"});
        let answer = client.post("/v1/functions/skills/invoke", &body).expect(200).json();
        assert_eq!(answer["output"], json!("1997-12-07"));
    });
}

#[test]
fn what_is_no_component_is_refused_at_upload() {
    let Some(server) = shared_server("what_is_no_component_is_refused_at_upload") else { return };
    let client = server.client();
    let refused = |bytes: Vec<u8>| {
        let answer = client.post_bytes("/v1/plugins", bytes);
        assert!(answer.status == 400 || answer.status == 422, "{} {}", answer.status, answer.text);
        assert!(answer.code().starts_with("plugin_") || answer.code().starts_with("invalid_"), "{}", answer.text);
    };
    refused(Vec::new());
    refused(b"not WebAssembly".to_vec());
    // A core module is not a component.
    refused(b"\0asm\x01\0\0\0".to_vec());
    let mut cut = guest("echo");
    cut.truncate(cut.len() / 2);
    refused(cut);
}
