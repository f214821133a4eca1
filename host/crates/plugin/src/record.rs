//! The recording of one request in one instance: every call of the guest, and everything that it asked the host for, in order, as
//! lines of JSON. What a guest does follows from these alone, so that `replay` can do it again without the host.
//!
//! It lies over the capabilities that the host lends (`record/lend.rs`), not over the interfaces: whatever interface a guest
//! asks through, it ends there. Randomness and configuration are not asked for but given: the head has the seed and the values.
//! A secret that was read is taken out of everything that is written (`record/scrub.rs`). Not here: where recordings are kept.

pub(crate) mod agent;
mod form;
mod lend;
mod scrub;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{PluginError, PluginLimits};
pub(crate) use form::Octets;
pub use form::{Recording, RecordingError, RecordingHead, Step};
pub(crate) use lend::{Answer, Milliseconds, Question, Reply, SentFailure, noted, question};
pub(crate) use scrub::{Scrub, placeholder};

/// Where recordings go when their instance is gone.
pub trait RecordingSink: Send + Sync {
    /// Takes a recording. Called wherever the instance is dropped, so it must not block.
    fn keep(&self, recording: Finished);
}

/// Bytes of memory that open recordings, and those on their way to the disk, may take together. The clones share it.
#[derive(Clone, Debug)]
pub struct RecordingMemory {
    taken: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// A part of that memory, given back when it is dropped.
#[derive(Debug)]
struct Claim {
    memory: RecordingMemory,
    bytes: usize,
}

impl RecordingMemory {
    /// So many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { taken: Arc::default(), bytes_max }
    }

    /// Bytes that are taken now.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Claim {
    /// Takes more, if there is so much.
    fn grow(&mut self, bytes: usize) -> bool {
        let before = self.memory.taken.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.memory.bytes_max {
            self.memory.taken.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Why a recording holds only the first steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingCut {
    /// More would have been over the limit on its bytes.
    Bytes,
    /// The host had no memory for more.
    Memory,
    /// The plugin was given a secret that is too short to be found in what follows.
    ShortSecret,
}

/// A recording that nothing is added to any more.
#[derive(Debug)]
pub struct Finished {
    /// What it is of.
    pub head: RecordingHead,
    /// Its lines.
    pub text: String,
    /// Calls, questions and returns in it.
    pub steps: u32,
    /// Why not all of them are in it, if they are not.
    pub cut: Option<RecordingCut>,
    _claim: Claim,
}

/// Writes one recording. The clones write the same one; it is finished when the last of them is gone.
#[derive(Clone)]
pub struct Recorder {
    open: Arc<Open>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("head", &self.open.head).finish_non_exhaustive()
    }
}

struct Open {
    head: RecordingHead,
    bytes_max: usize,
    sink: Option<Arc<dyn RecordingSink>>,
    state: Mutex<State>,
}

struct State {
    /// The first line; empty until the instance begins.
    begun: String,
    lines: Vec<Line>,
    bytes: usize,
    cut: Option<RecordingCut>,
    scrub: Scrub,
    claim: Claim,
}

/// A step as it is written; of a question, without what comes after `"result":`, which may be long in coming.
struct Line {
    text: String,
    result: Option<String>,
    is_question: bool,
}

/// A question that was noted, if it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked(Option<usize>);

impl Recorder {
    /// Of at most so many bytes; what would be more is left out, and the recording says so.
    #[must_use]
    pub fn new(head: RecordingHead, bytes_max: usize, memory: &RecordingMemory, sink: Arc<dyn RecordingSink>) -> Self {
        Self::open(head, bytes_max, memory, Some(sink))
    }

    /// One that is read where it is written, and goes nowhere.
    pub(crate) fn to_read(head: RecordingHead, bytes_max: usize) -> Self {
        Self::open(head, bytes_max, &RecordingMemory::new(bytes_max), None)
    }

    fn open(
        head: RecordingHead,
        bytes_max: usize,
        memory: &RecordingMemory,
        sink: Option<Arc<dyn RecordingSink>>,
    ) -> Self {
        let state = State {
            begun: String::new(),
            lines: Vec::new(),
            bytes: 0,
            cut: None,
            scrub: Scrub::default(),
            claim: Claim { memory: memory.clone(), bytes: 0 },
        };
        Self { open: Arc::new(Open { head, bytes_max, sink, state: Mutex::new(state) }) }
    }

    /// Writes the head: what the instance is given without asking. The sandbox does it when the instance begins.
    pub fn begin(&self, seed: u64, config: &[(String, String)], limits: &PluginLimits) {
        let given = form::Given { seed, config: config.to_vec(), limits: limits.clone() };
        let text = form::head_line(&self.open.head, &given);
        let mut state = self.open.lock();
        if state.fits(text.len(), self.open.bytes_max) {
            state.begun = text;
        }
    }

    /// The host calls the guest.
    pub(crate) fn called(&self, call: &str, arguments: &impl Serialize) {
        self.note(|number, scrub| {
            format!(r#"{{"n":{number},"call":{},"arguments":{}}}"#, quoted(call), scrub.json(arguments))
        });
    }

    /// The guest returned, or what it ran into.
    pub(crate) fn returned<T: Serialize>(&self, call: &str, result: Result<&T, &PluginError>) {
        let failed = |error: &PluginError| json!({"code": error.code(), "message": error.to_string()});
        let result = result.map_err(failed);
        self.note(|number, scrub| {
            format!(r#"{{"n":{number},"returned":{},"result":{}}}"#, quoted(call), scrub.json(&result))
        });
    }

    /// The guest asks the host.
    pub(crate) fn asked(&self, import: &str, arguments: &Value) -> Asked {
        let mut state = self.open.lock();
        if state.cut.is_some() {
            return Asked(None);
        }
        let arguments = state.scrub.json(arguments);
        let number = state.lines.len() + 1;
        let text = format!(r#"{{"n":{number},"import":{},"arguments":{arguments},"result":"#, quoted(import));
        let line = Line { text, result: None, is_question: true };
        Asked(state.push(line, self.open.bytes_max))
    }

    /// The host answers.
    pub(crate) fn answered(&self, asked: Asked, result: &impl Serialize) {
        let Some(index) = asked.0 else { return };
        let mut state = self.open.lock();
        if state.cut.is_some() {
            return;
        }
        let text = state.scrub.json(result);
        if !state.fits(text.len(), self.open.bytes_max) {
            return;
        }
        if let Some(line) = state.lines.get_mut(index) {
            line.result = Some(text);
        }
    }

    /// From now on, nothing that is written has this value.
    pub(crate) fn hide(&self, name: &str, value: &str) {
        let mut state = self.open.lock();
        // One of a few letters is in everything, and what stands for it would be most of the recording.
        if value.len() < scrub::VALUE_BYTES_MIN {
            state.cut.get_or_insert(RecordingCut::ShortSecret);
        }
        state.scrub.hide(name, value);
    }

    /// As it would be written.
    pub(crate) fn scrubbed(&self, value: Value) -> Value {
        self.open.lock().scrub.clean(value)
    }

    /// What is written so far.
    pub(crate) fn text(&self) -> String {
        self.open.lock().text()
    }

    fn note(&self, text: impl FnOnce(usize, &Scrub) -> String) {
        let mut state = self.open.lock();
        if state.cut.is_some() {
            return;
        }
        let text = text(state.lines.len() + 1, &state.scrub);
        state.push(Line { text, result: None, is_question: false }, self.open.bytes_max);
    }
}

impl State {
    /// Whether there is room for more; if there is not, there is none for anything that comes later.
    fn fits(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let after = self.bytes.saturating_add(bytes);
        if self.cut.is_none() && after > bytes_max {
            self.cut = Some(RecordingCut::Bytes);
        }
        if self.cut.is_none() && !self.claim.grow(bytes) {
            self.cut = Some(RecordingCut::Memory);
        }
        if self.cut.is_none() {
            self.bytes = after;
        }
        self.cut.is_none()
    }

    fn push(&mut self, line: Line, bytes_max: usize) -> Option<usize> {
        if !self.fits(line.text.len(), bytes_max) {
            return None;
        }
        self.lines.push(line);
        self.lines.len().checked_sub(1)
    }

    fn text(&self) -> String {
        let mut text = String::with_capacity(self.bytes + self.lines.len() * 8 + 64);
        text.push_str(&self.begun);
        text.push('\n');
        for line in &self.lines {
            text.push_str(&line.text);
            match &line.result {
                Some(result) => text.push_str(result),
                // The answer never came, or did not fit.
                None if line.is_question => text.push_str("null"),
                None => {}
            }
            text.push_str(if line.is_question { "}\n" } else { "\n" });
        }
        text.push_str(&form::end_line(self.lines.len(), self.cut.is_none()));
        text
    }
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(sink) = self.sink.take() else { return };
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // An instance that was never begun has nothing to tell.
        if state.begun.is_empty() {
            return;
        }
        let none = Claim { memory: state.claim.memory.clone(), bytes: 0 };
        sink.keep(Finished {
            head: self.head.clone(),
            text: state.text(),
            steps: u32::try_from(state.lines.len()).unwrap_or(u32::MAX),
            cut: state.cut,
            _claim: std::mem::replace(&mut state.claim, none),
        });
    }
}

fn quoted(name: &str) -> Value {
    name.into()
}

#[cfg(test)]
mod tests;
