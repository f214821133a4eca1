//! `GET /v1/functions/{name}/logs`: a function's lines, and a long poll for the next ones. Not here: what is kept of them.

use std::time::Duration;

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::Deserialize;
use serde_json::{Value, json};

use super::auth::Caller;
use super::functions;
use super::wire::PathText;
use crate::error::Error;
use crate::logs::{Cursor, Line};

/// Lines of one answer.
const PAGE_LINES_MAX: usize = 1000;
const PAGE_LINES_DEFAULT: usize = 100;
/// How long one question may wait for an answer.
const WAIT_MS_MAX: u64 = 30_000;

/// `?after=CURSOR&limit=LINES&wait_ms=MILLISECONDS&since_unix_ms=TIME`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogQuery {
    after: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    wait_ms: u64,
    #[serde(default)]
    since_unix_ms: u64,
}

/// With `after` the oldest lines behind it, without the newest ones. If there is none yet, waits for one.
pub(crate) async fn read(
    caller: Caller,
    PathText(path): PathText,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Json<Value>, Error> {
    let Query(query) = query.map_err(|error| Error::invalid("invalid_request", "", error.body_text()))?;
    let name = functions::name(&path)?;
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    let after = query.after.as_deref().filter(|text| !text.is_empty()).map(str::parse::<Cursor>).transpose();
    let after = after.map_err(|error| Error::invalid("invalid_request", "after", error.to_string()))?;
    let after = after.unwrap_or_default();
    let limit = query.limit.unwrap_or(PAGE_LINES_DEFAULT).clamp(1, PAGE_LINES_MAX);
    host.registry.live(tenant, &name).await?;
    let wait_ms = query.wait_ms.min(WAIT_MS_MAX);
    if wait_ms > 0 {
        host.logs.wait(tenant, &name, after, Duration::from_millis(wait_ms)).await;
        // It may have been deleted meanwhile, and another's log must not be opened in its name.
        host.registry.live(tenant, &name).await?;
    }
    let page = host.logs.read(tenant, &name, after, limit);
    let lines = page.lines.iter().filter(|line| line.time_unix_ms >= query.since_unix_ms).map(line_json);
    Ok(Json(json!({
        "object": "list", "name": name.as_str(), "data": lines.collect::<Vec<_>>(),
        "dropped": page.dropped, "next": page.next.to_string(),
    })))
}

fn line_json(line: &Line) -> Value {
    json!({
        "sequence": line.sequence, "time_unix_ms": line.time_unix_ms, "level": line.level.name(), "version": line.version,
        "request": &*line.request_id, "message": line.message,
    })
}
