//! Adapters: upload or fetch, list, show, remove. Not here: what makes one acceptable, which is the crate `model`.

pub(crate) mod derive;
mod upload;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use model::refuse_container;
use types::{AdapterAlias, Digest};

use super::App;
use super::answers::{Adapter, List};
use super::auth::Caller;
use super::wire::{self, AdapterSource, PathText, RawBody};
use super::{openai, openapi, secrets};
use crate::adapters::{AdapterError, Claims, License};
use crate::config::HttpLimits;
use crate::error::Error;

/// Uploads an adapter, or fetches it, and gives it an alias.
#[utoipa::path(put, path = "/v1/adapters/{alias}", tag = "adapters", operation_id = "put_adapter",
    request_body(content((AdapterSource = "application/json"), (openapi::AdapterUpload = "multipart/form-data"))),
    responses(
        (status = 201, description = "Taken in", body = Adapter),
        (status = 409, description = "Another caller was faster"),
        (status = 415, description = "Neither of the two media types, or an archive or a pickle inside one"),
        (status = 422, description = "Not an adapter for this base, not signed as its tenant asks, or a source that is not asked or has none"),
    ))]
pub(crate) async fn put(
    State(app): State<App>,
    caller: Caller,
    PathText(path): PathText,
    request: Request<Body>,
) -> Result<(StatusCode, Json<Adapter>), Error> {
    let alias = alias(&path)?;
    openai::check_free(alias.as_str())?;
    let (store, tenant) = (&caller.host.adapters, &caller.principal.tenant);
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.to_ascii_lowercase();
    // What curl says of a body that it was given with `-d`, and what is said of none.
    let is_json = ["application/json", "application/x-www-form-urlencoded"].iter().any(|json| kind.starts_with(json));
    let info = if kind.starts_with("multipart/form-data") {
        let upload = upload::read(request, &app).await?;
        store.add_bytes(tenant, &alias, upload.files, upload.claims).await?
    } else if is_json || kind.is_empty() {
        let RawBody(body) = RawBody::from_request(request, &app).await?;
        refuse_container(&body, body.len() as u64).map_err(AdapterError::from)?;
        let body: AdapterSource = wire::parse(body)?;
        let claims = claims(body.digest.as_deref(), body.license.as_deref())?;
        let credential = match &body.secret {
            Some(name) => Some(caller.host.secrets.read(tenant, &secrets::name(name, "secret")?).await?),
            None => None,
        };
        let tags = body.tags.as_deref().map(super::tags::read).transpose()?;
        let added = store.add_url(tenant, &alias, &body.source, credential.as_ref(), claims).await?;
        match tags {
            Some(tags) => store.set_tags(tenant, &alias, tags).await?,
            None => added,
        }
    } else {
        let message = "send multipart/form-data with the PEFT files, or application/json with `source`";
        return Err(Error::invalid("unsupported_media_type", "", message));
    };
    Ok((StatusCode::CREATED, Json(Adapter::from(&info))))
}

/// The limit as a length in memory.
pub(crate) fn adapter_bytes_max(limits: &HttpLimits) -> usize {
    usize::try_from(limits.adapter_bytes_max).unwrap_or(usize::MAX)
}

/// Lists the tenant's adapters.
#[utoipa::path(get, path = "/v1/adapters", tag = "adapters", operation_id = "list_adapters",
    responses((status = 200, description = "All", body = List<Adapter>)))]
pub(crate) async fn list(caller: Caller) -> Result<Json<List<Adapter>>, Error> {
    let adapters = caller.host.adapters.list(&caller.principal.tenant).await?;
    Ok(Json(List::new(adapters.iter().map(Adapter::listed).collect())))
}

/// An adapter by its alias or digest.
#[utoipa::path(get, path = "/v1/adapters/{alias}", tag = "adapters", operation_id = "get_adapter",
    responses((status = 200, description = "It", body = Adapter)))]
pub(crate) async fn show(caller: Caller, PathText(name): PathText) -> Result<Json<Adapter>, Error> {
    let (store, tenant) = (&caller.host.adapters, &caller.principal.tenant);
    let not_found = || Error::NotFound("this adapter is".into());
    let info = store.info(tenant, &name).await?.ok_or_else(not_found)?;
    Ok(Json(Adapter::from(&info)))
}

/// Removes an alias.
#[utoipa::path(delete, path = "/v1/adapters/{alias}", tag = "adapters", operation_id = "delete_adapter",
    responses((status = 204, description = "Removed")))]
pub(crate) async fn remove(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    caller.host.adapters.remove(&caller.principal.tenant, &alias(&path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An alias in a path.
pub(crate) fn alias(text: &str) -> Result<AdapterAlias, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "alias", error.to_string()))
}

fn claims(digest: Option<&str>, said: Option<&str>) -> Result<Claims, Error> {
    let wrong = |error: types::DigestError| Error::invalid("invalid_request", "digest", error.to_string());
    let digest: Option<Result<Digest, _>> = digest.map(str::parse);
    Ok(Claims { digest: digest.transpose().map_err(wrong)?, license: license(said)? })
}

/// A licence in a body.
pub(crate) fn license(said: Option<&str>) -> Result<Option<License>, Error> {
    let wrong = |error: crate::adapters::LicenseError| Error::invalid("invalid_request", "license", error.to_string());
    said.map(str::parse).transpose().map_err(wrong)
}
