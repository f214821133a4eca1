//! How a recording is written: a head, a line for each step, an end. Not here: what steps there are, which the sandbox makes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::PluginLimits;

/// The one version of the form.
const VERSION: u32 = 1;

/// What a recording is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingHead {
    /// The request.
    pub request: String,
    /// The function.
    pub function: String,
    /// Its version.
    pub version: u32,
    /// The digest of its plugin.
    pub plugin: String,
    /// When the instance began, in milliseconds since 1970-01-01 UTC.
    pub time_unix_ms: u64,
}

/// What an instance has without asking for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    /// Of all its randomness.
    #[serde(with = "number_text")]
    pub(crate) seed: u64,
    pub(crate) config: Vec<(String, String)>,
    pub(crate) limits: PluginLimits,
}

/// A call, a question or a return.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The host called the guest.
    Call {
        /// The function of the contract.
        call: String,
        /// By name.
        arguments: Value,
    },
    /// The guest asked the host.
    Import {
        /// What for.
        import: String,
        /// By name.
        arguments: Value,
        /// What the host answered; null if nothing came.
        result: Value,
    },
    /// The guest returned.
    Returned {
        /// The function of the contract.
        call: String,
        /// `{"Ok": …}` or `{"Err": {"code", "message"}}`.
        result: Value,
    },
}

/// A recording that was read.
#[derive(Clone, Debug)]
pub struct Recording {
    /// What it is of.
    pub head: RecordingHead,
    pub(crate) given: Given,
    /// In order.
    pub steps: Vec<Step>,
    /// Whether there is nothing that did not fit.
    pub is_whole: bool,
}

/// Why something is not a recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordingError {
    /// A line that is not what it should be.
    #[error("line {line} of the recording is not understood: {reason}")]
    Malformed {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Another form.
    #[error("the recording has version {0} of the form, and this program reads version 1")]
    Version(u32),
    /// Not to the end.
    #[error("the recording breaks off before its end: fetch it again")]
    BrokenOff,
}

#[derive(Serialize, Deserialize)]
struct HeadLine {
    tenon_recording: u32,
    #[serde(flatten)]
    head: RecordingHead,
    given: Given,
}

#[derive(Deserialize)]
struct StepLine {
    call: Option<String>,
    import: Option<String>,
    returned: Option<String>,
    end: Option<End>,
    #[serde(default)]
    arguments: Value,
    #[serde(default)]
    result: Value,
}

#[derive(Deserialize)]
struct End {
    is_whole: bool,
}

pub(super) fn head_line(head: &RecordingHead, given: &Given) -> String {
    let line = HeadLine { tenon_recording: VERSION, head: head.clone(), given: given.clone() };
    serde_json::to_string(&line).unwrap_or_default()
}

pub(super) fn end_line(steps: usize, is_whole: bool) -> String {
    format!("{}\n", json!({"end": {"steps": steps, "is_whole": is_whole}}))
}

impl Recording {
    /// Reads all that a text holds, one after the other: of a request that was handed over there is one for each function.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub fn read_all(text: &str) -> Result<Vec<Self>, RecordingError> {
        let mut found = Vec::new();
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        while let Some((index, line)) = lines.next() {
            let malformed = |error: serde_json::Error| malformed(index, error.to_string());
            let version: Value = serde_json::from_str(line).map_err(malformed)?;
            match version.get("tenon_recording").and_then(Value::as_u64) {
                Some(1) => {}
                Some(other) => return Err(RecordingError::Version(u32::try_from(other).unwrap_or(u32::MAX))),
                None => {
                    return Err(RecordingError::Malformed { line: index + 1, reason: "no `tenon_recording`".into() });
                }
            }
            let HeadLine { head, given, .. } = serde_json::from_value(version).map_err(malformed)?;
            let mut steps = Vec::new();
            let is_whole = loop {
                let (index, line) = lines.next().ok_or(RecordingError::BrokenOff)?;
                match read_step(index, line)? {
                    Ok(step) => steps.push(step),
                    Err(end) => break end.is_whole,
                }
            };
            found.push(Self { head, given, steps, is_whole });
        }
        Ok(found)
    }

    /// The limits under which it was made, with time enough: a slower machine needs more of that, and it decides nothing else.
    #[must_use]
    pub fn limits(&self) -> PluginLimits {
        const ENOUGH_MS: u64 = 120_000;
        let own = &self.given.limits;
        PluginLimits {
            start_cpu_ms_max: own.start_cpu_ms_max.max(ENOUGH_MS),
            call_cpu_ms_max: own.call_cpu_ms_max.max(ENOUGH_MS),
            request_cpu_ms_max: own.request_cpu_ms_max.max(ENOUGH_MS),
            call_wall_ms_max: own.call_wall_ms_max.max(ENOUGH_MS),
            run_cpu_ms_max: own.run_cpu_ms_max.max(ENOUGH_MS),
            run_wall_ms_max: own.run_wall_ms_max.max(ENOUGH_MS),
            compile_cpu_seconds_max: own.compile_cpu_seconds_max.max(600),
            compile_wall_ms_max: own.compile_wall_ms_max.max(600_000),
            ..own.clone()
        }
    }
}

fn malformed(index: usize, reason: String) -> RecordingError {
    RecordingError::Malformed { line: index + 1, reason }
}

fn read_step(index: usize, line: &str) -> Result<Result<Step, End>, RecordingError> {
    let line = serde_json::from_str(line).map_err(|error| malformed(index, error.to_string()))?;
    Ok(match line {
        StepLine { call: Some(call), arguments, .. } => Ok(Step::Call { call, arguments }),
        StepLine { import: Some(import), arguments, result, .. } => Ok(Step::Import { import, arguments, result }),
        StepLine { returned: Some(call), result, .. } => Ok(Step::Returned { call, result }),
        StepLine { end: Some(end), .. } => Err(end),
        _ => return Err(malformed(index, "neither a call, an import, a return nor the end".into())),
    })
}

/// Bytes as JSON: `{"text": …}` if they are text, else `{"base64": …}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Octets {
    Text(String),
    Base64(String),
}

impl From<&[u8]> for Octets {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64(super::scrub::base64(bytes)),
        }
    }
}

impl From<Octets> for Bytes {
    fn from(octets: Octets) -> Self {
        match octets {
            Octets::Text(text) => text.into(),
            // What is no base64 was not written by a recorder: there is nothing to answer with.
            Octets::Base64(text) => super::scrub::unbase64(&text).unwrap_or_default().into(),
        }
    }
}

/// A number that some readers of JSON would round.
mod number_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
