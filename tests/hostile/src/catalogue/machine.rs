//! What a guest does with the machine that it is given: CPU, memory, tables, handles, recursion, bulk memory.

use serde_json::json;

use crate::bombs::Bomb;
use crate::guest::Outcome::{Answers, Fails, Served};
use crate::guest::{Class, Guest, Source};
use crate::wat::Encoding;

const TRAP: &str = "plugin_trap";

pub(super) fn wat(class: Class, name: &'static str, outcome: crate::Outcome) -> Guest {
    Guest::new(class, name, Source::Wat(name, Encoding::Utf8), "hello", outcome)
}

pub(super) fn fixture(class: Class, fixture: &'static str, text: &str, outcome: crate::Outcome) -> Guest {
    let name = if text.is_empty() { fixture.to_owned() } else { format!("{fixture}-{text}") };
    Guest::new(class, name, Source::Fixture(fixture), text, outcome)
}

pub(super) fn guests() -> Vec<Guest> {
    [cpu(), memory(), tables(), handles(), recursion(), bulk()].concat()
}

fn cpu() -> Vec<Guest> {
    let out = Fails("plugin_timeout", "call_cpu_ms_max");
    let short = json!({"call_cpu_ms_max": 20});
    let spin = |place| fixture(Class::Cpu, "spin", place, out.clone()).limits(short.clone());
    let loops = |name| wat(Class::Cpu, name, out.clone()).limits(short.clone());
    let mut guests: Vec<Guest> = ["route", "compose", "constructor", "chunk", "finish"].map(spin).into();
    guests.extend(["indirect-loop", "realloc-loop", "post-return-loop", "table-branches"].map(loops));
    let of_request = Fails("plugin_timeout", "request_cpu_ms_max");
    guests.push(fixture(Class::Cpu, "spin", "often", of_request).limits(json!({"request_cpu_ms_max": 3})));
    let of_start = Fails("plugin_timeout", "start_cpu_ms_max");
    guests.push(wat(Class::Cpu, "start-loop", of_start).limits(json!({"start_cpu_ms_max": 20})));
    let of_wall = Fails("plugin_timeout", "call_wall_ms_max");
    guests.push(wat(Class::Cpu, "waits", of_wall).limits(json!({"call_wall_ms_max": 300})));
    // An instance is dropped as a whole, without a call of what it would like to be called then.
    guests.push(wat(Class::Cpu, "dtor-loop", Served));
    guests
}

fn memory() -> Vec<Guest> {
    let out = Fails("plugin_out_of_memory", "memory_bytes_max");
    let small = json!({"memory_bytes_max": 4 << 20});
    let instances = |name: &str, count, pages| {
        let bomb = Source::Bomb(Bomb::Instances { count, pages });
        Guest::new(Class::Memory, name, bomb, "hello", out.clone())
    };
    vec![
        fixture(Class::Memory, "grow", "", out.clone()).limits(small.clone()),
        fixture(Class::Memory, "grow", "chunk", out.clone()).limits(small.clone()),
        fixture(Class::Memory, "deep-recursion", "memory", Fails(TRAP, "out of bounds")),
        wat(Class::Memory, "grow-to-the-end", Answers("refused")).limits(small.clone()),
        wat(Class::Memory, "grow-and-trap", out.clone()).limits(small),
        instances("three-memories", 3, 400),
        wat(Class::Memory, "realloc-wild", Fails(TRAP, "realloc")),
        wat(Class::Memory, "realloc-same-place", Answers("mine")),
    ]
}

fn tables() -> Vec<Guest> {
    let out = Fails("plugin_limit", "table_elements_max");
    let small = json!({"table_elements_max": 5000});
    let sum = Source::Bomb(Bomb::Tables { count: 3, elements: 30_000 });
    vec![
        wat(Class::Tables, "table-grows", Answers("refused")).limits(small.clone()),
        wat(Class::Tables, "table-grows-and-traps", out.clone()).limits(small),
        Guest::new(Class::Tables, "three-tables", sum, "hello", out),
        wat(Class::Tables, "table-null", Fails(TRAP, "uninitialized element")),
        wat(Class::Tables, "table-signature", Fails(TRAP, "indirect call type mismatch")),
        wat(Class::Tables, "table-bounds", Fails(TRAP, "out of bounds")),
    ]
}

fn handles() -> Vec<Guest> {
    let out = Fails("plugin_limit", "handles_max");
    let few = json!({"handles_max": 64});
    let floods = |name| wat(Class::Handles, name, out.clone()).limits(few.clone());
    let mut guests: Vec<Guest> = ["fields-held", "pollables-held", "own-handles-held"].map(floods).into();
    let buckets = Guest::new(Class::Handles, "buckets-held", Source::Fixture("imports"), "kv-hold b 500", out.clone());
    guests.push(buckets.limits(few.clone()).grants(json!({"kv": [{"bucket": "b"}]})));
    let wrong = |name| wat(Class::Handles, name, Fails(TRAP, "handle"));
    guests.extend(["handle-unknown", "handle-twice", "handle-confused"].map(wrong));
    guests
}

fn recursion() -> Vec<Guest> {
    let out = Fails(TRAP, "stack");
    let deep = |text| fixture(Class::Recursion, "deep-recursion", text, out.clone());
    let mut guests: Vec<Guest> = ["stack", "calls"].map(deep).into();
    let recursive = |name| wat(Class::Recursion, name, out.clone());
    guests.extend(["start-recursion", "indirect-recursion", "wide-recursion"].map(recursive));
    guests.push(wat(Class::Recursion, "realloc-leaves", Fails(TRAP, "leave")));
    guests
}

fn bulk() -> Vec<Guest> {
    let outside = |name| wat(Class::BulkMemory, name, Fails(TRAP, "out of bounds"));
    let mut guests: Vec<Guest> =
        ["copy-outside", "fill-outside", "init-dropped", "init-outside", "table-init-outside"].map(outside).into();
    let out = Fails("plugin_timeout", "call_cpu_ms_max");
    let loops = |name| wat(Class::BulkMemory, name, out.clone()).limits(json!({"call_cpu_ms_max": 20}));
    guests.extend(["copy-loop", "fill-loop", "table-fill-loop"].map(loops));
    guests
}
