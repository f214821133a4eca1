//! Who may read a tenant's adapters, and what a tenant may read of others'. Not here: taking one, which is `PUT
//! /v1/adapters/{alias}` with the source `tenon://OWNER/ALIAS`.

use std::collections::BTreeSet;

use axum::Json;
use axum::http::StatusCode;
use types::TenantId;

use super::adapters::{alias, license};
use super::answers::{AdapterShare, List, SharedAdapter};
use super::auth::Caller;
use super::wire::{self, NewReaders, PathText, RawBody};
use crate::adapters::Readers;
use crate::error::Error;

/// Lets other tenants read what the alias names now.
///
/// In place of who could read it before. New content under the alias is not shared until this is said again.
#[utoipa::path(put, path = "/v1/adapters/{alias}/readers", tag = "adapters", operation_id = "put_readers", request_body = NewReaders,
    responses(
        (status = 200, description = "Shared", body = AdapterShare),
        (status = 409, description = "Another caller was faster"),
        (status = 410, description = "The adapter was revoked"),
        (status = 422, description = "Another tenant's adapter, or one whose licence is not known or another one"),
    ))]
pub(crate) async fn put(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<Json<AdapterShare>, Error> {
    let alias = alias(&path)?;
    let NewReaders { everyone, tenants, license: said } = wire::parse(body)?;
    let readers = match (everyone, tenants) {
        (true, None) => Readers::Everyone,
        (false, Some(names)) if !names.is_empty() => Readers::Tenants(parse(&names)?),
        _ => return Err(Error::invalid("invalid_request", "tenants", "send either everyone, as true, or tenants")),
    };
    let said = license(said.as_deref())?;
    let share = caller.host.adapters.share(&caller.principal.tenant, &alias, readers, said).await?;
    Ok(Json(AdapterShare::new(&caller.principal.tenant, share)))
}

/// Who may read what the alias names now.
#[utoipa::path(get, path = "/v1/adapters/{alias}/readers", tag = "adapters", operation_id = "get_readers",
    responses(
        (status = 200, description = "They", body = AdapterShare),
        (status = 422, description = "Another tenant's adapter"),
    ))]
pub(crate) async fn show(caller: Caller, PathText(path): PathText) -> Result<Json<AdapterShare>, Error> {
    let alias = alias(&path)?;
    let share = caller.host.adapters.share_of(&caller.principal.tenant, &alias).await?;
    Ok(Json(AdapterShare::new(&caller.principal.tenant, share)))
}

/// Lets nobody else read what the alias names any more.
///
/// What is in flight ends as it began.
#[utoipa::path(delete, path = "/v1/adapters/{alias}/readers", tag = "adapters", operation_id = "delete_readers",
    responses(
        (status = 204, description = "Nobody"),
        (status = 409, description = "Another caller was faster"),
        (status = 422, description = "Another tenant's adapter"),
    ))]
pub(crate) async fn remove(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    caller.host.adapters.unshare(&caller.principal.tenant, &alias(&path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists what other tenants let this one read.
#[utoipa::path(get, path = "/v1/shared-adapters", tag = "adapters", operation_id = "list_shared_adapters",
    responses((status = 200, description = "All", body = List<SharedAdapter>)))]
pub(crate) async fn list(caller: Caller) -> Result<Json<List<SharedAdapter>>, Error> {
    let found = caller.host.adapters.shared_with(&caller.principal.tenant).await?;
    Ok(Json(List::new(found.into_iter().map(SharedAdapter::from).collect())))
}

fn parse(names: &[String]) -> Result<BTreeSet<TenantId>, Error> {
    let tenant = |name: &String| {
        name.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "tenants", error.to_string()))
    };
    names.iter().map(tenant).collect()
}
