//! The threads that guests run on: few, and of lower priority than the engine's, so that guests that compute all the time
//! cannot slow a step down by more than their share. Not here: what they run.
//!
//! On a core that both want, Linux's scheduler gives a thread of nice 10 about a tenth of what it gives one of nice 0
//! (weights 110 and 1024 in `kernel/sched/core.c`); and there are half as many of them as cores, so that the other half
//! sees none. What they compute in all is bounded besides (`share.rs`).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, JoinSet};

use crate::PluginError;

/// The engine's and HTTP's threads have 0.
const NICE: i32 = 10;

/// A runtime of its own; dropping it abandons what still runs.
#[derive(Debug)]
pub(crate) struct GuestThreads {
    runtime: Option<Runtime>,
}

impl GuestThreads {
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(threads.max(1)).thread_name("plugin").enable_all().on_thread_start(|| {
            let thread = rustix::thread::gettid();
            if let Err(error) = rustix::process::setpriority_process(Some(thread), NICE) {
                tracing::warn!(%error, "a plugin thread could not lower its priority");
            }
        });
        Ok(Self { runtime: Some(builder.build()?) })
    }

    /// Half of the cores, rounded up.
    pub(crate) fn threads_for(cores: usize) -> usize {
        cores.div_ceil(2)
    }

    /// Runs a task on these threads. Dropping what is returned ends the task where it next waits or gives way.
    pub(crate) fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Running<T> {
        Running(self.runtime.as_ref().map(|runtime| runtime.spawn(task)))
    }
}

impl GuestThreads {
    /// Runs a task on these threads for whoever has the set.
    pub(crate) fn spawn(&self, tasks: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            tasks.spawn_on(task, runtime.handle());
        }
    }
}

impl Drop for GuestThreads {
    fn drop(&mut self) {
        // Waiting for guests here would block whoever drops the host, which may be an async thread.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A task on the guests' threads.
#[derive(Debug)]
pub(crate) struct Running<T>(Option<JoinHandle<T>>);

impl<T> Future for Running<T> {
    type Output = Result<T, PluginError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let gone = || PluginError::Internal("the plugin threads have ended".to_owned());
        let Some(task) = self.0.as_mut() else { return Poll::Ready(Err(gone())) };
        Pin::new(task).poll(context).map_err(|error| PluginError::Internal(error.to_string()))
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn tasks_run_at_lower_priority_than_their_caller() {
        let threads = GuestThreads::start(1).expect("threads");
        let (send, receive) = mpsc::channel();
        let running = threads.run(async move {
            send.send(rustix::process::getpriority_process(Some(rustix::thread::gettid()))).expect("a receiver");
        });
        let theirs = receive.recv_timeout(Duration::from_secs(20)).expect("it runs").expect("a priority");
        assert_eq!(theirs, NICE);
        drop(running);
    }

    #[test]
    fn a_dropped_task_ends_and_half_the_cores_are_used() {
        let threads = GuestThreads::start(1).expect("threads");
        let (send, receive) = mpsc::channel::<()>();
        let running = threads.run(async move {
            let _kept = send;
            std::future::pending::<()>().await;
        });
        assert_eq!(receive.recv_timeout(Duration::from_millis(50)), Err(mpsc::RecvTimeoutError::Timeout));
        drop(running);
        assert_eq!(receive.recv_timeout(Duration::from_secs(20)), Err(mpsc::RecvTimeoutError::Disconnected));
        assert_eq!([1, 2, 3, 4, 16].map(GuestThreads::threads_for), [1, 1, 2, 2, 8]);
    }
}
