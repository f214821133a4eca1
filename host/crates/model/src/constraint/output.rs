//! Where one output stands in its constraint. Not here: the thread that finds out what may follow.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use engine::{OutputConstraint, OutputState, TokenMask};
use llguidance::Matcher;
use llguidance::api::StopReason;

use super::workers::Job;
use super::{CompiledConstraint, MaskWorkers, TOO_LARGE, caught, told};

pub(super) struct Output {
    compiled: Arc<CompiledConstraint>,
    /// Nobody else has it but the worker that finds out a mask, before that is read.
    matcher: Arc<Mutex<Matcher>>,
    /// What may come first, while nothing came.
    first: Option<Arc<TokenMask>>,
    /// What was asked for last, if somebody has to find it out.
    asked: Option<Arc<TokenMask>>,
    workers: Arc<MaskWorkers>,
}

impl Output {
    pub(super) fn new(
        compiled: Arc<CompiledConstraint>,
        matcher: Matcher,
        first: Option<Arc<TokenMask>>,
        workers: Arc<MaskWorkers>,
    ) -> Self {
        Self { compiled, matcher: Arc::new(Mutex::new(matcher)), first, asked: None, workers }
    }
}

impl OutputConstraint for Output {
    fn mask(&mut self) -> Arc<TokenMask> {
        if let Some(first) = self.first.take() {
            return first;
        }
        let mask = Arc::new(TokenMask::default());
        self.asked = Some(Arc::clone(&mask));
        let job = Job::new(Arc::clone(&self.compiled), Arc::clone(&self.matcher), Arc::clone(&mask));
        self.workers.find_out(job);
        mask
    }

    fn push(&mut self, id: u32) -> Result<OutputState, String> {
        self.first = None;
        let is_lost = self.asked.take().is_some_and(|mask| mask.wait().is_none());
        let mut matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner);
        // Complete before this token: only one that ends the sequence was allowed.
        if !is_lost && matches!(matcher.stop_reason(), StopReason::NoExtension | StopReason::EndOfSentence) {
            return Ok(OutputState::Complete);
        }
        let pushed = caught(|| matcher.consume_token(id));
        match pushed {
            Some(Ok(())) if !is_lost => match matcher.stop_reason() {
                StopReason::NotStopped => Ok(OutputState::Open),
                _ => Ok(OutputState::Complete),
            },
            // Others have the same lexer: what it could not do for this one it cannot do for them.
            Some(Err(error)) => {
                self.compiled.set_broken();
                Err(told(&error))
            }
            Some(Ok(())) => {
                self.compiled.set_broken();
                Err(TOO_LARGE.to_owned())
            }
            None => {
                self.compiled.set_broken();
                Err("it is of no use any more; try again".to_owned())
            }
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").finish_non_exhaustive()
    }
}
