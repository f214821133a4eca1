//! The heart: a composition means exactly y = Wx + Σ wᵢ·sᵢ·Bᵢ(Aᵢx), alone and in one batch with others, over HTTP.
//! Compared with what PyTorch and PEFT computed in f32 (tests/fixtures/lora, or the larger set beside the checkout).

use serde_json::{Value, json};
use tests::{Client, adapter_folder, completion_ids, golden, shared_server, skip};

/// Between logprobs of two f32 implementations.
const LOGPROB_TOLERANCE: f64 = 2e-3;

/// One greedy continuation of the goldens.
struct Case {
    name: String,
    adapters: Value,
    prompt: Value,
    expected: Vec<u32>,
    first_logprob: f64,
}

impl Case {
    fn request(&self) -> Value {
        json!({
            "model": "base", "prompt": self.prompt, "adapters": self.adapters, "max_tokens": self.expected.len(),
            "temperature": 0, "ignore_eos": true, "return_token_ids": true, "logprobs": 5,
        })
    }

    fn check(&self, client: &Client) {
        let value = client.post("/v1/completions", &self.request()).expect(200).json();
        assert_eq!(completion_ids(&value), self.expected, "{}", self.name);
        let logprobs = &value["choices"][0]["logprobs"];
        let found = logprobs["token_logprobs"][0].as_f64().unwrap();
        assert!(
            (found - self.first_logprob).abs() < LOGPROB_TOLERANCE,
            "{}: {found} {}",
            self.name,
            self.first_logprob
        );
        let top = logprobs["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), self.expected.len(), "{}", self.name);
        assert!(top.iter().all(|top| top.as_object().is_some_and(|top| top.len() == 5)), "{}: {top:?}", self.name);
    }
}

/// Every greedy golden whose adapters are here: with the larger set all of them, DoRA too.
fn cases(client: &Client) -> Vec<Case> {
    let golden = golden();
    let mut cases = Vec::new();
    for (config, value) in golden["configs"].as_object().unwrap() {
        let entries = value["adapters"].as_array().unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect();
        if !names.iter().all(|name| is_here(client, name)) {
            continue;
        }
        for (prompt, result) in value["results"].as_object().unwrap() {
            let Some(ids) = result["greedy_ids"].as_array() else { continue };
            let top_logit = result["top20"][0][1].as_f64().unwrap();
            cases.push(Case {
                name: format!("{config} on {prompt}"),
                adapters: value["adapters"].clone(),
                prompt: golden["prompts"][prompt]["ids"].clone(),
                expected: ids.iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect(),
                first_logprob: top_logit - result["logsumexp"].as_f64().unwrap(),
            });
        }
    }
    assert!(cases.len() >= 8, "only {} greedy goldens can be checked", cases.len());
    cases
}

/// Uploads an adapter of the larger set, unless it is there already.
fn is_here(client: &Client, name: &str) -> bool {
    if client.get(&format!("/v1/adapters/{name}")).status == 200 {
        return true;
    }
    let Some(folder) = adapter_folder(name) else { return false };
    let _ = client.upload_adapter(name, &folder).expect(201);
    true
}

#[test]
fn all_compositions_at_once_equal_the_goldens() {
    let Some(server) = shared_server("all_compositions_at_once_equal_the_goldens") else { return };
    let client = server.client();
    let cases = cases(&client);
    std::thread::scope(|scope| {
        let running: Vec<_> = cases.iter().map(|case| scope.spawn(|| case.check(&client))).collect();
        let failed: Vec<_> = running.into_iter().filter_map(|one| one.join().err()).collect();
        assert!(failed.is_empty(), "{} of {} differ", failed.len(), cases.len());
    });
}

#[test]
fn compositions_alone_equal_the_goldens() {
    let Some(server) = shared_server("compositions_alone_equal_the_goldens") else { return };
    let client = server.client();
    let cases = cases(&client);
    let wanted = [
        "base on raw-france",
        "iso-date on own-iso-date",
        "combo2-caps+sentiment on own-all-caps",
        "units-dora on own-units-dora",
        "combo2-doraunits+caps on own-units-dora",
    ];
    for name in wanted {
        match cases.iter().find(|case| case.name == name) {
            Some(case) => case.check(&client),
            None => skip("compositions_alone_equal_the_goldens", &format!("no golden `{name}`")),
        }
    }
}

#[test]
fn prompts_tokenise_as_the_goldens_do() {
    let Some(server) = shared_server("prompts_tokenise_as_the_goldens_do") else { return };
    let client = server.client();
    for (name, prompt) in golden()["prompts"].as_object().unwrap() {
        let body = json!({"model": "base", "prompt": prompt["text"], "max_tokens": 1, "return_token_ids": true});
        let value = client.post("/v1/completions", &body).expect(200).json();
        assert_eq!(value["choices"][0]["prompt_token_ids"], prompt["ids"], "{name}");
    }
}

#[test]
fn the_order_of_a_composition_changes_nothing_and_its_weights_do() {
    let Some(server) = shared_server("the_order_of_a_composition_changes_nothing_and_its_weights_do") else { return };
    let client = server.client();
    let ids = |adapters: Value| {
        let body = json!({"model": "base", "prompt": "What is the ocean?", "adapters": adapters, "max_tokens": 12,
            "temperature": 0, "ignore_eos": true, "return_token_ids": true});
        completion_ids(&client.post("/v1/completions", &body).expect(200).json())
    };
    let (caps, iso) = (json!({"name": "all-caps", "weight": 0.8}), json!({"name": "iso-date", "weight": 0.4}));
    let both = ids(json!([caps, iso]));
    assert_eq!(both, ids(json!([iso, caps])));
    assert_ne!(both, ids(json!([])));
    let nothing = json!([{"name": "all-caps", "weight": 0.0}]);
    assert_eq!(ids(nothing), ids(json!([])), "a weight of zero is no adapter");
}
