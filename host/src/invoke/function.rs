//! Stages 2 and 3: the version that was chosen of a function, its plugin's `route` and `compose`, and those of the functions that
//! it hands over to. Not here: the choice (`called.rs`), the sandbox, which is the crate `plugin`, and the check of the plan.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use plugin::{
    Begun, CapabilityError, Catalog, CatalogEntry, Clock, ComponentSource, Decided, LogLevel, LogSink, PluginError,
    PluginInstance, Recorder, RecordingHead, Session,
};
use tokio::runtime::Handle;
use types::{Decision, Digest, FunctionName, InvocationRequest, PlanError, PlanLimits, TenantId};

use super::agent::AgentWork;
use super::call::FunctionCalls;
use super::called::Called;
use super::cold_bytes::ColdBytes;
use super::grants::ResolvedGrants;
use super::hand_over::{Caller, Journey};
use super::lent::{self, Lent, LentNested};
use super::nested::NestedLog;
use super::post::over;
use super::{Draft, Handling, Routed, agent, hand_over, seed, sessions};
use crate::adapters::ResolvedAdapters;
use crate::artifacts::{ArtifactKind, Artifacts};
use crate::error::Error;
use crate::host::Host;
use crate::logs::{InvocationLog, Level, LogOwner};
use crate::metrics::PluginCall;
use crate::receipt::{CalledBy, FunctionRef};
use crate::recordings::RecordingOwner;
use crate::registry::{FunctionVersion, Manifest, ManifestCold};
use crate::tenants::Principal;

/// A function that is being invoked.
pub(crate) struct FunctionCall {
    pub(crate) name: FunctionName,
    pub(crate) version: u32,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) instance: PluginInstance,
    pub(crate) log: InvocationLog,
    /// The functions that took part, from the one that was called to this one.
    pub(crate) chain: Vec<FunctionRef>,
    /// As [`Called`] has them.
    pub(crate) draw: Option<u64>,
    pub(crate) is_copy: bool,
    /// The request whose plugin called.
    pub(crate) called_by: Option<CalledBy>,
    /// What the plugins did by requests of their own.
    pub(crate) nested: Arc<NestedLog>,
    pub(crate) cold_bytes: ColdBytes,
}

impl FunctionCall {
    /// The functions that the request was handed over to, in order.
    pub(crate) fn handed_over(&self) -> Vec<FunctionRef> {
        self.chain.iter().skip(1).cloned().collect()
    }
}

/// What became of a request in one function.
enum Step {
    Routed(Routed),
    HandOver(FunctionVersion),
}

/// Asks the plugin of the version that was chosen what to do, then those that the request is handed over to.
pub(crate) async fn route(
    host: &Arc<Host>,
    principal: &Principal,
    called: &Called,
    request: &mut InvocationRequest,
    (handling, started): (Handling, Instant),
) -> Result<Routed, Error> {
    check_request(request, &host.plan_limits).map_err(|source| Error::Plan { source, by_caller: true })?;
    let (asked, log_name) = (request.max_tokens, called.log_name(&request.id));
    let mut asking = Asking {
        principal,
        called,
        handling,
        journey: Journey::new(started, called.caller.as_ref()),
        nested: Arc::default(),
        calls_left: called.caller.as_ref().map_or_else(
            || Arc::new(AtomicU32::new(host.plugins.limits().function_calls_max)),
            |caller| Arc::clone(&caller.calls_left),
        ),
    };
    let mut version = called.version.clone();
    loop {
        // Each function narrows what the caller asked for, not what another one left of it.
        request.max_tokens = asked;
        let owner = LogOwner::new(&principal.tenant, &version.function, version.life);
        let log = host.logs.invocation(owner, version.version, &log_name);
        asking.journey.enter(&version);
        if let Some(FunctionRef { name, version, .. }) = asking.journey.predecessor() {
            log.write(Level::Info, &format!("handed over by `{name}` version {version}"));
        } else if let Some(FunctionRef { name, version, .. }) = asking.journey.callers.last() {
            log.write(Level::Info, &format!("called by `{name}` version {version}"));
        }
        let step = step(host, &mut asking, version, log.clone(), request).await;
        version = match step.inspect_err(|error| log_failure(Some(&log), error))? {
            Step::Routed(routed) => return Ok(routed),
            Step::HandOver(next) => next,
        };
        log.write(Level::Info, &format!("handed over to `{}` version {}", version.function, version.version));
    }
}

/// Notes in the function's log, if there is a function, that an invocation failed.
pub(crate) fn log_failure(log: Option<&InvocationLog>, error: &Error) {
    let Some(log) = log else { return };
    log.write(Level::Error, &format!("the invocation failed: {}: {}", error.code(), error.public_message()));
}

/// One request on its way through functions.
struct Asking<'a> {
    principal: &'a Principal,
    called: &'a Called,
    handling: Handling,
    journey: Journey,
    nested: Arc<NestedLog>,
    calls_left: Arc<AtomicU32>,
}

impl Asking<'_> {
    /// What the plugin at work may call.
    fn calls(&self, host: &Arc<Host>, manifest: &Manifest, request: &str, deadline: Instant) -> FunctionCalls {
        let (chain, calls_left) = (self.journey.path(), Arc::clone(&self.calls_left));
        FunctionCalls {
            host: Arc::clone(host),
            principal: self.principal.clone(),
            handling: self.handling,
            sticky: self.called.sticky.clone(),
            is_copy: self.called.is_copy,
            granted: manifest.grants.calls.clone(),
            caller: Caller { request: request.to_owned(), chain, deadline, calls_left },
            nested: Arc::clone(&self.nested),
            runtime: Handle::current(),
        }
    }

    /// The generations that it may have, if it is an agent.
    fn generations(
        &self,
        host: &Arc<Host>,
        manifest: &Arc<Manifest>,
        grants: &ResolvedGrants,
        (limits, deadline, cold_bytes): (&PlanLimits, Instant, &ColdBytes),
    ) -> sessions::AgentGenerations {
        sessions::AgentGenerations(Arc::new(sessions::Means {
            host: Arc::clone(host),
            tenant: self.principal.tenant.clone(),
            handling: self.handling,
            manifest: Arc::clone(manifest),
            grants: grants.clone(),
            limits: limits.clone(),
            deadline,
            draw: self.called.draw,
            is_copy: self.called.is_copy,
            nested: Arc::clone(&self.nested),
            runtime: Handle::current(),
            opened: AtomicU32::new(0),
            cold_bytes: cold_bytes.clone(),
        }))
    }

    /// The request that led here, as the receipt has it.
    fn called_by(&self) -> Option<CalledBy> {
        let caller = self.called.caller.as_ref()?;
        Some(CalledBy { request: caller.request.clone(), function: caller.chain.last()?.clone() })
    }
}

async fn step(
    host: &Arc<Host>,
    asking: &mut Asking<'_>,
    version: FunctionVersion,
    log: InvocationLog,
    request: &mut InvocationRequest,
) -> Result<Step, Error> {
    let (principal, called) = (asking.principal, asking.called);
    let manifest = Arc::clone(&version.manifest);
    host.revocations.check("the plugin", manifest.plugin)?;
    request.function = version.function.to_string();
    request.version = version.version;
    let limits = manifest.limits.narrow(&host.plan_limits);
    // The caller cannot know the function's own limit; the plugin is told what it may use of what was asked.
    request.max_tokens = request.max_tokens.map(|asked| asked.min(limits.output_tokens_max));
    let names = ResolvedGrants::names(host, &principal.tenant, &manifest).await?;
    let grants = ResolvedGrants::of_tenant(host, &principal.tenant, &names).await?;
    let grants = grants.with_templates(&manifest.templates);
    let deadline = asking.journey.deadline(limits.deadline_ms_max);
    let cold_bytes = ColdBytes::new(limits.cold_bytes_max);
    let (output, written) = agent::output(limits.answer_bytes_max);
    let nested = LentNested {
        functions: Arc::new(asking.calls(host, &manifest, &request.id, deadline)),
        generations: Arc::new(asking.generations(host, &manifest, &grants, (&limits, deadline, &cold_bytes))),
        output: Arc::new(output),
    };
    let lent = lent::lent(host, &principal.tenant, &version, called.is_copy, nested);
    let FunctionVersion { function: name, version, life, .. } = version;
    let plugin_seed = called.draw.map_or_else(seed::random, Ok)?;
    let function = (&name, &*manifest, &grants, names.as_slice(), &cold_bytes);
    let record = recorder(host, principal, called, (&name, version, life, &manifest), &request.id, &log);
    let session = session(host, principal, function, lent, plugin_seed, asking.journey.started, log.clone()).await?;
    let session = Session { record, ..session };
    let source = StoredComponents(host.artifacts.clone(), principal.tenant.clone());
    let begun = host.plugins.decide(asking.journey.cpu_used, manifest.plugin, &source, session, request).await?;
    let (chain, draw, is_copy) = (asking.journey.chain.clone(), called.draw, called.is_copy);
    let (called_by, nested) = (asking.called_by(), Arc::clone(&asking.nested));
    let call = |instance| FunctionCall {
        name,
        version,
        manifest,
        instance,
        log,
        chain,
        draw,
        is_copy,
        called_by,
        nested,
        cold_bytes,
    };
    let Decided { instance, route, compose } = match begun {
        Begun::Agent(instance) => {
            let call = call(instance);
            let work = AgentWork { call, written, deadline, answer_bytes_max: limits.answer_bytes_max };
            return Ok(Step::Routed(Routed::Agent(Box::new(work))));
        }
        Begun::Decided(decided) => *decided,
    };
    let call = call(instance);
    host.metrics.plugin_call(PluginCall::route, route.outcome.is_ok(), route.took);
    let decision = route.outcome?;
    let journey = &mut asking.journey;
    match decision {
        Decision::Serve => {
            let missing = || Error::Internal("a plugin that serves was not asked for its plan".into());
            let compose = compose.ok_or_else(missing)?;
            host.metrics.plugin_call(PluginCall::compose, compose.outcome.is_ok(), compose.took);
            let mut plan = compose.outcome?;
            plan.cold = plan.cold.or_else(|| call.manifest.cold.as_ref().map(ManifestCold::policy));
            journey.shorten(&mut plan, limits.deadline_ms_max)?;
            let default = limits.output_tokens_default.min(limits.output_tokens_max);
            if let Some(max_tokens) = request.max_tokens {
                plan.token_budget = Some(plan.token_budget.unwrap_or(default).min(max_tokens));
            }
            let draft = Draft { plan, grants, limits, function: Some(call) };
            Ok(Step::Routed(Routed::Draft(Box::new(draft))))
        }
        Decision::Answer(text) if text.len() > limits.answer_bytes_max => {
            Err(over("the plugin's answer in bytes", text.len(), "answer_bytes_max", limits.answer_bytes_max))
        }
        Decision::Answer(text) => Ok(Step::Routed(Routed::Answer(Box::new(call), text))),
        Decision::Reject(rejection) => Err(Error::Rejected {
            code: rejection_code(&rejection.code),
            reason: rejection.reason.chars().take(1024).collect(),
        }),
        Decision::HandOver(to) => {
            journey.cpu_used = call.instance.cpu_used();
            let from = (&call.name, &*call.manifest);
            hand_over::next(host, principal, from, &to, called, journey).await.map(Step::HandOver)
        }
    }
}

/// What would make the plugin's plan fail, and is not its fault.
fn check_request(request: &InvocationRequest, limits: &PlanLimits) -> Result<(), PlanError> {
    let over = |what, value: usize, limit, max: usize| {
        Err(PlanError::OverLimit { what, value: value.to_string(), limit, max: max.to_string() })
    };
    let (input, input_max) = (request.input_json.len(), limits.prompt_bytes_max);
    if input > input_max {
        return over("the input's length in bytes, as JSON,", input, "prompt_bytes_max", input_max);
    }
    match request.max_tokens {
        Some(0) => Err(PlanError::OutOfRange {
            what: "max_tokens",
            value: "0".into(),
            expected: "at least 1, or leave it out",
        }),
        Some(asked) if asked > limits.output_tokens_max => {
            over("max_tokens", asked as usize, "output_tokens_max", limits.output_tokens_max as usize)
        }
        _ => Ok(()),
    }
}

/// A plugin's own code is passed on if it is a word; it must not look like a sentence or one of the host's.
fn rejection_code(code: &str) -> String {
    let is_word = code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if is_word && !code.is_empty() && code.len() <= 64 { format!("rejected_{code}") } else { "rejected".to_owned() }
}

async fn session(
    host: &Arc<Host>,
    principal: &Principal,
    (name, manifest, grants, names, cold_bytes): (&FunctionName, &Manifest, &ResolvedGrants, &[String], &ColdBytes),
    lent: Lent,
    seed: u64,
    started: Instant,
    log: InvocationLog,
) -> Result<Session, Error> {
    let mut entries = Vec::new();
    for adapter in names {
        let Some(info) = host.adapters.info(&principal.tenant, adapter).await? else { continue };
        if !info.is_usable {
            continue;
        }
        entries.push(CatalogEntry {
            alias: adapter.clone(),
            digest: info.digest,
            rank: info.rank,
            residency: host.residency(&principal.tenant, &info),
        });
    }
    Ok(Session {
        catalog: Arc::new(FunctionCatalog {
            entries,
            host: Arc::clone(host),
            adapters: grants.adapters().clone(),
            cold_bytes: cold_bytes.clone(),
        }),
        log: Arc::new(FunctionLog { tenant: principal.tenant.to_string(), function: name.to_string(), log }),
        clock: Arc::new(RequestClock(started)),
        config: manifest.config.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        keyvalue: lent.keyvalue,
        secrets: lent.secrets,
        outbound: lent.outbound,
        tools: lent.tools,
        tokenizer: lent.tokenizer,
        functions: lent.nested.functions,
        generations: lent.nested.generations,
        output: lent.nested.output,
        limits: manifest.limits.plugin(),
        seed,
        record: None,
    })
}

/// Records the request, if the manifest says so of this one; a shadow's copy is nobody's request.
fn recorder(
    host: &Arc<Host>,
    principal: &Principal,
    called: &Called,
    (name, version, life, manifest): (&FunctionName, u32, u32, &Manifest),
    request: &str,
    log: &InvocationLog,
) -> Option<Recorder> {
    let record = manifest.record.filter(|record| !called.is_copy && record.takes(request))?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let head = RecordingHead {
        request: request.to_owned(),
        function: name.to_string(),
        version,
        plugin: manifest.plugin.to_string(),
        time_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    };
    let owner = RecordingOwner { tenant: principal.tenant.clone(), function: name.clone(), life };
    Some(host.recordings.recorder(owner, head, record.recordings_max, log.clone()))
}

/// The adapters that the manifest grants, as they were when the request began.
struct FunctionCatalog {
    entries: Vec<CatalogEntry>,
    host: Arc<Host>,
    adapters: ResolvedAdapters,
    cold_bytes: ColdBytes,
}

#[async_trait]
impl Catalog for FunctionCatalog {
    async fn adapters(&self) -> Result<Vec<CatalogEntry>, CapabilityError> {
        Ok(self.entries.clone())
    }

    async fn prefetch(&self, adapters: &[String]) -> Result<(), CapabilityError> {
        let max = self.host.plan_limits.prefetch_adapters_max;
        if adapters.len() > max {
            let (count, limit) = (adapters.len(), "prefetch_adapters_max");
            return Err(CapabilityError::Limit(format!("{limit} of {max}: {count} adapters")));
        }
        let mut hinted = Vec::new();
        for name in adapters {
            let granted = self.entries.iter().find(|entry| entry.alias == *name || entry.digest.to_string() == *name);
            let shown: String = name.chars().take(96).collect();
            let digest = granted.map(|entry| entry.digest).ok_or(CapabilityError::Denied(shown))?;
            hinted.push(digest);
        }
        let cold = hinted.iter().filter(|digest| self.host.adapters.is_cold(&self.adapters, **digest));
        let cold: Vec<_> = cold.filter_map(|digest| Some((*digest, self.adapters.bytes(*digest)?))).collect();
        self.cold_bytes.take(&[], &cold).map_err(|error| sessions::told_plan(&error))?;
        for digest in hinted {
            let begun = self.host.adapters.prefetch(&self.adapters, digest);
            begun.map_err(|error| CapabilityError::Failed(error.to_string()))?;
        }
        Ok(())
    }
}

struct FunctionLog {
    tenant: String,
    function: String,
    log: InvocationLog,
}

impl LogSink for FunctionLog {
    fn write(&self, level: LogLevel, message: &str) {
        let (tenant, function) = (&self.tenant, &self.function);
        let kept = match level {
            LogLevel::Debug => {
                tracing::debug!(target: "plugin", tenant, function, "{message:?}");
                Level::Debug
            }
            LogLevel::Info => {
                tracing::info!(target: "plugin", tenant, function, "{message:?}");
                Level::Info
            }
            LogLevel::Warn => {
                tracing::warn!(target: "plugin", tenant, function, "{message:?}");
                Level::Warn
            }
            LogLevel::Error => {
                tracing::error!(target: "plugin", tenant, function, "{message:?}");
                Level::Error
            }
        };
        self.log.write(kept, message);
    }
}

struct RequestClock(Instant);

impl Clock for RequestClock {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// Where the sandbox finds a component that it has no compiled form of.
struct StoredComponents(Artifacts, TenantId);

#[async_trait]
impl ComponentSource for StoredComponents {
    async fn component(&self, digest: Digest) -> Result<Bytes, PluginError> {
        self.0.get(ArtifactKind::Plugin, digest).await.map_err(|error| PluginError::Internal(error.to_string()))
    }

    fn tenant(&self) -> Option<&TenantId> {
        Some(&self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::rejection_code;

    #[test]
    fn a_plugin_cannot_forge_a_code_of_the_host() {
        assert_eq!(rejection_code("too_rude"), "rejected_too_rude");
        assert_eq!(rejection_code("unauthorized"), "rejected_unauthorized");
        assert_eq!(rejection_code("Bad Code\n"), "rejected");
        assert_eq!(rejection_code(""), "rejected");
    }
}
