//! What was done to a function and by whom: which version was live when (what a rollback goes by), deployments, canaries and
//! shadows. Not here: how the pointers are swapped.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use types::Digest;
use utoipa::ToSchema;

use super::rollout::Share;

/// Changes of one function's live version that are remembered; and as many of everything else.
pub const LIVE_CHANGES_MAX: usize = 32;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// A version was added; the first one became live.
    Deploy,
    /// A later version became live.
    Promote,
    /// An earlier version became live.
    Rollback,
    /// A version got a share of the callers.
    CanarySet,
    /// It has none any more.
    CanaryEnded,
    /// A version got copies of requests.
    ShadowSet,
    /// It gets none any more.
    ShadowEnded,
}

/// On whose behalf a version is pointed at, and what is behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct By<'a> {
    /// The identifier of the key that asked for it.
    pub(super) key: &'a str,
    /// The plugin of the version.
    pub(super) plugin: Digest,
}

/// One change. Those that were noted before there were kinds are changes of the live version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveChange {
    /// What the pointer was at before; nothing at the first deployment, and where there was no pointer.
    pub from: Option<u32>,
    /// The version that it is about.
    pub to: u32,
    /// When, in milliseconds since 1970-01-01 UTC.
    pub time_unix_ms: u64,
    /// The identifier of the key that asked for it.
    pub by: String,
    /// What was done; not noted in old records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<ChangeKind>,
    /// The plugin of that version; not noted in old records.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional_digest")]
    pub plugin: Option<Digest>,
    /// How many callers or requests, of canaries and shadows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
    /// Counts the changes of a function from 1; 0 in old records, which came before all others.
    #[serde(default)]
    pub number: u64,
}

/// Changes, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LiveHistory(VecDeque<LiveChange>);

impl LiveHistory {
    pub(super) fn push(&mut self, change: LiveChange) {
        if self.0.len() >= LIVE_CHANGES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(change);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
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

/// `types` knows no serialisation: a digest is its text.
mod optional_digest {
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use types::Digest;

    #[expect(clippy::ref_option, reason = "serde asks for a reference")]
    pub(super) fn serialize<S: Serializer>(digest: &Option<Digest>, serializer: S) -> Result<S::Ok, S::Error> {
        match digest {
            Some(digest) => serializer.collect_str(digest),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Digest>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(versions: &[u32]) -> LiveHistory {
        let mut history = LiveHistory::default();
        let mut from = None;
        for to in versions {
            history.push(LiveChange {
                from,
                to: *to,
                time_unix_ms: 1,
                by: "key".into(),
                kind: Some(ChangeKind::Promote),
                plugin: Some(Digest::of(b"plugin")),
                share: None,
                number: 1,
            });
            from = Some(*to);
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

    #[test]
    fn records_of_before_there_were_kinds_are_read() {
        let old =
            r#"[{"from":null,"to":1,"time_unix_ms":5,"by":"key_1"},{"from":1,"to":2,"time_unix_ms":6,"by":"key_2"}]"#;
        let history: LiveHistory = serde_json::from_str(old).expect("an old record");
        assert_eq!(history.before(2), Some(1));
        let last = history.iter().last().expect("two");
        assert_eq!((last.kind, last.plugin, last.number), (None, None, 0));
        let written = serde_json::to_string(&of(&[1, 2])).expect("written");
        assert_eq!(serde_json::from_str::<LiveHistory>(&written).expect("read again"), of(&[1, 2]));
    }
}
