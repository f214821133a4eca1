//! `POST /v1/functions/{name}/invoke`: the native shape of a call.

use std::sync::Arc;

use axum::Extension;
use axum::response::Response;
use serde_json::{Map, Value, json};
use types::{FunctionName, Usage};

use super::answers::FunctionResult;
use super::auth::Caller;
use super::openapi;
use super::sticky::{Sticky, with_version};
use super::stream::{self, Format};
use super::wire::{self, InvokeBody, PathText, RawBody};
use super::{RequestId, functions};
use crate::error::Error;
use crate::host::Host;
use crate::invoke::{self, AdapterUse, Called, Ended, Head, Invocation, Target, TokenOut};

/// Invokes a function: its live version, or the canary for the canary's callers.
#[utoipa::path(post, path = "/v1/functions/{name}/invoke", tag = "functions", request_body = InvokeBody,
    params(("x-tenon-sticky" = Option<String>, Header, description = "By what a canary knows the caller, 1 to 256 characters; without it, by its API key", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events that end with `[DONE]`",
            headers(("x-tenon-receipt" = String, description = "The receipt's identifier"), ("x-tenon-function-version" = u32, description = "The version that was called; with errors too")),
            content((FunctionResult = "application/json"), (openapi::Event = "text/event-stream"))),
        (status = 422, description = "The plugin refused"),
        (status = 429, description = "Too much at once"),
        (status = 502, description = "The function failed"),
    ))]
pub(crate) async fn invoke(
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    Sticky(sticky): Sticky,
    PathText(name): PathText,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let name: FunctionName = functions::name(&name)?;
    let body = wire::parse::<InvokeBody>(body)?;
    let handling = body.handling()?;
    let sticky = sticky.or_else(|| body.sticky.clone());
    let request = body.request(&id)?;
    let called = Called::look_up(&caller.host, &caller.principal, &name, sticky, &id).await?;
    let version = called.version.version;
    let target = Target::Function(Box::new(called));
    let invocation = Invocation { principal: caller.principal, request, target, choice: 0, handling };
    Ok(with_version(answer(&caller.host, invocation).await, version))
}

async fn answer(host: &Arc<Host>, invocation: Invocation) -> Result<Response, Error> {
    let is_stream = invocation.request.stream;
    let generation = invoke::invoke(host, invocation).await?;
    if is_stream {
        return Ok(stream::events(vec![generation], NativeFormat));
    }
    let mut wholes = stream::collect(vec![generation]).await?;
    let Some(whole) = wholes.pop() else { return Err(Error::Internal("an answer without a choice".into())) };
    let value = end_object("function.result", &whole.head, &whole.ended, Some(whole.text));
    Ok(stream::json([&whole.head], value))
}

/// `{"object": "function.chunk", "delta"}` for text, `{"object": "function.end", …}` at the end.
struct NativeFormat;

impl Format for NativeFormat {
    fn begin(&mut self, heads: &[Arc<Head>]) -> Vec<Value> {
        let begin = |head: &Arc<Head>| {
            let (function, version) = function(head);
            json!({
                "id": head.request_id, "object": "function.begin", "function": function, "version": version,
                "adapters": adapters(&head.adapters), "receipt": head.receipt_id,
            })
        };
        heads.iter().map(begin).collect()
    }

    fn text(&mut self, _choice: usize, head: &Head, text: String, _tokens: Vec<TokenOut>) -> Vec<Value> {
        if text.is_empty() {
            return Vec::new();
        }
        vec![json!({"id": head.request_id, "object": "function.chunk", "delta": text})]
    }

    fn end(&mut self, _choice: usize, head: &Head, ended: Ended) -> Vec<Value> {
        vec![end_object("function.end", head, &ended, None)]
    }
}

fn end_object(object: &'static str, head: &Head, ended: &Ended, output: Option<String>) -> Value {
    let (function, version) = function(head);
    let metadata: Map<String, Value> =
        ended.metadata.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let result = FunctionResult {
        id: head.request_id.clone(),
        object,
        function: function.map(str::to_owned),
        version,
        finish_reason: ended.reason.name(),
        adapters: adapters(&head.adapters),
        usage: usage(ended.usage),
        metadata,
        receipt: head.receipt_id.clone(),
        output,
    };
    serde_json::to_value(result).unwrap_or_default()
}

fn function(head: &Head) -> (Option<&str>, Option<u32>) {
    head.function.as_ref().map(|(name, version)| (name.as_str(), *version)).unzip()
}

/// The composition in its canonical order.
pub(crate) fn adapters(adapters: &[AdapterUse]) -> Value {
    let one =
        |one: &AdapterUse| json!({"name": one.alias, "digest": one.digest.to_string(), "weight": shortest(one.weight)});
    adapters.iter().map(one).collect()
}

/// A number as it was written: the shortest text that reads back as the same f32, not its f64 neighbour.
pub(crate) fn shortest(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// Token counts in OpenAI's shape.
pub(crate) fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}
