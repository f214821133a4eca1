//! The thread that an engine lives on: started, asleep while there is nothing to do, stopped and joined.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::handle::{Clock, Message};
use crate::{Engine, EngineConfig, EngineError, EngineHandle, ModelRunner};

/// Owns the engine's thread. Dropping it aborts the engine and waits for the step under way.
#[derive(Debug)]
pub struct EngineThread<A> {
    /// Weak, so that the engine ends with the last handle.
    inbox: mpsc::WeakSender<Message<A>>,
    thread: Option<JoinHandle<()>>,
}

/// What [`start`] gives: the way in, and the owner of the thread.
pub type Started<A> = (EngineHandle<A>, EngineThread<A>);

/// Starts an engine on a thread of its own. `clock` gives the time since some fixed moment.
///
/// # Errors
/// If the runner's shape has no room for a sequence, or there is no thread.
pub fn start<R: ModelRunner>(
    runner: R,
    config: EngineConfig,
    clock: impl Fn() -> Duration + Send + Sync + 'static,
) -> Result<Started<R::Adapter>, EngineError> {
    let clock: Clock = Arc::new(clock);
    let (handle, mut engine) = Engine::new(runner, config, Arc::clone(&clock))?;
    let inbox = handle.inbox().downgrade();
    let run = move || {
        // After a panic the engine is only emptied and dropped.
        let ended = panic::catch_unwind(AssertUnwindSafe(|| {
            while engine.wait() {
                engine.step(clock());
            }
        }));
        if let Err(panic) = ended {
            engine.abandon();
            drop(engine);
            panic::resume_unwind(panic);
        }
    };
    let thread = thread::Builder::new().name("engine".into()).spawn(run).map_err(EngineError::Thread)?;
    Ok((handle, EngineThread { inbox, thread: Some(thread) }))
}

impl<A> EngineThread<A> {
    /// Takes no more requests, finishes those that are there, and joins the thread. Blocks for at most the longest
    /// deadline among them; drop their streams to end sooner.
    ///
    /// # Errors
    /// If the thread panicked, now or before.
    pub fn stop(mut self) -> Result<(), EngineError> {
        self.end(Message::Drain)
    }

    /// Takes no more requests, fails those that are there, and joins the thread after the step under way.
    ///
    /// # Errors
    /// If the thread panicked, now or before.
    pub fn abort(mut self) -> Result<(), EngineError> {
        self.end(Message::Abort)
    }

    /// Whether the thread has ended, well or badly.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn end(&mut self, message: Message<A>) -> Result<(), EngineError> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        if let Some(inbox) = self.inbox.upgrade() {
            // One place of the inbox is kept for this message, the only one; a closed inbox has ended already.
            let _ = inbox.try_send(message);
        }
        thread.join().map_err(|_| EngineError::Panicked)
    }
}

impl<A> Drop for EngineThread<A> {
    fn drop(&mut self) {
        let _ = self.end(Message::Abort);
    }
}
