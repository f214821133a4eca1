//! A plugin's instance as its request sees it: each call moves the guest to the plugin threads and back. Not here: the
//! calls themselves (`guest.rs`).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use types::{Action, AgentAnswer, Chunk, Decision, Ending, HookUsage, InvocationRequest, Plan};

use crate::convert;
use crate::guest::Guest;
use crate::host::{Linked, Shared};
use crate::{PluginError, Session};

/// One instance of a plugin, alive for one request. A trap or an abandoned call (a dropped future) leaves a guest in no
/// particular state, so every later call answers with an error.
pub struct PluginInstance {
    /// Away while a call runs, and for good if that call was abandoned: then the guest ends on its own thread.
    guest: Option<Box<Guest>>,
    shared: Arc<Shared>,
    is_agent: bool,
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
        plugin: Linked,
        session: Session,
        permit: OwnedSemaphorePermit,
        cpu_used: Duration,
    ) -> Result<Self, PluginError> {
        let (of_guest, is_agent) = (Arc::clone(&shared), plugin.is_agent());
        let starting = async move { Guest::start(of_guest, &plugin, session, permit, cpu_used).await.map(Box::new) };
        let guest = shared.threads.run(starting).await??;
        Ok(Self { guest: Some(guest), shared, is_agent })
    }

    /// Whether it is of world `agent`: then [`Self::run`] is its one call, and otherwise it has all but that.
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
        let request = convert::request_to_wit(request);
        let name = "post-processor";
        self.run(name, move |guest| Box::pin(async move { guest.open_post_processor(&request).await })).await
    }

    /// Gives the post-processor decoded text.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn chunk(&mut self, chunk: Chunk) -> Result<Vec<Action>, PluginError> {
        let chunk = convert::chunk_to_wit(chunk);
        let name = "post-processor.chunk";
        let actions = self.run(name, move |guest| Box::pin(async move { guest.chunk(&chunk).await })).await;
        actions.map(convert::actions_from_wit)
    }

    /// Tells the post-processor that the generation ended.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn finish(&mut self, usage: HookUsage) -> Result<Ending, PluginError> {
        let usage = convert::usage_to_wit(usage);
        let ending = self.run("post-processor.finish", move |guest| Box::pin(guest.finish(usage))).await;
        ending.map(convert::ending_from_wit)
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
        let Some(mut guest) = self.guest.take() else {
            return Err(PluginError::Trap { call: name, reason: "the call was abandoned".to_owned() });
        };
        let running = self.shared.threads.run(async move {
            let outcome = call(&mut guest).await;
            (guest, outcome)
        });
        let (guest, outcome) = running.await?;
        self.guest = Some(guest);
        outcome
    }
}
