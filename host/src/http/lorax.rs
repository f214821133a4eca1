//! LoRAX's routes, which are OpenLoRA's too: `POST /`, `/generate`, `/generate_stream`, `GET /info`. Their clients run
//! unmodified; what they ask for becomes a plan as on OpenAI's routes. Not here: `GET /health` (`operations.rs`).

mod adapter;
mod answers;
mod body;
mod format;

pub(crate) use answers::{LoraxAnswer, LoraxError, LoraxEvent};

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Json};
use serde_json::Value;
use types::{Message, Prompt};

use super::auth::Caller;
use super::wire::{self, RawBody};
use super::{App, RequestId, error, openapi, stream};
use crate::error::Error;
use crate::host::Host;
use crate::invoke::{self, Handling, Invocation, Target};
use answers::LoraxInfo;
use body::GenerateBody;
use format::LoraxFormat;

/// What an answer is wrapped in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// A list of one, which `POST /` answers with.
    List,
    Object,
    Events,
}

/// Generates, whole or with `stream` as events.
#[utoipa::path(post, path = "/", tag = "lorax", operation_id = "lorax_compatible", request_body = GenerateBody,
    responses(
        (status = 200, description = "A list of one answer; with `stream`, server-sent events as `/generate_stream` sends them",
            headers(("x-tenon-receipt" = String, description = "The receipts' identifiers")),
            content((Vec<LoraxAnswer> = "application/json"), (openapi::Event = "text/event-stream"))),
        (status = 409, description = "Another caller was faster with an adapter that is added"),
        (status = 429, description = "Too many of the caller's requests wait; `Retry-After` says when to come back"),
    ))]
pub(crate) async fn compatible(
    State(app): State<App>,
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let body: GenerateBody = wire::parse(body)?;
    let shape = if body.stream { Shape::Events } else { Shape::List };
    answer(&app, caller, &id, body, shape).await
}

/// Generates.
#[utoipa::path(post, path = "/generate", tag = "lorax", operation_id = "lorax_generate", request_body = GenerateBody,
    responses(
        (status = 200, description = "The answer", body = LoraxAnswer,
            headers(("x-tenon-receipt" = String, description = "The receipts' identifiers"))),
        (status = 409, description = "Another caller was faster with an adapter that is added"),
        (status = 429, description = "Too many of the caller's requests wait; `Retry-After` says when to come back"),
    ))]
pub(crate) async fn generate(
    State(app): State<App>,
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    answer(&app, caller, &id, wire::parse(body)?, Shape::Object).await
}

/// Generates, one event for each token.
#[utoipa::path(post, path = "/generate_stream", tag = "lorax", operation_id = "lorax_generate_stream",
    request_body = GenerateBody,
    responses(
        (status = 200, description = "Server-sent events whose `data` is a `LoraxEvent`; the last one has `generated_text`, and no `[DONE]` follows it",
            body = openapi::Event, content_type = "text/event-stream",
            headers(("x-tenon-receipt" = String, description = "The receipt's identifier"))),
        (status = 409, description = "Another caller was faster with an adapter that is added"),
        (status = 429, description = "Too many of the caller's requests wait; `Retry-After` says when to come back"),
    ))]
pub(crate) async fn generate_stream(
    State(app): State<App>,
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    answer(&app, caller, &id, wire::parse(body)?, Shape::Events).await
}

/// What is served.
#[utoipa::path(get, path = "/info", tag = "lorax", operation_id = "lorax_info",
    responses((status = 200, description = "The base and the host's limits", body = LoraxInfo)))]
pub(crate) async fn info(State(app): State<App>, caller: Caller) -> Json<LoraxInfo> {
    let host = &caller.host;
    let (limits, shape) = (&host.plan_limits, host.engine.shape());
    let max_input_length = limits.prompt_tokens_max.min(host.engine.prompt_tokens_max());
    Json(LoraxInfo {
        model_id: host.base.name().to_owned(),
        model_sha: host.base.digest().to_string(),
        model_dtype: host.precision.clone(),
        model_device_type: if host.runner.starts_with("cpu") { "cpu" } else { "cuda" },
        model_pipeline_tag: "text-generation",
        max_best_of: app.limits().choices_max,
        max_stop_sequences: limits.stop_conditions_max,
        max_input_length,
        max_total_tokens: max_input_length
            .saturating_add(usize::try_from(limits.output_tokens_max).unwrap_or_default()),
        max_batch_total_tokens: u64::from(shape.block_tokens) * u64::from(shape.kv_blocks),
        version: env!("CARGO_PKG_VERSION"),
    })
}

async fn answer(app: &App, caller: Caller, id: &str, body: GenerateBody, shape: Shape) -> Result<Response, Error> {
    let GenerateBody { inputs, parameters, .. } = body;
    let is_streamed = shape == Shape::Events;
    if inputs.is_empty() {
        return Err(Error::invalid("invalid_request", "inputs", "inputs is empty: send text"));
    }
    let host = Arc::clone(&caller.host);
    let wishes = parameters.check(is_streamed, &host.plan_limits, app.limits().choices_max)?;
    let composition = adapter::composition(&caller, &parameters).await?;
    let echo = if parameters.return_full_text { inputs.clone() } else { String::new() };
    let keep = body::positive("truncate", parameters.truncate)?;
    let prompt = prompt(&host, &inputs, keep, parameters.apply_chat_template).await?;
    let shows_tokens = is_streamed || parameters.details || wishes.best_of > 1;
    let logprobs = shows_tokens.then(|| wishes.alternatives.unwrap_or(0));
    let request = wire::text_request(id, inputs, is_streamed, Some(wishes.tokens_max));
    let (mut invocations, mut seeds) = (Vec::new(), Vec::new());
    for _ in 0..wishes.best_of {
        let plan = parameters.plan(prompt.clone(), composition.clone(), wishes, logprobs)?;
        seeds.push(plan.sampling.seed);
        invocations.push(Invocation {
            principal: caller.principal.clone(),
            request: request.clone(),
            target: Target::Plan(Box::new(plan)),
            // Each has a seed of its own already.
            choice: 0,
            handling: Handling::default(),
        });
    }
    let generations = invoke::invoke_all(&host, invocations).await?;
    let format = LoraxFormat::new(host, wishes, echo, parameters.details, seeds);
    if is_streamed {
        return Ok(stream::events(generations, format));
    }
    let wholes = stream::collect(generations).await?;
    let heads: Vec<_> = wholes.iter().map(|whole| Arc::clone(&whole.head)).collect();
    let answer = serde_json::to_value(format.whole(wholes)?).unwrap_or_default();
    Ok(stream::json(&heads, if shape == Shape::List { Value::Array(vec![answer]) } else { answer }))
}

/// What the model is given: the text, its last tokens alone, or the text as what a user says.
async fn prompt(host: &Arc<Host>, inputs: &str, keep: Option<u32>, is_chat: bool) -> Result<Prompt, Error> {
    if is_chat {
        return Ok(Prompt::Messages(vec![Message { role: "user".into(), content: inputs.to_owned() }]));
    }
    let text = || Prompt::Text(inputs.to_owned());
    // A text that is too long is for the plan's check to refuse; no token is longer than the text.
    let Some(keep) = keep.and_then(|keep| usize::try_from(keep).ok()) else { return Ok(text()) };
    if inputs.len() <= keep || inputs.len() > host.plan_limits.prompt_bytes_max {
        return Ok(text());
    }
    let (base, inputs) = (Arc::clone(&host.base), inputs.to_owned());
    let tokenised = tokio::task::spawn_blocking(move || {
        let mut tokens = base.tokenizer().encode(&inputs)?;
        let surplus = tokens.len().saturating_sub(keep);
        Ok(if surplus == 0 { Prompt::Text(inputs) } else { Prompt::Tokens(tokens.split_off(surplus)) })
    });
    tokenised.await.map_err(|error| Error::Internal(format!("the tokenizer did not return: {error}")))?
}

/// Status and body of an error, as LoRAX's clients read them: they go by `error_type`, then by the status.
pub(super) fn refusal(error: &Error) -> (StatusCode, Value) {
    let status = match error::status(error) {
        StatusCode::BAD_REQUEST | StatusCode::UNSUPPORTED_MEDIA_TYPE => StatusCode::UNPROCESSABLE_ENTITY,
        other => other,
    };
    let code = error.code().to_owned();
    let error_type = match status.as_u16() {
        422 => "validation".to_owned(),
        429 | 503 => "overloaded".to_owned(),
        500 | 502 => "generation".to_owned(),
        _ => code.clone(),
    };
    let body = LoraxError { error: error::message(error), error_type, code };
    (status, serde_json::to_value(body).unwrap_or_default())
}
