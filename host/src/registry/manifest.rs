//! What a version of a function is made of: its plugin, what it may use and its limits. Not here: where it is kept.

mod grants;
mod limits;
mod record;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use types::{AdapterAlias, Blame, ColdPolicy, Digest, FunctionName, PlanEntry};
use utoipa::ToSchema;

use crate::adapters::ReleasePolicy;

pub use grants::{ManifestAccess, ManifestBucket, ManifestGrants, ManifestScope, ManifestToolServer};
pub use limits::ManifestLimits;
pub use record::ManifestRecord;

/// Bytes of all text of a manifest.
pub(super) const MANIFEST_BYTES_MAX: usize = 256 << 10;
/// Adapters, templates and configuration entries of a manifest, each.
pub(super) const MANIFEST_ENTRIES_MAX: usize = 1024;

/// Why a manifest was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Neither a digest nor an alias.
    #[error("`{0}` in the manifest's adapters is neither a digest nor an alias")]
    BadAdapter(String),
    /// No function's name.
    #[error("`{0}` in the manifest's functions is no name of a function")]
    BadFunction(String),
    /// A fallback of other adapters than the manifest's, or with a weight that is no number.
    #[error("the fallback `{0}` is none of the manifest's adapters, or its weight is not finite")]
    BadFallback(String),
    /// Something that cannot be granted.
    #[error("the manifest's grants.{grant} has `{value}`: {reason}")]
    BadGrant {
        /// Which list.
        grant: &'static str,
        /// The entry.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A share of requests that is none, or no recording to keep.
    #[error("the manifest's record.{0}")]
    BadRecord(&'static str),
    /// A limit that would let the function do nothing.
    #[error("the manifest's limit {0} must be at least 1")]
    ZeroLimit(&'static str),
    /// Over a limit.
    #[error("{what} is {value}, over the limit {limit} of {max}")]
    OverLimit {
        /// What.
        what: &'static str,
        /// How much.
        value: usize,
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: usize,
    },
}

impl ManifestError {
    /// A stable word for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadAdapter(_)
            | Self::BadFunction(_)
            | Self::BadFallback(_)
            | Self::BadGrant { .. }
            | Self::BadRecord(_)
            | Self::ZeroLimit(_) => "invalid_manifest",
            Self::OverLimit { .. } => "limit_exceeded",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        Blame::Caller
    }
}

/// What is deployed. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The plugin; the tenant must have uploaded it.
    #[serde(with = "digest_text")]
    #[schema(value_type = String, pattern = "^[0-9a-fA-F]{64}$")]
    pub plugin: Digest,
    /// Adapters that the function may use: aliases (resolved at each request) or digests.
    #[serde(default)]
    pub adapters: Vec<String>,
    /// Functions of the tenant that the plugin may hand a request over to; looked up at each request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<String>,
    /// Prompt templates by name: text in which `{{ name }}` stands for an argument.
    #[serde(default)]
    pub templates: BTreeMap<String, String>,
    /// What the plugin reads through the interface `config`.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    /// What the plugin may use beside adapters; what is not named is denied.
    #[serde(default, skip_serializing_if = "ManifestGrants::is_empty")]
    pub grants: ManifestGrants,
    /// Narrower limits than the host's.
    #[serde(default)]
    pub limits: ManifestLimits,
    /// What is done when an adapter is not in memory, where the plan does not say. Left out: it is waited for until the deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold: Option<ManifestCold>,
    /// When adapters leave memory after use.
    #[serde(default, skip_serializing_if = "ManifestRelease::is_lru")]
    pub release: ManifestRelease,
    /// What becomes of what was computed when the plugin switches the composition in mid-stream.
    #[serde(default, skip_serializing_if = "ManifestSwitch::is_reuse")]
    pub switch: ManifestSwitch,
    /// Which requests are recorded, for `tenon replay`. Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<ManifestRecord>,
    /// For people.
    #[serde(default)]
    pub description: String,
}

/// What becomes of the KV of earlier tokens when the composition is switched in mid-stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManifestSwitch {
    /// It stays as it was computed.
    #[default]
    Reuse,
    /// It is computed anew under the new composition.
    Reprefill,
}

impl ManifestSwitch {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    fn is_reuse(&self) -> bool {
        *self == Self::Reuse
    }
}

/// What is done when an adapter is not in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ManifestCold {
    /// Wait for at most so many milliseconds, then answer 503 with `Retry-After`.
    WaitMs(u32),
    /// Serve the base at once; the adapter is loaded meanwhile.
    Base,
    /// Serve these adapters at once if they are in memory, else answer 503; all are loaded meanwhile.
    Fallback(Vec<ManifestFallback>),
    /// Answer 503 with `Retry-After` at once; the adapter is loaded meanwhile.
    Refuse,
}

/// One adapter of a fallback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ManifestFallback {
    /// One of the manifest's adapters.
    pub name: String,
    /// Its weight.
    #[serde(default = "one")]
    pub weight: f32,
}

const fn one() -> f32 {
    1.0
}

/// When adapters leave memory after use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ManifestRelease {
    /// When others need the room.
    #[default]
    Lru,
    /// When nobody has used them for so many milliseconds, or before.
    IdleMs(u32),
    /// As soon as nobody uses them; their memory is wiped.
    Immediate,
}

impl ManifestRelease {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    fn is_lru(&self) -> bool {
        *self == Self::Lru
    }

    /// As the adapter store knows it.
    #[must_use]
    pub fn policy(self) -> ReleasePolicy {
        match self {
            Self::Lru => ReleasePolicy::Lru,
            Self::IdleMs(time) => ReleasePolicy::Idle(Duration::from_millis(time.into())),
            Self::Immediate => ReleasePolicy::Immediate,
        }
    }
}

impl ManifestCold {
    /// As a plan would say it.
    #[must_use]
    pub fn policy(&self) -> ColdPolicy {
        match self {
            Self::WaitMs(time) => ColdPolicy::Wait(*time),
            Self::Base => ColdPolicy::Base,
            Self::Fallback(adapters) => {
                let entry = |one: &ManifestFallback| PlanEntry::whole(one.name.clone(), one.weight);
                ColdPolicy::Fallback(adapters.iter().map(entry).collect())
            }
            Self::Refuse => ColdPolicy::Refuse,
        }
    }
}

impl Manifest {
    /// A manifest that grants nothing.
    #[must_use]
    pub fn new(plugin: Digest) -> Self {
        Self {
            plugin,
            adapters: Vec::new(),
            functions: Vec::new(),
            templates: BTreeMap::new(),
            config: BTreeMap::new(),
            grants: ManifestGrants::default(),
            limits: ManifestLimits::default(),
            cold: None,
            release: ManifestRelease::default(),
            switch: ManifestSwitch::default(),
            record: None,
            description: String::new(),
        }
    }

    /// Checks what can be checked without a store.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), ManifestError> {
        let counts = [
            ("the number of adapters", self.adapters.len()),
            ("the number of functions", self.functions.len()),
            ("the number of templates", self.templates.len()),
            ("the number of configuration entries", self.config.len()),
        ];
        for (what, value) in counts {
            at_most(what, value, "manifest_entries_max", MANIFEST_ENTRIES_MAX)?;
        }
        at_most("the manifest's length in bytes", self.text_bytes(), "manifest_bytes_max", MANIFEST_BYTES_MAX)?;
        for name in &self.adapters {
            if name.parse::<Digest>().is_err() && name.parse::<AdapterAlias>().is_err() {
                return Err(ManifestError::BadAdapter(name.chars().take(96).collect()));
            }
        }
        if let Some(bad) = self.functions.iter().find(|name| name.parse::<FunctionName>().is_err()) {
            return Err(ManifestError::BadFunction(bad.chars().take(96).collect()));
        }
        if let Some(ManifestCold::Fallback(fallback)) = &self.cold {
            at_most("the number of fallback adapters", fallback.len(), "manifest_entries_max", MANIFEST_ENTRIES_MAX)?;
            let bad = fallback.iter().find(|one| !one.weight.is_finite() || !self.adapters.contains(&one.name));
            if let Some(bad) = bad {
                return Err(ManifestError::BadFallback(bad.name.chars().take(96).collect()));
            }
        }
        self.grants.check()?;
        self.record.map_or(Ok(()), ManifestRecord::check)?;
        self.limits.zero().map_or(Ok(()), |limit| Err(ManifestError::ZeroLimit(limit)))
    }

    /// Bytes of all its text.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        let maps = self.templates.iter().chain(&self.config).map(|(name, text)| name.len() + text.len());
        let adapters = self.adapters.iter().chain(&self.functions).map(String::len);
        let fallback = match &self.cold {
            Some(ManifestCold::Fallback(fallback)) => fallback.as_slice(),
            _ => &[],
        };
        maps.chain(adapters).chain(fallback.iter().map(|one| one.name.len())).sum::<usize>()
            + self.grants.text_bytes()
            + self.description.len()
            + 64
    }
}

fn at_most(what: &'static str, value: usize, limit: &'static str, max: usize) -> Result<(), ManifestError> {
    if value <= max { Ok(()) } else { Err(ManifestError::OverLimit { what, value, limit, max }) }
}

/// `types` knows no serialisation: a digest is its text.
pub(crate) mod digest_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use types::Digest;

    pub(crate) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(digest)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused() {
        let digest = Digest::of(b"plugin");
        let read = |text: String| serde_json::from_str::<Manifest>(&text);
        let manifest = read(format!(r#"{{"plugin":"{digest}","adapters":["caps"]}}"#)).expect("a manifest");
        assert_eq!(manifest, Manifest { adapters: vec!["caps".into()], ..Manifest::new(digest) });
        assert!(read(format!(r#"{{"plugin":"{digest}","adaptors":[]}}"#)).is_err());
        assert!(read(format!(r#"{{"plugin":"{digest}","limits":{{"tokens":1}}}}"#)).is_err());
        assert!(read(r#"{"plugin":"latest"}"#.to_owned()).is_err());
        assert!(read("{}".to_owned()).is_err());
    }

    #[test]
    fn cold_and_release_policies_are_read_and_written() {
        let digest = Digest::of(b"plugin");
        let read = |more: &str| {
            let text = format!(r#"{{"plugin":"{digest}","adapters":["caps","plain"],{more}}}"#);
            serde_json::from_str::<Manifest>(&text).map_err(|error| error.to_string())
        };
        for (text, cold) in [
            (r#""cold":{"wait_ms":500}"#, ManifestCold::WaitMs(500)),
            (r#""cold":"base""#, ManifestCold::Base),
            (r#""cold":"refuse""#, ManifestCold::Refuse),
            (
                r#""cold":{"fallback":[{"name":"plain"}]}"#,
                ManifestCold::Fallback(vec![ManifestFallback { name: "plain".into(), weight: 1.0 }]),
            ),
        ] {
            let manifest = read(text).expect(text);
            assert_eq!((manifest.cold.as_ref(), manifest.check()), (Some(&cold), Ok(())));
            let written = serde_json::to_string(&manifest).expect("written");
            assert_eq!(serde_json::from_str::<Manifest>(&written).expect("read again"), manifest);
        }
        for (text, release) in [
            (r#""release":"lru""#, ReleasePolicy::Lru),
            (r#""release":"immediate""#, ReleasePolicy::Immediate),
            (r#""release":{"idle_ms":250}"#, ReleasePolicy::Idle(Duration::from_millis(250))),
        ] {
            assert_eq!(read(text).expect(text).release.policy(), release);
        }
        for bad in [
            r#""cold":"wait""#,
            r#""cold":{"wait_ms":-1}"#,
            r#""cold":{"wait_ms":1,"base":null}"#,
            r#""cold":{"fallback":[{"name":"plain","scale":2}]}"#,
            r#""release":"never""#,
            r#""release":{"idle_ms":"1"}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let other = read(r#""cold":{"fallback":[{"name":"other"}]}"#).expect("read");
        assert_eq!(other.check(), Err(ManifestError::BadFallback("other".into())));
    }

    #[test]
    fn what_is_wrong_is_found() {
        let good = Manifest::new(Digest::of(b"plugin"));
        let code = |change: fn(&mut Manifest)| {
            let mut manifest = good.clone();
            change(&mut manifest);
            manifest.check().map_or_else(|error| error.code(), |()| "accepted")
        };
        assert_eq!(code(|manifest| manifest.adapters = vec!["caps".into(), "a".repeat(64)]), "accepted");
        assert_eq!(code(|manifest| manifest.adapters = vec!["../caps".into()]), "invalid_manifest");
        assert_eq!(code(|manifest| manifest.adapters = vec!["caps".into(); 1025]), "limit_exceeded");
        assert_eq!(code(|manifest| manifest.functions = vec!["other-one".into()]), "accepted");
        assert_eq!(code(|manifest| manifest.functions = vec!["../other".into()]), "invalid_manifest");
        assert_eq!(code(|manifest| manifest.functions = vec!["other".into(); 1025]), "limit_exceeded");
        assert_eq!(code(|manifest| manifest.description = "x".repeat(MANIFEST_BYTES_MAX)), "limit_exceeded");
        assert_eq!(code(|manifest| manifest.limits.output_tokens_max = Some(0)), "invalid_manifest");
    }
}
