//! Calls of other functions by a plugin: each a request of its own with its own receipt, in the caller's time, as deep as hand-overs and
//! calls together may go, and never a wait without an end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Answer, Client, Options, Server, deploy_plugin, receipt_of, repository, tenant_key, wait_until_idle};

fn started(lines: &str) -> Server {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tenon.toml");
    std::fs::write(&file, format!("[limits]\n{lines}\n")).expect("written");
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    let options = Options { arguments, ..Options::default() };
    Server::start_on(&repository().join("tests/fixtures/bases/llama.gguf"), options)
}

/// Answers with a text.
fn says(client: &Client, function: &str, text: &str) {
    deploy_plugin(client, function, "decide", &json!({"config": {"answer": text}}));
}

/// Asks another function, and answers with what it says (or puts it elsewhere).
fn asks(client: &Client, function: &str, other: &str, then: &str) {
    let manifest = json!({"config": {"function": other, "then": then}, "grants": {"calls": [other]}});
    deploy_plugin(client, function, "consult", &manifest);
}

fn invoke(client: &Client, function: &str, input: &str) -> Answer {
    client.post(&format!("/v1/functions/{function}/invoke"), &json!({"input": input, "max_tokens": 4}))
}

fn messages(client: &Client, function: &str) -> Vec<String> {
    let page = client.get(&format!("/v1/functions/{function}/logs")).expect(200).json();
    page["data"].as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_plugin_asks_another_function_and_both_have_receipts() {
    let server = started("");
    let client = server.client();
    says(&client, "facts", "{function} heard {text}");
    asks(&client, "answers", "facts", "answer");
    let answer = invoke(&client, "answers", "hello");
    let id = answer.receipt.clone().unwrap();
    let value = answer.expect(200).json();
    assert_eq!(value["output"], json!("facts heard hello"));
    assert_eq!(value["function"], json!("answers"), "it answered, with what the other one said");
    let outer = receipt_of(&client, &id, Some("facts heard hello"))["receipt"].clone();
    let calls = outer["outcome"]["calls"].as_array().unwrap();
    assert_eq!((calls.len(), &calls[0]["function"]), (1, &json!("facts")), "{outer}");
    let inner =
        receipt_of(&client, calls[0]["receipt"].as_str().unwrap(), Some("facts heard hello"))["receipt"].clone();
    assert_eq!(inner["subject"]["function"]["name"], json!("facts"));
    assert_eq!(inner["subject"]["called_by"]["request"], outer["subject"]["request"]);
    assert_eq!(inner["subject"]["called_by"]["function"], outer["subject"]["function"]);
    assert_eq!(inner["subject"]["request"], json!(format!("{}.1", outer["subject"]["request"].as_str().unwrap())));
    assert_eq!(messages(&client, "facts"), ["called by `answers` version 1"]);
    // Before the model, and after it: the model's own part is generated in both.
    for then in ["compose", "append"] {
        asks(&client, &format!("then-{then}"), "facts", then);
        for stream in [false, true] {
            let path = format!("/v1/functions/then-{then}/invoke");
            let body = json!({"input": "hello", "max_tokens": 4, "stream": stream});
            let text = match stream {
                true => client.stream(&path, &body).text(),
                false => client.post(&path, &body).expect(200).json()["output"].as_str().unwrap().to_owned(),
            };
            assert_eq!(text.ends_with(" [facts heard hello]"), then == "append", "{then}: {text}");
        }
    }
    wait_until_idle(&client);
}

#[test]
fn calls_and_hand_overs_lead_four_functions_away_and_no_further() {
    let server = started("");
    let client = server.client();
    says(&client, "deep-5", "never");
    says(&client, "end", "reached");
    let chain = |name: &str, last: &str| {
        for number in 0..5 {
            let next = if number == 4 { last.to_owned() } else { format!("{name}-{}", number + 1) };
            let function = format!("{name}-{number}");
            // A hand-over in the middle counts as a call does.
            if number == 2 {
                let manifest = json!({"config": {"hand-over": next}, "functions": [next]});
                deploy_plugin(&client, &function, "decide", &manifest);
            } else {
                asks(&client, &function, &next, "answer");
            }
        }
    };
    chain("deep", "deep-5");
    let reached = invoke(&client, "deep-1", "a").expect(200).json();
    assert_eq!(reached["output"], json!("never"));
    let refused = invoke(&client, "deep-0", "a").expect_error(502, "plugin_error").text;
    assert!(refused.contains("hand_over_depth_max of 4 hand-overs and calls together"), "{refused}");
    assert!(refused.contains("deep-0 -> deep-1 -> deep-2 -> deep-3 -> deep-4 -> deep-5"), "{refused}");
    // In a circle, and alone.
    asks(&client, "ring-a", "ring-b", "answer");
    asks(&client, "ring-b", "ring-a", "compose");
    asks(&client, "self", "self", "answer");
    for (function, path) in [("ring-a", "ring-a -> ring-b -> ring-a"), ("self", "self -> self -> self")] {
        let refused = invoke(&client, function, "a").expect_error(502, "plugin_error").text;
        assert!(refused.contains("hand_over_depth_max of 4") && refused.contains(path), "{refused}");
    }
    wait_until_idle(&client);
}

#[test]
fn what_is_not_granted_or_anothers_is_refused_alike() {
    let server = started("");
    let client = server.client();
    let stranger = client.with_key(Some(tenant_key(&client, "call-stranger", &["deploy", "invoke"])));
    says(&stranger, "theirs", "secret");
    asks(&client, "to-theirs", "theirs", "answer");
    asks(&client, "to-nobody", "nobody-at-all", "answer");
    let refused = |function: &str| {
        let text = invoke(&client, function, "a").expect_error(502, "plugin_error").json()["error"]["message"].clone();
        text.as_str().unwrap().to_owned()
    };
    let (theirs, nobody) = (refused("to-theirs"), refused("to-nobody"));
    assert!(theirs.contains("function_not_found"), "{theirs}");
    assert_eq!(theirs.replace("theirs", "X"), nobody.replace("nobody-at-all", "X").replace("to-nobody", "to-X"));
    says(&client, "there", "here");
    for grants in [json!({}), json!({"calls": ["other"]})] {
        let manifest =
            json!({"config": {"function": "there", "then": "answer"}, "functions": ["there"], "grants": grants});
        deploy_plugin(&client, "ungranted", "consult", &manifest);
        let said = refused("ungranted");
        assert!(said.contains("denied: the function `there`: the manifest's grants.calls does not name it"), "{said}");
    }
    asks(&client, "to-there", "there", "answer");
    invoke(&client, "to-there", "a").expect(200);
    client.delete("/v1/functions/there").expect(204);
    assert!(refused("to-there").contains("function_not_found"));
    let bad = json!({"plugin": client.upload_plugin(tests::guest("consult")), "grants": {"calls": ["../x"]}});
    client.put("/v1/functions/bad-grant", &bad).expect_error(400, "invalid_manifest");
}

#[test]
fn calls_are_counted_over_all_that_they_lead_to() {
    let server = started("plugin_function_calls_max = 5");
    let client = server.client();
    says(&client, "leaf", "leaf");
    let calls = |function: &str, more: Value| {
        let mut manifest = json!({"grants": {"calls": ["leaf", "twice"]}});
        manifest.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        deploy_plugin(&client, function, "agent-probe", &manifest);
    };
    calls("twice", json!({}));
    calls("many", json!({}));
    calls("few", json!({"limits": {"function_calls_max": 2}}));
    let said =
        |function: &str, script: &str| invoke(&client, function, script).expect(200).json()["output"].to_string();
    let few = said("few", "repeat 9 call leaf a");
    assert!(few.contains("function_calls_max of 2 calls") && few.matches("leaf 1 said leaf").count() == 2, "{few}");
    // Each of these is one call of `many` and one that `twice` makes for it: the sixth in all is refused, where it is made.
    let many = said("many", "repeat 9 call twice call leaf a");
    assert!(many.contains("function_calls_max of 5 calls in one request, those of the functions"), "{many}");
    assert_eq!(many.matches("twice 1 said leaf 1 said leaf").count(), 2, "{many}");
    wait_until_idle(&client);
}

#[test]
fn callers_that_hold_every_place_never_wait_for_one_another() {
    let server = started("plugin_instances_max = 1");
    let client = server.client();
    says(&client, "facts", "a fact");
    asks(&client, "answers", "facts", "answer");
    // The one place is the caller's: refused at once, not waited for.
    let refused = invoke(&client, "answers", "a").expect_error(502, "plugin_error").text;
    assert!(refused.contains("plugin_busy") && refused.contains("instances_max"), "{refused}");
    drop(server);
    let server = started("tenant_concurrent_requests_max = 1");
    let client = server.client();
    says(&client, "facts", "a fact");
    asks(&client, "answers", "facts", "answer");
    let value = invoke(&client, "answers", "a").expect(200).json();
    assert_eq!(value["output"], json!("a fact"), "a call is in its caller's place");
    // More callers at once than there are places for instances: each is answered or refused.
    drop(server);
    let server = started("plugin_instances_max = 4");
    let client = server.client();
    says(&client, "facts", "a fact");
    asks(&client, "answers", "facts", "compose");
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| invoke(&client, "answers", "a"));
        let asked: Vec<_> = (0..16).map(|_| ask()).collect();
        asked.into_iter().map(|one| one.join().expect("an answer")).collect()
    });
    assert!(answers.iter().all(|answer| [200, 429, 502, 503].contains(&answer.status)), "{answers:?}");
    assert!(answers.iter().all(|answer| answer.status == 200 || answer.text.contains("instances_max")), "{answers:?}");
    wait_until_idle(&client);
}

#[test]
fn a_call_ends_with_its_caller() {
    let server = started("plugin_generations_max = 64\nplugin_generated_tokens_max = 100000");
    let client = server.client();
    // Each draw begins anew and ends where its seed has it end: thousands of tokens in all. The text is the first one's prompt too, and
    // the base's context is short.
    let draws = (0..16).map(|seed| format!("\nfork a b\ndraw b 400 {seed}"));
    let endless = format!("open a The tenon is{}", draws.collect::<String>());
    deploy_plugin(&client, "slow", "agent-probe", &json!({"grants": {"generations": true}}));
    let hurried = json!({"grants": {"calls": ["slow"]}, "limits": {"deadline_ms_max": 1}});
    deploy_plugin(&client, "hurried", "agent-probe", &hurried);
    invoke(&client, "hurried", "call slow write x\nspin").expect_error(503, "deadline_exceeded");
    // The caller leaves while the other function works.
    asks(&client, "front", "slow", "append");
    let body = json!({"input": endless, "stream": true, "max_tokens": 2});
    let both_work = || {
        let begun = Instant::now();
        // The first one's own generation has ended by then: it is the other one's that runs.
        let is_at_work = || {
            client.metric("tenon_plugin_instances") >= Some(2.0)
                && client.metric("vllm:num_requests_running") >= Some(1.0)
        };
        while !is_at_work() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the other function never began");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    client.hang_up_after("/v1/functions/front/invoke", &body, "function.begin", both_work);
    wait_until_idle(&client);
    let begun = Instant::now();
    let cancelled = || {
        let receipts = client.get("/v1/receipts").expect(200).json();
        receipts["data"].as_array().unwrap().iter().filter(|one| one["receipt"]["kind"] == "cancelled").count()
    };
    while cancelled() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "both are told to be cancelled: {}", cancelled());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(cancelled(), 2, "and no other");
    let receipts = client.get("/v1/receipts").expect(200).json()["data"].as_array().unwrap().clone();
    let of = |function: &str| {
        let is_it = |one: &&Value| {
            let receipt = &one["receipt"];
            receipt["kind"] == "cancelled" && receipt["subject"]["function"]["name"] == function
        };
        receipts.iter().find(is_it).unwrap_or_else(|| panic!("no receipt of {function}"))["receipt"].clone()
    };
    let (caller, called) = (of("front"), of("slow"));
    let listed = json!([{"function": "slow", "receipt": called["id"], "error": "cancelled"}]);
    assert_eq!(caller["outcome"]["calls"], listed, "{caller}");
}

#[test]
fn the_tokens_of_a_call_are_the_tenants() {
    let server = started("tenant_tokens_per_minute_max = 40");
    let client = server.client();
    deploy_plugin(&client, "writes", "echo", &json!({}));
    deploy_plugin(&client, "calls", "agent-probe", &json!({"grants": {"calls": ["writes"]}}));
    let left = || client.get("/v1/quota").expect(200).json()["standing"][0]["remaining"].as_u64().unwrap();
    let before = left();
    let said = invoke(&client, "calls", "repeat 8 call writes what is it").expect(200).json()["output"].to_string();
    assert!(said.contains("tokens_per_minute_max, the tenant's quota"), "{said}");
    assert!(left() < before, "{before}");
    let usage = client.get("/v1/usage").expect(200).json();
    let functions: Vec<_> =
        usage["data"][0]["functions"].as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
    assert!(functions.contains(&json!("writes")) && functions.contains(&json!("calls")), "{usage}");
}
