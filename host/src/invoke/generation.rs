//! Stages 11 to 13: tokens become text, text passes stop strings and the plugin, and the receipt is closed before the
//! last piece. Pulled by the HTTP surface; dropping it cancels the sequence and closes the receipt as cancelled.
//!
//! Not here: SSE or JSON, and the engine's own work.

mod agent;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use engine::{Activation, GenerationError, Terms, TokenEvent, TokenStream};
use model::TextDecoder;
use types::{
    Chunk, ChunkToken, Composition, Digest, Ending, FinishReason, HookUsage, InvocationRequest, PlanEntry, PlanError,
    TenantId, Usage, ValidPlan,
};

use super::Stages;
use super::agent::AgentRun;
use super::cold::Cold;
use super::cold_bytes::ColdBytes;
use super::copy::Tap;
use super::course::{Course, Rights};
use super::function::{FunctionCall, log_failure};
use super::pending::PendingTokens;
use super::post::{PostOutcome, PostState};
use super::prompt::Rendered;
use super::record::{self, Progress};
use super::stop::StopMatcher;
use crate::adapters::AdapterLease;
use crate::constraints::ReadConstraint;
use crate::error::Error;
use crate::host::Host;
use crate::logs::InvocationLog;
use crate::metrics::PluginCall;
use crate::receipt::{self, Claims, Final, OpenReceipt, Started, Subject};
use crate::tenants::Principal;

/// One token as the HTTP surface shows it.
#[derive(Clone, Debug)]
pub(crate) struct TokenOut {
    pub(crate) id: u32,
    pub(crate) logprob: Option<f32>,
    pub(crate) top: Vec<(u32, f32)>,
}

/// Something to send.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Text, with the tokens since the last piece.
    Text {
        /// May be empty when only tokens are to be told.
        text: String,
        tokens: Vec<TokenOut>,
    },
    /// The last piece; the receipt is final and durable.
    End(Ended),
}

/// How it ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) reason: FinishReason,
    /// Whether a stop string did it.
    pub(crate) by_stop_string: bool,
    pub(crate) usage: Usage,
    pub(crate) metadata: Vec<(String, String)>,
}

/// An adapter of the composition, as answers show it.
#[derive(Clone, Debug)]
pub(crate) struct AdapterUse {
    pub(crate) alias: Option<String>,
    pub(crate) digest: Digest,
    pub(crate) weight: f32,
}

/// What [`Generation::started`] is made from.
pub(crate) struct Parts {
    pub(crate) plan: ValidPlan,
    pub(crate) post: PostState,
    pub(crate) prompt: Rendered,
    pub(crate) activations: Vec<Activation>,
    pub(crate) constraint: Option<ReadConstraint>,
    pub(crate) seed: u64,
    pub(crate) leases: Vec<AdapterLease>,
    pub(crate) function: Option<FunctionCall>,
    pub(crate) aliases: HashMap<Digest, String>,
    pub(crate) stages: Stages,
    pub(crate) cold: Option<Cold>,
    pub(crate) cold_bytes: ColdBytes,
    pub(crate) rights: Rights,
}

/// What is known of an answer before its first piece.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) request_id: String,
    pub(crate) receipt_id: String,
    pub(crate) function: Option<(String, u32)>,
    pub(crate) adapters: Vec<AdapterUse>,
    pub(crate) prompt_tokens: Vec<u32>,
}

/// A request that is being answered.
pub(crate) struct Generation {
    pub(crate) head: Arc<Head>,
    host: Arc<Host>,
    tenant: TenantId,
    log: Option<InvocationLog>,
    /// None of a copy's answer, which nobody gets, and when it is closed.
    receipt: Option<OpenReceipt>,
    /// Hears what is sent, if the request gets a copy.
    tap: Option<Tap>,
    source: Option<Source>,
    ready: VecDeque<Piece>,
    /// To be told after what is ready.
    failed: Option<Error>,
    /// A copy's tokens are in no metric of what callers were answered.
    is_copy: bool,
    /// Whether pieces reach the caller as they come; if not, nothing of an answer that fails does.
    is_streamed: bool,
    progress: Progress,
    /// In place of the source, if the plugin is an agent.
    agent: Option<AgentRun>,
}

/// What the plugin wants beside the text.
#[derive(Default)]
struct Delivered {
    stop: bool,
    switch: Option<Vec<PlanEntry>>,
}

/// Where text comes from while the engine works.
struct Source {
    tokens: TokenStream,
    decoder: TextDecoder,
    stop: StopMatcher,
    plugin: Option<(FunctionCall, PostState)>,
    /// Tokens whose text was not sent yet.
    pending: PendingTokens,
    /// What is being generated, should it go on under another composition.
    course: Course,
}

impl Generation {
    /// A sequence that is in the engine's queue; returns when its `started` receipt is durable.
    pub(crate) async fn started(
        host: &Arc<Host>,
        principal: &Principal,
        request: &InvocationRequest,
        mut parts: Parts,
        tokens: TokenStream,
        terms: Terms,
    ) -> Result<Self, Error> {
        let subject = {
            let (plan, owners) = (&parts.plan, parts.rights.grants.adapters().owners());
            record::subject(host, request, parts.function.as_ref(), plan.composition(), owners)
        };
        let is_copy = parts.function.as_ref().is_some_and(|call| call.is_copy);
        let mut receipt = open_receipt(host, principal, subject, is_copy).await?;
        let asked = u32::try_from(parts.prompt.tokens.len()).unwrap_or(u32::MAX);
        host.quotas.charge_tokens(&principal.tenant, asked);
        let composition = parts.plan.composition().clone();
        let progress = Progress::new(parts.stages, &parts.prompt)?.out_of(parts.rights.grants.adapters());
        let progress = progress.by(parts.function.as_ref());
        let progress = progress.met_cold(parts.cold.as_ref());
        let activations = parts.activations.clone();
        let progress = progress.generated_by(composition, activations, &parts.plan, parts.seed);
        let function = parts.function.as_ref().map(|call| (call.name.to_string(), call.version));
        let post_process = parts.plan.post_process();
        // Nothing was sent, should the caller leave, or the plugin fail, before the first chunk.
        let unanswered = receipt::Outcome { answer: None, ..progress.outcome() };
        if let Some(receipt) = receipt.as_mut() {
            *receipt.draft() = Final { ending: receipt::Ending::Cancelled, outcome: unanswered.clone() };
        }
        if let (true, Some(call)) = (post_process, parts.function.as_mut())
            && let Err(error) = call.instance.open_post_processor(request).await
        {
            let error = Error::from(error);
            let Some(receipt) = receipt else { return Err(error) };
            let ending = receipt::Ending::Failed(error.code().to_owned());
            let id = receipt.id().to_string();
            receipt.finish(Final { ending, outcome: unanswered }).await?;
            return Err(Error::WithReceipt { receipt: id, source: Box::new(error) });
        }
        let adapters = parts.plan.composition().parts().iter().map(|part| AdapterUse {
            alias: parts.aliases.get(&part.adapter).cloned(),
            digest: part.adapter,
            weight: part.weight,
        });
        let head = Head {
            request_id: request.id.clone(),
            receipt_id: receipt.as_ref().map(|receipt| receipt.id().to_string()).unwrap_or_default(),
            function,
            adapters: adapters.collect(),
            prompt_tokens: parts.prompt.tokens.clone(),
        };
        let stop = StopMatcher::new(&parts.plan.stop().strings);
        Ok(Self {
            head: Arc::new(head),
            host: Arc::clone(host),
            tenant: principal.tenant.clone(),
            log: parts.function.as_ref().map(|call| call.log.clone()),
            receipt,
            tap: None,
            source: Some(Source {
                tokens,
                decoder: host.base.tokenizer().decoder(),
                stop,
                plugin: parts.function.filter(|_| post_process).map(|call| (call, parts.post)),
                pending: PendingTokens::default(),
                course: Course {
                    plan: parts.plan,
                    activations: parts.activations,
                    constraint: parts.constraint,
                    tokens: parts.prompt.tokens,
                    generated: 0,
                    seed: parts.seed,
                    terms,
                    stretches: Vec::new(),
                    leases: parts.leases,
                    rights: parts.rights,
                    switches: 0,
                    cold_bytes: parts.cold_bytes,
                    started: parts.stages.started,
                },
            }),
            ready: VecDeque::new(),
            failed: None,
            is_copy,
            is_streamed: request.stream,
            progress,
            agent: None,
        })
    }

    /// An answer that the plugin gave by itself: one piece of text, no tokens, a receipt all the same.
    pub(crate) async fn answered(
        host: &Arc<Host>,
        principal: &Principal,
        request: &InvocationRequest,
        call: FunctionCall,
        text: String,
        stages: Stages,
    ) -> Result<Self, Error> {
        let subject = record::subject(host, request, Some(&call), &Composition::default(), &HashMap::new());
        let receipt = open_receipt(host, principal, subject, call.is_copy).await?;
        let receipt_id = receipt.as_ref().map(|receipt| receipt.id().to_string()).unwrap_or_default();
        let asked = Rendered { tokens: Vec::new(), committed: request.input_json.clone().into_bytes() };
        let mut progress = Progress::new(stages, &asked)?.by(Some(&call));
        progress.answered(&text);
        if let Some(receipt) = receipt {
            let outcome = receipt::Outcome { finish: Some(FinishReason::Stop), ..progress.outcome() };
            receipt.finish(Final { ending: receipt::Ending::Finished, outcome }).await?;
        }
        let (reason, usage) = (FinishReason::Stop, Usage::default());
        let ended = Ended { reason, by_stop_string: false, usage, metadata: Vec::new() };
        let head = Head {
            request_id: request.id.clone(),
            receipt_id,
            function: Some((call.name.to_string(), call.version)),
            adapters: Vec::new(),
            prompt_tokens: Vec::new(),
        };
        Ok(Self {
            head: Arc::new(head),
            host: Arc::clone(host),
            tenant: principal.tenant.clone(),
            log: None,
            receipt: None,
            tap: None,
            source: None,
            ready: VecDeque::from([Piece::Text { text, tokens: Vec::new() }, Piece::End(ended)]),
            failed: None,
            is_copy: call.is_copy,
            is_streamed: request.stream,
            progress,
            agent: None,
        })
    }

    /// The same, listened to.
    pub(super) fn heard_by(mut self, tap: Option<Tap>) -> Self {
        self.tap = tap;
        self
    }

    /// The next piece; `None` after the last. After an error there is nothing more.
    pub(crate) async fn next(&mut self) -> Option<Result<Piece, Error>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                self.commit(&piece);
                self.tell(&piece);
                return Some(Ok(piece));
            }
            if let Some(error) = self.failed.take() {
                if let Some(tap) = self.tap.take() {
                    tap.failed(&error);
                }
                return Some(Err(error));
            }
            if self.source.is_none() && self.agent.is_none() {
                return None;
            }
            if let Err(error) = self.advance().await {
                let error = self.fail(error).await;
                self.failed = Some(error);
            }
        }
    }

    /// The receipt is about what is sent: a piece counts when it is taken, until the receipt is closed.
    fn commit(&mut self, piece: &Piece) {
        if let (Piece::Text { text, .. }, Some(_)) = (piece, &self.receipt) {
            self.progress.answered(text);
        }
    }

    /// Has a copy begin once the last piece is taken. Of an answer that nobody reads to its end there is none.
    fn tell(&mut self, piece: &Piece) {
        match (piece, self.tap.as_mut()) {
            (Piece::Text { text, .. }, Some(tap)) => tap.hear(text),
            (Piece::End(ended), Some(_)) => self.tap.take().into_iter().for_each(|tap| tap.ended(ended)),
            (_, None) => {}
        }
    }

    /// The receipt, to be closed: what is ready will be sent, and counts.
    fn take_receipt(&mut self) -> Option<OpenReceipt> {
        let ready = std::mem::take(&mut self.ready);
        ready.iter().for_each(|piece| self.commit(piece));
        self.ready = ready;
        self.receipt.take()
    }

    /// How it went for an answer that did not come to its end.
    fn broken_off(&self) -> receipt::Outcome {
        self.progress.break_off_nested();
        let outcome = self.progress.outcome();
        if self.is_streamed { outcome } else { receipt::Outcome { answer: None, ..outcome } }
    }

    /// Takes one event of the engine and makes pieces of it.
    async fn advance(&mut self) -> Result<(), Error> {
        if self.agent.is_some() {
            return self.advance_agent().await;
        }
        let Some(source) = self.source.as_mut() else { return Ok(()) };
        match source.tokens.recv().await {
            Some(TokenEvent::Token { id, logprob, top }) => {
                self.progress.count_token((!self.is_copy).then_some(&*self.host.metrics));
                self.host.quotas.charge_tokens(&self.tenant, 1);
                source.course.push(id);
                let text = source.decoder.push(id);
                source.pending.push(TokenOut { id, logprob, top }, text.len());
                let (text, stopped) = source.stop.push(&text);
                let tokens = source.pending.release(text.len());
                let Delivered { stop: plugin_stop, switch } = self.deliver(text, tokens).await?;
                match (stopped, plugin_stop) {
                    (true, _) => self.finish(FinishReason::Stop, None, Vec::new()).await,
                    (false, true) => self.finish(FinishReason::StoppedByPlugin, None, Vec::new()).await,
                    (false, false) => match switch {
                        Some(entries) => self.switch(&entries).await,
                        None => Ok(()),
                    },
                }
            }
            Some(TokenEvent::Finished { reason, usage, queued }) => {
                self.progress.queued = queued;
                if !self.is_copy {
                    self.host.metrics.queued(queued);
                }
                let rest = source.decoder.finish();
                let (mut text, stopped) = source.stop.push(&rest);
                if !stopped {
                    text.push_str(&source.stop.finish());
                }
                let tokens = source.pending.release(text.len());
                let rest = if stopped { Vec::new() } else { source.pending.take_all() };
                self.deliver(text, tokens).await?;
                self.finish(if stopped { FinishReason::Stop } else { reason }, Some(usage), rest).await
            }
            Some(TokenEvent::Failed(error)) => {
                let error = source.course.failed(error);
                self.let_go_of_held().await;
                Err(error)
            }
            None => {
                self.let_go_of_held().await;
                Err(GenerationError::Stopped.into())
            }
        }
    }

    /// Text that a stop string was half met by, when the engine gave up: none can be met any more, and it goes out as what came
    /// before it did. A plugin that fails on it changes nothing.
    async fn let_go_of_held(&mut self) {
        let Some(source) = self.source.as_mut() else { return };
        let text = source.stop.finish();
        let tokens = source.pending.release(text.len());
        if let Err(error) = self.deliver(text, tokens).await {
            log_failure(self.log.as_ref(), &error);
        }
    }

    /// Sends text through the plugin and queues what comes of it.
    async fn deliver(&mut self, text: String, tokens: Vec<TokenOut>) -> Result<Delivered, Error> {
        let Some(source) = self.source.as_mut() else { return Ok(Delivered::default()) };
        if text.is_empty() {
            return Ok(Delivered::default());
        }
        let (text, delivered) = match source.plugin.as_mut() {
            None => (text, Delivered::default()),
            Some((call, state)) => {
                let told = tokens.iter().map(|token| ChunkToken { id: token.id, logprob: token.logprob }).collect();
                let begun = Instant::now();
                let actions = call.instance.chunk(Chunk { text: text.clone(), tokens: told }).await;
                self.progress.post_processing += begun.elapsed();
                self.host.metrics.plugin_call(PluginCall::chunk, actions.is_ok(), begun.elapsed());
                let actions = actions?;
                let PostOutcome { text, stop, switch } = state.apply(&text, actions)?;
                (text, Delivered { stop, switch })
            }
        };
        self.queue_text(text, tokens);
        Ok(delivered)
    }

    /// Goes on under another composition after the tokens that were taken so far; what the engine drew beyond them is dropped.
    async fn switch(&mut self, entries: &[PlanEntry]) -> Result<(), Error> {
        let Some(source) = self.source.as_mut() else { return Ok(()) };
        if let Some((tokens, cold)) = source.course.switch(&self.host, entries).await? {
            source.tokens = tokens;
            self.progress.switched(&source.course, cold.as_ref());
        }
        Ok(())
    }

    fn queue_text(&mut self, text: String, tokens: Vec<TokenOut>) {
        if !text.is_empty() || !tokens.is_empty() {
            self.ready.push_back(Piece::Text { text, tokens });
        }
    }

    /// The plugin's last word, the final receipt, the last piece. `usage` is the engine's count if it ended by itself;
    /// `rest` are its last tokens, which print nothing.
    async fn finish(&mut self, reason: FinishReason, usage: Option<Usage>, rest: Vec<TokenOut>) -> Result<(), Error> {
        let Some(source) = self.source.as_mut() else { return Ok(()) };
        let by_stop_string = source.stop.is_met();
        let usage = usage.unwrap_or_else(|| self.progress.usage());
        self.progress.completion_tokens = usage.completion_tokens;
        let mut ending = Ending::default();
        let mut tail = String::new();
        if let Some((call, state)) = source.plugin.as_mut() {
            let told = HookUsage {
                prompt_tokens: usage.prompt_tokens,
                completion_tokens: usage.completion_tokens,
                finish: reason,
            };
            let begun = Instant::now();
            let result = call.instance.finish(told).await;
            self.progress.post_processing += begun.elapsed();
            self.host.metrics.plugin_call(PluginCall::finish, result.is_ok(), begun.elapsed());
            ending = result?;
            let last = state.apply("", std::mem::take(&mut ending.actions))?;
            if last.switch.is_some() {
                let source = PlanError::Unsupported("the action switch-composition in `finish`");
                return Err(Error::Plan { source, by_caller: false });
            }
            tail = last.text;
        }
        self.progress.claims = Claims::check(ending.claims)?;
        self.queue_text(tail, rest);
        self.source = None;
        if let Some(receipt) = self.take_receipt() {
            let outcome = receipt::Outcome { finish: Some(reason), ..self.progress.outcome() };
            receipt.finish(Final { ending: receipt::Ending::Finished, outcome }).await?;
        }
        if !self.is_copy {
            self.host.metrics.tokens(usage.prompt_tokens, usage.completion_tokens);
        }
        self.ready.push_back(Piece::End(Ended { reason, by_stop_string, usage, metadata: ending.metadata }));
        Ok(())
    }

    async fn fail(&mut self, error: Error) -> Error {
        (self.source, self.agent) = (None, None);
        log_failure(self.log.as_ref(), &error);
        // What the plugin let through before it failed goes out first.
        let Some(receipt) = self.take_receipt() else {
            self.ready.clear();
            return error;
        };
        let ending = receipt::Ending::Failed(error.code().to_owned());
        match receipt.finish(Final { ending, outcome: self.broken_off() }).await {
            Ok(()) => error,
            Err(receipt_error) => {
                self.ready.clear();
                tracing::error!(request_id = self.head.request_id, %error, "the receipt could not be closed either");
                receipt_error.into()
            }
        }
    }
}

/// The receipt of an answer, durable; none of a copy's, which nobody gets.
async fn open_receipt(
    host: &Arc<Host>,
    principal: &Principal,
    subject: Subject,
    is_copy: bool,
) -> Result<Option<OpenReceipt>, Error> {
    if is_copy {
        return Ok(None);
    }
    Ok(Some(host.receipts.start(Started { tenant: principal.tenant.clone(), subject }).await?))
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.receipt.is_none() {
            return;
        }
        let outcome = self.broken_off();
        if let Some(receipt) = self.receipt.as_mut() {
            *receipt.draft() = Final { ending: receipt::Ending::Cancelled, outcome };
        }
    }
}
