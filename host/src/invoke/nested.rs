//! What a request did by requests of its own: noted while it runs, for its receipt. Not here: calls (`call.rs`) and generations
//! (`sessions.rs`).

use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use crate::receipt::{CallRecord, GenerationRecord};

/// Shared by all that take part in one request.
#[derive(Default)]
pub(crate) struct NestedLog {
    noted: Mutex<Noted>,
    under_way: Mutex<Vec<Weak<dyn UnderWay>>>,
}

/// What goes on beside the request's plugin, and is to be told as far as it came when the request is cut off: the plugin's threads
/// let go of it later.
pub(crate) trait UnderWay: Send + Sync {
    /// Ends it, and notes what it came to.
    fn break_off(&self);
}

/// What was noted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Noted {
    pub(crate) calls: Vec<CallRecord>,
    pub(crate) generations: Vec<GenerationRecord>,
}

impl std::fmt::Debug for NestedLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NestedLog").field("noted", &self.noted).finish_non_exhaustive()
    }
}

impl NestedLog {
    /// To be changed; never held while anything is waited for.
    pub(crate) fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has begun.
    pub(crate) fn begun(&self, one: Weak<dyn UnderWay>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|one| one.strong_count() > 0);
        under_way.push(one);
    }

    /// Ends all that goes on, so that what is noted is all that there will be.
    pub(crate) fn break_off(&self) {
        let under_way = std::mem::take(&mut *self.under_way.lock().unwrap_or_else(PoisonError::into_inner));
        under_way.iter().filter_map(Weak::upgrade).for_each(|one| one.break_off());
    }
}
