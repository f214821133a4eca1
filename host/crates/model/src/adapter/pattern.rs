//! Patterns of module names: Python's regular expressions, run by a bounded engine. What the two read differently, or only
//! Python knows (look-around, back-references, possessive repetition), is refused. Not here: what a match means.

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ast::{self, Ast, Visitor};

use super::AdapterRejection;

/// Bytes of one pattern.
const PATTERN_BYTES_MAX: usize = 4096;
/// Groups and classes inside each other.
const NESTING_MAX: u32 = 32;
/// Bytes that a compiled pattern may take.
const COMPILED_BYTES_MAX: usize = 256 << 10;
/// Bytes that the compiled patterns of one key may take together: a page of short patterns would take seconds to compile.
const COMPILED_BYTES_ALL_MAX: usize = 16 << 20;

/// A compiled pattern. Names of modules are ASCII and one line, which is where both languages agree.
#[derive(Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// Matches names as a whole: `re.fullmatch(pattern, name)`.
    pub(super) fn whole(key: &str, pattern: &str) -> Result<Self, AdapterRejection> {
        compile(key, pattern, 1, |pattern| format!("^(?:{pattern})$"))
    }

    /// Matches the end of a name, from the beginning or after a dot: `re.match(rf"(.*\.)?({pattern})$", name)`, as PEFT
    /// looks up `rank_pattern` and `alpha_pattern`. It is one of `count` patterns.
    pub(super) fn ending(key: &str, pattern: &str, count: usize) -> Result<Self, AdapterRejection> {
        compile(key, pattern, count, |pattern| format!(r"^(?:(?:.*\.)?(?:{pattern})$)"))
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        self.0.is_match(name.as_bytes())
    }
}

fn compile(key: &str, pattern: &str, count: usize, place: fn(&str) -> String) -> Result<Pattern, AdapterRejection> {
    let compiled_bytes_max = COMPILED_BYTES_MAX.min(COMPILED_BYTES_ALL_MAX / count.max(1));
    let refuse = |why: &str| {
        let shown: String = pattern.chars().take(96).flat_map(char::escape_debug).collect();
        Err(AdapterRejection::Unsupported(format!("the pattern `{shown}` in `{key}` {why}")))
    };
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
        .size_limit(compiled_bytes_max)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .nest_limit(NESTING_MAX + 4)
        .build();
    match built {
        Ok(regex) => Ok(Pattern(regex)),
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
    use std::time::Instant;

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
        ] {
            assert_eq!(Pattern::ending("rank_pattern", pattern, 1).unwrap().matches(NAME), expected, "{pattern}");
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
            assert!(Pattern::ending("rank_pattern", pattern, 1).is_err(), "{pattern}");
        }
    }

    #[test]
    fn catastrophic_patterns_take_no_time() {
        let started = Instant::now();
        for pattern in ["(([a-z0-9_.]+)+)+!", "(a|a)*b", r"(.*)*\d{1,30}x"] {
            assert!(!Pattern::whole("target_modules", pattern).unwrap().matches(&NAME.repeat(20)));
        }
        assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
    }
}
