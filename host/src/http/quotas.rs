//! What counts against a tenant's quota, how it is told (`x-ratelimit-…`, as OpenAI's API has it), and the routes that set it.
//! Not here: the counting, which is `quotas.rs`.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use utoipa::ToSchema;

use super::admin;
use super::auth::Caller;
use super::wire::{self, PathText, RawBody};
use crate::error::Error;
use crate::quotas::{Asks, Quota, Standing, Turn};
use crate::tenants::Right;

/// Runs a request if its tenant's quota lets it in. A call has its place until the last byte of its answer, and every body is
/// counted as it comes.
pub(super) async fn within(caller: &Caller, right: Right, request: Request, next: Next) -> Response {
    let is_call = right == Right::Invoke && request.method() == Method::POST;
    let (quotas, tenant) = (&caller.host.quotas, &caller.principal.tenant);
    let asks = if is_call { Asks::Call } else { Asks::Other };
    // Who administers must be able to raise a quota that is used up.
    if right == Right::Admin || (asks == Asks::Other && request.body().is_end_stream()) {
        return next.run(request).await;
    }
    let turn = match quotas.admit(tenant, asks, Instant::now()) {
        Ok(turn) => Arc::new(turn),
        Err(refused) => {
            let mut response = Error::from(refused).into_response();
            tell(&quotas.standing(tenant), response.headers_mut());
            return response;
        }
    };
    let counted = Arc::clone(&turn);
    let request = request.map(|body| Body::new(CountedBody { inner: body, turn: counted, counts: true }));
    let mut response = next.run(request).await;
    tell(&turn.standing(Instant::now()), response.headers_mut());
    if is_call {
        return response.map(|body| Body::new(CountedBody { inner: body, turn, counts: false }));
    }
    response
}

/// `x-ratelimit-limit-requests`, `x-ratelimit-remaining-requests`, `x-ratelimit-reset-requests`, and so on for each limit.
fn tell(standing: &[Standing], headers: &mut HeaderMap) {
    let mut put = |part: &str, what: &str, value: String| {
        let name = HeaderName::try_from(format!("x-ratelimit-{part}-{what}"));
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&value)) {
            headers.insert(name, value);
        }
    };
    for Standing { what, limit, remaining, reset } in standing {
        put("limit", what, limit.to_string());
        put("remaining", what, remaining.to_string());
        if let Some(reset) = reset {
            put("reset", what, written(*reset));
        }
    }
}

/// As OpenAI's API writes it: `6m0s`, `1.5s`, `20ms`. Rounded up to a millisecond.
fn written(time: Duration) -> String {
    let ms = time.as_nanos().div_ceil(1_000_000);
    let (minutes, ms) = (ms / 60_000, ms % 60_000);
    let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (minutes, ms) {
        (0, 0..1000) => format!("{ms}ms"),
        (0, _) => format!("{seconds}s"),
        _ => format!("{minutes}m{seconds}s"),
    }
}

/// A body that is counted as it comes, or that keeps its request's place until it ended.
struct CountedBody {
    inner: Body,
    turn: Arc<Turn>,
    counts: bool,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        if self.counts
            && let Poll::Ready(Some(Ok(frame))) = &polled
        {
            self.turn.read(frame.data_ref().map_or(0, Bytes::len), Instant::now());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A tenant's quota, and what is left of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantQuota {
    tenant: String,
    /// Whether it was set for this tenant; if not, it is the host's for every tenant.
    own: bool,
    quota: Quota,
    standing: Vec<QuotaStanding>,
}

/// What is left of one limit.
#[derive(Debug, Serialize, ToSchema)]
struct QuotaStanding {
    /// `requests`, `tokens`, `bytes` or `concurrent`.
    what: &'static str,
    limit: u64,
    remaining: u64,
    /// Milliseconds until all of it is there again; absent for `concurrent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_ms: Option<u64>,
}

fn shown(caller: &Caller, tenant: &types::TenantId) -> Json<TenantQuota> {
    let (quota, own) = caller.host.quotas.of(tenant);
    let standing = caller.host.quotas.standing(tenant).into_iter().map(|one| QuotaStanding {
        what: one.what,
        limit: one.limit,
        remaining: one.remaining,
        reset_ms: one.reset.map(|reset| u64::try_from(reset.as_millis()).unwrap_or(u64::MAX)),
    });
    Json(TenantQuota { tenant: tenant.to_string(), own, quota, standing: standing.collect() })
}

/// The caller's own quota, and what is left of it.
#[utoipa::path(get, path = "/v1/quota", tag = "usage", operation_id = "show_own_quota",
    responses((status = 200, description = "The quota", body = TenantQuota)))]
pub(crate) async fn own(caller: Caller) -> Json<TenantQuota> {
    shown(&caller, &caller.principal.tenant)
}

/// A tenant's quota, and what is left of it.
#[utoipa::path(get, path = "/v1/tenants/{tenant}/quota", tag = "admin", operation_id = "show_quota",
    responses((status = 200, description = "The quota", body = TenantQuota)))]
pub(crate) async fn show(caller: Caller, PathText(name): PathText) -> Result<Json<TenantQuota>, Error> {
    let tenant = admin::existing(&caller, &name).await?;
    Ok(shown(&caller, &tenant))
}

/// Sets a tenant's quota, all of it: what is left out has no limit. It holds from the next request on.
#[utoipa::path(put, path = "/v1/tenants/{tenant}/quota", tag = "admin", operation_id = "set_quota", request_body = Quota,
    responses((status = 200, description = "Set", body = TenantQuota)))]
pub(crate) async fn put(
    caller: Caller,
    PathText(name): PathText,
    RawBody(body): RawBody,
) -> Result<Json<TenantQuota>, Error> {
    let tenant = admin::existing(&caller, &name).await?;
    caller.host.quotas.set(&tenant, Some(wire::parse(body)?)).await?;
    Ok(shown(&caller, &tenant))
}

/// Takes a tenant's quota back to the host's for every tenant.
#[utoipa::path(delete, path = "/v1/tenants/{tenant}/quota", tag = "admin", operation_id = "delete_quota",
    responses((status = 200, description = "What holds now", body = TenantQuota)))]
pub(crate) async fn remove(caller: Caller, PathText(name): PathText) -> Result<Json<TenantQuota>, Error> {
    let tenant = admin::existing(&caller, &name).await?;
    caller.host.quotas.set(&tenant, None).await?;
    Ok(shown(&caller, &tenant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_does() {
        for (ms, text) in [
            (0, "0ms"),
            (20, "20ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (59_999, "59.999s"),
            (60_000, "1m0s"),
            (360_020, "6m0.02s"),
        ] {
            assert_eq!(written(Duration::from_millis(ms)), text);
        }
        assert_eq!(written(Duration::from_micros(1)), "1ms", "rounded up");
    }

    #[test]
    fn each_limit_has_its_headers() {
        let mut headers = HeaderMap::new();
        let requests =
            Standing { what: "requests", limit: 60, remaining: 59, reset: Some(Duration::from_millis(1000)) };
        let concurrent = Standing { what: "concurrent", limit: 4, remaining: 3, reset: None };
        tell(&[requests, concurrent], &mut headers);
        let mut told: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        told.sort();
        assert_eq!(
            told,
            [
                "x-ratelimit-limit-concurrent: 4",
                "x-ratelimit-limit-requests: 60",
                "x-ratelimit-remaining-concurrent: 3",
                "x-ratelimit-remaining-requests: 59",
                "x-ratelimit-reset-requests: 1s",
            ]
        );
    }
}
