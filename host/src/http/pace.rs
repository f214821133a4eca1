//! Bodies must come at a pace and have room: a caller that sends a byte a minute would hold its connection for as long as it
//! likes, and many large uploads at once would fill the memory. Not here: the limit on one body's size.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::error::Error;

/// Every body may take this long, however short it is.
const GRACE: Duration = Duration::from_secs(30);
/// On top of it, a second for each of these.
const BYTES_PER_SECOND_MIN: u64 = 16 << 10;

/// Bytes of all bodies that are in memory.
const BODIES_BYTES_MAX: usize = 2 << 30;
/// Bytes that a permit of [`Room`] stands for.
const UNIT_BYTES: usize = 16 << 10;

/// What a body fails with that is not its sender's doing alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("the body came too slowly")]
    TooSlow,
    #[error("no room for the body")]
    NoRoom,
}

/// Room for the bodies of all requests. A request has its share until its answer begins.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self::of(BODIES_BYTES_MAX)
    }
}

impl Room {
    fn of(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / UNIT_BYTES)))
    }

    /// Makes a share large enough for so many bytes.
    fn grow(&self, share: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> Result<(), Refusal> {
        let held = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = (bytes / UNIT_BYTES).saturating_sub(held);
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).map_err(|_| Refusal::NoRoom)?;
        let more = Arc::clone(&self.0).try_acquire_many_owned(more).map_err(|_| Refusal::NoRoom)?;
        match share {
            Some(share) => share.merge(more),
            None => *share = Some(more),
        }
        Ok(())
    }
}

/// Puts the pace on the request's body, and gives it room as it comes.
pub(crate) async fn keep_pace(State(room): State<Room>, request: Request, next: Next) -> Response {
    let request = request.map(|body| Body::new(PacedBody::new(body, GRACE, room)));
    next.run(request).await
}

/// The error to answer with if the body was refused here, however often that was wrapped.
pub(crate) fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let refusal = std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref());
    refusal.map(|refusal| match refusal {
        Refusal::TooSlow => Error::TooSlow,
        Refusal::NoRoom => Error::Unavailable("the bodies of other requests fill the memory; try again later"),
    })
}

struct PacedBody {
    inner: Body,
    started: Instant,
    grace: Duration,
    bytes: usize,
    room: Room,
    share: Option<OwnedSemaphorePermit>,
    /// Set when the body is first waited for.
    late: Option<Pin<Box<Sleep>>>,
}

impl PacedBody {
    fn new(inner: Body, grace: Duration, room: Room) -> Self {
        Self { inner, started: Instant::now(), grace, bytes: 0, room, share: None, late: None }
    }

    /// When what came so far is too little.
    fn deadline(&self) -> Instant {
        self.started + self.grace + Duration::from_secs(self.bytes as u64 / BYTES_PER_SECOND_MIN)
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
            body.bytes = body.bytes.saturating_add(data.map_or(0, Bytes::len));
            let refused = body.room.grow(&mut body.share, body.bytes).err();
            return Poll::Ready(refused.map_or(frame, |refused| Some(Err(axum::Error::new(refused)))));
        }
        let deadline = body.deadline();
        let late = body.late.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if late.deadline() != deadline {
            late.as_mut().reset(deadline);
        }
        late.as_mut().poll(context).map(|()| Some(Err(axum::Error::new(Refusal::TooSlow))))
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
        let body = PacedBody::new(Body::from_stream(pieces), Duration::from_millis(200), Room::default());
        body.collect().await.map(|all| all.to_bytes().len())
    }

    #[tokio::test]
    async fn a_byte_now_and_then_is_cut_off() {
        let started = Instant::now();
        let error = read(1000, 1, 20).await.expect_err("too slow");
        assert_eq!(refusal(&error).expect("ours").code(), "body_timeout");
        assert!(started.elapsed() < Duration::from_secs(5), "in good time");
    }

    #[tokio::test]
    async fn bodies_that_do_not_fit_together_are_refused() {
        let room = Room::of(10 * UNIT_BYTES);
        let body = |units: usize| PacedBody::new(Body::from(vec![0; units * UNIT_BYTES]), GRACE, room.clone());
        let mut first = body(6);
        first.frame().await.expect("a frame").expect("room");
        let error = body(6).collect().await.expect_err("no room beside the first");
        assert_eq!(refusal(&error).expect("ours").code(), "unavailable");
        body(4).collect().await.expect("the rest is free");
        drop(first);
        body(10).collect().await.expect("all is free again");
    }

    #[tokio::test]
    async fn who_keeps_the_pace_may_take_longer() {
        assert_eq!(read(10, BYTES_PER_SECOND_MIN as usize, 40).await.expect("in time"), 10 << 14);
        assert_eq!(read(1, 1, 20).await.expect("in time"), 1);
    }
}
