//! Those who ask while the host dies: what they ask, and how much of the answer they got. Not here: what must be on
//! record of it.

use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;
use reqwest::blocking::Response;
use serde_json::{Value, json};
use tests::Client;

/// Something to ask, whose answer is always the same.
pub(super) struct Question {
    pub(super) path: &'static str,
    body: Value,
    /// The key of another tenant.
    key: Option<String>,
}

/// What a caller got.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) kind: usize,
    /// Absent if there was no answer at all.
    pub(super) status: Option<u16>,
    pub(super) receipt: Option<String>,
    /// The text as far as it came; of an answer in one piece, all or nothing.
    pub(super) text: String,
    /// Whether the whole answer came: the body to its end, or `[DONE]`.
    pub(super) is_whole: bool,
}

/// How far callers are: so many have asked, have the head of an answer, have all of it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    asked: AtomicUsize,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Progress {
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub(super) fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub(super) fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

/// Base, adapter, composition, functions with plugins, a long prompt, another tenant; of different lengths, all greedy.
/// None so short that the first has ended when the last of them begins: some kills must find all of them running.
pub(super) fn questions(other_tenant: &str) -> Vec<Question> {
    let ask = |path, body: Value| Question { path, body, key: None };
    let story = json!({"model": "base", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0,
        "ignore_eos": true});
    let caps = json!({"model": "all-caps", "messages": [{"role": "user", "content": "What is the ocean?"}],
        "max_tokens": 10, "temperature": 0});
    let both = json!({"model": "base", "prompt": "I liked it:", "max_tokens": 8, "temperature": 0, "ignore_eos": true,
        "adapters": [{"name": "all-caps", "weight": 0.7}, {"name": "sentiment-json", "weight": 0.3}]});
    let long = json!({"model": "base", "prompt": "The cat sat on the mat and looked at the moon. ".repeat(8),
        "max_tokens": 10, "temperature": 0, "ignore_eos": true});
    let blend = json!({"text": "What is the ocean?", "all-caps": 0.5});
    vec![
        ask("/v1/completions", story.clone()),
        ask("/v1/chat/completions", caps),
        ask("/v1/completions", both),
        ask("/v1/functions/skills/invoke", json!({"input": "December 7th, 1997"})),
        ask("/v1/functions/blend/invoke", json!({"input": blend, "max_tokens": 10})),
        ask("/v1/functions/echo/invoke", json!({"input": "hello", "max_tokens": 16})),
        ask("/v1/completions", long),
        Question { path: "/v1/completions", body: story, key: Some(other_tenant.to_owned()) },
    ]
}

impl Question {
    /// The whole answer's text.
    pub(super) fn answer(&self, client: &Client) -> String {
        let heard = ask(client, 0, self, false, &Progress::default());
        assert!(heard.is_whole && heard.status == Some(200), "{}: {heard:?}", self.path);
        heard.text
    }

    fn client(&self, client: &Client) -> Client {
        self.key.as_ref().map_or_else(|| client.clone(), |key| client.with_key(Some(key.clone())))
    }
}

/// Asks, and keeps what came when the connection breaks.
pub(super) fn ask(client: &Client, kind: usize, question: &Question, stream: bool, progress: &Progress) -> Heard {
    let mut body = question.body.clone();
    body["stream"] = json!(stream);
    let request = question.client(client).request(Method::POST, question.path);
    let request = request.header("content-type", "application/json").body(body.to_string());
    let mut heard = Heard { kind, status: None, receipt: None, text: String::new(), is_whole: false };
    progress.asked.fetch_add(1, Ordering::SeqCst);
    let Ok(response) = request.send() else { return heard };
    progress.begun.fetch_add(1, Ordering::SeqCst);
    heard.status = Some(response.status().as_u16());
    heard.receipt = response.headers().get("x-tenon-receipt").and_then(|id| id.to_str().ok()).map(str::to_owned);
    if stream {
        hear_events(&mut heard, response)
    } else {
        hear_body(&mut heard, response)
    }
    progress.ended.fetch_add(usize::from(heard.is_whole), Ordering::SeqCst);
    heard
}

fn text_of(value: &Value) -> Option<&str> {
    let places = ["/delta", "/output", "/choices/0/delta/content", "/choices/0/message/content", "/choices/0/text"];
    places.iter().find_map(|place| value.pointer(place)?.as_str())
}

fn hear_body(heard: &mut Heard, response: Response) {
    let Ok(text) = response.text() else { return };
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"));
    heard.is_whole = true;
    heard.text = text_of(&value).unwrap_or(&text).to_owned();
}

fn hear_events(heard: &mut Heard, response: Response) {
    for line in BufReader::new(response).lines().map_while(Result::ok) {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            heard.is_whole = true;
            return;
        }
        // A line that the end cut off has no newline and is given all the same.
        let Ok(value) = serde_json::from_str::<Value>(data) else { return };
        assert!(value.get("error").is_none(), "an error in a stream: {data}");
        heard.text.push_str(text_of(&value).unwrap_or_default());
    }
}
