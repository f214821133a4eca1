//! Adapters: upload or fetch, list, show, remove. Not here: what makes one acceptable, which is the crate `model`.

mod upload;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use model::{AdapterReport, refuse_container};
use serde_json::{Value, json};
use types::{AdapterAlias, Digest};

use super::App;
use super::auth::Caller;
use super::openai;
use super::wire::{self, AdapterSource, PathText, RawBody};
use crate::adapters::{AdapterError, AdapterInfo};
use crate::config::HttpLimits;
use crate::error::Error;

/// `PUT /v1/adapters/{alias}`: JSON `{"source", "digest"?}`, or `multipart/form-data` with the two PEFT files.
pub(crate) async fn put(
    State(app): State<App>,
    caller: Caller,
    PathText(path): PathText,
    request: Request<Body>,
) -> Result<(StatusCode, Json<Value>), Error> {
    let alias = alias(&path)?;
    openai::check_free(alias.as_str())?;
    let (store, tenant) = (&caller.host.adapters, &caller.principal.tenant);
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.to_ascii_lowercase();
    // What curl says of a body that it was given with `-d`, and what is said of none.
    let is_json = ["application/json", "application/x-www-form-urlencoded"].iter().any(|json| kind.starts_with(json));
    let info = if kind.starts_with("multipart/form-data") {
        let upload = upload::read(request, &app).await?;
        store.add_bytes(tenant, &alias, upload.config, upload.weights, upload.digest).await?
    } else if is_json || kind.is_empty() {
        let RawBody(body) = RawBody::from_request(request, &app).await?;
        refuse_container(&body, body.len() as u64).map_err(AdapterError::from)?;
        let body: AdapterSource = wire::parse(body)?;
        let expected = body.digest.as_deref().map(digest).transpose()?;
        store.add_file_url(tenant, &alias, &body.source, expected).await?
    } else {
        let message = "send multipart/form-data with the PEFT files, or application/json with `source`";
        return Err(Error::invalid("unsupported_media_type", "", message));
    };
    Ok((StatusCode::CREATED, Json(reported_json(&info))))
}

/// The limit as a length in memory.
pub(crate) fn adapter_bytes_max(limits: &HttpLimits) -> usize {
    usize::try_from(limits.adapter_bytes_max).unwrap_or(usize::MAX)
}

/// `GET /v1/adapters`.
pub(crate) async fn list(caller: Caller) -> Result<Json<Value>, Error> {
    let adapters = caller.host.adapters.list(&caller.principal.tenant).await?;
    let data: Vec<Value> = adapters.iter().map(info_json).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

/// `GET /v1/adapters/{alias}`, by alias or digest.
pub(crate) async fn show(caller: Caller, PathText(name): PathText) -> Result<Json<Value>, Error> {
    let (store, tenant) = (&caller.host.adapters, &caller.principal.tenant);
    let not_found = || Error::NotFound("this adapter is".into());
    let info = store.info(tenant, &name).await?.ok_or_else(not_found)?;
    Ok(Json(reported_json(&info)))
}

/// `DELETE /v1/adapters/{alias}`.
pub(crate) async fn remove(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    caller.host.adapters.remove(&caller.principal.tenant, &alias(&path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn info_json(info: &AdapterInfo) -> Value {
    let modules: Vec<&str> = info.modules.iter().map(types::Module::name).collect();
    json!({
        "alias": info.alias.as_str(), "digest": info.digest.to_string(), "rank": info.rank, "modules": modules,
        "bytes": info.bytes,
    })
}

/// With the admission report, which lists leave out.
fn reported_json(info: &AdapterInfo) -> Value {
    let mut value = info_json(info);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("report".into(), info.report.as_ref().map(report_json).into());
    }
    value
}

fn report_json(report: &AdapterReport) -> Value {
    let modules = report
        .modules
        .iter()
        .map(|one| json!({"module": one.module, "layers": one.layers, "rank": one.rank, "scale": one.scale}));
    json!({
        "kind": report.kind.name(), "modules": modules.collect::<Vec<_>>(), "dtypes": report.dtypes,
        "parameters": report.parameters, "base_model": report.base_model_name, "warnings": report.warnings,
    })
}

fn alias(text: &str) -> Result<AdapterAlias, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "alias", error.to_string()))
}

fn digest(text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|error: types::DigestError| Error::invalid("invalid_request", "digest", error.to_string()))
}
