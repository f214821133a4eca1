//! Functions: deploy, list, promote, remove. Not here: their plugins (`plugins`), and invoking them.

use axum::Json;
use axum::http::StatusCode;
use types::FunctionName;

use super::answers::{Deployed, FunctionCard, List, LiveMove, LiveVersion, Promoted, RolloutCard, Version, Versions};
use super::auth::Caller;
use super::openai;
use super::wire::{self, PathText, Promote, RawBody};
use crate::error::Error;
use crate::invoke;
use crate::registry::{Live, Manifest, RegistryError};

/// A name from a path.
pub(crate) fn name(text: &str) -> Result<FunctionName, Error> {
    text.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "name", error.to_string()))
}

/// Deploys a new version; the first one becomes live.
#[utoipa::path(put, path = "/v1/functions/{name}", tag = "functions", operation_id = "put_function", request_body = Manifest,
    responses((status = 201, description = "Deployed", body = Deployed), (status = 409, description = "Another caller was faster")))]
pub(crate) async fn put(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<(StatusCode, Json<Deployed>), Error> {
    let name = name(&path)?;
    openai::check_free(name.as_str())?;
    let manifest: Manifest = wire::parse(body)?;
    manifest.check().map_err(RegistryError::from)?;
    invoke::check_templates(&manifest.templates)?;
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    for adapter in &manifest.adapters {
        if host.adapters.resolve(tenant, adapter).await?.is_none() {
            return Err(Error::NotFound(format!("adapter `{}`", adapter.chars().take(96).collect::<String>())));
        }
    }
    host.revocations.check("the plugin", manifest.plugin)?;
    let signature = host.registry.plugin_signature(tenant, manifest.plugin).await?;
    // One that is not there is refused as such, below.
    if host.registry.owns_plugin(tenant, manifest.plugin).await? {
        host.adapters.signers(tenant).await?.check_uploaded(manifest.plugin, &signature)?;
    }
    let put = host.registry.put_version(tenant, &name, manifest, caller.principal.key_id.as_str()).await?;
    let version = put.version;
    if put.life > 1 && version == put.life {
        // What requests of a deleted function of this name wrote when it was gone, should the host have ended in between.
        host.keyvalue.remove_function(tenant, &name, put.life).await?;
        host.recordings.remove_function(tenant, &name, put.life).await?;
    }
    let live = host.registry.get_live(tenant, &name).await?.version;
    Ok((StatusCode::CREATED, Json(Deployed { name: name.as_str().to_owned(), version, live })))
}

/// Lists the tenant's functions.
#[utoipa::path(get, path = "/v1/functions", tag = "functions", operation_id = "list_functions",
    responses((status = 200, description = "All", body = List<FunctionCard>)))]
pub(crate) async fn list(caller: Caller) -> Result<Json<List<FunctionCard>>, Error> {
    let functions = caller.host.registry.list(&caller.principal.tenant).await?;
    Ok(Json(List::new(functions.iter().map(FunctionCard::from).collect())))
}

/// The live version.
#[utoipa::path(get, path = "/v1/functions/{name}", tag = "functions", operation_id = "get_function",
    responses((status = 200, description = "The live version", body = LiveVersion)))]
pub(crate) async fn show(caller: Caller, PathText(path): PathText) -> Result<Json<LiveVersion>, Error> {
    let name = name(&path)?;
    let (registry, tenant) = (&caller.host.registry, &caller.principal.tenant);
    let Live { live, canary, shadow, .. } = registry.live(tenant, &name).await?;
    let version = Version::from(&registry.get_version(tenant, &name, live).await?);
    let (canary, shadow) = (canary.as_ref().map(RolloutCard::from), shadow.as_ref().map(RolloutCard::from));
    Ok(Json(LiveVersion { version, name: name.as_str().to_owned(), live, canary, shadow }))
}

/// Every version with its manifest, which is live, canary and shadow, and what was done by whose key.
#[utoipa::path(get, path = "/v1/functions/{name}/versions", tag = "functions",
    responses((status = 200, description = "All", body = Versions)))]
pub(crate) async fn versions(caller: Caller, PathText(path): PathText) -> Result<Json<Versions>, Error> {
    let name = name(&path)?;
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    let Live { live, latest, history, canary, shadow, changes, .. } = host.registry.live(tenant, &name).await?;
    let versions = host.registry.versions(tenant, &name).await?;
    let (list, previous) = (List::new(versions.iter().map(Version::from).collect()), history.before(live));
    let (history, changes) =
        (history.iter().map(LiveMove::from).collect(), changes.iter().map(LiveMove::from).collect());
    let (canary, shadow) = (canary.as_ref().map(RolloutCard::from), shadow.as_ref().map(RolloutCard::from));
    Ok(Json(Versions {
        list,
        name: name.as_str().to_owned(),
        live,
        latest,
        previous,
        canary,
        shadow,
        history,
        changes,
    }))
}

/// Makes a version live, also an older one; with `expect`, only if that one is live now. It is canary and shadow no more.
#[utoipa::path(post, path = "/v1/functions/{name}/promote", tag = "functions", request_body = Promote,
    responses((status = 200, description = "Live", body = Promoted), (status = 409, description = "Another caller was faster")))]
pub(crate) async fn promote(
    caller: Caller,
    PathText(path): PathText,
    RawBody(body): RawBody,
) -> Result<Json<Promoted>, Error> {
    let name = name(&path)?;
    let Promote { version, expect } = wire::parse(body)?;
    let Caller { host, principal } = &caller;
    host.registry.promote(&principal.tenant, &name, version, expect, principal.key_id.as_str()).await?;
    Ok(Json(Promoted { name: name.as_str().to_owned(), live: version }))
}

/// Deletes a function with all of its versions.
#[utoipa::path(delete, path = "/v1/functions/{name}", tag = "functions", operation_id = "delete_function",
    responses((status = 204, description = "Deleted")))]
pub(crate) async fn delete(caller: Caller, PathText(path): PathText) -> Result<StatusCode, Error> {
    let name = name(&path)?;
    let (host, tenant) = (&caller.host, &caller.principal.tenant);
    let deleted = host.registry.delete(tenant, &name).await;
    // Also if it is gone already: who asks again removes what was left.
    let successor = host.registry.next_life(tenant, &name).await?;
    if let Some(successor) = successor {
        host.keyvalue.remove_function(tenant, &name, successor).await?;
        host.recordings.remove_function(tenant, &name, successor).await?;
    }
    let successor = deleted?;
    // Should this not be reached: a successor's log is another one all the same.
    host.logs.remove(tenant, &name, successor);
    host.shadows.remove(tenant, &name);
    Ok(StatusCode::NO_CONTENT)
}
