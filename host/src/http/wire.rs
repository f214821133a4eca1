//! JSON bodies of requests, checked into values. The only place, with its neighbours, where JSON exists. Unknown fields
//! of our own routes are errors; OpenAI's routes take and ignore what they do not know, as that API's users expect.

mod admin;
mod composition;
mod constraint;
mod invoke;
mod messages;
mod openai;
mod refused;
mod rollout;

pub(crate) use admin::{
    AdapterSource, Derivation, NewKey, NewReaders, NewSecret, NewSigners, NewTags, NewTenant, PluginSource, Promote,
    RevocationBody,
};
pub(crate) use constraint::ResponseFormat;
pub(crate) use invoke::{InvokeBody, chat_request, json_request, text_request};
pub(crate) use messages::plain_messages;
pub(crate) use openai::{ChatBody, CommonBody, CompletionBody};
pub(crate) use refused::{Asks, unsupported};
pub(crate) use rollout::{NewCanary, NewShadow};

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::{App, pace};
use crate::error::Error;

/// A request's body, whole and within the route's limit; what is over it is refused in our own error shape.
pub(crate) struct RawBody(pub(crate) Bytes);

impl FromRequest<App> for RawBody {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        match Bytes::from_request(request, app).await {
            Ok(body) => Ok(Self(body)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(Error::TooLarge { limit: "body_bytes_max", max: app.limits().body_bytes_max })
            }
            Err(rejection) => Err(pace::refusal(&rejection)
                .unwrap_or_else(|| Error::invalid("invalid_request", "", "the body was cut off"))),
        }
    }
}

/// The one variable part of a path; what is no UTF-8 is refused in our own error shape.
pub(crate) struct PathText(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let found = Path::<String>::from_request_parts(parts, state).await;
        found
            .map(|Path(text)| Self(text))
            .map_err(|_| Error::invalid("invalid_request", "path", "the path is not UTF-8: check its percent-encoding"))
    }
}

/// Parses a JSON body; the message names the place. Takes the body, so that a request does not hold it while it is answered.
///
/// # Errors
/// `invalid_json` if it is no JSON, `invalid_request` if it is JSON of another shape.
pub(crate) fn parse<T: DeserializeOwned>(body: impl AsRef<[u8]>) -> Result<T, Error> {
    let body = body.as_ref();
    let parsed = serde_json::from_slice(body).map_err(|error| {
        let code = if error.is_data() { "invalid_request" } else { "invalid_json" };
        Error::invalid(code, "", format!("body: {error}"))
    })?;
    // What serde reads into a type it also takes as a list of the type's fields.
    if body.trim_ascii_start().starts_with(b"[") {
        return Err(Error::invalid("invalid_request", "", "body: send an object, not a list"));
    }
    Ok(parsed)
}

/// For a field that may be left out, or be `null`, which many clients write in place of leaving it out.
pub(crate) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
