//! Tools: served by bases whose chat template has a place for them, which the demo base's has not (the template's own tests
//! have one that does); refused by all else, never dropped in silence.

use serde_json::{Value, json};
use tests::{Client, shared_server};

fn ask(client: &Client, model: &str, change: &Value) -> tests::Answer {
    let mut body =
        json!({"model": model, "messages": [{"role": "user", "content": "Is it cold in Oslo?"}], "max_tokens": 4});
    change.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    client.post("/v1/chat/completions", &body)
}

#[test]
fn tools_that_the_base_cannot_be_told_of_are_refused() {
    let Some(server) = shared_server("tools_that_the_base_cannot_be_told_of_are_refused") else { return };
    let client = server.client();
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]);
    let refused = |model: &str, change: Value, param: &str| {
        let error = ask(&client, model, &change).expect_error(400, "unsupported").json();
        assert_eq!(error["error"]["param"], json!(param), "{error}");
    };
    refused("base", json!({"tools": tools}), "tools");
    refused("iso-date", json!({"tools": tools, "tool_choice": "auto"}), "tools");
    refused("echo", json!({"tools": tools}), "tools");
    refused("base", json!({"tools": tools, "tool_choice": "required"}), "tool_choice");
    let named = json!({"type": "function", "function": {"name": "weather"}});
    refused("base", json!({"tools": tools, "tool_choice": named}), "tool_choice");
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Oslo\"}"}});
    let history = json!([{"role": "user", "content": "cold?"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"}]);
    refused("base", json!({"messages": history}), "messages");
    refused("echo", json!({"messages": history}), "tools");
    let broken = json!([{"type": "function", "function": {"parameters": {}}}]);
    let error = ask(&client, "base", &json!({"tools": broken})).expect_error(400, "invalid_request").json();
    assert_eq!(error["error"]["param"], json!("tools[0]"));
}

#[test]
fn tools_that_may_not_be_called_are_not_told_of() {
    let Some(server) = shared_server("tools_that_may_not_be_called_are_not_told_of") else { return };
    let client = server.client();
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let plain = ask(&client, "base", &json!({"temperature": 0})).expect(200).json();
    for change in [
        json!({"temperature": 0, "tools": tools, "tool_choice": "none"}),
        json!({"temperature": 0, "tools": [], "tool_choice": "auto", "parallel_tool_calls": false}),
    ] {
        let value = ask(&client, "base", &change).expect(200).json();
        assert_eq!(value["choices"][0]["message"], plain["choices"][0]["message"]);
        assert_eq!(value["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);
    }
}

#[test]
fn roles_of_today_and_of_yesterday_are_taken() {
    let Some(server) = shared_server("roles_of_today_and_of_yesterday_are_taken") else { return };
    let client = server.client();
    let with = |role: &str| {
        let messages =
            json!([{"role": role, "content": "Be brief."}, {"role": "user", "content": "Hello", "name": "Ada"}]);
        ask(&client, "base", &json!({"messages": messages, "temperature": 0})).expect(200).json()["choices"].clone()
    };
    let text = |choices: Value| choices[0]["message"]["content"].clone();
    assert_eq!(text(with("developer")), text(with("system")));
    let answer = json!([{"role": "user", "content": "cold?"}, {"role": "tool", "tool_call_id": "c1", "content": "4"}]);
    ask(&client, "base", &json!({"messages": answer})).expect(200);
}
