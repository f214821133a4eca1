//! Real clients, unmodified, against a real server: PyPI's and npm's `openai`, PyPI's `lorax-client` and `openlora-client`, and
//! schemathesis with the served document.
//! `cargo xtask test --stage clients` installs them; where they are not, these tests say that they were skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::{Client, Options, Server, deploy_examples, repository, shared_server, skip, tenant_key};

/// Lines `ok …` of each script, so that no check is skipped silently.
const PYTHON_CHECKS: usize = 30;
const NODE_CHECKS: usize = 21;
const LORAX_CHECKS: usize = 20;

/// Examples of each operation in schemathesis's second phase; the others are as many as the document asks for.
const EXAMPLES_MAX: &str = "30";
/// Requests that schemathesis makes at least; far fewer would mean that it did not reach the operations.
const REQUESTS_MIN: u64 = 1500;

/// A folder below `target/clients`, if its packages were installed.
fn installed(test: &str, name: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let folder = target.join("clients").join(name);
    if folder.join("installed").is_file() {
        return Some(folder);
    }
    skip(test, &format!("target/clients/{name} is not there (cargo xtask test --stage clients says why)"));
    None
}

fn scripts() -> PathBuf {
    repository().join("tests").join("clients")
}

/// The version after the last of these words in a file of pins.
fn pinned(file: &Path, before: &str) -> String {
    let text = std::fs::read_to_string(file).expect("pins");
    let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("{} has no {before}", file.display()));
    rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect()
}

/// A server that has memory for one long prompt and a queue of one.
fn busy_server(test: &str, scratch: &Path) -> Option<Server> {
    let config = scratch.join("busy.toml");
    std::fs::write(&config, "queue_requests_max = 1\nkv_blocks = 64\nblock_tokens = 16\n").expect("a file");
    Server::start(
        test,
        Options { arguments: vec!["--config".into(), config.display().to_string()], ..Options::default() },
    )
}

/// Deploys a plugin of the fixtures as a function of this name.
fn deploy(client: &Client, function: &str, plugin: &str) {
    let manifest = json!({"plugin": client.upload_plugin(tests::guest(plugin))});
    client.put(&format!("/v1/functions/{function}"), &manifest).expect(201);
}

/// Runs a script against two servers and counts what it says.
fn run_checks(test: &str, mut script: Command, version: &str, checks: usize) {
    let scratch = tempfile::tempdir().expect("a folder");
    let (Some(server), Some(busy)) = (shared_server(test), busy_server(test, scratch.path())) else { return };
    let operator = server.client();
    deploy(&operator, "clients-bad-plan", "bad-plan");
    deploy(&operator, "clients-trap", "trap");
    let without_invoke = tenant_key(&operator, "clients-reader", &["receipts"]);
    script.env("TENON_URL", server.url()).env("TENON_KEY", server.key());
    script.env("TENON_BUSY_URL", busy.url()).env("TENON_BUSY_KEY", busy.key());
    script.env("TENON_KEY_WITHOUT_INVOKE", without_invoke).env("TENON_CLIENT_VERSION", version);
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        script.env_remove(proxy);
    }
    let output = script.output().expect("the script starts");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    let passed = said.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(passed, checks, "another number of checks ran:\n{said}");
}

#[test]
fn the_python_client_works_unmodified() {
    let test = "the_python_client_works_unmodified";
    let Some(folder) = installed(test, "python") else { return };
    let mut script = Command::new(folder.join("bin/python"));
    script.arg(scripts().join("python/check.py")).env("PYTHONDONTWRITEBYTECODE", "1");
    let version = pinned(&scripts().join("python/requirements.txt"), "\nopenai==");
    run_checks(test, script, &version, PYTHON_CHECKS);
}

#[test]
fn the_clients_of_lorax_and_openlora_work_unmodified() {
    let test = "the_clients_of_lorax_and_openlora_work_unmodified";
    let Some(folder) = installed(test, "python") else { return };
    for (module, distribution) in [("lorax", "lorax-client"), ("openlora", "openlora-client")] {
        let mut script = Command::new(folder.join("bin/python"));
        script.arg(scripts().join("python/lorax_check.py")).args([module, distribution]);
        script.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONWARNINGS", "ignore::DeprecationWarning");
        let version = pinned(&scripts().join("python/requirements.txt"), &format!("\n{distribution}=="));
        run_checks(test, script, &version, LORAX_CHECKS);
    }
}

#[test]
fn the_node_client_works_unmodified() {
    let test = "the_node_client_works_unmodified";
    let Some(folder) = installed(test, "node") else { return };
    let mut script = Command::new("node");
    script.arg(scripts().join("node/check.cjs")).env("NODE_PATH", folder.join("node_modules"));
    let version = pinned(&scripts().join("node/package.json"), "\"openai\": \"");
    run_checks(test, script, &version, NODE_CHECKS);
}

/// `TENON_SCHEMATHESIS_EXAMPLES` asks for more than the tests do.
#[test]
fn the_served_document_holds_under_fuzzing() {
    let test = "the_served_document_holds_under_fuzzing";
    let Some(folder) = installed(test, "python") else { return };
    let scratch = tempfile::tempdir().expect("a folder");
    let limits = scratch.path().join("host.toml");
    std::fs::write(&limits, "[limits]\noutput_tokens_default = 2\noutput_tokens_max = 4\nchoices_max = 2\n")
        .expect("a file");
    let arguments = vec!["--config".into(), limits.display().to_string()];
    let Some(server) = Server::start(test, Options { arguments, ..Options::default() }) else { return };
    let client = server.client();
    deploy_examples(&client);
    deploy(&client, "bad-plan", "bad-plan");
    deploy(&client, "trap", "trap");
    let receipt = client.post("/v1/functions/echo/invoke", &json!({"input": "hello"})).expect(200).receipt;
    let config = std::fs::read_to_string(scripts().join("python/schemathesis.toml")).expect("a configuration");
    let config = config.replace("@KEY@", &server.key()).replace("@RECEIPT@", &receipt.expect("a receipt"));
    let config = config.replace("@PLUGIN@", &client.upload_plugin(tests::guest("echo")));
    std::fs::write(scratch.path().join("schemathesis.toml"), config).expect("a file");

    let mut schemathesis = Command::new(folder.join("bin/schemathesis"));
    let report = scratch.path().join("report.json");
    schemathesis.current_dir(scratch.path()).args(["--config-file", "schemathesis.toml", "--no-color", "run"]);
    schemathesis.arg(format!("{}/openapi.json", server.url()));
    let examples = std::env::var("TENON_SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| EXAMPLES_MAX.into());
    schemathesis.args(["--max-examples", &examples, "--report", "json", "--report-json-path"]).arg(&report);
    let output = schemathesis.output().expect("schemathesis starts");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    let operations = said.lines().find_map(|line| line.trim().strip_prefix("Tested: ")).expect("a count of operations");
    // The one that it leaves out is the document's own address.
    let expected = operation_count(&client) - 1;
    assert_eq!(operations.parse::<usize>().ok(), Some(expected), "every operation is asked:\n{said}");
    let requests = said.lines().find_map(|line| line.trim().split_once(" generated")?.0.parse::<u64>().ok());
    assert!(requests.is_some_and(|requests| requests >= REQUESTS_MIN), "{requests:?} requests:\n{said}");
    client.get("/v1/models").expect(200);
}

fn operation_count(client: &Client) -> usize {
    let document = client.get("/openapi.json").expect(200).json();
    let items = document["paths"].as_object().expect("paths").values();
    items.filter_map(Value::as_object).map(serde_json::Map::len).sum()
}
