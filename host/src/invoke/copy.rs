//! The copy of a request that a shadow version gets, after the answer to the request was given: what the answer was is listened
//! to as it goes out, then the copy runs behind everything else, is compared and dropped. Nothing that becomes of it reaches the
//! caller. Not here: what is kept of it (`shadows.rs`).

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use types::{Blame, InvocationRequest};

use super::called::Called;
use super::generation::{Ended, Piece};
use super::{Handling, Invocation, Target, invoke};
use crate::error::Error;
use crate::host::Host;
use crate::shadows::{Answer, Comparison, Dropped, Listener, ShadowOwner, now_unix_ms};
use crate::tenants::Principal;

/// More requests than these in the queue, and the host has other things to do.
const WAITING_REQUESTS_MAX: usize = 1;

/// Listens to an answer whose request gets a copy.
pub(crate) struct Tap {
    host: Arc<Host>,
    invocation: Invocation,
    owner: ShadowOwner,
    request_id: String,
    primary_version: u32,
    shadow_version: u32,
    listener: Listener,
    started: Instant,
}

impl Tap {
    /// For a request that gets a copy, if this one does. Of several choices only the first one does.
    pub(super) fn new(host: &Arc<Host>, invocation: &Invocation) -> Option<Self> {
        let Target::Function(called) = &invocation.target else { return None };
        let copy = called.copy().filter(|_| invocation.choice == 0)?;
        let tenant = invocation.principal.tenant.clone();
        let owner = ShadowOwner { tenant, function: copy.version.function.clone(), life: copy.version.life };
        Some(Self {
            request_id: invocation.request.id.clone(),
            primary_version: called.version.version,
            shadow_version: copy.version.version,
            listener: host.shadows.listener(),
            host: Arc::clone(host),
            invocation: copied(&invocation.principal, &invocation.request, copy, invocation.handling),
            owner,
            started: Instant::now(),
        })
    }

    /// Text that goes to the caller.
    pub(super) fn hear(&mut self, text: &str) {
        self.listener.hear(text);
    }

    /// The answer is complete: now the copy may run.
    pub(super) fn ended(self, ended: &Ended) {
        let (finish, tokens) = (Some(ended.reason.name()), ended.usage.completion_tokens);
        self.begin(|listener, duration| listener.end(finish, tokens, None, duration));
    }

    /// There is none. What was the host's fault, or of its being busy, says nothing about versions: there is no copy of that.
    pub(super) fn failed(self, error: &Error) {
        if matches!(error.blame(), Blame::Caller | Blame::Function) {
            let code = error.code().to_owned();
            self.begin(|listener, duration| listener.end(None, 0, Some(code), duration));
        }
    }

    fn begin(self, primary: impl FnOnce(Listener, Duration) -> Answer) {
        let Self { host, invocation, owner, request_id, primary_version, shadow_version, listener, started } = self;
        let begun = now_unix_ms();
        let dropped = |why| host.shadows.count_dropped(&owner, shadow_version, begun, why);
        // What a copy computes is its tenant's to pay for, and must not be what its callers lack.
        if is_busy(&host) || !host.quotas.has_tokens(&owner.tenant) {
            return dropped(Dropped::Busy);
        }
        let Some(place) = host.shadows.place() else { return dropped(Dropped::UnderWay) };
        let primary = primary(listener, started.elapsed());
        let run = {
            let (host, owner) = (Arc::clone(&host), owner.clone());
            async move {
                let _place = place;
                let time_max = Duration::from_millis(host.plan_limits.deadline_ms_max.into());
                let Ok((answer, prompt_tokens)) = tokio::time::timeout(time_max, answer(&host, invocation)).await
                else {
                    return host.shadows.count_dropped(&owner, shadow_version, begun, Dropped::CutOff);
                };
                let comparison = Comparison::new(request_id, (primary_version, primary), (shadow_version, answer));
                host.shadows.note(&owner, prompt_tokens, begun, comparison);
            }
        };
        let cut_off = {
            let (host, owner) = (Arc::clone(&host), owner.clone());
            move || host.shadows.count_dropped(&owner, shadow_version, begun, Dropped::CutOff)
        };
        host.shadows.spawn(run, cut_off);
    }
}

fn copied(principal: &Principal, request: &InvocationRequest, copy: Called, handling: Handling) -> Invocation {
    Invocation {
        principal: principal.clone(),
        request: request.clone(),
        target: Target::Function(Box::new(copy)),
        choice: 0,
        handling: Handling { is_copy: true, ..handling },
    }
}

/// Whether a copy would be in somebody's way, now or soon.
fn is_busy(host: &Host) -> bool {
    let (engine, plugins) = (host.engine.stats(), host.plugins.stats());
    host.is_draining()
        || engine.waiting > WAITING_REQUESTS_MAX
        || plugins.instances > plugins.instances_max / 2
        || engine.kv_blocks_free < engine.kv_blocks_total / 4
}

/// What the copy answers, and the tokens of its prompt. A future in a box, because an invocation may begin copies and this is one.
fn answer(host: &Arc<Host>, invocation: Invocation) -> Pin<Box<dyn Future<Output = (Answer, u32)> + Send>> {
    let host = Arc::clone(host);
    Box::pin(async move {
        let (started, mut listener) = (Instant::now(), host.shadows.listener());
        let failed =
            |listener: Listener, error: &Error| listener.end(None, 0, Some(error.code().to_owned()), started.elapsed());
        let mut generation = match invoke(&host, invocation).await {
            Ok(generation) => generation,
            Err(error) => return (failed(listener, &error), 0),
        };
        let prompt_tokens = u32::try_from(generation.head.prompt_tokens.len()).unwrap_or(u32::MAX);
        while let Some(piece) = generation.next().await {
            match piece {
                Ok(Piece::Text { text, .. }) => listener.hear(&text),
                Ok(Piece::End(Ended { reason, usage, .. })) => {
                    let tokens = usage.completion_tokens;
                    return (listener.end(Some(reason.name()), tokens, None, started.elapsed()), prompt_tokens);
                }
                Err(error) => return (failed(listener, &error), prompt_tokens),
            }
        }
        let error = Error::Internal("a copy ended without an end".into());
        (failed(listener, &error), prompt_tokens)
    })
}
