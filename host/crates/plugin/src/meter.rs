//! Limits on the time of one call: CPU time that the guest uses, and time on the wall, waiting in host functions
//! included. Not here: the thread that advances the epoch (`ticker.rs`).
//!
//! An epoch is time on the wall, and on a busy machine a guest may get little of it. So the end of an epoch only makes
//! the guest give way to other tasks; whether it may go on is decided by the CPU time of the threads that polled it.
//!
//! A thread's CPU time is asked of the kernel, which takes 0.4 us: twice that was two fifths of a chunk that passes. So a short
//! poll counts by the clock on the wall, which needs no call of the kernel and never shows less than was computed; and a poll
//! that follows another one closely begins, for the meter, where the thread's CPU time was last read. Both err by little, and
//! against the guest.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use wasmtime::UpdateDeadline;

use crate::share::CpuShare;

/// Epochs between two looks at the meter.
const EPOCHS_PER_LOOK: u64 = 1;
/// CPU time since a guest last gave way, below which it goes on: half an epoch. The epoch of one that waited for the host has ended
/// meanwhile, and yet it has not computed to its end. Counted over waits, or a guest would never pause that waits often enough.
const COMPUTED_LEAST_NS: u64 = 1_000_000;
/// A poll that took no longer counts by the wall. A thread that lost its core meanwhile was away for longer than that, mostly.
const SHORT_POLL_NS: u64 = 50_000;
/// How long ago a thread's CPU time may have been read at the beginning of a poll; so much of what it did before may count.
const READING_AGE_MAX_NS: u64 = 100_000;
/// Between two looks at the clock while a call waits for a request of its own.
const NESTED_LOOK: Duration = Duration::from_millis(50);

/// CPU time of the call in progress, and of those before it. Only the thread that polls the call touches it, so `Relaxed` is enough.
#[derive(Debug)]
pub(crate) struct CpuMeter {
    used_before_poll_ns: AtomicU64,
    /// The thread's CPU time then, or a little less.
    poll_began_ns: AtomicU64,
    /// On the wall.
    poll_began_at_ns: AtomicU64,
    max_ns: AtomicU64,
    /// What of the call in progress was used when its guest last gave way.
    gave_way_ns: AtomicU64,
    /// Of all calls that have ended.
    earlier_ns: AtomicU64,
    request_max_ns: u64,
    nested: Mutex<Nested>,
    /// Of all guests.
    share: Arc<CpuShare>,
}

/// How long the call in progress waited for requests of its own, which have limits of their own.
#[derive(Debug, Default)]
struct Nested {
    earlier: Duration,
    since: Option<Instant>,
}

impl Nested {
    fn so_far(&self) -> Duration {
        self.earlier + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// The times that one call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) cpu_max: Duration,
    pub(crate) wall_max: Duration,
    /// Whether waiting for requests of its own counts as well.
    pub(crate) counts_nested: bool,
}

/// Waits for a request of the call's own, until this is dropped.
#[derive(Debug)]
pub(crate) struct NestedWait(Arc<CpuMeter>);

impl NestedWait {
    pub(crate) fn begin(meter: &Arc<CpuMeter>) -> Self {
        meter.nested().since = Some(Instant::now());
        Self(Arc::clone(meter))
    }
}

impl Drop for NestedWait {
    fn drop(&mut self) {
        let mut nested = self.0.nested();
        nested.earlier = nested.so_far();
        nested.since = None;
    }
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
    pub(crate) fn new(request_max: Duration, share: Arc<CpuShare>) -> Self {
        let [used_before_poll_ns, poll_began_ns, poll_began_at_ns, max_ns, gave_way_ns, earlier_ns] =
            [const { AtomicU64::new(0) }; 6];
        Self {
            used_before_poll_ns,
            poll_began_ns,
            poll_began_at_ns,
            max_ns,
            gave_way_ns,
            earlier_ns,
            request_max_ns: nanoseconds(request_max),
            nested: Mutex::default(),
            share,
        }
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
        if used_ns.saturating_sub(self.gave_way_ns.load(Ordering::Relaxed)) < COMPUTED_LEAST_NS {
            return Ok(UpdateDeadline::Continue(EPOCHS_PER_LOOK));
        }
        self.gave_way_ns.store(used_ns, Ordering::Relaxed);
        Ok(match self.share.pause() {
            Some(pause) => UpdateDeadline::YieldCustom(EPOCHS_PER_LOOK, Box::pin(tokio::time::sleep(pause))),
            None => UpdateDeadline::YieldCustom(EPOCHS_PER_LOOK, Box::pin(tokio::task::yield_now())),
        })
    }

    fn nested(&self) -> std::sync::MutexGuard<'_, Nested> {
        self.nested.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of a time on the wall that began then, and when to look again.
    fn wall_left(&self, begun: Instant, times: Times) -> Option<Duration> {
        let nested = self.nested();
        let (apart, is_waiting) = match times.counts_nested {
            true => (Duration::ZERO, false),
            false => (nested.so_far(), nested.since.is_some()),
        };
        let left = times.wall_max.checked_sub(begun.elapsed().saturating_sub(apart)).filter(|left| !left.is_zero())?;
        Some(if is_waiting { left.max(NESTED_LOOK) } else { left })
    }

    fn begin_poll(&self) {
        let now_ns = wall_ns();
        self.poll_began_at_ns.store(now_ns, Ordering::Relaxed);
        self.poll_began_ns.store(Reading::of_late(now_ns).cpu_ns, Ordering::Relaxed);
    }

    fn end_poll(&self) {
        let now_ns = wall_ns();
        let in_this_poll = self.used_in_poll_ns(now_ns);
        self.used_before_poll_ns.fetch_add(in_this_poll, Ordering::Relaxed);
        self.share.took(now_ns, in_this_poll);
    }

    fn used_ns(&self) -> u64 {
        self.used_before_poll_ns.load(Ordering::Relaxed).saturating_add(self.used_in_poll_ns(wall_ns()))
    }

    /// Never less than was used, by a clock on the wall that goes as fast as the kernel's.
    fn used_in_poll_ns(&self, now_ns: u64) -> u64 {
        let so_far_ns = now_ns.saturating_sub(self.poll_began_at_ns.load(Ordering::Relaxed));
        if so_far_ns <= SHORT_POLL_NS {
            return so_far_ns;
        }
        Reading::now(now_ns).cpu_ns.saturating_sub(self.poll_began_ns.load(Ordering::Relaxed))
    }

    fn reset(&self, max: Duration) {
        let used_ns = self.used_before_poll_ns.swap(0, Ordering::Relaxed);
        self.earlier_ns.fetch_add(used_ns, Ordering::Relaxed);
        self.max_ns.store(nanoseconds(max), Ordering::Relaxed);
        self.gave_way_ns.store(0, Ordering::Relaxed);
        *self.nested() = Nested::default();
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs a call within its times.
pub(crate) async fn metered<T>(
    meter: Arc<CpuMeter>,
    times: Times,
    call: impl Future<Output = T>,
) -> Result<T, WallTime> {
    meter.reset(times.cpu_max);
    let begun = Instant::now();
    let mut call = pin!(call);
    let counted = std::future::poll_fn(|context| {
        meter.begin_poll();
        let poll = call.as_mut().poll(context);
        meter.end_poll();
        poll
    });
    let over = async {
        while let Some(left) = meter.wall_left(begun, times) {
            tokio::time::sleep(left).await;
        }
    };
    tokio::select! {
        biased;
        outcome = counted => Ok(outcome),
        () = over => Err(WallTime),
    }
}

/// This thread's CPU time, and when it was read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at_ns: u64,
    cpu_ns: u64,
}

thread_local! {
    static LAST_READING: Cell<Option<Reading>> = const { Cell::new(None) };
}

impl Reading {
    fn now(at_ns: u64) -> Self {
        let reading = Self { at_ns, cpu_ns: thread_cpu_ns() };
        LAST_READING.set(Some(reading));
        reading
    }

    /// The last one if it is recent, and one of now otherwise.
    fn of_late(now_ns: u64) -> Self {
        let is_recent = |last: &Self| now_ns.saturating_sub(last.at_ns) <= READING_AGE_MAX_NS;
        LAST_READING.get().filter(is_recent).unwrap_or_else(|| Self::now(now_ns))
    }
}

fn thread_cpu_ns() -> u64 {
    clock_ns(ClockId::ThreadCPUTime)
}

/// Since some moment before this process.
pub(crate) fn wall_ns() -> u64 {
    clock_ns(ClockId::Monotonic)
}

fn clock_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute(cpu_ns: u64) {
        let until = thread_cpu_ns() + cpu_ns;
        while thread_cpu_ns() < until {
            std::hint::spin_loop();
        }
    }

    /// Whether a guest gives way that has waited, and then computed for so long, each time one is polled for it.
    fn gives_way(meter: &CpuMeter, cpu_ns: u64) -> bool {
        meter.begin_poll();
        compute(cpu_ns);
        let gives_way = !matches!(meter.look().expect("within its time"), UpdateDeadline::Continue(_));
        meter.end_poll();
        gives_way
    }

    /// What a call is charged that computes for so long in each of so many polls.
    fn charged_ns(polls: u32, cpu_ns: u64) -> u64 {
        let meter = CpuMeter::new(Duration::from_secs(60), Arc::new(CpuShare::of(1)));
        meter.reset(Duration::from_secs(60));
        (0..polls).for_each(|_| {
            meter.begin_poll();
            compute(cpu_ns);
            meter.end_poll();
        });
        u64::try_from(meter.last_call().as_nanos()).expect("short")
    }

    #[test]
    fn neither_many_short_polls_nor_a_long_one_are_charged_less_than_they_computed() {
        // The wall's clock may go slower than the kernel's by this, while it is being set.
        let least = |ns: u64| ns - ns / 1000;
        let (short, long) = (SHORT_POLL_NS / 5, 5 * READING_AGE_MAX_NS);
        for (polls, cpu_ns) in [(1000, short), (20, 2 * SHORT_POLL_NS), (3, long)] {
            let computed_ns = u64::from(polls) * cpu_ns;
            assert!(charged_ns(polls, cpu_ns) >= least(computed_ns), "{polls} polls of {cpu_ns} ns");
        }
    }

    #[test]
    fn waiting_on_the_wall_is_not_computing() {
        let meter = CpuMeter::new(Duration::from_secs(60), Arc::new(CpuShare::of(1)));
        meter.reset(Duration::from_secs(60));
        meter.begin_poll();
        std::thread::sleep(Duration::from_millis(200));
        meter.end_poll();
        assert!(meter.last_call() < Duration::from_millis(50), "{:?}", meter.last_call());
    }

    // A pause is a timer's.
    #[tokio::test]
    async fn who_waited_for_the_host_goes_on_until_it_has_computed() {
        let share = Arc::new(CpuShare::of(1));
        // Others have computed for much longer than they may.
        share.took(wall_ns(), 10_000_000_000);
        assert!(share.is_over());
        let meter = CpuMeter::new(Duration::from_secs(60), share);
        meter.reset(Duration::from_secs(60));
        assert!(!gives_way(&meter, 0), "it has only waited");
        assert!(gives_way(&meter, COMPUTED_LEAST_NS), "it has computed");
        assert!(!gives_way(&meter, 0), "it has waited again");
        // By many waits nobody computes more than the others.
        let waits = (0..100).take_while(|_| !gives_way(&meter, COMPUTED_LEAST_NS / 10)).count();
        assert!(waits < 10, "{waits}");
        meter.reset(Duration::from_secs(60));
        assert!(!gives_way(&meter, 0), "another call");
    }
}
