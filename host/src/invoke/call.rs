//! Calls of other functions by a plugin: each is a request of its own in the same tenant, under the other function's manifest, with a
//! receipt of its own, within the time and the depth that the caller has left. Not here: how many a request may make of its
//! function's own limit, which the sandbox counts.
//!
//! Nothing that there is a bounded number of is waited for while a caller waits: a place among the plugin instances, the engine's queue or
//! the open receipts is there or refused at once, and a place in the tenant's quota is the caller's. So callers cannot wait for one
//! another in a circle; and there is the deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use plugin::{CallInput, CapabilityError, FunctionReply, Functions};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use types::{FunctionName, HookUsage};

use super::called::Called;
use super::hand_over::{self, Caller, HAND_OVER_DEPTH_MAX};
use super::nested::NestedLog;
use super::{Ended, Handling, Invocation, Piece, Target, invoke};
use crate::error::Error;
use crate::host::Host;
use crate::http::json_request;
use crate::receipt::CallRecord;
use crate::registry::RegistryError;
use crate::tenants::Principal;

/// Characters of a name that a message quotes.
const QUOTED_CHARS_MAX: usize = 96;
/// In place of an error's code where a call ended with its caller.
const CUT_OFF: &str = "cancelled";

/// What one function of a request may call.
pub(super) struct FunctionCalls {
    pub(super) host: Arc<Host>,
    pub(super) principal: Principal,
    pub(super) handling: Handling,
    /// By what the caller is known to canaries.
    pub(super) sticky: String,
    pub(super) is_copy: bool,
    /// The manifest's `grants.calls`.
    pub(super) granted: Vec<String>,
    /// As the functions that are called see it.
    pub(super) caller: Caller,
    pub(super) nested: Arc<NestedLog>,
    /// Where requests run: not on the plugins' threads.
    pub(super) runtime: Handle,
}

#[async_trait]
impl Functions for FunctionCalls {
    async fn call(
        &self,
        function: String,
        input: CallInput,
        max_tokens: Option<u32>,
    ) -> Result<FunctionReply, CapabilityError> {
        let name = self.granted(&function)?;
        self.check_depth(&name)?;
        let number = self.take_call()?;
        if !self.host.quotas.has_tokens(&self.principal.tenant) {
            let message = "tokens_per_minute_max, the tenant's quota: it is used up; try again later";
            return Err(CapabilityError::Limit(message.to_owned()));
        }
        let json = match input {
            CallInput::Text(text) => serde_json::Value::String(text).to_string(),
            CallInput::Json(json) => json,
        };
        let id = format!("{}.{number}", self.caller.request);
        let request = json_request(&id, &json, max_tokens).map_err(|error| failed(&name, &error))?;
        let deadline = tokio::time::Instant::from_std(self.caller.deadline);
        let looked_up =
            Called::by_plugin(&self.host, &self.principal, &name, &self.sticky, self.caller.clone(), self.is_copy);
        let called = looked_up.await.map_err(|error| self.unknown(&name, &error))?;
        let invocation = Invocation {
            principal: self.principal.clone(),
            request,
            target: Target::Function(Box::new(called)),
            choice: 0,
            handling: self.handling,
        };
        let place = self.begun(&name);
        let begun = (Arc::clone(&self.nested), place);
        let running = self.runtime.spawn(answer(Arc::clone(&self.host), invocation, begun));
        let running = AbortOnDropHandle::new(running);
        let answer = match tokio::time::timeout_at(deadline, running).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => Err(Error::Internal(format!("a call did not return: {error}"))),
            Err(_) => Err(Error::Late("it had answered")),
        };
        self.note(place, &answer);
        answer.map_err(|error| failed(&name, &error))
    }
}

impl FunctionCalls {
    fn granted(&self, function: &str) -> Result<FunctionName, CapabilityError> {
        let is_granted = self.granted.iter().any(|granted| granted == function);
        is_granted.then(|| function.parse().ok()).flatten().ok_or_else(|| {
            let shown: String = function.chars().take(QUOTED_CHARS_MAX).collect();
            CapabilityError::Denied(format!("the function `{shown}`: the manifest's grants.calls does not name it"))
        })
    }

    fn check_depth(&self, name: &FunctionName) -> Result<(), CapabilityError> {
        if self.caller.chain.len() <= HAND_OVER_DEPTH_MAX {
            return Ok(());
        }
        let chain = hand_over::names(&self.caller.chain);
        let max = HAND_OVER_DEPTH_MAX;
        Err(CapabilityError::Limit(format!(
            "hand_over_depth_max of {max} hand-overs and calls together: {chain} -> {name}"
        )))
    }

    /// One of the calls that a request may lead to, in all functions that it comes to; the first one is 1.
    fn take_call(&self) -> Result<u32, CapabilityError> {
        let taken =
            self.caller.calls_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let max = self.host.plugins.limits().function_calls_max;
        taken.map(|left| max.saturating_sub(left).saturating_add(1)).map_err(|_| {
            CapabilityError::Limit(format!(
                "function_calls_max of {max} calls in one request, those of the functions that it called included"
            ))
        })
    }

    fn unknown(&self, name: &FunctionName, error: &Error) -> CapabilityError {
        match error {
            Error::Registry(RegistryError::UnknownFunction(_)) => {
                CapabilityError::Failed(format!("function_not_found: the function `{name}` is not there: deploy it"))
            }
            error => failed(name, error),
        }
    }

    /// Notes a call before it has an answer: if the request is cut off, so is the call, and that is what its receipt says. Its place.
    fn begun(&self, name: &FunctionName) -> usize {
        let mut noted = self.nested.noted();
        noted.calls.push(CallRecord { function: name.clone(), receipt: None, error: Some(CUT_OFF.to_owned()) });
        noted.calls.len() - 1
    }

    fn note(&self, place: usize, answer: &Result<FunctionReply, Error>) {
        let (receipt, error) = match answer {
            Ok(reply) => (Some(reply.receipt.clone()), None),
            Err(Error::WithReceipt { receipt, source }) => (Some(receipt.clone()), Some(source.code().to_owned())),
            Err(error) => (None, Some(error.code().to_owned())),
        };
        let receipt = receipt.filter(|receipt| !receipt.is_empty());
        if let Some(call) = self.nested.noted().calls.get_mut(place) {
            // One that was late has the receipt that it began with.
            call.receipt = receipt.or(call.receipt.take());
            call.error = error;
        }
    }
}

/// As the plugin that called is told: the stable code first.
fn failed(name: &FunctionName, error: &Error) -> CapabilityError {
    CapabilityError::Failed(format!("{}: the function `{name}`: {}", error.code(), error.public_message()))
}

/// The whole answer of a function, whose receipt is noted as soon as it has begun.
async fn answer(
    host: Arc<Host>,
    invocation: Invocation,
    (noted, place): (Arc<NestedLog>, usize),
) -> Result<FunctionReply, Error> {
    let mut generation = invoke(&host, invocation).await?;
    let head = Arc::clone(&generation.head);
    if let Some(call) = noted.noted().calls.get_mut(place) {
        call.receipt = Some(head.receipt_id.clone()).filter(|receipt| !receipt.is_empty());
    }
    let with_receipt =
        |source: Error| Error::WithReceipt { receipt: head.receipt_id.clone(), source: Box::new(source) };
    let mut text = String::new();
    while let Some(piece) = generation.next().await {
        match piece.map_err(with_receipt)? {
            Piece::Text { text: more, .. } => text.push_str(&more),
            Piece::End(ended) => return Ok(reply(&head, text, ended)),
        }
    }
    Err(with_receipt(Error::Internal("the answer of a function ended without an end".into())))
}

fn reply(head: &super::Head, text: String, ended: Ended) -> FunctionReply {
    let (function, version) = head.function.clone().unwrap_or_default();
    let usage = HookUsage {
        prompt_tokens: ended.usage.prompt_tokens,
        completion_tokens: ended.usage.completion_tokens,
        finish: ended.reason,
    };
    FunctionReply { text, function, version, usage, metadata: ended.metadata, receipt: head.receipt_id.clone() }
}
