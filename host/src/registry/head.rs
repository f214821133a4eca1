//! A function's head: the small record with all of its pointers, which is swapped as a whole. Not here: the store.

use serde::{Deserialize, Serialize};
use types::FunctionName;

use super::live::By;
use super::rollout::{Beside, Rollout};
use super::{ChangeKind, LiveChange, LiveHistory, RegistryError};

/// The versions `first ..= latest` exist, but for `missing`; a deleted function has none (`first` is past `latest`) and keeps its
/// numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub(super) first: u32,
    pub(super) latest: u32,
    pub(super) live: Option<u32>,
    /// Numbers below `latest` that were taken and never noted: their writers are at work still, or died. A version whose writer
    /// died was acknowledged to nobody, and must not turn up later.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    missing: Vec<u32>,
    /// Changes of the live version.
    #[serde(default)]
    pub(super) history: LiveHistory,
    /// Never the live version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) canary: Option<Rollout>,
    /// Never the live version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shadow: Option<Rollout>,
    /// All other changes, apart so that they do not push out what a rollback goes by.
    #[serde(default, skip_serializing_if = "LiveHistory::is_empty")]
    others: LiveHistory,
    /// Changes that were noted since they are counted.
    #[serde(default)]
    changes: u64,
}

impl Head {
    pub(super) fn new() -> Self {
        let (history, others) = (LiveHistory::default(), LiveHistory::default());
        let missing = Vec::new();
        Self { first: 1, latest: 0, live: None, missing, history, canary: None, shadow: None, others, changes: 0 }
    }

    /// Without versions. Its numbers are not used again.
    pub(super) fn delete(&mut self) {
        let (first, latest, changes) = (self.latest + 1, self.latest, self.changes);
        *self = Self { first, latest, changes, ..Self::new() };
    }

    pub(super) fn has(&self, version: u32) -> bool {
        self.first <= version && version <= self.latest && !self.missing.contains(&version)
    }

    pub(super) fn count(&self) -> u32 {
        (self.latest + 1).saturating_sub(self.first)
    }

    /// That a version is there and, if one is expected to be live, that it is.
    pub(super) fn expect(
        &self,
        function: &FunctionName,
        version: u32,
        expected: Option<u32>,
    ) -> Result<(), RegistryError> {
        if !self.has(version) {
            return Err(RegistryError::UnknownVersion { function: function.clone(), version });
        }
        match (expected, self.live) {
            (Some(expected), Some(live)) if expected != live => {
                Err(RegistryError::LiveChanged { function: function.clone(), expected, live })
            }
            _ => Ok(()),
        }
    }

    /// A version is complete.
    pub(super) fn note(&mut self, version: u32, by: By<'_>) {
        // Below `first`: the function was deleted in the meantime, and this version with it.
        if version < self.first {
            return;
        }
        self.missing.retain(|missing| *missing != version);
        self.missing.extend(self.latest + 1..version);
        self.latest = self.latest.max(version);
        if self.live.is_none() {
            self.set_live(version, ChangeKind::Deploy, by);
        } else {
            let deployed = self.change(ChangeKind::Deploy, None, version, None, by);
            self.others.push(deployed);
        }
    }

    /// Makes a version live that is not.
    pub(super) fn promote(&mut self, version: u32, by: By<'_>) {
        let is_earlier = self.live.is_some_and(|live| version < live);
        self.set_live(version, if is_earlier { ChangeKind::Rollback } else { ChangeKind::Promote }, by);
    }

    fn set_live(&mut self, version: u32, kind: ChangeKind, by: By<'_>) {
        let moved = self.change(kind, self.live, version, None, by);
        self.history.push(moved);
        self.live = Some(version);
        // Whatever is live has all callers, and is compared with nothing.
        for beside in [Beside::Canary, Beside::Shadow] {
            if self.beside(beside).is_some_and(|rollout| rollout.version == version) {
                self.end_beside(beside, by.key);
            }
        }
    }

    pub(super) const fn beside(&self, beside: Beside) -> Option<Rollout> {
        match beside {
            Beside::Canary => self.canary,
            Beside::Shadow => self.shadow,
        }
    }

    fn replace_beside(&mut self, beside: Beside, rollout: Option<Rollout>) -> Option<Rollout> {
        let pointer = match beside {
            Beside::Canary => &mut self.canary,
            Beside::Shadow => &mut self.shadow,
        };
        std::mem::replace(pointer, rollout)
    }

    /// Points the canary or the shadow at a version.
    pub(super) fn set_beside(&mut self, beside: Beside, rollout: Rollout, by: By<'_>) {
        let before = self.replace_beside(beside, Some(rollout));
        if before == Some(rollout) {
            return;
        }
        let from = before.map(|before| before.version);
        let set = self.change(beside.set(), from, rollout.version, Some(rollout), by);
        self.others.push(set);
    }

    /// Takes it away; what it was.
    pub(super) fn end_beside(&mut self, beside: Beside, key: &str) -> Option<Rollout> {
        let before = self.replace_beside(beside, None)?;
        let by = By { key, plugin: before.plugin };
        let ended = self.change(beside.ended(), Some(before.version), before.version, Some(before), by);
        self.others.push(ended);
        Some(before)
    }

    fn change(
        &mut self,
        kind: ChangeKind,
        from: Option<u32>,
        to: u32,
        rollout: Option<Rollout>,
        by: By<'_>,
    ) -> LiveChange {
        self.changes = self.changes.saturating_add(1);
        LiveChange {
            from,
            to,
            time_unix_ms: super::unix_ms(),
            by: by.key.to_owned(),
            kind: Some(kind),
            plugin: Some(by.plugin),
            share: rollout.map(|rollout| rollout.share),
            number: self.changes,
        }
    }

    /// Every change that is remembered, the oldest first.
    pub(super) fn all_changes(&self) -> Vec<LiveChange> {
        let mut all: Vec<_> = self.history.iter().chain(self.others.iter()).cloned().collect();
        // Stable: old records have no number and come first, in their order.
        all.sort_by_key(|change| change.number);
        all
    }
}
