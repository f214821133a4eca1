//! An agent's sessions and its output as a replay has them. A session has the number that the recording gave it; what was answered to
//! it is answered once, in order, since each answer follows from those before it. Not here: how an answer is found (`answers.rs`).

use std::sync::Arc;

use async_trait::async_trait;

use super::answers::Script;
use crate::record::agent::{Begun, Stepped, Stopped, question};
use crate::{CapabilityError, GenerationBounds, GenerationSession, Generations, Opening, Output, SessionStep};

/// Opens what was opened.
pub(super) struct ScriptedGenerations(pub(super) Arc<Script>);

struct ScriptedSession {
    script: Arc<Script>,
    number: u32,
    tokens: u32,
    is_generating: bool,
}

impl ScriptedSession {
    fn boxed(script: &Arc<Script>, Begun { session, tokens }: Begun) -> Box<dyn GenerationSession> {
        Box::new(Self { script: Arc::clone(script), number: session, tokens, is_generating: false })
    }
}

#[async_trait]
impl Generations for ScriptedGenerations {
    async fn open(&self, opening: Opening) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        let begun: Begun = self.0.result(question::open(&opening))?;
        Ok(ScriptedSession::boxed(&self.0, begun))
    }
}

#[async_trait]
impl GenerationSession for ScriptedSession {
    fn tokens(&self) -> u32 {
        self.tokens
    }

    async fn append(&mut self, text: String) -> Result<(), CapabilityError> {
        self.tokens = self.script.result(question::append(self.number, &text))?;
        Ok(())
    }

    async fn start(&mut self, bounds: GenerationBounds) -> Result<u32, CapabilityError> {
        let started = self.script.result(question::start(self.number, &bounds));
        self.is_generating = started.is_ok();
        started
    }

    async fn next(&mut self) -> Result<SessionStep, CapabilityError> {
        let stepped: Result<Stepped, CapabilityError> = self.script.result(question::next(self.number));
        let step = stepped.map(|stepped| {
            self.tokens = stepped.tokens;
            SessionStep::from(stepped)
        });
        self.is_generating = matches!(step, Ok(SessionStep::Text(_)));
        step
    }

    fn stop(&mut self) -> u32 {
        if !std::mem::take(&mut self.is_generating) {
            return 0;
        }
        let none = Stopped { unread: 0, tokens: self.tokens };
        let Stopped { unread, tokens } = self.script.answer(question::stopped(self.number)).unwrap_or(none);
        self.tokens = tokens;
        unread
    }

    fn fork(&self) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        let begun: Begun = self.script.result(question::fork(self.number))?;
        Ok(Self::boxed(&self.script, begun))
    }
}

#[async_trait]
impl Output for Script {
    async fn write(&self, text: String) -> Result<(), CapabilityError> {
        // What was not written when it was recorded would have been taken.
        self.answer(question::write(&text)).unwrap_or(Ok(()))
    }
}
