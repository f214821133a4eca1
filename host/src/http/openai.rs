//! `/v1/models`, `/v1/completions`, `/v1/chat/completions`: OpenAI's API. `model` is the base, an adapter's alias or a
//! function; `adapters: [{"name", "weight"}]` composes without a plugin.

mod format;
mod logprobs;

use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use serde_json::{Value, json};
use types::{FunctionName, InvocationRequest, Plan, PlanError, Prompt};

use super::answers::List;
use super::auth::Caller;
use super::sticky::{Sticky, with_version};
use super::wire::{self, ChatBody, CommonBody, CompletionBody, PathText, RawBody};
use super::{App, RequestId, openapi, stream};
use crate::error::Error;
use crate::invoke::{self, Called, Invocation, Target};
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
    // `root` and `parent` as vLLM has them: what stands behind a name, and the base of an adapter.
    let card = |id: &str, kind: &str, root: Option<&str>, parent: Option<&str>| json!({"id": id, "object": "model", "created": 0, "owned_by": kind, "root": root, "parent": parent});
    let base = host.base.name();
    let mut cards = vec![card(BASE, "tenon", Some(base), None)];
    if base != BASE {
        cards.push(card(base, "tenon", Some(base), None));
    }
    for adapter in host.adapters.list(&principal.tenant).await?.into_iter().filter(|adapter| adapter.is_usable) {
        let digest = adapter.digest.to_string();
        cards.push(card(adapter.alias.as_str(), "adapter", Some(&digest), Some(BASE)));
    }
    for function in host.registry.list(&principal.tenant).await? {
        cards.push(card(function.function.as_str(), "function", None, None));
    }
    Ok(cards)
}

fn unknown(model: &str) -> Error {
    Error::invalid("model_not_found", "model", format!("there is no model `{}`", shorten(model)))
}

/// Chat completions.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", operation_id = "chat_completion", request_body = ChatBody,
    params(("x-tenon-sticky" = Option<String>, Header, description = "By what a function's canary knows the caller; without it, by its API key", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events that end with `[DONE]`",
            headers(("x-tenon-receipt" = String, description = "The receipts' identifiers, one for each choice")),
            content((openapi::ChatCompletion = "application/json"), (openapi::Event = "text/event-stream"))),
        (status = 422, description = "The function's plugin refused"),
        (status = 429, description = "Too many of the caller's requests wait; `Retry-After` says when to come back"),
        (status = 502, description = "The function failed"),
    ))]
pub(crate) async fn chat(
    State(app): State<App>,
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    Sticky(sticky): Sticky,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let body: ChatBody = wire::parse(body)?;
    body.common.check()?;
    let logprobs = body.logprobs()?;
    let choices = body.common.choices(1, app.limits().choices_max)?;
    let (common, chat) = body.into_chat()?;
    let stream = common.stream;
    let uses_tools = !chat.tools.is_empty() || chat.messages.iter().any(|message| !message.tool_calls.is_empty());
    let request = wire::chat_request(&id, wire::plain_messages(&chat), stream, common.max_tokens()?);
    let question = Question { request, prompt: Prompt::Chat(chat), echo: String::new() };
    let asked = Asked { kind: Kind::Chat, questions: vec![question], sticky, choices, common, logprobs, uses_tools };
    answer(caller, asked).await
}

/// Completions, with prompts as text or token ids.
#[utoipa::path(post, path = "/v1/completions", tag = "openai", operation_id = "completion", request_body = CompletionBody,
    params(("x-tenon-sticky" = Option<String>, Header, description = "By what a function's canary knows the caller; without it, by its API key", min_length = 1, max_length = 256)),
    responses(
        (status = 200, description = "The answer; with `stream`, server-sent events that end with `[DONE]`",
            headers(("x-tenon-receipt" = String, description = "The receipts' identifiers, one for each choice")),
            content((openapi::Completion = "application/json"), (openapi::Event = "text/event-stream"))),
        (status = 422, description = "The function's plugin refused"),
        (status = 429, description = "Too many of the caller's requests wait; `Retry-After` says when to come back"),
        (status = 502, description = "The function failed"),
    ))]
pub(crate) async fn completions(
    State(app): State<App>,
    caller: Caller,
    Extension(RequestId(id)): Extension<RequestId>,
    Sticky(sticky): Sticky,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let body: CompletionBody = wire::parse(body)?;
    body.common.check()?;
    body.check()?;
    let logprobs = body.logprobs()?;
    let (common, echo, prompts) = (body.common, body.echo, body.prompt.prompts());
    // Before anything is made for each of them: a body has room for a million prompts.
    let choices = common.choices(prompts.len(), app.limits().choices_max)?;
    let max_tokens = common.max_tokens()?;
    let question = |prompt: Prompt| {
        let text = if let Prompt::Text(text) = &prompt { text.clone() } else { String::new() };
        let request = wire::text_request(&id, text, common.stream, max_tokens);
        let echo = match &prompt {
            Prompt::Text(text) if echo => text.clone(),
            Prompt::Tokens(tokens) if echo => caller.host.base.tokenizer().decode(tokens),
            _ => String::new(),
        };
        Question { request, prompt, echo }
    };
    let questions = prompts.into_iter().map(question).collect();
    let kind = Kind::Completion;
    answer(caller, Asked { kind, questions, sticky, choices, common, logprobs, uses_tools: false }).await
}

/// A request in the form that both routes share.
struct Asked {
    kind: Kind,
    questions: Vec<Question>,
    /// By what a canary knows the caller.
    sticky: Option<String>,
    /// Of each question.
    choices: u32,
    common: CommonBody,
    logprobs: Option<u32>,
    uses_tools: bool,
}

/// One prompt, as a plan's and as a plugin sees it.
struct Question {
    request: InvocationRequest,
    prompt: Prompt,
    /// Sent before the text.
    echo: String,
}

/// What `model` names.
enum Model {
    Base,
    Adapter,
    Function(Box<Called>),
}

async fn answer(caller: Caller, asked: Asked) -> Result<Response, Error> {
    let id = asked.questions.first().map(|question| question.request.id.clone()).unwrap_or_default();
    let model = model_of(&caller, &asked.common.model, asked.sticky.clone(), &id).await?;
    let Model::Function(called) = &model else { return answer_by(caller, asked, model).await };
    let version = called.version.version;
    let answer = match refuse_with_function(&asked) {
        Ok(()) => answer_by(caller, asked, model).await,
        Err(error) => Err(error),
    };
    Ok(with_version(answer, version))
}

async fn answer_by(caller: Caller, asked: Asked, model: Model) -> Result<Response, Error> {
    let Asked { kind, questions, choices, common, logprobs, .. } = asked;
    let handling = common.handling()?;
    let mut invocations = Vec::new();
    let mut echoes = Vec::new();
    for Question { request, prompt, echo } in questions {
        let target = target(&model, &common, prompt, logprobs)?;
        for choice in 0..choices {
            let (request, target) = (request.clone(), target.clone());
            let principal = caller.principal.clone();
            invocations.push(Invocation { principal, request, target, choice, handling });
            echoes.push(echo.clone());
        }
    }
    let invoked = invoke::invoke_all(&caller.host, invocations).await;
    let generations = invoked.map_err(|error| told_of_model(error, &model, &common.model))?;
    let format = OpenAiFormat::new(kind, caller.host, &common, choices, logprobs.is_some(), echoes);
    if common.stream {
        return Ok(stream::events(generations, format));
    }
    let wholes = stream::collect(generations).await?;
    let heads: Vec<_> = wholes.iter().map(|whole| whole.head.clone()).collect();
    Ok(stream::json(&heads, format.whole(wholes)))
}

/// The base, then an adapter, then a function.
async fn model_of(caller: &Caller, model: &str, sticky: Option<String>, request_id: &str) -> Result<Model, Error> {
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    if model == BASE || model == host.base.name() {
        return Ok(Model::Base);
    }
    if host.adapters.resolve(tenant, model).await?.is_some() {
        return Ok(Model::Adapter);
    }
    let name: FunctionName = model.parse().map_err(|_| unknown(model))?;
    match Called::look_up(host, &caller.principal, &name, sticky, request_id).await {
        Ok(called) => Ok(Model::Function(Box::new(called))),
        Err(Error::Registry(RegistryError::UnknownFunction(_))) => Err(unknown(model)),
        Err(error) => Err(error),
    }
}

/// An adapter that is removed between the look at its name and its use is a model that is not there, as it is a moment later.
fn told_of_model(error: Error, model: &Model, name: &str) -> Error {
    match (model, &error) {
        (Model::Adapter, Error::Plan { source: PlanError::AdapterNotGranted(gone), by_caller: true })
            if gone == name =>
        {
            unknown(name)
        }
        _ => error,
    }
}

/// What a function decides by itself, or its plugin is not told.
fn refuse_with_function(asked: &Asked) -> Result<(), Error> {
    if !asked.common.adapters.is_empty() {
        let message = "a function chooses its own adapters: leave out `adapters`";
        return Err(Error::invalid("invalid_request", "adapters", message));
    }
    if asked.questions.iter().any(|question| matches!(question.prompt, Prompt::Tokens(_))) {
        return Err(Error::invalid("invalid_request", "prompt", "a function takes text: send no token ids"));
    }
    if asked.uses_tools {
        let message = "a function's plugin is not told of tools: leave them out, or name the base or an adapter";
        return Err(Error::invalid("unsupported", "tools", message));
    }
    if asked.logprobs.is_some() {
        let message = "a function's plugin may change the text: there are no log-probabilities of it";
        return Err(Error::invalid("unsupported", "logprobs", message));
    }
    if asked.common.constraint.asks() {
        let message = "a function decides the form of its own answers: leave out what they are to match";
        return Err(Error::invalid("unsupported", "response_format", message));
    }
    if asked.common.return_token_ids {
        let message = "a function's plugin may hold back or change what was generated: token ids would show it";
        return Err(Error::invalid("unsupported", "return_token_ids", message));
    }
    Ok(())
}

fn target(model: &Model, common: &CommonBody, prompt: Prompt, logprobs: Option<u32>) -> Result<Target, Error> {
    let plan = |plan: Plan| Target::Plan(Box::new(plan));
    match model {
        Model::Base => common.plan(prompt, None, logprobs).map(plan),
        Model::Adapter => common.plan(prompt, Some(&common.model), logprobs).map(plan),
        Model::Function(called) => Ok(Target::Function(called.clone())),
    }
}

fn shorten(name: &str) -> String {
    name.chars().take(96).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_goes_while_it_is_asked_for_is_no_model() {
        let not_granted =
            |by_caller| Error::Plan { source: PlanError::AdapterNotGranted("gone".to_owned()), by_caller };
        let code = |error, model: &Model, name: &str| told_of_model(error, model, name).code().to_owned();
        assert_eq!(code(not_granted(true), &Model::Adapter, "gone"), "model_not_found");
        // One of `adapters`, and what a plugin wrote, is told as it was.
        for (error, model, name) in [
            (not_granted(true), Model::Adapter, "other"),
            (not_granted(true), Model::Base, "gone"),
            (not_granted(false), Model::Adapter, "gone"),
        ] {
            assert_eq!(code(error, &model, name), "adapter_not_granted");
        }
        assert_eq!(code(Error::Deadline, &Model::Adapter, "gone"), "deadline_exceeded");
    }
}
