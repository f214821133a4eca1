//! Takes secrets out of what is recorded: the value itself, and the value as base64, hexadecimal, percent-encoded or escaped, in
//! any text. Not here: what a plugin makes of a secret in other ways (a signature, a hash), which nobody can tell from other text.

use std::ops::Range;

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde::Serialize;
use serde_json::Value;

/// Bytes of a secret's value, below which nothing that is recorded after it can be kept.
pub(crate) const VALUE_BYTES_MIN: usize = 4;
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
    forms: Vec<Form>,
    /// Finds all forms of all secrets in one pass: what stands for a secret is never looked at again.
    finder: Option<AhoCorasick>,
}

struct Hidden {
    value: String,
    placeholder: String,
    /// The value as it may be written.
    written: Vec<String>,
    /// The middle of the value in base64, by where in a group of three bytes it begins.
    in_base64: Vec<String>,
}

/// What is looked for: of which secret it is, and whether it is the middle of its base64.
#[derive(Clone, Copy)]
struct Form {
    hidden: usize,
    is_base64: bool,
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
        written.sort_unstable();
        written.dedup();
        let in_base64 = (0..3).flat_map(|before| {
            [STANDARD_NO_PAD.encode(padded(value, before)), URL_SAFE_NO_PAD.encode(padded(value, before))]
                .map(|text| middle(&text, before, value.len()))
        });
        let mut in_base64: Vec<String> = in_base64.filter(|core| core.len() >= BASE64_CORE_CHARS_MIN).collect();
        in_base64.dedup();
        let placeholder = placeholder(name);
        self.hidden.push(Hidden { value: value.to_owned(), placeholder, written, in_base64 });
        let mut patterns: Vec<&str> = Vec::new();
        self.forms.clear();
        for (index, hidden) in self.hidden.iter().enumerate() {
            for (texts, is_base64) in [(&hidden.written, false), (&hidden.in_base64, true)] {
                patterns.extend(texts.iter().map(String::as_str));
                self.forms.extend(texts.iter().map(|_| Form { hidden: index, is_base64 }));
            }
        }
        // It fails for gigabytes only.
        let finder = AhoCorasick::new(patterns);
        self.finder = finder.inspect_err(|error| tracing::error!(%error, "secrets in recordings")).ok();
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
        match self.replaced(text.as_bytes()) {
            // Forms begin and end where characters do.
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => text.to_owned(),
        }
    }

    /// Bytes that are no text.
    fn octets(&self, text: &str) -> String {
        let replaced = unbase64(text).and_then(|bytes| self.replaced(&bytes));
        replaced.map_or_else(|| text.to_owned(), |bytes| base64(&bytes))
    }

    /// With what stands for the secrets in their place; nothing if none is there.
    fn replaced(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let places = self.places(bytes);
        let end = places.last()?.range.end;
        let (mut out, mut from) = (Vec::new(), 0);
        for Place { range, hidden } in places {
            out.extend_from_slice(bytes.get(from..range.start).unwrap_or_default());
            for hidden in hidden.iter().filter_map(|hidden| self.hidden.get(*hidden)) {
                out.extend_from_slice(hidden.placeholder.as_bytes());
            }
            from = range.end;
        }
        out.extend_from_slice(bytes.get(end..).unwrap_or_default());
        Some(out)
    }

    /// Where secrets are, in order. Those that overlap are one place, so that nothing of either is left, in which each is named
    /// once; one that lies within another is not named.
    fn places(&self, bytes: &[u8]) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        // By their ends, ascending.
        for found in self.finder.iter().flat_map(|finder| finder.find_overlapping_iter(bytes)) {
            let Some(form) = self.forms.get(found.pattern().as_usize()) else { continue };
            let range = if form.is_base64 { widened(bytes, found.range()) } else { found.range() };
            let mut place = Place { range, hidden: vec![form.hidden] };
            while let Some(last) = places.pop_if(|last| place.range.start < last.range.end) {
                place = last.merged(place);
            }
            places.push(place);
        }
        places
    }
}

/// A part of a text that is made of secrets.
struct Place {
    range: Range<usize>,
    /// Whose, by their numbers.
    hidden: Vec<usize>,
}

impl Place {
    /// With one that overlaps with it and was found later.
    fn merged(mut self, later: Self) -> Self {
        let within =
            |one: &Self, other: &Self| other.range.start <= one.range.start && one.range.end <= other.range.end;
        if within(&later, &self) {
            return self;
        }
        if within(&self, &later) {
            return later;
        }
        self.range = self.range.start.min(later.range.start)..self.range.end.max(later.range.end);
        for hidden in later.hidden {
            if !self.hidden.contains(&hidden) {
                self.hidden.push(hidden);
            }
        }
        self
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

/// Takes the characters of base64 at both ends along, of which some bits are the secret's.
fn widened(bytes: &[u8], Range { start: first, mut end }: Range<usize>) -> Range<usize> {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/-_".contains(byte);
    let before = first.checked_sub(1).and_then(|at| bytes.get(at)).is_some_and(is_base64);
    end += usize::from(bytes.get(end).is_some_and(is_base64));
    while bytes.get(end) == Some(&b'=') {
        end += 1;
    }
    first - usize::from(before)..end
}

fn percent(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let escape = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    value.bytes().map(escape).collect()
}
