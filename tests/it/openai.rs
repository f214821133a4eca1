//! The OpenAI surface as its clients use it.

mod choices;
mod logprobs;
mod sampling;
mod tools;

use serde_json::{Value, json};
use tests::{completion_ids, shared_server};

fn chat(model: &str, content: &str) -> Value {
    let messages = json!([{"role": "user", "content": content}]);
    json!({"model": model, "messages": messages, "max_tokens": 16, "temperature": 0})
}

#[test]
fn models_are_the_base_the_adapters_and_the_functions() {
    let Some(server) = shared_server("models_are_the_base_the_adapters_and_the_functions") else { return };
    let list = server.client().get("/v1/models").expect(200).json();
    assert_eq!(list["object"], json!("list"));
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().filter_map(|card| card["id"].as_str()).collect();
    for expected in ["base", "iso-date", "all-caps", "sentiment-json", "skills", "blend", "echo"] {
        assert!(ids.contains(&expected), "{expected} is missing: {ids:?}");
        let card = server.client().get(&format!("/v1/models/{expected}")).expect(200).json();
        assert_eq!(card["id"], json!(expected));
    }
    server.client().get("/v1/models/nobody").expect_error(404, "model_not_found");
}

#[test]
fn nothing_else_takes_the_name_of_the_base() {
    let Some(server) = shared_server("nothing_else_takes_the_name_of_the_base") else { return };
    let client = server.client();
    let manifest = json!({"plugin": client.upload_plugin(tests::guest("echo"))});
    client.put("/v1/functions/base", &manifest).expect_error(400, "invalid_request");
    client.put("/v1/adapters/base", &json!({"source": "file:///nowhere"})).expect_error(400, "invalid_request");
}

#[test]
fn null_is_as_good_as_left_out() {
    let Some(server) = shared_server("null_is_as_good_as_left_out") else { return };
    let body = json!({"model": "base", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "stream": null,
        "stream_options": null, "stop": null, "tools": null, "logprobs": null, "adapters": null, "ignore_eos": null});
    server.client().post("/v1/chat/completions", &body).expect(200);
}

#[test]
fn a_chat_on_the_base() {
    let Some(server) = shared_server("a_chat_on_the_base") else { return };
    let value = server.client().post("/v1/chat/completions", &chat("base", "What is the capital of France?"));
    let value = value.expect(200).json();
    assert_eq!(value["object"], json!("chat.completion"));
    assert_eq!(value["model"], json!("base"));
    let choice = &value["choices"][0];
    let content = "The capital of France is Paris.";
    assert_eq!(choice["message"], json!({"role": "assistant", "content": content, "refusal": null}));
    assert_eq!(choice["finish_reason"], json!("stop"));
    let usage = &value["usage"];
    assert_eq!(usage["prompt_tokens"], json!(37));
    let total = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], json!(total));
}

#[test]
fn a_chat_on_an_adapter_by_its_alias() {
    let Some(server) = shared_server("a_chat_on_an_adapter_by_its_alias") else { return };
    let mut body = chat("iso-date", "December 7th, 1997");
    body["messages"] = json!([
        {"role": "system", "content": "ISO date."},
        {"role": "user", "content": [{"type": "text", "text": "December 7th, 1997"}]},
    ]);
    let value = server.client().post("/v1/chat/completions", &body).expect(200).json();
    assert_eq!(value["choices"][0]["message"]["content"], json!("1997-12-07"), "{value}");
}

#[test]
fn a_chat_on_a_function_goes_through_its_plugin() {
    let Some(server) = shared_server("a_chat_on_a_function_goes_through_its_plugin") else { return };
    let value = server.client().post("/v1/chat/completions", &chat("skills", "December 7th, 1997")).expect(200).json();
    assert_eq!(value["choices"][0]["message"]["content"], json!("1997-12-07"), "{value}");
}

#[test]
fn a_streamed_chat_has_a_role_deltas_an_end_and_usage_when_asked() {
    let Some(server) = shared_server("a_streamed_chat_has_a_role_deltas_an_end_and_usage_when_asked") else { return };
    let mut body = chat("base", "What is the capital of France?");
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let events = server.client().stream("/v1/chat/completions", &body);
    assert!(events.status == 200 && events.done);
    assert!(events.data.iter().all(|event| event["object"] == json!("chat.completion.chunk")), "{:?}", events.data);
    assert_eq!(events.data[0]["choices"][0]["delta"]["role"], json!("assistant"));
    assert_eq!(events.text(), "The capital of France is Paris.");
    assert_eq!(events.last("/choices/0/finish_reason"), Some(&json!("stop")));
    let (last, rest) = events.data.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["prompt_tokens"]), (&json!([]), &json!(37)));
    assert!(rest.iter().all(|event| event.get("usage") == Some(&Value::Null)), "usage is null until it is known");
    body["stream_options"] = json!({});
    let events = server.client().stream("/v1/chat/completions", &body);
    assert!(events.data.iter().all(|event| event.get("usage").is_none()), "nobody asked for usage");
}

#[test]
fn completions_take_text_or_token_ids() {
    let Some(server) = shared_server("completions_take_text_or_token_ids") else { return };
    let client = server.client();
    let ask = |prompt: Value| {
        let body =
            json!({"model": "base", "prompt": prompt, "max_tokens": 8, "temperature": 0, "return_token_ids": true});
        client.post("/v1/completions", &body).expect(200).json()
    };
    let text = ask(json!("The capital of France is"));
    let ids = text["choices"][0]["prompt_token_ids"].clone();
    assert_eq!(ids.as_array().map(Vec::len), Some(5));
    let tokens = ask(ids);
    assert_eq!(completion_ids(&text), completion_ids(&tokens));
    assert_eq!(text["choices"][0]["text"], tokens["choices"][0]["text"]);
    assert_eq!(text["object"], json!("text_completion"));
    assert_eq!(text["choices"][0]["finish_reason"], json!("length"));
    let beyond = json!({"model": "base", "prompt": [4_000_000], "max_tokens": 1});
    let answer = client.post("/v1/completions", &beyond);
    assert_eq!(answer.status, 400, "a token id beyond the vocabulary: {}", answer.text);
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let Some(server) = shared_server("a_stop_string_ends_the_text_before_it") else { return };
    let mut body = chat("base", "What is the capital of France?");
    body["stop"] = json!(["Par"]);
    let whole = server.client().post("/v1/chat/completions", &body).expect(200).json();
    assert_eq!(whole["choices"][0]["message"]["content"], json!("The capital of France is "), "{whole}");
    assert_eq!(whole["choices"][0]["finish_reason"], json!("stop"));
    body["stream"] = json!(true);
    let events = server.client().stream("/v1/chat/completions", &body);
    assert_eq!(events.text(), "The capital of France is ", "nothing of a stop string is streamed");
    // Over several tokens, the last of many strings, and held back until it is clear.
    body["stop"] = json!(["capital of Spain", "of France is Par"]);
    let events = server.client().stream("/v1/chat/completions", &body);
    assert_eq!(events.text(), "The capital ");
    assert_eq!(events.last("/choices/0/finish_reason"), Some(&json!("stop")));
    body["stop"] = json!("Paris. And");
    let events = server.client().stream("/v1/chat/completions", &body);
    assert_eq!(events.text(), "The capital of France is Paris.", "what did not become a stop string is sent after all");
}

#[test]
fn a_seed_makes_sampling_repeatable() {
    let Some(server) = shared_server("a_seed_makes_sampling_repeatable") else { return };
    let client = server.client();
    let ask = |seed: u32| {
        let body = json!({"model": "base", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 1.0,
            "top_p": 0.95, "top_k": 50, "seed": seed, "ignore_eos": true, "return_token_ids": true});
        completion_ids(&client.post("/v1/completions", &body).expect(200).json())
    };
    let first = ask(7);
    assert_eq!(first, ask(7));
    assert!((8..12).any(|seed| ask(seed) != first), "other seeds give other texts");
}

#[test]
fn chat_logprobs_name_the_alternatives() {
    let Some(server) = shared_server("chat_logprobs_name_the_alternatives") else { return };
    let mut body = chat("base", "What is the capital of France?");
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(3);
    let value = server.client().post("/v1/chat/completions", &body).expect(200).json();
    let content = value["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content[0]["token"], json!("The"));
    for token in content {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(top[0]["logprob"], token["logprob"], "greedy takes the likeliest: {token}");
    }
}

#[test]
fn what_is_not_served_is_refused_with_its_field() {
    let Some(server) = shared_server("what_is_not_served_is_refused_with_its_field") else { return };
    let client = server.client();
    let refused = |field: &str, value: Value, status, code: &str| {
        let mut body = chat("base", "hello");
        body[field] = value;
        let error = client.post("/v1/chat/completions", &body).expect_error(status, code).json();
        assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
        assert_eq!(error["error"]["param"], json!(field), "{error}");
    };
    refused("model", json!("nobody"), 404, "model_not_found");
    refused("n", json!(9), 400, "limit_exceeded");
    refused("n", json!(0), 400, "invalid_request");
    refused("best_of", json!(2), 400, "unsupported");
    refused("response_format", json!({"type": "xml"}), 400, "unsupported");
    refused("functions", json!([{"name": "f"}]), 400, "unsupported");
    refused("reasoning_effort", json!("low"), 400, "unsupported");
    refused("web_search_options", json!({}), 400, "unsupported");
    refused("stream_options", json!({"include_usage": true}), 400, "invalid_request");
    refused("top_logprobs", json!(2), 400, "invalid_request");
    refused("temperature", json!(-1), 400, "invalid_plan");
    refused("top_p", json!(7), 400, "invalid_plan");
    refused("min_p", json!(1.5), 400, "invalid_plan");
    refused("presence_penalty", json!(2.5), 400, "invalid_plan");
    refused("frequency_penalty", json!(-2.5), 400, "invalid_plan");
    refused("repetition_penalty", json!(0), 400, "invalid_plan");
    refused("logit_bias", json!({"49152": 1}), 400, "invalid_plan");
    refused("logit_bias", json!({"1": 101}), 400, "invalid_plan");
    refused("logit_bias", json!({"the": 1}), 400, "invalid_request");
    refused("adapters", json!([{"name": "nobody"}]), 400, "adapter_not_granted");
    refused("adapters", json!([{"name": "iso-date", "weight": 1e30}]), 400, "limit_exceeded");
    refused("max_tokens", json!(100_000_000), 400, "limit_exceeded");
    refused("max_tokens", json!(0), 400, "invalid_request");
    refused("max_completion_tokens", json!(-1), 400, "invalid_request");
    refused("stop", json!([""]), 400, "invalid_plan");
    refused("stop", json!(vec!["a"; 17]), 400, "limit_exceeded");
    let suffix = json!({"model": "base", "prompt": "a", "suffix": "b"});
    client.post("/v1/completions", &suffix).expect_error(400, "unsupported");
}

#[test]
fn what_a_plugin_holds_back_is_not_told_by_the_tokens() {
    let Some(server) = shared_server("what_a_plugin_holds_back_is_not_told_by_the_tokens") else { return };
    let client = server.client();
    for (field, value) in [("return_token_ids", json!(true)), ("logprobs", json!(true))] {
        for stream in [false, true] {
            let mut body = chat("echo", "hello");
            (body[field], body["stream"]) = (value.clone(), json!(stream));
            let error = client.post("/v1/chat/completions", &body).expect_error(400, "unsupported").json();
            assert_eq!(error["error"]["param"], json!(field), "{error}");
        }
    }
}

#[test]
fn an_echo_comes_before_the_text() {
    let Some(server) = shared_server("an_echo_comes_before_the_text") else { return };
    let client = server.client();
    let ask = |prompt: Value, echo: bool, stream: bool| {
        let body = json!({"model": "base", "prompt": prompt, "max_tokens": 4, "temperature": 0, "echo": echo,
            "stream": stream, "return_token_ids": !stream});
        if stream {
            client.stream("/v1/completions", &body).data
        } else {
            vec![client.post("/v1/completions", &body).expect(200).json()]
        }
    };
    let plain = ask(json!("The capital"), false, false).remove(0);
    let expected = format!("The capital{}", plain["choices"][0]["text"].as_str().unwrap());
    assert_eq!(ask(json!("The capital"), true, false)[0]["choices"][0]["text"], json!(expected));
    let ids = plain["choices"][0]["prompt_token_ids"].clone();
    assert_eq!(ask(ids, true, false)[0]["choices"][0]["text"], json!(expected));
    let streamed: String =
        ask(json!("The capital"), true, true).iter().filter_map(|e| e.pointer("/choices/0/text")?.as_str()).collect();
    assert_eq!(streamed, expected);
}

#[test]
fn a_prompt_beyond_the_context_is_refused() {
    let Some(server) = shared_server("a_prompt_beyond_the_context_is_refused") else { return };
    let client = server.client();
    let tokens = vec![504; 8192];
    let body = json!({"model": "base", "prompt": tokens, "max_tokens": 16});
    client.post("/v1/completions", &body).expect_error(400, "context_length_exceeded");
    client.get("/v1/models").expect(200);
}
