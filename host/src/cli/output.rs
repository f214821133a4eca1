//! What commands print: one JSON document with `--json`, else text that no plugin and no caller can forge lines or colours
//! into. Not here: calls to the host.

use std::io::Write as _;
use std::path::Path;

use chrono::{DateTime, SecondsFormat};
use serde_json::Value;

use super::failure::Failure;
use crate::error::Error;

/// How to print.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    /// As JSON.
    pub(crate) json: bool,
}

impl Printer {
    /// Prints what a command came to: the value itself, or the text made of it.
    pub(crate) fn result(self, value: &Value, text: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        if self.json {
            return put(&format!("{value:#}\n"));
        }
        let text = text(value);
        if text.is_empty() { Ok(()) } else { put(&format!("{}\n", text.trim_end_matches('\n'))) }
    }
}

/// Writes to standard output at once. Whoever reads it may have had enough (`| head`): that is no error to speak of.
pub(crate) fn put(text: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::NobodyReads),
        Err(error) => Err(Error::io("cannot write the output")(error).into()),
    }
}

/// Columns as wide as their widest entry; the last one is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{:<width$}", printable(cell), width = *width));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Text without what a terminal acts upon: control characters, and those that turn the direction of writing.
pub(crate) fn printable(text: &str) -> String {
    let acts = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A time as people write it, in UTC; nothing for 0.
pub(crate) fn time(unix_ms: u64) -> String {
    let time = i64::try_from(unix_ms).ok().filter(|ms| *ms > 0).and_then(DateTime::from_timestamp_millis);
    time.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)).unwrap_or_default()
}

/// Reads a file, naming it in the error.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| unreadable(path, &error))
}

/// Reads a text file, naming it in the error.
pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::invalid("file_unreadable", "", format!("cannot read {}: {error}", path.display()))
}

/// A field of an answer as text.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A field of an answer as it is written: a text without its quotes, nothing for null.
pub(crate) fn cell(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// The items of a list in an answer.
pub(crate) fn items<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// A digest's beginning: enough to tell one from another.
pub(crate) fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_upon_the_terminal() {
        assert_eq!(printable("plain ünïcode 😀"), "plain ünïcode 😀");
        let hostile = "\u{1b}[31mred\u{7}\r\nforged line\u{9b}2J\u{202e}txt\u{2028}\0";
        let safe = printable(hostile);
        assert_eq!(safe, r"\u{1b}[31mred\u{7}\r\nforged line\u{9b}2J\u{202e}txt\u{2028}\u{0}");
        assert!(!table(&[vec![hostile.into(), hostile.into()]]).contains(['\n', '\u{1b}']));
    }

    #[test]
    fn times_are_in_utc() {
        assert_eq!(time(1_795_268_531_042), "2026-11-21T13:42:11.042Z");
        assert_eq!((time(0), time(u64::MAX)), (String::new(), String::new()));
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "long".into(), "x".into()], vec!["bcd".into(), "e".into(), String::new()]];
        assert_eq!(table(&rows), "a    long  x\nbcd  e");
    }
}
