//! `POST /v1/functions/{name}/invoke`: the native shape of a call.

use std::sync::Arc;

use axum::Extension;
use axum::response::Response;
use serde_json::{Map, Value, json};
use types::{FunctionName, Usage};

use super::answers::FunctionResult;
use super::auth::Caller;
use super::openapi;
use super::stream::{self, Format};
use super::wire::{self, InvokeBody, PathText, RawBody};
use super::{RequestId, functions};
use crate::error::Error;
use crate::invoke::{self, AdapterUse, Ended, Head, Invocation, Target, TokenOut};

/// Invokes the live version of a function.
#[utoipa::path(post, path = "/v1/functions/{name}/invoke", tag = "functions", request_body = InvokeBody,
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events that end with `[DONE]`",
            headers(("x-tenon-receipt" = String, description = "The receipt's identifier")),
            content((FunctionResult = "application/json"), (openapi::Event = "text/event-stream"))),
        (status = 422, description = "The plugin refused"),
        (status = 429, description = "Too much at once"),
        (status = 502, description = "The function failed"),
    ))]
pub(crate) async fn invoke(
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    PathText(name): PathText,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let name: FunctionName = functions::name(&name)?;
    let body = wire::parse::<InvokeBody>(body)?;
    let handling = body.handling()?;
    let request = body.request(&id)?;
    let is_stream = request.stream;
    let target = Target::Function(name);
    let invocation = Invocation { principal: caller.principal, request, target, choice: 0, handling };
    let generation = invoke::invoke(&caller.host, invocation).await?;
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
