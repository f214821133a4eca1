//! Usage: the same sums as those of the exported receipts, of one tenant, also after a kill.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tests::{Client, Options, Server, deploy_examples, shared_server, tenant_key};

/// (requests, failed, cancelled, recovered, prompt tokens, completion tokens) by part, as the exported receipts say.
type Sums = BTreeMap<String, [u64; 6]>;

fn add(sums: &mut Sums, part: String, counts: [u64; 6]) {
    let sum = sums.entry(part).or_default();
    sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}

fn from_receipts(client: &Client) -> Sums {
    let mut sums = Sums::new();
    let mut after = 0;
    loop {
        let page = client.get(&format!("/v1/receipts?limit=500&after={after}")).expect(200).json();
        for record in page["data"].as_array().unwrap() {
            let receipt = &record["receipt"];
            let kind = receipt["kind"].as_str().unwrap();
            if kind == "started" {
                continue;
            }
            let is = |name: &str| u64::from(kind == name);
            let tokens = |name: &str| receipt["outcome"]["tokens"][name].as_u64().unwrap_or_default();
            let counts = [1, is("failed"), is("cancelled"), is("recovered"), tokens("prompt"), tokens("completion")];
            let subject = &receipt["subject"];
            add(&mut sums, "total".into(), counts);
            add(&mut sums, format!("base {}", subject["base"].as_str().unwrap()), counts);
            if let Some(name) = subject["function"]["name"].as_str() {
                add(&mut sums, format!("function {name}"), counts);
            }
            let adapters = subject["adapters"].as_array().cloned().unwrap_or_default();
            let digests: std::collections::BTreeSet<_> =
                adapters.iter().map(|adapter| adapter["adapter"].as_str().unwrap().to_owned()).collect();
            digests.into_iter().for_each(|digest| add(&mut sums, format!("adapter {digest}"), counts));
        }
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => return sums,
        }
    }
}

fn counts(value: &Value) -> [u64; 6] {
    let names = [
        "requests",
        "failed_requests",
        "cancelled_requests",
        "recovered_requests",
        "prompt_tokens",
        "completion_tokens",
    ];
    names.map(|name| value[name].as_u64().unwrap_or_else(|| panic!("no {name}: {value}")))
}

fn from_usage(client: &Client) -> Sums {
    let usage = client.get("/v1/usage").expect(200).json();
    let mut sums = Sums::new();
    add(&mut sums, "total".into(), counts(&usage["total"]));
    let mut by_day = [0; 6];
    for day in usage["data"].as_array().unwrap() {
        by_day.iter_mut().zip(counts(day)).for_each(|(sum, count)| *sum += count);
        for (list, part, name) in
            [("functions", "function", "name"), ("adapters", "adapter", "digest"), ("bases", "base", "digest")]
        {
            for row in day[list].as_array().unwrap() {
                add(&mut sums, format!("{part} {}", row[name].as_str().unwrap()), counts(row));
            }
        }
    }
    assert_eq!(by_day, counts(&usage["total"]), "the days make the total: {usage}");
    sums
}

/// Some requests that end in every way that a host sees.
fn traffic(client: &Client) {
    client.post("/v1/functions/skills/invoke", &json!({"input": "December 7th, 1997"})).expect(200);
    let input = json!({"text": "What is the ocean?", "all-caps": 0.5, "sentiment-json": 0.5});
    client.post("/v1/functions/blend/invoke", &json!({"input": input, "max_tokens": 3})).expect(200);
    client.post("/v1/completions", &json!({"model": "base", "prompt": "Once", "max_tokens": 2})).expect(200);
    let chat = json!({"model": "all-caps", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    client.post("/v1/chat/completions", &chat).expect(200);
    let plugin = client.upload_plugin(tests::guest("trap"));
    client.put("/v1/functions/trapped", &json!({"plugin": plugin})).expect(201);
    let failed = client.post("/v1/functions/trapped/invoke", &json!({"input": "chunk", "max_tokens": 4}));
    assert_eq!(failed.status, 502);
}

fn long_stream() -> Value {
    json!({"model": "base", "prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": true, "stream": true})
}

#[test]
fn usage_is_the_sum_of_the_receipts_also_after_a_kill() {
    let test = "usage_is_the_sum_of_the_receipts_also_after_a_kill";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    let client = server.client();
    assert_eq!(from_usage(&client), Sums::from([("total".into(), [0; 6])]));
    deploy_examples(&client);
    traffic(&client);
    // One that hangs up, and one that is cut off by the kill.
    drop(client.open("/v1/completions", &long_stream()));
    let mut before = from_usage(&client);
    let started = std::time::Instant::now();
    while before["total"][2] == 0 {
        assert!(started.elapsed().as_secs() < 10, "the caller who hung up was not noticed: {before:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
        before = from_usage(&client);
    }
    assert_eq!(before, from_receipts(&client));
    assert_eq!(before["total"][..4], [6, 1, 1, 0]);
    assert_eq!(before["function skills"][0], 1);
    let _running = client.open("/v1/completions", &long_stream());
    server.kill();
    let data = server.data().to_path_buf();
    let _scratch = server.keep_data();
    drop(server);
    let Some(server) = Server::start(test, Options { data: Some(data), ..Options::default() }) else { return };
    let client = server.client();
    let after = from_usage(&client);
    assert_eq!(after, from_receipts(&client));
    assert_eq!(after["total"][..4], [7, 1, 1, 1], "the killed one is recovered");
    assert_eq!(after["total"][4..], before["total"][4..], "its tokens are not known");
    traffic(&client);
    assert_eq!(from_usage(&client), from_receipts(&client));
}

#[test]
fn usage_is_of_ones_own_tenant_unless_one_administers() {
    let Some(server) = shared_server("usage_is_of_ones_own_tenant_unless_one_administers") else { return };
    let operator = server.client();
    let key = tenant_key(&operator, "usage-tenant", &["invoke", "receipts"]);
    let client = operator.with_key(Some(key));
    client.post("/v1/completions", &json!({"model": "base", "prompt": "a", "max_tokens": 1})).expect(200);
    let usage = client.get("/v1/usage").expect(200).json();
    assert_eq!((&usage["tenant"], &usage["total"]["requests"]), (&json!("usage-tenant"), &json!(1)));
    client.get("/v1/usage?tenant=usage-tenant").expect(200);
    client.get("/v1/usage?tenant=dev").expect_error(403, "forbidden");
    client.get("/v1/usage?tenant=nobody").expect_error(403, "forbidden");
    let seen = operator.get("/v1/usage?tenant=usage-tenant").expect(200).json();
    assert_eq!(seen["total"], usage["total"]);
    operator.get("/v1/usage?tenant=nobody").expect_not_found();
    let invoker = operator.with_key(Some(tenant_key(&operator, "usage-tenant", &["invoke"])));
    invoker.get("/v1/usage").expect_error(403, "forbidden");
}

#[test]
fn days_that_make_no_sense_are_refused() {
    let Some(server) = shared_server("days_that_make_no_sense_are_refused") else { return };
    let client = server.client();
    let day = client.get("/v1/usage?from=2026-01-01&to=2026-01-01").expect(200).json();
    assert_eq!((&day["total"]["requests"], &day["data"]), (&json!(0), &json!([])));
    client.get("/v1/usage?from=2026-01-02&to=2026-01-01").expect_error(400, "invalid_request");
    client.get("/v1/usage?from=yesterday").expect_error(400, "invalid_request");
    client.get("/v1/usage?from=2020-01-01&to=2026-01-01").expect_error(400, "limit_exceeded");
    client.get("/v1/usage?since=2020-01-01").expect_error(400, "invalid_request");
}
