//! Record and replay: what a plugin did is kept where it was asked to be, without secrets and for its owner alone, and played again
//! by the command line without a host.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use tests::{Client, Options, Server, deploy_plugin, guest, run_tenon, server_with_limits, shared_server, tenant_key};

fn tenant(operator: &Client, name: &str) -> Client {
    operator.with_key(Some(tenant_key(operator, name, &["invoke", "deploy", "adapters"])))
}

/// Invokes a function; the request's identifier.
fn invoke(client: &Client, function: &str, input: &str) -> String {
    let answer = client.post(&format!("/v1/functions/{function}/invoke"), &json!({"input": input, "max_tokens": 8}));
    answer.request.expect("an identifier")
}

fn listed(client: &Client, function: &str) -> Vec<String> {
    let page = client.get(&format!("/v1/functions/{function}/recordings")).expect(200).json();
    page["data"].as_array().unwrap().iter().map(|one| one["request"].as_str().unwrap().to_owned()).collect()
}

/// The lines of a recording, as soon as its instance is gone, which may be after the answer.
fn recorded(client: &Client, request: &str) -> Vec<Value> {
    let started = std::time::Instant::now();
    loop {
        let answer = client.get(&format!("/v1/recordings/{request}"));
        if answer.status == 200 {
            return answer.text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(30), "{}", answer.text);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn replay(arguments: &[&str]) -> (Output, Value) {
    let typed: Vec<&str> = ["replay", "--json"].into_iter().chain(arguments.iter().copied()).collect();
    let output = run_tenon(&typed);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    (output, value)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_recorded_request_is_played_again_without_a_host_and_another_plugin_differs() {
    let test = "a_recorded_request_is_played_again_without_a_host_and_another_plugin_differs";
    let Some(server) = shared_server(test) else { return };
    let client = server.client();
    let skills = json!({"adapters": ["iso-date"], "record": {}});
    deploy_plugin(&client, "recorded", "skill-router", &skills);
    let request = invoke(&client, "recorded", "December 7th, 1997");
    let lines = recorded(&client, &request);
    assert_eq!((&lines[0]["tenon_recording"], &lines[0]["request"]), (&json!(1), &json!(request)));
    let calls: Vec<&str> = lines.iter().filter_map(|line| line["call"].as_str()).collect();
    assert_eq!(calls[..3], ["start", "route", "compose"]);
    assert!(
        lines.iter().any(|line| line["import"] == "catalog.adapters" && line["result"]["Ok"][0]["alias"] == "iso-date")
    );
    assert_eq!(lines.last().unwrap()["end"]["is_whole"], json!(true));
    assert_eq!(listed(&client, "recorded"), [request.as_str()]);

    // From the host, and kept.
    let folder = tempfile::tempdir().expect("a folder");
    let key = server.key();
    let (output, same) = replay(&[&request, "--url", server.url(), "--key", &key, "--save", text(folder.path())]);
    assert!(output.status.success() && same["is_same"] == json!(true), "{same:#}");
    assert_eq!((&same["steps"], &same["recorded_plugin"]), (&same["played_steps"], &same["plugin"]));
    // From the files, with no host to be reached.
    let recording = folder.path().join(format!("{request}.jsonl"));
    let plugin = folder.path().join(format!("{}.wasm", same["plugin"].as_str().unwrap()));
    assert_eq!(std::fs::read(&plugin).unwrap(), guest("skill-router"));
    let away = ["--recording", text(&recording), "--plugin", text(&plugin), "--url", "http://127.0.0.1:1"];
    let (output, same) = replay(&away);
    assert!(output.status.success() && same["is_same"] == json!(true), "{same:#}");
    let said = run_tenon(&["replay", "--recording", text(&recording), "--plugin", text(&plugin)]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("the same"), "{said:?}");
    // With another component, and with a recording of another answer.
    let other = folder.path().join("other.wasm");
    std::fs::write(&other, guest("echo")).unwrap();
    let (output, differs) = replay(&["--recording", text(&recording), "--plugin", text(&other)]);
    assert_eq!((output.status.code(), &differs["is_same"]), (Some(1), &json!(false)));
    assert_eq!(differs["difference"]["call"], json!("route"), "{differs:#}");
    let changed = std::fs::read_to_string(&recording).unwrap().replace("iso-date", "any-date");
    let elsewhere = folder.path().join("changed.jsonl");
    std::fs::write(&elsewhere, changed).unwrap();
    let (output, differs) = replay(&["--recording", text(&elsewhere), "--plugin", text(&plugin)]);
    assert_eq!(output.status.code(), Some(1), "{differs:#}");
    let said = run_tenon(&["replay", "--recording", text(&elsewhere), "--plugin", text(&plugin)]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("differs at step") && said.contains("recorded:") && said.contains("played:"), "{said}");
    // What is no recording.
    std::fs::write(&elsewhere, "{}\n").unwrap();
    let refused = run_tenon(&["replay", "--recording", text(&elsewhere), "--plugin", text(&plugin)]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("line 1 of the recording"), "{refused:?}");
}

#[test]
fn recordings_are_made_on_request_and_are_their_tenant_s_and_go_with_their_function() {
    let test = "recordings_are_made_on_request_and_are_their_tenant_s_and_go_with_their_function";
    let Some(server) = shared_server(test) else { return };
    let (one, other) = (tenant(&server.client(), "rec-one"), tenant(&server.client(), "rec-other"));
    deploy_plugin(&one, "quiet", "imports", &json!({}));
    let unseen = invoke(&one, "quiet", "count a");
    deploy_plugin(&one, "kept", "imports", &json!({"record": {"recordings_max": 2}}));
    let requests: Vec<String> = (0..3).map(|_| invoke(&one, "kept", "count a")).collect();
    requests[1..].iter().for_each(|request| drop(recorded(&one, request)));
    assert_eq!(listed(&one, "kept"), [requests[2].as_str(), requests[1].as_str()], "the newest");
    assert!(listed(&one, "quiet").is_empty());
    one.get(&format!("/v1/recordings/{unseen}")).expect_error(404, "not_found");
    one.get(&format!("/v1/recordings/{}", requests[0])).expect_error(404, "not_found");
    // Nobody else's, nor the plugin's bytes.
    let digest = one.get("/v1/functions/kept").expect(200).json()["plugin"].as_str().unwrap().to_owned();
    other.get(&format!("/v1/recordings/{}", requests[2])).expect_error(404, "not_found");
    other.get(&format!("/v1/plugins/{digest}")).expect_error(404, "not_found");
    other.get("/v1/functions/kept/recordings").expect_error(404, "function_not_found");
    one.get("/v1/plugins/nonsense").expect_error(404, "not_found");
    let bytes = one.request("GET".parse().unwrap(), &format!("/v1/plugins/{digest}")).send().expect("an answer");
    assert_eq!(bytes.bytes().unwrap().to_vec(), guest("imports"));
    let invoker = server.client().with_key(Some(tenant_key(&server.client(), "rec-one", &["invoke"])));
    invoker.get(&format!("/v1/recordings/{}", requests[2])).expect_error(403, "forbidden");
    // A failure is recorded, too, and played again.
    deploy_plugin(&one, "fails", "trap", &json!({"record": {"percent": 100}}));
    let failed = invoke(&one, "fails", "panic");
    assert!(recorded(&one, &failed).iter().any(|line| line["result"]["Err"]["code"] == "plugin_trap"));
    // They go, and a successor of the name has none of them.
    one.delete("/v1/functions/kept").expect(204);
    one.get(&format!("/v1/recordings/{}", requests[2])).expect_error(404, "not_found");
    deploy_plugin(&one, "kept", "imports", &json!({"record": {}}));
    assert!(listed(&one, "kept").is_empty());
    for bad in [json!({"percent": 0}), json!({"recordings_max": 0}), json!({"always": true})] {
        let answer = one.put("/v1/functions/kept", &json!({"plugin": digest, "record": bad}));
        assert!(
            answer.status == 400 && answer.text.contains(if bad["always"].is_null() { "record." } else { "always" })
        );
    }
}

#[test]
fn a_secret_is_in_no_recording_and_a_replay_asks_for_it_or_stands_in() {
    let test = "a_secret_is_in_no_recording_and_a_replay_asks_for_it_or_stands_in";
    let Some(server) = server_with_limits(test, &[("plugin_call_cpu_ms_max", 5000)]) else { return };
    let client = server.client();
    let value = "keep-this-quiet-4711";
    client.put("/v1/secrets/key", &json!({"value": value})).expect(204);
    let manifest = json!({"grants": {"secrets": ["key"], "kv": [{"bucket": "b"}]}, "record": {}});
    deploy_plugin(&client, "reads", "imports", &manifest);
    let request = invoke(&client, "reads", "kv-set b k v|secret key|encode ab|secret none");
    let lines = recorded(&client, &request);
    let all = json!(lines).to_string();
    assert!(!all.contains(value) && !all.contains("4711") && all.contains("{{secret:key}}"), "{all}");
    assert!(lines.iter().any(|line| line["import"] == "keyvalue.write" && line["arguments"]["value"]["text"] == "v"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{value}\n")).unwrap();
    let given = format!("key={}", text(&file));
    let key = server.key();
    for more in [vec![], vec!["--secret", given.as_str()]] {
        let typed: Vec<&str> =
            [request.as_str(), "--url", server.url(), "--key", &key].into_iter().chain(more).collect();
        let (output, same) = replay(&typed);
        assert!(output.status.success(), "{same:#}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains(value));
    }
}

#[test]
fn a_request_that_is_handed_over_has_a_recording_in_each_function() {
    let test = "a_request_that_is_handed_over_has_a_recording_in_each_function";
    let Some(server) = shared_server(test) else { return };
    let client = server.client();
    let first = json!({"config": {"hand-over": "rec-last"}, "functions": ["rec-last"], "record": {}});
    deploy_plugin(&client, "rec-last", "decide", &json!({"config": {"answer": "{text}"}, "record": {}}));
    deploy_plugin(&client, "rec-first", "decide", &first);
    let request = invoke(&client, "rec-first", "hello");
    let heads = || -> Vec<Value> {
        recorded(&client, &request).into_iter().filter(|line| line["tenon_recording"].is_u64()).collect()
    };
    let started = std::time::Instant::now();
    while heads().len() < 2 {
        assert!(started.elapsed() < std::time::Duration::from_secs(30));
    }
    let names: Vec<Value> = heads().iter().map(|head| head["function"].clone()).collect();
    assert_eq!(names, [json!("rec-first"), json!("rec-last")]);
    let key = server.key();
    for function in ["rec-first", "rec-last"] {
        let (output, same) = replay(&[&request, "--function", function, "--url", server.url(), "--key", &key]);
        assert!(output.status.success() && same["function"] == function, "{same:#}");
    }
}

#[test]
fn recordings_outlive_the_host() {
    let test = "recordings_outlive_the_host";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    deploy_plugin(&server.client(), "kept", "decide", &json!({"config": {"answer": "{text}"}, "record": {}}));
    let requests: Vec<String> = (0..5).map(|_| invoke(&server.client(), "kept", "hello")).collect();
    server.terminate();
    assert!(server.wait().success(), "{}", server.log());
    let data = server.data().to_path_buf();
    let _scratch = server.keep_data();
    drop(server);
    let Some(server) = Server::start(test, Options { data: Some(data), ..Options::default() }) else { return };
    let client = server.client();
    let mut there = listed(&client, "kept");
    there.reverse();
    assert_eq!(there, requests);
    let key = server.key();
    let (output, _) = replay(&[&requests[0], "--url", server.url(), "--key", &key]);
    assert!(output.status.success());
}

#[test]
fn what_a_plugin_made_of_an_answer_is_played_again_without_the_model() {
    let test = "what_a_plugin_made_of_an_answer_is_played_again_without_the_model";
    let Some(server) = shared_server(test) else { return };
    let client = server.client();
    deploy_plugin(&client, "rec-chunks", "first-sentence", &json!({"record": {}}));
    let request = invoke(&client, "rec-chunks", "Tell me about the ocean.");
    let lines = recorded(&client, &request);
    let calls: Vec<&str> = lines.iter().filter_map(|line| line["call"].as_str()).collect();
    assert!(calls.iter().filter(|call| **call == "post-processor.chunk").count() >= 2, "{calls:?}");
    assert_eq!(calls.last(), Some(&"post-processor.finish"));
    let key = server.key();
    let (output, same) = replay(&[&request, "--url", server.url(), "--key", &key]);
    assert!(output.status.success() && same["is_same"] == json!(true), "{same:#}");
    assert_eq!(same["returns"].as_array().unwrap().len(), calls.len(), "each call returned");
}

#[test]
fn an_agent_is_played_again_without_the_model_and_one_that_draws_more_differs() {
    let test = "an_agent_is_played_again_without_the_model_and_one_that_draws_more_differs";
    let Some(server) = shared_server(test) else { return };
    let client = server.client();
    let config = json!({"draws": "3", "tokens": "6"});
    deploy_plugin(
        &client,
        "rec-best",
        "best-of",
        &json!({"grants": {"generations": true}, "config": config, "record": {}}),
    );
    let request = invoke(&client, "rec-best", "What is the sea?");
    let lines = recorded(&client, &request);
    let asked = |import: &str| lines.iter().filter(|line| line["import"] == import).count();
    assert_eq!((asked("sessions.open"), asked("sessions.fork"), asked("sessions.start")), (1, 3, 3));
    assert!(asked("sessions.next") >= 6, "{lines:?}");
    let (folder, key) = (tempfile::tempdir().expect("a folder"), server.key());
    let typed = [request.as_str(), "--url", server.url(), "--key", &key, "--save", text(folder.path())];
    let (output, same) = replay(&typed);
    assert!(output.status.success() && same["is_same"] == json!(true), "{same:#}");
    assert_eq!(same["returns"][1]["call"], json!("run"));
    // Away from the host, as if the plugin had been changed to draw once more.
    let recording = folder.path().join(format!("{request}.jsonl"));
    let plugin = folder.path().join(format!("{}.wasm", same["plugin"].as_str().unwrap()));
    let changed = std::fs::read_to_string(&recording).unwrap().replace(r#"["draws","3"]"#, r#"["draws","4"]"#);
    std::fs::write(&recording, changed).unwrap();
    let said = run_tenon(&["replay", "--recording", text(&recording), "--plugin", text(&plugin)]);
    let out = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(1), "{out}");
    assert!(out.contains("in `run`") && out.contains(r#"played:   sessions.fork {"session":1}"#), "{out}");
}
