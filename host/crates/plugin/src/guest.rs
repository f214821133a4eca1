//! One instance of a plugin and its calls, which run on whatever thread polls them. Not here: that thread (`calls.rs`,
//! `threads.rs`), what the answers mean, and what is done with them.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use types::{Action, Chunk, Decision, Ending, HookUsage, InvocationRequest, Plan};
use wasmtime::component::{ResourceAny, ResourceTableError};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmtimeBug};
use wasmtime_wasi::I32Exit;

use crate::bindings::Policy;
use crate::convert;
use crate::host::{Prepared, Shared};
use crate::limiter::Refused;
use crate::meter::{CpuMeter, Stop, WallTime, metered};
use crate::state::InstanceState;
use crate::{PluginError, PluginLimits, Session};

/// Bytes of a guest's message that go into an error.
const MESSAGE_BYTES_MAX: usize = 1024;
/// The name of an instance's start in errors.
const START: &str = "start";

/// One instance of a plugin. A trap or an abandoned call (a dropped future) leaves a guest in no particular state, so
/// every later call answers with an error.
pub(crate) struct Guest {
    // The store goes before the permit: its place in the pool is free before another may take it.
    store: Store<InstanceState>,
    policy: Policy,
    processor: Option<ResourceAny>,
    poison: Option<PluginError>,
    meter: Arc<CpuMeter>,
    limits: Arc<PluginLimits>,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("poison", &self.poison).finish_non_exhaustive()
    }
}

impl Guest {
    pub(crate) async fn start(
        shared: Arc<Shared>,
        prepared: &Prepared,
        session: Session,
        permit: OwnedSemaphorePermit,
        cpu_used: Duration,
    ) -> Result<Self, PluginError> {
        let limits = shared.limits_of(&session);
        let meter = Arc::new(CpuMeter::new(Duration::from_millis(limits.request_cpu_ms_max)).after(cpu_used));
        let mut store = new_store(&shared, session, &limits, &meter, prepared.has_wasi_random);
        let running = shared.ticker.running();
        let cpu_max = Duration::from_millis(limits.start_cpu_ms_max);
        let wall_max = Duration::from_millis(limits.call_wall_ms_max);
        let starting = prepared.plugin.instantiate_async(&mut store);
        let outcome = metered(Arc::clone(&meter), cpu_max, wall_max, starting).await;
        drop(running);
        let policy = flatten(outcome).map_err(|failure| failure.explain(START, store.data_mut()))?;
        Ok(Self { store, policy, processor: None, poison: None, meter, limits, shared, _permit: permit })
    }

    /// Asks what to do with the request.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn route(&mut self, request: &InvocationRequest) -> Result<Decision, PluginError> {
        let request = convert::request_to_wit(request);
        let watch = self.begin("route")?;
        let call = self.policy.tenon_plugin_hooks().call_route(&mut self.store, &request);
        let outcome = watch.run(call).await;
        self.end("route", outcome).map(convert::decision_from_wit)
    }

    /// Asks for the plan. It is untrusted.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn compose(&mut self, request: &InvocationRequest) -> Result<Plan, PluginError> {
        let request = convert::request_to_wit(request);
        let watch = self.begin("compose")?;
        let call = self.policy.tenon_plugin_hooks().call_compose(&mut self.store, &request);
        let outcome = watch.run(call).await;
        self.end("compose", outcome).map(convert::plan_from_wit)
    }

    /// Creates the guest's post-processor; call it once, before the first chunk.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn open_post_processor(&mut self, request: &InvocationRequest) -> Result<(), PluginError> {
        let name = "post-processor";
        let request = convert::request_to_wit(request);
        let watch = self.begin(name)?;
        let hooks = self.policy.tenon_plugin_hooks().post_processor();
        let outcome = watch.run(hooks.call_constructor(&mut self.store, &request)).await;
        self.processor = Some(self.end(name, outcome.map(|result| result.map(Ok)))?);
        Ok(())
    }

    /// Gives the post-processor decoded text.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn chunk(&mut self, chunk: Chunk) -> Result<Vec<Action>, PluginError> {
        let name = "post-processor.chunk";
        let processor = self.processor()?;
        let chunk = convert::chunk_to_wit(chunk);
        let watch = self.begin(name)?;
        let hooks = self.policy.tenon_plugin_hooks().post_processor();
        let outcome = watch.run(hooks.call_chunk(&mut self.store, processor, &chunk)).await;
        let actions = self.end(name, outcome)?;
        self.at_most(name, actions.len())?;
        Ok(convert::actions_from_wit(actions))
    }

    /// Tells the post-processor that the generation ended.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn finish(&mut self, usage: HookUsage) -> Result<Ending, PluginError> {
        let name = "post-processor.finish";
        let processor = self.processor()?;
        let usage = convert::usage_to_wit(usage);
        let watch = self.begin(name)?;
        let hooks = self.policy.tenon_plugin_hooks().post_processor();
        let outcome = watch.run(hooks.call_finish(&mut self.store, processor, usage)).await;
        let ending = self.end(name, outcome)?;
        self.at_most(name, ending.actions.len().max(ending.metadata.len()).max(ending.claims.len()))?;
        Ok(convert::ending_from_wit(ending))
    }

    /// CPU time that the request has used in all instances so far.
    pub(crate) fn cpu_used(&self) -> Duration {
        self.meter.used()
    }

    /// CPU time that the last call has used so far.
    pub(crate) fn last_call_cpu(&self) -> Duration {
        self.meter.last_call()
    }

    /// Log lines that were dropped because they were over a limit of the request.
    pub(crate) fn log_lines_dropped(&self) -> u32 {
        self.store.data().log_lines_dropped
    }

    fn processor(&self) -> Result<ResourceAny, PluginError> {
        if let Some(poison) = &self.poison {
            return Err(poison.clone());
        }
        let missing = || PluginError::Internal("a chunk before the post-processor was opened".to_owned());
        self.processor.ok_or_else(missing)
    }

    fn at_most(&self, call: &'static str, count: usize) -> Result<(), PluginError> {
        if count <= self.limits.actions_max {
            return Ok(());
        }
        Err(PluginError::Limit { call, limit: "actions_max" })
    }

    /// Until [`Self::end`] the instance counts as abandoned, which is what it is when the future is dropped.
    fn begin(&mut self, call: &'static str) -> Result<Watch, PluginError> {
        if let Some(poison) = &self.poison {
            return Err(poison.clone());
        }
        if self.meter.is_used_up() {
            let error = request_cpu_time(call, &self.limits);
            self.poison = Some(error.clone());
            return Err(error);
        }
        self.poison = Some(PluginError::Trap { call, reason: "the call was abandoned".to_owned() });
        self.store.set_epoch_deadline(1);
        self.store.data_mut().begin_call();
        let (shared, limits) = (Arc::clone(&self.shared), Arc::clone(&self.limits));
        Ok(Watch { shared, meter: Arc::clone(&self.meter), limits })
    }

    fn end<T>(&mut self, call: &'static str, outcome: Outcome<Result<T, String>>) -> Result<T, PluginError> {
        match flatten(outcome) {
            Ok(answer) => {
                self.poison = None;
                answer.map_err(|message| PluginError::Guest { call, message: shorten(&message) })
            }
            Err(failure) => {
                let error = failure.explain(call, self.store.data_mut());
                self.poison = Some(error.clone());
                Err(error)
            }
        }
    }
}

fn new_store(
    shared: &Shared,
    session: Session,
    limits: &Arc<PluginLimits>,
    meter: &Arc<CpuMeter>,
    has_wasi_random: bool,
) -> Store<InstanceState> {
    let state = InstanceState::new(session, limits, &shared.log_lines_dropped, has_wasi_random);
    let mut store = Store::new(&shared.engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(limits.transfer_bytes_max);
    store.set_max_component_handles(limits.handles_max);
    let meter = Arc::clone(meter);
    store.epoch_deadline_callback(move |_| meter.look());
    store.set_epoch_deadline(1);
    store
}

/// The times of one call.
struct Watch {
    shared: Arc<Shared>,
    meter: Arc<CpuMeter>,
    limits: Arc<PluginLimits>,
}

impl Watch {
    async fn run<T>(self, call: impl Future<Output = wasmtime::Result<T>>) -> Outcome<T> {
        let _running = self.shared.ticker.running();
        let cpu_max = Duration::from_millis(self.limits.call_cpu_ms_max);
        let wall_max = Duration::from_millis(self.limits.call_wall_ms_max);
        metered(self.meter, cpu_max, wall_max, call).await
    }
}

type Outcome<T> = Result<wasmtime::Result<T>, WallTime>;

/// Why a call did not come back with an answer.
enum Failure {
    WallTime,
    Stopped(wasmtime::Error),
}

fn flatten<T>(outcome: Outcome<T>) -> Result<T, Failure> {
    match outcome {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Failure::Stopped(error)),
        Err(WallTime) => Err(Failure::WallTime),
    }
}

impl Failure {
    fn explain(self, call: &'static str, state: &mut InstanceState) -> PluginError {
        let limits = Arc::clone(&state.limits);
        let error = match self {
            Self::WallTime => {
                return PluginError::Timeout { call, limit: "call_wall_ms_max", max_ms: limits.call_wall_ms_max };
            }
            Self::Stopped(error) => error,
        };
        match error.downcast_ref::<Stop>() {
            Some(Stop::CpuTime) if call == START => {
                return PluginError::Timeout { call, limit: "start_cpu_ms_max", max_ms: limits.start_cpu_ms_max };
            }
            Some(Stop::CpuTime) => {
                return PluginError::Timeout { call, limit: "call_cpu_ms_max", max_ms: limits.call_cpu_ms_max };
            }
            Some(Stop::RequestCpuTime) => return request_cpu_time(call, &limits),
            Some(Stop::HostCalls) => return PluginError::Limit { call, limit: "host_calls_max" },
            Some(Stop::RequestHostCalls) => return PluginError::Limit { call, limit: "request_host_calls_max" },
            None => {}
        }
        if error.is::<PoolConcurrencyLimitError>() {
            return PluginError::Busy { limit: "instances_max" };
        }
        if error.is::<WasmtimeBug>() {
            return PluginError::Internal(format!("{error:#}"));
        }
        match state.limiter.take_refused() {
            Some(Refused::Memory) => PluginError::OutOfMemory { call, max_bytes: limits.memory_bytes_max },
            Some(Refused::Table) => PluginError::Limit { call, limit: "table_elements_max" },
            None => explain_trap(call, &error),
        }
    }
}

fn request_cpu_time(call: &'static str, limits: &PluginLimits) -> PluginError {
    PluginError::Timeout { call, limit: "request_cpu_ms_max", max_ms: limits.request_cpu_ms_max }
}

fn explain_trap(call: &'static str, error: &wasmtime::Error) -> PluginError {
    let reason = if let Some(trap) = error.downcast_ref::<Trap>() {
        trap.to_string()
    } else if let Some(I32Exit(code)) = error.downcast_ref::<I32Exit>() {
        format!("it called exit with status {code}")
    } else {
        let cause = error.root_cause().to_string();
        // The errors' types are private to wasmtime; tests hold these texts to the version in use.
        if cause.contains("fuel allocated for hostcalls") {
            return PluginError::Limit { call, limit: "transfer_bytes_max" };
        }
        if cause.contains("total size of fields exceeds limit") {
            return PluginError::Limit { call, limit: "http_headers_bytes_max" };
        }
        if cause.contains("handle limit exceeded") || matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
            return PluginError::Limit { call, limit: "handles_max" };
        }
        shorten(&cause)
    };
    PluginError::Trap { call, reason }
}

/// A guest's message must not fill the log.
fn shorten(message: &str) -> String {
    let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
    message.get(..end).unwrap_or_default().to_owned()
}
