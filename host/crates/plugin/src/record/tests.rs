//! What is hidden, what fits, and that what was written is read. Not here: recordings of guests (`tests/it/recording.rs`).

use std::sync::Mutex;

use super::scrub::{base64, unbase64};
use super::*;

#[derive(Default)]
struct Kept(Mutex<Vec<Finished>>);

impl RecordingSink for Kept {
    fn keep(&self, recording: Finished) {
        self.0.lock().expect("not poisoned").push(recording);
    }
}

fn head() -> RecordingHead {
    let (request, function, plugin) = ("req_1".to_owned(), "f".to_owned(), "a".repeat(64));
    RecordingHead { request, function, version: 3, plugin, time_unix_ms: 5 }
}

fn scrub(name: &str, value: &str) -> Scrub {
    let mut scrub = Scrub::default();
    scrub.hide(name, value);
    scrub
}

#[test]
fn a_secret_is_hidden_however_it_is_written() {
    let value = "s3cr\"t/é?!";
    let scrub = scrub("key", value);
    let hexadecimal: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let inner = serde_json::to_string(&json!({"k": value})).expect("JSON");
    for text in [
        value.to_owned(),
        format!("Bearer {value}, {value}"),
        inner,
        format!("https://a/?k={}", "s3cr%22t%2F%C3%A9%3F%21"),
        hexadecimal.clone(),
        hexadecimal.to_uppercase(),
    ] {
        let clean = scrub.clean(json!({"a": [text]})).to_string();
        assert!(clean.contains("{{secret:key}}"), "{clean}");
        assert!(!clean.contains("s3cr") && !clean.contains(&hexadecimal), "{clean}");
    }
    assert_eq!(scrub.clean(json!("nothing of it")), json!("nothing of it"));
}

/// What stands for a secret may hold another one; it is not looked at again, or a few secrets would make gigabytes of a word.
#[test]
fn what_stands_for_a_secret_is_not_scrubbed_again() {
    let mut scrub = Scrub::default();
    let letters = |letter: char| letter.to_string().repeat(64);
    for (name, value) in [('b', 'a'), ('c', 'b'), ('d', 'c'), ('e', 'd'), ('f', 'e')] {
        scrub.hide(&letters(name), &value.to_string().repeat(4));
    }
    let clean = scrub.clean(json!("aaaa"));
    assert_eq!(clean, json!(format!("{{{{secret:{}}}}}", letters('b'))));
    // As much as fits a request, in no time.
    let bytes = base64(&[&[0xff][..], &vec![b'a'; 1 << 20][..]].concat());
    let clean = scrub.clean(json!({"base64": bytes}));
    assert!(!unbase64(clean["base64"].as_str().expect("text")).expect("base64").windows(4).any(|four| four == b"aaaa"));
}

#[test]
fn of_secrets_that_overlap_nothing_is_left() {
    let mut scrub = Scrub::default();
    for (name, value) in
        [("one", "abcdefgh"), ("two", "efghijkl"), ("inner", "cdef"), ("end", "ijklmnop"), ("odd", "xyxyx")]
    {
        scrub.hide(name, value);
    }
    let clean = |text: &str| scrub.clean(json!(text)).as_str().expect("text").to_owned();
    assert_eq!(clean("<abcdefghijkl>"), "<{{secret:one}}{{secret:two}}>");
    assert_eq!(clean("<abcdefghijklmnop>"), "<{{secret:one}}{{secret:two}}{{secret:end}}>");
    assert_eq!(clean("abcdefgh"), "{{secret:one}}", "what is within another is the other's");
    assert_eq!(clean("cdefghijkl"), "{{secret:inner}}{{secret:two}}");
    assert_eq!(clean("abcdefghabcdefgh"), "{{secret:one}}{{secret:one}}", "these touch");
    assert_eq!(clean("xyxyxyxyx y"), "{{secret:odd}} y");
    // In base64 too, whose ends are shared.
    let encoded = base64(b"abcdefghijkl");
    let left = clean(&encoded);
    assert!(
        left.contains("{{secret:one}}")
            && !encoded
                .as_bytes()
                .windows(4)
                .any(|four| { left.replace("{{secret:", "").contains(std::str::from_utf8(four).expect("text")) }),
        "{left}"
    );
}

#[test]
fn a_secret_is_hidden_in_base64_wherever_it_begins_and_the_same_placeholder_stands_for_it() {
    let value = "correct horse battery";
    let hidden = scrub("key", value);
    let stand_in = scrub("key", "{{secret:key}}");
    for before in ["", "u", "us", "use", "user:"] {
        let encoded = |secret: &str| base64(format!("{before}{secret}").as_bytes());
        let clean = hidden.clean(json!(format!("Basic {}", encoded(value))));
        let text = clean.as_str().expect("text").to_owned();
        assert!(text.contains("{{secret:key}}"), "{text}");
        // What is left of the text before has nothing of the secret: it is the same for any other.
        let other = scrub("key", "another secret entirely")
            .clean(json!(format!("Basic {}", encoded("another secret entirely"))));
        assert_eq!(clean, other, "{before}");
        let played = stand_in.clean(json!(format!("Basic {}", encoded("{{secret:key}}"))));
        assert_eq!(clean, played, "what a replay makes of it is the same: {before}");
    }
    let bytes = [&[0xff, 0xfe][..], value.as_bytes(), &[0xff]].concat();
    let clean = hidden.clean(serde_json::to_value(Octets::from(bytes.as_slice())).expect("JSON"));
    let left = unbase64_of(&clean);
    assert!(!left.windows(value.len()).any(|window| window == value.as_bytes()));
    assert!(String::from_utf8_lossy(&left).contains("{{secret:key}}"));
}

fn unbase64_of(value: &Value) -> Vec<u8> {
    scrub::unbase64(value["base64"].as_str().expect("base64")).expect("base64")
}

#[test]
fn bytes_come_back_as_they_were() {
    for bytes in [&b""[..], b"text \"quoted\"\n", &[0, 255, 128], "é".as_bytes()] {
        let text = serde_json::to_string(&Octets::from(bytes)).expect("JSON");
        let back: bytes::Bytes = serde_json::from_str::<Octets>(&text).expect("octets").into();
        assert_eq!(back, bytes, "{text}");
    }
}

#[test]
fn what_does_not_fit_is_left_out_and_it_is_said() {
    let (kept, memory) = (Arc::new(Kept::default()), RecordingMemory::new(1 << 20));
    let session_limits = PluginLimits::default();
    let given = form::head_line(
        &head(),
        &form::Given { seed: u64::MAX, config: vec![("a".into(), "b".into())], limits: session_limits },
    );
    for (room, steps) in [(1000, 3), (300, 2), (50, 0)] {
        let recorder = Recorder::new(head(), given.len() + room, &memory, Arc::clone(&kept) as _);
        {
            let mut state = recorder.open.lock();
            assert!(state.fits(given.len(), given.len() + room));
            state.begun.clone_from(&given);
        }
        recorder.called("route", &json!({"request": "x".repeat(40)}));
        let asked = recorder.asked("catalog.adapters", &json!({"padding": "y".repeat(100)}));
        recorder.answered(asked, &"z".repeat(40));
        recorder.returned("route", Ok(&"w".repeat(100)));
        assert!(memory.taken() >= given.len(), "what is open is counted");
        drop(recorder);
        let finished = kept.0.lock().expect("not poisoned").pop().expect("kept");
        let cut = (room < 1000).then_some(RecordingCut::Bytes);
        assert_eq!((finished.steps, finished.cut), (steps, cut), "{room}");
        let read = Recording::read_all(&finished.text).expect("readable").pop().expect("one");
        assert_eq!((read.steps.len(), read.is_whole), (steps as usize, room == 1000));
        assert_eq!((read.head, read.given.seed), (head(), u64::MAX));
        drop(finished);
        assert_eq!(memory.taken(), 0, "all of it is given back");
    }
    let cut_by = |memory: &RecordingMemory, secret: Option<&str>| {
        let recorder = Recorder::new(head(), 1 << 20, memory, Arc::clone(&kept) as _);
        recorder.begin(7, &[], &PluginLimits::default());
        secret.inspect(|secret| recorder.hide("token", secret));
        recorder.called("route", &json!({"request": "x".repeat(given.len())}));
        drop(recorder);
        let finished = kept.0.lock().expect("not poisoned").pop().expect("kept");
        finished.cut
    };
    assert_eq!(cut_by(&memory, Some("long enough")), None);
    assert_eq!(cut_by(&memory, Some("abc")), Some(RecordingCut::ShortSecret));
    assert_eq!(cut_by(&RecordingMemory::new(given.len() + 100), None), Some(RecordingCut::Memory));
    let small = RecordingMemory::new(10);
    let recorder = Recorder::new(head(), 1000, &small, Arc::clone(&kept) as _);
    recorder.called("route", &json!({"request": "x"}));
    drop(recorder);
    assert!(kept.0.lock().expect("not poisoned").is_empty(), "nothing was begun");
    assert_eq!(small.taken(), 0);
}

#[test]
fn what_is_no_recording_is_refused_by_its_line() {
    let recorder = Recorder::to_read(head(), 1 << 20);
    recorder.called("route", &json!({}));
    let text = recorder.text();
    assert!(Recording::read_all(&text).is_err(), "without a head");
    assert_eq!(Recording::read_all("").map(|all| all.len()), Ok(0));
    let line = r#"{"tenon_recording":2}"#;
    assert_eq!(Recording::read_all(line).expect_err("another version"), RecordingError::Version(2));
    assert!(matches!(
        Recording::read_all("\nnonsense").expect_err("no JSON"),
        RecordingError::Malformed { line: 2, .. }
    ));
}
