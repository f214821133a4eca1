//! Generations in LoRAX's shape, whole and as events: one event for each token, the last one with the whole text. Not here:
//! the types (`answers.rs`).

use std::sync::Arc;

use model::TextDecoder;
use serde_json::Value;
use types::FinishReason;

use super::answers::{
    LoraxAlternative, LoraxAnswer, LoraxDetails, LoraxEvent, LoraxFinish, LoraxSequence, LoraxStreamDetails, LoraxToken,
};
use super::body::Wishes;
use crate::error::Error;
use crate::host::Host;
use crate::http::stream::{Format, Whole};
use crate::invoke::{Ended, Head, TokenOut};

/// Writes the answers to one request.
pub(super) struct LoraxFormat {
    host: Arc<Host>,
    wishes: Wishes,
    /// Before the text.
    echo: String,
    details: bool,
    /// Of each answer.
    seeds: Vec<Option<u64>>,
    stream: Streamed,
}

/// How far a stream has come.
struct Streamed {
    texts: TokenTexts,
    /// All that was sent.
    text: String,
    tokens: u32,
    /// A token that may be the last, which says how the answer ended.
    held: Option<LoraxToken>,
    /// Text whose token went out before it.
    rest: String,
}

impl LoraxFormat {
    /// For answers with these seeds, of which the first is streamed.
    pub(super) fn new(host: Arc<Host>, wishes: Wishes, echo: String, details: bool, seeds: Vec<Option<u64>>) -> Self {
        let stream = Streamed {
            texts: TokenTexts { decoder: host.base.tokenizer().decoder() },
            text: String::new(),
            tokens: 0,
            held: None,
            rest: String::new(),
        };
        let seeds = seeds.into_iter().map(|seed| seed.filter(|_| wishes.is_sampled)).collect();
        Self { host, wishes, echo, details, seeds, stream }
    }

    /// The likeliest of the answers, with the others in its details.
    pub(super) fn whole(&self, wholes: Vec<Whole>) -> Result<LoraxAnswer, Error> {
        let mut sequences: Vec<_> = wholes.into_iter().zip(&self.seeds).map(|(whole, seed)| (whole, *seed)).collect();
        let mut best = 0;
        for (index, (whole, _)) in sequences.iter().enumerate() {
            let is_likelier = sequences.get(best).is_some_and(|(best, _)| mean_logprob(whole) > mean_logprob(best));
            best = if is_likelier { index } else { best };
        }
        if best >= sequences.len() {
            return Err(Error::Internal("an answer without a choice".into()));
        }
        let (whole, seed) = sequences.remove(best);
        let prompt_tokens = whole.ended.usage.prompt_tokens;
        let LoraxSequence { generated_text, finish_reason, generated_tokens, seed, prefill, tokens } =
            self.sequence(whole, seed);
        let details = self.details.then(|| LoraxDetails {
            finish_reason,
            prompt_tokens,
            generated_tokens,
            skipped_tokens: 0,
            seed,
            prefill,
            tokens,
            best_of_sequences: sequences.into_iter().map(|(whole, seed)| self.sequence(whole, seed)).collect(),
        });
        Ok(LoraxAnswer { generated_text, details })
    }

    fn sequence(&self, whole: Whole, seed: Option<u64>) -> LoraxSequence {
        let Whole { text, tokens, ended, .. } = whole;
        let mut texts = TokenTexts { decoder: self.host.base.tokenizer().decoder() };
        LoraxSequence {
            finish_reason: finish(&ended),
            generated_tokens: ended.usage.completion_tokens,
            seed,
            prefill: [],
            tokens: self.tokens(&mut texts, &text, tokens).0,
            generated_text: self.echo.clone() + &text,
        }
    }

    /// The tokens with their texts, and the text that is none of theirs.
    fn tokens(&self, texts: &mut TokenTexts, text: &str, tokens: Vec<TokenOut>) -> (Vec<LoraxToken>, String) {
        let tokenizer = self.host.base.tokenizer();
        let is_special = |id: u32| tokenizer.token_bytes(id).is_none();
        let (pieces, rest) = texts.split(text, &tokens, is_special);
        let token = |(token, piece): (TokenOut, String)| {
            let special = is_special(token.id);
            let alternative = |(id, logprob): &(u32, f32)| LoraxAlternative {
                id: *id,
                text: tokenizer.token_text(*id),
                logprob: finite(*logprob),
            };
            LoraxToken {
                id: token.id,
                text: if special { tokenizer.token_text(token.id) } else { piece },
                logprob: finite(token.logprob.unwrap_or_default()),
                special,
                alternative_tokens: self.wishes.alternatives.map(|_| token.top.iter().map(alternative).collect()),
            }
        };
        (tokens.into_iter().zip(pieces).map(token).collect(), rest)
    }
}

const fn finish(ended: &Ended) -> LoraxFinish {
    match ended.reason {
        FinishReason::Stop if ended.by_stop_string => LoraxFinish::StopSequence,
        FinishReason::Stop | FinishReason::StoppedByPlugin => LoraxFinish::EosToken,
        FinishReason::Length | FinishReason::Deadline | FinishReason::Cancelled => LoraxFinish::Length,
    }
}

impl Format for LoraxFormat {
    const DATA: &'static str = "data:";
    /// Its clients would try to read more.
    const END: &'static str = "";

    fn begin(&mut self, _heads: &[Arc<Head>]) -> Vec<Value> {
        Vec::new()
    }

    /// A token goes out at once unless it may be the last: one that ends an answer, or the last one that was asked for.
    fn text(&mut self, _choice: usize, _head: &Head, text: String, tokens: Vec<TokenOut>) -> Vec<Value> {
        self.stream.text.push_str(&text);
        let text = std::mem::take(&mut self.stream.rest) + &text;
        let mut texts = TokenTexts { decoder: self.host.base.tokenizer().decoder() };
        std::mem::swap(&mut texts, &mut self.stream.texts);
        let (tokens, rest) = self.tokens(&mut texts, &text, tokens);
        self.stream.texts = texts;
        self.stream.rest = rest;
        self.stream.tokens = self.stream.tokens.saturating_add(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
        let mut ready: Vec<LoraxToken> = Vec::with_capacity(tokens.len() + 1);
        if !tokens.is_empty() {
            ready.extend(self.stream.held.take());
        }
        ready.extend(tokens);
        let may_end = |token: &mut LoraxToken| token.special || self.stream.tokens >= self.wishes.tokens_max;
        self.stream.held = ready.pop_if(may_end).or(self.stream.held.take());
        let event = |token| to_value(&LoraxEvent { token, generated_text: None, details: None });
        ready.into_iter().map(event).collect()
    }

    /// The token that was held back, or one that stands for the end: what ends an answer is not among its tokens.
    fn end(&mut self, _choice: usize, _head: &Head, ended: Ended) -> Vec<Value> {
        let finish_reason = finish(&ended);
        let rest = std::mem::take(&mut self.stream.rest);
        let none = || LoraxToken {
            id: self.host.base.eos().first().copied().unwrap_or_default(),
            text: String::new(),
            logprob: 0.0,
            special: rest.is_empty(),
            alternative_tokens: self.wishes.alternatives.map(|_| Vec::new()),
        };
        let mut events = Vec::new();
        let token = match self.stream.held.take() {
            Some(held) if held.special && !rest.is_empty() => {
                events.push(LoraxEvent {
                    token: LoraxToken { text: rest.clone(), ..none() },
                    generated_text: None,
                    details: None,
                });
                held
            }
            Some(held) => LoraxToken { text: held.text.clone() + &rest, ..held },
            None => LoraxToken { text: rest.clone(), ..none() },
        };
        let details = self.details.then(|| LoraxStreamDetails {
            finish_reason,
            prompt_tokens: ended.usage.prompt_tokens,
            generated_tokens: ended.usage.completion_tokens,
            seed: self.seeds.first().copied().flatten(),
        });
        let generated_text = Some(std::mem::take(&mut self.echo) + &std::mem::take(&mut self.stream.text));
        events.push(LoraxEvent { token, generated_text, details });
        events.iter().map(to_value).collect()
    }

    fn failed(&mut self, failure: &Error) -> Value {
        super::refusal(failure).1
    }
}

/// The text that each token brings.
struct TokenTexts {
    decoder: TextDecoder,
}

impl TokenTexts {
    /// Gives each token its part of a text that a stop string may have cut, so that the parts, joined, are that text. What is
    /// left is the last printing token's, or, if there is none, nobody's.
    fn split(&mut self, text: &str, tokens: &[TokenOut], is_special: impl Fn(u32) -> bool) -> (Vec<String>, String) {
        let last = tokens.iter().rposition(|token| !is_special(token.id));
        let mut rest = text;
        let mut pieces = Vec::with_capacity(tokens.len());
        for (index, token) in tokens.iter().enumerate() {
            let printed = self.decoder.push(token.id);
            let piece = match rest.strip_prefix(printed.as_str()) {
                _ if Some(index) == last => std::mem::take(&mut rest),
                Some(after) => {
                    rest = after;
                    &printed
                }
                None => "",
            };
            pieces.push(piece.to_owned());
        }
        (pieces, rest.to_owned())
    }
}

/// Of a whole answer, by token: what `best_of` compares.
fn mean_logprob(whole: &Whole) -> f32 {
    let logprobs = whole.tokens.iter().filter_map(|token| token.logprob);
    let (count, sum) = logprobs.fold((0_u16, 0.0), |(count, sum), logprob| (count.saturating_add(1), sum + logprob));
    sum / f32::from(count.max(1))
}

/// JSON has no infinity, and the clients take no null.
fn finite(logprob: f32) -> f32 {
    logprob.max(f32::MIN)
}

fn to_value(event: &LoraxEvent) -> Value {
    serde_json::to_value(event).unwrap_or_default()
}
