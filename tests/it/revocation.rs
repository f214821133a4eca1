//! Revocation as an operator uses it: what is in flight ends with a stated error and a receipt, and what was revoked is refused
//! from then on, also after a restart.

use std::io::BufRead as _;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Options, Server, adapter_folder, deploy_plugin, guest, tenant_key};

fn ask(model: &str, tokens: usize) -> Value {
    json!({"model": model, "prompt": "One two three", "max_tokens": tokens, "ignore_eos": true, "stream": true, "temperature": 0})
}

/// Streams a long answer, does something after its first token, and reads the rest: the last event.
fn last_event_after(client: &Client, path: &str, body: &Value, what: impl FnOnce()) -> Value {
    let mut lines = Client::lines(client.open(path, body)).lines();
    let mut next = || loop {
        let line = lines.next()?.expect("a line");
        if let Some(data) = line.strip_prefix("data: ") {
            return serde_json::from_str::<Value>(data).ok();
        }
    };
    next().expect("a first token");
    what();
    let mut last = Value::Null;
    while let Some(event) = next() {
        last = event;
    }
    last
}

#[test]
fn a_revoked_adapter_ends_its_streams_and_never_comes_back() {
    let test = "a_revoked_adapter_ends_its_streams_and_never_comes_back";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    let client = server.client();
    let folder = adapter_folder("all-caps").expect("a committed adapter");
    let digest = client.upload_adapter("caps", &folder).expect(201).json()["digest"].as_str().unwrap().to_owned();
    let path = format!("/v1/revocations/{digest}");
    let last = last_event_after(&client, "/v1/completions", &ask("caps", 4000), || {
        let revoked = client.put(&path, &json!({"reason": "trained on secrets"})).expect(201).json();
        assert_eq!(revoked["digest"], json!(digest));
    });
    assert_eq!(last["error"]["code"], json!("revoked"), "{last}");
    client.post("/v1/completions", &json!({"model": "base", "prompt": "One", "max_tokens": 2})).expect(200);

    let refused = client.post("/v1/completions", &json!({"model": "caps", "prompt": "One", "max_tokens": 2}));
    let refused = refused.expect_error(410, "revoked");
    assert!(refused.text.contains("trained on secrets"), "{}", refused.text);
    client.upload_adapter("caps-again", &folder).expect_error(410, "revoked");
    let shown = client.get("/v1/adapters/caps").expect(200).json();
    assert_eq!(shown["revoked"], json!("trained on secrets"));
    // The first word counts, and the answer is the same for what nobody has.
    let again = client.put(&path, &json!({"reason": "another"})).expect(201).json();
    assert_eq!(again["reason"], json!("trained on secrets"));
    client.put(&format!("/v1/revocations/{}", "0".repeat(64)), &json!({})).expect(201);
    client.put("/v1/revocations/short", &json!({})).expect_error(400, "invalid_request");
    client.put(&path, &json!({"because": "?"})).expect_error(400, "invalid_request");
    let key = tenant_key(&client, "someone", &["invoke", "adapters"]);
    client.with_key(Some(key)).put(&path, &json!({})).expect_error(403, "forbidden");

    let options = Options { data: Some(server.data().to_path_buf()), ..Options::default() };
    let _scratch = server.keep_data();
    drop(server);
    let Some(server) = Server::start(test, options) else { return };
    let client = server.client();
    client.post("/v1/completions", &json!({"model": "caps", "prompt": "One"})).expect_error(410, "revoked");
    let all = client.get("/v1/revocations").expect(200).json();
    assert_eq!(all["data"].as_array().map(Vec::len), Some(2), "{all}");
}

/// Text that a stop string is half met by is held back; when the answer ends in an error, no stop string can be met any more.
#[test]
fn what_a_stop_string_held_is_sent_before_the_error() {
    let Some(server) = Server::start("what_a_stop_string_held_is_sent_before_the_error", Options::default()) else {
        return;
    };
    let client = server.client();
    let folder = adapter_folder("all-caps").expect("a committed adapter");
    let digest = client.upload_adapter("caps", &folder).expect(201).json()["digest"].as_str().unwrap().to_owned();
    let mut body = ask("caps", 150);
    body["stream"] = json!(false);
    let whole = client.post("/v1/completions", &body).expect(200).json()["choices"][0]["text"].clone();
    let whole = whole.as_str().expect("a text").to_owned();
    // All of it is held, for as many tokens as go into the longest stop string.
    let begin: String = whole
        .chars()
        .scan(0, |bytes, c| {
            *bytes += c.len_utf8();
            (*bytes < 250).then_some(c)
        })
        .collect();
    assert!(begin.len() > 100, "too short to be held for long: {whole:?}");
    let mut body = ask("caps", 4000);
    body["stop"] = json!([format!("{begin}\u{1}")]);
    let steps = || client.metric("tenon_engine_steps_total").expect("a metric");
    let before = steps();
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| client.stream("/v1/completions", &body));
        while steps() < before + 8.0 && !stream.is_finished() {
            std::thread::sleep(Duration::from_millis(2));
        }
        client.put(&format!("/v1/revocations/{digest}"), &json!({"reason": "while it held"})).expect(201);
        let events = stream.join().expect("a stream");
        assert_eq!(events.last("/error/code"), Some(&json!("revoked")), "{:?}", events.data);
        let text = events.text();
        // On a slow machine it may have come further.
        let is_beginning = whole.starts_with(&text) || text.starts_with(&whole);
        assert!(!text.is_empty() && is_beginning, "{text:?} is no beginning of {whole:?}");
        let error = events.data.iter().position(|event| event.get("error").is_some());
        assert_eq!(error, Some(events.data.len() - 1), "the text comes before: {:?}", events.data);
    });
}

#[test]
fn a_revoked_plugin_ends_its_streams_and_is_not_deployed_again() {
    let test = "a_revoked_plugin_ends_its_streams_and_is_not_deployed_again";
    let Some(server) = Server::start(test, Options::default()) else { return };
    let client = server.client();
    deploy_plugin(&client, "speaks", "echo", &json!({}));
    let plugin = client.upload_plugin(guest("echo"));
    let body = json!({"input": "One two three", "max_tokens": 4000, "stream": true});
    let last = last_event_after(&client, "/v1/functions/speaks/invoke", &body, || {
        client.put(&format!("/v1/revocations/{plugin}"), &json!({"reason": "it spies"})).expect(201);
    });
    // The model may have ended its answer just before.
    if last.get("finish_reason").is_none() {
        assert_eq!(last["error"]["code"], json!("revoked"), "{last}");
    }
    let invoked = client.post("/v1/functions/speaks/invoke", &json!({"input": "One", "max_tokens": 2}));
    assert!(invoked.expect_error(410, "revoked").text.contains("it spies"));
    let manifest = json!({"plugin": plugin});
    client.put("/v1/functions/other", &manifest).expect_error(410, "revoked");
}

#[test]
fn the_command_line_revokes() {
    let Some(server) = Server::start("the_command_line_revokes", Options::default()) else { return };
    let client = server.client();
    let key = server.key();
    for command in [&["revoke"][..], &["adapter", "revoke"]] {
        let digest = if command.len() == 1 { "a" } else { "b" }.repeat(64);
        let arguments = [command, &[&digest, "--reason", "why", "--url", server.url(), "--key", &key]].concat();
        let output = tests::run_tenon(&arguments);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("{digest} revoked")), "{output:?}");
    }
    assert_eq!(client.get("/v1/revocations").expect(200).json()["data"].as_array().map(Vec::len), Some(2));
}
