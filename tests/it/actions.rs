//! Every action of a post-processor, alone and together, played by the guest `actions` from its configuration: what is sent,
//! in which pieces, why the generation ends, and that the receipt is about what was sent.

use serde_json::{Value, json};
use tests::{Client, Events, deploy_plugin, receipt_of, shared_server};

const QUESTION: &str = "What is the capital of France?";
const TOKENS: usize = 6;

/// The pieces of the answer as they are without any action.
struct Plain(Vec<String>);

impl Plain {
    fn of(client: &Client) -> Self {
        let body = json!({"input": QUESTION, "max_tokens": TOKENS, "stream": true});
        let pieces = deltas(&client.stream("/v1/functions/echo/invoke", &body));
        assert_eq!(pieces.len(), TOKENS, "each token is a piece of text here: {pieces:?}");
        Self(pieces)
    }

    fn from(&self, first: usize) -> String {
        self.0[first..].concat()
    }

    fn each(&self, change: impl Fn(&str) -> String) -> Vec<String> {
        self.0.iter().map(|piece| change(piece)).collect()
    }
}

fn deltas(events: &Events) -> Vec<String> {
    events.data.iter().filter_map(|event| event["delta"].as_str().map(str::to_owned)).collect()
}

/// Plays a script, whole and streamed.
fn play(client: &Client, function: &str, script: &[(&str, &str)], limits: &Value) -> (tests::Answer, Events) {
    let config: Value = script.iter().map(|(key, actions)| ((*key).to_owned(), json!(actions))).collect();
    deploy_plugin(client, function, "actions", &json!({"config": config, "limits": limits}));
    let path = format!("/v1/functions/{function}/invoke");
    let mut body = json!({"input": QUESTION, "max_tokens": TOKENS});
    let whole = client.post(&path, &body);
    body["stream"] = json!(true);
    (whole, client.stream(&path, &body))
}

/// A script that must end well: these pieces are sent, after so many tokens (all, or until the plugin stops).
fn check(client: &Client, function: &str, script: &[(&str, &str)], pieces: &[String], tokens: usize) {
    let (whole, streamed) = play(client, function, script, &json!({}));
    let value = whole.expect(200).json();
    let text = pieces.concat();
    assert_eq!(value["output"], json!(text), "{script:?}");
    let reason = if tokens < TOKENS { "stopped_by_plugin" } else { "length" };
    assert_eq!(value["finish_reason"], json!(reason), "{script:?}: {value}");
    assert_eq!(value["usage"]["completion_tokens"], json!(tokens), "{script:?}: {value}");
    assert_eq!(deltas(&streamed), pieces, "{script:?}");
    assert_eq!(streamed.last("/finish_reason"), Some(&json!(reason)), "{script:?}");
    for receipt in [value["receipt"].as_str().expect("a receipt"), streamed.receipt.as_deref().expect("a receipt")] {
        let receipt = receipt_of(client, receipt, Some(&text));
        assert_eq!(receipt["kind"], json!("finished"), "{script:?}");
        assert_eq!(receipt["receipt"]["outcome"]["finish"], json!(reason), "{script:?}");
    }
}

#[test]
fn pass_replace_and_emit() {
    let Some(server) = shared_server("pass_replace_and_emit") else { return };
    let client = server.client();
    let plain = Plain::of(&client);
    let check = |script: &[(&str, &str)], pieces: &[String]| {
        check(&client, "actions-send", script, pieces, TOKENS);
    };
    check(&[], &plain.0);
    check(&[("*", "pass")], &plain.0);
    check(&[("*", "pass|pass")], &plain.0);
    check(&[("*", "replace:<{chunk}/{tokens}>")], &plain.each(|piece| format!("<{piece}/1>")));
    check(&[("*", "replace:a|pass")], &plain.each(|_| "a".into()));
    check(&[("*", "replace:a|replace:b|hold")], &plain.each(|_| "ab".into()));
    check(&[("*", "replace:")], &[]);
    check(&[("*", "replace:"), ("finish", "emit:end")], &["end".into()]);
    check(&[("*", "emit:[|pass|emit:]")], &plain.each(|piece| format!("[{piece}]")));
    check(&[("*", "emit:+")], &plain.each(|piece| format!("+{piece}")));
    check(&[("finish", "emit:.|emit:.")], &[plain.0.clone(), vec!["..".into()]].concat());
}

#[test]
fn hold() {
    let Some(server) = shared_server("hold") else { return };
    let client = server.client();
    let plain = Plain::of(&client);
    let check = |script: &[(&str, &str)], pieces: &[String]| {
        check(&client, "actions-hold", script, pieces, TOKENS);
    };
    let all = plain.from(0);
    check(&[("*", "hold")], std::slice::from_ref(&all));
    check(&[("*", "hold"), ("finish", "pass")], std::slice::from_ref(&all));
    check(&[("*", "hold"), ("finish", "emit:!|pass")], &[format!("!{all}")]);
    check(&[("*", "hold"), ("finish", "replace:other")], &["other".into()]);
    check(&[("*", "hold"), ("finish", "hold")], &[]);
    check(&[("*", "hold|hold")], std::slice::from_ref(&all));
    check(&[("*", "hold|pass")], &plain.0);
    check(&[("*", "hold"), ("3", "pass")], &[plain.0[..3].concat(), plain.from(3)]);
    check(&[("*", "hold"), ("3", "emit:mid")], &[format!("mid{}", plain.0[..3].concat()), plain.from(3)]);
    check(&[("*", "hold"), ("3", "replace:X")], &["X".into(), plain.from(3)]);
    check(&[("*", "hold"), ("3", "hold|emit:mid")], &["mid".into(), all]);
}

#[test]
fn stop() {
    let Some(server) = shared_server("stop") else { return };
    let client = server.client();
    let plain = Plain::of(&client);
    let check = |script: &[(&str, &str)], pieces: &[&str], tokens: usize| {
        let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        check(&client, "actions-stop", script, &pieces, tokens);
    };
    let (first, second) = (plain.0[0].as_str(), plain.0[1].as_str());
    let both = format!("{first}{second}");
    check(&[("1", "stop")], &[first], 1);
    check(&[("2", "pass|stop")], &[first, second], 2);
    check(&[("2", "stop|replace:X")], &[first, "X"], 2);
    check(&[("2", "emit:A|replace:B|emit:C|stop")], &[first, "ABC"], 2);
    check(&[("2", "stop"), ("finish", "emit:.")], &[first, second, "."], 2);
    check(&[("*", "hold"), ("2", "stop")], &[&both], 2);
    check(&[("*", "hold"), ("2", "hold|stop")], &[&both], 2);
    check(&[("*", "hold"), ("2", "hold|stop"), ("finish", "replace:Z")], &["Z"], 2);
    check(&[("*", "hold"), ("2", "hold|stop"), ("finish", "hold")], &[], 2);
    check(&[("*", "hold"), ("2", "replace:Y|stop")], &["Y"], 2);
}

#[test]
fn what_goes_wrong_in_between_leaves_a_receipt_for_what_was_sent() {
    let test = "what_goes_wrong_in_between_leaves_a_receipt_for_what_was_sent";
    let Some(server) = shared_server(test) else { return };
    let client = server.client();
    let plain = Plain::of(&client);
    let check = |script: &[(&str, &str)], limits: Value, code: &str, says: &str, sent: &str| {
        let (whole, streamed) = play(&client, "actions-wrong", script, &limits);
        let whole = whole.expect_error(502, code);
        assert!(whole.text.contains(says), "{script:?}: {}", whole.text);
        assert_eq!(streamed.text(), sent, "{script:?}");
        assert_eq!(streamed.last("/error/code"), Some(&json!(code)), "{script:?}: {:?}", streamed.data);
        assert!(streamed.done && streamed.data.last().is_some_and(|event| event.get("error").is_some()));
        // Nothing of a whole answer that failed was sent.
        for (receipt, sent) in [(whole.receipt, None), (streamed.receipt, Some(sent))] {
            let receipt = receipt_of(&client, &receipt.expect("a receipt"), sent);
            assert_eq!((&receipt["kind"], &receipt["receipt"]["outcome"]["error"]), (&json!("failed"), &json!(code)));
        }
    };
    let (first, two, none) = (plain.0[0].as_str(), plain.0[..2].concat(), json!({}));
    check(&[("2", "shout")], none.clone(), "plugin_error", "`shout`", first);
    check(&[("3", "emit:x|shout")], none.clone(), "plugin_error", "`shout`", &two);
    check(&[("finish", "shout")], none.clone(), "plugin_error", "`shout`", &plain.from(0));
    check(&[("1", "stop"), ("finish", "shout")], none.clone(), "plugin_error", "`shout`", first);
    check(&[("*", "hold"), ("finish", "switch")], none, "unsupported", "switch-composition", "");
    let held = json!({"held_bytes_max": plain.0[..4].concat().len()});
    check(&[("*", "hold")], held.clone(), "limit_exceeded", "held_bytes_max", "");
    check(&[("1", "pass"), ("*", "hold")], json!({"held_bytes_max": 1}), "limit_exceeded", "held_bytes_max", first);
    let answered = json!({"answer_bytes_max": first.len() + 9});
    check(&[("2", "replace:0123456789")], answered.clone(), "limit_exceeded", "answer_bytes_max", first);
    check(
        &[("1", "pass"), ("*", "hold"), ("finish", "replace:0123456789")],
        answered,
        "limit_exceeded",
        "answer_bytes_max",
        first,
    );
    // From the base to the base: nothing changes.
    let (whole, streamed) = play(&client, "actions-wrong", &[("2", "switch"), ("3", "switch")], &json!({}));
    assert_eq!(
        (json!(streamed.text()), json!(plain.from(0))),
        (whole.expect(200).json()["output"].clone(), json!(streamed.text()))
    );
    let (whole, streamed) = play(&client, "actions-wrong", &[("*", "hold"), ("4", "pass")], &held);
    assert_eq!(json!(streamed.text()), whole.expect(200).json()["output"], "just as much as may be held");
}
