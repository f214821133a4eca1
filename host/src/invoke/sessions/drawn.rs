//! What a generation of an agent has drawn: counted, charged and in the request's record, whoever ends it, the session that reads it or
//! the request that is cut off. Not here: the text of it (`sessions.rs`).

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use engine::{Activation, TokenEvent, TokenStream};
use types::{Composition, FinishReason};

use super::Means;
use crate::invoke::nested::UnderWay;
use crate::invoke::record;
use crate::receipt::AdapterUse;

/// The tokens of one generation. Dropping it cancels it.
pub(super) struct Drawn {
    means: Arc<Means>,
    /// Its record among the request's.
    place: usize,
    prompt_tokens: u32,
    composition: Composition,
    activations: Vec<Activation>,
    state: Mutex<State>,
}

struct State {
    stream: TokenStream,
    completion_tokens: u32,
    finish: Option<FinishReason>,
}

impl Drawn {
    /// What comes out of the stream, after a prompt of so many tokens.
    pub(super) fn new(
        means: &Arc<Means>,
        stream: TokenStream,
        place: usize,
        prompt_tokens: u32,
        (composition, activations): (Composition, Vec<Activation>),
    ) -> Arc<Self> {
        let state = Mutex::new(State { stream, completion_tokens: 0, finish: None });
        let means = Arc::clone(means);
        let drawn = Arc::new(Self { means, place, prompt_tokens, composition, activations, state });
        let weak: Weak<Self> = Arc::downgrade(&drawn);
        drawn.means.nested.begun(weak);
        drawn.note(&drawn.state());
        drawn
    }

    /// The engine's next event.
    pub(super) async fn next(&self) -> Option<TokenEvent> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        let mut state = self.state();
        let event = ready!(state.stream.poll_recv(context));
        match &event {
            Some(TokenEvent::Token { .. }) => {
                state.completion_tokens = state.completion_tokens.saturating_add(1);
                self.means.host.quotas.charge_tokens(&self.means.tenant, 1);
            }
            Some(TokenEvent::Finished { usage, .. }) => state.completion_tokens = usage.completion_tokens,
            Some(TokenEvent::Failed(_)) | None => {}
        }
        // Each time, so that the receipt of a request that is cut off has it.
        self.note(&state);
        Poll::Ready(event)
    }

    /// Of the prompt, and so far of the answer.
    pub(super) fn tokens(&self) -> (u32, u32) {
        (self.prompt_tokens, self.state().completion_tokens)
    }

    /// Why it ended.
    pub(super) fn finished(&self, finish: FinishReason) {
        let mut state = self.state();
        state.finish = Some(finish);
        self.note(&state);
    }

    /// Ends it. What was drawn and nobody has received counts, too; the tokens in all.
    pub(super) fn end(&self) -> u32 {
        let mut state = self.state();
        state.stream.cancel();
        let mut unread = 0;
        while let Some(event) = state.stream.try_recv() {
            unread += u32::from(matches!(event, TokenEvent::Token { .. }));
        }
        if unread > 0 {
            self.means.host.quotas.charge_tokens(&self.means.tenant, unread);
        }
        state.completion_tokens = state.completion_tokens.saturating_add(unread);
        self.note(&state);
        state.completion_tokens
    }

    /// Puts what is known into the request's record.
    fn note(&self, state: &State) {
        let end = self.prompt_tokens.saturating_add(state.completion_tokens);
        let owners = self.means.grants.adapters().owners();
        let uses = self.composition.parts().iter().map(|part| {
            let active = record::tokens_active(part, &self.activations, 0, self.prompt_tokens, end);
            AdapterUse::new(part, active).shared_by(owners.get(&part.adapter))
        });
        let uses = uses.collect();
        if let Some(noted) = self.means.nested.noted().generations.get_mut(self.place) {
            noted.composition = uses;
            noted.finish = Some(state.finish.unwrap_or(FinishReason::Cancelled));
            noted.tokens.completion = state.completion_tokens;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay for Drawn {
    fn break_off(&self) {
        self.end();
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        let completion_tokens = self.end();
        if !self.means.is_copy {
            self.means.host.metrics.tokens(self.prompt_tokens, completion_tokens);
        }
    }
}
