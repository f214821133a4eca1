//! `tenon doctor`: what it finds on a sound machine, and what it says of each thing that is wrong.

use std::path::Path;

use serde_json::{Value, json};
use tests::{Options, Server, run_tenon, skip};

/// Its exit code and its answer.
fn doctor(arguments: &[&str]) -> (Option<i32>, Value) {
    let typed: Vec<&str> = ["doctor", "--json"].iter().chain(arguments).copied().collect();
    let output = run_tenon(&typed);
    let value = serde_json::from_slice(&output.stdout);
    (output.status.code(), value.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr))))
}

fn check<'a>(found: &'a Value, name: &str) -> &'a Value {
    let mut checks = found["data"].as_array().unwrap().iter();
    checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check `{name}`: {found:#}"))
}

fn verdict<'a>(found: &'a Value, name: &str) -> &'a str {
    check(found, name)["verdict"].as_str().unwrap()
}

fn arguments<'a>(base: &'a Path, data: &'a Path, listen: &'a str) -> Vec<&'a str> {
    vec!["--base", base.to_str().unwrap(), "--data", data.to_str().unwrap(), "--listen", listen]
}

#[test]
fn a_stopped_hosts_data_is_found_sound_and_a_running_ones_too() {
    let test = "a_stopped_hosts_data_is_found_sound_and_a_running_ones_too";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    let base = tests::base().expect("the server has one");
    let body = json!({"model": "base", "prompt": "a", "max_tokens": 1});
    server.client().post("/v1/completions", &body).expect(200);
    let data = server.data().to_path_buf();
    let address = server.url().trim_start_matches("http://").to_owned();
    let (code, found) = doctor(&arguments(&base, &data, &address));
    assert_eq!((code, &found["ok"]), (Some(0), &json!(true)), "{found:#}");
    assert!(check(&found, "address")["found"].as_str().unwrap().contains("a host of version"), "{found:#}");
    assert!(check(&found, "receipts")["found"].as_str().unwrap().contains("a running host has them"), "{found:#}");
    assert!(check(&found, "base")["found"].as_str().unwrap().contains("30 layers"), "{found:#}");
    for name in ["configuration", "data directory", "sandbox", "clock", "address", "receipts", "base"] {
        assert_eq!(verdict(&found, name), "ok", "{found:#}");
    }
    // Another host would not start on the same data.
    let (code, found) = doctor(&arguments(&base, &data, "127.0.0.1:0"));
    assert_eq!((code, verdict(&found, "receipts")), (Some(1), "fail"), "{found:#}");
    server.terminate();
    assert!(server.wait().success());
    let (_, found) = doctor(&arguments(&base, &data, &address));
    let receipts = check(&found, "receipts")["found"].as_str().unwrap();
    assert!(receipts.contains("2 records in 1 chains verified"), "{receipts}");
    assert!(check(&found, "address")["found"].as_str().unwrap().contains("is free"), "{found:#}");
    let left = std::fs::read_dir(&data)
        .unwrap()
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains("doctor")));
    assert_eq!(left.count(), 0, "it leaves nothing behind");
    // Another's keys: no signature holds.
    let other = tempfile::tempdir().expect("a temporary folder");
    let stranger = Server::start(test, Options { data: Some(other.path().join("data")), ..Options::default() });
    std::fs::copy(stranger.expect("a base").data().join("receipt.pub"), data.join("receipt.pub")).unwrap();
    let (code, found) = doctor(&arguments(&base, &data, &address));
    assert_eq!((code, verdict(&found, "receipts")), (Some(1), "fail"), "{found:#}");
    assert!(check(&found, "receipts")["found"].as_str().unwrap().contains("breaks"), "{found:#}");
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let Some(base) = tests::base() else { return skip("what_is_wrong_is_said_with_what_to_do", "no base") };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, "GGUF and nothing more").unwrap();
    let data = folder.path().join("data");
    let failing = |arguments: &[&str], name: &str| {
        let (code, found) = doctor(arguments);
        assert_eq!((code, &found["ok"]), (Some(1), &json!(false)), "{found:#}");
        let check = check(&found, name);
        assert_eq!(check["verdict"], json!("fail"), "{found:#}");
        assert!(!check["advice"].as_str().unwrap().is_empty(), "{check}");
    };
    failing(&[], "configuration");
    failing(&arguments(&broken, &data, "127.0.0.1:0"), "base");
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    failing(&arguments(&base, &data, &other.local_addr().unwrap().to_string()), "address");
    let mut wrong_tls = arguments(&base, &data, "127.0.0.1:0");
    let file = broken.to_str().unwrap();
    wrong_tls.extend(["--tls-certificate-file", file, "--tls-private-key-file", file]);
    failing(&wrong_tls, "TLS");
    assert!(!data.exists(), "a check makes no data directory");
    let text = run_tenon(&["doctor"]);
    let said = String::from_utf8_lossy(&text.stdout);
    assert!(said.contains("fail  configuration: `base` is not set") && said.contains('→'), "{said}");
}

#[test]
fn a_machine_without_an_accelerator_is_told_so() {
    let (_, found) = doctor(&[]);
    let gpu = check(&found, "GPU");
    let said = gpu["found"].as_str().unwrap();
    if !said.ends_with("the CPU is used") {
        return skip("a_machine_without_an_accelerator_is_told_so", "it has one");
    }
    let reason = said.trim_end_matches("; the CPU is used");
    let output = run_tenon(&["selftest", "--cuda", "--json"]);
    let error: Value = serde_json::from_slice(&output.stderr).expect("an error object");
    assert_eq!((output.status.code(), &error["error"]["code"]), (Some(1), &json!("no_accelerator")), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains(reason), "{error}");
    // A library that is not a driver is no panic either.
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("libcuda.so"), "no library").unwrap();
    let output = tests::tenon().args(["selftest", "--cuda"]).env("LD_LIBRARY_PATH", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("libcuda"), "{said}");
}
