//! A host on the tiny llama and qwen3 of `tests/fixtures/bases`, as a folder of safetensors files and as GGUF: what it serves
//! is what transformers and PEFT computed, token by token in f32. The only tests of a whole host on a base that need nothing fetched.

use std::path::PathBuf;

use serde_json::{Value, json};
use tests::{Client, Options, Server, completion_ids, repository, run_tenon};

fn fixtures() -> PathBuf {
    repository().join("tests/fixtures/bases")
}

fn golden(name: &str) -> Value {
    let text = std::fs::read(fixtures().join("golden.json")).expect("the goldens are committed");
    serde_json::from_slice::<Value>(&text).expect("JSON")[name].take()
}

fn is_served(client: &Client, model: &str, golden: &Value, greedy: &str) {
    for (name, prompt) in golden["prompts"].as_object().unwrap() {
        let tokens = prompt[greedy].as_array().unwrap().len();
        let body = json!({"model": model, "prompt": prompt["text"], "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true, "return_token_ids": true});
        let answer = client.post("/v1/completions", &body).expect(200).json();
        assert_eq!(json!(completion_ids(&answer)), prompt[greedy], "{model} {name}: {answer}");
        assert_eq!(answer["usage"]["prompt_tokens"], prompt["ids"].as_array().unwrap().len(), "{name}");
    }
}

#[test]
fn both_architectures_are_served_from_folders_and_files() {
    for (name, file) in [("llama", "llama"), ("llama", "llama.gguf"), ("qwen3", "qwen3"), ("qwen3", "qwen3.gguf")] {
        let golden = golden(name);
        let server = Server::start_on(&fixtures().join(file), Options::f32());
        let client = server.client();
        is_served(&client, "base", &golden, "greedy");
        let adapter = client.upload_adapter("moved", &fixtures().join(format!("{name}-adapter")));
        adapter.expect(201);
        is_served(&client, "moved", &golden, "adapted");
        let messages: Value = serde_json::from_slice::<Value>(&std::fs::read(fixtures().join("golden.json")).unwrap())
            .unwrap()["messages"]
            .take();
        let chat =
            client.post("/v1/chat/completions", &json!({"model": "base", "messages": messages, "max_tokens": 2}));
        let usage = &chat.expect(200).json()["usage"];
        assert_eq!(usage["prompt_tokens"], golden["prompts"]["chat"]["ids"].as_array().unwrap().len(), "{file}");
    }
}

/// In int8 a near tie may fall the other way on weights that are random: here only that each form is served.
#[test]
fn the_default_precision_takes_both_architectures() {
    for file in ["llama", "llama.gguf", "qwen3", "qwen3.gguf"] {
        let server = Server::start_on(&fixtures().join(file), Options::default());
        let body = json!({"model": "base", "prompt": "The tenon is", "max_tokens": 8, "temperature": 0, "ignore_eos": true,
            "return_token_ids": true});
        let answer = server.client().post("/v1/completions", &body).expect(200).json();
        assert_eq!(completion_ids(&answer).len(), 8, "{file}: {answer}");
    }
}

#[test]
fn doctor_and_inspect_know_a_folder() {
    let (folder, adapter) = (fixtures().join("qwen3"), fixtures().join("qwen3-adapter"));
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let data = scratch.path().join("data");
    let typed = ["--base", folder.to_str().unwrap(), "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let output = run_tenon(&[&["doctor", "--json"][..], &typed].concat());
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = found["data"].as_array().unwrap();
    let base = checks.iter().find(|check| check["name"] == "base").expect("a check of the base");
    assert_eq!(base["verdict"], "ok", "{base}");
    assert!(base["found"].as_str().unwrap().contains("qwen3 (qwen3, 3 layers, hidden 32, context 512)"), "{base}");
    let typed = ["--file", adapter.to_str().unwrap(), "--base", folder.to_str().unwrap()];
    let output = run_tenon(&[&["adapter", "inspect", "--json"][..], &typed].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("\"rank\": 2"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // What is wrong with a folder is told by the file that is missing.
    let output =
        run_tenon(&["serve", "--dev", "--base", scratch.path().to_str().unwrap(), "--data", data.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("config.json"), "{said}");
}
