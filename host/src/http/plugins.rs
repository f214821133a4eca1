//! Plugins: uploaded, with signatures beside them, or pulled from a registry. Not here: functions of them (`functions`), and how a
//! registry is asked (`oci`).

use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart};
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};

use super::App;
use super::answers::{AdapterSignature, Plugin};
use super::auth::Caller;
use super::openapi;
use super::pace;
use super::wire::{self, PathText, PluginSource, RawBody};
use types::Digest;

use crate::adapters::{PluginSignatureError, SIGNATURE_BYTES_MAX, on_behalf_of};
use crate::artifacts::ArtifactKind;
use crate::error::Error;
use crate::oci::{Reference, SIGNATURES_MAX};

/// What a body may have beside the component: its signatures, and the lines between parts.
const BESIDE_BYTES_MAX: usize = SIGNATURES_MAX * SIGNATURE_BYTES_MAX + (64 << 10);

/// The longest body of an upload.
pub(crate) const fn body_bytes_max(upload_bytes_max: usize) -> usize {
    upload_bytes_max.saturating_add(BESIDE_BYTES_MAX)
}

/// A component as it came.
struct Sent {
    component: Bytes,
    signatures: Vec<Bytes>,
    /// What it was pulled as, by its digest.
    source: Option<String>,
}

/// Uploads a component.
///
/// The body is the component; or `multipart/form-data` with the parts `plugin` and, up to eight times, `signature`; or JSON with a
/// `source` in a registry that the host may ask. It is validated and compiled before it is kept; the answer is the same whoever
/// uploaded the same bytes before.
#[utoipa::path(post, path = "/v1/plugins", tag = "functions",
    request_body(content(
        (openapi::Bytes = "application/octet-stream"),
        (openapi::PluginUpload = "multipart/form-data"),
        (PluginSource = "application/json"),
    )),
    responses((status = 201, description = "Taken in", body = Plugin), (status = 422, description = "Not a plugin")))]
pub(crate) async fn upload(
    State(app): State<App>,
    caller: Caller,
    request: Request<Body>,
) -> Result<(StatusCode, Json<Plugin>), Error> {
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    let Sent { component, signatures, source } = read(request, &app, &caller).await?;
    let size = component.len();
    host.artifacts.check_room(size).await?;
    // Before it costs anything else.
    let signers = host.adapters.signers(tenant).await?;
    let signed = component.clone();
    // Each signature is over all of the component, which takes its time.
    let checked = tokio::task::spawn_blocking(move || signers.check_plugin(&signatures, &signed)).await;
    let signature = checked.map_err(|error| Error::Internal(error.to_string()))??;
    let digest = host.plugins.admit_of(component.clone(), Some(tenant)).await?;
    host.revocations.check("the plugin", digest)?;
    host.artifacts.put(ArtifactKind::Plugin, component).await?;
    host.registry.record_plugin(tenant, digest, &signature).await?;
    let signature = AdapterSignature::from(&signature);
    Ok((StatusCode::CREATED, Json(Plugin { digest: digest.to_string(), bytes: size, signature, source })))
}

/// The bytes of a component that the tenant uploaded.
#[utoipa::path(get, path = "/v1/plugins/{digest}", tag = "functions", operation_id = "get_plugin",
    responses((status = 200, description = "It", body = openapi::Bytes, content_type = "application/wasm")))]
pub(crate) async fn download(caller: Caller, PathText(text): PathText) -> Result<Response, Error> {
    let not_found = || Error::NotFound("this plugin is".into());
    let digest: Digest = text.parse().map_err(|_| not_found())?;
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    if !host.registry.owns_plugin(tenant, digest).await? {
        return Err(not_found());
    }
    let bytes = host.artifacts.get(ArtifactKind::Plugin, digest).await?;
    Ok(([(header::CONTENT_TYPE, "application/wasm")], bytes).into_response())
}

async fn read(request: Request<Body>, app: &App, caller: &Caller) -> Result<Sent, Error> {
    let max = app.limits().upload_bytes_max;
    let too_large = || Error::TooLarge { limit: "upload_bytes_max", max };
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("multipart/form-data") {
        return parts(request, app).await;
    }
    // The body does not know that this route's limit is another one.
    let body = RawBody::from_request(request, app).await;
    let RawBody(body) = body.map_err(|error| if let Error::TooLarge { .. } = error { too_large() } else { error })?;
    // Whatever its type is said to be: no component begins so.
    if body.trim_ascii_start().starts_with(b"{") {
        return pulled(body, caller).await;
    }
    if body.len() > max { Err(too_large()) } else { Ok(Sent { component: body, signatures: Vec::new(), source: None }) }
}

async fn pulled(body: Bytes, caller: &Caller) -> Result<Sent, Error> {
    let PluginSource { source } = wire::parse(body)?;
    if !source.starts_with("oci://") {
        return Err(Error::invalid("invalid_request", "source", "a plugin's source begins with oci://"));
    }
    let reference: Reference = source.parse()?;
    let found = on_behalf_of(&caller.principal.tenant, caller.host.plugin_sources.pull(&reference)).await?;
    let source = format!("oci://{}", reference.with_digest(found.digest));
    Ok(Sent { component: found.component, signatures: found.signatures, source: Some(source) })
}

async fn parts(request: Request<Body>, app: &App) -> Result<Sent, Error> {
    let max = app.limits().upload_bytes_max;
    let invalid = |message: String| Error::invalid("invalid_request", "", message);
    let mut parts = Multipart::from_request(request, app).await.map_err(|rejection| invalid(rejection.body_text()))?;
    let (mut component, mut signatures) = (None, Vec::new());
    while let Some(field) = parts.next_field().await.map_err(|error| broken(&error, max))? {
        match field.name().unwrap_or_default() {
            "plugin" => {
                if component.replace(bounded(field, "upload_bytes_max", max, max).await?).is_some() {
                    return Err(invalid("part `plugin` is there twice".to_owned()));
                }
            }
            "signature" if signatures.len() == SIGNATURES_MAX => {
                return Err(PluginSignatureError::TooMany(SIGNATURES_MAX).into());
            }
            "signature" => {
                signatures.push(bounded(field, "signature_bytes_max", SIGNATURE_BYTES_MAX, max).await?);
            }
            other => {
                let name: String = other.chars().take(96).collect();
                return Err(invalid(format!(
                    "no use is known for part `{name}`: send `plugin`, and `signature` if you like"
                )));
            }
        }
    }
    let component = component.ok_or_else(|| invalid("part `plugin` is missing".to_owned()))?;
    Ok(Sent { component, signatures, source: None })
}

async fn bounded(mut field: Field<'_>, limit: &'static str, max: usize, upload_max: usize) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = field.chunk().await.map_err(|error| broken(&error, upload_max))? {
        if bytes.len().saturating_add(piece.len()) > max {
            return Err(Error::TooLarge { limit, max });
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

fn broken(error: &axum::extract::multipart::MultipartError, max: usize) -> Error {
    pace::refusal(error).unwrap_or_else(|| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Error::TooLarge { limit: "upload_bytes_max", max },
        _ => Error::invalid("invalid_request", "", format!("multipart body: {}", error.body_text())),
    })
}
