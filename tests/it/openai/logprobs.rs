//! Log-probabilities: their bytes join to the text, also where a character is split over tokens or the text is cut.

use serde_json::{Value, json};
use tests::{Client, Events, shared_server};

const EMOJI: &str = "🙂🦀🙂🦀🙂🦀🙂🦀🙂🦀🙂🦀🙂";

fn bytes_of(content: &[Value]) -> Vec<u8> {
    let bytes = content.iter().filter_map(|token| token["bytes"].as_array()).flatten();
    bytes.map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap()).collect()
}

fn content_of(value: &Value) -> Vec<Value> {
    value.pointer("/choices/0/logprobs/content").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn chat(client: &Client, change: &Value) -> Value {
    client.post("/v1/chat/completions", &chat_body(change)).expect(200).json()
}

fn chat_body(change: &Value) -> Value {
    let question = format!("Repeat this exactly: {EMOJI}");
    let mut body = json!({"model": "base", "messages": [{"role": "user", "content": question}], "max_tokens": 32,
        "temperature": 0, "logprobs": true, "top_logprobs": 2});
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn the_bytes_of_all_tokens_are_the_text() {
    let Some(server) = shared_server("the_bytes_of_all_tokens_are_the_text") else { return };
    let client = server.client();
    let value = chat(&client, &json!({}));
    let (text, content) = (value["choices"][0]["message"]["content"].as_str().unwrap(), content_of(&value));
    assert!(text.chars().any(|character| character.len_utf8() == 4), "there is an emoji: {text}");
    let parts = content.iter().filter(|token| std::str::from_utf8(&bytes_of(std::slice::from_ref(token))).is_err());
    assert!(parts.count() >= 2, "a character is split over tokens: {content:?}");
    assert_eq!(String::from_utf8_lossy(&bytes_of(&content)), text);
    let events: Events = client.stream("/v1/chat/completions", &chat_body(&json!({"stream": true})));
    let streamed: Vec<Value> = events.data.iter().flat_map(content_of).collect();
    assert_eq!(streamed, content, "streamed tokens are the same");
    let (mut bytes, mut text) = (Vec::new(), String::new());
    for event in &events.data {
        bytes.extend(bytes_of(&content_of(event)));
        text.push_str(event.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or_default());
        assert!(String::from_utf8_lossy(&bytes).starts_with(&text), "text never comes before its tokens: {event}");
    }
}

#[test]
fn a_stop_string_takes_its_tokens_with_it() {
    let Some(server) = shared_server("a_stop_string_takes_its_tokens_with_it") else { return };
    let client = server.client();
    let question = json!([{"role": "user", "content": "What is the capital of France?"}]);
    for (stop, text) in [("capital of France", "The "), ("ital of", "The cap"), ("The", "")] {
        let value = chat(&client, &json!({"messages": question, "stop": stop}));
        assert_eq!(value["choices"][0]["message"]["content"], json!(text));
        let content = content_of(&value);
        let joined = String::from_utf8(bytes_of(&content)).unwrap();
        assert!(joined.starts_with(text), "{joined:?} {text:?}");
        let before_last =
            content.split_last().map_or(String::new(), |(_, rest)| String::from_utf8(bytes_of(rest)).unwrap());
        assert!(content.is_empty() || before_last.len() < text.len(), "every token begins in the text: {content:?}");
    }
}

#[test]
fn offsets_of_a_completion_are_where_its_tokens_begin() {
    let Some(server) = shared_server("offsets_of_a_completion_are_where_its_tokens_begin") else { return };
    let client = server.client();
    let ask = |prompt: &str, change: &Value| {
        let mut body = json!({"model": "base", "prompt": prompt, "max_tokens": 24, "temperature": 0, "logprobs": 2,
            "ignore_eos": true});
        change.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        client.post("/v1/completions", &body).expect(200).json()
    };
    for prompt in ["The capital of France is", EMOJI] {
        let value = ask(prompt, &json!({}));
        let characters: Vec<char> = value["choices"][0]["text"].as_str().unwrap().chars().collect();
        let logprobs = &value["choices"][0]["logprobs"];
        let tokens = logprobs["tokens"].as_array().unwrap();
        let offsets = logprobs["text_offset"].as_array().unwrap();
        assert_eq!((tokens.len(), offsets.len()), (24, 24));
        for (token, offset) in tokens.iter().zip(offsets) {
            let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
            if !token.starts_with("bytes:") {
                let there: String = characters[offset..].iter().take(token.chars().count()).collect();
                assert_eq!(there, token);
            }
        }
        assert!(offsets.iter().all(|offset| offset.as_u64().unwrap() as usize <= characters.len()));
    }
    let emoji = ask(EMOJI, &json!({}));
    let tokens = emoji["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert!(tokens.iter().any(|token| token.as_str().unwrap().starts_with("bytes:\\x")), "{tokens:?}");
    let none = ask("The", &json!({"logprobs": 0}));
    let top = &none["choices"][0]["logprobs"]["top_logprobs"];
    assert!(
        top.as_array().unwrap().iter().all(|top| top.as_object().unwrap().len() == 1),
        "the drawn token alone: {top}"
    );
}
