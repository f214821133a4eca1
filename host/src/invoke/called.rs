//! A function that a request is for: which of its versions answers this caller, and which one gets a copy. Looked up once for
//! each HTTP request, so that an answer is by one version whatever is promoted meanwhile. Not here: the versions' shares
//! (`registry`).

use std::sync::Arc;

use types::FunctionName;

use super::hand_over::Caller;
use super::seed;
use crate::error::Error;
use crate::host::Host;
use crate::registry::FunctionVersion;
use crate::tenants::Principal;

/// Bytes of a caller's sticky key.
const STICKY_BYTES_MAX: usize = 256;

/// A function as it is called.
#[derive(Clone, Debug)]
pub(crate) struct Called {
    /// The version that answers.
    pub(crate) version: FunctionVersion,
    /// The version that gets a copy.
    pub(super) shadow: Option<FunctionVersion>,
    /// By what the caller is known to canaries.
    pub(super) sticky: String,
    /// Randomness that a request shares with its copy, so that they differ by their versions alone.
    pub(super) draw: Option<u64>,
    /// Whether this is the copy: nobody gets its answer, and there is no receipt of it.
    pub(super) is_copy: bool,
    /// The request whose plugin calls, if one does.
    pub(super) caller: Option<Caller>,
}

/// Refuses a sticky key that is empty or too long.
///
/// # Errors
/// `invalid_request`.
pub(crate) fn check_sticky(sticky: &str) -> Result<(), Error> {
    if (1..=STICKY_BYTES_MAX).contains(&sticky.len()) {
        return Ok(());
    }
    let message = format!("a sticky key has 1 to {STICKY_BYTES_MAX} bytes (sticky_bytes_max)");
    Err(Error::invalid("invalid_request", "sticky", message))
}

impl Called {
    /// Looks a function up for a caller, who is known by a sticky key of its own or else by its API key.
    ///
    /// # Errors
    /// `invalid_request` for a sticky key that is empty or too long; `function_not_found`.
    pub(crate) async fn look_up(
        host: &Arc<Host>,
        principal: &Principal,
        name: &FunctionName,
        sticky: Option<String>,
        request_id: &str,
    ) -> Result<Self, Error> {
        sticky.as_deref().map_or(Ok(()), check_sticky)?;
        let sticky = sticky.unwrap_or_else(|| principal.key_id.as_str().to_owned());
        let chosen = host.registry.choose(&principal.tenant, name, &sticky, request_id).await?;
        Ok(Self { version: chosen.version, shadow: chosen.shadow, sticky, draw: None, is_copy: false, caller: None })
    }

    /// Looks a function up for a plugin of another one. It has no shadow then: a copy would be of a part of a request.
    ///
    /// # Errors
    /// `function_not_found`.
    pub(super) async fn by_plugin(
        host: &Arc<Host>,
        principal: &Principal,
        name: &FunctionName,
        sticky: &str,
        caller: Caller,
        is_copy: bool,
    ) -> Result<Self, Error> {
        let version = host.registry.choose(&principal.tenant, name, sticky, "").await?.version;
        let (sticky, caller) = (sticky.to_owned(), Some(caller));
        Ok(Self { version, shadow: None, sticky, draw: None, is_copy, caller })
    }

    /// Draws the randomness that one inference shares with its copy; one that has no copy shares it with nothing.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(super) fn share_randomness(&mut self, has_copy: bool) -> Result<(), Error> {
        if !self.is_copy {
            self.draw = (has_copy && self.shadow.is_some()).then(seed::random).transpose()?;
        }
        Ok(())
    }

    /// The same for the version that gets a copy, if one does.
    pub(super) fn copy(&self) -> Option<Self> {
        let version = self.shadow.clone()?;
        Some(Self { version, shadow: None, is_copy: true, ..self.clone() })
    }

    /// A request's identifier as the function's log has it.
    pub(super) fn log_name(&self, request_id: &str) -> String {
        if self.is_copy { format!("{request_id}/shadow") } else { request_id.to_owned() }
    }
}
