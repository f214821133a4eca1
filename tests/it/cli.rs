//! The command line as users and operators type it, against a running host.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tests::{MemoryRegistry, Server, adapter_folder, guest, run_tenon, shared_server, tenon};

/// Runs `tenon` against this server with its development key.
fn run(server: &Server, arguments: &[&str]) -> Output {
    let mut command = tenon();
    command.args(arguments).env("TENON_URL", server.url()).env("TENON_KEY_FILE", server.data().join("dev.key"));
    command.output().expect("tenon starts")
}

/// What it printed, if it succeeded.
fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[test]
fn a_skill_from_nothing_by_commands_alone() {
    let Some(server) = shared_server("a_skill_from_nothing_by_commands_alone") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plugin = folder.path().join("skill-router.wasm");
    std::fs::write(&plugin, guest("skill-router")).unwrap();
    let adapter = adapter_folder("iso-date").expect("a committed adapter");
    let added = printed(&run(server, &["adapter", "add", "cli-date", adapter.to_str().unwrap()]));
    assert!(added.contains("rank 8"), "{added}");
    assert!(printed(&run(server, &["adapter", "list"])).contains("cli-date"));
    let deploy = ["deploy", "cli-skills", "--plugin", plugin.to_str().unwrap(), "--adapter", "iso-date"];
    assert!(printed(&run(server, &deploy)).contains("version 1 (live: 1)"));
    let mut promoted = deploy.to_vec();
    promoted.push("--promote");
    assert!(printed(&run(server, &promoted)).contains("version 2 (live: 2)"));
    let answer = printed(&run(server, &["invoke", "cli-skills", "December 7th, 1997"]));
    assert_eq!(answer.trim(), "1997-12-07");
    let whole = printed(&run(server, &["invoke", "cli-skills", "December 7th, 1997", "--json"]));
    let whole: Value = serde_json::from_str(&whole).expect("--json prints JSON");
    let receipt = whole["receipt"].as_str().expect("a receipt").to_owned();
    assert!(printed(&run(server, &["receipt", "show", &receipt])).contains("finished"));
    assert!(printed(&run(server, &["receipt", "verify", &receipt])).contains("verified"));
    printed(&run(server, &["adapter", "remove", "cli-date"]));
    assert!(!printed(&run(server, &["adapter", "list"])).contains("cli-date"));
}

#[test]
fn a_flag_wins_over_the_environment() {
    let Some(server) = shared_server("a_flag_wins_over_the_environment") else { return };
    let key = server.key();
    let key = key.as_str();
    let with = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = tenon();
        command
            .args(["adapter", "list"])
            .args(arguments)
            .env("TENON_URL", server.url())
            .envs(variables.iter().copied());
        command.output().expect("tenon starts")
    };
    let file = server.data().join("dev.key");
    let file = file.to_str().unwrap();
    printed(&with(&["--key", key], &[("TENON_KEY_FILE", "nowhere")]));
    printed(&with(&["--key-file", file], &[("TENON_KEY", "wrong"), ("TENON_KEY_FILE", "nowhere")]));
    printed(&with(&[], &[("TENON_KEY", key), ("TENON_KEY_FILE", "nowhere")]));
    printed(&with(&[], &[("TENON_KEY", ""), ("TENON_KEY_FILE", file)]));
    let both = with(&["--key", key, "--key-file", file], &[]);
    assert_eq!(both.status.code(), Some(2), "two flags are one too many");
    let nowhere = with(&["--key-file", "nowhere", "--json"], &[]);
    let error: Value = serde_json::from_slice(&nowhere.stderr).expect("JSON");
    assert_eq!((nowhere.status.code(), &error["error"]["code"]), (Some(1), &json!("file_unreadable")));
}

#[test]
fn a_tenant_and_its_key_come_and_go() {
    let Some(server) = shared_server("a_tenant_and_its_key_come_and_go") else { return };
    printed(&run(server, &["tenant", "create", "cli-tenant"]));
    let key = printed(&run(server, &["key", "create", "--tenant", "cli-tenant", "--rights", "invoke"]));
    let key = key.trim();
    let client = server.client().with_key(Some(key.to_owned()));
    client.get("/v1/models").expect(200);
    client.get("/v1/functions").expect_error(403, "forbidden");
    let id = key.split('_').nth(1).expect("a key has an identifier");
    printed(&run(server, &["key", "revoke", id]));
    client.get("/v1/models").expect_error(401, "unauthorized");
}

#[test]
fn what_the_host_refuses_is_said_and_fails() {
    let Some(server) = shared_server("what_the_host_refuses_is_said_and_fails") else { return };
    let output = run(server, &["invoke", "nobody", "hello"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("not_found") && said.contains("nobody"), "{said}");
}

#[test]
fn keys_of_the_configuration_that_nobody_knows_are_errors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tenon.toml");
    std::fs::write(&file, "dev = true\nprecison = \"f32\"\n").unwrap();
    let output = run_tenon(&["serve", "--config", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("precison"), "{said}");
    let output = tenon().arg("serve").env("TENON_PRECISON", "f32").output().expect("tenon starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("TENON_PRECISON"), "{said}");
}

/// The leaves of the command tree, as they are typed.
fn leaves(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
    let inner: Vec<_> =
        command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help").collect();
    if inner.is_empty() {
        all.push(path.to_vec());
    }
    for command in inner {
        let path: Vec<String> = path.iter().cloned().chain([command.get_name().to_owned()]).collect();
        leaves(command, &path, all);
    }
}

/// A project in Python whose tools are there already, and copy a component that is.
fn shaped_project(folder: &Path, component: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let project = folder.join("shaped");
    let programs = project.join(".venv").join("bin");
    std::fs::create_dir_all(&programs).unwrap();
    std::fs::write(project.join("app.py"), "").unwrap();
    std::fs::write(project.join("requirements.txt"), "tenon-sdk").unwrap();
    std::fs::write(project.join(".venv").join(".tenon-installed"), "tenon-sdk").unwrap();
    let python = programs.join("python");
    std::fs::write(&python, format!("#!/bin/sh\necho building\ntest \"$2\" = tenon_sdk && cp '{component}' \"$6\"\n"))
        .unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    project
}

#[test]
fn projects_are_made_built_and_looked_at() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let into = folder.path().to_str().unwrap();
    for (lang, source) in [
        ("rust", "src/lib.rs"),
        ("python", "app.py"),
        ("js", "src/plugin.js"),
        ("ts", "src/plugin.ts"),
        ("c", "plugin.c"),
    ] {
        let name = format!("one-{lang}");
        let made: Value =
            serde_json::from_str(&printed(&run_tenon(&["new", &name, "--lang", lang, "--into", into, "--json"])))
                .expect("JSON");
        let project = folder.path().join(&name);
        assert!(project.join(source).is_file() && project.join(".gitignore").is_file(), "{made}");
        for file in made["files"].as_array().expect("files") {
            let text = std::fs::read_to_string(project.join(file.as_str().unwrap())).expect("written");
            assert!(!text.contains("{{name}}") && !text.contains("{{sdk}}"), "{file}: {text}");
        }
    }
    // What is there is left alone; what is no name is no folder.
    let refused = |arguments: &[&str], code: &str, part: &str| {
        let typed: Vec<&str> = ["--json"].into_iter().chain(arguments.iter().copied()).collect();
        let output = run_tenon(&typed);
        // Before it stands what the tools said.
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let error: Value = said.lines().last().and_then(|line| serde_json::from_str(line).ok()).expect(&said);
        let message = error["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!((output.status.code(), &error["error"]["code"]), (Some(1), &json!(code)), "{error}");
        assert!(message.contains(part), "{message}");
    };
    refused(&["new", "one-rust", "--into", into], "conflict", "is there already");
    for name in ["../up", "Upper", "", "-x", "a_b", "x-"] {
        refused(&["new", "--into", into, "--", name], "invalid_request", "is no name for a project");
    }
    refused(&["new", "two", "--into", into, "--sdk", into], "invalid_request", "is not the folder `sdk`");
    assert!(!folder.path().join("two").exists(), "nothing is made of a refused one");
    refused(&["build", into], "invalid_request", "`tenon new` makes one");
    // A tool that fails, a tool that makes no component.
    let component = folder.path().join("component.wasm");
    std::fs::write(&component, guest("echo")).unwrap();
    let project = shaped_project(folder.path(), component.to_str().unwrap());
    let built: Value =
        serde_json::from_str(&printed(&run_tenon(&["build", project.to_str().unwrap(), "--json"]))).unwrap();
    assert_eq!((&built["language"], &built["problems"]), (&json!("python"), &json!([])), "{built}");
    assert_eq!(std::fs::read(project.join("plugin.wasm")).unwrap(), guest("echo"));
    let unknown = "(component (import \"wasi:sockets/raw@9.0.0\" (instance)))";
    for (bytes, code, part) in [
        (b"\0asm\x01\0\0\0".to_vec(), "plugin_invalid", "it is a core module"),
        (unknown.as_bytes().to_vec(), "plugin_invalid", "no component"),
        (guest("echo")[..500].to_vec(), "plugin_invalid", "no component"),
    ] {
        std::fs::write(&component, bytes).unwrap();
        refused(&["inspect", component.to_str().unwrap()], code, part);
        refused(&["build", project.to_str().unwrap()], code, part);
    }
    std::fs::remove_file(&component).unwrap();
    refused(&["build", project.to_str().unwrap()], "build_failed", "failed (what it said is above)");
}

#[test]
fn every_command_speaks_json() {
    let Some(server) = shared_server("every_command_speaks_json") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let plugin = folder.path().join("skill-router.wasm");
    std::fs::write(&plugin, guest("skill-router")).unwrap();
    let (plugin, adapter) = (plugin.to_str().unwrap(), adapter_folder("iso-date").expect("a committed adapter"));
    let adapter = adapter.to_str().unwrap();
    let receipt = server.client().post("/v1/functions/echo/invoke", &json!({"input": "a", "max_tokens": 1}));
    let receipt = receipt.expect(200).receipt.unwrap();
    tests::deploy_plugin(&server.client(), "json-recorded", "echo", &json!({"record": {}}));
    let request = server.client().post("/v1/functions/json-recorded/invoke", &json!({"input": "a", "max_tokens": 1}));
    let request = request.expect(200).request.unwrap();
    let made = server.client().post("/v1/keys", &json!({"tenant": "dev", "rights": ["invoke"]})).expect(201).json();
    let key = made["id"].as_str().unwrap().to_owned();
    let base = tests::base().expect("the server has one");
    let doctor =
        ["--base", base.to_str().unwrap(), "--data", folder.path().to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let digests = ["a", "b"].map(|digit| digit.repeat(64));
    let secret = folder.path().join("secret.json");
    std::fs::write(&secret, r#"{"origin": "https://example.org", "token": "t"}"#).unwrap();
    let secret = secret.to_str().unwrap();
    let into = folder.path().to_str().unwrap();
    let shaped = shaped_project(folder.path(), plugin);
    let shaped = shaped.to_str().unwrap();
    let registry = MemoryRegistry::start();
    let (reference, pulled) = (format!("{}/json:1", registry.address()), folder.path().join("pulled.wasm"));
    let (reference, pulled) = (reference.as_str(), pulled.to_str().unwrap());
    // In an order in which each finds what it needs.
    let commands: [(&str, Vec<&str>, &str); 47] = [
        ("new", vec!["json-project", "--lang", "c", "--into", into], "/files/0"),
        ("build", vec![shaped], "/component"),
        ("dev", vec![shaped, "--name", "json-dev", "--once"], "/version"),
        ("inspect", vec![plugin], "/imports/0"),
        ("push", vec![plugin, reference, "--plain-http"], "/digest"),
        ("pull", vec![reference, "--plain-http", "--output", pulled], "/component"),
        ("deploy", vec!["json-f", "--plugin", plugin, "--adapter", "iso-date"], "/version"),
        ("deploy", vec!["json-f", "--plugin", plugin, "--adapter", "iso-date", "--promote"], "/live"),
        ("versions", vec!["json-f"], "/data/1/created_unix_ms"),
        ("versions", vec!["json-f", "--history"], "/changes/1/kind"),
        ("canary", vec!["json-f", "1", "--percent", "0.5"], "/canary/percent"),
        ("shadow", vec!["json-f", "1"], "/shadow/percent"),
        ("rollback", vec!["json-f"], "/live"),
        ("invoke", vec!["json-f", "7 May 1990", "--max-tokens", "2"], "/output"),
        ("logs", vec!["json-f"], "/data/0/message"),
        ("adapter add", vec!["json-date", adapter], "/digest"),
        ("adapter list", vec![], "/data/0/alias"),
        ("adapter inspect", vec!["json-date"], "/rank"),
        ("adapter pin", vec!["json-date"], "/pinned"),
        ("adapter unpin", vec!["json-date"], "/pinned"),
        ("adapter derive", vec!["json-sum", "--method", "concatenate", "--parent", "json-date=2"], "/lineage/method"),
        ("adapter share", vec!["json-date", "--with", "json-reader", "--license", "MIT"], "/source"),
        ("adapter shared", vec![], "/data"),
        ("adapter unshare", vec!["json-date"], "/shared"),
        ("adapter remove", vec!["json-date"], "/removed"),
        ("revoke", vec![&digests[0], "--reason", "a test"], "/digest"),
        ("adapter revoke", vec![&digests[1]], "/revoked_unix_ms"),
        ("secret set", vec!["json-secret", secret], "/kept"),
        ("secret list", vec![], "/data/0/name"),
        ("secret remove", vec!["json-secret"], "/removed"),
        ("kv put", vec!["json-bucket", "a/key", secret, "--expect", "absent"], "/version"),
        ("kv list", vec!["json-bucket"], "/keys/0"),
        ("kv get", vec!["json-bucket", "a/key"], "/value"),
        ("kv delete", vec!["json-bucket", "a/key"], "/removed"),
        ("recording list", vec!["echo"], "/data"),
        ("recording show", vec![&request], "/data/0/head/function"),
        ("replay", vec![&request], "/is_same"),
        ("receipt show", vec![&receipt], "/receipt/id"),
        ("receipt verify", vec![&receipt], "/head/digest"),
        ("usage", vec![], "/total/requests"),
        ("tenant create", vec!["json-tenant"], "/name"),
        ("tenant list", vec![], "/data/0/name"),
        ("tenant signers", vec!["json-tenant", "--policy", "optional", "--plugins", "none"], "/revision"),
        ("tenant quota", vec!["json-tenant", "--requests-per-minute-max", "100"], "/quota/requests_per_minute_max"),
        ("key create", vec!["--tenant", "json-tenant"], "/key"),
        ("key revoke", vec![&key], "/revoked"),
        ("completions", vec!["bash"], "/script"),
    ];
    let doctor = ("doctor", doctor.to_vec(), "/data/0/verdict");
    for (path, arguments, member) in commands.iter().chain([&doctor]) {
        let typed: Vec<&str> = path.split(' ').chain(arguments.iter().copied()).chain(["--json"]).collect();
        let output = run(server, &typed);
        let value: Value = serde_json::from_str(&printed(&output))
            .unwrap_or_else(|error| panic!("{path}: {error}: {}", String::from_utf8_lossy(&output.stdout)));
        assert!(value.pointer(member).is_some_and(|found| !found.is_null()), "{path} {member}: {value:#}");
    }
    let mut all = Vec::new();
    leaves(&host::cli::command(), &[], &mut all);
    let tried: Vec<&str> = commands.iter().chain([&doctor]).map(|(path, ..)| *path).collect();
    for leaf in &all {
        // `serve` has a test of its own: it does not end. So has `selftest`: it needs a device.
        let leaf = leaf.join(" ");
        assert!(
            ["serve", "selftest"].contains(&leaf.as_str()) || tried.contains(&leaf.as_str()),
            "`tenon {leaf}` is not tried here with --json"
        );
        let typed: Vec<&str> = leaf.split(' ').chain(["--no-such-option", "--json"]).collect();
        let output = run_tenon(&typed);
        let error: Value = serde_json::from_slice(&output.stderr)
            .unwrap_or_else(|error| panic!("{leaf}: {error}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!((output.status.code(), &error["error"]["code"]), (Some(2), &json!("usage")), "{leaf}: {error}");
        assert!(output.stdout.is_empty(), "{leaf}");
    }
    assert!(all.len() >= 18, "{all:?}");
}

#[test]
fn errors_are_json_too_and_exit_codes_tell_them_apart() {
    let Some(server) = shared_server("errors_are_json_too_and_exit_codes_tell_them_apart") else { return };
    let refused = run(server, &["--json", "versions", "nobody"]);
    let error: Value = serde_json::from_slice(&refused.stderr).expect("JSON");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!((&error["error"]["code"], &error["error"]["status"]), (&json!("function_not_found"), &json!(404)));
    assert!(error["error"]["request"].as_str().unwrap().starts_with("req_"), "{error}");
    let away = run_tenon(&["versions", "f", "--json", "--url", "http://127.0.0.1:1"]);
    let error: Value = serde_json::from_slice(&away.stderr).expect("JSON");
    assert_eq!((away.status.code(), &error["error"]["code"]), (Some(3), &json!("unreachable")));
    let local = run_tenon(&["receipt", "verify", "--json", "--file", "none.jsonl"]);
    let error: Value = serde_json::from_slice(&local.stderr).expect("JSON");
    assert_eq!(local.status.code(), Some(1));
    assert!(error["error"]["message"].as_str().unwrap().contains("none.jsonl"), "{error}");
    let config = run_tenon(&["serve", "--json", "--base", "none.gguf"]);
    let error: Value = serde_json::from_slice(&config.stderr).expect("JSON");
    assert_eq!((config.status.code(), &error["error"]["code"]), (Some(1), &json!("config_invalid")));
}

#[test]
fn a_rollback_goes_back_and_back_and_a_late_one_is_refused() {
    let Some(server) = shared_server("a_rollback_goes_back_and_back_and_a_late_one_is_refused") else { return };
    let client = server.client();
    let plugin = client.upload_plugin(guest("echo"));
    for _ in 0..3 {
        let put = client.put("/v1/functions/rolled", &json!({"plugin": plugin})).expect(201).json();
        client.post("/v1/functions/rolled/promote", &json!({"version": put["version"]})).expect(200);
    }
    let table = printed(&run(server, &["versions", "rolled"]));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("VERSION") && lines.len() == 4, "{table}");
    assert!(lines[2].contains("previous") && lines[3].contains("live,latest"), "{table}");
    assert!(lines[3].contains(&plugin[..12]) && lines[3].ends_with('Z'), "{table}");
    assert!(printed(&run(server, &["rollback", "rolled"])).contains("version 2 is live (was 3)"));
    let late = client.post("/v1/functions/rolled/promote", &json!({"version": 1, "expect": 3}));
    late.expect_error(409, "conflict");
    assert!(printed(&run(server, &["rollback", "rolled"])).contains("version 1 is live (was 2)"));
    let output = run(server, &["rollback", "rolled"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("--to"), "{said}");
    assert!(printed(&run(server, &["rollback", "rolled", "--to", "3"])).contains("version 3 is live (was 1)"));
    let history = client.get("/v1/functions/rolled/versions").expect(200).json();
    let moves: Vec<(u64, u64)> = history["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| (change["from"].as_u64().unwrap_or(0), change["to"].as_u64().unwrap()))
        .collect();
    assert_eq!(moves, [(0, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 3)]);
    let by = server.key().split('_').nth(1).unwrap().to_owned();
    assert_eq!(history["history"][5]["by"], json!(by));
}

#[test]
fn canaries_and_shadows_are_set_shown_and_ended() {
    let Some(server) = shared_server("canaries_and_shadows_are_set_shown_and_ended") else { return };
    let client = server.client();
    let plugin = client.upload_plugin(guest("decide"));
    for answer in ["one", "two"] {
        let manifest = json!({"plugin": plugin, "config": {"answer": answer}});
        client.put("/v1/functions/beside", &manifest).expect(201);
    }
    let says = |arguments: &[&str]| printed(&run(server, arguments)).trim().to_owned();
    let refused = |arguments: &[&str], status: i32| {
        let output = run(server, arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(says(&["canary", "beside"]), "beside: no canary");
    assert_eq!(says(&["canary", "beside", "2", "--percent", "0.5"]), "beside: version 2 for 0.5 % of the callers");
    assert_eq!(says(&["canary", "beside"]), "beside: version 2 for 0.5 % of the callers");
    assert_eq!(says(&["shadow", "beside", "2"]), "beside: version 2 gets 100.0 % of the requests");
    let table = says(&["versions", "beside"]);
    assert!(table.contains("latest,canary 0.5 %,shadow 100.0 %"), "{table}");
    refused(&["canary", "beside", "2"], 2);
    refused(&["canary", "beside", "--percent", "5"], 2);
    refused(&["canary", "beside", "--off", "2", "--percent", "5"], 2);
    assert!(refused(&["canary", "beside", "2", "--percent", "101"], 1).contains("at most 100"));
    assert!(refused(&["canary", "beside", "2", "--percent", "1", "--expect", "2"], 1).contains("is live"));
    assert!(refused(&["shadow", "beside", "1"], 1).contains("has all callers already"));
    let started = std::time::Instant::now();
    let report = loop {
        client.post("/v1/functions/beside/invoke", &json!({"input": "a", "sticky": "a"})).expect(200);
        let report = says(&["shadow", "beside"]);
        if report.contains("req_") {
            break report;
        }
        assert!(started.elapsed().as_secs() < 60, "no copy was compared: {report}");
    };
    assert!(
        report.contains("different") && report.contains("1: stop 3 B") && report.contains("2: stop 3 B"),
        "{report}"
    );
    assert_eq!(says(&["shadow", "beside", "--off"]), "beside: no shadow");
    assert_eq!(says(&["canary", "beside", "--off"]), "beside: no canary");
    let history = says(&["versions", "beside", "--history"]);
    for kind in ["deploy", "canary set", "shadow set", "shadow ended", "canary ended"] {
        assert!(history.contains(kind), "{kind}: {history}");
    }
    assert_eq!(history.lines().count(), 7, "{history}");
}

#[test]
fn logs_follow_a_function_until_it_is_gone() {
    use std::io::{BufRead as _, BufReader};
    let Some(server) = shared_server("logs_follow_a_function_until_it_is_gone") else { return };
    let client = server.client();
    let plugin = client.upload_plugin(guest("skill-router"));
    client.put("/v1/functions/followed", &json!({"plugin": plugin, "adapters": ["iso-date"]})).expect(201);
    let invoke =
        || client.post("/v1/functions/followed/invoke", &json!({"input": "7 May 1990", "max_tokens": 2})).expect(200);
    let first = invoke();
    let mut command = tenon();
    command.args(["logs", "followed", "--follow", "--json", "--url", server.url(), "--key", &server.key()]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().expect("tenon starts");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().expect("a line").unwrap()).expect("a JSON line");
    assert_eq!(next()["request"].as_str(), first.request.as_deref());
    let second = invoke();
    assert_eq!(next()["request"].as_str(), second.request.as_deref());
    let text = printed(&run(server, &["logs", "followed", "--lines", "1", "--since", "1h"]));
    let expected = format!("INFO  v1 {} chose iso-date", second.request.unwrap());
    assert!(text.trim_end().ends_with(&expected) && text.lines().count() == 1, "{text}");
    client.delete("/v1/functions/followed").expect(204);
    let output = child.wait_with_output().expect("it ends with the function");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("function_not_found"), "{said}");
}

#[test]
fn completions_name_every_command_in_every_shell() {
    let names: Vec<String> = host::cli::command()
        .get_subcommands()
        .filter(|inner| !inner.is_hide_set())
        .map(|inner| inner.get_name().to_owned())
        .collect();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = printed(&run_tenon(&["completions", shell]));
        for name in &names {
            assert!(script.contains(name.as_str()), "{shell} does not know `{name}`");
        }
        assert!(script.contains("rollback"), "{shell}");
    }
}

#[test]
fn an_adapter_is_inspected_on_the_host_and_in_a_folder() {
    let Some(server) = shared_server("an_adapter_is_inspected_on_the_host_and_in_a_folder") else { return };
    let on_host = printed(&run(server, &["adapter", "inspect", "iso-date"]));
    assert!(on_host.lines().any(|line| line.starts_with("rank") && line.ends_with('8')), "{on_host}");
    let (folder, base) = (adapter_folder("iso-date").unwrap(), tests::base().expect("the server has one"));
    let arguments =
        ["adapter", "inspect", "--file", folder.to_str().unwrap(), "--base", base.to_str().unwrap(), "--json"];
    let here: Value = serde_json::from_str(&printed(&run_tenon(&arguments))).expect("JSON");
    let there = server.client().get("/v1/adapters/iso-date").expect(200).json();
    for field in ["digest", "rank", "modules", "bytes", "report"] {
        assert_eq!(here[field], there[field], "{field}");
    }
    // DoRA asks for the base's weights.
    let mut dora = tests::PeftAdapter::tiny(1);
    dora.add_magnitudes(1.5);
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("adapter_config.json"), dora.config_file()).expect("a file");
    std::fs::write(folder.path().join("adapter_model.safetensors"), dora.weights_file()).expect("a file");
    let (folder, base_path) = (folder.path().to_str().unwrap(), base.to_str().unwrap());
    let arguments = ["adapter", "inspect", "--file", folder, "--base", base_path, "--json"];
    let shown: Value = serde_json::from_str(&printed(&run_tenon(&arguments))).expect("JSON");
    assert_eq!(shown["report"]["kind"], "dora");
    assert!(
        shown["report"]["modules"][0]["spectral_norms"].as_array().is_some_and(|norms| !norms.is_empty()),
        "{shown}"
    );
    let empty = tempfile::tempdir().expect("a temporary folder");
    let refused =
        run_tenon(&["adapter", "inspect", "--file", empty.path().to_str().unwrap(), "--base", base.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn usage_is_a_table() {
    let Some(server) = shared_server("usage_is_a_table") else { return };
    server.client().post("/v1/functions/echo/invoke", &json!({"input": "a", "max_tokens": 1})).expect(200);
    let table = printed(&run(server, &["usage"]));
    assert!(table.starts_with("DAY") && table.contains("function echo") && table.contains("total"), "{table}");
    let none = printed(&run(server, &["usage", "--from", "2026-01-01", "--to", "2026-01-02"]));
    assert_eq!(none.lines().count(), 2, "{none}");
}
