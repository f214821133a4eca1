//! Outgoing HTTP as the host lends it: a whole request, a whole answer. Not here: which addresses may be connected to.

use std::borrow::Cow;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};

use super::Nothing;

/// What one outgoing request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboundBounds {
    /// From the first byte sent to the last one read.
    pub time: Duration,
    /// Bytes of the answer's body.
    pub response_bytes_max: usize,
    /// Bytes of the answer's headers, names and values.
    pub headers_bytes_max: usize,
}

/// Why a request has no answer. The texts go into the function's log and tell nothing of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboundError {
    /// The manifest, or the operator, does not let this be asked.
    #[error("denied: {0}")]
    Denied(String),
    /// It has no address that may be connected to.
    #[error("denied: {0} has no public address, nor one in plugin_http.private_networks")]
    Address(String),
    /// The answer is over a limit.
    #[error("the answer is over the limit {limit} of {max} bytes")]
    Limit {
        /// The limit's name.
        limit: &'static str,
        /// The limit.
        max: usize,
    },
    /// It took too long.
    #[error("no answer in {0} ms")]
    Timeout(u128),
    /// No connection, or one that broke off.
    #[error("{0}")]
    Failed(Cow<'static, str>),
}

/// Asks hosts that the manifest grants. Redirects are not followed.
#[async_trait]
pub trait Outbound: Send + Sync {
    /// Sends a request whose body is complete and answers when the answer is.
    async fn send(&self, request: Request<Bytes>, bounds: OutboundBounds) -> Result<Response<Bytes>, OutboundError>;
}

#[async_trait]
impl Outbound for Nothing {
    async fn send(&self, request: Request<Bytes>, _: OutboundBounds) -> Result<Response<Bytes>, OutboundError> {
        let host = request.uri().host().unwrap_or_default();
        Err(OutboundError::Denied(format!("`{host}` is not in the manifest's grants.http")))
    }
}
