//! The callers: what each does next, and whether the answers are right. Each has aliases of its own, whose content it knows, and
//! all share a few, whose content is one of those that somebody set. Not here: what is left in the end.

use std::cell::Cell;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::adapters::split_mix;
use crate::load::{Http, Target, upload_request, with_key};
use crate::{Outcome, progress};

/// Aliases of each caller's own.
const OWN: usize = 2;
/// Aliases of all.
const SHARED: usize = 3;
/// What takes longer will not come: nothing here waits for more than a few dozen others.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// After so many of those the run ends.
const STUCK_MAX: usize = 3;
/// Messages that are kept.
const SHOWN_MAX: usize = 5;

/// An adapter's files, and what it answers when it is alone.
pub(super) struct Content {
    pub(super) config: Vec<u8>,
    pub(super) weights: Vec<u8>,
    pub(super) answer: Answer,
}

/// What an answer says; the rest of it (identifiers, times) is another one each time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    text: String,
    /// To the bit: JSON has every digit of them.
    logprobs: Value,
}

impl Answer {
    /// `None` if it is none.
    pub(super) fn of(body: &Value) -> Option<Self> {
        let choice = body.pointer("/choices/0")?;
        let logprobs = choice.get("logprobs").filter(|logprobs| logprobs.is_object())?.clone();
        Some(Self { text: choice.get("text")?.as_str()?.to_owned(), logprobs })
    }
}

/// What came of all cycles.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) cycles: usize,
    pub(super) right: usize,
    pub(super) wrong: usize,
    added: usize,
    replaced: usize,
    removed: usize,
    hung_up: usize,
    /// Answers of aliases that had been removed.
    pub(super) undead: usize,
    pub(super) stuck: usize,
    pub(super) unexpected: usize,
    messages: Vec<String>,
}

impl Counts {
    /// A row of the report.
    pub(super) fn json(&self) -> Value {
        json!({"cycles": self.cycles, "right": self.right, "wrong": self.wrong, "added": self.added,
            "replaced": self.replaced, "removed": self.removed, "hung_up": self.hung_up, "undead": self.undead,
            "stuck": self.stuck, "unexpected": self.unexpected, "messages": self.messages})
    }

    fn add(&mut self, other: Self) {
        self.cycles += other.cycles;
        self.right += other.right;
        self.wrong += other.wrong;
        self.added += other.added;
        self.replaced += other.replaced;
        self.removed += other.removed;
        self.hung_up += other.hung_up;
        self.undead += other.undead;
        self.stuck += other.stuck;
        self.unexpected += other.unexpected;
        self.messages.extend(other.messages);
        self.messages.truncate(SHOWN_MAX);
    }

    fn note(&mut self, message: String) {
        if self.messages.len() < SHOWN_MAX {
            let message: String = message.chars().take(400).collect();
            eprintln!("  {message}");
            self.messages.push(message);
        }
    }
}

/// Has so many callers go through so many cycles in all.
pub(super) fn run(
    http: &Http,
    target: &Target,
    contents: &[Content],
    (users, cycles): (usize, usize),
    seed: u64,
) -> Counts {
    let (runtime, client) = http.parts();
    let (left, stuck) = (Cell::new(cycles), Cell::new(0));
    let bar = progress::bar(cycles, "cycles");
    let users = (0..users).map(|number| {
        let (left, stuck, bar) = (&left, &stuck, &bar);
        let state = seed.wrapping_mul(1 << 32) + number as u64;
        let mut user = User { client, target, contents, number, state, own: [None; OWN], counts: Counts::default() };
        async move {
            while left.get() > 0 && stuck.get() < STUCK_MAX {
                left.set(left.get() - 1);
                let before = user.counts.stuck;
                user.cycle().await;
                stuck.set(stuck.get() + user.counts.stuck - before);
                user.counts.cycles += 1;
                bar.inc(1);
            }
            user.counts
        }
    });
    let all = runtime.block_on(futures::future::join_all(users));
    let mut counts = Counts::default();
    all.into_iter().for_each(|one| counts.add(one));
    counts
}

struct User<'a> {
    client: &'a reqwest::Client,
    target: &'a Target,
    contents: &'a [Content],
    number: usize,
    state: u64,
    /// Which content each of its own aliases names.
    own: [Option<usize>; OWN],
    counts: Counts,
}

impl User<'_> {
    /// Sets or removes an adapter, and uses it.
    async fn cycle(&mut self) {
        let (what, slot, content) = (self.below(16), self.below(OWN), self.below(self.contents.len()));
        if what == 0 {
            return self.share(content).await;
        }
        let Some(before) = self.own.get(slot).copied() else { return };
        let alias = format!("churn-{}-{slot}", self.number);
        if before.is_some() && what <= 5 {
            if !self.remove(&alias).await {
                return;
            }
            self.set_own(slot, None);
            self.expect_none(&alias).await;
        }
        // One in four uses again what is there.
        let is_set = self.own.get(slot).copied().flatten().is_some();
        if !(is_set && what >= 12) {
            if !self.put(&alias, content).await {
                return;
            }
            if is_set {
                self.counts.replaced += 1
            } else {
                self.counts.added += 1
            }
            self.set_own(slot, Some(content));
        }
        if what == 6 || what == 7 {
            self.hang_up(&alias).await;
        }
        let Some(expected) = self.own.get(slot).copied().flatten() else { return };
        self.use_own(&alias, expected).await;
    }

    fn set_own(&mut self, slot: usize, content: Option<usize>) {
        if let Some(own) = self.own.get_mut(slot) {
            *own = content;
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        split_mix(&mut self.state) as usize % bound.max(1)
    }

    /// Sets, uses and at times removes an alias that others set and remove too.
    async fn share(&mut self, content: usize) {
        let alias = format!("churn-shared-{}", self.below(SHARED));
        if !self.put(&alias, content).await {
            return;
        }
        match self.answer(&alias).await {
            Some((200, body)) => {
                let found = Answer::of(&body);
                let is_one = self.contents.iter().any(|content| found.as_ref() == Some(&content.answer));
                self.judge(is_one, || format!("{alias} answers as no content does: {body}"));
            }
            Some((404, _)) | None => {}
            Some((status, body)) => self.odd(&format!("use of {alias}"), status, &body),
        }
        if self.below(2) == 0 {
            self.remove(&alias).await;
        }
    }

    async fn use_own(&mut self, alias: &str, content: usize) {
        let Some((status, body)) = self.answer(alias).await else { return };
        if status != 200 {
            return self.odd(&format!("use of {alias}"), status, &body);
        }
        let expected = self.contents.get(content).map(|content| &content.answer);
        let is_right = expected.is_some() && Answer::of(&body).as_ref() == expected;
        self.judge(is_right, || format!("{alias} with content {content}: {body}, expected {expected:?}"));
    }

    fn judge(&mut self, is_right: bool, message: impl FnOnce() -> String) {
        if is_right {
            self.counts.right += 1;
        } else {
            self.counts.wrong += 1;
            self.counts.note(format!("wrong: {}", message()));
        }
    }

    async fn expect_none(&mut self, alias: &str) {
        match self.answer(alias).await {
            Some((404, _)) | None => {}
            Some((200, body)) => {
                self.counts.undead += 1;
                self.counts.note(format!("{alias} was removed, and answers {body}"));
            }
            Some((status, body)) => self.odd(&format!("use of {alias}, which was removed,"), status, &body),
        }
    }

    async fn answer(&mut self, alias: &str) -> Option<(u16, Value)> {
        let asked = ask(self.client, self.target, alias);
        let got = tokio::time::timeout(ANSWER_MAX, asked).await;
        self.in_time("use", got)
    }

    async fn put(&mut self, alias: &str, content: usize) -> bool {
        let Some(content) = self.contents.get(content) else { return false };
        let (config, weights) = (content.config.clone(), content.weights.clone());
        let request = upload_request(self.client, self.target, alias, config, weights);
        let got = tokio::time::timeout(ANSWER_MAX, answer_of(request)).await;
        match self.in_time("add", got) {
            Some((200 | 201, _)) => true,
            Some((status, body)) => {
                self.odd(&format!("add of {alias}"), status, &body);
                false
            }
            None => false,
        }
    }

    /// Whether nothing is there under this alias any more.
    async fn remove(&mut self, alias: &str) -> bool {
        let url = format!("{}/v1/adapters/{alias}", self.target.url);
        let got = tokio::time::timeout(ANSWER_MAX, answer_of(with_key(self.client.delete(url), self.target))).await;
        // One that is shared may have been removed by another.
        let is_shared = alias.starts_with("churn-shared");
        match self.in_time("removal", got) {
            Some((200 | 204, _)) => {
                self.counts.removed += 1;
                true
            }
            Some((404, _)) if is_shared => true,
            Some((status, body)) => {
                self.odd(&format!("removal of {alias}"), status, &body);
                false
            }
            None => false,
        }
    }

    /// Begins a long stream and leaves it, at times before its adapter is there.
    async fn hang_up(&mut self, alias: &str) {
        let body = json!({"model": alias, "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "ignore_eos": true, "stream": true});
        let url = format!("{}/v1/completions", self.target.url);
        let request = with_key(self.client.post(url), self.target).json(&body);
        let patience = Duration::from_millis(self.below(60) as u64);
        let events = self.below(4);
        let stream = async {
            let Ok(answer) = request.send().await else { return };
            let mut pieces = answer.bytes_stream();
            for _ in 0..events {
                pieces.next().await;
            }
        };
        // Ended by whichever comes first; both leave the server with a caller who is gone.
        let _either = tokio::time::timeout(patience, stream).await;
        self.counts.hung_up += 1;
    }

    /// An answer, unless there is none, or none in time.
    fn in_time(
        &mut self,
        what: &str,
        got: Result<Outcome<(u16, Value)>, tokio::time::error::Elapsed>,
    ) -> Option<(u16, Value)> {
        match got {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                self.counts.unexpected += 1;
                self.counts.note(format!("{what}: {error}"));
                None
            }
            Err(_) => {
                self.counts.stuck += 1;
                self.counts.note(format!("{what}: no answer in {ANSWER_MAX:?}"));
                None
            }
        }
    }

    fn odd(&mut self, what: &str, status: u16, body: &Value) {
        self.counts.unexpected += 1;
        self.counts.note(format!("{what}: {status} {body}"));
    }
}

const PROMPT: &str = "The harbour lay quiet, and the first boat";

/// Asks for a few tokens of an alias, with their log-probabilities: status and body.
pub(super) async fn ask(client: &reqwest::Client, target: &Target, alias: &str) -> Outcome<(u16, Value)> {
    let body = json!({"model": alias, "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": true,
        "logprobs": 1});
    answer_of(with_key(client.post(format!("{}/v1/completions", target.url)), target).json(&body)).await
}

async fn answer_of(request: reqwest::RequestBuilder) -> Outcome<(u16, Value)> {
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    Ok((status, serde_json::from_str(&answer.text().await?).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_text_and_its_numbers() {
        let body = |text: &str, logprob: f64, id: &str| json!({"id": id, "choices": [{"text": text, "logprobs": {"token_logprobs": [logprob]}, "receipt": id}]});
        let one = Answer::of(&body("a", -0.5, "x"));
        assert!(one.is_some() && one == Answer::of(&body("a", -0.5, "y")));
        assert_ne!(one, Answer::of(&body("b", -0.5, "x")));
        assert_ne!(one, Answer::of(&body("a", -0.500_000_1, "x")));
        assert_eq!(Answer::of(&json!({"choices": [{"text": "a", "logprobs": null}]})), None);
        assert_eq!(Answer::of(&json!({"error": {}})), None);
    }
}
