//! Plans that must be refused, places that must not be asked, callers that leave, and marks that must not be found.

use serde_json::{Value, json};

use super::machine::{fixture, wat};
use crate::guest::Outcome::{Answers, Fails, Left, Says};
use crate::guest::{Act, Class, Guest, Source, Tenant};

/// What a guest leaves wherever it can.
const MARK: &str = "canary-7b1f";

pub(super) fn guests() -> Vec<Guest> {
    [plans(), ssrf(), cancel(), canaries()].concat()
}

fn plans() -> Vec<Guest> {
    let cases = [
        ("weight", "invalid_plan", "NaN"),
        ("infinite", "invalid_plan", "inf"),
        ("heavy", "limit_exceeded", "adapter_weight_abs_max"),
        ("entries", "limit_exceeded", "composition_entries_max"),
        ("layers", "invalid_plan", ""),
        ("template", "unknown_template", "`brief`"),
        ("budget", "limit_exceeded", "output_tokens_max"),
        ("deadline", "limit_exceeded", "deadline_ms_max"),
        ("temperature", "invalid_plan", "temperature"),
        ("top-p", "invalid_plan", "top_p"),
        ("stop", "invalid_plan", ""),
        ("stops", "limit_exceeded", "stop_conditions_max"),
        ("empty-prompt", "invalid_plan", "prompt"),
        ("constraint", "invalid_constraint", "regular expression"),
        ("hand-over", "hand_over_not_granted", "may not hand over"),
    ];
    let refused = |(text, code, says)| {
        // A caller's own number of tokens would lower the budget.
        fixture(Class::Plans, "bad-plan", text, Fails(code, says)).adapters(&["all-caps", "iso-date"]).tokens(None)
    };
    let mut guests: Vec<Guest> = cases.map(refused).into();
    let long = "Tell me all about the sea, and of the rivers that feed it, and of the rain.";
    let blocks =
        Guest::new(Class::Plans, "kv-blocks", Source::Fixture("echo"), long, Fails("limit_exceeded", "kv_blocks_max"));
    guests.push(blocks.limits(json!({"kv_blocks_max": 1})));
    let tokens = Fails("limit_exceeded", "output_tokens_max");
    let tokens = fixture(Class::Plans, "bad-plan", "budget", tokens).limits(json!({"output_tokens_max": 3}));
    guests.push(Guest { name: "own-budget".into(), ..tokens.tokens(None) });
    guests.push(fixture(Class::Plans, "huge-strings", "plan-adapter", Fails("adapter_not_granted", "aaaa")));
    guests
}

fn ssrf() -> Vec<Guest> {
    const PROHIBITED: [(&str, &str); 12] = [
        ("loopback", "http://127.0.0.1:9"),
        ("localhost", "http://localhost:9"),
        ("one-number", "http://2130706433:9"),
        ("short", "http://127.1:9"),
        ("octal", "http://0177.0.0.1:9"),
        ("nowhere", "http://0.0.0.0:9"),
        ("v6", "http://[::1]:9"),
        ("mapped", "http://[::ffff:127.0.0.1]:9"),
        ("metadata", "http://169.254.169.254:80"),
        ("private", "http://10.0.0.1:80"),
        ("carrier", "http://100.64.0.1:80"),
        ("local-v6", "http://[fd00::1]:80"),
    ];
    let asked = |name: &str, origin: &str, script: &str, says| {
        let name = format!("ssrf-{name}");
        let guest = Guest::new(Class::Ssrf, name, Source::Fixture("imports"), script, Says(says));
        guest.grants(json!({"http": [origin]}))
    };
    let mut guests: Vec<Guest> = PROHIBITED
        .iter()
        .map(|(name, origin)| asked(name, origin, &format!("get {origin}/"), "DestinationIpProhibited"))
        .collect();
    let granted = "https://granted.example";
    guests.extend([
        asked("other", granted, "get https://other.example/", "HttpRequestDenied"),
        asked("port", granted, "get https://granted.example:8443/", "HttpRequestDenied"),
        asked("scheme", granted, "get http://granted.example/", "HttpRequestDenied"),
        asked("user", granted, "get https://granted.example@127.0.0.1/", "rror"),
        asked("file", granted, "get file:///etc/passwd", "rror"),
    ]);
    guests
}

fn cancel() -> Vec<Guest> {
    let body = |place: &str| json!({"input": place, "max_tokens": 2, "stream": true});
    let leaves = |(place, after_ms)| {
        let guest = fixture(Class::Cancel, "cancel", place, Left);
        guest.act(Act::Leave(body(place), after_ms)).limits(json!({"call_wall_ms_max": 1000, "call_cpu_ms_max": 200}))
    };
    [("wait", 5), ("route", 10), ("compose", 10), ("constructor", 15), ("chunk", 40), ("finish", 60)].map(leaves).into()
}

fn canaries() -> Vec<Guest> {
    let class = Class::Canaries;
    let scripted =
        |name: &str, script: &str, outcome| Guest::new(class, name, Source::Fixture("imports"), script, outcome);
    let bucket = |scope: &str| json!({"kv": [{"bucket": "canary", "scope": scope}], "secrets": ["canary"]});
    let leave = format!("kv-set canary k {MARK}|kv-get canary k|log {MARK} {MARK}");
    let look = "kv-get canary k|kv-keys canary|secret canary|config mark";
    let marked = |mut guest: Guest| {
        guest.manifest["config"] = json!({"mark": MARK});
        guest
    };
    let plain: Value = json!({});
    vec![
        wat(class, "canary-leave", Answers("left")),
        wat(class, "canary-search", Answers("nothing")),
        Guest {
            name: "canary-search-elsewhere".into(),
            ..wat(class, "canary-search", Answers("nothing")).of(Tenant::Second)
        },
        marked(scripted("canary-bucket", &leave, Says(MARK)).grants(bucket("tenant"))),
        marked(scripted("canary-own-bucket", &leave, Says(MARK)).grants(bucket("function"))),
        // The same function of another tenant: nothing is there, and no error tells that something is elsewhere.
        Guest {
            name: "canary-look".into(),
            ..scripted("", look, Answers("nothing\n\nerror: failed: there is no secret `canary`; set it first\nNone"))
        }
        .grants(bucket("tenant"))
        .of(Tenant::Second),
        scripted("canary-look-ungranted", "kv-get canary k", Says("grants.kv")).grants(plain),
        fixture(class, "ungranted-adapter", "all-caps", Fails("adapter_not_granted", "`all-caps`")).of(Tenant::Second),
        fixture(class, "ungranted-adapter", "../all-caps", Fails("adapter_not_granted", "")),
        fixture(class, "wasi-peek", "", Answers("0 things seen")),
    ]
}
