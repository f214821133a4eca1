//! Recordings of requests: a function's list, and the lines of one request. Not here: what is kept of them, and playing them, which
//! `tenon replay` does on the caller's own machine.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answers::List;
use super::auth::Caller;
use super::functions;
use super::wire::PathText;
use crate::error::Error;
use crate::recordings::{RecordingCard, RecordingOwner};
use crate::registry::RegistryError;

/// Recordings of one answer.
const PAGE_MAX: usize = 1000;
const PAGE_DEFAULT: usize = 100;

/// How many.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordingQuery {
    /// At most so many of the newest; 100 if absent, and never more than 1,000.
    limit: Option<usize>,
}

/// A recording in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RecordingInfo {
    /// The request's identifier.
    request: String,
    version: u32,
    /// When it began, in milliseconds since 1970-01-01 UTC.
    time_unix_ms: u64,
    /// Calls of the plugin, questions to the host, and returns.
    steps: u32,
    /// Whether nothing was left out because it did not fit.
    is_whole: bool,
    bytes: u64,
}

impl From<RecordingCard> for RecordingInfo {
    fn from(card: RecordingCard) -> Self {
        let RecordingCard { request, version, time_unix_ms, steps, is_whole, bytes, .. } = card;
        Self { request, version, time_unix_ms, steps, is_whole, bytes }
    }
}

/// A function's recordings, the newest first.
#[utoipa::path(get, path = "/v1/functions/{name}/recordings", tag = "functions", operation_id = "list_recordings",
    params(RecordingQuery), responses((status = 200, description = "Some, or none", body = List<RecordingInfo>)))]
pub(crate) async fn list(
    caller: Caller,
    PathText(path): PathText,
    query: Result<Query<RecordingQuery>, QueryRejection>,
) -> Result<Json<List<RecordingInfo>>, Error> {
    let Query(query) = query.map_err(|error| Error::invalid("invalid_request", "limit", error.body_text()))?;
    let function = functions::name(&path)?;
    let (host, tenant) = (&caller.host, caller.principal.tenant.clone());
    let life = host.registry.live(&tenant, &function).await?.life;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT).clamp(1, PAGE_MAX);
    let cards = host.recordings.list(RecordingOwner { tenant, function, life }, limit).await?;
    Ok(Json(List::new(cards.into_iter().map(RecordingInfo::from).collect())))
}

/// The recordings of one request, one after the other: of a request that was handed over, there is one for each function that
/// records.
#[utoipa::path(get, path = "/v1/recordings/{request}", tag = "functions", operation_id = "get_recording",
    responses((status = 200, description = "JSON lines: a head, the steps, an end", body = String,
        content_type = "application/x-ndjson")))]
pub(crate) async fn show(caller: Caller, PathText(request): PathText) -> Result<Response, Error> {
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    let mut lines = String::new();
    for (card, text) in host.recordings.of_request(tenant, &request).await? {
        // Of a function that was deleted meanwhile there is none, also if it is still there.
        let function = functions::name(&card.function)?;
        match host.registry.live(tenant, &function).await {
            Ok(live) if live.life == card.life => lines.push_str(&text),
            Ok(_) | Err(RegistryError::UnknownFunction(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if lines.is_empty() {
        return Err(Error::NotFound("a recording of this request is".into()));
    }
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response())
}
