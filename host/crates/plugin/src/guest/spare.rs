//! An instance that is started before its request: what a guest does when it starts depends on its component alone, as long as it
//! asks the host for nothing, so that it may be done while nobody waits. Not here: how many are kept, and for how long (`spares.rs`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;

use super::{Exports, bind, instantiate, new_store};
use crate::host::{Prepared, Shared};
use crate::meter::CpuMeter;
use crate::spares::Held;
use crate::state::InstanceState;
use crate::{
    CapabilityError, Catalog, CatalogEntry, Clock, LogLevel, LogSink, Nothing, OwnLimits, PluginLimits, Session,
};

/// An instance without a request, of the limits that it was started under. It has asked the host for nothing.
pub(crate) struct Spare {
    store: Store<InstanceState>,
    exports: Exports,
    cpu: Duration,
    limits: Arc<PluginLimits>,
    held: Held,
}

impl Spare {
    /// Starts one; `None` if it failed, or asked the host for something: another request might have been answered otherwise.
    pub(crate) async fn start(
        shared: &Shared,
        prepared: &Prepared,
        limits: Arc<PluginLimits>,
        held: Held,
    ) -> Option<Self> {
        let request_cpu_max = Duration::from_millis(limits.request_cpu_ms_max);
        let meter = Arc::new(CpuMeter::new(request_cpu_max, Arc::clone(&shared.share)));
        let mut store = new_store(shared, nobody(), &limits, &meter, prepared);
        let exports = instantiate(shared, prepared, &limits, &meter, &mut store).await.ok()?;
        let cpu = meter.last_call();
        store.data_mut().is_untouched().then_some(Self { store, exports, cpu, limits, held })
    }

    /// Whether a request under these limits would have started it the same way.
    pub(crate) fn fits(&self, limits: &PluginLimits) -> bool {
        *self.limits == *limits
    }

    /// CPU time that its start took.
    pub(crate) const fn cpu(&self) -> Duration {
        self.cpu
    }

    /// Of its memories, touched or not.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.store.data().limiter.memory_bytes()
    }

    /// Makes it the request's, with its place among the instances.
    pub(super) fn given(
        mut self,
        shared: &Shared,
        prepared: &Prepared,
        session: Session,
        limits: &Arc<PluginLimits>,
        meter: &Arc<CpuMeter>,
    ) -> (Store<InstanceState>, Exports, Option<OwnedSemaphorePermit>) {
        let state = super::state_of(shared, session, limits, meter, prepared);
        let before = std::mem::replace(self.store.data_mut(), state);
        self.store.data_mut().limiter = before.limiter;
        bind(&mut self.store, limits, meter);
        (self.store, self.exports, self.held.given())
    }
}

/// A session that grants nothing and in which no time passes.
fn nobody() -> Session {
    let nothing = Arc::new(Nothing);
    Session {
        catalog: Arc::new(Nobody),
        log: Arc::new(Nobody),
        clock: Arc::new(Nobody),
        config: Vec::new(),
        keyvalue: nothing.clone(),
        secrets: nothing.clone(),
        outbound: nothing.clone(),
        tools: nothing.clone(),
        tokenizer: nothing.clone(),
        functions: nothing.clone(),
        generations: nothing.clone(),
        output: nothing,
        limits: OwnLimits::default(),
        seed: 0,
        record: None,
    }
}

struct Nobody;

#[async_trait]
impl Catalog for Nobody {
    async fn adapters(&self) -> Result<Vec<CatalogEntry>, CapabilityError> {
        Ok(Vec::new())
    }

    async fn prefetch(&self, _: &[String]) -> Result<(), CapabilityError> {
        Ok(())
    }
}

impl LogSink for Nobody {
    fn write(&self, _: LogLevel, _: &str) {}
}

impl Clock for Nobody {
    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    fn unix_time(&self) -> Duration {
        Duration::ZERO
    }
}
