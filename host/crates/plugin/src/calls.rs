//! A plugin's instance as its request sees it: a call moves the guest to the plugin threads and back, but for the chunks of
//! plugins that are known to be quick. Not here: the calls themselves (`guest.rs`), and who is quick (`pace.rs`).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use types::{Action, Chunk, Decision, Ending, HookUsage, InvocationRequest, Plan};

use crate::guest::Guest;
use crate::host::{Prepared, Shared};
use crate::pace::Pace;
use crate::{PluginError, Session};

/// One instance of a plugin, alive for one request. A trap or an abandoned call (a dropped future) leaves a guest in no
/// particular state, so every later call answers with an error.
pub struct PluginInstance {
    /// Away while a call runs, and for good if that call was abandoned: then the guest ends on its own thread.
    guest: Option<Box<Guest>>,
    shared: Arc<Shared>,
    pace: Arc<Pace>,
}

/// What came of a call, and how long it took, without the way to the plugin threads.
#[derive(Debug)]
pub struct Timed<T> {
    /// The answer, or what the call ran into.
    pub outcome: Result<T, PluginError>,
    /// From its beginning to its end.
    pub took: Duration,
}

impl<T> Timed<T> {
    async fn of(call: impl Future<Output = Result<T, PluginError>>) -> Self {
        let begun = Instant::now();
        let outcome = call.await;
        Self { outcome, took: begun.elapsed() }
    }
}

/// A fresh instance, and what it made of its request.
#[derive(Debug)]
pub struct Decided {
    /// The instance.
    pub instance: PluginInstance,
    /// What to do with the request.
    pub route: Timed<Decision>,
    /// The plan, if the request is to be served here. It is untrusted.
    pub compose: Option<Timed<Plan>>,
}

impl fmt::Debug for PluginInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluginInstance").field("guest", &self.guest).finish_non_exhaustive()
    }
}

/// A call of a guest, which it borrows.
type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, PluginError>> + Send + 'a>>;

impl PluginInstance {
    pub(crate) async fn start(
        shared: Arc<Shared>,
        prepared: Prepared,
        session: Session,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, PluginError> {
        let (of_guest, pace) = (Arc::clone(&shared), Arc::clone(&prepared.pace));
        let starting =
            async move { Guest::start(of_guest, &prepared, session, permit, Duration::ZERO).await.map(Box::new) };
        let guest = shared.threads.run(starting).await??;
        Ok(Self { guest: Some(guest), shared, pace })
    }

    /// [`Self::start`], [`Self::route`] and [`Self::compose`] in one visit to the plugin threads: each way there and back costs
    /// some 10 us, several times what a call of a guest in Rust takes.
    pub(crate) async fn decide(
        shared: Arc<Shared>,
        prepared: Prepared,
        session: Session,
        permit: OwnedSemaphorePermit,
        cpu_used: Duration,
        request: InvocationRequest,
    ) -> Result<Decided, PluginError> {
        let (of_guest, pace) = (Arc::clone(&shared), Arc::clone(&prepared.pace));
        let deciding = async move {
            let mut guest = Guest::start(of_guest, &prepared, session, permit, cpu_used).await.map(Box::new)?;
            let route = Timed::of(guest.route(&request)).await;
            let compose = match route.outcome {
                Ok(Decision::Serve) => Some(Timed::of(guest.compose(&request)).await),
                _ => None,
            };
            Ok((guest, route, compose))
        };
        let (guest, route, compose) = shared.threads.run(deciding).await??;
        Ok(Decided { instance: Self { guest: Some(guest), shared, pace }, route, compose })
    }

    /// Asks what to do with the request.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn route(&mut self, request: &InvocationRequest) -> Result<Decision, PluginError> {
        let request = request.clone();
        self.run("route", move |guest| Box::pin(async move { guest.route(&request).await })).await
    }

    /// Asks for the plan. It is untrusted.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn compose(&mut self, request: &InvocationRequest) -> Result<Plan, PluginError> {
        let request = request.clone();
        self.run("compose", move |guest| Box::pin(async move { guest.compose(&request).await })).await
    }

    /// Creates the guest's post-processor; call it once, before the first chunk.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn open_post_processor(&mut self, request: &InvocationRequest) -> Result<(), PluginError> {
        let request = request.clone();
        let name = "post-processor";
        self.run(name, move |guest| Box::pin(async move { guest.open_post_processor(&request).await })).await
    }

    /// Gives the post-processor decoded text. A plugin whose chunks are quick is called right here; if it is not quick this
    /// time, it goes on on the plugin threads.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn chunk(&mut self, chunk: Chunk) -> Result<Vec<Action>, PluginError> {
        let mut guest = self.away("post-processor.chunk")?;
        let mut calling = Box::pin(async move {
            let outcome = guest.chunk(chunk).await;
            (guest, outcome)
        });
        let here = if self.pace.is_quick() { poll_once(calling.as_mut()).await } else { None };
        let (guest, outcome) = match here {
            Some(done) => done,
            // It waits for the host, or an epoch has ended: whatever woke it here, it is polled anew there.
            None => self.shared.threads.run(calling).await?,
        };
        self.pace.note(guest.last_call_cpu());
        self.guest = Some(guest);
        outcome
    }

    /// Tells the post-processor that the generation ended.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn finish(&mut self, usage: HookUsage) -> Result<Ending, PluginError> {
        self.run("post-processor.finish", move |guest| Box::pin(guest.finish(usage))).await
    }

    /// CPU time that the request has used in all instances so far: what its next instance begins with, if it is handed over.
    #[must_use]
    pub fn cpu_used(&self) -> Duration {
        self.guest.as_ref().map_or(Duration::ZERO, |guest| guest.cpu_used())
    }

    /// Log lines that were dropped because they were over a limit of the request; none are known of an abandoned guest.
    #[must_use]
    pub fn log_lines_dropped(&self) -> u32 {
        self.guest.as_ref().map_or(0, |guest| guest.log_lines_dropped())
    }

    async fn run<T: Send + 'static>(
        &mut self,
        name: &'static str,
        call: impl for<'a> FnOnce(&'a mut Guest) -> Call<'a, T> + Send + 'static,
    ) -> Result<T, PluginError> {
        let mut guest = self.away(name)?;
        let running = self.shared.threads.run(async move {
            let outcome = call(&mut guest).await;
            (guest, outcome)
        });
        let (guest, outcome) = running.await?;
        self.guest = Some(guest);
        outcome
    }

    /// The guest, which is away until it is put back.
    fn away(&mut self, name: &'static str) -> Result<Box<Guest>, PluginError> {
        let abandoned = || PluginError::Trap { call: name, reason: "the call was abandoned".to_owned() };
        self.guest.take().ok_or_else(abandoned)
    }
}

/// What a future comes to if it does so without waiting.
async fn poll_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
