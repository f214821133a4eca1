//! Adapters that are not in memory, and that leave it: the cold and release policies of functions, prefetching, pins. Each
//! receipt says what was done.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Answer, Client, Server, adapter_folder, deploy_plugin, receipt_of, server_with_settings, wait_until_idle};

/// A server with two adapters that were not used yet.
fn started(test: &str, settings: &[(&str, u64)]) -> Option<Server> {
    let server = server_with_settings(test, settings)?;
    for name in ["all-caps", "iso-date"] {
        let folder = adapter_folder(name).expect("a committed adapter");
        server.client().upload_adapter(name, &folder).expect(201);
    }
    Some(server)
}

/// A function that composes `all-caps` alone, with these further members of its manifest.
fn deploy(client: &Client, function: &str, more: &Value) {
    let mut manifest = json!({
        "adapters": ["all-caps", "iso-date"],
        "config": {"first": "all-caps", "second": "iso-date"},
    });
    let members = more.as_object().expect("an object").clone();
    manifest.as_object_mut().expect("an object").extend(members);
    deploy_plugin(client, function, "blend", &manifest);
}

fn invoke(client: &Client, function: &str) -> Answer {
    let input = json!({"text": "What is the capital of France?", "all-caps": 1.0, "iso-date": 0.0});
    client.post(&format!("/v1/functions/{function}/invoke"), &json!({"input": input, "max_tokens": 8}))
}

/// What the receipt of an answer says about adapters that were not in memory.
fn cold_of(client: &Client, answer: &Answer) -> Value {
    let receipt = receipt_of(client, answer.receipt.as_deref().expect("a receipt"), answer.json()["output"].as_str());
    receipt["receipt"]["outcome"].get("cold").cloned().unwrap_or(Value::Null)
}

fn resident(client: &Client) -> f64 {
    client.metric("tenon_adapters_resident{tier=\"memory\"}").expect("a metric")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "not {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_is_done_about_a_cold_adapter_is_as_the_function_says_and_in_the_receipt() {
    let test = "what_is_done_about_a_cold_adapter_is_as_the_function_says_and_in_the_receipt";
    let Some(server) = started(test, &[]) else { return };
    let client = server.client();
    // So that each begins cold.
    for (function, cold) in [
        ("waits", json!({"wait_ms": 60_000})),
        ("does-not-wait", json!({"wait_ms": 0})),
        ("on-base", json!("base")),
        ("refuses", json!("refuse")),
        ("falls-back", json!({"fallback": [{"name": "iso-date", "weight": 0.5}]})),
    ] {
        deploy(&client, function, &json!({"cold": cold, "release": "immediate"}));
    }
    let again = |function: &str| {
        wait_until_idle(&client);
        until("out of memory", || resident(&client) == 0.0);
        invoke(&client, function)
    };
    let adapters = |answer: &Answer| {
        let names =
            answer.json()["adapters"].as_array().expect("a list").iter().map(|one| one["name"].clone()).collect();
        Value::Array(names)
    };
    let waited = again("waits").expect(200);
    let cold = cold_of(&client, &waited);
    assert_eq!((adapters(&waited), &cold["decision"]), (json!(["all-caps"]), &json!("waited")), "{cold}");
    assert_eq!(cold["loads"][0]["from"], json!("store"), "{cold}");
    assert!(cold["loads"][0]["pack_ms"].as_f64().expect("a number") > 0.0, "{cold}");
    let warm_text = waited.json()["output"].clone();
    // It was packed once: now it comes from disk, and answers the same.
    until("on disk", || client.metric("tenon_adapters_resident{tier=\"disk\"}") == Some(1.0));
    let waited = again("waits").expect(200);
    let cold = cold_of(&client, &waited);
    assert_eq!((&cold["loads"][0]["from"], &cold["loads"][0]["pack_ms"]), (&json!("disk"), &json!(0.0)), "{cold}");
    assert_eq!(waited.json()["output"], warm_text);

    for function in ["refuses", "does-not-wait"] {
        let refused = again(function).expect_error(503, "adapter_cold");
        assert!(refused.retry_after.is_some(), "no Retry-After: {}", refused.text);
        // It was asked for: it comes, and the next one is answered, and has nothing to tell.
        until("there", || resident(&client) == 1.0);
        let answer = invoke(&client, function).expect(200);
        assert_eq!((adapters(&answer), cold_of(&client, &answer)), (json!(["all-caps"]), Value::Null));
        assert_eq!(answer.json()["output"], warm_text);
    }

    let on_base = again("on-base").expect(200);
    let cold = cold_of(&client, &on_base);
    assert_eq!((adapters(&on_base), &cold["decision"]), (json!([]), &json!("base")));
    assert_eq!(cold["asked"].as_array().map(Vec::len), Some(1), "{cold}");
    until("there", || resident(&client) == 1.0);
    assert_eq!(adapters(&invoke(&client, "on-base").expect(200)), json!(["all-caps"]));

    // The fallback is as cold as the rest; the one that keeps it in memory is another function.
    again("falls-back").expect_error(503, "adapter_cold");
    client.put("/v1/adapters/iso-date/pin", &json!({})).expect(204);
    until("the pinned one alone", || {
        drop(invoke(&client, "waits").expect(200));
        wait_until_idle(&client);
        resident(&client) == 1.0
    });
    let fell_back = invoke(&client, "falls-back").expect(200);
    let cold = cold_of(&client, &fell_back);
    assert_eq!((adapters(&fell_back), &cold["decision"]), (json!(["iso-date"]), &json!("fallback")), "{cold}");
    let counted = |decision: &str| client.metric(&format!("tenon_cold_decisions_total{{decision=\"{decision}\"}}"));
    let counts = ["base", "fallback", "refused"].map(counted);
    assert_eq!(counts, [Some(1.0), Some(1.0), Some(3.0)]);
    // A policy that names what is not granted is refused when it is deployed.
    let plugin = client.upload_plugin(tests::guest("blend"));
    let bad = json!({"plugin": plugin, "adapters": ["all-caps"], "cold": {"fallback": [{"name": "iso-date"}]}});
    client.put("/v1/functions/bad", &bad).expect_error(400, "invalid_manifest");
}

#[test]
fn adapters_leave_memory_and_slots_as_the_function_says() {
    let test = "adapters_leave_memory_and_slots_as_the_function_says";
    let Some(server) = started(test, &[]) else { return };
    let client = server.client();
    for (function, release) in
        [("stays", json!("lru")), ("rests", json!({"idle_ms": 400})), ("goes", json!("immediate"))]
    {
        deploy(&client, function, &json!({"release": release}));
    }
    let bytes = || client.metric("tenon_adapter_cache_bytes").expect("a metric");
    invoke(&client, "goes").expect(200);
    wait_until_idle(&client);
    assert_eq!((resident(&client), bytes()), (0.0, 0.0), "it went with the answer");
    invoke(&client, "rests").expect(200);
    wait_until_idle(&client);
    assert_eq!(resident(&client), 1.0, "it rests");
    until("gone", || resident(&client) == 0.0);
    invoke(&client, "stays").expect(200);
    wait_until_idle(&client);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(resident(&client), 1.0);
    // Who keeps it for less time is obeyed, and who asks by the adapter's own name keeps it.
    invoke(&client, "goes").expect(200);
    wait_until_idle(&client);
    assert_eq!(resident(&client), 0.0);
    client.post("/v1/completions", &json!({"model": "all-caps", "prompt": "One", "max_tokens": 2})).expect(200);
    assert_eq!(resident(&client), 1.0);
    let evicted =
        |reason: &str| client.metric(&format!("tenon_adapter_evictions_total{{tier=\"memory\",reason=\"{reason}\"}}"));
    assert_eq!((evicted("released"), evicted("idle")), (Some(2.0), Some(1.0)));
}

#[test]
fn a_pinned_adapter_stays_within_its_budget_and_is_the_tenants_own() {
    let test = "a_pinned_adapter_stays_within_its_budget_and_is_the_tenants_own";
    // Room for either of the two adapters; half of it may be pinned, which is room for the smaller one.
    let Some(server) = started(test, &[("adapter_cache_bytes_max", 3_000_000)]) else { return };
    let client = server.client();
    let bytes = || client.metric("tenon_adapter_cache_bytes").expect("a metric");
    let pinned = || client.metric("tenon_adapter_pinned_bytes").expect("a metric");
    let ask = |model: &str| {
        client.post("/v1/completions", &json!({"model": model, "prompt": "One", "max_tokens": 2})).expect(200);
        wait_until_idle(&client);
        bytes()
    };
    let (small, large) = (ask("all-caps"), ask("iso-date"));
    assert!(small > 0.0 && large > 1_000_000.0 && small + large > 3_000_000.0, "{small} {large}");
    client.put("/v1/adapters/all-caps/pin", &json!({})).expect(204);
    client.put("/v1/adapters/all-caps/pin", &json!({})).expect(204);
    assert_eq!((pinned(), bytes()), (small, small), "the other one gave way");
    assert_eq!(ask("iso-date"), small, "and finds no room any more");
    client.put("/v1/adapters/iso-date/pin", &json!({})).expect_error(422, "limit_exceeded");
    client.delete("/v1/adapters/all-caps/pin").expect(204);
    client.delete("/v1/adapters/all-caps/pin").expect(204);
    assert_eq!((pinned(), ask("iso-date")), (0.0, large));
    client.put("/v1/adapters/nobody/pin", &json!({})).expect_not_found();
    let other = client.with_key(Some(tests::tenant_key(&client, "someone", &["invoke", "adapters"])));
    other.put("/v1/adapters/all-caps/pin", &json!({})).expect_not_found();
    other.delete("/v1/adapters/all-caps/pin").expect_not_found();
    let weak = client.with_key(Some(tests::tenant_key(&client, "weak", &["invoke"])));
    weak.put("/v1/adapters/all-caps/pin", &json!({})).expect_error(403, "forbidden");
}
