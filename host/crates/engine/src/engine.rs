//! The step: what came in, who runs, the runner, what came out. Not here: the thread, and every decision about who runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use types::{Digest, FinishReason};

use crate::adapter_slots::SlotLoad;
use crate::assembly::assemble;
use crate::door::Door;
use crate::flight::Flight;
use crate::handle::{Clock, Message};
use crate::pace::Pace;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::{
    EngineConfig, EngineError, EngineHandle, EngineStats, GenerationError, ModelRunner, RunnerError, RunnerShape,
    SampledToken,
};

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    tokens_generated: u64,
    steps: u64,
    steps_overlapped: u64,
    draft_tokens: u64,
    draft_tokens_accepted: u64,
    deadlines_foreseen: u64,
    requests_started: u64,
    queued: Duration,
}

/// Schedules sequences onto a runner, one step at a time. Without a thread of its own: see [`crate::start`].
pub struct Engine<R: ModelRunner> {
    runner: R,
    shape: RunnerShape,
    eos_token_ids: Vec<u32>,
    inbox: mpsc::Receiver<Message<R::Adapter>>,
    aborted: bool,
    /// What nothing may depend on any more.
    revoked: BTreeSet<Digest>,
    scheduler: Scheduler<R::Adapter>,
    door: Arc<Door>,
    pace: Pace,
    stats: Arc<Mutex<EngineStats>>,
    counts: Counts,
    /// The step that was planned last.
    newest: Flight,
    /// Whether it was submitted and not collected.
    is_in_flight: bool,
    /// The one before it.
    oldest: Flight,
    /// Of the steps that were waited for since the pace was noted.
    landed_rows: usize,
    /// Kept from step to step for its memory.
    sampled: Vec<SampledToken>,
}

impl<R: ModelRunner> Engine<R> {
    /// An engine and its first handle, which stamps submissions with `clock`.
    ///
    /// # Errors
    /// If the runner's shape has no room for a sequence.
    pub fn new(runner: R, config: EngineConfig, clock: Clock) -> Result<(EngineHandle<R::Adapter>, Self), EngineError> {
        let shape = runner.shape();
        check_shape(&shape)?;
        let rows_max = config.step_rows_max.unwrap_or(u32::MAX).clamp(1, shape.batch_rows_max);
        let stats = Arc::new(Mutex::new(EngineStats::default()));
        let (handle, inbox) = EngineHandle::new(shape, &config, Arc::clone(&stats), clock);
        let engine = Self {
            scheduler: Scheduler::new(
                &shape,
                runner.fingerprint(),
                runner.separates_prompts(),
                rows_max as usize,
                &config,
            ),
            runner,
            shape,
            eos_token_ids: config.eos_token_ids,
            inbox,
            aborted: false,
            revoked: BTreeSet::new(),
            door: Arc::clone(handle.door()),
            pace: Pace::new(rows_max as usize),
            stats,
            counts: Counts::default(),
            newest: Flight::for_shape(&shape, rows_max as usize),
            is_in_flight: false,
            oldest: Flight::for_shape(&shape, rows_max as usize),
            landed_rows: 0,
            sampled: Vec::with_capacity(rows_max as usize),
        };
        engine.publish();
        Ok((handle, engine))
    }

    /// One step, at this time by the clock of the handle. With a runner that overlaps steps it may be under way afterwards: then
    /// the next call plans and submits the step behind it before it takes what this one drew, where that can be done.
    pub fn step(&mut self, now: Duration) {
        self.pace.begin(now);
        self.drain_inbox();
        if self.door.is_lost() {
            return self.end_lost();
        }
        let was_in_flight = self.is_in_flight;
        if self.is_in_flight && !self.scheduler.can_go_ahead() {
            self.land_newest(now);
        }
        self.remove_ended(now);
        self.unload_adapters();
        let had_queue = self.scheduler.has_waiting();
        let mut is_ahead = std::mem::take(&mut self.is_in_flight);
        if is_ahead {
            std::mem::swap(&mut self.newest, &mut self.oldest);
        }
        self.scheduler.schedule(is_ahead);
        // Those whose blocks are needed now.
        self.unload_adapters();
        self.load_adapters();
        if self.door.is_lost() {
            return;
        }
        self.scheduler.running_mut().iter_mut().for_each(Sequence::ask_mask);
        if is_ahead && self.scheduler.running().iter().any(Sequence::draws_masked) {
            // The runner waits for the mask: what was drawn meanwhile must not.
            self.land_oldest(now);
            // If that failed, blocks are to be wiped again that copies were planned into meanwhile.
            self.scheduler.note_copies();
            is_ahead = false;
        }
        let Flight { batch, order, .. } = &mut self.newest;
        assemble(self.scheduler.running(), self.shape.block_tokens, order, batch);
        batch.copies.extend_from_slice(self.scheduler.copies());
        batch.wipes.extend_from_slice(self.scheduler.blocks().wipes());
        let starts = self.start(now);
        let guesses = self.scheduler.running().iter().any(|sequence| !sequence.drafts.is_empty());
        self.submit(is_ahead);
        if is_ahead {
            self.land_oldest(now);
        }
        // What is drawn beside a guess says how many tokens there are: nothing can be planned before.
        let is_last = guesses || self.newest.refused.is_some() || !self.runner.overlaps();
        if self.is_in_flight && is_last {
            self.land_newest(now);
        }
        self.pace.note(now, std::mem::take(&mut self.landed_rows), starts, had_queue);
        self.fail_if_stuck(was_in_flight);
        if !self.door.is_lost() {
            self.unload_adapters();
        }
        self.publish();
        self.check_when_idle();
    }

    /// Whether nothing runs or waits, the inbox aside.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && !self.is_in_flight
    }

    /// Sleeps until there is work. False if there will never be any again: stopped, or all handles dropped.
    pub(crate) fn wait(&mut self) -> bool {
        if !self.is_idle() {
            return true;
        }
        // Sleep is no part of the last step, which was measured short: there was nothing behind it.
        self.pace.forget();
        let message = self.inbox.blocking_recv();
        message.map(|message| self.receive(message)).is_some()
    }

    /// After a panic: refuses what comes, and lets go of what came too late to be refused. Dropping the engine then
    /// ends every stream.
    pub(crate) fn abandon(&mut self) {
        self.inbox.close();
        while self.inbox.blocking_recv().is_some() {}
    }

    fn drain_inbox(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            self.receive(message);
        }
    }

    fn receive(&mut self, message: Message<R::Adapter>) {
        match message {
            Message::Arrival(arrival) => self.scheduler.add(*arrival, |adapter| self.runner.adapter_blocks(adapter)),
            Message::Revoke(digest) => {
                self.revoked.insert(digest);
                if let Some(slot) = self.scheduler.resident(digest) {
                    self.end_revoked();
                    self.scheduler.forget(slot);
                    if !self.door.is_lost() {
                        self.runner.unload_adapter(slot);
                    }
                }
            }
            // What was sent before the inbox closed still comes out of it.
            Message::Drain => self.inbox.close(),
            Message::Abort => {
                self.inbox.close();
                self.aborted = true;
            }
        }
    }

    /// Frees the memory of those whose reader is gone and of those whose time is up, or will be before their prompt can be
    /// computed, or of all if the engine ends.
    fn remove_ended(&mut self, now: Duration) {
        drop(self.scheduler.remove_where(Sequence::is_cancelled));
        self.end_revoked();
        let (pace, blocks) = (&self.pace, self.scheduler.blocks());
        let late = |sequence: &Sequence<_>| {
            let ready = |rows| now.saturating_add(pace.time_of(rows));
            let remaining = if sequence.ends_unseen() { 0 } else { sequence.remaining() };
            // What is kept is looked for only if it would have to be.
            let in_time = ready(remaining) <= sequence.deadline()
                || ready(remaining.saturating_sub(sequence.tokens_kept(blocks))) <= sequence.deadline();
            now >= sequence.deadline() || !in_time
        };
        let late: Vec<u64> = self.scheduler.all().filter(|one| late(one)).map(|one| one.number).collect();
        if !late.is_empty() {
            for sequence in self.scheduler.remove_where(|sequence| late.contains(&sequence.number)) {
                self.counts.deadlines_foreseen += u64::from(now < sequence.deadline());
                sequence.finish(FinishReason::Deadline, now);
            }
        }
        if self.aborted {
            fail_all(self.scheduler.remove_where(|_| true), &GenerationError::Stopped);
        }
    }

    /// Those that came with what is revoked, before or after it was.
    fn end_revoked(&mut self) {
        if self.revoked.is_empty() {
            return;
        }
        let found = self.scheduler.all().filter_map(|one| Some((one.number, one.depends_on(&self.revoked)?)));
        let found: BTreeMap<u64, Digest> = found.collect();
        if found.is_empty() {
            return;
        }
        for sequence in self.scheduler.remove_where(|sequence| found.contains_key(&sequence.number)) {
            let Some(digest) = found.get(&sequence.number) else { continue };
            sequence.fail(GenerationError::Revoked(*digest));
        }
    }

    /// Empties the slots of adapters that were to go with their last sequence.
    fn unload_adapters(&mut self) {
        for slot in self.scheduler.take_unloads() {
            self.runner.unload_adapter(slot);
        }
    }

    /// A failed load ends the sequences that wait for this adapter and no others.
    fn load_adapters(&mut self) {
        // All of them first: one may get blocks that another one leaves.
        for load in self.scheduler.loads().iter().filter(|load| load.evicts) {
            self.runner.unload_adapter(load.slot);
        }
        for index in 0..self.scheduler.loads().len() {
            let Some(&SlotLoad { slot, digest, .. }) = self.scheduler.loads().get(index) else { return };
            let loaded = match self.scheduler.adapter(digest) {
                Some(adapter) => self.runner.load_adapter(slot, &adapter, self.scheduler.slots().blocks_of(slot)),
                // All its sequences failed with another adapter of theirs; the slot must not count as loaded.
                None => Err(RunnerError::Adapter("its sequences are gone".into())),
            };
            if let Err(RunnerError::Lost(why)) = loaded {
                return self.lose(why);
            }
            if let Err(error) = loaded {
                fail_all(self.scheduler.remove_slot(slot), &GenerationError::Adapter(error.to_string()));
            }
        }
    }

    /// Those that have rows wait no more. How many had waited until now.
    fn start(&mut self, now: Duration) -> usize {
        let mut starts = 0;
        for sequence in self.scheduler.running_mut().iter_mut().filter(|sequence| sequence.planned > 0) {
            if !sequence.has_started() {
                starts += 1;
                sequence.start(now);
                self.counts.queued = self.counts.queued.saturating_add(sequence.queued(now));
            }
        }
        self.counts.requests_started += starts as u64;
        starts
    }

    /// Gives the newest step to the runner, if it has rows.
    fn submit(&mut self, is_ahead: bool) {
        self.is_in_flight = !self.newest.order.is_empty();
        if !self.is_in_flight {
            return;
        }
        self.counts.steps += 1;
        self.counts.steps_overlapped += u64::from(is_ahead);
        self.newest.begin(&mut self.scheduler);
        self.scheduler.note_wiped();
        if self.runner.overlaps() {
            self.newest.refused = self.runner.submit(&self.newest.batch).err();
        }
    }

    fn land_newest(&mut self, now: Duration) {
        self.is_in_flight = false;
        let mut flight = std::mem::take(&mut self.newest);
        match self.land(&mut flight, now) {
            Ok(()) => {}
            Err(RunnerError::Lost(why)) => self.lose(why),
            Err(error) => self.fail_batch(&flight, &error),
        }
        self.newest = flight;
    }

    /// If the step before fails, so does what was submitted behind it: its rows may have read what was not computed.
    fn land_oldest(&mut self, now: Duration) {
        let mut flight = std::mem::take(&mut self.oldest);
        match self.land(&mut flight, now) {
            Ok(()) => {}
            Err(RunnerError::Lost(why)) => self.lose(why),
            Err(error) => {
                if std::mem::take(&mut self.is_in_flight) {
                    self.sampled.clear();
                    let behind = match self.newest.refused.take() {
                        Some(refused) => Err(refused),
                        None => self.runner.collect(&self.newest.batch, &mut self.sampled),
                    };
                    if let Err(RunnerError::Lost(why)) = behind {
                        self.lose(why);
                        self.oldest = flight;
                        return;
                    }
                    let newest = std::mem::take(&mut self.newest);
                    self.fail_batch(&newest, &error);
                    self.newest = newest;
                }
                self.fail_batch(&flight, &error);
            }
        }
        self.oldest = flight;
    }

    /// Takes what a step drew.
    fn land(&mut self, flight: &mut Flight, now: Duration) -> Result<(), RunnerError> {
        self.sampled.clear();
        self.landed_rows += flight.batch.tokens.len();
        match flight.refused.take() {
            Some(error) => return Err(error),
            None if self.runner.overlaps() => self.runner.collect(&flight.batch, &mut self.sampled)?,
            None => self.runner.step(&flight.batch, &mut self.sampled)?,
        }
        let in_vocabulary = self.sampled.iter().all(|token| token.id < self.shape.vocabulary);
        if self.sampled.len() != flight.batch.samples.len() || !in_vocabulary {
            return Err(RunnerError::Failed("it drew too few or too many tokens, or unknown ones".into()));
        }
        self.post_process(flight, now);
        Ok(())
    }

    /// Appends the drawn tokens to their sequences and takes out those that end. What was drawn for one that is gone is
    /// dropped.
    fn post_process(&mut self, flight: &Flight, now: Duration) {
        let mut sampled = self.sampled.drain(..);
        for part in &flight.parts {
            let mut drawn = sampled.by_ref().take(part.samples);
            let index = self.scheduler.find(part.number, part.index);
            if let Some(index) = index
                && let Some(sequence) = self.scheduler.running_mut().get_mut(index)
            {
                let drafts = sequence.drafts.len();
                let tokens = sequence.advance((part.rows, part.samples), &mut drawn, &self.eos_token_ids);
                self.counts.tokens_generated += tokens as u64;
                self.counts.draft_tokens += drafts as u64;
                self.counts.draft_tokens_accepted += tokens.saturating_sub(1) as u64;
                self.scheduler.note_computed(index, tokens);
            }
            drawn.for_each(drop);
        }
        drop(sampled);
        for mut sequence in self.scheduler.remove_where(|sequence| sequence.broken.is_some()) {
            let why = sequence.broken.take().unwrap_or(GenerationError::Stopped);
            sequence.fail(why);
        }
        for sequence in self.scheduler.remove_where(|sequence| sequence.ended.is_some()) {
            let reason = sequence.ended.unwrap_or(FinishReason::Stop);
            sequence.finish(reason, now);
        }
    }

    /// The KV of the batch's rows is lost, and with it its sequences.
    fn fail_batch(&mut self, flight: &Flight, error: &RunnerError) {
        let failed = self.scheduler.remove_where(|sequence| flight.has(sequence.number));
        fail_all(failed, &GenerationError::Runner(error.to_string()));
        let copied = flight.batch.copies.iter().map(|copy| copy.to);
        self.scheduler.restore_wipes(flight.batch.wipes.iter().copied().chain(copied));
    }

    /// The device is gone, and everything that lay there. The runner is asked for nothing any more.
    fn lose(&mut self, why: String) {
        self.door.lose(why);
        // What was submitted is nobody's any more.
        self.is_in_flight = false;
        self.end_lost();
    }

    /// Those that were there, and those that came before they could be refused.
    fn end_lost(&mut self) {
        fail_all(self.scheduler.remove_where(|_| true), &GenerationError::DeviceLost);
        self.scheduler.forget_all();
        self.publish();
    }

    /// A bug of the scheduler must not spin the thread or leave clients waiting.
    fn fail_if_stuck(&mut self, was_in_flight: bool) {
        if self.newest.order.is_empty() && !was_in_flight && self.scheduler.loads().is_empty() && !self.is_idle() {
            let error = GenerationError::Runner("nothing could be scheduled; report it as a bug".into());
            fail_all(self.scheduler.remove_where(|_| true), &error);
        }
    }

    fn publish(&self) {
        self.door.set_estimates(self.pace.estimates());
        let (scheduler, counts) = (&self.scheduler, self.counts);
        let scheduled = scheduler.counts();
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.running = scheduler.started();
        stats.kv_blocks_free = scheduler.free_blocks();
        stats.kv_blocks_idle = scheduler.blocks().idle_blocks();
        stats.adapter_blocks = scheduler.adapter_blocks();
        stats.kv_blocks_total = scheduler.blocks().total_blocks();
        stats.adapter_slots_used = scheduler.slots().used();
        stats.adapter_slots_total = scheduler.slots().total();
        stats.resident_adapters.clear();
        stats.resident_adapters.extend(scheduler.slots().residents());
        stats.resident_fillers.clear();
        stats.resident_fillers.extend(scheduler.slots().fillers());
        stats.tokens_generated = counts.tokens_generated;
        stats.steps = counts.steps;
        stats.steps_overlapped = counts.steps_overlapped;
        stats.preemptions = scheduled.preemptions;
        stats.prefix_tokens_asked = scheduled.prefix_tokens_asked;
        stats.prefix_tokens_found = scheduled.prefix_tokens_found;
        stats.draft_tokens = counts.draft_tokens;
        stats.draft_tokens_accepted = counts.draft_tokens_accepted;
        stats.deadlines_foreseen = counts.deadlines_foreseen;
        stats.requests_started = counts.requests_started;
        stats.queued = counts.queued;
    }

    /// What must hold between steps.
    ///
    /// # Errors
    /// What does not hold: a bug of this crate.
    pub fn check_integrity(&self) -> Result<(), String> {
        self.scheduler.check_integrity()
    }

    fn check_when_idle(&self) {
        if self.is_idle() {
            debug_assert_eq!(self.check_integrity(), Ok(()), "the scheduler lost something");
        }
    }
}

fn fail_all<A>(sequences: Vec<Sequence<A>>, why: &GenerationError) {
    sequences.into_iter().for_each(|sequence| sequence.fail(why.clone()));
}

fn check_shape(shape: &RunnerShape) -> Result<(), EngineError> {
    let sizes = [
        (shape.block_tokens, "tokens in a KV block"),
        (shape.kv_blocks, "KV blocks"),
        (shape.batch_rows_max, "rows in a batch"),
        (shape.vocabulary, "vocabulary"),
    ];
    match sizes.into_iter().find(|(size, _)| *size == 0) {
        Some((_, what)) => Err(EngineError::Shape(what)),
        None if shape.sequence_tokens_max() < 2 => Err(EngineError::Shape("context for a prompt and an answer")),
        None => Ok(()),
    }
}
