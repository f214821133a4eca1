//! Takes secrets out of what is recorded: the value itself, and the value as base64, hexadecimal, percent-encoded or escaped, in
//! any text. Not here: what a plugin makes of a secret in other ways (a signature, a hash), which nobody can tell from other text.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::Value;

/// Characters of base64 that are the value's own, below which a match says nothing.
const BASE64_CORE_CHARS_MIN: usize = 6;

/// What stands in a recording for a secret; also what a plugin that is replayed is given for it.
pub(crate) fn placeholder(name: &str) -> String {
    format!("{{{{secret:{name}}}}}")
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn unbase64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// The secrets that a request has read.
#[derive(Default)]
pub(crate) struct Scrub {
    hidden: Vec<Hidden>,
}

struct Hidden {
    value: String,
    placeholder: String,
    /// The value as it may be written.
    written: Vec<String>,
    /// The middle of the value in base64, by where in a group of three bytes it begins.
    in_base64: Vec<String>,
}

impl Scrub {
    pub(crate) fn hide(&mut self, name: &str, value: &str) {
        if value.is_empty() || self.hidden.iter().any(|hidden| hidden.value == value) {
            return;
        }
        let escaped = Value::from(value).to_string();
        let escaped = escaped.trim_matches('"').to_owned();
        let hexadecimal = |digits: &[u8; 16]| -> String {
            let digit = |nibble: u8| digits.get(usize::from(nibble)).copied().map_or('0', char::from);
            value.bytes().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
        };
        let mut written = vec![value.to_owned(), escaped, percent(value)];
        if value.len() >= BASE64_CORE_CHARS_MIN {
            written.extend([hexadecimal(b"0123456789abcdef"), hexadecimal(b"0123456789ABCDEF")]);
        }
        // The longest first: one may be the beginning of another.
        written.sort_by_key(|text| std::cmp::Reverse(text.len()));
        written.dedup();
        let in_base64 = (0..3).flat_map(|before| {
            [STANDARD_NO_PAD.encode(padded(value, before)), URL_SAFE_NO_PAD.encode(padded(value, before))]
                .map(|text| middle(&text, before, value.len()))
        });
        let mut in_base64: Vec<String> = in_base64.filter(|core| core.len() >= BASE64_CORE_CHARS_MIN).collect();
        in_base64.dedup();
        let placeholder = placeholder(name);
        self.hidden.push(Hidden { value: value.to_owned(), placeholder, written, in_base64 });
        // A secret within another goes last.
        self.hidden.sort_by_key(|hidden| std::cmp::Reverse(hidden.value.len()));
    }

    /// As JSON text, without what is hidden.
    pub(crate) fn json(&self, value: &impl Serialize) -> String {
        self.clean(serde_json::to_value(value).unwrap_or_default()).to_string()
    }

    pub(crate) fn clean(&self, value: Value) -> Value {
        if self.hidden.is_empty() {
            return value;
        }
        match value {
            Value::String(text) => self.text(&text).into(),
            Value::Array(items) => items.into_iter().map(|item| self.clean(item)).collect(),
            Value::Object(fields) => {
                let is_octets = fields.len() == 1;
                let clean = |(name, value): (String, Value)| match (name.as_str(), value) {
                    ("base64", Value::String(text)) if is_octets => (name, self.octets(&text).into()),
                    (_, value) => (self.text(&name), self.clean(value)),
                };
                Value::Object(fields.into_iter().map(clean).collect())
            }
            other => other,
        }
    }

    fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for Hidden { placeholder, written, in_base64, .. } in &self.hidden {
            for form in written.iter().filter(|form| *form != placeholder) {
                if text.contains(form.as_str()) {
                    text = text.replace(form.as_str(), placeholder);
                }
            }
            for core in in_base64 {
                text = without_base64(text, core, placeholder);
            }
        }
        text
    }

    /// Bytes that are no text.
    fn octets(&self, text: &str) -> String {
        let Some(mut bytes) = unbase64(text) else { return text.to_owned() };
        for Hidden { value, placeholder, .. } in &self.hidden {
            while let Some(at) = bytes.windows(value.len()).position(|window| window == value.as_bytes()) {
                // A placeholder that holds its own secret would be found for ever.
                if placeholder.contains(value.as_str()) {
                    break;
                }
                drop(bytes.splice(at..at + value.len(), placeholder.bytes()));
            }
        }
        base64(&bytes)
    }
}

fn padded(value: &str, before: usize) -> Vec<u8> {
    std::iter::repeat_n(0, before).chain(value.bytes()).collect()
}

/// The characters that are the value's alone, whatever stands before and after it.
fn middle(text: &str, before: usize, bytes: usize) -> String {
    let (first, end) = ((before * 8).div_ceil(6), (before + bytes) * 8 / 6);
    text.get(first..end).unwrap_or_default().to_owned()
}

/// Takes the characters at both ends along, of which some bits are the secret's.
fn without_base64(mut text: String, core: &str, placeholder: &str) -> String {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte);
    let mut from = 0;
    while let Some(at) = text.get(from..).and_then(|rest| rest.find(core)).map(|at| at + from) {
        let bytes = text.as_bytes();
        let first = at - usize::from(at.checked_sub(1).and_then(|at| bytes.get(at)).is_some_and(is_base64));
        let mut end = at + core.len();
        end += usize::from(bytes.get(end).is_some_and(is_base64));
        while bytes.get(end) == Some(&b'=') {
            end += 1;
        }
        text.replace_range(first..end, placeholder);
        from = first + placeholder.len();
    }
    text
}

fn percent(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    value.bytes().map(escape).collect()
}
