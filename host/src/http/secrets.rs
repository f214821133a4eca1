//! Secrets of a tenant: set, list by name, remove. What one holds is never answered. Not here: how they are kept.

use axum::Json;
use axum::http::StatusCode;
use reqwest::Url;
use types::SecretName;

use super::answers::{List, NamedSecret};
use super::auth::Caller;
use super::wire::{self, NewSecret, PathText, RawBody};
use crate::adapters::Credential;
use crate::error::Error;

/// Sets a secret, in place of the one that has the name.
#[utoipa::path(put, path = "/v1/secrets/{name}", tag = "secrets", operation_id = "put_secret", request_body = NewSecret,
    responses((status = 204, description = "Kept")))]
pub(crate) async fn put(caller: Caller, PathText(path): PathText, RawBody(body): RawBody) -> Result<StatusCode, Error> {
    let name = name(&path, "name")?;
    let credential = match parse(body)? {
        NewSecret::Bearer { origin, token } => {
            let origin = Url::parse(&origin).map_err(|_| {
                Error::invalid("invalid_secret", "origin", "`origin` is no address such as https://huggingface.co")
            })?;
            Credential::Bearer { origin, token }
        }
        NewSecret::S3 { access_key_id, secret_access_key, session_token } => {
            Credential::S3 { access_key_id, secret_access_key, session_token }
        }
        NewSecret::Value { value } => Credential::Value { value },
    };
    caller.host.secrets.put(&caller.principal.tenant, &name, &credential).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists the tenant's secrets by name.
#[utoipa::path(get, path = "/v1/secrets", tag = "secrets", operation_id = "list_secrets",
    responses((status = 200, description = "All", body = List<NamedSecret>)))]
pub(crate) async fn list(caller: Caller) -> Result<Json<List<NamedSecret>>, Error> {
    let names = caller.host.secrets.list(&caller.principal.tenant).await?;
    Ok(Json(List::new(names.iter().map(|name| NamedSecret { name: name.to_string() }).collect())))
}

/// Removes a secret.
#[utoipa::path(delete, path = "/v1/secrets/{name}", tag = "secrets", operation_id = "delete_secret",
    responses((status = 204, description = "Removed")))]
pub(crate) async fn remove(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    caller.host.secrets.remove(&caller.principal.tenant, &name(&path, "name")?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn name(text: &str, param: &str) -> Result<SecretName, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", param, error.to_string()))
}

/// Without the parser's own words, which may quote a secret.
fn parse(body: bytes::Bytes) -> Result<NewSecret, Error> {
    wire::parse(body).map_err(|error| {
        let code = if error.code() == "invalid_json" { "invalid_json" } else { "invalid_request" };
        Error::invalid(
            code,
            "",
            "send {\"origin\", \"token\"}, {\"access_key_id\", \"secret_access_key\", \"session_token\"?}, or {\"value\"}",
        )
    })
}
