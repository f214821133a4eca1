//! Requests that clients would not send, and bytes that are no requests, over TCP to the real binary on a tiny base. The
//! generator is that of the fuzz targets; what must hold of an answer in detail is asserted in `host/tests/malformed`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use generators::{Draw, KEY, Request, Sizes, base_file, requests, seeded_bytes};
use tests::{Options, Server};

/// Nothing here takes longer; a server that does not answer at all is a failure.
const ANSWER_MAX: Duration = Duration::from_secs(30);

#[test]
fn a_server_answers_whatever_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.gguf");
    std::fs::write(&base, base_file(&Sizes::TINY)).unwrap();
    let server = Server::start_on(&base, Options::f32());
    let (mut answered, mut closed) = (0, 0);
    for seed in 0..500 {
        println!("seed {seed}");
        let bytes = seeded_bytes(seed, 100 + seed as usize % 500);
        let mut draw = Draw::new(&bytes);
        for request in requests(&mut draw) {
            let mut sent = wire(&request, &server.key());
            let framing = ["content-length", "transfer-encoding"];
            let mut is_whole = !request.headers.iter().any(|(name, _)| framing.contains(&name.as_str()));
            if draw.one_in(8) {
                draw.damage(&mut sent);
                is_whole = false;
            }
            match ask(&server, &sent, is_whole) {
                Some(status) => {
                    assert!(status < 500 || matches!(status, 502 | 503), "{status} to {request:?}");
                    answered += 1;
                }
                None => closed += 1,
            }
        }
    }
    println!("{answered} answered, {closed} closed without an answer");
    assert!(answered > 500);
    server.client().get("/ready").expect(200);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

/// The request as HTTP/1.1 has it, on a connection of its own.
fn wire(request: &Request, key: &str) -> Vec<u8> {
    let Request { method, path, headers, body, .. } = request;
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n").into_bytes();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value).replace(KEY, key);
        bytes.extend(format!("{name}: {value}\r\n").into_bytes());
    }
    bytes.extend(format!("content-length: {}\r\n\r\n", body.len()).into_bytes());
    bytes.extend(body);
    bytes
}

/// The status, or none if the connection was closed without an answer. A request that may be waited for without end is
/// ended by its sender.
fn ask(server: &Server, bytes: &[u8], is_whole: bool) -> Option<u16> {
    let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("the server listens");
    stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
    // The server may answer and hang up before it has read everything.
    drop(stream.write_all(bytes));
    if !is_whole {
        drop(stream.shutdown(std::net::Shutdown::Write));
    }
    let mut answer = Vec::new();
    // So may a reset follow the answer.
    let read = stream.read_to_end(&mut answer);
    assert!(read.is_ok() || !is_timeout(&read), "no answer in {ANSWER_MAX:?} to {}", String::from_utf8_lossy(bytes));
    let text = String::from_utf8_lossy(&answer);
    text.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn is_timeout(read: &std::io::Result<usize>) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    read.as_ref().is_err_and(|error| matches!(error.kind(), TimedOut | WouldBlock))
}
