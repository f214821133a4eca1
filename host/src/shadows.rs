//! Copies of requests that a function's shadow version gets: how many may be under way, and what came of comparing their answers
//! with those that were sent. Not here: how a copy is made and run (`invoke/copy.rs`).
//!
//! Reports lie in memory, bounded like logs: digests, counts and where answers begin to differ, no text. The digests are keyed
//! with a secret of this process, so that whoever may read a report cannot try out what was answered. A report is of one shadow
//! version; the next one begins anew.

mod compare;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{FunctionName, TenantId};

use crate::error::Error;
pub(crate) use compare::{Answer, Comparison, Listener, Verdict, now_unix_ms};

/// Copies that run at once.
const COPIES_MAX: usize = 2;
/// Comparisons that are remembered of a function.
const COMPARISONS_MAX: usize = 32;
/// Functions with a report.
const REPORTS_MAX: usize = 1024;

/// Whose copies.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ShadowOwner {
    pub(crate) tenant: TenantId,
    pub(crate) function: FunctionName,
    /// As [`crate::registry::FunctionVersion::life`]: a successor of the name has a report of its own.
    pub(crate) life: u32,
}

/// Why there was no copy, or no comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The host had other things to do.
    Busy,
    /// As many copies as may were under way.
    UnderWay,
    /// The host stopped, or it took too long.
    CutOff,
}

/// What came of a shadow's copies.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShadowReport {
    /// The version that got them.
    pub(crate) version: u32,
    /// When the first one was sent, in milliseconds since 1970-01-01 UTC.
    pub(crate) since_unix_ms: u64,
    pub(crate) equal: u64,
    pub(crate) different: u64,
    pub(crate) failed: u64,
    pub(crate) dropped_busy: u64,
    pub(crate) dropped_under_way: u64,
    pub(crate) dropped_cut_off: u64,
    /// Computed for copies; in nobody's usage.
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// The last ones, the oldest first.
    pub(crate) comparisons: VecDeque<Comparison>,
    /// Which report was added to last, when one has to go.
    touched: u64,
}

#[derive(Debug, Default)]
struct Reports {
    by_owner: HashMap<ShadowOwner, ShadowReport>,
    touches: u64,
}

/// Everything about shadows that a host has one of.
pub(crate) struct Shadows {
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    secret: [u8; 32],
    reports: Mutex<Reports>,
}

impl Shadows {
    /// Without copies yet.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(crate) fn new() -> Result<Self, Error> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| Error::Internal(format!("no randomness: {error}")))?;
        Ok(Self {
            permits: Arc::new(Semaphore::new(COPIES_MAX)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            secret,
            reports: Mutex::default(),
        })
    }

    /// Listens to an answer, to compare it.
    pub(crate) fn listener(&self) -> Listener {
        Listener::new(&self.secret)
    }

    /// A place among the copies under way, if there is one.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_owned().ok()
    }

    /// Runs a copy until it ends or the host does; `cut_off` is called in the second case.
    pub(crate) fn spawn(
        &self,
        copy: impl Future<Output = ()> + Send + 'static,
        cut_off: impl FnOnce() + Send + 'static,
    ) {
        let stop = self.stop.clone();
        drop(self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => cut_off(),
                () = copy => {}
            }
        }));
    }

    /// Counts a copy that there was not, or that came to nothing; it would have begun, or began, at this time.
    pub(crate) fn count_dropped(&self, owner: &ShadowOwner, version: u32, begun_unix_ms: u64, why: Dropped) {
        self.with_report(owner, version, begun_unix_ms, |report| match why {
            Dropped::Busy => report.dropped_busy += 1,
            Dropped::UnderWay => report.dropped_under_way += 1,
            Dropped::CutOff => report.dropped_cut_off += 1,
        });
    }

    /// Keeps a comparison with a copy that began at this time.
    pub(crate) fn note(&self, owner: &ShadowOwner, prompt_tokens: u32, begun_unix_ms: u64, comparison: Comparison) {
        self.with_report(owner, comparison.shadow_version, begun_unix_ms, |report| {
            match comparison.verdict {
                Verdict::Equal => report.equal += 1,
                Verdict::Different => report.different += 1,
                Verdict::Failed => report.failed += 1,
            }
            report.prompt_tokens += u64::from(prompt_tokens);
            report.completion_tokens += u64::from(comparison.shadow.completion_tokens);
            if report.comparisons.len() >= COMPARISONS_MAX {
                report.comparisons.pop_front();
            }
            report.comparisons.push_back(comparison);
        });
    }

    /// What came of a function's copies; `None` if there were none yet.
    pub(crate) fn report(&self, owner: &ShadowOwner) -> Option<ShadowReport> {
        self.lock().by_owner.get(owner).cloned()
    }

    /// Forgets a function that was deleted.
    pub(crate) fn remove(&self, tenant: &TenantId, function: &FunctionName) {
        self.lock().by_owner.retain(|owner, _| owner.tenant != *tenant || owner.function != *function);
    }

    /// Cuts off what is under way and waits until it is gone: nobody is waiting for it.
    pub(crate) async fn close(&self) {
        self.permits.close();
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Changes a version's report, and begins it if another version has one; but not for a copy from before that one's.
    fn with_report(
        &self,
        owner: &ShadowOwner,
        version: u32,
        begun_unix_ms: u64,
        change: impl FnOnce(&mut ShadowReport),
    ) {
        let mut reports = self.lock();
        reports.touches += 1;
        let touched = reports.touches;
        if !reports.by_owner.contains_key(owner) && reports.by_owner.len() >= REPORTS_MAX {
            let oldest = reports.by_owner.iter().min_by_key(|(_, report)| report.touched);
            if let Some(oldest) = oldest.map(|(owner, _)| owner.clone()) {
                reports.by_owner.remove(&oldest);
            }
        }
        let report = reports.by_owner.entry(owner.clone()).or_default();
        if report.version != version {
            if begun_unix_ms < report.since_unix_ms {
                return;
            }
            *report = ShadowReport { version, since_unix_ms: begun_unix_ms, ..ShadowReport::default() };
        }
        report.touched = touched;
        change(report);
    }

    fn lock(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
