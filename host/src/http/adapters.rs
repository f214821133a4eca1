//! Adapters: upload or fetch, list, show, remove. Not here: what makes one acceptable, which is the crate `model`.

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{FromRequest, Request, State};
use axum::http::{StatusCode, header};
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use types::{AdapterAlias, Digest};

use super::App;
use super::auth::Caller;
use super::pace;
use super::wire::{self, AdapterSource, PathText, RawBody};
use crate::adapters::AdapterInfo;
use crate::config::HttpLimits;
use crate::error::Error;

/// The files of a PEFT folder, by their names there.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// `PUT /v1/adapters/{alias}`: JSON `{"source", "digest"?}`, or `multipart/form-data` with the two PEFT files.
pub(crate) async fn put(
    State(app): State<App>,
    caller: Caller,
    PathText(path): PathText,
    request: Request<Body>,
) -> Result<(StatusCode, Json<Value>), Error> {
    let alias = alias(&path)?;
    let (store, tenant) = (&caller.host.adapters, &caller.principal.tenant);
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.to_ascii_lowercase();
    let info = if kind.starts_with("multipart/form-data") {
        let upload = upload(request, &app).await?;
        store.add_bytes(tenant, &alias, upload.config, upload.weights, upload.digest).await?
    } else if kind.starts_with("application/json") {
        let RawBody(body) = RawBody::from_request(request, &app).await?;
        let body: AdapterSource = wire::parse(body)?;
        let expected = body.digest.as_deref().map(digest).transpose()?;
        store.add_file_url(tenant, &alias, &body.source, expected).await?
    } else {
        let message = "send multipart/form-data with the PEFT files, or application/json with `source`";
        return Err(Error::invalid("unsupported_media_type", "", message));
    };
    Ok((StatusCode::CREATED, Json(info_json(&info))))
}

struct Upload {
    config: Bytes,
    weights: Bytes,
    digest: Option<Digest>,
}

async fn upload(request: Request<Body>, app: &App) -> Result<Upload, Error> {
    let mut parts = Multipart::from_request(request, app)
        .await
        .map_err(|rejection| Error::invalid("invalid_request", "", rejection.body_text()))?;
    let (mut config, mut weights, mut expected) = (None, None, None);
    while let Some(field) = parts.next_field().await.map_err(|error| broken(&error, app.limits()))? {
        let name = part_name(&field);
        let (limit, max) = match name.as_str() {
            WEIGHTS => ("adapter_bytes_max", adapter_bytes_max(app.limits())),
            _ => ("adapter_config_bytes_max", CONFIG_BYTES_MAX),
        };
        let place = match name.as_str() {
            CONFIG => &mut config,
            WEIGHTS => &mut weights,
            "digest" => &mut expected,
            _ => {
                let name: String = name.chars().take(96).collect();
                let message =
                    format!("unknown part `{name}`: send `{CONFIG}` and `{WEIGHTS}`, and `digest` if you like");
                return Err(Error::invalid("invalid_request", "", message));
            }
        };
        if place.replace(bounded(field, limit, max, app.limits()).await?).is_some() {
            return Err(Error::invalid("invalid_request", "", format!("part `{name}` is there twice")));
        }
    }
    let missing = |name: &str| Error::invalid("invalid_request", "", format!("part `{name}` is missing"));
    let expected = expected.map(|bytes| digest(String::from_utf8_lossy(&bytes).trim())).transpose()?;
    Ok(Upload {
        config: config.ok_or_else(|| missing(CONFIG))?,
        weights: weights.ok_or_else(|| missing(WEIGHTS))?,
        digest: expected,
    })
}

fn broken(error: &MultipartError, limits: &HttpLimits) -> Error {
    match error.status() {
        _ if pace::is_too_slow(error) => Error::TooSlow,
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge { limit: "adapter_bytes_max", max: adapter_bytes_max(limits) },
        _ => Error::invalid("invalid_request", "", format!("multipart body: {}", error.body_text())),
    }
}

/// The limit as a length in memory.
pub(crate) fn adapter_bytes_max(limits: &HttpLimits) -> usize {
    usize::try_from(limits.adapter_bytes_max).unwrap_or(usize::MAX)
}

/// A PEFT configuration is a page of JSON.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// The part's name; a part that is called `file` goes by its file name.
fn part_name(field: &Field<'_>) -> String {
    let name = field.name().unwrap_or_default();
    let name = if name == "file" || name == "files" { field.file_name().unwrap_or_default() } else { name };
    name.to_owned()
}

async fn bounded(mut field: Field<'_>, limit: &'static str, max: usize, limits: &HttpLimits) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| broken(&error, limits))? {
        if bytes.len() + chunk.len() > max {
            return Err(Error::TooLarge { limit, max });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
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
    Ok(Json(info_json(&info)))
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

fn alias(text: &str) -> Result<AdapterAlias, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "alias", error.to_string()))
}

fn digest(text: &str) -> Result<Digest, Error> {
    text.parse().map_err(|error: types::DigestError| Error::invalid("invalid_request", "digest", error.to_string()))
}
