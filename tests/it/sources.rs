//! Adapters that the host fetches for a tenant, and the secrets that open private ones.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, sync_channel};

use serde_json::json;
use tests::{Options, Server, adapter_folder, shared_server, tenant_key};

/// A hub that has one private repository and asks for `Bearer hf_right`. Ends with the process.
fn hub() -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (sender, seen) = sync_channel(64);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().filter_map(Result::ok) {
            let lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
            let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let is_open = head.iter().any(|line| line.eq_ignore_ascii_case("authorization: Bearer hf_right"));
            let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
            let file = path.strip_prefix("/acme/iso-date/resolve/v1/").filter(|_| is_open);
            let folder = adapter_folder("iso-date").expect("a committed adapter");
            let (status, body) = match file.and_then(|file| std::fs::read(folder.join(file)).ok()) {
                Some(body) => ("200 OK", body),
                None => ("401 Unauthorized", Vec::new()),
            };
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
            let _hung_up = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            if sender.try_send(path).is_err() {
                return;
            }
        }
    });
    (port, seen)
}

#[test]
fn a_private_repository_is_fetched_with_a_secret() {
    let test = "a_private_repository_is_fetched_with_a_secret";
    let (port, seen) = hub();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("tenon.toml");
    let text = format!(
        "[adapter_sources]\nhosts = ['http://localhost:{port}']\nprivate_networks = ['127.0.0.0/8']\n\
         hugging_face_endpoint = 'http://localhost:{port}'\n"
    );
    std::fs::write(&file, text).expect("written");
    let arguments = vec!["--config".into(), file.to_str().expect("UTF-8").into()];
    let Some(server) = Server::start(test, Options { arguments, ..Options::default() }) else { return };
    let client = server.client();
    let put = |body| client.put("/v1/adapters/hubbed", &body);
    let source = "hf://acme/iso-date@v1";
    put(json!({"source": source})).expect_error(422, "source_denied");
    put(json!({"source": source, "secret": "hub"})).expect_error(404, "secret_not_found");
    put(json!({"source": source, "secret": "no/name"})).expect_error(400, "invalid_request");

    let origin = format!("http://localhost:{port}");
    client.put("/v1/secrets/hub", &json!({"origin": origin, "token": "hf_right"})).expect(204);
    let digest = put(json!({"source": source, "secret": "hub"})).expect(201).json()["digest"].clone();
    let body = std::fs::read(adapter_folder("iso-date").expect("committed").join("adapter_config.json"));
    let weights = std::fs::read(adapter_folder("iso-date").expect("committed").join("adapter_model.safetensors"));
    let uploaded = client.upload_adapter_bytes("uploaded", body.expect("read"), weights.expect("read")).expect(201);
    assert_eq!(uploaded.json()["digest"], digest);

    // Another tenant has neither the secret nor what it opened.
    let stranger = client.with_key(Some(tenant_key(&client, "stranger-sources", &["adapters"])));
    let body = json!({"source": source, "secret": "hub"});
    stranger.put("/v1/adapters/hubbed", &body).expect_error(404, "secret_not_found");
    stranger.get("/v1/adapters/hubbed").expect_not_found();
    assert_eq!(stranger.get("/v1/secrets").expect(200).json()["data"], json!([]));
    stranger.delete("/v1/secrets/hub").expect_error(404, "secret_not_found");

    // What was not listed is not asked, wherever it is named.
    let before = seen.try_iter().count();
    assert!(before >= 3, "{before}");
    for elsewhere in
        ["http://127.0.0.1:1/x", "https://169.254.169.254/latest", "s3://bucket/x", "https://example.org/x"]
    {
        put(json!({"source": elsewhere})).expect_error(422, "source_not_allowed");
    }
    put(json!({"source": format!("http://127.0.0.1:{port}/x")})).expect_error(422, "source_not_allowed");
    assert_eq!(seen.try_iter().count(), 0);
    let log = server.log();
    assert!(!log.contains("hf_right"), "{log}");
}

#[test]
fn a_secret_is_kept_and_never_told() {
    let Some(server) = shared_server("a_secret_is_kept_and_never_told") else { return };
    let client = server.client();
    let path = "/v1/secrets/quiet";
    let keys = json!({"access_key_id": "AKID", "secret_access_key": "hush-hush"});
    client.put(path, &keys).expect(204);
    client.put(path, &json!({"origin": "https://huggingface.co", "token": "hush-hush"})).expect(204);
    let listed = client.get("/v1/secrets").expect(200);
    assert_eq!((listed.json()["data"].clone(), listed.text.contains("hush")), (json!([{"name": "quiet"}]), false));
    assert_eq!(client.get(path).status, 405, "it can only be written");
    for (body, code) in [
        (json!({"token": "hush-hush"}), "invalid_request"),
        (json!({"origin": "https://a.example", "token": "hush-hush", "more": 1}), "invalid_request"),
        (json!({"origin": "https://a.example", "token": {"hush-hush": 1}}), "invalid_request"),
        (json!(["https://a.example", "hush-hush"]), "invalid_request"),
        (json!({"origin": "hush-hush", "token": "x"}), "invalid_secret"),
        (json!({"origin": "https://a.example/hush-hush", "token": "x"}), "invalid_secret"),
        (json!({"origin": "https://a.example", "token": "hush\nhush"}), "invalid_secret"),
    ] {
        let answer = client.put(path, &body).expect_error(400, code);
        assert!(!answer.text.contains("hush"), "{}", answer.text);
    }
    client
        .put("/v1/adapters/x", &json!({"source": "file:///x", "secret": "quiet"}))
        .expect_error(422, "invalid_source");
    client.delete(path).expect(204);
    client.delete(path).expect_error(404, "secret_not_found");
}
