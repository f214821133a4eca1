//! Revoking adapters and plugins by digest, for a key with the right `admin`. Not here: what follows from it (`host.rs`).

use axum::Json;
use axum::http::StatusCode;
use types::Digest;

use super::answers::{List, Revoked};
use super::auth::Caller;
use super::wire::{self, PathText, RawBody, RevocationBody};
use crate::error::Error;

/// Revokes an adapter or a plugin, for all tenants and for good.
///
/// It leaves memory, what is being generated with it ends with the error `revoked`, and from then on it is refused. The answer is the
/// same whether or not anyone has it, and to whoever asks again.
#[utoipa::path(put, path = "/v1/revocations/{digest}", tag = "admin", operation_id = "put_revocation", request_body = RevocationBody,
    responses((status = 201, description = "Revoked", body = Revoked)))]
pub(crate) async fn put(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<Revoked>), Error> {
    let digest: Digest = path
        .parse()
        .map_err(|error: types::DigestError| Error::invalid("invalid_request", "digest", error.to_string()))?;
    let body: RevocationBody = wire::parse(body)?;
    let revocation = caller.host.revoke(digest, &body.reason, caller.principal.key_id.as_str()).await?;
    Ok((StatusCode::CREATED, Json(Revoked::new(digest, revocation))))
}

/// Lists what was revoked.
#[utoipa::path(get, path = "/v1/revocations", tag = "admin", operation_id = "list_revocations",
    responses((status = 200, description = "All", body = List<Revoked>)))]
pub(crate) async fn list(caller: Caller) -> Result<Json<List<Revoked>>, Error> {
    let all = caller.host.revocations.list();
    Ok(Json(List::new(all.into_iter().map(|(digest, revocation)| Revoked::new(digest, revocation)).collect())))
}
