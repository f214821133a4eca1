//! A plugin's instance as its request sees it: a call moves the guest to the plugin threads and back, but for the calls of
//! plugins that are known to be quick. Not here: the calls themselves (`guest.rs`), and who is quick (`pace.rs`).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use types::{Action, AgentAnswer, Chunk, Decision, Ending, HookUsage, InvocationRequest, Plan};

use crate::convert;
use crate::guest::{Guest, Place};
use crate::host::{Prepared, Shared};
use crate::pace::{Pace, Paces};
use crate::{PluginError, Session, spares};

/// One instance of a plugin, alive for one request. A trap or an abandoned call (a dropped future) leaves a guest in no
/// particular state, so every later call answers with an error.
pub struct PluginInstance {
    /// Away while a call runs, and for good if that call was abandoned: then the guest ends on its own thread.
    guest: Option<Box<Guest>>,
    shared: Arc<Shared>,
    is_agent: bool,
    paces: Arc<Paces>,
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

/// A fresh instance, as far as it may go on by itself.
#[derive(Debug)]
pub enum Begun {
    /// Of world `agent`, not called yet.
    Agent(PluginInstance),
    /// Of world `policy`.
    Decided(Box<Decided>),
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
        place: Place,
    ) -> Result<Self, PluginError> {
        let (of_guest, paces, is_agent) =
            (Arc::clone(&shared), Arc::clone(&prepared.paces), prepared.plugin.is_agent());
        let kept = prepared.clone();
        let starting =
            async move { Guest::start(of_guest, &prepared, session, place, Duration::ZERO).await.map(Box::new) };
        let guest = shared.threads.run(starting).await??;
        spares::after_start(&shared, &kept, &guest);
        Ok(Self { guest: Some(guest), shared, is_agent, paces })
    }

    /// [`Self::start`], [`Self::route`] and [`Self::compose`] in one visit to the plugin threads, or in none where the plugin is
    /// known to be quick.
    pub(crate) async fn decide(
        shared: Arc<Shared>,
        prepared: Prepared,
        session: Session,
        place: Place,
        cpu_used: Duration,
        request: &InvocationRequest,
    ) -> Result<Begun, PluginError> {
        let (of_guest, paces, is_agent) =
            (Arc::clone(&shared), Arc::clone(&prepared.paces), prepared.plugin.is_agent());
        let kept = prepared.clone();
        let request = convert::request_to_wit(request);
        let may_be_here = !is_agent && session.record.is_none();
        let deciding = async move {
            let mut guest = Guest::start(of_guest, &prepared, session, place, cpu_used).await.map(Box::new)?;
            if is_agent {
                return Ok((guest, None));
            }
            let route = Timed::of(async { guest.route(&request).await.map(convert::decision_from_wit) }).await;
            let compose = match route.outcome {
                Ok(Decision::Serve) => {
                    Some(Timed::of(async { guest.compose(&request).await.map(convert::plan_from_wit) }).await)
                }
                _ => None,
            };
            Ok((guest, Some((route, compose))))
        };
        let cpu = |decided: &Result<(Box<Guest>, _), PluginError>| {
            let guest = decided.as_ref().ok().map(|(guest, _)| guest);
            guest.map(|guest| guest.cpu_used().saturating_sub(cpu_used + guest.cpu_before()))
        };
        let (guest, decided) = near(&shared, &paces.opening, may_be_here, cpu, deciding).await??;
        spares::after_start(&shared, &kept, &guest);
        let instance = Self { guest: Some(guest), shared, is_agent, paces };
        Ok(match decided {
            Some((route, compose)) => Begun::Decided(Box::new(Decided { instance, route, compose })),
            None => Begun::Agent(instance),
        })
    }

    /// Whether it is of world `agent`: then [`Self::run_agent`] is its one call, and otherwise it has all but that.
    #[must_use]
    pub const fn is_agent(&self) -> bool {
        self.is_agent
    }

    /// Has an agent do all of its work.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn run_agent(&mut self, request: &InvocationRequest) -> Result<AgentAnswer, PluginError> {
        let request = convert::request_to_wit(request);
        let answer = self.run("run", move |guest| Box::pin(async move { guest.run(&request).await })).await?;
        let (metadata, claims) = (convert::pairs_from_wit(answer.metadata), convert::pairs_from_wit(answer.claims));
        Ok(AgentAnswer { text: answer.text, metadata, claims })
    }

    /// Asks what to do with the request.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn route(&mut self, request: &InvocationRequest) -> Result<Decision, PluginError> {
        let request = convert::request_to_wit(request);
        let decision = self.run("route", move |guest| Box::pin(async move { guest.route(&request).await })).await;
        decision.map(convert::decision_from_wit)
    }

    /// Asks for the plan. It is untrusted.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn compose(&mut self, request: &InvocationRequest) -> Result<Plan, PluginError> {
        let request = convert::request_to_wit(request);
        let plan = self.run("compose", move |guest| Box::pin(async move { guest.compose(&request).await })).await;
        plan.map(convert::plan_from_wit)
    }

    /// Creates the guest's post-processor; call it once, before the first chunk.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn open_post_processor(&mut self, request: &InvocationRequest) -> Result<(), PluginError> {
        let mut guest = self.away("post-processor")?;
        let request = convert::request_to_wit(request);
        let may_be_here = !guest.is_recorded();
        let calling = async move {
            let outcome = guest.open_post_processor(&request).await;
            (guest, outcome)
        };
        let (guest, outcome) = near(&self.shared, &self.paces.ends, may_be_here, last_call, calling).await?;
        self.guest = Some(guest);
        outcome
    }

    /// Gives the post-processor decoded text. A plugin whose chunks are quick is called right here; if it is not quick this
    /// time, it goes on on the plugin threads.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn chunk(&mut self, chunk: Chunk) -> Result<Vec<Action>, PluginError> {
        let mut guest = self.away("post-processor.chunk")?;
        let chunk = convert::chunk_to_wit(chunk);
        let may_be_here = !guest.is_recorded();
        let calling = async move {
            let outcome = guest.chunk(&chunk).await;
            (guest, outcome)
        };
        let (guest, outcome) = near(&self.shared, &self.paces.chunk, may_be_here, last_call, calling).await?;
        self.guest = Some(guest);
        outcome.map(convert::actions_from_wit)
    }

    /// Tells the post-processor that the generation ended.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn finish(&mut self, usage: HookUsage) -> Result<Ending, PluginError> {
        let mut guest = self.away("post-processor.finish")?;
        let usage = convert::usage_to_wit(usage);
        let may_be_here = !guest.is_recorded();
        let calling = async move {
            let outcome = guest.finish(usage).await;
            (guest, outcome)
        };
        let (guest, outcome) = near(&self.shared, &self.paces.ends, may_be_here, last_call, calling).await?;
        self.guest = Some(guest);
        outcome.map(convert::ending_from_wit)
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

    pub(crate) async fn run<T: Send + 'static>(
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

fn last_call<T>(done: &(Box<Guest>, T)) -> Option<Duration> {
    Some(done.0.last_call_cpu())
}

/// Makes a call: right here if calls of its kind are quick and guests are within their share, on the plugin threads otherwise. A
/// call that is not quick this time goes on there. `cpu` tells what it used, if that is known.
async fn near<T: Send + 'static>(
    shared: &Shared,
    pace: &Pace,
    may_be_here: bool,
    cpu: impl FnOnce(&T) -> Option<Duration>,
    calling: impl Future<Output = T> + Send + 'static,
) -> Result<T, PluginError> {
    let is_here = may_be_here && pace.is_quick() && !shared.share.is_over();
    let mut calling = Box::pin(calling);
    let done = match if is_here { poll_once(calling.as_mut()).await } else { None } {
        Some(done) => done,
        // It waits for the host, or an epoch has ended: whatever woke it here, it is polled anew there. It counts also if its caller
        // leaves before it ends.
        None if is_here => {
            pace.note_long();
            return shared.threads.run(calling).await;
        }
        None => shared.threads.run(calling).await?,
    };
    match cpu(&done) {
        Some(cpu) => pace.note(cpu),
        None => pace.note_long(),
    }
    Ok(done)
}

/// What a future comes to if it does so without waiting.
async fn poll_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
