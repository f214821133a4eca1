//! Sessions and other functions as the harness has them: what they say was put in by the test. Not here: limits.

use std::cell::RefCell;

use super::STATE;
use crate::agent::{Bounds, Generated, Opening, Step};
use crate::{Chunk, FinishReason, HostError, Prompt, Reply, Token, Usage};

/// What one generation says: text, and the log-probability of each of its tokens.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) logprob: f32,
}

/// Holds text; each character counts as a token.
#[derive(Debug)]
pub(crate) struct Session {
    held: RefCell<String>,
    under_way: RefCell<Option<Vec<Step>>>,
}

impl Session {
    pub(crate) fn open(opening: &Opening) -> Result<Self, HostError> {
        let text = match &opening.prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Messages(messages) => messages.iter().map(|message| message.content.as_str()).collect(),
            Prompt::Template(template) => template.name.clone(),
        };
        let granted = STATE.with_borrow(|state| state.adapters.clone());
        for entry in &opening.composition {
            if !granted.iter().any(|adapter| adapter.alias == entry.adapter) {
                return Err(HostError::Denied(format!("the adapter `{}`", entry.adapter)));
            }
        }
        Ok(Self { held: RefCell::new(text), under_way: RefCell::default() })
    }

    pub(crate) fn tokens(&self) -> u32 {
        u32::try_from(self.held.borrow().chars().count()).unwrap_or(u32::MAX)
    }

    pub(crate) fn append(&self, text: &str) -> Result<u32, HostError> {
        self.held.borrow_mut().push_str(text);
        Ok(self.tokens())
    }

    pub(crate) fn generate(&self, bounds: &Bounds) -> Result<Generated, HostError> {
        self.start(bounds)?;
        let (mut text, mut tokens) = (String::new(), Vec::new());
        loop {
            match self.next()? {
                Step::Text(mut chunk) => {
                    text.push_str(&chunk.text);
                    tokens.append(&mut chunk.tokens);
                }
                Step::Done(usage) => return Ok(Generated { text, tokens, usage }),
            }
        }
    }

    pub(crate) fn start(&self, bounds: &Bounds) -> Result<(), HostError> {
        let said = STATE.with_borrow_mut(|state| {
            state.prompts.push(self.held.borrow().clone());
            if state.said.is_empty() { None } else { Some(state.said.remove(0)) }
        });
        let said =
            said.ok_or_else(|| HostError::Failed("the test has no more to say; see `Harness::says`".to_owned()))?;
        let max = bounds.max_tokens.map_or(usize::MAX, |max| max as usize);
        let text: String = said.text.chars().take(max).collect();
        let is_cut = text.len() < said.text.len();
        let usage = Usage {
            prompt_tokens: self.tokens(),
            completion_tokens: u32::try_from(text.chars().count()).unwrap_or(u32::MAX),
            finish: if is_cut { FinishReason::Length } else { FinishReason::Stop },
        };
        let tokens = text.chars().map(|char| Token { id: u32::from(char), logprob: Some(said.logprob) }).collect();
        *self.under_way.borrow_mut() = Some(vec![Step::Text(Chunk { text, tokens }), Step::Done(usage)]);
        Ok(())
    }

    pub(crate) fn next(&self) -> Result<Step, HostError> {
        let mut under_way = self.under_way.borrow_mut();
        let steps = under_way.as_mut().filter(|steps| !steps.is_empty());
        let step = steps.ok_or_else(|| HostError::Failed("nothing is being generated".to_owned()))?.remove(0);
        if let Step::Text(chunk) = &step {
            self.held.borrow_mut().push_str(&chunk.text);
        }
        Ok(step)
    }

    pub(crate) fn stop(&self) {
        *self.under_way.borrow_mut() = None;
    }

    pub(crate) fn fork(&self) -> Result<Self, HostError> {
        Ok(Self { held: RefCell::new(self.held.borrow().clone()), under_way: RefCell::default() })
    }
}

pub(crate) fn write(text: &str) -> Result<(), HostError> {
    STATE.with_borrow_mut(|state| state.written.push_str(text));
    Ok(())
}

/// What the functions of the test answer.
pub(crate) fn call(function: &str, asked: String) -> Result<Reply, HostError> {
    STATE.with_borrow_mut(|state| {
        state.calls.push((function.to_owned(), asked));
        let found = state.replies.iter().find(|(name, _)| name == function);
        let text = found.map(|(_, text)| text.clone());
        let denied =
            || HostError::Denied(format!("the function `{function}`: the manifest's grants.calls does not name it"));
        let usage = Usage { prompt_tokens: 1, completion_tokens: 1, finish: FinishReason::Stop };
        Ok(Reply {
            text: text.ok_or_else(denied)?,
            function: function.to_owned(),
            version: 1,
            usage,
            metadata: Vec::new(),
            receipt: String::new(),
        })
    })
}
