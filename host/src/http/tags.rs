//! Tags of adapters. Not here: the functions that are granted adapters by them (`invoke`).

use std::collections::BTreeSet;

use axum::Json;

use super::adapters::alias;
use super::answers::Adapter;
use super::auth::Caller;
use super::wire::{self, NewTags, PathText, RawBody};
use crate::adapters::AdapterTag;
use crate::error::Error;

/// Gives an adapter's alias these tags, in place of those that it has.
///
/// Functions whose manifest grants adapters by one of them may use it from their next request on, and no more when it is taken away.
#[utoipa::path(put, path = "/v1/adapters/{alias}/tags", tag = "adapters", operation_id = "tag_adapter", request_body = NewTags,
    responses((status = 200, description = "It, with its tags", body = Adapter)))]
pub(crate) async fn put(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<Json<Adapter>, Error> {
    let alias = alias(&path)?;
    let NewTags { tags } = wire::parse(body)?;
    let info = caller.host.adapters.set_tags(&caller.principal.tenant, &alias, read(&tags)?).await?;
    Ok(Json(Adapter::from(&info)))
}

/// Tags as a body has them.
pub(super) fn read(tags: &[String]) -> Result<BTreeSet<AdapterTag>, Error> {
    let tag = |text: &String| text.parse().map_err(|error: crate::adapters::AdapterTagError| error.to_string());
    let tags: Result<_, String> = tags.iter().map(tag).collect();
    tags.map_err(|message| Error::invalid("invalid_request", "tags", message))
}
