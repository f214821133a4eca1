//! The servers under load as processes of their own: `tenon serve` in the release profile, and llama.cpp's. Not here: the load.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Outcome;
use crate::adapters::RandomAdapter;
use crate::load::{Http, Kind, Target};
use crate::machine::peak_resident_bytes;

const START_MAX: Duration = Duration::from_secs(120);
/// From a signal to the end of a process.
const STOP_MAX: Duration = Duration::from_secs(60);

/// A server; killed when dropped, or when this program dies.
pub(crate) struct Server {
    child: Child,
    guard: Child,
    /// Where it answers, and how.
    pub(crate) target: Target,
    log: PathBuf,
    // Removed with it, where it is the server's own.
    _folder: Option<tempfile::TempDir>,
}

impl Server {
    /// `tenon serve` on the base with settings of its own (names of `TENON_` variables), once it is ready.
    ///
    /// # Errors
    /// If it does not come up; the message names its log.
    pub(crate) fn tenon(http: &Http, program: &Path, base: &Path, settings: &[(&str, String)]) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let data = folder.path().join("data");
        let mut server = Self::tenon_on(http, program, base, &data, settings)?;
        server._folder = Some(folder);
        Ok(server)
    }

    /// The same on a data folder that stays.
    ///
    /// # Errors
    /// As for [`Self::tenon`].
    pub(crate) fn tenon_on(
        http: &Http,
        program: &Path,
        base: &Path,
        data: &Path,
        settings: &[(&str, String)],
    ) -> Outcome<Self> {
        let port = free_port()?;
        let mut command = Command::new(program);
        command.args(["serve", "--dev", "--listen", &format!("127.0.0.1:{port}"), "--base"]).arg(base);
        command.arg("--data").arg(data).env("RUST_LOG", "warn").env("NO_COLOR", "1");
        // What the caller's shell has set for a host of their own does not count here.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TENON_")) {
            command.env_remove(name);
        }
        command.envs(settings.iter().map(|(name, value)| (format!("TENON_{name}"), value)));
        let target = Target { kind: Kind::Tenon, url: format!("http://127.0.0.1:{port}"), key: None };
        let mut server = Self::start(command, target)?;
        server.wait_for(http, "/ready")?;
        server.target.key = Some(std::fs::read_to_string(data.join("dev.key"))?.trim().to_owned());
        Ok(server)
    }

    /// `llama-server` on a model, with so many slots for requests of so many tokens, and these adapters loaded but applied only
    /// where a request says so. Its caches of finished prompts are off: no prompt comes twice.
    ///
    /// # Errors
    /// If it does not come up; the message names its log.
    pub(crate) fn llama(
        http: &Http,
        program: &Path,
        model: &Path,
        (slots, tokens_each, threads): (usize, usize, usize),
        adapters: &[PathBuf],
    ) -> Outcome<Self> {
        let port = free_port()?;
        let mut command = Command::new(program);
        command.arg("--model").arg(model).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--parallel", &slots.to_string(), "--ctx-size", &(slots * tokens_each).to_string()]);
        command.args(["--threads", &threads.to_string(), "--threads-batch", &threads.to_string()]);
        // A thread for each connection, or streams would wait for one beside free slots.
        command.args(["--threads-http", "64"]);
        command.args(["--cache-ram", "0", "--ctx-checkpoints", "0", "--no-webui", "--log-disable"]);
        if !adapters.is_empty() {
            let files: Vec<String> = adapters.iter().map(|file| file.display().to_string()).collect();
            command.args(["--lora-init-without-apply", "--lora", &files.join(",")]);
        }
        let target = Target { kind: Kind::LlamaServer, url: format!("http://127.0.0.1:{port}"), key: None };
        let mut server = Self::start(command, target)?;
        server.wait_for(http, "/health")?;
        Ok(server)
    }

    fn start(mut command: Command, target: Target) -> Outcome<Self> {
        let log =
            std::env::temp_dir().join(format!("tenon-bench-{}.log", target.url.rsplit(':').next().unwrap_or("0")));
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        // Its input ends when this program does, however it ends.
        let mut guard = Command::new("sh");
        guard.args(["-c", &format!("cat >/dev/null; kill -9 {}", child.id())]).stdin(Stdio::piped());
        guard.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { child, guard: guard.spawn()?, target, log, _folder: None })
    }

    fn wait_for(&mut self, http: &Http, path: &str) -> Outcome {
        let started = Instant::now();
        while http.get(&self.target, path).map(|(status, _)| status).ok() != Some(200) {
            let ended = self.child.try_wait()?;
            if ended.is_some() || started.elapsed() > START_MAX {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let last = log.lines().rev().take(3).collect::<Vec<_>>().join(" | ");
                return Err(format!("a server did not come up ({ended:?}): {last}; see {}", self.log.display()).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Uploads random adapters 0, 1, … as `random-0`, `random-1`, ….
    ///
    /// # Errors
    /// If one is refused.
    pub(crate) fn upload(&self, http: &Http, adapter: &RandomAdapter<'_>, number: usize) -> Outcome {
        http.upload(&self.target, &alias(number), adapter.peft_config(), adapter.peft_weights())
    }

    /// The process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory it had, in bytes.
    pub(crate) fn peak_bytes(&self) -> Option<u64> {
        peak_resident_bytes(self.pid())
    }

    /// Asks it to end, as an operator would, and waits for that: what it keeps is whole then.
    ///
    /// # Errors
    /// If it does not end, or not well.
    pub(crate) fn stop(mut self) -> Outcome {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let started = Instant::now();
        while started.elapsed() < STOP_MAX {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("a server ended with {status}: {}", self.log()).into()),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Err("a server does not end when it is asked to".into())
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What it wrote.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The guard first: it must not signal a process number that is free again.
        drop(self.guard.kill());
        drop(self.guard.wait());
        drop(self.child.kill());
        drop(self.child.wait());
        // A log that is not there is no loss.
        drop(std::fs::remove_file(&self.log));
    }
}

/// What random adapter number so-and-so is called on our server.
pub(crate) fn alias(number: usize) -> String {
    format!("random-{number}")
}

/// A port that was free a moment ago.
fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
