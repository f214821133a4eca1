//! What the host stands on: its data directory, base, sandbox, port and receipts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::Base;
use plugin::{CompilerCommand, PluginHost, PluginHostConfig, PluginLimits};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Check;
use super::machine::mib;
use crate::cli::COMPILE_COMMAND;
use crate::config::Config;
use crate::receipt::{PublicKeys, ReceiptLog};
use crate::store::{EmbeddedStore, StoreError};
use crate::tenants::Tenants;

/// Below this, a host would soon not be able to write receipts.
const DISK_BYTES_MIN: u64 = 64 << 20;
/// Below this, someone should look.
const DISK_BYTES_LOW: u64 = 1 << 30;
/// How long a host may take to say that it is well.
const HEALTH_MAX: Duration = Duration::from_secs(3);

/// File systems by their magic number: those that a person would ask about.
const FILE_SYSTEMS: [(u64, &str); 12] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlayfs"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
];

/// Whether state can be kept, and on what.
pub(super) fn directory(data: &Path) -> Vec<Check> {
    let name = "data directory";
    let (existing, is_new) = (existing(data), !data.is_dir());
    let probe = existing.join(format!(".tenon-doctor-{}", std::process::id()));
    let written =
        std::fs::OpenOptions::new().write(true).create_new(true).open(&probe).and_then(|file| file.sync_all());
    // Whatever came of it must not stay.
    drop(std::fs::remove_file(&probe));
    let place = if is_new { format!("{} will be made", data.display()) } else { data.display().to_string() };
    let written = match written {
        Ok(()) => Check::ok(name, format!("{place}, writable")),
        Err(error) => {
            let advice =
                format!("give this user write access to {}, or choose another with --data", existing.display());
            Check::fail(name, format!("{place}: {error}"), advice)
        }
    };
    vec![written, file_system(&existing)]
}

fn file_system(folder: &Path) -> Check {
    let name = "file system";
    let kind = match rustix::fs::statfs(folder) {
        Ok(found) => u64::try_from(found.f_type).unwrap_or_default() & 0xffff_ffff,
        Err(error) => return Check::warn(name, error.to_string(), "check the mount"),
    };
    let known = FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name);
    match known {
        Some(kind @ ("nfs" | "cifs" | "smb2" | "fuse" | "9p")) => {
            Check::warn(name, kind, "locks and fsync are not sure to hold over a network; use a local disk")
        }
        Some("tmpfs") => Check::warn(name, "tmpfs", "it is lost when the machine stops; use a disk"),
        Some("overlayfs") => Check::warn(name, "overlayfs", "it is lost with the container; mount a volume"),
        Some(kind) => Check::ok(name, kind),
        None => Check::ok(name, format!("of kind {kind:#x}")),
    }
}

/// Room for receipts and adapters.
pub(super) fn disk(data: &Path) -> Check {
    let name = "disk";
    match rustix::fs::statvfs(existing(data)) {
        Err(error) => Check::warn(name, error.to_string(), "check the mount"),
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{} free", mib(free));
            match free {
                free if free < DISK_BYTES_MIN => Check::fail(name, text, "make room: receipts could not be written"),
                free if free < DISK_BYTES_LOW => Check::warn(name, text, "make room before it runs out"),
                _ => Check::ok(name, text),
            }
        }
    }
}

/// The folder itself, or the nearest above it that exists.
fn existing(data: &Path) -> PathBuf {
    let absolute = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    absolute.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

/// Whether the base can be read and served, down to its last tensor's place.
pub(super) async fn base(path: &Path) -> Option<Check> {
    let name = "base";
    let file = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || Base::open(&file)).await.ok()?;
    Some(match opened {
        Ok(base) => {
            let config = base.config();
            let sizes =
                format!("{} layers, hidden {}, context {}", config.layers, config.hidden, config.context_tokens_max);
            Check::ok(name, format!("{} ({}, {sizes}), BLAKE3 {}", base.name(), base.architecture(), base.digest()))
        }
        Err(error) => {
            let found = format!("{}: {}", path.display(), super::super::failure::chain(&error));
            Check::fail(
                name,
                found,
                "fetch it again, or give a llama or qwen3 as a GGUF file or a folder of safetensors files",
            )
        }
    })
}

/// Whether plugins could be compiled and run.
pub(super) async fn sandbox() -> Check {
    let name = "sandbox";
    let advice = "plugins cannot run here; the container or kernel may forbid executable memory or child processes";
    match self_test().await {
        Ok(confined) => Check::ok(name, format!("a component was compiled in its own process ({confined}), and ran")),
        Err(reason) => Check::fail(name, reason, advice),
    }
}

async fn self_test() -> Result<String, String> {
    // Nobody else can have made this folder: compiled code is loaded from it.
    let random = getrandom::u64().map_err(|error| error.to_string())?;
    let scratch = std::env::temp_dir().join(format!("tenon-doctor-{random:016x}"));
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let config = PluginHostConfig {
        cache_dir: scratch.clone(),
        compiler: CompilerCommand { program, arguments: vec![COMPILE_COMMAND.into()] },
        limits: PluginLimits::default(),
        instances_max: 1,
        cache_bytes_max: 1 << 20,
        images_max: 16,
    };
    let tested = match PluginHost::new(config) {
        Ok(host) => host.self_test().await,
        Err(error) => Err(error),
    };
    drop(std::fs::remove_dir_all(&scratch));
    tested.map_err(|error| error.to_string())
}

/// Whether the address is free, or a host answers there; and whether it is taken by what may be this host.
pub(super) async fn port(config: &Config) -> (Check, bool) {
    let (name, listen) = ("address", config.listen);
    let error = match std::net::TcpListener::bind(listen) {
        Ok(_free) => return (Check::ok(name, format!("{listen} is free")), false),
        Err(error) => error,
    };
    if error.kind() != std::io::ErrorKind::AddrInUse {
        let advice = "choose an address of this machine and a port above 1023";
        return (Check::fail(name, format!("{listen}: {error}"), advice), false);
    }
    if config.tls.is_some() {
        let advice = "if it is not this host, choose another port";
        return (Check::warn(name, format!("{listen} is taken (with TLS it is not asked by whom)"), advice), true);
    }
    match tokio::time::timeout(HEALTH_MAX, health(listen)).await {
        Ok(Some(version)) => (Check::ok(name, format!("a host of version {version} answers on {listen}")), true),
        _ => {
            let advice = "stop it, or choose another port";
            (Check::fail(name, format!("something else listens on {listen}"), advice), false)
        }
    }
}

/// The version of the host that answers there.
async fn health(listen: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(listen).await.ok()?;
    let request = format!("GET /health HTTP/1.1\r\nhost: {listen}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.take(64 << 10).read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let body: Value = serde_json::from_str(body).ok()?;
    (body.get("status")? == "ok").then(|| body.get("version")?.as_str().map(str::to_owned))?
}

/// Whether every tenant's chain holds, if no host has the database open; `answers` says that one is up where this one would be.
pub(super) async fn receipts(data: &Path, answers: bool) -> Check {
    let name = "receipts";
    if !data.join("state.redb").is_file() {
        return Check::ok(name, "none yet");
    }
    let store = match EmbeddedStore::open(data).await {
        Ok(store) => store,
        Err(StoreError::InUse(_)) if !answers => {
            let advice = "stop it, or choose another data directory with --data";
            return Check::fail(name, "a running host has this data directory, at another address", advice);
        }
        Err(StoreError::InUse(_)) => {
            return Check::ok(name, "a running host has them; check them with `tenon receipt verify`");
        }
        Err(error) => {
            let advice = "restore the data directory from a backup";
            return Check::fail(name, super::super::failure::chain(&error), advice);
        }
    };
    match verify(data, store).await {
        Ok(text) => Check::ok(name, text),
        Err(text) => Check::fail(name, text, "keep a copy, and restore the data directory from a backup"),
    }
}

async fn verify(data: &Path, store: EmbeddedStore) -> Result<String, String> {
    let keys_file = data.join("receipt.pub");
    if !keys_file.is_file() {
        return Ok("none yet".to_owned());
    }
    let keys = PublicKeys::read(&keys_file).map_err(|error| error.to_string())?;
    let store = std::sync::Arc::new(store);
    let tenants = Tenants::new(store.clone()).list_tenants().await.map_err(|error| error.to_string())?;
    let checked = tokio::task::spawn_blocking(move || {
        let (mut records, mut chains) = (0, 0);
        for tenant in &tenants {
            let checked = ReceiptLog::check_stored(&store.database(), tenant, &keys);
            let checked = checked.map_err(|error| super::super::failure::chain(&error))?;
            let verified = checked.map_err(|fault| format!("the chain of {tenant} breaks: {fault}"))?;
            records += verified.records;
            chains += u64::from(verified.records > 0);
        }
        Ok(format!("{records} records in {chains} chains verified"))
    });
    checked.await.map_err(|error| error.to_string())?
}
