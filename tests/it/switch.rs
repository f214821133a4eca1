//! A plugin that switches the composition in mid-stream: what the answer is, what the receipt says of it, and what is refused.

use serde_json::{Value, json};
use tests::{Client, Options, Server, adapter_folder, completion_ids, deploy_plugin, receipt_of, wait_until_idle};

const PROMPT: &str = "The names of the months and of the days, one after the other:";

/// Text is a user's turn; token ids are what the model is given as it is.
fn ask(client: &Client, model: &str, prompt: &Value, tokens: usize) -> Value {
    let mut body = json!({"model": model, "max_tokens": tokens, "temperature": 0});
    // A function's plugin may change the text: it has no tokens to show.
    if ["base", "all-caps", "iso-date"].contains(&model) {
        body["return_token_ids"] = json!(true);
    }
    let path = if prompt.is_string() {
        body["messages"] = json!([{"role": "user", "content": prompt}]);
        "/v1/chat/completions"
    } else {
        body["prompt"] = prompt.clone();
        "/v1/completions"
    };
    client.post(path, &body).expect(200).json()
}

fn text(answer: &Value) -> String {
    let choice = &answer["choices"][0];
    choice["text"].as_str().or_else(|| choice["message"]["content"].as_str()).expect("text").to_owned()
}

fn deploy(client: &Client, function: &str, first: Option<&str>, second: Option<&str>, switch: &str) {
    let mut config = json!({"after": "5"});
    for (key, adapter) in [("first", first), ("second", second)] {
        if let Some(adapter) = adapter {
            config[key] = json!(adapter);
        }
    }
    let manifest = json!({"adapters": ["all-caps", "iso-date"], "config": config, "switch": switch});
    deploy_plugin(client, function, "relay", &manifest);
}

fn started(test: &str) -> Option<Server> {
    let server = Server::start(test, Options::f32())?;
    for name in ["all-caps", "iso-date"] {
        let folder = adapter_folder(name).expect("a committed adapter");
        server.client().upload_adapter(name, &folder).expect(201);
    }
    Some(server)
}

#[test]
fn a_switch_goes_on_exactly_where_the_plugin_saw_the_answer() {
    let Some(server) = started("a_switch_goes_on_exactly_where_the_plugin_saw_the_answer") else { return };
    let client = server.client();
    let (caps, date) = (Some("all-caps"), Some("iso-date"));
    for (function, first, second, switch) in [
        ("same", caps, caps, "reuse"),
        ("again", caps, caps, "reprefill"),
        ("to-base", caps, None, "reprefill"),
        ("to-date", caps, date, "reprefill"),
        ("from-base", None, date, "reuse"),
        ("kept", caps, date, "reuse"),
    ] {
        deploy(&client, function, first, second, switch);
    }
    let whole = ask(&client, "all-caps", &json!(PROMPT), 16);
    let asked: Vec<u32> = serde_json::from_value(whole["choices"][0]["prompt_token_ids"].clone()).expect("token ids");
    let (whole, head) = (text(&whole), completion_ids(&whole)[..5].to_vec());
    let begun = text(&ask(&client, "all-caps", &json!(PROMPT), 5));
    for function in ["same", "again"] {
        let answer = ask(&client, function, &json!(PROMPT), 16);
        assert_eq!(text(&answer), whole, "{function}: nothing changed");
        assert_eq!(answer["usage"]["completion_tokens"], json!(16));
        assert_eq!(answer["usage"]["prompt_tokens"], json!(asked.len()));
    }
    // Computed anew, the rest is what the next composition makes of all that came before.
    let so_far: Vec<u32> = asked.iter().chain(&head).copied().collect();
    for (function, next) in [("to-base", "base"), ("to-date", "iso-date")] {
        let rest = text(&ask(&client, next, &json!(so_far), 11));
        let answer = text(&ask(&client, function, &json!(PROMPT), 16));
        assert_eq!(answer, begun.clone() + &rest, "{function}");
        assert_ne!(answer, whole, "{function}: the switch shows");
    }
    // With its KV kept: the same however often, and with nothing kept from before.
    let kept = text(&ask(&client, "kept", &json!(PROMPT), 16));
    assert!(kept.starts_with(&begun) && kept != whole, "{kept:?} after {begun:?}");
    assert_eq!(text(&ask(&client, "kept", &json!(PROMPT), 16)), kept);
    // All of it in the receipt: the prompt and four tokens of the answer were computed under the first.
    let answer =
        client.post("/v1/functions/kept/invoke", &json!({"input": "One two three", "max_tokens": 12})).expect(200);
    let receipt = receipt_of(&client, answer.receipt.as_deref().expect("a receipt"), answer.json()["output"].as_str());
    let (outcome, usage) = (&receipt["receipt"]["outcome"], &answer.json()["usage"]);
    let active: Vec<u64> = outcome["composition"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| one["tokens_active"].as_u64().expect("a count"))
        .collect();
    let (prompt_tokens, all) =
        (usage["prompt_tokens"].as_u64().expect("a count"), usage["total_tokens"].as_u64().expect("a count"));
    assert_eq!(active, [prompt_tokens + 4, all - prompt_tokens - 4], "{outcome}");
    wait_until_idle(&client);
}

#[test]
fn switches_are_checked_and_end_with_their_answer() {
    let Some(server) = started("switches_are_checked_and_end_with_their_answer") else { return };
    let client = server.client();
    deploy(&client, "short", Some("all-caps"), Some("iso-date"), "reuse");
    // The budget ends with the token that the plugin wants to switch at, or before.
    for tokens in [4, 5, 6] {
        let answer = ask(&client, "short", &json!(PROMPT), tokens);
        let counted = (&answer["usage"]["completion_tokens"], &answer["choices"][0]["finish_reason"]);
        assert_eq!(counted, (&json!(tokens), &json!("length")));
    }
    // Not granted, and not there: after the text that was let through, an error and its receipt.
    let config = json!({"first": "all-caps", "second": "iso-date", "after": "3"});
    let manifest = json!({"adapters": ["all-caps"], "config": config});
    deploy_plugin(&client, "ungranted", "relay", &manifest);
    let body = json!({"input": "One two three", "max_tokens": 12});
    client.post("/v1/functions/ungranted/invoke", &body).expect_error(502, "adapter_not_granted");
    let plugin = client.upload_plugin(tests::guest("relay"));
    client
        .put("/v1/functions/bad", &json!({"plugin": plugin, "switch": "forget"}))
        .expect_error(400, "invalid_request");
    wait_until_idle(&client);
}

#[test]
fn an_adapter_acts_on_its_span_of_the_answer_alone() {
    let Some(server) = started("an_adapter_acts_on_its_span_of_the_answer_alone") else { return };
    let client = server.client();
    let with = |spans: &str| {
        let manifest = json!({"adapters": ["all-caps", "iso-date"], "config": {"spans": spans, "ignore-eos": "yes"}});
        deploy_plugin(&client, "spans", "actions", &manifest);
        let answer = client.post("/v1/functions/spans/invoke", &json!({"input": PROMPT, "max_tokens": 16})).expect(200);
        let receipt =
            receipt_of(&client, answer.receipt.as_deref().expect("a receipt"), answer.json()["output"].as_str());
        (answer.json()["output"].as_str().expect("text").to_owned(), receipt["receipt"].clone())
    };
    let (base, _) = with("");
    let (late, receipt) = with("all-caps:40-");
    assert_eq!(late, base, "it never acts");
    assert_eq!(receipt["outcome"]["composition"][0]["tokens_active"], json!(0), "{receipt}");
    assert_eq!(receipt["subject"]["adapters"][0]["output"], json!([40, u32::MAX]), "{receipt}");
    // What acts from a token of the answer on is what a switch at it would do.
    deploy(&client, "from-base", None, Some("all-caps"), "reuse");
    let switched = text(&ask(&client, "from-base", &json!(PROMPT), 16));
    let (from, receipt) = with("all-caps:5-");
    assert_eq!(from, switched);
    assert_ne!(from, base, "it shows");
    assert_eq!(receipt["outcome"]["composition"][0]["tokens_active"], json!(12), "as after a switch: {receipt}");
    // Two, one after the other, and then the base: the prompt is nobody's.
    let (course, receipt) = with("iso-date:2-6|all-caps:6-9");
    let active = receipt["outcome"]["composition"].as_array().expect("a list").iter();
    let mut active: Vec<_> = active.map(|one| (one["output"].clone(), one["tokens_active"].clone())).collect();
    active.sort_by_key(|(output, _)| output.to_string());
    assert_eq!(active, [(json!([2, 6]), json!(4)), (json!([6, 9]), json!(3))], "{receipt}");
    assert_eq!(with("iso-date:2-6|all-caps:6-9").0, course, "the same again, from the prefix cache");
    // One adapter in two pieces that touch is the adapter in one.
    assert_eq!(with("all-caps:5-8|all-caps:8-").0, from);
    let manifest = json!({"adapters": ["all-caps"], "config": {"spans": "all-caps:5-5"}});
    deploy_plugin(&client, "spans", "actions", &manifest);
    let refused = client.post("/v1/functions/spans/invoke", &json!({"input": "a"})).expect_error(502, "invalid_plan");
    assert!(refused.text.contains("a span of the output is 5..5"), "{}", refused.text);
    wait_until_idle(&client);
}
