//! Receipts of the caller's own tenant: one, a page, or the whole chain as JSON lines for `tenon receipt verify`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::Query;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use types::TenantId;

use super::auth::Caller;
use super::wire::PathText;
use crate::error::Error;
use crate::host::Host;
use crate::receipt::{Envelope, Receipt, ReceiptId, Salt};

/// Records of one page.
const PAGE_RECORDS: usize = 500;

/// `GET /v1/receipts/{id}`: both records, and the salts of the commitments, which only the owner is given.
pub(crate) async fn show(caller: Caller, PathText(id): PathText) -> Result<Json<Value>, Error> {
    let not_found = || Error::NotFound("this receipt is".into());
    let id: ReceiptId = id.parse().map_err(|_| not_found())?;
    let read =
        move |host: &Host, tenant: &TenantId| Ok((host.receipts.get(tenant, &id)?, host.receipts.salts(tenant, &id)?));
    let (stored, salts) = blocking(&caller, read).await?;
    let stored = stored.ok_or_else(not_found)?;
    let last = stored.last.as_ref().unwrap_or(&stored.started);
    let receipt = last.peek().map_err(|fault| Error::Internal(format!("a stored receipt is damaged: {fault}")))?;
    let salts = salts.unwrap_or_default();
    Ok(Json(json!({
        "id": receipt.id.to_string(),
        "kind": receipt.kind,
        "receipt": as_written(&receipt),
        "envelopes": stored.last.iter().fold(vec![&stored.started], |mut all, one| { all.push(one); all }),
        "salts": {"prompt": salts.prompt.as_ref().map(hex), "answer": salts.answer.as_ref().map(hex)},
    })))
}

/// The payload with its numbers as they stand in the envelope; straight to a value, 0.6 in f32 becomes 0.6000000238…
fn as_written(receipt: &Receipt) -> Value {
    serde_json::to_string(receipt).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn hex(salt: &Salt) -> String {
    types::Digest::from_bytes(*salt.as_bytes()).to_string()
}

/// `?after=SEQUENCE&limit=RECORDS`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

/// `GET /v1/receipts`: records in the order of the chain.
pub(crate) async fn list(
    caller: Caller,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Error> {
    let Query(page) = page.map_err(|error| Error::invalid("invalid_request", "after", error.body_text()))?;
    let limit = page.limit.unwrap_or(100).clamp(1, PAGE_RECORDS);
    let records = blocking(&caller, move |host, tenant| Ok(host.receipts.list(tenant, page.after, limit)?)).await?;
    let next = (records.len() == limit).then(|| records.last().map(|(sequence, _)| *sequence)).flatten();
    let data: Vec<Value> = records
        .iter()
        .map(
            |(sequence, envelope)| json!({"sequence": sequence, "receipt": envelope.peek().ok().as_ref().map(as_written), "envelope": envelope}),
        )
        .collect();
    Ok(Json(json!({"object": "list", "data": data, "next": next})))
}

/// `GET /v1/receipts/export`: the whole chain as of now, one envelope a line.
pub(crate) async fn export(caller: Caller) -> Response {
    let pages = stream::try_unfold((caller, 0), async |(caller, after)| {
        let records: Vec<(u64, Envelope)> =
            blocking(&caller, move |host, tenant| Ok(host.receipts.list(tenant, after, PAGE_RECORDS)?)).await?;
        let Some((last, _)) = records.last() else { return Ok::<_, Error>(None) };
        let last = *last;
        let lines: String = records.iter().map(|(_, envelope)| envelope.to_line() + "\n").collect();
        Ok(Some((Bytes::from(lines), (caller, last))))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pages)).into_response()
}

/// `GET /v1/receipts/keys`: the public keys that sign here.
pub(crate) async fn keys(caller: Caller) -> Response {
    let keys = caller.host.receipt_keys.to_json();
    ([(header::CONTENT_TYPE, "application/json")], keys).into_response()
}

/// The log's reads block on the database.
pub(super) async fn blocking<T: Send + 'static>(
    caller: &Caller,
    read: impl FnOnce(&Host, &TenantId) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (host, tenant) = (Arc::clone(&caller.host), caller.principal.tenant.clone());
    let result = tokio::task::spawn_blocking(move || read(&host, &tenant)).await;
    result.map_err(|error| Error::Internal(format!("reading receipts did not return: {error}")))?
}
