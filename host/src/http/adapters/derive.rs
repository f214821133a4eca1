//! Adapters out of others: the route. Not here: the body (`wire/admin.rs`) and the work (`adapters/derive.rs`).

use axum::Json;
use axum::http::StatusCode;
use model::DeriveError;

use super::alias;
use crate::adapters::{AdapterError, NamedParent};
use crate::error::Error;
use crate::http::answers::Adapter;
use crate::http::auth::Caller;
use crate::http::openai;
use crate::http::wire::{self, Derivation, PathText, RawBody};

/// Derives an adapter from others and gives it this alias. All methods are defined on the deltas s·B·A. What compression to
/// `rank` lost is told in `lineage`.
#[utoipa::path(post, path = "/v1/adapters/{alias}/derive", tag = "adapters", operation_id = "derive_adapter",
    request_body = Derivation,
    responses(
        (status = 201, description = "Derived", body = Adapter),
        (status = 409, description = "Another caller was faster"),
        (status = 429, description = "Many derivations of the tenant are under way"),
        (status = 422, description = "A parent that cannot be derived from or is not signed as its tenant asks, or a result over a limit"),
    ))]
pub(crate) async fn derive(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<Adapter>), Error> {
    let alias = alias(&path)?;
    openai::check_free(alias.as_str())?;
    let body: Derivation = wire::parse(body)?;
    let recipe = body.recipe();
    let named = body.parents.into_iter();
    let parents: Vec<_> =
        named.map(|parent| NamedParent { adapter: parent.adapter, weight: parent.weight.unwrap_or(1.0) }).collect();
    let (store, tenant) = (&caller.host.adapters, &caller.principal.tenant);
    let info = store.derive(tenant, &alias, recipe, &parents).await.map_err(explained)?;
    Ok((StatusCode::CREATED, Json(Adapter::from(&info))))
}

/// What is wrong with the body names its field.
fn explained(error: AdapterError) -> Error {
    match error {
        AdapterError::Derive(error) => match *error {
            DeriveError::Recipe { field, message } => Error::invalid("invalid_request", field, message),
            error => AdapterError::from(error).into(),
        },
        AdapterError::ParentIsResult(_) => Error::invalid("invalid_request", "parents", error.to_string()),
        error => error.into(),
    }
}
