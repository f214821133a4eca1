//! The versions beside a function's live one: the canary, which answers some of the callers, and the shadow, which gets copies.
//! Not here: who is a canary's caller (`registry/rollout.rs`), and how copies are made (`invoke/copy.rs`).

use axum::Json;
use axum::http::StatusCode;

use super::answers::{CanarySet, RolloutCard, ShadowAnswer, ShadowSet};
use super::auth::Caller;
use super::functions::name;
use super::wire::{self, NewCanary, NewShadow, PathText, RawBody};
use crate::error::Error;
use crate::registry::{Beside, Rollout, Share};
use crate::shadows::ShadowOwner;

/// Has a version answer a share of the callers, always the same ones; a larger share adds callers and takes none away.
#[utoipa::path(put, path = "/v1/functions/{name}/canary", tag = "functions", operation_id = "put_canary", request_body = NewCanary,
    responses((status = 200, description = "It answers", body = CanarySet), (status = 409, description = "Another caller was faster")))]
pub(crate) async fn put_canary(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<Json<CanarySet>, Error> {
    let NewCanary { version, percent, expect } = wire::parse(body)?;
    let rollout = set(&caller, &path, Beside::Canary, version, share(percent)?, expect).await?;
    Ok(Json(CanarySet { name: path, canary: RolloutCard::from(&rollout) }))
}

/// Has the live version answer all callers again.
#[utoipa::path(delete, path = "/v1/functions/{name}/canary", tag = "functions", operation_id = "delete_canary",
    responses((status = 204, description = "There is no canary")))]
pub(crate) async fn end_canary(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    end(&caller, &path, Beside::Canary).await
}

/// Sends copies of requests to a version; its answers are compared and dropped.
#[utoipa::path(put, path = "/v1/functions/{name}/shadow", tag = "functions", operation_id = "put_shadow", request_body = NewShadow,
    responses((status = 200, description = "It gets copies", body = ShadowSet), (status = 409, description = "Another caller was faster")))]
pub(crate) async fn put_shadow(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<Json<ShadowSet>, Error> {
    let NewShadow { version, percent, expect } = wire::parse(body)?;
    let share = percent.map_or(Ok(Share::ALL), share)?;
    let rollout = set(&caller, &path, Beside::Shadow, version, share, expect).await?;
    Ok(Json(ShadowSet { name: path, shadow: RolloutCard::from(&rollout) }))
}

/// What came of the copies: how many answers were equal, and the last comparisons.
#[utoipa::path(get, path = "/v1/functions/{name}/shadow", tag = "functions", operation_id = "get_shadow",
    responses((status = 200, description = "The report of the last shadow", body = ShadowAnswer)))]
pub(crate) async fn show_shadow(caller: Caller, PathText(path): PathText) -> Result<Json<ShadowAnswer>, Error> {
    let (function, host, tenant) = (name(&path)?, &caller.host, &caller.principal.tenant);
    let live = host.registry.live(tenant, &function).await?;
    let owner = ShadowOwner { tenant: tenant.clone(), function, life: live.life };
    let report = host.shadows.report(&owner).unwrap_or_default();
    Ok(Json(ShadowAnswer::new(path, live.shadow.as_ref(), &report)))
}

/// Sends no more copies.
#[utoipa::path(delete, path = "/v1/functions/{name}/shadow", tag = "functions", operation_id = "delete_shadow",
    responses((status = 204, description = "There is no shadow")))]
pub(crate) async fn end_shadow(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    end(&caller, &path, Beside::Shadow).await
}

fn share(percent: f64) -> Result<Share, Error> {
    Share::of_percent(percent).map_err(|error| Error::invalid("invalid_request", "percent", error.to_string()))
}

async fn set(
    caller: &Caller,
    path: &str,
    beside: Beside,
    version: u32,
    share: Share,
    expect: Option<u32>,
) -> Result<Rollout, Error> {
    let (function, principal) = (name(path)?, &caller.principal);
    let (registry, by) = (&caller.host.registry, principal.key_id.as_str());
    Ok(registry.set_beside(&principal.tenant, &function, beside, version, share, expect, by).await?)
}

async fn end(caller: &Caller, path: &str, beside: Beside) -> Result<StatusCode, Error> {
    let (function, principal) = (name(path)?, &caller.principal);
    caller.host.registry.end_beside(&principal.tenant, &function, beside, principal.key_id.as_str()).await?;
    Ok(StatusCode::NO_CONTENT)
}
