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
use serde_json::Value;
use types::TenantId;
use utoipa::IntoParams;

use super::answers::{ChainPage, ChainRecord, List, ReceiptAnswer, Salts};
use super::auth::Caller;
use super::wire::PathText;
use crate::error::Error;
use crate::host::Host;
use crate::receipt::{Envelope, PublicKeyEntry, Receipt, ReceiptId, Salt};

/// Records of one page.
const PAGE_RECORDS: usize = 500;

/// Both records of a receipt, and the salts of the commitments, which only the owner is given.
#[utoipa::path(get, path = "/v1/receipts/{id}", tag = "receipts", operation_id = "get_receipt",
    responses((status = 200, description = "It", body = ReceiptAnswer)))]
pub(crate) async fn show(caller: Caller, PathText(id): PathText) -> Result<Json<ReceiptAnswer>, Error> {
    let not_found = || Error::NotFound("this receipt is".into());
    let id: ReceiptId = id.parse().map_err(|_| not_found())?;
    let read =
        move |host: &Host, tenant: &TenantId| Ok((host.receipts.get(tenant, &id)?, host.receipts.salts(tenant, &id)?));
    let (stored, salts) = blocking(&caller, read).await?;
    let stored = stored.ok_or_else(not_found)?;
    let last = stored.last.as_ref().unwrap_or(&stored.started);
    let receipt = last.peek().map_err(|fault| Error::Internal(format!("a stored receipt is damaged: {fault}")))?;
    let salts = salts.unwrap_or_default();
    let salts = Salts { prompt: salts.prompt.as_ref().map(hex), answer: salts.answer.as_ref().map(hex) };
    let (id, kind, receipt) = (receipt.id.to_string(), receipt.kind, as_written(&receipt));
    let envelopes = std::iter::once(stored.started).chain(stored.last).collect();
    Ok(Json(ReceiptAnswer { id, kind, receipt, envelopes, salts }))
}

/// The payload with its numbers as they stand in the envelope; straight to a value, 0.6 in f32 becomes 0.6000000238…
fn as_written(receipt: &Receipt) -> Value {
    serde_json::to_string(receipt).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

fn hex(salt: &Salt) -> String {
    types::Digest::from_bytes(*salt.as_bytes()).to_string()
}

/// Which part of the chain.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    /// The records after this one.
    #[serde(default)]
    after: u64,
    /// At most so many records; 100 if absent, and never more than 500.
    limit: Option<usize>,
}

/// Records in the order of the chain.
#[utoipa::path(get, path = "/v1/receipts", tag = "receipts", operation_id = "list_receipts", params(Page),
    responses((status = 200, description = "A page", body = ChainPage)))]
pub(crate) async fn list(
    caller: Caller,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<ChainPage>, Error> {
    let Query(page) = page.map_err(|error| Error::invalid("invalid_request", "after", error.body_text()))?;
    let limit = page.limit.unwrap_or(100).clamp(1, PAGE_RECORDS);
    let records = blocking(&caller, move |host, tenant| Ok(host.receipts.list(tenant, page.after, limit)?)).await?;
    let next = (records.len() == limit).then(|| records.last().map(|(sequence, _)| *sequence)).flatten();
    let data = records.into_iter().map(|(sequence, envelope)| {
        let receipt = envelope.peek().ok().as_ref().map(as_written).unwrap_or_default();
        ChainRecord { sequence, receipt, envelope }
    });
    Ok(Json(ChainPage { list: List::new(data.collect()), next }))
}

/// The whole chain as of now, one envelope a line.
#[utoipa::path(get, path = "/v1/receipts/export", tag = "receipts", operation_id = "export_receipts",
    responses((status = 200, description = "JSON lines", body = String, content_type = "application/x-ndjson")))]
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

/// The public keys that sign here.
#[utoipa::path(get, path = "/v1/receipts/keys", tag = "receipts", operation_id = "receipt_keys",
    responses((status = 200, description = "All", body = Vec<PublicKeyEntry>)))]
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
