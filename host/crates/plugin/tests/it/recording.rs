//! What an instance did is written down, without secrets, and played again without anything that was lent to it. Not here: agents
//! (`recording_agents.rs`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use plugin::{Finished, Recorder, Recording, RecordingHead, RecordingMemory, RecordingSink, Replay, Session, Step};
use types::{Chunk, Decision, FinishReason, HookUsage};

use crate::lenders::lent;
use crate::setup::{Granted, Setup, guest, request, session};

#[derive(Default)]
pub(crate) struct Kept(Mutex<Vec<String>>);

impl RecordingSink for Kept {
    fn keep(&self, recording: Finished) {
        self.0.lock().expect("not poisoned").push(recording.text);
    }
}

impl Kept {
    pub(crate) fn one(&self) -> String {
        self.any().expect("a recording")
    }

    pub(crate) fn any(&self) -> Option<String> {
        self.0.lock().expect("not poisoned").pop()
    }
}

pub(crate) fn recorded(session: Session, bytes_max: usize) -> (Session, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    let head = RecordingHead {
        request: "req_1".into(),
        function: "f".into(),
        version: 1,
        plugin: "0".repeat(64),
        time_unix_ms: 1,
    };
    let memory = RecordingMemory::new(8 << 20);
    let recorder = Recorder::new(head, bytes_max, &memory, Arc::clone(&kept) as _);
    (Session { record: Some(recorder), ..session }, kept)
}

pub(crate) async fn play(setup: &Setup, text: &str, name: &str) -> Replay {
    let recording = Recording::read_all(text).expect("readable").pop().expect("one");
    setup.host.replay(guest(name), &recording, BTreeMap::new()).await.expect("played")
}

const SCRIPT: &str = "kv-set b k one|kv-get b k|kv-add b n 5|kv-keys b|kv-swap b new v|kv-open nothing|secret key|secret other|\
    get http://echo/a?q=1|post https://echo/ hello|get-with-secret http://echo/ key|get http://private/|encode ab|count hello|\
    decode 2 3|config tone|log here it is";

#[tokio::test]
async fn every_question_is_recorded_and_answered_again() {
    let setup = Setup::new();
    let session = Session { config: vec![("tone".into(), "warm".into())], ..lent().0 };
    let (session, kept) = recorded(session, 1 << 20);
    let mut instance = setup.start_with("imports", session).await;
    let Decision::Answer(answer) = instance.route(&request(SCRIPT)).await.expect("an answer") else {
        panic!("no answer")
    };
    assert!(answer.contains("s3cret") && answer.contains("200 GET http://echo/a?q=1"), "{answer}");
    drop(instance);
    let text = kept.one();
    assert!(!text.contains("s3cret"), "a secret is in the recording");
    assert!(text.contains("{{secret:key}}"));
    let recording = Recording::read_all(&text).expect("readable").pop().expect("one");
    assert!(recording.is_whole);
    let asked = |import: &str| {
        recording.steps.iter().filter(|step| matches!(step, Step::Import { import: one, .. } if one == import)).count()
    };
    for (import, times) in [
        ("keyvalue.open", 6),
        ("keyvalue.get", 4),
        ("keyvalue.write", 3),
        ("keyvalue.keys", 1),
        ("secrets.get", 3),
        ("http.send", 4),
        ("tokenizer.encode", 2),
        ("tokenizer.decode", 1),
    ] {
        assert!(asked(import) >= 1 && asked(import) <= times + 2, "{import}: {}\n{text}", asked(import));
    }
    assert!(asked("log.write") >= 6);

    let replay = play(&setup, &text, "imports").await;
    assert_eq!(replay.difference, None);
    assert_eq!(replay.played.steps, recording.steps);

    // Another plugin does another thing: it is found at its first call.
    let other = play(&setup, &text, "echo").await;
    let difference = other.difference.expect("another plugin");
    assert_eq!(difference.call, "route");
    assert!(difference.expected["import"].is_string() && difference.got["returned"] == "route", "{difference:?}");
}

#[tokio::test]
async fn what_was_answered_otherwise_is_found_where_it_began() {
    let setup = Setup::new();
    let (session, kept) = recorded(lent().0, 1 << 20);
    let mut instance = setup.start_with("imports", session).await;
    instance.route(&request("kv-set b k one|kv-get b k|count hello")).await.expect("an answer");
    drop(instance);
    // The recording is changed, which is the same as a plugin that asks for something else.
    let text = kept.one().replace(r#""key":"k""#, r#""key":"other""#);
    let difference = play(&setup, &text, "imports").await.difference.expect("another key");
    assert_eq!((difference.call.as_str(), difference.path.as_str()), ("route", "/arguments/key"));
    assert_eq!((difference.expected_part, difference.got_part), ("other".into(), "k".into()));
}

#[tokio::test]
async fn a_generation_is_played_chunk_by_chunk_and_a_cut_recording_as_far_as_it_goes() {
    let setup = Setup::new();
    let granted = || Session { catalog: Arc::new(Granted(vec!["iso-date"], std::time::Duration::ZERO)), ..session() };
    for bytes_max in [1 << 20, 2500] {
        let (session, kept) = recorded(granted(), bytes_max);
        let mut instance = setup.start_with("first-sentence", session).await;
        let asked = request("Tell me.");
        assert_eq!(instance.route(&asked).await.expect("a decision"), Decision::Serve);
        let plan = instance.compose(&asked).await.expect("a plan");
        assert!(plan.post_process);
        instance.open_post_processor(&asked).await.expect("opened");
        for text in ["One", " sentence", ". Another"] {
            let tokens = vec![types::ChunkToken { id: 7, logprob: Some(-0.1) }];
            instance.chunk(Chunk { text: text.into(), tokens }).await.expect("actions");
        }
        let usage = HookUsage { prompt_tokens: 3, completion_tokens: 3, finish: FinishReason::StoppedByPlugin };
        instance.finish(usage).await.expect("an ending");
        drop(instance);
        let text = kept.one();
        let recording = Recording::read_all(&text).expect("readable").pop().expect("one");
        assert_eq!(recording.is_whole, bytes_max > 2500, "{}", text.len());
        let replay = play(&setup, &text, "first-sentence").await;
        assert_eq!(replay.difference, None);
        if recording.is_whole {
            let calls: Vec<&str> = recording.calls().map(|(call, _)| call).collect();
            let chunk = "post-processor.chunk";
            let expected =
                ["start", "route", "compose", "post-processor", chunk, chunk, chunk, "post-processor.finish"];
            assert_eq!(calls, expected);
        }
    }
}

#[tokio::test]
async fn time_and_randomness_are_the_recorded_ones_and_a_trap_is_played_too() {
    let setup = Setup::new();
    let (session, kept) = recorded(session(), 1 << 20);
    let mut instance = setup.start_with("wasi-peek", session).await;
    let first = instance.route(&request("peek")).await;
    drop(instance);
    let replay = play(&setup, &kept.one(), "wasi-peek").await;
    assert_eq!(replay.difference, None, "{first:?}");

    let (session, kept) = recorded(crate::setup::session(), 1 << 20);
    let mut instance = setup.start_with("trap", session).await;
    assert_eq!(instance.route(&request("panic")).await.expect_err("a trap").code(), "plugin_trap");
    drop(instance);
    let replay = play(&setup, &kept.one(), "trap").await;
    assert_eq!(replay.difference, None);
    assert!(replay.played.returns().any(|(_, result)| result["Err"]["code"] == "plugin_trap"));
}
