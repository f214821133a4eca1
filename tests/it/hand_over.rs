//! Handing over: a request goes on in another function of its tenant, under that one's grants, limits and log, as far as four
//! functions away, in the time that it began with.

use serde_json::{Value, json};

use tests::{Client, guest, receipt_of, server_with_limits, shared_server, tenant_key, wait_until_idle};

/// A function whose plugin decides as configured, and may hand over to these.
fn deploy(client: &Client, function: &str, config: &Value, functions: &[&str]) {
    deploy_with(client, function, &json!({"config": config, "functions": functions}));
}

fn deploy_with(client: &Client, function: &str, manifest: &Value) {
    let mut manifest = manifest.clone();
    manifest["plugin"] = json!(client.upload_plugin(guest("decide")));
    client.put(&format!("/v1/functions/{function}"), &manifest).expect(201);
}

/// `NAME-0` hands over to `NAME-1`, and so on; the last one answers, or generates if there is no answer.
fn chain(client: &Client, name: &str, hand_overs: usize, answer: Option<&str>) {
    for number in 0..hand_overs {
        let next = format!("{name}-{}", number + 1);
        deploy(client, &format!("{name}-{number}"), &json!({"hand-over": next}), &[&next]);
    }
    let last = answer.map_or(json!({}), |answer| json!({"answer": answer}));
    deploy(client, &format!("{name}-{hand_overs}"), &last, &[]);
}

fn messages(client: &Client, function: &str) -> Vec<String> {
    let page = client.get(&format!("/v1/functions/{function}/logs")).expect(200).json();
    page["data"].as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_request_is_handed_over_four_times_and_all_of_it_is_told() {
    let Some(server) = shared_server("a_request_is_handed_over_four_times_and_all_of_it_is_told") else { return };
    let client = server.client();
    chain(&client, "far", 4, Some("{function} says {text}"));
    let answer = client.post("/v1/functions/far-0/invoke", &json!({"input": "hello"})).expect(200);
    let value = answer.json();
    assert_eq!(value["output"], json!("far-4 says hello"));
    assert_eq!((&value["function"], &value["version"]), (&json!("far-4"), &json!(1)), "who answered");
    assert_eq!(answer.version.as_deref(), Some("1"), "of the one that was called");
    let receipt = receipt_of(&client, value["receipt"].as_str().unwrap(), Some("far-4 says hello"));
    assert_eq!(receipt["receipt"]["subject"]["function"]["name"], json!("far-0"), "who was called");
    let handed_over = receipt["receipt"]["outcome"]["handed_over"].as_array().unwrap();
    let names: Vec<_> = handed_over.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["far-1", "far-2", "far-3", "far-4"]);
    let plugin = &receipt["receipt"]["subject"]["function"]["plugin"];
    assert!(handed_over.iter().all(|one| one["plugin"] == *plugin && one["version"] == json!(1)));
    assert_eq!(messages(&client, "far-0"), ["handed over to `far-1` version 1"]);
    let between = ["handed over by `far-0` version 1", "handed over to `far-2` version 1"];
    assert_eq!(messages(&client, "far-1"), between);
    assert_eq!(messages(&client, "far-4"), ["handed over by `far-3` version 1"]);
    let usage = client.get("/v1/usage").expect(200).json();
    let functions = usage["data"].as_array().unwrap().iter().flat_map(|day| day["functions"].as_array().unwrap());
    let counted: Vec<_> =
        functions.filter_map(|row| row["name"].as_str()).filter(|name| name.starts_with("far-")).collect();
    assert_eq!(counted, ["far-4"], "it is in the usage of the one that answered");
}

#[test]
fn the_other_function_generates_under_its_own_manifest() {
    let Some(server) = shared_server("the_other_function_generates_under_its_own_manifest") else { return };
    let client = server.client();
    let limits = |tokens: u32| json!({"output_tokens_max": tokens});
    deploy_with(&client, "own-2", &json!({"limits": limits(5)}));
    let to = |name: &str| json!({"config": {"hand-over": name}, "functions": [name], "limits": limits(2)});
    deploy_with(&client, "own-1", &to("own-2"));
    for stream in [false, true] {
        let body = json!({"input": "What is the capital of France?", "stream": stream});
        let (text, usage) = if stream {
            let events = client.stream("/v1/functions/own-1/invoke", &body);
            assert_eq!(events.data.first().map(|begin| begin["function"].clone()), Some(json!("own-2")));
            (events.text(), events.last("/usage").cloned().unwrap())
        } else {
            let value = client.post("/v1/functions/own-1/invoke", &body).expect(200).json();
            (value["output"].as_str().unwrap().to_owned(), value["usage"].clone())
        };
        assert_eq!(usage["completion_tokens"], json!(5), "its own limit, not the first one's: {text}");
    }
    let chat = json!({"model": "own-1", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3});
    let chat = client.post("/v1/chat/completions", &chat).expect(200).json();
    assert_eq!(chat["usage"]["completion_tokens"], json!(3), "{chat}");
}

#[test]
fn the_other_functions_canary_knows_the_caller() {
    let Some(server) = shared_server("the_other_functions_canary_knows_the_caller") else { return };
    let client = server.client();
    for _ in 0..2 {
        deploy(&client, "behind", &json!({"answer": "{version}"}), &[]);
    }
    deploy(&client, "before", &json!({"hand-over": "behind"}), &["behind"]);
    client.put("/v1/functions/behind/canary", &json!({"version": 2, "percent": 50})).expect(200);
    let said = |function: &str, caller: u32| {
        let body = json!({"input": "a", "sticky": format!("caller {caller}")});
        client.post(&format!("/v1/functions/{function}/invoke"), &body).expect(200).json()["output"].clone()
    };
    let directly: Vec<_> = (0..20).map(|caller| said("behind", caller)).collect();
    assert!(directly.contains(&json!("1")) && directly.contains(&json!("2")), "{directly:?}");
    let handed_over: Vec<_> = (0..20).map(|caller| said("before", caller)).collect();
    assert_eq!(handed_over, directly, "a caller has one version of a function, however it gets there");
}

#[test]
fn a_loop_is_cut_and_the_error_names_the_limit() {
    let Some(server) = shared_server("a_loop_is_cut_and_the_error_names_the_limit") else { return };
    let client = server.client();
    chain(&client, "deep", 5, Some("never"));
    deploy(&client, "loop", &json!({"hand-over": "loop"}), &["loop"]);
    for (function, path) in [
        ("deep-0", "deep-0 -> deep-1 -> deep-2 -> deep-3 -> deep-4 -> deep-5"),
        ("loop", "loop -> loop -> loop -> loop -> loop -> loop"),
    ] {
        let refused = client.post(&format!("/v1/functions/{function}/invoke"), &json!({"input": "a"}));
        let refused = refused.expect_error(502, "hand_over_too_deep");
        let message = refused.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("hand_over_depth_max of 4") && message.ends_with(path), "{message}");
        assert_eq!(refused.version.as_deref(), Some("1"));
    }
    assert!(client.post("/v1/functions/deep-1/invoke", &json!({"input": "a"})).expect(200).text.contains("never"));
    let failed = messages(&client, "deep-4");
    assert!(failed.iter().any(|line| line.contains("the invocation failed: hand_over_too_deep")), "{failed:?}");
}

#[test]
fn what_is_not_granted_or_not_there_is_refused_alike_for_strangers() {
    let Some(server) = shared_server("what_is_not_granted_or_not_there_is_refused_alike_for_strangers") else { return };
    let client = server.client();
    let stranger = client.with_key(Some(tenant_key(&client, "hand-over-stranger", &["deploy", "invoke"])));
    deploy(&stranger, "theirs", &json!({"answer": "secret"}), &[]);
    deploy(&client, "to-theirs", &json!({"hand-over": "theirs"}), &["theirs"]);
    deploy(&client, "to-nobody", &json!({"hand-over": "nobody-at-all"}), &["nobody-at-all"]);
    deploy(&client, "ungranted", &json!({"hand-over": "echo"}), &["skills"]);
    deploy(&client, "denied-by-default", &json!({"hand-over": "echo"}), &[]);
    deploy(&client, "no-name", &json!({"hand-over": "../echo\n"}), &[]);
    let refused = |function: &str, code: &str| {
        let answer = client.post(&format!("/v1/functions/{function}/invoke"), &json!({"input": "a"}));
        answer.expect_error(502, code).json()["error"]["message"].as_str().unwrap().to_owned()
    };
    let theirs = refused("to-theirs", "hand_over_not_found");
    let nobody = refused("to-nobody", "hand_over_not_found");
    let blanked = |message: &str, names: [&str; 2]| message.replace(names[0], "FROM").replace(names[1], "TO");
    assert_eq!(blanked(&theirs, ["to-theirs", "theirs"]), blanked(&nobody, ["to-nobody", "nobody-at-all"]));
    assert!(refused("ungranted", "hand_over_not_granted").contains("the manifest's `functions`"));
    refused("denied-by-default", "hand_over_not_granted");
    refused("no-name", "hand_over_not_granted");
    let bad = json!({"plugin": client.upload_plugin(guest("decide")), "functions": ["../echo"]});
    client.put("/v1/functions/bad-grant", &bad).expect_error(400, "invalid_manifest");
    deploy(&client, "gone", &json!({"answer": "here"}), &[]);
    deploy(&client, "to-gone", &json!({"hand-over": "gone"}), &["gone"]);
    client.post("/v1/functions/to-gone/invoke", &json!({"input": "a"})).expect(200);
    client.delete("/v1/functions/gone").expect(204);
    refused("to-gone", "hand_over_not_found");
}

#[test]
fn what_the_other_function_runs_into_is_the_callers_answer() {
    let Some(server) = shared_server("what_the_other_function_runs_into_is_the_callers_answer") else { return };
    let client = server.client();
    for (name, config, status, code) in [
        ("trapping", json!({"trap": "yes"}), 502, "plugin_trap"),
        ("rejecting", json!({"reject": "too_rude"}), 422, "rejected_too_rude"),
    ] {
        deploy(&client, name, &config, &[]);
        let front = format!("front-{name}");
        deploy(&client, &front, &json!({"hand-over": name}), &[name]);
        client.post(&format!("/v1/functions/{front}/invoke"), &json!({"input": "a"})).expect_error(status, code);
        assert!(messages(&client, name).iter().any(|line| line.contains(code)), "it is told where it happened");
        assert_eq!(messages(&client, &front).len(), 1, "and not where it did not");
    }
}

#[test]
fn the_time_and_the_cpu_time_of_a_request_are_not_given_anew() {
    // Only the request's CPU time is to be met, also on a machine that has others to serve.
    let limits = [
        ("plugin_call_cpu_ms_max", 2000),
        ("plugin_call_wall_ms_max", 60_000),
        ("plugin_request_cpu_ms_max", 400),
        ("deadline_ms_max", 300_000),
    ];
    let test = "the_time_and_the_cpu_time_of_a_request_are_not_given_anew";
    let Some(server) = server_with_limits(test, &limits) else { return };
    let client = server.client();
    let invoke = |function: &str| client.post(&format!("/v1/functions/{function}/invoke"), &json!({"input": "a"}));
    // Four times as many turns are more than one function may take alone: one of these is far from that, and five are over it.
    let is_over = |turns: u64| {
        deploy(&client, "measured", &json!({"turns": turns.to_string(), "answer": "done"}), &[]);
        client.post("/v1/functions/measured/promote", &json!({"version": latest(&client, "measured")})).expect(200);
        let answer = invoke("measured");
        assert!(answer.status == 200 || answer.text.contains("request_cpu_ms_max"), "{}", answer.text);
        answer.status != 200
    };
    let mut turns = 1 << 20;
    while !is_over(4 * turns) {
        turns *= 2;
    }
    let busy = turns.to_string();
    for number in 0..4 {
        let next = format!("busy-{}", number + 1);
        deploy(&client, &format!("busy-{number}"), &json!({"turns": busy, "hand-over": next}), &[&next]);
    }
    deploy(&client, "busy-4", &json!({"turns": busy, "answer": "done"}), &[]);
    assert_eq!(invoke("busy-4").expect(200).json()["output"], json!("done"), "one alone is within the limit");
    let stopped = invoke("busy-0").expect_error(502, "plugin_timeout").text;
    assert!(stopped.contains("request_cpu_ms_max"), "{stopped}");
    // The deadline: so short for the second one that the first one alone uses it up.
    let late = json!({"config": {"answer": "late"}, "limits": {"deadline_ms_max": 1}});
    deploy_with(&client, "hurried", &late);
    deploy(&client, "slow-front", &json!({"turns": busy, "hand-over": "hurried"}), &["hurried"]);
    let late = invoke("slow-front").expect_error(503, "deadline_exceeded").text;
    assert!(late.contains("slow-front"), "{late}");
    wait_until_idle(&client);
}

fn latest(client: &Client, function: &str) -> Value {
    client.get(&format!("/v1/functions/{function}/versions")).expect(200).json()["latest"].clone()
}
