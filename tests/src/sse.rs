//! Server-sent events as a client sees them. Not here: what is in them.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use reqwest::blocking::Response;
use serde_json::Value;

/// A stream that was read to its end.
#[derive(Debug)]
pub struct Events {
    /// The HTTP status.
    pub status: u16,
    /// `x-tenon-receipt`.
    pub receipt: Option<String>,
    /// The data of each event, parsed, but for the closing `[DONE]`.
    pub data: Vec<Value>,
    /// Whether the stream closed with `[DONE]`.
    pub done: bool,
    /// From the request to the first event.
    pub first: Option<Duration>,
}

impl Events {
    /// The text of all events, one after the other: of our own invocations, of chats and of completions.
    #[must_use]
    pub fn text(&self) -> String {
        let places = ["/delta", "/choices/0/delta/content", "/choices/0/text"];
        let pieces =
            self.data.iter().filter_map(|event| places.iter().find_map(|place| event.pointer(place)?.as_str()));
        pieces.collect()
    }

    /// The last event that has this member.
    #[must_use]
    pub fn last(&self, pointer: &str) -> Option<&Value> {
        self.data.iter().rev().find_map(|event| event.pointer(pointer).filter(|value| !value.is_null()))
    }
}

/// Reads a stream to its end.
///
/// # Panics
/// If the connection breaks, or an event is not JSON.
#[must_use]
pub fn read_events(response: Response, started: Instant) -> Events {
    let receipt = response.headers().get("x-tenon-receipt").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut events = Events { status: response.status().as_u16(), receipt, data: Vec::new(), done: false, first: None };
    for line in BufReader::new(response).lines() {
        let line = line.expect("the stream is read to its end");
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        events.first.get_or_insert_with(|| started.elapsed());
        if data == "[DONE]" {
            events.done = true;
        } else {
            events.data.push(serde_json::from_str(data).unwrap_or_else(|error| panic!("not JSON ({error}): {data}")));
        }
    }
    events
}
