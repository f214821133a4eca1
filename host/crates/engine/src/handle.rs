//! The way into the engine from other threads, and out of it: checks at the door, a bounded queue, a stream of tokens
//! for each request. Not here: the thread (`thread.rs`), and anything that is decided after a request was accepted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use types::Digest;

use crate::{GenerationError, RunnerShape, Submission, SubmitError, TokenEvent};

/// Time since some fixed moment, read by the host: the engine has no clock of its own.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What an engine is doing, as of its last step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests that no step has touched yet.
    pub waiting: usize,
    /// Sequences that have begun, those preempted included.
    pub running: usize,
    /// KV blocks that belong to no sequence.
    pub kv_blocks_free: u32,
    /// KV blocks in all.
    pub kv_blocks_total: u32,
    /// Adapter slots that running sequences hold.
    pub adapter_slots_used: u32,
    /// Adapter slots in all.
    pub adapter_slots_total: u32,
    /// Adapters in slots, held or idle, in order of slot.
    pub resident_adapters: Vec<Digest>,
    /// Tokens generated since the start.
    pub tokens_generated: u64,
    /// Steps run since the start.
    pub steps: u64,
    /// Sequences set back to recompute their KV, since the start.
    pub preemptions: u64,
}

/// An accepted request on its way to the engine.
pub(crate) struct Arrival<A> {
    pub(crate) submission: Submission<A>,
    /// By the host's clock.
    pub(crate) submitted: Duration,
    /// Capacity for every event that the sequence can have.
    pub(crate) events: mpsc::Sender<TokenEvent>,
    /// The place in the queue, given back when the sequence first runs.
    pub(crate) place: OwnedSemaphorePermit,
}

/// What the engine finds in its inbox.
pub(crate) enum Message<A> {
    Arrival(Box<Arrival<A>>),
    /// No more arrivals; finish what is there.
    Drain,
    /// No more arrivals; fail what is there.
    Abort,
}

/// Submits requests. Cheap to clone; when the last one is dropped the engine finishes its work and ends.
pub struct EngineHandle<A> {
    inbox: mpsc::Sender<Message<A>>,
    queue: Arc<Semaphore>,
    waiting_requests_max: usize,
    shape: RunnerShape,
    stats: Arc<Mutex<EngineStats>>,
    clock: Clock,
}

impl<A> Clone for EngineHandle<A> {
    fn clone(&self) -> Self {
        Self {
            inbox: self.inbox.clone(),
            queue: Arc::clone(&self.queue),
            waiting_requests_max: self.waiting_requests_max,
            shape: self.shape,
            stats: Arc::clone(&self.stats),
            clock: Arc::clone(&self.clock),
        }
    }
}

impl<A> EngineHandle<A> {
    /// A handle and the engine's end of it. Places in the inbox: one for each waiting request, one to stop.
    pub(crate) fn new(
        shape: RunnerShape,
        waiting_requests_max: usize,
        stats: Arc<Mutex<EngineStats>>,
        clock: Clock,
    ) -> (Self, mpsc::Receiver<Message<A>>) {
        let waiting_requests_max = waiting_requests_max.clamp(1, Semaphore::MAX_PERMITS - 1);
        let (inbox, arrivals) = mpsc::channel(waiting_requests_max + 1);
        let queue = Arc::new(Semaphore::new(waiting_requests_max));
        (Self { inbox, queue, waiting_requests_max, shape, stats, clock }, arrivals)
    }

    /// Hands a request over. The tokens come through the stream; dropping it cancels the request.
    ///
    /// # Errors
    /// If the request can never run, the queue is full, or the engine has stopped.
    pub fn submit(&self, submission: Submission<A>) -> Result<TokenStream, SubmitError> {
        self.check(&submission)?;
        if self.is_stopped() {
            return Err(SubmitError::Stopped);
        }
        let Ok(place) = Arc::clone(&self.queue).try_acquire_owned() else {
            return Err(SubmitError::QueueFull { waiting: self.waiting_requests_max });
        };
        let room = self.shape.sequence_tokens_max().saturating_sub(submission.prompt.len());
        let tokens = room.min(submission.plan.output_tokens_max() as usize);
        // One more for the event that ends the stream: the engine can always send and never waits for a reader.
        let (sender, events) = mpsc::channel(tokens + 1);
        let submitted = (self.clock)();
        let arrival = Arrival { submission, submitted, events: sender, place };
        // The places in the queue are no more than those in the inbox: it is never full, only closed.
        self.inbox.try_send(Message::Arrival(Box::new(arrival))).map_err(|_| SubmitError::Stopped)?;
        Ok(TokenStream { events, ended: false })
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
        let parts = submission.plan.composition().parts();
        let needed: BTreeSet<Digest> = parts.iter().map(|part| part.adapter).collect();
        let slots = self.shape.adapter_slots;
        if needed.len() > slots as usize {
            return Err(SubmitError::TooManyAdapters { adapters: needed.len(), slots });
        }
        let given = |digest: &Digest| submission.adapters.iter().any(|(given, _)| given == digest);
        match needed.iter().find(|digest| !given(digest)) {
            Some(missing) => Err(SubmitError::MissingAdapter(*missing)),
            None => Ok(()),
        }
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
        stats.waiting = self.waiting_requests_max.saturating_sub(self.queue.available_permits());
        stats
    }

    /// Whether the engine takes no more requests: it was stopped, or its thread died.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.inbox.is_closed()
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
