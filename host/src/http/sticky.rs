//! What a caller of a function says and is told about its version: the sticky key in, the version's number out. Not here: which
//! version that is (`invoke/called.rs`).

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse as _, Response};

use crate::error::Error;
use crate::invoke;

/// By what canaries know a caller; without it, by its API key.
const STICKY: HeaderName = HeaderName::from_static("x-tenon-sticky");
/// Sent with every answer of a function: the version that was called, whoever it handed over to.
const FUNCTION_VERSION: HeaderName = HeaderName::from_static("x-tenon-function-version");

/// The sticky key of the request's headers, if there is one.
pub(crate) struct Sticky(pub(crate) Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for Sticky {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let mut values = parts.headers.get_all(STICKY).iter();
        let (first, second) = (values.next(), values.next());
        let Some(first) = first else { return Ok(Self(None)) };
        match first.to_str() {
            Ok(text) if second.is_none() => {
                invoke::check_sticky(text)?;
                Ok(Self(Some(text.to_owned())))
            }
            _ => {
                let message = "x-tenon-sticky is one header of visible ASCII characters";
                Err(Error::invalid("invalid_request", "x-tenon-sticky", message))
            }
        }
    }
}

/// Tells the caller which version was called, whatever the answer.
pub(crate) fn with_version(answer: Result<Response, Error>, version: u32) -> Response {
    let mut response = answer.unwrap_or_else(Error::into_response);
    response.headers_mut().insert(FUNCTION_VERSION, HeaderValue::from(version));
    response
}
