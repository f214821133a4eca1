//! The command line as users and operators type it, against a running host.

use std::process::Output;

use serde_json::Value;
use tests::{Server, adapter_folder, guest, run_tenon, shared_server, tenon};

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
