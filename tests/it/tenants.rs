//! Nothing crosses tenants: what another tenant has is not found, whatever it is and however it is named.

use serde_json::{Value, json};
use tests::{Client, adapter_folder, guest, shared_server, tenant_key};

const ALL: [&str; 4] = ["invoke", "deploy", "adapters", "receipts"];

fn stranger(operator: &Client, name: &str) -> Client {
    operator.with_key(Some(tenant_key(operator, name, &ALL)))
}

#[test]
fn another_tenants_functions_and_aliases_are_not_found() {
    let Some(server) = shared_server("another_tenants_functions_and_aliases_are_not_found") else { return };
    let stranger = stranger(&server.client(), "stranger-names");
    stranger.get("/v1/functions/skills").expect_not_found();
    stranger.post("/v1/functions/skills/invoke", &json!({"input": "hello"})).expect_not_found();
    stranger.delete("/v1/functions/skills").expect_not_found();
    stranger.post("/v1/functions/skills/promote", &json!({"version": 1})).expect_not_found();
    stranger.get("/v1/adapters/iso-date").expect_not_found();
    stranger.delete("/v1/adapters/iso-date").expect_not_found();
    let models = stranger.get("/v1/models").expect(200).text;
    assert!(!models.contains("skills") && !models.contains("iso-date"), "{models}");
    let functions = stranger.get("/v1/functions").expect(200).json();
    assert_eq!(functions["data"], json!([]));
    server.client().get("/v1/functions/skills").expect(200);
}

#[test]
fn a_digest_is_not_a_permission() {
    let Some(server) = shared_server("a_digest_is_not_a_permission") else { return };
    let owner = server.client();
    let stranger = stranger(&owner, "stranger-digests");
    let adapter = owner.get("/v1/adapters/iso-date").expect(200).json()["digest"].as_str().unwrap().to_owned();
    let body =
        |adapter: &str| json!({"model": "base", "prompt": "hello", "max_tokens": 1, "adapters": [{"name": adapter}]});
    owner.post("/v1/completions", &body(&adapter)).expect(200);
    let known = stranger.post("/v1/completions", &body(&adapter)).expect_error(400, "adapter_not_granted");
    let unknown = stranger.post("/v1/completions", &body(&"0".repeat(64))).expect_error(400, "adapter_not_granted");
    let message = |text: &str, digest: &str| text.replace(digest, "DIGEST");
    assert_eq!(
        message(&known.text, &adapter),
        message(&unknown.text, &"0".repeat(64)),
        "whether it exists is not observable"
    );
    stranger.get(&format!("/v1/adapters/{adapter}")).expect_not_found();
    let plugin = owner.upload_plugin(guest("echo"));
    let manifest = json!({"plugin": plugin});
    stranger.put("/v1/functions/stolen", &manifest).expect_not_found();
    // Who has the bytes may upload them, and then use them.
    assert_eq!(stranger.upload_plugin(guest("echo")), plugin);
    stranger.put("/v1/functions/own", &manifest).expect(201);
}

#[test]
fn the_same_names_live_side_by_side() {
    let Some(server) = shared_server("the_same_names_live_side_by_side") else { return };
    let operator = server.client();
    let stranger = stranger(&operator, "stranger-twins");
    let folder = adapter_folder("all-caps").expect("a committed adapter");
    stranger.upload_adapter("iso-date", &folder).expect(201);
    let ask = |client: &Client| -> Value {
        let messages =
            json!([{"role": "system", "content": "ISO date."}, {"role": "user", "content": "December 7th, 1997"}]);
        let body = json!({"model": "iso-date", "messages": messages, "max_tokens": 12, "temperature": 0});
        client.post("/v1/chat/completions", &body).expect(200).json()["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(ask(&operator), json!("1997-12-07"));
    assert_ne!(ask(&stranger), json!("1997-12-07"));
    stranger.delete("/v1/adapters/iso-date").expect(204);
    assert_eq!(ask(&operator), json!("1997-12-07"), "removing an alias removes nobody else's");
}

#[test]
fn another_tenants_receipt_is_not_found() {
    let Some(server) = shared_server("another_tenants_receipt_is_not_found") else { return };
    let owner = server.client();
    let stranger = stranger(&owner, "stranger-receipts");
    let body = json!({"input": "hello", "max_tokens": 1});
    let receipt = owner.post("/v1/functions/echo/invoke", &body).expect(200).receipt.expect("a receipt");
    owner.get(&format!("/v1/receipts/{receipt}")).expect(200);
    stranger.get(&format!("/v1/receipts/{receipt}")).expect_not_found();
    let listed = stranger.get("/v1/receipts").expect(200).text;
    assert!(!listed.contains(&receipt), "{listed}");
}
