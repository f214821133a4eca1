//! Answers about canaries, shadows and a function's history.

use serde::Serialize;
use utoipa::ToSchema;

use super::List;
use crate::registry::{ChangeKind, LiveChange, Rollout, Share};
use crate::shadows::{Answer, Comparison, ShadowReport};

/// A version beside the live one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RolloutCard {
    version: u32,
    /// Of the callers for a canary, of the requests for a shadow.
    percent: f64,
}

impl From<&Rollout> for RolloutCard {
    fn from(rollout: &Rollout) -> Self {
        Self { version: rollout.version, percent: rollout.share.percent() }
    }
}

/// A canary that was set.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CanarySet {
    pub(crate) name: String,
    pub(crate) canary: RolloutCard,
}

/// A shadow that was set.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ShadowSet {
    pub(crate) name: String,
    pub(crate) shadow: RolloutCard,
}

/// One thing that was done to a function.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct LiveMove {
    /// What was done; null if it was done before that was noted: a change of the live version.
    #[schema(required)]
    kind: Option<ChangeKind>,
    /// What was live, canary or shadow before.
    from: Option<u32>,
    /// The version that it is about.
    to: u32,
    /// That version's plugin; null if it was not noted.
    #[schema(required, pattern = "^[0-9a-f]{64}$")]
    plugin: Option<String>,
    /// Of a canary or a shadow.
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<f64>,
    /// Milliseconds since 1970-01-01 UTC.
    time_unix_ms: u64,
    /// The identifier of the key that asked for it.
    by: String,
}

impl From<&LiveChange> for LiveMove {
    fn from(change: &LiveChange) -> Self {
        Self {
            kind: change.kind,
            from: change.from,
            to: change.to,
            plugin: change.plugin.map(|plugin| plugin.to_string()),
            percent: change.share.map(Share::percent),
            time_unix_ms: change.time_unix_ms,
            by: change.by.clone(),
        }
    }
}

/// What came of a shadow's copies. Counts begin anew with each shadow, and with the process.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ShadowAnswer {
    #[serde(flatten)]
    list: List<ComparisonCard>,
    name: String,
    /// What gets copies now.
    #[schema(required)]
    shadow: Option<RolloutCard>,
    /// The version that the counts are of; null if there were no copies.
    #[schema(required)]
    version: Option<u32>,
    /// Since when, in milliseconds since 1970-01-01 UTC.
    #[schema(required)]
    since_unix_ms: Option<u64>,
    /// Answers with the same text and end, or the same error.
    equal: u64,
    /// Other answers.
    different: u64,
    /// Errors in place of answers.
    failed: u64,
    dropped: DroppedCopies,
    /// Tokens that were computed for copies; they are in no usage.
    prompt_tokens: u64,
    completion_tokens: u64,
}

/// Requests without a comparison.
#[derive(Debug, Serialize, ToSchema)]
struct DroppedCopies {
    /// The host was busy.
    busy: u64,
    /// As many copies as may were under way.
    under_way: u64,
    /// The copy took too long, or the host stopped.
    cut_off: u64,
}

/// Two answers to one request.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ComparisonCard {
    /// The request's identifier.
    request: String,
    /// Milliseconds since 1970-01-01 UTC.
    time_unix_ms: u64,
    /// `equal`, `different` or `failed`.
    verdict: &'static str,
    /// The first byte of the text that differs, from 0; null if none does in the first 64 KiB.
    #[schema(required)]
    differs_at_byte: Option<u64>,
    /// What the caller was answered.
    primary: AnswerCard,
    /// What the shadow would have answered.
    shadow: AnswerCard,
}

/// One of two answers.
#[derive(Debug, Serialize, ToSchema)]
struct AnswerCard {
    version: u32,
    /// Of the text, to be compared with others of this process; it cannot be computed outside.
    #[schema(pattern = "^[0-9a-f]{64}$")]
    digest: String,
    bytes: u64,
    completion_tokens: u32,
    #[schema(required)]
    finish_reason: Option<&'static str>,
    /// The error's code.
    #[schema(required)]
    error: Option<String>,
    duration_ms: f64,
}

impl ShadowAnswer {
    /// What is known; the report's version is 0 if there is none.
    pub(crate) fn new(name: String, shadow: Option<&Rollout>, report: &ShadowReport) -> Self {
        let known = report.version > 0;
        Self {
            list: List::new(report.comparisons.iter().map(ComparisonCard::from).collect()),
            name,
            shadow: shadow.map(RolloutCard::from),
            version: known.then_some(report.version),
            since_unix_ms: known.then_some(report.since_unix_ms),
            equal: report.equal,
            different: report.different,
            failed: report.failed,
            dropped: DroppedCopies {
                busy: report.dropped_busy,
                under_way: report.dropped_under_way,
                cut_off: report.dropped_cut_off,
            },
            prompt_tokens: report.prompt_tokens,
            completion_tokens: report.completion_tokens,
        }
    }
}

impl From<&Comparison> for ComparisonCard {
    fn from(comparison: &Comparison) -> Self {
        Self {
            request: comparison.request_id.clone(),
            time_unix_ms: comparison.time_unix_ms,
            verdict: comparison.verdict.name(),
            differs_at_byte: comparison.differs_at_byte,
            primary: AnswerCard::new(comparison.primary_version, &comparison.primary),
            shadow: AnswerCard::new(comparison.shadow_version, &comparison.shadow),
        }
    }
}

impl AnswerCard {
    fn new(version: u32, answer: &Answer) -> Self {
        Self {
            version,
            digest: answer.digest.to_string(),
            bytes: answer.bytes,
            completion_tokens: answer.completion_tokens,
            finish_reason: answer.finish,
            error: answer.error.clone(),
            duration_ms: (answer.duration.as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}
