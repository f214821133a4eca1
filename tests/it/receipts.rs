//! What remains of an inference: two signed records without content, in a chain that anybody with the public key can
//! check, by the command that users have.

use std::process::Output;

use serde_json::{Value, json};
use tests::{Client, Server, shared_server, tenon};

/// Runs `tenon receipt verify` against this server.
fn verify(server: &Server, arguments: &[&str]) -> Output {
    let mut command = tenon();
    command.args(["receipt", "verify"]).args(arguments).args(["--url", server.url(), "--key", &server.key()]);
    command.output().expect("tenon starts")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The record of this receipt and kind in the tenant's list.
fn record(client: &Client, id: &str, kind: &str) -> Option<Value> {
    let mut after = 0;
    loop {
        let page = client.get(&format!("/v1/receipts?after={after}&limit=100")).expect(200).json();
        let records = page["data"].as_array().expect("a page of records").iter().map(|one| &one["receipt"]);
        if let Some(found) = records.into_iter().find(|one| one["id"] == json!(id) && one["kind"] == json!(kind)) {
            return Some(found.clone());
        }
        after = page["next"].as_u64()?;
    }
}

#[test]
fn an_answer_has_a_started_and_a_final_record() {
    let Some(server) = shared_server("an_answer_has_a_started_and_a_final_record") else { return };
    let client = server.client();
    let question = "December 7th, 1997";
    let answer = client.post("/v1/functions/skills/invoke", &json!({"input": question})).expect(200);
    let id = answer.receipt.clone().expect("x-tenon-receipt");
    let text = client.get(&format!("/v1/receipts/{id}")).expect(200).text;
    let receipt: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&receipt["id"], &receipt["kind"]), (&json!(id), &json!("finished")), "{receipt}");
    assert_eq!(receipt["envelopes"].as_array().map(Vec::len), Some(2), "started and finished: {receipt}");
    let last = &receipt["receipt"];
    let started = record(&client, &id, "started").expect("a started record");
    assert_eq!(last["subject"], started["subject"]);
    assert!(started["sequence"].as_u64() < last["sequence"].as_u64());
    let subject = &last["subject"];
    assert_eq!(subject["request"].as_str(), answer.request.as_deref());
    assert_eq!((&subject["function"]["name"], &subject["function"]["version"]), (&json!("skills"), &json!(1)));
    assert_eq!(subject["precision"], json!("f32"));
    assert_eq!(subject["base"].as_str().map(str::len), Some(64));
    let outcome = &last["outcome"];
    let iso = client.get("/v1/adapters/iso-date").expect(200).json()["digest"].clone();
    assert_eq!(outcome["composition"][0]["adapter"], iso);
    let usage = &answer.json()["usage"];
    assert_eq!(outcome["tokens"]["prompt"], usage["prompt_tokens"]);
    assert_eq!(outcome["tokens"]["completion"], usage["completion_tokens"]);
    assert!(outcome["composition"][0]["tokens_active"].as_u64() >= usage["prompt_tokens"].as_u64());
    assert!(outcome["timings"]["total_ms"].as_f64() > Some(0.0), "{outcome}");
    assert!(outcome["prompt"].is_object() || outcome["prompt"].is_string(), "a commitment to the prompt: {outcome}");
    assert!(!text.contains(question) && !text.contains("1997-12-07"), "a receipt has no content: {text}");
}

#[test]
fn the_chain_verifies_and_a_receipt_is_in_it() {
    let Some(server) = shared_server("the_chain_verifies_and_a_receipt_is_in_it") else { return };
    let body = json!({"input": "hello", "max_tokens": 2});
    let id = server.client().post("/v1/functions/echo/invoke", &body).expect(200).receipt.expect("x-tenon-receipt");
    let output = verify(server, &[&id]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains(&id), "{}", said(&output));
    let absent = verify(server, &["rcpt_00000000000000000000000000"]);
    assert!(!absent.status.success(), "{}", said(&absent));
}

#[test]
fn a_tampered_export_is_detected() {
    let Some(server) = shared_server("a_tampered_export_is_detected") else { return };
    let client = server.client();
    for _ in 0..2 {
        client.post("/v1/functions/echo/invoke", &json!({"input": "hello", "max_tokens": 1})).expect(200);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let saved = folder.path().join("export.jsonl");
    let output = verify(server, &["--save", saved.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let export = std::fs::read_to_string(&saved).expect("the export");
    let lines: Vec<&str> = export.lines().collect();
    assert!(lines.len() >= 4, "{export}");
    let check = |name: &str, text: String, holds: bool| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let output = verify(server, &["--file", path.to_str().unwrap()]);
        assert_eq!(output.status.success(), holds, "{name}: {}", said(&output));
        if !holds {
            assert!(said(&output).contains("breaks"), "it says where: {}", said(&output));
        }
    };
    check("whole", export.clone(), true);
    let without = |skipped: usize| -> String {
        lines.iter().enumerate().filter(|(index, _)| *index != skipped).map(|(_, line)| format!("{line}\n")).collect()
    };
    check("one record is missing", without(1), false);
    let mut swapped = lines.clone();
    swapped.swap(0, 1);
    check("two records are swapped", swapped.join("\n"), false);
    check("one character of a payload differs", tampered(&lines), false);
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let output = verify(server, &["--file", empty.to_str().unwrap()]);
    assert!(!output.status.success(), "nothing is not a chain that holds: {}", said(&output));
}

/// The export with one character of the third record's payload changed.
fn tampered(lines: &[&str]) -> String {
    let mut envelope: Value = serde_json::from_str(lines[2]).expect("an envelope is JSON");
    let payload = envelope["payload"].as_str().expect("a DSSE payload").to_owned();
    let middle = payload.len() / 2;
    let other = if payload.as_bytes()[middle] == b'A' { "B" } else { "A" };
    envelope["payload"] = json!(format!("{}{other}{}", &payload[..middle], &payload[middle + 1..]));
    let line = envelope.to_string();
    let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    lines[2] = line;
    lines.join("\n")
}
