//! The threads that find out masks while a step runs: few, so that they take little from it. Not here: what a mask is made of.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use engine::TokenMask;
use llguidance::Matcher;

use super::{CompiledConstraint, ConstraintError, STACK_BYTES, caught};

/// Masks that wait for a thread; beyond that whoever asks finds out by itself.
const WAITING_MASKS_MAX: usize = 256;

/// A mask to be found out. However it ends, the mask is filled: nobody waits for ever.
pub(super) struct Job {
    compiled: Arc<CompiledConstraint>,
    matcher: Arc<Mutex<Matcher>>,
    mask: Arc<TokenMask>,
}

impl Job {
    pub(super) fn new(compiled: Arc<CompiledConstraint>, matcher: Arc<Mutex<Matcher>>, mask: Arc<TokenMask>) -> Self {
        Self { compiled, matcher, mask }
    }

    /// A panic is the end of this job alone: of no thread, and not of the engine's, which may be the one that runs it.
    fn run(self) {
        let found = caught(|| {
            let mut matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
            let mask = matcher.compute_mask_or_eos().ok();
            // Before it is told: whoever reads the mask finds nobody at the matcher.
            drop(matcher);
            mask.filter(|_| !self.compiled.is_too_large()).map(Into::into)
        });
        self.mask.fill(found.flatten());
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.mask.fill(None);
    }
}

/// Owns the threads; dropping it joins them.
pub struct MaskWorkers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl MaskWorkers {
    /// Starts this many, at least one.
    ///
    /// # Errors
    /// If there is no thread.
    pub fn start(threads: usize) -> Result<Self, ConstraintError> {
        let (jobs, waiting) = sync_channel(WAITING_MASKS_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let start = |number: usize| {
            let waiting = Arc::clone(&waiting);
            let thread = thread::Builder::new().name(format!("mask {number}")).stack_size(STACK_BYTES);
            let work = move || while next(&waiting).map(Job::run).is_some() {};
            thread.spawn(work).map_err(ConstraintError::Thread)
        };
        let threads = (0..threads.max(1)).map(start).collect::<Result<_, _>>()?;
        Ok(Self { jobs: Some(jobs), threads })
    }

    /// None: whoever asks finds out by itself. For measuring.
    #[must_use]
    pub const fn inline() -> Self {
        Self { jobs: None, threads: Vec::new() }
    }

    /// Has a mask found out by one of the threads.
    pub(super) fn find_out(&self, job: Job) {
        let Some(jobs) = &self.jobs else { return job.run() };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = jobs.try_send(job) {
            job.run();
        }
    }
}

impl Drop for MaskWorkers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // One that panicked has left no mask behind that is waited for.
            let _ = thread.join();
        }
    }
}

fn next(waiting: &Mutex<Receiver<Job>>) -> Option<Job> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
