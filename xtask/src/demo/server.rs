//! The demo's server process: started, awaited, asked to end. Not here: what is asked of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::shell::{self, Outcome};

const START_MAX: Duration = Duration::from_secs(60);
const READY_MAX: Duration = Duration::from_secs(180);
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// A running `tenon serve`; dropping it ends it.
pub(crate) struct Server {
    child: Child,
    url: String,
    data: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts the binary that was just built, and reads the address that it prints.
    ///
    /// # Errors
    /// If it does not start or prints none.
    pub(crate) fn start(base: &Path, data: &Path, port: u16) -> Outcome<Self> {
        let log = shell::target().join("demo-server.log");
        let mut command = Command::new(tenon());
        command.args(["serve", "--dev", "--listen", &format!("127.0.0.1:{port}")]);
        command.arg("--base").arg(base).arg("--data").arg(data);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut child = command.spawn().map_err(|error| format!("cannot start tenon: {error}"))?;
        let stdout = child.stdout.take().ok_or("no standard output")?;
        let (sender, address) = mpsc::sync_channel(1);
        // Reads on after the address, so that the server never writes into a full pipe; ends with the server.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(start) = line.find("http://") {
                    let url = line.get(start..).unwrap_or_default().split_whitespace().next().unwrap_or_default();
                    drop(sender.try_send(url.trim_end_matches('/').to_owned()));
                }
            }
        });
        let mut server = Self { child, url: String::new(), data: data.to_path_buf(), log };
        server.url = address.recv_timeout(START_MAX).map_err(|_| {
            drop(server.child.kill());
            format!("tenon serve did not start: {}", server.last_words())
        })?;
        Ok(server)
    }

    /// Waits until the base is loaded.
    ///
    /// # Errors
    /// If the server ends, or the base does not load in time.
    pub(crate) fn wait_until_ready(&mut self) -> Outcome {
        let started = Instant::now();
        let http = super::http()?.build()?;
        loop {
            if http.get(format!("{}/ready", self.url)).send().is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("tenon serve ended ({status}): {}", self.last_words()).into());
            }
            if started.elapsed() > READY_MAX {
                return Err(format!("the base did not load in {READY_MAX:?}; see {}", self.log.display()).into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The end of its log, and where the rest is.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        format!("{last} (its log is {})", self.log.display())
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What it logs.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// The file that holds the key of the development tenant.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.data.join("dev.key")
    }

    /// The key of the development tenant.
    ///
    /// # Errors
    /// If the server has not written it.
    pub(crate) fn key(&self) -> Outcome<String> {
        let path = self.key_file();
        let key = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(key.trim().to_owned())
    }

    /// A `tenon` command that talks to this server.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(tenon());
        command.args(arguments).args(["--url", &self.url, "--key-file"]).arg(self.key_file()).stdin(Stdio::null());
        command
    }

    /// Waits until the user interrupts us or the server ends.
    ///
    /// # Errors
    /// If signals cannot be awaited.
    pub(crate) fn wait_for_end(&mut self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let child = &mut self.child;
        runtime.block_on(async {
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            let mut poll = tokio::time::interval(Duration::from_millis(200));
            loop {
                tokio::select! {
                    interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
                    _ = terminate.recv() => return Ok(()),
                    _ = poll.tick() => if child.try_wait()?.is_some() { return Ok(()) },
                }
            }
        })
    }

    /// Asks the server to drain and end, and waits for it.
    ///
    /// # Errors
    /// If it does not end well.
    pub(crate) fn stop(&mut self) -> Outcome {
        if self.child.try_wait()?.is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        }
        let started = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("tenon serve ended badly: {status}").into()),
                None if started.elapsed() > DRAIN_MAX => break,
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        self.child.kill()?;
        Err(format!("tenon serve did not drain in {DRAIN_MAX:?}").into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

fn tenon() -> PathBuf {
    shell::target().join("debug").join("tenon")
}
