//! The objects of OpenAI's API: completions and chat completions, whole and in chunks, with log-probabilities and usage.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use types::FinishReason;

use crate::host::Host;
use crate::http::invoke::{adapters, usage};
use crate::http::stream::{Format, Whole};
use crate::http::wire::CommonBody;
use crate::invoke::{Ended, Generation, TokenOut};

/// Which of the two APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// Writes generations in OpenAI's shape.
pub(crate) struct OpenAiFormat {
    kind: Kind,
    host: Arc<Host>,
    model: String,
    created: u64,
    logprobs: bool,
    token_ids: bool,
    include_usage: bool,
    /// Characters sent so far, for `text_offset`.
    offset: usize,
}

impl OpenAiFormat {
    pub(crate) fn new(kind: Kind, host: Arc<Host>, common: &CommonBody, logprobs: bool) -> Self {
        Self {
            kind,
            host,
            model: common.model.clone(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            logprobs,
            token_ids: common.return_token_ids,
            include_usage: common.stream_options.include_usage,
            offset: 0,
        }
    }

    /// The whole answer as one object.
    pub(crate) fn whole(mut self, generation: &Generation, whole: Whole) -> Value {
        let logprobs = self.logprobs(&whole.tokens);
        let mut choice = json!({"index": 0, "logprobs": logprobs, "finish_reason": finish(whole.ended.reason)});
        let content = match self.kind {
            Kind::Chat => ("message", json!({"role": "assistant", "content": whole.text})),
            Kind::Completion => ("text", whole.text.into()),
        };
        set(&mut choice, content.0, content.1);
        if self.token_ids {
            set(&mut choice, "token_ids", ids(&whole.tokens));
            set(&mut choice, "prompt_token_ids", json!(generation.prompt_tokens));
        }
        let object = if self.kind == Kind::Chat { "chat.completion" } else { "text_completion" };
        let mut value = self.envelope(generation, object, vec![choice]);
        set(&mut value, "usage", usage(&whole.ended));
        set(&mut value, "adapters", adapters(&generation.adapters));
        value
    }

    fn envelope(&self, generation: &Generation, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": generation.request_id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&self, generation: &Generation, choice: Value) -> Value {
        let object = if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
        self.envelope(generation, object, vec![choice])
    }

    fn choice(&self, text: Option<String>, logprobs: Value, reason: Option<FinishReason>) -> Value {
        let mut choice = json!({"index": 0, "logprobs": logprobs, "finish_reason": reason.map(finish)});
        match (self.kind, text) {
            (Kind::Chat, Some(text)) => set(&mut choice, "delta", json!({"content": text})),
            (Kind::Chat, None) => set(&mut choice, "delta", json!({})),
            (Kind::Completion, text) => set(&mut choice, "text", text.unwrap_or_default().into()),
        }
        choice
    }

    fn logprobs(&mut self, tokens: &[TokenOut]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        match self.kind {
            Kind::Chat => json!({"content": tokens.iter().map(|token| self.chat_logprob(token)).collect::<Vec<_>>()}),
            Kind::Completion => self.completion_logprobs(tokens),
        }
    }

    fn chat_logprob(&self, token: &TokenOut) -> Value {
        let entry = |id: u32, logprob: Option<f32>| {
            let text = self.host.base.tokenizer().token_text(id);
            json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()})
        };
        let mut value = entry(token.id, token.logprob);
        let top = token.top.iter().map(|(id, logprob)| entry(*id, Some(*logprob))).collect();
        set(&mut value, "top_logprobs", top);
        value
    }

    fn completion_logprobs(&mut self, tokens: &[TokenOut]) -> Value {
        let text = |id: u32| self.host.base.tokenizer().token_text(id);
        let texts: Vec<String> = tokens.iter().map(|token| text(token.id)).collect();
        let top = |token: &TokenOut| -> Value {
            token
                .top
                .iter()
                .map(|(id, logprob)| (text(*id), Value::from(*logprob)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let tops: Vec<Value> = tokens.iter().map(top).collect();
        let mut offsets = Vec::with_capacity(texts.len());
        for text in &texts {
            offsets.push(self.offset);
            self.offset += text.chars().count();
        }
        let logprobs: Vec<Option<f32>> = tokens.iter().map(|token| token.logprob).collect();
        json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
    }
}

impl Format for OpenAiFormat {
    fn begin(&mut self, generation: &Generation) -> Vec<Value> {
        if self.kind == Kind::Completion {
            return Vec::new();
        }
        let delta = json!({"role": "assistant", "content": ""});
        vec![self.chunk(generation, json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}))]
    }

    fn text(&mut self, generation: &Generation, text: String, tokens: Vec<TokenOut>) -> Vec<Value> {
        let logprobs = self.logprobs(&tokens);
        let mut choice = self.choice(Some(text), logprobs, None);
        if self.token_ids {
            set(&mut choice, "token_ids", ids(&tokens));
        }
        vec![self.chunk(generation, choice)]
    }

    fn end(&mut self, generation: &Generation, ended: Ended) -> Vec<Value> {
        let choice = self.choice(None, Value::Null, Some(ended.reason));
        let mut chunks = vec![self.chunk(generation, choice)];
        if self.include_usage {
            let object = if self.kind == Kind::Chat { "chat.completion.chunk" } else { "text_completion" };
            let mut last = self.envelope(generation, object, Vec::new());
            set(&mut last, "usage", usage(&ended));
            chunks.push(last);
        }
        chunks
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
