//! Skeleton; being written.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::handle::{Clock, Message};
use crate::{EngineConfig, EngineError, EngineHandle, EngineStats, ModelRunner};

/// Schedules sequences onto a runner.
pub struct Engine<R: ModelRunner> {
    inbox: mpsc::Receiver<Message<R::Adapter>>,
}

impl<R: ModelRunner> Engine<R> {
    /// An engine and its first handle.
    ///
    /// # Errors
    /// If the runner's shape has no room for a sequence.
    pub fn new(runner: R, config: EngineConfig, clock: Clock) -> Result<(EngineHandle<R::Adapter>, Self), EngineError> {
        let stats = Arc::new(Mutex::new(EngineStats::default()));
        let (handle, inbox) = EngineHandle::new(runner.shape(), config.waiting_requests_max, stats, clock);
        Ok((handle, Self { inbox }))
    }

    pub(crate) fn wait(&mut self) -> bool {
        self.inbox.blocking_recv().is_some()
    }

    /// One step.
    pub fn step(&mut self, _now: Duration) {}
}
