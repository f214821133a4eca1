//! Plugins that are broken or hostile: the caller gets a clear error with a stable code, and the host goes on.

use serde_json::json;
use tests::{Answer, Client, guest, shared_server};

/// Deploys a component under its own name and invokes it.
fn invoke_guest(client: &Client, component: &str) -> Answer {
    let digest = client.upload_plugin(guest(component));
    let path = format!("/v1/functions/{component}");
    let manifest = json!({"plugin": digest, "adapters": ["iso-date"]});
    client.put(&path, &manifest).expect(201);
    let answer = client.post(&format!("{path}/invoke"), &json!({"input": "hello", "max_tokens": 4}));
    let after = json!({"input": "What is the capital of France?", "max_tokens": 2});
    client.post("/v1/functions/echo/invoke", &after).expect(200);
    answer
}

#[test]
fn a_trap_is_an_error_of_the_function() {
    let Some(server) = shared_server("a_trap_is_an_error_of_the_function") else { return };
    invoke_guest(&server.client(), "trap").expect_error(502, "plugin_trap");
}

#[test]
fn an_endless_loop_is_cut_off() {
    let Some(server) = shared_server("an_endless_loop_is_cut_off") else { return };
    invoke_guest(&server.client(), "spin").expect_error(502, "plugin_timeout");
}

#[test]
fn allocating_without_end_is_cut_off() {
    let Some(server) = shared_server("allocating_without_end_is_cut_off") else { return };
    invoke_guest(&server.client(), "grow").expect_error(502, "plugin_out_of_memory");
}

#[test]
fn an_invalid_plan_is_refused() {
    let Some(server) = shared_server("an_invalid_plan_is_refused") else { return };
    let answer = invoke_guest(&server.client(), "bad-plan");
    assert_eq!(answer.status, 502, "{}", answer.text);
    assert!(["invalid_plan", "limit_exceeded"].contains(&answer.code().as_str()), "{}", answer.text);
}

#[test]
fn an_adapter_that_was_not_granted_is_refused() {
    let Some(server) = shared_server("an_adapter_that_was_not_granted_is_refused") else { return };
    // `all-caps` is the tenant's own, but the manifest grants only `iso-date`.
    invoke_guest(&server.client(), "ungranted-adapter").expect_error(502, "adapter_not_granted");
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
