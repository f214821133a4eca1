//! Agents that want more than is theirs: sessions, generations, text, calls of themselves, a caller that does not read. Each does so by
//! a script (`plugins/testing/agent-probe`), which goes on after a refusal and says what it was told.

use serde_json::{Value, json};

use crate::guest::Outcome::{Fails, Left, Says};
use crate::guest::{Act, Class, Guest, Outcome, Source};

/// What a session begins with.
const OPEN: &str = "open a The sea is";

pub(super) fn guests() -> Vec<Guest> {
    [sessions(), generations(), texts(), calls(), endings()].concat()
}

fn agent(name: &str, script: &str, outcome: Outcome) -> Guest {
    let guest = Guest::new(Class::Agents, name, Source::Fixture("agent-probe"), script, outcome);
    guest.grants(json!({"generations": true}))
}

/// One that begins with a session, and goes on so.
fn with_session(name: &str, script: &str, limits: Value, outcome: Outcome) -> Guest {
    agent(name, &format!("{OPEN}\n{script}"), outcome).limits(limits)
}

fn sessions() -> Vec<Guest> {
    let few = json!({"sessions_max": 3});
    let out = || Says("sessions_max of 3 sessions at once");
    let opened: String = ('b'..='z').map(|name| format!("open {name} x\n")).collect();
    let under_way = || Says("this session generates");
    vec![
        with_session("session-flood", &opened, few.clone(), out()),
        with_session("fork-bomb", "repeat 100000 keep a", few.clone(), out()),
        with_session("fork-and-drop", "repeat 100 fork a b\nrepeat 100 keep a", few, out()),
        with_session("next-without-start", "next a", json!({}), Says("`start` it first")),
        with_session("fork-under-way", "start a 2\nfork a b", json!({}), under_way()),
        with_session("append-under-way", "start a 2\nappend a x", json!({}), under_way()),
        with_session("start-twice", "start a 2\nstart a 2", json!({}), under_way()),
        with_session("next-after-stop", "start a 2\nstop a\nstop a\nnext a", json!({}), Says("`start` it first")),
        agent("sessions-ungranted", OPEN, Says("grants.generations is not set")).grants(json!({})),
        agent(
            "session-of-an-ungranted-adapter",
            "adapted a all-caps x",
            Says("denied: there is no adapter `all-caps`"),
        ),
        agent("session-of-a-path", "adapted a ../all-caps x", Says("error: ")),
        agent("session-of-nothing", "open a ", Says("invalid_plan")),
    ]
}

fn generations() -> Vec<Guest> {
    let endless = |name, more: &str, limit: &str, max: u32, says| {
        with_session(name, &format!("repeat 100000 {more}"), json!({limit: max}), Says(says))
    };
    vec![
        endless("generate-for-ever", "gen a 1", "generations_max", 3, "generations_max of 3 generations"),
        endless("tokens-for-ever", "gen a 1", "generated_tokens_max", 3, "generated_tokens_max of 3 generated tokens"),
        endless("prompts-for-ever", "gen a 1", "session_tokens_max", 40, "session_tokens_max of 40 tokens of prompts"),
        with_session(
            "tokens-at-once",
            "gen a 4000000000",
            json!({"generated_tokens_max": 8}),
            Says("generated_tokens_max of 8"),
        ),
        with_session("no-tokens", "gen a 0", json!({}), Says("error: ")),
        with_session(
            "tokens-reserved",
            "fork a b\nstart a 3\nstart b 3",
            json!({"generated_tokens_max": 4}),
            Says("generated_tokens_max of 4"),
        ),
        with_session("bad-schema", "json a {\"type\": 7}", json!({}), Says("invalid_constraint")),
        with_session("blocks", "gen a 40", json!({"kv_blocks_max": 1}), Says("kv_blocks_max of 1")),
    ]
}

fn texts() -> Vec<Guest> {
    let few_bytes = || json!({"tokenizer_bytes_max": 1_000});
    let long = "x".repeat(3_000);
    vec![
        with_session(
            "append-flood",
            "repeat 100000 append a 0123456789",
            few_bytes(),
            Says("tokenizer_bytes_max of 1000"),
        ),
        agent("prompt-flood", &format!("open a {long}"), Says("tokenizer_bytes_max of 1000")).limits(few_bytes()),
        agent("write-flood", "repeat 100000 big 300", Says("answer_bytes_max of 1000 bytes"))
            .limits(json!({"answer_bytes_max": 1_000})),
        agent("answer-over-what-was-written", "big 990\nopen a", Fails("limit_exceeded", "answer_bytes_max"))
            .limits(json!({"answer_bytes_max": 1_000})),
        agent("stop-strings", &format!("{OPEN}\nuntil a "), Says("error: ")),
    ]
}

fn calls() -> Vec<Guest> {
    let itself = |name: &str, script: &str, outcome| {
        agent(name, script, outcome).grants(json!({"generations": true, "calls": [name]}))
    };
    let deeper = "call calls-itself ".repeat(6) + "write never";
    let wider = "repeat 100000 call calls-itself-often write x";
    let ungranted = Says("the manifest's grants.calls does not name it");
    vec![
        itself("calls-itself", &deeper, Says("hand_over_depth_max of 4")),
        itself("calls-itself-often", wider, Says("function_calls_max of 3")).limits(json!({"function_calls_max": 3})),
        agent("calls-another", "call skills hello", ungranted),
        agent(
            "host-calls",
            &format!("{OPEN}\nrepeat 100000 tokens a"),
            Fails("plugin_limit", "request_host_calls_max"),
        )
        .limits(json!({"request_host_calls_max": 50})),
    ]
}

fn endings() -> Vec<Guest> {
    let leaves = |name: &str, script: &str, after_ms| {
        let body = json!({"input": script, "stream": true});
        agent(name, script, Left).act(Act::Leave(body, after_ms))
    };
    let generating = format!("{OPEN}\nrepeat 32 draw a 64 1");
    vec![
        agent("spin", "spin", Fails("plugin_timeout", "run_cpu_ms_max")).limits(json!({"run_cpu_ms_max": 20})),
        with_session("trap-under-way", "start a 4\nnext a\ntrap", json!({}), Fails("plugin_trap", "unreachable")),
        agent("writes-to-nobody", "repeat 100000 big 60000", Left)
            .act(Act::Leave(json!({"input": "repeat 100000 big 60000", "stream": true}), 20)),
        leaves("left-while-it-generates", &generating, 30),
        leaves("left-at-once", &generating, 0),
    ]
}
