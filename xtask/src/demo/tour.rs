//! What the demo shows: real adapters and plugins, real questions, and the receipt of every answer. Not here: how the
//! calls are made.

use std::fs;
use std::io::Write;

use serde_json::{Value, json};

use super::client::{Client, Streamed};
use super::server::Server;
use super::step;
use crate::shell::{self, Outcome};
use crate::suite;

const ADAPTERS: [&str; 3] = ["all-caps", "sentiment-json", "iso-date"];

/// A question, and what its answer must hold for the tour to have worked.
struct Question {
    function: &'static str,
    input: Value,
    expected: &'static str,
}

fn questions() -> Vec<Question> {
    let ask = |function, input, expected| Question { function, input, expected };
    let blended = |text| json!({"text": text, "all-caps": 0.6, "iso-date": 0.5});
    vec![
        ask("skills", json!("23 December 1951"), "1951-12-23"),
        ask("skills", json!("I bought a blender and it is terrific."), "\"positive\""),
        ask("skills", json!("What is the largest planet?"), "THE "),
        ask("skills", json!("hmm"), "No skill fits"),
        // One composition, both skills.
        ask("blend", blended("What is the ocean?"), "THE "),
        ask("blend", blended("December 7th, 1997"), "1997-12-07"),
        // The base alone, passed through, then cut by a plugin that reads along.
        ask("echo", json!("What is the ocean?"), "The ocean"),
        ask("first-sentence", json!("Tell me about the sea."), "."),
        // Whole JSON or an error object, never half of it: the second function asks for a key that its adapter does not write.
        ask("json-guard", json!("I bought a blender and it is terrific."), "{\"sentiment\": \"positive\"}"),
        ask("json-guard-score", json!("I bought a blender and it is terrific."), "\"code\":\"missing_key\""),
    ]
}

/// Uploads, deploys, asks.
///
/// # Errors
/// If any step fails, or an answer is not what it must be.
pub(crate) fn run(client: &Client, server: &Server) -> Outcome {
    step("adapters", "uploading three LoRA adapters as PEFT folders");
    for name in ADAPTERS {
        let folder = shell::root().join("tests/fixtures/lora").join(name);
        let info = client.put_adapter(name, &folder)?;
        println!("  {name:<15} rank {:<3} {}", text(&info, "/rank"), short(&text(&info, "/digest")));
    }
    step("functions", "uploading plugins, deploying functions");
    deploy(client, "skills", "skill-router", &json!({}))?;
    let blend = json!({"first": "all-caps", "second": "iso-date", "system": "Answer the question."});
    deploy(client, "blend", "blend", &blend)?;
    deploy(client, "echo", "echo", &json!({}))?;
    deploy(client, "first-sentence", "first-sentence", &json!({}))?;
    for (function, required) in [("json-guard", "sentiment"), ("json-guard-score", "sentiment,score")] {
        let guard = json!({"adapter": "sentiment-json", "system": "Sentiment as JSON.", "required": required});
        deploy(client, function, "json-guard", &guard)?;
    }
    step("invocations", "as a user would, streaming");
    questions().iter().try_for_each(|question| show(client, server, question))
}

fn deploy(client: &Client, function: &str, plugin: &str, config: &Value) -> Outcome {
    let path = suite::component(plugin);
    let bytes = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let size = bytes.len();
    let digest = client.post_plugin(bytes)?;
    let version = client.deploy(function, &json!({"plugin": digest, "adapters": ADAPTERS, "config": config}))?;
    println!("  {function:<15} version {version}, {plugin}.wasm of {} KB, {}", size / 1000, short(&digest));
    Ok(())
}

fn show(client: &Client, server: &Server, question: &Question) -> Outcome {
    println!("\n  {} < {}", question.function, question.input);
    print!("  {} > ", question.function);
    let answer = client.invoke(question.function, &question.input, |piece| {
        print!("{}", piece.replace('\n', "\n    "));
        drop(std::io::stdout().flush());
    })?;
    println!();
    if !answer.text.contains(question.expected) {
        return Err(
            format!("{} answered {:?}, expected {:?}", question.function, answer.text, question.expected).into()
        );
    }
    let receipt = client.receipt(&answer.receipt)?;
    println!("    adapters  {}", adapters(&answer, &receipt)?);
    println!("    speed     {}", speed(&answer));
    let verified = shell::capture(&mut server.command(&["receipt", "verify", &answer.receipt]))?;
    let mut lines = verified.lines();
    println!("    receipt   {}", lines.next().unwrap_or_default());
    lines.for_each(|line| println!("              {line}"));
    Ok(())
}

/// What the receipt says was composed, with the aliases that the answer gave.
fn adapters(answer: &Streamed, receipt: &Value) -> Outcome<String> {
    let composition = receipt
        .pointer("/receipt/outcome/composition")
        .and_then(Value::as_array)
        .ok_or("the receipt has no composition")?;
    let named = answer.end.get("adapters").and_then(Value::as_array).cloned().unwrap_or_default();
    let parts = composition.iter().map(|part| {
        let digest = text(part, "/adapter");
        let alias = named.iter().find(|one| text(one, "/digest") == digest).map(|one| text(one, "/name"));
        // Weights are f32: printed as such, 0.6 is 0.6.
        let weight = part.get("weight").and_then(Value::as_f64).unwrap_or_default() as f32;
        format!("{} x {weight}", alias.unwrap_or_else(|| short(&digest)))
    });
    let parts: Vec<String> = parts.collect();
    Ok(if parts.is_empty() { "none: the plugin answered, or the base alone did".into() } else { parts.join(" + ") })
}

fn speed(answer: &Streamed) -> String {
    let tokens = answer.end.pointer("/usage/completion_tokens").and_then(Value::as_f64).unwrap_or(0.0);
    let first = format!("time to first token {:.0} ms", answer.first.as_secs_f64() * 1e3);
    let seconds = answer.rest.as_secs_f64();
    if tokens < 2.0 || seconds <= 0.0 {
        return format!("{first}, {tokens:.0} tokens");
    }
    format!("{first}, then {:.1} tokens/s ({tokens:.0} tokens)", (tokens - 1.0) / seconds)
}

/// Lines to paste into another terminal.
///
/// # Errors
/// Never in practice; printing may fail.
pub(crate) fn print_what_to_try(server: &Server) -> Outcome {
    let (url, key) = (server.url(), server.key_file());
    println!("\nstill serving at {url}; Ctrl-C ends it. In another terminal:\n");
    println!("  KEY=$(cat {})", key.display());
    println!("  curl -N {url}/v1/functions/skills/invoke -H \"authorization: Bearer $KEY\" \\");
    println!("    -d '{{\"input\": \"May 3rd, 2021\", \"stream\": true}}'");
    println!(
        "  curl {url}/v1/chat/completions -H \"authorization: Bearer $KEY\" -H 'content-type: application/json' \\"
    );
    println!(
        "    -d '{{\"model\": \"all-caps\", \"messages\": [{{\"role\": \"user\", \"content\": \"What is the ocean?\"}}]}}'"
    );
    println!("  curl {url}/v1/models -H \"authorization: Bearer $KEY\"");
    println!("  curl {url}/metrics\n");
    Ok(())
}

/// A string as it is, anything else as JSON.
fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}
