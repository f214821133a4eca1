//! The thread that advances the epoch while a guest runs, and sleeps while none does. Not here: what an epoch means
//! (`meter.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// Length of an epoch.
const TICK: Duration = Duration::from_millis(2);

/// Owns the thread; dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    guests_running: AtomicUsize,
    ended: AtomicBool,
}

/// While one of these lives, the epoch advances.
#[derive(Debug)]
pub(crate) struct Running {
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

    pub(crate) fn running(&self) -> Running {
        if self.shared.guests_running.fetch_add(1, Ordering::SeqCst) == 0 {
            self.wake();
        }
        Running { shared: Arc::clone(&self.shared) }
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
    while !shared.ended.load(Ordering::SeqCst) {
        if shared.guests_running.load(Ordering::SeqCst) == 0 {
            // A wake-up between the look and this call is kept by the thread's token.
            std::thread::park();
        } else {
            std::thread::park_timeout(TICK);
            engine.increment_epoch();
        }
    }
}
