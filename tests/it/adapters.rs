//! Adapters as a user uploads, lists, replaces and removes them; what is malformed is refused with its reason.

use serde_json::{Value, json};
use tests::{Options, PeftAdapter, Server, adapter_folder, repository, shared_server};

fn files(name: &str) -> (Vec<u8>, Vec<u8>) {
    let folder = adapter_folder(name).expect("a committed adapter");
    let read = |file: &str| std::fs::read(folder.join(file)).expect("a committed file");
    (read("adapter_config.json"), read("adapter_model.safetensors"))
}

#[test]
fn an_adapter_is_named_by_its_content() {
    let Some(server) = shared_server("an_adapter_is_named_by_its_content") else { return };
    let client = server.client();
    let (config, weights) = files("all-caps");
    let first = client.upload_adapter_bytes("twice-a", config.clone(), weights.clone()).expect(201).json();
    let second = client.upload_adapter_bytes("twice-b", config, weights).expect(201).json();
    assert_eq!(first["digest"], second["digest"]);
    assert_eq!(first["digest"].as_str().map(str::len), Some(64));
    assert_eq!(first["rank"], json!(4));
    let listed = client.get("/v1/adapters").expect(200).json();
    let aliases: Vec<&str> =
        listed["data"].as_array().unwrap().iter().filter_map(|one| one["alias"].as_str()).collect();
    assert!(aliases.contains(&"twice-a") && aliases.contains(&"twice-b"), "{aliases:?}");
    client.delete("/v1/adapters/twice-a").expect(204);
    client.get("/v1/adapters/twice-a").expect_not_found();
    client.get("/v1/adapters/twice-b").expect(200);
    client.delete("/v1/adapters/twice-b").expect(204);
}

#[test]
fn an_alias_moves_and_a_function_follows_it() {
    let Some(server) = shared_server("an_alias_moves_and_a_function_follows_it") else { return };
    let client = server.client();
    let ask = || {
        let messages =
            json!([{"role": "system", "content": "ISO date."}, {"role": "user", "content": "December 7th, 1997"}]);
        let body = json!({"model": "moving", "messages": messages, "max_tokens": 12, "temperature": 0});
        let value = client.post("/v1/chat/completions", &body).expect(200).json();
        value["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let (config, weights) = files("all-caps");
    client.upload_adapter_bytes("moving", config, weights).expect(201);
    assert_ne!(ask(), "1997-12-07");
    let (config, weights) = files("iso-date");
    client.upload_adapter_bytes("moving", config, weights).expect(201);
    assert_eq!(ask(), "1997-12-07");
}

#[test]
fn malformed_adapters_are_refused_with_their_reason() {
    let Some(server) = shared_server("malformed_adapters_are_refused_with_their_reason") else { return };
    let client = server.client();
    let (config, weights) = files("all-caps");
    let refused = |config: Vec<u8>, weights: Vec<u8>| {
        let answer = client.upload_adapter_bytes("broken", config, weights);
        assert!((400..500).contains(&answer.status), "{} {}", answer.status, answer.text);
        assert!(answer.code().starts_with("adapter_"), "{}", answer.text);
        let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.len() > 10, "the reason is told: {message}");
    };
    let cut = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    refused(config.clone(), cut(&weights));
    refused(config.clone(), Vec::new());
    refused(config.clone(), b"\xff\xff\xff\xff\xff\xff\xff\xff{}".to_vec());
    refused(cut(&config), weights.clone());
    refused(b"[]".to_vec(), weights.clone());
    let as_text = String::from_utf8(config).unwrap();
    refused(as_text.replace("\"r\": 4", "\"r\": 5").into_bytes(), weights.clone());
    refused(as_text.replace("\"LORA\"", "\"IA3\"").into_bytes(), weights);
    client.get("/v1/adapters/broken").expect_not_found();
}

#[test]
fn a_source_outside_what_was_allowed_is_refused() {
    let Some(server) = shared_server("a_source_outside_what_was_allowed_is_refused") else { return };
    let client = server.client();
    let answer = client.put("/v1/adapters/by-url", &json!({"source": "file:///etc/passwd"}));
    assert!((400..500).contains(&answer.status), "files outside the root: {} {}", answer.status, answer.text);
    assert!(!answer.text.contains("root:"), "no content leaks");
    let answer = client.put("/v1/adapters/by-url", &json!({"source": "gopher://example"}));
    assert!((400..500).contains(&answer.status), "{} {}", answer.status, answer.text);
    let (config, weights) = files("all-caps");
    let answer = client.upload_adapter_bytes("no%2Fslashes", config, weights);
    answer.expect_error(400, "invalid_request");
}

#[test]
fn an_adapter_comes_from_a_file_url_below_the_root_only() {
    let root = repository().join("tests/fixtures/lora");
    let arguments = vec!["--adapters-root".into(), root.to_str().expect("a UTF-8 path").into()];
    let test = "an_adapter_comes_from_a_file_url_below_the_root_only";
    let Some(server) = Server::start(test, Options { arguments, ..Options::default() }) else { return };
    let client = server.client();
    let put = |source: String| client.put("/v1/adapters/by-url", &json!({"source": source}));
    let url = |path: &std::path::Path| format!("file://{}", path.display());
    let added = put(url(&root.join("iso-date"))).expect(201).json();
    assert_eq!(added["rank"], json!(8));
    for outside in [root.join("../guests"), repository(), root.join("nowhere"), "/etc".into()] {
        let answer = put(url(&outside));
        assert!((400..500).contains(&answer.status), "{outside:?}: {} {}", answer.status, answer.text);
    }
    let wrong = json!({"source": url(&root.join("iso-date")), "digest": "0".repeat(64)});
    let answer = client.put("/v1/adapters/by-url", &wrong);
    assert!((400..500).contains(&answer.status), "another digest was expected: {} {}", answer.status, answer.text);
    let kept = client.get("/v1/adapters/by-url").expect(200).json();
    assert_eq!(kept["digest"], added["digest"], "what is refused replaces nothing");
}

#[test]
fn the_admission_report_is_kept_with_the_adapter() {
    let test = "the_admission_report_is_kept_with_the_adapter";
    let Some(mut server) = Server::start(test, Options::default()) else { return };
    let mut varied = PeftAdapter::tiny(1);
    varied.set("target_modules", json!(r"model\.layers\.[01]\.self_attn\.[qv]_proj"));
    varied.set("layers_to_transform", Value::Null);
    varied.set("r", json!(1));
    varied.set("rank_pattern", json!({"q_proj": 2, "layers.1.self_attn.v_proj": 2, "v_proj": 2}));
    varied.set("alpha_pattern", json!({"layers.1.self_attn.q_proj": 3}));
    varied.set("base_model_name_or_path", json!("../../../../etc/passwd"));
    varied.set("future_flag", json!(7));
    let client = server.client();
    let added = client.upload_adapter_bytes("varied", varied.config_file(), varied.weights_file()).expect(201).json();
    assert_eq!((&added["rank"], &added["modules"]), (&json!(2), &json!(["q_proj", "v_proj"])));
    let report = &added["report"];
    assert_eq!(report["kind"], json!("lora"));
    let modules = json!([
        {"module": "q_proj", "layers": [0], "rank": 2, "scale": 2.0},
        {"module": "q_proj", "layers": [1], "rank": 2, "scale": 1.5},
        {"module": "v_proj", "layers": [0, 1], "rank": 2, "scale": 2.0},
    ]);
    // lora_alpha is 4 where no pattern says otherwise.
    let mut found = report["modules"].clone();
    for module in found.as_array_mut().expect("a list").iter_mut().filter_map(Value::as_object_mut) {
        for norms in ["frobenius_norms", "spectral_norms"] {
            let norms = module.remove(norms).expect("of each layer");
            let values: Vec<f64> = norms.as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
            assert_eq!(Some(values.len()), module["layers"].as_array().map(Vec::len));
            assert!(values.iter().all(|norm| *norm > 0.0), "{values:?}");
        }
    }
    assert_eq!(found, modules);
    assert_eq!(report["dtypes"], json!(["f32"]));
    assert_eq!(report["parameters"], json!(2 * (2 * 576 * 2 + 2 * (576 + 192))));
    assert_eq!(report["base_model"], json!("../../../../etc/passwd"));
    let warnings = report["warnings"].as_array().expect("a list");
    let has = |text: &str| warnings.iter().filter_map(Value::as_str).any(|warning| warning.contains(text));
    assert!(warnings.len() == 2 && has("future_flag") && has("etc/passwd"), "{warnings:?}");

    let data = server.keep_data();
    server.terminate();
    server.wait();
    let folder = data.as_ref().map(|folder| folder.path().join("data"));
    let Some(server) = Server::start(test, Options { data: folder, ..Options::default() }) else { return };
    let client = server.client();
    assert_eq!(client.get("/v1/adapters/varied").expect(200).json(), added, "the same after a restart");
    let listed = client.get("/v1/adapters").expect(200).json();
    assert!(listed["data"][0].get("report").is_none(), "lists leave it out");
}
