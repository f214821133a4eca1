//! One accepted request: its tokens, how far their KV is computed, what it holds, and its end of the stream. Not here:
//! when it runs.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use types::{Digest, FinishReason, Usage, ValidPlan};

use crate::active_parts::{ActivePart, ActiveParts};
use crate::adapter_slots::WantedAdapter;
use crate::block_keys::KvContexts;
use crate::block_manager::{BlockManager, BlockTable};
use crate::door::Place;
use crate::handle::Arrival;
use crate::kinds::Kinds;
use crate::lookup::Lookup;
use crate::seen_tokens::SeenTokens;
use crate::{
    Batch, Continuation, GenerationError, OutputConstraint, OutputState, SampleRequest, SampledToken, Slot, Terms,
    TokenEvent, TokenMask,
};

/// The order in which sequences run: the first is served first and gives way last.
pub(crate) type RunOrder = (Reverse<i8>, u64);

/// A sequence of tokens that is being continued.
pub(crate) struct Sequence<A> {
    /// Order of arrival: a smaller number is older.
    pub(crate) number: u64,
    /// Order of first admission; none before that.
    pub(crate) rank: Option<u64>,
    pub(crate) terms: Terms,
    /// Sequences of one family begin with the same prompt under the same composition.
    pub(crate) family: Option<u64>,
    plan: ValidPlan,
    /// What acts on which of its tokens.
    parts: ActiveParts,
    seed: u64,
    adapters: Vec<(Digest, Arc<A>)>,
    /// Of each of its parts.
    wanted: Vec<WantedAdapter>,
    /// Its length at most, prompt and output.
    pub(crate) tokens_max: usize,
    /// The prompt, then the output.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    /// Which of its tokens the runner must not compute with which in one step.
    kinds: Kinds,
    /// What penalties fall on; none without penalties.
    seen: Option<SeenTokens>,
    /// What its output must match. It goes with the tokens: KV that is lost changes nothing of it.
    constraint: Option<Box<dyn OutputConstraint>>,
    /// What may come next, once it was asked for.
    mask: Option<Arc<TokenMask>>,
    contexts: KvContexts,
    /// Keys of the full blocks of `tokens`, as far as they were needed.
    keys: Vec<Digest>,
    /// Blocks whose key the block manager was told.
    blocks_known: usize,
    /// Tokens whose KV lies in `blocks`; fewer than there are tokens.
    pub(crate) computed: usize,
    /// Rows of steps that were submitted and not collected: they come behind those computed.
    pub(crate) in_flight: usize,
    /// Draws of such steps: tokens that it will have and that nobody knows yet, unless it ends before them.
    pub(crate) unseen: u32,
    /// Which of the samples of the step that was submitted last is the newest of these.
    unseen_sample: u32,
    /// Rows in the next step: tokens whose KV it computes, and drafts.
    pub(crate) planned: usize,
    /// Guesses at the next tokens, to be verified in the next step; only of a sequence that decodes.
    pub(crate) drafts: Vec<u32>,
    /// Where guesses come from; none if it may not speculate.
    pub(crate) lookup: Option<Lookup>,
    /// Its KV; empty while it waits.
    pub(crate) blocks: BlockTable,
    /// A slot for each of its parts; empty while it waits.
    pub(crate) slots: Vec<Slot>,
    submitted: Duration,
    /// When the first step ran that had rows of this sequence.
    started: Option<Duration>,
    /// Why it ended, if it did.
    pub(crate) ended: Option<FinishReason>,
    /// Why it cannot be continued, if it cannot.
    pub(crate) broken: Option<GenerationError>,
    place: Option<Place>,
    events: mpsc::Sender<TokenEvent>,
}

/// What the engine knows that a new sequence needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SequenceShape {
    pub(crate) fingerprint: Digest,
    pub(crate) block_tokens: usize,
    /// Prompt and output.
    pub(crate) tokens_max: usize,
    /// Blocks in all, which its KV shares with its adapters.
    pub(crate) blocks: usize,
    /// 0 if nobody speculates.
    pub(crate) draft_tokens_max: usize,
    /// Whether the runner computes drawn tokens in another way than asked ones.
    pub(crate) separates_prompts: bool,
}

impl<A> Sequence<A> {
    /// Memory for all that it can grow to is taken now, so that no step allocates for it.
    pub(crate) fn new(
        number: u64,
        arrival: Arrival<A>,
        shape: SequenceShape,
        adapter_blocks: impl Fn(&A) -> u32,
    ) -> Self {
        let Arrival { submission, submitted, events, place, family } = arrival;
        let plan = submission.plan;
        let mut tokens = submission.prompt;
        let Continuation { generated_tokens, stretches, drawn } = submission.continues;
        let prompt_tokens = tokens.len().saturating_sub(generated_tokens as usize);
        let kinds = if shape.separates_prompts { Kinds::new(&drawn, prompt_tokens) } else { Kinds::ONE };
        let parts = ActiveParts::new(plan.composition(), &submission.activations, &stretches, prompt_tokens);
        let (asked, generated) = tokens.split_at(prompt_tokens);
        let mut seen = SeenTokens::new(plan.sampling(), asked);
        if let Some(seen) = &mut seen {
            generated.iter().for_each(|id| seen.push(*id));
        }
        let wanted = WantedAdapter::of(&parts, &submission.adapters, adapter_blocks);
        let length_max = shape.tokens_max.min(WantedAdapter::blocks_beside(&wanted, shape.blocks) * shape.block_tokens);
        let output = (plan.output_tokens_max() as usize).min(length_max.saturating_sub(prompt_tokens));
        let tokens_max = prompt_tokens + output;
        tokens.reserve_exact(output);
        // What is drawn beside a guess must be what would be drawn without it: penalties fall on the tokens before, and a mask
        // is of them.
        let is_free = seen.is_none() && submission.constraint.is_none();
        let speculates = shape.draft_tokens_max > 0 && submission.terms.speculation && is_free;
        Self {
            number,
            rank: None,
            family,
            seed: submission.seed,
            adapters: submission.adapters,
            wanted,
            tokens_max: length_max,
            prompt_tokens,
            seen,
            constraint: submission.constraint,
            mask: None,
            contexts: KvContexts::new(submission.terms.kv_salt, shape.fingerprint, &parts, &kinds),
            parts,
            kinds,
            keys: Vec::with_capacity(tokens_max / shape.block_tokens),
            blocks_known: 0,
            computed: 0,
            in_flight: 0,
            unseen: 0,
            unseen_sample: 0,
            planned: 0,
            drafts: Vec::with_capacity(if speculates { shape.draft_tokens_max } else { 0 }),
            lookup: speculates.then(|| Lookup::new(&tokens, tokens_max)),
            blocks: BlockTable::with_capacity(tokens_max.div_ceil(shape.block_tokens)),
            slots: Vec::new(),
            submitted,
            started: None,
            ended: None,
            broken: None,
            place: Some(place),
            events,
            terms: submission.terms,
            plan,
            tokens,
        }
    }

    /// What acts on its tokens, in canonical order.
    pub(crate) fn parts(&self) -> &[ActivePart] {
        self.parts.as_slice()
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) const fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Its place among those that run or have run; one that never ran comes after all others of its priority.
    pub(crate) fn run_order(&self) -> RunOrder {
        (Reverse(self.terms.priority), self.rank.unwrap_or(u64::MAX))
    }

    /// Tokens whose KV is not computed yet; at least 1. Exactly 1 while decoding.
    pub(crate) fn remaining(&self) -> usize {
        (self.tokens.len() + self.unseen as usize).saturating_sub(self.reach())
    }

    /// Tokens whose KV lies in `blocks` when all that was submitted has run.
    pub(crate) const fn reach(&self) -> usize {
        self.computed + self.in_flight
    }

    /// How many rows its next step may have at most: a step computes tokens of one kind of each sequence.
    pub(crate) fn rows_alike(&self) -> usize {
        self.kinds.alike_from(self.reach())
    }

    /// Whether the rows of its next step are of tokens that were drawn, for a runner that tells them apart.
    pub(crate) fn is_drawn(&self) -> bool {
        self.kinds.is_drawn(self.reach())
    }

    /// Whether a draw that is under way is its last, whatever it is.
    pub(crate) fn ends_unseen(&self) -> bool {
        let unseen = self.unseen as usize;
        unseen > 0
            && (self.completion_tokens() + unseen >= self.plan.output_tokens_max() as usize
                || self.tokens.len() + unseen >= self.tokens_max)
    }

    /// Whether its next step can be planned without knowing what is being drawn. Penalties fall on that token, a mask comes
    /// after it.
    pub(crate) const fn can_go_ahead(&self) -> bool {
        self.unseen == 0 || (self.seen.is_none() && self.constraint.is_none())
    }

    /// Whether the next step draws for it under a mask, which may have to be waited for.
    pub(crate) fn draws_masked(&self) -> bool {
        self.constraint.is_some() && self.samples() > 0
    }

    /// The token of each planned row; of the one that is not known, the sample that draws it.
    pub(crate) fn planned_tokens(&self) -> impl Iterator<Item = Result<u32, u32>> {
        let known = self.tokens.iter().chain(&self.drafts).map(|id| Ok(*id));
        let unseen = (self.unseen > 0).then_some(Err(self.unseen_sample));
        known.chain(unseen).skip(self.reach()).take(self.planned)
    }

    /// Notes that its planned rows were submitted; `first_sample` is the first of their draws, if there are any. Rows, draws.
    pub(crate) fn submitted(&mut self, first_sample: u32) -> (usize, usize) {
        let samples = self.samples();
        let rows = std::mem::take(&mut self.planned);
        self.in_flight += rows;
        if samples > 0 {
            self.unseen += 1;
            self.unseen_sample = first_sample;
        }
        (rows, samples)
    }

    /// The first of these that it has in its composition, invoked or not, or was made by.
    pub(crate) fn depends_on(&self, digests: &BTreeSet<Digest>) -> Option<Digest> {
        let named = self.plan.composition().parts().iter().map(|part| part.adapter);
        let acting = self.parts().iter().map(|part| part.part.adapter);
        named.chain(acting).chain(self.terms.author).find(|digest| digests.contains(digest))
    }

    /// The adapters of its parts, in order.
    pub(crate) fn wanted_adapters(&self) -> impl Iterator<Item = WantedAdapter> + Clone {
        self.wanted.iter().copied()
    }

    pub(crate) fn adapter(&self, digest: Digest) -> Option<&Arc<A>> {
        self.adapters.iter().find(|(name, _)| *name == digest).map(|(_, adapter)| adapter)
    }

    /// Keys of all full blocks of the tokens that there are now.
    pub(crate) fn keys(&mut self, block_tokens: usize, bytes: &mut Vec<u8>) -> &[Digest] {
        for (index, block) in self.tokens.chunks_exact(block_tokens).enumerate().skip(self.keys.len()) {
            let key = self.contexts.block_key(index * block_tokens, self.keys.last(), block, bytes);
            self.keys.push(key);
        }
        &self.keys
    }

    /// Tokens of one that waits whose KV the block manager keeps, as far as its keys were needed before.
    pub(crate) fn tokens_kept(&self, blocks: &BlockManager) -> usize {
        let kept = self.keys.iter().take_while(|key| blocks.find(key).is_some()).count();
        if self.blocks.blocks().is_empty() { kept * blocks.block_tokens() } else { 0 }
    }

    /// What it holds, to be filled with the blocks of these keys.
    pub(crate) fn blocks_and_keys(&mut self) -> (&mut BlockTable, &[Digest]) {
        (&mut self.blocks, &self.keys)
    }

    /// Begins to run: this much of its KV was there already.
    pub(crate) fn admit(&mut self, rank: u64, computed: usize, block_tokens: usize) {
        self.rank.get_or_insert(rank);
        self.computed = computed;
        self.blocks_known = computed / block_tokens;
    }

    /// Forgets the KV that it held.
    pub(crate) fn set_back(&mut self) {
        self.computed = 0;
        self.planned = 0;
        self.drafts.clear();
        self.blocks_known = 0;
    }

    /// Tells the block manager of the blocks that have become full.
    pub(crate) fn publish_blocks(&mut self, blocks: &mut BlockManager, bytes: &mut Vec<u8>) {
        let block_tokens = blocks.block_tokens();
        let full = self.computed / block_tokens;
        if self.blocks_known >= full {
            return;
        }
        let known = std::mem::replace(&mut self.blocks_known, full);
        self.keys(block_tokens, bytes);
        for (index, key) in self.keys.iter().enumerate().take(full).skip(known) {
            blocks.set_key(&self.blocks, index, *key);
        }
    }

    /// Draws of the next step: one, and one for each draft, if its rows reach the last token.
    pub(crate) fn samples(&self) -> usize {
        let is_sampled = self.planned > 0 && self.planned >= self.remaining();
        if is_sampled { 1 + self.drafts.len() } else { 0 }
    }

    /// How many drafts can be of use at most: the last token of the sequence is never one.
    pub(crate) fn draft_tokens_max(&self) -> usize {
        let budget = (self.plan.output_tokens_max() as usize).saturating_sub(self.completion_tokens());
        let room = self.tokens_max.saturating_sub(self.tokens.len());
        budget.min(room).saturating_sub(1)
    }

    /// Before a step that draws for it: has what may be drawn found out beside that step.
    pub(crate) fn ask_mask(&mut self) {
        if self.samples() > 0
            && self.mask.is_none()
            && let Some(constraint) = &mut self.constraint
        {
            self.mask = Some(constraint.mask());
        }
    }

    /// Adds the draws of the next tokens: from this row, which has the sequence's last token, and from those of its drafts.
    pub(crate) fn add_samples(&self, row: u32, batch: &mut Batch) {
        let sampling = self.plan.sampling();
        let (first_seen, first_bias) = (length(&batch.seen_tokens), length(&batch.logit_biases));
        if let Some(seen) = &self.seen {
            batch.seen_tokens.extend_from_slice(seen.as_slice());
        }
        batch.logit_biases.extend_from_slice(&sampling.logit_bias);
        let (seen, biases) = (first_seen..length(&batch.seen_tokens), first_bias..length(&batch.logit_biases));
        let mask = self.mask.as_ref().map(|_| length(&batch.masks));
        batch.masks.extend(self.mask.clone());
        let step = self.usage().completion_tokens + self.unseen;
        batch.samples.extend((0..=length(&self.drafts)).map(|ahead| SampleRequest {
            row: row + ahead,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            seen: seen.clone(),
            biases: biases.clone(),
            mask,
            seed: self.seed,
            step: step + ahead,
            logprobs: sampling.logprobs,
        }));
    }

    /// Notes that a step has rows of this sequence: it waits no more.
    pub(crate) fn start(&mut self, now: Duration) {
        self.started.get_or_insert(now);
        self.place = None;
    }

    pub(crate) const fn has_started(&self) -> bool {
        self.started.is_some()
    }

    /// From submission to the first step that had rows of it.
    pub(crate) fn queued(&self, now: Duration) -> Duration {
        self.started.unwrap_or(now).saturating_sub(self.submitted)
    }

    /// Takes what a step has drawn for it: the token after the last one, and those after its drafts for as long as these
    /// were what was drawn. How many tokens it was continued by.
    pub(crate) fn advance(
        &mut self,
        (rows, samples): (usize, usize),
        drawn: impl Iterator<Item = SampledToken>,
        eos: &[u32],
    ) -> usize {
        self.computed += rows;
        self.in_flight = self.in_flight.saturating_sub(rows);
        if samples == 0 {
            return 0;
        }
        self.unseen = self.unseen.saturating_sub(1);
        let mut appended = 0;
        for (place, token) in drawn.enumerate() {
            let id = token.id;
            self.append(token, eos);
            appended += 1;
            if self.ended.is_some() || self.broken.is_some() || self.drafts.get(place) != Some(&id) {
                break;
            }
        }
        self.drafts.clear();
        // The KV of drafts that were not drawn is of no use; that of the last token is never there yet.
        self.computed = self.computed.min(self.tokens.len().saturating_sub(1));
        appended
    }

    /// Appends a token and sends it, unless it ends the sequence silently.
    fn append(&mut self, token: SampledToken, eos: &[u32]) {
        let SampledToken { id, logprob, top } = token;
        self.tokens.push(id);
        self.mask = None;
        let state = match &mut self.constraint {
            None => OutputState::Open,
            Some(constraint) => match constraint.push(id) {
                Ok(state) => state,
                Err(why) => {
                    self.broken = Some(GenerationError::Constraint(why));
                    return;
                }
            },
        };
        if let Some(seen) = &mut self.seen {
            seen.push(id);
        }
        if let Some(lookup) = &mut self.lookup {
            lookup.push(&self.tokens);
        }
        let stop = self.plan.stop();
        if stop.token_ids.contains(&id) || (!stop.ignore_eos && eos.contains(&id)) {
            self.ended = Some(FinishReason::Stop);
            return;
        }
        self.send(TokenEvent::Token { id, logprob, top });
        if state == OutputState::Complete {
            self.ended = Some(FinishReason::Stop);
            return;
        }
        let budget = self.plan.output_tokens_max();
        if self.usage().completion_tokens >= budget || self.tokens.len() >= self.tokens_max {
            self.ended = Some(FinishReason::Length);
        }
    }

    /// The last word of a sequence that ended.
    pub(crate) fn finish(self, reason: FinishReason, now: Duration) {
        self.send(TokenEvent::Finished { reason, usage: self.usage(), queued: self.queued(now) });
    }

    /// The last word of a sequence that could not be continued.
    pub(crate) fn fail(self, why: GenerationError) {
        self.send(TokenEvent::Failed(why));
    }

    /// When its answer must be complete, by the host's clock.
    pub(crate) const fn deadline(&self) -> Duration {
        self.submitted.saturating_add(self.plan.deadline())
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    fn completion_tokens(&self) -> usize {
        self.tokens.len().saturating_sub(self.prompt_tokens)
    }

    fn usage(&self) -> Usage {
        let count = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
        Usage { prompt_tokens: count(self.prompt_tokens), completion_tokens: count(self.completion_tokens()) }
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
