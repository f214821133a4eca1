//! `sessions`: generations that an agent drives. Each limit of a request is counted here, before the host is asked; what a guest may
//! name is the host's to say. Not here: what a session holds.

use types::{Chunk, Prompt};
use wasmtime::component::Resource;

use crate::bindings::agent::tenon::plugin::sessions::{
    Bounds, Generated, Host, HostError, HostSession, Opening as WitOpening, Step,
};
use crate::convert::{self, error_to_wit};
use crate::meter::NestedWait;
use crate::state::InstanceState;
use crate::{CapabilityError, GenerationBounds, GenerationSession, Opening, SessionStep};

/// Bytes of text that opening a session counts as, beside its prompt.
const OPENING_BYTES: usize = 64;

/// An open session. It is counted for as long as the guest holds it.
#[allow(unreachable_pub, reason = "the generated bindings name it")]
pub struct Held {
    session: Box<dyn GenerationSession>,
    is_generating: bool,
    /// Tokens that its generation may still have, which no other may.
    reserved: u32,
    /// Tokens that its generation gave so far.
    given: u32,
}

impl Held {
    /// Ends what it generates, if it does; the tokens that another generation may have now.
    fn ended(&mut self) -> u32 {
        let unread = self.session.stop();
        self.is_generating = false;
        std::mem::take(&mut self.reserved).saturating_sub(unread)
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("is_generating", &self.is_generating).finish_non_exhaustive()
    }
}

/// What a request may generate still.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) function_calls: u32,
    sessions: u32,
    generations: u32,
    generated_tokens: u32,
    session_tokens: u32,
}

impl Left {
    pub(crate) const fn new(limits: &crate::PluginLimits) -> Self {
        Self {
            function_calls: limits.function_calls_max,
            sessions: limits.sessions_max,
            generations: limits.generations_max,
            generated_tokens: limits.generated_tokens_max,
            session_tokens: limits.session_tokens_max,
        }
    }
}

type Answer<T> = wasmtime::Result<Result<T, HostError>>;

impl Host for InstanceState {}

impl HostSession for InstanceState {
    async fn open(&mut self, opening: WitOpening) -> Answer<Resource<Held>> {
        self.count_host_call()?;
        let opening = Opening {
            prompt: convert::prompt_from_wit(opening.prompt),
            composition: convert::composition_from_wit(opening.composition),
            sampling: convert::sampling_from_wit(opening.sampling),
            stop: convert::stop_from_wit(opening.stop),
            cold: opening.cold.map(convert::cold_from_wit),
        };
        match self.opened(opening).await {
            Ok(session) => self.hold(session).map(Ok),
            Err(error) => Ok(Err(error_to_wit(error))),
        }
    }

    async fn tokens(&mut self, session: Resource<Held>) -> wasmtime::Result<u32> {
        self.count_host_call()?;
        Ok(self.table().get(&session)?.session.tokens())
    }

    async fn append(&mut self, session: Resource<Held>, text: String) -> Answer<u32> {
        self.count_host_call()?;
        if let Err(error) = self.take_tokenizer_bytes(text.len()) {
            return Ok(Err(error_to_wit(error)));
        }
        let held = self.table().get_mut(&session)?;
        if held.is_generating {
            return Ok(Err(error_to_wit(under_way())));
        }
        let appended = held.session.append(text).await;
        Ok(appended.map(|()| held.session.tokens()).map_err(error_to_wit))
    }

    async fn generate(&mut self, session: Resource<Held>, bounds: Bounds) -> Answer<Generated> {
        self.count_host_call()?;
        if let Err(error) = self.started(&session, bounds).await? {
            return Ok(Err(error_to_wit(error)));
        }
        let (mut text, mut tokens) = (String::new(), Vec::new());
        loop {
            match self.stepped(&session).await? {
                Ok(SessionStep::Text(chunk)) => {
                    let mut chunk = convert::chunk_to_wit(chunk);
                    text.push_str(&chunk.text);
                    tokens.append(&mut chunk.tokens);
                }
                Ok(SessionStep::Done(usage)) => {
                    return Ok(Ok(Generated { text, tokens, usage: convert::usage_to_wit(usage) }));
                }
                Err(error) => return Ok(Err(error_to_wit(error))),
            }
        }
    }

    async fn start(&mut self, session: Resource<Held>, bounds: Bounds) -> Answer<()> {
        self.count_host_call()?;
        Ok(self.started(&session, bounds).await?.map_err(error_to_wit))
    }

    async fn next(&mut self, session: Resource<Held>) -> Answer<Step> {
        self.count_host_call()?;
        if !self.table().get(&session)?.is_generating {
            let message = "nothing is being generated in this session; `start` it first".to_owned();
            return Ok(Err(error_to_wit(CapabilityError::Failed(message))));
        }
        Ok(match self.stepped(&session).await? {
            Ok(SessionStep::Text(chunk)) => Ok(Step::Text(convert::chunk_to_wit(chunk))),
            Ok(SessionStep::Done(usage)) => Ok(Step::Done(convert::usage_to_wit(usage))),
            Err(error) => Err(error_to_wit(error)),
        })
    }

    async fn stop(&mut self, session: Resource<Held>) -> wasmtime::Result<()> {
        self.count_host_call()?;
        let held = self.table().get_mut(&session)?;
        let back = held.ended();
        self.left.generated_tokens += back;
        Ok(())
    }

    async fn fork(&mut self, session: Resource<Held>) -> Answer<Resource<Held>> {
        self.count_host_call()?;
        if let Err(error) = self.take_session() {
            return Ok(Err(error_to_wit(error)));
        }
        let held = self.table().get(&session)?;
        let forked = if held.is_generating { Err(under_way()) } else { held.session.fork() };
        match forked {
            Ok(session) => self.hold(session).map(Ok),
            Err(error) => {
                self.left.sessions += 1;
                Ok(Err(error_to_wit(error)))
            }
        }
    }

    async fn drop(&mut self, session: Resource<Held>) -> wasmtime::Result<()> {
        let mut held = self.table().delete(session)?;
        self.left.generated_tokens += held.ended();
        self.left.sessions += 1;
        Ok(())
    }
}

impl InstanceState {
    async fn opened(&mut self, opening: Opening) -> Result<Box<dyn GenerationSession>, CapabilityError> {
        if !self.is_agent {
            let message = "generations: only a plugin of world `agent` has sessions of its own".to_owned();
            return Err(CapabilityError::Denied(message));
        }
        self.take_tokenizer_bytes(prompt_bytes(&opening.prompt))?;
        self.take_session()?;
        let opened = self.session.generations.open(opening).await;
        if opened.is_err() {
            self.left.sessions += 1;
        }
        opened
    }

    /// One that [`Self::take_session`] counted.
    fn hold(&mut self, session: Box<dyn GenerationSession>) -> wasmtime::Result<Resource<Held>> {
        Ok(self.table().push(Held { session, is_generating: false, reserved: 0, given: 0 })?)
    }

    fn take_session(&mut self) -> Result<(), CapabilityError> {
        let max = self.limits.sessions_max;
        let over = || CapabilityError::Limit(format!("sessions_max of {max} sessions at once; drop one first"));
        self.left.sessions = self.left.sessions.checked_sub(1).ok_or_else(over)?;
        Ok(())
    }

    async fn started(
        &mut self,
        session: &Resource<Held>,
        bounds: Bounds,
    ) -> wasmtime::Result<Result<(), CapabilityError>> {
        let held = self.table().get(session)?;
        if held.is_generating {
            return Ok(Err(under_way()));
        }
        let tokens = held.session.tokens();
        let asked = bounds.max_tokens;
        let left = match self.take_generation(tokens, asked) {
            Ok(left) => left,
            Err(error) => return Ok(Err(error)),
        };
        let bounds = GenerationBounds {
            max_tokens: asked,
            tokens_left: left,
            sampling: bounds.sampling.map(convert::sampling_from_wit),
            stop: bounds.stop.map(convert::stop_from_wit),
            constraint: bounds.constraint.map(convert::constraint_from_wit),
        };
        let _waiting = NestedWait::begin(&self.meter);
        let held = self.table().get_mut(session)?;
        let started = held.session.start(bounds).await;
        held.is_generating = started.is_ok();
        Ok(match started {
            Ok(granted) => {
                // Several may generate at once: what one may have is not there for another.
                let granted = granted.min(left);
                (held.reserved, held.given) = (granted, 0);
                self.left.generated_tokens = left - granted;
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    /// What may be generated at most.
    fn take_generation(&mut self, tokens: u32, asked: Option<u32>) -> Result<u32, CapabilityError> {
        let limits = &self.limits;
        let over = |limit: &str, max: u32, what: &str| CapabilityError::Limit(format!("{limit} of {max} {what}"));
        let generations = self.left.generations.checked_sub(1);
        let generations =
            generations.ok_or_else(|| over("generations_max", limits.generations_max, "generations in one request"))?;
        let session_tokens = self.left.session_tokens.checked_sub(tokens);
        let session_tokens = session_tokens
            .ok_or_else(|| over("session_tokens_max", limits.session_tokens_max, "tokens of prompts in one request"))?;
        if self.left.generated_tokens < asked.unwrap_or(1).max(1) {
            let what = "generated tokens in one request";
            return Err(over("generated_tokens_max", limits.generated_tokens_max, what));
        }
        (self.left.generations, self.left.session_tokens) = (generations, session_tokens);
        Ok(self.left.generated_tokens)
    }

    async fn stepped(&mut self, session: &Resource<Held>) -> wasmtime::Result<Result<SessionStep, CapabilityError>> {
        let waiting = NestedWait::begin(&self.meter);
        let held = self.table().get_mut(session)?;
        let step = held.session.next().await;
        held.is_generating = matches!(step, Ok(SessionStep::Text(_)));
        let back = match &step {
            Ok(SessionStep::Text(Chunk { tokens, .. })) => {
                let count = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
                held.reserved = held.reserved.saturating_sub(count);
                held.given = held.given.saturating_add(count);
                0
            }
            // Of a stop string some tokens were generated that are not given.
            Ok(SessionStep::Done(usage)) => {
                let withheld = usage.completion_tokens.saturating_sub(held.given);
                std::mem::take(&mut held.reserved).saturating_sub(withheld)
            }
            Err(_) => std::mem::take(&mut held.reserved),
        };
        drop(waiting);
        self.left.generated_tokens += back;
        Ok(step)
    }
}

/// What reading a prompt takes of the tokenizer: its text, and something for each that is opened.
fn prompt_bytes(prompt: &Prompt) -> usize {
    let text = match prompt {
        Prompt::Text(text) => text.len(),
        Prompt::Messages(messages) => messages.iter().map(|message| message.role.len() + message.content.len()).sum(),
        Prompt::Template { arguments, .. } => arguments.iter().map(|(name, value)| name.len() + value.len()).sum(),
        // A guest cannot say these.
        Prompt::Tokens(_) | Prompt::Chat(_) => 0,
    };
    text.saturating_add(OPENING_BYTES)
}

fn under_way() -> CapabilityError {
    let message = "this session generates; read it to its end with `next`, or `stop` it, first";
    CapabilityError::Failed(message.to_owned())
}
