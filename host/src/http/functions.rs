//! Plugins and functions: upload, deploy, list, promote, remove. Not here: invoking them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use types::FunctionName;

use super::App;
use super::auth::Caller;
use super::openai;
use super::wire::{self, PathText, Promote, RawBody};
use crate::artifacts::ArtifactKind;
use crate::error::Error;
use crate::invoke;
use crate::registry::{FunctionInfo, FunctionVersion, Live, LiveChange, Manifest, RegistryError};

/// A name from a path.
pub(crate) fn name(text: &str) -> Result<FunctionName, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "name", error.to_string()))
}

/// `POST /v1/plugins`: raw component bytes. Validated and compiled before it is kept; the same answer whoever uploaded
/// the same bytes before.
pub(crate) async fn upload(
    State(app): State<App>,
    caller: Caller,
    body: Result<RawBody, Error>,
) -> Result<(StatusCode, Json<Value>), Error> {
    let too_large = || Error::TooLarge { limit: "upload_bytes_max", max: app.limits().upload_bytes_max };
    // The body does not know that this route's limit is another one.
    let RawBody(bytes) = body.map_err(|error| if let Error::TooLarge { .. } = error { too_large() } else { error })?;
    let host = &caller.host;
    let size = bytes.len();
    let digest = host.plugins.admit(bytes.clone()).await?;
    host.artifacts.put(ArtifactKind::Plugin, bytes).await?;
    host.registry.record_plugin(&caller.principal.tenant, digest).await?;
    Ok((StatusCode::CREATED, Json(json!({"digest": digest.to_string(), "bytes": size}))))
}

/// `PUT /v1/functions/{name}`: a new version; the first one becomes live.
pub(crate) async fn put(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<Value>), Error> {
    let name = name(&path)?;
    openai::check_free(name.as_str())?;
    let manifest: Manifest = wire::parse(body)?;
    manifest.check().map_err(RegistryError::from)?;
    invoke::check_templates(&manifest.templates)?;
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    for adapter in &manifest.adapters {
        if host.adapters.resolve(tenant, adapter).await?.is_none() {
            return Err(Error::NotFound(format!("adapter `{}`", adapter.chars().take(96).collect::<String>())));
        }
    }
    let version = host.registry.put_version(tenant, &name, manifest, caller.principal.key_id.as_str()).await?.version;
    let live = host.registry.get_live(tenant, &name).await?.version;
    Ok((StatusCode::CREATED, Json(json!({"name": name.as_str(), "version": version, "live": live}))))
}

/// `GET /v1/functions`.
pub(crate) async fn list(caller: Caller) -> Result<Json<Value>, Error> {
    let functions = caller.host.registry.list(&caller.principal.tenant).await?;
    let one = |info: &FunctionInfo| json!({"name": info.function.as_str(), "live": info.live, "latest": info.latest});
    Ok(Json(json!({"object": "list", "data": functions.iter().map(one).collect::<Vec<_>>()})))
}

/// `GET /v1/functions/{name}`: the live version.
pub(crate) async fn show(caller: Caller, PathText(path): PathText) -> Result<Json<Value>, Error> {
    let name = name(&path)?;
    let live = caller.host.registry.get_live(&caller.principal.tenant, &name).await?;
    let mut value = version_json(&live);
    if let Some(object) = value.as_object_mut() {
        object.insert("name".into(), name.as_str().into());
        object.insert("live".into(), live.version.into());
    }
    Ok(Json(value))
}

/// `GET /v1/functions/{name}/versions`: every version, which is live, which were and by whose key.
pub(crate) async fn versions(caller: Caller, PathText(path): PathText) -> Result<Json<Value>, Error> {
    let name = name(&path)?;
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    let Live { live, latest, history } = host.registry.live(tenant, &name).await?;
    let versions = host.registry.versions(tenant, &name).await?;
    let data: Vec<Value> = versions.iter().map(version_json).collect();
    let change = |change: &LiveChange| json!({"from": change.from, "to": change.to, "time_unix_ms": change.time_unix_ms, "by": change.by});
    Ok(Json(json!({
        "object": "list", "name": name.as_str(), "live": live, "latest": latest, "previous": history.before(live),
        "history": history.iter().map(change).collect::<Vec<_>>(), "data": data,
    })))
}

/// `POST /v1/functions/{name}/promote`: makes a version live, also an older one; with `expect`, only if that
/// one is live now.
pub(crate) async fn promote(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<Json<Value>, Error> {
    let name = name(&path)?;
    let Promote { version, expect } = wire::parse(body)?;
    let Caller { host, principal } = &caller;
    host.registry.promote(&principal.tenant, &name, version, expect, principal.key_id.as_str()).await?;
    Ok(Json(json!({"name": name.as_str(), "live": version})))
}

/// `DELETE /v1/functions/{name}`.
pub(crate) async fn delete(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    let name = name(&path)?;
    caller.host.registry.delete(&caller.principal.tenant, &name).await?;
    caller.host.logs.remove(&caller.principal.tenant, &name);
    Ok(StatusCode::NO_CONTENT)
}

fn version_json(record: &FunctionVersion) -> Value {
    let mut value = serde_json::to_value(&*record.manifest).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("version".into(), record.version.into());
        object.insert("created_unix_ms".into(), record.created_unix_ms.into());
    }
    value
}
