//! Tools on a base whose chat template has a place for them: they reach the prompt as transformers would write them, through
//! the whole host. That the demo base refuses them is with the tests of a running server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

use std::path::{Path, PathBuf};

use generators::{Sizes, base_file_with};
use host::InProcess;
use serde_json::{Value, json};

const TEMPLATE: &str = "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}\
{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.tool_calls is defined %}{% for call in m.tool_calls %}\
{{ call.function.name }}({{ call.function.arguments.city }}){{ call.function.arguments | tojson }}{% endfor %}{% endif %}\
{% if m.tool_call_id is defined %} for {{ m.tool_call_id }}{% endif %}{% endfor %}";

fn ask(host: &InProcess, path: &str, body: &Value) -> Value {
    let authorization = ("authorization".to_owned(), format!("Bearer {}", host.key()).into_bytes());
    let content_type = ("content-type".to_owned(), b"application/json".to_vec());
    let asked = host.ask("POST", path, &[authorization, content_type], body.to_string().into_bytes(), 1 << 20);
    let answer = asked.expect("a whole answer").expect("a request");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    serde_json::from_slice(&answer.body).expect("JSON")
}

#[test]
fn tools_and_calls_are_in_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.gguf");
    std::fs::write(&base, base_file_with(&Sizes::TINY, TEMPLATE)).unwrap();
    let tenon = PathBuf::from(env!("CARGO_BIN_EXE_tenon"));
    let host = InProcess::open(&base, &Path::new(folder.path()).join("data"), tenon).unwrap();
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {"z": 1, "a": [true, null]}}});
    let call = json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"b\":1,\"city\":\"Oslo\"}"}});
    let messages = json!([
        {"role": "user", "content": "cold?"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4 < 5"},
    ]);
    let mut body =
        json!({"model": "base", "messages": messages, "tools": [tool], "max_tokens": 1, "return_token_ids": true});
    let prompt = |body: &Value| ask(&host, "/v1/chat/completions", body)["choices"][0]["prompt_token_ids"].clone();
    let of_text = |text: &str| {
        let body = json!({"model": "base", "prompt": text, "max_tokens": 1, "return_token_ids": true});
        ask(&host, "/v1/completions", &body)["choices"][0]["prompt_token_ids"].clone()
    };
    let turns = r#"[user]cold?[assistant]weather(Oslo){"b": 1, "city": "Oslo"}[tool]4 < 5 for c1"#;
    let tools = r#"<tools>{"type": "function", "function": {"name": "weather", "parameters": {"z": 1, "a": [true, null]}}}</tools>"#;
    assert_eq!(prompt(&body), of_text(&format!("{tools}{turns}")));
    body["tool_choice"] = json!("none");
    assert_eq!(prompt(&body), of_text(turns));
}
