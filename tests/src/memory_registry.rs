//! A registry in memory, as much of one as pushing and pulling needs, with the referrers API of the OCI distribution 1.1. For tests
//! that must run where no real registry is installed, and for what the real one does not have. Not here: a judge of what is pushed,
//! which is `distribution`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

#[derive(Default)]
struct Contents {
    /// By the path under which it is asked for.
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, (String, Vec<u8>)>,
    /// Descriptors by the path of what they refer to.
    referrers: BTreeMap<String, Vec<Value>>,
}

/// A registry on a free port of the loopback address, until it is dropped.
pub struct MemoryRegistry {
    address: SocketAddr,
    contents: Arc<Mutex<Contents>>,
    is_closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A request, read to its end.
struct Asked {
    method: String,
    path: String,
    query: String,
    content_type: String,
    body: Vec<u8>,
}

impl MemoryRegistry {
    /// Starts it.
    ///
    /// # Panics
    /// If there is no port.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let contents = Arc::new(Mutex::new(Contents::default()));
        let is_closed = Arc::new(AtomicBool::new(false));
        let (kept, closed) = (Arc::clone(&contents), Arc::clone(&is_closed));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if closed.load(Ordering::Relaxed) {
                    return;
                }
                // One after the other: each connection has one request.
                let _hung_up = serve(stream, &kept);
            }
        });
        Self { address, contents, is_closed, thread: Some(thread) }
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Paths of all manifests, by tag and by digest.
    ///
    /// # Panics
    /// If the server did.
    #[must_use]
    pub fn manifests(&self) -> Vec<String> {
        self.contents.lock().expect("no panic").manifests.keys().cloned().collect()
    }
}

impl Drop for MemoryRegistry {
    fn drop(&mut self) {
        self.is_closed.store(true, Ordering::Relaxed);
        // So that it looks.
        drop(TcpStream::connect(self.address));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn serve(stream: TcpStream, contents: &Mutex<Contents>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut asked =
        Asked { method, path: path.to_owned(), query: query.to_owned(), content_type: String::new(), body: Vec::new() };
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "content-type" => asked.content_type = value.to_owned(),
            _ => {}
        }
    }
    asked.body.resize(length, 0);
    reader.read_exact(&mut asked.body)?;
    let (status, headers, body) = answer(&asked, &mut contents.lock().expect("no panic"));
    let mut head = format!("HTTP/1.1 {status} Kept\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut stream = stream;
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if asked.method != "HEAD" {
        stream.write_all(&body)?;
    }
    stream.flush()
}

type Reply = (u16, Vec<(&'static str, String)>, Vec<u8>);

fn answer(asked: &Asked, contents: &mut Contents) -> Reply {
    let none = || (404, Vec::new(), Vec::new());
    let Asked { method, path, query, content_type, body } = asked;
    match method.as_str() {
        "POST" if path.ends_with("/blobs/uploads/") => {
            (202, vec![("Location", format!("{path}one?state=a"))], Vec::new())
        }
        "PUT" if path.ends_with("/blobs/uploads/one") => {
            let digest = query.split('&').find_map(|pair| pair.strip_prefix("digest=")).unwrap_or_default();
            let digest = digest.replace("%3A", ":");
            contents.blobs.insert(path.replace("uploads/one", &digest), body.clone());
            (201, Vec::new(), Vec::new())
        }
        "PUT" if path.contains("/manifests/") => {
            let manifest: Value = serde_json::from_slice(body).unwrap_or_default();
            let (folder, name) = path.rsplit_once('/').unwrap_or_default();
            contents.manifests.insert(path.clone(), (content_type.clone(), body.clone()));
            let Some(subject) = manifest["subject"]["digest"].as_str() else { return (201, Vec::new(), Vec::new()) };
            let of = format!("{}/referrers/{subject}", folder.trim_end_matches("/manifests"));
            let descriptor = json!({
                "mediaType": content_type, "digest": name, "size": body.len(), "artifactType": manifest["artifactType"],
            });
            contents.referrers.entry(of).or_default().push(descriptor);
            (201, vec![("OCI-Subject", subject.to_owned())], Vec::new())
        }
        "GET" | "HEAD" if path.contains("/referrers/") => {
            let manifests = contents.referrers.get(path).cloned().unwrap_or_default();
            let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
            (200, Vec::new(), index.to_string().into_bytes())
        }
        "GET" | "HEAD" if path.contains("/manifests/") => {
            // A tag's manifest is found by its digest too only where it was pushed so: that is for real registries.
            contents
                .manifests
                .get(path)
                .map_or_else(none, |(kind, bytes)| (200, vec![("Content-Type", kind.clone())], bytes.clone()))
        }
        "GET" | "HEAD" => contents.blobs.get(path).map_or_else(none, |bytes| (200, Vec::new(), bytes.clone())),
        _ => (405, Vec::new(), Vec::new()),
    }
}
