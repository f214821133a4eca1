//! Errors as HTTP answers: the status from the blame, the body in OpenAI's shape. The only place where a code becomes a
//! status.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;
use types::Blame;
use utoipa::ToSchema;

use super::RECEIPT_ID;
use crate::error::Error;

/// Characters of a message, told or logged.
const MESSAGE_CHARS_MAX: usize = 1000;
/// No estimate is good for longer.
const RETRY_AFTER_SECONDS_MAX: u64 = 120;

/// The status for an error: its blame gives the class, a few codes are more precise.
pub(crate) fn status(error: &Error) -> StatusCode {
    match error.code() {
        "unauthorized" => StatusCode::UNAUTHORIZED,
        "forbidden" => StatusCode::FORBIDDEN,
        "not_found" | "function_not_found" | "version_not_found" | "plugin_not_found" | "model_not_found"
        | "tenant_not_found" | "key_not_found" | "adapter_not_found" | "adapter_not_shared" | "secret_not_found"
        | "kv_key_not_found" => StatusCode::NOT_FOUND,
        "revoked" => StatusCode::GONE,
        "conflict" | "tenant_exists" => StatusCode::CONFLICT,
        "body_too_large" | "plugin_too_large" | "adapter_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "unsupported_media_type" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "method_not_allowed" => StatusCode::METHOD_NOT_ALLOWED,
        "body_timeout" => StatusCode::REQUEST_TIMEOUT,
        "uri_too_long" => StatusCode::URI_TOO_LONG,
        "headers_too_large" => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        "queue_full" | "quota_exceeded" => StatusCode::TOO_MANY_REQUESTS,
        "storage_full" => StatusCode::INSUFFICIENT_STORAGE,
        _ => match (error.blame(), error) {
            (
                Blame::Caller,
                Error::Rejected { .. }
                | Error::Adapter(_)
                | Error::Plugin(_)
                | Error::Oci(_)
                | Error::PluginSignature(_),
            ) => StatusCode::UNPROCESSABLE_ENTITY,
            (Blame::Caller, _) => StatusCode::BAD_REQUEST,
            (Blame::Function, _) => StatusCode::BAD_GATEWAY,
            (Blame::Capacity, _) => StatusCode::SERVICE_UNAVAILABLE,
            (Blame::Host, _) => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

/// Why a request was not answered, in OpenAI's shape.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorObject,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
struct ErrorObject {
    /// For people; says what to do.
    message: String,
    /// The kind of error, as OpenAI's clients know it.
    #[serde(rename = "type")]
    kind: &'static str,
    /// A stable word for programs.
    code: String,
    /// The field of the request that is wrong.
    #[schema(required)]
    param: Option<String>,
}

/// The error object `{"error": {"message", "type", "code", "param"}}`.
pub(crate) fn body(error: &Error) -> Value {
    let kind = match status(error).as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        502 => "function_error",
        500..=599 => "server_error",
        _ => "invalid_request_error",
    };
    let code = error.code().to_owned();
    let error = ErrorObject { message: message(error), kind, code, param: error.param().map(str::to_owned) };
    serde_json::to_value(ErrorBody { error }).unwrap_or_default()
}

/// What is told, whatever the shape of the answer.
pub(super) fn message(error: &Error) -> String {
    shorten(&error.public_message())
}

/// Writes an error to the log, at the level that its blame asks for.
pub(crate) fn log(error: &Error, request_id: &str) {
    let text = one_line(error);
    match error.blame() {
        Blame::Host => tracing::error!(request_id, code = error.code(), "{text}"),
        _ if matches!(error, Error::Unavailable(_)) => tracing::debug!(request_id, code = error.code(), "{text}"),
        Blame::Function | Blame::Capacity => tracing::warn!(request_id, code = error.code(), "{text}"),
        Blame::Caller => tracing::debug!(request_id, code = error.code(), "{text}"),
    }
}

/// An error may quote a caller or a plugin: neither may write lines of its own into the log.
fn one_line(error: &Error) -> String {
    shorten(&error.to_string()).replace(char::is_control, " ")
}

/// An error may quote a caller, and a caller's value may be a whole body.
fn shorten(message: &str) -> String {
    match message.char_indices().nth(MESSAGE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", message.get(..end).unwrap_or_default()),
        None => message.to_owned(),
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        if let Self::WithReceipt { receipt, source } = self {
            return with_receipt(source.into_response(), &receipt);
        }
        let mut response = (status(&self), Json(body(&self))).into_response();
        if let Some(wait) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if matches!(self, Self::Unauthorized(_)) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(LoggedError(std::sync::Arc::new(self)));
        response
    }
}

/// Rounded up: who comes back a moment too early is refused again.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).clamp(1, RETRY_AFTER_SECONDS_MAX)
}

/// Rides on the response so that the outermost layer can log the error with the request's id.
#[derive(Clone)]
pub(crate) struct LoggedError(pub(crate) std::sync::Arc<Error>);

/// Names the receipt of what is answered.
pub(super) fn with_receipt(mut response: Response, receipt_id: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(receipt_id) {
        response.headers_mut().insert(RECEIPT_ID, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use engine::SubmitError;

    use super::*;

    #[test]
    fn a_message_does_not_send_a_body_back() {
        let error =
            Error::invalid("invalid_request", "", format!("body: invalid type: string \"{}\"", "é".repeat(1 << 20)));
        let told = body(&error)["error"]["message"].as_str().expect("text").chars().count();
        assert_eq!((told, one_line(&error).chars().count()), (MESSAGE_CHARS_MAX + 1, MESSAGE_CHARS_MAX + 1));
        assert_eq!(shorten("short"), "short");
    }

    #[test]
    fn a_tenants_share_is_429_and_a_full_host_503_and_both_say_when_to_come_back() {
        let retry_after = Duration::from_millis(2100);
        for (error, expected) in [
            (SubmitError::TenantQueueFull { waiting: 3, retry_after }, (429, "queue_full", "3")),
            (SubmitError::QueueFull { waiting: 3, retry_after }, (503, "overloaded", "3")),
            (
                SubmitError::DeadlineTooShort { wait: Duration::from_secs(4), deadline: retry_after },
                (503, "deadline_too_short", "4"),
            ),
            (SubmitError::Stopped, (503, "shutting_down", "1")),
            (SubmitError::DeviceLost, (503, "device_lost", "1")),
            (SubmitError::QueueFull { waiting: 3, retry_after: Duration::from_secs(9999) }, (503, "overloaded", "120")),
        ] {
            let error = Error::from(error);
            let code = error.code().to_owned();
            let response = error.into_response();
            let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            assert_eq!((response.status().as_u16(), code.as_str(), retry_after), {
                let (status, code, retry_after) = expected;
                (status, code, Some(retry_after))
            });
        }
    }

    #[test]
    fn nobody_writes_lines_of_their_own_into_the_log() {
        let source = types::PlanError::AdapterNotGranted("a`\n2026-01-01 ERROR \u{1b}[31mforged".into());
        let text = one_line(&Error::Plan { source, by_caller: false });
        assert!(!text.contains(char::is_control) && text.contains("forged"), "{text}");
    }
}
