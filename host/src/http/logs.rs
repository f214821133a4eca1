//! `GET /v1/functions/{name}/logs`: a function's lines, and a long poll for the next ones. Not here: what is kept of them.

use std::time::Duration;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::{List, LogLine, LogPage};
use super::auth::Caller;
use super::functions;
use super::wire::PathText;
use crate::error::Error;
use crate::logs::{Cursor, LogOwner};

/// Lines of one answer.
const PAGE_LINES_MAX: usize = 1000;
const PAGE_LINES_DEFAULT: usize = 100;
/// How long one question may wait for an answer.
const WAIT_MS_MAX: u64 = 30_000;

/// Which lines, and how long to wait for one.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogQuery {
    /// `next` of an earlier answer: the oldest lines after it. If absent, the newest lines.
    after: Option<String>,
    /// At most so many lines; 100 if absent, and never more than 1,000.
    limit: Option<usize>,
    /// If there is no line yet, wait so long for one; never more than 30,000.
    #[serde(default)]
    wait_ms: u64,
    /// Only lines since then, in milliseconds since 1970-01-01 UTC.
    #[serde(default)]
    since_unix_ms: u64,
}

/// Lines of a function's log: what its plugin said, and which invocations failed.
#[utoipa::path(get, path = "/v1/functions/{name}/logs", tag = "functions", operation_id = "function_logs", params(LogQuery),
    responses((status = 200, description = "Some lines, or none", body = LogPage)))]
pub(crate) async fn read(
    caller: Caller,
    PathText(path): PathText,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Json<LogPage>, Error> {
    let Query(query) = query.map_err(|error| Error::invalid("invalid_request", "", error.body_text()))?;
    let name = functions::name(&path)?;
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    let after = query.after.as_deref().filter(|text| !text.is_empty()).map(str::parse::<Cursor>).transpose();
    let after = after.map_err(|error| Error::invalid("invalid_request", "after", error.to_string()))?;
    let after = after.unwrap_or_default();
    let limit = query.limit.unwrap_or(PAGE_LINES_DEFAULT).clamp(1, PAGE_LINES_MAX);
    let life = async || Ok::<_, Error>(LogOwner::new(tenant, &name, host.registry.live(tenant, &name).await?.life));
    let mut owner = life().await?;
    let wait_ms = query.wait_ms.min(WAIT_MS_MAX);
    if wait_ms > 0 {
        host.logs.wait(&owner, after, Duration::from_millis(wait_ms)).await;
        // It may have been deleted meanwhile, and another's log must not be opened in its name.
        owner = life().await?;
    }
    let page = host.logs.read(&owner, after, limit);
    let lines = page.lines.iter().filter(|line| line.time_unix_ms >= query.since_unix_ms).map(LogLine::from);
    let (name, list, next) = (name.as_str().to_owned(), List::new(lines.collect()), page.next.to_string());
    Ok(Json(LogPage { list, name, dropped: page.dropped, next }))
}
