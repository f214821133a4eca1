//! Generation sessions of an agent. A session is the tokens that it holds and the composition that they are under; each generation is
//! a request to the engine whose prompt is these tokens. So a fork is a copy of a list, what several sessions begin with is computed
//! once (the engine finds KV by content), and a session holds no block, slot or lease while nothing is generated in it.
//!
//! Each generation is checked as a plan of the function is, and takes its turn behind nobody's back: it is queued like any request.
//! Not here: the limits on a request (the sandbox counts them), what was drawn (`sessions/drawn.rs`), and the receipt (`record.rs`).

mod drawn;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use engine::{Continuation, GenerationError, Submission, Terms, TokenEvent};
use model::TextDecoder;
use plugin::{CapabilityError, GenerationBounds, GenerationSession, Generations, Opening, SessionStep};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use types::{Chunk, ChunkToken, FinishReason, HookUsage, Plan, PlanError, PlanLimits, Prompt, TenantId, ValidPlan};

use super::cold::{self, ColdBounds, Resident};
use super::cold_bytes::ColdBytes;
use super::grants::ResolvedGrants;
use super::nested::NestedLog;
use super::pending::PendingTokens;
use super::place::{submitted, wait_for_place};
use super::stop::StopMatcher;
use super::{Handling, TokenOut, activations, check_kv_blocks, lent, prompt, seed};
use crate::adapters::AdapterLease;
use crate::constraints::ReadConstraint;
use crate::error::Error;
use crate::host::Host;
use crate::receipt::{GenerationRecord, SamplingRecord, TokenCounts};
use crate::registry::{Manifest, ManifestRelease};
use drawn::Drawn;

/// What all sessions of a request have in common.
pub(super) struct Means {
    pub(super) host: Arc<Host>,
    pub(super) tenant: TenantId,
    pub(super) handling: Handling,
    pub(super) manifest: Arc<Manifest>,
    pub(super) grants: ResolvedGrants,
    pub(super) limits: PlanLimits,
    /// When the request has no time any more.
    pub(super) deadline: Instant,
    /// Randomness that a request shares with its copy.
    pub(super) draw: Option<u64>,
    pub(super) is_copy: bool,
    pub(super) nested: Arc<NestedLog>,
    /// Where the work is done: not on the plugins' threads.
    pub(super) runtime: Handle,
    /// Sessions opened and forked so far.
    pub(super) opened: AtomicU32,
    /// Of the adapters that all of them have had loaded.
    pub(super) cold_bytes: ColdBytes,
}

/// The generations that a manifest grants, or does not.
pub(super) struct AgentGenerations(pub(super) Arc<Means>);

#[async_trait]
impl Generations for AgentGenerations {
    async fn open(&self, opening: Opening) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        let means = Arc::clone(&self.0);
        if !means.manifest.grants.generations {
            let message = "generations: the manifest's grants.generations is not set";
            return Err(CapabilityError::Denied(message.to_owned()));
        }
        let plan = Plan {
            composition: opening.composition,
            sampling: opening.sampling,
            stop: opening.stop,
            cold: opening.cold,
            token_budget: Some(1),
            ..Plan::new(opening.prompt)
        };
        // What a plan of the function may not be, a session may not begin as.
        let checked =
            ValidPlan::check(plan.clone(), &means.grants, &means.limits).map_err(|error| told_plan(&error))?;
        let (host, manifest) = (Arc::clone(&means.host), Arc::clone(&means.manifest));
        let tokenised =
            means.apart(async move { prompt::tokenise(&host, checked.prompt(), Some(&manifest.templates)).await });
        let tokens = tokenised.await?.tokens;
        means.check_length(tokens.len())?;
        let held = Held { tokens, drawn: Vec::new() };
        Ok(Box::new(AgentSession { number: means.number(), means, plan: Arc::new(plan), held, under_way: None }))
    }
}

impl Means {
    fn number(&self) -> u32 {
        self.opened.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Tokens that a session may hold, so that it can generate.
    fn check_length(&self, tokens: usize) -> Result<(), CapabilityError> {
        let max = self.limits.prompt_tokens_max.min(self.host.engine.prompt_tokens_max());
        if tokens <= max {
            return Ok(());
        }
        Err(CapabilityError::Limit(format!("prompt_tokens_max of {max}: the session would hold {tokens} tokens")))
    }

    /// Does something on the host's threads.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, CapabilityError> {
        let running = AbortOnDropHandle::new(self.runtime.spawn(work));
        match running.await {
            Ok(done) => done.map_err(|error| told(&error)),
            Err(error) => Err(told(&Error::Internal(format!("a session's work did not return: {error}")))),
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            author: Some(self.manifest.plugin),
            unload: self.manifest.release != ManifestRelease::Lru,
            ..self.host.tenant_salts.terms(&self.tenant, self.handling)
        }
    }

    /// Everything from a checked plan to a place in the engine's queue.
    async fn begin(self: Arc<Self>, session: u32, plan: Plan, held: Held) -> Result<UnderWay, Error> {
        let Held { tokens, drawn } = held;
        let by_plugin = |source| Error::Plan { source, by_caller: false };
        let host = &self.host;
        let stops = plan.stop.strings.clone();
        let plan = ValidPlan::check(plan, &self.grants, &self.limits).map_err(by_plugin)?;
        check_kv_blocks(host, tokens.len(), plan.output_tokens_max(), &self.limits).map_err(by_plugin)?;
        let constraint = match plan.constraint() {
            Some(constraint) => Some(host.constraints.read(&self.tenant, constraint, false).await?),
            None => None,
        };
        let bounds = ColdBounds { bytes: &self.cold_bytes, by_caller: false };
        let release = self.manifest.release.policy();
        let Resident { plan, leases, .. } = cold::make_resident(host, &self.grants, plan, release, bounds).await?;
        let activations = activations(&leases, &tokens);
        let number = u32::try_from(self.nested.noted().generations.len()).unwrap_or(u32::MAX);
        let seed = match plan.sampling().seed {
            Some(seed) => seed,
            None => seed::of_choice(self.draw, number)?,
        };
        let prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let submission = || {
            Ok::<_, Error>(Submission {
                plan: plan.clone(),
                prompt: tokens.clone(),
                adapters: lent(&leases).collect(),
                activations: activations.clone(),
                continues: Continuation { drawn: drawn.clone(), ..Continuation::default() },
                constraint: constraint.as_ref().map(|read| read.begin(&[])).transpose()?,
                seed,
                terms: self.terms(),
            })
        };
        // It holds nothing meanwhile but what was leased for it, which nobody waits for.
        let stream = loop {
            wait_for_place(host, self.terms(), self.deadline).await;
            if let Some(stream) = submitted(host, submission()?, self.deadline)? {
                break stream;
            }
        };
        host.quotas.charge_tokens(&self.tenant, prompt_tokens);
        let (sampling, composition) = (plan.sampling(), plan.composition().clone());
        let noted = GenerationRecord {
            session,
            composition: Vec::new(),
            sampling: SamplingRecord::new(sampling, plan.constraint(), seed),
            finish: None,
            tokens: TokenCounts { prompt: prompt_tokens, completion: 0 },
        };
        let place = {
            let mut noted_so_far = self.nested.noted();
            noted_so_far.generations.push(noted);
            noted_so_far.generations.len() - 1
        };
        let drawn = Drawn::new(&self, stream, place, prompt_tokens, (composition, activations));
        Ok(UnderWay {
            drawn,
            decoder: host.base.tokenizer().decoder(),
            stop: StopMatcher::new(&stops),
            pending: PendingTokens::default(),
            ready: VecDeque::new(),
            given: 0,
            constraint,
            failed: None,
            _leases: leases,
        })
    }
}

/// What one session holds.
struct AgentSession {
    means: Arc<Means>,
    number: u32,
    /// What it was opened with; the prompt in it is what it held at first.
    plan: Arc<Plan>,
    held: Held,
    under_way: Option<UnderWay>,
}

/// The tokens of a session.
#[derive(Clone, Default)]
struct Held {
    tokens: Vec<u32>,
    /// Which of them its generations drew, ascending and apart: see [`Continuation::drawn`].
    drawn: Vec<Range<u32>>,
}

impl Held {
    fn len(&self) -> u32 {
        u32::try_from(self.tokens.len()).unwrap_or(u32::MAX)
    }

    fn extend_by_drawn(&mut self, tokens: impl Iterator<Item = u32>) {
        let start = self.len();
        self.tokens.extend(tokens);
        let end = self.len();
        match self.drawn.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.drawn.extend((start < end).then_some(start..end)),
        }
    }
}

#[async_trait]
impl GenerationSession for AgentSession {
    fn tokens(&self) -> u32 {
        self.held.len()
    }

    async fn append(&mut self, text: String) -> Result<(), CapabilityError> {
        let base = Arc::clone(&self.means.host.base);
        let encoded = tokio::task::spawn_blocking(move || base.tokenizer().encode(&text));
        let encoded = encoded.await.map_err(|error| CapabilityError::Failed(error.to_string()))?;
        let encoded = encoded.map_err(|error| CapabilityError::Failed(error.to_string()))?;
        self.means.check_length(self.held.tokens.len().saturating_add(encoded.len()))?;
        self.held.tokens.extend(encoded);
        Ok(())
    }

    async fn start(&mut self, bounds: GenerationBounds) -> Result<u32, CapabilityError> {
        let means = &self.means;
        if !means.host.quotas.has_tokens(&means.tenant) {
            let message = "tokens_per_minute_max, the tenant's quota: it is used up; try again later";
            return Err(CapabilityError::Limit(message.to_owned()));
        }
        let left = means.deadline.saturating_duration_since(Instant::now());
        let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        if left_ms == 0 {
            return Err(told(&Error::Late("this generation could begin")));
        }
        let default = means.limits.output_tokens_default.min(means.limits.output_tokens_max);
        let budget = bounds.max_tokens.unwrap_or_else(|| default.min(bounds.tokens_left));
        let plan = Plan {
            prompt: Prompt::Tokens(self.held.tokens.clone()),
            sampling: bounds.sampling.unwrap_or_else(|| self.plan.sampling.clone()),
            stop: bounds.stop.unwrap_or_else(|| self.plan.stop.clone()),
            constraint: bounds.constraint,
            deadline_ms: Some(left_ms.min(means.limits.deadline_ms_max)),
            token_budget: Some(budget),
            ..(*self.plan).clone()
        };
        let began = Arc::clone(means).begin(self.number, plan, self.held.clone());
        self.under_way = Some(means.apart(began).await?);
        Ok(budget)
    }

    async fn next(&mut self) -> Result<SessionStep, CapabilityError> {
        let Some(under_way) = self.under_way.as_mut() else {
            return Err(CapabilityError::Failed("nothing is being generated in this session".to_owned()));
        };
        let step = under_way.next().await;
        match &step {
            Ok(SessionStep::Text(chunk)) => {
                under_way.given = under_way.given.saturating_add(u32::try_from(chunk.tokens.len()).unwrap_or(u32::MAX));
                self.held.extend_by_drawn(chunk.tokens.iter().map(|token| token.id));
            }
            Ok(SessionStep::Done(_)) | Err(_) => self.under_way = None,
        }
        step.map_err(|error| told(&error))
    }

    fn stop(&mut self) -> u32 {
        self.under_way.take().map_or(0, |under_way| under_way.drawn.end().saturating_sub(under_way.given))
    }

    fn fork(&self) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        let (means, plan, held) = (Arc::clone(&self.means), Arc::clone(&self.plan), self.held.clone());
        Ok(Box::new(Self { number: means.number(), means, plan, held, under_way: None }))
    }
}

/// A generation that runs. Dropping it cancels it.
struct UnderWay {
    drawn: Arc<Drawn>,
    decoder: TextDecoder,
    stop: StopMatcher,
    pending: PendingTokens,
    ready: VecDeque<SessionStep>,
    /// Tokens that the agent has.
    given: u32,
    constraint: Option<ReadConstraint>,
    /// To be told after what is ready.
    failed: Option<Error>,
    _leases: Vec<AdapterLease>,
}

impl UnderWay {
    async fn next(&mut self) -> Result<SessionStep, Error> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Ok(step);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            match self.drawn.next().await {
                Some(TokenEvent::Token { id, logprob, top }) => self.token(TokenOut { id, logprob, top }),
                Some(TokenEvent::Finished { reason, .. }) => {
                    let rest = self.decoder.finish();
                    let (mut text, stopped) = self.stop.push(&rest);
                    if !stopped {
                        text.push_str(&self.stop.finish());
                    }
                    let mut tokens = self.pending.release(text.len());
                    if !stopped {
                        tokens.append(&mut self.pending.take_all());
                    }
                    self.push(text, tokens);
                    self.end(if stopped { FinishReason::Stop } else { reason });
                }
                Some(TokenEvent::Failed(error)) => {
                    let error = match (error, &self.constraint) {
                        (GenerationError::Constraint(why), Some(constraint)) => constraint.failed(why),
                        (error, _) => error.into(),
                    };
                    self.fail(error);
                }
                None => self.fail(GenerationError::Stopped.into()),
            }
        }
    }

    fn token(&mut self, token: TokenOut) {
        let text = self.decoder.push(token.id);
        self.pending.push(token, text.len());
        let (text, stopped) = self.stop.push(&text);
        let tokens = self.pending.release(text.len());
        self.push(text, tokens);
        if stopped {
            // The engine is ahead of whoever reads: what it has drawn beyond the stop string was generated, and counts.
            self.drawn.end();
            self.end(FinishReason::Stop);
        }
    }

    /// What a stop string was half met by is text like any other when none can be met any more.
    fn fail(&mut self, error: Error) {
        let text = self.stop.finish();
        let tokens = self.pending.release(text.len());
        self.push(text, tokens);
        self.failed = Some(error);
    }

    fn push(&mut self, text: String, tokens: Vec<TokenOut>) {
        if text.is_empty() && tokens.is_empty() {
            return;
        }
        let tokens = tokens.into_iter().map(|token| ChunkToken { id: token.id, logprob: token.logprob }).collect();
        self.ready.push_back(SessionStep::Text(Chunk { text, tokens }));
    }

    fn end(&mut self, finish: FinishReason) {
        self.drawn.finished(finish);
        let (prompt_tokens, completion_tokens) = self.drawn.tokens();
        self.ready.push_back(SessionStep::Done(HookUsage { prompt_tokens, completion_tokens, finish }));
    }
}

/// As an agent is told: what is not granted, a limit by its name, or a code and what happened.
fn told(error: &Error) -> CapabilityError {
    match error {
        Error::Plan { source, .. } => told_plan(source),
        error => CapabilityError::Failed(format!("{}: {}", error.code(), error.public_message())),
    }
}

pub(super) fn told_plan(error: &PlanError) -> CapabilityError {
    match error {
        PlanError::AdapterNotGranted(_) => CapabilityError::Denied(error.to_string()),
        PlanError::Unsupported(what) => CapabilityError::Unsupported((*what).to_owned()),
        PlanError::OverLimit { what, value, limit, max } => {
            CapabilityError::Limit(format!("{limit} of {max}: {what} is {value}"))
        }
        error => CapabilityError::Failed(format!("{}: {error}", error.code())),
    }
}
