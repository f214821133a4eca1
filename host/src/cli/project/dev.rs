//! `tenon dev`: builds and deploys a project whenever its files change, and prints the function's log meanwhile. With `--serve` it has
//! a host of its own. The project's `manifest.json`, which `tenon new` writes for an agent, is deployed with it. Not here: building (`build.rs`), deploying (`cli/client.rs`).
//!
//! Files are looked at, not watched: a few times a second the times and sizes of a project's few files, which works on any file
//! system and needs no library.

mod server;
mod watch;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::build;
use crate::cli::client::{ManifestArgs, put_version};
use crate::cli::failure::Failure;
use crate::cli::functions::Tail;
use crate::cli::output::{Printer, cell, printable, put, read, text};
use crate::cli::remote::{Connection, Remote};
use crate::error::Error;
use server::{OwnServer, ServerArgs};
use watch::Watched;

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Name of the function; the folder's if absent
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    manifest: ManifestArgs,
    /// Build and deploy once, and end; fails if either does
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    connection: Connection,
}

/// The terminal's interrupt, its end, or a polite request to end: a host of our own goes with us.
async fn interrupted() {
    let ended = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = ended(SignalKind::terminate()) => {}
        () = ended(SignalKind::hangup()) => {}
    }
}

/// Goes on until it is interrupted. What does not build or is refused is said, and the next change tries again.
pub(crate) async fn dev(arguments: DevArgs, printer: Printer) -> Result<(), Failure> {
    let DevArgs { folder, name, manifest, once, server, connection } = arguments;
    let folder = folder.canonicalize().map_err(Error::io(format!("cannot open {}", folder.display())))?;
    let name = match name {
        Some(name) => name,
        None => folder_name(&folder)?,
    };
    let voice = Voice { printer, is_quiet: once && printer.json };
    let mut interrupted = pin!(interrupted());
    let own = tokio::select! {
        // First, so that signals are heard before anything begins.
        biased;
        _ = &mut interrupted => return ended(once),
        own = OwnServer::start(&server, voice) => own?,
    };
    let remote = match &own {
        Some(own) => own.remote(&connection)?,
        None => Remote::new(&connection)?,
    };
    let round = Round { folder: &folder, name: &name, manifest: &manifest, remote: &remote, voice };
    let mut tail = Tail::new(&name);
    let mut deployed = None;
    let mut watched = Watched::look(&folder)?;
    if !once {
        let files = watched.files();
        voice.say(&json!({"event": "watching", "folder": folder.display().to_string(), "files": files}), |_| {
            format!("watching {} ({files} files); Ctrl-C ends it", folder.display())
        })?;
        // Lines from before are not this run's.
        tail.skip(&remote).await;
    }
    let mut is_done = false;
    loop {
        let outcome = tokio::select! {
            _ = &mut interrupted => break,
            outcome = round.run(&mut deployed) => outcome,
        };
        match outcome {
            Ok(()) => {}
            Err(Failure::NobodyReads) => return Err(Failure::NobodyReads),
            Err(failure) if once => return Err(failure),
            Err(failure) => failure.say(printer.json),
        }
        if once {
            is_done = true;
            break;
        }
        tokio::select! {
            _ = &mut interrupted => break,
            changed = watched.changed() => changed?,
            failure = tail.follow(&remote, printer), if deployed.is_some() => return Err(failure),
        }
    }
    if let Some(own) = own {
        own.stop().await;
    }
    ended(once && !is_done)
}

/// What an interrupt comes to: a loop ends well, and what was to be done once was not.
fn ended(is_undone: bool) -> Result<(), Failure> {
    if is_undone {
        return Err(Error::invalid("interrupted", "once", "interrupted before anything was deployed").into());
    }
    Ok(())
}

fn folder_name(folder: &Path) -> Result<String, Error> {
    let name = folder.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    name.ok_or_else(|| Error::invalid("invalid_request", "name", "the folder has no name for a function: give --name"))
}

/// Builds and deploys.
struct Round<'a> {
    folder: &'a Path,
    name: &'a str,
    manifest: &'a ManifestArgs,
    remote: &'a Remote,
    voice: Voice,
}

impl Round<'_> {
    /// `deployed` is the digest of what is deployed, and the manifest that it was deployed with.
    async fn run(&self, deployed: &mut Option<(String, Value)>) -> Result<(), Failure> {
        let begun = Instant::now();
        self.voice.say(&json!({"event": "building"}), |_| "building".to_owned())?;
        let folder = self.folder.to_path_buf();
        let built = tokio::task::spawn_blocking(move || build::component(&folder, None)).await;
        let built = built.map_err(|error| Error::Internal(format!("the build did not return: {error}")))??;
        let problems: Vec<&str> =
            built.get("problems").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        if !problems.is_empty() {
            let message = format!("no host would take it: {}", problems.join("; "));
            return Err(Error::invalid("build_failed", "", message).into());
        }
        let manifest = self.manifest.read_of(self.folder)?;
        let now = (text(&built, "digest").to_owned(), Value::Object(manifest.clone()));
        if deployed.as_ref() == Some(&now) {
            let event = json!({"event": "unchanged", "plugin": now.0});
            return self.voice.say(&event, |_| "the component is the same; nothing to deploy".to_owned());
        }
        let component = read(Path::new(text(&built, "component")))?;
        let (bytes, built_ms) = (component.len(), begun.elapsed().as_millis());
        let put = put_version(self.remote, self.name, (component, Vec::new()), manifest, true).await?;
        *deployed = Some(now);
        let all_ms = begun.elapsed().as_millis();
        let event = json!({
            "event": "deployed", "function": self.name, "version": put.get("version"), "live": put.get("live"),
            "plugin": put.get("plugin"), "bytes": bytes, "built_ms": u64::try_from(built_ms).ok(),
            "deployed_ms": u64::try_from(all_ms).ok(),
        });
        let voice = Voice { is_quiet: false, ..self.voice };
        voice.say(&event, |event| {
            let version = cell(event, "version");
            format!(
                "{} version {version} is live: {bytes} bytes, built in {built_ms} ms, live in {all_ms} ms",
                self.name
            )
        })
    }
}

/// Says how the work goes, line by line. `--once --json` prints what came of it and nothing else.
#[derive(Clone, Copy)]
struct Voice {
    printer: Printer,
    is_quiet: bool,
}

impl Voice {
    fn say(self, event: &Value, line: impl FnOnce(&Value) -> String) -> Result<(), Failure> {
        match (self.is_quiet, self.printer.json) {
            (true, _) => Ok(()),
            (false, true) => put(&format!("{event}\n")),
            (false, false) => put(&format!("tenon dev: {}\n", printable(&line(event)))),
        }
    }
}
