//! Key-value buckets of a tenant and of its functions: list, read, write, remove. A value is raw bytes; its version is its `ETag`, and
//! a write may go by it. Not here: how they are kept.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use types::BucketName;
use utoipa::{IntoParams, ToSchema};

use super::answers::List;
use super::auth::Caller;
use super::wire::{PathText, RawBody};
use super::{functions, openapi};
use crate::error::Error;
use crate::keyvalue::{BucketInfo, BucketPlace, Expected, KeyValueError, Versioned, Written};

/// Keys of one answer.
const PAGE_KEYS_MAX: usize = 1000;
const PAGE_KEYS_DEFAULT: usize = 100;

/// Whose bucket.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct BucketQuery {
    /// The function whose own bucket it is; the tenant's if absent.
    function: Option<String>,
}

/// Whose bucket, and which of its keys.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeysQuery {
    /// The function whose own bucket it is; the tenant's if absent.
    function: Option<String>,
    /// Keys that come after this one.
    after: Option<String>,
    /// At most so many; 100 if absent, and never more than 1,000.
    limit: Option<usize>,
}

/// A bucket in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Bucket {
    bucket: String,
    /// Whose it is; null is the tenant.
    #[schema(required)]
    function: Option<String>,
    keys: u64,
    /// Of keys and values.
    bytes: u64,
}

/// Some keys of a bucket.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct BucketKeys {
    bucket: String,
    /// In order of their bytes.
    keys: Vec<String>,
    /// Whether there are more after the last of these.
    has_more: bool,
}

/// Lists the tenant's buckets, its functions' included.
#[utoipa::path(get, path = "/v1/kv", tag = "kv", operation_id = "list_buckets",
    responses((status = 200, description = "All", body = List<Bucket>)))]
pub(crate) async fn buckets(caller: Caller) -> Result<Json<List<Bucket>>, Error> {
    let buckets = caller.host.keyvalue.buckets(&caller.principal.tenant).await?;
    let card = |BucketInfo { bucket, function, keys, bytes }| Bucket { bucket, function, keys, bytes };
    Ok(Json(List::new(buckets.into_iter().map(card).collect())))
}

/// Lists a bucket's keys. A bucket that nothing was written to has none.
#[utoipa::path(get, path = "/v1/kv/{bucket}", tag = "kv", operation_id = "list_keys", params(KeysQuery),
    responses((status = 200, description = "Some of the keys", body = BucketKeys)))]
pub(crate) async fn keys(
    caller: Caller,
    PathText(bucket): PathText,
    query: Result<Query<KeysQuery>, QueryRejection>,
) -> Result<Json<BucketKeys>, Error> {
    let Query(KeysQuery { function, after, limit }) = query.map_err(|error| bad_query(&error))?;
    let place = place(&caller, &bucket, function.as_deref()).await?;
    let limit = limit.unwrap_or(PAGE_KEYS_DEFAULT).clamp(1, PAGE_KEYS_MAX);
    let page = caller.host.keyvalue.keys(&place, after.as_deref(), limit).await?;
    Ok(Json(BucketKeys { bucket, keys: page.keys, has_more: page.has_more }))
}

/// Removes a bucket with all that is in it.
#[utoipa::path(delete, path = "/v1/kv/{bucket}", tag = "kv", operation_id = "delete_bucket", params(BucketQuery),
    responses((status = 204, description = "Removed, or there was nothing in it")))]
pub(crate) async fn remove_bucket(
    caller: Caller,
    PathText(bucket): PathText,
    query: Result<Query<BucketQuery>, QueryRejection>,
) -> Result<StatusCode, Error> {
    let Query(BucketQuery { function }) = query.map_err(|error| bad_query(&error))?;
    let place = place(&caller, &bucket, function.as_deref()).await?;
    caller.host.keyvalue.remove_bucket(&place).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A key's value, as it was written; `ETag` is its version.
#[utoipa::path(get, path = "/v1/kv/{bucket}/{key}", tag = "kv", operation_id = "get_value", params(BucketQuery),
    responses((status = 200, description = "The value", body = openapi::Bytes, content_type = "application/octet-stream")))]
pub(crate) async fn get(
    caller: Caller,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Result<Query<BucketQuery>, QueryRejection>,
) -> Result<Response, Error> {
    let (bucket, key) = parts(path)?;
    let Query(BucketQuery { function }) = query.map_err(|error| bad_query(&error))?;
    let place = place(&caller, &bucket, function.as_deref()).await?;
    let found = caller.host.keyvalue.get(&place, &key).await?;
    let Versioned { value, version } = found.ok_or(KeyValueError::NotFound(name(&bucket)?))?;
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(([content_type, (header::ETAG, etag(version)?)], value).into_response())
}

/// Gives a key a value. With `If-Match: "VERSION"` only if it has this version, with `If-None-Match: *` only if it has none.
#[utoipa::path(put, path = "/v1/kv/{bucket}/{key}", tag = "kv", operation_id = "put_value", params(BucketQuery),
    request_body(content = openapi::Bytes, content_type = "application/octet-stream"),
    responses((status = 204, description = "Kept"), (status = 409, description = "The key has another version")))]
pub(crate) async fn put(
    caller: Caller,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Result<Query<BucketQuery>, QueryRejection>,
    headers: HeaderMap,
    RawBody(body): RawBody,
) -> Result<Response, Error> {
    let (bucket, key) = parts(path)?;
    let Query(BucketQuery { function }) = query.map_err(|error| bad_query(&error))?;
    let place = place(&caller, &bucket, function.as_deref()).await?;
    match caller.host.keyvalue.write(&place, &key, expected(&headers)?, Some(body)).await? {
        Written::Done(Some(version)) => Ok((StatusCode::NO_CONTENT, [(header::ETAG, etag(version)?)]).into_response()),
        Written::Done(None) => Ok(StatusCode::NO_CONTENT.into_response()),
        Written::Changed(_) => Err(KeyValueError::Conflict.into()),
    }
}

/// Removes a key. With `If-Match: "VERSION"` only if it has this version.
#[utoipa::path(delete, path = "/v1/kv/{bucket}/{key}", tag = "kv", operation_id = "delete_value", params(BucketQuery),
    responses((status = 204, description = "Removed, or there was none"), (status = 409, description = "The key has another version")))]
pub(crate) async fn remove(
    caller: Caller,
    path: Result<Path<(String, String)>, PathRejection>,
    query: Result<Query<BucketQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<StatusCode, Error> {
    let (bucket, key) = parts(path)?;
    let Query(BucketQuery { function }) = query.map_err(|error| bad_query(&error))?;
    let place = place(&caller, &bucket, function.as_deref()).await?;
    match caller.host.keyvalue.write(&place, &key, expected(&headers)?, None).await? {
        Written::Done(_) => Ok(StatusCode::NO_CONTENT),
        Written::Changed(_) => Err(KeyValueError::Conflict.into()),
    }
}

/// The function's bucket is that of its present life.
async fn place(caller: &Caller, bucket: &str, function: Option<&str>) -> Result<BucketPlace, Error> {
    let (tenant, bucket) = (caller.principal.tenant.clone(), name(bucket)?);
    let Some(function) = function else { return Ok(BucketPlace::of_tenant(tenant, bucket)) };
    let function = functions::name(function)?;
    let life = caller.host.registry.live(&tenant, &function).await?.life;
    Ok(BucketPlace::of_function(tenant, &function, life, bucket))
}

fn name(bucket: &str) -> Result<BucketName, Error> {
    bucket.parse().map_err(|error: types::NameError| Error::invalid("invalid_request", "bucket", error.to_string()))
}

fn parts(path: Result<Path<(String, String)>, PathRejection>) -> Result<(String, String), Error> {
    let bad = |_| Error::invalid("invalid_request", "path", "the path is not UTF-8: check its percent-encoding");
    path.map(|Path(parts)| parts).map_err(bad)
}

fn bad_query(error: &QueryRejection) -> Error {
    Error::invalid("invalid_request", "", error.body_text())
}

fn etag(version: u64) -> Result<HeaderValue, Error> {
    HeaderValue::try_from(format!("\"{version}\"")).map_err(|error| Error::Internal(error.to_string()))
}

/// Of the preconditions of RFC 9110, 13.1, those with one strong tag or none.
fn expected(headers: &HeaderMap) -> Result<Expected, Error> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Expected::Any),
        (None, Some("*")) => Ok(Expected::Absent),
        (Some(tag), None) => {
            let version = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).and_then(|tag| tag.parse().ok());
            let bad =
                || Error::invalid("invalid_request", "if-match", "send one ETag as it was answered, with its quotes");
            Ok(Expected::Version(version.ok_or_else(bad)?))
        }
        _ => Err(Error::invalid(
            "invalid_request",
            "if-none-match",
            "send `If-Match: \"VERSION\"` or `If-None-Match: *`",
        )),
    }
}
