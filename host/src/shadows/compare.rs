//! Two answers to one request, side by side: whether they are equal, and where they first differ. Not here: where they come
//! from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use types::Digest;

/// Bytes of an answer that are kept until it is compared, to say where it differs.
const COMPARED_BYTES_MAX: usize = 64 << 10;

/// Whether a shadow answered as the version did that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The same text and the same end, or the same error.
    Equal,
    /// Another one.
    Different,
    /// An error, where there was an answer or another error.
    Failed,
}

impl Verdict {
    /// A stable word.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Different => "different",
            Self::Failed => "failed",
        }
    }
}

/// Hears an answer as it is given.
#[derive(Debug)]
pub(crate) struct Listener {
    hasher: blake3::Hasher,
    bytes: u64,
    beginning: Vec<u8>,
}

/// An answer that was heard to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Of its text; a hash that nobody outside this process can make.
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) completion_tokens: u32,
    /// Why it ended; none if it failed.
    pub(crate) finish: Option<&'static str>,
    /// The code of the error that it ended with.
    pub(crate) error: Option<String>,
    /// From the request to the end.
    pub(crate) duration: Duration,
    beginning: Vec<u8>,
}

/// What was compared.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    /// The request's identifier.
    pub(crate) request_id: String,
    /// Milliseconds since 1970-01-01 UTC.
    pub(crate) time_unix_ms: u64,
    pub(crate) verdict: Verdict,
    /// The first byte of the text that differs, counted from 0; unknown beyond the first 64 KiB.
    pub(crate) differs_at_byte: Option<u64>,
    pub(crate) primary_version: u32,
    pub(crate) primary: Answer,
    pub(crate) shadow_version: u32,
    pub(crate) shadow: Answer,
}

impl Listener {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        Self { hasher: blake3::Hasher::new_keyed(secret), bytes: 0, beginning: Vec::new() }
    }

    /// More of its text.
    pub(crate) fn hear(&mut self, text: &str) {
        self.hasher.update(text.as_bytes());
        self.bytes += text.len() as u64;
        let room = COMPARED_BYTES_MAX.saturating_sub(self.beginning.len());
        self.beginning.extend(text.bytes().take(room));
    }

    /// It ended so.
    pub(crate) fn end(
        self,
        finish: Option<&'static str>,
        completion_tokens: u32,
        error: Option<String>,
        duration: Duration,
    ) -> Answer {
        let digest = Digest::from_bytes(*self.hasher.finalize().as_bytes());
        Answer { digest, bytes: self.bytes, completion_tokens, finish, error, duration, beginning: self.beginning }
    }
}

impl Answer {
    fn is_same(&self, other: &Self) -> bool {
        (self.digest, self.finish, &self.error) == (other.digest, other.finish, &other.error)
    }

    fn differs_at(&self, other: &Self) -> Option<u64> {
        if self.digest == other.digest {
            return None;
        }
        let same = self.beginning.iter().zip(&other.beginning).take_while(|(one, other)| one == other).count();
        (same < COMPARED_BYTES_MAX).then_some(same as u64)
    }
}

impl Comparison {
    /// Compares.
    pub(crate) fn new(request_id: String, primary: (u32, Answer), shadow: (u32, Answer)) -> Self {
        let ((primary_version, mut primary), (shadow_version, mut shadow)) = (primary, shadow);
        let verdict = match (primary.is_same(&shadow), &shadow.error) {
            (true, _) => Verdict::Equal,
            (false, Some(_)) => Verdict::Failed,
            (false, None) => Verdict::Different,
        };
        let differs_at_byte = primary.differs_at(&shadow);
        // Only needed until here.
        (primary.beginning, shadow.beginning) = (Vec::new(), Vec::new());
        let time_unix_ms = now_unix_ms();
        Self { request_id, time_unix_ms, verdict, differs_at_byte, primary_version, primary, shadow_version, shadow }
    }
}

pub(crate) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
