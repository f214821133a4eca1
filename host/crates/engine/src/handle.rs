//! The way into the engine from other threads, and out of it: checks at the door, a bounded queue, a stream of tokens
//! for each request. Not here: the thread (`thread.rs`), and anything that is decided after a request was accepted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use types::Digest;

use crate::active_parts::ActiveParts;
use crate::door::{Door, Place};
use crate::{Continuation, EngineConfig, GenerationError, RunnerShape, Submission, SubmitError, Terms, TokenEvent};

/// Places of the inbox, at most: tokio's limit on channels, less the one to stop and the one to revoke.
const WAITING_REQUESTS_MAX: usize = (1 << 24) - 2;

/// Time since some fixed moment, read by the host: the engine has no clock of its own.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What an engine is doing, as of its last step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests that no step has touched yet.
    pub waiting: usize,
    /// Sequences that have begun, those preempted included.
    pub running: usize,
    /// KV blocks that belong to no sequence, those that keep a known beginning or an adapter that nobody uses included.
    pub kv_blocks_free: u32,
    /// KV blocks that keep a known beginning though no sequence has it now.
    pub kv_blocks_idle: u32,
    /// KV blocks that adapters lie in, used or idle.
    pub adapter_blocks: u32,
    /// KV blocks in all.
    pub kv_blocks_total: u32,
    /// Adapter slots that running sequences hold.
    pub adapter_slots_used: u32,
    /// Adapter slots in all.
    pub adapter_slots_total: u32,
    /// Adapters in slots, held or idle, in order of slot.
    pub resident_adapters: Vec<Digest>,
    /// [`Terms::tenant`](crate::Terms::tenant) of the use that filled the slot of each of these, in the same order.
    pub resident_fillers: Vec<Digest>,
    /// Tokens generated since the start.
    pub tokens_generated: u64,
    /// Steps run since the start.
    pub steps: u64,
    /// Of these, steps that were submitted while the one before them ran.
    pub steps_overlapped: u64,
    /// Sequences set back to recompute their KV, since the start.
    pub preemptions: u64,
    /// Tokens that sequences began to run with, since the start; those preempted count again.
    pub prefix_tokens_asked: u64,
    /// Of these, tokens whose KV was there already.
    pub prefix_tokens_found: u64,
    /// Guessed tokens that were verified, since the start.
    pub draft_tokens: u64,
    /// Of these, tokens that were what the model drew.
    pub draft_tokens_accepted: u64,
    /// Requests that ended before their deadline because they could not have met it, since the start.
    pub deadlines_foreseen: u64,
    /// Requests that have begun, since the start.
    pub requests_started: u64,
    /// From the submission to the first step, of all of these together.
    pub queued: Duration,
}

/// An accepted request on its way to the engine.
pub(crate) struct Arrival<A> {
    pub(crate) submission: Submission<A>,
    /// By the host's clock.
    pub(crate) submitted: Duration,
    /// Capacity for every event that the sequence can have.
    pub(crate) events: mpsc::Sender<TokenEvent>,
    /// The place in the queue, given back when the sequence first runs.
    pub(crate) place: Place,
    /// Which others begin like it, if some do.
    pub(crate) family: Option<u64>,
}

/// What the engine finds in its inbox.
pub(crate) enum Message<A> {
    Arrival(Box<Arrival<A>>),
    /// Nothing goes on that depends on this, now and later.
    Revoke(Digest),
    /// No more arrivals; finish what is there.
    Drain,
    /// No more arrivals; fail what is there.
    Abort,
}

/// Submits requests. Cheap to clone; when the last one is dropped the engine finishes its work and ends.
pub struct EngineHandle<A> {
    inbox: mpsc::Sender<Message<A>>,
    door: Arc<Door>,
    shape: RunnerShape,
    stats: Arc<Mutex<EngineStats>>,
    clock: Clock,
}

impl<A> Clone for EngineHandle<A> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            door: Arc::clone(&self.door),
            shape: self.shape,
            stats: Arc::clone(&self.stats),
            clock: Arc::clone(&self.clock),
        }
    }
}

impl<A> EngineHandle<A> {
    /// A handle and the engine's end of it. Places in the inbox: one for each waiting request, one to stop, one to
    /// revoke (others wait for it).
    pub(crate) fn new(
        shape: RunnerShape,
        config: &EngineConfig,
        stats: Arc<Mutex<EngineStats>>,
        clock: Clock,
    ) -> (Self, mpsc::Receiver<Message<A>>) {
        let waiting_max = config.waiting_requests_max.clamp(1, WAITING_REQUESTS_MAX);
        let (inbox, arrivals) = mpsc::channel(waiting_max + 2);
        let door = Arc::new(Door::new(waiting_max, config.tenant_waiting_requests_max.unwrap_or(waiting_max)));
        (Self { inbox, door, shape, stats, clock }, arrivals)
    }

    /// Hands a request over. The tokens come through the stream; dropping it cancels the request.
    ///
    /// # Errors
    /// If the request can never run, the queue is full or too long for its deadline, the engine has stopped, or its device is
    /// lost.
    pub fn submit(&self, submission: Submission<A>) -> Result<TokenStream, SubmitError> {
        self.submit_all(vec![submission])?.pop().ok_or(SubmitError::Stopped)
    }

    /// Hands requests over that are one to their caller: all or none. Those that begin with the same prompt under the same
    /// composition share its KV, which is computed once.
    ///
    /// # Errors
    /// As [`Self::submit`], for the first that is refused.
    pub fn submit_all(&self, submissions: Vec<Submission<A>>) -> Result<Vec<TokenStream>, SubmitError> {
        submissions.iter().try_for_each(|submission| self.check(submission))?;
        if self.is_stopped() {
            return Err(SubmitError::Stopped);
        }
        let places = self.places(&submissions)?;
        let families = self.families(&submissions);
        let submitted = (self.clock)();
        let mut streams = Vec::with_capacity(submissions.len());
        for ((submission, place), family) in submissions.into_iter().zip(places).zip(families) {
            let room = self.shape.sequence_tokens_max().saturating_sub(submission.prompt.len());
            let tokens = room.min(submission.plan.output_tokens_max() as usize);
            // One more for the event that ends the stream: the engine can always send and never waits for a reader.
            let (sender, events) = mpsc::channel(tokens + 1);
            let arrival = Arrival { submission, submitted, events: sender, place, family };
            // The places in the queue are no more than those in the inbox: it is never full, only closed.
            self.inbox.try_send(Message::Arrival(Box::new(arrival))).map_err(|_| SubmitError::Stopped)?;
            streams.push(TokenStream { events, ended: false });
        }
        Ok(streams)
    }

    /// Whether a request under these terms would find a place in the queue now: for whoever waits for one, before it makes the
    /// request. Somebody else may be quicker.
    pub fn has_place(&self, terms: Terms) -> bool {
        self.door.has_place(terms)
    }

    /// A place for each, or for none: what was entered is left again when it is dropped.
    fn places(&self, submissions: &[Submission<A>]) -> Result<Vec<Place>, SubmitError> {
        let mut places = Vec::with_capacity(submissions.len());
        for alike in submissions.chunk_by(|one, two| one.terms == two.terms) {
            let terms = alike.first().map_or_else(Terms::default, |first| first.terms);
            let deadline = alike.iter().map(|submission| submission.plan.deadline()).min().unwrap_or_default();
            places.extend(self.door.enter(terms, alike.len(), deadline)?);
        }
        Ok(places)
    }

    /// For each the number of those that it begins like, if there are others.
    fn families(&self, submissions: &[Submission<A>]) -> Vec<Option<u64>> {
        let alike = |one: &Submission<A>, two: &Submission<A>| {
            one.prompt == two.prompt
                && one.terms.kv_salt == two.terms.kv_salt
                && one.plan.composition() == two.plan.composition()
                && one.activations == two.activations
                && one.continues == two.continues
        };
        let mut families: Vec<Option<u64>> = vec![None; submissions.len()];
        for (index, submission) in submissions.iter().enumerate().skip(1) {
            let Some(first) = submissions.iter().take(index).position(|other| alike(other, submission)) else {
                continue;
            };
            let family = families.get(first).copied().flatten().unwrap_or_else(|| self.door.new_family());
            for member in [first, index] {
                families.get_mut(member).map(|place| place.replace(family));
            }
        }
        families
    }

    fn check(&self, submission: &Submission<A>) -> Result<(), SubmitError> {
        let (tokens, max) = (submission.prompt.len(), self.prompt_tokens_max());
        if tokens == 0 || tokens > max {
            return Err(SubmitError::PromptLength { tokens, max });
        }
        let vocabulary = self.shape.vocabulary;
        if let Some(&id) = submission.prompt.iter().find(|&&id| id >= vocabulary) {
            return Err(SubmitError::UnknownToken { id, vocabulary });
        }
        let Continuation { generated_tokens, stretches, .. } = &submission.continues;
        let ends: Vec<u32> = stretches.iter().map(|stretch| stretch.end).collect();
        let is_inside = ends.last().is_none_or(|end| *end as usize <= tokens) && (*generated_tokens as usize) < tokens;
        if !is_inside || !ends.is_sorted() {
            return Err(SubmitError::Continuation);
        }
        let composition = submission.plan.composition();
        let all = stretches.iter().map(|stretch| &stretch.composition).chain([composition]);
        let needed: BTreeSet<Digest> = all.flat_map(|one| one.parts()).map(|part| part.adapter).collect();
        let slots = self.shape.adapter_slots;
        let parts =
            ActiveParts::new(composition, &submission.activations, stretches, tokens - *generated_tokens as usize);
        let acting: BTreeSet<Digest> = parts.as_slice().iter().map(|part| part.part.adapter).collect();
        let adapters = acting.len();
        if adapters > slots as usize {
            return Err(SubmitError::TooManyAdapters { adapters, slots });
        }
        let given = |digest: &Digest| submission.adapters.iter().any(|(given, _)| given == digest);
        match needed.iter().find(|digest| !given(digest)) {
            Some(missing) => Err(SubmitError::MissingAdapter(*missing)),
            None => Ok(()),
        }
    }

    /// Ends every sequence that has this adapter in its composition, or this author, and every one that still arrives; empties
    /// the adapter's slot. Returns when the engine was told, which is before its next step but one.
    ///
    /// # Errors
    /// [`SubmitError::Stopped`].
    pub async fn revoke(&self, digest: Digest) -> Result<(), SubmitError> {
        self.inbox.send(Message::Revoke(digest)).await.map_err(|_| SubmitError::Stopped)
    }

    /// Tokens of the longest prompt that leaves room to answer.
    #[must_use]
    pub fn prompt_tokens_max(&self) -> usize {
        self.shape.sequence_tokens_max().saturating_sub(1)
    }

    /// The runner's sizes.
    #[must_use]
    pub const fn shape(&self) -> RunnerShape {
        self.shape
    }

    /// What the engine is doing.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Read here, not at the last step, so that a burst shows while a long step runs.
        stats.waiting = self.door.waiting();
        stats
    }

    /// Whether the engine takes no more requests: it was stopped, or its thread died.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.inbox.is_closed()
    }

    /// How the device failed, if it did for good: nothing is taken any more, and nothing will be.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.door.lost()
    }

    pub(crate) const fn door(&self) -> &Arc<Door> {
        &self.door
    }

    pub(crate) fn inbox(&self) -> &mpsc::Sender<Message<A>> {
        &self.inbox
    }
}

/// The tokens of one request. Dropping it cancels the request: its memory is free at the next step.
#[derive(Debug)]
pub struct TokenStream {
    events: mpsc::Receiver<TokenEvent>,
    ended: bool,
}

impl TokenStream {
    /// The next event; `None` after the one that ended the stream. If the engine dies the last event is a failure.
    /// Cancel-safe.
    pub async fn recv(&mut self) -> Option<TokenEvent> {
        let event = self.events.recv().await;
        self.note(event)
    }

    /// [`Self::recv`] for who waits for other things as well.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        self.events.poll_recv(context).map(|event| self.note(event))
    }

    /// [`Self::recv`] for a thread outside any async runtime.
    pub fn blocking_recv(&mut self) -> Option<TokenEvent> {
        let event = self.events.blocking_recv();
        self.note(event)
    }

    /// The next event if it is there already.
    pub fn try_recv(&mut self) -> Option<TokenEvent> {
        match self.events.try_recv() {
            Ok(event) => self.note(Some(event)),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => self.note(None),
        }
    }

    /// Cancels the request as dropping does. What was drawn before can still be received; nothing is added to it.
    pub fn cancel(&mut self) {
        self.events.close();
    }

    fn note(&mut self, event: Option<TokenEvent>) -> Option<TokenEvent> {
        match event {
            None if self.ended => None,
            Some(event @ TokenEvent::Token { .. }) => Some(event),
            last => {
                self.ended = true;
                Some(last.unwrap_or(TokenEvent::Failed(GenerationError::Stopped)))
            }
        }
    }
}
