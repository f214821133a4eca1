//! Functions as a user deploys and invokes them: versions, plain and streamed answers, routing, blending.

use serde_json::{Value, json};
use tests::{guest, shared_server};

#[test]
fn the_first_version_is_live_and_later_ones_by_promote() {
    let Some(server) = shared_server("the_first_version_is_live_and_later_ones_by_promote") else { return };
    let client = server.client();
    let plugin = client.upload_plugin(guest("echo"));
    let put = |description: &str| {
        let manifest = json!({"plugin": plugin, "description": description});
        client.put("/v1/functions/versioned", &manifest).expect(201).json()
    };
    let first = put("one");
    assert_eq!((&first["version"], &first["live"]), (&json!(1), &json!(1)));
    let second = put("two");
    assert_eq!((&second["version"], &second["live"]), (&json!(2), &json!(1)));
    assert_eq!(client.get("/v1/functions/versioned").expect(200).json()["description"], json!("one"));
    client.post("/v1/functions/versioned/promote", &json!({"version": 2})).expect(200);
    assert_eq!(client.get("/v1/functions/versioned").expect(200).json()["description"], json!("two"));
    client.post("/v1/functions/versioned/promote", &json!({"version": 1})).expect(200);
    let versions = client.get("/v1/functions/versioned/versions").expect(200).json();
    assert_eq!(versions["live"], json!(1));
    assert_eq!(versions["data"].as_array().map(Vec::len), Some(2));
    client.post("/v1/functions/versioned/promote", &json!({"version": 3})).expect_not_found();
    client.delete("/v1/functions/versioned").expect(204);
    client.get("/v1/functions/versioned").expect_not_found();
}

#[test]
fn a_manifest_that_names_what_is_not_there_is_refused() {
    let Some(server) = shared_server("a_manifest_that_names_what_is_not_there_is_refused") else { return };
    let client = server.client();
    let plugin = client.upload_plugin(guest("echo"));
    let refused = |manifest: Value, status, code: &str| {
        client.put("/v1/functions/refused", &manifest).expect_error(status, code);
    };
    client.put("/v1/functions/refused", &json!({"plugin": "0".repeat(64)})).expect_not_found();
    client.put("/v1/functions/refused", &json!({"plugin": plugin, "adapters": ["nobody"]})).expect_not_found();
    refused(json!({"plugin": "echo"}), 400, "invalid_request");
    refused(json!({"plugin": plugin, "adapter": ["iso-date"]}), 400, "invalid_request");
    let bad_name = client.put("/v1/functions/no%20spaces", &json!({"plugin": plugin}));
    bad_name.expect_error(400, "invalid_request");
    client.get("/v1/functions/refused").expect_not_found();
}

#[test]
fn an_invocation_answers_whole() {
    let Some(server) = shared_server("an_invocation_answers_whole") else { return };
    let body = json!({"input": "What is the capital of France?", "max_tokens": 16});
    let answer = server.client().post("/v1/functions/echo/invoke", &body).expect(200);
    let value = answer.json();
    assert!(value["output"].as_str().unwrap().contains("Paris"), "{value}");
    assert_eq!((&value["function"], &value["version"]), (&json!("echo"), &json!(1)));
    assert_eq!(value["adapters"], json!([]));
    assert!(value["usage"]["completion_tokens"].as_u64().unwrap() > 0);
    assert_eq!(value["receipt"].as_str(), answer.receipt.as_deref());
    assert_eq!(value["id"].as_str(), answer.request.as_deref());
    // How it is served changes nothing of what is said.
    let mut patient = body.clone();
    (patient["priority"], patient["speculation"]) = (json!(100), json!(false));
    let again = server.client().post("/v1/functions/echo/invoke", &patient).expect(200).json();
    assert_eq!(again["output"], value["output"]);
    patient["priority"] = json!(101);
    server.client().post("/v1/functions/echo/invoke", &patient).expect_error(400, "invalid_request");
}

#[test]
fn a_streamed_invocation_says_the_same_as_a_whole_one() {
    let Some(server) = shared_server("a_streamed_invocation_says_the_same_as_a_whole_one") else { return };
    let client = server.client();
    let whole = json!({"input": "What is the capital of France?", "max_tokens": 16});
    let mut streamed = whole.clone();
    streamed["stream"] = json!(true);
    let expected = client.post("/v1/functions/echo/invoke", &whole).expect(200).json();
    let events = client.stream("/v1/functions/echo/invoke", &streamed);
    assert_eq!(events.status, 200);
    assert!(events.done, "the stream closes with [DONE]");
    assert!(events.receipt.is_some(), "the receipt's id is a header");
    assert_eq!(events.text(), expected["output"].as_str().unwrap());
    assert!(events.data.len() > 4, "text comes in pieces: {:?}", events.data);
    assert_eq!(events.last("/usage"), Some(&expected["usage"]));
    assert_eq!(events.last("/finish_reason"), Some(&expected["finish_reason"]));
}

#[test]
fn chat_shaped_invocations_are_taken() {
    let Some(server) = shared_server("chat_shaped_invocations_are_taken") else { return };
    let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
    let body = json!({"messages": messages, "max_tokens": 16});
    let value = server.client().post("/v1/functions/echo/invoke", &body).expect(200).json();
    assert!(value["output"].as_str().unwrap().contains("Paris"), "{value}");
}

#[test]
fn the_router_picks_the_adapter_and_the_answer_carries_the_skill() {
    let Some(server) = shared_server("the_router_picks_the_adapter_and_the_answer_carries_the_skill") else { return };
    let client = server.client();
    let ask = |input: &str| client.post("/v1/functions/skills/invoke", &json!({"input": input})).expect(200).json();
    let dated = ask("December 7th, 1997");
    assert_eq!(dated["output"], json!("1997-12-07"), "{dated}");
    assert_eq!(dated["adapters"][0]["name"], json!("iso-date"), "{dated}");
    let judged = ask("I bought a blender and it is terrific.");
    assert_eq!(judged["output"], json!("{\"sentiment\": \"positive\"}"), "{judged}");
    assert_eq!(judged["adapters"][0]["name"], json!("sentiment-json"), "{judged}");
}

#[test]
fn the_router_answers_directly_when_no_skill_fits() {
    let Some(server) = shared_server("the_router_answers_directly_when_no_skill_fits") else { return };
    let answer = server.client().post("/v1/functions/skills/invoke", &json!({"input": "zzz"})).expect(200);
    let value = answer.json();
    assert!(!value["output"].as_str().unwrap().is_empty(), "{value}");
    assert_eq!(value["adapters"], json!([]), "{value}");
    assert_eq!(value["usage"]["completion_tokens"], json!(0), "{value}");
    assert!(answer.receipt.is_some(), "a direct answer has a receipt too");
}

#[test]
fn blend_composes_two_adapters_with_the_weights_of_the_request() {
    let Some(server) = shared_server("blend_composes_two_adapters_with_the_weights_of_the_request") else { return };
    let input = json!({"text": "What is the largest planet?", "all-caps": 0.75, "sentiment-json": 0.25});
    let body = json!({"input": input, "max_tokens": 8});
    let value = server.client().post("/v1/functions/blend/invoke", &body).expect(200).json();
    let adapters = value["adapters"].as_array().unwrap();
    let mut found: Vec<(&str, f64)> =
        adapters.iter().map(|one| (one["name"].as_str().unwrap(), one["weight"].as_f64().unwrap())).collect();
    found.sort_by(|left, right| left.0.cmp(right.0));
    assert_eq!(found, [("all-caps", 0.75), ("sentiment-json", 0.25)], "{value}");
}
