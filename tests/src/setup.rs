//! What most tests start from: a server with the example adapters and functions. Not here: what is tested.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::{Client, Options, Server, adapter_folder, guest};

/// The adapters whose files are in the tree.
const ADAPTERS: [&str; 3] = ["all-caps", "sentiment-json", "iso-date"];

/// One server for all tests that do not need their own, with [`deploy_examples`] done. `None` where no base was fetched.
pub fn shared_server(test: &str) -> Option<&'static Server> {
    static SHARED: OnceLock<Option<Server>> = OnceLock::new();
    let server = SHARED.get_or_init(|| {
        let server = Server::start("the shared server", Options::f32())?;
        deploy_examples(&server.client());
        Some(server)
    });
    if server.is_none() {
        crate::skip(test, "the base is not there (cargo xtask base)");
    }
    server.as_ref()
}

/// Uploads the three adapters and the example plugins, and deploys `echo`, `skills` and `blend`.
///
/// # Panics
/// If anything is refused.
pub fn deploy_examples(client: &Client) {
    for name in ADAPTERS {
        let folder = adapter_folder(name).unwrap_or_else(|| panic!("tests/fixtures/lora/{name} is missing"));
        let answer = client.upload_adapter(name, &folder);
        assert!(matches!(answer.status, 200 | 201), "{name}: {} {}", answer.status, answer.text);
    }
    let blend = json!({"first": "all-caps", "second": "sentiment-json", "system": "Answer the question."});
    deploy(client, "echo", "echo", &json!([]), &json!({}));
    deploy(client, "skills", "skill-router", &json!(ADAPTERS), &json!({}));
    deploy(client, "blend", "blend", &json!(["all-caps", "sentiment-json"]), &blend);
}

fn deploy(client: &Client, function: &str, plugin: &str, adapters: &Value, config: &Value) {
    let digest = client.upload_plugin(guest(plugin));
    let manifest = json!({"plugin": digest, "adapters": adapters, "config": config});
    let answer = client.put(&format!("/v1/functions/{function}"), &manifest);
    assert!(matches!(answer.status, 200 | 201), "{function}: {} {}", answer.status, answer.text);
}

/// A key of this tenant with these rights, made by the operator's key.
///
/// # Panics
/// If it is refused.
#[must_use]
pub fn tenant_key(operator: &Client, tenant: &str, rights: &[&str]) -> String {
    let answer = operator.post("/v1/tenants", &json!({"name": tenant}));
    assert!(matches!(answer.status, 200 | 201 | 409), "{} {}", answer.status, answer.text);
    let answer = operator.post("/v1/keys", &json!({"tenant": tenant, "rights": rights}));
    assert!(matches!(answer.status, 200 | 201), "{} {}", answer.status, answer.text);
    answer.json().get("key").and_then(Value::as_str).expect("a key").to_owned()
}
