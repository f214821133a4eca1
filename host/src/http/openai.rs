//! `/v1/models`, `/v1/completions`, `/v1/chat/completions`: OpenAI's API. `model` is the base, an adapter's alias or a
//! function; `adapters: [{"name", "weight"}]` composes without a plugin.

mod format;

use axum::response::Response;
use axum::{Extension, Json};
use serde_json::{Value, json};
use types::{FunctionName, InvocationRequest, Plan, Prompt};

use super::RequestId;
use super::answers::List;
use super::auth::Caller;
use super::wire::{self, ChatBody, CommonBody, CompletionBody, PathText, RawBody};
use super::{openapi, stream};
use crate::error::Error;
use crate::invoke::{self, Invocation, Target};
use crate::registry::RegistryError;
use format::{Kind, OpenAiFormat};

/// The name under which the base is always served.
const BASE: &str = "base";

/// Refuses to give the base's name to something else, which could then never be called by it.
pub(super) fn check_free(name: &str) -> Result<(), Error> {
    if name != BASE {
        return Ok(());
    }
    Err(Error::invalid("invalid_request", "name", format!("`{BASE}` always names the base model; take another name")))
}

/// The base, the tenant's adapters and its functions.
#[utoipa::path(get, path = "/v1/models", tag = "openai", operation_id = "list_models",
    responses((status = 200, description = "All", body = List<openapi::Model>)))]
pub(crate) async fn models(caller: Caller) -> Result<Json<List<Value>>, Error> {
    Ok(Json(List::new(cards(&caller).await?)))
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "openai", operation_id = "get_model",
    responses((status = 200, description = "It", body = openapi::Model)))]
pub(crate) async fn model(caller: Caller, PathText(id): PathText) -> Result<Json<Value>, Error> {
    let card = cards(&caller).await?.into_iter().find(|card| card.get("id").is_some_and(|name| *name == *id));
    card.map(Json).ok_or_else(|| unknown(&id))
}

async fn cards(caller: &Caller) -> Result<Vec<Value>, Error> {
    let Caller { host, principal } = caller;
    let card = |id: &str, kind: &str| json!({"id": id, "object": "model", "created": 0, "owned_by": kind});
    let mut cards = vec![card(BASE, "tenon")];
    if host.base.name() != BASE {
        cards.push(card(host.base.name(), "tenon"));
    }
    for adapter in host.adapters.list(&principal.tenant).await? {
        cards.push(card(adapter.alias.as_str(), "adapter"));
    }
    for function in host.registry.list(&principal.tenant).await? {
        cards.push(card(function.function.as_str(), "function"));
    }
    Ok(cards)
}

fn unknown(model: &str) -> Error {
    Error::invalid("model_not_found", "model", format!("there is no model `{}`", shorten(model)))
}

/// Chat completions.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", operation_id = "chat_completion", request_body = ChatBody,
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events that end with `[DONE]`",
            headers(("x-tenon-receipt" = String, description = "The receipt's identifier")),
            content((openapi::ChatCompletion = "application/json"), (openapi::Event = "text/event-stream"))),
        (status = 422, description = "The function's plugin refused"),
        (status = 429, description = "Too much at once"),
        (status = 502, description = "The function failed"),
    ))]
pub(crate) async fn chat(
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let body: ChatBody = wire::parse(body)?;
    let logprobs = body.logprobs.then(|| body.top_logprobs.unwrap_or(0));
    let messages = wire::messages(body.messages)?;
    let request = wire::chat_request(&id, messages.clone(), body.common.stream, body.common.max_tokens());
    answer(caller, body.common, request, Prompt::Messages(messages), logprobs, Kind::Chat).await
}

/// Completions, with the prompt as text or token ids.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", operation_id = "completion", request_body = CompletionBody,
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events that end with `[DONE]`",
            headers(("x-tenon-receipt" = String, description = "The receipt's identifier")),
            content((openapi::Completion = "application/json"), (openapi::Event = "text/event-stream"))),
        (status = 422, description = "The function's plugin refused"),
        (status = 429, description = "Too much at once"),
        (status = 502, description = "The function failed"),
    ))]
pub(crate) async fn completions(
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let body: CompletionBody = wire::parse(body)?;
    let prompt = body.prompt.prompt()?;
    let text = if let Prompt::Text(text) = &prompt { text.clone() } else { String::new() };
    let request = wire::text_request(&id, text, body.common.stream, body.common.max_tokens());
    answer(caller, body.common, request, prompt, body.logprobs, Kind::Completion).await
}

async fn answer(
    caller: Caller,
    common: CommonBody,
    request: InvocationRequest,
    prompt: Prompt,
    logprobs: Option<u32>,
    kind: Kind,
) -> Result<Response, Error> {
    common.refuse_unsupported()?;
    let target = target(&caller, &common, prompt, logprobs).await?;
    let invocation = Invocation { principal: caller.principal, request, target };
    let mut generation = invoke::invoke(&caller.host, invocation).await?;
    let format = OpenAiFormat::new(kind, caller.host, &common, logprobs.is_some());
    if common.stream {
        return Ok(stream::events(generation, format));
    }
    let whole = stream::collect(&mut generation).await?;
    Ok(stream::json(&generation, format.whole(&generation, whole)))
}

/// What `model` names: the base, then an adapter, then a function.
async fn target(caller: &Caller, common: &CommonBody, prompt: Prompt, logprobs: Option<u32>) -> Result<Target, Error> {
    let (host, tenant, model) = (&caller.host, &caller.principal.tenant, common.model.as_str());
    let plan = |plan: Plan| Target::Plan(Box::new(plan));
    if model == BASE || model == host.base.name() {
        return common.plan(prompt, None, logprobs).map(plan);
    }
    if host.adapters.resolve(tenant, model).await?.is_some() {
        return common.plan(prompt, Some(model), logprobs).map(plan);
    }
    let name: FunctionName = model.parse().map_err(|_| unknown(model))?;
    match host.registry.get_live(tenant, &name).await {
        Ok(_) => {}
        Err(RegistryError::UnknownFunction(_)) => return Err(unknown(model)),
        Err(error) => return Err(error.into()),
    }
    if !common.adapters.is_empty() || matches!(prompt, Prompt::Tokens(_)) {
        let message = "a function chooses its own adapters and takes text: send neither `adapters` nor token ids";
        return Err(Error::invalid("invalid_request", "adapters", message));
    }
    Ok(Target::Function(name))
}

fn shorten(name: &str) -> String {
    name.chars().take(96).collect()
}
