//! Stop strings on a stream of text: nothing of a stop string, nor of what may become one, is let through. Not here:
//! stop tokens, which are the engine's.

/// Watches text for stop strings.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    strings: Vec<String>,
    held: String,
    is_met: bool,
}

impl StopMatcher {
    /// Watches for these; none of them is empty.
    pub(crate) fn new(strings: &[String]) -> Self {
        Self { strings: strings.to_vec(), held: String::new(), is_met: false }
    }

    /// Takes text, returns what may be let through now, and whether a stop string was met.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        if self.strings.is_empty() {
            return (text.to_owned(), false);
        }
        self.held.push_str(text);
        if let Some(at) = self.strings.iter().filter_map(|string| self.held.find(string)).min() {
            let mut before = std::mem::take(&mut self.held);
            before.truncate(at);
            self.is_met = true;
            return (before, true);
        }
        let kept = self.strings.iter().map(|string| overlap(&self.held, string)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Whether one of them was met.
    pub(crate) const fn is_met(&self) -> bool {
        self.is_met
    }

    /// What is held back still; the text has ended.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length in bytes of the longest end of `text` that is a proper beginning of `string`.
fn overlap(text: &str, string: &str) -> usize {
    let longest = text.len().min(string.len() - 1);
    (1..=longest)
        .rev()
        .find(|length| string.is_char_boundary(*length) && text.ends_with(&string[..*length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(strings: &[&str], pieces: &[&str]) -> (String, bool) {
        let strings: Vec<_> = strings.iter().map(|string| (*string).to_owned()).collect();
        let mut matcher = StopMatcher::new(&strings);
        let mut out = String::new();
        for piece in pieces {
            let (text, stopped) = matcher.push(piece);
            out.push_str(&text);
            if stopped {
                return (out, true);
            }
        }
        (out + &matcher.finish(), false)
    }

    #[test]
    fn a_stop_string_split_over_pieces_is_met() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
        assert_eq!(run(&["END"], &["one E", "N", "E two"]), ("one ENE two".into(), false));
        assert_eq!(run(&["b", "ab"], &["xxa", "b"]), ("xx".into(), true));
        assert_eq!(run(&["aab"], &["aaa", "b"]), ("a".into(), true));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn characters_are_not_split() {
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".into(), false));
        assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), true));
        assert_eq!(run(&["\n\n"], &["a\n", "b\n", "\n"]), ("a\nb".into(), true));
    }

    #[test]
    fn pieces_do_not_matter() {
        let text = "the quick brown fox jumps over the lazy dog. STOP and go";
        let whole = run(&["STOP", "lazy cat", "over and"], &[text]);
        for size in 1..9 {
            let pieces: Vec<String> =
                text.as_bytes().chunks(size).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(run(&["STOP", "lazy cat", "over and"], &pieces), whole);
        }
    }
}
