//! LoRAX's routes: what the clients of PyPI ask for (`clients.rs` runs them), and what they do not.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use serde_json::{Value, json};
use tests::{Answer, Client, Options, Server, adapter_folder, completion_ids, shared_server, tenant_key};

const PROMPT: &str = "December 7th, 1997";

fn body(parameters: &Value) -> Value {
    json!({"inputs": PROMPT, "parameters": parameters})
}

fn generate(client: &Client, parameters: &Value) -> Value {
    client.post("/generate", &body(parameters)).expect(200).json()
}

/// An error in LoRAX's shape.
fn refused(answer: Answer, status: u16, error_type: &str, code: &str) -> String {
    let error = answer.expect(status).json();
    assert_eq!((&error["error_type"], &error["code"]), (&json!(error_type), &json!(code)), "{error}");
    error["error"].as_str().expect("a message").to_owned()
}

fn token_ids(tokens: &Value) -> Vec<u32> {
    let id = |token: &Value| u32::try_from(token["id"].as_u64().expect("an id")).expect("an id");
    tokens.as_array().expect("tokens").iter().map(id).collect()
}

/// Tokens and text of the same request on our own route.
fn completion(client: &Client, adapters: &Value, tokens: u32) -> (Vec<u32>, String) {
    let body = json!({"model": "base", "prompt": PROMPT, "adapters": adapters, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": true, "return_token_ids": true});
    let value = client.post("/v1/completions", &body).expect(200).json();
    let text = value["choices"][0]["text"].as_str().expect("a text").to_owned();
    (completion_ids(&value), text)
}

#[test]
fn the_same_adapter_gives_the_same_tokens_as_our_own_route() {
    let Some(server) = shared_server("the_same_adapter_gives_the_same_tokens_as_our_own_route") else { return };
    let client = server.client();
    let digest = client.get("/v1/adapters/iso-date").expect(200).json()["digest"].clone();
    let one = json!([{"name": "iso-date"}]);
    let two = json!([{"name": "iso-date", "weight": 0.5}, {"name": "all-caps", "weight": 1.5}]);
    let merged =
        json!({"ids": ["iso-date", "all-caps"], "weights": [0.5, 1.5], "density": 0.0, "merge_strategy": "linear"});
    for (ours, theirs) in [
        (json!([]), json!({})),
        (json!([]), json!({"adapter_id": "__base_model__"})),
        (one.clone(), json!({"adapter_id": "iso-date"})),
        (one.clone(), json!({"adapter_id": "iso-date", "adapter_source": "local"})),
        (one, json!({"adapter_id": digest})),
        (two, json!({"merged_adapters": merged})),
    ] {
        let (ids, text) = completion(&client, &ours, 12);
        let mut parameters = theirs.clone();
        for (field, value) in
            [("max_new_tokens", json!(12)), ("ignore_eos_token", json!(true)), ("details", json!(true))]
        {
            parameters[field] = value;
        }
        let answer = generate(&client, &parameters);
        assert_eq!(answer["generated_text"], json!(text), "{theirs}");
        let details = &answer["details"];
        assert_eq!(token_ids(&details["tokens"]), ids, "{theirs}");
        assert_eq!((&details["finish_reason"], &details["generated_tokens"]), (&json!("length"), &json!(12)));
        assert_eq!((&details["seed"], &details["prefill"]), (&Value::Null, &json!([])));
        assert!(details["prompt_tokens"].as_u64() > Some(3), "{details}");
        // `POST /` is the same in a list.
        let listed = client.post("/", &body(&parameters)).expect(200);
        assert!(listed.receipt.is_some());
        assert_eq!(listed.json(), json!([answer]), "{theirs}");
        // And a stream the same in pieces.
        let events = client.stream("/generate_stream", &body(&parameters));
        assert!(events.status == 200 && !events.done && events.receipt.is_some(), "{events:?}");
        let streamed: Vec<Value> = events.data.iter().map(|event| event["token"].clone()).collect();
        assert_eq!(json!(streamed), details["tokens"], "{theirs}");
        let (last, before) = events.data.split_last().expect("events");
        assert!(before.iter().all(|event| event["generated_text"].is_null() && event["details"].is_null()));
        assert_eq!(last["generated_text"], json!(text));
        assert_eq!(
            (&last["details"]["finish_reason"], &last["details"]["generated_tokens"]),
            (&json!("length"), &json!(12))
        );
        let mut streaming = body(&parameters);
        streaming["stream"] = json!(true);
        assert_eq!(client.stream("/", &streaming).data, events.data);
    }
}

#[test]
fn an_answer_says_how_it_ended_and_its_tokens_are_its_text() {
    let Some(server) = shared_server("an_answer_says_how_it_ended_and_its_tokens_are_its_text") else { return };
    let client = server.client();
    let text_of = |tokens: &[Value]| -> String {
        let printed = tokens.iter().filter(|token| token["special"] == json!(false));
        printed.filter_map(|token| token["text"].as_str()).collect()
    };
    let ask = |inputs: &str, parameters: Value| {
        let body = json!({"inputs": inputs, "parameters": parameters});
        let whole = client.post("/generate", &body).expect(200).json();
        let events = client.stream("/generate_stream", &body).data;
        let streamed: Vec<Value> = events.iter().map(|event| event["token"].clone()).collect();
        let whole_tokens = whole["details"]["tokens"].as_array().expect("tokens").clone();
        assert_eq!(json!(text_of(&whole_tokens)), whole["generated_text"], "{whole}");
        let last = events.last().expect("an event").clone();
        assert_eq!(last["generated_text"], whole["generated_text"], "{last}");
        assert_eq!(json!(text_of(&streamed)), whole["generated_text"], "{streamed:?}");
        assert_eq!(last["details"]["finish_reason"], whole["details"]["finish_reason"]);
        (whole, events)
    };
    let chat = json!({"max_new_tokens": 40, "details": true, "apply_chat_template": true});
    let (whole, events) = ask("What is the capital of France?", chat);
    assert_eq!(whole["generated_text"], json!("The capital of France is Paris."));
    assert_eq!(whole["details"]["finish_reason"], json!("eos_token"));
    // What ends an answer is counted, and in a stream a special token stands for it.
    let tokens = whole["details"]["tokens"].as_array().unwrap();
    assert_eq!((whole["details"]["generated_tokens"].as_u64(), events.len()), (Some(8), tokens.len() + 1), "{whole}");
    let last = &events.last().unwrap()["token"];
    assert_eq!((&last["special"], &last["text"]), (&json!(true), &json!("")));

    let stopped = json!({"max_new_tokens": 40, "details": true, "apply_chat_template": true, "stop": ["Par"]});
    let (whole, _) = ask("What is the capital of France?", stopped);
    assert_eq!(whole["generated_text"], json!("The capital of France is "));
    assert_eq!(whole["details"]["finish_reason"], json!("stop_sequence"));
    // A stop text that begins within a token that begins earlier, and one that is the whole answer.
    for (stop, text, reason) in [
        ("apital", "The c", "stop_sequence"),
        ("The", "", "stop_sequence"),
        ("e capital of France is Pari", "Th", "stop_sequence"),
        (" capital", "The", "stop_sequence"),
        ("Paris.", "The capital of France is ", "stop_sequence"),
        // Held back until the end shows that it is none.
        ("Paris..", "The capital of France is Paris.", "eos_token"),
        ("nothing of it", "The capital of France is Paris.", "eos_token"),
    ] {
        let parameters = json!({"max_new_tokens": 40, "details": true, "apply_chat_template": true, "stop": [stop]});
        let (whole, _) = ask("What is the capital of France?", parameters);
        let found = (&whole["generated_text"], &whole["details"]["finish_reason"]);
        assert_eq!(found, (&json!(text), &json!(reason)), "{stop}");
    }
    // Characters that are split over tokens.
    ask("🦀🦀🦀🦀🦀 日本語 🦀🦀🦀", json!({"max_new_tokens": 24, "details": true, "ignore_eos_token": true}));

    let full = generate(&client, &json!({"max_new_tokens": 2, "return_full_text": true}));
    assert!(full["generated_text"].as_str().is_some_and(|text| text.starts_with(PROMPT) && text.len() > PROMPT.len()));
    assert!(full.get("details").is_none(), "{full}");
}

#[test]
fn sampling_and_alternatives() {
    let Some(server) = shared_server("sampling_and_alternatives") else { return };
    let client = server.client();
    let drawn = |seed: u64| {
        generate(
            &client,
            &json!({"do_sample": true, "temperature": 1.5, "seed": seed, "max_new_tokens": 16, "details": true}),
        )
    };
    let first = drawn(7);
    assert_eq!(first["details"]["seed"], json!(7));
    assert_eq!(drawn(7), first);
    assert!((8..12).any(|seed| drawn(seed)["generated_text"] != first["generated_text"]));
    // The seed that was drawn where none was asked for gives the same answer again.
    let unseeded =
        generate(&client, &json!({"do_sample": true, "temperature": 1.5, "max_new_tokens": 16, "details": true}));
    let seed = unseeded["details"]["seed"].as_u64().expect("a seed");
    assert_eq!(drawn(seed), unseeded);

    let parameters = json!({"return_k_alternatives": 3, "max_new_tokens": 4, "details": true});
    let tokens = generate(&client, &parameters)["details"]["tokens"].clone();
    for token in tokens.as_array().unwrap() {
        let alternatives = token["alternative_tokens"].as_array().expect("alternatives");
        assert_eq!((alternatives.len(), &alternatives[0]["id"]), (3, &token["id"]), "greedy: {token}");
        assert_eq!(alternatives[0]["logprob"], token["logprob"]);
        assert!(token["logprob"].as_f64().is_some_and(|logprob| logprob <= 0.0), "{token}");
    }

    let best = json!({"do_sample": true, "temperature": 1.5, "best_of": 3, "max_new_tokens": 8, "details": true});
    let answer = client.post("/generate", &body(&best)).expect(200);
    assert_eq!(answer.receipt.expect("receipts").split(", ").count(), 3);
    let answer: Value = serde_json::from_str(&answer.text).expect("JSON");
    let others = answer["details"]["best_of_sequences"].as_array().expect("the others");
    assert_eq!(others.len(), 2);
    let mean = |tokens: &Value| {
        let logprobs: Vec<f64> =
            tokens.as_array().unwrap().iter().map(|token| token["logprob"].as_f64().unwrap()).collect();
        logprobs.iter().sum::<f64>() / logprobs.len() as f64
    };
    let best = mean(&answer["details"]["tokens"]);
    assert!(others.iter().all(|other| mean(&other["tokens"]) <= best + 1e-4), "{answer}");

    // Only the last tokens of the prompt.
    let ids = client.post(
        "/v1/completions",
        &json!({"model": "base", "prompt": PROMPT, "max_tokens": 1, "return_token_ids": true}),
    );
    let ids = ids.expect(200).json()["choices"][0]["prompt_token_ids"].as_array().expect("ids").clone();
    let cut =
        json!({"model": "base", "prompt": ids[ids.len() - 3..], "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let cut = client.post("/v1/completions", &cut).expect(200).json()["choices"][0]["text"].clone();
    let answer =
        generate(&client, &json!({"truncate": 3, "max_new_tokens": 8, "ignore_eos_token": true, "details": true}));
    assert_eq!((&answer["generated_text"], &answer["details"]["prompt_tokens"]), (&cut, &json!(3)));
    let whole = generate(&client, &json!({"truncate": 10_000, "max_new_tokens": 1, "details": true}));
    assert_eq!(whole["details"]["prompt_tokens"], json!(ids.len()));
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    let Some(server) = shared_server("what_is_not_served_is_refused_by_name") else { return };
    let client = server.client();
    for path in ["/", "/generate", "/generate_stream"] {
        for (field, value, code) in [
            ("response_format", json!({"type": "xml"}), "unsupported"),
            ("watermark", json!(true), "unsupported"),
            ("typical_p", json!(0.5), "unsupported"),
            ("decoder_input_details", json!(true), "unsupported"),
            ("adapter_source", json!("pbase"), "unsupported"),
            ("adapter_source", json!("nowhere"), "invalid_request"),
            ("temperature", json!(-1), "invalid_plan"),
            ("top_p", json!(1.5), "invalid_plan"),
            ("repetition_penalty", json!(0), "invalid_plan"),
            ("max_new_tokens", json!(0), "invalid_request"),
            ("return_k_alternatives", json!(21), "limit_exceeded"),
        ] {
            let mut parameters = json!({"adapter_id": "iso-date"});
            parameters[field] = value;
            let answer = client.post(path, &body(&parameters)).expect(422);
            let error = answer.json();
            assert_eq!((&error["error_type"], answer.request.is_some()), (&json!("validation"), true), "{error}");
            let code_found = error["code"].as_str().unwrap_or_default();
            // The plan's check has codes of its own.
            assert!(code_found == code || code == "invalid_plan", "{field}: {error}");
            assert!(error["error"].as_str().is_some_and(|message| message.contains(field)), "{field}: {error}");
        }
        for strategy in ["ties", "dare_linear", "dare_ties"] {
            let merged = json!({"ids": ["iso-date"], "weights": [1], "merge_strategy": strategy, "density": 0.5});
            let answer = client.post(path, &body(&json!({"merged_adapters": merged})));
            let message = refused(answer, 422, "validation", "unsupported");
            assert!(message.contains("POST /v1/adapters/{alias}/derive"), "{message}");
        }
        refused(client.post(path, &json!({"inputs": ""})), 422, "validation", "invalid_request");
        for wrong in [
            json!({}),
            json!([]),
            json!({"inputs": 5}),
            json!({"inputs": ["a"]}),
            json!({"inputs": "a", "parameters": []}),
        ] {
            refused(client.post(path, &wrong), 422, "validation", "invalid_request");
        }
        refused(client.post_bytes(path, b"{".to_vec()), 422, "validation", "invalid_json");
        refused(client.with_key(None).post(path, &body(&json!({}))), 401, "unauthorized", "unauthorized");
        let reader = client.with_key(Some(tenant_key(&client, "lorax-reader", &["receipts"])));
        refused(reader.post(path, &body(&json!({}))), 403, "forbidden", "forbidden");
        // A function is no adapter.
        refused(
            client.post(path, &body(&json!({"adapter_id": "skills"}))),
            404,
            "adapter_not_found",
            "adapter_not_found",
        );
    }
    let many = json!({"ids": vec!["iso-date"; 9], "weights": vec![1.0; 9], "density": 0.0});
    refused(client.post("/", &body(&json!({"merged_adapters": many}))), 422, "validation", "limit_exceeded");
}

#[test]
fn another_tenants_adapter_is_not_there() {
    let Some(server) = shared_server("another_tenants_adapter_is_not_there") else { return };
    let client = server.client();
    let digest = client.get("/v1/adapters/iso-date").expect(200).json()["digest"].clone();
    let stranger = client.with_key(Some(tenant_key(&client, "lorax-stranger", &["invoke", "adapters"])));
    let told = |id: &Value| {
        let answer = stranger.post("/generate", &body(&json!({"adapter_id": id})));
        refused(answer, 404, "adapter_not_found", "adapter_not_found").replace(id.as_str().unwrap(), "X")
    };
    let nobody = told(&json!("nobodys"));
    assert_eq!(told(&json!("iso-date")), nobody);
    assert_eq!(told(&digest), nobody);
}

#[test]
fn info_says_what_is_served() {
    let Some(server) = shared_server("info_says_what_is_served") else { return };
    let client = server.client();
    let info = client.get("/info").expect(200).json();
    assert_eq!((&info["model_pipeline_tag"], &info["model_device_type"]), (&json!("text-generation"), &json!("cpu")));
    assert_eq!((&info["model_dtype"], info["model_sha"].as_str().map(str::len)), (&json!("f32"), Some(64)));
    let base = client.get("/v1/models/base").expect(200).json();
    assert_eq!(info["model_id"], base["root"]);
    refused(client.with_key(None).get("/info"), 401, "unauthorized", "unauthorized");
    client.with_key(None).get("/health").expect(200);
}

/// A hub with one private repository that asks for `Bearer hf_right`, and counts. Ends with the process.
fn hub() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().filter_map(Result::ok) {
            let lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
            let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let is_open = head.iter().any(|line| line.eq_ignore_ascii_case("authorization: Bearer hf_right"));
            let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
            let file = path.strip_prefix("/acme/iso-date/resolve/main/").filter(|_| is_open);
            let folder = adapter_folder("iso-date").expect("a committed adapter");
            if is_open && path.ends_with("adapter_model.safetensors") {
                counted.fetch_add(1, Ordering::Relaxed);
                // Long enough for all who ask at the same time.
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
            let (status, body) = match file.and_then(|file| std::fs::read(folder.join(file)).ok()) {
                Some(body) => ("200 OK", body),
                None => ("401 Unauthorized", Vec::new()),
            };
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _hung_up = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    (port, asked)
}

#[test]
fn an_adapter_of_the_hub_is_added_at_its_first_use_and_once() {
    let test = "an_adapter_of_the_hub_is_added_at_its_first_use_and_once";
    let (port, asked) = hub();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenon.toml");
    let text = format!(
        "precision = 'f32'\n[adapter_sources]\nhosts = ['http://localhost:{port}']\nprivate_networks = ['127.0.0.0/8']\n\
         hugging_face_endpoint = 'http://localhost:{port}'\n"
    );
    std::fs::write(&file, text).expect("written");
    let arguments = vec!["--config".into(), file.to_str().expect("UTF-8").into()];
    let Some(server) = Server::start(test, Options { arguments, ..Options::default() }) else { return };
    let client = server.client();
    let ask = |client: &Client, token: Option<&str>| {
        // The id alone: with a `/` in it, it is of the hub, as LoRAX has it.
        client.post(
            "/generate",
            &body(&json!({"adapter_id": "acme/iso-date", "api_token": token, "max_new_tokens": 6,
            "ignore_eos_token": true})),
        )
    };
    refused(ask(&client, None), 422, "validation", "source_denied");
    refused(ask(&client, Some("hf_wrong")), 422, "validation", "source_denied");
    refused(ask(&client, Some("secret:nobodys")), 404, "secret_not_found", "secret_not_found");
    assert_eq!(client.get("/v1/adapters").expect(200).json()["data"], json!([]));
    // Whoever may only invoke adds nothing.
    let invoker = client.with_key(Some(tenant_key(&client, "dev", &["invoke"])));
    refused(ask(&invoker, Some("hf_right")), 403, "forbidden", "forbidden");

    let (sender, texts) = mpsc::sync_channel(8);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (sender, client) = (sender.clone(), &client);
            scope.spawn(move || {
                let answer = ask(client, Some("hf_right")).expect(200).json();
                sender.send(answer["generated_text"].clone()).expect("heard");
            });
        }
        // One whose token does not hold fails alone.
        scope.spawn(|| {
            let answer = ask(&client, Some("hf_wrong"));
            assert!([200, 422].contains(&answer.status), "{}", answer.text);
        });
    });
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the weights are fetched once");
    let listed = client.get("/v1/adapters").expect(200).json();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(1), "{listed}");
    let alias = listed["data"][0]["alias"].as_str().expect("an alias").to_owned();
    assert!(alias.starts_with("source-") && alias.len() == 39, "{alias}");

    let uploaded =
        client.upload_adapter("iso-date", &adapter_folder("iso-date").expect("committed")).expect(201).json();
    assert_eq!(uploaded["digest"], listed["data"][0]["digest"]);
    let (_, expected) = completion(&client, &json!([{"name": "iso-date"}]), 6);
    let texts: Vec<Value> = texts.try_iter().collect();
    assert_eq!(texts, vec![json!(expected); 4]);
    // From now on it is an alias: no token, no right to add, no request to the hub.
    ask(&invoker, None).expect(200);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // Another tenant has to open it by itself.
    let stranger = client.with_key(Some(tenant_key(&client, "lorax-hub-stranger", &["invoke", "adapters"])));
    refused(ask(&stranger, None), 422, "validation", "source_denied");

    // The same once more by a secret, after the alias was removed; and what no token opens.
    client.delete(&format!("/v1/adapters/{alias}")).expect(204);
    let origin = format!("http://localhost:{port}");
    client.put("/v1/secrets/hub", &json!({"origin": origin, "token": "hf_right"})).expect(204);
    ask(&client, Some("secret:hub")).expect(200);
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    for (id, source, code) in [
        ("bucket/x", "s3", "invalid_source"),
        ("https://example.org/x", "local", "source_not_allowed"),
        ("ftp://a/b", "local", "invalid_source"),
        ("x", "file", "adapters_root_not_configured"),
    ] {
        let parameters = json!({"adapter_id": id, "adapter_source": source, "api_token": "hf_right"});
        refused(client.post("/generate", &body(&parameters)), 422, "validation", code);
    }
    for wrong in [json!(123_456_789), json!(["hush123456789"]), json!({"hush123456789": 1})] {
        let message = refused(
            client.post("/generate", &body(&json!({"adapter_id": "a/b", "api_token": wrong}))),
            422,
            "validation",
            "invalid_request",
        );
        assert!(!message.contains("123456789") && message.contains("api_token"), "{message}");
    }
    let log = server.log();
    assert!(!log.contains("hf_right") && !log.contains("hf_wrong"), "{log}");
}

#[test]
fn an_error_in_mid_stream_is_the_last_event() {
    let test = "an_error_in_mid_stream_is_the_last_event";
    let Some(server) = Server::start(test, Options::f32()) else { return };
    let client = server.client();
    let uploaded =
        client.upload_adapter("iso-date", &adapter_folder("iso-date").expect("committed")).expect(201).json();
    let digest = uploaded["digest"].as_str().expect("a digest").to_owned();
    let parameters = json!({"adapter_id": "iso-date", "max_new_tokens": 3000, "ignore_eos_token": true});
    let response = client.open("/generate_stream", &body(&parameters));
    let mut lines = Client::lines(response).lines().map(|line| line.expect("the stream is read to its end"));
    let first = lines.find(|line| !line.is_empty()).expect("an event");
    assert!(first.starts_with("data:{\"token\":{"), "{first}");
    client.put(&format!("/v1/revocations/{digest}"), &json!({"reason": "leaked"})).expect(201);
    let last = lines.filter(|line| !line.is_empty()).last().expect("an event");
    let error: Value = serde_json::from_str(last.strip_prefix("data:").expect("an event")).expect("JSON");
    assert_eq!((&error["error_type"], &error["code"]), (&json!("revoked"), &json!("revoked")), "{error}");
    refused(client.post("/generate", &body(&parameters)), 410, "revoked", "revoked");
}
