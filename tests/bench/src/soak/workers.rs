//! The callers of the load: each sends one request after the other, whole or as a stream, and some hang up or give up. Not
//! here: the requests themselves.

use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};

use super::requests::{Judgement, Template};
use crate::Outcome;
use crate::adapters::split_mix;
use crate::load::{Http, Target, event_of, with_key};
use crate::report::rounded;

/// After a refusal a caller waits for what the server says, but not so long that the queue empties.
const RETRY_MAX: Duration = Duration::from_millis(1500);
/// Wrong answers that are printed.
const SHOWN_MAX: usize = 5;

/// What came of all requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) right: usize,
    pub(super) wrong: usize,
    /// Right as far as they go, and as late as the deadline.
    late: usize,
    pub(super) refused: usize,
    pub(super) refused_without_retry: usize,
    /// The deadline passed before the first token.
    deadline: usize,
    hung_up: usize,
    gave_up: usize,
    /// Errors that no limit explains, and their texts.
    pub(super) unexpected: usize,
    messages: Vec<String>,
    seconds: f64,
}

/// How a caller behaves this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Whole,
    Stream,
    /// Reads so many events of a stream and closes the connection.
    HangUp(usize),
    /// Closes it after this time, whatever came.
    GiveUp(Duration),
}

impl Manner {
    fn draw(state: &mut u64) -> Self {
        let word = split_mix(state);
        let more = (word >> 32) as usize;
        match word % 20 {
            0..=8 => Self::Whole,
            9..=15 => Self::Stream,
            16 | 17 => Self::HangUp(1 + more % 12),
            _ => Self::GiveUp(Duration::from_millis(20 + more as u64 % 1500)),
        }
    }
}

impl Counts {
    /// A row of the report.
    pub(super) fn json(&self) -> Value {
        json!({"right": self.right, "wrong": self.wrong, "cut_by_deadline": self.late, "refused": self.refused,
            "deadline_before_first_token": self.deadline, "hung_up": self.hung_up, "gave_up": self.gave_up,
            "unexpected": self.unexpected, "messages": self.messages,
            "right_per_s": rounded(self.right as f64 / self.seconds.max(1e-9))})
    }

    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.wrong += other.wrong;
        self.late += other.late;
        self.refused += other.refused;
        self.refused_without_retry += other.refused_without_retry;
        self.deadline += other.deadline;
        self.hung_up += other.hung_up;
        self.gave_up += other.gave_up;
        self.unexpected += other.unexpected;
        self.messages.extend(other.messages);
        self.messages.truncate(SHOWN_MAX);
    }

    fn note(&mut self, message: String) {
        if self.messages.len() < SHOWN_MAX {
            eprintln!("  {message}");
            self.messages.push(message);
        }
    }

    /// A judged answer that took so long, by a server that ends requests at this age.
    fn judged(&mut self, judgement: Judgement, took: Duration, deadline: Duration, text: impl FnOnce() -> String) {
        match judgement {
            Judgement::Right => self.right += 1,
            // The host's clock and ours start at different moments.
            Judgement::Shorter if took + Duration::from_millis(500) >= deadline => self.late += 1,
            Judgement::Shorter | Judgement::Wrong => {
                self.wrong += 1;
                self.note(format!("wrong ({judgement:?}) after {:.1} s: {}", took.as_secs_f64(), text()));
            }
        }
    }
}

/// Puts the load on the server for so long.
///
/// # Errors
/// If there is no load to put.
pub(super) fn run(
    http: &Http,
    target: &Target,
    templates: &[Template],
    callers: usize,
    length: Duration,
    deadline: Duration,
) -> Outcome<Counts> {
    let (runtime, client) = http.parts();
    let started = Instant::now();
    let all = runtime.block_on(async {
        let callers = (0..callers).map(|caller| async move {
            let (mut counts, mut state) = (Counts::default(), caller as u64 * 7919 + 1);
            while started.elapsed() < length {
                let place = split_mix(&mut state) as usize % templates.len().max(1);
                let Some(template) = templates.get(place) else { break };
                let manner = Manner::draw(&mut state);
                call(client, target, template, manner, deadline, &mut counts).await;
            }
            counts
        });
        futures::future::join_all(callers).await
    });
    let mut counts = Counts { seconds: started.elapsed().as_secs_f64(), ..Counts::default() };
    all.into_iter().for_each(|one| counts.add(one));
    Ok(counts)
}

async fn call(
    client: &reqwest::Client,
    target: &Target,
    template: &Template,
    manner: Manner,
    deadline: Duration,
    counts: &mut Counts,
) {
    let is_stream = matches!(manner, Manner::Stream | Manner::HangUp(_));
    let request = with_key(client.post(format!("{}{}", target.url, template.path())), target);
    let request = request.json(&template.body(is_stream));
    let exchange = exchange(request, template, manner, deadline, counts);
    match manner {
        Manner::GiveUp(after) => match tokio::time::timeout(after, exchange).await {
            Ok(()) => {}
            Err(_) => counts.gave_up += 1,
        },
        _ => exchange.await,
    }
}

/// One request to its end, or to where the caller hangs up.
async fn exchange(
    request: reqwest::RequestBuilder,
    template: &Template,
    manner: Manner,
    deadline: Duration,
    counts: &mut Counts,
) {
    let started = Instant::now();
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) => {
            counts.unexpected += 1;
            return counts.note(format!("no answer: {error}"));
        }
    };
    let status = answer.status().as_u16();
    if status != 200 {
        return refused(answer, status, counts).await;
    }
    if matches!(manner, Manner::Whole | Manner::GiveUp(_)) {
        let body: Value = match answer.json().await {
            Ok(body) => body,
            Err(error) => {
                counts.unexpected += 1;
                return counts.note(format!("no JSON: {error}"));
            }
        };
        return counts.judged(template.judge_body(&body), started.elapsed(), deadline, || body.to_string());
    }
    let events_max = if let Manner::HangUp(events) = manner { events } else { usize::MAX };
    match read_stream(answer, template, events_max).await {
        Ok(Some(texts)) => {
            counts.judged(template.judge(&texts), started.elapsed(), deadline, || format!("{texts:?}"));
        }
        Ok(None) => counts.hung_up += 1,
        Err(error) => {
            counts.unexpected += 1;
            counts.note(format!("a stream broke: {error}"));
        }
    }
}

/// The texts of a stream; `None` if the caller has enough before its end.
async fn read_stream(
    answer: reqwest::Response,
    template: &Template,
    events_max: usize,
) -> Outcome<Option<Vec<String>>> {
    let mut texts = vec![String::new(); template.choices()];
    let (mut buffer, mut events) = (Vec::new(), 0);
    let mut bytes = answer.bytes_stream();
    while let Some(piece) = bytes.next().await {
        buffer.extend_from_slice(&piece?);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let Some(event) = event_of(&line)? else { continue };
            if let Some((text, delta)) =
                template.delta(&event).and_then(|(at, delta)| Some((texts.get_mut(at)?, delta)))
            {
                text.push_str(&delta);
            }
            events += 1;
            if events >= events_max {
                return Ok(None);
            }
        }
    }
    Ok(Some(texts))
}

/// 429 and 503 are the admission limit, 504 the deadline; anything else is an error.
async fn refused(answer: reqwest::Response, status: u16, counts: &mut Counts) {
    let header = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
    let retry = header.and_then(|seconds| seconds.parse::<f64>().ok()).map(Duration::from_secs_f64);
    let body: Value = answer.json().await.unwrap_or_default();
    let code = body.pointer("/error/code").and_then(Value::as_str).unwrap_or_default().to_owned();
    match status {
        _ if code == "deadline_exceeded" => counts.deadline += 1,
        429 | 503 => {
            counts.refused += 1;
            counts.refused_without_retry += usize::from(retry.is_none());
        }
        _ => {
            counts.unexpected += 1;
            counts.note(format!("{status}: {body}"));
        }
    }
    tokio::time::sleep(retry.unwrap_or(RETRY_MAX).min(RETRY_MAX)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_behave_in_every_manner() {
        let mut state = 1;
        let manners: Vec<Manner> = (0..400).map(|_| Manner::draw(&mut state)).collect();
        let count = |is: fn(&Manner) -> bool| manners.iter().filter(|manner| is(manner)).count();
        assert!(count(|manner| *manner == Manner::Whole) > 100 && count(|manner| *manner == Manner::Stream) > 80);
        assert!(count(|manner| matches!(manner, Manner::HangUp(_))) > 20);
        assert!(count(|manner| matches!(manner, Manner::GiveUp(_))) > 20);
    }

    #[test]
    fn a_short_answer_is_excused_by_the_deadline_alone() {
        let mut counts = Counts::default();
        let (deadline, text) = (Duration::from_secs(5), || String::new());
        counts.judged(Judgement::Shorter, Duration::from_secs(6), deadline, text);
        assert_eq!((counts.late, counts.wrong), (1, 0));
        counts.judged(Judgement::Shorter, Duration::from_secs(1), deadline, text);
        counts.judged(Judgement::Wrong, Duration::from_secs(6), deadline, text);
        assert_eq!((counts.late, counts.wrong), (1, 2));
        let mut all = Counts::default();
        all.add(counts.clone());
        all.add(counts);
        assert_eq!((all.wrong, all.messages.len()), (4, 4));
    }
}
