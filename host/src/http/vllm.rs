//! vLLM's routes for adapters: `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`. A loaded adapter is an alias like
//! any other. Not here: the model cards (`openai.rs`), and the metric that routers read (`metrics.rs`).

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use types::AdapterAlias;
use utoipa::ToSchema;

use super::auth::Caller;
use super::wire::{self, Asks, RawBody, or_default, unsupported};
use super::{error, openai};
use crate::error::Error;

/// The code of a name that is taken.
const EXISTS: &str = "adapter_exists";

/// `POST /v1/load_lora_adapter`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"lora_name": "iso-date", "lora_path": "hf://acme/iso-date"}))]
pub(crate) struct LoadLora {
    /// The alias that it is given.
    lora_name: String,
    /// A URL of ours, or a folder by its path: absolute, or from `adapters_root` on.
    lora_path: String,
    /// The name may stand for another adapter, which it then leaves.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(value_type = Option<bool>)]
    load_inplace: bool,
    #[serde(default)]
    #[schema(ignore)]
    is_3d_lora_weight: Asks,
}

/// `POST /v1/unload_lora_adapter`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({"lora_name": "iso-date"}))]
pub(crate) struct UnloadLora {
    lora_name: String,
    /// Not looked at.
    #[serde(rename = "lora_int_id")]
    _lora_int_id: Option<i64>,
}

/// Why a request was not answered, in vLLM's shape.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct VllmError {
    error: VllmErrorObject,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct VllmErrorObject {
    /// For people; says what to do.
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field of the request that is wrong.
    #[schema(required)]
    param: Option<String>,
    /// The status.
    code: u16,
    /// Our own stable word for programs.
    reason: String,
}

/// Adds an adapter under a name.
#[utoipa::path(post, path = "/v1/load_lora_adapter", tag = "vllm", operation_id = "load_lora_adapter",
    request_body = LoadLora,
    responses(
        (status = 200, description = "`Success: LoRA adapter 'NAME' added successfully.`", body = String, content_type = "text/plain"),
        (status = 409, description = "Another caller was faster"),
    ))]
pub(crate) async fn load(caller: Caller, RawBody(body): RawBody) -> Result<String, Error> {
    let LoadLora { lora_name, lora_path, load_inplace, is_3d_lora_weight } = wire::parse(body)?;
    if is_3d_lora_weight.any() {
        return Err(unsupported("is_3d_lora_weight"));
    }
    if lora_name.is_empty() || lora_path.is_empty() {
        let message = "Both 'lora_name' and 'lora_path' must be provided.";
        return Err(Error::invalid("invalid_request", "lora_name", message));
    }
    let alias: AdapterAlias = lora_name
        .parse()
        .map_err(|error: types::NameError| Error::invalid("invalid_request", "lora_name", error.to_string()))?;
    openai::check_free(alias.as_str())?;
    let (store, tenant) = (&caller.host.adapters, &caller.principal.tenant);
    let url = if lora_path.contains("://") { lora_path } else { store.folder_url(&lora_path)? };
    let is_new = if load_inplace {
        store.add_url(tenant, &alias, &url, None, None).await.map(|_| true)?
    } else {
        store.add_url_once(tenant, &alias, &url, None).await?
    };
    if !is_new {
        let message = format!(
            "The lora adapter '{alias}' has already been loaded. If you want to load the adapter in place, set \
             'load_inplace' to True."
        );
        return Err(Error::invalid(EXISTS, "lora_name", message));
    }
    // Theirs is ready when they answer; ours is on its way, and its first user waits for what is left.
    let resolved = store.resolve_all(tenant, &[alias.to_string()]).await?;
    if let Some(digest) = resolved.get(alias.as_str()) {
        store.prefetch(&resolved, digest)?;
    }
    Ok(format!("Success: LoRA adapter '{alias}' added successfully."))
}

/// Removes a name.
#[utoipa::path(post, path = "/v1/unload_lora_adapter", tag = "vllm", operation_id = "unload_lora_adapter",
    request_body = UnloadLora,
    responses(
        (status = 200, description = "`Success: LoRA adapter 'NAME' removed successfully.`", body = String, content_type = "text/plain"),
    ))]
pub(crate) async fn unload(caller: Caller, RawBody(body): RawBody) -> Result<String, Error> {
    let UnloadLora { lora_name, .. } = wire::parse(body)?;
    if lora_name.is_empty() {
        let message = "'lora_name' needs to be provided to unload a LoRA adapter.";
        return Err(Error::invalid("invalid_request", "lora_name", message));
    }
    let missing = || {
        let name: String = lora_name.chars().take(96).collect();
        Error::invalid("adapter_not_found", "lora_name", format!("The lora adapter '{name}' cannot be found."))
    };
    let alias: AdapterAlias = lora_name.parse().map_err(|_| missing())?;
    match caller.host.adapters.remove(&caller.principal.tenant, &alias).await {
        Ok(()) => Ok(format!("Success: LoRA adapter '{alias}' removed successfully.")),
        Err(crate::adapters::AdapterError::NotFound(_)) => Err(missing()),
        Err(error) => Err(error.into()),
    }
}

/// Status and body of an error in vLLM's shape: what the caller can mend is 400, what is not there 404.
pub(super) fn refusal(error: &Error) -> (StatusCode, Value) {
    let (code, found) = (error.code(), error::status(error));
    let status = match found {
        _ if code == "source_not_found" => StatusCode::NOT_FOUND,
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::UNSUPPORTED_MEDIA_TYPE => StatusCode::BAD_REQUEST,
        other => other,
    };
    let kind = match status.as_u16() {
        _ if code == EXISTS => "InvalidUserInput",
        401 => "AuthenticationError",
        403 => "PermissionDeniedError",
        404 => "NotFoundError",
        500..=599 => "InternalServerError",
        _ => "BadRequestError",
    };
    let (message, param) = (error::message(error), error.param().map(str::to_owned));
    let object = VllmErrorObject { message, kind, param, code: status.as_u16(), reason: code.to_owned() };
    (status, serde_json::to_value(VllmError { error: object }).unwrap_or_default())
}
