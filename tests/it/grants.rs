//! What a manifest grants and narrows, end to end: buckets, secrets, hosts and limits, each denied to who was not granted it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use serde_json::{Value, json};
use tests::{Client, Options, Server, deploy_plugin, shared_server, tenant_key};

/// What leaves time to an unoptimised host on a machine that has others to serve.
const TOO_BUSY_TO_HURRY: &str = "[plugin_http]\nprivate_networks = ['127.0.0.0/8']\n\
    [limits]\nplugin_call_wall_ms_max = 60000\nplugin_call_cpu_ms_max = 5000\n";

const ALL: [&str; 4] = ["invoke", "deploy", "adapters", "receipts"];

fn tenant(operator: &Client, name: &str) -> Client {
    operator.with_key(Some(tenant_key(operator, name, &ALL)))
}

/// What the guest `imports` answers to a script, a line for each command.
fn script(client: &Client, function: &str, script: &str) -> Vec<String> {
    let path = format!("/v1/functions/{function}/invoke");
    let answer = client.post(&path, &json!({"input": script})).expect(200).json();
    answer["output"].as_str().expect("an output").lines().map(str::to_owned).collect()
}

fn kv(bucket: &str, access: &str, scope: &str) -> Value {
    json!({"bucket": bucket, "access": access, "scope": scope})
}

#[test]
fn buckets_are_a_function_s_or_a_tenant_s_and_nobody_else_s() {
    let Some(server) = shared_server("buckets_are_a_function_s_or_a_tenant_s_and_nobody_else_s") else { return };
    let (one, other) = (tenant(&server.client(), "kv-one"), tenant(&server.client(), "kv-other"));
    let own = json!({"grants": {"kv": [kv("b", "read_write", "function"), kv("all", "read_write", "tenant")]}});
    for client in [&one, &other] {
        deploy_plugin(client, "first", "imports", &own);
    }
    deploy_plugin(&one, "second", "imports", &own);
    deploy_plugin(&one, "reader", "imports", &json!({"grants": {"kv": [kv("all", "read_only", "tenant")]}}));
    deploy_plugin(&one, "nothing", "imports", &json!({}));

    assert_eq!(script(&one, "first", "kv-set b k first|kv-set all k shared|kv-add b n 3"), ["set", "set", "3"]);
    assert_eq!(script(&one, "first", "kv-get b k|kv-keys b|kv-add b n 4"), ["first", "k,n", "7"], "another request");
    assert_eq!(script(&one, "second", "kv-get b k|kv-get all k"), ["nothing", "shared"], "another function");
    assert_eq!(script(&other, "first", "kv-get b k|kv-get all k"), ["nothing", "nothing"], "another tenant");
    let said = script(&one, "reader", "kv-get all k|kv-set all k mine|kv-get b k");
    assert!(said[0] == "shared" && said[1].contains("denied") && said[2].contains("denied"), "{said:?}");
    assert!(script(&one, "nothing", "kv-get b k|kv-get all k").iter().all(|line| line.contains("grants.kv")));
    assert_eq!(
        script(&one, "second", "kv-lost-swap all k|kv-swap all k ours|kv-get all k"),
        ["lost to theirs", "true", "ours"]
    );

    // The same over HTTP.
    let value = |client: &Client, path: &str| client.get(&format!("/v1/kv/{path}"));
    assert_eq!(value(&one, "b/k?function=first").expect(200).text, "first");
    assert_eq!(value(&one, "all/k").expect(200).text, "ours");
    value(&one, "b/k").expect_error(404, "kv_key_not_found");
    value(&one, "b/k?function=second").expect_error(404, "kv_key_not_found");
    value(&one, "b/k?function=none").expect_error(404, "function_not_found");
    value(&other, "b/k?function=first").expect_error(404, "kv_key_not_found");
    value(&other, "b/k?function=second").expect_error(404, "function_not_found");
    let listed = one.get("/v1/kv").expect(200).json();
    let names: Vec<_> =
        listed["data"].as_array().unwrap().iter().map(|one| (&one["bucket"], &one["function"])).collect();
    assert_eq!(names, [(&json!("all"), &Value::Null), (&json!("b"), &json!("first"))]);
    assert_eq!(listed["data"][1]["keys"], json!(2));

    // They go with their function: a successor of its name has none of it.
    one.delete("/v1/functions/first").expect(204);
    deploy_plugin(&one, "first", "imports", &own);
    assert_eq!(script(&one, "first", "kv-get b k|kv-get all k"), ["nothing", "ours"]);
    assert_eq!(one.get("/v1/kv").expect(200).json()["data"].as_array().unwrap().len(), 1);
    one.delete("/v1/kv/all").expect(204);
    assert_eq!(script(&one, "second", "kv-get all k"), ["nothing"]);
}

#[test]
fn values_are_written_by_version_over_http() {
    let Some(server) = shared_server("values_are_written_by_version_over_http") else { return };
    let client = tenant(&server.client(), "kv-http");
    let send = |method: &str, path: &str, header: Option<(&str, &str)>, body: &[u8]| {
        let request = client.request(method.parse().unwrap(), path).body(body.to_vec());
        let request = header.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let answer = request.send().expect("the server answers");
        let tag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned());
        (answer.status().as_u16(), tag, answer.bytes().unwrap().to_vec())
    };
    let path = "/v1/kv/b/a%2Fkey%20%C3%A9";
    let bytes: Vec<u8> = (0..=255).collect();
    let (status, first, _) = send("PUT", path, Some(("if-none-match", "*")), &bytes);
    assert_eq!((status, send("GET", path, None, b"")), (204, (200, first.clone(), bytes)));
    assert_eq!(send("PUT", path, Some(("if-none-match", "*")), b"x").0, 409);
    let first = first.unwrap();
    let (status, second, _) = send("PUT", path, Some(("if-match", &first)), b"two");
    assert_eq!((status, second.as_ref() != Some(&first)), (204, true));
    assert_eq!(send("PUT", path, Some(("if-match", &first)), b"three").0, 409);
    assert_eq!(send("DELETE", path, Some(("if-match", &first)), b"").0, 409);
    assert_eq!(send("GET", path, None, b"").2, b"two");
    assert_eq!(client.get("/v1/kv/b").expect(200).json()["keys"], json!(["a/key é"]));
    assert_eq!(send("DELETE", path, Some(("if-match", &second.unwrap())), b"").0, 204);
    assert_eq!(send("GET", path, None, b"").0, 404);
    for (header, value) in [("if-match", "1"), ("if-match", "*"), ("if-none-match", "\"1\""), ("if-match", "W/\"1\"")] {
        assert_eq!(send("PUT", path, Some((header, value)), b"x").0, 400, "{header}: {value}");
    }
    for (path, code) in [
        ("/v1/kv/..%2Fb/k", "invalid_request"),
        ("/v1/kv/b/%00", "invalid_request"),
        (&format!("/v1/kv/b/{}", "k".repeat(513)), "limit_exceeded"),
        ("/v1/kv/b/k?functions=x", "invalid_request"),
    ] {
        client.put_bytes(path, "application/octet-stream", b"x".to_vec()).expect_error(400, code);
    }
    let long = client.put_bytes("/v1/kv/b/k", "application/octet-stream", vec![0; (1 << 20) + 1]);
    assert!(long.expect_error(400, "limit_exceeded").text.contains("kv_value_bytes_max"));
    let reader = server.client().with_key(Some(tenant_key(&server.client(), "kv-http", &["invoke"])));
    reader.get("/v1/kv/b/k").expect_error(403, "forbidden");
}

#[test]
fn a_secret_is_read_by_whom_it_was_granted_and_told_nowhere() {
    let Some(server) = shared_server("a_secret_is_read_by_whom_it_was_granted_and_told_nowhere") else { return };
    let (one, other) = (tenant(&server.client(), "secret-one"), tenant(&server.client(), "secret-other"));
    let value = "keep-this-quiet-4711";
    one.put("/v1/secrets/key", &json!({"value": value})).expect(204);
    one.put("/v1/secrets/hub", &json!({"origin": "https://a.example", "token": value})).expect(204);
    other.put("/v1/secrets/key", &json!({"value": "another"})).expect(204);
    let grants = json!({"grants": {"secrets": ["key", "hub", "missing"]}});
    for client in [&one, &other] {
        deploy_plugin(client, "reads", "imports", &grants);
        deploy_plugin(client, "reads-not", "imports", &json!({"config": {"tone": "warm"}}));
    }
    let said = script(&one, "reads", "secret key|secret hub|secret missing|secret key2|config key");
    assert_eq!((said[0].as_str(), said[4].as_str()), (value, "None"));
    assert!(said[1].contains("sources of adapters") && said[2].contains("no secret `missing`"), "{said:?}");
    assert!(said[3].contains("grants.secrets"), "{said:?}");
    assert_eq!(script(&other, "reads", "secret key"), ["another"]);
    assert!(script(&one, "reads-not", "secret key")[0].contains("grants.secrets"));
    // It was an answer's text because this guest tells it; it is nowhere else.
    let answer = one.post("/v1/functions/reads/invoke", &json!({"input": "secret key|secret hub"})).expect(200);
    let receipt = one.get(&format!("/v1/receipts/{}", answer.receipt.expect("a receipt"))).expect(200).text;
    let places = [
        ("the receipt", receipt),
        ("the function's log", one.get("/v1/functions/reads/logs").expect(200).text),
        ("its versions", one.get("/v1/functions/reads/versions").expect(200).text),
        ("the list of secrets", one.get("/v1/secrets").expect(200).text),
        ("the host's log", server.log()),
    ];
    for (place, text) in places {
        assert!(!text.contains(value), "{place} has it");
    }
    one.put("/v1/secrets/empty", &json!({"value": ""})).expect_error(400, "invalid_secret");
    one.put("/v1/secrets/two", &json!({"value": "x", "token": "y"})).expect_error(400, "invalid_request");
}

/// Answers each request with its head, and tells nobody else.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut read = [0; 8192];
            let length = stream.read(&mut read).unwrap_or(0);
            let head = String::from_utf8_lossy(&read[..length]).into_owned();
            let body = head.lines().map(|line| format!("{line};")).collect::<String>();
            let status =
                if head.starts_with("GET /moved") { "302 Found\r\nlocation: http://127.0.0.1:1/" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    port
}

#[test]
fn requests_go_where_manifest_and_operator_allow() {
    let name = "requests_go_where_manifest_and_operator_allow";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenon.toml");
    std::fs::write(&file, TOO_BUSY_TO_HURRY).unwrap();
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    let Some(server) = Server::start(name, Options { arguments, ..Options::default() }) else { return };
    let client = server.client();
    let port = echo_server();
    client.put("/v1/secrets/lookup-key", &json!({"value": "s3cret-0815"})).expect(204);
    let grants = json!({"http": [format!("http://127.0.0.1:{port}/v1")], "secrets": ["lookup-key"]});
    deploy_plugin(&client, "web", "imports", &json!({"grants": grants, "limits": {"http_requests_max": 4}}));
    let at = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let commands = [
        format!("get {}", at("/v1/facts?q=x")),
        format!("get-with-secret {} lookup-key", at("/v1/x")),
        format!("get {}", at("/v2")),
        format!("get http://localhost:{port}/v1"),
        format!("get {}", at("/v1")),
    ];
    let said = script(&client, "web", &commands.join("|"));
    assert!(
        said[0].starts_with("200 GET /v1/facts?q=x HTTP/1.1;") && said[0].contains("user-agent: tenon-plugin"),
        "{said:?}"
    );
    assert!(said[1].contains("authorization: s3cret-0815;"), "{said:?}");
    assert!(said[2].contains("HttpRequestDenied") && said[3].contains("HttpRequestDenied"), "{said:?}");
    assert!(said[4].contains("http_requests_max of 4"), "{said:?}");
    let log = client.get("/v1/functions/web/logs").expect(200).text;
    assert!(log.contains("grants.http") && !log.contains("s3cret-0815") && !log.contains("/v2"), "{log}");
    // The example that asks for facts.
    let manifest = json!({"grants": grants, "config": {"url": at("/v1?q=")}});
    deploy_plugin(&client, "lookup", "lookup", &manifest);
    let answer =
        client.post("/v1/functions/lookup/invoke", &json!({"input": "how deep?", "max_tokens": 4})).expect(200);
    assert_eq!(answer.json()["usage"]["completion_tokens"], json!(4));
    assert!(!server.log().contains("s3cret-0815"));
}

#[test]
fn private_addresses_are_refused_unless_listed() {
    let Some(server) = shared_server("private_addresses_are_refused_unless_listed") else { return };
    let client = tenant(&server.client(), "ssrf");
    let port = echo_server();
    let hosts = ["127.0.0.1", "localhost", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1"];
    let origins: Vec<String> = hosts.iter().map(|host| format!("http://{host}:{port}")).collect();
    deploy_plugin(&client, "ssrf", "imports", &json!({"grants": {"http": origins}}));
    let commands: Vec<String> = origins.iter().map(|origin| format!("get {origin}/")).collect();
    for (host, line) in hosts.iter().zip(script(&client, "ssrf", &commands.join("|"))) {
        assert!(line.contains("DestinationIpProhibited"), "{host}: {line}");
    }
    let log = client.get("/v1/functions/ssrf/logs").expect(200).text;
    assert!(log.contains("plugin_http.private_networks"), "{log}");
}

#[test]
fn what_cannot_be_granted_or_limited_is_refused_at_deployment() {
    let Some(server) = shared_server("what_cannot_be_granted_or_limited_is_refused_at_deployment") else { return };
    let client = server.client();
    let plugin = client.upload_plugin(tests::guest("echo"));
    for (more, said) in [
        (json!({"grants": {"http": ["api.example.com"]}}), "grants.http has `api.example.com`"),
        (json!({"grants": {"kv": [{"bucket": "a/b"}]}}), "grants.kv"),
        (json!({"grants": {"secrets": ["*"]}}), "grants.secrets"),
        (json!({"grants": {"files": []}}), "files"),
        (json!({"limits": {"memory_bytes_max": 0}}), "memory_bytes_max"),
        (json!({"limits": {"memory_bytes": 1}}), "memory_bytes"),
        (json!({"limits": {"kv_blocks_max": 0}}), "kv_blocks_max"),
    ] {
        let mut manifest = more.clone();
        manifest["plugin"] = json!(plugin);
        let answer = client.put("/v1/functions/bad-grants", &manifest);
        assert!(answer.status == 400 && answer.text.contains(said), "{more}: {}", answer.text);
    }
}

#[test]
fn a_function_s_own_limits_hold_and_are_named() {
    let Some(server) = shared_server("a_function_s_own_limits_hold_and_are_named") else { return };
    let client = server.client();
    let adapters = json!(["iso-date"]);
    for (guest, limits, input, status, limit) in [
        ("spin", json!({"call_cpu_ms_max": 7}), "x", 502, "call_cpu_ms_max is 7 ms"),
        ("grow", json!({"memory_bytes_max": 4 << 20}), "x", 502, "memory_bytes_max is 4194304"),
        ("imports", json!({"kv_writes_max": 1}), "2*kv-set b k v", 200, "kv_writes_max of 1"),
        ("imports", json!({"tokenizer_bytes_max": 2}), "count hello", 200, "tokenizer_bytes_max of 2"),
        (
            "echo",
            json!({"kv_blocks_max": 1}),
            "Tell me all about the sea, and of the rivers that feed it.",
            502,
            "kv_blocks_max of 1",
        ),
        ("echo", json!({"kv_blocks_max": 1_000_000}), "hello", 200, ""),
    ] {
        let manifest = json!({"limits": limits, "adapters": adapters, "grants": {"kv": [{"bucket": "b"}]}});
        deploy_plugin(&client, "limited", guest, &manifest);
        let answer = client.post("/v1/functions/limited/invoke", &json!({"input": input, "max_tokens": 4}));
        assert!(answer.status == status && answer.text.contains(limit), "{limits}: {} {}", answer.status, answer.text);
    }
}

#[test]
fn cold_bytes_are_bounded() {
    let Some(server) = Server::start("cold_bytes_are_bounded", Options::default()) else { return };
    let client = server.client();
    let folder = tests::adapter_folder("iso-date").expect("a committed adapter");
    client.upload_adapter("iso-date", &folder).expect(201);
    let text = "5 December 2008";
    let invoke = || client.post("/v1/functions/cold/invoke", &json!({"input": text, "max_tokens": 4}));
    deploy_plugin(
        &client,
        "cold",
        "skill-router",
        &json!({"adapters": ["iso-date"], "limits": {"cold_bytes_max": 1000}}),
    );
    let refused = invoke();
    assert!(
        refused.status == 502 && refused.text.contains("cold_bytes_max of 1000"),
        "{} {}",
        refused.status,
        refused.text
    );
    deploy_plugin(&client, "cold", "skill-router", &json!({"adapters": ["iso-date"]}));
    invoke().expect(200);
    // What is in memory costs nothing.
    deploy_plugin(&client, "cold", "skill-router", &json!({"adapters": ["iso-date"], "limits": {"cold_bytes_max": 0}}));
    invoke().expect(200);
}
