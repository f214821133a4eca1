//! One instance of a plugin, alive for one request, and its calls.

use types::{Action, Chunk, Decision, Ending, HookUsage, InvocationRequest, Plan};

use crate::PluginError;

/// One instance of a plugin. After a trap or an abandoned call every later call answers with an error.
pub struct PluginInstance {
    poison: Option<PluginError>,
}

impl PluginInstance {
    fn unfinished(&self) -> PluginError {
        self.poison.clone().unwrap_or(PluginError::Internal("not written yet".into()))
    }

    /// Asks what to do with the request.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn route(&mut self, _request: &InvocationRequest) -> Result<Decision, PluginError> {
        Err(self.unfinished())
    }

    /// Asks for the plan. It is untrusted.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn compose(&mut self, _request: &InvocationRequest) -> Result<Plan, PluginError> {
        Err(self.unfinished())
    }

    /// Creates the guest's post-processor; call it once, before the first chunk.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn open_post_processor(&mut self, _request: &InvocationRequest) -> Result<(), PluginError> {
        Err(self.unfinished())
    }

    /// Gives the post-processor decoded text.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn chunk(&mut self, _chunk: Chunk) -> Result<Vec<Action>, PluginError> {
        Err(self.unfinished())
    }

    /// Tells the post-processor that the generation ended.
    ///
    /// # Errors
    /// What the call ran into.
    pub async fn finish(&mut self, _usage: HookUsage) -> Result<Ending, PluginError> {
        Err(self.unfinished())
    }
}
