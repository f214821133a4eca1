//! What passes between a guest and the host: calls, headers and lists, texts in any encoding, logs.

use serde_json::{Value, json};

use super::machine::{fixture, wat};
use crate::guest::Outcome::{Answers, Fails, Says};
use crate::guest::{Class, Guest, Outcome, Source};
use crate::wat::Encoding;

const LIMIT: &str = "plugin_limit";
const TRAP: &str = "plugin_trap";

pub(super) fn guests() -> Vec<Guest> {
    [host_calls(), headers_and_lists(), strings(), prompts_and_logs()].concat()
}

fn scripted(class: Class, name: &str, script: &str, outcome: Outcome) -> Guest {
    Guest::new(class, name, Source::Fixture("imports"), script, outcome)
}

fn kv() -> Value {
    json!({"kv": [{"bucket": "b"}]})
}

fn host_calls() -> Vec<Guest> {
    let out = Fails(LIMIT, "host_calls_max");
    let flood = |text| fixture(Class::HostCalls, "host-call-flood", text, out.clone());
    let mut guests: Vec<Guest> = ["", "config", "random", "clock"].map(flood).into();
    let inert = |name| wat(Class::HostCalls, name, out.clone());
    guests.extend(["inert-clock", "inert-clock-and-answer", "inert-fields", "wasi-log-flood"].map(inert));
    let of_request = Fails(LIMIT, "request_host_calls_max");
    let few = json!({"request_host_calls_max": 50});
    guests.push(wat(Class::HostCalls, "inert-chunks", of_request.clone()).limits(few.clone()));
    guests.push(fixture(Class::HostCalls, "host-call-flood", "chunk", of_request).limits(few));
    let writes = Says("kv_writes_max of 3");
    let writes = scripted(Class::HostCalls, "bucket-writes", "20*kv-set b k v", writes);
    guests.push(writes.limits(json!({"kv_writes_max": 3})).grants(kv()));
    let adds = Says("kv_writes_max of 3");
    let adds = scripted(Class::HostCalls, "bucket-increments", "20*kv-add b n 1", adds);
    guests.push(adds.limits(json!({"kv_writes_max": 3})).grants(kv()));
    let tokens = scripted(Class::HostCalls, "tokenizer", "50*count x1000", Says("tokenizer_bytes_max of 20000"));
    guests.push(tokens.limits(json!({"tokenizer_bytes_max": 20_000})));
    guests.push(scripted(Class::HostCalls, "tokens-nobody-has", "decode 4000000000 4294967295", Says("error")));
    guests.push(wat(Class::HostCalls, "random-flood", Answers("refused")));
    guests
}

fn headers_and_lists() -> Vec<Guest> {
    let headers = Fails(LIMIT, "http_headers_bytes_max");
    let transfer = Fails(LIMIT, "transfer_bytes_max");
    let huge = |text| fixture(Class::HeadersAndLists, "huge-strings", text, transfer.clone());
    let small = json!({"transfer_bytes_max": 100_000});
    let lying = |text| fixture(Class::HeadersAndLists, "huge-strings", text, Fails(TRAP, "out of bounds"));
    let mut guests = vec![
        wat(Class::HeadersAndLists, "headers-appended", headers.clone()),
        scripted(Class::HeadersAndLists, "one-large-header", "header http://echo/ big x100000", headers),
        scripted(Class::HeadersAndLists, "forged-header", "header http://echo/ a b\r\nc:d", Says("InvalidSyntax")),
        scripted(
            Class::HeadersAndLists,
            "framing-header",
            "header http://echo/ Transfer-Encoding chunked",
            Says("Forbidden"),
        ),
        wat(Class::HeadersAndLists, "list-of-one-string", transfer.clone()),
        wat(Class::HeadersAndLists, "actions-of-one-string", transfer.clone()),
        wat(Class::HeadersAndLists, "many-passes", transfer.clone()),
        wat(Class::HeadersAndLists, "many-pairs", transfer.clone()),
        wat(Class::HeadersAndLists, "list-unaligned", Fails(TRAP, "aligned")),
        wat(Class::HeadersAndLists, "list-wraps", Fails(TRAP, "out of bounds")),
        fixture(Class::HeadersAndLists, "grow", "actions", Fails(LIMIT, "actions_max")),
    ];
    guests.extend(["prefetch", "plan-messages", "plan-stops"].map(|text| huge(text).limits(small.clone())));
    guests.extend(["lying-list", "lying-string"].map(lying));
    guests
}

fn strings() -> Vec<Guest> {
    let echo = |name: &str, encoding, text: &'static str| {
        Guest::new(Class::Strings, name, Source::Wat("echo-text", encoding), text, Answers(text))
    };
    let of = |name: &'static str, encoding, says| {
        Guest::new(Class::Strings, name, Source::Wat(name, encoding), "hello", Fails(TRAP, says))
    };
    // What passes is counted as it lies in the guest's memory; what it becomes here is the answer's to bound.
    let grows = Fails("limit_exceeded", "answer_bytes_max");
    let grown = |name: &'static str, encoding| {
        Guest::new(Class::Strings, name, Source::Wat(name, encoding), "hello", grows.clone())
    };
    vec![
        echo("echo-utf8", Encoding::Utf8, "a\u{e9}\u{20ac}\u{1f600}\u{0}z"),
        echo("echo-utf16", Encoding::Utf16, "a\u{e9}\u{20ac}\u{1f600}\u{0}z"),
        echo("echo-utf16-ascii", Encoding::Utf16, "plain"),
        echo("echo-latin1", Encoding::Compact, "caf\u{e9} \u{ff}"),
        echo("echo-compact-utf16", Encoding::Compact, "caf\u{e9} \u{20ac}\u{1f600}"),
        Guest::new(
            Class::Strings,
            "latin1",
            Source::Wat("compact-latin1", Encoding::Compact),
            "hello",
            Answers("caf\u{e9}"),
        ),
        of("utf16-surrogate", Encoding::Utf16, "surrogate"),
        of("utf16-odd", Encoding::Utf16, "aligned"),
        of("utf16-wraps", Encoding::Utf16, "out of bounds"),
        of("compact-wraps", Encoding::Compact, "out of bounds"),
        of("compact-latin1", Encoding::Utf8, "utf-8"),
        of("bad-utf8", Encoding::Utf8, "utf-8"),
        of("cut-utf8", Encoding::Utf8, "utf-8"),
        of("bad-discriminant", Encoding::Utf8, "discriminant"),
        of("result-outside", Encoding::Utf8, "out of bounds"),
        of("result-unaligned", Encoding::Utf8, "aligned"),
        of("realloc-odd", Encoding::Utf16, "aligned"),
        grown("wide-characters", Encoding::Utf16),
        grown("latin1-characters", Encoding::Compact),
    ]
}

fn prompts_and_logs() -> Vec<Guest> {
    let transfer = Fails(LIMIT, "transfer_bytes_max");
    let small = json!({"transfer_bytes_max": 100_000});
    let class = Class::PromptsAndLogs;
    let huge = |text| fixture(class, "huge-strings", text, transfer.clone()).limits(small.clone());
    let mut guests: Vec<Guest> =
        ["answer", "reject", "error", "log", "config", "plan-text", "emit", "metadata"].map(huge).into();
    let emits = json!({"answer_bytes_max": 250_000});
    guests.extend([
        wat(class, "emit-flood", Fails("limit_exceeded", "answer_bytes_max")).limits(emits),
        fixture(class, "huge-strings", "claims", Fails("limit_exceeded", "claim_value_bytes_max")),
        fixture(class, "huge-strings", "long-error", Fails("plugin_error", "route")),
        fixture(class, "bad-plan", "long-prompt", Fails("limit_exceeded", "prompt_bytes_max")).adapters(&["all-caps"]),
    ]);
    let logs = |text| fixture(class, "flood-log", text, Answers("logged"));
    guests.extend(["long", "empty", "huge", "forged"].map(logs));
    guests
}
