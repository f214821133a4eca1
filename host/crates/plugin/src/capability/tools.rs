//! Tools as the host lends them: listed and called by the names that the manifest gives their servers. Not here: the protocol.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{CapabilityError, Nothing, OutboundBounds};

/// A granted tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolDescription {
    /// Its name.
    pub name: String,
    /// What its server says that it does.
    pub description: String,
    /// JSON Schema of its arguments.
    pub input_schema: String,
}

/// What a tool answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolOutcome {
    /// The blocks of text.
    pub text: String,
    /// JSON, if there is any.
    pub structured: Option<String>,
    /// Whether the tool says that it failed.
    pub is_error: bool,
}

/// Asks servers of tools that the manifest grants. The calls are counted before.
#[async_trait]
pub trait Tools: Send + Sync {
    /// The granted ones of a server.
    async fn list(&self, server: &str, bounds: OutboundBounds) -> Result<Vec<ToolDescription>, CapabilityError>;

    /// Calls one with a JSON object; no text is no argument.
    async fn call(
        &self,
        server: &str,
        tool: &str,
        arguments: &str,
        bounds: OutboundBounds,
    ) -> Result<ToolOutcome, CapabilityError>;
}

fn denied(server: &str) -> CapabilityError {
    CapabilityError::Denied(format!("the tool server `{server}`: the manifest's grants.tools does not name it"))
}

#[async_trait]
impl Tools for Nothing {
    async fn list(&self, server: &str, _: OutboundBounds) -> Result<Vec<ToolDescription>, CapabilityError> {
        Err(denied(server))
    }

    async fn call(&self, server: &str, _: &str, _: &str, _: OutboundBounds) -> Result<ToolOutcome, CapabilityError> {
        Err(denied(server))
    }
}
