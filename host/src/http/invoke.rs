//! `POST /v1/functions/{name}/invoke`: the native shape of a call.

use axum::Extension;
use axum::response::Response;
use serde_json::{Value, json};
use types::FunctionName;

use super::auth::Caller;
use super::stream::{self, Format};
use super::wire::{self, InvokeBody, PathText, RawBody};
use super::{RequestId, functions};
use crate::error::Error;
use crate::invoke::{self, AdapterUse, Ended, Generation, Invocation, Target, TokenOut};

/// Invokes the live version of a function.
pub(crate) async fn invoke(
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    PathText(name): PathText,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let name: FunctionName = functions::name(&name)?;
    let request = wire::parse::<InvokeBody>(&body)?.request(&id)?;
    let is_stream = request.stream;
    let invocation = Invocation { principal: caller.principal, request, target: Target::Function(name) };
    let mut generation = invoke::invoke(&caller.host, invocation).await?;
    if is_stream {
        return Ok(stream::events(generation, NativeFormat));
    }
    let whole = stream::collect(&mut generation).await?;
    let mut value = end_object("function.result", &generation, &whole.ended);
    if let Some(object) = value.as_object_mut() {
        object.insert("output".into(), whole.text.into());
    }
    Ok(stream::json(&generation, value))
}

/// `{"object": "function.chunk", "delta"}` for text, `{"object": "function.end", …}` at the end.
struct NativeFormat;

impl Format for NativeFormat {
    fn begin(&mut self, generation: &Generation) -> Vec<Value> {
        let (function, version) = function(generation);
        vec![json!({
            "id": generation.request_id, "object": "function.begin", "function": function, "version": version,
            "adapters": adapters(&generation.adapters), "receipt": generation.receipt_id,
        })]
    }

    fn text(&mut self, generation: &Generation, text: String, _tokens: Vec<TokenOut>) -> Vec<Value> {
        if text.is_empty() {
            return Vec::new();
        }
        vec![json!({"id": generation.request_id, "object": "function.chunk", "delta": text})]
    }

    fn end(&mut self, generation: &Generation, ended: Ended) -> Vec<Value> {
        vec![end_object("function.end", generation, &ended)]
    }
}

fn end_object(object: &str, generation: &Generation, ended: &Ended) -> Value {
    let (function, version) = function(generation);
    let metadata: serde_json::Map<String, Value> =
        ended.metadata.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    json!({
        "id": generation.request_id, "object": object, "function": function, "version": version,
        "finish_reason": ended.reason.name(), "adapters": adapters(&generation.adapters),
        "usage": usage(ended), "metadata": metadata, "receipt": generation.receipt_id,
    })
}

fn function(generation: &Generation) -> (Option<&str>, Option<u32>) {
    generation.function.as_ref().map(|(name, version)| (name.as_str(), *version)).unzip()
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
pub(crate) fn usage(ended: &Ended) -> Value {
    let usage = ended.usage;
    json!({
        "prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    })
}
