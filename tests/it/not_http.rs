//! What is not HTTP, or more than a head may be, is answered with the error object and a request id too. Raw sockets,
//! since no client sends such things.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use tests::{Server, shared_server};

/// Sends these bytes and reads to the end: the answer's head and body.
fn ask(server: &Server, request: &[u8]) -> (String, String) {
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time limit");
    stream.write_all(request).expect("a server that refuses a request reads it all the same");
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    (head.to_ascii_lowercase(), body.to_owned())
}

fn expect_error(server: &Server, request: &[u8], status: u16, code: &str) {
    let shown = String::from_utf8_lossy(request.get(..request.len().min(60)).unwrap_or_default()).into_owned();
    let (head, body) = ask(server, request);
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{shown}: {head}");
    for header in ["x-request-id: req_", "content-type: application/json", &format!("content-length: {}", body.len())] {
        assert!(head.contains(header), "{shown}: no `{header}` in {head}");
    }
    let body: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{shown}: {error}: {body}"));
    assert_eq!(body["error"]["code"], code, "{shown}");
    assert_eq!(body["error"]["type"], "invalid_request_error", "{shown}");
}

#[test]
fn what_is_not_http_is_answered_with_the_error_object() {
    let Some(server) = shared_server("what_is_not_http_is_answered_with_the_error_object") else { return };
    for request in [
        "nonsense\r\n\r\n",
        "GET /health\r\n\r\n",
        "GET /health HTTP/3.0\r\n\r\n",
        "GET /hea lth HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /health HTTP/1.1\r\nhost: a\r\ncontent-length: many\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
    ] {
        expect_error(server, request.as_bytes(), 400, "malformed_request");
    }
    server.client().get("/health").expect(200);
}

#[test]
fn heads_that_are_too_long_are_answered_with_the_error_object() {
    let Some(server) = shared_server("heads_that_are_too_long_are_answered_with_the_error_object") else { return };
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(70_000));
    expect_error(server, long.as_bytes(), 414, "uri_too_long");
    let many: String = (0..101).map(|number| format!("x-{number}: a\r\n")).collect();
    expect_error(server, format!("GET /health HTTP/1.1\r\n{many}\r\n").as_bytes(), 431, "headers_too_large");
    // Larger than the server ever reads: the answer must not be lost with what it leaves unread.
    let large = format!("GET /health HTTP/1.1\r\nx-large: {}\r\n\r\n", "a".repeat(4 << 20));
    expect_error(server, large.as_bytes(), 431, "headers_too_large");
    server.client().get("/health").expect(200);
}

#[test]
fn the_answer_before_a_malformed_request_stays_as_it_is() {
    let Some(server) = shared_server("the_answer_before_a_malformed_request_stays_as_it_is") else { return };
    let (head, rest) = ask(server, b"GET /health HTTP/1.1\r\nhost: a\r\n\r\nnonsense\r\n\r\n");
    assert!(head.starts_with("http/1.1 200 ") && rest.starts_with("{\"status\":\"ok\""), "{head} {rest}");
    assert!(rest.contains("HTTP/1.1 400 "), "{rest}");
}
