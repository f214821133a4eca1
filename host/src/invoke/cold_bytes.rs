//! Bytes of adapters that a function's request has had loaded, whoever asked for them: its plans, its generations, and its plugin's
//! hints, which count although nobody waits for them. Not here: how an adapter is loaded (`adapters/leases.rs`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use types::{Digest, PlanError};

/// What all of a request's parts have had loaded together, against `cold_bytes_max`. The clones share it.
#[derive(Clone, Debug)]
pub(crate) struct ColdBytes {
    max: u64,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    /// Counted when they were hinted at, and not asked for since.
    ahead: BTreeSet<Digest>,
}

impl ColdBytes {
    /// At most so many, in the form that is stored.
    pub(crate) fn new(max: u64) -> Self {
        Self { max, state: Arc::default() }
    }

    /// Counts what a plan would have loaded, each with its size: what it uses and is not in memory, and what it hints at. What was
    /// hinted at before was counted then.
    ///
    /// # Errors
    /// [`PlanError::OverLimit`]; then nothing was counted.
    pub(crate) fn take(&self, used: &[(Digest, u64)], hinted: &[(Digest, u64)]) -> Result<(), PlanError> {
        let mut state = self.state();
        let ahead = state.ahead.clone();
        let used_now = used.iter().filter(|(digest, _)| !ahead.contains(digest));
        let is_new = |digest: &Digest| !ahead.contains(digest) && !used.iter().any(|(other, _)| other == digest);
        let hinted: BTreeSet<_> = hinted.iter().filter(|(digest, _)| is_new(digest)).collect();
        let added = used_now.chain(hinted.iter().copied()).map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
        let bytes = state.bytes.saturating_add(added);
        // What is in memory costs nothing, whatever was loaded before.
        if added > 0 && bytes > self.max {
            return Err(PlanError::OverLimit {
                what: "the adapters to be loaded, in bytes,",
                value: bytes.to_string(),
                limit: "cold_bytes_max",
                max: self.max.to_string(),
            });
        }
        state.bytes = bytes;
        state.ahead.extend(hinted.iter().map(|(digest, _)| *digest));
        used.iter().for_each(|(digest, _)| {
            state.ahead.remove(digest);
        });
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_count_once_and_with_what_is_used() {
        let (a, b, c) = ((Digest::of(b"a"), 60), (Digest::of(b"b"), 30), (Digest::of(b"c"), 20));
        let bytes = ColdBytes::new(100);
        bytes.take(&[], &[a]).expect("60");
        bytes.take(&[], &[a]).expect("the same, on its way still");
        bytes.take(&[a], &[b, b]).expect("90: it was counted when it was hinted at");
        let error = bytes.clone().take(&[], &[c]).expect_err("110");
        assert!(matches!(error, PlanError::OverLimit { limit: "cold_bytes_max", .. }), "{error}");
        bytes.take(&[b], &[]).expect("hinted at before");
        bytes.take(&[b], &[]).expect_err("it had to be loaded again: 120");
        bytes.take(&[], &[]).expect("nothing");
        let nothing = ColdBytes::new(0);
        nothing.take(&[], &[]).expect("what is in memory costs nothing");
        nothing.take(&[], &[a]).expect_err("a plugin that only hints meets it too");
    }
}
