//! A place in the engine's queue for what goes on within a request: an answer under another composition, an agent's generation. It is
//! waited for, where a caller's request is refused. Not here: who gets the next place (the engine's business).

use std::time::{Duration, Instant};

use engine::{Submission, SubmitError, Terms, TokenStream};
use model::LoraAdapter;

use crate::error::Error;
use crate::host::Host;

/// While the queue is full.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns when the queue has a place, or time is up. Nothing is made of the request before: it is as long as its prompt.
pub(super) async fn wait_for_place(host: &Host, terms: Terms, deadline: Instant) {
    while !host.engine.has_place(terms) && Instant::now() < deadline {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Hands it over, if nobody was quicker; `None` if somebody was, and there is time to wait for another place.
///
/// # Errors
/// What the engine refuses.
pub(super) fn submitted(
    host: &Host,
    submission: Submission<LoraAdapter>,
    deadline: Instant,
) -> Result<Option<TokenStream>, Error> {
    match host.engine.submit(submission) {
        Ok(stream) => Ok(Some(stream)),
        Err(SubmitError::QueueFull { .. } | SubmitError::TenantQueueFull { .. }) if Instant::now() < deadline => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
