//! Masks against brute force over a tiny vocabulary, and constraints that must be refused.

use std::time::{Duration, Instant};

use engine::{OutputState, is_allowed};

use super::*;

/// Tokens that overlap, begin and end inside characters, say nothing, or say what is not UTF-8. The last one ends a text, and so
/// does the one before it.
const TOKENS: [&[u8]; 27] = [
    b"a",
    b"b",
    b"c",
    b"ab",
    b"bc",
    b"abc",
    b"aab",
    b"cc",
    b"\xc3",
    b"\xa9",
    b"\xc3\xa9",
    b"a\xc3",
    b"\xa9b",
    b"\xa9\xc3",
    b"\"",
    b"{",
    b"}",
    b"\"a\"",
    b":",
    b"{\"",
    b"\":",
    b"\xff",
    b"\xe2\x82",
    b"\xac",
    b"",
    b"<end>",
    b"<stop>",
];
const EOS: [u32; 2] = [26, 25];

fn compiler() -> ConstraintCompiler {
    ConstraintCompiler::of_tokens(TOKENS.map(<[u8]>::to_vec).to_vec(), &EOS).unwrap()
}

/// Every byte is a token.
fn of_bytes() -> ConstraintCompiler {
    let tokens = (0..=255u8).map(|byte| vec![byte]).chain([Vec::new()]).collect();
    ConstraintCompiler::of_tokens(tokens, &[256]).unwrap()
}

fn workers() -> Arc<MaskWorkers> {
    Arc::new(MaskWorkers::start(2).unwrap())
}

fn regex(text: &str) -> Constraint {
    Constraint::Regex(text.into())
}

fn schema(text: &str) -> Constraint {
    Constraint::JsonSchema(text.into())
}

fn grammar(text: &str) -> Constraint {
    Constraint::Grammar(text.into())
}

/// Every text of a language up to some length: what is the beginning of one of them, and what is one.
struct Language(Vec<Vec<u8>>);

impl Language {
    /// All texts over these pieces, up to so many of them, that the expression matches.
    fn of_regex(text: &str, pieces: &[&str], length: usize) -> Self {
        let expression = regex::Regex::new(&format!("^(?:{text})$")).unwrap();
        let (mut all, mut ends) = (vec![String::new()], vec![String::new()]);
        for _ in 0..length {
            ends = ends.iter().flat_map(|end| pieces.iter().map(move |piece| format!("{end}{piece}"))).collect();
            all.extend_from_slice(&ends);
        }
        Self(all.into_iter().filter(|text| expression.is_match(text)).map(String::into_bytes).collect())
    }

    fn begins(&self, text: &[u8]) -> bool {
        self.0.iter().any(|whole| whole.starts_with(text))
    }

    fn has(&self, text: &[u8]) -> bool {
        self.0.iter().any(|whole| whole == text)
    }

    fn goes_on_after(&self, text: &[u8]) -> bool {
        self.0.iter().any(|whole| whole.len() > text.len() && whole.starts_with(text))
    }
}

/// Random outputs of up to `tokens_max` tokens: at each token, every token of the vocabulary is allowed that brute force allows.
fn compare(constraint: &Constraint, language: &Language, tokens_max: usize) {
    let (compiled, workers) = (Arc::new(compiler().compile(constraint).unwrap()), workers());
    let mut random = 88_172_645_463_325_252u64;
    for _ in 0..40 {
        let mut output = compiled.begin(&[], &workers).unwrap();
        let (mut text, mut tokens) = (Vec::new(), Vec::new());
        for _ in 0..tokens_max {
            let mask = output.mask();
            let words = mask.wait().unwrap_or_else(|| panic!("{constraint:?} after {text:?}"));
            let mut allowed = Vec::new();
            for (id, bytes) in (0..).zip(TOKENS) {
                let next = [&text[..], bytes].concat();
                let is_end = EOS.contains(&id);
                let expected = if is_end { language.has(&text) } else { !bytes.is_empty() && language.begins(&next) };
                let shown = String::from_utf8_lossy(&next).into_owned();
                assert_eq!(is_allowed(words, id), expected, "{constraint:?}: token {id} to make {shown:?}");
                if expected && !is_end {
                    allowed.push(id);
                }
            }
            // Told later of what came before, it stands where it stood.
            let mut later = compiled.begin(&tokens, &workers).unwrap();
            assert_eq!(later.mask().wait(), Some(words), "{constraint:?} after {tokens:?}");
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let Some(&id) = allowed.get(random as usize % allowed.len().max(1)) else { break };
            text.extend_from_slice(TOKENS[id as usize]);
            tokens.push(id);
            let expected = if language.has(&text) && !language.goes_on_after(&text) {
                OutputState::Complete
            } else {
                OutputState::Open
            };
            assert_eq!(output.push(id), Ok(expected), "{constraint:?} after {text:?}");
            if expected == OutputState::Complete {
                break;
            }
        }
    }
}

#[test]
fn a_token_is_allowed_if_the_text_with_it_begins_a_match() {
    // Every character that these tokens can make.
    let anything = ["a", "b", "c", "é", "ì", "€", "₩", "\"", "{", "}", ":"];
    // All that a walk can reach begins a text that is there: letters, and how many of them.
    for (text, letters, length) in [
        ("a+b", &["a", "b"][..], 11),
        ("(ab|abc)*c", &["a", "b", "c"], 9),
        ("é{2,3}", &["é"], 4),
        ("(a|é)+€?", &["a", "é", "€"], 8),
        ("[^ab]c{1,2}", &anything, 3),
        ("(ab)?(bc)?", &["a", "b", "c"], 5),
        ("aab|abc", &["a", "b", "c"], 4),
        ("a.c", &anything, 4),
        ("(?i:AB)c", &["a", "b", "c"], 4),
    ] {
        compare(&regex(text), &Language::of_regex(text, letters, length), 2);
    }
    let finite = ["ab", "abc", "aabé", "cc€"];
    let language = Language(finite.map(|text| text.as_bytes().to_vec()).to_vec());
    compare(&regex("ab|abc|aabé|cc€"), &language, 9);
    compare(&grammar("start: AB | \"aab\" tail | \"cc€\"\nAB: /abc?/\ntail: \"é\""), &language, 9);
}

#[test]
fn a_grammar_can_count_what_an_expression_cannot() {
    let nested = (0..12).map(|depth| [vec![b'a'; depth], b"c".to_vec(), vec![b'b'; depth]].concat()).collect();
    compare(&grammar("start: \"a\" start \"b\" | \"c\""), &Language(nested), 8);
}

#[test]
fn a_schema_is_kept_to_byte_by_byte() {
    let texts = |texts: &[&str]| Language(texts.iter().map(|text| text.as_bytes().to_vec()).collect());
    compare(&schema(r#"{"enum": ["a", "ab", "é", "c€"]}"#), &texts(&["\"a\"", "\"ab\"", "\"é\"", "\"c€\""]), 9);
    let tight = r#""x-guidance": {"whitespace_flexible": false}, "additionalProperties": false, "type": "object""#;
    let one = format!(r#"{{{tight}, "properties": {{"a": {{"enum": ["b", "c"]}}}}, "required": ["a"]}}"#);
    compare(&schema(&one), &texts(&[r#"{"a":"b"}"#, r#"{"a":"c"}"#]), 9);
    let optional = format!(r#"{{{tight}, "properties": {{"a": {{"const": "ab"}}}}}}"#);
    compare(&schema(&optional), &texts(&["{}", r#"{"a":"ab"}"#]), 9);
}

#[test]
fn what_is_not_allowed_is_refused_and_so_is_an_early_end() {
    let (compiled, workers) = (Arc::new(compiler().compile(&regex("ab")).unwrap()), workers());
    for id in [1, 25, 26, 24, 999] {
        let mut output = compiled.begin(&[], &workers).unwrap();
        assert!(output.push(id).is_err(), "{id}");
        assert!(output.mask().wait().is_none(), "{id}: it does not go on");
    }
    assert_eq!(compiled.begin(&[1], &workers).err().map(|error| error.code()), Some("unsatisfiable_constraint"));
    // Told of all of it, or with nothing to say, it only ends.
    let nothing = Arc::new(compiler().compile(&regex("")).unwrap());
    for mut output in [compiled.begin(&[0, 1], &workers).unwrap(), nothing.begin(&[], &workers).unwrap()] {
        let mask = output.mask();
        let allowed: Vec<u32> = (0..27).filter(|id| is_allowed(mask.wait().unwrap(), *id)).collect();
        assert_eq!(allowed, [25, 26]);
        assert_eq!(output.push(25), Ok(OutputState::Complete));
    }
    // Waiting for a match of more, it may end where it matches.
    let open = Arc::new(compiler().compile(&regex("a+")).unwrap());
    let mut output = open.begin(&[0], &workers).unwrap();
    assert_eq!(output.push(25), Ok(OutputState::Complete));
}

#[test]
fn what_cannot_be_done_is_refused_and_named() {
    let compiler = compiler();
    for (constraint, named) in [
        (schema("{"), "EOF"),
        (schema("3"), "schema"),
        (schema(r#"{"type": "object", "unevaluatedProperties": false}"#), "unevaluatedProperties"),
        (schema(r#"{"type": "array", "uniqueItems": true}"#), "uniqueItems"),
        (schema(r#"{"type": "whatever"}"#), "whatever"),
        (schema(r##"{"$ref": "#/$defs/absent"}"##), "absent"),
        (schema(r#"{"$ref": "http://127.0.0.1:1/a"}"#), "127.0.0.1"),
        (schema(r#"{"oneOf": [{"type": "string"}, {"minLength": 2}]}"#), "oneOf"),
        (schema(r#"{"type": "string", "pattern": "("}"#), "("),
        (schema("false"), ""),
        (regex("("), "("),
        (regex(r"(a)\1"), ""),
        (regex("a(?=b)"), ""),
        (grammar("a"), ""),
        (grammar("begin: \"a\""), "start"),
        (grammar("start: absent"), "absent"),
        (grammar("start: <|no_such_token|>"), "cannot be read"),
    ] {
        let error = compiler.compile(&constraint).err().unwrap_or_else(|| panic!("{constraint:?} was taken"));
        let message = error.to_string();
        assert!(message.contains(named) && message.len() < 600, "{constraint:?}: {message}");
        assert_eq!(error.blame(), Blame::Caller);
        assert!(!message.contains("backtrace") && !message.contains("panic"), "{constraint:?}: {message}");
    }
    // Nothing that these tokens can say.
    let error = compiler.compile(&regex("xyz")).err().unwrap();
    assert_eq!(error.code(), "unsatisfiable_constraint", "{error}");
}

#[test]
fn a_lexer_that_is_lost_ends_its_outputs_and_no_thread() {
    let (compiled, workers) = (Arc::new(compiler().compile(&regex("(a|b)+c")).unwrap()), workers());
    assert!(compiled.bytes() > 0);
    assert_eq!(compiled.grown_bytes(), 0);
    let mut output = compiled.begin(&[], &workers).unwrap();
    assert_eq!(output.push(0), Ok(OutputState::Open));
    let mut lost = compiled.fresh.lock().unwrap().clone();
    // It panics while it has the lexer that they share.
    let panics = || lost.parser.with_recognizer(|_| "no number".parse::<u32>().map(drop).unwrap());
    assert!(caught(panics).is_none());
    assert!(output.mask().wait().is_none());
    assert!(output.push(1).is_err());
    assert!(compiled.is_broken());
    assert_eq!((compiled.measure(), compiled.bytes()), (u64::MAX, u64::MAX));
    assert!(compiled.begin(&[0], &workers).is_err());
    for _ in 0..4 {
        let other = Arc::new(compiler().compile(&regex("ab")).unwrap());
        assert!(other.begin(&[0], &workers).unwrap().mask().wait().is_some());
    }
}

/// What grows out of little text.
fn bombs() -> Vec<Constraint> {
    let rules = |count: usize| -> String {
        let rules = (0..count).map(|rule| format!("r{rule}: r{}\n", rule + 1));
        format!("start: r0\n{}r{count}: \"a\"\n", rules.collect::<String>())
    };
    let tokens = |count: usize| -> String {
        let tokens = (0..count).map(|token| format!("T{token}: T{} \"a\"\n", token + 1));
        format!("start: T0\n{}T{count}: \"a\"\n", tokens.collect::<String>())
    };
    let doubled = |count: usize| -> String {
        let rules = (0..count).map(|rule| format!("r{rule}: r{0} r{0} | r{0}\n", rule + 1));
        format!("start: r0\n{}r{count}: \"a\" | \"b\" |\n", rules.collect::<String>())
    };
    let doubled_tokens = |count: usize| -> String {
        let tokens = (0..count).map(|token| format!("T{token}: (T{0} T{0} | T{0} \"c\")*\n", token + 1));
        format!("start: T0\n{}T{count}: \"a\" | /b{{1,99}}/\n", tokens.collect::<String>())
    };
    let references = |count: usize| -> String {
        let defs = (0..count).map(|def| format!(r##""d{def}": {{"$ref": "#/$defs/d{}"}},"##, def + 1));
        format!(r##"{{"$ref": "#/$defs/d0", "$defs": {{{} "d{count}": {{}}}}}}"##, defs.collect::<String>())
    };
    let crossed = |count: usize| -> String {
        let all = (0..count)
            .map(|n| format!(r#"{{"anyOf": [{{"minimum": {n}}}, {{"minLength": {n}}}, {{"pattern": "a{n}"}}]}}"#));
        format!(r#"{{"allOf": [{}]}}"#, all.collect::<Vec<_>>().join(","))
    };
    let nested = |depth: usize| -> String { format!("{}{}{}", r#"{"items": "#.repeat(depth), "{}", "}".repeat(depth)) };
    vec![
        grammar(&rules(4000)),
        grammar(&tokens(3000)),
        grammar(&doubled(60)),
        grammar(&doubled_tokens(30)),
        grammar(&format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000))),
        grammar(&format!("start: {}\"a\"{}", "[".repeat(29), "]".repeat(29))),
        grammar("start: start start | \"a\" |"),
        grammar("start: a{1,1000000}\na: b{1,1000000}\nb: c{1,1000000}\nc: \"a\" | \"b\""),
        grammar("start: /(a|b|ab|aab)*/ & /(.*c){1,40}/ & ~/.*(a.{30}b).*/"),
        grammar("%import common.WS\n%ignore /(a|b|ab)*/\nstart: \"a\" start | \"b\" start |"),
        regex(&format!("{}a{}", "(".repeat(20_000), ")*".repeat(20_000))),
        regex("(((((((a{1,99}){1,99}){1,99}){1,99}){1,99}){1,99}){1,99})"),
        regex("(a|b|ab)*(.{1000}c)*(a.*b.*){500}"),
        regex("(.*a.{60}b.*)|(.*b.{61}c.*)|(.*c.{62}a.*)"),
        regex(r"(\p{L}+\p{N}*){1,5000}"),
        regex(&"(a|b)?".repeat(8000)),
        schema(&references(1500)),
        schema(&crossed(14)),
        schema(&nested(120)),
        schema(&nested(20_000)),
        schema(r#"{"type": "array", "minItems": 2000000000, "items": {"type": "array", "minItems": 2000000000}}"#),
        schema(r#"{"type": "string", "minLength": 4000000000, "maxLength": 4000000001}"#),
        schema(r#"{"type": "number", "multipleOf": 0.000000000000000123, "minimum": 1e300}"#),
        schema(r#"{"type": "object", "minProperties": 100000}"#),
        schema(&format!(r#"{{"enum": [{}]}}"#, (0..8000).map(|n| format!("{n}")).collect::<Vec<_>>().join(","))),
        schema(r##"{"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}]}"##),
    ]
}

/// Each is refused, or its masks are found out or given up, in bounded time and memory; and none takes the process with it.
#[test]
fn a_bomb_costs_whoever_sends_it() {
    let (compiler, workers) = (of_bytes(), workers());
    let (mut slowest, mut slowest_mask) = (Duration::ZERO, Duration::ZERO);
    for bomb in bombs() {
        let shown: String = bomb.text().chars().take(60).collect();
        let begun = Instant::now();
        let compiled = compiler.compile(&bomb).map(Arc::new);
        let took = begun.elapsed();
        slowest = slowest.max(took);
        println!("{:>8} bytes in {took:>12?} {:?}: {shown}", bomb.text().len(), compiled.as_ref().err().map(told_of));
        assert!(took < Duration::from_secs(60), "{shown}");
        let Ok(compiled) = compiled else { continue };
        let mut output = compiled.begin(&[], &workers).unwrap();
        let (mut of_this, mut of_push) = (Duration::ZERO, Duration::ZERO);
        for step in 0..60 {
            let begun = Instant::now();
            let mask = output.mask();
            let words = mask.wait();
            of_this = of_this.max(begun.elapsed());
            let Some(words) = words else { break };
            let Some(id) = (0..256).map(|id| (id + 97 + step % 3) % 256).find(|id| is_allowed(words, *id)) else {
                break;
            };
            let begun = Instant::now();
            let pushed = output.push(id);
            of_push = of_push.max(begun.elapsed());
            if pushed != Ok(OutputState::Open) {
                break;
            }
        }
        println!("{of_this:>25?} a mask, {of_push:?} a token, {} bytes", compiled.bytes());
        assert!(of_this.max(of_push) < Duration::from_secs(20), "{shown}: {of_this:?} {of_push:?}");
        slowest_mask = slowest_mask.max(of_this);
        assert!(compiled.bytes() < 64 << 20, "{shown}: {} bytes", compiled.bytes());
    }
    println!("the slowest took {slowest:?}, the slowest mask {slowest_mask:?}");
}

fn told_of(error: &ConstraintError) -> String {
    error.to_string().chars().take(100).collect()
}
