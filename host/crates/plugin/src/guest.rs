//! One instance of a plugin and its calls, which run on whatever thread polls them. Not here: that thread (`calls.rs`,
//! `threads.rs`), what the answers mean, and what is done with them.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use wasmtime::component::{ResourceAny, ResourceTableError};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, WasmtimeBug};
use wasmtime_wasi::I32Exit;

use crate::bindings::Policy;
use crate::bindings::agent::Agent;
use crate::bindings::agent::exports::tenon::plugin::driver;
use crate::bindings::tenon::plugin::types as wit;
use crate::host::{Linked, Prepared, Shared};
use crate::limiter::Refused;
use crate::meter::{CpuMeter, Stop, Times, WallTime, metered};
use crate::spares::LastLook;
use crate::state::{InstanceState, OfGuest};
use crate::{PluginError, PluginLimits, Recorder, Session, record};

mod spare;

pub(crate) use spare::Spare;

/// Bytes of a guest's message that go into an error.
const MESSAGE_BYTES_MAX: usize = 1024;
/// The name of an instance's start in errors.
const START: &str = "start";
/// The name of an agent's call in errors.
const RUN: &str = "run";

/// The end of one may come at once: a call that meets two was under way for a whole one.
const EPOCHS_TO_FIRST_LOOK: u64 = 2;

/// What a plugin exports.
enum Exports {
    Policy(Policy),
    Agent(Agent),
}

/// One instance of a plugin. A trap or an abandoned call (a dropped future) leaves a guest in no particular state, so
/// every later call answers with an error.
pub(crate) struct Guest {
    _last_look: LastLook,
    // The store goes before the permit: its place in the pool is free before another may take it.
    store: Store<InstanceState>,
    exports: Exports,
    processor: Option<ResourceAny>,
    poison: Option<PluginError>,
    meter: Arc<CpuMeter>,
    limits: Arc<PluginLimits>,
    shared: Arc<Shared>,
    recorder: Option<Recorder>,
    start_cpu: Duration,
    /// Of the request's CPU time, what was used before it came.
    cpu_before: Duration,
    _place: Option<OwnedSemaphorePermit>,
}

/// A place among the instances, with or without one that has started already.
pub(crate) enum Place {
    Free(OwnedSemaphorePermit),
    Spare(Box<Spare>),
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
        place: Place,
        cpu_used: Duration,
    ) -> Result<Self, PluginError> {
        let limits = shared.limits_of(&session);
        let recorder = session.record.clone();
        if let Some(recorder) = &recorder {
            recorder.begin(session.seed, &session.config, &limits);
            recorder.called(START, &json!({}));
        }
        let request_cpu_max = Duration::from_millis(limits.request_cpu_ms_max);
        let cpu_before = match &place {
            Place::Spare(spare) => spare.cpu(),
            Place::Free(_) => Duration::ZERO,
        };
        let meter = CpuMeter::new(request_cpu_max, Arc::clone(&shared.share)).after(cpu_used + cpu_before);
        let meter = Arc::new(meter);
        let started = match place {
            Place::Spare(spare) => Ok(spare.given(&shared, prepared, session, &limits, &meter)),
            Place::Free(permit) => {
                let mut store = new_store(&shared, session, &limits, &meter, prepared);
                let exports = instantiate(&shared, prepared, &limits, &meter, &mut store).await;
                exports.map(|exports| (store, exports, Some(permit)))
            }
        };
        if let Some(recorder) = &recorder {
            recorder.returned(START, started.as_ref().map(|_| &()));
        }
        let (store, exports, _place) = started?;
        let start_cpu = cpu_before + meter.last_call();
        let (processor, poison) = (None, None);
        let _last_look = LastLook::at(prepared);
        Ok(Self {
            _last_look,
            store,
            exports,
            processor,
            poison,
            meter,
            limits,
            shared,
            recorder,
            start_cpu,
            cpu_before,
            _place,
        })
    }

    /// Asks what to do with the request.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn route(&mut self, request: &wit::Request) -> Result<wit::Decision, PluginError> {
        let watch = self.begin("route", || json!({"request": request}))?;
        let call = policy(&self.exports)?.tenon_plugin_hooks().call_route(&mut self.store, request);
        let outcome = watch.run(call).await;
        self.end("route", outcome)
    }

    /// Asks for the plan. It is untrusted.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn compose(&mut self, request: &wit::Request) -> Result<wit::Plan, PluginError> {
        let watch = self.begin("compose", || json!({"request": request}))?;
        let call = policy(&self.exports)?.tenon_plugin_hooks().call_compose(&mut self.store, request);
        let outcome = watch.run(call).await;
        self.end("compose", outcome)
    }

    /// Creates the guest's post-processor; call it once, before the first chunk.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn open_post_processor(&mut self, request: &wit::Request) -> Result<(), PluginError> {
        let name = "post-processor";
        let watch = self.begin(name, || json!({"request": request}))?;
        let hooks = policy(&self.exports)?.tenon_plugin_hooks().post_processor();
        let outcome = watch.run(hooks.call_constructor(&mut self.store, request)).await;
        let mut opened = None;
        // The resource is not part of what is recorded.
        let outcome = outcome.map(|result| {
            result.map(|processor| {
                opened = Some(processor);
                Ok(())
            })
        });
        self.end(name, outcome)?;
        self.processor = opened;
        Ok(())
    }

    /// Gives the post-processor decoded text.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn chunk(&mut self, chunk: &wit::Chunk) -> Result<Vec<wit::Action>, PluginError> {
        let name = "post-processor.chunk";
        let processor = self.processor()?;
        let watch = self.begin(name, || json!({"chunk": chunk}))?;
        let hooks = policy(&self.exports)?.tenon_plugin_hooks().post_processor();
        let outcome = watch.run(hooks.call_chunk(&mut self.store, processor, chunk)).await;
        let actions = self.end(name, outcome)?;
        self.at_most(name, actions.len())?;
        Ok(actions)
    }

    /// Tells the post-processor that the generation ended.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn finish(&mut self, usage: wit::Usage) -> Result<wit::Ending, PluginError> {
        let name = "post-processor.finish";
        let processor = self.processor()?;
        let watch = self.begin(name, || json!({"usage": usage}))?;
        let hooks = policy(&self.exports)?.tenon_plugin_hooks().post_processor();
        let outcome = watch.run(hooks.call_finish(&mut self.store, processor, usage)).await;
        let ending = self.end(name, outcome)?;
        self.at_most(name, ending.actions.len().max(ending.metadata.len()).max(ending.claims.len()))?;
        Ok(ending)
    }

    /// Has an agent do all of its work.
    ///
    /// # Errors
    /// What the call ran into.
    pub(crate) async fn run(&mut self, request: &wit::Request) -> Result<driver::Answer, PluginError> {
        let watch = self.begin(RUN, || json!({"request": request}))?;
        let Exports::Agent(agent) = &self.exports else { return Err(other_world()) };
        let outcome = watch.run(agent.tenon_plugin_driver().call_run(&mut self.store, request)).await;
        let answer = self.end(RUN, outcome)?;
        self.at_most(RUN, answer.metadata.len().max(answer.claims.len()))?;
        Ok(answer)
    }

    /// CPU time that the request has used in all instances so far.
    pub(crate) fn cpu_used(&self) -> Duration {
        self.meter.used()
    }

    /// CPU time that its start took, whenever that was.
    pub(crate) const fn start_cpu(&self) -> Duration {
        self.start_cpu
    }

    /// What it is kept to.
    pub(crate) const fn limits(&self) -> &Arc<PluginLimits> {
        &self.limits
    }

    /// What it used of that before there was a request.
    pub(crate) const fn cpu_before(&self) -> Duration {
        self.cpu_before
    }

    /// Whether its calls are written down, which takes time that no meter sees.
    pub(crate) const fn is_recorded(&self) -> bool {
        self.recorder.is_some()
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
    fn begin(&mut self, call: &'static str, arguments: impl FnOnce() -> Value) -> Result<Watch, PluginError> {
        if let Some(poison) = &self.poison {
            return Err(poison.clone());
        }
        if self.meter.is_used_up() {
            let error = request_cpu_time(call, &self.limits);
            self.poison = Some(error.clone());
            return Err(error);
        }
        self.poison = Some(PluginError::Trap { call, reason: "the call was abandoned".to_owned() });
        if let Some(recorder) = &self.recorder {
            recorder.called(call, &arguments());
        }
        self.store.set_epoch_deadline(EPOCHS_TO_FIRST_LOOK);
        self.store.data_mut().begin_call();
        let limits = &self.limits;
        let (cpu_ms_max, wall_ms_max, counts_nested) = match call {
            RUN => (limits.run_cpu_ms_max, limits.run_wall_ms_max, true),
            _ => (limits.call_cpu_ms_max, limits.call_wall_ms_max, false),
        };
        let (cpu_max, wall_max) = (Duration::from_millis(cpu_ms_max), Duration::from_millis(wall_ms_max));
        let times = Times { cpu_max, wall_max, counts_nested };
        Ok(Watch { shared: Arc::clone(&self.shared), meter: Arc::clone(&self.meter), times })
    }

    fn end<T: Serialize>(&mut self, call: &'static str, outcome: Outcome<Result<T, String>>) -> Result<T, PluginError> {
        let result = self.settle(call, outcome);
        if let Some(recorder) = &self.recorder {
            recorder.returned(call, result.as_ref());
        }
        result
    }

    fn settle<T>(&mut self, call: &'static str, outcome: Outcome<Result<T, String>>) -> Result<T, PluginError> {
        match flatten(outcome).and_then(|answer| within_calls(answer, self.store.data())) {
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

/// The exports of the world that the host asked for by the wrong name.
fn policy(exports: &Exports) -> Result<&Policy, PluginError> {
    match exports {
        Exports::Policy(policy) => Ok(policy),
        Exports::Agent(_) => Err(other_world()),
    }
}

fn other_world() -> PluginError {
    PluginError::Internal("a plugin was called by the other world's functions".to_owned())
}

fn state_of(
    shared: &Shared,
    session: Session,
    limits: &Arc<PluginLimits>,
    meter: &Arc<CpuMeter>,
    prepared: &Prepared,
) -> InstanceState {
    let (is_agent, has_wasi_random) = (prepared.plugin.is_agent(), prepared.has_wasi_random);
    let of_guest = OfGuest { is_agent, has_wasi_random };
    InstanceState::new(record::noted(session), limits, meter, of_guest, &shared.log_lines_dropped)
}

fn new_store(
    shared: &Shared,
    session: Session,
    limits: &Arc<PluginLimits>,
    meter: &Arc<CpuMeter>,
    prepared: &Prepared,
) -> Store<InstanceState> {
    let mut store = Store::new(&shared.engine, state_of(shared, session, limits, meter, prepared));
    store.limiter(|state| &mut state.limiter);
    bind(&mut store, limits, meter);
    store
}

/// Has a store's guest kept to these limits and by this meter from now on.
fn bind(store: &mut Store<InstanceState>, limits: &PluginLimits, meter: &Arc<CpuMeter>) {
    store.set_hostcall_fuel(limits.transfer_bytes_max);
    store.set_max_component_handles(limits.handles_max);
    let meter = Arc::clone(meter);
    store.epoch_deadline_callback(move |store| match store.data().over_calls() {
        Some(stop) => Err(wasmtime::Error::new(stop)),
        None => meter.look(),
    });
    store.set_epoch_deadline(EPOCHS_TO_FIRST_LOOK);
}

/// Starts the guest.
async fn instantiate(
    shared: &Shared,
    prepared: &Prepared,
    limits: &PluginLimits,
    meter: &Arc<CpuMeter>,
    store: &mut Store<InstanceState>,
) -> Result<Exports, PluginError> {
    let times = Times {
        cpu_max: Duration::from_millis(limits.start_cpu_ms_max),
        wall_max: Duration::from_millis(limits.call_wall_ms_max),
        counts_nested: true,
    };
    let instantiating = async {
        Ok(match &**prepared.plugin {
            Linked::Policy(plugin) => Exports::Policy(plugin.instantiate_async(&mut *store).await?),
            Linked::Agent(plugin) => Exports::Agent(plugin.instantiate_async(&mut *store).await?),
        })
    };
    let outcome = shared.ticker.during_polls(metered(Arc::clone(meter), times, instantiating)).await;
    let outcome = flatten(outcome).and_then(|exports| within_calls(exports, store.data()));
    outcome.map_err(|failure| failure.explain(START, store.data_mut()))
}

/// The times of one call.
struct Watch {
    shared: Arc<Shared>,
    meter: Arc<CpuMeter>,
    times: Times,
}

impl Watch {
    async fn run<T>(self, call: impl Future<Output = wasmtime::Result<T>>) -> Outcome<T> {
        self.shared.ticker.during_polls(metered(self.meter, self.times, call)).await
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

/// A guest that came to its end before anyone looked has still called too often.
fn within_calls<T>(answer: T, state: &InstanceState) -> Result<T, Failure> {
    state.over_calls().map_or(Ok(answer), |stop| Err(Failure::Stopped(wasmtime::Error::new(stop))))
}

impl Failure {
    fn explain(self, call: &'static str, state: &mut InstanceState) -> PluginError {
        let limits = Arc::clone(&state.limits);
        let error = match self {
            Self::WallTime if call == RUN => {
                return PluginError::Timeout { call, limit: "run_wall_ms_max", max_ms: limits.run_wall_ms_max };
            }
            Self::WallTime => {
                return PluginError::Timeout { call, limit: "call_wall_ms_max", max_ms: limits.call_wall_ms_max };
            }
            Self::Stopped(error) => error,
        };
        match error.downcast_ref::<Stop>() {
            Some(Stop::CpuTime) if call == START => {
                return PluginError::Timeout { call, limit: "start_cpu_ms_max", max_ms: limits.start_cpu_ms_max };
            }
            Some(Stop::CpuTime) if call == RUN => {
                return PluginError::Timeout { call, limit: "run_cpu_ms_max", max_ms: limits.run_cpu_ms_max };
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
