//! What callers share of one engine: KV that is computed once, turns, places in the queue.

use serde_json::{Value, json};
use tests::{Client, Options, Server, completion_ids, tenant_key};

/// About 60 tokens, the same for everyone who asks with the same number.
fn ask(number: u32) -> Value {
    let story =
        format!("Story {number}. Once upon a time there was a fox who lived at the edge of a forest. ").repeat(3);
    json!({"model": "base", "prompt": story, "max_tokens": 16, "temperature": 0, "ignore_eos": true,
        "logprobs": 3, "return_token_ids": true})
}

fn with(mut body: Value, change: Value) -> Value {
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn client_of(server: &Server, tenant: &str) -> Client {
    let client = server.client();
    client.with_key(Some(tenant_key(&client, tenant, &["invoke"])))
}

/// The answer to the last bit, its prompt's length, and how many tokens of KV were found for it.
fn answer(client: &Client, body: &Value) -> ((Vec<u32>, Value), u64, u64) {
    let hits = || client.metric("vllm:prefix_cache_hits_total").expect("a metric") as u64;
    let before = hits();
    let value = client.post("/v1/completions", body).expect(200).json();
    let bits = (completion_ids(&value), value["choices"][0]["logprobs"].clone());
    (bits, value["usage"]["prompt_tokens"].as_u64().unwrap(), hits() - before)
}

#[test]
fn what_a_tenant_asked_before_is_known_to_it_and_to_nobody_else() {
    let name = "what_a_tenant_asked_before_is_known_to_it_and_to_nobody_else";
    let Some(server) = Server::start(name, Options::default()) else { return };
    let [one, two] = ["one", "two"].map(|tenant| client_of(&server, tenant));
    let (tokens, prompt, found) = answer(&one, &ask(1));
    assert_eq!(found, 0);
    let (again, _, found) = answer(&one, &ask(1));
    assert_eq!(again, tokens);
    assert!(found + 16 >= prompt && found < prompt, "{found} of {prompt}");
    let (others, _, found) = answer(&two, &ask(1));
    assert_eq!((others, found), (tokens, 0), "the same answer, computed anew");
    let (_, prompt, found) = answer(&two, &with(ask(2), json!({"n": 4})));
    assert_eq!(found, 3 * (prompt - 1), "four answers, one prompt; each computes its last token");
}

#[test]
fn a_caller_may_step_back_and_refuse_guesses_and_gets_the_same_answer() {
    let name = "a_caller_may_step_back_and_refuse_guesses_and_gets_the_same_answer";
    let Some(server) = tests::shared_server(name) else { return };
    let client = server.client();
    // Something that repeats itself, so that there is something to guess.
    let body = json!({"model": "base", "prompt": "1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8 1 2 3 4 5 6 7 8 1 2 3", "max_tokens": 48,
        "temperature": 0, "ignore_eos": true, "return_token_ids": true});
    let ids = |change: Value| {
        let body = with(body.clone(), change);
        completion_ids(&client.post("/v1/completions", &body).expect(200).json())
    };
    let plain = ids(json!({}));
    assert_eq!(ids(json!({"speculation": false})), plain);
    assert_eq!(ids(json!({"priority": 3})), plain);
    let ahead = client.post("/v1/completions", &with(body.clone(), json!({"priority": -1})));
    assert_eq!(ahead.expect_error(400, "invalid_request").json()["error"]["param"], json!("priority"));
}

#[test]
fn a_tenant_fills_its_share_of_the_queue_and_the_rest_is_for_others() {
    let name = "a_tenant_fills_its_share_of_the_queue_and_the_rest_is_for_others";
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tenon.toml");
    // One row a step: one sequence runs, the others wait.
    std::fs::write(&config, "batch_rows_max = 1\nqueue_requests_max = 3\nqueue_tenant_requests_max = 2\n").unwrap();
    let arguments = vec!["--config".to_owned(), config.display().to_string()];
    let Some(server) = Server::start(name, Options { arguments, ..Options::default() }) else { return };
    let [greedy, modest, late] = ["greedy", "modest", "late"].map(|tenant| client_of(&server, tenant));
    let long = json!({"model": "base", "prompt": "Once", "max_tokens": 2000, "ignore_eos": true, "stream": true});
    let running = greedy.open("/v1/completions", &long);
    let mut lines = Client::lines(running);
    let mut first = String::new();
    std::io::BufRead::read_line(&mut lines, &mut first).unwrap();
    assert!(first.starts_with("data:"), "it runs: {first}");
    let waiting: Vec<_> = (0..2).map(|_| greedy.open("/v1/completions", &long)).collect();
    assert!(waiting.iter().all(|response| response.status() == 200));
    let refused = |client: &Client| {
        let refused = client.open("/v1/completions", &long);
        assert!(refused.headers().contains_key("retry-after"), "{:?}", refused.headers());
        let status = refused.status().as_u16();
        (status, refused.json::<Value>().unwrap()["error"]["code"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused(&greedy), (429, "queue_full".into()), "it has its share");
    let other = modest.open("/v1/completions", &long);
    assert_eq!(other.status(), 200);
    assert_eq!(refused(&late), (503, "overloaded".into()), "the host is full");
}
