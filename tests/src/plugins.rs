//! What the tests of plugins share: functions to deploy, servers with limits of their own, what must be free when nothing
//! runs, and what a receipt says that was sent. Not here: what a plugin should do.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Client, Options, Server, guest};

/// Much longer than anything takes to be given back; shorter than any limit on a guest in those tests.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// Starts a server whose configuration has these keys in its table `limits`.
///
/// # Panics
/// As [`Server::start`].
#[must_use]
pub fn server_with_limits(test: &str, limits: &[(&str, u64)]) -> Option<Server> {
    server_with(test, "[limits]\n", limits)
}

/// The same with keys outside any table.
///
/// # Panics
/// As [`Server::start`].
#[must_use]
pub fn server_with_settings(test: &str, settings: &[(&str, u64)]) -> Option<Server> {
    server_with(test, "", settings)
}

fn server_with(test: &str, table: &str, keys: &[(&str, u64)]) -> Option<Server> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tenon.toml");
    let lines: String = keys.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
    std::fs::write(&file, format!("{table}{lines}")).expect("the configuration can be written");
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    Server::start(test, Options { arguments, ..Options::default() })
}

/// Uploads a guest and makes a version of it live, with these further members of the manifest.
///
/// # Panics
/// If anything is refused.
pub fn deploy_plugin(client: &Client, function: &str, plugin: &str, manifest: &Value) {
    deploy_component(client, function, guest(plugin), manifest);
}

/// The same with a component that is at hand.
///
/// # Panics
/// If anything is refused.
pub fn deploy_component(client: &Client, function: &str, component: Vec<u8>, manifest: &Value) {
    let mut manifest = manifest.clone();
    manifest["plugin"] = json!(client.upload_plugin(component));
    let path = format!("/v1/functions/{function}");
    let version = client.put(&path, &manifest).expect(201).json()["version"].clone();
    client.post(&format!("{path}/promote"), &json!({"version": version})).expect(200);
}

/// Waits until nothing of any request is left: no instance, no sequence, no block, no lease.
///
/// # Panics
/// If something is left.
pub fn wait_until_idle(client: &Client) {
    const HELD: [&str; 5] = [
        "tenon_plugin_instances",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "tenon_adapter_leases",
    ];
    let started = Instant::now();
    loop {
        let held = HELD.map(|name| client.metric(name).unwrap_or_else(|| panic!("/metrics has no {name}")));
        if held.iter().all(|value| *value == 0.0) {
            return;
        }
        assert!(started.elapsed() < IDLE_MAX, "still held: {HELD:?} {held:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The receipt, whose commitment to the answer must be one to this text, or must not be there.
///
/// # Panics
/// If it is not so.
#[must_use]
pub fn receipt_of(client: &Client, id: &str, answer: Option<&str>) -> Value {
    let receipt = client.get(&format!("/v1/receipts/{id}")).expect(200).json();
    let committed = receipt["receipt"]["outcome"].get("answer").and_then(Value::as_str);
    let expected = answer.map(|text| {
        let salt = receipt["salts"]["answer"].as_str().unwrap_or_else(|| panic!("no salt: {receipt}"));
        let salt = blake3::Hash::from_hex(salt).expect("a salt is 64 hexadecimal digits");
        blake3::keyed_hash(salt.as_bytes(), text.as_bytes()).to_hex().to_string()
    });
    assert_eq!(committed, expected.as_deref(), "{answer:?}: {receipt}");
    receipt
}
