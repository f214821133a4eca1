//! The work on adapters that is under way: so many pieces at a time, each with an owner until it ends. Work that has begun
//! goes on when whoever asked has left, and keeps its permit; what still waits for one ends with its asker. Not here: what
//! the work is.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::AdapterError;

/// What may be under way, and what is.
#[derive(Clone, Debug)]
pub(super) struct Loads {
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// The right to one piece of work. It must go where the work goes: a thread that computes does not end with its asker.
#[derive(Debug)]
pub(super) struct LoadPermit {
    _permit: OwnedSemaphorePermit,
}

impl Loads {
    pub(super) fn new(loads_max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(loads_max.max(1))), tasks: TaskTracker::new() }
    }

    pub(super) async fn permit(&self) -> Result<LoadPermit, AdapterError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(lost)?;
        Ok(LoadPermit { _permit: permit })
    }

    /// Computes off the async threads. The permit comes back with the result, or is given back when nobody waits for that.
    pub(super) async fn compute<T: Send + 'static>(
        &self,
        permit: LoadPermit,
        work: impl FnOnce() -> Result<T, AdapterError> + Send + 'static,
    ) -> Result<(T, LoadPermit), AdapterError> {
        self.tasks.spawn_blocking(move || work().map(|done| (done, permit))).await.map_err(lost)?
    }

    /// Runs to its end, also if the handle is dropped.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tasks.spawn(task)
    }

    /// Whether nothing begins any more.
    pub(super) fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits for the end of what has begun; nothing begins any more.
    pub(super) async fn close(&self) {
        self.permits.close();
        self.tasks.close();
        if !self.tasks.is_empty() {
            tracing::info!(tasks = self.tasks.len(), "waiting for work on adapters");
        }
        self.tasks.wait().await;
    }
}

pub(super) fn lost(error: impl std::fmt::Display) -> AdapterError {
    AdapterError::Lost(error.to_string())
}
