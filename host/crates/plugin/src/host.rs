//! The plugin host: admits uploads and starts instances. Not here: the calls of an instance (`calls.rs`).

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use moka::future::Cache;
use tokio::sync::Semaphore;
use types::{Digest, InvocationRequest, TenantId};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use crate::artefacts::Artefacts;
use crate::bindings::PolicyPre;
use crate::bindings::agent::AgentPre;
use crate::compile::{Compiler, Uploaded};
use crate::guest::Place;
use crate::pace::Paces;
use crate::pages::ImageFile;
use crate::share::CpuShare;
use crate::spares::{Spares, Starts};
use crate::state::InstanceState;
use crate::threads::GuestThreads;
use crate::ticker::Ticker;
use crate::unload::{Loaded, Unloader};
use crate::{Begun, OwnLimits, PluginError, PluginInstance, PluginLimits, Session, sandbox};

/// What a component may import; the linker decides about versions and functions. Those from `wasi:cli` on are inert.
const IMPORT_PREFIXES: [&str; 25] = [
    "tenon:plugin/types@",
    "tenon:plugin/catalog@",
    "tenon:plugin/log@",
    "tenon:plugin/clock@",
    "tenon:plugin/random@",
    "tenon:plugin/config@",
    "tenon:plugin/secrets@",
    "tenon:plugin/tokenizer@",
    "tenon:plugin/functions@",
    "tenon:plugin/tools@",
    "tenon:plugin/sessions@",
    "tenon:plugin/output@",
    "wasi:config/store@0.2.0-rc.1",
    "wasi:keyvalue/store@0.2.0-draft2",
    "wasi:keyvalue/atomics@0.2.0-draft2",
    "wasi:keyvalue/batch@0.2.0-draft2",
    "wasi:logging/logging@0.1.0-draft",
    "wasi:http/types@0.2.",
    "wasi:http/outgoing-handler@0.2.",
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

/// What a component that is kept in memory counts at least: each has four mappings, and Linux gives a process 65,530.
const PREPARED_BYTES_MIN: u64 = 32 << 10;
/// How the names of WASI's interfaces of randomness begin.
const WASI_RANDOM: &str = "wasi:random/";

/// Whether some component of this name may be imported; the linker decides about versions and functions.
#[must_use]
pub fn may_be_imported(name: &str) -> bool {
    IMPORT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What a plugin of world `policy` exports, and one of world `agent`.
const HOOKS: &str = "tenon:plugin/hooks@";
const DRIVER: &str = "tenon:plugin/driver@";

/// What kind of plugin a component is, by its exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// The host asks it what to generate.
    Policy,
    /// It drives generations of its own.
    Agent,
}

impl World {
    /// By the names of a component's exports. What toolchains export beside ours is theirs.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn of_exports<'a>(exports: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let (mut policy, mut agent) = (false, false);
        for name in exports {
            let is_hooks = name.starts_with(HOOKS);
            let is_driver = name.starts_with(DRIVER);
            if name.starts_with("tenon:plugin/") && !is_hooks && !is_driver {
                return Err(format!(
                    "it exports `{name}`, which no host calls: export `{HOOKS}…` (world `policy`) or `{DRIVER}…` (world `agent`)"
                ));
            }
            policy |= is_hooks;
            agent |= is_driver;
        }
        match (policy, agent) {
            (true, false) => Ok(Self::Policy),
            (false, true) => Ok(Self::Agent),
            (true, true) => Err(format!("it exports both `{HOOKS}…` and `{DRIVER}…`: export one of them")),
            (false, false) => Err(format!(
                "it does not export what a host calls: export `{HOOKS}…` (world `policy`) or `{DRIVER}…` (world `agent`)"
            )),
        }
    }

    /// Its name in `wit/`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Agent => "agent",
        }
    }
}

/// A component of one of the worlds, linked.
#[derive(Clone)]
pub(crate) enum Linked {
    Policy(PolicyPre<InstanceState>),
    Agent(AgentPre<InstanceState>),
}

impl Linked {
    pub(crate) const fn is_agent(&self) -> bool {
        matches!(self, Self::Agent(_))
    }
}

/// How to start the child that compiles: a program that calls [`crate::compiler_main`].
#[derive(Clone, Debug)]
pub struct CompilerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments; the limits are passed in the environment.
    pub arguments: Vec<OsString>,
}

/// What a [`PluginHost`] is made of.
#[derive(Clone, Debug)]
pub struct PluginHostConfig {
    /// Where compiled components are kept. Made with mode 0700 if it is not there.
    pub cache_dir: PathBuf,
    /// Starts the compiler.
    pub compiler: CompilerCommand,
    /// Limits on every plugin.
    pub limits: PluginLimits,
    /// Instances that may be alive at once.
    pub instances_max: u32,
    /// Bytes of compiled components in memory.
    pub cache_bytes_max: u64,
    /// Memories of compiled components in memory: each may keep a file open, with what the memory is to begin with.
    pub images_max: u64,
}

/// Gives the bytes of a component that was admitted once. Asked only when no usable compiled form is there.
#[async_trait]
pub trait ComponentSource: Send + Sync {
    /// The component's bytes; their digest is checked.
    async fn component(&self, digest: Digest) -> Result<Bytes, PluginError>;

    /// For whom it is compiled, if it has to be.
    fn tenant(&self) -> Option<&TenantId> {
        None
    }
}

/// Admits uploads and starts instances. Cheap to clone; the clones share everything.
#[derive(Clone)]
pub struct PluginHost {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) limits: Arc<PluginLimits>,
    pub(crate) engine: Engine,
    pub(crate) ticker: Ticker,
    pub(crate) threads: GuestThreads,
    pub(crate) share: Arc<CpuShare>,
    linker: Linker<InstanceState>,
    artefacts: Arc<Artefacts>,
    compiler: Compiler,
    /// What a memory costs of the cache at least, so that as many as may be fill it.
    image_share_bytes: u64,
    prepared: Cache<Digest, Prepared>,
    unloader: Unloader<Linked>,
    pub(crate) instances: Arc<Semaphore>,
    pub(crate) instances_max: usize,
    pub(crate) spares: Spares,
    pub(crate) log_lines_dropped: Arc<AtomicU64>,
}

/// What the instances are doing, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PluginStats {
    /// Instances that live, each for a request.
    pub instances: usize,
    /// Instances that were started for requests to come.
    pub spares: usize,
    /// Instances that may live at once.
    pub instances_max: usize,
    /// Lines that guests logged over their limits, ever.
    pub log_lines_dropped: u64,
    /// Compiled plugins that are ready to be instantiated, about.
    pub prepared: u64,
    /// The bytes of their files, mapped and not all in memory.
    pub prepared_bytes: u64,
}

/// A component that is checked, linked and ready to be instantiated.
#[derive(Clone)]
pub(crate) struct Prepared {
    pub(crate) digest: Digest,
    pub(crate) plugin: Arc<Loaded<Linked>>,
    /// How long its calls have taken so far.
    pub(crate) paces: Arc<Paces>,
    /// How long its starts have taken so far.
    pub(crate) starts: Arc<Starts>,
    /// What the memories of its instances begin with, if that is known.
    pub(crate) image: Option<ImageFile>,
    /// Whether it imports WASI's randomness, which costs more to make than most calls.
    pub(crate) has_wasi_random: bool,
    /// Of the cache, in bytes.
    share: u32,
}

impl Shared {
    /// The limits of one request: those of every plugin, narrowed by the function's own.
    pub(crate) fn limits_of(&self, session: &Session) -> Arc<PluginLimits> {
        if session.limits == OwnLimits::default() {
            return Arc::clone(&self.limits);
        }
        Arc::new(self.limits.narrowed(&session.limits))
    }
}

impl fmt::Debug for PluginHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginHost").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

impl PluginHost {
    /// Opens the cache folder and starts the thread that advances the epoch; it ends with the last clone.
    ///
    /// # Errors
    /// If the folder cannot be used or the sandbox cannot be set up on this machine.
    pub fn new(config: PluginHostConfig) -> Result<Self, PluginError> {
        let limits = Arc::new(config.limits);
        let engine =
            sandbox::serving_engine(&limits, config.instances_max).map_err(|error| sandbox::internal(&error))?;
        let linker = sandbox::linker(&engine).map_err(|error| sandbox::internal(&error))?;
        let folder = &config.cache_dir;
        let artefacts = Artefacts::open(folder, sandbox::fingerprint(&engine), limits.compiled_bytes_max)
            .map_err(|error| PluginError::Internal(format!("{}: {error}", folder.display())))?;
        let internal = |error: std::io::Error| PluginError::Internal(error.to_string());
        let ticker = Ticker::start(&engine).map_err(internal)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = GuestThreads::start(GuestThreads::threads_for(cores)).map_err(internal)?;
        let instances_max = usize::try_from(config.instances_max).unwrap_or(Semaphore::MAX_PERMITS);
        let prepared = Cache::builder()
            .max_capacity(config.cache_bytes_max)
            .weigher(|_: &Digest, prepared: &Prepared| prepared.share)
            .build();
        Ok(Self {
            shared: Arc::new(Shared {
                compiler: Compiler::new(config.compiler, Arc::clone(&limits)),
                limits,
                image_share_bytes: config.cache_bytes_max / config.images_max.max(1),
                engine,
                ticker,
                threads,
                share: Arc::new(CpuShare::of(cores)),
                linker,
                artefacts: Arc::new(artefacts),
                prepared,
                unloader: Unloader::start().map_err(internal)?,
                instances: Arc::new(Semaphore::new(instances_max)),
                instances_max,
                spares: Spares::of(instances_max),
                log_lines_dropped: Arc::default(),
            }),
        })
    }

    /// Checks and compiles an upload, and keeps the result. Admitting the same bytes again costs one digest.
    ///
    /// # Errors
    /// Why the upload is refused.
    pub async fn admit(&self, component: Bytes) -> Result<Digest, PluginError> {
        self.admit_of(component, None).await
    }

    /// The same for a tenant: it waits behind its own uploads, and others do not.
    ///
    /// # Errors
    /// Why the upload is refused.
    pub async fn admit_of(&self, component: Bytes, tenant: Option<&TenantId>) -> Result<Digest, PluginError> {
        let (bytes, max_bytes) = (component.len(), self.shared.limits.upload_bytes_max);
        if bytes > max_bytes {
            return Err(PluginError::TooLarge { bytes, max_bytes });
        }
        let digest = Digest::of(&component);
        self.prepared(digest, &Uploaded(component, tenant.cloned())).await?;
        Ok(digest)
    }

    /// A fresh instance for one request.
    ///
    /// # Errors
    /// [`PluginError::Busy`] if as many instances live as may, the source's error if the component is not there, and
    /// what the guest's own start ran into.
    pub async fn start(
        &self,
        digest: Digest,
        source: &dyn ComponentSource,
        session: Session,
    ) -> Result<PluginInstance, PluginError> {
        let (prepared, place) = self.admitted(digest, source, &session).await?;
        PluginInstance::start(Arc::clone(&self.shared), prepared, session, place).await
    }

    /// A fresh instance, asked what to do with the request, and for the plan if it is to be served: all of it in one visit to
    /// the plugin threads. An agent is only begun. The request may have used CPU time already, in instances of other functions.
    ///
    /// # Errors
    /// As [`Self::start`]. What the calls ran into is told with the instance.
    pub async fn decide(
        &self,
        cpu_used: Duration,
        digest: Digest,
        source: &dyn ComponentSource,
        session: Session,
        request: &InvocationRequest,
    ) -> Result<Begun, PluginError> {
        let (prepared, place) = self.admitted(digest, source, &session).await?;
        PluginInstance::decide(Arc::clone(&self.shared), prepared, session, place, cpu_used, request).await
    }

    async fn admitted(
        &self,
        digest: Digest,
        source: &dyn ComponentSource,
        session: &Session,
    ) -> Result<(Prepared, Place), PluginError> {
        let prepared = self.prepared(digest, source).await?;
        let Shared { spares, instances, .. } = &*self.shared;
        if let Some(spare) = spares.take(digest, &self.shared.limits_of(session)) {
            return Ok((prepared, Place::Spare(spare)));
        }
        loop {
            if let Ok(permit) = Arc::clone(instances).try_acquire_owned() {
                return Ok((prepared, Place::Free(permit)));
            }
            if !spares.give_way() {
                return Err(PluginError::Busy { limit: "instances_max" });
            }
        }
    }

    /// The limits on every plugin.
    #[must_use]
    pub fn limits(&self) -> &PluginLimits {
        &self.shared.limits
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    pub(crate) fn compiler(&self) -> &Compiler {
        &self.shared.compiler
    }

    /// Lets go of what was compiled of a component, in memory and on disk. Instances that live go on.
    ///
    /// # Errors
    /// [`PluginError::Internal`] if the file cannot be removed.
    pub async fn forget(&self, digest: Digest) -> Result<(), PluginError> {
        self.shared.prepared.invalidate(&digest).await;
        self.shared.spares.forget(digest);
        let artefacts = Arc::clone(&self.shared.artefacts);
        let removed = blocking(move || artefacts.remove(digest)).await?;
        removed.map_err(|error| {
            PluginError::Internal(format!("the compiled plugin {digest} could not be removed: {error}"))
        })
    }

    /// Does what the cache has put off: what is over its bound leaves it. It happens by itself in later calls.
    pub async fn settle(&self) {
        self.shared.prepared.run_pending_tasks().await;
    }

    /// What the instances are doing now.
    #[must_use]
    pub fn stats(&self) -> PluginStats {
        let Shared { instances, instances_max, log_lines_dropped, prepared, spares, .. } = &*self.shared;
        // One that is being given back may be counted by neither or both for a moment.
        let spares = spares.places();
        let taken = instances_max.saturating_sub(instances.available_permits());
        PluginStats {
            instances: taken.saturating_sub(spares),
            spares,
            instances_max: *instances_max,
            log_lines_dropped: log_lines_dropped.load(Ordering::Relaxed),
            prepared: prepared.entry_count(),
            prepared_bytes: prepared.weighted_size(),
        }
    }

    /// From memory, else from disk, else compiled from the source; once, however many ask at the same time.
    async fn prepared(&self, digest: Digest, source: &dyn ComponentSource) -> Result<Prepared, PluginError> {
        let prepared = self.shared.prepared.try_get_with(digest, self.prepare(digest, source)).await;
        prepared.map_err(|error| PluginError::clone(&error))
    }

    async fn prepare(&self, digest: Digest, source: &dyn ComponentSource) -> Result<Prepared, PluginError> {
        if let Some(prepared) = self.kept(digest).await? {
            return Ok(prepared);
        }
        let component = source.component(digest).await?;
        if Digest::of(&component) != digest {
            return Err(PluginError::Internal(format!("the stored plugin {digest} is damaged")));
        }
        let (artefact, _) = self.shared.compiler.compile(&component, source.tenant()).await?;
        let shared = Arc::clone(&self.shared);
        let written = blocking(move || {
            let prepared = link(&shared, digest, artefact.load(&shared.engine), artefact.bytes().len() as u64, None)?;
            Ok::<_, PluginError>((prepared, shared.artefacts.write(digest, &artefact)))
        });
        let (prepared, written) = written.await??;
        if let Err(error) = written {
            tracing::warn!(%digest, %error, "a compiled plugin could not be kept; it will be compiled again");
            return Ok(prepared);
        }
        // The file in place of a copy of all of it in memory.
        Ok(self.kept(digest).await?.unwrap_or(prepared))
    }

    /// From disk, if it is there and of use.
    async fn kept(&self, digest: Digest) -> Result<Option<Prepared>, PluginError> {
        let shared = Arc::clone(&self.shared);
        let linked = blocking(move || {
            let file = shared.artefacts.read(digest)?;
            Some(link(&shared, digest, file.load(&shared.engine), file.bytes(), file.image()))
        });
        match linked.await? {
            Some(Err(error)) => {
                tracing::warn!(%digest, %error, "a compiled plugin is of no use; it is compiled again");
                Ok(None)
            }
            Some(Ok(prepared)) => Ok(Some(prepared)),
            None => Ok(None),
        }
    }
}

/// Checks what only the loaded component shows: that it fits the pool, its imports, its exports.
fn link(
    shared: &Shared,
    digest: Digest,
    loaded: wasmtime::Result<Component>,
    bytes: u64,
    image: Option<ImageFile>,
) -> Result<Prepared, PluginError> {
    let component = loaded.map_err(|error| PluginError::Invalid(format!("{error:#}")))?;
    check_imports(shared, &component)?;
    let types = component.component_type();
    let world = World::of_exports(types.exports(&shared.engine).map(|(name, _)| name)).map_err(PluginError::Invalid)?;
    let linked = shared.linker.instantiate_pre(&component).map_err(|error| unknown_import(&error))?;
    let plugin = match world {
        World::Policy => PolicyPre::new(linked).map(Linked::Policy),
        World::Agent => AgentPre::new(linked).map(Linked::Agent),
    };
    let plugin = plugin.map_err(|error| PluginError::Invalid(format!("{error:#}")))?;
    let plugin = Arc::new(shared.unloader.keep(plugin));
    let has_wasi_random = types.imports(&shared.engine).any(|(name, _)| name.starts_with(WASI_RANDOM));
    // Small ones by the thousand would otherwise use up the files that the process may have open.
    let memories = component.resources_required().map_or(shared.limits.memories_max, |required| required.num_memories);
    let least = shared.image_share_bytes.saturating_mul(memories.max(1).into()).max(PREPARED_BYTES_MIN);
    let share = u32::try_from(bytes.max(least)).unwrap_or(u32::MAX);
    Ok(Prepared { digest, plugin, paces: Arc::default(), starts: Arc::default(), image, has_wasi_random, share })
}

/// The linker looks at what is used of an import; this looks at its name, which also refuses what is not used.
fn check_imports(shared: &Shared, component: &Component) -> Result<(), PluginError> {
    let types = component.component_type();
    let mut names = types.imports(&shared.engine).map(|(name, _)| name);
    let unknown = names.find(|name| !may_be_imported(name));
    unknown.map_or(Ok(()), |name| Err(PluginError::ImportUnknown(name.to_owned())))
}

/// wasmtime names the import between backticks.
fn unknown_import(error: &wasmtime::Error) -> PluginError {
    let text = format!("{error:#}");
    let name = text.split('`').nth(1).map(str::to_owned);
    PluginError::ImportUnknown(name.unwrap_or(text))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PluginError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| PluginError::Internal(error.to_string()))
}
