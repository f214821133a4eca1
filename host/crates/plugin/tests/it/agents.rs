//! Agents in the sandbox: which component is one, whose time a wait is, and that nothing of an agent outlives it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use plugin::{PluginLimits, Session, World};
use types::Decision;

use crate::lenders::{Others, Sessions, lent};
use crate::setup::{Setup, limits, request};

#[test]
fn a_component_is_of_the_world_that_it_exports() {
    let of = |exports: &[&str]| World::of_exports(exports.iter().copied());
    assert_eq!(of(&["tenon:plugin/hooks@0.1.0", "exports", "init"]), Ok(World::Policy));
    assert_eq!(of(&["tenon:plugin/driver@0.1.0"]), Ok(World::Agent));
    for (exports, said) in [
        (&["tenon:plugin/hooks@0.1.0", "tenon:plugin/driver@0.1.0"][..], "both"),
        (&["init"], "export `tenon:plugin/hooks@…` (world `policy`) or `tenon:plugin/driver@…` (world `agent`)"),
        (&["tenon:plugin/hooks@0.1.0", "tenon:plugin/tools@0.1.0"], "`tenon:plugin/tools@0.1.0`, which no host calls"),
    ] {
        let problem = of(exports).expect_err("refused");
        assert!(problem.contains(said), "{problem}");
    }
}

#[tokio::test]
async fn an_agent_has_one_call_and_a_policy_has_the_others() {
    let setup = Setup::new();
    let mut agent = setup.start_with("agent-probe", lent().0).await;
    assert!(agent.is_agent());
    assert_eq!(agent.route(&request("")).await.expect_err("no policy").code(), "internal");
    let mut policy = setup.start("echo").await;
    assert!(!policy.is_agent());
    assert_eq!(policy.run_agent(&request("")).await.expect_err("no agent").code(), "internal");
    let mut agent = setup.start_with("agent-probe", lent().0).await;
    let script = "open a hello\nfork a b\ngen a 3\nappend b !\ncall other hi\ntokens b";
    let answer = agent.run_agent(&request(script)).await.expect("an answer");
    assert_eq!(answer.text, "xxx|1+1 stop\n6\nother 1 said Text(\"hi\")\n6");
    assert_eq!(answer.metadata, [("lines".to_owned(), "4".to_owned())]);
}

#[tokio::test]
async fn waiting_for_another_function_is_not_the_call_s_time() {
    let setup = Setup::with(PluginLimits { call_wall_ms_max: 400, ..limits() });
    let asking = |function: &str| {
        let config = [("function", function), ("then", "answer")];
        Session { config: config.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(), ..lent().0 }
    };
    let mut patient = setup.start_with("consult", asking("later")).await;
    let decision = patient.route(&request("hi")).await.expect("in time: the other function has its own");
    assert!(matches!(decision, Decision::Answer(text) if text == "Text(\"hi\")"));
}

#[tokio::test]
async fn what_an_agent_held_goes_with_it() {
    let setup = Setup::new();
    let living = Arc::new(AtomicU32::new(0));
    let others = Others::default();
    let pending = Arc::clone(&others.pending);
    let session =
        Session { generations: Arc::new(Sessions(Arc::clone(&living))), functions: Arc::new(others), ..lent().0 };
    let mut agent = setup.start_with("agent-probe", session).await;
    let call = tokio::spawn(async move { agent.run_agent(&request("open a x\nrepeat 3 keep a\ncall slow x")).await });
    until(|| pending.load(Ordering::SeqCst) == 1).await;
    assert_eq!(living.load(Ordering::SeqCst), 4);
    call.abort();
    until(|| pending.load(Ordering::SeqCst) == 0 && living.load(Ordering::SeqCst) == 0).await;
}

async fn until(holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it never came to hold");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
