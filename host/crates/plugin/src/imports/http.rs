//! `wasi:http`: outgoing requests to hosts that the manifest grants. The types are wasmtime's; what is sent goes whole through
//! the capability. Not here: which addresses may be connected to, and the connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::{LogLevel, LogSink, Outbound, OutboundBounds, OutboundError, PluginLimits, Session};

/// What wasmtime adds for each header beside its name and value.
const HEADER_OVERHEAD_FACTOR: usize = 4;
/// Bytes of a body that a guest may hand over at once.
const CHUNK_BYTES_MAX: usize = 64 << 10;

type Ended = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(Response<WasiBody>, Ended), Error>;

/// Sends for one instance.
pub(crate) struct Sender {
    outbound: Arc<dyn Outbound>,
    log: Arc<dyn LogSink>,
    limits: Arc<PluginLimits>,
    requests_left: u32,
}

impl Sender {
    pub(crate) fn new(session: &Session, limits: &Arc<PluginLimits>) -> Self {
        Self {
            outbound: Arc::clone(&session.outbound),
            log: Arc::clone(&session.log),
            limits: Arc::clone(limits),
            requests_left: limits.http_requests_max,
        }
    }

    /// How large the headers that a guest makes may become in memory.
    pub(crate) const fn field_size_limit(limits: &PluginLimits) -> usize {
        limits.http_headers_bytes_max.saturating_mul(HEADER_OVERHEAD_FACTOR)
    }
}

impl WasiHttpHooks for Sender {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Ended,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        let left = self.requests_left.checked_sub(1);
        self.requests_left = left.unwrap_or(0);
        let (outbound, log, limits) = (Arc::clone(&self.outbound), Arc::clone(&self.log), Arc::clone(&self.limits));
        Box::new(async move {
            if left.is_none() {
                let text = format!("over the limit http_requests_max of {} requests", limits.http_requests_max);
                return Err(Error::InternalError(Some(text)));
            }
            send(&*outbound, request, options, &limits)
                .await
                .inspect_err(|(_, line)| {
                    log.write(LogLevel::Warn, &format!("an outgoing request failed: {line}"));
                })
                .map_err(|(error, _)| error)
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES_MAX
    }
}

/// The error as the guest sees it, and what its log says.
async fn send(
    outbound: &dyn Outbound,
    request: Request<WasiBody>,
    options: Option<RequestOptions>,
    limits: &PluginLimits,
) -> Result<(Response<WasiBody>, Ended), (Error, String)> {
    let (parts, body) = request.into_parts();
    let headers = header_bytes(&parts.headers);
    let headers_max = limits.http_headers_bytes_max;
    if headers > headers_max {
        let line = format!("its headers are over the limit http_headers_bytes_max of {headers_max} bytes");
        return Err((Error::HttpRequestHeaderSectionSize(u32::try_from(headers).ok()), line));
    }
    let body = collected(body, limits.http_request_bytes_max).await?;
    let time = time(options, limits);
    let bounds =
        OutboundBounds { time, response_bytes_max: limits.http_response_bytes_max, headers_bytes_max: headers_max };
    let sent = outbound.send(Request::from_parts(parts, body), bounds);
    let answer = tokio::time::timeout(time, sent).await;
    let answer = answer.unwrap_or_else(|_| Err(OutboundError::Timeout(time.as_millis())));
    let answer = answer.map_err(|error| (to_wasi(&error), error.to_string()))?;
    let (parts, body) = answer.into_parts();
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let ended: Ended = Box::new(std::future::ready(Ok(())));
    Ok((Response::from_parts(parts, body), ended))
}

/// The whole body, once the guest has finished it.
async fn collected(body: WasiBody, bytes_max: usize) -> Result<Bytes, (Error, String)> {
    match Limited::new(body, bytes_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let line = format!("its body is over the limit http_request_bytes_max of {bytes_max} bytes");
            Err((Error::HttpRequestBodySize(u64::try_from(bytes_max).ok()), line))
        }
        Err(error) => {
            let line = format!("its body: {error}");
            Err((error.downcast().map_or(Error::HttpProtocolError, |error| *error), line))
        }
    }
}

/// What the guest asks for, and at most what one call may take.
fn time(options: Option<RequestOptions>, limits: &PluginLimits) -> Duration {
    let most = Duration::from_millis(limits.call_wall_ms_max);
    let asked = options.map(|options| {
        let parts = [options.connect_timeout, options.first_byte_timeout, options.between_bytes_timeout];
        parts.into_iter().map(|part| part.unwrap_or(most)).fold(Duration::ZERO, Duration::saturating_add)
    });
    asked.map_or(most, |asked| asked.min(most))
}

/// Bytes of names and values.
fn header_bytes(headers: &http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

fn to_wasi(error: &OutboundError) -> Error {
    match error {
        OutboundError::Denied(_) => Error::HttpRequestDenied,
        OutboundError::Address(_) => Error::DestinationIpProhibited,
        OutboundError::Limit { limit: "http_headers_bytes_max", max } => {
            Error::HttpResponseHeaderSectionSize(u32::try_from(*max).ok())
        }
        OutboundError::Limit { max, .. } => Error::HttpResponseBodySize(u64::try_from(*max).ok()),
        OutboundError::Timeout(_) => Error::HttpResponseTimeout,
        OutboundError::Failed(_) => Error::DestinationUnavailable,
    }
}
