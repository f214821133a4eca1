//! Patterns of module names: Python's regular expressions, run by a bounded engine. What the two read differently, or only
//! Python knows (look-around, back-references, possessive repetition), is refused. Not here: what a match means.

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ast::{self, Ast, Visitor};

use super::AdapterRejection;
use super::rejection::short;

/// Bytes of one pattern.
const PATTERN_BYTES_MAX: usize = 4096;
/// Groups and classes inside each other.
const NESTING_MAX: u32 = 32;
/// Bytes that a compiled pattern may take.
const COMPILED_BYTES_MAX: usize = 64 << 10;

/// A pattern. Names of modules are ASCII and one line, which is where both languages agree.
#[derive(Debug)]
pub(super) enum Pattern {
    /// A name, as nearly all patterns are; it costs next to nothing.
    Name(NamePattern),
    Compiled(Regex),
}

/// Characters in a row at the end of a name.
#[derive(Debug)]
pub(super) struct NamePattern {
    /// `None` is a dot, which stands for any character.
    characters: Vec<Option<u8>>,
    /// Began with `^`: no part of the name may come before it.
    is_whole: bool,
}

impl Pattern {
    /// Matches names as a whole: `re.fullmatch(pattern, name)`.
    pub(super) fn whole(key: &str, pattern: &str) -> Result<Self, AdapterRejection> {
        compile(key, pattern, |pattern| format!("^(?:{pattern})$")).map(Self::Compiled)
    }

    /// Matches the end of a name, from the beginning or after a dot: `re.match(rf"(.*\.)?({pattern})$", name)`, as PEFT
    /// looks up `rank_pattern` and `alpha_pattern`.
    pub(super) fn ending(key: &str, pattern: &str) -> Result<Self, AdapterRejection> {
        match NamePattern::of(pattern) {
            Some(name) => Ok(Self::Name(name)),
            None => compile(key, pattern, |pattern| format!(r"^(?:(?:.*\.)?(?:{pattern})$)")).map(Self::Compiled),
        }
    }

    /// Whether it takes more than comparing characters.
    pub(super) fn is_compiled(&self) -> bool {
        matches!(self, Self::Compiled(_))
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(pattern) => pattern.matches(name.as_bytes()),
            Self::Compiled(regex) => regex.is_match(name.as_bytes()),
        }
    }
}

impl NamePattern {
    /// `layers.1.self_attn.q_proj`, with `^`, `$` and `\.` where they are usual.
    fn of(pattern: &str) -> Option<Self> {
        let anchored = pattern.strip_prefix('^');
        let rest = anchored.unwrap_or(pattern);
        let mut bytes = rest.strip_suffix('$').unwrap_or(rest).bytes();
        let mut characters = Vec::new();
        while let Some(byte) = bytes.next() {
            characters.push(match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => Some(byte),
                b'.' => None,
                b'\\' if bytes.next() == Some(b'.') => Some(b'.'),
                _ => return None,
            });
        }
        (1..=PATTERN_BYTES_MAX).contains(&pattern.len()).then_some(Self { characters, is_whole: anchored.is_some() })
    }

    fn matches(&self, name: &[u8]) -> bool {
        let Some(start) = name.len().checked_sub(self.characters.len()) else { return false };
        let (before, end) = name.split_at(start);
        let is_part = before.is_empty() || (!self.is_whole && before.ends_with(b"."));
        is_part && self.characters.iter().zip(end).all(|(character, byte)| character.is_none_or(|own| own == *byte))
    }
}

fn compile(key: &str, pattern: &str, place: fn(&str) -> String) -> Result<Regex, AdapterRejection> {
    let refuse =
        |why: &str| Err(AdapterRejection::Unsupported(format!("the pattern `{}` in `{key}` {why}", short(pattern))));
    if pattern.len() > PATTERN_BYTES_MAX {
        return refuse(&format!("has {} bytes, at most {PATTERN_BYTES_MAX} are allowed", pattern.len()));
    }
    if !pattern.is_ascii() {
        return refuse("is not ASCII, as all names of modules are");
    }
    // By itself first: a pattern that closes a group of ours would be another one.
    let parsed = match ast::parse::ParserBuilder::new().nest_limit(NESTING_MAX).build().parse(pattern) {
        Ok(parsed) => parsed,
        Err(error) => {
            return refuse(&format!("is not understood (look-around and back-references are not): {}", error.kind()));
        }
    };
    if let Err(construct) = ast::visit(&parsed, Dialect) {
        return refuse(&format!("has {construct}, which Python reads differently or not at all"));
    }
    let built = RegexBuilder::new(&place(pattern))
        .unicode(false)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .nest_limit(NESTING_MAX + 4)
        .build();
    match built {
        Ok(regex) => Ok(regex),
        Err(regex::Error::CompiledTooBig(_)) => refuse("is too large once compiled: write it shorter"),
        Err(_) => refuse("is not understood"),
    }
}

/// Stops at the first construct that does not mean the same in Python.
struct Dialect;

impl Visitor for Dialect {
    type Output = ();
    type Err = &'static str;

    fn finish(self) -> Result<(), Self::Err> {
        Ok(())
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        match ast {
            Ast::Repetition(repetition) if matches!(*repetition.ast, Ast::Repetition(_)) => {
                Err("a repetition of a repetition")
            }
            Ast::ClassUnicode(_) => Err("a Unicode class"),
            Ast::Literal(literal) if matches!(literal.kind, ast::LiteralKind::HexBrace(_)) => Err("`\\x{`"),
            Ast::Assertion(assertion) => match assertion.kind {
                ast::AssertionKind::StartLine
                | ast::AssertionKind::EndLine
                | ast::AssertionKind::StartText
                | ast::AssertionKind::WordBoundary
                | ast::AssertionKind::NotWordBoundary => Ok(()),
                _ => Err("an assertion of another dialect"),
            },
            Ast::Flags(set) => flags(&set.flags),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::CaptureName { starts_with_p: false, .. } => Err("`(?<name>`"),
                ast::GroupKind::NonCapturing(set) => flags(set),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), Self::Err> {
        match item {
            ast::ClassSetItem::Bracketed(_) | ast::ClassSetItem::Ascii(_) => Err("a class inside a class"),
            ast::ClassSetItem::Unicode(_) => Err("a Unicode class"),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), Self::Err> {
        Err("an operation on classes")
    }
}

fn flags(set: &ast::Flags) -> Result<(), &'static str> {
    let known = |item: &ast::FlagsItem| match item.kind {
        ast::FlagsItemKind::Negation => true,
        ast::FlagsItemKind::Flag(flag) => {
            matches!(flag, ast::Flag::CaseInsensitive | ast::Flag::MultiLine | ast::Flag::DotMatchesNewLine)
        }
    };
    if set.items.iter().all(known) { Ok(()) } else { Err("a flag other than i, m and s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "model.layers.1.self_attn.q_proj";

    /// The verdicts are those of Python's `re`.
    #[test]
    fn a_whole_name_is_matched_as_fullmatch_does() {
        for (pattern, expected) in [
            (r".*layers\.[01]\.self_attn\.(q_proj|v_proj)", true),
            (r".*\.q_proj$", true),
            (r"^model\..*q_proj", true),
            (r"\A.*_proj", true),
            (r"(?i)MODEL.*Q_PROJ", true),
            (r"(?P<head>.*)\.q_proj", true),
            (r".*\d+.*\bq_proj\b", true),
            ("q_proj|model.layers.1.self_attn.q_proj", true),
            ("q_proj", false),
            (r"layers\.1", false),
            ("model|.*v_proj", false),
            ("", false),
        ] {
            assert_eq!(Pattern::whole("target_modules", pattern).unwrap().matches(NAME), expected, "{pattern}");
        }
    }

    #[test]
    fn an_ending_is_matched_as_peft_looks_up_its_patterns() {
        for (pattern, expected) in [
            ("q_proj", true),
            ("proj", false),
            (r"self_attn\.q_proj", true),
            ("layers.1.self_attn.q_proj", true),
            ("^model.layers.1.self_attn.q_proj", true),
            ("^layers.1.self_attn.q_proj", false),
            ("^self_attn.q_proj|q_proj", true),
            (r"layers\.\d+\.self_attn\.(q|v)_proj", true),
            ("q_proj$", true),
            ("model", false),
            (".*", true),
            ("layers.1.self_attn.q_proj$", true),
            (r"layers\.1\.self_attn\.q_proj", true),
            (r"self_attn\.q\.proj", false),
            ("self_attn.q.proj", true),
            ("elf_attn.q_proj", false),
            (".self_attn.q_proj", false),
            ("..self_attn.q_proj", true),
            ("^model.layers.2.self_attn.q_proj", false),
            (r"model\.layers\.1\.self_attn\.q_proj", true),
            ("x.model.layers.1.self_attn.q_proj", false),
            ("", false),
        ] {
            assert_eq!(Pattern::ending("rank_pattern", pattern).unwrap().matches(NAME), expected, "{pattern}");
            // The quick way and the engine agree.
            let compiled =
                compile("rank_pattern", pattern, |pattern| format!(r"^(?:(?:.*\.)?(?:{pattern})$)")).unwrap();
            assert_eq!(compiled.is_match(NAME.as_bytes()), expected, "{pattern}");
        }
    }

    #[test]
    fn what_python_reads_otherwise_is_refused() {
        for pattern in [
            r"(?=.*q_proj).*",
            r"(?<!x)q_proj",
            r"(a)\1",
            r"(?P<n>a)(?P=n)",
            "a++",
            "a*+",
            "(?>a)",
            "[a&&b]",
            "[[a]b]",
            "[[:alpha:]]",
            r"\p{L}",
            r"\x{61}",
            r"a\z",
            "(?x)a b",
            "(?U)a*",
            "(?<name>a)",
            "(",
            "a))|((b",
            "[",
            "*",
            "\u{212a}_proj",
            &"(".repeat(40),
            &"a".repeat(5000),
            "(?:a{1000}){1000}",
        ] {
            let refused = Pattern::whole("target_modules", pattern).unwrap_err();
            assert_eq!(refused.code(), "adapter_unsupported", "{pattern}");
            assert!(Pattern::ending("rank_pattern", pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn catastrophic_patterns_come_to_an_end() {
        for pattern in ["(([a-z0-9_.]+)+)+!", "(a|a)*b", r"(.*)*\d{1,30}x"] {
            assert!(!Pattern::whole("target_modules", pattern).unwrap().matches(&NAME.repeat(20)));
        }
    }

    /// What matching costs is bounded by what a pattern may take once compiled.
    #[test]
    fn a_pattern_that_is_large_once_compiled_is_refused() {
        let large = |times: usize| format!("[a-z_.0-9]{{0,{times}}}x");
        let largest = (1..5000).take_while(|times| Pattern::ending("rank_pattern", &large(*times)).is_ok()).count();
        assert!((200..4000).contains(&largest), "{largest}");
        let refused = Pattern::ending("rank_pattern", &large(largest + 1)).unwrap_err();
        assert!(refused.to_string().contains("too large once compiled"), "{refused}");
        // It is the limit that refuses it, and not the language.
        let place = |times| format!(r"^(?:(?:.*\.)?(?:{})$)", large(times));
        let compiled =
            |times, bytes_max| RegexBuilder::new(&place(times)).unicode(false).size_limit(bytes_max).build().is_ok();
        assert!(compiled(largest, COMPILED_BYTES_MAX) && !compiled(largest + 1, COMPILED_BYTES_MAX));
        assert!(compiled(largest + 1, 2 * COMPILED_BYTES_MAX));
    }
}
