//! Answers that must match something: they do, whatever runs beside them, and what runs beside them is as it was. Not here: masks
//! token by token, which are compared with brute force in `model`.

use std::thread;

use serde_json::{Value, json};
use tests::{
    Client, completion_ids, deploy_plugin, receipt_of, server_with_limits, server_with_settings, shared_server,
};

const QUESTION: &str = "Tell me about the city of Paris: its name, its people and its rivers.";

/// For many answers at once on a slow machine; as long as the client waits.
const DEADLINE_MS: u64 = 290_000;

/// What is asked, the most tokens it can take, and whether a text is an answer to it.
struct Case {
    name: &'static str,
    fields: Value,
    tokens: u32,
    matches: fn(&str) -> bool,
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn is_city(text: &str) -> bool {
    let city = parsed(text);
    let members: Vec<&str> = city.as_object().expect("an object").keys().map(String::as_str).collect();
    let rivers = city["rivers"].as_array().expect("an array");
    members == ["name", "capital", "people", "rivers"]
        && city["name"].as_str().is_some_and(|name| (1..=12).contains(&name.chars().count()))
        && city["capital"].is_boolean()
        && city["people"].as_u64().is_some_and(|people| people <= 99_999)
        && (1..=2).contains(&rivers.len())
        && rivers.iter().all(|river| ["Seine", "Loire", "Rhône"].contains(&river.as_str().unwrap_or_default()))
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 10
        && text.starts_with("20")
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            4 | 7 => *byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

fn is_balanced(text: &str) -> bool {
    let depth = text.len() / 2;
    (1..=40).contains(&depth) && text == format!("{}{}", "(".repeat(depth), ")".repeat(depth))
}

fn city() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12, "pattern": "^[A-Za-z é]+$"},
            "capital": {"type": "boolean"},
            "people": {"type": "integer", "minimum": 0, "maximum": 99999},
            "rivers": {"type": "array", "items": {"enum": ["Seine", "Loire", "Rhône"]}, "minItems": 1, "maxItems": 2},
        },
        "required": ["name", "capital", "people", "rivers"],
        "additionalProperties": false,
    })
}

fn cases() -> Vec<Case> {
    let named = json!({"name": "city", "strict": true, "schema": city()});
    let grammar = r#"start: "(" start ")" | "()""#;
    vec![
        Case {
            name: "schema",
            fields: json!({"response_format": {"type": "json_schema", "json_schema": named}}),
            tokens: 300,
            matches: is_city,
        },
        Case { name: "guided", fields: json!({"guided_json": city()}), tokens: 300, matches: is_city },
        Case {
            name: "regex",
            fields: json!({"guided_regex": "20[0-9]{2}-[01][0-9]-[0-3][0-9]"}),
            tokens: 20,
            matches: is_date,
        },
        Case {
            name: "newer",
            fields: json!({"structured_outputs": {"regex": "^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"}}),
            tokens: 20,
            matches: is_date,
        },
        Case { name: "grammar", fields: json!({"guided_grammar": grammar}), tokens: 60, matches: is_balanced },
        Case {
            name: "choice",
            fields: json!({"guided_choice": ["Paris \"the city\"", "Rhône", "Lyon"]}),
            tokens: 20,
            matches: |text| ["Paris \"the city\"", "Rhône", "Lyon"].contains(&text),
        },
        Case {
            name: "object",
            fields: json!({"response_format": {"type": "json_object"}}),
            tokens: 120,
            matches: |text| parsed(text).is_object(),
        },
    ]
}

fn body(case: &Case, temperature: f32, seed: u32) -> Value {
    let mut body = json!({"model": "base", "messages": [{"role": "user", "content": QUESTION}], "temperature": temperature,
        "seed": seed, "max_tokens": case.tokens, "return_token_ids": true});
    let fields = case.fields.as_object().expect("fields").clone();
    body.as_object_mut().expect("an object").extend(fields);
    body
}

fn free(seed: u32) -> Value {
    json!({"model": "base", "prompt": format!("{QUESTION} {seed}"), "temperature": 0.8, "seed": seed, "max_tokens": 40,
        "logprobs": 2, "return_token_ids": true})
}

/// Text and why it ended.
fn answer(value: &Value) -> (String, String) {
    let choice = &value["choices"][0];
    let text = choice["message"]["content"].as_str().or_else(|| choice["text"].as_str()).expect("text").to_owned();
    (text, choice["finish_reason"].as_str().expect("a reason").to_owned())
}

fn ask_all(client: &Client, bodies: &[(&'static str, Value)]) -> Vec<Value> {
    thread::scope(|scope| {
        let asked: Vec<_> =
            bodies.iter().map(|(path, body)| scope.spawn(move || client.post(path, body).expect(200).json())).collect();
        asked.into_iter().map(|one| one.join().expect("answered")).collect()
    })
}

fn constrained() -> Vec<(&'static str, Value)> {
    let ways = [(0.0, 0), (1.0, 1), (1.0, 2), (1.0, 3)];
    let bodies = cases().into_iter().flat_map(|case| ways.map(|(temperature, seed)| body(&case, temperature, seed)));
    bodies.map(|body| ("/v1/chat/completions", body)).collect()
}

#[test]
fn every_finished_answer_matches_and_its_neighbours_are_as_they_were() {
    let Some(server) = server_with_limits("every_finished_answer_matches", &[("deadline_ms_max", DEADLINE_MS)]) else {
        return;
    };
    let client = server.client();
    let frees: Vec<_> = (0..6).map(|seed| ("/v1/completions", free(seed))).collect();
    let alone: Vec<_> =
        frees.iter().map(|(path, body)| client.post(path, body).expect(200).json()["choices"].clone()).collect();
    let mixed: Vec<_> = constrained().into_iter().chain(frees).collect();
    let answers = ask_all(&client, &mixed);
    let (kept, free) = answers.split_at(answers.len() - 6);
    let mut finished = 0;
    let cases = cases();
    let cases: Vec<&Case> = cases.iter().flat_map(|case| [case; 4]).collect();
    for (case, value) in cases.iter().zip(kept) {
        let (text, reason) = answer(value);
        match reason.as_str() {
            "stop" => {
                finished += 1;
                assert!((case.matches)(&text), "{}: {text}", case.name);
            }
            reason => assert_eq!(reason, "length", "{}: {text}", case.name),
        }
        println!("{}: {reason}: {text}", case.name);
    }
    assert!(finished >= kept.len() - 6, "{finished} of {} ended by themselves", kept.len());
    for (value, alone) in free.iter().zip(&alone) {
        let (value, alone) = (&value["choices"][0], &alone[0]);
        for part in ["text", "token_ids", "finish_reason"] {
            assert_eq!(value[part], alone[part], "one that nothing is asked of");
        }
        for part in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(value["logprobs"][part], alone["logprobs"][part], "{part} of one that nothing is asked of");
        }
    }
}

#[test]
fn preemption_and_guesses_change_no_token() {
    let test = "preemption_and_guesses_change_no_token";
    let deadline = ("limits.deadline_ms_max", DEADLINE_MS);
    let settings: [&[(&str, u64)]; 2] =
        [&[("speculation_tokens_max", 0), deadline], &[("speculation_tokens_max", 8), ("kv_blocks", 24), deadline]];
    let mut found: Vec<Vec<Vec<u32>>> = Vec::new();
    for settings in settings {
        let Some(server) = server_with_settings(test, settings) else { return };
        let client = server.client();
        let all: Vec<_> = constrained().into_iter().take(12).collect();
        let answers = ask_all(&client, &all);
        found.push(answers.iter().map(completion_ids).collect());
        if settings.iter().any(|(name, _)| *name == "kv_blocks") {
            assert!(client.metric("tenon_preemptions_total").unwrap_or_default() > 0.0, "KV was short");
        }
    }
    assert_eq!(found[0], found[1]);
}

#[test]
fn several_choices_a_stream_and_stop_strings_keep_to_it() {
    let Some(server) = shared_server("several_choices_a_stream_and_stop_strings_keep_to_it") else { return };
    let client = server.client();
    let case = &cases()[2];
    let mut several = body(case, 1.0, 5);
    several["n"] = json!(4);
    let value = client.post("/v1/chat/completions", &several).expect(200).json();
    let texts: Vec<&str> = (0..4).map(|n| value["choices"][n]["message"]["content"].as_str().unwrap()).collect();
    assert!(texts.iter().all(|text| is_date(text)), "{texts:?}");
    let mut streamed = body(case, 1.0, 5);
    streamed["stream"] = json!(true);
    let events = client.stream("/v1/chat/completions", &streamed);
    let text: String =
        events.data.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, texts[0]);
    let mut stopped = body(case, 0.0, 0);
    stopped["stop"] = json!(["-"]);
    let (text, reason) = answer(&client.post("/v1/chat/completions", &stopped).expect(200).json());
    assert_eq!((text.len(), reason.as_str()), (4, "stop"), "{text}");
    let mut short = body(&cases()[0], 0.0, 0);
    short["max_tokens"] = json!(5);
    assert_eq!(answer(&client.post("/v1/chat/completions", &short).expect(200).json()).1, "length");
    // Of an adapter, and on LoRAX's route.
    let mut adapted = body(case, 0.0, 0);
    adapted["model"] = json!("all-caps");
    assert!(is_date(&answer(&client.post("/v1/chat/completions", &adapted).expect(200).json()).0));
    let format = json!({"type": "json_object", "schema": city()});
    let asked = json!({"inputs": QUESTION, "parameters": {"max_new_tokens": 200, "response_format": format, "adapter_id": "iso-date"}});
    let told = client.post("/generate", &asked).expect(200).json();
    assert!(is_city(told["generated_text"].as_str().unwrap()), "{told}");
}

#[test]
fn log_probabilities_are_the_models_own() {
    let Some(server) = shared_server("log_probabilities_are_the_models_own") else { return };
    let ask = |fields: Value| {
        let mut body =
            json!({"model": "base", "prompt": "One, two, three,", "temperature": 0, "max_tokens": 1, "logprobs": 3});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.client().post("/v1/completions", &body).expect(200).json()["choices"][0]["logprobs"].clone()
    };
    let (free, kept) = (ask(json!({})), ask(json!({"guided_regex": "[xyz]+"})));
    assert_eq!(free["top_logprobs"][0].as_object().map(|top| top.len()).min(Some(3)), Some(3));
    assert!(kept["token_logprobs"][0].as_f64().unwrap() < free["token_logprobs"][0].as_f64().unwrap(), "{kept}");
    for (token, logprob) in free["top_logprobs"][0].as_object().unwrap() {
        assert_eq!(kept["top_logprobs"][0][token], *logprob, "{token}");
    }
}

#[test]
fn the_receipt_says_what_kind_and_which() {
    let Some(server) = shared_server("the_receipt_says_what_kind_and_which") else { return };
    let client = server.client();
    let record = |fields: Value| {
        let mut body = json!({"model": "base", "prompt": "It is", "max_tokens": 3});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = client.post("/v1/completions", &body).expect(200);
        let text = answer.json()["choices"][0]["text"].as_str().expect("text").to_owned();
        receipt_of(&client, &answer.receipt.expect("a receipt"), Some(&text))
    };
    let found = record(json!({"guided_regex": "[0-9]+"})).to_string();
    let digest = blake3_of("[0-9]+");
    assert!(found.contains("regular expression") && found.contains(&digest), "{found}");
    assert!(!found.contains("[0-9]+"), "a receipt has no content: {found}");
    assert!(!record(json!({})).to_string().contains("constraint"));
}

fn blake3_of(text: &str) -> String {
    types::Digest::of(text.as_bytes()).to_string()
}

#[test]
fn what_cannot_be_done_is_refused_before_anything_is_begun() {
    let test = "what_cannot_be_done_is_refused_before_anything_is_begun";
    let Some(server) = server_with_limits(test, &[("constraint_bytes_max", 30_000)]) else { return };
    let client = server.client();
    deploy_plugin(&client, "echo", "echo", &json!({}));
    let long = format!("({})", "a|".repeat(15_000));
    let rules: String = (0..2000).map(|rule| format!("r{rule}: r{}\n", rule + 1)).collect();
    let deep = format!("start: r0\n{rules}r2000: \"a\"\n");
    for (fields, code, says) in [
        (json!({"guided_regex": "("}), "invalid_constraint", "regular expression"),
        (json!({"guided_regex": long}), "limit_exceeded", "constraint_bytes_max"),
        (json!({"guided_regex": "a+", "ignore_eos": true}), "invalid_plan", "ignore_eos"),
        (json!({"guided_json": "{"}), "invalid_constraint", "JSON schema"),
        (json!({"guided_json": {"type": "array", "uniqueItems": true}}), "invalid_constraint", "uniqueItems"),
        (json!({"guided_json": {"$ref": "http://169.254.169.254/latest"}}), "invalid_constraint", "169.254"),
        (json!({"guided_json": {"allOf": [{"type": "string"}, {"type": "null"}]}}), "invalid_constraint", ""),
        (json!({"guided_grammar": "start: nothing"}), "invalid_constraint", "nothing"),
        (
            json!({"guided_grammar": format!("start: {}\"a\"{}", "(".repeat(9000), ")".repeat(9000))}),
            "invalid_constraint",
            "nested",
        ),
        (json!({"guided_regex": format!("{}a{}", "(".repeat(9000), ")".repeat(9000))}), "invalid_constraint", ""),
        (json!({"response_format": {"type": "json_schema"}}), "invalid_request", "schema"),
    ] {
        let mut body = json!({"model": "base", "prompt": "It is", "max_tokens": 3});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = client.post("/v1/completions", &body).expect_error(400, code);
        assert!(answer.text.contains(says) && answer.text.len() < 1500, "{says}: {}", answer.text);
        assert!(answer.receipt.is_none(), "nothing was begun: {}", answer.text);
    }
    // What is deep and right is served; what takes too much at each token ends that answer alone.
    let asked = json!({"model": "base", "prompt": "It is", "max_tokens": 3, "guided_grammar": deep});
    assert_eq!(client.post("/v1/completions", &asked).expect(200).json()["choices"][0]["text"], "a");
    let wide = json!({"model": "base", "prompt": "a", "max_tokens": 30, "guided_regex": "(.*a.{60}b.*)|(.*b.{61}c.*)|(.*c.{62}a.*)"});
    let answer = client.post("/v1/completions", &wide);
    assert!(answer.status == 200 || answer.code() == "constraint_failed", "{} {}", answer.status, answer.text);
    let function = json!({"model": "echo", "messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}});
    let refused = client.post("/v1/chat/completions", &function).expect_error(400, "unsupported");
    assert!(refused.text.contains("response_format"), "{}", refused.text);
    client.post("/v1/completions", &json!({"model": "base", "prompt": "It is", "max_tokens": 3})).expect(200);
}

#[test]
fn a_plugin_s_constraint_holds_across_a_switch_of_the_composition() {
    let test = "a_plugin_s_constraint_holds_across_a_switch_of_the_composition";
    let Some(server) = shared_server(test) else { return };
    let client = server.client();
    let date = "The date is 20[0-9]{2}-[01][0-9]-[0-3][0-9], and that is all there is";
    for (function, switch) in [("kept-reuse", "reuse"), ("kept-anew", "reprefill")] {
        let config = json!({"first": "all-caps", "second": "iso-date", "after": "3", "regex": date});
        let manifest = json!({"adapters": ["all-caps", "iso-date"], "config": config, "switch": switch});
        deploy_plugin(&client, function, "relay", &manifest);
        let asked =
            json!({"model": function, "messages": [{"role": "user", "content": "Which day is it?"}], "max_tokens": 60});
        let (text, reason) = answer(&client.post("/v1/chat/completions", &asked).expect(200).json());
        let told = text.strip_prefix("The date is ").and_then(|rest| rest.strip_suffix(", and that is all there is"));
        assert!(told.is_some_and(is_date) && reason == "stop", "{function}: {reason}: {text}");
    }
    deploy_plugin(&client, "wrong", "relay", &json!({"config": {"regex": "("}}));
    let asked = json!({"model": "wrong", "messages": [{"role": "user", "content": "a"}]});
    client.post("/v1/chat/completions", &asked).expect_error(502, "invalid_constraint");
}
