//! What is let out and what is not. `serde_json` says of every prefix whether it could still become JSON; the scanner must
//! agree with it, however the text is cut.

use proptest::prelude::*;
use serde_json::Value;
use tenon_sdk::testing::{Harness, request};

use super::*;

fn harness() -> Harness {
    Harness::new().config("adapter", "sentiment-json")
}

/// What goes out, and the claim.
fn guarded(harness: &Harness, chunks: &[&str]) -> (String, String) {
    let (sent, ending) = harness.post_process::<JsonGuard>(&request(""), chunks).unwrap();
    assert_eq!(ending.claims.len(), 1);
    (sent, ending.claims[0].value.clone())
}

fn verdict(text: &str) -> String {
    let (sent, verdict) = guarded(&harness(), &[text]);
    let value: Value = serde_json::from_str(&sent).unwrap_or_else(|error| panic!("{text:?} gave {sent:?}: {error}"));
    let code = value.pointer("/error/code").and_then(Value::as_str);
    assert_eq!(code.unwrap_or("valid"), verdict, "{text:?} gave {sent}");
    verdict
}

#[test]
fn a_document_goes_out_whole_and_ends_the_generation() {
    let sent = |chunks: &[&str]| guarded(&harness(), chunks).0;
    assert_eq!(sent(&["{\"a\"", ": 1", "} and more", " {"]), "{\"a\": 1}");
    assert_eq!(sent(&[" \n[", "1, 2]", "x"]), "[1, 2]");
    assert_eq!(sent(&["\"caf", "\u{e9} \\", "u00e9\"", "\""]), "\"caf\u{e9} \\u00e9\"");
    assert_eq!(sent(&["tr", "ue"]), "true");
    assert_eq!(sent(&["-1", "2.5e", "+3"]), "-12.5e+3", "a number ends with the output");
    assert_eq!(sent(&["12", "\n", "junk"]), "12", "or with a space");
}

#[test]
fn what_cannot_become_valid_is_refused_at_once() {
    let harness = harness();
    let mut chunks = vec!["{\"a\": 1,, "];
    chunks.extend(vec!["unseen"; 100]);
    let (sent, ending) = harness.post_process::<JsonGuard>(&request(""), &chunks).unwrap();
    assert_eq!(sent, r#"{"error":{"code":"invalid_json","message":"the output is not JSON"}}"#);
    assert_eq!(ending.claims[0].value, "invalid_json");
    assert!(ending.actions.is_empty(), "the error was sent when it was found: {:?}", ending.actions);
}

#[test]
fn every_way_to_be_wrong_has_its_code() {
    for text in ["Sure! {}", "{'a': 1}", "{\"a\": 01}", "[1 2]", "nul!", "{\"a\"}", "\"\u{7}\"", "\"\\x\"", "]", "-a"] {
        assert_eq!(verdict(text), "invalid_json", "{text:?}");
    }
    for text in ["\"\\ud800\"", "\"\\ud800x\"", "\"\\udc00\"", "\"\\ud800\\u0041\"", "5}", "\u{feff}{}"] {
        assert_eq!(verdict(text), "invalid_json", "{text:?}");
    }
    for text in ["", "  ", "{\"a\": ", "[[]", "\"open", "tru", "-", "1.", "1e", "\"\\ud83d\\ude0"] {
        assert_eq!(verdict(text), "incomplete_json", "{text:?}");
    }
    assert_eq!(verdict(&"[".repeat(65)), "invalid_json");
    assert_eq!(verdict(&format!("{}{}", "[".repeat(64), "]".repeat(64))), "valid");
    assert_eq!(verdict(&format!("\"{}", "x".repeat(DOCUMENT_BYTES_MAX))), "too_long");
    assert_eq!(verdict("\"\\ud83d\\ude00\""), "valid");
}

#[test]
fn required_keys_are_looked_for() {
    let harness = harness().config("required", "sentiment, the \"score\"");
    let whole = r#"{"sentiment": null, "the \"score\"": 1}"#;
    assert_eq!(guarded(&harness, &[whole]), (whole.to_owned(), "valid".to_owned()));
    for text in [r#"{"sentiment": "positive"}"#, r#"["sentiment", "score"]"#, "{}", r#"{"x": {"sentiment": 1}}"#] {
        let (sent, verdict) = guarded(&harness, &[text]);
        assert_eq!(verdict, "missing_key");
        let value: Value = serde_json::from_str(&sent).unwrap();
        assert!(value["error"]["message"].as_str().unwrap().starts_with("the document has no `"), "{sent}");
    }
}

#[test]
fn the_plan_is_as_configured() {
    let plan = harness().config("system", "As JSON.").compose::<JsonGuard>(&request("hi")).unwrap();
    assert!(plan.post_process);
    assert_eq!((plan.composition[0].adapter.as_str(), plan.token_budget), ("sentiment-json", Some(96)));
    let error = Harness::new().compose::<JsonGuard>(&request("hi")).unwrap_err();
    assert!(error.to_string().contains("`adapter`"), "{error}");
}

/// JSON as text, with spaces, escapes and numbers of every kind.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,6})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,2})?",
        string(),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let space = "[ \n\r\t]{0,2}";
        prop_oneof![
            (space, prop::collection::vec(inner.clone(), 0..4))
                .prop_map(|(space, items)| { format!("[{space}{}{space}]", items.join(&format!("{space},"))) }),
            (space, prop::collection::vec((string(), inner), 0..4)).prop_map(|(space, members)| {
                let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}{space}:{value}")).collect();
                format!("{{{space}{}}}", members.join(","))
            }),
        ]
    })
}

fn string() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[a-z {}:,]{0,3}",
        "\u{e9}|\u{65e5}|\u{1f389}",
        Just(r#"\""#.to_owned()),
        "\\\\[bfnrt/\\\\]",
        Just("\\ud83d\\ude00".to_owned()),
        "\\\\u[0-9a-bA-B][0-9a-f]{3}"
    ];
    prop::collection::vec(part, 0..4).prop_map(|parts| format!("\"{}\"", parts.concat()))
}

/// JSON with one character more, less or other, cut off somewhere, or with something behind it.
fn nearly_json() -> impl Strategy<Value = String> {
    let char = prop_oneof!["[\\[\\]{}\",:\\\\ 0-9eE.+-]", "[a-z]", "\u{0}|\u{e9}|\n"];
    (json(), 0..6_u8, any::<prop::sample::Index>(), char).prop_map(|(mut text, change, index, char)| {
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        let at = places[index.index(places.len())];
        match change {
            0 => text.insert_str(at, &char),
            1 => drop(text.remove(at)),
            2 => text.replace_range(at..=at + text[at..].chars().next().map_or(0, char::len_utf8) - 1, &char),
            3 => text.truncate(at),
            4 => text.push_str(&char),
            _ => {}
        }
        text
    })
}

/// Whether the parser knows that no text behind this makes it valid. It reads the digits of an escape four at a time, so
/// it is told of a wrong one only when it has four.
fn is_hopeless(text: &str) -> bool {
    let is_syntax = |text: &str| serde_json::from_str::<Value>(text).is_err_and(|error| error.is_syntax());
    let in_escape = text.chars().rev().take(5).any(|char| char == '\\');
    is_syntax(text) || in_escape && is_syntax(&format!("{text}zzzz"))
}

#[test]
fn a_control_character_in_a_text_is_hopeless_at_once() {
    for text in ["\"a\n", "{\"a\": \"x\u{1}", "[\"\t", "\"\u{1f}", "{\"\0"] {
        assert!(matches!(Scan::new(Vec::new()).push(text), Progress::Invalid), "{text:?}");
    }
    assert!(
        matches!(Scan::new(Vec::new()).push("\"\u{7f}\u{80}"), Progress::Incomplete),
        "these are characters as any"
    );
}

proptest! {
    // The cases are generated anew in each run; a failure prints its own.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_do_not_matter(text in nearly_json(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let whole = guarded(&harness(), &[&text]);
        let mut places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut at: Vec<usize> = cuts.iter().map(|cut| places[cut.index(places.len())]).chain([0, text.len()]).collect();
        at.sort_unstable();
        let chunks: Vec<&str> = at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(&guarded(&harness(), &chunks), &whole);
        places.dedup();
        let each: Vec<&str> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        prop_assert_eq!(&guarded(&harness(), &each), &whole);
    }

    #[test]
    fn keys_are_read_as_the_parser_reads_them(text in json(), with_another in any::<bool>()) {
        let Ok(Value::Object(members)) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
        let keys: Vec<String> = members.keys().cloned().collect();
        let mut scan = Scan::new(keys.into_iter().chain(with_another.then(|| "absent".to_owned())).collect());
        scan.push(&text);
        prop_assert_eq!(scan.missing(), with_another.then_some("absent"));
    }

    #[test]
    fn a_valid_document_always_goes_out(text in json()) {
        let (sent, verdict) = guarded(&harness(), &[&text]);
        prop_assert_eq!((sent.as_str(), verdict.as_str()), (text.trim(), "valid"));
    }

    #[test]
    fn the_scanner_agrees_with_the_parser_on_every_prefix(text in nearly_json()) {
        let mut scan = Scan::new(Vec::new());
        for (at, char) in text.char_indices() {
            let end = at + char.len_utf8();
            let parsed = serde_json::from_str::<Value>(&text[..end]);
            // A number of any size is JSON; this parser's numbers have 64 bits.
            if parsed.as_ref().is_err_and(|error| error.to_string().contains("out of range")) {
                break;
            }
            match scan.push(&text[at..end]) {
                Progress::Incomplete => {
                    let may_go_on = parsed.as_ref().map_or_else(serde_json::Error::is_eof, |_| true);
                    prop_assert!(may_go_on, "{:?}: {:?}", &text[..end], parsed);
                    prop_assert_eq!(parsed.is_ok(), scan.may_end(), "{:?}", &text[..end]);
                }
                Progress::Complete { .. } => {
                    prop_assert!(parsed.is_ok(), "{:?}: {:?}", &text[..end], parsed);
                    break;
                }
                Progress::Invalid => {
                    prop_assert!(is_hopeless(&text[..end]), "{:?}: {:?}", &text[..end], parsed);
                    break;
                }
            }
        }
    }
}
