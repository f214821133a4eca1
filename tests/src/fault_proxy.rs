//! A proxy before an HTTP server that spoils what it is told to: answers that are errors, cut, slow, wrong, or none. Each
//! connection serves one request, and the request goes on as it came, so that its signature holds. Not here: what a test
//! expects of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Without the query, which has the signature.
    pub path: String,
    /// How often this path was asked for before, since the script was set.
    pub before: usize,
    /// Whether only a part was asked for.
    pub is_range: bool,
}

/// What becomes of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It goes on as it is.
    None,
    /// Another status in its place, without a body.
    Status(u16),
    /// Its body ends after so many bytes, whatever its header says.
    Cut(usize),
    /// Its body comes in pieces of so many bytes, with so long a wait after each.
    Slow(usize, Duration),
    /// The byte at this place of its body is another one.
    Wrong(usize),
    /// None: the connection is closed.
    HangUp,
}

type Script = Arc<dyn Fn(&Asked) -> Fault + Send + Sync>;

struct Shared {
    upstream: u16,
    script: Mutex<Script>,
    asked: Mutex<Vec<Asked>>,
    is_over: AtomicBool,
}

/// A proxy on a free loopback port, until it is dropped.
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// Before the server on this loopback port, spoiling nothing yet.
    ///
    /// # Panics
    /// If there is no port.
    #[must_use]
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let script: Script = Arc::new(|_| Fault::None);
        let shared = Arc::new(Shared {
            upstream,
            script: Mutex::new(script),
            asked: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut connections = Vec::new();
            for stream in listener.incoming().filter_map(Result::ok) {
                if own.is_over.load(Ordering::Relaxed) {
                    break;
                }
                let shared = Arc::clone(&own);
                // Who hangs up, on either side, ends the connection and nothing else.
                connections.push(std::thread::spawn(move || drop(serve(stream, &shared))));
            }
            connections.into_iter().for_each(|connection| drop(connection.join()));
        });
        Self { port, shared, thread: Some(thread) }
    }

    /// Its port on the loopback address.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Spoils by this script from now on, and forgets what was asked.
    ///
    /// # Panics
    /// If a script panicked before.
    pub fn set(&self, script: impl Fn(&Asked) -> Fault + Send + Sync + 'static) {
        *self.shared.script.lock().expect("no panic while held") = Arc::new(script);
        self.shared.asked.lock().expect("no panic while held").clear();
    }

    /// What was asked since the script was set.
    ///
    /// # Panics
    /// If a script panicked.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("no panic while held").clone()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Wakes the one who listens.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut head = String::new();
    let mut lines = BufReader::new(stream.try_clone()?);
    while !head.ends_with("\r\n\r\n") {
        if lines.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let target = head.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let is_range = head.lines().any(|line| line.to_ascii_lowercase().starts_with("range:"));
    let asked = {
        let mut all = shared.asked.lock().expect("no panic while held");
        let before = all.iter().filter(|asked| asked.path == path).count();
        let asked = Asked { path, before, is_range };
        all.push(asked.clone());
        asked
    };
    let script = Arc::clone(&shared.script.lock().expect("no panic while held"));
    let fault = script(&asked);
    match fault {
        Fault::HangUp => return stream.shutdown(Shutdown::Both),
        Fault::Status(status) => {
            let answer = format!("HTTP/1.1 {status} Told\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            return stream.write_all(answer.as_bytes());
        }
        _ => {}
    }
    let answer = ask(&head, shared.upstream)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let (head, body) = answer.split_at(end);
    let mut body = body.to_vec();
    stream.write_all(head)?;
    match fault {
        Fault::Cut(bytes) => body.truncate(bytes),
        Fault::Wrong(at) => body.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1),
        Fault::Slow(bytes, wait) => {
            for piece in body.chunks(bytes.max(1)) {
                stream.write_all(piece)?;
                std::thread::sleep(wait);
            }
            return stream.shutdown(Shutdown::Both);
        }
        _ => {}
    }
    stream.write_all(&body)?;
    stream.shutdown(Shutdown::Both)
}

/// The whole answer of the server, which is asked to close the connection after it.
fn ask(head: &str, upstream: u16) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    server.set_read_timeout(Some(Duration::from_secs(30)))?;
    let head = head.trim_end();
    server.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}
