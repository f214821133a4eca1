//! A whole host within the calling process and without a listener, for tests and fuzz targets that ask it thousands of
//! times. Not a part of the host's interface, and not here: what is asked, and what must hold of an answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;

use super::App;
use crate::config::{Config, Precision, RawConfig, RawLimits};
use crate::error::Error;
use crate::host::{self, Host, Running};
use crate::metrics::Metrics;

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The whole body, streamed or not.
    pub body: Vec<u8>,
}

/// A running host.
pub struct InProcess {
    runtime: tokio::runtime::Runtime,
    router: Router,
    running: Option<Running>,
    key: String,
}

impl InProcess {
    /// Opens a host of small limits on this base, in this folder. `tenon` is the program that compiles plugins.
    ///
    /// # Errors
    /// As the start of a host.
    pub fn open(base: &Path, data: &Path, tenon: PathBuf) -> Result<Self, Error> {
        let config = Config::load(None, Vec::<(String, String)>::new(), &small(base, data))?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().map_err(Error::io("cannot start a runtime"))?;
        let metrics = Arc::new(Metrics::new());
        let app = App::new(Arc::clone(&metrics), config.http_limits.clone());
        let running = runtime.block_on(Host::open(&config, &metrics, host::compiler(tenon), &|_| ()))?;
        app.set_ready(Arc::clone(&running.host));
        let key =
            std::fs::read_to_string(data.join("dev.key")).map_err(Error::io("cannot read the development key"))?;
        let key = key.trim().to_owned();
        Ok(Self { runtime, router: super::router(app), running: Some(running), key })
    }

    /// The key of the development tenant, which has every right.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Asks, and reads the answer to its end. `None` if this is no HTTP: the listener would have refused it.
    ///
    /// # Errors
    /// If the answer broke off.
    pub fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, Vec<u8>)],
        body: Vec<u8>,
        piece_bytes: usize,
    ) -> Result<Option<Answer>, Error> {
        let builder = headers.iter().fold(Request::builder().method(method).uri(path), |builder, (name, value)| {
            builder.header(name.as_str(), value.as_slice())
        });
        let body = Bytes::from(body);
        let starts = (0..body.len()).step_by(piece_bytes.max(1));
        let pieces: Vec<Result<Bytes, std::io::Error>> =
            starts.map(|start| Ok(body.slice(start..body.len().min(start + piece_bytes.max(1))))).collect();
        let Ok(request) = builder.body(Body::from_stream(futures::stream::iter(pieces))) else { return Ok(None) };
        self.runtime.block_on(async {
            let Ok(response) = self.router.clone().oneshot(request).await;
            let status = response.status().as_u16();
            let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
            let body = response.into_body().collect().await;
            let body = body.map_err(|error| Error::Internal(format!("the answer broke off: {error}")))?;
            Ok(Some(Answer { status, headers, body: body.to_bytes().to_vec() }))
        })
    }

    /// How many leases of adapters are held; 0 when nothing runs.
    #[must_use]
    pub fn leases(&self) -> usize {
        self.running.as_ref().map_or(0, |running| running.host.adapters.leases())
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        if let Some(running) = self.running.take()
            && let Err(error) = self.runtime.block_on(host::close(running))
        {
            tracing::error!(%error, "the host did not stop cleanly");
        }
    }
}

/// A host that answers in milliseconds: few tokens, few blocks, one thread.
fn small(base: &Path, data: &Path) -> RawConfig {
    RawConfig {
        base: Some(base.to_owned()),
        data: Some(data.to_owned()),
        dev: Some(true),
        precision: Some(Precision::F32),
        threads: Some(1),
        kv_blocks: Some(64),
        block_tokens: Some(16),
        adapter_slots: Some(4),
        batch_rows_max: Some(128),
        queue_requests_max: Some(64),
        limits: RawLimits {
            output_tokens_default: Some(3),
            output_tokens_max: Some(8),
            deadline_ms_max: Some(10_000),
            body_bytes_max: Some(256 << 10),
            upload_bytes_max: Some(256 << 10),
            adapter_bytes_max: Some(256 << 10),
            ..RawLimits::default()
        },
        ..RawConfig::default()
    }
}
