//! Adapters that come and go under many callers, with so little memory and disk for them that nearly every use loads: no wrong
//! answer, and nothing left behind. Not here: thousands of cycles (`cargo xtask bench churn`).

use std::path::Path;

use serde_json::{Value, json};
use tests::{Client, Options, PeftAdapter, Server, wait_until_idle};

/// Different contents, of some 200 kB when they are packed.
const CONTENTS: usize = 24;
const USERS: usize = 12;
/// Of each user: 300 in all.
const CYCLES: usize = 25;
const DISK_BYTES_MAX: u64 = 1_500_000;

/// An adapter's files, and what it answers when it is alone: text and log-probabilities.
struct Content {
    config: Vec<u8>,
    weights: Vec<u8>,
    answer: Value,
}

impl Content {
    /// Rank 16 on q of every layer: large enough that few fit, and strong enough that no two answer alike.
    fn new(seed: u64) -> Self {
        let mut adapter = PeftAdapter::tiny(seed);
        adapter.tensors.clear();
        for (key, value) in [("r", json!(16)), ("lora_alpha", json!(32)), ("target_modules", json!(["q_proj"]))] {
            adapter.set(key, value);
        }
        adapter.set("layers_to_transform", json!((0..10).collect::<Vec<_>>()));
        for layer in 0..10 {
            adapter.push_pair(&format!("layers.{layer}.self_attn.q_proj"), 16, 576, 576, 1000 * seed + layer);
        }
        Self { config: adapter.config_file(), weights: adapter.weights_file(), answer: Value::Null }
    }

    fn put(&self, client: &Client, alias: &str) {
        client.upload_adapter_bytes(alias, self.config.clone(), self.weights.clone()).expect(201);
    }
}

fn ask(alias: &str) -> Value {
    json!({"model": alias, "prompt": "The harbour lay quiet, and the first boat", "max_tokens": 3, "temperature": 0,
        "ignore_eos": true, "logprobs": 1})
}

fn answer(client: &Client, alias: &str) -> Value {
    let choice = client.post("/v1/completions", &ask(alias)).expect(200).json()["choices"][0].clone();
    assert!(choice["logprobs"].is_object(), "{choice}");
    json!([choice["text"], choice["logprobs"]])
}

/// The next word of an xorshift generator.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 16) as usize
}

#[test]
fn adapters_that_come_and_go_answer_rightly_and_leave_nothing() {
    let test = "adapters_that_come_and_go_answer_rightly_and_leave_nothing";
    let mut contents: Vec<Content> = (0..CONTENTS as u64).map(Content::new).collect();
    // Alone, and with room for all.
    let Some(alone) = Server::start(test, Options::default()) else { return };
    for content in &mut contents {
        content.put(&alone.client(), "alone");
        content.answer = answer(&alone.client(), "alone");
    }
    drop(alone);
    let mut distinct: Vec<String> = contents.iter().map(|content| content.answer.to_string()).collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), CONTENTS, "a mix-up would show");

    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("tenon.toml");
    let text =
        format!("adapter_cache_bytes_max = 1048576\nadapter_disk_bytes_max = {DISK_BYTES_MAX}\nadapter_slots = 4\n");
    std::fs::write(&config, text).expect("written");
    let arguments = vec!["--config".into(), config.to_str().expect("UTF-8").into()];
    let Some(server) = Server::start(test, Options { arguments, ..Options::default() }) else { return };
    let client = server.client();
    std::thread::scope(|scope| {
        for user in 0..USERS {
            let (client, contents) = (&client, &contents);
            scope.spawn(move || live(client, contents, user));
        }
    });
    let packed = client.metric("tenon_adapter_disk_bytes").expect("a metric");
    assert!(packed <= DISK_BYTES_MAX as f64, "{packed}");
    let loads = ["hit", "miss"].map(|kind| {
        let name = format!("tenon_adapter_disk_total{{kind=\"{kind}\"}} ");
        let metrics = client.get("/metrics").expect(200).text;
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no {name}: {metrics}"))
    });
    let loads: f64 = loads.iter().sum();
    assert!(loads >= (USERS * CYCLES) as f64 / 2.0, "{loads} loads: there was room, so nothing was tried");

    for adapter in client.get("/v1/adapters").expect(200).json()["data"].as_array().expect("a list") {
        client.delete(&format!("/v1/adapters/{}", adapter["alias"].as_str().expect("an alias"))).expect(204);
    }
    wait_until_idle(&client);
    let started = std::time::Instant::now();
    // A file is written after its first answer went out, and given up again if nobody owns it by then.
    while !packed_files(server.data()).is_empty() {
        let left = packed_files(server.data());
        assert!(started.elapsed().as_secs() < 20, "packed files of nobody: {left:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(client.metric("tenon_adapter_disk_bytes"), Some(0.0));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// Adds, uses, replaces, removes and re-adds: two aliases that are its own, and at times one that all share.
fn live(client: &Client, contents: &[Content], user: usize) {
    let mut state = 77 + user as u64;
    let mut own = [None; 2];
    for _ in 0..CYCLES {
        let (what, slot, number) = (next(&mut state) % 8, next(&mut state) % 2, next(&mut state) % contents.len());
        if what == 0 {
            contents[number].put(client, "shared");
            let found = answer(client, "shared");
            assert!(contents.iter().any(|content| content.answer == found), "no content answers so: {found}");
            continue;
        }
        let alias = format!("user-{user}-{slot}");
        if what <= 3 && own[slot].take().is_some() {
            client.delete(&format!("/v1/adapters/{alias}")).expect(204);
            client.post("/v1/completions", &ask(&alias)).expect_not_found();
        }
        if what <= 6 || own[slot].is_none() {
            contents[number].put(client, &alias);
            own[slot] = Some(number);
        }
        let number = own[slot].expect("set above, or before");
        assert_eq!(answer(client, &alias), contents[number].answer, "{alias} with content {number}");
    }
}

fn packed_files(data: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(data.join("packed-adapters")).expect("a folder").filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "mark.key").collect()
}
