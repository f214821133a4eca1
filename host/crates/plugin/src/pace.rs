//! Which plugins' calls are so quick that they run where they are asked for, without the way to the plugin threads, which
//! takes longer than they do: 10 us where threads are awake, and 70 where a core of a virtual machine has to be woken twice. Not
//! here: what ends a call that is not quick this time, which is the epoch (`meter.rs`), and what all guests may compute (`share.rs`).
//!
//! A guest that is quick until it is trusted gains little. When the second epoch of a call ends, which is after 18 ms at most
//! (`ticker.rs`) and 26 for a start, a decision and a plan together, each of which has two epochs, it is moved to the plugin threads; and one long call in a hundred is all that keeps it here. So what guests take from threads of normal
//! priority is bounded by the tokens that the engine makes, times [`LONG_CHUNK`], and the requests that are let in, times
//! [`LONG_OPENING`], and a hundredth of those 18 and 26 ms for each. No guest runs here while all of them are over their share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// CPU time from which on a chunk, or a call before the first or after the last one, is long. One that passes takes 1 us where
/// nothing else runs, and between two steps, which leave nothing of it in any cache, 10 to 25; one in a hundred 70.
const LONG_CHUNK: Duration = Duration::from_micros(100);
/// CPU time from which on an instance's start, its decision and its plan together are long.
const LONG_OPENING: Duration = Duration::from_micros(300);
/// Calls that are looked at before the first one runs where it is asked for.
const PROBATION_CALLS: u64 = 8;
/// For each long call there must have been so many that are not.
const CALLS_PER_LONG: u64 = 100;
/// Calls that are remembered: all counts are halved then, so that no plugin saves up for more than ten long calls in a row.
const REMEMBERED_CALLS_MAX: u64 = 1000;

/// The calls of one plugin, in all of its instances.
#[derive(Debug)]
pub(crate) struct Paces {
    /// An instance's start, with the decision and the plan.
    pub(crate) opening: Pace,
    /// A post-processor's beginning and end.
    pub(crate) ends: Pace,
    /// A chunk.
    pub(crate) chunk: Pace,
}

impl Default for Paces {
    fn default() -> Self {
        Self { opening: Pace::new(LONG_OPENING), ends: Pace::new(LONG_CHUNK), chunk: Pace::new(LONG_CHUNK) }
    }
}

/// Calls of one kind.
#[derive(Debug)]
pub(crate) struct Pace {
    long_from: Duration,
    calls: AtomicU64,
    long: AtomicU64,
}

impl Pace {
    const fn new(long_from: Duration) -> Self {
        Self { long_from, calls: AtomicU64::new(0), long: AtomicU64::new(0) }
    }

    /// Whether the next call may run where it is asked for.
    pub(crate) fn is_quick(&self) -> bool {
        let (calls, long) = (self.calls.load(Ordering::Relaxed), self.long.load(Ordering::Relaxed));
        calls >= PROBATION_CALLS && long.saturating_mul(CALLS_PER_LONG) <= calls
    }

    /// Counts a call that did not end where it was asked for, whatever becomes of it.
    pub(crate) fn note_long(&self) {
        self.note(self.long_from + Duration::from_nanos(1));
    }

    /// Counts a call that used so much CPU time.
    pub(crate) fn note(&self, cpu: Duration) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if cpu > self.long_from {
            self.long.fetch_add(1, Ordering::Relaxed);
        }
        if calls >= REMEMBERED_CALLS_MAX {
            // Calls that are counted at the same moment may be lost; that changes little.
            self.calls.store(calls / 2, Ordering::Relaxed);
            self.long.store(self.long.load(Ordering::Relaxed).div_ceil(2), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = LONG_CHUNK;

    #[test]
    fn quick_after_a_probation_and_while_one_call_in_a_hundred_is_long() {
        let pace = Pace::new(LONG);
        for _ in 0..PROBATION_CALLS {
            assert!(!pace.is_quick());
            pace.note(Duration::from_micros(2));
        }
        assert!(pace.is_quick());
        pace.note(LONG + Duration::from_nanos(1));
        assert!(!pace.is_quick(), "one of nine is long");
        let needed = (0..1000).take_while(|_| {
            pace.note(LONG);
            !pace.is_quick()
        });
        assert_eq!(needed.count() as u64, CALLS_PER_LONG - PROBATION_CALLS - 2);
        pace.note(Duration::from_millis(2));
        assert!(!pace.is_quick(), "two of a hundred and one");
    }

    #[test]
    fn no_plugin_saves_up_for_many_long_calls() {
        let pace = Pace::new(LONG);
        (0..100_000).for_each(|_| pace.note(Duration::ZERO));
        assert!(pace.is_quick());
        let long = (0..1000).take_while(|_| {
            let is_quick = pace.is_quick();
            pace.note(LONG * 2);
            is_quick
        });
        assert!((1..=10).contains(&long.count()));
        (0..REMEMBERED_CALLS_MAX * 20).for_each(|_| pace.note(Duration::ZERO));
        assert!(pace.is_quick(), "what was long is forgotten in time");
    }
}
