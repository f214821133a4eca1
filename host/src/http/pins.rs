//! Adapters that are kept in memory whatever else comes. Not here: how much may be kept so (`adapters`).

use axum::http::StatusCode;

use super::adapters::alias;
use super::auth::Caller;
use super::wire::PathText;
use crate::error::Error;

/// Loads an adapter and keeps it in memory.
///
/// Until it is unpinned, its alias is removed or replaced, or the host ends.
#[utoipa::path(put, path = "/v1/adapters/{alias}/pin", tag = "adapters", operation_id = "pin_adapter",
    responses(
        (status = 204, description = "It stays"),
        (status = 422, description = "There is no room for more that is pinned"),
    ))]
pub(crate) async fn put(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    caller.host.adapters.pin(&caller.principal.tenant, &alias(&path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets an adapter give way to others again.
#[utoipa::path(delete, path = "/v1/adapters/{alias}/pin", tag = "adapters", operation_id = "unpin_adapter",
    responses((status = 204, description = "It may go")))]
pub(crate) async fn remove(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    caller.host.adapters.unpin(&caller.principal.tenant, &alias(&path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
