//! What the tests of the whole engine share: requests of one line, an engine stepped by hand, the fake runner behind it.

mod admission;
mod batches;
mod constraints;
mod ends;
mod guesses;
mod kinds;
mod kv_matrix;
mod overlap;
mod random;
mod sharing;
mod steps;
mod switches;
mod threads;
mod unified;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use types::{
    CompositionPart, Digest, FinishReason, Grants, LayerRange, Module, ModuleSet, Plan, PlanEntry, PlanLimits,
};
use types::{Prompt, Usage, ValidPlan};

use crate::handle::Message;
use crate::*;

pub(crate) const VOCABULARY: u32 = 50;

/// Every adapter is granted; its digest is that of its name.
struct Everything;

impl Grants for Everything {
    fn adapter(&self, name: &str) -> Option<Digest> {
        Some(Digest::of(name.as_bytes()))
    }

    fn has_template(&self, _: &str) -> bool {
        false
    }
}

/// A request that runs to its budget, on the base, greedily. Adapters are named `a0`, `a1`, …; `broken` does not load.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) prompt: Vec<u32>,
    pub(crate) output: u32,
    pub(crate) adapters: Vec<(&'static str, f32)>,
    /// Those of them that do not act on every token, and the first that they act on.
    pub(crate) begin: Vec<(&'static str, Option<u32>)>,
    /// Only the query and value projections.
    pub(crate) narrow: bool,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<u32>,
    pub(crate) ignore_eos: bool,
    pub(crate) deadline_ms: Option<u32>,
    pub(crate) repetition_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) logprobs: Option<u32>,
    pub(crate) terms: Terms,
}

pub(crate) fn request(prompt: impl IntoIterator<Item = u32>, output: u32) -> Request {
    let prompt = prompt.into_iter().collect();
    let (adapters, stop) = (Vec::new(), Vec::new());
    Request {
        prompt,
        output,
        adapters,
        begin: Vec::new(),
        narrow: false,
        seed: None,
        stop,
        ignore_eos: true,
        deadline_ms: None,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        logprobs: None,
        terms: Terms::default(),
    }
}

fn value_of(name: &str) -> u64 {
    name.bytes().fold(0, |value, byte| value * 31 + u64::from(byte))
}

impl Request {
    pub(crate) fn with(mut self, adapters: impl IntoIterator<Item = (&'static str, f32)>) -> Self {
        self.adapters.extend(adapters);
        self
    }

    pub(crate) fn begins_at(mut self, adapter: &'static str, first_token: Option<u32>) -> Self {
        self.begin.push((adapter, first_token));
        self
    }

    pub(crate) fn penalised(self, repetition_penalty: f32, presence_penalty: f32) -> Self {
        Self { repetition_penalty, presence_penalty, ..self }
    }

    pub(crate) fn of(self, tenant: &str) -> Self {
        let tenant = Digest::of(tenant.as_bytes());
        Self { terms: Terms { tenant, kv_salt: tenant, ..self.terms }, ..self }
    }

    pub(crate) fn urgent(self, priority: i8) -> Self {
        Self { terms: Terms { priority, ..self.terms }, ..self }
    }

    fn modules(&self) -> ModuleSet {
        if self.narrow { [Module::Q, Module::V].into_iter().collect() } else { ModuleSet::ALL }
    }

    pub(crate) fn submission(&self) -> Submission<FakeAdapter> {
        let mut plan = Plan::new(Prompt::Tokens(self.prompt.clone()));
        let entry = |(name, weight): &(&str, f32)| {
            let modules = self.narrow.then(|| self.modules());
            PlanEntry { modules, ..PlanEntry::whole(*name, *weight) }
        };
        plan.composition = self.adapters.iter().map(entry).collect();
        plan.sampling.temperature = if self.seed.is_some() { 1.0 } else { 0.0 };
        plan.sampling.repetition_penalty = self.repetition_penalty;
        plan.sampling.presence_penalty = self.presence_penalty;
        plan.sampling.logprobs = self.logprobs;
        plan.stop.token_ids = self.stop.clone();
        plan.stop.ignore_eos = self.ignore_eos;
        plan.deadline_ms = self.deadline_ms;
        plan.token_budget = Some(self.output);
        let plan = ValidPlan::check(plan, &Everything, &PlanLimits::default()).expect("a valid plan");
        let adapter = |name: &str| FakeAdapter { value: value_of(name), broken: name == "broken" };
        let adapters = self.adapters.iter().map(|(name, _)| (Digest::of(name.as_bytes()), Arc::new(adapter(name))));
        let begin = self.begin.iter();
        let activations = begin
            .map(|(name, first_token)| Activation { adapter: Digest::of(name.as_bytes()), first_token: *first_token })
            .collect();
        let (prompt, adapters, seed) = (self.prompt.clone(), adapters.collect(), self.seed.unwrap_or(0));
        let continues = Continuation::default();
        Submission { plan, prompt, adapters, activations, continues, constraint: None, seed, terms: self.terms }
    }

    /// What must come of it if nothing goes wrong: the tokens sent, why it ends, what it used.
    pub(crate) fn expected(&self, shape: &RunnerShape, eos: &[u32]) -> (Vec<u32>, FinishReason, Usage) {
        let part = |(name, weight): &(&str, f32)| {
            let (adapter, modules, layers) = (Digest::of(name.as_bytes()), self.modules(), LayerRange::ALL);
            let begin = self.begin.iter().find(|(begins, _)| begins == name);
            let first_token = begin.map_or(Some(0), |(_, first_token)| *first_token)?;
            Some((
                value_of(name),
                CompositionPart { adapter, weight: *weight, modules, layers, output: None },
                first_token,
            ))
        };
        let terms = self.adapters.iter().filter(|(_, weight)| *weight != 0.0);
        let mut parts: Vec<_> = terms.filter_map(part).collect();
        parts.sort_by_key(|(_, part, _)| (part.adapter, part.weight.to_bits()));
        let room = (shape.sequence_tokens_max() - self.prompt.len()) as u32;
        let mut tokens = expected_tokens(shape.vocabulary, &self.prompt, &parts, self.seed, self.output.min(room));
        let ends = |id: &u32| self.stop.contains(id) || (!self.ignore_eos && eos.contains(id));
        let end = tokens.iter().position(ends);
        let completion_tokens = end.map_or(tokens.len(), |end| end + 1) as u32;
        tokens.truncate(end.unwrap_or(tokens.len()));
        let reason = if end.is_some() { FinishReason::Stop } else { FinishReason::Length };
        (tokens, reason, Usage { prompt_tokens: self.prompt.len() as u32, completion_tokens })
    }
}

pub(crate) fn shape() -> RunnerShape {
    RunnerShape {
        block_tokens: 4,
        kv_blocks: 64,
        adapter_slots: 4,
        context_tokens_max: 128,
        batch_rows_max: 16,
        vocabulary: VOCABULARY,
    }
}

/// An engine that is stepped by hand, one millisecond a step.
pub(crate) struct Rig<R: ModelRunner> {
    pub(crate) handle: EngineHandle<R::Adapter>,
    pub(crate) engine: Engine<R>,
    now_ms: Arc<AtomicU64>,
}

impl<R: ModelRunner> Rig<R> {
    pub(crate) fn new(runner: R, config: EngineConfig) -> Self {
        let now_ms = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&now_ms);
        let clock = Arc::new(move || Duration::from_millis(clock.load(Ordering::Relaxed)));
        let (handle, engine) = Engine::new(runner, config, clock).expect("a good shape");
        Self { handle, engine, now_ms }
    }

    /// One step, and what must hold after it.
    pub(crate) fn step(&mut self) {
        let now_ms = self.now_ms.fetch_add(1, Ordering::Relaxed) + 1;
        self.engine.step(Duration::from_millis(now_ms));
        self.engine.check_integrity().expect("integrity after every step");
    }

    /// What [`EngineHandle::revoke`] does where there is room in the inbox.
    pub(crate) fn revoke(&self, digest: Digest) {
        self.handle.inbox().try_send(Message::Revoke(digest)).expect("room");
    }

    pub(crate) fn finish(&mut self) {
        for _ in 0..20_000 {
            self.step();
            if self.engine.is_idle() {
                let stats = self.handle.stats();
                assert_eq!((stats.waiting, stats.running, stats.adapter_slots_used), (0, 0, 0));
                assert_eq!(stats.kv_blocks_free, stats.kv_blocks_total);
                return;
            }
        }
        panic!("the engine does not come to an end: {:?}", self.handle.stats());
    }
}

impl<R: ModelRunner<Adapter = FakeAdapter>> Rig<R> {
    pub(crate) fn submit(&self, request: &Request) -> TokenStream {
        self.handle.submit(request.submission()).expect("accepted")
    }

    /// Runs a request to its end.
    pub(crate) fn run(&mut self, request: &Request) -> (Vec<u32>, FinishReason, Usage) {
        let mut stream = self.submit(request);
        self.finish();
        read_finished(&mut stream)
    }
}

impl Rig<FakeRunner> {
    pub(crate) fn fake(shape: RunnerShape) -> Self {
        Self::new(FakeRunner::new(shape), EngineConfig::default())
    }
}

/// What has come so far: tokens, and the last event if it came.
pub(crate) fn read(stream: &mut TokenStream) -> (Vec<u32>, Option<TokenEvent>) {
    let mut tokens = Vec::new();
    while let Some(event) = stream.try_recv() {
        match event {
            TokenEvent::Token { id, .. } => tokens.push(id),
            last => return (tokens, Some(last)),
        }
    }
    (tokens, None)
}

pub(crate) fn read_finished(stream: &mut TokenStream) -> (Vec<u32>, FinishReason, Usage) {
    match read(stream) {
        (tokens, Some(TokenEvent::Finished { reason, usage, .. })) => (tokens, reason, usage),
        other => panic!("not finished: {other:?}"),
    }
}
