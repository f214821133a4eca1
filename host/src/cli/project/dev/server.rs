//! The host that `tenon dev --serve` starts for itself: `tenon serve --dev` on a free port of this machine, ended with it. Not here:
//! serving.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::Voice;
use crate::cli::failure::Failure;
use crate::cli::output::text;
use crate::cli::remote::{Connection, Remote};
use crate::error::Error;

/// How long the host may take to drain.
const STOP_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
    /// Start a host for the time being, and deploy to that
    #[arg(long, requires = "base")]
    serve: bool,
    /// The base model of that host
    #[arg(long, value_name = "PATH", requires = "serve")]
    base: Option<PathBuf>,
    /// Where that host keeps its state; a folder that is removed afterwards if absent
    #[arg(long, value_name = "DIR", requires = "serve")]
    data: Option<PathBuf>,
}

/// A host of one's own.
pub(super) struct OwnServer {
    child: Child,
    url: String,
    key_file: PathBuf,
    /// Held open: once it is ready it says no more than a few lines, which fit a pipe that nobody reads, but not one that is closed.
    _lines: Lines<BufReader<ChildStdout>>,
    _scratch: Option<TempDir>,
}

impl OwnServer {
    /// Starts it, if it is wanted, and waits until it is ready.
    pub(super) async fn start(arguments: &ServerArgs, voice: Voice) -> Result<Option<Self>, Failure> {
        let (true, Some(base)) = (arguments.serve, &arguments.base) else { return Ok(None) };
        let scratch = match arguments.data {
            Some(_) => None,
            None => Some(tempfile::tempdir().map_err(Error::io("cannot make a folder for the host's state"))?),
        };
        let data = match (&arguments.data, &scratch) {
            (Some(data), _) => data.clone(),
            (None, Some(scratch)) => scratch.path().to_path_buf(),
            (None, None) => return Err(Error::Internal("no folder for the host's state".into()).into()),
        };
        let program = std::env::current_exe().map_err(Error::io("cannot find this program's own file"))?;
        let mut command = Command::new(program);
        command.args(["serve", "--json", "--dev", "--listen", "127.0.0.1:0", "--log", "warn"]);
        command.arg("--base").arg(base).arg("--data").arg(&data);
        // Of its own group, so that Ctrl-C is this program's to pass on.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(Error::io("cannot start a host"))?;
        voice.say(&json!({"event": "starting"}), |_| "starting a host".to_owned())?;
        let output = child.stdout.take().ok_or_else(|| Error::Internal("the host has no output".into()))?;
        let (mut lines, mut url) = (BufReader::new(output).lines(), String::new());
        loop {
            let line = lines.next_line().await.map_err(Error::io("cannot read what the host says"))?;
            let Some(line) = line else {
                return Err(
                    Error::invalid("serve_failed", "serve", "the host did not start; what it said is above").into()
                );
            };
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            match text(&event, "event") {
                "listening" => text(&event, "url").clone_into(&mut url),
                "ready" => break,
                _ => {}
            }
        }
        voice.say(&json!({"event": "serving", "url": url, "data": data.display().to_string()}), |_| {
            format!("serving on {url}, key in {}", data.join("dev.key").display())
        })?;
        Ok(Some(Self { child, url, key_file: data.join("dev.key"), _lines: lines, _scratch: scratch }))
    }

    /// It, as the command line reaches it.
    pub(super) fn remote(&self, connection: &Connection) -> Result<Remote, Failure> {
        Remote::new(&connection.at(&self.url, &self.key_file))
    }

    /// Lets it drain, or ends it.
    pub(super) async fn stop(mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            let _gone_already = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(STOP_MAX, self.child.wait()).await.is_err() {
            let _gone_already = self.child.kill().await;
        }
    }
}
