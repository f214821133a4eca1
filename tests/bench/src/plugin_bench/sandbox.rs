//! Guests in the sandbox with the limits that a host has by default, called as the host calls them. Not here: what is
//! compared (`calls`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{
    Begun, CapabilityError, Catalog, CatalogEntry, Clock, CompilerCommand, ComponentSource, Decided, LogLevel, LogSink,
    Nothing, OwnLimits, PluginError, PluginHost, PluginHostConfig, PluginLimits, Residency, Session,
};
use tokio::runtime::Runtime;
use types::{Chunk, Decision, Digest, FinishReason, HookUsage, InvocationRequest};

use crate::Outcome;

/// As a host has by default.
const INSTANCES_MAX: u32 = 256;
const CACHE_BYTES_MAX: u64 = 256 << 20;
/// The hidden command under which `tenon` compiles.
const COMPILE_COMMAND: &str = "__compile-plugin";
/// What the router is granted, and what it is asked: it chooses the first.
pub(super) const ADAPTERS: [&str; 3] = ["iso-date", "sentiment-json", "all-caps"];
pub(super) const TEXT: &str = "5 December 2008";
/// A chunk of an answer, as long as a token is.
const CHUNK: &str = " tenon";

/// A plugin host on a runtime like a server's.
pub(super) struct Sandbox {
    runtime: Runtime,
    host: PluginHost,
    _folder: tempfile::TempDir,
}

/// What one request took, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cycle {
    /// Until the plan was there.
    pub(super) plan_us: f64,
    /// Until the instance was gone as well.
    pub(super) whole_us: f64,
}

impl Sandbox {
    /// Compiles with this `tenon`, into a folder that goes with it.
    ///
    /// # Errors
    /// If the sandbox cannot be set up here.
    pub(super) fn new(tenon: &Path) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let compiler = CompilerCommand { program: PathBuf::from(tenon), arguments: vec![COMPILE_COMMAND.into()] };
        let host = PluginHost::new(PluginHostConfig {
            cache_dir: folder.path().to_path_buf(),
            compiler,
            limits: PluginLimits::default(),
            instances_max: INSTANCES_MAX,
            cache_bytes_max: CACHE_BYTES_MAX,
            images_max: 64,
        })?;
        Ok(Self { runtime, host, _folder: folder })
    }

    /// Takes a component in.
    ///
    /// # Errors
    /// If it is refused.
    pub(super) fn admit(&self, component: Vec<u8>) -> Outcome<Digest> {
        Ok(self.runtime.block_on(self.host.admit(component.into()))?)
    }

    /// So many requests, each so long after the one before it: an instance, its decision and its plan.
    ///
    /// # Errors
    /// If one fails, or is not served.
    pub(super) fn cycles(&self, guest: Digest, count: usize, pause: Duration) -> Outcome<Vec<Cycle>> {
        let host = self.host.clone();
        self.on_a_worker(async move {
            let mut cycles = Vec::with_capacity(count);
            for _ in 0..count {
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                let (session, request) = (session(), request());
                let begun = Instant::now();
                let decided = host.decide(Duration::ZERO, guest, &Nowhere, session, &request).await?;
                let plan_us = microseconds(begun);
                let instance = served(decided)?;
                drop(instance);
                cycles.push(Cycle { plan_us, whole_us: microseconds(begun) });
            }
            Ok(cycles)
        })
    }

    /// The same with a visit to the plugin threads for each of the three.
    ///
    /// # Errors
    /// As for [`Self::cycles`].
    pub(super) fn cycles_in_three_visits(&self, guest: Digest, count: usize) -> Outcome<Vec<Cycle>> {
        let host = self.host.clone();
        self.on_a_worker(async move {
            let mut cycles = Vec::with_capacity(count);
            for _ in 0..count {
                let (session, request) = (session(), request());
                let begun = Instant::now();
                let mut instance = host.start(guest, &Nowhere, session).await?;
                instance.route(&request).await?;
                instance.compose(&request).await?;
                let plan_us = microseconds(begun);
                drop(instance);
                cycles.push(Cycle { plan_us, whole_us: microseconds(begun) });
            }
            Ok(cycles)
        })
    }

    /// So many chunks of one answer, each in microseconds.
    ///
    /// # Errors
    /// If one fails.
    pub(super) fn chunks(&self, guest: Digest, config: &[(String, String)], count: usize) -> Outcome<Vec<f64>> {
        let (host, config) = (self.host.clone(), config.to_vec());
        self.on_a_worker(async move {
            let mut instance = host.start(guest, &Nowhere, Session { config, ..session() }).await?;
            instance.open_post_processor(&request()).await?;
            let mut times_us = Vec::with_capacity(count);
            for _ in 0..count {
                let chunk = Chunk { text: CHUNK.to_owned(), tokens: Vec::new() };
                let begun = Instant::now();
                let actions = instance.chunk(chunk).await?;
                times_us.push(microseconds(begun));
                drop(actions);
            }
            let completion_tokens = u32::try_from(count).unwrap_or(u32::MAX);
            let usage = HookUsage { prompt_tokens: 1, completion_tokens, finish: FinishReason::Length };
            instance.finish(usage).await?;
            Ok(times_us)
        })
    }

    /// Where the tasks of a server's connections run.
    fn on_a_worker<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, PluginError>> + Send + 'static,
    ) -> Outcome<T> {
        Ok(self.runtime.block_on(self.runtime.spawn(task))??)
    }
}

fn microseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

/// The instance of a request that got its plan.
fn served(begun: Begun) -> Result<plugin::PluginInstance, PluginError> {
    let Begun::Decided(decided) = begun else {
        return Err(PluginError::Internal("the router is no policy".to_owned()));
    };
    let Decided { instance, route, compose } = *decided;
    let Decision::Serve = route.outcome? else {
        return Err(PluginError::Internal("the router does not serve what it is asked".to_owned()));
    };
    match compose {
        Some(compose) => compose.outcome.map(|_| instance),
        None => Err(PluginError::Internal("the router made no plan".to_owned())),
    }
}

fn request() -> InvocationRequest {
    InvocationRequest {
        id: "req_0123456789abcdef".into(),
        function: "skills".into(),
        version: 1,
        text: TEXT.into(),
        input_json: format!("\"{TEXT}\""),
        messages: Vec::new(),
        parameters: Vec::new(),
        stream: true,
        max_tokens: Some(48),
    }
}

fn session() -> Session {
    Session {
        catalog: Arc::new(Granted),
        log: Arc::new(Unread),
        clock: Arc::new(Running(Instant::now())),
        config: Vec::new(),
        keyvalue: Arc::new(Nothing),
        secrets: Arc::new(Nothing),
        outbound: Arc::new(Nothing),
        tokenizer: Arc::new(Nothing),
        functions: Arc::new(Nothing),
        tools: Arc::new(Nothing),
        generations: Arc::new(Nothing),
        output: Arc::new(Nothing),
        limits: OwnLimits::default(),
        seed: 7,
        record: None,
    }
}

/// Every guest is admitted first.
struct Nowhere;

#[async_trait]
impl ComponentSource for Nowhere {
    async fn component(&self, digest: Digest) -> Result<Bytes, PluginError> {
        Err(PluginError::NotFound(digest))
    }
}

struct Granted;

#[async_trait]
impl Catalog for Granted {
    async fn adapters(&self) -> Result<Vec<CatalogEntry>, CapabilityError> {
        let entry = |alias: &&str| CatalogEntry {
            alias: (*alias).to_owned(),
            digest: Digest::of(alias.as_bytes()),
            rank: 8,
            residency: Residency::Memory,
        };
        Ok(ADAPTERS.iter().map(entry).collect())
    }

    async fn prefetch(&self, _: &[String]) -> Result<(), CapabilityError> {
        Ok(())
    }
}

struct Unread;

impl LogSink for Unread {
    fn write(&self, _: LogLevel, _: &str) {}
}

struct Running(Instant);

impl Clock for Running {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix_time(&self) -> Duration {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
}
