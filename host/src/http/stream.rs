//! A generation as an answer: one JSON object, or server-sent events. Not here: the shape of the objects, which each
//! route gives as a [`Format`].

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{self, Stream};
use serde_json::Value;

use super::error;
use crate::error::Error;
use crate::invoke::{Ended, Generation, Piece, TokenOut};

/// How a route writes the pieces of a generation.
pub(crate) trait Format: Send + 'static {
    /// Before the first piece.
    fn begin(&mut self, generation: &Generation) -> Vec<Value>;
    /// Text as it comes.
    fn text(&mut self, generation: &Generation, text: String, tokens: Vec<TokenOut>) -> Vec<Value>;
    /// The end.
    fn end(&mut self, generation: &Generation, ended: Ended) -> Vec<Value>;
}

/// Everything at once.
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenOut>,
    pub(crate) ended: Ended,
}

/// Reads a generation to its end. An error names the receipt, which was made by then.
pub(crate) async fn collect(generation: &mut Generation) -> Result<Whole, Error> {
    let receipt = generation.receipt_id.clone();
    pieces(generation).await.map_err(|error| Error::WithReceipt { receipt, source: Box::new(error) })
}

async fn pieces(generation: &mut Generation) -> Result<Whole, Error> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(piece) = generation.next().await {
        match piece? {
            Piece::Text { text: more, tokens: mut of_it } => {
                text.push_str(&more);
                tokens.append(&mut of_it);
            }
            Piece::End(ended) => return Ok(Whole { text, tokens, ended }),
        }
    }
    Err(Error::Generation("the generation ended without an end".into()))
}

/// One JSON object, with the receipt's id in the header.
pub(crate) fn json(generation: &Generation, value: Value) -> Response {
    error::with_receipt(Json(value).into_response(), &generation.receipt_id)
}

/// Server-sent events, ended by `data: [DONE]`. An error in mid-stream is an event of its own.
pub(crate) fn events(generation: Generation, format: impl Format) -> Response {
    let receipt_id = generation.receipt_id.clone();
    let mut response = Response::new(Body::from_stream(event_stream(generation, format)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    error::with_receipt(response, &receipt_id)
}

enum State<F> {
    Begin(Box<Generation>, F),
    Running(Box<Generation>, F),
    Ended,
}

fn event_stream<F: Format>(generation: Generation, format: F) -> impl Stream<Item = Result<Bytes, Error>> {
    stream::unfold(State::Begin(Box::new(generation), format), async |state| match state {
        State::Begin(generation, mut format) => {
            let first = format.begin(&generation);
            Some((Ok(frame(&first)), State::Running(generation, format)))
        }
        State::Running(mut generation, mut format) => match generation.next().await? {
            Ok(Piece::Text { text, tokens }) => {
                let values = format.text(&generation, text, tokens);
                Some((Ok(frame(&values)), State::Running(generation, format)))
            }
            Ok(Piece::End(ended)) => Some((Ok(last(&format.end(&generation, ended))), State::Ended)),
            Err(failure) => {
                error::log(&failure, &generation.request_id);
                Some((Ok(last(&[error::body(&failure)])), State::Ended))
            }
        },
        State::Ended => None,
    })
}

fn frame(values: &[Value]) -> Bytes {
    values.iter().map(|value| format!("data: {value}\n\n")).collect::<String>().into()
}

fn last(values: &[Value]) -> Bytes {
    let mut text: String = values.iter().map(|value| format!("data: {value}\n\n")).collect();
    text.push_str("data: [DONE]\n\n");
    text.into()
}
