//! One file from one URL, whole: tried again where that may help, gone on with where it ended, and never longer than its limit.
//! Not here: where a request may go (`web.rs`).
//!
//! A body that broke off is resumed by `Range` with `If-Range` (RFC 9110, 13.1.5 and 14.2), and only against a strong `ETag`: the
//! server then sends the rest of the same bytes, or all of the new ones. What is not surely the same begins anew.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::web::{Failure, Target, Web, failed, reason};
use super::{AdapterError, SourceError};

/// No wait between two attempts is longer, whatever a server asks for.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// How often a file is asked for, and how long is waited in between.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) attempts_max: u32,
    /// Before the second attempt; doubled before each one after.
    pub(super) wait_first: Duration,
}

/// A file as it is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// In messages.
    pub(super) name: &'a str,
    /// The name of the limit on its length.
    pub(super) limit: &'static str,
    pub(super) bytes_max: usize,
}

/// Fetches the file.
pub(super) async fn download(
    web: &Web,
    target: &Target,
    wanted: Wanted<'_>,
    budget: Budget,
) -> Result<Bytes, AdapterError> {
    let mut partial = Partial { web, target, wanted, received: BytesMut::new(), tag: None, total: None };
    let mut attempt = 1;
    loop {
        let (reason, not_before) = match partial.attempt().await {
            Ok(()) => return Ok(partial.received.freeze()),
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing { reason, not_before }) => (reason, not_before),
        };
        if attempt >= budget.attempts_max {
            let source_name = target.name.clone();
            return Err(SourceError::Unavailable { source_name, attempts: attempt, reason }.into());
        }
        tracing::debug!(
            source = target.name,
            file = wanted.name,
            attempt,
            reason,
            "an adapter's file is asked for again"
        );
        let wait = wait(budget.wait_first, attempt, not_before);
        tokio::time::sleep(wait).await;
        attempt += 1;
    }
}

/// Exponential, with half of it random so that many who failed together do not come back together; no less than asked for.
fn wait(first: Duration, attempt: u32, not_before: Option<Duration>) -> Duration {
    let whole = first.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(WAIT_MAX);
    let mut random = [0; 1];
    // Without randomness the wait is the longest one.
    let share = getrandom::fill(&mut random).map_or(255, |()| u32::from(u8::from_le_bytes(random)));
    let jittered = whole / 2 + whole / 2 * share / 255;
    jittered.max(not_before.unwrap_or_default().min(WAIT_MAX))
}

/// What has arrived so far.
struct Partial<'a> {
    web: &'a Web,
    target: &'a Target,
    wanted: Wanted<'a>,
    received: BytesMut,
    /// Strong, of the answer that the bytes are from.
    tag: Option<HeaderValue>,
    /// What that answer said of the file's length.
    total: Option<u64>,
}

impl Partial<'_> {
    /// Asks for what is missing and reads it. What was received stays for the next attempt.
    async fn attempt(&mut self) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        match self.tag.clone().filter(|_| !self.received.is_empty()) {
            Some(tag) => {
                let range = HeaderValue::from_str(&format!("bytes={}-", self.received.len()));
                headers.insert(RANGE, range.map_err(|_| failed(self.target, "its length is not a range"))?);
                headers.insert(IF_RANGE, tag);
            }
            None => self.begin_anew(),
        }
        let answer = self.web.get(self.target, &headers).await?;
        self.check_status(&answer)?;
        if answer.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(failed(self.target, "its answer is compressed, which was not asked for"));
        }
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            self.check_goes_on(&answer, !headers.is_empty())?;
        } else {
            self.begin_anew();
            self.tag = strong_tag(&answer);
            self.total = answer.content_length();
        }
        if self.total.is_some_and(|total| total > self.wanted.bytes_max as u64) {
            return Err(self.too_large());
        }
        self.read(answer).await
    }

    fn begin_anew(&mut self) {
        self.received.clear();
        (self.tag, self.total) = (None, None);
    }

    fn check_status(&mut self, answer: &Response) -> Result<(), Failure> {
        let source_name = self.target.name.clone();
        let status = answer.status();
        Err(match status.as_u16() {
            200 | 206 => return Ok(()),
            404 | 410 => SourceError::Missing { source_name, file: self.wanted.name.to_owned() }.into(),
            401 | 403 | 407 => SourceError::Denied { source_name }.into(),
            // The file became shorter than what was received of it.
            416 => {
                self.begin_anew();
                Failure::passing("it changed while it was fetched")
            }
            408 | 425 | 429 | 500..=599 => {
                let reason = format!("it answered with status {}", status.as_u16());
                Failure::Passing { reason, not_before: retry_after(answer) }
            }
            other => failed(self.target, &format!("it answered with status {other}")),
        })
    }

    /// Whether a partial answer is the rest of what is there; if not, the next attempt begins anew.
    fn check_goes_on(&mut self, answer: &Response, is_asked_for: bool) -> Result<(), Failure> {
        if !is_asked_for {
            return Err(failed(self.target, "it answered with a part, and the whole was asked for"));
        }
        let header = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let range = header.and_then(content_range);
        let tag = strong_tag(answer);
        let is_same = tag.is_none() || tag == self.tag;
        let goes_on = range.is_some_and(|range| {
            let is_length = self.total.is_none() || range.total.is_none() || self.total == range.total;
            range.first == self.received.len() as u64 && is_length
        });
        if is_same && goes_on {
            self.total = self.total.or(range.and_then(|range| range.total));
            return Ok(());
        }
        self.begin_anew();
        Err(Failure::passing("it changed while it was fetched"))
    }

    async fn read(&mut self, mut answer: Response) -> Result<(), Failure> {
        loop {
            let chunk = tokio::time::timeout(self.web.stall, answer.chunk()).await;
            let chunk = chunk.map_err(|_| Failure::passing("nothing more arrived in time"))?;
            let Some(chunk) = chunk.map_err(|error| Failure::passing(reason(&error)))? else { break };
            if self.received.len() + chunk.len() > self.wanted.bytes_max {
                return Err(self.too_large());
            }
            self.received.extend_from_slice(&chunk);
        }
        match self.total {
            Some(total) if total > self.received.len() as u64 => Err(Failure::passing("its answer broke off")),
            Some(total) if total < self.received.len() as u64 => {
                self.begin_anew();
                Err(Failure::passing("it sent more than it said"))
            }
            _ => Ok(()),
        }
    }

    fn too_large(&self) -> Failure {
        let Wanted { limit, bytes_max, .. } = self.wanted;
        AdapterError::OverLimit { what: "a file of the source", limit, max: bytes_max as u64 }.into()
    }
}

/// A tag that stands for the same bytes and not only for the same meaning.
fn strong_tag(answer: &Response) -> Option<HeaderValue> {
    let tag = answer.headers().get(ETAG)?;
    (tag.as_bytes().starts_with(b"\"") && tag.len() > 2).then(|| tag.clone())
}

/// Seconds; the other form, a date, is not worth a clock.
fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    total: Option<u64>,
}

/// Of a range up to the end.
fn content_range(text: &str) -> Option<ContentRange> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last && total.is_none_or(|total: u64| last < total)).then_some(ContentRange { first, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let of = |text: &str| content_range(text).map(|range| (range.first, range.total));
        assert_eq!(of("bytes 3-9/10"), Some((3, Some(10))));
        assert_eq!(of("bytes 0-0/*"), Some((0, None)));
        for bad in
            ["", "bytes", "bytes 3-9", "bytes 9-3/10", "bytes 3-10/10", "bytes */10", "items 3-9/10", "bytes -3-9/10"]
        {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn waits_grow_are_random_and_end() {
        let first = Duration::from_millis(100);
        for attempt in 1..40 {
            let whole = first.saturating_mul(1 << (attempt - 1).min(16)).min(WAIT_MAX);
            let wait = wait(first, attempt, None);
            assert!(wait >= whole / 2 && wait <= whole, "{attempt}: {wait:?}");
        }
        let asked = Duration::from_secs(3);
        assert_eq!(wait(first, 1, Some(asked)), asked);
        assert_eq!(wait(first, 1, Some(Duration::from_secs(1 << 40))), WAIT_MAX, "the server does not decide alone");
    }
}
