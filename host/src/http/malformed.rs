//! Answers to what is not HTTP: hyper refuses a request line or headers that it cannot read before any route is asked, and
//! answers with a status alone. This wrapper round the connection's stream puts our error object and a request id into
//! that answer, and lets its sender read it. Not here: errors of requests that could be read (`error.rs`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::StatusCode;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::{Sleep, sleep};

use super::{error, new_request_id};
use crate::error::Error;

/// The statuses that hyper answers with by itself.
const STATUSES: [StatusCode; 3] =
    [StatusCode::BAD_REQUEST, StatusCode::URI_TOO_LONG, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE];
/// What is still read and dropped of a refused request; hanging up on unread bytes would take the answer with them.
const LINGER_BYTES_MAX: usize = 4 << 20;
/// How long that may take.
const LINGER_MAX: Duration = Duration::from_secs(2);

/// A stream on which hyper's own answers have a body.
pub(super) struct Explained<T> {
    stream: T,
    /// Our answer in place of hyper's; what of it is not written yet.
    answer: Option<Vec<u8>>,
    is_shut: bool,
    lingered_bytes: usize,
    lingered: Option<Pin<Box<Sleep>>>,
}

impl<T> Explained<T> {
    pub(super) const fn new(stream: T) -> Self {
        Self { stream, answer: None, is_shut: false, lingered_bytes: 0, lingered: None }
    }

    /// Takes hyper's own answer, if these bytes are one, and puts ours in its place.
    fn replace(&mut self, bytes: &[u8]) -> bool {
        let Some(status) = automatic(bytes) else { return false };
        self.answer = Some(explained(status));
        true
    }
}

impl<T: Write + Unpin> Explained<T> {
    fn poll_answer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(rest) = &mut self.answer else { return Poll::Ready(Ok(())) };
        while !rest.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            rest.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Read + Write + Unpin> Explained<T> {
    /// Reads and drops what its sender still sends.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let late = self.lingered.get_or_insert_with(|| Box::pin(sleep(LINGER_MAX)));
        if late.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut scratch = [0; 8 << 10];
        while self.lingered_bytes < LINGER_BYTES_MAX {
            let mut dropped = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(context, dropped.unfilled())) {
                Ok(()) if !dropped.filled().is_empty() => self.lingered_bytes += dropped.filled().len(),
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<T: Read + Unpin> Read for Explained<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<T: Read + Write + Unpin> Write for Explained<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.replace(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Hyper's own answer has no body: it comes alone.
        if let [only] = slices
            && self.replace(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answer(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_answer(context))?;
        if !self.is_shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.is_shut = true;
        }
        if self.answer.is_some() {
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}

/// The status, if this is an answer of hyper's own: a head that says of itself that no body follows. None of ours does with
/// these statuses, and no body of ours has a line that ends in CR LF, so that nothing else looks like it.
fn automatic(bytes: &[u8]) -> Option<StatusCode> {
    let status = STATUSES.into_iter().find(|status| {
        let line = format!("HTTP/1.1 {status}\r\n");
        bytes.starts_with(line.as_bytes())
    })?;
    let head = std::str::from_utf8(bytes).ok().filter(|head| head.ends_with("\r\n\r\n"))?;
    let is_hypers = head.contains("\r\ncontent-length: 0\r\n") && !head.contains(super::REQUEST_ID.as_str());
    is_hypers.then_some(status)
}

/// The same status with our error object and a request id.
fn explained(status: StatusCode) -> Vec<u8> {
    let (code, message) = match status {
        StatusCode::URI_TOO_LONG => ("uri_too_long", "the address is too long: at most 65,534 bytes"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            ("headers_too_large", "the headers are too many or too long: at most 100, and 400 KiB in all")
        }
        _ => ("malformed_request", "this is not a request in HTTP/1.1: check the request line and the headers"),
    };
    let error = Error::invalid(code, "", message);
    let request_id = new_request_id();
    error::log(&error, &request_id);
    let body = error::body(&error).to_string();
    let (name, length) = (super::REQUEST_ID, body.len());
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{name}: {request_id}\r\n\
         connection: close\r\n\r\n"
    );
    (head + &body).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_answers_are_replaced() {
        let own = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\n\r\n";
        assert_eq!(automatic(own.as_bytes()), Some(StatusCode::BAD_REQUEST));
        let ours = own.replace("date:", "x-request-id: req_1\r\ndate:");
        assert_eq!(automatic(ours.as_bytes()), None);
        for other in ["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n\r\n", "{}", ""] {
            assert_eq!(automatic(other.as_bytes()), None, "{other}");
        }
        assert_eq!(automatic(format!("{own}more").as_bytes()), None);
    }

    #[test]
    fn the_answer_has_the_status_of_its_error() {
        for status in STATUSES {
            let text = String::from_utf8(explained(status)).expect("text");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            assert!(head.contains(&format!("content-length: {}", body.len())) && head.contains("x-request-id: req_"));
            let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
            let code: &'static str = match body["error"]["code"].as_str().expect("a code") {
                "uri_too_long" => "uri_too_long",
                "headers_too_large" => "headers_too_large",
                "malformed_request" => "malformed_request",
                other => panic!("{other}"),
            };
            assert_eq!(error::status(&Error::invalid(code, "", "")), status);
        }
    }
}
