//! The composition root: every part built once, in the order of the data flow, and taken down in the reverse one.
//! Not here: what any part does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use engine::{EngineConfig, EngineHandle, EngineThread, SpeculationConfig};
use model::{AdapterLimits, Base, LoraAdapter, Runner};
use plugin::{CompilerCommand, PluginHost, PluginHostConfig, Residency};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use types::{Digest, PlanLimits, TenantId};

use crate::adapters::{self, AdapterDisk, AdapterInfo, AdapterStore, AdapterStoreConfig, LoadObserver};
use crate::artifacts::Artifacts;
use crate::cli::COMPILE_COMMAND;
use crate::config::Config;
use crate::constraints::Constraints;
use crate::error::Error;
use crate::http::{self, App, Listener, Serving, Tls};
use crate::invoke::{Handling, TenantSalts};
use crate::keyvalue::KeyValues;
use crate::logs::{FunctionLogs, LogLimits};
use crate::metrics::Metrics;
use crate::oci::PluginSources;
use crate::open_files;
use crate::outbound::WebClient;
use crate::quotas::Quotas;
use crate::receipt::{PublicKeys, ReceiptKey, ReceiptLog};
use crate::recordings::{RecordingLimits, Recordings};
use crate::registry::Registry;
use crate::revocation::{Revocation, Revocations};
use crate::secrets::Secrets;
use crate::shadows::Shadows;
use crate::store::EmbeddedStore;
use crate::tenants::Tenants;

/// Compiled plugins in memory.
const PLUGIN_CACHE_BYTES_MAX: u64 = 256 << 20;

/// Every part of a running host.
pub(crate) struct Host {
    pub(crate) tenants: Tenants,
    pub(crate) quotas: Quotas,
    pub(crate) registry: Registry,
    pub(crate) artifacts: Artifacts,
    pub(crate) plugins: PluginHost,
    pub(crate) plugin_sources: PluginSources,
    pub(crate) plan_limits: PlanLimits,
    pub(crate) adapters: AdapterStore,
    pub(crate) revocations: Revocations,
    pub(crate) secrets: Secrets,
    pub(crate) keyvalue: KeyValues,
    pub(crate) outbound: WebClient,
    pub(crate) base: Arc<Base>,
    pub(crate) constraints: Constraints,
    pub(crate) engine: EngineHandle<LoraAdapter>,
    pub(crate) tenant_salts: TenantSalts,
    pub(crate) receipts: ReceiptLog,
    pub(crate) receipt_keys: PublicKeys,
    pub(crate) logs: FunctionLogs,
    pub(crate) recordings: Recordings,
    pub(crate) shadows: Shadows,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) precision: String,
    /// What computes: `cpu`, `cpu-amx` (prompts in bf16), `cuda` or `cuda-cublaslt`.
    pub(crate) runner: &'static str,
    draining: AtomicBool,
}

/// What must be stopped by hand when a host goes down.
pub(crate) struct Running {
    pub(crate) host: Arc<Host>,
    engine: EngineThread<LoraAdapter>,
}

impl Host {
    /// Whether the host takes no more requests.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Where an adapter of the caller's own catalogue lies now. A slot that another tenant's use filled does not show.
    pub(crate) fn residency(&self, tenant: &TenantId, info: &AdapterInfo) -> Residency {
        if info.residency == adapters::Residency::Storage {
            return Residency::Storage;
        }
        let stats = self.engine.stats();
        let own = self.tenant_salts.terms(tenant, Handling::default()).tenant;
        let mut filled = stats.resident_adapters.iter().zip(&stats.resident_fillers);
        if filled.any(|(digest, filler)| (*digest, *filler) == (info.digest, own)) {
            Residency::Device
        } else {
            Residency::Memory
        }
    }

    /// Revokes an adapter or a plugin by its digest, for all tenants and for good: durable first, then out of memory, the
    /// runner's slots and the compiled plugins; what is being generated with it ends with `revoked`.
    pub(crate) async fn revoke(&self, digest: Digest, reason: &str, by_key: &str) -> Result<Revocation, Error> {
        let revocation = self.revocations.add(digest, reason, by_key).await?;
        self.adapters.evict(digest).await?;
        self.plugins.forget(digest).await?;
        self.engine.revoke(digest).await?;
        tracing::warn!(%digest, by_key, "revoked");
        Ok(revocation)
    }

    /// Opens every part. `compiler` is the program that compiles plugins in a process of its own.
    pub(crate) async fn open(
        config: &Config,
        metrics: &Arc<Metrics>,
        compiler: CompilerCommand,
        say: &impl Fn(Said<'_>),
    ) -> Result<Running, Error> {
        let store = Arc::new(EmbeddedStore::open(&config.data).await?);
        let tenants = Tenants::new(store.clone());
        if config.dev {
            let path = config.data.join("dev.key");
            tenants.create_dev_key(&path).await?;
            say(Said::DevelopmentKey { path: &path });
        }
        let quotas = Quotas::open(store.clone(), config.tenant_quota).await?;
        let revocations = Revocations::open(store.clone()).await?;
        let artifacts = Artifacts::new(store.clone());
        let registry = Registry::new(store.clone());
        let plugins = open_plugins(config, compiler)?;
        let plugin_sources = PluginSources::new(&config.plugin_sources)?;
        let (base, runner) = open_base(config).await?;
        let (precision, runner_name, staging) = (runner.precision(), runner.name(), runner.staging().cloned());
        let layers = u32::try_from(base.config().layers).unwrap_or(u32::MAX);
        let vocabulary = u32::try_from(base.config().vocabulary).unwrap_or(u32::MAX);
        let plan_limits = PlanLimits { layers, vocabulary, ..config.plan_limits.clone() };
        let adapter_config = AdapterStoreConfig {
            adapters_root: config.adapters_root.clone(),
            sources: config.adapter_sources.clone(),
            precision,
            host_bytes_max: config.adapter_cache_bytes_max,
            pinned_bytes_max: config.adapter_pinned_bytes_max,
            is_shared_across_tenants: config.share_adapters_across_tenants,
            on_load: Some(LoadObserver::new({
                let metrics = Arc::clone(metrics);
                move |times| metrics.adapter_load(times)
            })),
            staging,
            disk: (config.adapter_disk_bytes_max > 0).then(|| AdapterDisk {
                folder: config.data.join("packed-adapters"),
                bytes_max: config.adapter_disk_bytes_max,
                base: base.digest(),
            }),
            limits: AdapterLimits {
                file_bytes_max: usize::try_from(config.http_limits.adapter_bytes_max).unwrap_or(usize::MAX),
                norms: config.adapter_norms,
                ..AdapterLimits::default()
            },
            ..AdapterStoreConfig::new(base.clone())
        };
        let adapters = AdapterStore::new(store.clone(), artifacts.clone(), revocations.clone(), adapter_config).await?;
        let secrets = Secrets::open(store.clone(), &config.data)?;
        let engine_config = EngineConfig {
            eos_token_ids: base.eos().to_vec(),
            waiting_requests_max: config.queue_requests_max,
            tenant_waiting_requests_max: Some(config.queue_tenant_requests_max),
            prefix_cache: config.prefix_cache,
            speculation: SpeculationConfig {
                draft_tokens_max: config.speculation_tokens_max,
                ..SpeculationConfig::default()
            },
            ..EngineConfig::default()
        };
        let started = Instant::now();
        let (engine, thread) = engine::start(runner, engine_config, move || started.elapsed())
            .map_err(|error| Error::Internal(error.to_string()))?;
        let key = ReceiptKey::open(&config.data)?;
        let receipt_keys = key.public();
        let receipts = ReceiptLog::open(store.database(), key, node_name())?;
        let host = Self {
            tenants,
            quotas,
            registry,
            artifacts,
            plugins,
            plugin_sources,
            plan_limits,
            adapters,
            revocations,
            secrets,
            keyvalue: KeyValues::new(store.database(), config.keyvalue_limits),
            outbound: WebClient::new(config.plugin_http.clone()),
            constraints: Constraints::new(Arc::clone(&base))?,
            base,
            engine,
            tenant_salts: TenantSalts::new()?,
            receipts,
            receipt_keys,
            logs: FunctionLogs::new(LogLimits::default()),
            recordings: Recordings::open(store.database(), RecordingLimits::default())?,
            shadows: Shadows::new()?,
            metrics: Arc::clone(metrics),
            precision: precision.to_string(),
            runner: runner_name,
            draining: AtomicBool::new(false),
        };
        Ok(Running { host: Arc::new(host), engine: thread })
    }
}

/// The binary `tenon`, to be run as the compiler.
pub(crate) fn compiler(program: PathBuf) -> CompilerCommand {
    CompilerCommand { program, arguments: vec![COMPILE_COMMAND.into()] }
}

fn open_plugins(config: &Config, compiler: CompilerCommand) -> Result<PluginHost, Error> {
    Ok(PluginHost::new(PluginHostConfig {
        cache_dir: config.data.join("plugin-cache"),
        compiler,
        limits: config.plugin_limits.clone(),
        instances_max: config.plugin_instances_max,
        cache_bytes_max: PLUGIN_CACHE_BYTES_MAX,
        // The rest is for connections and the store.
        images_max: open_files::most() / 2,
    })?)
}

/// Loading takes seconds of CPU: off the async threads.
async fn open_base(config: &Config) -> Result<(Arc<Base>, Runner), Error> {
    let config = config.clone();
    let opened = tokio::task::spawn_blocking(move || crate::runner::open(&config));
    Ok(opened.await.map_err(|error| Error::Internal(format!("loading the base did not return: {error}")))??)
}

/// How this machine calls itself; written into receipts.
fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().chars().take(64).collect()
}

/// Serves until SIGTERM or SIGINT, then drains: the listener closes, what is in flight ends, receipts become durable. A
/// second signal cuts what is in flight.
pub(crate) async fn serve(config: Config, say: impl Fn(Said<'_>)) -> Result<(), Error> {
    let tls = config.tls.as_ref().map(Tls::open).transpose()?;
    let metrics = Arc::new(Metrics::new());
    let program = std::env::current_exe().map_err(Error::io("cannot find this program's own file"))?;
    let app = App::new(Arc::clone(&metrics), config.http_limits.clone());
    let listener = Listener::bind(config.listen).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    say(Said::Listening { url: &format!("{scheme}://{}", listener.address()) });
    let (stop, stopped) = watch::channel(Stage::Serving);
    let (mut stopping, mut cutting) = (stopped.clone(), stopped);
    let serving = Serving {
        limits: config.http_limits.clone(),
        tls,
        stop: async move { drop(stopping.wait_for(|stage| *stage != Stage::Serving).await) },
        drain: config.drain,
        cut: async move { drop(cutting.wait_for(|stage| *stage == Stage::Cutting).await) },
    };
    let serving = tokio::spawn(http::serve(listener, http::router(app.clone()), serving));
    let mut signals = Signals::listen()?;
    let running = tokio::select! {
        running = Host::open(&config, &metrics, compiler(program), &say) => running.map(Some),
        () = signals.next() => Ok(None),
    };
    let outcome = match running {
        Ok(Some(running)) => {
            app.set_ready(Arc::clone(&running.host));
            say(Said::Ready { base: running.host.base.name(), precision: &running.host.precision });
            signals.next().await;
            tracing::info!("draining; a second signal cuts it short");
            running.host.draining.store(true, Ordering::Relaxed);
            running.host.logs.close();
            Ok(Some(running))
        }
        other => other,
    };
    let _receiver_gone = stop.send(Stage::Draining);
    let mut serving = serving;
    let served = tokio::select! {
        served = &mut serving => served,
        () = signals.next() => {
            tracing::warn!("a second signal: what is in flight is cut");
            let _receiver_gone = stop.send(Stage::Cutting);
            serving.await
        }
    };
    let served = served.map_err(|error| Error::Internal(format!("the listener did not return: {error}")))?;
    if let Some(running) = outcome? {
        close(running).await?;
    }
    served
}

/// What `serve` tells whoever started it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Said<'a> {
    /// A key for development lies here.
    DevelopmentKey { path: &'a Path },
    /// The socket is bound.
    Listening { url: &'a str },
    /// The base is loaded.
    Ready { base: &'a str, precision: &'a str },
}

/// How far the end has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    Draining,
    Cutting,
}

/// Takes it down: copies of requests are cut off, work on adapters ends, generations are cut, receipts become durable.
pub(crate) async fn close(running: Running) -> Result<(), Error> {
    let Running { host, engine } = running;
    host.shadows.close().await;
    host.adapters.close().await;
    let stopped = tokio::task::spawn_blocking(move || {
        if let Err(error) = engine.abort() {
            tracing::error!(%error, "the engine did not stop cleanly");
        }
        host.recordings.close();
        host.receipts.close();
    });
    stopped.await.map_err(|error| Error::Internal(format!("closing did not return: {error}")))?;
    tracing::info!("stopped");
    Ok(())
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(Error::io("cannot listen for signals"));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Either of them.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
