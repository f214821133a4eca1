//! A real OCI registry: CNCF's Distribution as Debian packages it (`docker-registry`), on a loopback port, with its files in a folder of
//! its own, ended with the test; and `oras` of PyPI, which is another client. Not here: a registry that has the referrers API, which
//! this version does not (`memory_registry`).

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::repository;
use crate::server::guard;

/// From start to the line with its address.
const START_MAX: Duration = Duration::from_secs(60);

/// A running registry. Dropping it kills the process; when the test process itself dies, so does the registry.
pub struct Distribution {
    child: Child,
    guard: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Distribution {
    /// Who may use a registry that asks.
    pub const LOGIN: (&str, &str) = ("ann", "quiet-secret");
    /// Of that password, by bcrypt, in few rounds.
    const HASH: &str = "$2b$04$Hq1zt8IzrxDsy.fosz2ASeq5Xeaie3SFPhRRWU8lpIMISMPc3Ryvu";

    /// Starts the registry; `None` (said by [`crate::skip`]) where it was not installed. One that is private asks for
    /// [`Self::LOGIN`].
    ///
    /// # Panics
    /// If it does not come up; the message has its log.
    #[must_use]
    pub fn start(test: &str, is_private: bool) -> Option<Self> {
        let program = installed().map(|folder| folder.join("usr/bin/docker-registry")).filter(|path| path.is_file());
        let Some(program) = program else {
            crate::skip(test, "target/clients/registry is not there (cargo xtask test --stage clients says why)");
            return None;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, formatter: json}}\nstorage: {{filesystem: {{rootdirectory: '{place}/data'}}}}\n\
             http: {{addr: '127.0.0.1:0'}}\n"
        );
        if is_private {
            let file = folder.path().join("htpasswd");
            std::fs::write(&file, format!("{}:{}\n", Self::LOGIN.0, Self::HASH)).expect("written");
            config += &format!("auth: {{htpasswd: {{realm: tests, path: '{}'}}}}\n", file.display());
        }
        let file = folder.path().join("config.yml");
        std::fs::write(&file, config).expect("written");
        let mut command = Command::new(program);
        command.arg("serve").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("docker-registry starts");
        let guard = guard(child.id(), Some(folder.path()));
        let (sender, said) = mpsc::sync_channel(256);
        let errors = child.stderr.take().expect("piped");
        // Ends with the process; what comes after the address is read and dropped, so that the pipe never fills.
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                drop(sender.try_send(line));
            }
        });
        let mut log = String::new();
        let address = loop {
            let Ok(line) = said.recv_timeout(START_MAX) else { panic!("docker-registry said no address:\n{log}") };
            let message: Value = serde_json::from_str(&line).unwrap_or_default();
            let text = message["msg"].as_str().unwrap_or_default();
            if let Some(address) = text.strip_prefix("listening on ") {
                break address.to_owned();
            }
            log += &format!("{line}\n");
        };
        Some(Self { child, guard, address, folder })
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Runs the other client with these arguments in this folder; what it printed.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn oras(&self, folder: &Path, arguments: &[&str]) -> Value {
        let python = installed().expect("the registry is").join("bin").join("python");
        let script = repository().join("tests/clients/registry/peer.py");
        let output = Command::new(python)
            .arg(script)
            .args(arguments)
            .current_dir(folder)
            // It looks for logins, and there are none of this machine's to be sent.
            .env("HOME", self.folder.path())
            .output()
            .expect("python starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(text.lines().last().unwrap_or_default()).expect("its last line is JSON")
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        // The guard first: it must not signal a process number that is free again.
        drop(self.guard.kill());
        drop(self.guard.wait());
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn installed() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let folder = target.join("clients").join("registry");
    folder.join("installed").is_file().then_some(folder)
}
