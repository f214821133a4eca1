//! An agent's sessions and its output as it has them when it is recorded. Sessions have numbers, from 1 in the order in which they
//! came to be. How many tokens one holds is in each answer that may change it: asking for that alone is no question. What a session
//! was generating when the guest stopped or dropped it is noted as stopped. Not here: their answers (`replay/sessions.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::Recorder;
use super::lend::Noted;
use crate::bindings::tenon::plugin::types as wit;
use crate::{CapabilityError, GenerationBounds, GenerationSession, Generations, Opening, Output, SessionStep, convert};

/// The questions that an agent asks.
pub(crate) mod question {
    use serde_json::{Value, json};
    use types::{ColdPolicy, Constraint, Message, Module, PlanEntry, Prompt, Sampling, Span, StopConditions};

    use crate::record::Question;
    use crate::{GenerationBounds, Opening};

    pub(crate) fn open(opening: &Opening) -> Question {
        let Opening { prompt: given, composition, sampling: how, stop: until, cold: when } = opening;
        let cold = when.as_ref().map(cold);
        let arguments = json!({
            "prompt": prompt(given), "composition": entries(composition), "sampling": sampling(how),
            "stop": stop(until), "cold": cold,
        });
        ("sessions.open", arguments)
    }

    pub(crate) fn append(session: u32, text: &str) -> Question {
        ("sessions.append", json!({"session": session, "text": text}))
    }

    pub(crate) fn start(session: u32, bounds: &GenerationBounds) -> Question {
        // What the request has left follows from what it was given.
        let GenerationBounds { max_tokens, tokens_left: _, sampling: how, stop: until, constraint: shape } = bounds;
        let (how, until) = (how.as_ref().map(sampling), until.as_ref().map(stop));
        let shape = shape.as_ref().map(constraint);
        let arguments = json!({
            "session": session, "max_tokens": max_tokens, "sampling": how, "stop": until, "constraint": shape,
        });
        ("sessions.start", arguments)
    }

    pub(crate) fn next(session: u32) -> Question {
        ("sessions.next", json!({"session": session}))
    }

    pub(crate) fn stopped(session: u32) -> Question {
        ("sessions.stop", json!({"session": session}))
    }

    pub(crate) fn fork(session: u32) -> Question {
        ("sessions.fork", json!({"session": session}))
    }

    pub(crate) fn write(text: &str) -> Question {
        ("output.write", json!({"text": text}))
    }

    fn prompt(prompt: &Prompt) -> Value {
        match prompt {
            Prompt::Text(text) => json!({"text": text}),
            Prompt::Messages(messages) => {
                let message = |Message { role, content }: &Message| json!({"role": role, "content": content});
                json!({"messages": messages.iter().map(message).collect::<Vec<_>>()})
            }
            Prompt::Template { name, arguments } => json!({"template": {"name": name, "arguments": arguments}}),
            // A guest cannot say these.
            Prompt::Tokens(_) | Prompt::Chat(_) => Value::Null,
        }
    }

    fn entries(entries: &[PlanEntry]) -> Value {
        let entry = |entry: &PlanEntry| {
            let modules = entry.modules.map(|modules| modules.iter().map(Module::name).collect::<Vec<_>>());
            let layers = entry.layers.map(|layers| [layers.first, layers.end]);
            let span = match entry.span {
                Span::Whole => json!("whole"),
                Span::Output { first, end } => json!({"output": [first, end]}),
            };
            let weight = number(entry.weight);
            json!({"adapter": entry.adapter, "weight": weight, "modules": modules, "layers": layers, "span": span})
        };
        entries.iter().map(entry).collect()
    }

    fn sampling(sampling: &Sampling) -> Value {
        json!({
            "temperature": number(sampling.temperature), "top_k": sampling.top_k, "top_p": number(sampling.top_p),
            "min_p": number(sampling.min_p), "repetition_penalty": number(sampling.repetition_penalty),
            "presence_penalty": number(sampling.presence_penalty),
            "frequency_penalty": number(sampling.frequency_penalty),
            "seed": sampling.seed, "logprobs": sampling.logprobs,
        })
    }

    fn stop(stop: &StopConditions) -> Value {
        json!({"strings": stop.strings, "token_ids": stop.token_ids, "ignore_eos": stop.ignore_eos})
    }

    fn constraint(constraint: &Constraint) -> Value {
        match constraint {
            Constraint::JsonSchema(text) => json!({"json_schema": text}),
            Constraint::Regex(text) => json!({"regex": text}),
            Constraint::Grammar(text) => json!({"grammar": text}),
        }
    }

    fn cold(cold: &ColdPolicy) -> Value {
        match cold {
            ColdPolicy::Wait(wait_ms) => json!({"wait_ms": wait_ms}),
            ColdPolicy::Base => json!("base"),
            ColdPolicy::Fallback(composition) => json!({"fallback": entries(composition)}),
            ColdPolicy::Refuse => json!("refuse"),
        }
    }

    /// In its fewest digits, which are read again to the last bit; what is no number is told as text.
    fn number(number: f32) -> Value {
        let digits = number.to_string();
        let read = digits.parse().ok().filter(|read: &f64| read.is_finite());
        read.map_or_else(|| digits.into(), Value::from)
    }
}

/// A session that came to be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub(crate) session: u32,
    pub(crate) tokens: u32,
}

/// What came of a generation, and what its session holds then.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stepped {
    came: Came,
    pub(crate) tokens: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Came {
    Text(wit::Chunk),
    Done(wit::Usage),
}

impl Stepped {
    fn new(step: &SessionStep, tokens: u32) -> Self {
        let came = match step {
            SessionStep::Text(chunk) => Came::Text(convert::chunk_to_wit(chunk.clone())),
            SessionStep::Done(usage) => Came::Done(convert::usage_to_wit(*usage)),
        };
        Self { came, tokens }
    }
}

impl From<Stepped> for SessionStep {
    fn from(stepped: Stepped) -> Self {
        match stepped.came {
            Came::Text(chunk) => Self::Text(convert::chunk_from_wit(chunk)),
            Came::Done(usage) => Self::Done(convert::usage_from_wit(usage)),
        }
    }
}

/// A generation that the guest ended: what it did not read, and what its session holds then.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stopped {
    pub(crate) unread: u32,
    pub(crate) tokens: u32,
}

/// Opens sessions of which everything is noted.
pub(super) struct NotedGenerations {
    noted: Arc<Noted<dyn Generations>>,
    sessions: Arc<AtomicU32>,
}

impl NotedGenerations {
    pub(super) fn over(recorder: &Recorder, inner: Arc<dyn Generations>) -> Arc<Self> {
        Arc::new(Self { noted: Noted::over(recorder, inner), sessions: Arc::default() })
    }
}

#[async_trait]
impl Generations for NotedGenerations {
    async fn open(&self, opening: Opening) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        let Noted { recorder, inner } = &*self.noted;
        let (import, arguments) = question::open(&opening);
        let asked = recorder.asked(import, &arguments);
        let opened = inner.open(opening).await;
        let opened = opened.map(|inner| NotedSession::new(recorder.clone(), Arc::clone(&self.sessions), inner));
        recorder.answered(asked, &opened.as_ref().map(|session| session.begun()));
        opened.map(|session| Box::new(session) as _)
    }
}

struct NotedSession {
    recorder: Recorder,
    /// Sessions of the request so far.
    sessions: Arc<AtomicU32>,
    number: u32,
    inner: Box<dyn GenerationSession>,
    is_generating: bool,
}

impl NotedSession {
    fn new(recorder: Recorder, sessions: Arc<AtomicU32>, inner: Box<dyn GenerationSession>) -> Self {
        let number = sessions.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        Self { recorder, sessions, number, inner, is_generating: false }
    }

    fn begun(&self) -> Begun {
        Begun { session: self.number, tokens: self.inner.tokens() }
    }
}

#[async_trait]
impl GenerationSession for NotedSession {
    fn tokens(&self) -> u32 {
        self.inner.tokens()
    }

    async fn append(&mut self, text: String) -> Result<(), CapabilityError> {
        let (import, arguments) = question::append(self.number, &text);
        let asked = self.recorder.asked(import, &arguments);
        let appended = self.inner.append(text).await;
        self.recorder.answered(asked, &appended.as_ref().map(|()| self.inner.tokens()));
        appended
    }

    async fn start(&mut self, bounds: GenerationBounds) -> Result<u32, CapabilityError> {
        let (import, arguments) = question::start(self.number, &bounds);
        let asked = self.recorder.asked(import, &arguments);
        let started = self.inner.start(bounds).await;
        self.is_generating = started.is_ok();
        self.recorder.answered(asked, &started);
        started
    }

    async fn next(&mut self) -> Result<SessionStep, CapabilityError> {
        let (import, arguments) = question::next(self.number);
        let asked = self.recorder.asked(import, &arguments);
        let step = self.inner.next().await;
        self.is_generating = matches!(step, Ok(SessionStep::Text(_)));
        self.recorder.answered(asked, &step.as_ref().map(|step| Stepped::new(step, self.inner.tokens())));
        step
    }

    fn stop(&mut self) -> u32 {
        // A session that is dropped is stopped, too, which is only worth a word if there was something to stop.
        if !std::mem::take(&mut self.is_generating) {
            return self.inner.stop();
        }
        let (import, arguments) = question::stopped(self.number);
        let asked = self.recorder.asked(import, &arguments);
        let unread = self.inner.stop();
        self.recorder.answered(asked, &Stopped { unread, tokens: self.inner.tokens() });
        unread
    }

    fn fork(&self) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        let (import, arguments) = question::fork(self.number);
        let asked = self.recorder.asked(import, &arguments);
        let forked = self.inner.fork();
        let forked = forked.map(|inner| Self::new(self.recorder.clone(), Arc::clone(&self.sessions), inner));
        self.recorder.answered(asked, &forked.as_ref().map(Self::begun));
        forked.map(|session| Box::new(session) as _)
    }
}

#[async_trait]
impl Output for Noted<dyn Output> {
    async fn write(&self, text: String) -> Result<(), CapabilityError> {
        self.asked(question::write(&text), self.inner.write(text)).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use types::{Constraint, Prompt, Sampling};

    use super::*;
    use crate::RecordingHead;

    /// What a guest says is compared with what was written and read: a number must not change on the way.
    #[test]
    fn numbers_are_the_same_when_they_are_read_again() {
        for temperature in [0.8, 0.1, f32::MIN_POSITIVE, 1.0 / 3.0, f32::MAX, f32::NAN, f32::NEG_INFINITY, -0.0] {
            let sampling = Some(Sampling { temperature, ..Sampling::default() });
            let (_, arguments) = question::start(1, &GenerationBounds { sampling, ..GenerationBounds::default() });
            let read: Value = serde_json::from_str(&arguments.to_string()).expect("JSON");
            assert_eq!(read, arguments);
        }
        let sampling = Some(Sampling { temperature: 0.8, ..Sampling::default() });
        let (_, arguments) = question::start(1, &GenerationBounds { sampling, ..GenerationBounds::default() });
        assert_eq!(arguments["sampling"]["temperature"], json!(0.8));
    }

    /// Says what it is given.
    struct Parrot(String);

    #[async_trait]
    impl GenerationSession for Parrot {
        fn tokens(&self) -> u32 {
            1
        }

        async fn append(&mut self, text: String) -> Result<(), CapabilityError> {
            self.0 = text;
            Ok(())
        }

        async fn start(&mut self, _: GenerationBounds) -> Result<u32, CapabilityError> {
            Ok(1)
        }

        async fn next(&mut self) -> Result<SessionStep, CapabilityError> {
            Ok(SessionStep::Text(types::Chunk { text: self.0.clone(), tokens: Vec::new() }))
        }

        fn stop(&mut self) -> u32 {
            0
        }

        fn fork(&self) -> Result<Box<dyn GenerationSession>, CapabilityError> {
            Err(CapabilityError::Failed(self.0.clone()))
        }
    }

    #[tokio::test]
    async fn a_secret_is_in_nothing_that_goes_through_a_session() {
        let head = RecordingHead {
            request: "r".into(),
            function: "f".into(),
            version: 1,
            plugin: "0".repeat(64),
            time_unix_ms: 1,
        };
        let recorder = Recorder::to_read(head, 1 << 20);
        recorder.hide("key", "s3cret-word");
        let mut session = NotedSession::new(recorder.clone(), Arc::default(), Box::new(Parrot(String::new())));
        let text = || "it is s3cret-word".to_owned();
        session.append(text()).await.expect("taken");
        let stop = types::StopConditions { strings: vec![text()], ..types::StopConditions::default() };
        let constraint = Some(Constraint::Regex(text()));
        let bounds = GenerationBounds { stop: Some(stop), constraint, ..GenerationBounds::default() };
        session.start(bounds).await.expect("started");
        session.next().await.expect("a text");
        session.stop();
        assert!(session.fork().is_err());
        let written = recorder.text();
        assert!(!written.contains("s3cret-word"), "{written}");
        assert_eq!(written.matches("it is {{secret:key}}").count(), 5, "{written}");
    }

    #[test]
    fn what_a_guest_may_say_is_all_in_its_question() {
        let opening = |prompt| Opening {
            prompt,
            composition: vec![types::PlanEntry::whole("a", 0.5)],
            sampling: Sampling::default(),
            stop: types::StopConditions::default(),
            cold: Some(types::ColdPolicy::Fallback(vec![types::PlanEntry::whole("b", 1.0)])),
        };
        let (_, one) = question::open(&opening(Prompt::Text("hi".into())));
        assert_eq!((&one["prompt"], &one["composition"][0]["weight"]), (&json!({"text": "hi"}), &json!(0.5)));
        assert_eq!(one["cold"]["fallback"][0]["adapter"], json!("b"));
        let template = Prompt::Template { name: "t".into(), arguments: vec![("x".into(), "y".into())] };
        let (_, other) = question::open(&opening(template));
        assert_eq!(other["prompt"], json!({"template": {"name": "t", "arguments": [["x", "y"]]}}));
        let constraint = Some(Constraint::Regex("a+".into()));
        let (_, start) = question::start(3, &GenerationBounds { constraint, ..GenerationBounds::default() });
        assert_eq!((&start["session"], &start["constraint"]), (&json!(3), &json!({"regex": "a+"})));
    }
}
