//! The capabilities as an instance that is recorded has them: each question and its answer is noted on its way. A new capability
//! is recorded by a line in `noted` and an implementation here, and answered in `replay/answers.rs`. Not here: what an agent is lent
//! beside these (`record/agent.rs`).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::agent::NotedGenerations;
use super::{Octets, Recorder};
use crate::bindings::tenon::plugin::types as wit;
use crate::convert;
use crate::state::coarse;
use crate::{
    BucketAccess, CallInput, CapabilityError, Catalog, CatalogEntry, Clock, Expected, FunctionReply, Functions,
    KeyPage, KeyValue, LogLevel, LogSink, Outbound, OutboundBounds, OutboundError, Secrets, Session, Tokenizer,
    ToolDescription, ToolOutcome, Tools, Versioned, Written,
};

/// Headers whose values are credentials, whoever made them.
const WITHHELD: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"];

/// The same session, of which everything is noted that is asked of it.
pub(crate) fn noted(session: Session) -> Session {
    let Some(recorder) = session.record.clone() else { return session };
    Session {
        catalog: Noted::over(&recorder, session.catalog),
        log: Noted::over(&recorder, session.log),
        clock: Noted::over(&recorder, session.clock),
        keyvalue: Noted::over(&recorder, session.keyvalue),
        secrets: Noted::over(&recorder, session.secrets),
        outbound: Noted::over(&recorder, session.outbound),
        tokenizer: Noted::over(&recorder, session.tokenizer),
        functions: Noted::over(&recorder, session.functions),
        tools: Noted::over(&recorder, session.tools),
        generations: NotedGenerations::over(&recorder, session.generations),
        output: Noted::over(&recorder, session.output),
        ..session
    }
}

pub(super) struct Noted<T: ?Sized> {
    pub(super) recorder: Recorder,
    pub(super) inner: Arc<T>,
}

impl<T: ?Sized> Noted<T> {
    pub(super) fn over(recorder: &Recorder, inner: Arc<T>) -> Arc<Self> {
        Arc::new(Self { recorder: recorder.clone(), inner })
    }

    pub(super) async fn asked<R: Serialize>(
        &self,
        (import, arguments): Question,
        answer: impl Future<Output = R>,
    ) -> R {
        let asked = self.recorder.asked(import, &arguments);
        let answer = answer.await;
        self.recorder.answered(asked, &answer);
        answer
    }

    fn asked_at_once<R: Serialize>(&self, (import, arguments): Question, answer: impl FnOnce() -> R) -> R {
        let asked = self.recorder.asked(import, &arguments);
        let answer = answer();
        self.recorder.answered(asked, &answer);
        answer
    }
}

/// What is asked for, and with what.
pub(crate) type Question = (&'static str, Value);

/// The questions that there are, for whoever notes and whoever answers them.
pub(crate) mod question {
    use super::*;

    pub(crate) fn adapters() -> Question {
        ("catalog.adapters", json!({}))
    }

    pub(crate) fn prefetch(adapters: &[String]) -> Question {
        ("catalog.prefetch", json!({"adapters": adapters}))
    }

    pub(crate) fn line(level: LogLevel, message: &str) -> Question {
        ("log.write", json!({"level": level, "message": message}))
    }

    pub(crate) fn elapsed() -> Question {
        ("clock.elapsed", json!({}))
    }

    pub(crate) fn unix_time() -> Question {
        ("clock.unix-time", json!({}))
    }

    pub(crate) fn secret(name: &str) -> Question {
        ("secrets.get", json!({"name": name}))
    }

    pub(crate) fn encode(text: &str) -> Question {
        ("tokenizer.encode", json!({"text": text}))
    }

    pub(crate) fn decode(tokens: &[u32]) -> Question {
        ("tokenizer.decode", json!({"tokens": tokens}))
    }

    pub(crate) fn open(bucket: &str) -> Question {
        ("keyvalue.open", json!({"bucket": bucket}))
    }

    pub(crate) fn get(bucket: &str, key: &str) -> Question {
        ("keyvalue.get", json!({"bucket": bucket, "key": key}))
    }

    pub(crate) fn write(bucket: &str, key: &str, expected: Expected, value: Option<&Bytes>) -> Question {
        let value = value.map(|value| Octets::from(value.as_ref()));
        ("keyvalue.write", json!({"bucket": bucket, "key": key, "expected": expected, "value": value}))
    }

    pub(crate) fn keys(bucket: &str, after: Option<&str>) -> Question {
        ("keyvalue.keys", json!({"bucket": bucket, "after": after}))
    }

    pub(crate) fn call(function: &str, input: &CallInput, max_tokens: Option<u32>) -> Question {
        let input = match input {
            CallInput::Text(text) => json!({"text": text}),
            CallInput::Json(text) => json!({"json": text}),
        };
        ("functions.call", json!({"function": function, "input": input, "max_tokens": max_tokens}))
    }

    pub(crate) fn tools(server: &str) -> Question {
        ("tools.list", json!({"server": server}))
    }

    pub(crate) fn tool(server: &str, tool: &str, arguments: &str) -> Question {
        ("tools.call", json!({"server": server, "tool": tool, "arguments": arguments}))
    }

    pub(crate) fn send(request: &Request<Bytes>) -> Question {
        let (method, uri) = (request.method().as_str(), request.uri().to_string());
        let (headers, body) = (headers(request.headers()), Octets::from(request.body().as_ref()));
        ("http.send", json!({"method": method, "uri": uri, "headers": headers, "body": body}))
    }
}

#[async_trait]
impl Catalog for Noted<dyn Catalog> {
    async fn adapters(&self) -> Result<Vec<CatalogEntry>, CapabilityError> {
        self.asked(question::adapters(), self.inner.adapters()).await
    }

    async fn prefetch(&self, adapters: &[String]) -> Result<(), CapabilityError> {
        self.asked(question::prefetch(adapters), self.inner.prefetch(adapters)).await
    }
}

impl LogSink for Noted<dyn LogSink> {
    fn write(&self, level: LogLevel, message: &str) {
        self.asked_at_once(question::line(level, message), || self.inner.write(level, message));
    }
}

impl Clock for Noted<dyn Clock> {
    // As the guest sees it: what is finer is nobody's to keep.
    fn elapsed(&self) -> Duration {
        self.asked_at_once(question::elapsed(), || Milliseconds::from(coarse(self.inner.elapsed()))).into()
    }

    fn unix_time(&self) -> Duration {
        self.asked_at_once(question::unix_time(), || Milliseconds::from(coarse(self.inner.unix_time()))).into()
    }
}

/// A time in the guests' steps, which are whole milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Milliseconds(u64);

impl From<Duration> for Milliseconds {
    fn from(time: Duration) -> Self {
        Self(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<Milliseconds> for Duration {
    fn from(time: Milliseconds) -> Self {
        Self::from_millis(time.0)
    }
}

#[async_trait]
impl Secrets for Noted<dyn Secrets> {
    async fn get(&self, name: &str) -> Result<String, CapabilityError> {
        let hidden = async {
            let value = self.inner.get(name).await;
            if let Ok(value) = &value {
                self.recorder.hide(name, value);
            }
            value
        };
        self.asked(question::secret(name), hidden).await
    }
}

#[async_trait]
impl Tokenizer for Noted<dyn Tokenizer> {
    async fn encode(&self, text: String) -> Result<Vec<u32>, CapabilityError> {
        self.asked(question::encode(&text), self.inner.encode(text)).await
    }

    async fn decode(&self, tokens: Vec<u32>, bytes_max: usize) -> Result<String, CapabilityError> {
        self.asked(question::decode(&tokens), self.inner.decode(tokens, bytes_max)).await
    }
}

#[async_trait]
impl KeyValue for Noted<dyn KeyValue> {
    fn access(&self, bucket: &str) -> Option<BucketAccess> {
        self.asked_at_once(question::open(bucket), || self.inner.access(bucket))
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Versioned>, CapabilityError> {
        self.asked(question::get(bucket, key), self.inner.get(bucket, key)).await
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        expected: Expected,
        value: Option<Bytes>,
    ) -> Result<Written, CapabilityError> {
        let question = question::write(bucket, key, expected, value.as_ref());
        self.asked(question, self.inner.write(bucket, key, expected, value)).await
    }

    async fn keys(&self, bucket: &str, after: Option<&str>) -> Result<KeyPage, CapabilityError> {
        self.asked(question::keys(bucket, after), self.inner.keys(bucket, after)).await
    }
}

#[async_trait]
impl Outbound for Noted<dyn Outbound> {
    async fn send(&self, request: Request<Bytes>, bounds: OutboundBounds) -> Result<Response<Bytes>, OutboundError> {
        let (import, arguments) = question::send(&request);
        let asked = self.recorder.asked(import, &arguments);
        let answer = self.inner.send(request, bounds).await;
        let noted = answer.as_ref().map(Answer::from).map_err(SentFailure::from);
        self.recorder.answered(asked, &noted);
        answer
    }
}

#[async_trait]
impl Functions for Noted<dyn Functions> {
    async fn call(
        &self,
        function: String,
        input: CallInput,
        max_tokens: Option<u32>,
    ) -> Result<FunctionReply, CapabilityError> {
        let (import, arguments) = question::call(&function, &input, max_tokens);
        let asked = self.recorder.asked(import, &arguments);
        let reply = self.inner.call(function, input, max_tokens).await;
        self.recorder.answered(asked, &reply.as_ref().map(Reply::from));
        reply
    }
}

/// What another function answered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reply {
    text: String,
    function: String,
    version: u32,
    usage: wit::Usage,
    metadata: Vec<(String, String)>,
    receipt: String,
}

impl From<&FunctionReply> for Reply {
    fn from(reply: &FunctionReply) -> Self {
        let FunctionReply { text, function, version, usage, metadata, receipt } = reply.clone();
        Self { text, function, version, usage: convert::usage_to_wit(usage), metadata, receipt }
    }
}

impl From<Reply> for FunctionReply {
    fn from(reply: Reply) -> Self {
        let Reply { text, function, version, usage, metadata, receipt } = reply;
        Self { text, function, version, usage: convert::usage_from_wit(usage), metadata, receipt }
    }
}

#[async_trait]
impl Tools for Noted<dyn Tools> {
    async fn list(&self, server: &str, bounds: OutboundBounds) -> Result<Vec<ToolDescription>, CapabilityError> {
        self.asked(question::tools(server), self.inner.list(server, bounds)).await
    }

    async fn call(
        &self,
        server: &str,
        tool: &str,
        arguments: &str,
        bounds: OutboundBounds,
    ) -> Result<ToolOutcome, CapabilityError> {
        self.asked(question::tool(server, tool, arguments), self.inner.call(server, tool, arguments, bounds)).await
    }
}

fn headers(headers: &HeaderMap) -> Vec<(String, Octets)> {
    let shown = |(name, value): (&HeaderName, &HeaderValue)| {
        let value = if WITHHELD.contains(&name.as_str()) { b"withheld" } else { value.as_bytes() };
        (name.as_str().to_owned(), Octets::from(value))
    };
    headers.iter().map(shown).collect()
}

/// An answer to an outgoing request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, Octets)>,
    body: Octets,
}

impl From<&Response<Bytes>> for Answer {
    fn from(answer: &Response<Bytes>) -> Self {
        let body = Octets::from(answer.body().as_ref());
        Self { status: answer.status().as_u16(), headers: headers(answer.headers()), body }
    }
}

impl TryFrom<Answer> for Response<Bytes> {
    type Error = http::Error;

    fn try_from(answer: Answer) -> Result<Self, http::Error> {
        let mut response = Response::builder().status(answer.status);
        for (name, value) in answer.headers {
            response = response.header(name, Bytes::from(value).as_ref());
        }
        response.body(answer.body.into())
    }
}

/// Why there was none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SentFailure {
    Denied(String),
    Address(String),
    HeadersLimit(usize),
    BodyLimit(usize),
    TimeoutMs(u64),
    Failed(String),
}

impl From<&OutboundError> for SentFailure {
    fn from(error: &OutboundError) -> Self {
        match error {
            OutboundError::Denied(what) => Self::Denied(what.clone()),
            OutboundError::Address(host) => Self::Address(host.clone()),
            OutboundError::Limit { limit: "http_headers_bytes_max", max } => Self::HeadersLimit(*max),
            OutboundError::Limit { max, .. } => Self::BodyLimit(*max),
            OutboundError::Timeout(time) => Self::TimeoutMs(u64::try_from(*time).unwrap_or(u64::MAX)),
            OutboundError::Failed(why) => Self::Failed(why.clone().into_owned()),
        }
    }
}

impl From<SentFailure> for OutboundError {
    fn from(failure: SentFailure) -> Self {
        match failure {
            SentFailure::Denied(what) => Self::Denied(what),
            SentFailure::Address(host) => Self::Address(host),
            SentFailure::HeadersLimit(max) => Self::Limit { limit: "http_headers_bytes_max", max },
            SentFailure::BodyLimit(max) => Self::Limit { limit: "http_response_bytes_max", max },
            SentFailure::TimeoutMs(time) => Self::Timeout(time.into()),
            SentFailure::Failed(why) => Self::Failed(Cow::Owned(why)),
        }
    }
}
