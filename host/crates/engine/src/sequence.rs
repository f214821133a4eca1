//! One accepted request: its tokens, how far their KV is computed, what it holds, and its end of the stream. Not here:
//! when it runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use types::{Digest, FinishReason, Usage, ValidPlan};

use crate::block_manager::BlockTable;
use crate::handle::Arrival;
use crate::seen_tokens::SeenTokens;
use crate::{Batch, GenerationError, SampleRequest, SampledToken, Slot, TokenEvent};

/// A sequence of tokens that is being continued.
pub(crate) struct Sequence<A> {
    /// Order of arrival: a smaller number is older.
    pub(crate) number: u64,
    plan: ValidPlan,
    seed: u64,
    adapters: Vec<(Digest, Arc<A>)>,
    /// The prompt, then the output.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// What penalties fall on; none without penalties.
    seen: Option<SeenTokens>,
    /// Tokens whose KV lies in `blocks`; fewer than there are tokens.
    pub(crate) computed: usize,
    /// Tokens whose KV the next step computes.
    pub(crate) planned: usize,
    /// Its KV; empty while it waits.
    pub(crate) blocks: BlockTable,
    /// A slot for each part of the composition; empty while it waits.
    pub(crate) slots: Vec<Slot>,
    submitted: Duration,
    /// When the first step ran that had rows of this sequence.
    started: Option<Duration>,
    /// Why it ended, if it did.
    pub(crate) ended: Option<FinishReason>,
    place: Option<OwnedSemaphorePermit>,
    events: mpsc::Sender<TokenEvent>,
}

impl<A> Sequence<A> {
    pub(crate) fn new(number: u64, arrival: Arrival<A>) -> Self {
        let Arrival { submission, submitted, events, place } = arrival;
        Self {
            number,
            seen: SeenTokens::new(submission.plan.sampling(), &submission.prompt),
            plan: submission.plan,
            seed: submission.seed,
            adapters: submission.adapters,
            prompt_tokens: submission.prompt.len(),
            tokens: submission.prompt,
            computed: 0,
            planned: 0,
            blocks: BlockTable::default(),
            slots: Vec::new(),
            submitted,
            started: None,
            ended: None,
            place: Some(place),
            events,
        }
    }

    pub(crate) const fn plan(&self) -> &ValidPlan {
        &self.plan
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens whose KV is not computed yet; at least 1. Exactly 1 while decoding.
    pub(crate) fn remaining(&self) -> usize {
        self.tokens.len().saturating_sub(self.computed)
    }

    /// The adapters of the composition's parts, in order.
    pub(crate) fn wanted_adapters(&self) -> Vec<Digest> {
        self.plan.composition().parts().iter().map(|part| part.adapter).collect()
    }

    pub(crate) fn adapter(&self, digest: Digest) -> Option<&Arc<A>> {
        self.adapters.iter().find(|(name, _)| *name == digest).map(|(_, adapter)| adapter)
    }

    /// Whether the next step ends with the sequence's last token, so that the one after it is drawn.
    pub(crate) fn is_sampled(&self) -> bool {
        self.planned > 0 && self.planned == self.remaining()
    }

    /// Adds the draw of the next token from this row.
    pub(crate) fn add_sample(&self, row: u32, batch: &mut Batch) {
        let sampling = self.plan.sampling();
        let (first_seen, first_bias) = (length(&batch.seen_tokens), length(&batch.logit_biases));
        if let Some(seen) = &self.seen {
            batch.seen_tokens.extend_from_slice(seen.as_slice());
        }
        batch.logit_biases.extend_from_slice(&sampling.logit_bias);
        batch.samples.push(SampleRequest {
            row,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seen: first_seen..length(&batch.seen_tokens),
            biases: first_bias..length(&batch.logit_biases),
            seed: self.seed,
            step: self.usage().completion_tokens,
            logprobs: sampling.logprobs,
        });
    }

    /// Notes that a step has rows of this sequence: it waits no more.
    pub(crate) fn start(&mut self, now: Duration) {
        self.started.get_or_insert(now);
        self.place = None;
    }

    pub(crate) const fn has_started(&self) -> bool {
        self.started.is_some()
    }

    /// Appends a token and sends it, unless it ends the sequence silently.
    pub(crate) fn append(&mut self, token: SampledToken, eos: &[u32], tokens_max: usize) {
        let SampledToken { id, logprob, top } = token;
        self.tokens.push(id);
        if let Some(seen) = &mut self.seen {
            seen.push(id);
        }
        let stop = self.plan.stop();
        if stop.token_ids.contains(&id) || (!stop.ignore_eos && eos.contains(&id)) {
            self.ended = Some(FinishReason::Stop);
            return;
        }
        self.send(TokenEvent::Token { id, logprob, top });
        let budget = self.plan.output_tokens_max();
        if self.usage().completion_tokens >= budget || self.tokens.len() >= tokens_max {
            self.ended = Some(FinishReason::Length);
        }
    }

    /// The last word of a sequence that ended.
    pub(crate) fn finish(self, reason: FinishReason, now: Duration) {
        let queued = self.started.unwrap_or(now).saturating_sub(self.submitted);
        self.send(TokenEvent::Finished { reason, usage: self.usage(), queued });
    }

    /// The last word of a sequence that could not be continued.
    pub(crate) fn fail(self, why: GenerationError) {
        self.send(TokenEvent::Failed(why));
    }

    pub(crate) fn is_expired(&self, now: Duration) -> bool {
        now >= self.submitted.saturating_add(self.plan.deadline())
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    fn usage(&self) -> Usage {
        let count = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
        let completion = self.tokens.len().saturating_sub(self.prompt_tokens);
        Usage { prompt_tokens: count(self.prompt_tokens), completion_tokens: count(completion) }
    }

    fn send(&self, event: TokenEvent) {
        // There is a place for every event of the sequence; a closed stream is found at the next step.
        let sent = self.events.try_send(event);
        debug_assert!(!matches!(sent, Err(mpsc::error::TrySendError::Full(_))), "a stream is too short");
    }
}

/// No more tokens than sequences times the vocabulary, far below a `u32`.
fn length<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
