//! Where two recordings first differ, and in what. Not here: what to say of it.

use serde_json::{Map, Value, json};

use crate::record::{Recording, Step};

/// Where a replay did another thing than was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Which step, from 1.
    pub step: usize,
    /// During which call of the guest.
    pub call: String,
    /// The step as it is recorded; null if it is not.
    pub expected: Value,
    /// The step as it was played; null if it was not.
    pub got: Value,
    /// Which part of the step, as a JSON pointer.
    pub path: String,
    /// That part as it is recorded.
    pub expected_part: Value,
    /// That part as it was played.
    pub got_part: Value,
}

/// The first one. What a recording has not, because it did not fit or the request was given up, is not compared.
pub(super) fn first(expected: &Recording, got: &Recording) -> Option<Difference> {
    // A call that did not return was given up: its caller left, or its time was over.
    let is_all = expected.is_whole && matches!(expected.steps.last(), None | Some(Step::Returned { .. }));
    let steps = if is_all { expected.steps.len().max(got.steps.len()) } else { expected.steps.len() };
    let mut call = String::new();
    for index in 0..steps {
        let (one, other) = (expected.steps.get(index), got.steps.get(index));
        if let Some(Step::Call { call: name, .. }) = one.or(other) {
            call.clone_from(name);
        }
        if one == other || !is_all && one.zip(other).is_some_and(|(one, other)| is_same_question(one, other)) {
            continue;
        }
        let (expected, got) = (one.map(value).unwrap_or_default(), other.map(value).unwrap_or_default());
        let (path, expected_part, got_part) = part(&expected, &got, String::new());
        return Some(Difference { step: index + 1, call, expected, got, path, expected_part, got_part });
    }
    None
}

/// Whether it is the same question, whose answer did not fit or did not come.
fn is_same_question(one: &Step, other: &Step) -> bool {
    match (one, other) {
        (
            Step::Import { import, arguments, result: Value::Null },
            Step::Import { import: other, arguments: with, .. },
        ) => import == other && arguments == with,
        _ => false,
    }
}

impl Recording {
    /// The calls of the guest, with what they were given.
    pub fn calls(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Call { call, arguments } => Some((call.as_str(), arguments)),
            Step::Import { .. } | Step::Returned { .. } => None,
        })
    }

    /// What the guest returned, call by call.
    pub fn returns(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Returned { call, result } => Some((call.as_str(), result)),
            Step::Import { .. } | Step::Call { .. } => None,
        })
    }
}

/// A step as its line has it.
fn value(step: &Step) -> Value {
    match step {
        Step::Call { call, arguments } => json!({"call": call, "arguments": arguments}),
        Step::Import { import, arguments, result } => {
            json!({"import": import, "arguments": arguments, "result": result})
        }
        Step::Returned { call, result } => json!({"returned": call, "result": result}),
    }
}

/// The smallest part that holds all that differs of the first difference.
fn part(one: &Value, other: &Value, path: String) -> (String, Value, Value) {
    let below = |name: &str| format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
    match (one, other) {
        (Value::Object(fields), Value::Object(others)) => {
            if let Some(name) = differing(fields, others) {
                let of = |fields: &Map<String, Value>| fields.get(&name).cloned().unwrap_or_default();
                return part(&of(fields), &of(others), below(&name));
            }
        }
        (Value::Array(items), Value::Array(others)) if items.len() == others.len() => {
            if let Some((index, (item, other))) = items.iter().zip(others).enumerate().find(|(_, (a, b))| a != b) {
                return part(item, other, below(&index.to_string()));
            }
        }
        _ => {}
    }
    (path, one.clone(), other.clone())
}

fn differing(fields: &Map<String, Value>, others: &Map<String, Value>) -> Option<String> {
    let names = fields.keys().chain(others.keys());
    names.into_iter().find(|name| fields.get(*name) != others.get(*name)).cloned()
}
