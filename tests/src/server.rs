//! A real server: the `tenon` binary on a free port with a data folder of its own, ended with the test. Not here: HTTP.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Client, base, places};

/// From start to an address; from an address to a loaded base.
const START_MAX: Duration = Duration::from_secs(60);
const READY_MAX: Duration = Duration::from_secs(120);
const EXIT_MAX: Duration = Duration::from_secs(60);
const LOG_MAX: Duration = Duration::from_secs(60);

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Arguments after `tenon serve --dev --base … --data … --listen 127.0.0.1:0`.
    pub arguments: Vec<String>,
    /// Go on with this data folder; a new one, removed at the end, if absent.
    pub data: Option<PathBuf>,
    /// Variables of the environment.
    pub environment: Vec<(&'static str, OsString)>,
}

impl Options {
    /// A new server that computes in f32, to compare with the golden outputs.
    #[must_use]
    pub fn f32() -> Self {
        Self { arguments: vec!["--precision".into(), "f32".into()], ..Self::default() }
    }
}

/// A running server. Dropping it kills the process; when the test process itself dies, so does the server.
pub struct Server {
    child: Child,
    guard: Child,
    url: String,
    data: PathBuf,
    scratch: Option<tempfile::TempDir>,
    authority: Option<String>,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts a server and waits until its base is loaded; `None` (said by [`crate::skip`]) where no base was fetched.
    ///
    /// # Panics
    /// If the binary is missing, or the server does not come up; the message has its log.
    #[must_use]
    pub fn start(test: &str, options: Options) -> Option<Self> {
        let Some(base) = base() else {
            crate::skip(test, "the base is not there (cargo xtask base)");
            return None;
        };
        Some(Self::start_on(&base, options))
    }

    /// Starts a server on this base and waits until it is loaded.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_on(base: &Path, options: Options) -> Self {
        Self::start_trusting(base, options, None)
    }

    /// The same for a server that speaks TLS, with a certificate that this authority (PEM) signed.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_trusting(base: &Path, options: Options, authority: Option<String>) -> Self {
        let scratch = options.data.is_none().then(|| tempfile::tempdir().expect("a temporary folder"));
        let data =
            options.data.or_else(|| scratch.as_ref().map(|folder| folder.path().join("data"))).expect("a folder");
        let mut command = tenon();
        command.args(["serve", "--dev", "--listen", "127.0.0.1:0", "--base"]).arg(base).arg("--data").arg(&data);
        command.args(options.arguments).envs(options.environment).env("RUST_LOG", "info").env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("tenon starts");
        let guard = guard(child.id(), scratch.as_ref().map(tempfile::TempDir::path));
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, address) = mpsc::sync_channel(64);
        collect(child.stdout.take().expect("piped"), Arc::clone(&log), Some(sender));
        collect(child.stderr.take().expect("piped"), Arc::clone(&log), None);
        let mut server = Self { child, guard, url: String::new(), data, scratch, authority, log };
        server.url = match address.recv_timeout(START_MAX) {
            Ok(url) => url,
            Err(_) => panic!("no line with an address came from tenon serve:\n{}", server.log()),
        };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&mut self) {
        let anyone = Client::trusting(&self.url, None, self.authority.as_deref());
        let started = Instant::now();
        while anyone.get("/ready").status != 200 {
            let exited = self.child.try_wait().expect("the child can be asked");
            assert!(exited.is_none(), "tenon serve ended with {exited:?}:\n{}", self.log());
            assert!(started.elapsed() < READY_MAX, "the base did not load in {READY_MAX:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `http://127.0.0.1:PORT`, or `https://…`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The key of the development tenant.
    #[must_use]
    pub fn key(&self) -> String {
        let path = self.data.join("dev.key");
        let key = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        key.trim().to_owned()
    }

    /// A client with the development key.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::trusting(&self.url, Some(self.key()), self.authority.as_deref())
    }

    /// What the server wrote so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().expect("no panic while held").clone()
    }

    /// What the server wrote so far, once there is this in it: what it writes comes through a pipe, and a moment later.
    ///
    /// # Panics
    /// If it is not there in a minute.
    pub fn wait_for_log(&self, text: &str) -> String {
        let started = Instant::now();
        loop {
            let log = self.log();
            if log.contains(text) {
                return log;
            }
            assert!(started.elapsed() < LOG_MAX, "no `{text}` in the log in {LOG_MAX:?}:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The server's data folder, to be kept: the next server may go on with it.
    #[must_use]
    pub fn keep_data(&mut self) -> Option<tempfile::TempDir> {
        self.scratch.take()
    }

    /// Asks the server to end, as an operator would.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Tells the server to read its certificate again.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the server can be signalled");
    }

    /// Ends the server in mid-flight, as a power cut would end its process.
    pub fn kill(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.wait();
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If the server does not end in a minute.
    pub fn wait(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be asked") {
                return status;
            }
            assert!(started.elapsed() < EXIT_MAX, "tenon did not end in {EXIT_MAX:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Threads that its process has; 0 where the system does not say.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.entries("task").count()
    }

    /// Files, pipes and connections that its process has open, but for the images of plugins' memories, which are kept with what
    /// was compiled; 0 where the system does not say.
    #[must_use]
    pub fn open_files(&self) -> usize {
        let is_image = |target: &Path| {
            let target = target.to_string_lossy();
            target.contains("memfd:wasm-memory-image") || target.contains(".cwasm")
        };
        self.entries("fd").filter(|file| !std::fs::read_link(file).is_ok_and(|target| is_image(&target))).count()
    }

    fn entries(&self, folder: &str) -> impl Iterator<Item = PathBuf> {
        let entries = std::fs::read_dir(format!("/proc/{}/{folder}", self.child.id()));
        entries.into_iter().flatten().flatten().map(|entry| entry.path())
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The guard first: it must not signal a process number that is free again.
        drop(self.guard.kill());
        drop(self.guard.wait());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The binary that was built beside this test.
///
/// # Panics
/// If it was not.
#[must_use]
pub fn tenon() -> Command {
    let binary = places::profile().join("tenon");
    assert!(binary.is_file(), "{} is missing: run `cargo build --workspace --bins` first", binary.display());
    let mut command = Command::new(binary);
    // What tests are told is no configuration.
    command.env_remove("TENON_CUDA_EMULATION");
    command
}

/// Runs `tenon` with these arguments to its end.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn run_tenon(arguments: &[&str]) -> Output {
    tenon().args(arguments).stdin(Stdio::null()).output().expect("tenon starts")
}

/// A process that reads from us and, when we are gone (even if we were killed), kills the server and removes its data.
pub(crate) fn guard(pid: u32, scratch: Option<&Path>) -> Child {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("cat >/dev/null; kill -9 {pid}; rm -rf \"$@\""), "guard"]).args(scratch);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().expect("sh starts")
}

/// Keeps what the server writes, and sends the address when a line has it. The thread ends with the server.
fn collect(from: impl Read + Send + 'static, log: Arc<Mutex<String>>, address: Option<mpsc::SyncSender<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let start = line.find("http://127.0.0.1:").or_else(|| line.find("https://127.0.0.1:"));
            if let (Some(sender), Some(start)) = (&address, start) {
                let rest = line.get(start..).unwrap_or_default();
                let url = rest.split([' ', '"']).next().unwrap_or_default();
                // Later lines with an address find nobody waiting.
                drop(sender.try_send(url.trim_end_matches(['/', '.', ',']).to_owned()));
            }
            let mut log = log.lock().expect("no panic while held");
            log.push_str(&line);
            log.push('\n');
        }
    });
}
