//! What well-behaved guests are asked and answer.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use plugin::{Clock, LogLevel, PluginLimits, Session};
use types::{
    Action, Chunk, Decision, FinishReason, HookUsage, InvocationRequest, Message, PlanEntry, Prompt, Sampling,
};

use crate::setup::{Granted, Kept, Setup, limits, request, session};

fn messages(prompt: Prompt) -> Vec<(String, String)> {
    let Prompt::Messages(messages) = prompt else { panic!("messages, not {prompt:?}") };
    messages.into_iter().map(|message| (message.role, message.content)).collect()
}

#[tokio::test]
async fn echo_passes_the_request_through() {
    let mut echo = Setup::new().start("echo").await;
    assert_eq!(echo.route(&request("hi")).await, Ok(Decision::Serve));
    let plan = echo.compose(&request("hi")).await.expect("a plan");
    assert_eq!((&plan.composition, &plan.sampling), (&Vec::new(), &Sampling::default()));
    assert_eq!(messages(plan.prompt), [("user".into(), "hi".into())]);
    let turn = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
    let chat = InvocationRequest {
        messages: vec![turn("system", "Be brief."), turn("user", "naïve 日本 🎉")],
        max_tokens: Some(9),
        ..request("")
    };
    let plan = echo.compose(&chat).await.expect("a plan");
    assert_eq!(plan.token_budget, Some(9));
    assert_eq!(messages(plan.prompt)[1].1, "naïve 日本 🎉");
}

#[tokio::test]
async fn the_router_sees_only_what_is_granted() {
    let setup = Setup::new();
    let log = Arc::new(Kept::default());
    let with = |granted: Vec<&'static str>| Session {
        catalog: Arc::new(Granted(granted, Duration::from_millis(3))),
        log: Arc::clone(&log) as _,
        ..session()
    };
    let mut all = setup.start_with("skill-router", with(vec!["iso-date", "all-caps"])).await;
    assert_eq!(all.route(&request("5 December 2008")).await, Ok(Decision::Serve));
    let plan = all.compose(&request("5 December 2008")).await.expect("a plan");
    assert_eq!(plan.composition, [PlanEntry::whole("iso-date", 1.0)]);
    assert_eq!(messages(plan.prompt)[0], ("system".into(), "ISO date.".into()));
    assert_eq!(*log.0.lock().expect("not poisoned"), [(LogLevel::Info, "chose iso-date".into())]);

    let mut none = setup.start_with("skill-router", with(Vec::new())).await;
    let decision = none.route(&request("5 December 2008")).await.expect("a decision");
    assert!(matches!(decision, Decision::Answer(text) if text.starts_with("No skill fits")));
}

#[tokio::test]
async fn blend_reads_configuration_and_parameters() {
    let config = vec![("first".into(), "a".into()), ("second".into(), "b".into())];
    let mut blend = Setup::new().start_with("blend", Session { config, ..session() }).await;
    let asked = InvocationRequest { parameters: vec![("a".into(), "0.75".into())], ..request("hi") };
    let plan = blend.compose(&asked).await.expect("a plan");
    assert_eq!(plan.composition, [PlanEntry::whole("a", 0.75), PlanEntry::whole("b", 0.5)]);
}

#[tokio::test]
async fn a_post_processor_answers_with_actions() {
    let mut guest = Setup::new().start("first-sentence").await;
    let plan = guest.compose(&request("hi")).await.expect("a plan");
    assert!(plan.post_process);
    assert_eq!(guest.chunk(Chunk::default()).await.expect_err("not open yet").code(), "internal");
    guest.open_post_processor(&request("hi")).await.expect("open");
    let mut chunk = async |text: &str| guest.chunk(Chunk { text: text.into(), tokens: Vec::new() }).await;
    assert_eq!(chunk("It ").await, Ok(vec![Action::Hold]));
    assert_eq!(chunk("is. But").await, Ok(vec![Action::Replace("It is.".into()), Action::Stop]));
    let usage = HookUsage { prompt_tokens: 3, completion_tokens: 5, finish: FinishReason::StoppedByPlugin };
    let ending = guest.finish(usage).await.expect("an ending");
    assert_eq!(ending.actions, [Action::Pass]);
    assert_eq!(ending.claims, [("tokens-read".into(), "5".into())]);
}

#[tokio::test]
async fn wasi_links_and_shows_nothing() {
    let setup = Setup::new();
    let mut peek = setup.start("wasi-peek").await;
    assert_eq!(peek.route(&request("")).await, Ok(Decision::Answer("0 things seen".into())));
    let random = peek.route(&request("random")).await;
    let mut again = setup.start("wasi-peek").await;
    assert_eq!(again.route(&request("random")).await, random, "the same seed, the same bytes");
    let mut other = setup.start_with("wasi-peek", Session { seed: 8, ..session() }).await;
    assert_ne!(other.route(&request("random")).await, random);
    assert_eq!(other.route(&request("much")).await.expect_err("too much").code(), "plugin_trap");
}

#[tokio::test]
async fn what_the_host_lends_arrives_through_the_sandbox() {
    let setup = Setup::new();
    let lent = async |seed| {
        let config = vec![("tone".to_owned(), "warm".to_owned())];
        let mut peek = setup.start_with("wasi-peek", Session { config, seed, ..session() }).await;
        let Ok(Decision::Answer(lines)) = peek.route(&request("lent")).await else { panic!("it answers") };
        lines.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let lines = lent(7).await;
    // The harness' clock stands at 1234 ms; a guest is told steps of 10.
    assert_eq!(lines[..2], ["elapsed 1230 ms", "time 1800000000 s"]);
    assert!(lines[3].starts_with("too much random: ") && !lines[3].ends_with("taken"), "{lines:?}");
    assert_eq!(lines[4], r#"config [("tone", "warm")] None"#);
    assert!(lines[5].contains("unsupported") || lines[5].contains("not supported"), "{lines:?}");
    assert_eq!(lent(7).await, lines, "the same seed, the same numbers");
    assert_ne!(lent(8).await[2], lines[2]);
}

#[tokio::test]
async fn instances_are_counted_and_given_back() {
    let setup = Setup::with(PluginLimits { memory_bytes_max: 8 << 20, ..limits() });
    let mut alive = Vec::new();
    for _ in 0..4 {
        alive.push(setup.start("echo").await);
    }
    let digest = setup.host.admit(crate::setup::guest("echo")).await.expect("admitted");
    let error = setup.host.start(digest, &crate::setup::Nowhere, session()).await.expect_err("all in use");
    assert_eq!((error.code(), error.blame()), ("plugin_busy", types::Blame::Capacity));
    alive.pop();
    let mut next = setup.host.start(digest, &crate::setup::Nowhere, session()).await.expect("one is free");
    assert!(next.compose(&request("hi")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_of_one_plugin_run_side_by_side() {
    let setup = Setup::new();
    setup.start("echo").await;
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let host = setup.host.clone();
            tokio::spawn(async move {
                for turn in 0..50 {
                    let digest = host.admit(crate::setup::guest("echo")).await.expect("admitted");
                    let mut echo = host.start(digest, &crate::setup::Nowhere, session()).await.expect("started");
                    let plan = echo.compose(&request(&turn.to_string())).await.expect("a plan");
                    assert_eq!(messages(plan.prompt)[0].1, turn.to_string());
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
}

/// Notes which threads ask for the time.
#[derive(Default)]
struct Threads(Mutex<Vec<Option<String>>>);

impl Clock for Threads {
    fn elapsed(&self) -> Duration {
        let name = std::thread::current().name().map(str::to_owned);
        self.0.lock().expect("not poisoned").push(name);
        Duration::ZERO
    }

    fn unix_time(&self) -> Duration {
        Duration::ZERO
    }
}

/// However well a plugin behaved before: a chunk that computes goes on on the plugin threads, and others run meanwhile.
#[tokio::test]
async fn a_chunk_that_takes_long_ends_on_the_plugin_threads() {
    let setup = Setup::new();
    let mut quick = setup.start("cancel").await;
    quick.open_post_processor(&request("")).await.expect("open");
    for _ in 0..300 {
        assert_eq!(quick.chunk(Chunk::default()).await, Ok(vec![Action::Pass]));
    }
    let clock = Arc::new(Threads::default());
    let mut slow = setup.start_with("cancel", Session { clock: Arc::clone(&clock) as _, ..session() }).await;
    slow.open_post_processor(&request("chunk")).await.expect("open");
    let mut turns = 0_u32;
    let others = async {
        loop {
            turns += 1;
            tokio::task::yield_now().await;
        }
    };
    let error = tokio::select! {
        outcome = slow.chunk(Chunk::default()) => outcome.expect_err("it never ends"),
        () = others => unreachable!("it never ends either"),
    };
    assert_eq!(error.code(), "plugin_timeout");
    assert!(turns > 0, "this thread was free while the guest computed");
    let last = clock.0.lock().expect("not poisoned").last().cloned();
    assert_eq!(last.expect("it asked for the time").as_deref(), Some("plugin"));
    assert_eq!(slow.chunk(Chunk::default()).await.expect_err("it stays so").code(), "plugin_timeout");
}
