//! Canaries: a share of the callers, always the same ones; what `promote` makes of them; history. And that deploying never
//! drops a request in flight.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use serde_json::{Value, json};
use tests::{Client, guest, shared_server, tenant_key};

/// Deploys one more version, which answers with its number; nothing is promoted but the first one.
fn put(client: &Client, function: &str, config: &Value) -> u64 {
    let plugin = client.upload_plugin(guest("decide"));
    let manifest = json!({"plugin": plugin, "config": config});
    client.put(&format!("/v1/functions/{function}"), &manifest).expect(201).json()["version"].as_u64().unwrap()
}

fn two_versions(client: &Client, function: &str) {
    for _ in 0..2 {
        put(client, function, &json!({"answer": "version {version}"}));
    }
}

fn set_canary(client: &Client, function: &str, version: u32, percent: f64) {
    let body = json!({"version": version, "percent": percent});
    let set = client.put(&format!("/v1/functions/{function}/canary"), &body).expect(200).json();
    assert_eq!(set["canary"], json!({"version": version, "percent": percent}));
}

/// The version that answers this caller; the answer, its members and its header say the same.
fn version_for(client: &Client, function: &str, sticky: &str) -> u64 {
    let body = json!({"input": "which?", "sticky": sticky});
    let answer = client.post(&format!("/v1/functions/{function}/invoke"), &body).expect(200);
    let value = answer.json();
    let version = value["version"].as_u64().unwrap();
    assert_eq!(value["output"], json!(format!("version {version}")), "an answer is by one version");
    assert_eq!(answer.version, Some(version.to_string()));
    version
}

#[test]
fn a_canary_answers_its_share_of_the_callers_and_keeps_them() {
    let Some(server) = shared_server("a_canary_answers_its_share_of_the_callers_and_keeps_them") else { return };
    let client = server.client();
    two_versions(&client, "canaried");
    let callers: Vec<String> = (0..60).map(|caller| format!("caller {caller}")).collect();
    let of_canary = || -> Vec<&str> {
        let has = |caller: &&String| version_for(&client, "canaried", caller) == 2;
        callers.iter().filter(has).map(String::as_str).collect()
    };
    assert!(of_canary().is_empty());
    set_canary(&client, "canaried", 2, 20.0);
    let tenth = of_canary();
    assert!((2..=26).contains(&tenth.len()), "{} of 60", tenth.len());
    assert_eq!(of_canary(), tenth, "a caller stays where it is");
    set_canary(&client, "canaried", 2, 70.0);
    let more = of_canary();
    assert!(tenth.iter().all(|caller| more.contains(caller)) && more.len() > tenth.len());
    let shown = client.get("/v1/functions/canaried").expect(200).json();
    assert_eq!((&shown["live"], &shown["canary"]), (&json!(1), &json!({"version": 2, "percent": 70.0})));
    client.delete("/v1/functions/canaried/canary").expect(204);
    client.delete("/v1/functions/canaried/canary").expect(204);
    assert!(of_canary().is_empty());
    assert_eq!(client.get("/v1/functions/canaried").expect(200).json()["canary"], Value::Null);
}

#[test]
fn callers_are_known_by_header_then_by_body_then_by_key_on_every_route() {
    let Some(server) = shared_server("callers_are_known_by_header_then_by_body_then_by_key_on_every_route") else {
        return;
    };
    let client = server.client();
    two_versions(&client, "known");
    set_canary(&client, "known", 2, 50.0);
    let of = |sticky: &str| version_for(&client, "known", sticky);
    let live = (0..).map(|number| format!("c{number}")).find(|caller| of(caller) == 1).unwrap();
    let other = (0..).map(|number| format!("c{number}")).find(|caller| of(caller) == 2).unwrap();
    for (caller, version) in [(&live, "1"), (&other, "2")] {
        let header = ("x-tenon-sticky", caller.as_str());
        let path = "/v1/functions/known/invoke";
        let answer = client.post_with(path, header, &json!({"input": "a"})).expect(200);
        assert_eq!(answer.version.as_deref(), Some(version));
        let answer = client.post_with(path, header, &json!({"input": "a", "sticky": live})).expect(200);
        assert_eq!(answer.version.as_deref(), Some(version), "the header goes first");
        let chat = json!({"model": "known", "messages": [{"role": "user", "content": "a"}]});
        let answer = client.post_with("/v1/chat/completions", header, &chat).expect(200);
        assert_eq!(answer.version.as_deref(), Some(version));
        assert_eq!(answer.json()["choices"][0]["message"]["content"], json!(format!("version {version}")));
        let answer = client.post_with("/v1/completions", header, &json!({"model": "known", "prompt": "a"})).expect(200);
        assert_eq!(answer.version.as_deref(), Some(version));
        let refused = json!({"model": "known", "prompt": "a", "logprobs": 1});
        let refused = client.post_with("/v1/completions", header, &refused).expect_error(400, "unsupported");
        assert_eq!(refused.version.as_deref(), Some(version), "an error tells it too");
    }
    let by_key =
        |client: &Client| client.post("/v1/functions/known/invoke", &json!({"input": "a"})).expect(200).version;
    let first = by_key(&client);
    assert!((0..5).all(|_| by_key(&client) == first), "one key is one caller");
    let versions: BTreeMap<_, u32> = (0..40).fold(BTreeMap::new(), |mut counts, _| {
        let key = client.with_key(Some(tenant_key(&client, "dev", &["invoke"])));
        *counts.entry(by_key(&key)).or_default() += 1;
        counts
    });
    assert_eq!(versions.len(), 2, "other keys are other callers: {versions:?}");
    let base = json!({"model": "base", "prompt": "a", "max_tokens": 1});
    assert_eq!(client.post("/v1/completions", &base).expect(200).version, None, "the base has no versions");
    for bad in ["", &"x".repeat(257)] {
        let body = json!({"input": "a", "sticky": bad});
        client.post("/v1/functions/known/invoke", &body).expect_error(400, "invalid_request");
    }
    let bad = client.post_with("/v1/functions/known/invoke", ("x-tenon-sticky", "caller é"), &json!({"input": "a"}));
    bad.expect_error(400, "invalid_request");
}

#[test]
fn promoting_a_canary_ends_it_and_history_says_who_when_and_what() {
    let Some(server) = shared_server("promoting_a_canary_ends_it_and_history_says_who_when_and_what") else { return };
    let client = server.client();
    two_versions(&client, "history");
    set_canary(&client, "history", 2, 12.5);
    client.put("/v1/functions/history/shadow", &json!({"version": 2})).expect(200);
    let promote = |version: u32, expect: u32| {
        client.post("/v1/functions/history/promote", &json!({"version": version, "expect": expect}))
    };
    promote(2, 1).expect(200);
    promote(1, 1).expect_error(409, "conflict");
    promote(1, 2).expect(200);
    let versions = client.get("/v1/functions/history/versions").expect(200).json();
    assert_eq!((&versions["canary"], &versions["shadow"]), (&Value::Null, &Value::Null));
    let told: Vec<_> = versions["changes"].as_array().unwrap().iter().collect();
    let kinds: Vec<_> = told.iter().map(|one| (one["kind"].as_str().unwrap(), one["to"].as_u64().unwrap())).collect();
    let expected = [
        ("deploy", 1),
        ("deploy", 2),
        ("canary_set", 2),
        ("shadow_set", 2),
        ("promote", 2),
        ("canary_ended", 2),
        ("shadow_ended", 2),
        ("rollback", 1),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(told[2]["percent"], json!(12.5));
    let plugin = versions["data"][0]["plugin"].as_str().unwrap();
    for one in &told {
        assert_eq!(one["plugin"].as_str(), Some(plugin), "{one}");
        assert!(one["time_unix_ms"].as_u64().unwrap() > 1_700_000_000_000 && one["by"].is_string(), "{one}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_and_another_tenants_is_not_there() {
    let Some(server) = shared_server("what_makes_no_sense_is_refused_and_another_tenants_is_not_there") else { return };
    let client = server.client();
    two_versions(&client, "guarded");
    let stranger = client.with_key(Some(tenant_key(&client, "canary-stranger", &["deploy", "invoke"])));
    let invoker = client.with_key(Some(tenant_key(&client, "dev", &["invoke"])));
    for beside in ["canary", "shadow"] {
        let path = format!("/v1/functions/guarded/{beside}");
        let refused = |body: Value, status, code: &str| drop(client.put(&path, &body).expect_error(status, code));
        for percent in [json!(0), json!(-1), json!(100.01), json!(0.001), json!(1e300), json!("10")] {
            refused(json!({"version": 2, "percent": percent}), 400, "invalid_request");
        }
        refused(json!({"version": 1, "percent": 10}), 400, "version_is_live");
        refused(json!({"version": 3, "percent": 10}), 404, "version_not_found");
        refused(json!({"version": 2, "percent": 10, "expect": 2}), 409, "conflict");
        refused(json!({"version": 2, "percent": 10, "share": 1}), 400, "invalid_request");
        refused(json!({"percent": 10}), 400, "invalid_request");
        client.put("/v1/functions/nobody/canary", &json!({"version": 1, "percent": 1})).expect_not_found();
        stranger.put(&path, &json!({"version": 2, "percent": 1})).expect_not_found();
        stranger.delete(&path).expect_not_found();
        invoker.put(&path, &json!({"version": 2, "percent": 1})).expect_error(403, "forbidden");
        invoker.delete(&path).expect_error(403, "forbidden");
    }
    client.put("/v1/functions/guarded/canary", &json!({"version": 2})).expect_error(400, "invalid_request");
    stranger.get("/v1/functions/guarded/shadow").expect_not_found();
    let shown = client.get("/v1/functions/guarded").expect(200).json();
    assert_eq!((&shown["canary"], &shown["shadow"]), (&Value::Null, &Value::Null), "nothing was changed");
}

/// One streamed answer, whole and by one version; `None` if the function was not there.
fn whole_stream(client: &Client, caller: usize, turn: u32) -> Option<u64> {
    let body = json!({"input": format!("Count from {caller} to {turn}."), "max_tokens": 6, "stream": true,
        "sticky": format!("caller {}", caller + turn as usize)});
    let events = client.stream("/v1/functions/moving/invoke", &body);
    if events.status == 404 {
        return None;
    }
    assert_eq!(events.status, 200);
    assert!(events.done, "it is whole: {:?}", events.data.last());
    assert!(events.last("/error").is_none(), "{:?}", events.data);
    let version = |place: &Value| place["version"].as_u64();
    let (first, last) = (events.data.first().and_then(version), events.data.last().and_then(version));
    assert!(first.is_some() && first == last, "it is by one version: {first:?} {last:?}");
    let receipt = client.get(&format!("/v1/receipts/{}", events.receipt.expect("a receipt"))).expect(200).json();
    assert_eq!(receipt["kind"], json!("finished"));
    assert_eq!(receipt["receipt"]["subject"]["function"]["version"].as_u64(), first);
    first
}

#[test]
fn deploying_never_drops_a_request_in_flight() {
    const CALLERS: usize = 16;
    let Some(server) = shared_server("deploying_never_drops_a_request_in_flight") else { return };
    let client = server.client();
    put(&client, "moving", &json!({"prompt": "Say one."}));
    put(&client, "moving", &json!({"prompt": "Say two."}));
    let (stop, answers) = (AtomicBool::new(false), AtomicU32::new(0));
    let wait_for = |more: u32| {
        let goal = answers.load(Ordering::Relaxed) + more;
        let started = std::time::Instant::now();
        while answers.load(Ordering::Relaxed) < goal {
            assert!(started.elapsed().as_secs() < 120, "the callers do not get on");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    let (seen, gone) = std::thread::scope(|scope| {
        let call = |caller: usize| {
            let (client, stop, answers) = (&client, &stop, &answers);
            scope.spawn(move || {
                let mut seen = Vec::new();
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    seen.push(whole_stream(client, caller, turn));
                    answers.fetch_add(1, Ordering::Relaxed);
                }
                seen
            })
        };
        let callers: Vec<_> = (0..CALLERS).map(call).collect();
        for round in 0..3 {
            set_canary(&client, "moving", 2, 50.0);
            wait_for(CALLERS as u32);
            set_canary(&client, "moving", 2, 80.0);
            let promote = |version: u32| {
                client.post("/v1/functions/moving/promote", &json!({"version": version})).expect(200);
            };
            promote(2);
            wait_for(CALLERS as u32);
            promote(1);
            client.put("/v1/functions/moving/shadow", &json!({"version": 2, "percent": 50})).expect(200);
            wait_for(CALLERS as u32);
            put(&client, "moving", &json!({"prompt": format!("Say {round}.")}));
        }
        client.delete("/v1/functions/moving").expect(204);
        wait_for(2 * CALLERS as u32);
        stop.store(true, Ordering::Relaxed);
        let all: Vec<_> = callers.into_iter().flat_map(|caller| caller.join().expect("no answer is lost")).collect();
        let gone = all.iter().filter(|version| version.is_none()).count();
        (all.into_iter().flatten().collect::<Vec<_>>(), gone)
    });
    assert!(seen.contains(&1) && seen.contains(&2), "both versions answered: {seen:?}");
    assert!(seen.iter().all(|version| matches!(version, 1 | 2)), "{seen:?}");
    assert!(seen.len() >= 9 * CALLERS && gone > 0, "{} answers, {gone} after the end", seen.len());
}
