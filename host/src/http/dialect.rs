//! Errors of routes that speak as another server does: the same error, told with the status and in the shape that the
//! clients of that server read. Not here: what those routes do (`lorax.rs`, `vllm.rs`), and our own shape (`error.rs`).

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use super::error::LoggedError;
use super::{lorax, vllm};

/// Whose words a route uses for its errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Ours, which are OpenAI's.
    Own,
    /// Those of LoRAX, which are text-generation-inference's.
    Lorax,
    /// vLLM's.
    Vllm,
}

impl Dialect {
    /// The name of the error object's schema.
    pub(super) const fn schema(self) -> &'static str {
        match self {
            Self::Own => "ErrorBody",
            Self::Lorax => "LoraxError",
            Self::Vllm => "VllmError",
        }
    }

    /// The status of a request that makes no sense.
    pub(super) const fn refused(self) -> StatusCode {
        match self {
            Self::Own | Self::Vllm => StatusCode::BAD_REQUEST,
            Self::Lorax => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }

    /// Puts the dialect's error object in the place of ours; its headers stay, and so does everything that is no error.
    pub(super) async fn translate(self, response: Response) -> Response {
        let Some(LoggedError(error)) = response.extensions().get() else { return response };
        let (status, body) = match self {
            Self::Own => return response,
            Self::Lorax => lorax::refusal(error),
            Self::Vllm => vllm::refusal(error),
        };
        let (mut parts, _) = response.into_parts();
        parts.status = status;
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Response::from_parts(parts, Body::from(body.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::error::Error;

    async fn told(dialect: Dialect, error: Error) -> (u16, Value) {
        let response = dialect.translate(error.into_response()).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    #[tokio::test]
    async fn one_error_in_three_shapes() {
        let error = || Error::invalid("invalid_request", "top_k", "top_k is wrong");
        let (status, body) = told(Dialect::Own, error()).await;
        assert_eq!((status, &body["error"]["code"]), (400, &json!("invalid_request")));
        let (status, body) = told(Dialect::Lorax, error()).await;
        let expected = json!({"error": "top_k is wrong", "error_type": "validation", "code": "invalid_request"});
        assert_eq!((status, body), (422, expected));
        let (status, body) = told(Dialect::Vllm, error()).await;
        let expected = json!({"error": {"message": "top_k is wrong", "type": "BadRequestError", "param": "top_k",
            "code": 400, "reason": "invalid_request"}});
        assert_eq!((status, body), (400, expected));
    }

    #[tokio::test]
    async fn headers_stay_and_a_fault_of_the_host_is_not_told() {
        let response = Dialect::Lorax.translate(Error::Unavailable("loading").into_response()).await;
        assert_eq!(response.headers().get(header::RETRY_AFTER), Some(&HeaderValue::from_static("1")));
        let receipt = Error::WithReceipt {
            receipt: "rcpt_1".into(),
            source: Box::new(Error::Internal("what nobody should read".into())),
        };
        let response = Dialect::Vllm.translate(receipt.into_response()).await;
        assert_eq!(response.headers().get(super::super::RECEIPT_ID), Some(&HeaderValue::from_static("rcpt_1")));
        let (status, body) = told(Dialect::Lorax, Error::Internal("what nobody should read".into())).await;
        assert_eq!((status, &body["error_type"]), (500, &json!("generation")));
        assert!(!body.to_string().contains("nobody"), "{body}");
        let fine = Dialect::Lorax.translate("fine".into_response()).await;
        assert_eq!(fine.status(), 200);
    }
}
