//! The requests of the load: short and long prompts, adapters, sampling, several choices; and whether an answer is right.
//! Not here: when they are sent.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::Outcome;
use crate::adapters::split_mix;
use crate::load::prompt;
use crate::process::alias;

/// Requests of different kinds.
const TEMPLATES: usize = 48;

/// A request, and what it answers when it is alone.
#[derive(Clone, Debug)]
pub(super) struct Template {
    body: Value,
    is_chat: bool,
    choices: usize,
    expected: Vec<String>,
}

/// What an answer is, beside the expected one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    Right,
    /// Right as far as it goes.
    Shorter,
    Wrong,
}

/// All kinds, for so many adapters. The same each time.
pub(super) fn templates(adapters: usize) -> Vec<Template> {
    (0..TEMPLATES).map(|number| template(number, adapters)).collect()
}

/// How many different answers are expected, and their bytes: if all were alike a mix-up would not show.
pub(super) fn distinct_answers(templates: &[Template]) -> (usize, usize) {
    let texts: BTreeSet<&String> = templates.iter().flat_map(|template| &template.expected).collect();
    (texts.len(), texts.iter().map(|text| text.len()).sum())
}

fn template(number: usize, adapters: usize) -> Template {
    let mut state = number as u64 + 77;
    let mut below = |bound: usize| split_mix(&mut state) as usize % bound.max(1);
    // About 50 tokens each; some begin alike, for the prefix cache.
    let paragraphs = [1, 1, 1, 2, 4, 10][below(6)];
    let first = if below(3) == 0 { 0 } else { number * 100 };
    let text = (0..paragraphs).map(|part| prompt(first + part)).collect::<Vec<_>>().join("\n\n");
    let (one, two) = (below(adapters), below(adapters));
    let composition = match below(4) {
        0 => json!([]),
        1 | 2 => json!([{"name": alias(one), "weight": 1.0}]),
        _ if one == two => json!([{"name": alias(one), "weight": 0.5}]),
        _ => json!([{"name": alias(one), "weight": 0.7}, {"name": alias(two), "weight": -0.4}]),
    };
    let choices = [1, 1, 1, 1, 2, 3][below(6)];
    let mut body = json!({
        "model": "base", "adapters": composition, "max_tokens": 8 + below(56), "n": choices, "ignore_eos": below(2) == 0,
    });
    if below(2) == 0 {
        body["temperature"] = 0.into();
    } else {
        let seeded = json!({"temperature": 0.8, "top_p": 0.9, "seed": number, "presence_penalty": 0.2});
        seeded.as_object().into_iter().flatten().for_each(|(key, value)| body[key] = value.clone());
    }
    let is_chat = below(3) == 0;
    if is_chat {
        body["messages"] = json!([{"role": "user", "content": text}]);
    } else {
        body["prompt"] = text.into();
    }
    Template { body, is_chat, choices, expected: Vec::new() }
}

impl Template {
    /// Where it goes.
    pub(super) const fn path(&self) -> &'static str {
        if self.is_chat { "/v1/chat/completions" } else { "/v1/completions" }
    }

    /// Its body, for a whole answer or a stream.
    pub(super) fn body(&self, is_stream: bool) -> Value {
        let mut body = self.body.clone();
        if is_stream {
            body["stream"] = true.into();
        }
        body
    }

    /// Takes the answer of the request alone for the right one.
    ///
    /// # Errors
    /// If it is no answer.
    pub(super) fn expect(&mut self, body: &Value) -> Outcome {
        let texts = self.texts(body);
        if texts.len() != self.choices {
            return Err(format!("{} choices came of {}: {body}", texts.len(), self.choices).into());
        }
        self.expected = texts;
        Ok(())
    }

    /// Judges a whole answer.
    pub(super) fn judge_body(&self, body: &Value) -> Judgement {
        self.judge(&self.texts(body))
    }

    /// Judges texts by choice: the worst of them counts.
    pub(super) fn judge(&self, texts: &[String]) -> Judgement {
        if texts.len() != self.expected.len() {
            return Judgement::Wrong;
        }
        let one = |(text, expected): (&String, &String)| match text {
            text if text == expected => Judgement::Right,
            text if is_beginning(text, expected) => Judgement::Shorter,
            _ => Judgement::Wrong,
        };
        let all: Vec<Judgement> = texts.iter().zip(&self.expected).map(one).collect();
        let has = |judgement| all.contains(&judgement);
        if has(Judgement::Wrong) {
            Judgement::Wrong
        } else if has(Judgement::Shorter) {
            Judgement::Shorter
        } else {
            Judgement::Right
        }
    }

    /// How many choices it asks for.
    pub(super) const fn choices(&self) -> usize {
        self.choices
    }

    /// The text that an event of a stream adds, and to which choice.
    pub(super) fn delta(&self, event: &Value) -> Option<(usize, String)> {
        let choice = event.pointer("/choices/0")?;
        let text = if self.is_chat { choice.pointer("/delta/content") } else { choice.get("text") };
        let index = choice.get("index").and_then(Value::as_u64).unwrap_or_default() as usize;
        Some((index, text?.as_str()?.to_owned()))
    }

    /// The texts of an answer, by index.
    fn texts(&self, body: &Value) -> Vec<String> {
        let choices = body.get("choices").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut texts: Vec<(u64, String)> = choices
            .iter()
            .filter_map(|choice| {
                let text = if self.is_chat { choice.pointer("/message/content") } else { choice.get("text") };
                // A chat message without content has none.
                let text = text.and_then(Value::as_str).unwrap_or_default();
                Some((choice.get("index")?.as_u64()?, text.to_owned()))
            })
            .collect();
        texts.sort();
        texts.into_iter().map(|(_, text)| text).collect()
    }
}

/// Whether a text that was cut off is the beginning of the whole one: what is left of a character may be a replacement.
fn is_beginning(text: &str, whole: &str) -> bool {
    whole.starts_with(text.trim_end_matches(char::REPLACEMENT_CHARACTER))
}

/// The value of a metric, its labels within the name as `/metrics` writes them.
pub(crate) fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_requests_of_all_kinds() {
        let all = templates(12);
        assert_eq!(all.len(), TEMPLATES);
        let count = |is: &dyn Fn(&Template) -> bool| all.iter().filter(|template| is(template)).count();
        let adapters = |template: &Template| template.body["adapters"].as_array().map_or(0, Vec::len);
        for (kind, found) in [
            ("chats", count(&|t| t.is_chat)),
            ("completions", count(&|t| !t.is_chat)),
            ("several choices", count(&|t| t.choices > 1)),
            ("on the base", count(&|t| adapters(t) == 0)),
            ("one adapter", count(&|t| adapters(t) == 1)),
            ("two adapters", count(&|t| adapters(t) == 2)),
            ("drawn", count(&|t| t.body.get("seed").is_some())),
            ("long", count(&|t| t.body.to_string().len() > 1500)),
        ] {
            assert!(found >= 3, "{found} {kind}");
        }
    }

    #[test]
    fn answers_are_judged_choice_by_choice() {
        let mut template = template(0, 12);
        (template.is_chat, template.choices) = (false, 2);
        let answer = |one: &str, two: &str| json!({"choices": [{"index": 1, "text": two}, {"index": 0, "text": one}]});
        template.expect(&answer("abc", "xyz")).expect("an answer");
        assert_eq!(template.judge_body(&answer("abc", "xyz")), Judgement::Right);
        assert_eq!(template.judge_body(&answer("abc", "x")), Judgement::Shorter);
        assert_eq!(template.judge_body(&answer("abc\u{fffd}", "xyz")), Judgement::Shorter);
        assert_eq!(template.judge_body(&answer("abd", "xyz")), Judgement::Wrong);
        assert_eq!(template.judge_body(&answer("xyz", "abc")), Judgement::Wrong, "choices are not sets");
        assert_eq!(template.judge_body(&json!({"choices": []})), Judgement::Wrong);
        assert!(template.expect(&json!({"choices": []})).is_err());
        let event = json!({"choices": [{"index": 1, "text": "x"}]});
        assert_eq!(template.delta(&event), Some((1, "x".into())));
    }

    #[test]
    fn metrics_are_found_by_their_whole_name() {
        let text = "# HELP a\nvllm:num_requests_running_total 9\nvllm:num_requests_running 2\nkv 0.25\n";
        assert_eq!(metric(text, "vllm:num_requests_running"), Some(2.0));
        assert_eq!((metric(text, "kv"), metric(text, "absent")), (Some(0.25), None));
        assert_eq!(metric("disk{kind=\"hit\"} 3\n", "disk{kind=\"hit\"}"), Some(3.0));
    }
}
