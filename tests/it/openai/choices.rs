//! Several answers to one request: `n`, and lists of prompts. Each is an inference of its own, with its own receipt.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tests::{Client, Options, Server, guest, shared_server};

fn story(client: &Client, change: Value) -> Value {
    let mut body = json!({"model": "base", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.0, "top_k": 50,
        "seed": 7, "ignore_eos": true});
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    client.post("/v1/completions", &body).expect(200).json()
}

fn texts(value: &Value) -> Vec<String> {
    let choices = value["choices"].as_array().unwrap();
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap() as usize).collect();
    assert_eq!(indices, (0..choices.len()).collect::<Vec<_>>());
    choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

/// Texts, finish reasons and receipts of a stream, by index.
fn streamed(data: &[Value]) -> BTreeMap<u64, (String, Vec<Value>, Vec<String>)> {
    let mut all: BTreeMap<u64, (String, Vec<Value>, Vec<String>)> = BTreeMap::new();
    for choice in data.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let (text, finished, receipts) = all.entry(choice["index"].as_u64().unwrap()).or_default();
        let piece = choice.get("text").or_else(|| choice.pointer("/delta/content"));
        text.push_str(piece.and_then(Value::as_str).unwrap_or_default());
        finished.extend(choice.get("finish_reason").filter(|reason| !reason.is_null()).cloned());
        receipts.extend(choice["receipt"].as_str().map(str::to_owned));
    }
    all
}

#[test]
fn each_choice_has_its_own_seed_and_receipt_and_can_be_had_alone() {
    let Some(server) = shared_server("each_choice_has_its_own_seed_and_receipt_and_can_be_had_alone") else { return };
    let client = server.client();
    let three = story(&client, json!({"n": 3}));
    let all = texts(&three);
    assert_eq!(all.len(), 3);
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
    let alone = story(&client, json!({}));
    assert_eq!(texts(&alone), all[..1], "the first has the seed that was asked for");
    assert_eq!(three["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"], "the prompt counts once");
    assert_eq!(three["usage"]["completion_tokens"], json!(36));
    for (choice, text) in three["choices"].as_array().unwrap().iter().zip(&all) {
        let receipt = client.get(&format!("/v1/receipts/{}", choice["receipt"].as_str().unwrap())).expect(200).json();
        assert_eq!(receipt["kind"], json!("finished"));
        assert_eq!(receipt["receipt"]["subject"]["request"], three["id"]);
        let seed: u64 = receipt["receipt"]["outcome"]["sampling"]["seed"].as_str().unwrap().parse().unwrap();
        assert_eq!(texts(&story(&client, json!({"seed": seed}))), std::slice::from_ref(text), "{receipt}");
    }
}

#[test]
fn streamed_choices_are_interleaved_and_say_the_same() {
    let Some(server) = shared_server("streamed_choices_are_interleaved_and_say_the_same") else { return };
    let client = server.client();
    let whole = texts(&story(&client, json!({"n": 3})));
    let body = json!({"model": "base", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 1.0, "top_k": 50,
        "seed": 7, "ignore_eos": true, "n": 3, "stream": true, "stream_options": {"include_usage": true}});
    let events = client.stream("/v1/completions", &body);
    assert!(events.done);
    let (last, rest) = events.data.split_last().unwrap();
    let by_index = streamed(rest);
    let ids: Vec<String> = by_index.values().flat_map(|(_, _, receipts)| receipts.clone()).collect();
    assert_eq!(events.receipt, Some(ids.join(", ")), "the header has all receipts, in order");
    for ((text, finished, _), whole) in by_index.values().zip(&whole) {
        assert_eq!((text, finished), (whole, &vec![json!("length")]));
    }
    let order: Vec<_> = rest.iter().filter_map(|event| event.pointer("/choices/0/index")?.as_u64()).collect();
    assert!(order.windows(2).filter(|pair| pair[0] != pair[1]).count() > 6, "one after the other: {order:?}");
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(36)));
    assert_eq!(rest.iter().filter(|event| !event["usage"].is_null()).count(), 0, "usage comes once");
}

#[test]
fn a_list_of_prompts_gives_what_each_gives_alone() {
    let Some(server) = shared_server("a_list_of_prompts_gives_what_each_gives_alone") else { return };
    let client = server.client();
    let (first, second) = ("Once upon a time", "The quick brown fox");
    let both = story(&client, json!({"prompt": [first, second], "n": 2}));
    let of = |prompt: &str| story(&client, json!({"prompt": prompt, "n": 2}));
    let (one, other) = (of(first), of(second));
    assert_eq!(texts(&both), [texts(&one), texts(&other)].concat());
    let tokens = |value: &Value| value["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(tokens(&both), tokens(&one) + tokens(&other));
    let mut body = json!({"model": "base", "prompt": ["a", "b", "c"], "n": 3, "max_tokens": 1});
    assert!(client.post("/v1/completions", &body).expect_error(400, "limit_exceeded").text.contains("choices_max"));
    body["prompt"] = json!(["a", "b", ""]);
    body["n"] = json!(1);
    client.post("/v1/completions", &body).expect_error(400, "invalid_plan");
    body["prompt"] = json!([[504, 260], [504]]);
    assert_eq!(texts(&client.post("/v1/completions", &body).expect(200).json()).len(), 2);
}

#[test]
fn a_function_is_invoked_once_for_each_choice() {
    let Some(server) = shared_server("a_function_is_invoked_once_for_each_choice") else { return };
    let messages = json!([{"role": "user", "content": "December 7th, 1997"}]);
    let body = json!({"model": "skills", "messages": messages, "max_tokens": 16, "n": 2});
    let answer = server.client().post("/v1/chat/completions", &body).expect(200);
    let value = answer.json();
    for choice in value["choices"].as_array().unwrap() {
        assert_eq!(choice["message"]["content"], json!("1997-12-07"), "{value}");
    }
    assert_eq!(answer.receipt.unwrap().split(", ").count(), 2);
}

#[test]
fn an_error_of_one_choice_ends_the_stream_of_all() {
    let Some(server) = shared_server("an_error_of_one_choice_ends_the_stream_of_all") else { return };
    let client = server.client();
    let digest = client.upload_plugin(guest("trap"));
    client.put("/v1/functions/trap-choices", &json!({"plugin": digest})).expect(201);
    let messages = json!([{"role": "user", "content": "finish"}]);
    let body = json!({"model": "trap-choices", "messages": messages, "max_tokens": 4, "stream": true, "n": 3});
    let events = client.stream("/v1/chat/completions", &body);
    assert!(events.status == 200 && events.done);
    let (last, rest) = events.data.split_last().unwrap();
    assert_eq!(last["error"]["code"], json!("plugin_trap"), "{:?}", events.data);
    assert!(rest.iter().all(|event| event.get("error").is_none()), "one error, at the end");
    let receipts = events.receipt.unwrap();
    let kinds: Vec<Value> = receipts.split(", ").map(|id| kind_once_closed(&client, id)).collect();
    assert!(kinds.contains(&json!("failed")), "{kinds:?}");
    // The others were at the same point: they failed too, or were cancelled; none is left open or called finished.
    assert!(kinds.iter().all(|kind| [json!("failed"), json!("cancelled")].contains(kind)), "{kinds:?}");
}

#[test]
fn an_error_at_the_start_of_one_choice_names_the_receipts_of_all() {
    let test = "an_error_at_the_start_of_one_choice_names_the_receipts_of_all";
    let Some(server) = shared_server(test) else { return };
    let client = server.client();
    let digest = client.upload_plugin(guest("trap"));
    client.put("/v1/functions/trap-start", &json!({"plugin": digest})).expect(201);
    for (prompts, kinds) in [
        (["Once", "constructor", "Twice"], ["cancelled", "failed", "cancelled"]),
        (["constructor", "constructor", "Once"], ["failed", "failed", "cancelled"]),
    ] {
        let body = json!({"model": "trap-start", "prompt": prompts, "max_tokens": 4});
        let failed = client.post("/v1/completions", &body);
        assert_eq!((failed.status, failed.code().as_str()), (502, "plugin_trap"), "{}", failed.text);
        let receipts = failed.receipt.expect("receipts were made");
        let ends: Vec<Value> = receipts.split(", ").map(|id| kind_once_closed(&client, id)).collect();
        assert_eq!(json!(ends), json!(kinds), "in the order of the prompts: {receipts}");
    }
}

#[test]
fn hanging_up_cancels_every_choice() {
    let Some(server) = shared_server("hanging_up_cancels_every_choice") else { return };
    let client = server.client();
    let body = json!({"model": "base", "prompt": ["Once", "Twice"], "max_tokens": 4000, "ignore_eos": true, "n": 2,
        "stream": true});
    let response = client.open("/v1/completions", &body);
    let receipts = response.headers()["x-tenon-receipt"].to_str().unwrap().to_owned();
    let mut lines = Client::lines(response);
    let mut first = String::new();
    std::io::BufRead::read_line(&mut lines, &mut first).unwrap();
    assert!(first.starts_with("data:"), "it runs: {first}");
    drop(lines);
    let kinds: Vec<Value> = receipts.split(", ").map(|id| kind_once_closed(&client, id)).collect();
    assert_eq!(kinds, vec![json!("cancelled"); 4]);
}

/// The final kind of a receipt; a dropped one is closed a moment after its stream.
fn kind_once_closed(client: &Client, id: &str) -> Value {
    for _ in 0..200 {
        let kind = client.get(&format!("/v1/receipts/{id}")).expect(200).json()["kind"].clone();
        if kind != json!("started") {
            return kind;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    json!("started")
}

#[test]
fn choices_are_queued_all_or_none() {
    let name = "choices_are_queued_all_or_none";
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tenon.toml");
    // One row a step: one sequence runs, two wait.
    std::fs::write(&config, "batch_rows_max = 1\nqueue_requests_max = 2\n").unwrap();
    let arguments = vec!["--config".to_owned(), config.display().to_string()];
    let Some(server) = Server::start(name, Options { arguments, ..Options::default() }) else { return };
    let client = server.client();
    let long = json!({"model": "base", "prompt": "Once", "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let running = client.open("/v1/completions", &long);
    let mut lines = Client::lines(running);
    let mut first = String::new();
    std::io::BufRead::read_line(&mut lines, &mut first).unwrap();
    assert!(first.starts_with("data:"), "it runs: {first}");
    let receipts = || client.get("/v1/receipts?limit=500").expect(200).json()["data"].as_array().unwrap().len();
    let before = receipts();
    let three = json!({"model": "base", "prompt": "Once", "max_tokens": 1, "n": 3});
    let refused = client.open("/v1/completions", &three);
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"), "{:?}", refused.headers());
    let body: Value = refused.json().unwrap();
    assert_eq!((&body["error"]["code"], &body["error"]["type"]), (&json!("queue_full"), &json!("rate_limit_error")));
    assert_eq!(receipts(), before, "nothing was begun");
    drop(lines);
    let two = json!({"model": "base", "prompt": "Once", "max_tokens": 1, "n": 2});
    let served = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        client.post("/v1/completions", &two).status == 200
    });
    assert!(served, "the places were given back");
}
