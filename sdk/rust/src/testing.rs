//! Runs a policy natively, with a host that the test describes: `cargo test` needs no WebAssembly.
//!
//! ```
//! use tenon_sdk::testing::{Harness, request};
//! # use tenon_sdk::{Plan, Policy, Request, Result};
//! # struct Mine;
//! # impl Policy for Mine {
//! #     fn compose(request: &Request) -> Result<Plan> { Ok(Plan::new(request.prompt())) }
//! # }
//! let harness = Harness::new().adapter("manners").config("tone", "warm");
//! let plan = harness.compose::<Mine>(&request("hello")).unwrap();
//! assert!(plan.composition.is_empty());
//! ```

pub(crate) mod agents;
pub(crate) mod buckets;
pub(crate) mod fake;
pub(crate) mod web;

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::bindings::tenon::plugin::log::Level;
use crate::{
    Action, Adapter, Agent, Answer, Chunk, Decision, Ending, FinishReason, HttpRequest, HttpResponse, Pair, Plan,
    Policy, Request, Residency, Result, Tool, ToolOutcome, Usage,
};

/// A request with this text and nothing else.
pub fn request(text: &str) -> Request {
    Request {
        id: "test".to_owned(),
        function: "test".to_owned(),
        version: 1,
        text: text.to_owned(),
        input_json: "null".to_owned(),
        messages: Vec::new(),
        parameters: Vec::new(),
        stream: false,
        max_tokens: None,
    }
}

impl Request {
    /// Adds a scalar member of the input object, for tests.
    #[must_use]
    pub fn with_parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.push(Pair { name: name.to_owned(), value: value.to_owned() });
        self
    }
}

/// A call of a tool, as the policy made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The server's name.
    pub server: String,
    /// The tool's.
    pub tool: String,
    /// JSON.
    pub arguments: String,
}

#[derive(Clone, Debug, Default)]
struct State {
    adapters: Vec<Adapter>,
    prefetched: Vec<String>,
    config: Vec<(String, String)>,
    lines: Vec<(Level, String)>,
    random: u32,
    elapsed_ms: u32,
    secrets: Vec<(String, String)>,
    buckets: BTreeMap<String, buckets::Contents>,
    tools: Vec<(String, Tool, ToolOutcome)>,
    tool_calls: Vec<ToolCall>,
    answers: Vec<(String, HttpResponse)>,
    requests: Vec<HttpRequest>,
    said: Vec<agents::Said>,
    prompts: Vec<String>,
    written: String,
    replies: Vec<(String, String)>,
    calls: Vec<(String, String)>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// A host made for one test. Each call installs it for this thread.
#[derive(Clone, Debug, Default)]
pub struct Harness {
    state: State,
}

impl Harness {
    /// No adapters, no configuration.
    pub fn new() -> Self {
        Self::default()
    }

    /// Grants an adapter of this alias.
    #[must_use]
    pub fn adapter(mut self, alias: &str) -> Self {
        let digest = format!("{:064x}", self.state.adapters.len() + 1);
        let residency = Residency::Memory;
        self.state.adapters.push(Adapter { alias: alias.to_owned(), digest, rank: 8, residency });
        self
    }

    /// The adapters that the last call on this thread said it would need soon.
    pub fn prefetched(&self) -> Vec<String> {
        STATE.with_borrow(|state| state.prefetched.clone())
    }

    /// Sets a value of the manifest's configuration.
    #[must_use]
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.state.config.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Grants a secret that holds this.
    #[must_use]
    pub fn secret(mut self, name: &str, value: &str) -> Self {
        self.state.secrets.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Grants a bucket, with nothing in it. Each call of the policy begins with what was put in here.
    #[must_use]
    pub fn bucket(mut self, name: &str) -> Self {
        self.state.buckets.entry(name.to_owned()).or_default();
        self
    }

    /// Puts a value into a bucket, which it grants.
    #[must_use]
    pub fn value(mut self, bucket: &str, key: &str, value: &[u8]) -> Self {
        self.state.buckets.entry(bucket.to_owned()).or_default().put(key, value);
        self
    }

    /// Grants a tool of a server, which answers every call with this text.
    #[must_use]
    pub fn tool(mut self, server: &str, name: &str, text: &str) -> Self {
        let schema = r#"{"type":"object"}"#.to_owned();
        let tool = Tool { name: name.to_owned(), description: String::new(), input_schema: schema };
        let outcome = ToolOutcome { text: text.to_owned(), structured: None, is_error: false };
        self.state.tools.push((server.to_owned(), tool, outcome));
        self
    }

    /// The calls of tools that the last call on this thread made.
    pub fn tool_calls(&self) -> Vec<ToolCall> {
        STATE.with_borrow(|state| state.tool_calls.clone())
    }

    /// Answers requests whose URL begins like this; others are denied.
    #[must_use]
    pub fn answer(mut self, url: &str, status: u16, body: &str) -> Self {
        let response = HttpResponse { status, headers: Vec::new(), body: body.as_bytes().to_vec() };
        self.state.answers.push((url.to_owned(), response));
        self
    }

    /// Has the next generation of an agent say this, each token with this log-probability. Without more, generations fail.
    #[must_use]
    pub fn says(mut self, text: &str, logprob: f32) -> Self {
        self.state.said.push(agents::Said { text: text.to_owned(), logprob });
        self
    }

    /// Grants calls of a function, which answers this.
    #[must_use]
    pub fn replies(mut self, function: &str, text: &str) -> Self {
        self.state.replies.push((function.to_owned(), text.to_owned()));
        self
    }

    /// Calls `run`; all that the caller would read, and the answer.
    pub fn run<A: Agent>(&self, request: &Request) -> Result<(String, Answer)> {
        let answer = self.with(|| A::run(request))?;
        let written = STATE.with_borrow(|state| state.written.clone());
        Ok((written + &answer.text, answer))
    }

    /// What sessions held when the last call on this thread had them generate, in order.
    pub fn prompts(&self) -> Vec<String> {
        STATE.with_borrow(|state| state.prompts.clone())
    }

    /// The functions that the last call on this thread called, each with what it was asked.
    pub fn calls(&self) -> Vec<(String, String)> {
        STATE.with_borrow(|state| state.calls.clone())
    }

    /// The value that the last call on this thread left in a bucket.
    pub fn stored(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        STATE.with_borrow(|state| state.buckets.get(bucket)?.get(key))
    }

    /// The requests that the last call on this thread sent.
    pub fn requests(&self) -> Vec<HttpRequest> {
        STATE.with_borrow(|state| state.requests.clone())
    }

    /// Seeds the random numbers.
    #[must_use]
    pub fn seed(mut self, seed: u32) -> Self {
        self.state.random = seed;
        self
    }

    /// Sets what the clock shows.
    #[must_use]
    pub fn elapsed_ms(mut self, elapsed_ms: u32) -> Self {
        self.state.elapsed_ms = elapsed_ms;
        self
    }

    /// Calls `route`.
    pub fn route<P: Policy>(&self, request: &Request) -> Result<Decision> {
        self.with(|| P::route(request))
    }

    /// Calls `compose`.
    pub fn compose<P: Policy>(&self, request: &Request) -> Result<Plan> {
        self.with(|| P::compose(request))
    }

    /// Feeds the post-processor these chunks and returns what the caller would read, and the ending.
    pub fn post_process<P: Policy>(&self, request: &Request, chunks: &[&str]) -> Result<(String, Ending)> {
        self.with(|| {
            let mut processor = P::post_processor(request);
            let mut output = Output::default();
            let mut finish = FinishReason::Stop;
            for chunk in chunks {
                output.apply(chunk, &processor.chunk(&Chunk::of_text(chunk))?);
                if output.stopped {
                    finish = FinishReason::StoppedByPlugin;
                    break;
                }
            }
            let completion_tokens = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
            let ending = processor.finish(&Usage { prompt_tokens: 1, completion_tokens, finish })?;
            output.apply("", &ending.actions);
            Ok((output.sent, ending))
        })
    }

    /// What the calls on this thread have logged since the last one began.
    pub fn lines(&self) -> Vec<String> {
        STATE.with_borrow(|state| state.lines.iter().map(|(_, line)| line.clone()).collect())
    }

    fn with<T>(&self, call: impl FnOnce() -> T) -> T {
        STATE.set(self.state.clone());
        call()
    }
}

/// What the host does with actions (see `wit/types.wit`): what neither `pass`, `replace` nor `hold` settled is passed.
#[derive(Default)]
struct Output {
    held: String,
    sent: String,
    stopped: bool,
}

impl Output {
    fn apply(&mut self, chunk: &str, actions: &[Action]) {
        let mut chunk = Some(chunk);
        for action in actions {
            match action {
                Action::Pass => {
                    self.sent += &std::mem::take(&mut self.held);
                    self.sent += chunk.take().unwrap_or_default();
                }
                Action::Replace(text) => {
                    self.held.clear();
                    chunk = None;
                    self.sent += text;
                }
                Action::Hold => self.held += chunk.take().unwrap_or_default(),
                Action::Emit(text) => self.sent += text,
                Action::Stop => self.stopped = true,
                Action::SwitchComposition(_) => {}
            }
        }
        if let Some(chunk) = chunk {
            self.sent += &std::mem::take(&mut self.held);
            self.sent += chunk;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PostProcessor, catalog, clock, config, log, random};

    /// Holds words back until a full stop, shouts the first sentence and stops there.
    struct FirstSentence;

    impl Policy for FirstSentence {
        fn compose(request: &Request) -> Result<Plan> {
            log::info(&format!("at {} ms", clock::elapsed_ms()));
            let weight = request.parameter_as("weight")?.unwrap_or(0.5);
            let mut plan = Plan::new(request.prompt()).post_processed().stop_at("###").token_budget(request.max_tokens);
            for adapter in catalog::adapters()? {
                plan = plan.adapter(adapter.alias, weight);
            }
            plan.sampling.seed = Some(random::next());
            plan.deadline_ms = config::require("deadline")?.parse().ok();
            Ok(plan)
        }

        fn post_processor(_: &Request) -> Box<dyn PostProcessor> {
            Box::new(Shout(String::new()))
        }
    }

    struct Shout(String);

    impl PostProcessor for Shout {
        fn chunk(&mut self, chunk: &Chunk) -> Result<Vec<Action>> {
            self.0 += &chunk.text;
            match self.0.split_once('.') {
                Some((sentence, _)) => Ok(vec![Action::Replace(sentence.to_uppercase()), Action::Stop]),
                None => Ok(vec![Action::Hold]),
            }
        }
    }

    #[test]
    fn a_plan_uses_what_the_host_lends() {
        let harness = Harness::new().adapter("a").adapter("b").config("deadline", "900").seed(7).elapsed_ms(19);
        let plan = harness.compose::<FirstSentence>(&request("hi").with_parameter("weight", "0.25")).unwrap();
        let weights: Vec<_> = plan.composition.iter().map(|entry| (entry.adapter.as_str(), entry.weight)).collect();
        assert_eq!(weights, [("a", 0.25), ("b", 0.25)]);
        assert_eq!(plan.deadline_ms, Some(900));
        assert_eq!(harness.lines(), ["at 10 ms"]);
        let again = harness.compose::<FirstSentence>(&request("hi")).unwrap();
        assert_eq!(plan.sampling.seed, again.sampling.seed, "seeded, so repeatable");
    }

    #[test]
    fn hints_are_noted_and_need_a_grant() {
        struct Hints;
        impl Policy for Hints {
            fn compose(request: &Request) -> Result<Plan> {
                catalog::prefetch(std::slice::from_ref(&request.text))?;
                Ok(Plan::new(request.prompt()).prefetch("b"))
            }
        }
        let harness = Harness::new().adapter("a").adapter("b");
        assert_eq!(harness.compose::<Hints>(&request("a")).unwrap().prefetch, ["b"]);
        assert_eq!(harness.prefetched(), ["a"]);
        let error = harness.compose::<Hints>(&request("c")).unwrap_err();
        assert!(error.to_string().contains('c') && harness.prefetched().is_empty(), "{error}");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = Harness::new().compose::<FirstSentence>(&request("hi")).unwrap_err();
        assert!(error.to_string().contains("`deadline`"), "{error}");
        let wrong = request("hi").with_parameter("weight", "heavy");
        let error = Harness::new().compose::<FirstSentence>(&wrong).unwrap_err();
        assert!(error.to_string().contains("`weight`"), "{error}");
    }

    #[test]
    fn actions_mean_what_they_mean_to_the_host() {
        let sent = |rounds: &[(&str, &[Action])]| {
            let mut output = Output::default();
            rounds.iter().for_each(|(chunk, actions)| output.apply(chunk, actions));
            output.sent
        };
        assert_eq!(sent(&[("a", &[Action::Hold]), ("b", &[])]), "ab", "what nothing settled is passed");
        assert_eq!(sent(&[("a", &[Action::Emit("<".into())])]), "<a");
        assert_eq!(sent(&[("a", &[Action::Stop])]), "a");
        assert_eq!(sent(&[("a", &[Action::Replace("x".into()), Action::Pass])]), "x", "a chunk is settled once");
        assert_eq!(sent(&[("a", &[Action::Hold]), ("b", &[Action::Hold]), ("c", &[Action::Pass])]), "abc");
    }

    #[test]
    fn held_text_is_replaced_or_sent_at_the_end() {
        let harness = Harness::new();
        let (text, _) = harness.post_process::<FirstSentence>(&request(""), &["one ", "two. three", "four"]).unwrap();
        assert_eq!(text, "ONE TWO");
        let (text, _) = harness.post_process::<FirstSentence>(&request(""), &["never ", "ends"]).unwrap();
        assert_eq!(text, "never ends");
    }
}
