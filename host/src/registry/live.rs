//! Which version was live when, and who made it so: what a rollback goes by. Not here: how the pointer is swapped.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Changes of one function's live version that are remembered.
pub const LIVE_CHANGES_MAX: usize = 32;

/// One change of the live version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveChange {
    /// What was live before; nothing at the first deployment.
    pub from: Option<u32>,
    /// What is live since.
    pub to: u32,
    /// When, in milliseconds since 1970-01-01 UTC.
    pub time_unix_ms: u64,
    /// The identifier of the key that asked for it.
    pub by: String,
}

/// Changes, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LiveHistory(VecDeque<LiveChange>);

impl LiveHistory {
    pub(super) fn push(&mut self, from: Option<u32>, to: u32, by: &str) {
        if self.0.len() >= LIVE_CHANGES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(LiveChange { from, to, time_unix_ms: super::unix_ms(), by: by.to_owned() });
    }

    /// The changes that are remembered.
    pub fn iter(&self) -> impl Iterator<Item = &LiveChange> {
        self.0.iter()
    }

    /// Where a rollback from this live version goes: what was live when this one became so for the first time. A rollback is
    /// no first time, so that one rollback after the other goes further back, not to and fro.
    #[must_use]
    pub fn before(&self, live: u32) -> Option<u32> {
        self.0.iter().find(|change| change.to == live)?.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(versions: &[u32]) -> LiveHistory {
        let mut history = LiveHistory::default();
        let mut from = None;
        for version in versions {
            history.push(from, *version, "key");
            from = Some(*version);
        }
        history
    }

    #[test]
    fn rollbacks_go_further_back() {
        assert_eq!(of(&[1]).before(1), None);
        assert_eq!(of(&[1, 3]).before(3), Some(1), "2 was never live");
        assert_eq!(of(&[1, 2, 3]).before(3), Some(2));
        assert_eq!(of(&[1, 2, 3, 2]).before(2), Some(1), "after one rollback, the next");
        assert_eq!(of(&[1, 3, 2]).before(2), Some(3));
        assert_eq!(of(&[]).before(1), None, "a head of before there was a history");
    }

    #[test]
    fn the_oldest_changes_are_forgotten() {
        let versions: Vec<u32> = (1..=100).collect();
        let history = of(&versions);
        assert_eq!(history.iter().count(), LIVE_CHANGES_MAX);
        assert_eq!((history.before(100), history.before(69), history.before(68)), (Some(99), Some(68), None));
    }
}
