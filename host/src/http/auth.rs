//! Who calls, and whether they may: every route states its [`Access`], and a request without a key that holds gets
//! nowhere. Not here: how keys are kept, which is `tenants.rs`.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::{header, request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{App, quotas};
use crate::error::Error;
use crate::host::Host;
use crate::tenants::{Principal, Right};

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing, not even that the base is loaded.
    Public,
    /// A key with this right.
    Needs(Right),
}

/// What a handler behind [`Access::Needs`] is given: the host, ready, and who calls.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) host: Arc<Host>,
    pub(crate) principal: Principal,
}

/// Lets a request through to a route that needs a right, or answers 401, 403 or 503.
pub(crate) async fn require(State((app, right)): State<(App, Right)>, mut request: Request, next: Next) -> Response {
    match admit(&app, right, request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller.clone());
            quotas::within(&caller, right, request, next).await
        }
        Err(error) => error.into_response(),
    }
}

async fn admit(app: &App, right: Right, headers: &axum::http::HeaderMap) -> Result<Caller, Error> {
    let host = app.ready().ok_or(Error::Unavailable("the base is still loading; ask /ready"))?;
    let key = bearer(headers).ok_or(Error::Unauthorized("send a key as `Authorization: Bearer KEY`"))?;
    let principal = host.tenants.authenticate(key).await?.ok_or(Error::Unauthorized("this key does not hold"))?;
    if !principal.rights.has(right) {
        return Err(Error::Forbidden(right.name()));
    }
    Ok(Caller { host, principal })
}

fn bearer(headers: &axum::http::HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Error> {
        // A route that forgot to state its access is refused, not served.
        parts.extensions.get::<Self>().cloned().ok_or(Error::Unauthorized("this route declares no access"))
    }
}
