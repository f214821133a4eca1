//! vLLM's routes for adapters, its model cards, and the metric that inference routers read.

use std::path::Path;

use serde_json::{Value, json};
use tests::{Answer, Client, Options, Server, adapter_folder, completion_ids, shared_server, tenant_key};

/// A server whose `adapters_root` holds the folder `root/iso-date`; both end with the test.
fn rooted(test: &str) -> Option<(Server, tempfile::TempDir)> {
    let folder = tempfile::tempdir().expect("a folder");
    copy("iso-date", &folder.path().join("root/iso-date"));
    copy("all-caps", &folder.path().join("outside"));
    let root = folder.path().join("root").display().to_string();
    let arguments = vec!["--adapters-root".into(), root, "--precision".into(), "f32".into()];
    Some((Server::start(test, Options { arguments, ..Options::default() })?, folder))
}

fn copy(adapter: &str, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    let from = adapter_folder(adapter).expect("a committed adapter");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(from.join(file), to.join(file)).expect("copied");
    }
}

fn load(client: &Client, name: &str, path: &str) -> Answer {
    client.post("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path}))
}

fn unload(client: &Client, name: &str) -> Answer {
    client.post("/v1/unload_lora_adapter", &json!({"lora_name": name}))
}

/// An error in vLLM's shape.
fn refused(answer: Answer, status: u16, kind: &str, reason: &str) -> String {
    let error = answer.expect(status).json()["error"].clone();
    assert_eq!((&error["type"], &error["code"], &error["reason"]), (&json!(kind), &json!(status), &json!(reason)));
    assert!(error.get("param").is_some(), "{error}");
    error["message"].as_str().expect("a message").to_owned()
}

#[test]
fn an_adapter_is_loaded_by_path_or_url_used_and_unloaded() {
    let test = "an_adapter_is_loaded_by_path_or_url_used_and_unloaded";
    let Some((server, folder)) = rooted(test) else { return };
    let client = server.client();
    let root = folder.path().join("root");
    let url = format!("file://{}", root.join("iso-date").display());
    for (name, path) in [("relative", "iso-date".to_owned()), ("absolute", root.join("iso-date").display().to_string())]
        .into_iter()
        .chain([("by-url", url)])
    {
        let answer = load(&client, name, &path).expect(200);
        assert_eq!(answer.text, format!("Success: LoRA adapter '{name}' added successfully."));
        assert!(answer.content_type.starts_with("text/plain"), "{}", answer.content_type);
    }
    // On its way into memory before anybody uses it.
    let started = std::time::Instant::now();
    while client.metric("tenon_adapter_cache_bytes").is_none_or(|bytes| bytes == 0.0) {
        assert!(started.elapsed().as_secs() < 20, "nothing was loaded");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // What was loaded is what an upload gives, and answers the same.
    let uploaded =
        client.upload_adapter("uploaded", &adapter_folder("iso-date").expect("committed")).expect(201).json();
    let ids = |model: &str| {
        let body = json!({"model": model, "prompt": "December 7th, 1997", "max_tokens": 6, "temperature": 0,
            "ignore_eos": true, "return_token_ids": true});
        completion_ids(&client.post("/v1/completions", &body).expect(200).json())
    };
    assert_eq!(ids("relative"), ids("uploaded"));
    assert_ne!(ids("relative"), ids("base"));

    let cards = client.get("/v1/models").expect(200).json();
    let card = |id: &str| cards["data"].as_array().unwrap().iter().find(|card| card["id"] == id).unwrap().clone();
    let base = card("base");
    assert_eq!((base["parent"].clone(), base["root"].is_string()), (Value::Null, true));
    assert_eq!((&card("by-url")["root"], &card("by-url")["parent"]), (&uploaded["digest"], &json!("base")));
    assert_eq!(client.get("/v1/models/by-url").expect(200).json(), card("by-url"));

    let message = refused(load(&client, "by-url", "iso-date"), 400, "InvalidUserInput", "adapter_exists");
    assert!(message.contains("'by-url' has already been loaded") && message.contains("load_inplace"), "{message}");
    let inplace = json!({"lora_name": "by-url", "lora_path": "iso-date", "load_inplace": true});
    client.post("/v1/load_lora_adapter", &inplace).expect(200);

    let answer = unload(&client, "relative").expect(200);
    assert_eq!(answer.text, "Success: LoRA adapter 'relative' removed successfully.");
    let message = refused(unload(&client, "relative"), 404, "NotFoundError", "adapter_not_found");
    assert_eq!(message, "The lora adapter 'relative' cannot be found.");
    client.get("/v1/models/relative").expect_error(404, "model_not_found");
}

#[test]
fn of_two_who_load_one_name_one_is_told_that_it_is_there() {
    let test = "of_two_who_load_one_name_one_is_told_that_it_is_there";
    let Some((server, _folder)) = rooted(test) else { return };
    let client = server.client();
    let mut statuses: Vec<u16> = std::thread::scope(|scope| {
        let asks: Vec<_> = (0..4).map(|_| scope.spawn(|| load(&client, "one", "iso-date").status)).collect();
        asks.into_iter().map(|ask| ask.join().expect("answered")).collect()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 400, 400, 400]);
}

#[test]
fn what_makes_no_sense_is_refused_in_vllms_shape() {
    let test = "what_makes_no_sense_is_refused_in_vllms_shape";
    let Some((server, folder)) = rooted(test) else { return };
    let client = server.client();
    let outside = folder.path().join("outside").display().to_string();
    for (name, path, status, reason) in [
        ("x", "nowhere", 404, "source_not_found"),
        ("x", outside.as_str(), 404, "source_not_found"),
        ("x", "", 400, "invalid_request"),
        ("", "iso-date", 400, "invalid_request"),
        ("a/b", "iso-date", 400, "invalid_request"),
        ("base", "iso-date", 400, "invalid_request"),
        ("x", "s3://bucket/x", 400, "source_not_allowed"),
        ("x", "ftp://host/x", 400, "invalid_source"),
        ("x", "https://169.254.169.254/latest", 400, "source_not_allowed"),
    ] {
        let kind = if status == 404 { "NotFoundError" } else { "BadRequestError" };
        let message = refused(load(&client, name, path), status, kind, reason);
        assert!(!message.contains("outside"), "{message}");
    }
    // What leads out of the root is not found, or not understood, however it is written.
    for path in ["../outside", "iso-date/../../outside", "/etc", "%2e%2e/outside", "iso-date/adapter_config.json"] {
        let answer = load(&client, "x", path);
        assert!([400, 404].contains(&answer.status), "{path}: {} {}", answer.status, answer.text);
    }
    client.get("/v1/models/x").expect_error(404, "model_not_found");
    for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
        for body in
            [json!({}), json!([]), json!(1), json!({"lora_name": 5, "lora_path": "x"}), json!({"lora_name": null})]
        {
            refused(client.post(path, &body), 400, "BadRequestError", "invalid_request");
        }
        refused(client.post_bytes(path, b"{".to_vec()), 400, "BadRequestError", "invalid_json");
        refused(client.with_key(None).post(path, &json!({})), 401, "AuthenticationError", "unauthorized");
        let key = tenant_key(&client, "vllm-reader", &["invoke"]);
        refused(client.with_key(Some(key)).post(path, &json!({})), 403, "PermissionDeniedError", "forbidden");
    }
    let body = json!({"lora_name": "x", "lora_path": "iso-date", "is_3d_lora_weight": true});
    refused(client.post("/v1/load_lora_adapter", &body), 400, "BadRequestError", "unsupported");
}

#[test]
fn another_tenants_adapter_is_not_found() {
    let Some(server) = shared_server("another_tenants_adapter_is_not_found") else { return };
    let client = server.client();
    let key = tenant_key(&client, "vllm-stranger", &["invoke", "adapters"]);
    let stranger = client.with_key(Some(key));
    let message = refused(unload(&stranger, "iso-date"), 404, "NotFoundError", "adapter_not_found");
    assert_eq!(message, "The lora adapter 'iso-date' cannot be found.");
    let cards = stranger.get("/v1/models").expect(200).json();
    assert!(cards["data"].as_array().unwrap().iter().all(|card| card["parent"].is_null()), "{cards}");
    client.get("/v1/models/iso-date").expect(200);
}

/// What stands behind `vllm:lora_requests_info` in `/metrics`, which anybody may read.
fn lora_series(client: &Client) -> Vec<String> {
    let text = client.with_key(None).get("/metrics").expect(200).text;
    let lines = text.lines().filter_map(|line| line.strip_prefix("vllm:lora_requests_info"));
    lines.map(str::to_owned).collect()
}

#[test]
fn routers_find_one_series_that_names_nobody() {
    let test = "routers_find_one_series_that_names_nobody";
    let Some(server) = Server::start(test, Options::f32()) else { return };
    let client = server.client();
    let folder = adapter_folder("iso-date").expect("committed");
    let digest = client.upload_adapter("iso-date", &folder).expect(201).json()["digest"].as_str().unwrap().to_owned();
    let idle = lora_series(&client);
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_secs();
    let [line] = idle.as_slice() else { panic!("one series: {idle:?}") };
    let (labels, value) = line.rsplit_once(' ').expect("a value");
    assert_eq!(labels, r#"{max_lora="32",running_lora_adapters="",waiting_lora_adapters=""}"#);
    assert!(value.parse::<u64>().expect("whole seconds").abs_diff(now) < 60, "{value}");

    let body = json!({"model": "iso-date", "prompt": "a", "max_tokens": 400, "ignore_eos": true, "stream": true});
    let response = client.open("/v1/completions", &body);
    let mut lines = Client::lines(response);
    let mut first = String::new();
    std::io::BufRead::read_line(&mut lines, &mut first).expect("the first event");
    // An answer begins when it has a place in the queue: at first it may wait for its step.
    let expected = r##"{max_lora="32",running_lora_adapters="#1",waiting_lora_adapters=""} "##;
    let started = std::time::Instant::now();
    loop {
        let running = lora_series(&client);
        let [line] = running.as_slice() else { panic!("one series: {running:?}") };
        if line.starts_with(expected) {
            break;
        }
        assert!(started.elapsed().as_secs() < 20, "{line}");
    }
    let text = client.get("/metrics").expect(200).text;
    assert!(!text.contains("iso-date") && !text.contains(&digest[..8]), "{text}");
}
