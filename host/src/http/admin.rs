//! Tenants and keys, for a key with the right `admin`. A key's secret is shown once, here.

use axum::Json;
use axum::http::StatusCode;
use serde_json::{Value, json};
use types::TenantId;

use super::auth::Caller;
use super::wire::{self, NewKey, NewTenant, PathText, RawBody};
use crate::error::Error;
use crate::tenants::{KeyId, KeyInfo, Right, Rights};

/// `POST /v1/tenants`.
pub(crate) async fn create_tenant(caller: Caller, RawBody(body): RawBody) -> Result<(StatusCode, Json<Value>), Error> {
    let tenant = tenant(&wire::parse::<NewTenant>(&body)?.name)?;
    caller.host.tenants.create_tenant(&tenant).await?;
    Ok((StatusCode::CREATED, Json(json!({"name": tenant.as_str()}))))
}

/// `GET /v1/tenants`: tenants with their keys, without secrets.
pub(crate) async fn list_tenants(caller: Caller) -> Result<Json<Value>, Error> {
    let tenants = caller.host.tenants.list_tenants().await?;
    let keys = caller.host.tenants.list_keys(None).await?;
    let data: Vec<Value> = tenants
        .iter()
        .map(|tenant| {
            let keys: Vec<Value> = keys.iter().filter(|key| key.tenant == *tenant).map(key_json).collect();
            json!({"name": tenant.as_str(), "keys": keys})
        })
        .collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

fn key_json(key: &KeyInfo) -> Value {
    json!({
        "id": key.id.as_str(), "label": key.label, "rights": names(key.rights), "created_unix_ms": key.created_unix_ms,
        "revoked_unix_ms": key.revoked_unix_ms,
    })
}

fn names(rights: Rights) -> Vec<&'static str> {
    rights.iter().map(Right::name).collect()
}

/// `POST /v1/keys`.
pub(crate) async fn create_key(caller: Caller, RawBody(body): RawBody) -> Result<(StatusCode, Json<Value>), Error> {
    let body: NewKey = wire::parse(&body)?;
    let tenant = tenant(&body.tenant)?;
    let rights: Rights =
        body.rights.join(",").parse().map_err(|error: crate::tenants::RightsError| {
            Error::invalid("invalid_request", "rights", error.to_string())
        })?;
    let key = caller.host.tenants.create_key(&tenant, rights, &body.label).await?;
    let id = key.id.as_str();
    let value = json!({"id": id, "key": key.text.as_str(), "tenant": tenant.as_str(), "rights": names(rights)});
    Ok((StatusCode::CREATED, Json(value)))
}

/// `DELETE /v1/keys/{id}`: at once.
pub(crate) async fn revoke_key(caller: Caller, PathText(id): PathText) -> Result<StatusCode, Error> {
    let id: KeyId = id.parse().map_err(|_| Error::NotFound("this key is".into()))?;
    caller.host.tenants.revoke_key(None, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn tenant(text: &str) -> Result<TenantId, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "tenant", error.to_string()))
}
