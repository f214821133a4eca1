//! Generations as an answer: one JSON object, or server-sent events. An answer has one or several choices, each a
//! generation of its own. Not here: the shape of the objects, which each route gives as a [`Format`].

use std::pin::Pin;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::try_join_all;
use futures::stream::{self, SelectAll, Stream};
use serde_json::Value;

use super::error;
use crate::error::Error;
use crate::invoke::{Ended, Generation, Head, Piece, TokenOut};

/// How a route writes the pieces of its choices, each named by its index.
pub(crate) trait Format: Send + 'static {
    /// What an event's line begins with.
    const DATA: &'static str = "data: ";
    /// What ends a stream.
    const END: &'static str = "data: [DONE]\n\n";

    /// Before the first piece.
    fn begin(&mut self, heads: &[Arc<Head>]) -> Vec<Value>;
    /// Text as it comes.
    fn text(&mut self, choice: usize, head: &Head, text: String, tokens: Vec<TokenOut>) -> Vec<Value>;
    /// The end of a choice.
    fn end(&mut self, choice: usize, head: &Head, ended: Ended) -> Vec<Value>;
    /// After the end of the last one.
    fn close(&mut self) -> Vec<Value> {
        Vec::new()
    }
    /// The event of an error in mid-stream.
    fn failed(&mut self, failure: &Error) -> Value {
        error::body(failure)
    }
}

/// Everything of one choice at once.
pub(crate) struct Whole {
    pub(crate) head: Arc<Head>,
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenOut>,
    pub(crate) ended: Ended,
}

/// Reads generations to their ends, at the same time. An error of one ends all; it names the receipts, which were made by
/// then.
pub(crate) async fn collect(generations: Vec<Generation>) -> Result<Vec<Whole>, Error> {
    let receipt = receipts(&heads(&generations));
    let wholes = try_join_all(generations.into_iter().map(whole)).await;
    wholes.map_err(|error| Error::WithReceipt { receipt, source: Box::new(error) })
}

async fn whole(mut generation: Generation) -> Result<Whole, Error> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(piece) = generation.next().await {
        match piece? {
            Piece::Text { text: more, tokens: mut of_it } => {
                text.push_str(&more);
                tokens.append(&mut of_it);
            }
            Piece::End(ended) => return Ok(Whole { head: Arc::clone(&generation.head), text, tokens, ended }),
        }
    }
    Err(Error::Internal("the generation ended without an end".into()))
}

/// One JSON object, with the receipts' ids in the header.
pub(crate) fn json<'a>(heads: impl IntoIterator<Item = &'a Arc<Head>>, value: Value) -> Response {
    error::with_receipt(Json(value).into_response(), &receipts(heads))
}

/// Server-sent events, ended as their format says. An error in mid-stream is an event of its own.
pub(crate) fn events(generations: Vec<Generation>, format: impl Format) -> Response {
    let receipts = receipts(&heads(&generations));
    let mut response = Response::new(Body::from_stream(event_stream(generations, format)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    error::with_receipt(response, &receipts)
}

fn heads(generations: &[Generation]) -> Vec<Arc<Head>> {
    generations.iter().map(|generation| Arc::clone(&generation.head)).collect()
}

fn receipts<'a>(heads: impl IntoIterator<Item = &'a Arc<Head>>) -> String {
    heads.into_iter().map(|head| head.receipt_id.as_str()).collect::<Vec<_>>().join(", ")
}

/// The pieces of one choice, with its index.
type Pieces = Pin<Box<dyn Stream<Item = (usize, Result<Piece, Error>)> + Send>>;

struct Choices<F> {
    heads: Vec<Arc<Head>>,
    pieces: SelectAll<Pieces>,
    /// Choices that have not ended.
    open: usize,
    format: F,
}

enum State<F> {
    Begin(Choices<F>),
    Running(Choices<F>),
    Ended,
}

fn event_stream<F: Format>(generations: Vec<Generation>, format: F) -> impl Stream<Item = Result<Bytes, Error>> {
    let heads = heads(&generations);
    let pieces = stream::select_all(generations.into_iter().enumerate().map(|(choice, one)| pieces(choice, one)));
    let choices = Choices { open: heads.len(), heads, pieces, format };
    stream::unfold(State::Begin(choices), async |state| match state {
        State::Begin(mut choices) => {
            let first = choices.format.begin(&choices.heads);
            Some((Ok(frame::<F>(&first)), State::Running(choices)))
        }
        State::Running(mut choices) => match choices.pieces.next().await? {
            (choice, Ok(piece)) => {
                let values = choices.values(choice, piece);
                if choices.open == 0 {
                    return Some((Ok(last::<F>(&values)), State::Ended));
                }
                Some((Ok(frame::<F>(&values)), State::Running(choices)))
            }
            (choice, Err(failure)) => {
                error::log(&failure, choices.heads.get(choice).map_or("", |head| &head.request_id));
                // The other choices are dropped, which cancels them.
                let value = choices.format.failed(&failure);
                Some((Ok(last::<F>(&[value])), State::Ended))
            }
        },
        State::Ended => None,
    })
}

fn pieces(choice: usize, generation: Generation) -> Pieces {
    let pieces = stream::unfold(generation, async |mut generation| Some((generation.next().await?, generation)));
    Box::pin(pieces.map(move |piece| (choice, piece)))
}

impl<F: Format> Choices<F> {
    fn values(&mut self, choice: usize, piece: Piece) -> Vec<Value> {
        let Some(head) = self.heads.get(choice) else { return Vec::new() };
        match piece {
            Piece::Text { text, tokens } => self.format.text(choice, head, text, tokens),
            Piece::End(ended) => {
                self.open = self.open.saturating_sub(1);
                let mut values = self.format.end(choice, head, ended);
                if self.open == 0 {
                    values.append(&mut self.format.close());
                }
                values
            }
        }
    }
}

fn frame<F: Format>(values: &[Value]) -> Bytes {
    text::<F>(values).into()
}

fn last<F: Format>(values: &[Value]) -> Bytes {
    (text::<F>(values) + F::END).into()
}

fn text<F: Format>(values: &[Value]) -> String {
    values.iter().map(|value| format!("{}{value}\n\n", F::DATA)).collect()
}
