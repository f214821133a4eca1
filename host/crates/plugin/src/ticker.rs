//! The thread that advances the epoch while a guest runs, goes slower where it finds none, and sleeps when none has run for a
//! while: to wake it for each call would cost more than most calls take, and so would an epoch for each token of a stream. Not here: what an epoch means (`meter.rs`).

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// Length of an epoch while a guest runs.
const TICK: Duration = Duration::from_millis(2);
/// An epoch at whose end none does is followed by one of twice the length, so many times: 16 ms is the longest before one that
/// begins now is seen.
const DOUBLINGS_MAX: u32 = 3;
/// Epochs without a guest after which the thread sleeps.
const IDLE_TICKS_MAX: u32 = 8;

/// Owns the thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    guests_running: AtomicUsize,
    /// Whether the thread sleeps until it is woken, or is about to.
    is_asleep: AtomicBool,
    ended: AtomicBool,
}

/// While one of these lives, the epoch advances.
#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
}

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (engine, seen) = (engine.clone(), Arc::clone(&shared));
        let thread =
            std::thread::Builder::new().name("plugin-epochs".to_owned()).spawn(move || tick(&engine, &seen))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn running(&self) -> Running {
        self.shared.guests_running.fetch_add(1, Ordering::SeqCst);
        if self.shared.is_asleep.load(Ordering::SeqCst) {
            self.wake();
        }
        Running { shared: Arc::clone(&self.shared) }
    }

    /// Does something that a guest takes part in: it runs while this is polled, and not while it waits for the host.
    pub(crate) async fn during_polls<T>(&self, call: impl Future<Output = T>) -> T {
        let mut call = pin!(call);
        poll_fn(|context| {
            let _running = self.running();
            call.as_mut().poll(context)
        })
        .await
    }

    fn wake(&self) {
        self.thread.as_ref().map(JoinHandle::thread).into_iter().for_each(Thread::unpark);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It only counts; it cannot have panicked, and if it had, there is nothing left to do.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.guests_running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &Engine, shared: &Shared) {
    let is_idle = || shared.guests_running.load(Ordering::SeqCst) == 0 && !shared.ended.load(Ordering::SeqCst);
    let mut idle_ticks = 0;
    while !shared.ended.load(Ordering::SeqCst) {
        idle_ticks = if is_idle() { idle_ticks + 1 } else { 0 };
        if idle_ticks <= IDLE_TICKS_MAX {
            std::thread::park_timeout(TICK * 2_u32.pow(idle_ticks.min(DOUBLINGS_MAX)));
            engine.increment_epoch();
            continue;
        }
        // Who begins to run sees this, or is seen by the next look; a wake-up in between is kept by the thread's token.
        shared.is_asleep.store(true, Ordering::SeqCst);
        if is_idle() {
            std::thread::park();
        }
        shared.is_asleep.store(false, Ordering::SeqCst);
        idle_ticks = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let started = std::time::Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_falls_asleep_without_guests_and_each_guest_wakes_it() {
        let engine = Engine::default();
        let ticker = Ticker::start(&engine).expect("a thread");
        let is_asleep = || ticker.shared.is_asleep.load(Ordering::SeqCst);
        for _ in 0..3 {
            wait_until("without guests it sleeps", is_asleep);
            let running = ticker.running();
            wait_until("a guest wakes it", || !is_asleep());
            drop(running);
        }
    }

    #[test]
    fn it_sleeps_while_a_guest_waits_for_the_host() {
        use std::task::{Context, Poll, Waker};
        let ticker = Ticker::start(&Engine::default()).expect("a thread");
        let is_asleep = || ticker.shared.is_asleep.load(Ordering::SeqCst);
        let mut polls = 0;
        let waiting = poll_fn(|_| {
            polls += 1;
            wait_until("while the guest runs the epochs go on", || !is_asleep());
            if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
        });
        let mut call = pin!(ticker.during_polls(waiting));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            assert!(call.as_mut().poll(&mut context).is_pending());
            wait_until("while it waits they do not", is_asleep);
        }
        assert!(call.as_mut().poll(&mut context).is_ready());
    }
}
