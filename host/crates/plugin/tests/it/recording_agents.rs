//! What an agent did in its sessions is written down and played again without them; a recording that does not fit what is played ends
//! in a difference, never in an endless agent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use plugin::{Output, Recording, Session, Step};
use serde_json::json;

use crate::lenders::lent;
use crate::recording::{Kept, play, recorded};
use crate::setup::{Setup, request};

/// Where an answer goes, for a test that reads it from the recording.
struct Anywhere;

#[async_trait::async_trait]
impl Output for Anywhere {
    async fn write(&self, _: String) -> Result<(), plugin::CapabilityError> {
        Ok(())
    }
}

fn agent_s(bytes_max: usize) -> (Session, Arc<Kept>) {
    recorded(Session { output: Arc::new(Anywhere), ..lent().0 }, bytes_max)
}

/// What the probe did when it was told so.
async fn recording_of(setup: &Setup, script: &str, bytes_max: usize) -> String {
    let (session, kept) = agent_s(bytes_max);
    let mut agent = setup.start_with("agent-probe", session).await;
    let _whatever_came = agent.run_agent(&request(script)).await;
    drop(agent);
    kept.one()
}

fn read(text: &str) -> Recording {
    Recording::read_all(text).expect("readable").pop().expect("one")
}

fn asked<'a>(recording: &'a Recording, import: &str) -> Vec<&'a Step> {
    let is_so = |step: &&Step| matches!(step, Step::Import { import: one, .. } if one == import);
    recording.steps.iter().filter(is_so).collect()
}

const SCRIPT: &str = "open a hello\nfork a b\ngen a 3\nappend b !\nstart b 4\nnext b\nstop b\ntokens b\nwrite so far\nfork b c\n\
    start c 2\ndrop c\ncall other hi\nnext a\ngen b 1\ndraw a 2 77";

#[tokio::test]
async fn an_agent_is_recorded_session_by_session_and_played_again() {
    let setup = Setup::new();
    let text = recording_of(&setup, SCRIPT, 1 << 20).await;
    let recording = read(&text);
    assert!(recording.is_whole);
    assert_eq!(recording.calls().map(|(call, _)| call).collect::<Vec<_>>(), ["start", "run"]);
    for (import, times) in [
        ("sessions.open", 1),
        ("sessions.fork", 2),
        ("sessions.append", 1),
        ("sessions.start", 5),
        // To the end of 3, of 1 and of 2 tokens, and one that was read by itself.
        ("sessions.next", 4 + 2 + 3 + 1),
        // One that was stopped, and one whose session was dropped; none that had come to its end.
        ("sessions.stop", 2),
        ("output.write", 1),
        ("functions.call", 1),
    ] {
        assert_eq!(asked(&recording, import).len(), times, "{import} in\n{text}");
    }
    let Step::Import { arguments, result, .. } = asked(&recording, "sessions.fork")[1] else { unreachable!() };
    assert_eq!((arguments, result), (&json!({"session": 2}), &json!({"Ok": {"session": 3, "tokens": 7}})));
    let Step::Import { result, .. } = asked(&recording, "sessions.stop")[1] else { unreachable!() };
    assert_eq!(result, &json!({"unread": 2, "tokens": 7}));

    let replay = play(&setup, &text, "agent-probe").await;
    assert_eq!(replay.difference, None);
    assert_eq!(replay.played.steps, recording.steps);
}

#[tokio::test]
async fn an_agent_that_draws_another_time_differs_where_it_does() {
    let setup = Setup::new();
    let (session, kept) = agent_s(1 << 20);
    let config = [("draws", "3"), ("tokens", "5")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut agent = setup.start_with("best-of", Session { config: config.to_vec(), ..session }).await;
    let answer = agent.run_agent(&request("What is it?")).await.expect("an answer");
    assert_eq!(answer.text, "xxxxx");
    drop(agent);
    let text = kept.one();
    let replay = play(&setup, &text, "best-of").await;
    assert_eq!(replay.difference, None);
    // The same as a plugin that was changed to draw four.
    let changed = text.replace(r#"["draws","3"]"#, r#"["draws","4"]"#);
    assert_ne!(changed, text);
    let difference = play(&setup, &changed, "best-of").await.difference.expect("one draw more");
    assert_eq!(difference.call, "run");
    assert_eq!((&difference.expected["returned"], &difference.got["import"]), (&json!("run"), &json!("sessions.fork")));
    // One that draws less says so in its answer.
    let changed = text.replace(r#"["draws","3"]"#, r#"["draws","2"]"#);
    let difference = play(&setup, &changed, "best-of").await.difference.expect("one draw less");
    assert_eq!((&difference.expected["import"], &difference.got["returned"]), (&json!("sessions.fork"), &json!("run")));
}

#[tokio::test]
async fn what_an_agent_asks_otherwise_is_found_where_it_began() {
    let setup = Setup::new();
    let text = recording_of(&setup, SCRIPT, 1 << 20).await;
    for (was, now, path) in [
        (r#""session":2,"text":"!""#, r#""session":2,"text":"?""#, "/arguments/text"),
        (r#""text":"so far""#, r#""text":"so near""#, "/arguments/text"),
        (r#""max_tokens":4"#, r#""max_tokens":5"#, "/arguments/max_tokens"),
        // A session that never was, where it is asked and where it is said to come to be.
        (
            r#""sessions.append","arguments":{"session":2"#,
            r#""sessions.append","arguments":{"session":77"#,
            "/arguments/session",
        ),
        (r#""Ok":{"session":2"#, r#""Ok":{"session":4294967295"#, "/result/Ok/session"),
    ] {
        let changed = text.replace(was, now);
        assert_ne!(changed, text, "{was}");
        let difference = play(&setup, &changed, "agent-probe").await.difference.expect("a difference");
        assert_eq!((difference.call.as_str(), difference.path.as_str()), ("run", path), "{difference:?}");
    }
}

/// The host reads a generation to its end by itself: an answer that were given for ever would never end it.
#[tokio::test]
async fn a_generation_whose_end_is_not_recorded_ends() {
    let setup = Setup::new();
    let text = recording_of(&setup, "open a hello\ngen a 3\ngen a 2", 1 << 20).await;
    let endless: Vec<&str> = text.lines().filter(|line| !line.contains(r#""done""#)).collect();
    assert_eq!(endless.len() + 2, text.lines().count());
    let replay = play(&setup, &(endless.join("\n") + "\n"), "agent-probe").await;
    assert!(replay.difference.is_some());
    assert!(replay.played.steps.len() < 20);
    let returned = replay.played.returns().last().expect("it came to its end").1.to_string();
    assert!(returned.contains("the recording has no answer to this `sessions.next`"), "{returned}");
}

#[tokio::test]
async fn a_recording_that_was_cut_is_played_as_far_as_it_goes() {
    let setup = Setup::new();
    let whole = recording_of(&setup, SCRIPT, 1 << 20).await;
    for bytes_max in [2_600, 3_200, 4_000] {
        let text = recording_of(&setup, SCRIPT, bytes_max).await;
        let recording = read(&text);
        assert!(!recording.is_whole && text.len() < whole.len());
        assert!(recording.steps.len() > 4, "{text}");
        assert_eq!(play(&setup, &text, "agent-probe").await.difference, None, "{bytes_max}");
    }
}

#[tokio::test]
async fn a_component_of_the_other_world_is_not_called() {
    let setup = Setup::new();
    let text = recording_of(&setup, "open a hello\ngen a 1", 1 << 20).await;
    let difference = play(&setup, &text, "echo").await.difference.expect("it has no such call");
    assert_eq!((&difference.expected["call"], difference.got.is_null()), (&json!("run"), true));
}

/// Its caller left while it waited: what it would have done then is not known, and no difference.
#[tokio::test]
async fn an_agent_that_was_given_up_is_played_to_where_it_waited() {
    let setup = Setup::new();
    let (session, kept) = agent_s(1 << 20);
    let mut agent = setup.start_with("agent-probe", session).await;
    let call =
        tokio::spawn(
            async move { agent.run_agent(&request("open a x\nstart a 3\nnext a\ncall slow x\ngen a 1")).await },
        );
    tokio::time::sleep(Duration::from_millis(300)).await;
    call.abort();
    let begun = Instant::now();
    let text = loop {
        if let Some(text) = kept.any() {
            break text;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the agent was not ended");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let recording = read(&text);
    assert!(recording.is_whole);
    assert!(
        matches!(recording.steps.last(), Some(Step::Import { import, result, .. }) if import == "functions.call" && result.is_null())
    );
    let replay = play(&setup, &text, "agent-probe").await;
    assert_eq!(replay.difference, None);
}

#[tokio::test]
async fn a_trap_of_an_agent_is_played_too() {
    let setup = Setup::new();
    for script in ["open a x\nstart a 3\ntrap", "open a x\nfail so"] {
        let text = recording_of(&setup, script, 1 << 20).await;
        let replay = play(&setup, &text, "agent-probe").await;
        assert_eq!(replay.difference, None);
        assert!(replay.played.returns().any(|(_, result)| result["Err"]["code"].is_string()), "{text}");
    }
}
