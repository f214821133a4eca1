//! The step: what came in, who runs, the runner, what came out. Not here: the thread, and every decision about who runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use types::FinishReason;

use crate::adapter_slots::SlotLoad;
use crate::assembly::assemble;
use crate::handle::{Clock, Message};
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;
use crate::{
    Batch, EngineConfig, EngineError, EngineHandle, EngineStats, GenerationError, ModelRunner, RunnerError,
    RunnerShape, SampledToken,
};

/// Schedules sequences onto a runner, one step at a time. Without a thread of its own: see [`crate::start`].
pub struct Engine<R: ModelRunner> {
    runner: R,
    shape: RunnerShape,
    eos_token_ids: Vec<u32>,
    inbox: mpsc::Receiver<Message<R::Adapter>>,
    aborted: bool,
    scheduler: Scheduler<R::Adapter>,
    stats: Arc<Mutex<EngineStats>>,
    tokens_generated: u64,
    steps: u64,
    // Kept from step to step for their memory.
    batch: Batch,
    /// Which running sequence each of the batch's sequences is.
    order: Vec<usize>,
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
        let (handle, inbox) = EngineHandle::new(shape, config.waiting_requests_max, Arc::clone(&stats), clock);
        let engine = Self {
            runner,
            shape,
            eos_token_ids: config.eos_token_ids,
            inbox,
            aborted: false,
            scheduler: Scheduler::new(&shape, rows_max as usize, config.running_sequences_max.max(1)),
            stats,
            tokens_generated: 0,
            steps: 0,
            batch: Batch::default(),
            order: Vec::new(),
            sampled: Vec::new(),
        };
        engine.publish();
        Ok((handle, engine))
    }

    /// One step, at this time by the clock of the handle.
    pub fn step(&mut self, now: Duration) {
        self.drain_inbox();
        self.remove_ended(now);
        let loads = self.scheduler.schedule();
        self.load_adapters(&loads);
        assemble(self.scheduler.running(), self.shape.block_tokens, &mut self.order, &mut self.batch);
        match self.run(now) {
            Ok(()) => self.post_process(now),
            Err(error) => self.fail_batch(&error),
        }
        self.fail_if_stuck(&loads);
        self.publish();
        self.check_when_idle();
    }

    /// Whether nothing runs or waits, the inbox aside.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Sleeps until there is work. False if there will never be any again: stopped, or all handles dropped.
    pub(crate) fn wait(&mut self) -> bool {
        if !self.is_idle() {
            return true;
        }
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
            Message::Arrival(arrival) => self.scheduler.add(*arrival),
            // What was sent before the inbox closed still comes out of it.
            Message::Drain => self.inbox.close(),
            Message::Abort => {
                self.inbox.close();
                self.aborted = true;
            }
        }
    }

    /// Frees the memory of those whose reader is gone and of those whose time is up, or of all if the engine ends.
    fn remove_ended(&mut self, now: Duration) {
        drop(self.scheduler.remove_where(Sequence::is_cancelled));
        for sequence in self.scheduler.remove_where(|sequence| sequence.is_expired(now)) {
            sequence.finish(FinishReason::Deadline, now);
        }
        if self.aborted {
            fail_all(self.scheduler.remove_where(|_| true), &GenerationError::Stopped);
        }
    }

    /// A failed load ends the sequences that wait for this adapter and no others.
    fn load_adapters(&mut self, loads: &[SlotLoad]) {
        for load in loads {
            if load.evicts {
                self.runner.unload_adapter(load.slot);
            }
            let loaded = match self.scheduler.adapter(load.digest) {
                Some(adapter) => self.runner.load_adapter(load.slot, &adapter),
                // All its sequences failed with another adapter of theirs; the slot must not count as loaded.
                None => Err(RunnerError::Adapter("its sequences are gone".into())),
            };
            if let Err(error) = loaded {
                fail_all(self.scheduler.remove_slot(load.slot), &GenerationError::Adapter(error.to_string()));
            }
        }
    }

    fn run(&mut self, now: Duration) -> Result<(), RunnerError> {
        self.sampled.clear();
        if self.order.is_empty() {
            return Ok(());
        }
        let running = self.scheduler.running_mut();
        running.iter_mut().filter(|sequence| sequence.planned > 0).for_each(|sequence| sequence.start(now));
        self.steps += 1;
        self.runner.step(&self.batch, &mut self.sampled)?;
        let in_vocabulary = self.sampled.iter().all(|token| token.id < self.shape.vocabulary);
        if self.sampled.len() != self.batch.samples.len() || !in_vocabulary {
            return Err(RunnerError::Failed("it drew too few or too many tokens, or unknown ones".into()));
        }
        Ok(())
    }

    /// Appends the drawn tokens to their sequences and takes out those that end.
    fn post_process(&mut self, now: Duration) {
        let tokens_max = self.shape.sequence_tokens_max();
        let mut sampled = self.sampled.drain(..);
        let running = self.scheduler.running_mut();
        for &index in &self.order {
            let Some(sequence) = running.get_mut(index) else { continue };
            let is_sampled = sequence.is_sampled();
            sequence.computed += std::mem::take(&mut sequence.planned);
            if is_sampled && let Some(token) = sampled.next() {
                self.tokens_generated += 1;
                sequence.append(token, &self.eos_token_ids, tokens_max);
            }
        }
        drop(sampled);
        for sequence in self.scheduler.remove_where(|sequence| sequence.ended.is_some()) {
            let reason = sequence.ended.unwrap_or(FinishReason::Stop);
            sequence.finish(reason, now);
        }
    }

    /// The KV of the batch's rows is lost, and with it its sequences.
    fn fail_batch(&mut self, error: &RunnerError) {
        let failed = self.scheduler.remove_where(|sequence| sequence.planned > 0);
        fail_all(failed, &GenerationError::Runner(error.to_string()));
    }

    /// A bug of the scheduler must not spin the thread or leave clients waiting.
    fn fail_if_stuck(&mut self, loads: &[SlotLoad]) {
        if self.order.is_empty() && loads.is_empty() && !self.is_idle() {
            let error = GenerationError::Runner("nothing could be scheduled; report it as a bug".into());
            fail_all(self.scheduler.remove_where(|_| true), &error);
        }
    }

    fn publish(&self) {
        let scheduler = &self.scheduler;
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.running = scheduler.started();
        stats.kv_blocks_free = scheduler.blocks().free_blocks();
        stats.kv_blocks_total = scheduler.blocks().total_blocks();
        stats.adapter_slots_used = scheduler.slots().used();
        stats.adapter_slots_total = scheduler.slots().total();
        stats.resident_adapters.clear();
        stats.resident_adapters.extend(scheduler.slots().residents());
        stats.tokens_generated = self.tokens_generated;
        stats.steps = self.steps;
        stats.preemptions = scheduler.preemptions();
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
