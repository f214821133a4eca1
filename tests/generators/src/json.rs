//! JSON that may be wrong: keys twice, numbers that do not fit, nesting without end, pieces that are not JSON at all. Not
//! here: what any body should hold.

use std::fmt;

use crate::Draw;

/// A JSON value, or nearly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// Written as it is.
    Number(String),
    /// Written with escapes.
    Text(String),
    /// `[…]`
    List(Vec<Self>),
    /// `{…}`, in this order, the same key perhaps twice.
    Object(Vec<(String, Self)>),
    /// Written as it is, JSON or not.
    Raw(String),
}

impl Json {
    /// An object.
    #[must_use]
    pub fn object<'k>(entries: impl IntoIterator<Item = (&'k str, Self)>) -> Self {
        Self::Object(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// A list of texts.
    #[must_use]
    pub fn texts<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Self {
        Self::List(texts.into_iter().map(|text| text.as_ref().into()).collect())
    }

    /// Puts an entry in, or another value to it.
    pub fn set(&mut self, key: &str, value: Self) {
        let Self::Object(entries) = self else { return };
        match entries.iter_mut().find(|(name, _)| name == key) {
            Some((_, place)) => *place = value,
            None => entries.push((key.to_owned(), value)),
        }
    }

    /// Any value.
    pub fn any(draw: &mut Draw<'_>) -> Self {
        Self::any_of_depth(draw, 3)
    }

    fn any_of_depth(draw: &mut Draw<'_>, depth: usize) -> Self {
        match draw.below(if depth == 0 { 6 } else { 10 }) {
            0 => Self::Null,
            1 => Self::Bool(draw.below(2) == 1),
            2 | 3 => Self::Number(draw.number()),
            4 => Self::Text(draw.text()),
            5 => Self::Raw(
                draw.pick(&["", "\"\\ud800\"", "\"\\x\"", "[1,]", "{\"a\":}", "'a'", "nul", "\"a", "1 2"]).into(),
            ),
            6 | 7 => Self::List((0..draw.below(4)).map(|_| Self::any_of_depth(draw, depth - 1)).collect()),
            8 => Self::Object((0..draw.below(4)).map(|_| (draw.text(), Self::any_of_depth(draw, depth - 1))).collect()),
            _ => Self::deep(draw),
        }
    }

    /// Nested up to some thousands of levels, closed or not.
    fn deep(draw: &mut Draw<'_>) -> Self {
        let levels = 1 << draw.below(13);
        let (open, close) = draw.pick(&[("[", "]"), ("{\"a\":", "}"), ("[{\"text\":", "}]")]);
        let closed = if draw.one_in(8) { 0 } else { levels };
        Self::Raw(format!("{}0{}", open.repeat(levels), close.repeat(closed)))
    }

    /// Changes one thing somewhere within.
    pub fn mutate(&mut self, draw: &mut Draw<'_>) {
        let goes_on = !draw.one_in(4);
        match self {
            Self::List(values) if goes_on && !values.is_empty() => {
                let at = draw.below(values.len());
                match draw.below(6) {
                    0..=2 => values[at].mutate(draw),
                    3 => drop(values.remove(at)),
                    4 => values.insert(at, Self::any(draw)),
                    _ => {
                        let copies = vec![values[at].clone(); 1 << draw.below(8)];
                        values.extend(copies);
                    }
                }
            }
            Self::Object(entries) if goes_on && !entries.is_empty() => {
                let at = draw.below(entries.len());
                match draw.below(7) {
                    0..=2 => entries[at].1.mutate(draw),
                    3 => drop(entries.remove(at)),
                    4 => entries[at].0 = draw.text(),
                    5 => {
                        let key = entries[at].0.clone();
                        entries.push((key, Self::any(draw)));
                    }
                    _ => entries.push((draw.text(), Self::any(draw))),
                }
            }
            other => *other = Self::any(draw),
        }
    }

    /// The text as bytes; once in a while damaged where JSON does not look.
    pub fn into_bytes(self, draw: &mut Draw<'_>) -> Vec<u8> {
        let mut bytes = self.to_string().into_bytes();
        if draw.one_in(24) {
            draw.damage(&mut bytes);
        }
        bytes
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<usize> for Json {
    fn from(number: usize) -> Self {
        Self::Number(number.to_string())
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(text) | Self::Raw(text) => f.write_str(text),
            Self::Text(text) => write_text(f, text),
            Self::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if index == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
            Self::Object(entries) => {
                f.write_str("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { "," })?;
                    write_text(f, key)?;
                    write!(f, ":{value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(f, "\\{character}")?,
            control if control.is_control() && u32::from(control) < 0x20 => write!(f, "\\u{:04x}", u32::from(control))?,
            other => write!(f, "{other}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_json() {
        let value =
            Json::object([("a\n\"", Json::texts(["b"])), ("c", Json::Null), ("d", 1.into()), ("e", true.into())]);
        assert_eq!(value.to_string(), r#"{"a\u000a\"":["b"],"c":null,"d":1,"e":true}"#);
    }

    #[test]
    fn nothing_changes_without_bytes_and_something_does_with_them() {
        let mut value = Json::object([("a", 1.into())]);
        value.set("a", 2.into());
        assert_eq!(value.to_string(), r#"{"a":2}"#);
        let changed = (0..100).filter(|seed| {
            let choices = crate::seeded_bytes(*seed, 64);
            let mut other = value.clone();
            other.mutate(&mut Draw::new(&choices));
            other != value
        });
        assert!(changed.count() > 90);
    }
}
