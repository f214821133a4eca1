//! Answers a guest's questions from a recording: the one that comes next, else one of the same words, else one that only its
//! content differs from, else with a refusal. Not here: saying that it was another question, which the comparison does.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::record::{
    Answer, Milliseconds, Question, Recorder, Recording, Reply, SentFailure, Step, placeholder, question,
};
use crate::{
    BucketAccess, CallInput, CapabilityError, Catalog, CatalogEntry, Clock, Expected, FunctionReply, Functions,
    KeyPage, KeyValue, LogLevel, LogSink, Outbound, OutboundBounds, OutboundError, Secrets, Tokenizer, ToolDescription,
    ToolOutcome, Tools, Versioned, Written,
};

/// The questions of a recording, with their answers.
pub(super) struct Script {
    recorder: Recorder,
    secrets: BTreeMap<String, String>,
    told: Mutex<Vec<Told>>,
}

struct Told {
    import: String,
    arguments: Value,
    result: Value,
    is_used: bool,
}

impl Script {
    pub(super) fn new(recording: &Recording, recorder: Recorder, secrets: BTreeMap<String, String>) -> Self {
        let told = recording.steps.iter().filter_map(|step| match step {
            Step::Import { import, arguments, result } => {
                let (import, arguments, result) = (import.clone(), arguments.clone(), result.clone());
                Some(Told { import, arguments, result, is_used: false })
            }
            Step::Call { .. } | Step::Returned { .. } => None,
        });
        Self { recorder, secrets, told: Mutex::new(told.collect()) }
    }

    /// The recorded answer, if there is one that fits.
    pub(super) fn answer<T: DeserializeOwned>(&self, (import, arguments): Question) -> Option<T> {
        let arguments = self.recorder.scrubbed(arguments);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |one: &Told| one.import == import && one.arguments == arguments;
        let decides = deciding(import);
        let is_like = |one: &Told| {
            let same = |name: &&str| one.arguments.get(name) == arguments.get(name);
            one.import == import && decides.is_some_and(|names| names.iter().all(same))
        };
        // What a session answers follows from what it has answered: one that gave its last text for ever would never end.
        let may_repeat = !import.starts_with("sessions.");
        let unused = |fits: &dyn Fn(&Told) -> bool| told.iter().position(|one| !one.is_used && fits(one));
        let index = unused(&is_same)
            .or_else(|| unused(&is_like))
            .or_else(|| told.iter().rposition(|one| may_repeat && one.is_used && (is_same(one) || is_like(one))))?;
        let one = told.get_mut(index)?;
        one.is_used = true;
        serde_json::from_value(self.opened(one.result.clone())).ok()
    }

    /// With the secrets that are known here in place of what stands for them.
    fn opened(&self, value: Value) -> Value {
        if self.secrets.is_empty() {
            return value;
        }
        match value {
            Value::String(mut text) => {
                for (name, secret) in &self.secrets {
                    text = text.replace(&placeholder(name), secret);
                }
                text.into()
            }
            Value::Array(items) => items.into_iter().map(|item| self.opened(item)).collect(),
            Value::Object(fields) => {
                Value::Object(fields.into_iter().map(|(name, value)| (name, self.opened(value))).collect())
            }
            other => other,
        }
    }

    pub(super) fn result<T: DeserializeOwned>(&self, question: Question) -> Result<T, CapabilityError> {
        let import = question.0;
        self.answer(question).unwrap_or_else(|| Err(unknown(import)))
    }
}

fn unknown(import: &str) -> CapabilityError {
    CapabilityError::Failed(format!("the recording has no answer to this `{import}`"))
}

/// The arguments that an answer depends on, where it does not depend on all.
fn deciding(import: &str) -> Option<&'static [&'static str]> {
    Some(match import {
        "log.write" | "catalog.prefetch" | "output.write" | "sessions.open" => &[],
        "sessions.append" | "sessions.start" => &["session"],
        "keyvalue.write" => &["bucket", "key", "expected"],
        "http.send" => &["method", "uri"],
        "functions.call" => &["function"],
        "tools.call" => &["server", "tool"],
        _ => return None,
    })
}

#[async_trait]
impl Catalog for Script {
    async fn adapters(&self) -> Result<Vec<CatalogEntry>, CapabilityError> {
        self.result(question::adapters())
    }

    async fn prefetch(&self, adapters: &[String]) -> Result<(), CapabilityError> {
        // A hint that was not given when it was recorded would have been taken.
        self.answer(question::prefetch(adapters)).unwrap_or(Ok(()))
    }
}

impl LogSink for Script {
    fn write(&self, level: LogLevel, message: &str) {
        let _answer: Option<()> = self.answer(question::line(level, message));
    }
}

impl Clock for Script {
    fn elapsed(&self) -> Duration {
        self.answer::<Milliseconds>(question::elapsed()).map_or(Duration::ZERO, Duration::from)
    }

    fn unix_time(&self) -> Duration {
        self.answer::<Milliseconds>(question::unix_time()).map_or(Duration::ZERO, Duration::from)
    }
}

#[async_trait]
impl Secrets for Script {
    async fn get(&self, name: &str) -> Result<String, CapabilityError> {
        let answer = self.answer(question::secret(name));
        let given = || self.secrets.get(name).cloned().ok_or_else(|| unknown("secrets.get"));
        answer.unwrap_or_else(given)
    }
}

#[async_trait]
impl Tokenizer for Script {
    async fn encode(&self, text: String) -> Result<Vec<u32>, CapabilityError> {
        self.result(question::encode(&text))
    }

    async fn decode(&self, tokens: Vec<u32>, _: usize) -> Result<String, CapabilityError> {
        self.result(question::decode(&tokens))
    }
}

#[async_trait]
impl KeyValue for Script {
    fn access(&self, bucket: &str) -> Option<BucketAccess> {
        self.answer(question::open(bucket)).flatten()
    }

    async fn get(&self, bucket: &str, key: &str) -> Result<Option<Versioned>, CapabilityError> {
        self.result(question::get(bucket, key))
    }

    async fn write(
        &self,
        bucket: &str,
        key: &str,
        expected: Expected,
        value: Option<Bytes>,
    ) -> Result<Written, CapabilityError> {
        self.result(question::write(bucket, key, expected, value.as_ref()))
    }

    async fn keys(&self, bucket: &str, after: Option<&str>) -> Result<KeyPage, CapabilityError> {
        self.result(question::keys(bucket, after))
    }
}

#[async_trait]
impl Functions for Script {
    async fn call(
        &self,
        function: String,
        input: CallInput,
        max_tokens: Option<u32>,
    ) -> Result<FunctionReply, CapabilityError> {
        let reply: Result<Reply, CapabilityError> = self.result(question::call(&function, &input, max_tokens));
        reply.map(FunctionReply::from)
    }
}

#[async_trait]
impl Tools for Script {
    async fn list(&self, server: &str, _: OutboundBounds) -> Result<Vec<ToolDescription>, CapabilityError> {
        self.result(question::tools(server))
    }

    async fn call(
        &self,
        server: &str,
        tool: &str,
        arguments: &str,
        _: OutboundBounds,
    ) -> Result<ToolOutcome, CapabilityError> {
        self.result(question::tool(server, tool, arguments))
    }
}

#[async_trait]
impl Outbound for Script {
    async fn send(&self, request: Request<Bytes>, bounds: OutboundBounds) -> Result<Response<Bytes>, OutboundError> {
        let answer: Option<Result<Answer, SentFailure>> = self.answer(question::send(&request));
        match answer {
            Some(Ok(answer)) => {
                Response::try_from(answer).map_err(|_| OutboundError::Failed("the recorded answer is none".into()))
            }
            Some(Err(failure)) => Err(failure.into()),
            // No answer came when it was recorded, or none is recorded.
            None => Err(OutboundError::Timeout(bounds.time.as_millis())),
        }
    }
}
