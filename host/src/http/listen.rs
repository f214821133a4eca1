//! The listener: connections over TCP, plain or in TLS, bounded in number and in the time that a handshake and a header
//! may take, drained on request.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::malformed::Explained;
use super::tls::{self, Tls};
use crate::config::HttpLimits;
use crate::error::Error;

/// How long an answer may lie unread by its caller.
const UNREAD_MAX: Duration = Duration::from_secs(60);

/// A bound socket.
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds; port 0 takes a free one.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let listener = TcpListener::bind(address).await.map_err(Error::io(format!("cannot listen on {address}")))?;
        let address = listener.local_addr().map_err(Error::io("cannot tell the address"))?;
        Ok(Self { listener, address })
    }

    /// The address with its real port.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// How and until when to serve.
pub(crate) struct Serving<S, C> {
    pub(crate) limits: HttpLimits,
    /// Plain HTTP without it.
    pub(crate) tls: Option<Tls>,
    /// Resolves when no more connections are to be taken.
    pub(crate) stop: S,
    /// How long what is in flight may take then.
    pub(crate) drain: Duration,
    /// Resolves when even that is too long.
    pub(crate) cut: C,
}

/// Serves until `stop` resolves, then lets what is in flight end for at most `drain`, or until `cut` resolves.
pub(crate) async fn serve(
    listener: Listener,
    router: Router,
    serving: Serving<impl Future<Output = ()>, impl Future<Output = ()>>,
) -> Result<(), Error> {
    let Serving { limits, mut tls, stop, drain, cut } = serving;
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    let (stopping, _) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut hang_ups = match &tls {
        Some(_) => Some(signal(SignalKind::hangup()).map_err(Error::io("cannot listen for SIGHUP"))?),
        None => None,
    };
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            Some(_ended) = connections.join_next() => continue,
            () = reloaded(&mut tls) => continue,
            permit = Arc::clone(&permits).acquire_owned() => {
                let Ok(permit) = permit else { break };
                tokio::select! {
                    () = &mut stop => break,
                    () = hang_up(&mut hang_ups) => {
                        tls.iter_mut().for_each(Tls::reload);
                        continue;
                    }
                    () = reloaded(&mut tls) => continue,
                    accepted = listener.listener.accept() => accepted.map(|(stream, _)| (stream, permit)),
                }
            }
        };
        match accepted {
            Ok((stream, permit)) => {
                let (router, limits, watcher) = (router.clone(), limits.clone(), graceful.watcher());
                let acceptor = tls.as_ref().map(Tls::acceptor);
                let mut stopped = stopping.subscribe();
                connections.spawn(async move {
                    prepare(&stream);
                    let Some(acceptor) = acceptor else {
                        return end(watcher.watch(connection(stream, router, &limits)).await, permit);
                    };
                    // Who has not even said hello when the host stops is not waited for.
                    let shaken = tokio::select! {
                        shaken = tls::handshake(acceptor, stream, limits.handshake_timeout) => shaken,
                        _ = stopped.changed() => return,
                    };
                    match shaken {
                        Ok(stream) => end(watcher.watch(connection(stream, router, &limits)).await, permit),
                        Err(error) => tracing::debug!(%error, "TLS handshake failed"),
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: let some connections end first.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop((listener, stopping));
    let drained = async {
        graceful.shutdown().await;
        while connections.join_next().await.is_some() {}
        if let Some(tls) = &mut tls {
            while tls.reloaded().await {}
        }
    };
    let in_time = tokio::select! {
        done = tokio::time::timeout(drain, drained) => done.is_ok(),
        () = cut => false,
    };
    if !in_time {
        tracing::warn!(
            "cutting {} connections that did not end in time (drain_ms_max is {drain:?})",
            connections.len()
        );
        connections.shutdown().await;
    }
    Ok(())
}

/// The next SIGHUP; never without TLS.
async fn hang_up(hang_ups: &mut Option<Signal>) {
    match hang_ups {
        Some(hang_ups) => drop(hang_ups.recv().await),
        None => std::future::pending().await,
    }
}

/// The end of reading the certificate again; never while it is not read.
async fn reloaded(tls: &mut Option<Tls>) {
    let is_read = match tls {
        Some(tls) => tls.reloaded().await,
        None => false,
    };
    if !is_read {
        std::future::pending().await
    }
}

fn prepare(stream: &TcpStream) {
    let _best_effort = stream.set_nodelay(true);
    // A caller that does not read its answer would hold its receipt, its adapters and its plugin instance.
    let _best_effort = SockRef::from(stream).set_tcp_user_timeout(Some(UNREAD_MAX));
}

fn end(result: Result<(), hyper::Error>, permit: OwnedSemaphorePermit) {
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
    drop(permit);
}

type Connection<S> = hyper::server::conn::http1::Connection<Explained<TokioIo<S>>, TowerToHyperService<Router>>;

fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    router: Router,
    limits: &HttpLimits,
) -> Connection<S> {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_timeout).max_headers(100);
    builder.serve_connection(Explained::new(TokioIo::new(stream)), TowerToHyperService::new(router))
}
