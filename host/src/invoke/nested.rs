//! What a request did by requests of its own: noted while it runs, for its receipt. Not here: calls (`call.rs`) and generations
//! (`sessions.rs`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::receipt::{CallRecord, GenerationRecord};

/// Shared by all that take part in one request.
#[derive(Debug, Default)]
pub(crate) struct NestedLog(Mutex<Noted>);

/// What was noted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    pub(crate) calls: Vec<CallRecord>,
    pub(crate) generations: Vec<GenerationRecord>,
}

impl NestedLog {
    /// To be changed; never held while anything is waited for.
    pub(crate) fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
