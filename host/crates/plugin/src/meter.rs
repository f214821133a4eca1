//! Limits on the time of one call: CPU time that the guest uses, and time on the wall, waiting in host functions
//! included. Not here: the thread that advances the epoch (`ticker.rs`).
//!
//! An epoch is time on the wall, and on a busy machine a guest may get little of it. So the end of an epoch only makes
//! the guest give way to other tasks; whether it may go on is decided by the CPU time of the threads that polled it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wasmtime::UpdateDeadline;

/// Epochs between two looks at the meter.
const EPOCHS_PER_LOOK: u64 = 1;

/// CPU time of the call in progress, and of those before it. Only the thread that polls the call touches it, so `Relaxed` is enough.
#[derive(Debug, Default)]
pub(crate) struct CpuMeter {
    used_before_poll_ns: AtomicU64,
    poll_began_ns: AtomicU64,
    max_ns: AtomicU64,
    /// Of all calls that have ended.
    earlier_ns: AtomicU64,
    request_max_ns: u64,
}

/// What stopped a guest, when it was not its own trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    #[error("the CPU time of the call is used up")]
    CpuTime,
    #[error("the CPU time of the request is used up")]
    RequestCpuTime,
    #[error("the call has called the host too often")]
    HostCalls,
    #[error("the request has called the host too often")]
    RequestHostCalls,
}

/// The call did not end within its time on the wall.
#[derive(Debug)]
pub(crate) struct WallTime;

impl CpuMeter {
    /// For one request that may use so much in all its calls.
    pub(crate) fn new(request_max: Duration) -> Self {
        Self { request_max_ns: nanoseconds(request_max), ..Self::default() }
    }

    /// The same for a request that has used so much already, in other instances.
    pub(crate) fn after(self, used: Duration) -> Self {
        Self { earlier_ns: AtomicU64::new(nanoseconds(used)), ..self }
    }

    /// Used so far by all calls of the request.
    pub(crate) fn used(&self) -> Duration {
        let last_ns = self.used_before_poll_ns.load(Ordering::Relaxed);
        Duration::from_nanos(self.earlier_ns.load(Ordering::Relaxed).saturating_add(last_ns))
    }

    /// Used so far by the last call.
    pub(crate) fn last_call(&self) -> Duration {
        Duration::from_nanos(self.used_before_poll_ns.load(Ordering::Relaxed))
    }

    /// Whether no further call may begin. A call that ends within its first epoch is never looked at.
    pub(crate) fn is_used_up(&self) -> bool {
        let last_ns = self.used_before_poll_ns.load(Ordering::Relaxed);
        self.earlier_ns.load(Ordering::Relaxed).saturating_add(last_ns) > self.request_max_ns
    }

    /// What to do at the end of an epoch.
    pub(crate) fn look(&self) -> wasmtime::Result<UpdateDeadline> {
        let used_ns = self.used_ns();
        if used_ns > self.max_ns.load(Ordering::Relaxed) {
            return Err(wasmtime::Error::new(Stop::CpuTime));
        }
        if self.earlier_ns.load(Ordering::Relaxed).saturating_add(used_ns) > self.request_max_ns {
            return Err(wasmtime::Error::new(Stop::RequestCpuTime));
        }
        Ok(UpdateDeadline::YieldCustom(EPOCHS_PER_LOOK, Box::pin(tokio::task::yield_now())))
    }

    fn used_ns(&self) -> u64 {
        let in_this_poll = thread_cpu_ns().saturating_sub(self.poll_began_ns.load(Ordering::Relaxed));
        self.used_before_poll_ns.load(Ordering::Relaxed).saturating_add(in_this_poll)
    }

    fn reset(&self, max: Duration) {
        let used_ns = self.used_before_poll_ns.swap(0, Ordering::Relaxed);
        self.earlier_ns.fetch_add(used_ns, Ordering::Relaxed);
        self.max_ns.store(nanoseconds(max), Ordering::Relaxed);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs a call within its times.
pub(crate) async fn metered<T>(
    meter: Arc<CpuMeter>,
    cpu_max: Duration,
    wall_max: Duration,
    call: impl Future<Output = T>,
) -> Result<T, WallTime> {
    meter.reset(cpu_max);
    let mut call = pin!(call);
    let counted = std::future::poll_fn(|context| {
        meter.poll_began_ns.store(thread_cpu_ns(), Ordering::Relaxed);
        let poll = call.as_mut().poll(context);
        meter.used_before_poll_ns.store(meter.used_ns(), Ordering::Relaxed);
        poll
    });
    tokio::time::timeout(wall_max, counted).await.map_err(|_| WallTime)
}

fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
