//! A host for one test, the guests, and capabilities that the test can look into.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use plugin::{
    CapabilityError, Catalog, CatalogEntry, Clock, CompilerCommand, ComponentSource, LogLevel, LogSink, Nothing,
    OwnLimits, PluginError, PluginHost, PluginHostConfig, PluginInstance, PluginLimits, Residency, Session,
};
use tempfile::TempDir;
use types::{Digest, InvocationRequest};

/// Memories of compiled components that a host keeps: more than most tests have.
pub(crate) const IMAGES_MAX: u64 = 48;

/// A host with its own cache folder.
pub(crate) struct Setup {
    pub(crate) host: PluginHost,
    pub(crate) cache: TempDir,
}

/// Limits for a loaded test machine: time on the wall is generous, the rest as it is.
pub(crate) fn limits() -> PluginLimits {
    PluginLimits { call_wall_ms_max: 60_000, ..PluginLimits::default() }
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self::with(limits())
    }

    pub(crate) fn with(limits: PluginLimits) -> Self {
        let cache = tempfile::tempdir().expect("a folder");
        Self { host: host(cache.path(), limits, compiler()), cache }
    }

    /// Admits a guest and starts it.
    pub(crate) async fn start(&self, name: &str) -> PluginInstance {
        self.start_with(name, session()).await
    }

    pub(crate) async fn start_with(&self, name: &str, session: Session) -> PluginInstance {
        let digest = self.host.admit(guest(name)).await.expect("admitted");
        self.host.start(digest, &Nowhere, session).await.expect("started")
    }
}

pub(crate) fn host(cache: &Path, limits: PluginLimits, compiler: CompilerCommand) -> PluginHost {
    let config = PluginHostConfig {
        cache_dir: cache.to_owned(),
        compiler,
        limits,
        instances_max: 4,
        cache_bytes_max: 64 << 20,
        images_max: IMAGES_MAX,
    };
    PluginHost::new(config).expect("a host")
}

pub(crate) fn compiler() -> CompilerCommand {
    CompilerCommand { program: PathBuf::from(env!("CARGO_BIN_EXE_plugin-compiler")), arguments: Vec::new() }
}

/// A compiler that must not be needed.
pub(crate) fn no_compiler() -> CompilerCommand {
    CompilerCommand { program: PathBuf::from("/nonexistent/compiler"), arguments: Vec::new() }
}

/// A guest as it was built here, if that is newer than every source, else as it is in the fixtures.
pub(crate) fn guest(name: &str) -> Bytes {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let built = root.join("target/guests").join(format!("{name}.wasm"));
    let fixture = root.join("tests/fixtures/guests").join(format!("{name}.wasm"));
    let sources = ["wit", "sdk/rust/src", "plugins/examples", "plugins/adversarial", "plugins/testing"];
    let newest = sources.iter().filter_map(|folder| newest(&root.join(folder))).max();
    let fresh = built.metadata().and_then(|metadata| metadata.modified()).is_ok_and(|time| Some(time) >= newest);
    std::fs::read(if fresh { built } else { fixture }).expect("a guest").into()
}

fn newest(folder: &Path) -> Option<SystemTime> {
    let entries = std::fs::read_dir(folder).ok()?.flatten();
    entries
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            if metadata.is_dir() { newest(&entry.path()) } else { metadata.modified().ok() }
        })
        .max()
}

pub(crate) fn request(text: &str) -> InvocationRequest {
    InvocationRequest {
        id: "request-1".into(),
        function: "test".into(),
        version: 1,
        text: text.into(),
        input_json: "null".into(),
        messages: Vec::new(),
        parameters: Vec::new(),
        stream: false,
        max_tokens: None,
    }
}

/// A source that has nothing.
pub(crate) struct Nowhere;

#[async_trait::async_trait]
impl ComponentSource for Nowhere {
    async fn component(&self, digest: Digest) -> Result<Bytes, PluginError> {
        Err(PluginError::NotFound(digest))
    }
}

/// A source that has one component.
pub(crate) struct Stored(pub(crate) Bytes);

#[async_trait::async_trait]
impl ComponentSource for Stored {
    async fn component(&self, _: Digest) -> Result<Bytes, PluginError> {
        Ok(self.0.clone())
    }
}

/// Grants these aliases; may be slow.
pub(crate) struct Granted(pub(crate) Vec<&'static str>, pub(crate) Duration);

#[async_trait::async_trait]
impl Catalog for Granted {
    async fn adapters(&self) -> Result<Vec<CatalogEntry>, CapabilityError> {
        if !self.1.is_zero() {
            tokio::time::sleep(self.1).await;
        }
        let entry = |alias: &&str| CatalogEntry {
            alias: (*alias).to_owned(),
            digest: Digest::of(alias.as_bytes()),
            rank: 8,
            residency: Residency::Memory,
        };
        Ok(self.0.iter().map(entry).collect())
    }

    async fn prefetch(&self, _: &[String]) -> Result<(), CapabilityError> {
        Err(CapabilityError::Unsupported("prefetch".into()))
    }
}

/// Keeps what is logged.
#[derive(Default)]
pub(crate) struct Kept(pub(crate) Mutex<Vec<(LogLevel, String)>>);

impl LogSink for Kept {
    fn write(&self, level: LogLevel, message: &str) {
        self.0.lock().expect("not poisoned").push((level, message.to_owned()));
    }
}

/// Stands still.
pub(crate) struct Still;

impl Clock for Still {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(1234)
    }

    fn unix_time(&self) -> Duration {
        Duration::from_secs(1_800_000_000)
    }
}

pub(crate) fn session() -> Session {
    Session {
        catalog: Arc::new(Granted(Vec::new(), Duration::ZERO)),
        log: Arc::new(Kept::default()),
        clock: Arc::new(Still),
        config: Vec::new(),
        keyvalue: Arc::new(Nothing),
        secrets: Arc::new(Nothing),
        outbound: Arc::new(Nothing),
        tools: Arc::new(Nothing),
        tokenizer: Arc::new(Nothing),
        functions: Arc::new(Nothing),
        generations: Arc::new(Nothing),
        output: Arc::new(Nothing),
        limits: OwnLimits::default(),
        seed: 7,
        record: None,
    }
}
