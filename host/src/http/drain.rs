//! Reads on, for a while, what the caller of a refused request still sends: a host that hangs up in the middle of an upload
//! leaves the caller with a broken pipe in place of the reason. Not here: limits on what is kept.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

/// Bytes that are read and dropped; who sends more is hung up on.
const DRAINED_BYTES_MAX: usize = 64 << 20;
/// How long that may take.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Runs the request; if it is refused, reads the rest of its body before the answer goes out.
pub(crate) async fn drain(request: Request, next: Next) -> Response {
    // A caller that waits for `100 Continue` has not sent the body, and reading would invite it.
    let is_waiting = request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    let body = SharedBody(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(parts, Body::new(body.clone()))).await;
    let is_refused = response.status().is_client_error() || response.status().is_server_error();
    if is_refused && !is_waiting && !body.is_end_stream() {
        // Out of time is as good as done: the answer goes out either way.
        drop(tokio::time::timeout(DRAIN_MAX, discard(body)).await);
    }
    response
}

async fn discard(mut body: SharedBody) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > DRAINED_BYTES_MAX {
            break;
        }
    }
}

/// A body that outlives the handler that was given it.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl SharedBody {
    fn with<T>(&self, use_it: impl FnOnce(Pin<&mut Body>) -> T) -> T {
        use_it(Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|body| body.poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.size_hint())
    }
}
