//! An HTTP server within a test that does what it is told, wrong things too: cut bodies, lies about lengths, endless bytes. Each
//! connection serves one request. Not here: what a test expects.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// With the query.
    pub(crate) path: String,
    /// How often this path was asked for before.
    pub(crate) before: usize,
    headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The first byte of the range that was asked for.
    pub(crate) fn range_first(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is sent in answer to a request.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    /// What the header says; without one the connection's end is the body's.
    length: Option<usize>,
    body: Vec<u8>,
    /// After each so many bytes, so long a wait.
    pace: Option<(usize, Duration)>,
    is_endless: bool,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), length: Some(0), body: Vec::new(), pace: None, is_endless: false }
    }

    pub(crate) fn ok(body: &[u8]) -> Self {
        Self { length: Some(body.len()), body: body.to_vec(), ..Self::status(200) }
    }

    /// What an honest server answers: the rest, if a range was asked for and the tag is still the same.
    pub(crate) fn honest(body: &[u8], tag: &str, request: &Seen) -> Self {
        match request.range_first() {
            Some(first) if request.header("if-range") == Some(tag) && first < body.len() => {
                let range = format!("bytes {first}-{}/{}", body.len() - 1, body.len());
                Self::part(&body[first..], &range, tag)
            }
            _ => Self::ok(body).with("ETag", tag),
        }
    }

    pub(crate) fn part(body: &[u8], range: &str, tag: &str) -> Self {
        Self { status: 206, ..Self::ok(body) }.with("Content-Range", range).with("ETag", tag)
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::status(302).with("Location", to)
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Ends after so many bytes, whatever was said.
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.body.truncate(bytes);
        self
    }

    pub(crate) fn saying(mut self, length: Option<usize>) -> Self {
        self.length = length;
        self
    }

    pub(crate) fn slowly(mut self, bytes: usize, wait: Duration) -> Self {
        self.pace = Some((bytes, wait));
        self
    }

    /// Sends the body again and again.
    pub(crate) fn endless(mut self) -> Self {
        (self.is_endless, self.length) = (true, None);
        self
    }
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A server on a free port of the loopback address, until it is dropped.
#[derive(Debug)]
pub(crate) struct FaultServer {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl FaultServer {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, log): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&seen));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&script), Arc::clone(&log)));
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Script>, log: Arc<Mutex<Vec<Seen>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let path = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    let headers = lines.filter_map(header).collect();
    let request = {
        let mut log = log.lock().expect("no panic");
        let before = log.iter().filter(|seen| seen.path == path).count();
        let request = Seen { path, before, headers };
        log.push(request.clone());
        request
    };
    let reply = script(&request);
    // Who hangs up in the middle is served no longer.
    let _hung_up = send(&mut stream, &reply).await;
}

async fn send(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Told\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = reply.length {
        head += &format!("Content-Length: {length}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    // What is endless goes fast: small pieces would take their time to pass a limit.
    let body = if reply.is_endless { reply.body.repeat(1000) } else { reply.body.clone() };
    let (piece, wait) = reply.pace.unwrap_or((body.len().max(1), Duration::ZERO));
    loop {
        for bytes in body.chunks(piece) {
            stream.write_all(bytes).await?;
            stream.flush().await?;
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
        if !reply.is_endless {
            return stream.shutdown().await;
        }
    }
}
