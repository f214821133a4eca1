//! Activated adapters as a user meets them: they act from their invocation on, as PEFT has them (`tests/bases/alora.py`), the
//! prompt before it is computed once for all of them, and the receipt says for how many tokens each acted. On the tiny llama:
//! nothing has to be fetched.

use serde_json::{Map, Value, json};
use tests::{Answer, Client, Options, Server, completion_ids, receipt_of, repository};

const HITS: &str = "vllm:prefix_cache_hits_total";

fn fixture(path: &str) -> Vec<u8> {
    std::fs::read(repository().join("tests/fixtures").join(path)).expect("a committed file")
}

fn parsed(path: &str) -> Value {
    serde_json::from_slice(&fixture(path)).expect("JSON")
}

/// The ordinary adapter of the tiny llama, invoked by these tokens.
fn upload_invoked_by(client: &Client, alias: &str, tokens: &Value) -> Value {
    let mut config: Map<String, Value> =
        serde_json::from_slice(&fixture("bases/llama-adapter/adapter_config.json")).expect("JSON");
    config.insert("alora_invocation_tokens".into(), tokens.clone());
    let weights = fixture("bases/llama-adapter/adapter_model.safetensors");
    client.upload_adapter_bytes(alias, serde_json::to_vec(&config).expect("JSON"), weights).expect(201).json()
}

fn ask(client: &Client, adapters: &[&str], prompt: &[u32], tokens: usize) -> Answer {
    let adapters: Vec<Value> = adapters.iter().map(|name| json!({"name": name, "weight": 1.0})).collect();
    let body = json!({"model": "base", "adapters": adapters, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": true, "return_token_ids": true});
    client.post("/v1/completions", &body).expect(200)
}

/// Tokens that each adapter acted on, in the order of the receipt, with its digest.
fn active(client: &Client, answer: &Answer) -> Vec<(String, u64)> {
    let id = answer.receipt.as_deref().expect("x-tenon-receipt");
    let receipt = receipt_of(client, id, answer.json()["choices"][0]["text"].as_str());
    let parts = receipt["receipt"]["outcome"]["composition"].as_array().expect("a composition").clone();
    let part = |part: &Value| (part["adapter"].as_str().unwrap().to_owned(), part["tokens_active"].as_u64().unwrap());
    parts.iter().map(part).collect()
}

fn numbers(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("token ids")
}

#[test]
fn an_activated_adapter_acts_from_its_invocation_on_as_peft_has_it() {
    let server = Server::start_on(&repository().join("tests/fixtures/bases/llama"), Options::f32());
    let client = server.client();
    let golden = parsed("alora/golden.json");
    let folder = repository().join("tests/fixtures/alora/adapter");
    let uploaded = client.upload_adapter("invoked", &folder).expect(201).json();
    let report = client.get("/v1/adapters/invoked").expect(200).json()["report"].clone();
    assert_eq!((&report["kind"], &report["invocation_tokens"]), (&json!("alora"), &golden["invocation_tokens"]));
    let digest = uploaded["digest"].as_str().expect("a digest");
    for (name, case) in golden["prompts"].as_object().unwrap() {
        let (prompt, expected) = (numbers(&case["ids"]), numbers(&case["greedy"]));
        let before = client.metric(HITS).unwrap_or(0.0);
        if name == "long" {
            // The base reads what lies before the invocation, and a little more.
            let other = [&prompt[..140], &[9, 9]].concat();
            let _ = ask(&client, &[], &other, 2);
        }
        let answer = ask(&client, &["invoked"], &prompt, expected.len());
        assert_eq!(completion_ids(&answer.json()), expected, "{name}");
        let tokens = (prompt.len() + expected.len()) as u64;
        let acted = case["start"].as_u64().map_or(0, |start| tokens - start);
        assert_eq!(active(&client, &answer), [(digest.to_owned(), acted)], "{name}");
        assert_eq!(answer.json()["usage"]["total_tokens"], tokens, "{name}: usage is what it is for any adapter");
        if name == "long" {
            assert_eq!(client.metric(HITS), Some(before + 128.0), "eight blocks of the base are its own");
        }
    }
}

#[test]
fn one_prompt_is_computed_once_for_the_base_and_all_that_are_invoked() {
    let server = Server::start_on(&repository().join("tests/fixtures/bases/llama"), Options::f32());
    let client = server.client();
    let words = &parsed("bases/golden.json")["llama"]["prompts"]["words"];
    let (ids, adapted) = (numbers(&words["ids"]), numbers(&words["adapted"]));
    let at_once = upload_invoked_by(&client, "at-once", &json!(ids[..2]));
    let one = upload_invoked_by(&client, "one", &json!([70, 71]));
    let two = upload_invoked_by(&client, "two", &json!([60]));
    assert!(
        at_once["digest"] != one["digest"] && one["digest"] != two["digest"],
        "what invokes it is part of its name"
    );
    // Invoked by the first token it is the ordinary adapter.
    assert_eq!(completion_ids(&ask(&client, &["at-once"], &ids, adapted.len()).json()), adapted);

    let prefix: Vec<u32> = (0..96).map(|place| 80 + place * 7 % 150).collect();
    let found = |adapters: &[&str], invocation: &[u32]| {
        let before = client.metric(HITS).expect("a counter");
        let prompt = [&prefix[..], invocation].concat();
        let answer = ask(&client, adapters, &prompt, 4);
        (client.metric(HITS).expect("a counter") - before, active(&client, &answer), completion_ids(&answer.json()))
    };
    let named = |adapter: &Value, tokens: u64| (adapter["digest"].as_str().expect("a digest").to_owned(), tokens);
    let (hits, acted, base) = found(&[], &[50, 51]);
    assert_eq!((hits, acted), (0.0, vec![]), "nobody has read it before");
    let (hits, acted, _) = found(&["one"], &[70, 71]);
    assert_eq!((hits, acted), (96.0, vec![named(&one, 2 + 4)]));
    let (hits, acted, _) = found(&["two"], &[50, 60]);
    assert_eq!((hits, acted), (96.0, vec![named(&two, 1 + 4)]));
    let (hits, mut acted, _) = found(&["one", "two"], &[70, 71, 50, 60, 51]);
    acted.sort_by_key(|(_, tokens)| *tokens);
    assert_eq!((hits, acted), (96.0, vec![named(&two, 2 + 4), named(&one, 5 + 4)]));
    // Never invoked: the base's own answer.
    let (hits, acted, tokens) = found(&["one"], &[50, 51]);
    assert_eq!((hits, acted, tokens), (96.0, vec![named(&one, 0)], base));

    // Several answers, each with its receipt.
    let prompt = [&prefix[..], &[70, 71, 52]].concat();
    let body = json!({"model": "one", "prompt": prompt, "max_tokens": 3, "n": 3,
        "temperature": 1.0, "seed": 4, "ignore_eos": true});
    let answer = client.post("/v1/completions", &body).expect(200);
    for id in answer.receipt.as_deref().expect("receipts").split(", ") {
        let receipt = client.get(&format!("/v1/receipts/{id}")).expect(200).json();
        let part = &receipt["receipt"]["outcome"]["composition"][0];
        assert_eq!((&part["adapter"], &part["tokens_active"]), (&one["digest"], &json!(3 + 3)), "{receipt}");
    }
}
