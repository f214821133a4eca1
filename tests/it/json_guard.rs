//! The example `json-guard`: whatever its adapter writes, and however it is read, a caller gets whole JSON or an error
//! object, and a receipt for just that.

use serde_json::{Value, json};
use tests::{Client, deploy_plugin, receipt_of, shared_server};

/// What comes of a text, read whole and as a stream, which must say the same.
struct Guarded {
    output: String,
    value: Value,
}

fn ask(client: &Client, function: &str, input: &str, max_tokens: u32) -> Guarded {
    let path = format!("/v1/functions/{function}/invoke");
    let mut body = json!({"input": input, "max_tokens": max_tokens});
    let whole = client.post(&path, &body).expect(200);
    let value = whole.json();
    let output = value["output"].as_str().expect("an output").to_owned();
    body["stream"] = json!(true);
    let streamed = client.stream(&path, &body);
    let deltas: Vec<&Value> = streamed.data.iter().filter_map(|event| event.get("delta")).collect();
    assert_eq!(deltas, [&json!(output)], "it comes in one piece, or not at all: {:?}", streamed.data);
    for receipt in [whole.receipt, streamed.receipt] {
        let receipt = receipt_of(client, &receipt.expect("a receipt"), Some(&output));
        let claims = &receipt["receipt"]["outcome"]["claims"];
        assert_eq!(claims, &json!([{"name": "json", "value": value["metadata"]["json"]}]), "{receipt}");
    }
    Guarded { output, value }
}

fn deploy(client: &Client, function: &str, config: &Value) {
    let manifest = json!({"adapters": ["sentiment-json", "all-caps"], "config": config});
    deploy_plugin(client, function, "json-guard", &manifest);
}

/// The error object that goes out in place of the document.
fn error(guarded: &Guarded) -> String {
    let object: Value = serde_json::from_str(&guarded.output).expect("an error is JSON too");
    assert!(object["error"]["message"].is_string() && object.as_object().map(serde_json::Map::len) == Some(1));
    let code = object["error"]["code"].as_str().expect("a code").to_owned();
    assert_eq!(guarded.value["metadata"]["json"], json!(code));
    code
}

#[test]
fn whole_json_goes_out_and_the_generation_ends_with_it() {
    let Some(server) = shared_server("whole_json_goes_out_and_the_generation_ends_with_it") else { return };
    let client = server.client();
    let config = json!({"adapter": "sentiment-json", "system": "Sentiment as JSON.", "required": "sentiment"});
    deploy(&client, "guarded", &config);
    for (input, sentiment) in
        [("I bought a blender and it is terrific.", "positive"), ("The movie is slow and rude.", "negative")]
    {
        let guarded = ask(&client, "guarded", input, 64);
        assert_eq!(guarded.output, format!("{{\"sentiment\": \"{sentiment}\"}}"));
        assert_eq!(guarded.value["finish_reason"], json!("stopped_by_plugin"), "{}", guarded.value);
        assert_eq!(guarded.value["metadata"]["json"], json!("valid"));
    }
}

#[test]
fn json_that_was_cut_off_is_not_sent() {
    let Some(server) = shared_server("json_that_was_cut_off_is_not_sent") else { return };
    let client = server.client();
    deploy(&client, "guarded-short", &json!({"adapter": "sentiment-json", "system": "Sentiment as JSON."}));
    for max_tokens in [1, 4] {
        let guarded = ask(&client, "guarded-short", "I bought a blender and it is terrific.", max_tokens);
        assert_eq!(error(&guarded), "incomplete_json");
        assert_eq!(guarded.value["finish_reason"], json!("length"));
    }
}

#[test]
fn what_is_no_json_is_noticed_at_once() {
    let Some(server) = shared_server("what_is_no_json_is_noticed_at_once") else { return };
    let client = server.client();
    // This adapter was trained to shout, not to write JSON.
    deploy(&client, "guarded-prose", &json!({"adapter": "all-caps", "system": "Answer the question."}));
    let guarded = ask(&client, "guarded-prose", "What is the largest planet?", 64);
    assert_eq!(error(&guarded), "invalid_json");
    assert_eq!(guarded.value["finish_reason"], json!("stopped_by_plugin"));
    assert_eq!(guarded.value["usage"]["completion_tokens"], json!(1), "the first token told: {}", guarded.value);
}

#[test]
fn a_key_that_is_missing_is_named() {
    let Some(server) = shared_server("a_key_that_is_missing_is_named") else { return };
    let client = server.client();
    let config = json!({"adapter": "sentiment-json", "system": "Sentiment as JSON.", "required": "sentiment,score"});
    deploy(&client, "guarded-keys", &config);
    let guarded = ask(&client, "guarded-keys", "I bought a blender and it is terrific.", 64);
    assert_eq!(error(&guarded), "missing_key");
    assert!(guarded.output.contains("`score`"), "{}", guarded.output);
}
