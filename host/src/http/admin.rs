//! Tenants and keys, for a key with the right `admin`. A key's secret is shown once, here.

use axum::Json;
use axum::http::StatusCode;
use types::TenantId;

use super::answers::{self, Key, List, NamedTenant, Tenant};
use super::auth::Caller;
use super::wire::{self, NewKey, NewSigners, NewTenant, PathText, RawBody};
use crate::adapters::SignerKey;
use crate::error::Error;
use crate::tenants::{KeyId, Rights};

/// Makes a tenant.
#[utoipa::path(post, path = "/v1/tenants", tag = "admin", request_body = NewTenant,
    responses((status = 201, description = "Made", body = NamedTenant), (status = 409, description = "The name is taken")))]
pub(crate) async fn create_tenant(
    caller: Caller,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<NamedTenant>), Error> {
    let tenant = tenant(&wire::parse::<NewTenant>(body)?.name)?;
    caller.host.tenants.create_tenant(&tenant).await?;
    Ok((StatusCode::CREATED, Json(NamedTenant { name: tenant.as_str().to_owned() })))
}

/// Tenants with their keys, without secrets.
#[utoipa::path(get, path = "/v1/tenants", tag = "admin", responses((status = 200, description = "All", body = List<Tenant>)))]
pub(crate) async fn list_tenants(caller: Caller) -> Result<Json<List<Tenant>>, Error> {
    let tenants = caller.host.tenants.list_tenants().await?;
    let keys = caller.host.tenants.list_keys(None).await?;
    let data = tenants
        .iter()
        .map(|tenant| {
            let keys = keys.iter().filter(|key| key.tenant == *tenant).map(Key::from).collect();
            Tenant { name: tenant.as_str().to_owned(), keys }
        })
        .collect();
    Ok(Json(List::new(data)))
}

/// Who may sign a tenant's adapters and plugins.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/signers", tag = "admin",
    responses((status = 200, description = "The policy and the keys", body = answers::TenantSigners)))]
pub(crate) async fn signers(caller: Caller, PathText(name): PathText) -> Result<Json<answers::TenantSigners>, Error> {
    let tenant = existing(&caller, &name).await?;
    let signers = caller.host.adapters.signers(&tenant).await?;
    Ok(Json(answers::TenantSigners::new(&tenant, &signers)))
}

/// Sets who may sign a tenant's adapters and plugins from now on.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/signers", tag = "admin", request_body = NewSigners,
    responses(
        (status = 200, description = "Set", body = answers::TenantSigners),
        (status = 409, description = "The revision is another one"),
    ))]
pub(crate) async fn set_signers(
    caller: Caller,
    PathText(name): PathText,
    RawBody(body): RawBody,
) -> Result<Json<answers::TenantSigners>, Error> {
    let tenant = existing(&caller, &name).await?;
    let NewSigners { policy, plugins, keys, expect } = wire::parse(body)?;
    let keys = keys.iter().map(|pem| SignerKey::from_pem(pem)).collect::<Result<Vec<_>, _>>();
    let keys = keys.map_err(|error| Error::invalid(error.code(), "keys", error.to_string()))?;
    let signers = caller.host.adapters.set_signers_of_all(&tenant, policy, plugins, &keys, expect).await?;
    Ok(Json(answers::TenantSigners::new(&tenant, &signers)))
}

pub(super) async fn existing(caller: &Caller, name: &str) -> Result<TenantId, Error> {
    let found = caller.host.tenants.list_tenants().await?.into_iter().find(|tenant| tenant.as_str() == name);
    found.ok_or_else(|| Error::NotFound("this tenant is".into()))
}

/// Makes a key.
#[utoipa::path(post, path = "/v1/keys", tag = "admin", request_body = NewKey,
    responses((status = 201, description = "Made", body = answers::MadeKey), (status = 404, description = "No such tenant")))]
pub(crate) async fn create_key(
    caller: Caller,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<answers::MadeKey>), Error> {
    let body: NewKey = wire::parse(body)?;
    let tenant = tenant(&body.tenant)?;
    let rights: Rights =
        body.rights.join(",").parse().map_err(|error: crate::tenants::RightsError| {
            Error::invalid("invalid_request", "rights", error.to_string())
        })?;
    let key = caller.host.tenants.create_key(&tenant, rights, &body.label).await?;
    let (id, tenant) = (key.id.as_str().to_owned(), tenant.as_str().to_owned());
    let made = answers::MadeKey { id, key: key.text.as_str().to_owned(), tenant, rights: answers::names(rights) };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Revokes a key, at once.
#[utoipa::path(delete, path = "/v1/keys/{id}", tag = "admin", responses((status = 204, description = "Revoked")))]
pub(crate) async fn revoke_key(caller: Caller, PathText(id): PathText) -> Result<StatusCode, Error> {
    let id: KeyId = id.parse().map_err(|_| Error::NotFound("this key is".into()))?;
    caller.host.tenants.revoke_key(None, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn tenant(text: &str) -> Result<TenantId, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "tenant", error.to_string()))
}
