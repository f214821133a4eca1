//! Bodies must come at a pace: a caller that sends a byte a minute would hold its connection, and whatever waits for the
//! body, for as long as it likes. Not here: limits on size.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

/// Every body may take this long, however short it is.
const GRACE: Duration = Duration::from_secs(30);
/// On top of it, a second for each of these.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;

/// What a body that is too slow fails with.
#[derive(Debug, thiserror::Error)]
#[error("the body came too slowly")]
pub(crate) struct TooSlow;

/// Puts the pace on the request's body.
pub(crate) async fn keep_pace(request: Request, next: Next) -> Response {
    let request = request.map(|body| Body::new(PacedBody::new(body, GRACE)));
    next.run(request).await
}

/// Whether a body failed with [`TooSlow`], however often that was wrapped.
pub(crate) fn is_too_slow(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<TooSlow>())
}

struct PacedBody {
    inner: Body,
    started: Instant,
    grace: Duration,
    bytes: u64,
    /// Set when the body is first waited for.
    late: Option<Pin<Box<Sleep>>>,
}

impl PacedBody {
    fn new(inner: Body, grace: Duration) -> Self {
        Self { inner, started: Instant::now(), grace, bytes: 0, late: None }
    }

    /// When what came so far is too little.
    fn deadline(&self) -> Instant {
        self.started + self.grace + Duration::from_secs(self.bytes / BYTES_PER_SECOND_MIN)
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let body = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut body.inner).poll_frame(context) {
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            body.bytes = body.bytes.saturating_add(data.map_or(0, |data| data.len() as u64));
            return Poll::Ready(frame);
        }
        let deadline = body.deadline();
        let late = body.late.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if late.deadline() != deadline {
            late.as_mut().reset(deadline);
        }
        late.as_mut().poll(context).map(|()| Some(Err(axum::Error::new(TooSlow))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use http_body_util::BodyExt as _;

    use super::*;

    /// A body of this many pieces, one each so many milliseconds, under a grace of 200 ms.
    async fn read(pieces: usize, bytes: usize, each_ms: u64) -> Result<usize, axum::Error> {
        let pieces = stream::iter(0..pieces).then(move |_| async move {
            tokio::time::sleep(Duration::from_millis(each_ms)).await;
            Ok::<_, std::io::Error>(Bytes::from(vec![0; bytes]))
        });
        let body = PacedBody::new(Body::from_stream(pieces), Duration::from_millis(200));
        body.collect().await.map(|all| all.to_bytes().len())
    }

    #[tokio::test]
    async fn a_byte_now_and_then_is_cut_off() {
        let started = Instant::now();
        let error = read(1000, 1, 20).await.expect_err("too slow");
        assert!(is_too_slow(&error), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "in good time");
    }

    #[tokio::test]
    async fn who_keeps_the_pace_may_take_longer() {
        assert_eq!(read(10, BYTES_PER_SECOND_MIN as usize, 40).await.expect("in time"), 10 << 14);
        assert_eq!(read(1, 1, 20).await.expect("in time"), 1);
    }
}
