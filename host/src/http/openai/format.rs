//! The objects of OpenAI's API: completions and chat completions, whole and in chunks, with their choices and usage. Not
//! here: log-probabilities, which are `logprobs.rs`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use types::{FinishReason, Usage};

use super::logprobs::{self, TextOffset};
use crate::host::Host;
use crate::http::invoke::{adapters, usage};
use crate::http::stream::{Format, Whole};
use crate::http::wire::CommonBody;
use crate::invoke::{Ended, Head, TokenOut};

/// Which of the two APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// Writes generations in OpenAI's shape. Choices of the same prompt are neighbours.
pub(crate) struct OpenAiFormat {
    kind: Kind,
    host: Arc<Host>,
    model: String,
    created: u64,
    /// Choices of each prompt.
    choices: usize,
    logprobs: bool,
    token_ids: bool,
    include_usage: bool,
    request_id: String,
    /// Of each choice: what is sent before its text.
    echoes: Vec<String>,
    /// Of each choice of a completion with log-probabilities, and so without an echo: where its text has come to.
    offsets: Vec<TextOffset>,
    usage: Usage,
}

impl OpenAiFormat {
    pub(crate) fn new(
        kind: Kind,
        host: Arc<Host>,
        common: &CommonBody,
        choices: u32,
        logprobs: bool,
        echoes: Vec<String>,
    ) -> Self {
        let counted = if logprobs && kind == Kind::Completion { echoes.len() } else { 0 };
        let offset = || TextOffset::new(host.base.tokenizer().decoder());
        Self {
            kind,
            model: common.model.clone(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            choices: choices as usize,
            logprobs,
            token_ids: common.return_token_ids,
            include_usage: common.include_usage(),
            request_id: String::new(),
            offsets: std::iter::repeat_with(offset).take(counted).collect(),
            echoes,
            host,
            usage: Usage::default(),
        }
    }

    /// The whole answer as one object.
    pub(crate) fn whole(mut self, wholes: Vec<Whole>) -> Value {
        let first = wholes.first().map(|whole| Arc::clone(&whole.head));
        self.request_id = first.as_ref().map(|head| head.request_id.clone()).unwrap_or_default();
        let choices = wholes.into_iter().enumerate().map(|(index, whole)| self.whole_choice(index, whole)).collect();
        let object = if self.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
        let mut value = self.envelope(object, choices);
        set(&mut value, "usage", usage(self.usage));
        set(&mut value, "adapters", first.map_or(Value::Null, |head| adapters(&head.adapters)));
        value
    }

    fn whole_choice(&mut self, index: usize, whole: Whole) -> Value {
        let Whole { head, text, tokens, ended } = whole;
        self.count(index, &ended);
        let logprobs = self.logprobs(index, &tokens);
        let mut choice = json!({"index": index, "logprobs": logprobs, "finish_reason": finish(ended.reason)});
        match self.kind {
            Kind::Chat => set(&mut choice, "message", json!({"role": "assistant", "content": text, "refusal": null})),
            Kind::Completion => set(&mut choice, "text", (self.take_echo(index) + &text).into()),
        }
        if self.token_ids {
            set(&mut choice, "token_ids", ids(&tokens));
            set(&mut choice, "prompt_token_ids", json!(head.prompt_tokens));
        }
        set(&mut choice, "receipt", head.receipt_id.as_str().into());
        choice
    }

    /// Tokens of a prompt count once, however many choices it has.
    fn count(&mut self, index: usize, ended: &Ended) {
        let Usage { prompt_tokens, completion_tokens } = ended.usage;
        if index.is_multiple_of(self.choices.max(1)) {
            self.usage.prompt_tokens = self.usage.prompt_tokens.saturating_add(prompt_tokens);
        }
        self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(completion_tokens);
    }

    fn take_echo(&mut self, index: usize) -> String {
        self.echoes.get_mut(index).map(std::mem::take).unwrap_or_default()
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.request_id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    /// A chunk; where usage was asked for, all but the last say that it is not known yet.
    fn chunk(&self, choices: Vec<Value>) -> Value {
        let object = if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = self.envelope(object, choices);
        if self.include_usage {
            set(&mut chunk, "usage", Value::Null);
        }
        chunk
    }

    fn choice(&self, index: usize, text: Option<String>, logprobs: Value, reason: Option<FinishReason>) -> Value {
        let mut choice = json!({"index": index, "logprobs": logprobs, "finish_reason": reason.map(finish)});
        match (self.kind, text) {
            (Kind::Chat, Some(text)) => set(&mut choice, "delta", json!({"content": text})),
            (Kind::Chat, None) => set(&mut choice, "delta", json!({})),
            (Kind::Completion, text) => set(&mut choice, "text", text.unwrap_or_default().into()),
        }
        choice
    }

    fn logprobs(&mut self, index: usize, tokens: &[TokenOut]) -> Value {
        let tokenizer = self.host.base.tokenizer();
        match (self.kind, self.offsets.get_mut(index)) {
            (Kind::Chat, _) if self.logprobs => logprobs::of_chat(tokenizer, tokens),
            (Kind::Completion, Some(offset)) => logprobs::of_completion(tokenizer, offset, tokens),
            _ => Value::Null,
        }
    }
}

impl Format for OpenAiFormat {
    fn begin(&mut self, heads: &[Arc<Head>]) -> Vec<Value> {
        self.request_id = heads.first().map(|head| head.request_id.clone()).unwrap_or_default();
        let mut chunks = Vec::new();
        for index in 0..heads.len() {
            if self.kind == Kind::Chat {
                let delta = json!({"role": "assistant", "content": ""});
                let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
                chunks.push(self.chunk(vec![choice]));
            }
            let echo = self.take_echo(index);
            if !echo.is_empty() {
                chunks.push(self.chunk(vec![self.choice(index, Some(echo), Value::Null, None)]));
            }
        }
        chunks
    }

    fn text(&mut self, index: usize, _head: &Head, text: String, tokens: Vec<TokenOut>) -> Vec<Value> {
        let logprobs = self.logprobs(index, &tokens);
        let mut choice = self.choice(index, Some(text), logprobs, None);
        if self.token_ids {
            set(&mut choice, "token_ids", ids(&tokens));
        }
        vec![self.chunk(vec![choice])]
    }

    fn end(&mut self, index: usize, head: &Head, ended: Ended) -> Vec<Value> {
        self.count(index, &ended);
        let mut choice = self.choice(index, None, Value::Null, Some(ended.reason));
        set(&mut choice, "receipt", head.receipt_id.as_str().into());
        vec![self.chunk(vec![choice])]
    }

    fn close(&mut self) -> Vec<Value> {
        if !self.include_usage {
            return Vec::new();
        }
        let mut last = self.chunk(Vec::new());
        set(&mut last, "usage", usage(self.usage));
        vec![last]
    }
}

/// OpenAI knows fewer reasons than we do.
const fn finish(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::StoppedByPlugin => "stop",
        FinishReason::Length | FinishReason::Deadline | FinishReason::Cancelled => "length",
    }
}

fn ids(tokens: &[TokenOut]) -> Value {
    tokens.iter().map(|token| Value::from(token.id)).collect()
}

fn set(value: &mut Value, name: &str, field: Value) {
    if let Some(object) = value.as_object_mut() {
        object.insert(name.to_owned(), field);
    }
}
